"""A stand-in for CUDA graphs that knows what their launches read, for tests without a GPU.

A graph holds addresses, and what it reads may be freed by then: `recorded` runs a function again instead of replaying
its launches, and `overwrite_unowned` fills the memory that it reads and nobody owns, as an allocator may let others do.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dca_fast.entropy.cuda_coder import Encoded


class Reads(TorchDispatchMode):
    """Storages that operators and the coder's kernels read or write and did not allocate, by address."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Any] = {}
        self._made: dict[int, Any] = {}  # kept, so that addresses are not given out again

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage._cdata not in self._made:
            self.found[storage.data_ptr()] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for x in before:
            self.note(x)
        out = func(*args, **(kwargs or {}))
        old = {x.untyped_storage()._cdata for x in before}
        made = (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor))
        self._made.update((storage._cdata, storage) for storage in made if storage._cdata not in old)
        return out


class Recording:
    """In place of a CUDA graph: runs its function again, into the outputs of the first time."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self.reads, address = function, Reads(), Tensor.data_ptr
        with pytest.MonkeyPatch.context() as patch, self.reads:
            patch.setattr(Tensor, "data_ptr", lambda x: self.reads.note(x) or address(x))
            self.out = function()

    def replay(self) -> None:
        for old, new in zip(tensors_in(self.out), tensors_in(self._function()), strict=True):
            old.copy_(new)


def recorded(function: Callable[[], Any]) -> tuple[Recording, Any]:
    function()
    recording = Recording(function)
    return recording, recording.out


def reachable(start: Any) -> Iterator[Any]:
    """Every object that `start` keeps alive by itself: not through modules or the stand-in for its graph."""
    seen, left = {id(start): start}, [start]
    while left:
        item = left.pop()
        yield item
        if isinstance(item, FunctionType):
            referred = [*(item.__closure__ or ()), item.__defaults__]
        elif isinstance(item, functools.partial):
            referred = [item.func, item.args, item.keywords]
        else:
            referred = gc.get_referents(item)
        for found in referred:
            if id(found) not in seen and not isinstance(found, type | ModuleType | Recording):
                seen[id(found)] = found
                left.append(found)


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors of an output, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict | list | tuple):
        return [x for item in (value.values() if isinstance(value, dict) else value) for x in tensors_in(item)]
    if isinstance(value, Encoded):
        return [value.streams, value._states]
    return tensors_in(value.parts) if hasattr(value, "parts") else []


def overwrite_unowned(graph: Any) -> None:
    """What the memory allocator may do as soon as a graph is recorded."""
    recordings = [x for x in tree_leaves(list(vars(graph).values())) if isinstance(x, Recording)]
    assert recordings
    owned = {x.untyped_storage().data_ptr() for x in reachable(graph) if isinstance(x, Tensor)}
    for recording in recordings:
        assert recording.reads.found
        for address, storage in recording.reads.found.items():
            if address not in owned:
                torch.tensor([], dtype=torch.uint8).set_(storage).fill_(0x5A)
