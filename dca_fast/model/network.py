"""The whole float network: transforms, hyper pairs, contextualiser, gains over the quality axis, rates.

    image -> f_a -> y -> l_a, r_a, g_a -> z -> round -> l_s, r_s, g_s -> phi
    per step: c(y_hat so far, phi) -> mean, scale -> trellis(y - mean) -> y_hat;   y_hat -> f_s -> image

Reference: DCA (arXiv 2411.05832), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dca_fast.config import ALIGN, BACK, LINEAR_PRICE, STRIDE, ModelConfig, price
from dca_fast.entropy.coder import Coder
from dca_fast.model import trellis
from dca_fast.model.context import Contextualiser
from dca_fast.model.expected import Expected, rounded_bits
from dca_fast.model.hyper import GlobalHyper, LocalHyper, RegionalHyper
from dca_fast.model.rates import gaussian_bits, noisy_bits
from dca_fast.model.transforms import PatchSynthesis, build_transforms, pad_image
from dca_fast.model.walk import LOG2_CODED, Factorised, Source, axis, code_hyper, code_latent, interpolate
from dca_fast.network.layout import ANCHORS

COARSEST, FINEST = 120.0, 7.0  # quantiser steps in grey levels from which the gains start


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` with the gradient of `x`."""
    return x + (value - x).detach()


def sum_of(bits: Tensor) -> Tensor:
    """Sum for each sample, `[N]`."""
    return bits.flatten(1).sum(1)


class Rates:
    """A source that quantises as files do, straight-through, and counts bits for each sample.

    Args:
        noisy: rates from uniform noise, or expected ones, instead of from what is coded; None: none are counted.
        coder: whose tables tell what values take that are not noisy; None: Gaussian ones.
        expected: counts rates in training; None: uniform noise does.
        fused: uniform noise by a kernel of `kernels/training.py`.
    """

    def __init__(self, noisy: bool | None, coder: Coder | None, expected: Expected | None, fused: bool) -> None:
        self._noisy, self._coder, self._fused = noisy, coder, fused
        self._expected = expected if noisy else None
        self._bits_z: dict[str, Tensor] = {}
        self._bits_y: list[Tensor] = []
        self._error: list[Tensor] = []

    def hyper(self, name: str, residual: Tensor | None, log2_scale: Tensor, coded: Tensor) -> Tensor:
        assert residual is not None
        rounded = straight_through(residual, torch.round(residual) * coded)
        # Training counts symbols that no file has as well: their bits alone tell a scale to grow.
        if self._expected is not None:
            bits = rounded_bits(residual, rounded.detach(), log2_scale, coded)
        elif self._noisy:
            bits = noisy_bits(residual, log2_scale, self._fused)
        elif self._coder is None:
            bits = gaussian_bits(rounded, log2_scale) * coded
        else:
            bits = trellis.plain_bits(rounded, log2_scale, coded, self._coder)
        spent = sum_of(bits)
        self._bits_z[name] = self._bits_z[name] + spent if name in self._bits_z else spent
        return rounded

    def step(self, residuals: list[Tensor] | None, log2_scales: list[Tensor], coded: list[Tensor]) -> list[Tensor]:
        assert residuals is not None
        seen, spent = trellis.step(residuals, log2_scales, coded, self._noisy is False, self._coder)
        slopes: list[Tensor | float] = [1.0] * len(seen)  # of values by their residuals
        if self._expected is not None:
            costs = [self._expected(*arguments) for arguments in zip(residuals, seen, log2_scales, coded, strict=True)]
            spent, slopes = [bits for bits, _ in costs], [slope for _, slope in costs]
        elif self._noisy:
            spent = [noisy_bits(r, scale, self._fused) for r, scale in zip(residuals, log2_scales, strict=True)]
        self._bits_y.append(torch.stack([sum_of(bits) for bits in spent]).sum(0))
        normalised = (r * torch.exp2(-s) for r, s in zip(residuals, log2_scales, strict=True))
        self._error.append(torch.stack([x.square().flatten(1).mean(1) for x in normalised]).mean(0).detach())
        return [v + slope * (r - r.detach()) for v, slope, r in zip(seen, slopes, residuals, strict=True)]

    def totals(self, names: Iterable[str]) -> dict[str, Tensor]:
        """`bits_y`, `bits_z` in the order of `names`, and `error`, as `Network.forward` returns them."""
        bits_z = [self._bits_z[name] for name in names]
        totals = {"bits_y": torch.stack(self._bits_y, 1), "error": torch.stack(self._error, 1)}
        return totals | ({"bits_z": torch.stack(bits_z, 1)} if bits_z else {})


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
        self.log2_coded = LOG2_CODED  # of the smallest scale that is coded
        self.analysis, self.synthesis = build_transforms(config)
        self.hyper = nn.ModuleDict()
        sizes = {"local": config.local, "regional": config.regional, "global": config.latent}
        pairs = {"local": LocalHyper, "regional": RegionalHyper, "global": GlobalHyper}
        for name in config.latents:
            self.hyper[name] = pairs[name](config)
        self.factorised = nn.ModuleDict({name: Factorised(sizes[name], config.levels(name)) for name in config.latents})
        self.context = Contextualiser(config)
        quantiser_steps = torch.logspace(math.log2(COARSEST), math.log2(FINEST), ANCHORS, base=2)
        self.log2_gain = nn.Parameter(-quantiser_steps.log2()[:, None].repeat(1, config.latent) + 6)

    def rates(self, noisy: bool | None) -> Rates:
        """A source for the walk; `noisy` as of `Rates`."""
        return Rates(noisy, self.coder, self.expected, self.fused)

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
        source, sites = self.rates(noisy), (y.shape[1], y.shape[2])
        features = self.features(y, source, quality)
        if effort:
            y = self.answered(original, y, features, quality, aq_strength)
        y_hat, coarser = code_latent(self, source, y, features, sites, quality, aq_strength)
        x_hat = (self.synthesis(y_hat, t) if picture else original)[:, :height, :width]
        worth = torch.exp2(-2 * coarser).repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)[:, :height, :width]
        out = source.totals(self.hyper) | {"image": x_hat, "worth": worth}
        out["bits"] = out["bits_y"].sum(1) + out["bits_z"].sum(1)
        return out

    def features(self, y: Tensor, source: Source, quality: Tensor) -> dict[str, Tensor]:
        """What the hyper latents of y `[N, h, w, M]`, coded, tell the contextualiser."""
        t = axis(quality)
        z = {name: pair.analyse(y, t) for name, pair in self.hyper.items()}
        z_hat = code_hyper(self, source, z, (y.shape[1], y.shape[2]), quality)
        return self.context.prepare(self.synthesise_hyper(z_hat, t))

    @torch.no_grad()
    def answered(
        self, image: Tensor, y: Tensor, features: dict[str, Tensor], quality: Tensor, aq_strength: float
    ) -> Tensor:
        """The y that level 1 of the encoder quantises, without a restoration filter: y is coded once, and moves from
        there by a step of descent along the error, taken back through the linear layers of f_s."""
        synthesis = self.synthesis
        assert isinstance(synthesis, PatchSynthesis)
        sites = y.shape[1], y.shape[2]
        y_hat, _ = code_latent(self, self.rates(None), y, features, sites, quality, aq_strength)
        picture, (height, width) = synthesis(y_hat, axis(quality)), image.shape[1:3]
        error = torch.zeros_like(picture)
        error[:, :height, :width] = image - picture[:, :height, :width]
        gain = torch.exp2(interpolate(self.log2_gain, quality))
        step_size = price(quality).view(-1, 1, 1, 1) / (3 * LINEAR_PRICE * gain.square())
        return y_hat + BACK * (y - y_hat) + step_size * synthesis.linear_adjoint(error)
