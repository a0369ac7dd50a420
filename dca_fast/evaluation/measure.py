"""Rate and distortion from real files: rows for each image, their means, BD-rates between curves.

Rate is 8 * bytes of the whole file / pixels. PSNR, MS-SSIM and SSIMULACRA2 are taken on 8-bit RGB, per image, and then
averaged; docs/guide/evaluating.md states every convention.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dca_fast.errors import BackendUnavailableError, DcaError, InputError, InputWarning
from dca_fast.files.atomic import write_atomic
from dca_fast.files.image_io import list_images, load_image
from dca_fast.metrics import MS_SSIM_SIDE, Pixels, ms_ssim, need, psnr
from dca_fast.ssimulacra2 import SIDE, ssimulacra2

__all__ = [
    "Curve",
    "Delta",
    "ImageFolder",
    "Point",
    "Row",
    "RowCache",
    "bd_rate",
    "evaluate",
    "load_anchors",
    "ms_ssim",
    "need",
    "psnr",
    "rate_inversions",
]


class CodecLike(Protocol):
    """What is evaluated: `Codec`, `Peer`, or anything else with these two methods."""

    def encode(self, image: Any, quality: float, /) -> bytes:
        """`[H, W, 3]` uint8 to a file."""
        ...

    def decode(self, data: bytes, output: Literal["numpy"], /) -> Any:
        """The file to `[H, W, 3]` uint8."""
        ...


@dataclass(frozen=True)
class Row:
    """One image at one quality; `ms_ssim` is None below 161 pixels a side, `ssimulacra2` below 8 or if not wanted."""

    image: str
    quality: float
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float | None
    encode_ms: float
    decode_ms: float
    ssimulacra2: float | None = None


@dataclass(frozen=True)
class Point:
    """Means over the images at one quality; `ms_ssim` and `ssimulacra2` over those that have one."""

    quality: float
    bpp: float
    psnr: float
    ms_ssim: float | None
    images: int
    ssimulacra2: float | None = None


@dataclass(frozen=True)
class Curve:
    """A codec over a set of images."""

    name: str
    rows: tuple[Row, ...]

    @property
    def points(self) -> list[Point]:
        """One for each quality, in rising order."""
        qualities = sorted({row.quality for row in self.rows})
        return [_mean([row for row in self.rows if row.quality == q]) for q in qualities]


@dataclass(frozen=True)
class Delta:
    """A Bjontegaard comparison.

    Args:
        rate_percent: mean difference in rate at equal PSNR; negative: fewer bits than the anchor.
        psnr_db: mean difference in PSNR at equal rate.
        overlap: PSNR range that both curves share / range that either covers, 0..1.
        psnr_range: ends of the shared range in dB.
        note: why there are no numbers, or "".
    """

    rate_percent: float | None
    psnr_db: float | None
    overlap: float
    psnr_range: tuple[float, float] | None
    note: str = ""


class ImageFolder:
    """Names and pixels `[H, W, 3]` uint8 of the images below a folder, read when iterated over.

    Raises:
        InputError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.paths = list_images(self.folder)
        self._said: set[tuple[Path, str]] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, Pixels]]:
        for path in self.paths:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    image = load_image(path, pixels_only=True)
                except DcaError as error:
                    raise type(error)(f"{path}: {error}") from error
            texts = [str(warning.message) for warning in said]
            for text in texts if image.alpha is None else [*texts, "alpha is left out"]:
                if (path, text) not in self._said:  # by an earlier pass
                    self._said.add((path, text))
                    warnings.warn(f"{path}: {text}", InputWarning, stacklevel=2)
            yield path.relative_to(self.folder).as_posix(), image.pixels


class RowCache:
    """Rows of a codec that does not change between evaluations, in one JSON file.

    Args:
        folder: created if missing.
        identity: all that its rows depend on besides pixels and quality: codec, version, settings.

    Raises:
        InputError: a file of that name holds something else.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
        self._facts: dict[str, Any] = {"identity": identity, "rows": {}}
        if self._path.exists():
            try:
                self._facts = json.loads(self._path.read_text("utf-8"))
            except ValueError as error:
                raise InputError(f"{self._path} is not a cache of rows: {error}") from error

    @staticmethod
    def _key(pixels: Pixels, quality: float) -> str:
        """Of the pixels, not of their name."""
        digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:32]
        return f"{digest} {quality:g}"

    def find(self, label: str, pixels: Pixels, quality: float) -> Row | None:
        """The row of these pixels, under their present name."""
        values = self._facts["rows"].get(self._key(pixels, quality))
        return None if values is None else Row(**{**values, "image": label})

    def keep(self, row: Row, pixels: Pixels) -> None:
        """Add a row; the file is complete after every call."""
        self._facts["rows"][self._key(pixels, row.quality)] = asdict(row)
        write_atomic(self._path, json.dumps(self._facts).encode())


def evaluate(
    codec: CodecLike,
    images: Iterable[tuple[str, Pixels]],
    qualities: Sequence[float],
    *,
    name: str = "dca-fast",
    on_row: Callable[[Row], None] | None = None,
    cache: RowCache | None = None,
    scores: bool = False,
) -> Curve:
    """Encode and decode every image at every quality.

    Args:
        codec: encoder and decoder.
        images: names and pixels `[H, W, 3]` uint8.
        qualities: in the codec's own range.
        name: of the curve.
        on_row: called after each image and quality, for progress.
        cache: its rows are not measured again, new ones are added.
        scores: SSIMULACRA2 too, which takes about a second for a megapixel.

    Returns:
        The rows, in the order of images and qualities.

    Raises:
        InputError: no images, or a decoder that returns another size.
    """
    rows, similarity = [], ms_ssim
    try:
        similarity(*2 * [np.zeros((MS_SSIM_SIDE, MS_SSIM_SIDE, 3), np.uint8)])
    except BackendUnavailableError as error:
        warnings.warn(f"MS-SSIM is left out: {error}", InputWarning, stacklevel=2)
        similarity = no_ms_ssim
    for label, pixels in images:
        for quality in qualities:
            row = cache.find(label, pixels, quality) if cache else None
            if row is None or (scores and row.ssimulacra2 is None):
                row = _measure(codec, label, pixels, quality, similarity, scores)
                if cache:
                    cache.keep(row, pixels)
            rows.append(row)
            if on_row:
                on_row(rows[-1])
    if not rows:
        raise InputError("nothing to evaluate: no images or no qualities")
    return Curve(name, tuple(rows))


def no_ms_ssim(a: Pixels, b: Pixels) -> None:
    """Where `ms_ssim` has no packages."""


def _measure(
    codec: CodecLike,
    label: str,
    pixels: Pixels,
    quality: float,
    similarity: Callable[[Pixels, Pixels], float | None],
    scores: bool,
) -> Row:
    start = time.perf_counter()
    data = codec.encode(pixels, quality)
    middle = time.perf_counter()
    decoded = codec.decode(data, "numpy")
    end = time.perf_counter()
    if decoded.shape != pixels.shape or decoded.dtype != np.uint8:
        raise InputError(f"{label}: {pixels.shape} came back as {decoded.shape} {decoded.dtype}")
    return Row(
        image=label,
        quality=quality,
        bytes=len(data),
        bpp=8 * len(data) / (pixels.shape[0] * pixels.shape[1]),
        psnr=psnr(pixels, decoded),
        ms_ssim=similarity(pixels, decoded),
        encode_ms=1e3 * (middle - start),
        decode_ms=1e3 * (end - middle),
        ssimulacra2=ssimulacra2(pixels, decoded) if scores and min(pixels.shape[:2]) >= SIDE else None,
    )


def _mean(rows: Sequence[Row]) -> Point:
    similar = [r.ms_ssim for r in rows if r.ms_ssim is not None]
    scores = [r.ssimulacra2 for r in rows if r.ssimulacra2 is not None]
    count = len(rows)
    return Point(
        quality=rows[0].quality,
        bpp=sum(r.bpp for r in rows) / count,
        psnr=sum(r.psnr for r in rows) / count,
        ms_ssim=sum(similar) / len(similar) if similar else None,
        images=count,
        ssimulacra2=sum(scores) / len(scores) if scores else None,
    )


def rate_inversions(rows: Iterable[Row]) -> list[str]:
    """Where a file shrank although the quality rose; empty for a monotonic codec."""
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    inversions = []
    for image, of_image in by_image.items():
        ordered = sorted(of_image, key=lambda r: r.quality)
        for a, b in pairwise(ordered):
            if b.bytes < a.bytes:
                inversions.append(f"{image}: {a.bytes} bytes at {a.quality:g}, {b.bytes} at {b.quality:g}")
    return inversions


def bd_rate(test: Sequence[tuple[float, float]], anchor: Sequence[tuple[float, float]]) -> Delta:
    """Compare two curves of (bits per pixel, PSNR in dB) over the PSNR range they share.

    Args:
        test: the codec in question, at least two points. Those of infinite PSNR, without loss, do not count.
        anchor: what it is compared with.

    Returns:
        Differences by piecewise cubic interpolation (pchip) of log rate, as in the standards' sheets.

    Reference: G. Bjontegaard, VCEG-M33; package `bjontegaard`.
    """
    curves = [sorted(point for point in points if math.isfinite(point[1])) for points in (test, anchor)]
    for label, given, points in zip(("test", "anchor"), (test, anchor), curves, strict=True):
        rising = all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(points))
        if len(points) < 2 or not rising:
            lost = "; a picture that came back without loss has no PSNR" if len(points) < len(given) else ""
            return Delta(None, None, 0.0, None, f"the {label} curve does not rise over two or more points{lost}")
    low, high = max(c[0][1] for c in curves), min(c[-1][1] for c in curves)
    if low >= high:
        return Delta(None, None, 0.0, None, "the curves share no range of PSNR")
    union = max(c[-1][1] for c in curves) - min(c[0][1] for c in curves)
    package = need("bjontegaard")
    (rate, quality), (rate_anchor, quality_anchor) = (tuple(zip(*c, strict=True)) for c in curves)
    arguments = (rate_anchor, quality_anchor, rate, quality, "pchip")
    options = {"require_matching_points": False, "min_overlap": 0}
    shared_rates = max(rate[0], rate_anchor[0]) < min(rate[-1], rate_anchor[-1])
    return Delta(
        rate_percent=float(package.bd_rate(*arguments, **options)),
        psnr_db=float(package.bd_psnr(*arguments, **options)) if shared_rates else None,
        overlap=(high - low) / union,
        psnr_range=(low, high),
    )


def load_anchors(path: Path, chosen: str, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Published curves: JSON of `{set: {name: {"source", "bpp": [...], "psnr_rgb": [...]}}}`.

    Args:
        path: the file.
        chosen: the set of images, a key of the file.
        names: curves of the set; default: all.

    Returns:
        Curves by name.

    Raises:
        InputError: not such a file, or no such set or name; the message lists those there are.
    """
    try:
        sets = json.loads(Path(path).read_text("utf-8"))
        for curve in (curve for curves in sets.values() for curve in curves.values()):
            if len(curve["bpp"]) != len(curve["psnr_rgb"]):
                raise ValueError("bpp and psnr_rgb differ in length")
            if not all(math.isfinite(value) for value in (*curve["bpp"], *curve["psnr_rgb"])) or min(curve["bpp"]) <= 0:
                raise ValueError("bpp and psnr_rgb must be numbers, and bpp positive")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no anchor curves: {error!r}") from error
    if chosen not in sets:
        raise InputError(f"{path} has no set {chosen!r}; it has {', '.join(sets)}")
    if unknown := [name for name in names if name not in sets[chosen]]:
        raise InputError(f"{path} has no curve {unknown[0]!r} for {chosen}; it has {', '.join(sets[chosen])}")
    return {name: sets[chosen][name] for name in names or sets[chosen]}
