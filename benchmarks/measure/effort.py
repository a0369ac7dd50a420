"""Gain and cost of each level of encoder effort: BD-rate against level 0, and encode time beside level 0's.

    python benchmarks/measure/effort.py FOLDER --out benchmarks/results/dca-s/effort.json

Works on the middle of the first photographs of the folder, at every quality and level; real files. Interrupted, it
goes on where it was, with the same weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dca_fast import Codec
from dca_fast.config import BACK, GRADIENT_BACK, LINEAR_PRICE, MAX_EFFORT, TRELLIS_PRICE
from dca_fast.encoder.effort import DESCENTS, PRICES
from dca_fast.evaluation.measure import ImageFolder, bd_rate, psnr
from dca_fast.evaluation.report import environment
from dca_fast.files.atomic import write_atomic
from dca_fast.files.container import VERSION

QUALITIES = (15, 35, 55, 75)


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def measure(codec: Codec, pixels: np.ndarray, quality: float, effort: int) -> dict[str, float]:
    """One file, for the least squared error; the time is that of the fastest of three calls where calls are short."""
    seconds = []
    for _ in range(3 if effort < 6 else 1):
        start = time.perf_counter()
        data = codec.encode(pixels, quality, effort=effort, aq_strength=0)
        seconds.append(time.perf_counter() - start)
    return {
        "bpp": 8 * len(data) / (pixels.shape[0] * pixels.shape[1]),
        "psnr": psnr(codec.decode(data, "numpy"), pixels),
        "seconds": min(seconds),
    }


def summary(rows: dict[str, dict[str, float]], names: list[str], levels: list[int]) -> list[dict[str, Any]]:
    """For each level: BD-rate of the mean curve against level 0, and median of seconds over those of level 0."""

    def mean(level: int, quality: float) -> tuple[float, float]:
        points = [rows[f"{name} {quality} {level}"] for name in names]
        return statistics.fmean(p["bpp"] for p in points), statistics.fmean(p["psnr"] for p in points)

    lines = []
    for level in levels:
        keys = [(f"{name} {q} {level}", f"{name} {q} 0") for name in names for q in QUALITIES]
        curves = ([mean(which, q) for q in QUALITIES] for which in (level, 0))
        lines.append(
            {
                "effort": level,
                "rate_percent": bd_rate(*curves).rate_percent if level else 0.0,
                "seconds": statistics.median(rows[a]["seconds"] for a, _ in keys),
                "times": statistics.median(rows[a]["seconds"] / rows[b]["seconds"] for a, b in keys),
            }
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--levels", type=int, default=MAX_EFFORT, help="the highest one")
    args = parser.parse_args()

    codec, levels = Codec(threads=args.threads), list(range(args.levels + 1))
    photographs = [(name, middle(p, args.side)) for name, p in ImageFolder(args.folder)][: args.images]
    saved = json.loads(args.out.read_text()) if args.out.exists() else {}
    same = {
        "model_id": codec.model_id,
        "version": VERSION,
        "aq_strength": 0,
        "threads": codec.threads,
        "side": args.side,
        "iterations": list(DESCENTS.items()),
        "prices": [TRELLIS_PRICE, LINEAR_PRICE, *PRICES, BACK, GRADIENT_BACK],
    }
    same = json.loads(json.dumps(same | {"machine": environment()["machine"]}))
    rows = saved.get("rows", {}) if all(saved.get(key) == value for key, value in same.items()) else {}
    work = [(name, p, q, level) for level in levels for name, p in photographs for q in QUALITIES]
    codec.encode(photographs[0][1], 50, effort=4)  # packs weights
    with Progress(console=Console(stderr=True)) as bar:
        for name, pixels, quality, level in bar.track(work, description="effort"):
            key = f"{name} {quality} {level}"
            if key not in rows:
                rows[key] = measure(codec, pixels, quality, level)
            facts = {
                **same,
                "photographs": [name for name, _ in photographs],
                "qualities": QUALITIES,
                "rows": rows,
            }
            if level > 3 or (name, quality) == (photographs[-1][0], QUALITIES[-1]):
                write_atomic(args.out, (json.dumps(facts, indent=1) + "\n").encode())
    facts["levels"] = summary(rows, facts["photographs"], levels)
    write_atomic(args.out, (json.dumps(facts, indent=1) + "\n").encode())
    for line in facts["levels"]:
        print("effort {effort}: {rate_percent:+.2f} %, {seconds:.3f} s, {times:.1f} times level 0".format(**line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
