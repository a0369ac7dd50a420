"""The training's loss on photographs it never sees, by float networks: what chooses between trainings.

    python benchmarks/validation_loss.py PHOTOGRAPHS CHECKPOINT [CHECKPOINT ...]

For each checkpoint (averaged weights) or float weights: mean loss, and bits per pixel and PSNR at each quality. Latents
are quantised as in files, bits are the model's estimates; there is no restoration filter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from effort import middle

from dca_fast.config import DEFAULT_EFFORT
from dca_fast.export import load_float
from dca_fast.image_io import list_images
from dca_fast.train.data import read_pixels
from dca_fast.train.trainer import Recipe, loss_of

QUALITIES = (10.0, 35.0, 60.0, 85.0)
SIDE = 512  # of the middle of each photograph


def image(path: Path) -> torch.Tensor:
    """The middle of a photograph, `[1, SIDE, SIDE, 3]` in grey levels minus 128."""
    pixels = read_pixels(path, str(path), SIDE)
    if pixels is None:
        raise SystemExit(f"{path} cannot be used: a side of less than {SIDE} pixels, or damaged")
    return torch.from_numpy(middle(pixels, SIDE))[None].float() - 128


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--effort", type=int, choices=(0, 1), default=DEFAULT_EFFORT, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = [image(path) for path in list_images(args.photographs)]
    for path in args.checkpoints:
        network, losses, text = load_float(path).eval(), [], []
        for quality in QUALITIES:
            q, found = torch.tensor([quality]), []
            for x in images:
                out = network(x, q, noisy=False, effort=args.effort)
                found.append(loss_of(out, x, q, Recipe().balance, torch.tensor(1.0)))
            losses += [loss for loss, _, _ in found]
            bpp, mse = (torch.cat(parts) for parts in list(zip(*found, strict=True))[1:])
            text.append(f"{bpp.mean():.4f} bpp {(10 * torch.log10(255**2 / mse)).mean():.3f} dB")
        print(f"{path}: loss {torch.stack(losses).mean():.5f}; " + ", ".join(text), flush=True)


if __name__ == "__main__":
    main()
