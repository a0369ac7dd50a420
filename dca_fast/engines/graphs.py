"""CUDA graphs: launches that are recorded once and replayed without the host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")

# A capture fails if anything else reaches its stream, or if the device is waited for as a whole: one at a time.
CAPTURE = threading.Lock()


@lru_cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """PyTorch hands out its few streams in turn, to everyone: this one is of the other, high-priority pool."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def record(function: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of the launches of `function`, and its outputs, which each `replay` overwrites; on the current device.

    The function runs once before. A graph knows addresses only: whoever keeps it keeps what the function reads.
    """
    function()  # compiles, loads, and packs the weights of layers that no other program has
    with CAPTURE:
        torch.cuda.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), _capture_stream(torch.cuda.current_device())
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = function()
    return graph, out
