"""What takes long to make is made once for all tests, also by processes that test side by side."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of this run that `make` fills."""
    base = factory.getbasetemp()
    one_of_several = base.name == f"popen-{os.environ.get('PYTEST_XDIST_WORKER')}"
    folder = (base.parent if one_of_several else base) / f"once-{name}"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done := folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
