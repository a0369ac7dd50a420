"""A checkpoint in shards, files of limited size, to carry a training from one machine to the next.

Network and average, without the optimiser's state, which has many times their size: a training that goes on from here
warms its optimiser up again. The average is kept as float16 differences to the network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dca_fast.errors import WeightsError
from dca_fast.files.atomic import write_atomic
from dca_fast.train.export import readable

LIMIT = 15 << 20  # bytes of a shard, without its header


def shard_files(folder: Path, name: str) -> list[Path]:
    """The shards of a checkpoint, in order; none if it is not there."""
    numbered = re.compile(re.escape(name) + r"\.(\d+)\.safetensors")
    found = {int(match[1]): path for path in folder.glob("*.safetensors") if (match := numbered.fullmatch(path.name))}
    return [found[number] for number in sorted(found)]


def write_shards(state: dict[str, Any], folder: Path, name: str, facts: dict[str, Any]) -> list[Path]:
    """Write `NAME.0.safetensors`, ... into a folder, over an older checkpoint of the name.

    Args:
        state: of a checkpoint, see `Trainer.state`.
        folder, name: where to.
        facts: whatever a later run wants to know, in JSON.
    """
    tensors = {f"network.{key}": value.detach().float().cpu().contiguous() for key, value in state["network"].items()}
    for key, value in state["average"].items():
        tensors[f"average.{key}"] = (value.cpu() - tensors[f"network.{key}"]).half().contiguous()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if shards[-1] and size + value.nbytes > LIMIT:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    kept = {key: state[key] for key in ("format", "step", "first", "config")}
    header = {"checkpoint": json.dumps(kept | {"parts": len(shards), "facts": facts})}
    paths = [folder / f"{name}.{i}.safetensors" for i in range(len(shards))]
    for path, shard in zip(paths, shards, strict=True):
        write_atomic(path, save(shard, header))
    for path in set(shard_files(folder, name)) - set(paths):  # of the older one, which had more
        path.unlink()
    return paths


def read_shards(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint that a trainer resumes, and the facts that were written with it.

    Raises:
        WeightsError: files are missing, damaged, or of different steps.
    """
    tensors: dict[str, Tensor] = {}
    headers = []
    with readable(folder / name):
        for path in shard_files(folder, name):
            with safe_open(str(path), framework="pt") as file:
                headers.append(file.metadata()["checkpoint"])
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if not headers or len(set(headers)) > 1 or json.loads(headers[0])["parts"] != len(headers):
            raise WeightsError(f"the checkpoint {name} in {folder} lacks files, or they are of different steps")
        state = json.loads(headers[0])
        facts, _ = state.pop("facts"), state.pop("parts")
        split: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            split[kind][rest] = value
        split["average"] = {key: split["network"][key] + value.float() for key, value in split["average"].items()}
    return state | split, facts


def join_shards(folder: Path, name: str, checkpoint: Path) -> dict[str, Any]:
    """Write the checkpoint that shards are of; the facts that came with them. Raises as `read_shards`."""
    state, facts = read_shards(folder, name)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, checkpoint)
    return facts
