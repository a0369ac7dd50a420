"""How much of a training step's gradient is signal: what independent batches have in common.

    python benchmarks/measure/gradient_noise.py PACK.bin [--weights FILE] [--batches N] COUNTxCROP [COUNTxCROP ...]

For each batch shape: of the gradient's mean square, the share that is the square of its expectation, for each module of
the network. It is estimated without bias from all pairs of batches; near zero it may come out negative. The projections
of the trunk, whose gradients depend on their inputs' coordinates (train/whiten.py), are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dca_fast.model.network import Network
from dca_fast.train.data import Crops, Photographs
from dca_fast.train.export import load_float
from dca_fast.train.trainer import Recipe, draw_qualities, loss_of
from dca_fast.train.whiten import trunk

MODULES = ("analysis", "hyper", "context", "synthesis")


def gradient(network: Network, photographs: Crops, seed: int, count: int, crop: int) -> dict[str, Tensor]:
    """Gradient of one batch, as the trainer draws it, for each module: one vector each."""
    generator = np.random.default_rng(seed)
    quality = torch.tensor(draw_qualities(generator, count), dtype=torch.float32)
    image = photographs.batch(generator, count, crop)
    torch.manual_seed(seed)
    network.zero_grad()
    loss_of(network(image, quality), image, quality, Recipe().balance, torch.tensor(1.0))[0].backward()
    left_out = {id(p) for layer in trunk(network) for p in layer.parameters()}
    gradients: dict[str, list[Tensor]] = {module: [] for module in MODULES}
    for name, p in network.named_parameters():
        module = name.split(".")[0]
        if module in gradients and p.grad is not None and id(p) not in left_out:
            gradients[module].append(p.grad.flatten().clone())
    return {module: torch.cat(of_parameters) for module, of_parameters in gradients.items()}


def signal(gradients: Tensor) -> float:
    """Share of the mean square of `[batches, parameters]` that all batches have in common."""
    n, total = gradients.shape[0], gradients.square().sum()
    pairs = (gradients.sum(0).square().sum() - total) / (n * (n - 1))
    return float(pairs / (total / n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path, help="photographs, packed (.bin)")
    parser.add_argument("shapes", nargs="+", help="crops and their side, as 3x256")
    parser.add_argument("--weights", type=Path, default=Path("checkpoints/dca-s.safetensors"))
    parser.add_argument("--batches", type=int, default=32)
    args = parser.parse_args()
    network, photographs = load_float(args.weights).train(), Photographs(None, args.pack)
    for shape in args.shapes:
        count, crop = map(int, shape.split("x"))
        batches = [gradient(network, photographs, 1000 + i, count, crop) for i in range(args.batches)]
        shares = {module: signal(torch.stack([of_batch[module] for of_batch in batches])) for module in MODULES}
        print(f"{shape}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()), flush=True)


if __name__ == "__main__":
    main()
