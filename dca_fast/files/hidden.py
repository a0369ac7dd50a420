"""Colours that nobody sees, under alpha 0, made cheap to code: interpolated from the colours around them.

A pyramid as in scattered data interpolation (Gortler et al., "The Lumigraph", 1996, section 3.4): means of what is
known are pulled up level by level until all is known, then interpolated values are pushed down to where nothing is.
All in integers, so that every machine codes the same picture. A pixel is one 64-bit word of four 16-bit lanes, red,
green, blue and whether it is known; no sum below reaches the next lane.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["fill"]

_Words = npt.NDArray[np.uint64]
_MIDDLE = 128  # where nothing at all is seen
_STRIP = 16  # rows that are interpolated at once, for the sake of caches
_TWOS = np.uint64(0x0002_0002_0002_0002)  # in every lane
_EIGHTS = np.uint64(0x0008_0008_0008_0008)
_BYTES = np.uint64(0x00FF_00FF_00FF_00FF)


def fill(pixels: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """Replace colours under alpha 0 by smooth ones.

    Args:
        pixels: [H, W, 3] uint8.
        alpha: [H, W] uint8, or None.

    Returns:
        [H, W, 3] uint8, equal to `pixels` wherever alpha is not 0; `pixels` itself if that is everywhere. Three equal
        planes stay equal.
    """
    if alpha is None or alpha.all():
        return pixels
    seen = alpha != 0
    if not seen.any():
        return np.full_like(pixels, _MIDDLE)
    # With a margin, which is seen, unless it is the whole picture.
    rows, columns = (slice(max(0, span[0] - 1), span[-1] + 2) for span in _spans(~seen))
    result = pixels.copy()
    part = result[rows, columns]
    filled = _filled(_pack(part, seen[rows, columns]))[..., None].view(np.uint16)
    for channel in range(3):
        part[..., channel] = filled[..., channel]
    return result


def _spans(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))


def _pack(pixels: npt.NDArray[np.uint8], seen: npt.NDArray[np.bool_]) -> _Words:
    lanes = np.empty((*seen.shape, 4), np.uint16)
    for channel in range(3):
        lanes[..., channel] = pixels[..., channel]
    lanes[..., 3] = 1
    words = lanes.view(np.uint64)[..., 0]
    words *= seen
    return words


def _known(words: _Words) -> npt.NDArray[np.uint16]:
    """The number of known pixels in each sum."""
    return words[..., None].view(np.uint16)[..., 3]


def _filled(words: _Words) -> _Words:
    """All pixels known; at least one must be."""
    known = _known(words) != 0
    if known.all():
        return words
    height, width = words.shape
    pushed = _doubled(_filled(_halved(words)))[:height, :width]
    np.copyto(pushed, words, where=known)
    return pushed


def _halved(words: _Words) -> _Words:
    """Means of the known pixels in blocks of two by two, rounded."""
    height, width = words.shape
    if height % 2 or width % 2:
        words = np.pad(words, ((0, height % 2), (0, width % 2)))
    sums = words[0::2] + words[1::2]
    sums = sums[:, 0::2] + sums[:, 1::2]
    counts = _known(sums)
    means: _Words = (sums + _TWOS) >> np.uint64(2) & _BYTES  # of four
    few = np.nonzero((counts > 0) & (counts < 4))
    count = counts[few][:, None]
    lanes = sums[few][:, None].view(np.uint16)
    means[few] = ((2 * lanes + count) // (2 * count)).astype(np.uint16).view(np.uint64)[:, 0]
    return means


def _doubled(words: _Words) -> _Words:
    """Bilinear interpolation between the centres of the pixels, rounded."""
    height, width = words.shape
    edged = np.pad(words, 1, mode="edge")
    result = np.empty((2 * height, 2 * width), np.uint64)
    for top in range(0, height, _STRIP):
        rows = edged[top : top + _STRIP + 2]
        tall = np.empty((2 * len(rows) - 4, width + 2), np.uint64)
        near = 3 * rows[1:-1]
        np.add(near, rows[:-2], out=tall[0::2])
        np.add(near, rows[2:], out=tall[1::2])
        strip = result[2 * top : 2 * top + len(tall)]
        near = 3 * tall[:, 1:-1] + _EIGHTS
        np.add(near, tall[:, :-2], out=strip[:, 0::2])
        np.add(near, tall[:, 2:], out=strip[:, 1::2])
        strip >>= np.uint64(4)
        strip &= _BYTES
    return result
