"""How many threads a codec uses when nobody says (the table in docs/guide/processes.md)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path

from dca_fast.errors import ConfigError

VARIABLES = ("DCA_THREADS", "OMP_NUM_THREADS")
MOST = 256  # more than that no coder uses


def check(threads: object, name: str = "threads") -> int:
    """The number, `MOST` for a larger one.

    Raises:
        ConfigError: not a whole number of at least 1.
    """
    if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {threads!r}")
    return min(int(threads), MOST)


def default_threads() -> int:
    """Threads of a codec of this process: the first of these that says something.

    DCA_THREADS; one in a daemonic worker of `multiprocessing` (`Pool`, PyTorch's `DataLoader`), whose siblings have the
    other cores; the first number of OMP_NUM_THREADS; the processors that this process may use, by its affinity and by
    the quota of its control groups.

    Raises:
        ConfigError: DCA_THREADS is no number of at least 1.
    """
    text = os.environ.get("DCA_THREADS", "").strip()
    if text:
        try:
            return check(int(text), "DCA_THREADS")
        except ValueError as error:
            raise ConfigError(f"DCA_THREADS must be a number of at least 1, got {text!r}") from error
    if multiprocessing.current_process().daemon:
        return 1
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdecimal() and int(first) >= 1:  # what else it holds, OpenMP ignores too
        return check(int(first), "OMP_NUM_THREADS")
    return usable_cpus()


def usable_cpus(root: Path = Path("/")) -> int:
    """Processors that this process may use, at least 1; `root` holds `proc` and `sys`."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13: affinity, and -X cpu_count
        cpus = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    for quota, period in _quotas(root):
        cpus = min(cpus, -(-quota // period))
    return max(cpus, 1)


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """CPU time and the period in which a control group of this process, or one above it, may use it."""
    for controllers, group in _groups(root):
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        for folder in (group, *group.parents):
            try:
                if controllers:  # version 1
                    values = [(mount / folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
                else:
                    values = (mount / folder / "cpu.max").read_text().split()
                quota, period = map(int, values)
            except (OSError, ValueError):  # no such file, or "max"
                continue
            if quota > 0 and period > 0:
                yield quota, period


def _groups(root: Path) -> list[tuple[str, Path]]:
    """Controllers, "" in version 2, and paths of the control groups that limit processors."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [(names, Path(path.lstrip("/"))) for _, names, path in entries if not names or "cpu" in names.split(",")]
