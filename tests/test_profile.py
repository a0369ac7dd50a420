"""The profiler: it changes nothing, loses no time and no bits, counts what the model costs, and refuses in one line."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dca_fast import Codec, backends
from dca_fast.config import STEPS
from dca_fast.engines.cuda import CudaEngine
from dca_fast.errors import BackendUnavailableError
from dca_fast.files import container
from dca_fast.model.cost import macs_per_pixel
from dca_fast.network.walk import Grid
from dca_fast.ops import Depthwise, Head, Linear, reference
from dca_fast.profile import cuda
from dca_fast.profile.recorder import Ceilings, EventClock, Recorder, Run, Span, Work, measure_ceilings, trace, work_of
from dca_fast.profile.report import advice, as_text, bit_facts
from dca_fast.profile.run import instrument, main, profile, synthetic
from tests import test_rans_device
from tests.recording_tools import tensors_in

SIDE = 256  # the side for which model.cost counts
OPTIONS = ["--resolution", "64x48", "--repeat", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec("dca-s", threads=1)


@pytest.fixture(scope="module")
def measured(codec: Codec) -> tuple[dict[str, Any], dict[str, Run]]:
    codec.engine.program(6000, 3)._silent = frozenset()  # what weights leave unused would be spared, and not counted
    return profile(codec, synthetic(SIDE, SIDE), 60, 3, effort=0)


def again(codec: Codec, parts: list[Any], height: int, width: int) -> bytes:
    """The stream of these parts of a picture."""
    return codec.engine.coder.encode(parts, groups=Grid.of(height, width).groups, plain=len(parts) - STEPS)


def test_recording_changes_neither_bytes_nor_the_codec(codec: Codec) -> None:
    image = synthetic(100, 140)
    data, parts, recorder = codec.encode(image, 30), deque(), Recorder()
    before = {**vars(codec)}, {**vars(codec.engine.program(3000, 3))}
    twin = instrument(codec, recorder, parts)
    assert twin.encode(image, 30) == data
    assert np.array_equal(twin.decode(data, "numpy"), codec.decode(data, "numpy"))
    assert ({**vars(codec)}, {**vars(codec.engine.program(3000, 3))}) == before
    assert again(codec, parts[-1], 100, 140) == container.parse(data).stream
    run = recorder.finish()
    assert run.stages
    assert not run.work


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_stages_add_up_to_the_whole(measured: tuple[dict[str, Any], dict[str, Run]], direction: str) -> None:
    facts, run = measured[0][direction], measured[1][direction]
    assert 0 <= facts["unaccounted"] < 0.15
    assert all(a.end == b.start for a, b in zip(run.stages, run.stages[1:], strict=False))
    assert all(0 <= s["operations_share"] <= 1.1 for s in facts["stages"] if s["calls"])
    names = [stage["name"] for stage in facts["stages"]]
    steps = [f"step {i}: {kind}" for i in (1, 2, 3, 4) for kind in ("parameters", "symbols")]
    assert [name for name in names if name in steps] == steps
    assert [f"step {i}: coder" in names for i in (1, 2, 3, 4)] == [direction == "decode"] * 4
    assert [f"step {i}: trellis" in names for i in (1, 2, 3, 4)] == [direction == "encode"] * 4
    assert set(names) >= ({"pad", "analysis", "coder"} if direction == "encode" else {"synthesis", "crop"})


def test_operations_are_those_of_the_model(codec: Codec, measured: tuple[dict[str, Any], dict[str, Run]]) -> None:
    """What ran, counted from tensors, against what the float model costs, counted from its layers."""
    cost = {name: macs * SIDE**2 for name, macs in macs_per_pixel(codec.config).items()}
    for direction, run in measured[1].items():
        products = [(s.stage, work.macs - work.attention) for s, work in run.counts()]
        assert sum(macs for _, macs in products) == pytest.approx(cost[direction], rel=1e-12)
        stages = ["analysis"] if direction == "encode" else ["synthesis"]
        for name in stages:
            assert sum(macs for stage, macs in products if stage == name) == cost[name]
        hyper = sum(macs for stage, macs in products if stage.endswith("analysis") and "hyper" in stage)
        assert hyper == (cost["hyper_analysis"] if direction == "encode" else 0)
        attention = sum(work.attention for _, work in run.counts())
        assert 0 < attention < 0.02 * cost[direction]


def test_effort_is_a_stage_of_its_own(codec: Codec) -> None:
    facts, runs = profile(codec, synthetic(SIDE, SIDE), 60, 1)
    assert {"effort", "synthesis"} <= {stage["name"] for stage in facts["encode"]["stages"]}
    step = [(span.name, work.macs16) for span, work in runs["encode"].counts() if span.stage == "effort"]
    c = codec.config
    assert sum(macs for _, macs in step) == SIDE**2 * (c.width * 3 * 64 / 64 + 4 * c.width * c.latent / 256)
    assert [name for name, _ in step] == [
        *("restore", "patches_from_image", "patches_from_image", "wide_linear", "space_to_depth2", "wide_linear"),
        *("operand16", "operand16", "add", "operand16", "add"),
    ]  # fmt: skip


def test_parts_are_those_of_all_tiles(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> list[dict[str, Any]]:
        return [
            part for part in profile(codec, synthetic(100, 300), 60, 1, effort=1)[0]["bits"] if "step" in part["name"]
        ]

    whole = steps()
    monkeypatch.setattr("dca_fast.network.walk.TILE", 4)
    tiled = steps()
    assert [part["positions"] for part in tiled] == [part["positions"] for part in whole]
    bits, expected = (sum(part["bits"] for part in parts) for parts in (tiled, whole))
    assert bits == pytest.approx(expected, rel=0.4)  # small tiles cost


def test_bits_of_the_parts_add_up_to_the_stream(codec: Codec, measured: tuple[dict[str, Any], dict[str, Run]]) -> None:
    facts = measured[0]
    data = codec.encode(synthetic(SIDE, SIDE), 60, effort=0)
    stream = 8 * len(container.parse(data).stream)
    *parts, rest = facts["bits"]
    assert [p["name"] for p in parts] == [
        *("z global", "z local", "z regional"), *(f"step {i}" for i in (1, 2, 3, 4)),
    ]  # fmt: skip
    assert sum(p["bits"] for p in parts) == pytest.approx(stream, rel=0.02)
    assert sum(p["bits"] for p in facts["bits"]) == pytest.approx(8 * len(data))
    assert rest["bits"] > 0
    assert all(0 <= p["coded"] <= p["positions"] for p in parts)


def test_bits_of_raw_and_escaped_values(codec: Codec) -> None:
    tables = codec.tables
    values, rows = np.array([0, 8000, 5, 100], np.int16), np.array([20, 20, 255, 127], np.uint8)

    def bits(row: int, bucket: int) -> float:
        return float(-np.log2(tables.freq[row, bucket] / 4096))

    shift = int(tables.shift[127])
    plain = bits(20, 127) + bits(20, 255) + 16 + shift + bits(127, (100 >> shift) + 127)
    # Each is the first of its chain, in state 0, whose values are even.
    shift = int(tables.shift[128 + 127])
    searched = bits(128 + 20, 127) + bits(128 + 20, 255) + 16 + shift + bits(128 + 127, (50 >> shift) + 127)
    facts = bit_facts([({"z": (values, rows), "y": (values, rows)}, 1)], 1, tables, 100)
    assert [part["bits"] for part in facts] == pytest.approx([plain, searched, 800 - plain - searched])
    assert [part["coded"] for part in facts] == [3, 3, 0]


def test_work_of_single_operations() -> None:
    x = torch.zeros(1, 4, 6, 8, dtype=torch.int8)
    linear = Linear(torch.zeros(16, 8, dtype=torch.int8), torch.zeros(16, dtype=torch.int32), torch.zeros(16))
    out = reference.linear_act(x, linear, False)
    assert work_of("linear_act", (x, linear, False), out) == Work(24 * 128, 0, 24 * 8 + 128 + 128 + 24 * 16)
    wide = Linear(linear.w.short(), linear.b, linear.m)
    assert work_of("wide_linear", (x.short(), wide), x.short()).macs16 == 24 * 128
    depth = Depthwise(torch.zeros(3, 3, 8, dtype=torch.int8), linear.b[:8], linear.m[:8])
    assert work_of("depthwise3x3", (x, depth), x).macs == 24 * 9 * 8
    group = torch.zeros(4, 2)
    head = Head(torch.zeros(4, 4, 8, dtype=torch.int8), torch.zeros(4, 4), group, group, group)
    assert work_of("head_params", (x, head, 0), (x, x)).macs == 24 * 4 * 8
    assert work_of("window_attention", (x, x, x, 2, 2, 0), x).macs == 24 * 2 * 4 * 8
    assert work_of("token_attention", (x.view(1, 24, 8), x.view(1, 24, 8)[:, :5]), x).macs == 24 * 2 * 5 * 8
    y, mean = torch.zeros(1, 4, 6, 8, dtype=torch.int16), torch.zeros(1, 4, 6, 2, dtype=torch.int32)
    assert work_of("residuals", (y, mean, torch.zeros(8), 0), mean).bytes == 24 * (2 * 2 + 2 * 4 + 2 * 4) + 32
    assert work_of("reconstruct", (y[..., :2], mean, torch.zeros(8), 0, y), None).bytes == 24 * (4 + 8 + 4) + 32


def test_ceilings_are_the_best_of_all_rounds() -> None:
    ceilings = measure_ceilings(reference.OPS, 1)
    assert min(asdict(ceilings).values()) > 1e6
    assert Ceilings(1, 5, 3).best(Ceilings(2, 4, 3)) == Ceilings(2, 5, 3)
    ceilings = Ceilings(4e3, 2e3, 1e3)
    assert ceilings.compute_ms(Work(4, 2, 9)) == 2
    assert ceilings.memory_ms(Work(4, 2, 9)) == 9


@pytest.mark.parametrize(
    ("name", "compute", "memory", "inside", "bound"),
    [
        ("analysis", 0.8, 0.2, 0.9, "compute"),
        ("analysis", 0.2, 0.8, 0.9, "memory"),
        ("analysis", 0.2, 0.2, 0.9, "kernel"),
        ("analysis", 0.8, 0.2, 0.3, "overhead"),
        ("step 2: parameters", 0.8, 0.2, 0.9, "compute"),
        ("step 2: coder", 0, 0, 0, "coder"),
        ("step 2: trellis", 0, 0, 0, "coder"),
    ],
)
def test_advice(name: str, compute: float, memory: float, inside: float, bound: str) -> None:
    shares = {"compute_share": compute, "memory_share": memory, "operations_share": inside, "calls": 3}
    direction = {"ms": 80, "stages": [{"name": name, "ms": 60, **shares}, {"name": "crop", "ms": 20, **shares}]}
    run = Run(operations=[Span("gated_ffn", 0, 9, name), Span("add", 10, 12, name), Span("copy", 0, 90, "crop")])
    facts = advice(direction, run, 10**6)
    assert facts["bound"] == bound
    assert facts["share"] == 0.75
    assert ("gated_ffn" in facts["text"]) == (bound in ("compute", "memory", "kernel"))


def test_trace_events_nest(measured: tuple[dict[str, Any], dict[str, Run]]) -> None:
    events = json.loads(json.dumps(trace(measured[1])))["traceEvents"]
    levels = {kind: [e for e in events if e["cat"] == kind] for kind in ("run", "stage", "operation")}
    assert [e["name"] for e in levels["run"]] == ["encode", "decode"]
    assert all(e["ph"] == "X" and e["dur"] >= 0 for e in events)
    for inner, outer in (("stage", "run"), ("operation", "stage")):
        for e in levels[inner]:
            around = [
                o for o in levels[outer] if o["ts"] <= e["ts"] and e["ts"] + e["dur"] <= o["ts"] + o["dur"] + 1e-3
            ]
            assert around, e
    assert sum(e["args"]["macs"] for e in levels["operation"]) > 0


def test_the_command_from_another_folder(tmp_path: Path) -> None:
    outputs = ["--json", "facts.json", "--trace", "trace.json"]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "dca_fast.profile", *OPTIONS, *outputs]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True, env=env)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert {"machine", "versions", "loaded", "backend", "isa", "threads", "load"} <= set(facts)
    assert {"ceilings", "memory", "encode", "decode", "bits", "operations", "next"} <= set(facts)
    assert {"image", "pixels", "model", "quality", "repeat", "file_bytes"} <= set(facts)
    assert facts["image"]["size"] == [64, 48]
    assert facts["image"]["padded"] == [64, 64]
    assert facts["memory"]["before_bytes"] <= facts["memory"]["peak_bytes"] < 4 << 30
    assert done.stdout == as_text(facts) + "\n"
    assert done.stderr.splitlines() == [
        "coding 64 x 48 once",
        "counting the work of each stage",
        "timing, round 1 of 1",
    ]
    lines = done.stdout.splitlines()
    paths = tuple(facts["loaded"].values())
    assert not [line for line in lines if len(line) > 100 and not line.endswith(paths)]
    assert {"encode", "decode", "bits", "operations,"} <= {line.split()[0] for line in lines if line}
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_dry_run_times_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a dry run must not encode")

    monkeypatch.setattr(Codec, "encode", refuse)
    monkeypatch.setattr("dca_fast.profile.run.measure_ceilings", refuse)
    target = tmp_path / "plan.json"
    assert main(["--dry-run", "--resolution", "4k", "--json", str(target)]) == 0
    facts = json.loads(target.read_text())
    assert facts["plan"]["decode"] == pytest.approx(2e-9 * 3840 * 2176 * macs_per_pixel(Codec().config)["decode"])
    text = capsys.readouterr().out
    assert "3840 x 2176" in text
    assert "synthesis" in text
    assert "encode" not in facts


def test_pictures_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(synthetic(40, 70)).save(tmp_path / "a.png")
    arguments = ["--image", str(tmp_path / "a.png"), "--repeat", "1", "--plot", str(tmp_path / "p.svg")]
    assert main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["image"]["size"] == [70, 40]
    assert "synthesis" in (tmp_path / "p.svg").read_text() or "<svg" in (tmp_path / "p.svg").read_text()
    for mine in ("--json", "--trace", "--plot"):
        assert main(["--dry-run" if mine == "--json" else "--repeat=1", mine, str(tmp_path / "p.svg")]) == 2
        assert "p.svg exists; --force replaces it" in capsys.readouterr().err


def test_without_matplotlib_the_plot_is_refused_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*OPTIONS, "--plot", "p.png"]) == 4
    message = capsys.readouterr().err
    assert "dca-fast[eval]" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resolution", "5k"],
        ["--resolution", "0x9"],
        ["--resolution", "70000x1"],
        ["--resolution", "60000x60000"],
        ["--repeat", "0"],
        ["--quality", "101"],
        ["--threads", "none"],
        ["--backend", "fpga"],
        ["--image", "missing.png"],
        ["--image", "missing.png", "--resolution", "4k"],
        ["--plot", "p.gif"],
        ["--json", "missing/facts.json"],
        ["--dry-run", "--trace", "t.json"],
        ["surprise"],
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: Any = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith("dca-fast: error: ")
    assert output.err.count("\n") == 1


def test_a_device_is_the_codecs_own_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        Codec(device="tpu")
    assert main([*OPTIONS, "--device", "tpu"]) == 4
    assert str(caught.value) in capsys.readouterr().err


def test_synthetic_pictures_are_tiled_and_repeatable() -> None:
    image = synthetic(520, 800)
    assert image.shape == (520, 800, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, synthetic(520, 800))
    assert not np.array_equal(image[:8, :32], image[512:, :32])


# On a GPU, or here with one that is imitated: the coder runs in its emulation, events are those of this process, and
# a recorded graph runs its functions again.

emulated_library, emulation = test_rans_device.emulated_library, test_rans_device.emulation


class Event:
    """An event that is over when it is recorded."""

    created = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        type(self).created += 1

    def record(self, stream: str) -> None:
        assert stream == "current"
        self.ns = time.perf_counter_ns()

    def elapsed_time(self, end: "Event") -> float:
        return (end.ns - self.ns) / 1e6


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Imitated events; a list that grows whenever the device is waited for."""
    waits: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append("wait"))
    return waits


def recorded(function: Callable[[], Any]) -> tuple[Any, Any]:
    """Instead of a graph: `replay` runs the function and puts what it gives into the outputs of the first run."""
    out = function()

    def replay() -> None:
        for old, new in zip(tensors_in(out), tensors_in(function()), strict=True):
            old.copy_(new)

    return SimpleNamespace(replay=replay), out


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, events: list[str], emulation: None) -> None:
    """`Codec(device="cuda")` works on an imitated device."""
    operations = replace(reference.OPS, name="cuda")  # it packs nothing: graphs follow the quality
    properties = SimpleNamespace(name="Imitation", major=9, minor=0, multi_processor_count=3, total_memory=5 << 30)
    monkeypatch.setattr("dca_fast.codec.resolve", lambda backend, device: operations)
    monkeypatch.setattr("dca_fast.engines.cuda.record", recorded)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 20)
    monkeypatch.setattr(cuda, "_DRIVER", (sys.executable, "-c", "print('580.1')"))
    monkeypatch.setattr(cuda, "_GEMM", 64)
    monkeypatch.setattr(cuda, "_COPY_BYTES", 1 << 16)


def test_a_device_is_timed_with_few_events_and_one_wait(events: list[str]) -> None:
    recorder, before = Recorder(clock=EventClock(torch.device("cpu"))), Event.created
    runs = []
    for _ in range(2):
        recorder.enter("a")
        recorder.staged(time.sleep, "b", "a")(0.002)
        runs.append(recorder.finish())
    assert len(events) == 2
    assert Event.created - before == 4
    first, second = runs
    assert [span.name for span in first.stages] == ["a", "b", "a"]
    assert all(a.end == b.start for a, b in zip(first.stages, first.stages[1:], strict=False))
    assert 2 <= first.stages[1].ms <= (first.stages[-1].end - first.stages[0].start) / 1e6
    assert first.stages[-1].end <= second.stages[0].start <= time.perf_counter_ns()


@test_rans_device.needs_gcc
@pytest.mark.usefixtures("gpu")
def test_following_a_device_changes_neither_bytes_nor_the_codec(codec: Codec) -> None:
    device, image = Codec(device="cuda"), synthetic(70, 100)
    assert isinstance(device.engine, CudaEngine)
    device.warm_up(70, 100)
    data = codec.encode(image, 30)
    for level in (0, 2):  # the latter leaves the device alone
        assert device.encode(image, 30, effort=level) == codec.encode(image, 30, effort=level)
    for size in ((60, 41), (62, 45)) * 3:  # the same sites, other pixels beyond the edge
        other = synthetic(*size)
        for level in (0, 1):
            assert device.encode(other, 50, effort=level) == codec.encode(other, 50, effort=level)
    with torch.inference_mode():
        device.warm_up(64, 100)
    assert device.encode(image[:64], 40) == codec.encode(image[:64], 40)
    before, recorded = {**vars(device.engine)}, set(device.engine._seen)
    parts: deque[list[Any]] = deque()
    recorder = Recorder(clock=EventClock(torch.device("cpu")))
    twin = instrument(device, recorder, parts)
    assert device.encode(image, 30) == twin.encode(image, 30) == data
    assert np.array_equal(twin.decode(data, "numpy"), codec.decode(data, "numpy"))
    assert (vars(device.engine), set(device.engine._seen)) == (before, recorded)
    assert again(codec, [(v.numpy(), r.numpy()) for v, r in parts[-1]], 70, 100) == container.parse(data).stream
    assert recorder.finish().stages


@test_rans_device.needs_gcc
@pytest.mark.usefixtures("gpu")
def test_the_command_on_a_device(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outputs = [arg for kind in ("json", "trace") for arg in (f"--{kind}", str(tmp_path / kind))]
    assert main(["--device", "cuda", *OPTIONS, *outputs, "--plot", str(tmp_path / "p.svg")]) == 0
    facts, text = json.loads((tmp_path / "json").read_text()), capsys.readouterr().out
    assert text == as_text(facts) + "\n"
    assert facts["device"]["name"] == "Imitation"
    assert facts["device"]["driver"] == "580.1"
    assert {"cuda", "triton", "torch"} <= set(facts["versions"])
    assert facts["graphs"]
    assert facts["memory"] == {"before_bytes": 1 << 20, "peak_bytes": 3 << 20}
    assert facts["ceilings"]["macs8"] == 4 * facts["ceilings"]["macs16"] > 0
    for direction, first, last in (("encode", "pad", "container"), ("decode", "container", "restoration")):
        names = [stage["name"] for stage in facts[direction]["stages"]]
        assert (names[0], names[-1]) == (first, last)
        assert [f"step {i}: coder" in names for i in (1, 2, 3, 4)] == [direction == "decode"] * 4
        assert [f"step {i}: trellis" in names for i in (1, 2, 3, 4)] == [direction == "encode"] * 4
        assert {f"step {i}: {kind}" for i in (1, 2, 3, 4) for kind in ("parameters", "symbols")} <= set(names)
        assert 0 <= facts[direction]["unaccounted"] < 1
    assert sum(part["bits"] for part in facts["bits"]) == pytest.approx(8 * facts["file_bytes"])
    lines = text.splitlines()
    paths = tuple(facts["loaded"].values())
    assert not [line for line in lines if len(line) > 100 and not line.endswith(paths)]
    assert lines[1].startswith("device     Imitation, sm_90, 3 multiprocessors, 5 GiB, driver 580.1")
    assert sum("replaying its graph" in line for line in lines) == 2
    assert any("launch by launch" in line for line in lines)
    kinds = {event["cat"] for event in json.loads((tmp_path / "trace").read_text())["traceEvents"]}
    assert kinds == {"run", "stage", "operation"}
    assert (tmp_path / "p.svg").stat().st_size


@test_rans_device.needs_gcc
@pytest.mark.usefixtures("gpu")
def test_a_size_without_a_graph_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dca_fast.engines.cuda.LARGEST_GRAPH", 0)
    assert main(["--device", "cuda", *OPTIONS]) == 0
    text = capsys.readouterr().out
    assert text.count("without a graph of this size") == 2
    assert "replaying its graph" not in text
    assert main(["--device", "cuda", *OPTIONS, "--dry-run"]) == 0
    assert "Imitation" in capsys.readouterr().out


def test_without_a_device_nothing_is_done(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("there is no device to make a picture for")

    monkeypatch.setitem(backends._STATES, "cuda", lambda: (False, "the reason"))
    monkeypatch.setattr("dca_fast.profile.run.synthetic", refuse)
    assert main([*OPTIONS, "--device", "cuda"]) == 4
    output = capsys.readouterr()
    assert not output.out
    assert output.err == "dca-fast: error: backend 'cuda' cannot run here: the reason\n"


@pytest.mark.gpu
def test_the_command_on_a_real_device(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--device", "cuda", "--resolution", "720p", "--json", str(tmp_path / "json")]) == 0
    facts, text = json.loads((tmp_path / "json").read_text()), capsys.readouterr().out
    assert text == as_text(facts) + "\n"
    assert facts["graphs"]
    assert facts["memory"]["before_bytes"] < facts["memory"]["peak_bytes"] < facts["device"]["memory_bytes"]
    for direction in ("encode", "decode"):
        assert abs(facts[direction]["unaccounted"]) < 0.2
        assert all(0 <= stage["operations_share"] <= 1.1 for stage in facts[direction]["stages"])
