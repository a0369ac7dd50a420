"""Results of a profile: facts of stages and operations as JSON values, as tables and as a plot."""

from __future__ import annotations

import io
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.entropy.tables import SKIP_ROW, Tables
from dca_fast.evaluation.measure import need
from dca_fast.files.atomic import write_atomic
from dca_fast.profile.recorder import Ceilings, Rounds, Run, Work

__all__ = ["advice", "as_text", "bit_facts", "direction_facts", "operation_facts", "plot"]

DIRECTIONS = ("encode", "decode")
BAR = 13  # columns
# Calls shorter than so many ms cost mostly themselves; for a GPU, where calls are launches.
_SMALL_CALL = {False: 0.1, True: 0.02}
_OVERHEAD = {
    False: "calls, threads and what lies between operations cost more than they do",
    True: "launches cost more than what they start; replaying a graph saves most of that",
}
_REACHED = 0.5  # of a ceiling: then it is what bounds
_NOISY = 0.1
_RESOLUTION = 1e-6  # ms, of the clock
Part = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]  # symbols, rows


def _load(times: Sequence[float], work: Work, ceilings: Ceilings) -> dict[str, float]:
    """Work, its rate, and the shares of the time that products and traffic would take at the ceilings.

    Of the fastest round, for the ceilings are the fastest ones too: what else the machine does slows the median.
    """
    ms = max(min(times), _RESOLUTION)
    return {
        "macs": work.macs,
        "bytes": work.bytes,
        "gop_per_s": 2e-6 * work.macs / ms,
        "gb_per_s": 1e-6 * work.bytes / ms,
        "compute_share": ceilings.compute_ms(work) / ms,
        "memory_share": ceilings.memory_ms(work) / ms,
    }


def direction_facts(m: Rounds, megapixels: float, ceilings: Ceilings) -> dict[str, Any]:
    """Facts of encode or decode, and of each stage in the order of its first appearance."""
    total, plain = statistics.median(m.total), statistics.median(m.plain)
    stages: list[dict[str, Any]] = []
    for name in dict.fromkeys(span.name for span in m.counted.stages):
        times = [sum(s.ms for s in run.stages if s.name == name) for run in m.runs]
        inside = [[s.ms for s in run.operations if s.stage == name] for run in m.runs]
        work = sum((w for s, w in m.counted.counts() if s.stage == name), Work())
        ms = max(statistics.median(times), _RESOLUTION)
        facts = {"name": name, "ms": ms, "spread_ms": (max(times) - min(times)) / 2, "share": ms / total}
        facts |= {"mp_per_s": 1e3 * megapixels / ms, "calls": len(inside[0])}
        facts |= {"operations_share": statistics.median(map(sum, inside)) / ms, **_load(times, work, ceilings)}
        stages.append(facts)
    return {
        "ms": total,
        "spread_ms": (max(m.total) - min(m.total)) / 2,
        "unrecorded_ms": plain,
        "unrecorded_spread_ms": (max(m.plain) - min(m.plain)) / 2,
        "images_per_s": 1e3 / plain,
        "mp_per_s": 1e3 * megapixels / plain,
        "floor_ms": sum(s["ms"] * min(1, max(s["compute_share"], s["memory_share"])) for s in stages),
        "unaccounted": 1 - sum(s.ms for run in m.runs for s in run.stages) / sum(m.total),
        **_load(m.total, sum((w for _, w in m.counted.counts()), Work()), ceilings),
        "stages": stages,
    }


def operation_facts(measured: Sequence[Rounds], ceilings: Ceilings) -> list[dict[str, Any]]:
    """Facts of each kind of operation over both directions, slowest first."""
    pairs = [pair for m in measured for pair in m.counted.counts()]
    rounds = [[s for run in runs for s in run.operations] for runs in zip(*(m.runs for m in measured), strict=True)]
    whole = sum(statistics.median(m.total) for m in measured)
    out = []
    for name in {span.name for span, _ in pairs}:
        times = [sum(s.ms for s in spans if s.name == name) for spans in rounds]
        work, ms = [w for s, w in pairs if s.name == name], statistics.median(times)
        facts = {"name": name, "calls": len(work), "ms": ms, "share": ms / whole}
        out.append(facts | _load(times, sum(work, Work()), ceilings))
    return sorted(out, key=lambda facts: -facts["ms"])


def bit_facts(
    tiles: Sequence[tuple[Mapping[str, Part], int]], plain: int, tables: Tables, file_bytes: int
) -> list[dict[str, Any]]:
    """What each part of the stream costs; what the file has beyond them comes last.

    Args:
        tiles: values and rows by name, the first `plain` not of the trellis; and how many groups the stream has.
    """
    out: list[dict[str, Any]] = []
    for i, name in enumerate(tiles[0][0]):
        bits, positions, coded = 0.0, 0, 0
        for parts, groups in tiles:
            values, rows = parts[name]
            bits += float(tables.value_bits(values, rows, None if i < plain else groups).sum())
            positions, coded = positions + rows.size, coded + int((rows != SKIP_ROW).sum())
        out.append({"name": name, "positions": positions, "coded": coded, "bits": bits})
    rest = 8 * file_bytes - sum(part["bits"] for part in out)
    return [*out, {"name": "coder states, header", "positions": 0, "coded": 0, "bits": rest}]


def advice(direction: dict[str, Any], run: Run, coded: int, launches: bool = False) -> dict[str, Any]:
    """Which kind of stage takes most of the time (the steps count as one), and what bounds it.

    Args:
        direction: facts of encode or decode.
        run: the last one, for its operations.
        coded: symbols in the stream.
        launches: the calls only start work on a device.
    """
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for stage in direction["stages"]:
        kinds[re.sub(r"^step \d: (.*)", r"\1 of all steps", stage["name"])].append(stage)
    name, stages = max(kinds.items(), key=lambda kind: sum(s["ms"] for s in kind[1]))
    ms = sum(s["ms"] for s in stages)
    shares = ("compute_share", "memory_share", "operations_share")
    compute, memory, inside = (sum(s[share] * s["ms"] for s in stages) / ms for share in shares)
    times: dict[str, float] = defaultdict(float)
    for span in run.operations:
        if span.stage in {s["name"] for s in stages}:
            times[span.name] += span.ms
    slowest = max(times, key=lambda operation: times[operation], default="")
    if "coder" in name or "trellis" in name:
        bound, text = "coder", f"{1e-3 * coded / ms:.3g} million symbols per second"
    elif inside < 0.5 or ms < _SMALL_CALL[launches] * sum(s["calls"] for s in stages):
        bound, text = "overhead", _OVERHEAD[launches]
    elif max(compute, memory) < _REACHED:
        bound, text = "kernel", f"neither products nor traffic explain it; look at {slowest}"
    elif compute >= memory:
        bound, text = "compute", f"beyond {1 - compute:.0%} only fewer products help; most of it is {slowest}"
    else:
        bound, text = "memory", f"fuse operations or narrow their tensors; most of it is {slowest}"
    facts = {"stages": name, "share": ms / direction["ms"], "compute_share": compute, "memory_share": memory}
    return facts | {"operations_share": inside, "bound": bound, "text": text}


def as_text(facts: dict[str, Any]) -> str:
    """The facts as tables of 100 columns."""
    lines = _heading(facts)
    if "plan" in facts:
        return "\n".join([*lines, "", *(f"{name:23}{gop:10.2f} GOP" for name, gop in facts["plan"].items())])
    best, digits = facts["ceilings"], 3 if "device" in facts else 2
    rates = f"int8 GEMM {2e-9 * best['macs8']:.0f} GOP/s, int16 {2e-9 * best['macs16']:.0f} GOP/s"
    lines.append(f"ceilings   {rates}, copy {1e-9 * best['bytes']:.1f} GB/s read and written")
    lines.append("           rates and shares of ceilings are of the fastest round, times are medians ± half the range")
    if "device" in facts:
        lines.append("           GEMM and copy are PyTorch's; an int16 product is four of int8")
        lines.append("note       stages run launch by launch, without the graph that the codec replays: they sum to")
        lines.append("           more than the codec's own time, which is below each table")
    for direction in DIRECTIONS:
        lines += ["", *_stages(direction, facts[direction], digits), *_speed(facts, facts[direction])]
    lines += ["", _row("bits", "bits", "coded", None, "of", "bits/sym", "bits/px", "")]
    for part in facts["bits"]:
        each = f"{part['bits'] / part['coded']:.2f}" if part["coded"] else "-"
        cells = (f"{part['positions']:,}", each, f"{part['bits'] / facts['pixels']:.4f}", "")
        share = part["bits"] / (8 * facts["file_bytes"])
        lines.append(_row(part["name"], f"{part['bits']:,.0f}", f"{part['coded']:,}", share, *cells))
    lines += ["", _row("operations, both ways", "ms", "calls", None, "GOP", "GOP/s", "GB/s", "of ceiling")]
    for o in facts["operations"]:
        cells = (f"{2e-9 * o['macs']:.2f}", f"{o['gop_per_s']:.0f}", f"{o['gb_per_s']:.1f}", _limit(o))
        lines.append(_row(o["name"], f"{o['ms']:.{digits}f}", str(o["calls"]), o["share"], *cells))
    return "\n".join([*lines, "", *_conclusions(facts)])


def _conclusions(facts: dict[str, Any]) -> list[str]:
    """Memory, and what one would do next."""
    peak, before = (f"{(facts['memory'][key] or 0) / 2**20:.0f} MiB" for key in ("peak_bytes", "before_bytes"))
    lines = [f"memory     peak {peak}; {before} in use before the first encode: PyTorch, weights, the picture"]
    if "device" in facts:
        lines = [f"memory     peak {peak} of tensors on the device; {before} before the first encode"]
    for direction, n in facts["next"].items():
        limits = f"at {n['compute_share']:.0%} of the GEMM and {n['memory_share']:.0%} of the copy ceiling"
        lines.append(f"{direction}     {n['share']:.0%} in {n['stages']}, {limits}")
        lines.append(f"           {n['bound']}-bound: {n['text']}")
    gains = [(o["ms"] * (1 - max(o["compute_share"], o["memory_share"])), o["name"]) for o in facts["operations"]]
    best = ", ".join(f"{name} {ms:.1f} ms" for ms, name in sorted(gains, reverse=True)[:3])
    lines.append(f"to gain    at their ceilings: {best}")
    spread = max(facts[direction]["spread_ms"] / facts[direction]["ms"] for direction in facts["next"])
    if spread > _NOISY:
        lines.append(f"note       times vary by ±{spread:.0%}: does other work run on this machine?")
    return lines


def _heading(facts: dict[str, Any]) -> list[str]:
    image, machine, isa = facts["image"], facts["machine"], facts["isa"]
    size, padded = (" x ".join(map(str, image[key])) for key in ("size", "padded"))
    what = f"{size} {image['source']} (coded as {padded}), quality {facts['quality']:g}, effort {facts['effort']}"
    names = ["python", "dca-fast", "torch", "numpy", *(("cuda", "triton") if "device" in facts else ())]
    versions = {name: facts["versions"].get(name) for name in names}
    load = "" if facts["load"] is None else f", load {facts['load']:.1f} before the run"
    return [
        f"profile    {facts['model']['name']} {facts['model']['id']}, {what}",
        *_device(facts),
        f"machine    {machine['cpu']}, {machine['cores']} cores, {machine['system']}{load}",
        "versions   " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        *(f"{name:10} {path}" for name, path in facts["loaded"].items()),
        f"backend    {facts['backend']}, operations {isa['operations']}, coder {isa['coder']}",
        f"threads    {facts['threads']}; rounds {facts['repeat']}",
    ]


def _device(facts: dict[str, Any]) -> list[str]:
    if "device" not in facts:
        return []
    d = facts["device"]
    size = f"{d['multiprocessors']} multiprocessors, {d['memory_bytes'] / 2**30:.0f} GiB"
    return [f"device     {d['name']}, {d['architecture']}, {size}, driver {d['driver']}"]


def _stages(direction: str, facts: dict[str, Any], digits: int) -> list[str]:
    lines = [_row(direction, "ms", "±", None, "MP/s", "GOP", "GOP/s", "of ceiling")]
    for s in (*facts["stages"], facts | {"name": "total", "share": 1 - facts["unaccounted"]}):
        rate = f"{s['mp_per_s']:,.1f}" if s["share"] > 1e-3 else "-"
        gop = (f"{2e-9 * s['macs']:.2f}", f"{s['gop_per_s']:.0f}") if s["macs"] else ("-", "-")
        times = f"{s['ms']:.{digits}f}", f"{s['spread_ms']:.{digits}f}"
        lines.append(_row(s["name"], *times, s["share"], rate, *gop, _limit(s)))
    return lines


def _speed(facts: dict[str, Any], direction: dict[str, Any]) -> list[str]:
    """The codec as it is."""
    if "device" not in facts:
        speed = f"{direction['images_per_s']:.2f} images/s, {direction['mp_per_s']:.1f} MP/s"
        ceiling = f"with every operation at its ceiling {direction['floor_ms']:.2f} ms"
        return [f"  without recording {speed}, {direction['unrecorded_ms']:.2f} ms; {ceiling}"]
    how = "replaying its graph" if facts["graphs"] else "without a graph of this size"
    times = f"{direction['unrecorded_ms']:.3f} ± {direction['unrecorded_spread_ms']:.3f} ms"
    speed = f"{direction['images_per_s']:.1f} fps (images/s), {direction['mp_per_s']:.1f} MP/s"
    ceiling = f"with every operation at its ceiling {direction['floor_ms']:.3f} ms"
    return [f"  the codec itself, {how}: {times}, {speed}", f"  {ceiling}"]


def _row(name: str, first: str, second: str, share: float | None, *rest: str) -> str:
    eighths = round(8 * BAR * min(1.0, max(0.0, share or 0)))
    bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
    percent = "share" if share is None else f"{100 * share:.1f}%"
    cells = "".join(f"{cell:>{width}}" for cell, width in zip(rest, (9, 9, 8, 11), strict=True))
    return f"{name:24}{first:>10}{second:>8}{percent:>7} {bar:{BAR}}{cells}".rstrip()


def _limit(facts: dict[str, Any]) -> str:
    """The ceiling that is nearer, and how much of it is reached."""
    compute, memory = facts["compute_share"], facts["memory_share"]
    if not facts["bytes"]:
        return "-"
    return f"{compute:.0%} mac" if compute >= memory else f"{memory:.0%} mem"


def plot(facts: dict[str, Any], path: Path) -> None:
    """Draw the milliseconds of every stage, with the share of the nearer ceiling; .png, .svg or .pdf."""
    figure = need("matplotlib.figure").Figure(figsize=(13, 6), layout="constrained")
    image, where = facts["image"]["size"], f"{facts['threads']} threads"
    if "device" in facts:
        where = f"{facts['device']['name']}, launch by launch"
    figure.suptitle(f"{facts['model']['name']}, {image[0]} x {image[1]}, {where}")
    for column, direction in enumerate(DIRECTIONS, 1):
        stages = facts[direction]["stages"][::-1]
        title = f"{direction}: {facts[direction]['ms']:.1f} ms"
        axes = figure.add_subplot(1, len(DIRECTIONS), column, title=title, xlabel="ms")
        times = [s["ms"] for s in stages]
        bars = axes.barh([s["name"] for s in stages], times, xerr=[s["spread_ms"] for s in stages])
        axes.bar_label(bars, [f"{s['ms']:.1f} ms  {_limit(s)}" for s in stages], fontsize=7, padding=3)
        axes.set_xlim(0, 1.35 * max(times))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150)
    write_atomic(path, buffer.getvalue())
