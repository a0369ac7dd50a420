"""One photograph at several qualities: files, decoded pictures, a comparison, and the proof of exactness."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dca_fast.files.atomic import check_output, write_atomic
from dca_fast.files.image_io import ImageInput, to_pil
from dca_fast.files.image_out import image_bytes
from dca_fast.metrics import Pixels, psnr

if TYPE_CHECKING:
    from dca_fast.codec import Codec

__all__ = [
    "QUALITIES",
    "Shot",
    "agrees",
    "comparison",
    "most_detailed",
    "run",
    "save",
    "table",
]

QUALITIES = (10, 30, 60, 90)
PROOF = 160  # pixels a side of what backends are compared with
TILE = 320  # pixels a side of a crop, and width of a column, in the comparison
MARGIN, CAPTION = 8, 44


@dataclass(frozen=True)
class Shot:
    """The photograph at one quality; times are medians."""

    quality: float
    data: bytes
    pixels: Pixels
    bpp: float
    psnr: float
    encode_ms: float
    decode_ms: float


def run(image: ImageInput, codec: Codec) -> list[Shot]:
    """Compress and decompress at every demo quality, timed after a warm-up."""
    codec.decode(codec.encode(image, QUALITIES[0]), "numpy")
    shots = []
    for quality in QUALITIES:
        data, encode_ms = _timed(codec.encode, image, quality)
        pixels, decode_ms = _timed(codec.decode, data, "numpy")
        bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
        level = psnr(image.pixels, pixels)
        shots.append(Shot(quality, data, pixels, bpp, level, encode_ms, decode_ms))
    return shots


def agrees(quality: float, image: ImageInput, codec: Codec, other: Codec) -> bool:
    """Whether two codecs write the same bytes and read the same pixels from them, of the picture's most detailed part;
    the reference would take minutes for all of it."""
    top, left = most_detailed(image.pixels, PROOF)
    part = np.ascontiguousarray(image.pixels[top : top + PROOF, left : left + PROOF])
    data = codec.encode(part, quality)
    same_bytes = other.encode(part, quality) == data
    return same_bytes and np.array_equal(other.decode(data, "numpy"), codec.decode(data, "numpy"))


def save(image: ImageInput, shots: Sequence[Shot], folder: Path, stem: str, *, force: bool = False) -> list[Path]:
    """Write the .dca files, the decoded pictures and the comparison.

    Args:
        image: the original.
        shots: from `run`.
        folder: made if missing.
        stem: start of the file names.
        force: replace other files of these names; those of an earlier run are the same and always are replaced.

    Returns:
        What was written.

    Raises:
        InputError: another file has one of the names; nothing is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for shot in shots:
        files[folder / f"{stem}-q{shot.quality:g}.dca"] = shot.data
        files[folder / f"{stem}-q{shot.quality:g}.png"] = image_bytes(to_pil(shot.pixels), ".png")
    files[folder / f"{stem}-comparison.png"] = image_bytes(comparison(image.pixels, shots), ".png")
    for path, data in files.items():
        if not (path.is_file() and path.read_bytes() == data):
            check_output(path, force=force)
    for path, data in files.items():
        write_atomic(path, data)
    return list(files)


def table(shots: Sequence[Shot]) -> str:
    """The shots as text."""
    lines = [f"{'quality':>8}{'bytes':>10}{'bpp':>8}{'PSNR dB':>9}{'encode ms':>11}{'decode ms':>11}"]
    for s in shots:
        numbers = f"{s.quality:8g}{len(s.data):10d}{s.bpp:8.3f}{s.psnr:9.2f}"
        lines.append(f"{numbers}{s.encode_ms:11.1f}{s.decode_ms:11.1f}")
    return "\n".join(lines)


def comparison(original: Pixels, shots: Sequence[Shot]) -> Image.Image:
    """Original and every quality side by side: the whole picture, and its most detailed part at 1:1."""
    height, width = original.shape[:2]
    top, left = most_detailed(original, TILE)
    whole = (TILE, max(1, round(height * TILE / width)))
    columns = [("original", "24 bpp", original)]
    columns += [(f"quality {s.quality:g}", f"{s.bpp:.3f} bpp  {s.psnr:.2f} dB", s.pixels) for s in shots]
    crop_height = min(TILE, height)
    size = (
        MARGIN + len(columns) * (TILE + MARGIN),
        CAPTION + whole[1] + MARGIN + crop_height + MARGIN,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    fonts = ImageFont.load_default(17), ImageFont.load_default(15)
    for i, (title, facts, pixels) in enumerate(columns):
        x = MARGIN + i * (TILE + MARGIN)
        draw.text((x, 3), title, "black", fonts[0])
        draw.text((x, 23), facts, "dimgray", fonts[1])
        sheet.paste(Image.fromarray(pixels).resize(whole, Image.Resampling.LANCZOS), (x, CAPTION))
        crop = np.ascontiguousarray(pixels[top : top + TILE, left : left + TILE])
        sheet.paste(Image.fromarray(crop), (x, CAPTION + whole[1] + MARGIN))
    return sheet


def most_detailed(pixels: Pixels, side: int) -> tuple[int, int]:
    """Top and left of the square window with the largest sum of gradients; 0 where the image is smaller."""
    luma = pixels.astype(np.float64).mean(2)
    detail = np.zeros((luma.shape[0] + 1, luma.shape[1] + 1))
    detail[2:, 1:] += np.abs(np.diff(luma, axis=0))
    detail[1:, 2:] += np.abs(np.diff(luma, axis=1))
    total = detail.cumsum(0).cumsum(1)
    high, wide = min(side, luma.shape[0]), min(side, luma.shape[1])
    sums = total[high:, wide:] - total[:-high, wide:] - total[high:, :-wide] + total[:-high, :-wide]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left)


def _timed(work: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Result, and the median of the milliseconds of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = work(*args)
        times.append(1e3 * (time.perf_counter() - start))
    return result, sorted(times)[1]
