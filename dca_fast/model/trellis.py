"""y's residuals through the trellis, for the float model: the values that a file holds, and what they cost.

The search is the entropy coder's (`dca_fast.entropy.trellis`), with Gaussian tables unless a coder is given.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.config import LATENT_STEPS, ROWS_PER_OCTAVE, SCALE_MIN, SKIP_ROW, TRELLIS_PRICE, TRELLIS_STEP
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import ROWS, build_gaussian_tables

_LIMIT = 1 << 22  # of residuals in 1/256 quantiser steps: beyond what the search distinguishes


@cache
def gaussian_coder() -> Coder:
    """A coder with Gaussian tables."""
    return Coder(build_gaussian_tables())


@lru_cache(maxsize=2)
def _charges(coder: Coder) -> npt.NDArray[np.int32]:
    return coder.tables.charges(1 / TRELLIS_PRICE)


def nearest_rows(log2_scale: Tensor) -> Tensor:
    """Rows of the scale table, float, of the shape of the scales."""
    return ((log2_scale - math.log2(SCALE_MIN)) * ROWS_PER_OCTAVE).round().clamp(0, ROWS - 1)


def table_rows(log2_scale: Tensor, coded: Tensor) -> npt.NDArray[np.uint8]:
    """Nearest rows of the scale table, SKIP_ROW where nothing is coded; flat."""
    return nearest_rows(log2_scale).where(coded, SKIP_ROW).to(torch.uint8).flatten().cpu().numpy()


def quantise(residuals: Tensor, rows: npt.NDArray[np.uint8], coder: Coder | None = None) -> npt.NDArray[np.int16]:
    """Values of one part of one image: residuals in quantiser steps, float32, and flat rows -> flat values."""
    coder = coder or gaussian_coder()
    steps = (residuals.detach().flatten() * LATENT_STEPS).round().clamp(-_LIMIT, _LIMIT).to(torch.int32)
    return coder.quantise(steps.cpu().numpy(), rows, _charges(coder), 1)


def to_steps(values: npt.NDArray[np.int16], like: Tensor) -> Tensor:
    """Values as quantiser steps, of the shape, type and device of `like`."""
    return torch.from_numpy(values).to(like).view(like.shape) * (TRELLIS_STEP / LATENT_STEPS)


def bits_of(
    values: npt.NDArray[np.int16], rows: npt.NDArray[np.uint8], coder: Coder | None, groups: int | None
) -> npt.NDArray[np.float64]:
    """What every value takes by the tables, 0 where nothing is coded; `groups` as of `Tables.coded`."""
    bits = np.zeros(len(rows))
    bits[rows != SKIP_ROW] = (coder or gaussian_coder()).tables.value_bits(values, rows, groups)
    return bits


def plain_bits(values: Tensor, log2_scale: Tensor, coded: Tensor, coder: Coder) -> Tensor:
    """Bits of integers of a hyper latent, of their shape; scales and whether they are coded broadcast."""
    rows = table_rows(log2_scale.expand_as(values), coded.expand_as(values))
    integers = values.detach().to(torch.int16).flatten().cpu().numpy()
    return torch.from_numpy(bits_of(integers, rows, coder, None)).to(values).view(values.shape)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # NumPy and the coder
def step(
    residuals: list[Tensor],
    log2_scales: list[Tensor],
    coded: list[Tensor],
    price: bool,
    coder: Coder | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """A quadtree step of a batch.

    Args:
        residuals: of the four parities, `[N, h, w, G]` each, in quantiser steps.
        log2_scales, coded: alike; `coded` bool.
        price: whether to count bits; else they are zero.
        coder: of the search and the bits; None: Gaussian.

    Returns:
        What a decoder sees instead of the residuals, and its bits, alike; no gradients.
    """
    seen, spent = [torch.empty_like(r) for r in residuals], [torch.zeros_like(r) for r in residuals]
    if seen[0].is_meta:  # `model.cost` counts layers only
        return seen, spent
    for n in range(len(residuals[0])):
        rows = np.concatenate([table_rows(s[n].detach(), c[n]) for s, c in zip(log2_scales, coded, strict=True)])
        values = quantise(torch.cat([r[n].flatten() for r in residuals]), rows, coder)
        for out, part in zip(seen, np.split(values, len(seen)), strict=True):
            out[n] = to_steps(part, out[n])
        if price:
            for out, cost in zip(spent, np.split(bits_of(values, rows, coder, 1), len(spent)), strict=True):
                out[n] = torch.from_numpy(cost).to(out).view(out[n].shape)
    return seen, spent
