"""Drawn pictures for tests, benchmarks and the demo, which must run without any data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt


def photograph(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth shading, edges and texture, uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.empty((height, width, 3))
    for channel in range(3):
        fx, fy, phase = (*generator.uniform(0.005, 0.05, 2), generator.uniform(0, 6))
        image[..., channel] = 120 + 60 * np.sin(fx * x + phase) * np.cos(fy * y)
    for _ in range(12):  # flat shapes with sharp edges
        cy, cx, radius = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(3, 40)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[inside] = 0.5 * image[inside] + generator.uniform(0, 127, 3)
    grain = generator.normal(0, 6, (height, width, 1)) * (x / max(width, 1))[..., None]
    pixels: npt.NDArray[np.uint8] = np.clip(image + grain, 0, 255).astype(np.uint8)
    return pixels


def page(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Lines of words on paper and a photograph at the end, uint8 [height, width, 3]; sides of 16 to 768."""
    generator = np.random.default_rng(seed)
    picture = np.full((height, width, 3), generator.integers(230, 256), np.uint8)
    for y in range(4, height - 7, 9):
        for x in range(4, width - 4, 3):
            if generator.random() < 0.7:
                picture[y : y + generator.integers(2, 7), x : x + 2] = (20, 20, 60)
    top, left = height // 3, width // 3
    picture[top:, left:] = landscape(512, 768, seed)[top - height :, left - width :]
    return picture


def landscape(height: int = 512, width: int = 768, seed: int = 7) -> npt.NDArray[np.uint8]:
    """A drawn landscape with sky, rock, water and grass, uint8 [height, width, 3]; sides of at least 64.

    Sums, products and quotients alone, which every machine rounds alike.
    """
    generator = np.random.default_rng(seed)
    y, x = (np.arange(height) / height)[:, None], np.arange(width) / width
    noise = partial(_noise, generator)

    def blend(a: Any, b: Any, share: Any) -> Any:
        return np.asarray(a, float) + (np.asarray(b, float) - np.asarray(a, float)) * share[..., None]

    up = np.clip(y / 0.62, 0, 1) + 0 * x
    picture = blend((70, 122, 190), (244, 214, 178), up * up)
    clouds = np.clip(noise(height, width, 128) * 1.6 + 0.15 - up * 0.5, 0, 1)
    picture = blend(picture, (250, 244, 238), clouds * 0.85)
    for i in range(5):  # ranges of mountains, from far to near
        ridge = 0.34 + 0.065 * i + (0.17 - 0.02 * i) * noise(1, width, 256 >> (i // 2), 0.5)
        rock = noise(height, width, 64, 0.7)
        light = np.diff(rock, axis=1, prepend=rock[:, :1]) * 4
        near = (58 + 22 * (i % 2), 74 + 26 * (i % 2), 52 + 14 * (i % 2))
        base = blend((206, 196, 190), near, np.full((height, width), 0.25 + 0.175 * i))
        base *= (1 + (0.25 + 0.125 * i) * (light + 0.35 * rock))[..., None]
        picture = blend(picture, base, np.clip((y - ridge) * height, 0, 1))
    shore = int(height * 0.71)
    depth = np.arange(height - shore)[:, None]
    waves = noise(len(depth), width, 32, 0.6)
    shift = (waves * (6 + depth * 0.15)).astype(int)
    mirrored = np.clip(shore - 1 - depth - shift // 2, 0, shore - 1), np.clip(np.arange(width) + shift, 0, width - 1)
    picture[shore:] = (picture[mirrored] * 0.78 + np.array((6.0, 20, 34))) * (1 + 0.1 * waves)[..., None]
    bank = 0.84 + 0.05 * noise(1, width, 256) + 0.1 * (x - 0.2) * (x - 0.2)
    blades = noise(height, width, 16, 0.85) + np.repeat(noise(height // 8 + 1, width, 2, 0.9), 8, 0)[:height]
    grass = blend((40, 66, 22), (156, 164, 70), np.clip(0.45 + 0.45 * blades, 0, 1))
    picture = blend(picture, grass, np.clip((y - bank) * height / 3, 0, 1))
    grain = generator.random((height, width, 1)) + generator.random((height, width, 1)) - 1
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(picture + 5 * grain, 0, 255)).astype(np.uint8)
    return pixels


def _noise(generator: np.random.Generator, height: int, width: int, coarsest: int, rough: float = 0.55) -> Any:
    """Fractal noise [height, width], about -1..1: grids of numbers, each half as coarse and `rough` times as high."""
    out, amplitude, total, cell = np.zeros((height, width)), 1.0, 0.0, coarsest
    while cell:
        grid = generator.random((height // cell + 3, width // cell + 3)) * 2 - 1
        for axis, size in enumerate((height, width)):
            low, rest = np.divmod(np.arange(size), cell)
            share = rest / cell
            share = share * share * (3 - 2 * share)
            share = share[:, None] if axis == 0 else share
            a, b = np.take(grid, low, axis), np.take(grid, low + 1, axis)
            grid = a + (b - a) * share
        out += amplitude * grid
        total, amplitude, cell = total + amplitude, amplitude * rough, cell // 2
    return out / total * 2
