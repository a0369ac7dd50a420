"""Single operations and one quadtree step at the sizes of a picture: native, reference, and what others would run.

    pytest benchmarks/test_bench_stages.py --benchmark-only

Inputs are those of the codec itself: one encode is recorded, and a call of each operation kept. Native and reference
must give the same bits, and rivals (`rival_ops.py`) what ours means, before any is timed.
`python -m dca_fast.profile` times operations inside of the codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from pictures import pictures
from rival_ops import Attention, DepthBlock, Gaussian
from torch import Tensor

from dca_fast import Codec
from dca_fast.backends import available
from dca_fast.config import RINGS
from dca_fast.encoder import restoration_fit
from dca_fast.entropy.tables import SKIP_ROW
from dca_fast.network.program import QUALITY_ONE, Program, ProgramSet
from dca_fast.network.walk import Grid, Quantiser
from dca_fast.ops import Ops
from dca_fast.profile.recorder import Recorder, work_of
from dca_fast.profile.run import instrument
from tests.bridge import ops_on_tensors, to_tensors

WIDTH, HEIGHT, QUALITY = 1280, 704, 60.0  # sides are multiples of 64
THREADS = 1
STEP = 2  # of 0..3: one that reads what is decoded so far
BACKENDS = ("native", "reference")
OPERATIONS = (
    "window_block",
    "token_block",
    "token_attention",
    "head_params",
    "residuals",
    "block",
    "gated_ffn",
    "wide_linear",
    "decoded_linear",
)
FILTER = ("restore", "restore_sums")  # behind the networks


@dataclass
class Call:
    """A call of an operation, on tensors, and its work."""

    arguments: tuple[Any, ...]
    macs: int
    bytes: int

    def results(self, ops: Ops, name: str) -> list[Tensor]:
        """What the operation gives, as a list of tensors."""
        result = getattr(ops, name)(*self.arguments)
        return list(result) if isinstance(result, tuple) else [result]


class Keeping(Recorder):
    """Keeps the largest call of each operation, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}

    def operations(self, ops: Ops) -> Ops:
        """The same operations; each keeps its arguments."""

        def keeping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                result = function(*arguments)
                work = work_of(name, arguments, result)
                if name not in self.calls or work.bytes > self.calls[name].bytes:
                    self.calls[name] = Call(to_tensors(arguments), work.macs, work.bytes)
                return result

            return call

        kept = {name: keeping(name, getattr(ops, name)) for name in OPERATIONS}
        return type(ops)(**{**vars(ops), **kept})


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    if not available()["native"][0]:
        pytest.skip(available()["native"][1])
    codec, keeping = Codec(backend="native", threads=THREADS), Keeping()
    codec.engine.program(round(QUALITY_ONE * QUALITY))._silent = frozenset()  # also what these weights leave unused
    image = pictures(WIDTH, HEIGHT)[0]
    data = instrument(codec, keeping, []).encode(image, QUALITY, effort=0, aq_strength=0)
    assert set(keeping.calls) == set(OPERATIONS)
    picture, ops, arrays = codec.decode(data, "numpy"), codec.engine.ops, codec.engine.arrays
    coefficients = restoration_fit.fit(ops, arrays, picture, image, 1.0)
    assert len(coefficients) == 18 * len(RINGS)  # all rings pay where errors are dear
    arguments: dict[str, tuple[Any, ...]] = {
        "restore": (picture, restoration_fit.as_array(arrays, coefficients)),
        "restore_sums": (picture, image, WIDTH * HEIGHT // restoration_fit.SAMPLES),
    }
    for name in FILTER:
        work = work_of(name, arguments[name], getattr(ops, name)(*arguments[name]))
        keeping.calls[name] = Call(to_tensors(arguments[name]), work.macs, work.bytes)
    return keeping.calls


def ops_of(backend: str) -> Ops:
    from dca_fast.ops import native, reference

    native.set_threads(THREADS)
    return reference.OPS if backend == "reference" else ops_on_tensors(native.OPS, reference.OPS)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and x.equal(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*OPERATIONS, *FILTER])
def test_operation(name: str, backend: str, calls: dict[str, Call], benchmark: Any) -> None:
    call = calls[name]
    assert same(call.results(ops_of("native"), name), call.results(ops_of("reference"), name))
    benchmark.group = f"operation: {name}, {WIDTH}x{HEIGHT}"
    benchmark.extra_info.update(threads=THREADS, macs=call.macs, bytes=call.bytes)
    benchmark.pedantic(getattr(ops_of(backend), name), call.arguments, rounds=5, warmup_rounds=1)
    if benchmark.stats and call.macs:
        benchmark.extra_info["gop_per_s"] = 2e-9 * call.macs / benchmark.stats["median"]


def timed_row(benchmark: Any, group: str, function: Callable[..., Any], *arguments: Any) -> None:
    """A row of `group`; one thread."""
    torch.set_num_threads(THREADS)
    benchmark.group = f"{group}, {WIDTH}x{HEIGHT}"
    benchmark.extra_info.update(threads=THREADS)
    benchmark.pedantic(function, arguments, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("name", ["native", "reference", "SDPA fp32", "FlexAttention fp32"])
def test_window_attention(name: str, calls: dict[str, Call], benchmark: Any) -> None:
    """Without the projections around it, which `window_block` has."""
    if name == "FlexAttention fp32" and not torch.cuda.is_available():
        pytest.skip("FlexAttention: PyTorch sees no CUDA device")
    x, p = calls["window_block"].arguments
    operand = ops_of("native").linear_act(ops_of("native").operand8(x, p.m_in), p.qkv, False)
    q, k, v = (third.contiguous() for third in operand.chunk(3, -1))
    arguments = (q, k, v, p.heads, p.window, p.shift, p.m, p.bias, p.table)
    ours = [ops_of(backend).window_attention(*arguments) for backend in BACKENDS]
    assert same(ours[:1], ours[1:])
    if name in BACKENDS:
        timed_row(benchmark, "window attention", ops_of(name).window_attention, *arguments)
        return
    rival = Attention(name.startswith("Flex"), *arguments)
    rival.check(ours[0])
    timed_row(benchmark, "window attention", synchronised(rival))


def synchronised(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Waits for the device, if there is one."""

    def call() -> Tensor:
        result = function()
        if result.is_cuda:
            torch.cuda.synchronize()
        return result

    return call


@pytest.mark.parametrize("name", [*BACKENDS, "CompressAI"])
def test_gaussian(name: str, calls: dict[str, Call], benchmark: Any) -> None:
    """From the context's last feature to the rows that choose the tables, and to residuals; CompressAI rounds them."""
    t, head, step, skip, valid = calls["head_params"].arguments
    y, _, gain, same_step, _ = calls["residuals"].arguments
    assert step == same_step

    def run(ops: Ops) -> list[Tensor]:
        mean, rows = ops.head_params(t, head, step, skip, valid)
        return [mean, rows, ops.residuals(y, mean, gain, step)]

    ours = run(ops_of("native"))
    assert same(ours, run(ops_of("reference")))
    if name in BACKENDS:
        timed_row(benchmark, "Gaussian rows and residuals", run, ops_of(name))
        return
    rival = Gaussian(t, head, step, y, gain)
    rival.check(ours[2], ours[1] != SKIP_ROW)
    timed_row(benchmark, "Gaussian rows and residuals", rival)


@pytest.mark.parametrize("name", [*BACKENDS, "fp32", "fp32, torch.compile"])
def test_depth_block(name: str, calls: dict[str, Call], benchmark: Any) -> None:
    x, p, _ = calls["block"].arguments
    ours = [ops_of(backend).depth_block(x, p) for backend in BACKENDS]
    assert same(ours[:1], ours[1:])
    if name in BACKENDS:
        timed_row(benchmark, "depthwise block", ops_of(name).depth_block, x, p)
        return
    rival = DepthBlock(torch.from_numpy(pictures(WIDTH, HEIGHT)[0])[None], name != "fp32")
    assert rival.x.shape[1:] == x.shape[1:]
    rival.check()
    timed_row(benchmark, "depthwise block", rival)


def encode_step(
    program: Program, quantise: Quantiser, step: int, y: Tensor, y_hat: Tensor, features: dict[str, Tensor]
) -> list[Tensor]:
    """One quadtree step of the encoder but for the coder; writes into y_hat."""
    mean, rows = program.step_parameters(step, y_hat, features, (y.shape[1], y.shape[2]))
    values = quantise(program.ops.residuals(y, mean, program.gain, step), rows)
    program.ops.reconstruct(values, mean, program.inverse, step, y_hat)
    return [mean, rows, values]


Step = Callable[[], list[Tensor]]


@pytest.fixture(scope="module")
def steps() -> dict[str, Step]:
    """By backend: step `STEP` after the ones before it; gives all it computes. The search of the trellis is native."""
    if not available()["native"][0]:
        pytest.skip(available()["native"][1])
    codec = Codec(backend="native", threads=THREADS)
    programs = (ProgramSet(codec.engine.weights, ops_of(name)) for name in BACKENDS)
    native, reference = (each.at(round(QUALITY_ONE * QUALITY)) for each in programs)
    search = codec.engine.quantiser(Grid.of(HEIGHT, WIDTH).groups)

    def quantise(residuals: Tensor, rows: Tensor) -> Tensor:
        return torch.from_numpy(search(residuals.numpy(), rows.numpy()))

    y = native.analyse(torch.from_numpy(pictures(WIDTH, HEIGHT)[0])[None])
    features = native.hyper_features(native.hyper_analyse(y))
    before = torch.zeros_like(y)
    for step in range(STEP):
        encode_step(native, quantise, step, y, before, features)

    def run(program: Program) -> list[Tensor]:
        y_hat = before.clone()
        return [*encode_step(program, quantise, STEP, y, y_hat, features), y_hat]

    return {"native": partial(run, native), "reference": partial(run, reference)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_step(backend: str, steps: dict[str, Step], benchmark: Any) -> None:
    assert same(steps["native"](), steps["reference"]())
    timed_row(benchmark, f"quadtree step {STEP + 1}", steps[backend])
