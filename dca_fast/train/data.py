"""Training photographs: a folder packed once into one memory-mapped file, such a file, or tar shards read as they are.

Every crop of a batch has a random seed of its own, so that a batch can be made in parallel, or some of its crops alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from dca_fast.errors import InputError
from dca_fast.files.atomic import write_atomic
from dca_fast.files.image_io import list_images, suffixes, to_8_bit

log = logging.getLogger(__name__)
ATTEMPTS = 100  # photographs tried for one crop
READERS = 8  # threads that decode the members of shards


def read_pixels(source: Path | io.BytesIO, name: str, smallest: int) -> np.ndarray | None:
    """uint8 `[H, W, 3]`, or None if it cannot be read or a side is below `smallest`."""
    try:
        with Image.open(source) as image:
            pixels = np.asarray(to_8_bit(image).convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # damaged files and plugins raise many types
        log.warning("skipped %s: %s", name, error)
        return None
    return pixels if min(pixels.shape[:2]) >= smallest else None


def cut(pixels: np.ndarray, generator: np.random.Generator, size: int) -> np.ndarray:
    """One random crop `[size, size, 3] uint8`, flipped and turned at random."""
    top = generator.integers(pixels.shape[0] - size + 1)
    left = generator.integers(pixels.shape[1] - size + 1)
    crop = np.rot90(pixels[top : top + size, left : left + size], int(generator.integers(4)))
    return crop[:, ::-1] if generator.integers(2) else crop


def state_of(paths: Sequence[Path]) -> str:
    """A hash of the names, sizes and times of files."""
    facts = [(str(path), status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()]]
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()


class Crops(Protocol):
    """A source of training crops; `skipped` counts the photographs that could not be used."""

    @property
    def skipped(self) -> int: ...

    def batch(self, generator: np.random.Generator, count: int, size: int, indices: slice = ...) -> Tensor:
        """Crops `indices` of a batch of `count`: `[..., size, size, 3]` float32, grey levels minus 128."""


def seeds_of(generator: np.random.Generator, count: int, indices: slice) -> list[int]:
    """Seeds of the crops `indices` of a batch; `generator` goes on by the whole batch."""
    seeds: list[int] = generator.integers(2**63, size=count)[indices].tolist()
    return seeds


def stack(crops: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).float() - 128


class Images:
    """RGB photographs as uint8 arrays `[H, W, 3]`; larger ones give more crops."""

    def __init__(self, images: Sequence[np.ndarray], skipped: int = 0) -> None:
        self.images, self.skipped = list(images), skipped
        pixels = np.cumsum([im.shape[0] * im.shape[1] for im in self.images], dtype=np.float64)
        self._reached = pixels / pixels[-1]

    def draw(self, seed: int, size: int) -> tuple[int, np.ndarray]:
        """One random crop, and which photograph it is a view of."""
        generator = np.random.default_rng(seed)
        index = int(self._reached.searchsorted(generator.random(), side="right"))
        return index, cut(self.images[index], generator, size)

    def batch(self, generator: np.random.Generator, count: int, size: int, indices: slice = slice(None)) -> Tensor:
        """See `Crops`."""
        return stack([self.draw(seed, size)[1] for seed in seeds_of(generator, count, indices)])

    def hold_out(self, every: int) -> tuple[Images, Images]:
        """Two sources without a photograph in common: all but one in `every`, and these."""
        if len(self.images) < every:
            raise InputError(f"{len(self.images)} photographs are too few to hold out one in {every}")
        rest = [image for i, image in enumerate(self.images) if i % every]
        return Images(rest), Images(self.images[::every])


class DeviceImages:
    """The crops of `Images`, cut on a device that holds the photographs; the host only draws where.

    Args:
        images: RGB photographs.
        device: where they are copied to.
    """

    def __init__(self, images: Images, device: torch.device | str) -> None:
        self._images = images
        # One at a time: the host need not hold them all.
        self._pixels = torch.empty(sum(image.size for image in images.images), dtype=torch.uint8, device=device)
        self._starts, start = [], 0
        for image in images.images:
            self._pixels[start : start + image.size].copy_(torch.from_numpy(np.array(image)).view(-1))
            self._starts.append(start // 3)
            start += image.size

    def offsets(self, generator: np.random.Generator, count: int, size: int, indices: slice = slice(None)) -> Tensor:
        """Where the crops of `Images.batch` lie: int64 `[..., 3]`, the first pixel and how far it is to the next line
        and column of each."""
        offsets = []
        for seed in seeds_of(generator, count, indices):
            index, crop = self._images.draw(seed, size)
            image = self._images.images[index]
            start = crop.__array_interface__["data"][0] - image.__array_interface__["data"][0]
            offsets.append((self._starts[index] + start // 3, crop.strides[0] // 3, crop.strides[1] // 3))
        return torch.tensor(offsets)

    def cut(self, offsets: Tensor, size: int) -> Tensor:
        """The crops at `offsets`, on the device: `[..., size, size, 3]` float32, grey levels minus 128."""
        first, down, across = offsets.view(-1, 3, 1, 1).unbind(1)
        side = torch.arange(size, device=offsets.device)
        return self._pixels.view(-1, 3)[first + down * side[:, None] + across * side].float() - 128


class Photographs(Images):
    """Photographs of a folder, packed into `cache` (made at the first use, and again when the folder has changed).

    Args:
        folder: searched recursively; files that cannot be read are counted in `skipped` and left out. None: whatever
            the cache holds.
        cache: file stem; `.bin` holds the pixels, `.json` the shapes.
        smallest: images with a shorter side are left out.

    Raises:
        InputError: nothing usable, or files of these names that are others.
    """

    def __init__(self, folder: Path | None, cache: Path, smallest: int = 256) -> None:
        stem = cache.with_suffix("") if cache.suffix in (".bin", ".json") else cache
        blob, index = (stem.with_name(stem.name + suffix) for suffix in (".bin", ".json"))
        facts = self._index(index, blob)
        if folder is not None:
            paths = list_images(folder)
            wanted = {"folder": str(Path(folder).resolve()), "smallest": smallest, "files": state_of(paths)}
            if {key: facts.get(key) for key in wanted} != wanted:
                if blob.exists() and not index.exists():
                    hint = "remove it, or name another --cache"
                    raise InputError(f"{blob} exists, without an index of photographs: {hint}")
                cache.parent.mkdir(parents=True, exist_ok=True)
                facts = wanted | self._pack(paths, blob, index, smallest)
                write_atomic(index, json.dumps(facts).encode())
        elif not facts:
            raise InputError(f"{blob} and {index} are no packed photographs")
        shapes = facts["shapes"]
        small = sum(min(shape) < smallest for shape in shapes)
        if small == len(shapes):
            raise InputError(f"no usable photographs of at least {smallest} pixels a side in {folder or blob}")
        pixels, images, start = np.memmap(blob, dtype=np.uint8, mode="r"), [], 0
        for height, width in shapes:
            size = height * width * 3
            if min(height, width) >= smallest:
                images.append(pixels[start : start + size].reshape(height, width, 3))
            start += size
        super().__init__(images, facts["skipped"] + small)

    @staticmethod
    def _index(index: Path, blob: Path) -> dict[str, Any]:
        """What an index says; nothing if there is none, or if the pixels are not those that it names."""
        if not index.exists():
            return {}
        try:
            facts = json.loads(index.read_text())
            size, _ = sum(height * width * 3 for height, width in facts["shapes"]), facts["skipped"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{index} exists and is no index of photographs") from error
        return dict(facts) if blob.exists() and blob.stat().st_size == size else {}

    @staticmethod
    def _pack(paths: list[Path], blob: Path, index: Path, smallest: int) -> dict[str, Any]:
        shapes, skipped = [], 0
        unfinished = blob.with_suffix(f".{os.getpid()}.part")
        try:
            with unfinished.open("wb") as out:
                for path in track(paths, "reading photographs"):
                    pixels = read_pixels(path, str(path), smallest)
                    if pixels is None:
                        skipped += 1
                    else:
                        out.write(pixels.tobytes())
                        shapes.append(pixels.shape[:2])
            index.unlink(missing_ok=True)  # it is of the pixels before
            unfinished.replace(blob)
        finally:
            unfinished.unlink(missing_ok=True)
        return {"shapes": shapes, "skipped": skipped}


class Shards:
    """Photographs in uncompressed tar files, as webdataset writes them: a sample is read when a crop of it is due.

    Args:
        paths: the shards; members that are no images (labels, captions) are ignored.
        smallest: images with a shorter side are not used.

    Raises:
        InputError: not a tar file, or no images in any.
    """

    def __init__(self, paths: Sequence[Path], smallest: int = 256) -> None:
        self.smallest = smallest
        self.members: list[tuple[Path, int, int]] = []
        self._bad: set[int] = set()
        for path in track(paths, "listing shards"):
            try:
                with tarfile.open(path, "r:") as tar:
                    images = (m for m in tar if m.isfile() and Path(m.name).suffix.lower() in suffixes())
                    self.members += [(path, m.offset_data, m.size) for m in images]
            except tarfile.TarError as error:
                raise InputError(f"{path} is not a tar file: {error}") from error
        if not self.members:
            raise InputError(f"no images in {', '.join(map(str, paths))}")
        self._readers = ThreadPoolExecutor(READERS)

    @property
    def skipped(self) -> int:
        """Samples met so far that could not be used."""
        return len(self._bad)

    def _pixels(self, index: int) -> np.ndarray | None:
        if index in self._bad:
            return None
        path, offset, size = self.members[index]
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        pixels = read_pixels(io.BytesIO(data), f"{path} at {offset}", self.smallest)
        if pixels is None:
            self._bad.add(index)
        return pixels

    def _crop(self, seed: int, size: int) -> np.ndarray:
        generator = np.random.default_rng(seed)
        for _ in range(ATTEMPTS):
            pixels = self._pixels(int(generator.integers(len(self.members))))
            if pixels is not None:
                return cut(pixels, generator, size)
        raise InputError(f"{ATTEMPTS} photographs in a row could not be used, {self.skipped} in all")

    def batch(self, generator: np.random.Generator, count: int, size: int, indices: slice = slice(None)) -> Tensor:
        """See `Crops`."""
        seeds = seeds_of(generator, count, indices)
        return stack(list(self._readers.map(lambda seed: self._crop(seed, size), seeds)))


def read_pack(path: Path, smallest: int) -> Images:
    """The crops of a travelling pack (`dca_fast.train.pack`), decoded into memory.

    Raises:
        InputError: not a pack, or nothing usable in it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = [(m.name, file.read()) for m in tar if (file := tar.extractfile(m)) is not None]
    except (tarfile.TarError, FileNotFoundError) as error:
        raise InputError(f"{path} is not a pack of crops: {error}") from error
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(lambda m: read_pixels(io.BytesIO(m[1]), f"{path}: {m[0]}", smallest), members))
    images = [pixels for pixels in decoded if pixels is not None]
    if not images:
        raise InputError(f"no crops of at least {smallest} pixels a side in {path}")
    return Images(images, len(decoded) - len(images))


def open_data(path: Path, cache: Path, smallest: int) -> Crops:
    """A source of crops from a folder of photographs, a tar file or a folder of them, a packed `.bin`, or a pack of
    `.crops`.

    Raises:
        InputError: nothing usable there.
    """
    if path.suffix == ".crops":
        return read_pack(path, smallest)
    if path.suffix in (".bin", ".json"):
        return Photographs(None, path, smallest)
    if path.suffix == ".tar":
        return Shards([path], smallest)
    shards = sorted(path.glob("*.tar"))
    return Shards(shards, smallest) if shards else Photographs(path, cache, smallest)
