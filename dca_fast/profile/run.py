"""Where the time, the work and the bits of a codec go: `python -m dca_fast.profile --resolution 4k`.

The codec itself runs, unchanged: a copy of it is given a program, operations and a coder that note when they are
called. Before anything is timed, that copy must give the same bytes and pixels as the codec.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import itertools
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dca_fast.cli import commands
from dca_fast.cli import parser as cli
from dca_fast.codec import Codec
from dca_fast.config import ALIGN, DEFAULT_AQ, DEFAULT_EFFORT, ORDER, PATCH, STEPS
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines.cpu import CpuEngine
from dca_fast.entropy.coder import Coder
from dca_fast.errors import InputError
from dca_fast.evaluation.measure import need
from dca_fast.evaluation.report import PLOT_FORMATS, environment
from dca_fast.files.atomic import write_atomic
from dca_fast.files.container import DEFAULT_MAX_PIXELS, MAX_SIDE, parse
from dca_fast.files.image_io import load_image
from dca_fast.network import walk
from dca_fast.network.program import Program
from dca_fast.profile.recorder import Ceilings, Clock, Recorder, Rounds, Run, WallClock, measure_ceilings, timed, trace
from dca_fast.profile.report import (
    advice,
    as_text,
    bit_facts,
    direction_facts,
    operation_facts,
    plot,
)
from dca_fast.tensors import is_tensor, need_torch
from dca_fast.testing import photograph

__all__ = ["instrument", "main", "profile", "synthetic"]

RESOLUTIONS = {"720p": (1280, 720), "1080p": (1920, 1080), "4k": (3840, 2160), "8k": (7680, 4320)}
TILE = 512, 768  # of a synthetic picture; drawn one by one, so that they do not show in the peak of memory
FIRST_STAGE = {"encode": "pad", "decode": "container"}
DIRECTIONS = tuple(FIRST_STAGE)
# Method of the program, its stage, and what comes after it.
STAGES = (
    ("analyse", "analysis", "hyper: operands"),
    ("hyper_analyse", "hyper: operands", "hyper: symbols"),
    *((f"_analyse_{name}", f"hyper: {name} analysis", "hyper: operands") for name in ORDER),
    ("hyper_features", "hyper: features", "step 1: parameters"),
    ("step_parameters", "step {}: parameters", "step {}: symbols"),
    ("synthesise", "synthesis", "crop"),
)
Pixels = npt.NDArray[np.uint8]
Input = tuple[tuple[Any, ...], dict[str, Any]]  # of a call
Part = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]  # values, rows
Tiles = deque[list[Any]]  # the parts of each


class _Cpu:
    """The CPU as the machine that a profile is of; `profile.cuda.Gpu` is the other one."""

    turns = 1  # of the codec as it is, in each round
    output = "numpy"

    def __init__(self, codec: Codec) -> None:
        self.tables, self._codec, self.clock = codec.tables, codec, WallClock()

    def picture(self, pixels: Pixels) -> Pixels:
        return pixels

    def memory(self, peak: bool) -> int | None:
        return memory(peak)

    def ceilings(self) -> Ceilings:
        return measure_ceilings(self._codec.engine.ops, self._codec.threads)


class _Coder:
    """A coder that notes its stages and keeps what it was given to encode."""

    def __init__(self, coder: Coder, recorder: Recorder, parts: Tiles) -> None:
        self._coder, self._recorder, self._parts = coder, recorder, parts

    def quantise(self, *arguments: Any) -> Any:
        return self._recorder.within(self._coder.quantise, "symbols", "trellis")(*arguments)

    def encode(self, parts: list[Part], **layout: Any) -> bytes:
        self._parts.append(parts)
        self._recorder.enter("coder")
        stream = self._coder.encode(parts, **layout)
        self._recorder.enter("container")
        return stream

    def decoder(self, stream: bytes) -> Any:
        opened = self._coder.decoder(stream)
        self._recorder.enter("hyper: symbols")
        decode = self._recorder.within(opened.decode, "symbols", "coder")
        return SimpleNamespace(decode=decode, finish=opened.finish)


def instrument(codec: Codec, recorder: Recorder, parts: Tiles) -> Codec:
    """A copy of the codec that tells `recorder` what it does.

    Args:
        codec: stays as it is.
        recorder: the caller enters the first stage before each call and finishes after it.
        parts: what is given to the coder goes in: of each tile, (values, rows) of each part.
    """

    def staged_program(program: Program) -> Program:
        twin = copy.copy(program)
        twin.ops = recorder.operations(twin.ops)
        for name, stage, after in STAGES:
            vars(twin)[name] = recorder.staged(getattr(twin, name), stage, after)
        return twin

    def staged_adjoint(adjoint: Adjoint) -> Adjoint:
        twin = copy.copy(adjoint)
        vars(twin)["_ops"] = recorder.operations(adjoint._ops)
        for name in ("missing", "slope", "moved"):
            vars(twin)[name] = recorder.staged(getattr(twin, name), "effort", "hyper: symbols")
        return twin

    fits = itertools.cycle(("effort", "container"))  # what follows that of the picture answered, and of the one coded

    def fitted(*arguments: Any) -> tuple[int, ...]:
        coefficients: tuple[int, ...] = recorder.staged(engine.fit, "restoration", next(fits))(*arguments)
        return coefficients

    twin = copy.copy(codec)
    engine: Any = codec.engine
    if isinstance(engine, CpuEngine):
        twin.engine = copy.copy(engine)
        coder, adjoint = _Coder(engine.coder, recorder, parts), staged_adjoint(engine.adjoint)
        program = lambda *at: staged_program(engine.program(*at))  # noqa: E731
        vars(twin.engine).update(fit=fitted, coder=coder, adjoint=adjoint, program=program)
    else:
        from dca_fast.profile import cuda

        twin.engine = cuda.follow(engine, staged_program, staged_adjoint, recorder, parts)
    vars(twin.engine)["restore"] = recorder.staged(engine.restore, "restoration", "crop")
    return twin


def profile(
    codec: Codec,
    pixels: Pixels,
    quality: float,
    repeat: int,
    effort: int = DEFAULT_EFFORT,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], dict[str, Run]]:
    """Time encode and decode of one picture, stage by stage.

    Args:
        codec: any.
        pixels: uint8 [H, W, 3].
        quality: 0..100.
        repeat: rounds; in each, ceilings, the codec as it is and the recorded one take turns.
        effort: of the encoder, 0 or 1.
        tell: told what is being done, before it takes long.

    Returns:
        Facts for `as_text` and JSON, and the last run of each direction with its work.
    """
    height, width = pixels.shape[:2]
    engine: Any = codec.engine
    machine: Any = _Cpu(codec)
    if engine.takes_tensors:
        from dca_fast.profile.cuda import Gpu

        machine = Gpu(engine)
    picture = machine.picture(pixels)
    used = {"before_bytes": machine.memory(peak=False)}
    size = f"{width} x {height}"
    compiling = "compiling what is new here, up to a minute; `python -m dca_fast.engines.ahead` does it beforehand"
    tell(f"preparing {size}: {compiling}" if engine.takes_tensors else f"coding {size} once")
    codec.warm_up(height, width, effort=effort)
    data = codec.encode(picture, quality, effort=effort)
    decoded = codec.decode(data, machine.output)
    used["peak_bytes"] = machine.memory(peak=True)  # before recording and ceilings take their own
    grids = [tile.grid for tile in walk.Grid.of(height, width).tiles()]
    parts: Tiles = deque(maxlen=len(grids))  # of the last picture
    tell("counting the work of each stage")
    recorder = Recorder(counting=True, clock=machine.clock)
    twin = instrument(codec, recorder, parts)
    inputs: dict[str, Input] = {
        "encode": ((picture, quality), {"effort": effort}),
        "decode": ((data, machine.output), {}),
    }
    counted = {direction: _record(twin, recorder, direction, inputs[direction]) for direction in DIRECTIONS}
    for (result, _, _), expected in zip(counted.values(), (data, decoded), strict=True):
        same = memoryview(_on_host(result)).tobytes() == memoryview(_on_host(expected)).tobytes()
        assert same, "recording changed a result"
    recorder.counting = False
    ceilings, measured = Ceilings(0, 0, 0), {direction: Rounds(counted[direction][2]) for direction in DIRECTIONS}
    for i in range(repeat):
        tell(f"timing, round {i + 1} of {repeat}")
        ceilings = ceilings.best(machine.ceilings())
        for direction, m in measured.items():
            m.plain.extend(_plain(codec, machine.clock, direction, inputs[direction]) for _ in range(machine.turns))
            _, total, run = _record(twin, recorder, direction, inputs[direction])
            m.total.append(total)
            m.runs.append(run)
    megapixels = height * width / 1e6
    facts: dict[str, Any] = {"ceilings": asdict(ceilings), "memory": used, "file_bytes": len(data)}
    if engine.takes_tensors:
        facts["graphs"] = engine.recorded(height, width, effort, parse(data).header.aq)
    hosted = [
        (named(codec, [(_on_host(values), _on_host(rows)) for values, rows in tile]), grid.groups)
        for tile, grid in zip(parts, grids, strict=True)
    ]
    facts["bits"] = bit_facts(hosted, len(codec.config.latents), machine.tables, len(data))
    facts |= {direction: direction_facts(m, megapixels, ceilings) for direction, m in measured.items()}
    facts["operations"] = operation_facts(list(measured.values()), ceilings)
    coded = sum(part["coded"] for part in facts["bits"])
    facts["next"] = {
        direction: advice(facts[direction], m.runs[-1], coded, engine.takes_tensors)
        for direction, m in measured.items()
    }
    return facts, {direction: replace(m.runs[-1], work=m.counted.work) for direction, m in measured.items()}


def named(codec: Codec, parts: list[Part]) -> dict[str, Part]:
    """What a stream holds by latent and step; the regional latent, the last one, may have several parts."""
    names = [f"z {name}" for name in ORDER if name in codec.config.latents]
    by_name = dict(zip(names[:-1], parts, strict=False))
    values, rows = zip(*parts[len(by_name) : -STEPS], strict=True)
    by_name[names[-1]] = np.concatenate(values), np.concatenate(rows)
    return by_name | {f"step {step + 1}": part for step, part in enumerate(parts[-STEPS:])}


def _record(twin: Codec, recorder: Recorder, direction: str, arguments: Input) -> tuple[Any, float, Run]:
    """Result, milliseconds around the whole call, and the run."""

    def call() -> Any:
        recorder.enter(FIRST_STAGE[direction])
        result = getattr(twin, direction)(*arguments[0], **arguments[1])
        recorder.enter("")
        recorder.clock.wait()
        return result

    result, ms = timed(call)
    return result, ms, recorder.finish()


def _plain(codec: Codec, clock: Clock, direction: str, arguments: Input) -> float:
    """Milliseconds of the codec as it is."""

    def call() -> None:
        getattr(codec, direction)(*arguments[0], **arguments[1])
        clock.wait()

    return timed(call)[1]


def _on_host(value: Any) -> Any:
    return value.cpu().numpy() if is_tensor(value) else value


def memory(peak: bool) -> int | None:
    """Bytes of this process in memory, now or at most so far; None where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(x.split()[1] for x in lines if x.startswith("VmHWM" if peak else "VmRSS")))
    with contextlib.suppress(ImportError):
        import resource  # its peak may be that of a parent process: only the second choice

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage * (1 if sys.platform == "darwin" else 1024)
    return None


def synthetic(height: int, width: int) -> Pixels:
    """A picture of many synthetic photographs, uint8 [height, width, 3]."""
    image = np.empty((height, width, 3), np.uint8)
    tiles = ((top, left) for top in range(0, height, TILE[0]) for left in range(0, width, TILE[1]))
    for seed, (top, left) in enumerate(tiles):
        tile = image[top : top + TILE[0], left : left + TILE[1]]
        tile[:] = photograph(tile.shape[0], tile.shape[1], seed)
    return image


def _setup(codec: Codec, image: Pixels, args: argparse.Namespace) -> dict[str, Any]:
    """What runs where."""
    height, width = image.shape[:2]
    padded = [-(-side // ALIGN) * ALIGN for side in (width, height)]
    specs = {name: importlib.util.find_spec(f"dca_fast.{name}") for name in ("_cpu", "_rans")}
    paths = {name: spec.origin if spec and spec.origin else "not built" for name, spec in specs.items()}
    isa, engine = {"operations": "Triton", "coder": "CUDA"}, cast(Any, codec.engine)
    if isinstance(engine, CpuEngine):
        isa = {"operations": "PyTorch", "coder": getattr(engine.coder, "isa", "Python")}
    if codec.backend == "native":
        from dca_fast.ops.native import isa as operations_isa

        isa["operations"] = operations_isa()
    facts = {
        **environment(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "loaded": {"dca_fast": str(Path(__file__).resolve().parents[1]), **paths},
        "backend": codec.backend,
        "isa": isa,
        "threads": codec.threads,
        "model": {"name": codec.config.name, "id": codec.model_id, "parameters": codec.parameters},
        "image": {"source": args.image or "synthetic", "size": [width, height], "padded": padded},
        "pixels": height * width,
        "quality": args.quality,
        "effort": args.effort,
        "aq_strength": DEFAULT_AQ,
        "repeat": args.repeat,
    }
    if isinstance(engine, CpuEngine):
        return facts
    from dca_fast.profile.cuda import described

    return described(facts, engine)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the profiler; arguments and exit codes are those of `dca-fast`."""
    args = make_parser().parse_args(argv)
    return cli.guarded(lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    if args.dry_run and (args.trace or args.plot):
        raise InputError("--dry-run times nothing: there is no --trace or --plot of it")
    if args.plot:
        need("matplotlib.figure")  # before minutes of work
        if args.plot.suffix not in PLOT_FORMATS:
            raise InputError(f"a plot is {', '.join(PLOT_FORMATS)}, not {args.plot.name}")
    commands.check_reports(args.json, args.trace, args.plot, force=args.force)
    codec = Codec(args.preset, weights=args.weights, device=args.device, backend=args.backend, threads=args.threads)
    if args.image:
        image = load_image(args.image, pixels_only=True).pixels
    else:
        height, width = args.resolution[::-1]
        image = np.broadcast_to(np.uint8(0), (height, width, 3)) if args.dry_run else synthetic(height, width)
    facts = _setup(codec, image, args)
    runs: dict[str, Run] = {}
    if args.dry_run:
        need_torch("--dry-run")  # it walks the float network
        from dca_fast.model.cost import macs_per_pixel

        pixels = facts["image"]["padded"][0] * facts["image"]["padded"][1]
        plan, c = macs_per_pixel(codec.config), codec.config
        if args.effort:  # c and f_s once more, and the linear part of f_s backwards
            plan["effort"] = plan["context"] + plan["synthesis"] + c.width * (3 * PATCH**2 / 64 + c.latent / 64)
            plan["encode"] += plan["effort"]
        facts["plan"] = {name: 2e-9 * macs * pixels for name, macs in plan.items()}
    else:
        measured, runs = profile(codec, image, args.quality, args.repeat, args.effort, commands.note)
        facts |= measured
    encoding = sys.stdout.encoding or "utf-8"
    print(as_text(facts).encode(encoding, "replace").decode(encoding))
    if args.json:
        write_atomic(args.json, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    if args.trace:
        write_atomic(args.trace, json.dumps(trace(runs)).encode())
    if args.plot:
        plot(facts, args.plot)
    return commands.OK


def make_parser() -> argparse.ArgumentParser:
    parser = cli.Parser("python -m dca_fast.profile", parents=[cli.model_options()], description=__doc__)
    picture = parser.add_mutually_exclusive_group()
    sizes = ", ".join(RESOLUTIONS)
    picture.add_argument(
        "--resolution", type=_size, default="1080p", metavar="SIZE", help=f"{sizes} or WIDTHxHEIGHT (default: 1080p)"
    )
    picture.add_argument("--image", type=cli.named, metavar="FILE", help="a picture instead of a synthetic one")
    parser.add_argument("-q", "--quality", type=cli.quality, default=60.0, help="0 to 100 (default: %(default)g)")
    default = "of the encoder (default: %(default)s)"
    parser.add_argument("-e", "--effort", type=int, choices=(0, 1), default=DEFAULT_EFFORT, help=default)
    parser.add_argument("--repeat", type=cli.count, default=3, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run; time nothing")
    parser.add_argument("--json", type=cli.path, metavar="FILE", help="write all facts")
    parser.add_argument("--trace", type=cli.path, metavar="FILE", help="write a trace for chrome://tracing or Perfetto")
    parser.add_argument("--plot", type=cli.path, metavar="FILE", help="draw the stages (.png, .svg, .pdf)")
    cli.add_force(parser)
    return parser


def _size(text: str) -> tuple[int, int]:
    """Width and height."""
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", text)
    if text not in RESOLUTIONS and match is None:
        raise argparse.ArgumentTypeError(f"must be {', '.join(RESOLUTIONS)} or WIDTHxHEIGHT, got {text!r}")
    width, height = RESOLUTIONS[text] if match is None else (int(match[1]), int(match[2]))
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= DEFAULT_MAX_PIXELS):
        raise argparse.ArgumentTypeError(f"1 to {MAX_SIDE} a side, {DEFAULT_MAX_PIXELS} pixels, got {text}")
    return width, height


if __name__ == "__main__":
    sys.exit(main())
