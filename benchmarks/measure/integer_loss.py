"""What the integer program costs: BD-rate of real files against the float network it was exported from.

    python benchmarks/measure/integer_loss.py CHECKPOINT FOLDER --out benchmarks/results/integer_loss.json

The integer side is the shipped weights, or `--weights FILE`; they must have been exported from CHECKPOINT. The float
side leaves out the symbols that files leave out, unless `--all-symbols`. Both search with the tables of the integer
side; the float side is charged the ideal code length of its symbols by them (no coder, no header), the integer side the
bytes of its files, or the ideal code length as well. Three comparisons: files; the integers alone (ideal lengths and
pictures of both sides); coder and container alone (files against the integer side's ideal lengths).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from dca_fast import Codec
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import Tables
from dca_fast.evaluation.measure import ImageFolder, bd_rate, psnr
from dca_fast.model.network import Network
from dca_fast.network.program import QUALITY_ONE
from dca_fast.network.walk import EncoderSource, Grid
from dca_fast.train.export import load_float

QUALITIES = (0, 10, 30, 50, 70, 90, 100)


@torch.no_grad()
def float_point(network: Network, pixels: np.ndarray, quality: float) -> tuple[float, float]:
    """Ideal bits per pixel and PSNR of the float network, quantised as files are."""
    x = torch.from_numpy(pixels.copy())[None].float() - 128
    out = network(x, torch.tensor([float(quality)]))
    picture = (out["image"][0] + 128).round().clamp(0, 255).to(torch.uint8).numpy()
    return float(out["bits"]) / (pixels.shape[0] * pixels.shape[1]), psnr(picture, pixels)


def ideal_bits(tables: Tables, source: EncoderSource, groups: int) -> float:
    """What symbols and their rows take by the tables, with a coder that loses nothing."""
    parts = enumerate(source.parts)
    return sum(float(tables.value_bits(*part, None if i < source.plain else groups).sum()) for i, part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--all-symbols", action="store_true")
    args = parser.parse_args()

    network, codec = load_float(args.checkpoint), Codec(weights=args.weights)
    network.coder = Coder(codec.tables)
    if args.all_symbols:
        network.log2_coded = -math.inf
    rows = []
    images = ImageFolder(args.folder)
    for _, pixels in track(images, "comparing", total=len(images)):
        for quality in QUALITIES:
            data = codec.encode(pixels, quality, effort=0, aq_strength=0)
            bpp, fidelity = float_point(network, pixels, quality)
            (source,), _ = codec.engine.symbols(codec.engine.image(pixels), round(QUALITY_ONE * quality), 0, 0)
            groups = Grid.of(*pixels.shape[:2]).groups
            ideal = ideal_bits(codec.tables, source, groups)
            area = pixels.shape[0] * pixels.shape[1]
            picture = psnr(codec.decode(data, "numpy"), pixels)
            rows.append((8 * len(data) / area, ideal / area, picture, bpp, fidelity))
    mean = np.array(rows).reshape(-1, len(QUALITIES), 5).mean(0)
    integer_bpp, ideal_bpp, integer_psnr, float_bpp, float_psnr = mean.T.tolist()

    def more(
        bpp: list[float], fidelity: list[float], base_bpp: list[float], base_fidelity: list[float]
    ) -> float | None:
        """Percent of bits that the first curve needs more than the second."""
        curve, base = (list(zip(*c, strict=True)) for c in ((bpp, fidelity), (base_bpp, base_fidelity)))
        return bd_rate(curve, base).rate_percent

    result = {
        "model_id": codec.model_id,
        "qualities": QUALITIES,
        "images": len(rows) // len(QUALITIES),
        "float": {"bpp": float_bpp, "psnr": float_psnr},
        "integer": {"bpp": integer_bpp, "ideal_bpp": ideal_bpp, "psnr": integer_psnr},
        "bd_rate_percent": {
            "files": more(integer_bpp, integer_psnr, float_bpp, float_psnr),
            "integers": more(ideal_bpp, integer_psnr, float_bpp, float_psnr),
            "coder and container": more(integer_bpp, integer_psnr, ideal_bpp, integer_psnr),
        },
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result["bd_rate_percent"], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
