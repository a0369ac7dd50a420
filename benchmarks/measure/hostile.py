"""Hostile files: every truncation and many mutations of a real file end in a typed error or the identical picture.

    python benchmarks/measure/hostile.py PHOTOGRAPH --out benchmarks/results/hostile.json

Half of the mutations keep a correct checksum, so that they reach the entropy decoder. A crash or a hang ends the
run; the peak memory and the slowest file, as a ratio to an intact one, are reported.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from rich.progress import track

from dca_fast import Codec
from dca_fast.errors import BitstreamError
from dca_fast.files import container
from dca_fast.files.image_io import load_image

MAX_PIXELS = 1 << 20  # what a careful server would set


def mutate(data: bytes, generator: np.random.Generator, mend: bool) -> bytes:
    """One to eight random changes: bits, bytes, a removed or a repeated range."""
    body = bytearray(data[:-4] if mend else data)
    for _ in range(generator.integers(1, 9)):
        offset = int(generator.integers(len(body)))
        kind = generator.integers(4)
        if kind == 0:
            body[offset] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            body[offset] = int(generator.integers(256))
        elif kind == 2:
            del body[offset : offset + int(generator.integers(1, 9))]
        else:
            body[offset:offset] = body[offset : offset + int(generator.integers(1, 9))]
    return bytes(body) + (zlib.crc32(body).to_bytes(4, "little") if mend else b"")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("--side", type=int, default=192, help="a crop this large is coded (default: %(default)s)")
    parser.add_argument("--mutations", type=int, default=10000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    codec = Codec(threads=1, max_pixels=MAX_PIXELS)
    pixels = load_image(args.photograph).pixels[: args.side, : args.side]
    data = codec.encode(pixels, 50)
    picture = codec.decode(data, "numpy")
    begin = time.perf_counter()
    codec.decode(data, "numpy")
    intact = time.perf_counter() - begin
    generator = np.random.default_rng(0)
    cases = [("truncated", data[:n]) for n in range(len(data))]
    cases += [("mutated", mutate(data, generator, False)) for _ in range(args.mutations // 2)]
    cases += [("mutated, checksum mended", mutate(data, generator, True)) for _ in range(args.mutations // 2)]
    outcomes: Counter[str] = Counter()
    slowest, wrong = 0.0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, case in track(cases, "decoding", console=None):
        begin = time.perf_counter()
        try:
            back = codec.decode(case, "numpy")
        except BitstreamError as error:
            outcomes[f"{kind}: {type(error).__name__}"] += 1
        else:
            # Another header (size, quality, strength, colour) that still fits its symbols makes another valid file.
            same = container.parse(case).header == container.parse(data).header
            if same and not np.array_equal(back, picture):
                wrong += 1
            outcomes[f"{kind}: {'identical' if same else 'another valid header'}"] += 1
        slowest = max(slowest, time.perf_counter() - begin)
    result = {
        "file_bytes": len(data),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong_pictures": wrong,
        "slowest_to_intact": round(slowest / intact, 2),
        "memory_growth_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "model_id": codec.model_id,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
