"""The profiler on a CUDA device: how it follows the codec there, what the device could do, what it holds.

What is inside of a recorded graph cannot be told apart from outside. So a copy of the codec runs the same functions
launch by launch, with events between them; the time of the codec as it is, with its graphs, is measured beside it.
"""

from __future__ import annotations

import contextlib
import copy
import subprocess
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines.cuda import CudaEngine
from dca_fast.entropy.cuda_coder import DeviceCoder
from dca_fast.network.program import Program
from dca_fast.profile.recorder import Ceilings, EventClock, Recorder

__all__ = ["Gpu", "described", "follow"]

_GEMM = 8192  # rows, inputs and outputs
_COPY_BYTES = 1 << 28  # above any cache
_TRIES = 20  # milliseconds each: the first ones raise the clock
_DIGIT_PRODUCTS = 4  # of int8 in one 16-bit product: two digits by two
_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
Part = tuple[Tensor, Tensor]  # values, rows


class Gpu:
    """A CUDA device as the machine that a profile is of.

    Args:
        codec: the engine of a codec on the device.
    """

    turns = 10  # of the codec as it is, in each round: they are short
    output = "torch"  # pixels stay on the device

    def __init__(self, codec: CudaEngine) -> None:
        self.tables, self._device = codec.tables, codec.device
        self.clock = EventClock(codec.device)

    def picture(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] as [3, H, W] on the device."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device).permute(2, 0, 1)

    def memory(self, peak: bool) -> int:
        """Bytes of tensors on the device, now or at most so far."""
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(self._device)

    def ceilings(self) -> Ceilings:
        """PyTorch's int8 product and copy of large operands."""
        numbers = (torch.randint(-127, 128, (_GEMM, _GEMM), dtype=torch.int8, device=self._device) for _ in range(2))
        a, b = next(numbers), next(numbers).t()  # the layout that the library wants
        macs = _GEMM**3 / self._seconds(lambda: torch._int_mm(a, b))
        source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=self._device)
        target = torch.zeros_like(source)
        seconds = self._seconds(lambda: target.copy_(source))
        return Ceilings(macs, macs / _DIGIT_PRODUCTS, 2 * _COPY_BYTES / seconds)

    def _seconds(self, function: Callable[[], Any]) -> float:
        """Of the fastest call after the first one."""
        function()
        marks = [self.clock.mark()]
        for _ in range(_TRIES):
            function()
            marks.append(self.clock.mark())
        times = list(map(self.clock.read(), marks))
        return min(end - start for start, end in pairwise(times)) / 1e9


def described(facts: dict[str, Any], codec: CudaEngine) -> dict[str, Any]:
    """Facts of what runs where, with the device, the versions and the library that count there."""
    import triton  # only where there is a device, for its package may be missing elsewhere

    properties, driver = torch.cuda.get_device_properties(codec.device), "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        driver = subprocess.run(_DRIVER, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    device = {
        "name": properties.name,
        "architecture": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": driver,
    }
    versions = facts["versions"] | {"cuda": torch.version.cuda, "triton": triton.__version__}
    loaded = facts["loaded"] | {"rans_cuda": str(codec.coder.library.path)}
    return facts | {"device": device, "versions": versions, "loaded": loaded}


def follow(
    codec: CudaEngine,
    staged_program: Callable[[Program], Program],
    staged_adjoint: Callable[[Adjoint], Adjoint],
    recorder: Recorder,
    parts: deque[list[Part]],
) -> CudaEngine:
    """A copy of the codec that runs launch by launch and tells `recorder` what it does.

    Args:
        codec: stays as it is.
        staged_program, staged_adjoint: copies of a program, and of an adjoint, that note their stages and operations.
        recorder: with a clock of the same device.
        parts: what is given to the coder goes in, of each tile.
    """
    twin = copy.copy(codec)
    programs = SimpleNamespace(at=lambda *at: staged_program(codec._programs.at(*at)))
    coder, adjoint = _Coder(codec.coder, recorder, parts), staged_adjoint(codec._adjoint)
    vars(twin).update(_programs=programs, _graph=lambda *_: None, coder=coder, _adjoint=adjoint)
    return twin


class _Coder:
    """A coder that notes its stages and keeps what it was given to encode."""

    def __init__(self, coder: DeviceCoder, recorder: Recorder, parts: deque[list[Part]]) -> None:
        self._coder, self._recorder, self._parts = coder, recorder, parts

    def quantise(self, *arguments: Any) -> Any:
        return self._recorder.within(self._coder.quantise, "symbols", "trellis")(*arguments)

    def start_encode(self, parts: list[Part], *layout: Any) -> Any:
        self._recorder.enter("coder")
        self._parts.append(parts)
        encoded = self._coder.start_encode(parts, *layout)
        return SimpleNamespace(read=self._recorder.staged(encoded.read, "coder", "container"))

    def decoder(self, stream: bytes) -> Any:
        opened = self._coder.decoder(stream)
        self._recorder.enter("hyper: symbols")
        decode = self._recorder.within(opened.decode, "symbols", "coder")
        return SimpleNamespace(decode=decode, close=opened.close, check=opened.check, pictures=opened.pictures)
