"""Smaller pictures: means of squares of pixels, in integers (docs/spec/numerics.md)."""

from __future__ import annotations

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
    if isinstance(reduce, bool) or not isinstance(reduce, int) or reduce not in REDUCTIONS:
        raise ConfigError(f"reduce must be one of {', '.join(map(str, REDUCTIONS))}, got {reduce!r}")
    return reduce


def box_mean(picture: npt.NDArray[Any], reduce: int) -> npt.NDArray[Any]:
    """The mean of each square of `reduce` x `reduce` pixels, as far as the picture has them, halves rounded upwards.

    Args:
        picture: uint8 or uint16 [H, W] or [H, W, C].
        reduce: 1 .. 16.

    Returns:
        [ceil(H / reduce), ceil(W / reduce)] or with C, of the same type.
    """
    rows, columns = (np.minimum(np.arange(0, side, reduce) + reduce, side) for side in picture.shape[:2])
    rows, columns = np.diff(rows, prepend=0), np.diff(columns, prepend=0)
    out = np.empty((len(rows), len(columns), *picture.shape[2:]), picture.dtype)
    for top in range(0, len(rows), _BLOCKS):
        strip = picture[top * reduce : (top + _BLOCKS) * reduce]
        sums = np.add.reduceat(strip, np.arange(0, len(strip), reduce), 0, np.int32)
        sums = np.add.reduceat(sums, np.arange(0, strip.shape[1], reduce), 1)
        counts = np.multiply.outer(rows[top : top + _BLOCKS], columns)
        counts = counts.reshape(counts.shape + (1,) * (picture.ndim - 2)).astype(np.int32)
        out[top : top + _BLOCKS] = (2 * sums + counts) // (2 * counts)
    return out
