"""Photographs decoded once into one memory-mapped file, random crops cut from it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from dca_fast.errors import InputError

log = logging.getLogger(__name__)
SUFFIXES = {".avif", ".jpg", ".jpeg", ".png", ".webp", ".jxl", ".bmp", ".tif", ".tiff"}


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder`, sorted.

    Raises:
        InputError: there is none.
    """
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"no images in {folder}")
    return paths


class Crops(Protocol):
    """A source of training crops."""

    def batch(self, generator: np.random.Generator, count: int, size: int) -> Tensor:
        """`[count, size, size, 3]` float32, grey levels minus 128."""


class Photographs:
    """RGB photographs of a folder as uint8 arrays, packed into `cache` (made at the first use, then reused).

    Args:
        folder: searched recursively; files that cannot be read are counted in `skipped` and left out.
        cache: file stem; `.bin` holds the pixels, `.json` the shapes.
        smallest: images with a shorter side are left out.
    """

    def __init__(self, folder: Path, cache: Path, smallest: int = 256) -> None:
        blob, index = cache.with_suffix(".bin"), cache.with_suffix(".json")
        wanted = {"folder": str(Path(folder).resolve()), "smallest": smallest}
        facts = json.loads(index.read_text()) if index.exists() else {}
        if {key: facts.get(key) for key in wanted} != wanted:
            cache.parent.mkdir(parents=True, exist_ok=True)
            facts = wanted | self._pack(list_images(folder), blob, smallest)
            index.write_text(json.dumps(facts))
        self.skipped: int = facts["skipped"]
        if not facts["shapes"]:
            raise InputError(f"no usable photographs of at least {smallest} pixels a side in {folder}")
        pixels = np.memmap(blob, dtype=np.uint8, mode="r")
        self.images: list[np.ndarray] = []
        start = 0
        for height, width in facts["shapes"]:
            size = height * width * 3
            self.images.append(pixels[start : start + size].reshape(height, width, 3))
            start += size
        weights = np.array([im.shape[0] * im.shape[1] for im in self.images], dtype=np.float64)
        self.weights = weights / weights.sum()

    @staticmethod
    def _pack(paths: list[Path], blob: Path, smallest: int) -> dict[str, Any]:
        shapes, skipped = [], 0
        part = blob.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as out:
            for path in track(paths, "reading photographs"):
                try:
                    pixels = np.asarray(Image.open(path).convert("RGB"))
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    log.warning("skipped %s: %s", path, error)
                    skipped += 1
                    continue
                if min(pixels.shape[:2]) < smallest:
                    skipped += 1
                    continue
                out.write(pixels.tobytes())
                shapes.append(pixels.shape[:2])
        part.replace(blob)
        return {"shapes": shapes, "skipped": skipped}

    def crop(self, generator: np.random.Generator, size: int) -> np.ndarray:
        """One random crop `[size, size, 3] uint8`, flipped and turned at random."""
        image = self.images[generator.choice(len(self.images), p=self.weights)]
        top = generator.integers(image.shape[0] - size + 1)
        left = generator.integers(image.shape[1] - size + 1)
        crop = image[top : top + size, left : left + size]
        crop = np.rot90(crop, int(generator.integers(4)))
        return crop[:, ::-1] if generator.integers(2) else crop

    def batch(self, generator: np.random.Generator, count: int, size: int) -> Tensor:
        """`[count, size, size, 3]` float32, grey levels minus 128."""
        crops = np.stack([self.crop(generator, size) for _ in range(count)])
        return torch.from_numpy(crops).float() - 128
