"""Smaller pictures: means of squares of pixels, in integers (docs/spec/numerics.md)."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.config import REDUCTIONS
from dca_fast.errors import ConfigError

__all__ = ["box_mean", "check"]

_BLOCKS = 64  # rows of the result that are made at a time, in little memory


def check(reduce: object) -> int:
    """The reduction.

    Raises:
        ConfigError: not one of `REDUCTIONS`.
    """
    if isinstance(reduce, bool) or not isinstance(reduce, Integral) or int(reduce) not in REDUCTIONS:
        raise ConfigError(f"reduce must be one of {', '.join(map(str, REDUCTIONS))}, got {reduce!r}")
    return int(reduce)


def box_mean(picture: npt.NDArray[Any], reduce: int) -> npt.NDArray[Any]:
    """The mean of each square of `reduce` x `reduce` pixels, as far as the picture has them, halves rounded upwards.

    Args:
        picture: uint8 or uint16 [H, W] or [H, W, C].
        reduce: 1 .. 16.

    Returns:
        [ceil(H / reduce), ceil(W / reduce)] or with C, of the same type.
    """
    wide = np.uint32 if picture.dtype == np.uint16 else np.uint16  # holds sums of 16 x 16 samples
    rows, columns = (np.diff([*range(0, side, reduce), side]).astype(np.uint32) for side in picture.shape[:2])
    out = np.empty((len(rows), len(columns), *picture.shape[2:]), picture.dtype)
    for top in range(0, len(rows), _BLOCKS):
        strip = picture[top * reduce : (top + _BLOCKS) * reduce]
        sums = _sums(_sums(strip, reduce, wide).swapaxes(0, 1), reduce, wide).swapaxes(0, 1)
        counts = np.multiply.outer(rows[top : top + _BLOCKS], columns)
        counts = counts.reshape(counts.shape + (1,) * (picture.ndim - 2))
        out[top : top + _BLOCKS] = (2 * sums.astype(np.uint32) + counts) // (2 * counts)
    return out


def _sums(x: npt.NDArray[Any], reduce: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Of so many rows each; the last ones may be fewer."""
    sums = x[::reduce].astype(dtype)
    for i in range(1, reduce):
        part = x[i::reduce]
        sums[: len(part)] += part
    return sums
