"""For every benchmark: helpers beside it, one OpenMP policy, a compact JSON, the names of what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch: its idle threads must not take the others' cores
os.environ["GOMP_SPINCOUNT"] = "20000"  # for long, see test_bench_codec.py
sys.path.insert(0, str(Path(__file__).parent))  # for `pictures` and `rivals`, in every import mode

import pytest

from dca_fast.evaluation.report import environment

KEPT = ("median", "min", "iqr", "rounds")  # of what pytest-benchmark knows about a row
LEFT_OUT: dict[str, str] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Remember why a row is missing."""
    report = (yield).get_result()
    if report.skipped and isinstance(report.longrepr, tuple):
        LEFT_OUT[item.name] = report.longrepr[2].removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the rows that are missing."""
    if LEFT_OUT:
        terminalreporter.section("left out")
        for name, reason in LEFT_OUT.items():
            terminalreporter.line(f"{name}: {reason}")


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """One row for each benchmark, in seconds, without the raw samples; and what was left out."""
    rows = [
        {"group": b["group"], "name": b["param"], **{key: b["stats"][key] for key in KEPT}, **b["extra_info"]}
        for b in output_json["benchmarks"]
    ]
    output_json.clear()
    output_json.update(**environment(), rows=rows, left_out=LEFT_OUT)
