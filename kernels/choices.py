"""Tile sizes: data in `choices.json`, looked up at run time. `autotune` measures and writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path

import torch

__all__ = ["CHOICES", "LIMITS", "architecture", "choose", "forced"]

CHOICES = Path(__file__).with_name("choices.json")
Entry = dict[str, int]
LIMITS = ("rows", "width", "k", "n")  # of an entry; its other keys are arguments of the launch
_forced: dict[str, Entry] = {}


@cache
def _choices() -> dict[str, dict[str, list[Entry]]]:
    data: dict[str, dict[str, list[Entry]]] = json.loads(CHOICES.read_text("utf-8"))
    return data


@cache
def architecture(device: torch.device) -> str:
    """For example "sm_90"; "cpu" in the interpreter."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@lru_cache(maxsize=4096)
def _look_up(op: str, rows: int, k: int, n: int, device: torch.device) -> Entry:
    data = _choices()
    for entry in data.get(architecture(device), {}).get(op, []) + data["default"][op]:
        same_sides = entry.get("k", k) == k and entry.get("n", n) == n
        if same_sides and rows <= entry.get("rows", rows) and max(k, n) <= entry.get("width", max(k, n)):
            return {key: value for key, value in entry.items() if key not in LIMITS}
    raise KeyError(f"{CHOICES.name} has no default for {op} with {k} and {n} channels")


def choose(op: str, rows: int, k: int, n: int, device: torch.device) -> Entry:
    """Launch arguments for an operation.

    Args:
        op: a key of `choices.json`.
        rows: of the product: sites of all maps.
        k, n: channels of the two sides of the product.
        device: where it will run.

    Returns:
        The first entry that fits, of the architecture and then of all: k and n equal, if it names them, `rows` and
        `width` (the larger of k and n) not exceeded.
    """
    return _forced.get(op) or _look_up(op, rows, k, n, device)


@contextmanager
def forced(op: str, entry: Entry) -> Iterator[None]:
    """Inside, `choose` returns `entry` for `op`, in every thread."""
    before = _forced.get(op)
    _forced[op] = entry
    try:
        yield
    finally:
        _forced.pop(op)
        if before is not None:
            _forced[op] = before
