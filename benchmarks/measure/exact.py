"""The exact-colour coder beside PNG, WebP and JPEG XL: bytes of graphics, photographs, masks and 16 bits, and time.

    python benchmarks/measure/exact.py --photographs KODAK --out benchmarks/results/exact.json

Graphics and masks are drawn here; none of them was seen by any training. Every stream is decoded and compared. Times
are processor time of one thread; those of WebP are taken in turn with ours, for machines that others use, too.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pillow_jxl  # noqa: F401 (it registers itself)
from graphics import FONTS, draw
from PIL import Image, ImageDraw, ImageFilter
from rich.progress import track

from dca_fast.evaluation.report import environment
from dca_fast.exact import coder
from dca_fast.exact.picture import alpha_levels, with_levels
from dca_fast.files.image_io import list_images, load_image

Picture = Any  # uint8 or uint16 [H, W] or [H, W, 3]
SIZE = (768, 512)
ALPHA_QUALITIES = (90, 79, 50, 20)


def graphics(count: int) -> Iterator[tuple[str, Picture]]:
    for seed in range(5000, 5000 + count):
        fonts = (None,) if seed % 2 else FONTS
        yield f"graphic {seed}", np.asarray(draw(seed, SIZE, fonts).convert("RGB"))


def photographs(folder: Path, count: int | None) -> Iterator[tuple[str, Picture]]:
    for path in list_images(folder)[:count]:
        yield path.name, load_image(path, pixels_only=True).pixels


def masks() -> Iterator[tuple[str, Picture]]:
    """Soft edges of shapes, a vignette, fine hair, and a plain disc."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width]
    generator = np.random.default_rng(6)
    shapes, hair = Image.new("L", SIZE), Image.new("L", (2 * width, 2 * height))
    for _ in range(9):
        left, top = generator.integers(0, width), generator.integers(0, height)
        box = (int(left), int(top), int(left + generator.integers(30, 260)), int(top + generator.integers(30, 260)))
        ImageDraw.Draw(shapes).ellipse(box, fill=int(generator.integers(80, 256)))
    yield "mask of soft shapes", np.asarray(shapes.filter(ImageFilter.GaussianBlur(9)))
    far = np.hypot(x - width / 2, y - height / 2) / math.hypot(width / 2, height / 2)
    yield "mask of a vignette", np.rint(255 * np.clip(1 - far, 0, 1)).astype(np.uint8)
    pen = ImageDraw.Draw(hair)
    pen.ellipse((500, 240, 1040, 900), fill=255)
    for _ in range(500):
        angle, length = generator.uniform(0, 2 * math.pi), generator.uniform(60, 260)
        points = [(770 + 270 * math.cos(angle), 570 + 330 * math.sin(angle))]
        for _ in range(12):
            angle += float(generator.normal(0, 0.12))
            at = points[-1]
            points.append((at[0] + length / 12 * math.cos(angle), at[1] + length / 12 * math.sin(angle)))
        pen.line(points, fill=int(generator.integers(120, 256)))
    yield "mask of hair", np.asarray(hair.resize(SIZE, Image.Resampling.BOX))
    disc = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(disc).ellipse((1000, 500, 2200, 1700), fill=255)
    yield "mask of a disc", np.asarray(disc.resize(SIZE, Image.Resampling.BOX))


def deep(folder: Path, count: int | None) -> Iterator[tuple[str, Picture]]:
    """Gray of 16 bits: linear light, the means of 2 x 2 pixels."""
    for name, picture in photographs(folder, count):
        linear = ((picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2, 1] + 2) / 257.0) ** 2.2
        small = linear.reshape(linear.shape[0] // 2, 2, linear.shape[1] // 2, 2).mean((1, 3))
        yield f"{name}, 16 bits", np.rint(small * 65535).astype(np.uint16)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def measure(picture: Picture) -> dict[str, Any]:
    samples = picture if picture.ndim == 3 else picture[:, :, None]
    image, megapixels = Image.fromarray(picture), picture.shape[0] * picture.shape[1] / 1e6
    row: dict[str, Any] = {"png": len(saved(image, "PNG", optimize=True))}
    stream, ours = timed(lambda: coder.encode(samples))
    depth, digest = 8 * samples.itemsize, coder.digest_of(samples)
    back, again = timed(lambda: coder.decode(stream, samples.shape, depth, digest))
    if not np.array_equal(back, samples):
        raise SystemExit("a stream did not decode to its samples")
    row |= {"exact": len(stream), "encode_mp_s": megapixels / ours, "decode_mp_s": megapixels / again}
    if depth == 8:
        webp, theirs = timed(lambda: saved(image, "WEBP", lossless=True, quality=100, method=6))
        row |= {"webp": len(webp), "encode_time_to_webp": ours / theirs}
    row["jxl"] = len(saved(image, "JXL", lossless=True, effort=7))
    return row


def rounded_alpha() -> dict[str, float]:
    """Bytes of masks at qualities of alpha, as a share of those without loss: geometric means."""
    shares = {}
    for quality in ALPHA_QUALITIES:
        levels = alpha_levels(quality)
        logs = []
        for _, mask in masks():
            fewer = with_levels(mask, levels)
            logs.append(math.log(len(coder.encode(fewer[:, :, None])) / len(coder.encode(mask[:, :, None]))))
        shares[str(quality)] = round(math.exp(sum(logs) / len(logs)), 4)
    return shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--count", type=int, help="of the photographs; default: all")
    parser.add_argument("--graphics", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    kinds = {
        "graphics": list(graphics(args.graphics)),
        "photographs": list(photographs(args.photographs, args.count)),
        "masks": list(masks()),
        "16 bits": list(deep(args.photographs, args.count)),
    }
    result: dict[str, Any] = {}
    for kind, pictures in kinds.items():
        rows = {name: measure(picture) for name, picture in track(pictures, kind)}
        means = {}
        for rival in ("png", "webp", "jxl"):
            ratios = [row["exact"] / row[rival] for row in rows.values() if rival in row]
            if ratios:
                means[f"exact_to_{rival}"] = round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 4)
        for speed in ("encode_mp_s", "decode_mp_s"):
            means[speed] = round(len(rows) / sum(1 / row[speed] for row in rows.values()), 2)
        result[kind] = {"means": means, "rows": {name: _rounded(row) for name, row in rows.items()}}
        sys.stdout.write(f"{kind}: {json.dumps(means)}\n")
        sys.stdout.flush()
    result["alpha"] = rounded_alpha()
    sys.stdout.write(f"masks at qualities of alpha: {json.dumps(result['alpha'])}\n")
    result |= environment()
    result["versions"]["pillow-jxl-plugin"] = version("pillow-jxl-plugin")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    raise SystemExit(main())
