"""Crops of photographs in one small file, for a machine that photographs have to travel to.

    python -m dca_fast.train.pack PHOTOGRAPHS PACK.crops --mib 38

The file is a tar of AVIF files (4:4:4), which the trainer decodes into memory when it starts. Crops are drawn from all
photographs in turn until the file is full.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dca_fast.errors import DcaError, InputError
from dca_fast.files.atomic import write_atomic
from dca_fast.files.image_io import list_images
from dca_fast.train.data import read_pixels

SIDE, QUALITY, MIB = 512, 90, 38.0
TAR_BLOCK, TAR_END = 512, 10240


def crops(folder: Path, side: int, seed: int) -> Iterator[np.ndarray]:
    """Crops uint8 `[side, side, 3]`: one of every photograph in turn, again and again.

    They lie on a grid of half crops, in random order, each once. Smaller photographs are left out.

    Raises:
        InputError: there are no images.
    """
    generator, half = np.random.default_rng(seed), side // 2
    corners: dict[Path, list[tuple[int, int]]] = {}  # that are left, of the photographs seen
    paths = list_images(folder)
    while paths:
        for path in [paths[i] for i in generator.permutation(len(paths))]:
            pixels = read_pixels(path, str(path), side)
            if pixels is None:
                corners[path] = []
                continue
            if path not in corners:
                down, across = (range(0, length - side + 1, half) for length in pixels.shape[:2])
                grid = [(top, left) for top in down for left in across]
                corners[path] = [grid[i] for i in generator.permutation(len(grid))]
            top, left = corners[path].pop()
            yield pixels[top : top + side, left : left + side]
        paths = [path for path in paths if corners[path]]


def encoded(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "AVIF", quality=quality, subsampling="4:4:4")
    return buffer.getvalue()


def write_pack(
    folder: Path, out: Path, size: int, side: int = SIDE, quality: int = QUALITY, seed: int = 0, threads: int = 1
) -> int:
    """Write a pack of at most `size` bytes; returns how many crops it holds.

    Raises:
        InputError: there is no photograph that is large enough, or not one crop fits.
    """
    buffer, count = io.BytesIO(), 0
    source = crops(folder, side, seed)
    with tarfile.open(fileobj=buffer, mode="w") as tar, ThreadPoolExecutor(threads) as pool:
        full = False
        while not full and (some := list(islice(source, 4 * threads))):
            for data in pool.map(lambda pixels: encoded(pixels, quality), some):
                blocks = TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK
                # What is closed is filled up to whole records.
                if -(-(buffer.tell() + blocks + 2 * TAR_BLOCK) // TAR_END) * TAR_END > size:
                    full = True
                    break
                facts = tarfile.TarInfo(f"{count:06d}.avif")
                facts.size = len(data)
                tar.addfile(facts, io.BytesIO(data))
                count += 1
    if not count:
        raise InputError(f"{folder} has no crop of {side} pixels that fits into {size} bytes")
    write_atomic(out, buffer.getvalue())
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--mib", type=float, default=MIB, help="largest size of the file (default: %(default)g)")
    parser.add_argument("--side", type=int, default=SIDE, help="of a crop, in pixels (default: %(default)d)")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of AVIF (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    try:
        count = write_pack(
            args.photographs, args.pack, int(args.mib * (1 << 20)), args.side, args.quality, args.seed, args.threads
        )
    except (DcaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.pack}: {count} crops, {args.pack.stat().st_size / (1 << 20):.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
