"""Hours of mixed work in one process: every file and picture is that of a fresh codec, and memory does not grow.

    python benchmarks/measure/soak.py --minutes 60 --out benchmarks/results/dca-s/soak.json

Drawn pictures of many sizes, gray, with alpha and of few colours, at many qualities and efforts, by 1 to 4 threads that
share codecs of 1 and 2 threads each. What each job must give comes from codecs that are made for it alone, on the CPU.
"""

import argparse
import ctypes
import gc
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
from typing import Any

import numpy as np

from dca_fast import Codec
from dca_fast.evaluation.report import environment
from dca_fast.testing import page, photograph

SIZES = (1, 1), (17, 40), (64, 64), (130, 90), (256, 384), (600, 500)
QUALITIES = 3, 31.5, 60, 92, 100
KINDS = "colour", "gray", "alpha", "page", "lossless"
MEBI = 1 << 20
LIBC = ctypes.CDLL(None)


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
    """Bytes of memory that are in use: what glibc keeps of freed memory goes back to the system before."""
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


Job = tuple[str, tuple[int, int], float, int]


def jobs_of(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Job]:
    """Kind, size, quality and effort; what takes long only for small pictures."""
    every = product(KINDS, sizes, QUALITIES, (0, 1, 2))
    return [(kind, size, quality, effort) for kind, size, quality, effort in every if effort < 2 or size[0] < 100]


def run(jobs: list[Job], minutes: float, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """How many pictures were coded in that time, how many gave another result, and how memory grew."""
    expected: dict[Job, str] = {}
    codecs = [Codec(threads=n, device=device) for n in (1, 2)]
    draw, mismatches, done, growth, lock = random.Random(seed), 0, 0, [], threading.Lock()

    def work(some: list[tuple[Codec, Job]]) -> None:
        nonlocal mismatches, done
        for codec, job in some:
            same = False
            try:
                if job not in expected:
                    expected[job] = outcome(Codec(threads=1), *job)
                same = outcome(codec, *job) == expected[job]
            finally:  # what fails is a mismatch, too
                with lock:
                    mismatches, done = mismatches + (not same), done + 1

    begin = time.perf_counter()
    while (now := time.perf_counter() - begin) < 60 * minutes:
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
    return {
        "minutes": minutes,
        "pictures": done,
        "mismatches": mismatches,
        "growth_mib_per_1000": round(slope, 3),
        "device": device,
        "model_id": codecs[0].model_id,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the codecs; what they must give comes from the CPU")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    facts = run(jobs_of(), args.minutes, args.seed, args.device) | environment()
    print(json.dumps(facts, indent=1))
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if facts["mismatches"] or not facts["pictures"] else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
