"""Classical codecs beside ours: JPEG, WebP, AVIF and JPEG XL through Pillow, with every setting named."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, features

from dca_fast.errors import BackendUnavailableError, ConfigError

__all__ = ["FAMILIES", "Peer", "make_peers"]

FAMILIES = ("jpeg", "webp", "avif", "jxl")


@dataclass(frozen=True)
class Peer:
    """A classical codec with fixed settings; encodes and decodes like `Codec`.

    Args:
        name: for tables and plots.
        format: Pillow's name of the format.
        version: of the library below Pillow.
        ladder: qualities whose rates span about 0.05-2 bits per pixel on photographs.
        options: for Pillow's writer, besides the quality.
        threads: for encoder and decoder, where the library has any.
    """

    name: str
    format: str
    version: str
    ladder: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    threads: int = 1

    @property
    def settings(self) -> str:
        """The options in words, in their order: "subsampling 4:2:0, optimize, progressive"."""
        nested = (
            value.items() if isinstance(value, Mapping) else [(name, value)] for name, value in self.options.items()
        )
        return ", ".join(name if value is True else f"{name} {value}" for pairs in nested for name, value in pairs)

    def encode(self, image: npt.NDArray[np.uint8], quality: float) -> bytes:
        """Compress `[H, W, 3]` uint8; the quality is rounded to a whole number."""
        threads = {"AVIF": {"max_threads": self.threads}, "JXL": {"num_threads": self.threads}}
        buffer = io.BytesIO()
        options = {**self.options, **threads.get(self.format, {})}
        Image.fromarray(image).save(buffer, self.format, quality=round(quality), **options)
        return buffer.getvalue()

    def decode(self, data: bytes, output: str = "numpy") -> npt.NDArray[np.uint8]:
        """Decompress to `[H, W, 3]` uint8."""
        if output != "numpy":
            raise ConfigError(f"a peer decodes to output='numpy' only, not {output!r}")
        # Decoders take their thread count from a global of the plugin.
        if self.format == "AVIF":
            AvifImagePlugin.DEFAULT_MAX_THREADS = self.threads
        elif self.format == "JXL":
            _jpeg_xl().DECODE_THREADS = self.threads
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            return np.array(image.convert("RGB"))


def make_peers(families: Iterable[str], threads: int = 1) -> list[Peer]:
    """All peers of the named families.

    Args:
        families: any of `FAMILIES`.
        threads: for those that can use them.

    Raises:
        ConfigError: an unknown family.
        BackendUnavailableError: this Pillow lacks the format.
    """
    makers = {"jpeg": _make_jpeg, "webp": _make_webp, "avif": _make_avif, "jxl": _make_jxl}
    peers = []
    for family in families:
        if family not in makers:
            raise ConfigError(f"unknown peer {family!r}; known: {', '.join(FAMILIES)}")
        peers += makers[family](threads)
    return peers


def _version(feature: str) -> str:
    if not features.check(feature):
        raise BackendUnavailableError(f"Pillow {metadata.version('pillow')} was built without {feature}")
    return str(features.version(feature))


def _make_jpeg(threads: int) -> list[Peer]:
    """4:2:0 is better below about 1 bit per pixel, 4:4:4 above; both with the smallest entropy coding."""
    ladder = (2, 4, 7, 12, 20, 30, 45, 60, 75, 85, 92)
    name = "libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg"
    version = f"{name} {_version('libjpeg_turbo' if name == 'libjpeg-turbo' else 'jpg')}"
    return [
        Peer(
            f"JPEG {chroma}",
            "JPEG",
            version,
            ladder,
            {"subsampling": chroma, "optimize": True, "progressive": True},
            threads,
        )
        for chroma in ("4:2:0", "4:4:4")
    ]


def _make_webp(threads: int) -> list[Peer]:
    ladder = (0, 3, 8, 15, 25, 40, 60, 75, 85, 91)
    return [Peer("WebP method 4", "WEBP", f"libwebp {_version('webp')}", ladder, {"method": 4}, threads)]


def _make_avif(threads: int) -> list[Peer]:
    """The writer's defaults, and what serves PSNR on RGB best: its default tuning is a perceptual one."""
    version = f"libavif {_version('avif')}"
    psnr = {"speed": 4, "subsampling": "4:4:4", "advanced": {"tune": "psnr"}}
    return [
        Peer("AVIF speed 6", "AVIF", version, (2, 8, 18, 30, 42, 54, 66, 76, 86), {"speed": 6}, threads),
        Peer("AVIF speed 4 4:4:4 PSNR", "AVIF", version, (0, 5, 12, 22, 34, 46, 58, 70, 80), psnr, threads),
    ]


def _make_jxl(threads: int) -> list[Peer]:
    _jpeg_xl()
    version = f"pillow-jxl-plugin {metadata.version('pillow-jxl-plugin')}"
    ladder = (1, 5, 10, 15, 22, 32, 45, 60, 74, 85, 91)
    return [Peer("JPEG XL effort 7", "JXL", version, ladder, {"effort": 7}, threads)]


def _jpeg_xl() -> Any:
    """The plugin module; importing it registers the format."""
    try:
        from pillow_jxl import JpegXLImagePlugin
    except ImportError as error:
        raise BackendUnavailableError(f"JPEG XL needs `pip install 'dca-fast[eval]'`: {error}") from error
    return JpegXLImagePlugin
