"""The training's loss on photographs it never sees, by float networks: what chooses between trainings.

    python benchmarks/measure/validation_loss.py PHOTOGRAPHS CHECKPOINT [CHECKPOINT ...]
    python benchmarks/measure/validation_loss.py PHOTOGRAPHS END --apart START

For each checkpoint (averaged weights) or float weights: mean loss, and bits per pixel and PSNR at each quality. Latents
are quantised as in files, bits are the model's estimates by Gaussian tables; there is no restoration filter.

With --apart the first one is taken apart: its start; all of it; it with the quantiser steps of its start, which change
the rate when they drift and say nothing of the rest; and its start with each group of its parameters alone. A training
improved if the third line is better than the first and no group alone makes it worse.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from effort import middle

from dca_fast.config import DEFAULT_AQ, DEFAULT_EFFORT
from dca_fast.files.image_io import list_images
from dca_fast.model.network import Network
from dca_fast.train.data import read_pixels
from dca_fast.train.export import load_float
from dca_fast.train.trainer import Recipe, loss_of

QUALITIES = (10.0, 35.0, 60.0, 85.0)
SIDE = 512  # of the middle of each photograph
# Groups of parameters that a training may move, by the beginnings of their names.
GROUPS = {
    "f_a": ("analysis.",),
    "hyper pairs": ("hyper.", "factorised."),
    "c": ("context.",),
    "f_s": ("synthesis.",),
    "quantiser steps": ("log2_gain",),
}


def image(path: Path) -> torch.Tensor:
    """The middle of a photograph, `[1, SIDE, SIDE, 3]` in grey levels minus 128."""
    pixels = read_pixels(path, str(path), SIDE)
    if pixels is None:
        raise SystemExit(f"{path} cannot be used: a side of less than {SIDE} pixels, or damaged")
    return torch.from_numpy(middle(pixels, SIDE))[None].float() - 128


def apart(start: Path, end: Path) -> Iterator[tuple[str, Network]]:
    """Networks between two, by what they have of the end."""
    states = [load_float(path).state_dict() for path in (start, end)]

    def of(names: tuple[str, ...], network: Path, state: dict[str, torch.Tensor]) -> Network:
        mixed = load_float(network)
        mixed.load_state_dict(mixed.state_dict() | {k: v for k, v in state.items() if k.startswith(names)})
        return mixed.eval()

    yield "start", load_float(start)
    yield "end", load_float(end)
    yield "end, quantiser steps of the start", of(GROUPS["quantiser steps"], end, states[0])
    if states[0].keys() == states[1].keys():
        for group, names in GROUPS.items():
            if any(not states[0][k].equal(states[1][k]) for k in states[0] if k.startswith(names)):
                yield f"start with {group} of the end", of(names, start, states[1])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--apart", type=Path, metavar="START", help="take the first checkpoint apart")
    parser.add_argument("--effort", type=int, choices=(0, 1), default=DEFAULT_EFFORT, help="default: %(default)s")
    parser.add_argument("--aq-strength", type=float, default=DEFAULT_AQ, help="default: %(default)s")
    parser.add_argument("--images", type=int, metavar="N", help="the first so many photographs (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = [image(path) for path in list_images(args.photographs)[: args.images]]
    named: Iterator[tuple[str, Network]] = ((str(path), load_float(path)) for path in args.checkpoints)
    if args.apart:
        named = apart(args.apart, args.checkpoints[0])
    first = None
    for name, network in named:
        losses, text = [], []
        for quality in QUALITIES:
            q, results = torch.tensor([quality]), []
            for x in images:
                out = network.eval()(x, q, noisy=False, effort=args.effort, aq_strength=args.aq_strength)
                results.append(loss_of(out, x, q, Recipe().balance, torch.tensor(1.0)))
            losses += [loss for loss, _, _ in results]
            bpp, mse = (torch.cat(of_images) for of_images in list(zip(*results, strict=True))[1:])
            text.append(f"{bpp.mean():.4f} bpp {(10 * torch.log10(255**2 / mse)).mean():.3f} dB")
        loss = float(torch.stack(losses).mean())
        first = loss if first is None else first
        print(f"{name}: loss {loss:.5f} ({100 * (loss / first - 1):+.2f} %); " + ", ".join(text), flush=True)


if __name__ == "__main__":
    main()
