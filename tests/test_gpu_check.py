"""benchmarks/gpu_check.sh without a GPU: what it runs, in which order, and what it says of failures."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.sh"
# Takes the place of Python: names a device, writes down every other call and whether kernels can be found, and fails as
# it is told.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
    *get_device_name*) echo "nvidia-test"; exit ;;
    *xdist*) exit 1 ;;
esac
found=$([[ -d dca_fast/kernels ]] && echo kernels)
echo "$found|${PYTHONPATH:-}|$*" >>"$CALLS"
[[ -z "$FAILS" || "$*" != *"$FAILS"* ]]
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(folder: Path, *arguments: str, fails: str = "") -> tuple[int, str, list[list[str]]]:
    """Exit code, what was printed, and the calls of Python as [kernels found, PYTHONPATH, arguments]."""
    for name in ("benchmarks", "dca_fast", "kernels"):
        (folder / name).mkdir()
    shutil.copy(SCRIPT, folder / "benchmarks")
    python, calls = folder / "python", folder / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "CALLS": str(calls), "FAILS": fails, "PYTHONPATH": ""}
    command = ["bash", "benchmarks/gpu_check.sh", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not (folder / "dca_fast" / "kernels").exists()  # it leaves the checkout as it was
    return done.returncode, done.stdout, [line.split("|", 2) for line in calls.read_text().splitlines()]


def test_everything_runs_in_a_bare_checkout(tmp_path: Path) -> None:
    code, printed, calls = run(tmp_path)
    assert code == 0
    results = tmp_path / "benchmarks" / "results" / "nvidia-test.json"
    assert f"all passed; figures in {results}" in printed
    build, native, *parts = calls
    assert build[2].startswith("setup.py")
    assert "backend='native'" in native[2].replace('"', "'")
    assert [part[2].split()[:3] for part in parts[:1]] == [["benchmarks/gpu.py", "--out", str(results)]]
    assert "pytest" in parts[1][2]
    assert "dca_fast.profile" in parts[2][2]
    assert all(found == "kernels" and path == str(tmp_path) for found, path, _ in calls[1:])


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path: Path) -> None:
    code, printed, calls = run(tmp_path, "out.json", "measurements", "profile", fails="gpu.py")
    assert code == 1
    assert "FAILED: measurements" in printed
    assert "dca_fast.profile" in calls[-1][2]
    assert f"--out {tmp_path / 'out.json'}" in calls[-2][2]


def test_nothing_runs_without_a_build(tmp_path: Path) -> None:
    code, printed, calls = run(tmp_path, fails="setup.py")
    assert code == 1
    assert "FAILED: build" in printed
    assert [call[2].split()[0] for call in calls] == ["setup.py"]
