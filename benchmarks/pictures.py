"""What the benchmarks look at: photographs from the folder in DCA_IMAGES, else the project's synthetic ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np

from dca_fast.evaluation.measure import ImageFolder, Pixels
from dca_fast.testing import photograph

SIZES = {"768x512": (768, 512), "1920x1080": (1920, 1080), "3840x2160": (3840, 2160)}
TILE = 512, 768  # height and width of a synthetic photograph


def source() -> str:
    """Where the pictures come from."""
    return "photographs" if os.environ.get("DCA_IMAGES") else "synthetic"


def _photographs() -> Iterator[Pixels]:
    """Landscape pictures for ever; upright ones are turned."""
    folder = os.environ.get("DCA_IMAGES")
    if not folder:
        for seed in count():
            yield photograph(*TILE, seed)
    while True:
        for _, pixels in ImageFolder(Path(folder)):
            yield pixels if pixels.shape[1] >= pixels.shape[0] else np.rot90(pixels)


@lru_cache(maxsize=8)
def pictures(width: int, height: int, number: int = 1) -> tuple[Pixels, ...]:
    """Pictures of exactly this size; larger ones than a photograph are mosaics of several.

    Args:
        width, height: in pixels.
        number: how many; the first one never depends on it.
    """
    photographs = _photographs()
    return tuple(_mosaic(photographs, height, width) for _ in range(number))


def _mosaic(photographs: Iterator[Pixels], height: int, width: int) -> Pixels:
    """Fill band by band, each as high as its first photograph."""
    image = np.empty((height, width, 3), np.uint8)
    top = 0
    while top < height:
        left, high = 0, 0
        while left < width:
            pixels = next(photographs)
            high = high or min(pixels.shape[0], height - top)
            pixels = pixels[:high, : width - left]
            if pixels.shape[0] < high:
                pixels = np.pad(pixels, ((0, high - pixels.shape[0]), (0, 0), (0, 0)), mode="symmetric")
            image[top : top + high, left : left + pixels.shape[1]] = pixels
            left += pixels.shape[1]
        top += high
    return image
