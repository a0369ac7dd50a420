"""Quantiser steps of y that real files want, by differences: gains of bands of its channels up and down.

    python -m dca_fast.train.tune_gains PACK.bin WEIGHTS FLOAT OUT

Takes crops of the photographs of a pack (docs/guide/gpu.md) and codes them with WEIGHTS, integer ones, at each knot of
the quality axis, effort 1 and without adaptive quantisation: as they are, and with the gain of each band higher and
lower. Bits count with squared errors at the slope of the curve itself, which is what a change of all gains trades one
for the other, so that no band moves along the curve for all. The minimum of a parabola for each band and knot, smoothed
over the knots, is added to the gains of FLOAT, a checkpoint or float weights; OUT are float weights.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dca_fast.codec import Codec
from dca_fast.config import QUALITY_MAX, price
from dca_fast.network import weights as weights_io
from dca_fast.network.layout import ANCHORS, LOG2_ONE
from dca_fast.train.data import Photographs, cut
from dca_fast.train.export import load_float, save_float

# Channels of a group, the strongest first (`dca_fast.train.klt`).
BANDS = ((0, 2), (2, 4), (4, 8), (8, 16), (16, 24), (24, 32), (32, 48), (48, 64), (64, 96))
QUALITIES = tuple(QUALITY_MAX * i / (ANCHORS - 1) for i in range(ANCHORS))
CROPS, SIDE, SEED = 48, 384, 11
DELTA = 0.12  # octaves by which gains are changed
FLATTEST = 0.08  # % of the bits that a parabola rises by at least, so that none is without a minimum nearby


@cache
def crops(pack: Path) -> list[np.ndarray]:
    """uint8 [SIDE, SIDE, 3] of photographs drawn at random."""
    generator = np.random.default_rng(SEED)
    photographs = [image for image in Photographs(None, pack).images if min(image.shape[:2]) >= SIDE]
    return [
        np.ascontiguousarray(cut(photographs[generator.integers(len(photographs))], generator, SIDE))
        for _ in range(CROPS)
    ]


def measure(pack: Path, job: tuple[Path, float]) -> np.ndarray:
    """Bits and squared error (mean of the colours) of all crops, with weights at a quality: [2]."""
    path, quality = job
    codec, total = Codec(weights=path, threads=1), np.zeros(2)
    for pixels in crops(pack):
        data = codec.encode(pixels, quality, effort=1, aq_strength=0)
        error = codec.decode(data, "numpy").astype(np.int32) - pixels
        total += 8 * len(data), np.square(error).sum() / 3
    return total


def change(gains: torch.Tensor, by: np.ndarray) -> torch.Tensor:
    """log2 gains [ANCHORS, M] of the channels of four groups, changed by [ANCHORS, bands] in their unit."""
    groups = gains.clone().view(ANCHORS, 4, -1)
    for (first, end), column in zip(BANDS, torch.from_numpy(by).to(gains.dtype).T, strict=True):
        groups[:, :, first:end] += column[:, None, None]
    return groups.view_as(gains)


def best(costs: np.ndarray) -> np.ndarray:
    """Octaves to add, [ANCHORS, bands], of bits and errors [1 + 2 bands, ANCHORS, 2]: as it is, down, up, down, ..."""
    start, down, up = costs[0], costs[1::2] - costs[0], costs[2::2] - costs[0]
    along = (up - down).sum(0)
    slope = -along[:, 0] / along[:, 1]
    if not (slope > 0).all():
        raise SystemExit(f"finer quantiser steps do not cost bits and save error at these knots: {slope}")
    prices = np.array([price(quality) for quality in QUALITIES])
    worth = prices * np.exp(smooth(np.log(slope / prices)[:, None])[:, 0])
    down, up = (100 * (d[..., 0] + worth * d[..., 1]).T / start[:, :1] for d in (down, up))
    octaves: np.ndarray = -smooth((up - down) / 2) / (2 * np.maximum(smooth((up + down) / 2), FLATTEST))
    return octaves.clip(-2, 2) * DELTA


def smooth(values: np.ndarray) -> np.ndarray:
    """Along the knots."""
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    return (padded[:-2] + 2 * values + padded[2:]) / 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("float", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    integer = weights_io.load(args.weights)
    with TemporaryDirectory() as folder:
        paths = [args.weights]
        for band, octaves in product(range(len(BANDS)), (-DELTA, DELTA)):
            by = np.zeros((ANCHORS, len(BANDS)))
            by[:, band] = np.rint(octaves * LOG2_ONE)
            gains = change(torch.from_numpy(integer.tensors["latent.log2_gain"]), by).numpy()
            paths.append(Path(folder) / f"{len(paths)}.safetensors")
            weights_io.save(paths[-1], integer.tensors | {"latent.log2_gain": gains}, integer.config, integer.skip)
        with ProcessPoolExecutor(args.processes) as pool:
            costs = list(pool.map(partial(measure, args.pack), product(paths, QUALITIES)))
    changes = best(np.array(costs).reshape(len(paths), ANCHORS, 2))
    print(np.array2string(changes, precision=3, suppress_small=True, max_line_width=120))
    network = load_float(args.float)
    with torch.no_grad():
        network.log2_gain.copy_(change(network.log2_gain, changes))
    save_float(network, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
