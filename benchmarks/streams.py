"""What streams cost: bytes, error, layout and a decoder's rounds, at effort 0, for each quality.

A round is what a decoder takes at once, a value of each lane in use; counted are those of one group, for groups have
equally many. Run it before and after a change of the layout. At equal error, 1 dB is worth what the next quality costs.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dca_fast import Codec
from dca_fast.codec import _aq
from dca_fast.config import DEFAULT_AQ
from dca_fast.engines.cpu import CpuEngine
from dca_fast.entropy.rans import tail_begin, tail_lanes
from dca_fast.entropy.tables import SKIP_ROW
from dca_fast.entropy.trellis import CHAINS, chains_of
from dca_fast.evaluation.measure import ImageFolder, Pixels


def rounds(parts: Sequence[tuple[Any, Any]], plain: int, lanes: int, groups: int) -> int:
    """Of one group, all parts."""
    total = 0
    for i, (_, rows) in enumerate(parts):
        coded = int(np.sum(rows != SKIP_ROW))
        most, symbols = CHAINS if i < plain else chains_of(coded, groups), -(-coded // groups)
        tail = tail_begin(symbols) if i == len(parts) - 1 else symbols
        total += -(-tail // min(lanes, most)) + -(-(symbols - tail) // min(tail_lanes(lanes), most))
    return total


def measure(codec: Codec, images: Sequence[Pixels], quality: int) -> str:
    """One line about a quality."""
    engine, layouts, sizes, errors, all_rounds, seconds = codec.engine, Counter[str](), [], [], [], []
    assert isinstance(engine, CpuEngine)
    for image in images:
        start = time.thread_time()
        data = codec.encode(image, quality, effort=0, screen="off")
        seconds.append(time.thread_time() - start)
        sizes.append(len(data))
        errors.append(float(np.mean((codec.decode(data, "numpy").astype(float) - image) ** 2)))
        sources, _ = engine.symbols(image, 100 * quality, 0, _aq(DEFAULT_AQ), lambda *both: both)
        for source, grid in sources:
            stream = engine.coder.encode(source.parts, groups=grid.groups, plain=source.plain)
            lanes, groups = 1 << stream[0], stream[1]
            layouts[f"{groups} x {lanes}"] += 1
            all_rounds.append(rounds(source.parts, source.plain, lanes, groups))
    psnr = statistics.mean(10 * np.log10(255**2 / error) for error in errors)
    mean = float(np.exp(np.mean(np.log(sizes))))
    common = ", ".join(f"{layout} ({count})" for layout, count in layouts.most_common(4))
    return (
        f"{quality:7d} {sum(sizes):9d} {mean:10.1f} {psnr:8.3f} {statistics.mean(all_rounds):8.0f} "
        f"{1000 * statistics.median(seconds):8.1f}  {common}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("--qualities", type=int, nargs="+", default=[10, 30, 60, 90])
    parser.add_argument("--crop", type=int, help="only so many pixels of a side, from the middle")
    parser.add_argument("--number", type=int, help="only so many photographs")
    arguments = parser.parse_args()
    images = []
    for _, pixels in list(ImageFolder(arguments.folder))[: arguments.number]:
        side = arguments.crop or max(pixels.shape)
        top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
        images.append(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    codec = Codec(device="cpu", threads=1)
    print("quality     bytes  geo. mean     PSNR   rounds  encode ms  groups x lanes")
    for quality in arguments.qualities:
        print(measure(codec, images, quality), flush=True)


if __name__ == "__main__":
    main()
