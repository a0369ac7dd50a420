"""A codec in other processes: pickled, forked, spawned; and how many threads it takes there."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from dca_fast import Codec, threads
from dca_fast.errors import ConfigError
from dca_fast.testing import photograph

PROGRAM = Path(__file__).with_name("process_work.py")
METHODS = [m for m in ("fork", "spawn", "forkserver") if m in multiprocessing.get_all_start_methods()]
CASES = list(itertools.product(["pool"], METHODS, ("used", "made", "child")))
CASES += itertools.product(["loader"] if find_spec("torch") else [], METHODS, ["used"])  # starts them as a pool does
HANG = 300  # seconds; the work takes a few


@pytest.mark.parametrize(("kind", "method", "made"), CASES, ids="-".join)
def test_workers_code_as_their_parent(kind: str, method: str, made: str) -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), kind, method, made]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("dump", [pickle.dumps, ForkingPickler.dumps], ids=["pickle", "ForkingPickler"])
def test_a_codec_is_pickled_as_its_arguments(dump: object, tmp_path: Path) -> None:
    image = photograph(40, 56)
    codec = Codec(threads=1, max_pixels=10_000)
    data = codec.encode(image)
    written = bytes(dump(codec))  # type: ignore[operator]
    assert len(written) < 2000
    again = pickle.loads(written)
    assert (repr(again), again.max_pixels) == (repr(codec), 10_000)
    assert again.encode(image) == data
    assert copy.deepcopy(codec).encode(image) == data
    assert copy.copy(codec).encode(image) == data


def test_own_weights_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dca_fast.network import models

    (tmp_path / "own.safetensors").write_bytes(models.named("dca-s").read_bytes())
    monkeypatch.chdir(tmp_path)
    written = pickle.dumps(Codec(weights="own.safetensors"))
    monkeypatch.chdir("/")
    assert pickle.loads(written).model_id == Codec().model_id


def test_errors_and_cloudpickle_carry_a_codec() -> None:
    cloudpickle = pytest.importorskip("cloudpickle", reason="an optional package of Ray, Dask and Spark")
    codec = Codec(threads=1)
    encode = cloudpickle.loads(cloudpickle.dumps(lambda image: codec.encode(image)))
    assert encode(np.zeros((8, 8, 3), np.uint8)) == codec.encode(np.zeros((8, 8, 3), np.uint8))


def test_threads_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """DCA_THREADS, a daemonic worker, OMP_NUM_THREADS, then the processors: the first that says something."""
    monkeypatch.setattr(threads, "usable_cpus", lambda: 12)
    monkeypatch.delenv("DCA_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.default_threads() == 12
    for text, expected in (("5,2", 5), ("3", 3), ("", 12), ("many", 12), ("0", 12)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert threads.default_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert threads.default_threads() == 1
    monkeypatch.setenv("DCA_THREADS", "7")
    assert threads.default_threads() == 7
    assert Codec().threads == 7
    assert Codec(threads=2).threads == 2
    for text in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("DCA_THREADS", text)
        with pytest.raises(ConfigError, match="DCA_THREADS"):
            threads.default_threads()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_quotas_of_control_groups_count(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("process_cpu_count", "cpu_count"):
        monkeypatch.setattr(os, name, lambda: 8, raising=False)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert threads.usable_cpus(tmp_path) == (expected or 8)
