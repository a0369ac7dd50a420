"""What the layers of c behind silent hyper latents are worth: files with each of them taken out, nothing trained again.

    python benchmarks/measure/stages.py PHOTOGRAPHS [--most 7] [--side 384]

Where a hyper latent is silent its stage of c adds a constant, and the gated layer behind it still works on every site.
That layer becomes zero here. Training again would win back a part, so the bits are the most that it can be worth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dca_fast import Codec
from dca_fast.evaluation.measure import Pixels, psnr
from dca_fast.evaluation.report import environment
from dca_fast.files.image_io import list_images, load_image
from dca_fast.network import models, weights

QUALITIES = (10, 35, 60, 85)
CASES: dict[str, tuple[str, ...]] = {
    "the global one": (".global_ffn.project",),
    "the local one": (".local_ffn.project",),
    "both": (".global_ffn.project", ".local_ffn.project"),
}


def middle(path: Path, side: int) -> Pixels:
    pixels: Pixels = load_image(path).pixels
    top, left = ((length - min(side, length)) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def points(codec: Codec, pictures: list[Pixels]) -> list[tuple[int, float]]:
    """Bytes of all pictures, and their mean PSNR, at each quality."""
    found = []
    for quality in QUALITIES:
        files = [codec.encode(picture, quality, effort=0) for picture in pictures]
        likeness = [psnr(p, codec.decode(file, "numpy")) for p, file in zip(pictures, files, strict=True)]
        found.append((sum(map(len, files)), float(np.mean(likeness))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--most", type=int, default=7, help="photographs, spread over all (default: %(default)s)")
    parser.add_argument("--side", type=int, default=384, help="of their middles (default: %(default)s)")
    args = parser.parse_args()
    paths = list_images(args.photographs)
    pictures = [middle(path, args.side) for path in paths[:: max(1, len(paths) // args.most)]][: args.most]
    shipped = weights.load(models.named("dca-s"))
    whole = points(Codec(threads=1), pictures)
    print(f"{len(pictures)} pictures, model {shipped.model_id.hex()}, {environment()}")
    for case, parts in CASES.items():
        tensors = {
            name: np.zeros_like(tensor) if any(f"{part}.{kind}" in name for part in parts for kind in "wb") else tensor
            for name, tensor in shipped.tensors.items()
        }
        with TemporaryDirectory() as folder:
            path = Path(folder) / "without.safetensors"
            weights.save(path, tensors, shipped.config, shipped.skip)
            without = points(Codec(weights=path, threads=1), pictures)
        changes = (
            f"quality {q}: {b / a - 1:+.1%} bytes, {y - x:+.2f} dB"
            for q, (a, x), (b, y) in zip(QUALITIES, whole, without, strict=True)
        )
        print(f"without {case}: {'; '.join(changes)}")


if __name__ == "__main__":
    main()
