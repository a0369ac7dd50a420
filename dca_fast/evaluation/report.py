"""Results of an evaluation: as JSON values, as a table and as a plot."""

from __future__ import annotations

import contextlib
import io
import math
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from dca_fast.errors import InputError
from dca_fast.evaluation.measure import Curve, bd_rate, rate_inversions
from dca_fast.files.atomic import write_atomic
from dca_fast.metrics import MS_SSIM_SIDE, need

__all__ = ["PLOT_FORMATS", "curves", "environment", "plot", "report", "summary"]

PACKAGES = ("dca-fast", "torch", "numpy", "pillow", "pytorch-msssim", "bjontegaard")
MAX_BPP = 1.6  # right end of the plot
GRAY_LIKE = 7  # of the ten colours, the one next to black
PLOT_FORMATS = (".png", ".svg", ".pdf")


def report(
    ours: Curve, peers: Iterable[tuple[Curve, str, str]], anchors: dict[str, dict[str, Any]], model_id: str
) -> dict[str, Any]:
    """Everything measured as plain values for JSON: numbers that do not exist are None.

    Args:
        ours: the codec's curve.
        peers: curves, the versions of their libraries, their settings in words.
        anchors: as `load_anchors` gives them.
        model_id: of the weights, hexadecimal.
    """
    mine = _rate_psnr(ours)
    peers = list(peers)
    named = {f"{peer.name} ({version})": peer for peer, version, _ in peers}
    others = {name: _rate_psnr(peer) for name, peer in named.items()}
    for name, curve in anchors.items():
        others[f"{name} (published)"] = list(zip(curve["bpp"], curve["psnr_rgb"], strict=True))
    facts = {
        **environment(),
        "codec": ours.name,
        "model_id": model_id,
        "qualities": [p.quality for p in ours.points],
        "points": [asdict(p) for p in ours.points],
        "per_image": [asdict(r) for r in ours.rows],
        "rate_inversions": rate_inversions(ours.rows),
        "peers": {c.name: {"version": v, "settings": s, "points": [asdict(p) for p in c.points]} for c, v, s in peers},
        "anchors": anchors,
        "bd_rate": {name: asdict(bd_rate(mine, points)) for name, points in others.items()},
        "bd_rate_ms_ssim": {
            name: bd_rate(_rate_ms_ssim(ours), _rate_ms_ssim(peer)).rate_percent for name, peer in named.items()
        },
        "bd_rate_ssimulacra2": {
            name: bd_rate(_rate_score(ours), _rate_score(peer)).rate_percent for name, peer in named.items()
        },
    }
    return dict(_finite(facts))


def environment() -> dict[str, Any]:
    """The machine and the versions of what the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
    }
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"machine": machine, "versions": versions}


def summary(facts: dict[str, Any]) -> str:
    """A report as text: the points, then the comparisons."""
    scored = any(p.get("ssimulacra2") is not None for p in facts["points"])
    lines = [f"{'quality':>8}{'bpp':>9}{'PSNR dB':>9}{'MS-SSIM':>9}{'dB':>7}" + "  SSIMULACRA2" * scored]
    for p in facts["points"]:
        similar = p["ms_ssim"]
        tail = "     none      -" if similar is None else f"{similar:9.4f}{decibels(similar):7.2f}"
        score = _number(p["ssimulacra2"], 13, 2) if scored else ""
        lines.append(f"{p['quality']:8g}{p['bpp']:9.4f}{_number(p['psnr'], 9, 2)}{tail}{score}")
    small = sum(row["ms_ssim"] is None for row in facts["per_image"]) // max(1, len(facts["points"]))
    if small:
        why = f"are below {MS_SSIM_SIDE} pixels a side, or its packages are missing"
        lines.append(f"{small} images {why}: no MS-SSIM for them")
    lines += [f"rate fell with rising quality: {text}" for text in facts["rate_inversions"]]
    if facts["bd_rate"]:
        lines += [
            "",
            f"{'BD-rate %':>10}{'BD-PSNR':>9}{'overlap':>9}{'MS-SSIM %':>11}"
            + "  SSIMULACRA2 %" * scored
            + "  against",
        ]
    for name, d in facts["bd_rate"].items():
        numbers = f"{_number(d['rate_percent'], 10, 1)}{_number(d['psnr_db'], 9, 2)}"
        note = f": {d['note']}" if d["note"] else ""
        similar = _number(facts["bd_rate_ms_ssim"].get(name), 11, 1)
        score = _number(facts["bd_rate_ssimulacra2"].get(name), 15, 1) if scored else ""
        lines.append(f"{numbers}{100 * d['overlap']:8.0f}%{similar}{score}  {name}{note}")
    return "\n".join(lines)


def plot(facts: dict[str, Any], path: Path) -> None:
    """Draw the curves of a report into a file.

    Args:
        facts: as `report` makes it, or as read back from its JSON.
        path: .png, .svg or .pdf.

    Raises:
        InputError: another extension.
    """
    if path.suffix not in PLOT_FORMATS:
        raise InputError(f"a plot is {', '.join(PLOT_FORMATS)}, not {path.name}")
    buffer = io.BytesIO()
    title = f"Rate and distortion, mean of {facts['points'][0]['images']} images"
    curves(facts, title).savefig(buffer, format=path.suffix[1:], dpi=130)
    write_atomic(path, buffer.getvalue())


def curves(facts: dict[str, Any], title: str) -> Any:
    """PSNR, MS-SSIM and SSIMULACRA2 over bits per pixel as a figure: ours, the peers, published curves dashed.

    Published curves have PSNR alone. MS-SSIM and SSIMULACRA2 are left out where nothing has them.

    Args:
        facts: as of `plot`; "codec", "points", "peers" and "anchors" are drawn.
        title: of the figure.
    """
    drawn = [("o-", facts["codec"], facts["points"])]
    drawn += [(".-", name, peer["points"]) for name, peer in facts["peers"].items()]
    for name, anchor in facts["anchors"].items():
        pairs = zip(anchor["bpp"], anchor["psnr_rgb"], strict=True)
        points = [{"bpp": bpp, "psnr": psnr, "ms_ssim": None} for bpp, psnr in pairs]
        drawn.append(("--", f"{name} (published)", points))
    levels: dict[str, Callable[[dict[str, Any]], float | None]] = {
        "PSNR on RGB, dB": lambda point: point["psnr"],
        "MS-SSIM, dB": lambda point: None if point["ms_ssim"] is None else decibels(point["ms_ssim"]),
    }
    levels["SSIMULACRA2"] = lambda point: point.get("ssimulacra2")
    for label in ("MS-SSIM, dB", "SSIMULACRA2"):
        if all(level is None for level in map(levels[label], facts["points"])):
            del levels[label]
    figure = need("matplotlib.figure").Figure(figsize=(5.5 * len(levels) + 1, 6), layout="constrained")
    figure.suptitle(title)
    colours = [c for i, c in enumerate(need("matplotlib").colormaps["tab10"].colors) if i != GRAY_LIKE]
    for column, (label, level_of) in enumerate(levels.items(), 1):
        axes = figure.add_subplot(1, len(levels), column, xlabel="bits per pixel", ylabel=label)
        inside = []
        for i, (style, name, points) in enumerate(drawn):
            line = [(p["bpp"], level) for p in points if (level := level_of(p)) is not None]
            colour, thick = (colours[(i - 1) % len(colours)], 1.5) if i else ("black", 2.5)
            look = {"color": colour, "linewidth": thick, "zorder": 99 - i}
            axes.plot([bpp for bpp, _ in line], [level for _, level in line], style, label=name, **look)
            inside += [level for rate, level in line if rate <= MAX_BPP and math.isfinite(level)]
        axes.set_xlim(0, MAX_BPP)
        if inside:
            axes.set_ylim(math.floor(min(inside)), math.ceil(max(inside)) + 0.1)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _rate_psnr(curve: Curve) -> list[tuple[float, float]]:
    return [(p.bpp, p.psnr) for p in curve.points]


def _rate_ms_ssim(curve: Curve) -> list[tuple[float, float]]:
    return [(p.bpp, decibels(p.ms_ssim)) for p in curve.points if p.ms_ssim is not None]


def _rate_score(curve: Curve) -> list[tuple[float, float]]:
    return [(p.bpp, p.ssimulacra2) for p in curve.points if p.ssimulacra2 is not None]


def decibels(similarity: float) -> float:
    """An MS-SSIM, 0..1, in dB: -10 log10(1 - similarity)."""
    return -10 * math.log10(1 - similarity) if similarity < 1 else math.inf


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def _finite(value: Any) -> Any:
    """Plain JSON has no infinities."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
