"""The whole float network: transforms, hyper pairs, contextualiser, gains over the quality axis, rates.

    image -> f_a -> y -> l_a, r_a, g_a -> z -> round -> l_s, r_s, g_s -> phi
    per step: c(y_hat so far, phi) -> mean, scale -> trellis(y - mean) -> y_hat;   y_hat -> f_s -> image

Reference: DCA (arXiv 2411.05832), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dca_fast.config import (
    ALIGN,
    AQ_CHANNELS,
    AQ_REACH,
    BACK,
    FIRST_CODED_ROW,
    LINEAR_PRICE,
    QUADTREE,
    QUALITY_MAX,
    ROWS_PER_OCTAVE,
    SCALE_MIN,
    STEPS,
    STRIDE,
    ModelConfig,
    Part,
    coarse_to_fine,
    price,
)
from dca_fast.entropy.coder import Coder
from dca_fast.model import trellis
from dca_fast.model.context import Contextualiser, parity_join, parity_split
from dca_fast.model.expected import Expected, rounded_bits
from dca_fast.model.hyper import GlobalHyper, LocalHyper, RegionalHyper
from dca_fast.model.rates import gaussian_bits, noisy_bits
from dca_fast.model.transforms import PatchSynthesis, build_transforms, pad_image
from dca_fast.ops.reference import sum_around

ANCHORS = 9  # knots of the gains over the quality axis
STEP_COARSE, STEP_FINE = 120.0, 7.0  # quantiser steps in grey levels from which the gains start


def axis(quality: Tensor) -> Tensor:
    """Quality `[N]` in 0..100 as the network's t, `[N, 1, 1, 1]` in -1..1."""
    return (quality / QUALITY_MAX * 2 - 1).view(-1, 1, 1, 1)


def log2_coded(row: int) -> float:
    """log2 of the smallest scale that rounds to a table row that is coded, `row` being the first one."""
    return math.log2(SCALE_MIN) + (row - 0.5) / ROWS_PER_OCTAVE


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` with the gradient of `x`."""
    return x + (value - x).detach()


def sum_of(bits: Tensor) -> Tensor:
    """Sum for each sample, `[N]`."""
    return bits.flatten(1).sum(1)


def neighbours(z: Tensor, part: Part) -> Tensor:
    """Mean of the sites around each site of a part, as far as there are any: `[N, H', W', C]` of `[N, H, W, C]`."""
    total, count = sum_around(z, part)
    return total / count


class Factorised(nn.Module):
    """Factorised model of one hyper latent: an independent zero-mean Gaussian for each channel and quality.

    The gain sets the quantiser step of the channel, so that a low quality can do without it. Coded by levels, all but
    the coarsest sites have a mean, `weight` times that of the sites around, and a scale of their own.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.log2_scale = nn.Parameter(torch.full((ANCHORS, channels), -1.0))
        self.log2_gain = nn.Parameter(torch.linspace(-1, 0, ANCHORS)[:, None].repeat(1, channels))
        if levels:
            self.weight = nn.Parameter(torch.zeros(2 * levels, channels))
            self.log2_wider = nn.Parameter(torch.zeros(2 * levels, channels))

    def walk(self, shape: Sequence[int], log2_scale: Tensor, code: Callable[[Part, Tensor, Tensor], Tensor]) -> Tensor:
        """z_hat, part by part.

        Args:
            shape: `[N, H, W, C]` of z.
            log2_scale: of the coarsest sites, in quantiser steps; broadcasts.
            code: part, its mean and log2 scale -> what a decoder sees there; small pictures have parts without sites.
        """
        z_hat = log2_scale.new_zeros(shape)
        for part in coarse_to_fine(self.levels):
            mean, scale = torch.zeros_like(z_hat[part.sites]), log2_scale
            if part.kind is not None:
                mean = self.weight[part.kind] * neighbours(z_hat, part)
                scale = scale + self.log2_wider[part.kind]
            z_hat[part.sites] = code(part, mean, scale.clamp_min(math.log2(SCALE_MIN)))
        return z_hat


def interpolate(table: Tensor, quality: Tensor) -> Tensor:
    """Rows of `[ANCHORS, C]` at `quality` `[N]` in 0..100, piecewise linear: `[N, 1, 1, C]`."""
    position = quality / QUALITY_MAX * (ANCHORS - 1)
    low = position.floor().clamp(0, ANCHORS - 2).long()
    fraction = (position - low)[:, None]
    return (table[low] * (1 - fraction) + table[low + 1] * fraction)[:, None, None, :]


class Network(nn.Module):
    """DCA as a float model.

    Args:
        config: structure and widths.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.fused = False  # `model/fused.py`
        self.coder: Coder | None = None  # whose tables tell what symbols take that are not noisy; None: Gaussian ones
        self.expected: Expected | None = None  # counts rates in training; None: uniform noise does
        self.log2_coded = log2_coded(FIRST_CODED_ROW)
        self.analysis, self.synthesis = build_transforms(config)
        self.hyper = nn.ModuleDict()
        sizes = {"local": config.local, "regional": config.regional, "global": config.latent}
        pairs = {"local": LocalHyper, "regional": RegionalHyper, "global": GlobalHyper}
        for name in config.latents:
            self.hyper[name] = pairs[name](config)
        self.factorised = nn.ModuleDict({name: Factorised(sizes[name], config.levels(name)) for name in config.latents})
        self.context = Contextualiser(config)
        steps = torch.logspace(math.log2(STEP_COARSE), math.log2(STEP_FINE), ANCHORS, base=2)
        self.log2_gain = nn.Parameter(-steps.log2()[:, None].repeat(1, config.latent) + 6)

    def code_hyper(self, name: str, z: Tensor, quality: Tensor, noisy: bool) -> tuple[Tensor, Tensor]:
        """Rounded z and its bits, per sample; `noisy` as in `forward`."""
        model = self.factorised[name]
        scale, gain = interpolate(model.log2_scale, quality), torch.exp2(interpolate(model.log2_gain, quality))
        if name == "global":  # one channel for each value of each token
            scale, gain = scale.view(-1, *z.shape[1:]), gain.view(-1, *z.shape[1:])
        z, spent = z * gain, []

        def code(part: Part, mean: Tensor, log2_scale: Tensor) -> Tensor:
            coded, residual = log2_scale >= self.log2_coded, z[part.sites] - mean
            rounded = straight_through(residual, torch.round(residual) * coded)
            # Training counts symbols that no file has as well: their bits alone tell a scale to grow.
            if noisy and self.expected is not None:
                bits = rounded_bits(residual, rounded.detach(), log2_scale, coded)
            elif noisy:
                bits = noisy_bits(residual, log2_scale, self.fused)
            elif self.coder is None:
                bits = gaussian_bits(rounded, log2_scale) * coded
            else:
                bits = trellis.plain_bits(rounded, log2_scale, coded, self.coder)
            spent.append(sum_of(bits))
            return mean + rounded

        z_hat = model.walk(z.shape, scale, code)
        return z_hat / gain, torch.stack(spent).sum(0)

    def synthesise_hyper(self, z_hat: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """phi of each context."""
        return {
            name: pair.synthesise(z_hat[name], t) if name == "regional" else pair.synthesise(z_hat[name])
            for name, pair in self.hyper.items()
        }

    def forward(
        self,
        image: Tensor,
        quality: Tensor,
        noisy: bool | None = None,
        effort: int = 0,
        picture: bool = True,
        aq_strength: float = 0.0,
    ) -> dict[str, Tensor]:
        """Code `image` `[N, H, W, 3]` (grey levels - 128, any size; padded to multiples of 64) at `quality` `[N]`.

        Args:
            noisy: rates from uniform noise (training) instead of from what is coded; default: `self.training`.
            effort: 0 or 1, the level of the encoder (docs/design/effort.md); 1 needs "patch" transforms, and f_a sees
                no gradient of what comes after it.
            picture: whether f_s runs; if not, `image` comes back as it was.
            aq_strength: of adaptive quantisation (docs/spec/adaptive.md), 0..15/16.

        Returns:
            `image` `[N, H, W, 3]`; `bits` `[N]`; `bits_y` `[N, 4]`, one for each step; `bits_z` `[N, contexts]`;
            `error` `[N, 4]`, mean square of (y - mean) / scale of each step; `worth` `[N, H, W, 1]`, what a squared
            error counts where quantisers adapt, 1 where they do not.
        """
        noisy = self.training if noisy is None else noisy
        height, width = image.shape[1:3]
        original, image = image, pad_image(image, ALIGN)
        t = axis(quality)
        y = self.analysis(image, t)
        z_hat, bits_z = {}, []
        for name, pair in self.hyper.items():
            z_hat[name], bits = self.code_hyper(name, pair.analyse(y, t), quality, noisy)
            bits_z.append(bits)
        features = self.context.prepare(self.synthesise_hyper(z_hat, t))
        if effort:
            y = self.answered(original, y, features, quality, t, aq_strength)
        y_hat, bits_y, error, coarser = self.code_latent(y, features, quality, t, noisy, aq_strength)
        x_hat = (self.synthesis(y_hat, t) if picture else original)[:, :height, :width]
        worth = torch.exp2(-2 * coarser).repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)[:, :height, :width]
        out = {"image": x_hat, "bits_y": bits_y, "bits_z": torch.stack(bits_z, 1), "error": error, "worth": worth}
        out["bits"] = out["bits_y"].sum(1) + out["bits_z"].sum(1)
        return out

    @torch.no_grad()
    def answered(
        self, image: Tensor, y: Tensor, features: dict[str, Tensor], quality: Tensor, t: Tensor, aq_strength: float
    ) -> Tensor:
        """Where the encoder's level 1 quantises y around, as the encoder does, without a restoration filter: y coded
        once, and from there a step along what the linear part of f_s makes of the error backwards."""
        synthesis = self.synthesis
        assert isinstance(synthesis, PatchSynthesis)
        y_hat = self.code_latent(y, features, quality, t, None, aq_strength)[0]
        picture, (height, width) = synthesis(y_hat, t), image.shape[1:3]
        error = torch.zeros_like(picture)
        error[:, :height, :width] = image - picture[:, :height, :width]
        gain = torch.exp2(interpolate(self.log2_gain, quality))
        size = price(quality).view(-1, 1, 1, 1) / (3 * LINEAR_PRICE * gain.square())
        return y_hat + BACK * (y - y_hat) + size * synthesis.linear_adjoint(error)

    @torch.no_grad()
    def coarseness(self, scales: list[Tensor], gains: list[Tensor], strength: float) -> Tensor:
        """log2 of how much larger steps are at each site, `[N, H, W, 1]` (`ops.reference.coarseness`).

        Args:
            scales: log2 of the scales of step 0 in quantiser steps, of the four parities.
            gains: log2 gains of the four groups.
            strength: 0..15/16.
        """
        parts, lowest = [], math.log2(SCALE_MIN)
        for p, scale in enumerate(scales):
            row = trellis.nearest_rows(scale).where(scale >= self.log2_coded, FIRST_CODED_ROW - 1)
            above = row - (gains[p ^ QUADTREE[0]] - lowest) * ROWS_PER_OCTAVE
            rows = (above[..., :AQ_CHANNELS].mean(-1, keepdim=True) * strength).round().clamp(-AQ_REACH, AQ_REACH)
            parts.append(rows / ROWS_PER_OCTAVE)
        return parity_join(parts)

    def code_latent(
        self,
        y: Tensor,
        features: dict[str, Tensor],
        quality: Tensor,
        t: Tensor,
        noisy: bool | None,
        aq_strength: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four steps: y_hat, bits `[N, 4]`, normalised squared error `[N, 4]`, what `coarseness` says; `noisy` and
        `aq_strength` as in `forward`, but None: bits are not counted, and are zero."""
        log2_gain, lowest = interpolate(self.log2_gain, quality), math.log2(SCALE_MIN)
        gains = log2_gain.chunk(4, -1)
        targets = [part.chunk(4, -1) for part in parity_split(y)]
        decoded: list[list[Tensor]] = [[torch.zeros_like(g) for g in groups] for groups in targets]
        coarser = torch.zeros_like(y[..., :1])
        bits_y, error, y_hat = [], [], None
        for step in range(STEPS):
            groups = [p ^ QUADTREE[step] for p in range(STEPS)]
            means, log2_scales = zip(*self.context(step, y_hat, features, t), strict=True)
            plain = [scale + gains[g] for scale, g in zip(log2_scales, groups, strict=True)]
            if aq_strength and not step:
                coarser = self.coarseness(plain, gains, aq_strength)
            shifts = parity_split(coarser)
            units = [torch.exp2(gains[g] - shift) for g, shift in zip(groups, shifts, strict=True)]
            residuals = [(targets[p][g] - means[p]) * units[p] for p, g in enumerate(groups)]
            scales = [(scale - shift).clamp_min(lowest) for scale, shift in zip(plain, shifts, strict=True)]
            coded = [torch.minimum(s, whole) >= self.log2_coded for s, whole in zip(scales, plain, strict=True)]
            seen, spent = trellis.step(residuals, scales, coded, noisy is False, self.coder)
            follow: list[Tensor | float] = [1.0] * STEPS  # how much of a residual's change its value makes
            if noisy and self.expected is not None:
                costs = [self.expected(*arguments) for arguments in zip(residuals, seen, scales, coded, strict=True)]
                spent, follow = [bits for bits, _ in costs], [slope for _, slope in costs]
            elif noisy:
                spent = [noisy_bits(r, scale, self.fused) for r, scale in zip(residuals, scales, strict=True)]
            bits, square = sum(map(sum_of, spent), y.new_zeros(y.shape[0])), y.new_zeros(y.shape[0])
            for p, g in enumerate(groups):
                square = square + (residuals[p] * torch.exp2(-scales[p])).square().flatten(1).mean(1) / 4
                value = seen[p] + follow[p] * (residuals[p] - residuals[p].detach())
                decoded[p][g] = value / units[p] + means[p]
            bits_y.append(bits)
            error.append(square.detach())
            y_hat = parity_join([torch.cat(parts, -1) for parts in decoded])
        assert y_hat is not None
        return y_hat, torch.stack(bits_y, 1), torch.stack(error, 1), coarser
