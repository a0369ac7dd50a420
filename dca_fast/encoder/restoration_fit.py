"""The restoration filter's coefficients: what takes most of the error that is left, for the bits they cost.

The filter (`ops.reference.restore`) is linear in its coefficients, so that the best ones are those of a linear
regression; they are fitted to the decoded picture and sent with it (docs/design/restoration.md). Everything here is
rounded alike on every machine: integers, and floats in a fixed order.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from dca_fast.config import RING_ONE, RING_REACH, RINGS
from dca_fast.files.container import MAX_WEIGHT, pack_restoration
from dca_fast.ops import Array, Arrays, Ops

SAMPLES = 196608  # pixels, about, that a fit looks at
RIDGE = 64  # a sample adds 1 / RIDGE to the squares of every feature, so that none is without any
FILTERS = tuple(product(range(1, len(RINGS) + 1), (1, 2, 4, 8)))  # rings, and what coefficients are multiples of


def fit(ops: Ops, arrays: Arrays, picture: Array, image: Array, bits: float) -> tuple[int, ...]:
    """The coefficients for a picture.

    Args:
        ops, arrays: of a backend.
        picture, image: uint8 [H, W, 3] on its device, decoded and original; padding of the picture is cut off.
        bits: that a squared error of one grey level (mean of the three colours) is worth.

    Returns:
        As `Header.restoration`: none where no coefficients are worth their bits.
    """
    return chosen(arrays.numpy(sums_of(ops, arrays, picture, image)), (image.shape[0], image.shape[1]), bits)


def _stride(height: int, width: int) -> int:
    return max(1, height * width // SAMPLES)


def sums_of(ops: Ops, arrays: Arrays, picture: Array, image: Array) -> Array:
    """What `fit` looks at: int64 [18, 21] on the device of its pictures."""
    height, width = image.shape[:2]
    return ops.restore_sums(arrays.contiguous(picture[:height, :width]), image, _stride(height, width))


def chosen(sums: npt.NDArray[np.int64], size: tuple[int, int], bits: float) -> tuple[int, ...]:
    """`fit`, from `sums_of` a picture of this height and width."""
    height, width = size
    rows = -(-height // _stride(height, width))
    return choose(sums, rows * width, bits * height / rows)


def choose(sums: npt.NDArray[np.int64], samples: int, bits: float) -> tuple[int, ...]:
    """`fit`, from the normal equations [18, 21] of so many samples, a squared error in which is worth `bits`."""
    products, wanted = sums[:, : len(sums)], sums[:, len(sums) :]
    solutions = _solutions(products, wanted, samples / RIDGE)
    # Of the squared error, in 1 / RING_ONE^2. 64 bits hold them: a colour's is below 127^2 * 12,624^2 * 2 SAMPLES,
    # 12,624 being all features at their limits.
    gains = (solutions * (2 * RING_ONE * wanted.T - solutions @ products)).sum(2).tolist()
    best: tuple[int, ...] = ()
    saved = 0.0
    for (rings, _), w, gain in zip(FILTERS, solutions, gains, strict=True):
        coefficients = tuple(w[:, : 6 * rings].ravel().tolist())
        worth = sum(gain) / RING_ONE**2 / 3 * bits - 8 * len(pack_restoration(coefficients))
        if worth > saved:
            best, saved = coefficients, worth
    return best


def _solutions(products: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], ridge: float) -> npt.NDArray[np.int64]:
    """Weights of each of `FILTERS` and colour by the first 6, 12 or 18 equations: int64 [filters, 3, 18], zero beyond.

    They share Cholesky's factors. What is solved last is rounded first (Babai's nearest plane): features resemble each
    other, and an error of one weight is made good by the next.
    """
    factor, middle = _factors(products.tolist(), wanted.tolist(), ridge)
    grids = np.array([grid for _, grid in FILTERS])[:, None]
    sizes = np.array([6 * rings for rings, _ in FILTERS])[:, None]
    most, coefficients = MAX_WEIGHT // grids, np.zeros((len(FILTERS), 3, len(products)), np.int64)
    left = np.array(middle)[:, None] * RING_ONE * np.ones((len(FILTERS), 1))  # [equation, filter, colour]
    lower = np.array(factor)[:, :, None, None]
    for i in reversed(range(len(products))):  # each answers what the rounding of those before did
        rounded = np.rint(left[i] / (factor[i][i] * grids)).clip(-most, most)
        w = np.where(i < sizes, grids * rounded, 0.0)
        coefficients[:, :, i] = w
        left[:i] -= lower[i, :i] * w
    return coefficients


def _factors(
    products: list[list[int]], wanted: list[list[int]], ridge: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Cholesky's lower factor, and what it makes of the right sides."""
    size = len(products)
    factor, middle = [[0.0] * size for _ in range(size)], [[0.0] * 3 for _ in range(size)]
    for i in range(size):
        row = factor[i]
        for j in range(i):
            total = float(products[i][j])
            for k in range(j):
                total -= row[k] * factor[j][k]
            row[j] = total / factor[j][j]
        total = products[i][i] + ridge
        for k in range(i):
            total -= row[k] * row[k]
        row[i] = max(total, ridge) ** 0.5
        for c in range(3):
            total = float(wanted[i][c])
            for k in range(i):
                total -= row[k] * middle[k][c]
            middle[i][c] = total / row[i]
    return factor, middle


def as_array(arrays: Arrays, coefficients: tuple[int, ...], rings: int = 0) -> Array:
    """As the operation takes them: int8 [3, 6 R]; R is at least `rings`, for which zeros are added."""
    w = np.array(coefficients, np.int8).reshape(3, -1)
    return arrays.array(np.pad(w, ((0, 0), (0, max(0, 6 * rings - w.shape[1])))))


def apply(ops: Ops, arrays: Arrays, picture: Array, coefficients: tuple[int, ...]) -> Array:
    """The filter that a file holds, on uint8 [H, W, 3]."""
    return ops.restore(arrays.contiguous(picture), as_array(arrays, coefficients))


def restored(
    ops: Ops, arrays: Arrays, picture: Array, w: Array, size: tuple[int, int], part: tuple[slice, slice, slice]
) -> Array:
    """A part of uint8 [1, H, W, 3], of rows and columns, filtered as far as `size`, height and width, goes; its padding
    beyond as it is."""
    (top, bottom), (left, right) = ((side.start, min(side.stop, end)) for side, end in zip(part[1:], size, strict=True))
    first, begins = max(0, top - RING_REACH), max(0, left - RING_REACH)
    seen = picture[0, first : min(bottom + RING_REACH, size[0]), begins : min(right + RING_REACH, size[1])]
    inside = ops.restore(arrays.contiguous(seen), w)[top - first : bottom - first, left - begins : right - begins]
    picture = picture[part]
    if tuple(picture.shape[1:]) == tuple(inside.shape):
        return arrays.contiguous(inside[None])
    picture = arrays.broadcast(picture, picture.shape)  # a copy
    picture[:, : bottom - top, : right - left] = inside
    return picture
