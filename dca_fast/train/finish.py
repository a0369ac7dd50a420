"""At the end of a training: integer weights that do what the floats did, rate and distortion, the losses drawn."""

from __future__ import annotations

import io
import json
import math
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dca_fast.codec import Codec
from dca_fast.config import DEFAULT_AQ, DEFAULT_EFFORT
from dca_fast.errors import BackendUnavailableError, InputError, WeightsError
from dca_fast.evaluation.measure import ImageFolder, evaluate, need, psnr
from dca_fast.evaluation.report import PLOT_FORMATS, report, summary
from dca_fast.files.atomic import write_atomic
from dca_fast.testing import photograph
from dca_fast.train.data import Crops
from dca_fast.train.export import export_checkpoint, load_float
from dca_fast.train.fit_previews import fit as fit_previews
from dca_fast.train.fit_tables import fit as fit_tables

BACKENDS = ("reference", "native")
CHECKED_QUALITY = 50.0
QUALITIES = tuple(float(q) for q in range(0, 101, 10))
SMOOTH = 0.05  # share of the log that one point of the smooth curve averages


def export_and_check(checkpoint: Path, out: Path, photographs: Crops | None = None) -> str:
    """Write integer weights, with tables and previews fitted to photographs if there are any.

    A synthetic picture must give the same file and pixels on every backend that runs here.

    Returns:
        One line: model id, backends, and size and PSNR of that picture beside those of the float network.

    Raises:
        WeightsError: the backends disagree.
    """
    with TemporaryDirectory() as folder:  # nothing half done under the name
        unfinished = Path(folder) / "weights.safetensors"
        weights = export_checkpoint(checkpoint, unfinished)
        if photographs is not None:
            fit_tables(unfinished, photographs)
            weights = fit_previews(unfinished, photographs)
        write_atomic(out, unfinished.read_bytes())
    pixels, results = photograph(192, 256), {}
    for name in BACKENDS:
        try:
            codec = Codec(weights=out, backend=name)
        except BackendUnavailableError:
            continue
        data = codec.encode(pixels, CHECKED_QUALITY, effort=0, aq_strength=0)  # as the float network
        results[name] = data, codec.decode(data, "numpy")
    data, decoded = results["reference"]
    for name, (other, image) in results.items():
        if other != data or not np.array_equal(image, decoded):
            raise WeightsError(f"{name} and reference do not agree on {out}")
    x = torch.from_numpy(pixels)[None].float() - 128
    with torch.no_grad():
        floats = load_float(checkpoint)(x, torch.tensor([CHECKED_QUALITY]))
    image = (floats["image"][0] + 128).round().clamp(0, 255).to(torch.uint8).numpy()
    return (
        f"{out}: model id {weights.model_id.hex()}, {' and '.join(results)} agree; test picture "
        f"{len(data)} bytes, {psnr(pixels, decoded):.2f} dB "
        f"(float estimate {float(floats['bits']) / 8:.0f} bytes, {psnr(pixels, image):.2f} dB)"
    )


def validate(weights: Path, folder: Path, out: Path) -> str:
    """Rate and distortion of real files over a folder: written as JSON, returned as a table."""
    codec = Codec(weights=weights)
    curve = evaluate(codec, ImageFolder(folder), QUALITIES, name=codec.config.name)
    facts = report(curve, [], {}, codec.model_id) | {"effort": DEFAULT_EFFORT, "aq_strength": DEFAULT_AQ}
    write_atomic(out, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    return summary(facts)


def plot_losses(log: Path, path: Path) -> None:
    """Draw loss, rate and PSNR over the steps of a training's log.

    Raises:
        InputError: nothing logged yet, or `path` is not .png, .svg or .pdf.
    """
    if path.suffix not in PLOT_FORMATS:
        raise InputError(f"a plot is {', '.join(PLOT_FORMATS)}, not {path.name}")
    lines = []
    for line in log.read_text().splitlines() if log.exists() else []:
        with suppress(ValueError):  # a run was killed, or its disk was full, while it wrote
            lines.append(json.loads(line))
    # A run that was killed logged steps that the next one took again: the last line of a step counts.
    points = {line["step"]: line for line in lines if "loss" in line}
    if not points:
        raise InputError(f"{log} holds no losses")
    steps = sorted(points)
    curves = {
        "loss": [points[s]["loss"] for s in steps],
        "bits per pixel, last batch": [float(np.mean(points[s]["bpp"])) for s in steps],
        "PSNR, dB, last batch": [float(np.mean(points[s]["psnr"] or np.nan)) for s in steps],
    }
    figure = need("matplotlib.figure").Figure(figsize=(13, 4), layout="constrained")
    width = max(1, math.ceil(SMOOTH * len(steps)))
    for axes, (label, values) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        axes.plot(steps, values, ".", alpha=0.3)
        axes.plot(steps[width - 1 :], np.convolve(values, np.full(width, 1 / width), "valid"), linewidth=2)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=120)
    write_atomic(path, buffer.getvalue())
