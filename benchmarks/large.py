"""Large pictures: memory, what tiles cost, regions and previews, measured on the CPU.

    python benchmarks/large.py --out benchmarks/results/dca-s/large.json

Memory is the peak of a process beyond what it holds before the call, of drawn photographs, up to 100 megapixels; times
are ratios of calls in turn, each the least of some. What tiles cost are the bytes of pictures with tiles against the
same without. The script fails where a file does not come back as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch: its idle threads must not take the others' cores

import numpy as np
from pictures import pictures, source

from dca_fast import Codec
from dca_fast.evaluation.measure import Pixels, psnr
from dca_fast.evaluation.report import environment
from dca_fast.files.atomic import write_atomic
from dca_fast.network import walk
from dca_fast.profile.run import memory
from dca_fast.reduced import box_mean

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
QUALITY = 60.0
SANE_PSNR = 22.0
HUGE = 10000, 10000
MEMORY_SIZES = ((3840, 2160), (6000, 4000))  # the slope between them
LIMIT = 4 << 30  # bytes of a process with the largest picture
WAYS = ("encode 0", "encode 1", "decode")
COSTS = (4400, 3000), 4, (15.0, 40.0, 60.0, 85.0)  # size, pictures, qualities
ROUNDS = 5


def mirrored(width: int, height: int, seed: int) -> Pixels:
    """A photograph and its reflections, which have no seams where tiles might be cut."""
    tile = pictures(1024, 768, seed + 1)[-1]
    rows, columns = (-(-length // side) + 1 for length, side in zip((height, width), tile.shape, strict=False))
    whole = np.pad(tile, ((333, tile.shape[0] * rows), (571, tile.shape[1] * columns), (0, 0)), mode="symmetric")
    return np.ascontiguousarray(whole[:height, :width])


def peak(way: str, width: int, height: int, path: Path) -> dict[str, Any]:
    """Bytes that one call takes beyond what the process holds, and the peak of all; for a process of its own."""
    codec, small = Codec(threads=CORES), pictures(64, 64)[0]
    codec.decode(codec.encode(small, QUALITY), "numpy")
    if way == "decode":
        data = path.read_bytes()
        before, start = memory(peak=False), time.perf_counter()
        size = codec.decode(data, "numpy").shape
        assert size == (height, width, 3)
    else:
        image = mirrored(width, height, 0)
        assert memory(peak=True) is not None
        _forget_peak()
        before, start = memory(peak=False), time.perf_counter()
        path.write_bytes(codec.encode(image, QUALITY, effort=int(way.split()[1])))
    seconds, after = time.perf_counter() - start, memory(peak=True)
    assert before is not None
    assert after is not None
    return {"bytes": after - before, "process_bytes": after, "seconds": seconds}


def _forget_peak() -> None:
    """Making the picture took more than it holds (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def memories(sizes: tuple[tuple[int, int], ...], folder: Path) -> list[dict[str, Any]]:
    rows = []
    for width, height in sizes:
        row: dict[str, Any] = {"width": width, "height": height}
        for way in WAYS:
            path = folder / f"{width}.dca"
            command = [sys.executable, __file__, "--peak", way, str(width), str(height), str(path)]
            row[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            assert row[way]["process_bytes"] < LIMIT
        rows.append(row)
    return rows


def slopes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes for a pixel more, of each way, from the first size to the last."""
    first, last = rows[0], rows[-1]
    pixels = last["width"] * last["height"] - first["width"] * first["height"]
    return {way: (last[way]["bytes"] - first[way]["bytes"]) / pixels for way in WAYS}


def costs(codec: Codec) -> list[dict[str, float]]:
    """Bytes of files with tiles, and without."""
    (size, count, qualities), rows = COSTS, []
    for quality in qualities:
        sizes = []
        for tile in (walk.TILE, 1 << 20):
            kept, walk.TILE = walk.TILE, tile
            sizes.append(sum(len(codec.encode(mirrored(*size, i), quality, effort=0)) for i in range(count)))
            walk.TILE = kept
        rows.append({"quality": quality, "tiles": sizes[0], "whole": sizes[1], "ratio": sizes[0] / sizes[1]})
    return rows


def in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of each, the least of some rounds."""
    best = dict.fromkeys(calls, np.inf)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def regions(codec: Codec, width: int, height: int) -> dict[str, Any]:
    data = codec.encode(mirrored(width, height, 0), QUALITY, effort=0)
    whole, calls = codec.decode(data, "numpy"), {"whole": lambda: codec.decode(data, "numpy")}
    for side in (256, 512, 1024, 2048):
        left, top = 700, 600
        region = left, top, min(side, width - left), min(side, height - top)
        part = codec.decode(data, "numpy", region=region)
        assert np.array_equal(part, whole[top : top + region[3], left : left + region[2]])
        calls[str(side)] = lambda region=region: codec.decode(data, "numpy", region=region)  # type: ignore[misc]
    times = in_turn(calls)
    return {"width": width, "height": height, "ms": times, "share": {k: v / times["whole"] for k, v in times.items()}}


def previews(codec: Codec, width: int, height: int) -> dict[str, Any]:
    image = pictures(width, height)[0]
    data, fidelity = codec.encode(image, QUALITY), {}
    whole, calls = codec.decode(data, "numpy"), {"whole": lambda: codec.decode(data, "numpy")}
    for reduce in (2, 4, 8, 16):
        calls[str(reduce)] = lambda reduce=reduce: codec.decode(data, "numpy", reduce=reduce)  # type: ignore[misc]
        if reduce >= 8:
            fidelity[str(reduce)] = psnr(box_mean(whole, reduce), calls[str(reduce)]())
    times = in_turn(calls)
    share = {name: ms / times["whole"] for name, ms in times.items()}
    return {"width": width, "height": height, "ms": times, "share": share, "psnr_against_means": fidelity}


def measure(folder: Path) -> dict[str, Any]:
    codec = Codec(threads=CORES)
    rows = memories((*MEMORY_SIZES, HUGE), folder)
    return {
        **environment(),
        "model_id": codec.model_id,
        "source": source(),
        "threads": CORES,
        "quality": QUALITY,
        "memory": rows,
        "bytes_per_pixel": slopes(rows),
        "tiles": costs(codec),
        "region": regions(codec, 6000, 4000),
        "previews": [previews(codec, *size) for size in ((768, 512), (3840, 2160))],
    }


def main() -> None:
    """Everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        way, width, height, path = args.peak
        print(json.dumps(peak(way, int(width), int(height), Path(path))))
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        text = json.dumps(measure(Path(folder)), indent=1) + "\n"
    sys.stdout.write(text)
    if args.out:
        write_atomic(args.out, text.encode())


if __name__ == "__main__":
    main()
