"""Compiles the kernels of a codec before its first picture: on any machine, without a GPU, several at a time.

    python -m dca_fast.engines.ahead sm_90 [--size 768x512 3840x2160] [--jobs N]

They go to Triton's cache (TRITON_CACHE_DIR, else .triton/cache in the home directory), where a codec finds them that
has the same version of Triton and of this package. A walk over empty pictures on the CPU launches what a decoder and
an encoder up to effort 1 launch; all of it is compiled instead of run.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dca_fast.config import AQ_ONE, DEFAULT_AQ, RINGS
from dca_fast.encoder.effort import Step, step_multipliers
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines.cuda import _analyse, _synthesise
from dca_fast.network import models, walk, weights
from dca_fast.network.program import QUALITY_ONE, ProgramSet
from dca_fast.network.weights import Weights
from dca_fast.ops import Ops

SIZES = ("768x512", "1920x1080", "3840x2160")
QUALITY = 6000


class _Driver:
    """The little that Triton asks of a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_only(architecture: int, jobs: int = 1) -> Iterator[dict[str, Any]]:
    """Inside, launches of kernels on CPU tensors compile them and compute nothing. For a process of its own, which is
    changed for good.

    Args:
        architecture: compute capability times ten.
        jobs: how many to compile at a time, where Triton can.

    Returns:
        What was compiled, by its hash; complete after leaving.
    """
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from dca_fast.kernels import choices

    driver.set_active(_Driver(architecture))
    vars(choices)["architecture"] = lambda device: f"sm_{architecture}"  # of CPU tensors
    run, begun, seen = JITFunction.run, list[Any](), dict[str, Any]()

    def compile_it(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        begun.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = compile_it
    with ThreadPoolExecutor(jobs) as pool, _at_once(pool):
        yield seen
    seen.update((kernel.hash, kernel) for kernel in begun)


@contextmanager
def _at_once(pool: ThreadPoolExecutor) -> Iterator[None]:
    try:
        from triton import AsyncCompileMode
    except ImportError:  # an older one: kernel by kernel
        yield
        return
    with AsyncCompileMode(pool):
        yield


class _Decoder:
    """Decodes zeros."""

    pictures = 1

    def decode(self, rows: Tensor, trellis: bool = False, last: bool = False) -> Tensor:
        return torch.zeros(rows.shape, dtype=torch.int16)

    def close(self) -> None:
        pass


def launch_all(ops: Ops, model: Weights, height: int, width: int) -> None:
    """What a codec launches for a picture of this size, but for the coder, on CPU tensors of any contents."""
    coarseness = ops.coarseness
    ops = replace(ops, coarseness=lambda *of: coarseness(*of).zero_())  # which nothing computes, and which is an index
    image, arrays = torch.zeros(height, width, 3, dtype=torch.uint8), ops.arrays("cpu")
    grid, programs = walk.Grid.of(height, width), ProgramSet(model, ops, torch.device("cpu"))
    padded = ops.pad_edges(image, *grid.padded)
    for aq in (0, round(AQ_ONE * DEFAULT_AQ)):
        program = programs.at(QUALITY, aq)
        m = arrays.array(step_multipliers(arrays.numpy(program.gain), QUALITY / QUALITY_ONE))

        def quantiser(groups: int) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda residuals, rows: torch.zeros(rows.shape, dtype=torch.int16)

        step = Step(Adjoint(model, ops, torch.device("cpu")), quantiser, m)

        def fit(picture: Tensor) -> Callable[[], tuple[int, ...]]:
            ops.restore_sums(picture[0, :height, :width].contiguous(), image, 1)
            return tuple

        _, picture = _analyse(program, padded, (height, width), step, fit, None)
        assert picture is not None
        fit(picture)
        _synthesise(program, [_Decoder()] * len(grid.tiles()), grid, None)  # type: ignore[list-item]
    for rings in range(1, len(RINGS) + 1):
        ops.restore(image, torch.zeros(3, 6 * rings, dtype=torch.int8))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m dca_fast.engines.ahead`."""
    parser = argparse.ArgumentParser(prog="python -m dca_fast.engines.ahead", description=__doc__)
    parser.add_argument("architecture", help="such as sm_90")
    parser.add_argument("--size", nargs="+", default=SIZES, metavar="WxH", help=f"pictures; default: {' '.join(SIZES)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time; default: one for each CPU")
    parser.add_argument("--weights", type=Path, help="weights of another model; default: dca-s")
    options = parser.parse_args(arguments)
    found = re.fullmatch(r"sm_(\d+)", options.architecture)
    sizes = [re.fullmatch(r"(\d+)x(\d+)", size) for size in options.size]
    if found is None or not all(sizes):
        parser.error("an architecture is sm_ and a number, a size WIDTHxHEIGHT")
    from dca_fast.kernels.ops import OPS

    model = weights.load(options.weights or models.named("dca-s"))
    with compiling_only(int(found[1]), options.jobs) as seen:
        for size in filter(None, sizes):
            launch_all(OPS, model, int(size[2]), int(size[1]))
    sys.stdout.write(f"{len(seen)} kernels for {options.architecture}\n")


if __name__ == "__main__":
    main()
