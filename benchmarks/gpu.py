"""Everything there is to measure on a CUDA device, in one run: exactness, kernels, whole images, the coder.

    python benchmarks/gpu.py --out benchmarks/results/DEVICE.json [--images N] [--quick]

Exactness comes first: files and pixels of the device against those of the CPU, both ways. Then every operation of an
encode and a decode at 4K against the reference operations on the same device (eager PyTorch) and against the roofline
measured in the same run (a large int8 product and a large copy), whole images, and the coder. Times are medians of
device events, or of synchronised calls for whole images. The file is written after every part; a part that fails leaves
its traceback under "errors", and the others run all the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from pictures import pictures, source
from torch import Tensor

from dca_fast import Codec, latents, restoration
from dca_fast.adjoint import Adjoint
from dca_fast.codec import _aq
from dca_fast.config import DEFAULT_AQ, RINGS, TRELLIS_STEP, preset
from dca_fast.device import _analyse, _synthesise
from dca_fast.effort import Step, step_multipliers, worth
from dca_fast.entropy.coder import choose_lanes
from dca_fast.kernels.ops import OPS
from dca_fast.model.network import Network
from dca_fast.ops import Ops, reference
from dca_fast.program import ProgramSet
from dca_fast.report import environment
from dca_fast.timing import work_of

SIZES = {"768x512": (512, 768), "1080p": (1080, 1920), "4k": (2160, 3840)}
QUALITIES = (0, 10, 30, 50, 60, 70, 90, 100)
EFFORTS = (0, 1)  # with graphs; `SEARCHED` goes launch by launch
SEARCHED = 4
QUALITY = 60.0
BATCH = 16
SPEED_TURNS, SEARCH_TURNS = 30, 5
HEAD_START = 4_000_000  # clock cycles, some 2 ms
MAX_REFERENCE_MACS = 1 << 36  # float64 products of the reference above this would take the whole run


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
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": middle, "spread_ms": (high - low) / 2}


def exactness(cpu: Codec, gpu: Codec, images: list[np.ndarray]) -> dict[str, Any]:
    """Files made on the device against those of the CPU, and each decoded on the other."""
    compared, different = 0, []
    for index, image in enumerate(images):
        searched = [(QUALITY, SEARCHED)] if index == 0 else []  # the CPU takes long for it
        for quality, effort in [*itertools.product(QUALITIES, EFFORTS), *searched]:
            data = cpu.encode(image, quality, effort=effort)
            pixels = cpu.decode(data, "numpy")
            for turn in range(2):  # of the first image launch by launch, then recorded; replayed from then on
                compared += 2
                what = f"image {index} quality {quality} effort {effort} turn {turn}"
                if gpu.encode(image, quality, effort=effort) != data:
                    different.append(f"encode {what}")
                if not np.array_equal(gpu.decode(data, "numpy"), pixels):
                    different.append(f"decode {what}")
    return {"comparisons": compared, "different": different}


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
    assert gpu._device is not None
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

    ops = gpu._device._model.ops
    names = [f.name for f in fields(Ops) if f.name != "name"]
    kept = replace(ops, **{name: keeping(name, getattr(ops, name)) for name in names})
    program = ProgramSet(gpu._weights, kept, gpu._device.device).at(round(100 * QUALITY), _aq(DEFAULT_AQ))
    codec = gpu._device
    size = image.shape[0], image.shape[1]
    padded = np.pad(image, ((0, -image.shape[0] % 64), (0, -image.shape[1] % 64), (0, 0)), mode="edge")
    m = step_multipliers(program.gain.cpu(), QUALITY).to(codec.device)
    groups = latents.groups_of(*size)
    step = Step(Adjoint(gpu._weights, kept, codec.device), partial(codec._quantise, groups), m)
    target = torch.from_numpy(image).cuda()

    def fit(picture: Tensor) -> Tensor:
        weights = restoration.fit(kept, picture[0], target, worth(QUALITY))
        return restoration.as_tensor(weights, len(RINGS)).to(codec.device)

    source, _ = _analyse(program, torch.from_numpy(padded).cuda()[None], size, step, fit, None)
    stream, _ = codec._code(source, groups)
    _synthesise(program, codec.coder.decoder(stream), *latents.sites(*size), None)
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


def whole_images(gpu: Codec) -> list[dict[str, Any]]:
    """Encode and decode of one image, tensor to bytes and back, and of a batch."""
    rows = []
    for name, (height, width) in SIZES.items():
        (image,) = pictures(width, height)
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).cuda()
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
        row |= coder_times(gpu, image)
        rows.append(row)
    return rows


def coder_times(gpu: Codec, image: np.ndarray) -> dict[str, float]:
    """The entropy coder and the search of the trellis alone, on the values of this image."""
    codec, cpu = gpu._device, Codec(device="cpu")
    assert codec is not None
    symbols, _ = cpu._symbols(np.ascontiguousarray(image), round(100 * QUALITY), 0, _aq(DEFAULT_AQ))
    parts = [tuple(torch.from_numpy(np.array(a)).cuda() for a in part) for part in symbols.parts]
    plain, groups = symbols.plain, latents.groups_of(image.shape[0], image.shape[1])
    lanes = choose_lanes(codec.coder.estimate_bytes([rows for _, rows in parts], plain) // groups)
    stream = codec.coder.encode(parts, lanes, groups, plain)
    decoder = codec.coder.decoder(stream, capacity=len(stream), positions=max(rows.numel() for _, rows in parts))
    outputs = [torch.empty_like(values) for values, _ in parts]

    def decode() -> None:
        for i, ((_, rows), out) in enumerate(zip(parts, outputs, strict=True)):
            decoder.decode(rows, i >= plain, out)
        decoder.close()

    times = []
    for _ in range(SPEED_TURNS):
        decoder.reset(stream)
        start, end = timed(decode)
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    assert all(out.equal(values) for out, (values, _) in zip(outputs, parts, strict=True))
    encode = median_ms(lambda: codec.coder.start_encode(parts, lanes, groups, plain))
    residuals = [(values.int() * TRELLIS_STEP, rows) for values, rows in parts[plain:]]
    on_cpu = cpu.engine.quantiser(groups)
    assert all(codec._quantise(groups, *step).cpu().equal(on_cpu(*(t.cpu() for t in step))) for step in residuals)
    search = median_ms(lambda: [codec._quantise(groups, *step) for step in residuals])
    found = {"coder_decode_ms": statistics.median(times), "coder_encode_ms": encode, "coder_search_ms": search}
    return found | {"lanes": lanes, "groups": groups}


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


def integer_transforms(gpu: Codec) -> list[dict[str, Any]]:
    """f_a and f_s of the integer program, beside `float_model`."""
    assert gpu._device is not None
    program, rows = gpu._device._programs.at(round(100 * QUALITY)), []
    for size, (height, width) in SIZES.items():
        h, w = -(-height // 64) * 64, -(-width // 64) * 64
        image = torch.randint(0, 256, (1, h, w, 3), dtype=torch.uint8, device="cuda")
        y = program.analyse(image)
        row = {"size": size, "analysis_ms": median_ms(lambda x=image: program.analyse(x))}
        rows.append(row | {"synthesis_ms": median_ms(lambda x=y: program.synthesise(x))})
    return rows


def main() -> int:
    """Measure, write, and say whether everything was exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="exactness and whole images only")
    parser.add_argument("--images", type=int, default=4, help="pictures of each size for exactness")
    args = parser.parse_args()
    cpu, gpu = Codec(device="cpu", backend="native"), Codec(device="cuda")
    images = [np.ascontiguousarray(p) for h, w in ((512, 768), (257, 321)) for p in pictures(w, h, args.images)]
    largest = np.ascontiguousarray(pictures(3840, 2160)[0])
    facts: dict[str, Any] = {"device": torch.cuda.get_device_name(), "model": gpu.model_id, "source": source()}
    facts |= environment() | {"triton": triton.__version__, "cuda": torch.version.cuda, "errors": {}}
    parts: dict[str, Callable[[], Any]] = {
        "exactness": lambda: exactness(cpu, gpu, [*images, largest]),
        "images": lambda: whole_images(gpu),
    }
    if not args.quick:
        parts |= {
            "roofline": roofline,
            "transforms": lambda: integer_transforms(gpu),
            "kernels": lambda: kernels(collect(gpu, largest), facts["roofline"]),
            "float": float_model,
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        begin = time.perf_counter()
        try:
            facts[name] = part()
        except Exception:
            facts["errors"][name] = traceback.format_exc()
        args.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    json.dump({key: facts.get(key) for key in ("exactness", "images", "errors")}, sys.stdout, indent=1)
    wrong = facts.get("exactness", {}).get("different", [])
    wrong += [r["call"] for r in facts.get("kernels", []) if r.get("equal") is False]
    return 1 if wrong or facts["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
