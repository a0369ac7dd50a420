"""Measures tile sizes on the GPU that is here and writes them for its architecture into `choices.json`.

    python -m dca_fast.kernels.autotune [--op ffn depth]

From the default of each case it climbs: one size to the next larger or smaller one, as long as that is faster. Every
candidate must give the same bits.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from dca_fast.errors import DcaError
from dca_fast.ops import DepthBlockParams, Depthwise, GatedFfnParams, Head, Linear

from . import gemm, is_available
from .choices import CHOICES, Entry, architecture, choose, forced

log = logging.getLogger(__name__)

# Channels of the two sides of a product, as in preset dca-s.
SHAPES = {
    "linear": [(128, 128), (160, 160), (160, 480), (384, 160), (384, 192), (384, 320), (512, 128), (128, 640)],
    "wide": [(128, 192), (128, 512), (192, 128), (384, 512), (512, 384)],
    "decoded": [(384, 160)],
    "head": [(160, 96)],
    "ffn": [(128, 128), (160, 160), (384, 192)],
    "depth": [(128, 128), (160, 160), (384, 192)],
}
# Maps to measure (768x512 at 1/16, 1080p at 1/16, 4K at 1/16, 4K at 1/8), and up to how many sites each speaks for.
MAPS = [((32, 48), 4096), ((68, 120), 16384), ((136, 240), 65536), ((270, 480), None)]
AXES: dict[str, tuple[int, ...]] = {
    "BM": (16, 32, 64, 128),
    "BN": (32, 64, 128),
    "BK": (32, 64, 128),
    "BC": (32, 64, 128),
    "BH": (32, 64, 128),
    "BE": (32, 64),
    "TX": (4, 8, 16),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
}


def _int(dtype: torch.dtype, *shape: int, limit: int = 127) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, dtype=dtype)


def _multipliers(*shape: int, sums: float) -> Tensor:
    """Multipliers that take a sum of this deviation to operands."""
    return torch.rand(*shape) * 60 / sums


def _layer(k: int, n: int, dtype: torch.dtype = torch.int8, limit: int = 127) -> Linear:
    reach = 5000 * math.sqrt(k) if dtype == torch.int8 else limit * math.sqrt(k)
    return Linear(_int(dtype, n, k, limit=limit), _int(torch.int32, n, limit=5000), _multipliers(n, sums=reach))


def case(op: str, k: int, n: int, h: int, w: int, device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    """The operation with random operands on a map of h x w sites, ready to run."""
    feature = _int(torch.int16, 1, h, w, k, limit=4000).to(device)
    m_in = _multipliers(k, sums=4000).to(device)
    if op == "linear":
        x, layer = _int(torch.int8, 1, h, w, k).to(device), _layer(k, n).to(device)
        return lambda: (gemm.linear_act(x, layer, True),)
    if op == "wide":
        layer = _layer(k, n, torch.int16, (1 << 15) // k).to(device)
        return lambda: (gemm.wide_linear(feature, layer),)
    if op == "decoded":
        layer, residual = _layer(k, n, torch.int16, (1 << 15) // k).to(device), _int(torch.int16, 1, h, w, n).to(device)
        return lambda: (gemm.decoded_linear(feature, m_in, layer, residual, 3),)
    if op == "head":
        x, layer, sums = _int(torch.int8, 1, h, w, k).to(device), _layer(k, 8 * n), 5000 * math.sqrt(k)
        means, scales = _multipliers(4, n, sums=sums), _multipliers(4, n, sums=sums / 32)
        w8, b = layer.w.view(4, 2 * n, k), layer.b.view(4, 2 * n)
        head = Head(w8, b, means, scales, _int(torch.int32, 4, n)).to(device)
        return lambda: gemm.head_params(x, head, 1, 8, (h, w))
    if op == "ffn":
        ffn = GatedFfnParams(m_in, _layer(k, 2 * n).to(device), 1 / 16, _layer(n, k).to(device))
        return lambda: (gemm.gated_ffn(feature, ffn),)
    depthwise = Depthwise(_int(torch.int8, 3, 3, n), _int(torch.int32, n), _multipliers(n, sums=15000)).to(device)
    depth = DepthBlockParams(m_in, _layer(k, n).to(device), depthwise, _layer(n, k).to(device))
    return lambda: (gemm.depth_block(feature, depth),)


def neighbours(entry: Entry) -> Iterator[Entry]:
    """Entries in which one size is the next larger or smaller one."""
    for key, values in AXES.items():
        for value in values:
            if key in entry and abs(values.index(value) - values.index(entry[key])) == 1:
                yield entry | {key: value}


def climb(cost: Callable[[Entry], float], start: Entry) -> Entry:
    """Returns a local minimum of `cost`, reached from `start`; each entry is asked once."""
    best, lowest, seen, improved = start, cost(start), [start], True
    while improved:
        improved = False
        for entry in neighbours(best):
            if entry in seen:
                continue
            seen.append(entry)
            value = cost(entry)
            if value < lowest:
                best, lowest, improved = entry, value, True
                break
    return best


def measured(op: str, run: Callable[[], tuple[Tensor, ...]]) -> Callable[[Entry], float]:
    """Cost of an entry: milliseconds of the GPU, infinite where it does not fit.

    Raises (from the cost): DcaError if the result depends on the entry.
    """
    expected = run()

    def cost(entry: Entry) -> float:
        with forced(op, entry):
            try:
                have = run()
            except (OutOfResources, triton.CompilationError) as error:
                log.debug("%s %s: %s", op, entry, error)
                return math.inf
            if not all(torch.equal(a, b) for a, b in zip(expected, have, strict=True)):
                raise DcaError(f"{op} gives other bits with {entry}")
            return float(triton.testing.do_bench_cudagraph(run, rep=10, return_mode="median"))

    return cost


def tune(op: str, device: torch.device) -> list[Entry]:
    """Measured entries of one operation, for `choices.json`."""
    entries = []
    for k, n in SHAPES[op]:
        for (h, w), rows in MAPS:
            start = choose(op, h * w, k, n, device)
            best = climb(measured(op, case(op, k, n, h, w, device)), start)
            log.info("%s %d x %d, %d sites: %s", op, k, n, h * w, best)
            entries.append({"k": k, "n": n} | ({} if rows is None else {"rows": rows}) | best)
    return entries


def save(path: Path, name: str, op: str, entries: list[Entry]) -> None:
    """Replace the entries of one operation on one architecture in the file: one line for each."""
    data = json.loads(path.read_text("utf-8"))
    data.setdefault(name, {})[op] = entries
    blocks = []
    for arch, ops in data.items():
        lists = [
            f'    "{key}": [\n' + ",\n".join(f"      {json.dumps(entry)}" for entry in values) + "\n    ]"
            for key, values in ops.items()
        ]
        blocks.append(f'  "{arch}": {{\n' + ",\n".join(lists) + "\n  }")
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n", "utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m dca_fast.kernels.autotune`."""
    parser = argparse.ArgumentParser(prog="python -m dca_fast.kernels.autotune", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="default: all")
    parser.add_argument("--out", type=Path, default=CHOICES, help="file to change; default: the installed one")
    options = parser.parse_args(arguments)
    available, reason = is_available()
    if not available:
        parser.error(reason)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    for op in options.op:
        save(options.out, architecture(device), op, tune(op, device))


if __name__ == "__main__":
    main()
