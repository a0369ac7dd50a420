"""Tools of the kernel tests: kernels on a GPU or in the interpreter, guarded memory, compilation without a GPU.

    from tests.kernel_tools import kernels, same      # before anything imports triton
    same(kernels("pointwise").add, reference.add, x, y)

Without a CUDA device the kernels run in Triton's interpreter on CPU tensors: exact integers, but slow (milliseconds
for each program instance). `compiled` compiles what a function launches, with the real compiler, in a process of its
own, and reports what the machine code holds.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dca_fast.ops import Depthwise, Linear

ROOT = Path(__file__).resolve().parents[1]
TRIAL = "DCA_COMPILE_ONLY"  # set in the process that only compiles
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes of shared memory that one block may have
TABLE = torch.tensor([round(127 * math.exp(-i / 16)) for i in range(256)], dtype=torch.uint8)
EXTREME_M = [0.0, -0.0, 1e-45, 1e-38, 2.0**-31, 2.0**-16, 0.25, 0.5, -0.5, 1.0, 1e9, -1e30, 3e38]
# For `pytestmark`: the interpreter is NumPy, which warns of products that are infinite, as they may be, and of how
# older versions of the interpreter read the bounds of a loop.
INFINITE_PRODUCTS = pytest.mark.filterwarnings(
    "ignore:overflow encountered in multiply:RuntimeWarning",
    "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning",
)
GUARD = 256  # elements before and after each tensor


@contextmanager
def interpreter() -> Iterator[None]:
    """Kernels defined or imported inside run in the interpreter, unless there is a GPU or they are only compiled.

    It leaves no trace in the environment, which other tests pass on to their processes.
    """
    if os.environ.get("DCA_REQUIRE_GPU") == "1" and DEVICE == "cpu":
        raise RuntimeError("DCA_REQUIRE_GPU=1, but PyTorch sees no CUDA device")
    before = os.environ.get("TRITON_INTERPRET")
    if DEVICE == "cpu" and TRIAL not in os.environ:
        os.environ["TRITON_INTERPRET"] = "1"
        with suppress(ImportError):  # Triton loads it at the first launch, and then asks the environment again
            importlib.import_module("triton.experimental.gluon")
    try:
        yield
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def kernels(name: str) -> ModuleType:
    """Import `dca_fast.kernels.<name>` for this device."""
    with interpreter():
        return importlib.import_module(f"dca_fast.kernels.{name}")


# Random operands.


def int8(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def int16(*shape: int, limit: int = 32767) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, dtype=torch.int16)


def int32(*shape: int, limit: int = 1 << 20) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, dtype=torch.int32)


def multipliers(*shape: int, reach: float) -> Tensor:
    """Multipliers of both signs that take a sum of deviation `reach` beyond and below the output range."""
    return torch.randn(shape) / reach


def linear(o: int, k: int, reach: float = 100.0) -> Linear:
    return Linear(int8(o, k), int32(o, limit=5000), multipliers(o, reach=5000 * math.sqrt(k) / reach))


def wide(o: int, k: int) -> Linear:
    limit = min(32767, (1 << 31) // (32768 * k) - 40)
    acc = limit * 20000 * math.sqrt(k) / 3
    return Linear(int16(o, k, limit=limit), int32(o), multipliers(o, reach=acc / 20000))


def depthwise(c: int) -> Depthwise:
    return Depthwise(int8(3, 3, c), int32(c, limit=5000), multipliers(c, reach=200))


# Guarded memory.


def _extremes(dtype: torch.dtype) -> tuple[float, float]:
    """Two values that no kernel writes into a guard by chance."""
    if dtype.is_floating_point:
        return math.nan, -1.0
    return torch.iinfo(dtype).max - 1, 85


class Guarded:
    """A contiguous tensor inside a larger one whose margins must keep their values."""

    def __init__(self, shape: Any, dtype: torch.dtype, device: Any) -> None:
        count = math.prod(shape)
        filler, self._margin = _extremes(dtype)
        self._whole = torch.full((count + 2 * GUARD,), self._margin, dtype=dtype, device=device)
        self.tensor = self._whole[GUARD : GUARD + count].view(shape)
        self.tensor.fill_(filler)
        self._count = count

    def check(self) -> None:
        assert (self._whole[:GUARD] == self._margin).all(), "wrote before the start of a tensor"
        assert (self._whole[GUARD + self._count :] == self._margin).all(), "wrote past the end of a tensor"


@contextmanager
def guarded_allocations() -> Iterator[list[Guarded]]:
    """`torch.empty` and `torch.empty_like` give canaries between margins; leaving checks the margins."""
    made: list[Guarded] = []

    def empty(*shape: Any, dtype: torch.dtype = torch.float32, device: Any = None, **_: Any) -> Tensor:
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        made.append(Guarded(tuple(sizes), dtype, device))
        return made[-1].tensor

    def empty_like(x: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return empty(*x.shape, dtype=dtype or x.dtype, device=x.device)

    before = torch.empty, torch.empty_like
    torch.empty, torch.empty_like = empty, empty_like  # type: ignore[assignment]
    try:
        yield made
    finally:
        torch.empty, torch.empty_like = before
    for item in made:
        item.check()


def moved(value: Any, made: list[Guarded]) -> Any:
    """`value` with every tensor copied into guarded memory of the test device."""
    if isinstance(value, Tensor):
        made.append(Guarded(tuple(value.shape), value.dtype, DEVICE))
        made[-1].tensor.copy_(value)
        return made[-1].tensor
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(moved(getattr(value, f.name), made) for f in fields(value) if f.init))
    if isinstance(value, tuple):
        items = [moved(item, made) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in an argument list, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        return [t for f in fields(value) if f.init for t in tensors(getattr(value, f.name))]
    return [t for item in value for t in tensors(item)] if isinstance(value, tuple | list) else []


def same(kernel: Callable[..., Any], reference: Callable[..., Any], *args: Any) -> None:
    """Asserts that a kernel returns the bits of the reference, leaves every argument as the reference does, and
    writes nowhere else."""
    expected_args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
    expected = reference(*expected_args)
    made: list[Guarded] = []
    args = moved(tuple(args), made)
    with guarded_allocations():
        have = kernel(*args)
    for item in made:
        item.check()
    name = getattr(kernel, "__name__", "kernel")
    for want, got in zip(tensors(expected), tensors(have), strict=True):
        assert (got.dtype, got.shape, got.is_contiguous()) == (want.dtype, want.shape, True), name
        assert torch.equal(want, got.cpu()), name
    for want, got in zip(tensors(expected_args), tensors(args), strict=True):
        assert torch.equal(want, got.cpu()), f"{name} changed an argument"


# Compilation without a GPU.


def compiled(module: str, function: str, architecture: int) -> list[dict[str, Any]]:
    """What the launches of `function` of a test module compile to.

    Args:
        module: for example "tests.test_kernels_gemm". It is imported in a process without interpreter and GPU.
        function: calls kernels with CPU tensors of real shapes and types, which get the tile sizes of the architecture;
            nothing is computed.
        architecture: compute capability times ten.

    Returns:
        One record for each launch: "kernel", "tensor_core" (an s8 matrix instruction is in the PTX), "fma" (a fused
        multiply-add of floats is), "local" (bytes of stack and spilled registers), "registers", "shared" (bytes),
        "instructions" (of the machine code), "loop" (those of its longest loop), "warps".
    """
    command = [sys.executable, "-m", "tests.kernel_tools", module, function, str(architecture)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {TRIAL: "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    records: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert records, "nothing was launched"
    return records


def check_compiled(record: dict[str, Any], architecture: int, tensor_core: bool) -> None:
    """Asserts what holds for every kernel: exact floats, no spills, room in shared memory, matrix instructions."""
    assert not record["fma"], record
    assert record["local"] == 0, record
    assert record["shared"] <= SHARED_LIMIT[architecture], record
    assert record["tensor_core"] is tensor_core, record


def _describe(kernel: Any) -> dict[str, Any]:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    path = next(p for p in kernel.metadata_group.values() if str(p).endswith(".cubin"))

    def dumped(what: str) -> str:
        return subprocess.run([tool, what, path], capture_output=True, text=True, check=True).stdout

    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", dumped("--dump-resource-usage"))}
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", dumped("-sass"))]
    size = code[1][0] - code[0][0]  # bytes of an instruction
    jumps = [(at, int(to, 16)) for at, text in code for to in re.findall(r"\bBRA\b.*0x([0-9a-f]+)", text)]
    ptx = kernel.asm["ptx"]
    return {
        "kernel": kernel.metadata.name,
        "tensor_core": bool(re.search(r"(mma|wgmma)\S*\.s8\.s8|tcgen05\.mma\S*kind::i8", ptx)),
        "fma": bool(re.search(r"\bfma\.\S*f(16|32|64)", ptx)),
        "local": found["STACK"] + found["LOCAL"],
        "registers": found["REG"],
        "shared": kernel.metadata.shared,
        "instructions": len(code),
        # A branch to itself, behind the end, is none.
        "loop": max((1 + (at - to) // size for at, to in jumps if to < at), default=0),
        "warps": kernel.metadata.num_warps,
    }


def _compile_launches(module: str, function: str, architecture: int) -> list[dict[str, Any]]:
    from dca_fast.engines.ahead import compiling_only

    with compiling_only(architecture) as seen:
        getattr(importlib.import_module(module), function)()
    return [_describe(kernel) for kernel in seen.values()]


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_compile_launches(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
