"""Hours of mixed work in one process: every file and picture is that of a fresh codec, and memory does not grow.

    python benchmarks/measure/soak.py --minutes 60 --out benchmarks/results/dca-s/soak.json

Drawn pictures of many sizes, gray, with alpha and of few colours, at many qualities and efforts, by 1 to 4 threads that
share codecs of 1 and 2 threads each. What each job must give comes from codecs that are made for it alone.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import sys
import threading
import time
from itertools import product
from pathlib import Path

import numpy as np

from dca_fast import Codec
from dca_fast.profile.report import machine, versions
from dca_fast.testing import page, photograph

SIZES = (1, 1), (17, 40), (64, 64), (130, 90), (256, 384), (600, 500)
QUALITIES = 3, 31.5, 60, 92, 100
KINDS = "colour", "gray", "alpha", "page", "lossless"
MEBI = 1 << 20


def picture_of(kind: str, size: tuple[int, int]) -> np.ndarray:
    if kind == "page":
        return page(*size)
    pixels = photograph(*size)
    if kind == "gray":
        return pixels[..., 0]
    return np.dstack([pixels, pixels[..., 1]]) if kind == "alpha" else pixels


def outcome(codec: Codec, kind: str, size: tuple[int, int], quality: float, effort: int) -> str:
    """A hash of the file and of its pixels."""
    data = codec.encode(picture_of(kind, size), "lossless" if kind == "lossless" else quality, effort=effort)
    pixels = codec.decode(data, "numpy")
    return hashlib.sha256(data + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    jobs = [
        (kind, size, quality, effort)
        for kind, size, quality, effort in product(KINDS, SIZES, QUALITIES, (0, 1, 2))
        if effort < 2 or size[0] < 100
    ]
    expected = {job: outcome(Codec(threads=1), *job) for job in jobs}
    codecs, draw, mismatches, done, growth = [Codec(threads=n) for n in (1, 2)], random.Random(args.seed), 0, 0, []
    lock = threading.Lock()

    def work(some: list[tuple[Codec, tuple]]) -> None:
        nonlocal mismatches, done
        for codec, job in some:
            same = outcome(codec, *job) == expected[job]
            with lock:
                mismatches, done = mismatches + (not same), done + 1

    begin = time.perf_counter()
    while (now := time.perf_counter() - begin) < 60 * args.minutes:
        shares = [[(draw.choice(codecs), draw.choice(jobs)) for _ in range(25)] for _ in range(draw.randint(1, 4))]
        threads = [threading.Thread(target=work, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        growth.append((done, resident()))
        print(f"{now / 60:.1f} min, {done} pictures, {mismatches} mismatches, {resident() / MEBI:.0f} MiB", flush=True)
    half = [(count, size) for count, size in growth if count > done / 2]
    slope = float(np.polyfit(*np.array(half, float).T, 1)[0]) * 1000 / MEBI if len(half) > 2 else 0.0
    facts = {
        **machine(),
        "versions": versions(),
        "minutes": args.minutes,
        "pictures": done,
        "mismatches": mismatches,
        "growth_mib_per_1000": round(slope, 3),
    }
    print(json.dumps(facts, indent=1))
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if mismatches or len(growth) < 1 else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
