"""The harnesses of tests/fuzz, with sanitizers: hostile bytes against parsers and coders, and threads that share."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.decoder_library import ROOT, WEIGHTS, build, can_build
from tests.fuzz import run as fuzz

pytestmark = [pytest.mark.slow, can_build]


@pytest.fixture(scope="module")
def folder() -> Path:
    return fuzz.built()


@pytest.mark.parametrize("harness", fuzz.HARNESSES)
def test_nothing_is_found(harness: str, folder: Path, tmp_path: Path) -> None:
    """With all seeds and some mutations of them; `python -m tests.fuzz.run` goes on for longer."""
    wanted = len(fuzz.seeds(harness, folder / "small.safetensors")) + 50
    found = fuzz.run(harness, folder, tmp_path, runs=wanted, seed=7)
    assert found.ok, found.output[-6000:]
    assert found.executions >= wanted


def test_a_fault_ends_a_harness(folder: Path, tmp_path: Path) -> None:
    """Here weights that are none; what is reported is not that all is well."""
    (tmp_path / "weights").write_bytes(bytes(100))
    environment = os.environ | {"DCA_WEIGHTS": str(tmp_path / "weights")}
    done = subprocess.run([folder / "decoder_fuzz", "-runs=1"], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode != 0


def test_threads_do_not_race() -> None:
    options = ("-DDCA_FUZZ=ON", "-DDCA_SANITIZERS=thread", "-DDCA_EXAMPLES=OFF")
    program = build("threads", *options) / "threads"
    small = [path for path in sorted((ROOT / "tests" / "golden").glob("*.dca")) if path.stat().st_size < 20000]
    done = subprocess.run([program, WEIGHTS, "2", *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{8 * len(small)} pictures, 0 wrong\n")
    assert done.stdout.endswith("rounds of the coders, 0 wrong\n")
