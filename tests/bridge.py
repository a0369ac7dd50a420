"""A backend of NumPy arrays as the tests use it beside the reference: tensors in and out."""

from __future__ import annotations

from dataclasses import fields, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dca_fast.ops import Ops, Params


def to_arrays(value: Any) -> Any:
    """Tensors as the arrays that share their memory, also those of layers and blocks, each converted once."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, Params):
        if "arrays" not in value.cache:
            value.cache["arrays"] = type(value)(*map(to_arrays, value.values()))
        return value.cache["arrays"]
    return tuple(map(to_arrays, value)) if type(value) is tuple else value


def to_tensors(value: Any) -> Any:
    """The reverse, of results and arguments."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Params):
        return type(value)(*map(to_tensors, value.values()))
    return tuple(map(to_tensors, value)) if type(value) is tuple else value


class OnTensors:
    """Module of operations, whose other members stay as they are."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._module, name)
        if name not in OPERATIONS:
            return member

        def call(*arguments: Any) -> Any:
            return to_tensors(member(*map(to_arrays, arguments)))

        return call


OPERATIONS = {f.name for f in fields(Ops)} - {"name", "arrays"}


def ops_on_tensors(ops: Ops, reference: Ops) -> Ops:
    """The record of a NumPy backend for programs of tensors."""

    def bridged(name: str) -> Any:
        member = getattr(ops, name)
        return lambda *arguments: to_tensors(member(*map(to_arrays, arguments)))

    return replace(reference, name=ops.name, **{name: bridged(name) for name in OPERATIONS})
