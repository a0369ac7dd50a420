"""Whether an objective of training points to where the real loss falls.

    python benchmarks/measure/directions.py PHOTOGRAPHS FLOAT_WEIGHTS --part analysis

Takes the mean gradient of a module of the network over some batches, under uniform noise and under expected rates, each
parameter over the root of its mean square as Adam and SOAP do, and goes small steps against it. Prints how the loss
with values and bits as in files changes, on the same crops and on others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dca_fast.config import QUALITY_MAX
from dca_fast.model.expected import Expected
from dca_fast.model.network import Network
from dca_fast.train.data import Crops, open_data
from dca_fast.train.export import load_float
from dca_fast.train.trainer import Recipe, draw_qualities, loss_of, train_only

BATCH, CROP = 8, 192
STEP_SIZES = (3e-5, 1e-4, 3e-4)
SEEDS = {"the same crops": 1, "other crops": 77}


def batches(photographs: Crops, seed: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Crops and qualities."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        image = photographs.batch(generator, BATCH, CROP)
        yield image, torch.from_numpy(draw_qualities(generator, BATCH)).clamp(0, QUALITY_MAX).float()


def loss(network: Network, image: Tensor, quality: Tensor, noisy: bool) -> Tensor:
    out = network(image, quality, noisy=noisy)
    return loss_of(out, image, quality, Recipe().balance, torch.tensor(1.0))[0]


def direction(network: Network, photographs: Crops, count: int) -> list[Tensor]:
    """Mean gradient over the root of the mean square, of what is trained."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    mean, square = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for image, quality in batches(photographs, SEEDS["the same crops"], count):
        torch.manual_seed(0)
        for m, s, g in zip(
            mean, square, torch.autograd.grad(loss(network, image, quality, True), parameters), strict=True
        ):
            m += g / count
            s += g.square() / count
    return [m / (s.sqrt() + 1e-12) for m, s in zip(mean, square, strict=True)]


@torch.no_grad()
def real(network: Network, photographs: Crops, seed: int, count: int) -> np.ndarray:
    """Losses with values and bits as in files."""
    pairs = batches(photographs, seed, count)
    return np.array([float(loss(network, image, quality, False)) for image, quality in pairs])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--part", default="analysis")
    parser.add_argument("--batches", type=int, default=24, help="of a gradient (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="decoded photographs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = load_float(args.weights)
    train_only(network, (args.part,))
    photographs = open_data(args.photographs, args.cache or args.photographs / ".decoded", 256)
    directions = {}
    for name in ("noise", "expected"):
        network.expected = Expected(torch.device("cpu")) if name == "expected" else None
        directions[name] = direction(network, photographs, args.batches)
    network.expected = None
    products = [
        [float(sum((a * b).sum() for a, b in zip(x, y, strict=True))) for y in directions.values()]
        for x in directions.values()
    ]
    print(f"{args.part}: cosine of the two {products[0][1] / (products[0][0] * products[1][1]) ** 0.5:.2f}")
    count = args.batches // 2
    before = {seed: real(network, photographs, seed, count) for seed in SEEDS.values()}
    parameters = [p for p in network.parameters() if p.requires_grad]
    for name, step in ((name, step) for name in directions for step in STEP_SIZES):
        with torch.no_grad():
            torch._foreach_add_(parameters, directions[name], alpha=-step)
        changes = []
        for crops, seed in SEEDS.items():
            change = 100 * (real(network, photographs, seed, count) - before[seed]) / before[seed].mean()
            changes.append(f"{crops} {change.mean():+.3f} +- {change.std() / count**0.5:.3f} %")
        with torch.no_grad():
            torch._foreach_add_(parameters, directions[name], alpha=step)
        print(f"{name}, step {step:g}: " + ", ".join(changes), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
