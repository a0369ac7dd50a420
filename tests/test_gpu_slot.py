"""benchmarks/gpu_slot.sh without a GPU: a rehearsal of two slots, and what it says of parts that fail."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dca_fast import Codec
from dca_fast.errors import InputError, WeightsError
from dca_fast.ops import reference
from dca_fast.testing import photograph
from dca_fast.train.export import load_float
from dca_fast.train.pack import write_pack
from dca_fast.train.sharded import join_shards, read_shards, shard_files
from tests import kernel_tools, test_rans_device
from tests.recording_tools import recorded

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("benchmarks", "checkpoints", "csrc", "dca_fast", "kernels", "setup.py", "pyproject.toml")
TRAINING = ["--batch", "1", "--crop", "64", "--threads", "1", "--rate", "1e-3"]
START = "checkpoints/dca-s.safetensors"
QUEUE = [
    {"name": "broken", "start": START, "arguments": ["--parts", "nothing"]},
    {"name": "short", "start": START, "minutes": 0.02, "arguments": TRAINING},
    {"name": "long", "start": START, "minutes": 60, "arguments": TRAINING},
]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this one, to which nothing happens."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def slot(checkout: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHON": sys.executable, "DCA_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = ["bash", "benchmarks/gpu_slot.sh", *arguments]
    environment |= variables
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert not (checkout / "dca_fast" / "kernels").exists()  # it leaves the checkout as it was
    return done.returncode, done.stdout


@pytest.mark.slow
def test_two_slots_are_rehearsed(checkout: Path, tmp_path: Path) -> None:
    photographs, first, second = tmp_path / "photographs", tmp_path / "first", tmp_path / "second"
    photographs.mkdir()
    for i in range(3):
        Image.fromarray(photograph(320, 384, i)).save(photographs / f"{i}.png")
    write_pack(photographs, checkout / "pack.crops", 1 << 20, side=256)
    (tmp_path / "queue.json").write_text(json.dumps(QUEUE))

    code, printed = slot(checkout, str(first), "5", "exactness", "figures")
    assert code == 0, printed
    code, printed = slot(checkout, str(first), "1.1", "train", DCA_QUEUE=str(tmp_path / "queue.json"))
    assert (first / "slot.log").read_text() == printed
    assert code == 1
    assert "FAILED: broken" in printed
    assert "parts must be among" in printed
    assert printed.splitlines()[-1] == "FAILED: train"
    facts = json.loads((first / "gpu.json").read_text())
    assert facts["exactness"]["comparisons"] > 0
    assert facts["exactness"]["different"] == facts["left out"] == []
    assert facts["exactness"]["different at once"] == 0
    assert not facts["errors"]
    assert facts["images"][0]["decode"]["ms"] > 0
    files = {path.name for path in first.iterdir()}
    shards = {path.name for path in shard_files(first, "long")}
    assert files == {"gpu.json", "slot.log", "training.jsonl", "short.safetensors"} | shards
    assert len(shards) == 3
    assert all(path.stat().st_size < 16 << 20 for path in first.iterdir())
    start, short = load_float(ROOT / START), load_float(first / "short.safetensors")
    assert any(not p.equal(start.get_parameter(name)) for name, p in short.named_parameters())

    code, printed = slot(
        checkout, str(second), "0.7", "train", DCA_QUEUE=str(tmp_path / "queue.json"), DCA_RESUME=str(first)
    )
    assert "short: is over" in printed
    state, facts = read_shards(first, "long")
    again, more = read_shards(second, "long")
    assert again["step"] > state["step"]
    assert more["minutes"] > facts["minutes"] > 0
    assert f"long: from step {state['step']}, " in printed
    lines = [json.loads(line) for line in (second / "training.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == {"long"}
    assert lines[-1]["step"] == again["step"]
    # What export and the trainer take.
    join_shards(second, "long", tmp_path / "joined" / "checkpoint.pt")
    joined = load_float(tmp_path / "joined" / "checkpoint.pt")
    for name, value in joined.state_dict().items():
        assert torch.allclose(value, again["average"][name])


def test_a_checkpoint_with_files_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="lacks files"):
        read_shards(tmp_path, "nothing")
    (tmp_path / "bad.0.safetensors").write_bytes(np.arange(9).tobytes())
    with pytest.raises(WeightsError, match="cannot be read"):
        read_shards(tmp_path, "bad")


def test_what_fails_without_a_fault_is_tried_again(
    benchmark_script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, calls = benchmark_script("train_queue"), []

    class Replaced(BaseException):
        """Stands for the process that is no more."""

    def execute(program: str, arguments: list[str]) -> None:
        calls.append(arguments[2:])
        raise Replaced

    def run(error: Exception, *arguments: str) -> int:
        def train(*_: object) -> None:
            raise error

        monkeypatch.setattr(queue, "train", train)
        monkeypatch.setattr(sys, "argv", ["train_queue.py", *given, *arguments])
        return int(queue.main())

    monkeypatch.setattr(os, "execv", execute)
    (tmp_path / "queue.json").write_text(json.dumps(QUEUE))
    given = ["--data", "x", "--out", str(tmp_path), "--until", str(time.time() + 99)]
    given += ["--queue", str(tmp_path / "queue.json")]
    for tried in range(2):
        with pytest.raises(Replaced):
            run(RuntimeError("CUDA error"), *([f"--careful={tried}"] if tried else []))
        assert calls[-1] == [*given, f"--careful={tried + 1}"]
    assert run(RuntimeError("CUDA error"), "--careful=2") == 1
    assert run(WeightsError("of another configuration")) == 1
    assert len(calls) == 2
    args = queue.argparse.Namespace(data=Path("x"), device="cuda", careful=2)
    found = queue.arguments_of(QUEUE[1], args, tmp_path)
    assert (found.fused, found.record, found.batch) == (False, False, 1)
    with pytest.raises(InputError, match="--minutes of x are not"):
        queue.arguments_of({"name": "x", "arguments": ["--minutes=3"]}, args, tmp_path)


emulated_library, emulation = test_rans_device.emulated_library, test_rans_device.emulation


@test_rans_device.needs_gcc
@pytest.mark.usefixtures("emulation")
def test_figures_of_a_device_run_on_an_imitated_one(
    benchmark_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that breaks on a real device costs minutes of it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kernel_tools.kernels("ops")
    gpu = benchmark_script("gpu")
    operations = replace(reference.OPS, name="cuda")
    monkeypatch.setattr("dca_fast.codec.resolve", lambda backend, device: operations)
    monkeypatch.setattr("dca_fast.engines.cuda.record", recorded)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(gpu, "OPS", operations)
    event = SimpleNamespace(elapsed_time=lambda end: 1.0)
    monkeypatch.setattr(gpu, "timed", lambda function: (event, function()))
    monkeypatch.setattr(gpu, "SIZES", {"a": (64, 96)})
    monkeypatch.setattr(gpu, "SPEED_TURNS", 2)
    monkeypatch.setattr(gpu, "SEARCH_TURNS", 2)
    codec, image = Codec(device="cuda"), photograph(64, 96, 3)
    calls = gpu.collect(codec, image)
    assert {"block", "gated_ffn", "wide_linear", "restore", "reconstruct"} <= {key.split()[0] for key in calls}
    some = {key: call for key, call in calls.items() if key.split()[0] in ("add", "operand8")}
    rows = gpu.kernels(some, {"int8_macs": 1e12, "bytes": 1e12})
    assert rows
    assert all(row["equal"] and row["share_of_roof"] > 0 for row in rows)
    times = gpu.coder_times(codec, image)
    assert {"coder_decode_ms", "coder_encode_ms", "coder_search_ms", "lanes", "groups"} == set(times)
    (row,) = gpu.whole_images(codec, gpu.SIZES, gpu.Clock(0))
    assert row["decode"]["ms"] > 0
    assert row["coder_decode_ms"] == 1.0
    # The emulation takes one thread at a time.
    monkeypatch.setattr(gpu, "ThreadPoolExecutor", lambda workers: ThreadPoolExecutor(1))
    exact = gpu.exactness(Codec(), codec, [image], gpu.Clock(0.5))
    assert exact["comparisons"] > 0
    assert exact["different"] == []
    assert exact["different at once"] == 0
    assert exact["different in batches"] == 0
    assert exact["in batches"] > 0
    monkeypatch.setattr(torch, "randint", partial(_on_host, torch.randint))
    assert gpu.integer_transforms(codec)[0]["analysis_ms"] == 1.0


def _on_host(make: Callable[..., torch.Tensor], *arguments: Any, device: str, **options: Any) -> torch.Tensor:
    return make(*arguments, **options)


# Takes the place of Python: writes every call down, and fails as it is told.
STAND_IN = """#!/usr/bin/env bash
[[ "$*" == "-c import dca_fast._cpu"* && -n "$BUILT" ]] && exit
echo "$([[ -d dca_fast/kernels ]] && echo kernels)|$PYTHONPATH|$*" >>"$CALLS"
[[ -z "$FAILS" || "$*" != *"$FAILS"* ]]
"""


def called(folder: Path, *parts: str, fails: str = "", built: str = "yes") -> tuple[int, str, list[str]]:
    """Exit code, what was printed, and the calls of Python; a slot of two minutes."""
    for name in ("benchmarks", "dca_fast", "kernels"):
        (folder / name).mkdir(exist_ok=True)
    shutil.copy(ROOT / "benchmarks" / "gpu_slot.sh", folder / "benchmarks")
    python, calls = folder / "python", folder / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    calls.write_text("")
    variables = {"PYTHON": str(python), "CALLS": str(calls), "FAILS": fails, "BUILT": built, "DCA_DEVICE": "cuda"}
    code, printed = slot(folder, str(folder / "out"), "2", *parts, **variables)
    lines = [line.split("|", 2) for line in calls.read_text().splitlines()]
    assert all(found == "kernels" and path.startswith(str(folder)) for found, path, _ in lines)
    return code, printed, [line for *_, line in lines]


def test_parts_run_in_order_and_failures_are_named(tmp_path: Path) -> None:
    code, printed, (measure, train) = called(tmp_path)
    assert code == 0
    assert "all done" in printed
    assert measure.startswith("benchmarks/gpu.py --device cuda")
    assert measure.endswith("--exactness 60 --figures 90")
    assert train.startswith("benchmarks/train_queue.py")
    code, printed, (measure, train) = called(tmp_path, fails="gpu.py")
    assert code == 1
    assert "FAILED: measure" in printed
    code, printed, calls = called(tmp_path, "exactness", "tests", fails="--maxfail")
    assert "FAILED: tests" in printed
    assert calls[0].endswith("--exactness 60 --figures 0")
    assert "test_conformance.py::test_a_gpu_returns_the_pixels" in calls[-1]
    code, printed, calls = called(tmp_path, "soak")
    assert (code, len(calls)) == (0, 1)
    assert calls[0].startswith("benchmarks/measure/soak.py --device cuda --minutes 1.6")


def test_objects_are_built_unless_they_are_there(tmp_path: Path) -> None:
    _, printed, calls = called(tmp_path, "exactness", built="", fails="_cpu")
    assert calls[1].startswith("setup.py --quiet build_ext --inplace")
    assert "gpu.py" in calls[2]
    assert "== build" in printed
