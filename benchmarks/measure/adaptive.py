"""What adaptive quantisation costs by PSNR and gains by MS-SSIM, at several strengths.

    python benchmarks/measure/adaptive.py FOLDER --out benchmarks/results/dca-s/adaptive.json

Works on the middles of the photographs of the folder; real files at the default effort. BD-rates against strength 0: of
the mean curves, where bits move between pictures too, and the mean of those of each picture alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from effort import middle
from rich.console import Console
from rich.progress import track

from dca_fast import Codec
from dca_fast.config import AQ_ONE, DEFAULT_AQ, DEFAULT_EFFORT
from dca_fast.evaluation.measure import ImageFolder, bd_rate, ms_ssim, psnr
from dca_fast.evaluation.report import decibels
from dca_fast.files.atomic import write_atomic

QUALITIES = (5, 20, 35, 50, 65, 80, 95)
STRENGTHS = tuple(k / AQ_ONE for k in (0, 1, 2, 3, 4, 6, 8))
Point = tuple[float, float, float]  # bits per pixel, PSNR and MS-SSIM in dB


def measure(codec: Codec, pixels: np.ndarray, quality: float, strength: float) -> Point:
    data = codec.encode(pixels, quality, aq_strength=strength)
    back = codec.decode(data, "numpy")
    similarity = ms_ssim(back, pixels)
    assert similarity is not None  # sides are large enough
    return 8 * len(data) / (pixels.shape[0] * pixels.shape[1]), psnr(back, pixels), decibels(similarity)


def compare(test: list[list[Point]], base: list[list[Point]], metric: int) -> dict[str, float]:
    """BD-rates of pictures' points [picture][quality]; `metric` is the index of the fidelity in a point."""

    def curve(points: list[Point]) -> list[tuple[float, float]]:
        return [(point[0], point[metric]) for point in points]

    def mean(pictures: list[list[Point]]) -> list[tuple[float, float]]:
        points = np.mean([curve(points) for points in pictures], axis=0)
        return [(float(rate), float(fidelity)) for rate, fidelity in points]

    def percent(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
        delta = bd_rate(a, b)
        assert delta.rate_percent is not None, delta.note
        return delta.rate_percent

    each = [percent(curve(a), curve(b)) for a, b in zip(test, base, strict=True)]
    return {"mean_curves": percent(mean(test), mean(base)), "each_picture": statistics.fmean(each)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    codec = Codec(threads=args.threads)
    photographs = [(name, middle(p, args.side)) for name, p in ImageFolder(args.folder)]
    points: dict[float, list[list[Point]]] = {}
    work = [(strength, pixels) for strength in STRENGTHS for _, pixels in photographs]
    for strength, pixels in track(work, "adaptive quantisation", console=Console(stderr=True)):
        points.setdefault(strength, []).append([measure(codec, pixels, q, strength) for q in QUALITIES])
    facts: dict[str, Any] = {
        "model_id": codec.model_id,
        "effort": DEFAULT_EFFORT,
        "default": DEFAULT_AQ,
        "side": args.side,
        "photographs": [name for name, _ in photographs],
        "qualities": QUALITIES,
        "points": {str(strength): rows for strength, rows in points.items()},
        "strengths": [
            {"aq_strength": s, "psnr": compare(rows, points[0], 1), "ms_ssim": compare(rows, points[0], 2)}
            for s, rows in points.items()
            if s
        ],
    }
    write_atomic(args.out, (json.dumps(facts, indent=1) + "\n").encode())
    for row in facts["strengths"]:
        print(row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
