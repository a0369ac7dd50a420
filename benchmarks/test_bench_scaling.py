"""How time and memory grow with the picture, with threads and with the batch.

    python benchmarks/test_bench_scaling.py --out benchmarks/results/scaling.json
    pytest benchmarks/test_bench_scaling.py --benchmark-only

Time and memory should grow like the number of pixels. The script says how they do: the exponent of a line through
the logarithms, 1 for what is linear. It takes the memory of each size from a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch: its idle threads must not take the others' cores

import numpy as np
import pytest
from pictures import pictures, source

from dca_fast import Codec
from dca_fast.evaluation.measure import Pixels, psnr
from dca_fast.evaluation.report import environment
from dca_fast.files.atomic import write_atomic
from dca_fast.profile.run import memory

AREAS = ((384, 256), (768, 512), (1920, 1080), (3840, 2160), (7680, 4320))  # 0.1 to 33 megapixels
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = sorted({1, *(2**i for i in range(1, CORES.bit_length())), CORES})
BATCHES = (1, 4, 16)
PHOTOGRAPH = 768, 512  # size in the rows of threads and batches
QUALITY = 60.0
SANE_PSNR = 22.0
ROUNDS = 3


@cache
def checked(width: int, height: int, threads: int) -> tuple[Codec, Pixels, bytes]:
    """A codec, a picture and its file; the picture comes back as it should."""
    codec, (image,) = Codec(threads=threads), pictures(width, height)
    data = codec.encode(image, QUALITY)
    assert psnr(image, codec.decode(data, "numpy")) > SANE_PSNR
    return codec, image, data


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize(("width", "height"), AREAS)
def test_pixels(width: int, height: int, way: str, benchmark: Any) -> None:
    codec, image, data = checked(width, height, CORES)
    run = partial(codec.encode, image, QUALITY) if way == "encode" else partial(codec.decode, data, "numpy")
    megapixels = width * height / 1e6
    benchmark.group = f"pixels: {way}, {CORES} threads"
    benchmark.pedantic(run, rounds=1 if megapixels > 4 else 3)
    benchmark.extra_info.update(threads=CORES, megapixels=megapixels, source=source())
    if benchmark.stats:
        benchmark.extra_info["megapixels_per_s"] = megapixels / benchmark.stats["median"]


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("threads", THREADS)
def test_threads(threads: int, way: str, benchmark: Any) -> None:
    codec, image, data = checked(*PHOTOGRAPH, threads)
    assert data == checked(*PHOTOGRAPH, 1)[2]
    run = partial(codec.encode, image, QUALITY) if way == "encode" else partial(codec.decode, data, "numpy")
    benchmark.group = f"threads: {way}, {PHOTOGRAPH[0]}x{PHOTOGRAPH[1]}"
    benchmark.extra_info.update(threads=threads, source=source())
    benchmark.pedantic(run, rounds=5)


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("batch", BATCHES)
def test_batch(batch: int, way: str, benchmark: Any) -> None:
    codec, images = Codec(threads=CORES), pictures(*PHOTOGRAPH, batch)
    files = codec.encode_batch(images, QUALITY)
    assert files[0] == codec.encode(images[0], QUALITY)
    run = (
        partial(codec.encode_batch, images, QUALITY) if way == "encode" else partial(codec.decode_batch, files, "numpy")
    )
    benchmark.group = f"batch: {way}, {PHOTOGRAPH[0]}x{PHOTOGRAPH[1]}, {CORES} threads"
    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info.update(threads=CORES, source=source())
    if benchmark.stats:
        benchmark.extra_info["images_per_s"] = batch / benchmark.stats["median"]


def seconds(run: Any) -> float:
    """Median of some calls."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def both_ways(codec: Codec, images: tuple[Pixels, ...]) -> dict[str, float]:
    """Milliseconds of an image, encoded and decoded in a batch."""
    files = codec.encode_batch(images, QUALITY)
    assert psnr(images[0], codec.decode(files[0], "numpy")) > SANE_PSNR
    runs = {"encode": partial(codec.encode_batch, images, QUALITY)}
    runs["decode"] = partial(codec.decode_batch, files, "numpy")
    return {f"{way}_ms": 1e3 * seconds(run) / len(images) for way, run in runs.items()}


def one_size(width: int, height: int) -> dict[str, Any]:
    """Times and peak of memory beyond that of a codec that has coded a small picture; for a process of its own."""
    codec = Codec(threads=CORES)
    both_ways(codec, pictures(64, 64))
    images = pictures(width, height)
    before = memory(peak=False)
    for _ in range(ROUNDS):
        codec.decode_batch(codec.encode_batch(images, QUALITY), "numpy")
    after = memory(peak=True)
    times = both_ways(codec, images)  # whose check of the pictures takes memory of its own
    used = None if before is None or after is None else max(0, after - before)
    return {"width": width, "height": height, "megapixels": width * height / 1e6, **times, "memory_bytes": used}


def exponent(rows: list[dict[str, Any]], key: str) -> float | None:
    """Of the power of the pixels that `key` grows with; None if there are no values."""
    if any(not row[key] for row in rows):
        return None
    slope = np.polyfit(np.log([row["megapixels"] for row in rows]), np.log([row[key] for row in rows]), 1)[0]
    return float(slope)


def measure() -> dict[str, Any]:
    """All rows."""
    pixels = []
    for width, height in AREAS:
        command = [sys.executable, __file__, "--one", str(width), str(height)]
        pixels.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    photograph = pictures(*PHOTOGRAPH)
    codec = Codec(threads=CORES)
    return {
        **environment(),
        "model_id": codec.model_id,
        "source": source(),
        "threads": CORES,
        "pixels": pixels,
        "exponents": {key: exponent(pixels, key) for key in ("encode_ms", "decode_ms", "memory_bytes")},
        "by_threads": [{"threads": n, **both_ways(Codec(threads=n), photograph)} for n in THREADS],
        "by_batch": [{"batch": n, **both_ways(codec, pictures(*PHOTOGRAPH, n))} for n in BATCHES],
    }


def main() -> None:
    """Run all sizes, threads and batches as a script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--one", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="one size only, to standard output"
    )
    arguments = parser.parse_args()
    facts = one_size(*arguments.one) if arguments.one else measure()
    text = json.dumps(facts, indent=1) + "\n"
    sys.stdout.write(text)
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, text.encode())


if __name__ == "__main__":
    main()
