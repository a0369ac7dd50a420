"""Bit-exactness on real photographs: every backend, instruction set, thread count and batch gives the same file and
the same picture.

    python benchmarks/measure/conformance.py FOLDER --out benchmarks/results/conformance.json

For each image and quality: reference and native encode (bytes equal), both decode (arrays equal), native again with
2 and 3 threads, every instruction set, and in a batch of 4. Exit code 1 and a list of differences if any.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from dca_fast import Codec
from dca_fast.evaluation.measure import ImageFolder
from dca_fast.ops import native as ops
from dca_fast.testing import photograph

QUALITIES = (10, 30, 50, 70, 90)
SIZES = ((1, 1), (1, 17), (16, 16), (63, 65), (255, 257), (1000, 3))
THREADS = (1, 2, 3)


def check_image(codecs: dict[str, Codec], pixels: np.ndarray, quality: float) -> tuple[bytes, list[str]]:
    """The file and what differed."""
    data = codecs["reference"].encode(pixels, quality)
    picture = codecs["reference"].decode(data, "numpy")
    wrong = []
    for name, codec in codecs.items():
        if name != "reference":
            if codec.encode(pixels, quality) != data:
                wrong.append(f"{name}: bytes")
            if not np.array_equal(codec.decode(data, "numpy"), picture):
                wrong.append(f"{name}: pixels")
    return data, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="dca-s")
    args = parser.parse_args()

    codecs = {"reference": Codec(args.model, backend="reference")}
    codecs |= {f"native, {t} threads": Codec(args.model, backend="native", threads=t) for t in THREADS}
    native = codecs["native, 1 threads"]
    wrong: list[str] = []
    compared = 0
    cases = list(ImageFolder(args.folder))
    cases += [(f"synthetic {h}x{w}", photograph(h, w, seed=h + w)) for h, w in SIZES]
    files: dict[tuple[str, float], bytes] = {}
    for name, pixels in track(cases, "comparing", console=None):
        for quality in QUALITIES:
            files[name, quality], bad = check_image(codecs, pixels, quality)
            wrong += [f"{name} q{quality} {b}" for b in bad]
            compared += 2 * (len(codecs) - 1)
    for isa in ops.isas():
        ops.set_isa(isa)
        for name, pixels in cases[:: max(1, len(cases) // 8)]:
            compared += 1
            if native.encode(pixels, 50) != files[name, 50]:
                wrong.append(f"{name} {isa}: bytes")
    ops.set_isa("auto")
    for start in range(0, len(cases), 4):
        batch = cases[start : start + 4]
        compared += len(batch)
        out = native.encode_batch([pixels for _, pixels in batch], 50)
        wrong += [f"{n} batch: bytes" for (n, _), data in zip(batch, out, strict=True) if data != files[n, 50]]
    result = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "model_id": native.model_id,
        "isas": ops.isas(),
        "threads": THREADS,
        "qualities": QUALITIES,
        "images": [n for n, _ in cases],
        "comparisons": compared,
        "differences": wrong,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(f"{compared} comparisons, {len(wrong)} differences\n" + "".join(f"  {w}\n" for w in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
