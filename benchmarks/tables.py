"""Results as the tables and the charts of the documents; no figure in them is typed by hand.

    python benchmarks/tables.py           # rewrites what lies between `<!-- tables:NAME -->` and `<!-- /tables -->`
    python benchmarks/tables.py --check   # exit code 1 if a document says something else than the JSON

Reads `benchmarks/results/dca-s/*.json`, which `benchmarks/measure.sh` makes, and `nvidia-h200.json`, of
`benchmarks/gpu.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dca_fast.evaluation.measure import bd_rate, need
from dca_fast.files.atomic import write_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks") / "results" / "dca-s"
DOCS = Path("docs")
DOCUMENTS = (Path("README.md"), DOCS / "results.md", DOCS / "guide" / "encoding.md")
GPU = "../nvidia-h200"
EXACT = "../exact"
SCREENS = "../screens"
SCREENSHOTS = "../screenshots"
EFFORTS = ("kodak", "kodak_effort0", "kodak_effort6")  # the same pictures, with less and more time at the encoder
PLAIN = "kodak_aq0"  # the same without adaptive quantisation
MODEL_IDS = (
    *EFFORTS,
    PLAIN,
    "adaptive",
    "valid",
    "integer_loss",
    "conformance",
    "speed",
    "scaling",
    "effort",
    SCREENS,
    SCREENSHOTS,
)
BLOCK = re.compile(r"(<!-- tables:([a-z]+) -->\n).*?(<!-- /tables -->)", re.DOTALL)
ANCHOR = "JPEG 4:2:0"  # what the chart of speed counts from
README_PEERS = ("JPEG 4:2:0", "WebP method 4", "JPEG XL effort 7", "AVIF speed 6", "AVIF speed 4 4:4:4 PSNR")
README_CODECS = ("dca-s", "dca-s, effort 0", "AVIF speed 6", "mbt2018-mean", "ELIC")
README_SIZES = ("768x512", "3840x2160")
NEURAL = "mbt2018-mean"  # the fastest of the neural codecs beside ours
CURVES = (*README_PEERS, "VTM-9.1", "ELIC")  # those of the picture of rate and distortion, beside ours
SMALLEST = "768x512"
DIRECTIONS = ("encode", "decode")
SMALL_SHARE = 0.01  # of the time: smaller stages are not shown
Load = Callable[[str], dict[str, Any]]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    line = "| {} |".format
    return "\n".join(line(" | ".join(cells)) for cells in (heads, ["---"] * len(heads), *rows)) + "\n"


def percent(value: float | None, digits: int = 1) -> str:
    """A difference with its sign; a dash where there is none."""
    return "-" if value is None else f"{value:+.{digits}f} %"


def prose(text: str) -> str:
    """A paragraph in the width of the documents."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def significant(value: float) -> str:
    """Three digits and no exponent: 0.123, 12.3, 1230."""
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f}"


def machine(facts: dict[str, Any]) -> str:
    """The processor, and what this program may use of it."""
    return f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores"


def left_out(facts: dict[str, Any]) -> str:
    """What could not be run, and why."""
    reasons = dict.fromkeys(facts["left_out"].values())
    return "".join("\n" + prose(f"Not here: {reason}") for reason in reasons)


def rate(load: Load) -> str:
    """BD-rates against every peer that was run."""
    (kodak, *others), plain, loss = (load(name) for name in EFFORTS), load(PLAIN), load("integer_loss")
    rows = []
    for name, peer in kodak["peers"].items():
        key = f"{name} ({peer['version']})"
        deltas = [facts["bd_rate"][key]["rate_percent"] for facts in (kodak, *others)]
        deltas.append(kodak["bd_rate_ms_ssim"][key])
        deltas += [plain["bd_rate"][key]["rate_percent"], plain["bd_rate_ms_ssim"][key]]
        rows.append([name, peer["settings"], peer["version"], *map(percent, deltas)])
    images, points = kodak["points"][0]["images"], kodak["points"]
    text = prose(
        f"{kodak['codec']} (model id `{kodak['model_id']}`), {images} Kodak images, {points[0]['bpp']:.3f} to"
        f" {points[-1]['bpp']:.2f} bits per pixel, real file sizes, effort {kodak['effort']} but where stated"
        f" otherwise, adaptive quantisation (AQ) of strength {kodak['aq_strength']:g}; negative: fewer bits at equal"
        " PSNR on 8-bit RGB, or MS-SSIM, for which nothing was trained. What the integers cost against the float"
        f" network at effort 0: {loss['bd_rate_percent']['files']:.1f} %."
    )
    heads = ["against", "settings", "library", "BD-rate", *(f"at effort {facts['effort']}" for facts in others)]
    heads += ["MS-SSIM", "AQ off", "AQ off, MS-SSIM"]
    return text + "\n" + table(heads, rows)


def headline(load: Load) -> str:
    """What is worth the first screen of the README."""
    kodak, times = load("kodak"), load("speed")
    quality, screens = list(load(SCREENSHOTS)["means"].items())[1]
    ours, rival = (times["sizes"][SMALLEST][name] for name in ("dca-s", NEURAL))
    saved = {}
    for name in (ANCHOR, "AVIF speed 6"):
        saved[name] = -kodak["bd_rate"][f"{name} ({kodak['peers'][name]['version']})"]["rate_percent"]
    factors = " and ".join(f"{way}s {rival[f'{way}_ms'] / ours[f'{way}_ms']:.0f} times" for way in reversed(DIRECTIONS))
    return prose(
        f"On {times['threads']} CPU cores it {factors} as fast as {NEURAL}, at {SMALLEST}. At equal PSNR on Kodak its"
        f" files are {saved[ANCHOR]:.0f} % smaller than JPEG's and {saved['AVIF speed 6']:.0f} % smaller than AVIF's at"
        f" speed 6. Screenshots and figures of manuals take {100 * screens['to_avif']:.0f} % of AVIF's bytes (speed 4,"
        f" 4:4:4, our quality {quality})."
    )


def quality(load: Load) -> str:
    """BD-rates for the README."""
    facts = [load(name) for name in EFFORTS]
    default, slow = facts[0], facts[-1]
    rows = []
    for name in README_PEERS:
        key = f"{name} ({default['peers'][name]['version']})"
        deltas = default["bd_rate"][key]["rate_percent"], default["bd_rate_ms_ssim"][key]
        rows.append([name, *map(percent, (*deltas, slow["bd_rate"][key]["rate_percent"]))])
    heads = ["against", "PSNR", "MS-SSIM", f"PSNR, effort {slow['effort']}"]
    images = default["points"][0]["images"]
    return f"BD-rates over {images} Kodak images, real files; negative: fewer bits.\n\n" + table(heads, rows)


def times(load: Load) -> str:
    """Encode and decode of whole images for the README."""
    facts = load("speed")
    rows = []
    for name in README_CODECS:
        codecs = [facts["sizes"][size].get(name) for size in README_SIZES]
        cells = [significant(codec[f"{way}_ms"]) if codec else "-" for codec in codecs for way in DIRECTIONS]
        rows.append([name, *cells])
    heads = ["milliseconds", *(f"{size} {way}" for size in README_SIZES for way in DIRECTIONS)]
    return f"{facts['threads']} threads, {machine(facts)}; medians.\n\n" + table(heads, rows)


def speed(load: Load) -> str:
    """Encode and decode of whole images."""
    facts = load("speed")
    sizes = facts["sizes"]
    names = list(dict.fromkeys(name for codecs in sizes.values() for name in codecs))
    rows = []
    for name in names:
        cells = []
        for codecs in sizes.values():
            found = codecs.get(name)
            cells += [significant(found[f"{way}_ms"]) if found else "" for way in DIRECTIONS]
        what = next(codecs[name]["what"] for codecs in sizes.values() if name in codecs)
        rows.append([f"{name} ({what})", *cells])
    heads = ["milliseconds", *(f"{size} {way}" for size in sizes for way in DIRECTIONS)]
    size, ours = next((size, codecs["dca-s"]) for size, codecs in sizes.items())
    cold = " and ".join(significant(ours[f"{way}_cold_ms"]) for way in DIRECTIONS)
    text = prose(
        f"{facts['threads']} threads, {machine(facts)}; {facts['source']}; medians. In each turn the second of two"
        " calls counts, but for what takes seconds; the first of dca-s"
        f" at {size}, after another codec's turn, took {cold} ms."
    )
    return text + "\n" + table(heads, rows) + left_out(facts)


def coder(load: Load) -> str:
    """The entropy coder alone."""
    facts = load("coder")
    rows = []
    last = list(facts["results"])[-1]
    for name, row in facts["results"][last].items():
        bits = f"{8 * row['bytes'] / row['symbols']:.4f}"
        rows.append([name, *(significant(row[f"{way}_ns"]) for way in DIRECTIONS), f"{row['symbols']:,}", bits])
    text = f"One thread, {machine(facts)}; symbols of {len(facts['photographs'])} photographs at {last}.\n\n"
    heads = ["coder", "encode, ns per symbol", "decode, ns per symbol", "symbols", "bits per symbol"]
    return text + table(heads, rows) + left_out(facts)


def effort(load: Load) -> str:
    """What levels of encoder effort give and take."""
    facts = load("effort")
    rows = [
        [str(row["effort"]), percent(row["rate_percent"], 2), significant(row["seconds"]), significant(row["times"])]
        for row in facts["levels"]
    ]
    text = prose(
        f"{len(facts['photographs'])} validation photographs, their middle {facts['side']} x {facts['side']} pixels, at"
        f" qualities {', '.join(map(str, facts['qualities']))}, without adaptive quantisation; real files; model id"
        f" `{facts['model_id']}`; {facts['threads']} thread of {machine(facts)}, beside other work: times are rough."
    )
    return text + "\n" + table(["effort", "BD-rate against level 0", "seconds to encode", "times level 0"], rows)


def adaptive(load: Load) -> str:
    """What adaptive quantisation takes and gives."""
    facts = load("adaptive")
    rows = [
        [
            f"{row['aq_strength']:g}" + (", the default" if row["aq_strength"] == facts["default"] else ""),
            *(percent(row[metric][of]) for metric in ("psnr", "ms_ssim") for of in ("mean_curves", "each_picture")),
        ]
        for row in facts["strengths"]
    ]
    text = prose(
        f"{len(facts['photographs'])} validation photographs, their middle {facts['side']} x {facts['side']} pixels, at"
        f" qualities {', '.join(map(str, facts['qualities']))}, effort {facts['effort']}; real files; model id"
        f" `{facts['model_id']}`; against strength 0."
    )
    heads = ["strength", "BD-rate, PSNR", "mean of each picture's", "BD-rate, MS-SSIM", "mean of each picture's"]
    return text + "\n" + table(heads, rows)


def scaling(load: Load) -> str:
    """Growth with pixels, threads and batch."""
    facts = load("scaling")
    rows = []
    for row in facts["pixels"]:
        memory = "-" if row["memory_bytes"] is None else significant(row["memory_bytes"] / 2**20)
        times = [significant(row[f"{way}_ms"]) for way in DIRECTIONS]
        rows.append([f"{row['width']}x{row['height']}", significant(row["megapixels"]), *times, memory])
    grown = {key: "-" if value is None else f"{value:.2f}" for key, value in facts["exponents"].items()}
    rows.append(["exponent over pixels", "1", grown["encode_ms"], grown["decode_ms"], grown["memory_bytes"]])
    text = table(["picture", "megapixels", "encode ms", "decode ms", "MiB beyond the codec's own"], rows)
    for key, label in (("by_threads", "threads"), ("by_batch", "batch")):
        rows = []
        for row in facts[key]:
            rows.append([str(row[label]), *(significant(1e3 / row[f"{way}_ms"]) for way in DIRECTIONS)])
        text += "\n" + table([label, *(f"{way}, images per s" for way in DIRECTIONS)], rows)
    what = f"{facts['threads']} threads but where stated otherwise, default effort, {machine(facts)}; {facts['source']}"
    return f"{what}.\n\n{text}"


def large(load: Load) -> str:
    """Memory, cost of tiles, regions and previews."""
    facts = load("large")
    ways = tuple(facts["bytes_per_pixel"])
    heads = ["picture", *(f"{way}: MiB, s" for way in ways)]
    rows = [
        [
            f"{row['width']}x{row['height']}",
            *(f"{significant(row[way]['bytes'] / 2**20)}, {significant(row[way]['seconds'])}" for way in ways),
        ]
        for row in facts["memory"]
    ]
    rows.append(["bytes per pixel", *(significant(facts["bytes_per_pixel"][way]) for way in ways)])
    peak = max(row[way]["process_bytes"] for row in facts["memory"] for way in ways) / 2**30
    what = (
        f"Peak beyond what the process held before, of one call with {facts['threads']} threads, and its time beside"
        f" other work; the numbers are efforts. The process took {peak:.2f} GiB at most. {machine(facts)}."
    )
    text = f"{prose(what)}\n{table(heads, rows)}"
    tiles = [[f"{row['quality']:g}", percent(100 * (row["ratio"] - 1), 2)] for row in facts["tiles"]]
    text += f"\n{table(['quality', 'bytes with tiles against without'], tiles)}"
    region = facts["region"]
    sides = [[f"{side}x{side}", f"{100 * share:.0f} %"] for side, share in region["share"].items() if side != "whole"]
    text += f"\n{table(['region of ' + str(region['width']) + 'x' + str(region['height']), 'time of a decode'], sides)}"
    rows = []
    for row in facts["previews"]:
        for reduce, share in row["share"].items():
            if reduce != "whole":
                found = row["psnr_against_means"].get(reduce)
                fidelity = "exact" if found is None else f"{found:.1f} dB"
                rows.append([f"{row['width']}x{row['height']}", f"1/{reduce}", f"{100 * share:.0f} %", fidelity])
    return f"{text}\n{table(['picture', 'preview', 'time of a decode', 'against means of decoded pixels'], rows)}"


def installation(load: Load) -> str:
    facts = load("installation")
    heads = ["", "MB installed", "decode a file of 72x48, s", "its peak, MB", "`import dca_fast; Codec()`, s"]
    keys = ("installed_mb", "decode_s", "decode_peak_mb", "first_codec_s")
    rows = [[label, *(significant(run[key]) for key in keys)] for label, run in facts["runs"].items()]
    text = prose(f"Fresh environments, pip included; medians of processes. {machine(facts)}.")
    return f"{text}\n{table(heads, rows)}"


def exact(load: Load) -> str:
    """What files without loss take."""
    facts, rows = load(EXACT), []
    for kind in ("graphics", "photographs", "masks", "16 bits"):
        means = facts[kind]["means"]
        ratios = (means.get(f"exact_to_{rival}") for rival in ("png", "webp", "jxl"))
        cells = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        speeds = (significant(means[f"{way}_mp_s"]) for way in DIRECTIONS)
        rows.append([kind, str(len(facts[kind]["rows"])), *cells, *speeds])
    text = prose(
        "Bytes as a share of those of others, geometric means; every stream was decoded and compared. Photographs are"
        " Kodak's, graphics and masks are drawn. Speed is megapixels per second of processor time, 1 thread of"
        f" {machine(facts)}. Rounded to the levels of `alpha_quality` {', '.join(facts['alpha'])}, masks take"
        f" {', '.join(f'{share:.2f}' for share in facts['alpha'].values())} of their bytes without loss."
    )
    heads = ["", "pictures", "of PNG", "of WebP method 6", "of JPEG XL effort 7", "encode", "decode"]
    return f"{text}\n{table(heads, rows)}"


def beside_avif(facts: dict[str, Any]) -> str:
    """A row for every picture of `screens.py`, and their means."""
    rows, qualities = [], list(facts["means"])
    for name, row in facts["pictures"].items():
        cells = []
        for quality in qualities:
            at = row[quality]
            bound = "<" if at["beyond_avif"] else ""
            cells.append(f"{at['bytes']:,} at {at['psnr']:.1f} dB, {bound}{at['to_avif']:.2f}")
        rows.append([name, *cells, f"{100 * row[qualities[1]]['graphic_blocks']:.0f} %"])
    means = facts["means"].values()
    rows.append(["all", *(f"**{mean['to_avif']:.2f}**" for mean in means), ""])
    rows.append(["all with `--screen off`", *(f"{mean['off_to_avif']:.2f}" for mean in means), ""])
    return table(["picture", *(f"quality {quality}" for quality in qualities), "graphic"], rows)


def times_with_graphics(facts: dict[str, Any]) -> str:
    return ", ".join(f"{mean['encode_time']:.2f}" for mean in facts["means"].values())


def screens(load: Load) -> str:
    """Graphics beside AVIF."""
    facts = load(SCREENS)
    quality = list(facts["means"])[1]
    photographs = facts["photographs"].values()
    count, changed = sum(p["count"] for p in photographs), sum(len(p["changed"]) for p in photographs)
    slower = ", ".join(f"{p['encode_time']:.2f}" for p in photographs)
    text = prose(
        "Bytes of our files, their PSNR, and their bytes as a share of those of AVIF (speed 4, 4:4:4) at equal PSNR;"
        " < where AVIF's highest quality has less, and is compared with; geometric means. Blocks that are graphic at"
        f" quality {quality}. Of {count} photographs of Kodak and validation, at the same qualities, {changed}"
        " files are others than with `--screen off`. Times to encode over those with `--screen off`, default effort:"
        f" {times_with_graphics(facts)} for these pictures, {slower} for the two sets of"
        f" photographs, 1 thread of {machine(facts)}, beside other work."
    )
    return f"{text}\n{beside_avif(facts)}"


def screenshots(load: Load) -> str:
    """Real screenshots beside AVIF."""
    facts = load(SCREENSHOTS)
    larger = {q: sum(row[q]["to_avif"] > 1 for row in facts["pictures"].values()) for q in facts["means"]}
    text = prose(
        f"The same columns for {len(facts['pictures'])} pictures. Files that are larger than AVIF's:"
        f" {', '.join(f'{count} at quality {quality}' for quality, count in larger.items())}. Times to encode"
        f" over those with `--screen off`: {times_with_graphics(facts)}, 1 thread of {machine(facts)}, beside other"
        " work."
    )
    return f"{text}\n{beside_avif(facts)}"


def integers(load: Load) -> str:
    """What the integers cost."""
    loss = load("integer_loss")
    parts = loss["bd_rate_percent"]
    return prose(
        f"Model id `{loss['model_id']}`, {loss['images']} Kodak images at {len(loss['qualities'])} qualities, effort 0"
        " and strength 0, against the float network with ideal code lengths, at equal PSNR: real files need"
        f" {parts['files']:.2f} % more bits: the integers alone (means, rows and picture, ideal code lengths) cost"
        f" {parts['integers']:.2f} %, coder and container {parts['coder and container']:.2f} %."
    )


def exactness(load: Load) -> str:
    """Conformance and hostile files in one paragraph."""
    same, hostile = load("conformance"), load("hostile")
    return prose(
        f"{same['comparisons']:,} comparisons of reference and native, {same['threads'][0]} to {same['threads'][-1]}"
        f" threads, {len(same['isas'])} instruction sets ({', '.join(same['isas'])}) and batches, on"
        f" {len(same['images'])} pictures: {len(same['differences'])} differences. All {hostile['executions']:,}"
        f" hostile files, made from {hostile['seeds']} whole ones, gave a typed error, the identical picture or another"
        f" valid file: {hostile['wrong_pictures']} wrong pictures."
    )


def stages(load: Load) -> str:
    """Where the time of the codec goes, and what bounds it from below."""
    facts = load("profile")
    best, (width, height) = facts["ceilings"], facts["image"]["size"]
    text = prose(
        f"{facts['model']['name']} `{facts['model']['id']}`, {width}x{height}, quality {facts['quality']:g},"
        f" effort {facts['effort']}, {facts['threads']} threads, {machine(facts)}, operations"
        f" {facts['isa']['operations']}. Ceilings: int8 products {2e-9 * best['macs8']:.0f} GOP/s, 16-bit"
        f" {2e-9 * best['macs16']:.0f} GOP/s, copy {1e-9 * best['bytes']:.1f} GB/s."
    )
    for way in DIRECTIONS:
        total = facts[way]
        shown = [row for row in total["stages"] if row["share"] > SMALL_SHARE]
        rows = [_stage(row) for row in (*shown, total | {"name": "total", "share": 1 - total["unaccounted"]})]
        limit = (
            f"{way.capitalize()} takes {significant(total['unrecorded_ms'])} ms without recording; the table leaves out"
            f" stages below {SMALL_SHARE:.0%}. With operations and bytes at their ceilings it would take"
            f" {significant(total['floor_ms'])} ms: {total['floor_ms'] / total['unrecorded_ms']:.0%} of the limit is"
            " reached."
        )
        heads = [way, "ms", "share", "GOP", "MB", "least ms", "of its limit"]
        text += "\n" + table(heads, rows) + "\n" + prose(limit)
    return text


def _stage(row: dict[str, Any]) -> list[str]:
    compute, memory = row["compute_share"], row["memory_share"]
    nearest = min(1.0, max(compute, memory))
    least = row["floor_ms"] if "floor_ms" in row else row["ms"] * nearest
    bound = f"{100 * least / row['ms']:.0f} %" + ("" if "floor_ms" in row else (" mem", " mac")[compute >= memory])
    work = [significant(2e-9 * row["macs"]) if row["macs"] else "-", significant(1e-6 * row["bytes"])]
    end = [significant(least), bound] if row["bytes"] else ["-", "-"]
    return [row["name"], significant(row["ms"]), f"{100 * row['share']:.1f} %", *work, *end]


def operations(load: Load) -> str:
    """Single operations and one step: the groups of the pytest run that hold ours and the reference."""
    facts = load("bench")
    rows = []
    for group in dict.fromkeys(row["group"] for row in facts["rows"]):
        times = {row["name"].rpartition("-")[2]: 1e3 * row["median"] for row in facts["rows"] if row["group"] == group}
        if {"native", "reference"} <= set(times):
            ours, reference = times.pop("native"), times.pop("reference")
            others = [f"{name} {significant(ms)} ms ({ms / ours:.1f} x)" for name, ms in times.items()]
            against = f"{significant(reference)} ({reference / ours:.1f} x)"
            rows.append([group.removeprefix("operation: "), significant(ours), against, "; ".join(others)])
    text = f"One thread, {machine(facts)}; medians, and times ours.\n\n"
    return text + table(["operation", "ours, ms", "reference, ms", "others"], rows) + left_out(facts)


def gpu_table(load: Load) -> str:
    """Milliseconds of whole images and of the coder on the device, and where they come from."""
    facts, rows = load(GPU), []
    for row in facts["images"]:
        calls = [row[f"encode_effort{effort}"]["ms"] for effort in (0, 1, 4)] + [row["decode"]["ms"]]
        coder = [row[f"coder_{way}_ms"] for way in ("decode", "encode", "search")]
        cells = [*(f"{ms:.1f}" for ms in (*calls, *coder)), f"{row['groups']} x {row['lanes']}"]
        rows.append([row["size"], *cells])
        if "batch" in row:
            batch, empty = row["batch"], "-"
            encode, decode = (f"{row[key]['ms']:.1f}" for key in ("encode_batch_effort0", "decode_batch"))
            rows.append([f"{batch} x {row['size']}", encode, empty, empty, decode, *[empty] * 4])
    heads = ["size", *(f"encode, effort {effort}" for effort in (0, 1, 4)), "decode"]
    heads += ["coder: decode", "coder: encode", "search", "groups x lanes"]
    where = (
        f"Milliseconds on one {facts['device']}, {facts['date']}, torch {facts['torch']}, Triton {facts['triton']}, "
        f"Python {facts['python']}, quality 60, recorded:"
    )
    return prose(where) + "\n" + table(heads, rows)


def gpu_kernels_table(load: Load) -> str:
    """Operations of one encode at effort 1 and one synthesis at 4K, those that take most first."""
    facts = load(GPU)
    whole = sum(row["ms"] * row["count"] for row in facts["kernels_4k"])
    names = dict.fromkeys(row["call"].split()[0] for row in facts["kernels_4k"])
    rows = []
    for name in names:
        of_name = [row for row in facts["kernels_4k"] if row["call"].split()[0] == name]
        ms, floor = (sum(row[key] * row["count"] for row in of_name) for key in ("ms", "floor_ms"))
        reference = sum(row.get("reference_ms", 0.0) * row["count"] for row in of_name)
        if ms >= SMALL_SHARE * whole:
            cells = [f"{ms:.2f}", percent(100 * floor / ms, 0).lstrip("+"), f"{reference / ms:.1f}"]
            rows.append([f"`{name}`", str(sum(row["count"] for row in of_name)), *cells])
    rows.sort(key=lambda row: -float(row[2]))
    return table(["operation", "calls", "ms together", "of its roof", "times as fast as eager PyTorch"], rows)


TABLES: dict[str, Callable[[Load], str]] = {
    "headline": headline,
    "quality": quality,
    "times": times,
    "rate": rate,
    "speed": speed,
    "coder": coder,
    "scaling": scaling,
    "large": large,
    "effort": effort,
    "adaptive": adaptive,
    "exactness": exactness,
    "installation": installation,
    "exact": exact,
    "screens": screens,
    "screenshots": screenshots,
    "integers": integers,
    "stages": stages,
    "operations": operations,
    "gpu": gpu_table,
    "gpukernels": gpu_kernels_table,
}


def speed_facts(load: Load) -> dict[str, Any]:
    """All that the chart of speed shows: what has a coder."""
    kodak, times = load("kodak"), load("speed")
    curves = {kodak["codec"]: [(p["bpp"], p["psnr"]) for p in kodak["points"]]}
    for name, curve in kodak["anchors"].items():
        curves[name] = list(zip(curve["bpp"], curve["psnr_rgb"], strict=True))
    curves |= {name: [(p["bpp"], p["psnr"]) for p in peer["points"]] for name, peer in kodak["peers"].items()}
    for facts in map(load, EFFORTS[1:]):
        curves[f"{facts['codec']}, effort {facts['effort']}"] = [(p["bpp"], p["psnr"]) for p in facts["points"]]
    milliseconds = {name: c["encode_ms"] + c["decode_ms"] for name, c in times["sizes"][SMALLEST].items()}
    shown = [name for name in milliseconds if name in curves]
    return {
        "codec": kodak["codec"],
        "anchors": list(kodak["anchors"]),
        "curves": {name: curves[name] for name in shown},
        "anchor": curves[ANCHOR],
        "milliseconds": {name: milliseconds[name] for name in shown},
        "threads": times["threads"],
    }


def draw_speed(facts: dict[str, Any]) -> Any:
    """Rate saved against JPEG over the speed of encode and decode together."""
    width, height = map(int, SMALLEST.split("x"))
    figure = need("matplotlib.figure").Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", title=f"Smaller files, and how fast: Kodak, {facts['threads']} CPU cores")
    axes.set_xlabel(f"encode + decode at {SMALLEST}, megapixels per second")
    axes.set_ylabel(f"bits saved against {ANCHOR} at equal PSNR, %")
    axes.xaxis.set_major_formatter("{x:g}")
    places = {}
    for name, curve in facts["curves"].items():
        saved = bd_rate(curve, facts["anchor"]).rate_percent
        if saved is not None:
            places[name] = 1e-3 * width * height / facts["milliseconds"][name], -saved
    looks = {
        "dca-fast": {"marker": "*", "color": "tab:red", "s": 260},
        "other neural codecs (published rates)": {"marker": "s", "color": "tab:blue", "s": 60},
        "classical codecs": {"marker": "o", "color": "tab:gray", "s": 60},
    }
    groups: dict[str, list[tuple[float, float]]] = {kind: [] for kind in looks}
    for name, (x, y) in places.items():
        ours, published = name.split(", effort")[0] == facts["codec"], name in facts["anchors"]
        groups[list(looks)[0 if ours else 1 if published else 2]].append((x, y))
        # To the left where another one stands close on the right.
        crowded = any(x < other < 2.2 * x and abs(above - y) < 5 for other, above in places.values())
        look = {"xytext": (-11, 0) if crowded else (11, 0), "ha": "right" if crowded else "left"}
        weight = "bold" if ours else "normal"
        axes.annotate(name, (x, y), textcoords="offset points", fontsize=9, va="center", weight=weight, **look)
    for kind, points in groups.items():
        axes.scatter(*zip(*points, strict=True), label=kind, zorder=3, **looks[kind])
    axes.legend(loc="lower left")
    axes.margins(x=0.16, y=0.14)
    axes.grid(alpha=0.3)
    return figure


def kodak_facts(load: Load) -> dict[str, Any]:
    """All that the picture of rate and distortion shows."""
    kodak = load("kodak")
    shown = {kind: {n: c for n, c in kodak[kind].items() if n in CURVES} for kind in ("peers", "anchors")}
    if missing := set(CURVES) - shown["peers"].keys() - shown["anchors"].keys():
        raise ValueError(f"kodak.json has no curve {min(missing)!r}")
    return {"codec": kodak["codec"], "points": kodak["points"], **shown}


def draw_kodak(facts: dict[str, Any]) -> Any:
    from dca_fast.evaluation.report import curves

    return curves(facts, f"Rate and distortion, mean of {facts['points'][0]['images']} Kodak images")


def draw_ablation(facts: dict[str, Any]) -> Any:
    from dca_fast.train.ablate_report import chart

    return chart(facts)


@dataclass(frozen=True)
class Chart:
    """A picture of the documents: what it shows, and how."""

    facts: Callable[[Load], dict[str, Any]]
    draw: Callable[[dict[str, Any]], Any]

    def png(self, load: Load) -> bytes:
        """The picture, which carries the digest of what it shows."""
        facts, buffer = self.facts(load), io.BytesIO()
        self.draw(facts).savefig(buffer, format="png", dpi=130, metadata={"Source": digest(facts)})
        return buffer.getvalue()

    def is_of(self, path: Path, load: Load) -> bool:
        """Whether a file was drawn from these results."""
        from PIL import Image

        if not path.exists():
            return False
        with Image.open(path) as image:
            return bool(image.info.get("Source") == digest(self.facts(load)))


CHARTS = {
    DOCS / "speed.png": Chart(speed_facts, draw_speed),
    DOCS / "kodak.png": Chart(kodak_facts, draw_kodak),
    DOCS / "experiments" / "ablation.png": Chart(lambda load: {"twins": load("ablation")["twins"]}, draw_ablation),
}


def digest(facts: dict[str, Any]) -> str:
    """Of what a chart shows."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fill(text: str, load: Load) -> tuple[str, set[str]]:
    """A document with its tables made anew, and their names.

    Raises:
        ValueError: a block of unknown name, or one without end.
    """
    names = {match[2] for match in BLOCK.finditer(text)}
    if unknown := names - set(TABLES):
        raise ValueError(f"no table of the name {sorted(unknown)[0]!r}; there are {', '.join(TABLES)}")
    if text.count("<!-- tables:") != len(BLOCK.findall(text)):
        raise ValueError("a block of tables has no end")
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]](load)}{match[3]}", text), names


def run(root: Path, check: bool) -> list[str]:
    """Rewrite the documents below `root`, or only compare; returns what disagrees with the results."""

    @cache
    def load(name: str) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((root / RESULTS / f"{name}.json").read_text("utf-8"))
        return facts

    wrong, seen = [], set()
    for name in DOCUMENTS:
        old = (root / name).read_text("utf-8")
        new, names = fill(old, load)
        seen |= names
        if old != new:
            wrong.append(f"{name.as_posix()}: {_first_difference(old, new)}")
            if not check:
                write_atomic(root / name, new.encode())
    wrong += [f"no document has the table {name}" for name in TABLES if name not in seen]
    ids = {name: load(name)["model_id"] for name in MODEL_IDS}
    if len(set(ids.values())) > 1:
        wrong.append(f"results of different weights: {ids}")
    for name, chart in CHARTS.items():
        if not chart.is_of(root / name, load):
            wrong.append(f"{name.as_posix()} was drawn from other results")
            if not check:
                write_atomic(root / name, chart.png(load))
    return wrong


def _first_difference(old: str, new: str) -> str:
    pairs = zip(old.splitlines(), new.splitlines(), strict=False)
    return next((f"{a!r} should be {b!r}" for a, b in pairs if a != b), "another number of lines")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    args = parser.parse_args()
    wrong = run(args.root, args.check)
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    return int(bool(wrong) and args.check)


if __name__ == "__main__":
    raise SystemExit(main())
