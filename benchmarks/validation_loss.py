"""The training's loss on photographs it never sees, by float networks: what chooses between trainings.

    python benchmarks/validation_loss.py PHOTOGRAPHS CHECKPOINT [CHECKPOINT ...]

For each checkpoint (averaged weights) or float weights: mean loss, and bits per pixel and PSNR at each quality. Latents
are rounded as in files; bits are the model's estimates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dca_fast.export import load_float
from dca_fast.train.data import list_images, read_pixels
from dca_fast.train.trainer import Recipe, loss_of

QUALITIES = (10.0, 35.0, 60.0, 85.0)
SIDE = 512  # of the middle of each photograph


def middle(path: Path) -> torch.Tensor:
    pixels = read_pixels(path, str(path), SIDE)
    if pixels is None:
        raise SystemExit(f"{path} cannot be used: a side of less than {SIDE} pixels, or damaged")
    top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
    return torch.from_numpy(np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])).float() - 128


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = torch.stack([middle(path) for path in list_images(args.photographs)])
    for path in args.checkpoints:
        network, losses, text = load_float(path).eval(), [], []
        for quality in QUALITIES:
            found = []
            for image in images.split(4):
                q = torch.full((len(image),), quality)
                found.append(loss_of(network(image, q, noisy=False), image, q, Recipe().balance, torch.tensor(1.0)))
            losses += [loss * len(image) for (loss, _, _), image in zip(found, images.split(4), strict=True)]
            bpp, mse = (torch.cat(parts) for parts in list(zip(*found, strict=True))[1:])
            text.append(f"{bpp.mean():.4f} bpp {(10 * torch.log10(255**2 / mse)).mean():.3f} dB")
        print(f"{path}: loss {sum(losses) / len(images) / len(QUALITIES):.5f}; " + ", ".join(text), flush=True)


if __name__ == "__main__":
    main()
