"""For every test: the same random numbers, poisoned uninitialised memory, and the rule for GPU tests."""

import importlib.util
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

# Before PyTorch starts its threads: two thread pools that spin on few cores slow each other down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # the others have the other cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

HERE = Path(__file__).resolve().parent
# Modules of tests, and of the package, that an installation without PyTorch cannot import.
NEED_TORCH = re.compile(
    r"^(import torch|from torch|from tests\.(bridge|kernel_tools|recording_tools|test_)"
    r"|from dca_fast\.(model|train|engines\.(cuda|graphs)|profile\.cuda|ops\.reference|evaluation\.peers)"
    r"|from dca_fast\.(ops|evaluation|profile) import .*(reference|peers|cuda))",
    re.M,
)
OF_THE_REPOSITORY = {"test_packaging.py", "test_tables_readme.py"}  # want build and matplotlib
collect_ignore = [
    path.name
    for path in ([] if torch else sorted(HERE.glob("test_*.py")))
    if path.name in OF_THE_REPOSITORY or NEED_TORCH.search(path.read_text("utf-8"))
]


def pytest_report_header() -> str | None:
    """What is left out."""
    left = len(collect_ignore)
    return f"without PyTorch: {left} files of tests need more and are left out" if left else None


if torch and not torch.cuda.is_available() and not {"DCA_COMPILE_ONLY", "TRITON_INTERPRET"} & os.environ.keys():
    # Triton's own functions are made for the compiler or for its interpreter when Triton is imported, by whatever test
    # comes first: here the kernels run in the interpreter (kernel_tools.py).
    os.environ["TRITON_INTERPRET"] = "1"
    with suppress(ImportError):
        import triton.language  # noqa: F401
    del os.environ["TRITON_INTERPRET"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests where there is no device, unless DCA_REQUIRE_GPU says that there must be one."""
    if item.get_closest_marker("gpu") is None:
        return
    if torch and torch.cuda.is_available():
        return
    if os.environ.get("DCA_REQUIRE_GPU") == "1":
        pytest.fail("DCA_REQUIRE_GPU=1, but PyTorch sees no CUDA device")
    pytest.skip("PyTorch sees no CUDA device")


@pytest.fixture(scope="session")
def benchmark_script() -> Callable[[str], ModuleType]:
    """What imports a script of benchmarks/ by its name."""

    def load(name: str) -> ModuleType:
        script = Path(__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"dca_fast_benchmark_{name}", script)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Start every test from the same random state and restore the old one, whatever order tests run in."""
    torch: Any = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state() if torch else None
    random.seed(0)
    np.random.seed(0)
    if torch:
        torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    if torch:
        torch.set_rng_state(torch_state)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill `torch.empty` and `torch.empty_like` with NaN or the largest integer: unwritten outputs fail."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return

    def poison(make: Callable[..., Any]) -> Callable[..., Any]:
        def poisoned(*args: Any, **kwargs: Any) -> Any:
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point() or tensor.is_complex():
                value: float = float("nan")
            else:
                value = True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
            with torch.no_grad():
                return tensor.fill_(value)

        return poisoned

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
