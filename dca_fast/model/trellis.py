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

from dca_fast.config import LATENT_ONE, ROWS_PER_OCTAVE, SCALE_MIN, SKIP_ROW, TRELLIS_PRICE, TRELLIS_STEP
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.cuda_coder import DeviceCoder
from dca_fast.entropy.tables import ROWS, Tables, build_gaussian_tables

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


def _rows_of(log2_scale: Tensor, coded: Tensor) -> Tensor:
    """Nearest rows of the scale table, SKIP_ROW where nothing is coded: uint8 of the shape of the scales."""
    return nearest_rows(log2_scale).where(coded, SKIP_ROW).to(torch.uint8)


def table_rows(log2_scale: Tensor, coded: Tensor) -> npt.NDArray[np.uint8]:
    """Nearest rows of the scale table, SKIP_ROW where nothing is coded; flat."""
    return _rows_of(log2_scale, coded).flatten().cpu().numpy()


def _to_search(residuals: Tensor) -> Tensor:
    """Residuals in quantiser steps as the search takes them, int32."""
    return (residuals.detach() * LATENT_ONE).round().clamp(-_LIMIT, _LIMIT).to(torch.int32)


def quantise(residuals: Tensor, rows: npt.NDArray[np.uint8], coder: Coder | None = None) -> npt.NDArray[np.int16]:
    """Values of one part of one image: residuals in quantiser steps, float32, and flat rows -> flat values."""
    coder = coder or gaussian_coder()
    return coder.quantise(_to_search(residuals).flatten().cpu().numpy(), rows, _charges(coder), 1)


class DeviceSearch:
    """`quantise` for a batch of at most 1024 images on a CUDA device, without waiting for it.

    Args:
        tables: of the search.
        device: a CUDA device.

    Raises:
        BackendUnavailableError: no device, or no library of the coder for it and no way to build one.
    """

    def __init__(self, tables: Tables, device: torch.device) -> None:
        self._coder = DeviceCoder(tables, device)
        self._charges = torch.from_numpy(tables.charges(1 / TRELLIS_PRICE)).to(self._coder.device)

    def __call__(self, residuals: Tensor, rows: Tensor) -> Tensor:
        """Residuals `[N, S]` in quantiser steps, float32, and rows `[N, S]` uint8 -> values `[N, S]` int16."""
        flat = _to_search(residuals).flatten(), rows.flatten()
        return self._coder.quantise(*flat, self._charges, 1, len(rows)).view(rows.shape)


@cache
def _device_search(coder: Coder, device: torch.device) -> DeviceSearch:
    """Kept for good: recorded training steps read its memory."""
    return DeviceSearch(coder.tables, device)


def search(residuals: Tensor, rows: Tensor, coder: Coder | None = None) -> Tensor:
    """Values of one part of every image of a batch; as of `DeviceSearch`, on any device."""
    if residuals.device.type == "cuda":
        return _device_search(coder or gaussian_coder(), residuals.device)(residuals, rows)
    values = [quantise(image, image_rows.numpy(), coder) for image, image_rows in zip(residuals, rows, strict=True)]
    return torch.from_numpy(np.stack(values))


def to_quantiser_steps(values: npt.NDArray[np.int16] | Tensor, like: Tensor) -> Tensor:
    """Values as quantiser steps, of the shape, type and device of `like`."""
    return torch.as_tensor(values).to(like).view(like.shape) * (TRELLIS_STEP / LATENT_ONE)


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
    if residuals[0].is_meta:  # `model.cost` counts layers only
        return [torch.empty_like(r) for r in residuals], [torch.zeros_like(r) for r in residuals]
    flat = torch.cat([r.detach().flatten(1) for r in residuals], 1)
    rows = torch.cat([_rows_of(s.detach(), c).flatten(1) for s, c in zip(log2_scales, coded, strict=True)], 1)
    values = search(flat, rows, coder)

    def by_parity(x: Tensor) -> list[Tensor]:
        sizes = [math.prod(r.shape[1:]) for r in residuals]
        return [sites.reshape(r.shape) for sites, r in zip(x.split(sizes, 1), residuals, strict=True)]

    seen = by_parity(to_quantiser_steps(values, flat))
    if not price:
        return seen, [torch.zeros_like(r) for r in residuals]
    pairs = zip(values.cpu().numpy(), rows.cpu().numpy(), strict=True)
    cost = np.stack([bits_of(v, r, coder, 1) for v, r in pairs])
    return seen, by_parity(torch.from_numpy(cost).to(flat))
