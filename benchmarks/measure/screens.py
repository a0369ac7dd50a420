"""Screens and text beside AVIF: bytes at equal PSNR, whether photographs change, and the time of the encoder.

    python benchmarks/measure/screen_set.py SCREENS --site build/site
    python benchmarks/measure/screens.py SCREENS --photographs KODAK VALIDATION --cache avif.json \
        --out benchmarks/results/screens.json
    python benchmarks/measure/screenshots.py SHOTS --from PACKAGES
    python benchmarks/measure/screens.py SHOTS --cache avif.json --out benchmarks/results/screenshots.json

AVIF is Pillow's, speed 4, 4:4:4; its bytes at our PSNR are read off its curve, logarithms between the qualities of the
ladder. Where our PSNR is beyond that curve, its last point stands for it, which favours AVIF. Times are those of the
processor for one thread, with and without graphics in turn, the least of several.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features
from rich.progress import track

from dca_fast import Codec, inspect
from dca_fast.evaluation.report import environment
from dca_fast.files.image_io import list_images, load_image

QUALITIES = (30, 60, 90)
LADDER = (5, 15, 25, 35, 45, 55, 65, 75, 82, 88, 93, 97, 100)
CEILING = 1e-3  # of the mean squared error in PSNR: what is equal has 78 dB


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.square(one.astype(np.int64) - other).mean())
    return float(10 * np.log10(255**2 / max(error, CEILING)))


def avif_curve(pixels: np.ndarray, cache: dict[str, Any]) -> list[tuple[int, float]]:
    """Bytes and PSNR at every quality of the ladder."""
    name = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    if name not in cache:
        cache[name] = []
        for quality in LADDER:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "AVIF", quality=quality, speed=4, subsampling="4:4:4")
            back = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
            cache[name].append((len(file.getvalue()), psnr(back, pixels)))
    return cache[name]


def bytes_at(curve: list[tuple[int, float]], wanted: float) -> float:
    points = sorted((decibels, size) for size, decibels in curve)
    return float(np.exp(np.interp(wanted, [p[0] for p in points], [np.log(p[1]) for p in points])))


def timed(codec: Codec, pixels: np.ndarray, quality: float, repeats: int) -> float:
    """Time with graphics over that without."""
    least = {"auto": np.inf, "off": np.inf}
    for _ in range(repeats):
        for screen in least:
            begin = time.process_time()
            codec.encode(pixels, quality, screen=screen)
            least[screen] = min(least[screen], time.process_time() - begin)
    return float(least["auto"] / least["off"])


def measure(codec: Codec, pixels: np.ndarray, curve: list[tuple[int, float]], repeats: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    blocks = -(-pixels.shape[0] // 16) * -(-pixels.shape[1] // 16)
    for quality in QUALITIES:
        data = codec.encode(pixels, quality)
        info, decibels = inspect(data), psnr(codec.decode(data, "numpy"), pixels)
        rival = bytes_at(curve, decibels)
        row[str(quality)] = {
            "bytes": len(data),
            "psnr": decibels,
            "avif_bytes": rival,
            "to_avif": len(data) / rival,
            "beyond_avif": decibels > max(point[1] for point in curve),
            "off_bytes": len(codec.encode(pixels, quality, screen="off")),
            "graphic_blocks": 1.0 if info.exact else info.graphic_blocks / blocks,
            "encode_time": timed(codec, pixels, quality, repeats),
        }
    return row


def mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screens", type=Path, help="a folder that screen_set.py or screenshots.py made")
    parser.add_argument("--photographs", type=Path, nargs="*", default=[], metavar="DIR")
    parser.add_argument("--cache", type=Path, help="of what AVIF did")
    parser.add_argument("--repeats", type=int, default=3, help="of what is timed (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    codec = Codec(threads=1)
    cache = json.loads(args.cache.read_text()) if args.cache and args.cache.exists() else {}
    pictures: dict[str, Any] = {}
    for path in track(list_images(args.screens), "screens"):
        pixels = load_image(path, pixels_only=True).pixels
        pictures[path.stem] = measure(codec, pixels, avif_curve(pixels, cache), args.repeats)
        if args.cache:
            args.cache.write_text(json.dumps(cache))
    clean = [name for name in pictures if not name.startswith("mixed")]
    facts: dict[str, Any] = {"means": {}, "photographs": {}}
    for quality in map(str, QUALITIES):
        facts["means"][quality] = {
            "to_avif": mean([row[quality]["to_avif"] for row in pictures.values()]),
            "off_to_avif": mean([row[quality]["off_bytes"] / row[quality]["avif_bytes"] for row in pictures.values()]),
            "worst_clean": max((pictures[name][quality]["to_avif"], name) for name in clean),
            "encode_time": mean([row[quality]["encode_time"] for row in pictures.values()]),
        }
    for folder in args.photographs:
        changed, ratios, paths = [], [], list_images(folder)
        for path in track(paths, folder.name):
            pixels = load_image(path, pixels_only=True).pixels
            for quality in QUALITIES:
                same = codec.encode(pixels, quality) == codec.encode(pixels, quality, screen="off")
                changed += [] if same else [f"{path.name}, {quality}"]
            ratios.append(timed(codec, pixels, 60, args.repeats))
        times = {"encode_time": mean(ratios), "slowest": max(ratios)}
        facts["photographs"][folder.name] = {"count": len(paths), "changed": changed, **times}
    facts |= {"pictures": pictures, "model_id": codec.model_id, "avif": features.version("avif")}
    facts |= environment()
    for quality, row in facts["means"].items():
        print(f"quality {quality}: {row}")
    for name, row in facts["photographs"].items():
        print(f"{name}: {row}")
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
