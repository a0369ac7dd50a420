"""What there is to measure on a CUDA device: exactness, whole images, the coder, kernels, within given times.

    python benchmarks/gpu.py --out benchmarks/results/DEVICE.json [--exactness SECONDS] [--figures SECONDS] [--images N]

Exactness: files and pixels of the device against those of the CPU and back, launch by launch, recorded and replayed,
and from two streams at once. Figures: whole images and the coder; the trainer; every operation of an encode and a
decode at 4K against the reference operations on the same device (eager PyTorch) and against the roofline measured in
the same run (a large int8 product and a large copy); the float network. Times are medians of device events, or of
synchronised calls for whole images. What comes first matters most: when its time is over nothing further is begun, and
what was left out is named under "left out". The file is written after every section; one that fails leaves its
traceback under "errors", and the others run all the same. With `--device cpu` tiny pictures go through what needs no
device: a rehearsal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from pictures import pictures, source
from torch import Tensor

from dca_fast import Codec
from dca_fast.backends import resolve
from dca_fast.codec import _aq
from dca_fast.config import DEFAULT_AQ, TRELLIS_STEP, preset
from dca_fast.encoder import restoration_fit
from dca_fast.encoder.effort import Step, step_multipliers, worth
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines.cpu import CpuEngine
from dca_fast.engines.cuda import CudaEngine, _analyse, _synthesise
from dca_fast.evaluation.report import environment
from dca_fast.kernels.ops import OPS
from dca_fast.model.network import Network
from dca_fast.network import models, walk, weights
from dca_fast.network.program import ProgramSet
from dca_fast.ops import Ops, reference
from dca_fast.ops.reference import TorchArrays
from dca_fast.profile.recorder import work_of
from dca_fast.testing import photograph
from dca_fast.threads import default_threads
from dca_fast.train.data import Images
from dca_fast.train.export import load_float
from dca_fast.train.trainer import Recipe, Trainer

SIZES = {"768x512": (512, 768), "1080p": (1080, 1920), "4k": (2160, 3840)}
EXACT_SIZES = ((512, 768), (257, 321), (1, 17))
REHEARSAL = {"96x64": (64, 96)}
QUALITIES = (60, 0, 10, 30, 50, 70, 90, 100)
EFFORTS = (0, 1)  # with graphs; `SEARCHED` goes launch by launch
SEARCHED = 4
QUALITY = 60.0
CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "dca-s.safetensors"
BATCH = 64
SPEED_TURNS, SEARCH_TURNS = 30, 5
HEAD_START = 4_000_000  # clock cycles, some 2 ms
MAX_REFERENCE_MACS = 1 << 36  # float64 products of the reference above this would take the whole run


class Clock:
    """How much of a time is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], Any]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Events before and after what `function` launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)  # while it waits, all is launched: else launches would be what is timed
    start.record()
    function()
    end.record()
    return start, end


def median_ms(function: Callable[[], Any], repeat: int = 20) -> float:
    """Milliseconds on the device, median of `repeat` after three warm-up calls."""
    for _ in range(3):
        function()
    events = [timed(function) for _ in range(repeat)]
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def call_ms(function: Callable[[], Any], repeat: int = SPEED_TURNS) -> dict[str, float]:
    """Milliseconds of whole synchronised calls: median and half the range between the quartiles."""
    for _ in range(4):
        function()
    times = []
    for _ in range(repeat):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": middle, "spread_ms": (high - low) / 2}


def exactness(cpu: Codec, gpu: Codec, images: list[np.ndarray], clock: Clock) -> dict[str, Any]:
    """Files encoded on the device against those of the CPU, and each decoded on the other."""
    compared, different, cases = 0, [], []
    for index, image in enumerate(images):
        searched = [(QUALITY, SEARCHED)] if index == 0 else []  # the CPU takes long for it
        cases += [(index, image, *case) for case in [*itertools.product(QUALITIES, EFFORTS), *searched]]
    cases.sort(key=lambda case: QUALITIES.index(round(case[2])))  # all sizes at one quality, then the next
    done = 0
    for index, image, quality, effort in cases:
        if clock.left() < 0:
            break
        data = cpu.encode(image, quality, effort=effort)
        pixels = cpu.decode(data, "numpy")
        for turn in range(3):  # launch by launch, recorded and replayed the first time; replayed from then on
            compared += 2
            what = f"{image.shape[1]}x{image.shape[0]} ({index}) quality {quality} effort {effort} turn {turn}"
            if gpu.encode(image, quality, effort=effort) != data:
                different.append(f"encode {what}")
            if not np.array_equal(gpu.decode(data, "numpy"), pixels):
                different.append(f"decode {what}")
        done += 1
    facts = {"comparisons": compared, "different": different, "cases": done, "cases left out": len(cases) - done}
    return facts | at_once(cpu, gpu, images[:2]) | in_batches(cpu, gpu, images[:2])


def at_once(cpu: Codec, gpu: Codec, images: list[np.ndarray], turns: int = 8) -> dict[str, Any]:
    """Two streams encode and decode at the same time: of one size, so that they share graphs, and of two."""
    expected = [cpu.encode(image, QUALITY, effort=0) for image in images]
    pixels = [cpu.decode(data, "numpy") for data in expected]

    def both(i: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext():
            n = i % len(images)
            same = gpu.encode(images[n], QUALITY, effort=0) == expected[n]
            return same and np.array_equal(gpu.decode(expected[n], "numpy"), pixels[n])

    with ThreadPoolExecutor(2) as pool:
        return {"at once": turns, "different at once": list(pool.map(both, range(turns))).count(False)}


def in_batches(cpu: Codec, gpu: Codec, images: list[np.ndarray], count: int = 7) -> dict[str, Any]:
    """Batches of pictures in turn, three times: launch by launch, recorded and replayed."""
    some = [images[i % len(images)] for i in range(count)]
    expected = [cpu.encode(image, QUALITY, effort=0) for image in some]
    pixels, different = [cpu.decode(data, "numpy") for data in expected], 0
    for _ in range(3):
        pairs = zip(gpu.encode_batch(some, QUALITY, effort=0), expected, strict=True)
        different += sum(mine != theirs for mine, theirs in pairs)
        pairs = zip(gpu.decode_batch(expected, "numpy"), pixels, strict=True)
        different += sum(not np.array_equal(mine, theirs) for mine, theirs in pairs)
    return {"in batches": 6 * count, "different in batches": different}


def roofline() -> dict[str, float]:
    """The best rates of this device: int8 multiply-accumulates and copied bytes, per second."""
    side = 8192
    a, b = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device="cuda") for _ in range(2))
    b = b.t().contiguous().t()  # the layout that the library wants
    product = median_ms(lambda: torch._int_mm(a, b))
    x = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    copy = median_ms(lambda: y.copy_(x))
    return {"int8_macs": side**3 / product * 1e3, "bytes": 2 * x.nbytes / copy * 1e3}


@dataclass
class Call:
    """A call of an operation and how often one image makes one of its shape."""

    arguments: tuple[Any, ...]
    result: Any
    count: int = 1


def collect(gpu: Codec, image: np.ndarray) -> dict[str, Call]:
    """All different calls of operations in one encode and one synthesis, by name and shapes."""
    engine = gpu.engine
    assert isinstance(engine, CudaEngine)
    calls: dict[str, Call] = {}

    def keeping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            shapes = [tuple(a.shape) for a in arguments if isinstance(a, Tensor)]
            key = f"{name} {shapes} {[a for a in arguments if isinstance(a, int)]}"
            if key in calls:
                calls[key].count += 1
            else:
                calls[key] = Call(arguments, result)
            return result

        return call

    ops, weights = engine.ops, engine.weights
    names = [f.name for f in fields(Ops) if f.name not in ("name", "arrays")]
    kept = replace(ops, **{name: keeping(name, getattr(ops, name)) for name in names})
    program = ProgramSet(weights, kept, engine.device).at(round(100 * QUALITY), _aq(DEFAULT_AQ))
    size = image.shape[0], image.shape[1]
    padded = np.pad(image, ((0, -image.shape[0] % 64), (0, -image.shape[1] % 64), (0, 0)), mode="edge")
    m = engine.arrays.array(step_multipliers(engine.arrays.numpy(program.gain), QUALITY))
    grid = walk.Grid.of(*size)
    step = Step(Adjoint(weights, kept, engine.device), engine.quantiser, m)
    target = torch.from_numpy(image).cuda()

    def fit(picture: Tensor) -> Callable[[], tuple[int, ...]]:
        return partial(restoration_fit.fit, kept, engine.arrays, picture[0], target, worth(QUALITY))

    sources, _ = _analyse(program, torch.from_numpy(padded).cuda()[None], size, step, fit, None)
    coded = [engine.code(source, tile.grid) for source, tile in zip(sources, grid.tiles(), strict=True)]
    _synthesise(program, [engine.coder.decoder(stream) for stream, _ in coded], grid, None)
    return calls


def _kernel(key: str, call: Call, ceilings: dict[str, float]) -> dict[str, Any]:
    name = key.split()[0]
    mine, theirs = getattr(OPS, name), getattr(reference.OPS, name)
    work = work_of(name, call.arguments, call.result)
    # 16-bit operands and weights are four products of bytes.
    floor = max((work.macs8 + 4 * work.macs16) / ceilings["int8_macs"], work.bytes / ceilings["bytes"]) * 1e3
    arguments = [a.clone() if isinstance(a, Tensor) else a for a in call.arguments]
    row: dict[str, Any] = {"call": key, "count": call.count, "ms": median_ms(lambda: mine(*arguments))}
    row |= {"floor_ms": floor, "share_of_roof": floor / row["ms"], **asdict(work)}
    if work.macs < MAX_REFERENCE_MACS:
        row["reference_ms"] = median_ms(lambda: theirs(*arguments), repeat=3)
        row["times_reference"] = row["reference_ms"] / row["ms"]
        results = [mine(*arguments), theirs(*arguments)]
        outputs = ([r] if isinstance(r, Tensor) else list(r or ()) for r in results)
        row["equal"] = all(a.equal(b) for a, b in zip(*outputs, strict=True))
    return row


def kernels(calls: dict[str, Call], ceilings: dict[str, float]) -> list[dict[str, Any]]:
    """Each call: time, the reference's time, the floor of its work, equality."""
    rows = [_kernel(key, call, ceilings) for key, call in calls.items()]
    return sorted(rows, key=lambda row: -row["ms"] * row["count"])


def whole_images(gpu: Codec, sizes: dict[str, tuple[int, int]], clock: Clock) -> list[dict[str, Any]]:
    """Encode and decode of one image, tensor to bytes and back, and of a batch."""
    rows = []
    for name, (height, width) in sizes.items():
        if rows and clock.left() < 0:
            break
        (image,) = pictures(width, height)
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        tensor = tensor.to(gpu.engine.device)
        row: dict[str, Any] = {"size": name}
        for effort in (*EFFORTS, SEARCHED):
            gpu.warm_up(height, width, effort=effort)
            data = gpu.encode(tensor, QUALITY, effort=effort)
            row[f"bpp_effort{effort}"] = 8 * len(data) / height / width
            turns = SEARCH_TURNS if effort == SEARCHED else SPEED_TURNS
            row[f"encode_effort{effort}"] = call_ms(lambda t=tensor, e=effort: gpu.encode(t, QUALITY, effort=e), turns)
        row["decode"] = call_ms(lambda d=data: gpu.decode(d, "torch"))
        if name == "768x512":
            row["encode_batch_effort0"] = call_ms(lambda t=tensor: gpu.encode_batch([t] * BATCH, QUALITY, effort=0), 5)
            row["decode_batch"] = call_ms(lambda d=data: gpu.decode_batch([d] * BATCH, "torch"), 5)
            row["batch"] = BATCH
        if gpu.engine.takes_tensors:
            row |= coder_times(gpu, image)
        rows.append(row)
    return rows


def coder_times(gpu: Codec, image: np.ndarray) -> dict[str, float]:
    """The entropy coder and the search of the trellis alone, on the values of this image, or of its first tile."""
    codec, cpu = gpu.engine, CpuEngine(gpu.engine.weights, resolve("auto", "cpu"), gpu.tables, default_threads)
    assert isinstance(codec, CudaEngine)
    (symbols, *_), _ = cpu.symbols(cpu.image(image), round(100 * QUALITY), 0, _aq(DEFAULT_AQ))
    parts = [tuple(torch.from_numpy(np.array(a)).cuda() for a in part) for part in symbols.parts]
    plain, groups = symbols.plain, walk.Grid.of(*image.shape[:2]).tiles()[0].grid.groups
    lanes = int(codec.coder.choose_lanes([rows for _, rows in parts], groups, plain))
    stream = codec.coder.encode(parts, lanes, groups, plain)
    decoder = codec.coder.decoder(stream, capacity=len(stream), positions=max(rows.numel() for _, rows in parts))
    outputs = [torch.empty_like(values) for values, _ in parts]

    def decode() -> None:
        for i, ((_, rows), out) in enumerate(zip(parts, outputs, strict=True)):
            decoder.decode(rows, i >= plain, i == len(parts) - 1, out)
        decoder.close()

    times = []
    for _ in range(SPEED_TURNS):
        decoder.reset(stream)
        start, end = timed(decode)
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    assert all(out.equal(values) for out, (values, _) in zip(outputs, parts, strict=True))
    encode = median_ms(lambda: codec.coder.start_encode(parts, lanes, groups, plain))
    residuals = [((values.int() * TRELLIS_STEP)[None], rows[None]) for values, rows in parts[plain:]]
    on_cpu = walk.quantiser(TorchArrays(), cpu.coder, cpu.charges, groups)
    assert all(codec.quantiser(groups)(*step).cpu().equal(on_cpu(*(t.cpu() for t in step))) for step in residuals)
    search = median_ms(lambda: [codec.quantiser(groups)(*step) for step in residuals])
    facts = {"coder_decode_ms": statistics.median(times), "coder_encode_ms": encode, "coder_search_ms": search}
    return facts | {"lanes": lanes, "groups": groups}


def float_model(name: str = "dca-s") -> list[dict[str, Any]]:
    """The float network of the same shape, its products in half precision: f_a and f_s, eager and compiled."""
    rows = []
    network = Network(preset(name)).cuda().eval()
    t = torch.zeros(1, 1, 1, 1, device="cuda")
    for size, (height, width) in SIZES.items():
        image = torch.randn(1, -(-height // 64) * 64, -(-width // 64) * 64, 3, device="cuda")
        row: dict[str, Any] = {"size": size}
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            y = network.analysis(image, t)
            for kind, wrap in (("eager", lambda f: f), ("compiled", torch.compile)):
                row[f"analysis_{kind}_ms"] = median_ms(partial(wrap(network.analysis), image, t), 10)
                row[f"synthesis_{kind}_ms"] = median_ms(partial(wrap(network.synthesis), y, t), 10)
        rows.append(row)
    return rows


def training_speed(device: str, clock: Clock, batch: int, crop: int, turns: int) -> dict[str, Any]:
    """Pixels per second of the trainer, all modules of dca-s on synthetic photographs: as it is, launch by launch, and
    without fused kernels."""
    data = Images([photograph(512, 512, seed) for seed in range(8)])
    tables, rows = weights.load(models.named("dca-s")).tables, {}
    for name, record, fused in (("graphs", True, True), ("launches", False, True), ("graphs, eager", True, False)):
        if rows and clock.left() < 0:
            break
        recipe = Recipe(batch=batch, crop=crop, aq_strength=DEFAULT_AQ, record=record, fused=fused)
        with tempfile.TemporaryDirectory() as folder:
            start = load_float(CHECKPOINT).state_dict()
            trainer = Trainer(preset("dca-s"), data, Path(folder), recipe, device, start, tables=tables)
            begin = time.perf_counter()
            # Both kinds of updates are recorded then.
            early = [float(trainer.train_step(1.0)[0]) for _ in range(2)]
            first, begin = time.perf_counter() - begin, time.perf_counter()
            losses = torch.stack([trainer.train_step(1.0)[0].clone() for _ in range(turns)]).tolist()
            seconds = (time.perf_counter() - begin) / turns
        rows[name] = {"step_ms": 1e3 * seconds, "pixels_per_s": batch * crop**2 / seconds, "first_steps_s": first}
        rows[name] |= {"first_losses": early, "last_loss": statistics.fmean(losses[-10:])}
        if abs(early[0] / rows["graphs"]["first_losses"][0] - 1) > 0.02 or not all(map(math.isfinite, losses)):
            raise RuntimeError(f"losses differ, or are not finite: {rows}")
        if torch.cuda.is_available():
            rows[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
    return {"batch": batch, "crop": crop, "steps": turns} | rows


def integer_transforms(gpu: Codec) -> list[dict[str, Any]]:
    """f_a and f_s of the integer program, beside `float_model`."""
    assert isinstance(gpu.engine, CudaEngine)
    program, rows = gpu.engine.program(round(100 * QUALITY)), []
    for size, (height, width) in SIZES.items():
        h, w = -(-height // 64) * 64, -(-width // 64) * 64
        image = torch.randint(0, 256, (1, h, w, 3), dtype=torch.uint8, device="cuda")
        y = program.analyse(image)
        row = {"size": size, "analysis_ms": median_ms(lambda x=image: program.analyse(x))}
        rows.append(row | {"synthesis_ms": median_ms(lambda x=y: program.synthesise(x))})
    return rows


def sections_of(args: argparse.Namespace) -> Iterator[tuple[str, float, Callable[[dict[str, Any], Clock], Any]]]:
    """What is asked for, in order: name, whose time it takes, and the work, given the facts so far and the clock."""
    cuda = args.device == "cuda"
    cpu = Codec(device="cpu", backend="native" if cuda else "reference")
    gpu = Codec(device="cuda") if cuda else Codec(device="cpu")
    sizes = SIZES if cuda else REHEARSAL
    exact = EXACT_SIZES if cuda else ((64, 96), (1, 17))
    (height, width), images = list(sizes.values())[-1], args.images if cuda else 1
    if args.exactness:

        def exact_work(facts: dict[str, Any], clock: Clock) -> Any:
            some = [np.ascontiguousarray(p) for h, w in exact for p in pictures(w, h, images)]
            return exactness(cpu, gpu, [*some, np.ascontiguousarray(pictures(width, height)[0])], clock)

        yield "exactness", "exactness", exact_work
    if args.figures:
        yield "images", "figures", lambda facts, clock: whole_images(gpu, sizes, clock)
        batch, crop, turns = (64, 256, 40) if cuda else (1, 64, 1)
        yield "training", "figures", lambda facts, clock: training_speed(args.device, clock, batch, crop, turns)
    if args.figures and cuda:
        largest = np.ascontiguousarray(pictures(width, height)[0])
        yield "roofline", "figures", lambda facts, clock: roofline()
        yield "transforms", "figures", lambda facts, clock: integer_transforms(gpu)
        yield "kernels", "figures", lambda facts, clock: kernels(collect(gpu, largest), facts["roofline"])
        yield "float", "figures", lambda facts, clock: float_model()


def main() -> int:
    """Measure, write, and say whether everything was exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--exactness", type=float, default=600, metavar="SECONDS", help="0: not (default: %(default)g)")
    parser.add_argument("--figures", type=float, default=600, metavar="SECONDS", help="0: not (default: %(default)g)")
    parser.add_argument("--images", type=int, default=2, help="pictures of each size for exactness")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "none: a rehearsal"
    facts: dict[str, Any] = {"device": name, "date": date.today().isoformat(), "source": source()} | environment()
    facts |= {"triton": triton.__version__, "cuda": torch.version.cuda, "errors": {}, "left out": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    clocks: dict[str, Clock] = {}
    for name, whose, work in sections_of(args):
        clock = clocks.setdefault(whose, Clock(getattr(args, whose)))
        begin = time.perf_counter()
        if clock.left() < 0:
            facts["left out"].append(name)
        else:
            try:
                facts[name] = work(facts, clock)
            except Exception:
                facts["errors"][name] = traceback.format_exc()
        args.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    shown = ("exactness", "images", "training", "errors", "left out")
    json.dump({key: facts.get(key) for key in shown}, sys.stdout, indent=1)
    exact = facts.get("exactness", {})
    wrong = [*exact.get("different", []), *[r["call"] for r in facts.get("kernels", []) if r.get("equal") is False]]
    wrong += [name for name in ("different at once", "different in batches") if exact.get(name)]
    return 1 if wrong or facts["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
