"""Recording where time goes, what operations must compute and move, how fast this machine could do it.

Stages lie end to end along one run: entering one ends the one before, so every nanosecond belongs to exactly one.
Operations are spans inside them. Only time is taken while the codec runs; work is counted in a run of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np

from dca_fast.ops import Depthwise, Head, Linear, Ops, Params
from dca_fast.tensors import is_tensor

__all__ = [
    "Ceilings",
    "Clock",
    "EventClock",
    "Recorder",
    "Rounds",
    "Run",
    "Span",
    "WallClock",
    "Work",
    "measure_ceilings",
    "timed",
    "trace",
    "work_of",
]

# Operations that touch one channel group of an argument, and which argument that is.
_QUARTER = {"residuals": 0, "quadtree_gather": 0, "reconstruct": 4}
_GEMM = (4096, 512, 512)  # rows, inputs, outputs: operands stay in the cache, sums are long
_COPY_BYTES = 1 << 26  # of each thread; far above any cache
_TRIES = 3


@dataclass(frozen=True)
class Work:
    """What an operation cannot avoid.

    Args:
        macs8, macs16: multiply-accumulates with 8-bit and with 16-bit operands.
        bytes: of inputs, weights and outputs, each touched once.
        attention: those of `macs8` that are between data (scores, mixtures), not with weights.
    """

    macs8: int = 0
    macs16: int = 0
    bytes: int = 0
    attention: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.macs8 + self.macs16


@dataclass(frozen=True)
class Span:
    """An interval in nanoseconds of a clock; `stage` is the stage an operation ran in, "" for a stage."""

    name: str
    start: int
    end: int
    stage: str = ""

    @property
    def ms(self) -> float:
        """Milliseconds."""
        return (self.end - self.start) / 1e6


@dataclass(frozen=True)
class Run:
    """One recorded call; `work` has an entry for each operation if it was counted, else it is empty."""

    stages: list[Span] = field(default_factory=list)
    operations: list[Span] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    def counts(self) -> Iterator[tuple[Span, Work]]:
        """Operations of a counted run with their work."""
        return zip(self.operations, self.work, strict=True)


class Clock(Protocol):
    """Where a recorder takes time from."""

    def mark(self) -> int:
        """Note this moment; what it was is known after `read`."""

    def wait(self) -> None:
        """Until everything that was asked for is done."""

    def read(self) -> Callable[[int], int]:
        """Wait, and forget all marks; returns what turns them into nanoseconds of `time.perf_counter_ns`."""


class WallClock:
    """Time of this process, for work that is done when a call returns."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def wait(self) -> None:
        """There is nothing to wait for."""

    def read(self) -> Callable[[int], int]:
        return int  # marks are nanoseconds


class EventClock:
    """Time on a CUDA device: events in its current stream, read together, so that no mark waits for the device."""

    def __init__(self, device: Any) -> None:
        import torch.cuda

        self._cuda: Any = torch.cuda
        self._device, self._zero, self._used = device, 0, 0
        self._events: list[Any] = []  # used again and again: making one takes longer than recording it

    def mark(self) -> int:
        if not self._used:
            self._zero = time.perf_counter_ns()
        if self._used == len(self._events):
            self._events.append(self._cuda.Event(enable_timing=True))
        self._events[self._used].record(self._cuda.current_stream(self._device))
        self._used += 1
        return self._used - 1

    def wait(self) -> None:
        self._cuda.synchronize(self._device)

    def read(self) -> Callable[[int], int]:
        self.wait()
        ms = (self._events[0].elapsed_time(event) for event in self._events[1 : self._used])
        times = [self._zero, *(self._zero + round(1e6 * passed) for passed in ms)]
        self._used = 0
        return times.__getitem__


class Recorder:
    """Collects one `Run` after another, from one thread.

    Args:
        counting: count the work of operations, which takes time of its own.
        clock: default `WallClock`.
    """

    def __init__(self, counting: bool = False, clock: Clock | None = None) -> None:
        self.counting, self.stage, self.clock = counting, "", clock or WallClock()
        self._run, self._since = Run(), 0

    def enter(self, stage: str) -> None:
        """End the current stage and begin another; "" begins none."""
        now = self.clock.mark()
        if self.stage:
            self._run.stages.append(Span(self.stage, self._since, now))
        self.stage, self._since = stage, now

    def finish(self) -> Run:
        """End the current stage; returns everything since the last call."""
        self.enter("")
        run, self._run = self._run, Run()
        nanoseconds = self.clock.read()
        stages, operations = (
            [replace(span, start=nanoseconds(span.start), end=nanoseconds(span.end)) for span in spans]
            for spans in (run.stages, run.operations)
        )
        return Run(stages, operations, run.work)

    def staged(self, function: Callable[..., Any], stage: str, after: str) -> Callable[..., Any]:
        """`function` in `stage`, followed by `after`; "{}" in them stands for a first argument counted from 1."""

        def call(*arguments: Any) -> Any:
            number = arguments[0] + 1 if arguments and isinstance(arguments[0], int) else None
            self.enter(stage.format(number))
            result = function(*arguments)
            self.enter(after.format(number))
            return result

        return call

    def within(self, function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
        """`function` in a stage named after the one that calls it, with `new` for `old`; then that one goes on."""

        def call(*arguments: Any, **named: Any) -> Any:
            stage = self.stage
            self.enter(stage.replace(old, new))
            result = function(*arguments, **named)
            self.enter(stage)
            return result

        return call

    def operations(self, ops: Ops) -> Ops:
        """The same operations, each call a span."""
        names = [f.name for f in fields(ops) if f.name not in ("name", "arrays")]
        calls: dict[str, Any] = {name: self._operation(name, getattr(ops, name)) for name in names}
        return replace(ops, **calls)

    def _operation(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = self.clock.mark()
            result = function(*arguments)
            self._run.operations.append(Span(name, start, self.clock.mark(), self.stage))
            if self.counting:
                self._run.work.append(work_of(name, arguments, result))
            return result

        return call


def work_of(name: str, arguments: Sequence[Any], result: Any) -> Work:
    """What a call of the operation `name` with these arguments and this result must do."""
    leaves = list(_leaves([*arguments, result]))
    sizes = [t.nbytes for leaf in leaves for t in ([leaf] if _is_array(leaf) else leaf.tensors())]
    moved = sum(sizes) - (arguments[_QUARTER[name]].nbytes * 3 // 4 if name in _QUARTER else 0)
    x = arguments[0]
    attention = 2 * math.prod(x.shape) * _seen(name, arguments)
    sites, macs = math.prod(x.shape[:-1]), {1: attention, 2: 0}  # by bytes of a weight
    if name == "decoded_linear":
        sites = sites * arguments[4] // 4
    for layer in leaves:
        if not _is_array(layer):  # a head holds four layers, one of which serves a site
            macs[layer.w.itemsize] += sites * math.prod(layer.w.shape) // (4 if isinstance(layer, Head) else 1)
    return Work(macs[1], macs[2], moved, attention)


def _seen(name: str, arguments: Sequence[Any]) -> int:
    """Sites or tokens that each query of an attention sees."""
    if name == "window_attention":
        return int(arguments[4]) ** 2
    if name == "window_block":
        return int(arguments[1].window) ** 2
    return int(arguments[1].shape[1]) if name in ("token_attention", "token_block") else 0


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or is_tensor(value)


def _leaves(values: Sequence[Any]) -> Iterator[Any]:
    """Arrays and layers, also those inside of tuples and of the parameters of blocks."""
    for value in values:
        if _is_array(value) or isinstance(value, Linear | Depthwise | Head):
            yield value
        elif isinstance(value, Params):
            yield from _leaves(value.values())
        elif isinstance(value, tuple):
            yield from _leaves(value)


@dataclass(frozen=True)
class Ceilings:
    """The best rates seen on this machine, in this process.

    Args:
        macs8, macs16: multiply-accumulates per second of a large product with 8-bit and with 16-bit operands.
        bytes: read and written per second by copies of large arrays.
    """

    macs8: float
    macs16: float
    bytes: float

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each."""
        macs8, macs16 = max(self.macs8, other.macs8), max(self.macs16, other.macs16)
        return Ceilings(macs8, macs16, max(self.bytes, other.bytes))

    def compute_ms(self, work: Work) -> float:
        """Milliseconds that the products take at best."""
        return 1e3 * (work.macs8 / self.macs8 + work.macs16 / self.macs16)

    def memory_ms(self, work: Work) -> float:
        """Milliseconds that the traffic takes at best."""
        return 1e3 * work.bytes / self.bytes


def measure_ceilings(ops: Ops, threads: int) -> Ceilings:
    """Large products with the backend's own 1x1 layers, and NumPy copies in as many threads."""
    rows, k, o = _GEMM
    array, generator = ops.arrays("cpu").array, np.random.default_rng(0)
    b, m = array(np.zeros(o, np.int32)), array(np.full(o, 1 / 4096, np.float32))
    rates = []
    layers: list[tuple[Any, Callable[..., Any], tuple[Any, ...]]] = [
        (np.int8, ops.linear_act, (False,)),
        (np.int16, ops.wide_linear, ()),
    ]
    for dtype, layer, last in layers:
        p = Linear(array(generator.integers(-100, 101, (o, k), dtype)), b, m)
        x = array(generator.integers(-127, 128, (rows, k), dtype))
        layer(x[:1], p, *last)  # packs the weights
        rates.append(rows * k * o / _seconds(layer, x, p, *last))
    arrays = [(np.zeros(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _seconds(lambda: list(pool.map(lambda pair: np.copyto(*pair), arrays)))
    return Ceilings(rates[0], rates[1], 2 * threads * _COPY_BYTES / seconds)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    return min(timed(function, *arguments)[1] for _ in range(_TRIES)) / 1e3


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Result and milliseconds of one call."""
    start = time.perf_counter_ns()
    result = function(*arguments)
    return result, (time.perf_counter_ns() - start) / 1e6


@dataclass(frozen=True)
class Rounds:
    """Of one direction: its counted run; by round, milliseconds without and with recording, and the recorded run."""

    counted: Run
    plain: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)


def trace(runs: dict[str, Run]) -> dict[str, Any]:
    """Counted runs by name as a Chrome trace (chrome://tracing, ui.perfetto.dev): run, stages, operations, nested."""
    zero = min(run.stages[0].start for run in runs.values())

    def event(name: str, kind: str, start: int, end: int, arguments: dict[str, Any]) -> dict[str, Any]:
        timing = {"ph": "X", "pid": 1, "tid": 1, "ts": (start - zero) / 1e3, "dur": (end - start) / 1e3}
        return {"name": name, "cat": kind, **timing, "args": arguments}

    events = []
    for name, run in runs.items():
        events.append(event(name, "run", run.stages[0].start, run.stages[-1].end, {}))
        events += [event(s.name, "stage", s.start, s.end, {}) for s in run.stages]
        for s, work in run.counts():
            events.append(event(s.name, "operation", s.start, s.end, {"macs": work.macs, "bytes": work.bytes}))
    return {"displayTimeUnit": "ms", "traceEvents": events}
