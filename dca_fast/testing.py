"""Synthetic photographs for tests and benchmarks that must run without any data."""

from __future__ import annotations

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
