"""Results of an ablation: means over qualities, differences to the R twin with confidence; as JSON, table and plot."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dca_fast.config import STEPS
from dca_fast.errors import InputError
from dca_fast.evaluation.measure import need
from dca_fast.evaluation.report import PLOT_FORMATS, environment
from dca_fast.files.atomic import write_atomic
from dca_fast.train.ablate import BASE, TWINS

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom; the normal one beyond.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
NORMAL = 1.96


def confidence(values: list[float]) -> float | None:
    """Half of the 95 % interval of the mean; None for a single value."""
    n = len(values)
    if n < 2:
        return None
    return (STUDENT[n - 2] if n - 2 < len(STUDENT) else NORMAL) * stdev(values) / math.sqrt(n)


def difference(line: dict[str, Any], base: dict[str, Any]) -> tuple[float, float]:
    """Bits in percent and PSNR in dB of one twin against another of the same seed, means over the qualities."""
    pairs = [(line["test"][q], base["test"][q]) for q in base["test"]]
    percent = fmean(100 * (a["bpp"] / b["bpp"] - 1) for a, b in pairs)
    return percent, fmean(a["psnr"] - b["psnr"] for a, b in pairs)


def summarise(lines: Iterable[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """All that is reported, from the lines of `ablate.run`.

    Args:
        lines: one for each twin and seed.
        facts: of the run, kept as they are.

    Raises:
        InputError: a seed without the base twin, which nothing can be compared with.
    """
    lines = list(lines)
    base = {line["seed"]: line for line in lines if line["twin"] == BASE}
    if missing := {line["seed"] for line in lines} - set(base):
        raise InputError(f"no twin {BASE!r} with seed {min(missing)} to compare with")
    twins = {}
    for name in TWINS:
        mine = [line for line in lines if line["twin"] == name]
        if not mine:
            continue
        tests = [test for line in mine for test in line["test"].values()]
        gaps = [difference(line, base[line["seed"]]) for line in mine]
        percents = [percent for percent, _ in gaps]
        twins[name] = {
            "title": TWINS[name][0],
            "parameters": mine[0]["parameters"],
            "seeds": [line["seed"] for line in mine],
            "bpp_steps": [fmean(t["bpp_steps"][i] for t in tests) for i in range(STEPS)],
            "bpp_side": {key: fmean(t["bpp_side"][key] for t in tests) for key in tests[0]["bpp_side"]},
            "bpp": fmean(t["bpp"] for t in tests),
            "rms_steps": [fmean(t["rms_steps"][i] for t in tests) for i in range(STEPS)],
            "percent": fmean(percents),
            "percent_seeds": percents,
            "percent_confidence": confidence(percents),
            "psnr_gain": fmean(gain for _, gain in gaps),
        }
    return {**environment(), **facts, "twins": twins, "runs": lines}


def table(report: dict[str, Any]) -> str:
    """The report as a markdown table: means over qualities and seeds."""
    steps = " | ".join(f"{i + 1}" for i in range(STEPS))
    out = [
        f"| contexts of c, in order | parameters | seeds | y bits per pixel, step {steps} | side R / G / L | all "
        f"| RMS step {steps} | bits against R | PSNR against R |",
        "|---|" + "---:|" * (6 + 2 * STEPS),
    ]
    for twin in report["twins"].values():
        side = " / ".join(f"{twin['bpp_side'].get(key, 0):.4f}" for key in ("regional", "global", "local"))
        spread = "" if twin["percent_confidence"] is None else f" ± {twin['percent_confidence']:.2f}"
        cells = [
            twin["title"],
            f"{twin['parameters'] / 1e6:.2f} M",
            str(len(twin["seeds"])),
            *(f"{bits:.4f}" for bits in twin["bpp_steps"]),
            side,
            f"{twin['bpp']:.4f}",
            *(f"{rms:.3f}" for rms in twin["rms_steps"]),
            f"{twin['percent']:+.2f}{spread} %",
            f"{twin['psnr_gain']:+.3f} dB",
        ]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def plot(report: dict[str, Any], path: Path) -> None:
    """Write `chart` into a file.

    Raises:
        InputError: not .png, .svg or .pdf.
    """
    if path.suffix not in PLOT_FORMATS:
        raise InputError(f"a plot is {', '.join(PLOT_FORMATS)}, not {path.name}")
    buffer = io.BytesIO()
    chart(report).savefig(buffer, format=path.suffix[1:], dpi=130)
    write_atomic(path, buffer.getvalue())


def chart(report: dict[str, Any]) -> Any:
    """A figure of matplotlib: bits and PSNR of each twin against the R twin, one dot for each seed.

    Args:
        report: its "twins", as `summarise` makes them.
    """
    twins = list(report["twins"].values())
    figure = need("matplotlib.figure").Figure(figsize=(11, 1.8 + 0.45 * len(twins)), layout="constrained")
    figure.suptitle(
        "Entropy models that use other hyper latents or another order, against the regional one alone (R)\n"
        "R: regional, G: global, L: local hyper latent"
    )
    bits, gain = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    heights = range(len(twins))
    for height, twin in zip(heights, twins, strict=True):
        spread, colour = twin["percent_confidence"] or 0, "tab:orange" if twin["percent"] > 0 else "tab:blue"
        bits.barh(height, twin["percent"], xerr=spread, color=colour, alpha=0.6)
        bits.plot(twin["percent_seeds"], [height] * len(twin["percent_seeds"]), "k.")
    gain.barh(heights, [twin["psnr_gain"] for twin in twins], color="tab:green", alpha=0.6)
    bits.set_yticks(heights, [twin["title"] for twin in twins])
    bits.invert_yaxis()
    bits.set_xlabel("bits, % more than R (bar: mean, line: 95 % interval, dots: seeds)")
    gain.set_xlabel("PSNR, dB more than R")
    for axes in (bits, gain):
        axes.axvline(0, color="k", linewidth=1)
        axes.grid(alpha=0.3)
    return figure
