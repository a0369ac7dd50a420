"""The coding walk of the float network, written once: hyper latents, then four quadtree steps, with a source of values.

Training counts what its source makes, CompressAI's model writes and reads streams, a float rival keeps symbols; the
integer walk is `dca_fast.network.walk`. Reference: DCA (arXiv 2411.05832), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dca_fast.config import (
    AQ_CHANNELS,
    AQ_REACH,
    FIRST_CODED_ROW,
    QUADTREE,
    QUALITY_MAX,
    ROWS_PER_OCTAVE,
    SCALE_MIN,
    STEPS,
    Part,
    coarse_to_fine,
)
from dca_fast.model import trellis
from dca_fast.model.context import parity_join, parity_split
from dca_fast.network.layout import ANCHORS
from dca_fast.ops.reference import sum_around

if TYPE_CHECKING:
    from dca_fast.model.network import Network

LOWEST = math.log2(SCALE_MIN)
LOG2_CODED = LOWEST + (FIRST_CODED_ROW - 0.5) / ROWS_PER_OCTAVE  # of the smallest scale that rounds to a coded row


class Source(Protocol):
    """Where values come from: quantised residuals at an encoder, a stream at a decoder, which has no residuals.

    Residuals, scales and results are in quantiser steps and of one shape; `coded` is False where a file has no symbol.
    """

    def hyper(self, name: str, residual: Tensor | None, log2_scale: Tensor, coded: Tensor) -> Tensor:
        """Values of a part of a hyper latent, `[N, h', w', C]`."""

    def step(self, residuals: list[Tensor] | None, log2_scales: list[Tensor], coded: list[Tensor]) -> list[Tensor]:
        """Values of a quadtree step at the four parities, `[N, h/2, w/2, M/4]` each."""


def axis(quality: Tensor) -> Tensor:
    """Quality `[N]` in 0..100 as the network's t, `[N, 1, 1, 1]` in -1..1."""
    return (quality / QUALITY_MAX * 2 - 1).view(-1, 1, 1, 1)


def interpolate(table: Tensor, quality: Tensor) -> Tensor:
    """Values of `[ANCHORS, C]` at `quality` `[N]` in 0..100, piecewise linear: `[N, 1, 1, C]`."""
    position = quality / QUALITY_MAX * (ANCHORS - 1)
    low = position.floor().clamp(0, ANCHORS - 2).long()
    fraction = (position - low)[:, None]
    return (table[low] * (1 - fraction) + table[low + 1] * fraction)[:, None, None, :]


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
            z_hat[part.sites] = code(part, mean, scale.clamp_min(LOWEST))
        return z_hat


def code_hyper(
    network: Network, source: Source, z: Mapping[str, Tensor] | None, sites: tuple[int, int], quality: Tensor
) -> dict[str, Tensor]:
    """The hyper latents as a decoder sees them.

    Args:
        network: whose factorised models are used.
        source: see `Source`.
        z: of the hyper analyses, `[N, ...]`; None at a decoder.
        sites: (h, w) of y.
        quality: `[N]`, 0..100.
    """
    z_hat = {}
    for name, shape in network.config.hyper_shapes(*sites).items():
        model = network.factorised[name]
        assert isinstance(model, Factorised)
        scale, gain = interpolate(model.log2_scale, quality), torch.exp2(interpolate(model.log2_gain, quality))
        if name == "global":  # one channel for each value of each token
            scale, gain = scale.view(-1, *shape), gain.view(-1, *shape)
        target = None if z is None else z[name] * gain

        def code(part: Part, mean: Tensor, log2_scale: Tensor, name: str = name, z: Tensor | None = target) -> Tensor:
            residual, log2_scale = None if z is None else z[part.sites] - mean, log2_scale.expand_as(mean)
            return mean + source.hyper(name, residual, log2_scale, log2_scale >= network.log2_coded)

        z_hat[name] = model.walk((len(quality), *shape), scale, code) / gain
    return z_hat


@torch.no_grad()
def coarseness(scales: list[Tensor], gains: list[Tensor], strength: float, log2_coded: float = LOG2_CODED) -> Tensor:
    """log2 of how much larger quantiser steps are at each site, `[N, H, W, 1]` (`ops.reference.coarseness`).

    Args:
        scales: log2 of the scales of step 0 in quantiser steps, of the four parities.
        gains: log2 gains of the four channel groups.
        strength: 0..15/16.
        log2_coded: of the smallest scale that is coded.
    """
    coarser = []
    for p, scale in enumerate(scales):
        row = trellis.nearest_rows(scale).where(scale >= log2_coded, FIRST_CODED_ROW - 1)
        above = row - (gains[p ^ QUADTREE[0]] - LOWEST) * ROWS_PER_OCTAVE
        rows = (above[..., :AQ_CHANNELS].mean(-1, keepdim=True) * strength).round().clamp(-AQ_REACH, AQ_REACH)
        coarser.append(rows / ROWS_PER_OCTAVE)
    return parity_join(coarser)


def code_latent(
    network: Network,
    source: Source,
    y: Tensor | None,
    features: dict[str, Tensor],
    sites: tuple[int, int],
    quality: Tensor,
    aq_strength: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The four steps.

    Args:
        network: whose contextualiser and gains are used.
        source: see `Source`.
        y: `[N, h, w, M]`; None at a decoder.
        features: of `Contextualiser.prepare`.
        sites: (h, w) of y.
        quality: `[N]`, 0..100.
        aq_strength: of adaptive quantisation, 0..15/16.

    Returns:
        y_hat `[N, h, w, M]`, and what `coarseness` says, `[N, h, w, 1]`.
    """
    (h, w), t = sites, axis(quality)
    gains = interpolate(network.log2_gain, quality).chunk(4, -1)
    targets = None if y is None else [sites.chunk(4, -1) for sites in parity_split(y)]
    zeros = gains[0].new_zeros(len(quality), h // 2, w // 2, network.config.latent // 4)
    decoded = [[zeros] * 4 for _ in range(4)]
    coarser, y_hat = zeros.new_zeros(len(quality), h, w, 1), None
    for step in range(STEPS):
        groups = [p ^ QUADTREE[step] for p in range(4)]
        means, log2_scales = zip(*network.context(step, y_hat, features, t), strict=True)
        plain = [scale + gains[g] for scale, g in zip(log2_scales, groups, strict=True)]
        if aq_strength and not step:
            coarser = coarseness(plain, list(gains), aq_strength, network.log2_coded)
        shifts = parity_split(coarser)
        units = [torch.exp2(gains[g] - shift) for g, shift in zip(groups, shifts, strict=True)]
        residuals = None
        if targets is not None:
            residuals = [(targets[p][g] - means[p]) * units[p] for p, g in enumerate(groups)]
        scales = [(scale - shift).clamp_min(LOWEST) for scale, shift in zip(plain, shifts, strict=True)]
        coded = [torch.minimum(s, whole) >= network.log2_coded for s, whole in zip(scales, plain, strict=True)]
        for p, value in enumerate(source.step(residuals, scales, coded)):
            decoded[p][groups[p]] = value / units[p] + means[p]
        y_hat = parity_join([torch.cat(channel_groups, -1) for channel_groups in decoded])
    assert y_hat is not None
    return y_hat, coarser
