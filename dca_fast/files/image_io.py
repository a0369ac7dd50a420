"""Image files and Pillow images to uint8 arrays, and back to Pillow images; alpha planes.

What is kept: 8-bit colour or gray, alpha, and the ICC, EXIF and XMP blocks. What cannot be kept (more than
8 bits per sample, CMYK inks, further frames, other metadata) is reduced with an `InputWarning`, never silently.
"""

import io
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from dca_fast.errors import InputError, LimitExceededError
from dca_fast.files import metadata as meta
from dca_fast.files.container import DEFAULT_MAX_PIXELS
from dca_fast.files.hidden import fill

__all__ = [
    "ImageInput",
    "from_pil",
    "list_images",
    "load_image",
    "no_limit_of_pillow",
    "smooth_where_hidden",
    "suffixes",
    "to_8_bit",
    "to_pil",
]

_Plane = npt.NDArray[np.uint8]

# Formats that are pictures and nothing else: EPS and the like would start an interpreter on foreign data.
_READABLE = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "JXL", "JPEG2000", "HEIF"}
_READABLE |= {"TIFF", "BMP", "GIF", "PPM", "TGA", "QOI"}


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image as the encoder takes it.

    Args:
        pixels: [H, W, 3] uint8, in the colour space of the ICC block (sRGB without one); uint16 for exact files.
        alpha: [H, W] of the same type, or None for an opaque image.
        gray: the source had one colour channel; the three planes are equal.
        metadata: raw blocks by name, any of "icc", "exif" (from the TIFF header on) and "xmp".
    """

    pixels: Any
    alpha: Any = None
    gray: bool = False
    metadata: Mapping[str, bytes] = field(default_factory=dict)


@cache
def _plugins() -> None:
    """Let Pillow read what it can, and what plugins can that are installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 (it registers itself)


def suffixes() -> frozenset[str]:
    """Those of all image files that can be read here, in lower case, with their dots."""
    _plugins()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in _READABLE)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below a folder, sorted.

    Raises:
        InputError: there is none.
    """
    known = suffixes()
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in known and p.is_file())
    if not paths:
        raise InputError(f"no images in {folder}")
    return paths


class _Limit:
    """Pillow's limit, which threads lift together: the first one in notes it, the last one out puts it back."""

    def __init__(self) -> None:
        self.lock, self.pixels = threading.Lock(), Image.MAX_IMAGE_PIXELS
        self.inside: list[int] = []  # threads

    def lift(self) -> None:
        with self.lock:
            if not self.inside:
                self.pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.inside.append(threading.get_ident())

    def put_back(self) -> None:
        with self.lock:
            self.inside.remove(threading.get_ident())
            if not self.inside:
                Image.MAX_IMAGE_PIXELS = self.pixels

    def after_fork(self) -> None:
        """In the child, where no other threads are; the lock is held while a process forks."""
        others = bool(self.inside)
        self.inside = [thread for thread in self.inside if thread == threading.get_ident()]
        if others and not self.inside:
            Image.MAX_IMAGE_PIXELS = self.pixels
        self.lock.release()


_limit = _Limit()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_limit.lock.acquire, after_in_parent=_limit.lock.release, after_in_child=_limit.after_fork
    )


@contextmanager
def no_limit_of_pillow() -> Iterator[None]:
    """Where `max_pixels` is the limit: Pillow's own is one for the process, and lower than that of the format."""
    _limit.lift()
    try:
        yield
    finally:
        _limit.put_back()


def load_image(
    source: str | os.PathLike[str] | bytes,
    *,
    strip: bool = False,
    pixels_only: bool = False,
    exact: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> ImageInput:
    """Read an image file.

    Args:
        source: a path, or the bytes of a file.
        strip: as in `from_pil`.
        exact: as in `from_pil`.
        pixels_only: metadata is of no interest: it is left away, and nothing said about what a .dca would not keep.
        max_pixels: refuse larger images before decoding them. Pillow's own limit applies as well.

    Returns:
        Pixels, alpha and metadata of the first frame.

    Raises:
        OSError: the file cannot be opened.
        InputError: its content is not an image, or a damaged one.
        LimitExceededError: too many pixels.
    """
    data, hidden = meta.without_damaged_chunks(source if isinstance(source, bytes) else Path(source).read_bytes())
    _plugins()
    with _open(data) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise LimitExceededError(f"{width} x {height} pixels exceed the limit of {max_pixels}")
        image.info.update(hidden)
        loaded = _convert(image, data, strip, facts=not (strip or pixels_only), exact=exact)
    return replace(loaded, metadata={}) if pixels_only else loaded


def _open(data: bytes) -> Image.Image:
    formats = sorted(_READABLE & Image.OPEN.keys())
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise LimitExceededError(f"{error}; PIL.Image.MAX_IMAGE_PIXELS holds the limit") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers answer damaged headers with many types
        without_exif = re.sub(rb"(infe.{8})Exif", rb"\1none", data, count=1, flags=re.DOTALL)
        if data[4:8] == b"ftyp" and without_exif != data:  # Pillow opens no AVIF with a damaged EXIF block
            image = _open(without_exif)
            meta.warn("EXIF cannot be read and is not kept")
            return image
        if isinstance(error, UnidentifiedImageError):  # its message names a Python object
            raise InputError("not an image in a supported format") from error
        raise InputError(f"not an image in a supported format: {error}") from error


def from_pil(image: Image.Image, *, strip: bool = False, exact: bool = False) -> ImageInput:
    """Convert a Pillow image of any common mode.

    Args:
        image: palettes are expanded, 16-bit gray is reduced, CMYK goes to sRGB through its profile. An alpha
            plane that is opaque everywhere is dropped.
        strip: drop EXIF and XMP, and turn the pixels upright first; without it the orientation stays an
            EXIF entry. The ICC block is kept either way, because it gives the colours their meaning.
        exact: keep 16 bits of gray, and alpha that is opaque.

    Returns:
        Pixels, alpha and metadata.

    Raises:
        InputError: an empty image, or a mode without a defined 8-bit range; with `exact` one whose bits Pillow drops.
    """
    return _convert(image, b"", strip, facts=False, exact=exact)


def to_pil(
    pixels: _Plane,
    *,
    alpha: _Plane | None = None,
    gray: bool = False,
    metadata: Mapping[str, bytes] | None = None,
) -> Image.Image:
    """Build a Pillow image, the reverse of `from_pil`.

    Args:
        pixels: [H, W, 3] uint8.
        alpha: [H, W] uint8 or None.
        gray: reduce the three planes to one by luma.
        metadata: raw blocks by name, as in `ImageInput`; they go to `image.info`.

    Returns:
        An image of mode RGB, RGBA, L or LA.

    Raises:
        InputError: wrong shapes or types.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(f"pixels must be [H, W, 3] uint8, not {pixels.shape} {pixels.dtype}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]):
        raise InputError(f"alpha must be {pixels.shape[:2]} uint8, not {alpha.shape} {alpha.dtype}")
    image = Image.fromarray(pixels)
    if gray:
        image = image.convert("L")
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    image.info.update(meta.info_of(metadata or {}))
    return image


def smooth_where_hidden(image: ImageInput) -> ImageInput:
    """The image with colours that cost little where alpha is 0 (`hidden.fill`)."""
    pixels = fill(image.pixels, image.alpha)
    return image if pixels is image.pixels else replace(image, pixels=pixels)


def _convert(image: Image.Image, data: bytes, strip: bool, facts: bool, exact: bool = False) -> ImageInput:
    """An image that may not be loaded yet, and its file where known; `facts` says all that is lost, not colours alone.

    What a program put together in memory, or Pillow read, may hold facts that were never meant to be saved.
    """
    if 0 in image.size:
        raise InputError("the image has no pixels")
    deep = _is_deep(image, data)
    if _is_animated(image):
        meta.warn("only one of several frames is read")
    if exact and deep and not image.mode.startswith("I"):
        raise InputError("only 8 of the bits of its samples can be read: without loss it is to be given as an array")
    if deep and not exact:
        meta.warn("more than 8 bits per sample are reduced to 8")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # damaged pixel data raises many types
        raise InputError(f"the image is damaged: {error}") from error
    blocks = meta.blocks_of(image, data)
    if lost := meta.dropped(image, data, colours_only=not facts):
        meta.warn(f"not kept: {', '.join(lost)}")
    if strip:
        blocks.pop("exif", None)
        blocks.pop("xmp", None)
        image = meta.turned_upright(image)
    if image.mode == "CMYK":
        image = _cmyk_to_srgb(image, blocks.pop("icc", None))
    elif image.mode == "LAB":
        meta.warn("LAB is converted to sRGB")
        blocks.pop("icc", None)
    elif image.mode in ("HSV", "YCbCr"):
        meta.warn(f"{image.mode} is converted to RGB")
    if exact and image.mode.startswith("I"):
        values, key = _in_16_bits(image), image.info.get("transparency")
        opaque = np.where(values == key, 0, 65535).astype(np.uint16) if isinstance(key, int) else None
        return ImageInput(np.repeat(values.astype(np.uint16)[:, :, None], 3, 2), opaque, True, blocks)
    image = to_8_bit(image)
    alpha = np.array(image.getchannel("A")) if "A" in image.getbands() else None
    if alpha is not None and alpha.min() == 255 and not exact:
        alpha = None
    gray, pixels = image.mode in ("L", "LA"), np.array(image.convert("RGB"))
    if deep and image.mode == "RGBA":  # Pillow opens 16-bit gray with alpha so
        gray = bool((pixels == pixels[..., :1]).all())
    if "icc" in blocks and meta.profile_space(blocks["icc"]) in ({"CMYK", "Lab"} if gray else {"CMYK", "Lab", "GRAY"}):
        meta.warn(f"the {meta.profile_space(blocks.pop('icc'))} profile does not fit the pixels and is not kept")
    return ImageInput(pixels, alpha, gray, blocks)


def _is_animated(image: Image.Image) -> bool:
    """Whether there are further frames, or damage where they should be."""
    try:
        return bool(getattr(image, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # many types; the first frame may be whole all the same, and its file be closed
        return getattr(image, "fp", None) is not None


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the file of an image that is not loaded yet holds more than 8 bits per sample.

    Pillow mostly hides this from the mode.
    """
    if image.format == "JPEG2000":  # codestream header: the sizes, then sign and depth - 1 of a component
        siz = data.find(b"\xff\x4f\xff\x51")
        return siz >= 0 and any(depth & 0x7F > 7 for depth in data[siz + 42 : siz + 43])
    if image.format == "AVIF":  # AV1 configuration box: high_bitdepth in the third byte
        box = data.find(b"av1C")
        return box >= 0 and any(flags & 0x40 for flags in data[box + 6 : box + 7])
    for tile in getattr(image, "tile", []):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name == "SGI16" or any(";16" in str(argument) for argument in arguments):
            return True
        if image.format == "PPM" and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return True
    return image.mode.startswith("I") or bool(image.info.get("bit_depth", 8) > 8)  # of pillow-heif


def _cmyk_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    meta.warn("CMYK is converted to sRGB")
    if profile is not None:
        try:
            from PIL import ImageCms

            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # only in-place conversions return nothing
            return converted
        except MemoryError:
            raise
        except Exception as error:  # a damaged profile, one for other inks, or a Pillow without LittleCMS
            meta.warn(f"the CMYK profile cannot be used, the colours are about right at best: {error}")
    return image.convert("RGB")


def _in_16_bits(image: Image.Image) -> npt.NDArray[np.int64]:
    values = np.array(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError("32-bit samples have no defined range; convert the image to 8 or 16 bits")
    return values


def to_8_bit(image: Image.Image) -> Image.Image:
    """Reduce any mode to L, LA, RGB or RGBA.

    Raises:
        InputError: samples without a defined range.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = _in_16_bits(image)
        reduced = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        if isinstance(key, int):
            reduced.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return reduced
    if image.mode == "F":
        raise InputError("float samples have no defined range; convert the image to 8 or 16 bits")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # 16 bits, of which Pillow keeps the upper
        image = image.copy()
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    if image.has_transparency_data:
        return image.convert("LA" if gray else "RGBA")
    return image.convert("L" if gray else "RGB")
