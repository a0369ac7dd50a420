"""This checkout beside another one: the time of decoding, encoding and single operations, in turns.

    python benchmarks/measure/trees.py OTHER --turns 15

OTHER is the folder of the other checkout; both have their extensions built for this Python. Every turn is a process of
each, one after the other, with one thread, and its time is the least of many, of the processor. The figures are medians
over turns of this checkout's time in that of the other, so that a machine with other work to do says something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((64, 64, 60), (256, 256, 25), (512, 768, 8))  # height, width, how often
CALLS = 2000


def least(work: Callable[[], Any], times: int) -> float:
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def child() -> dict[str, float]:
    import numpy as np

    from dca_fast import Codec
    from dca_fast.ops import native
    from dca_fast.testing import photograph

    codec, out = Codec(threads=1), {}
    for height, width, times in SIZES:
        picture = photograph(height, width)
        data = codec.encode(picture, 50)
        out[f"decode {width} x {height}"] = least(lambda data=data: codec.decode(data), times)
        out[f"encode {width} x {height}"] = least(lambda picture=picture: codec.encode(picture, 50), max(3, times // 3))
    x, m = np.ones((1, 4, 4, 8), np.int16), np.ones(8, np.float32)
    out["add of 128 values"] = least(lambda: [native.add(x, x) for _ in range(CALLS)], 10) / CALLS
    out["operand8 of 128 values"] = least(lambda: [native.operand8(x, m) for _ in range(CALLS)], 10) / CALLS
    return out


def turn(tree: Path) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, __file__, str(tree), "--child"]
    times: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    )
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child()))
        return
    pairs = [(turn(ROOT), turn(args.other.resolve())) for _ in range(args.turns)]
    for name in pairs[0][0]:
        ratio = statistics.median(own[name] / other[name] for own, other in pairs)
        own, other = (min(pair[i][name] for pair in pairs) * 1e6 for i in (0, 1))
        print(f"{name:24}  {ratio:5.3f}   least {own:10.1f} and {other:10.1f} us")


if __name__ == "__main__":
    main()
