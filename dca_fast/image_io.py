"""Image files to uint8 arrays and back, through Pillow; alpha planes; atomic writes.

What is kept: 8-bit colour or gray, alpha, and the ICC, EXIF and XMP blocks. What cannot be kept (more than
8 bits per sample, CMYK inks, further frames) is reduced with an `InputWarning`, never silently.
"""

import io
import os
import secrets
import sys
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from dca_fast.container import DEFAULT_MAX_PIXELS
from dca_fast.errors import CorruptStreamError, InputError, InputWarning, LimitExceededError

__all__ = [
    "INFO_KEYS",
    "ImageInput",
    "from_pil",
    "info_of",
    "load_image",
    "metadata_of",
    "pack_alpha",
    "save_image",
    "to_pil",
    "unpack_alpha",
    "write_atomic",
]

_Plane = npt.NDArray[np.uint8]

# Formats that are pictures and nothing else: EPS and the like would start an interpreter on foreign data.
_READABLE = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "JXL", "JPEG2000"}
_READABLE |= {"TIFF", "BMP", "GIF", "PPM", "TGA", "QOI"}
_JPEG_OPTIONS: dict[str, Any] = {"quality": 95, "subsampling": 0}
_WRITABLE: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".jpg": ("JPEG", _JPEG_OPTIONS),
    ".jpeg": ("JPEG", _JPEG_OPTIONS),
    ".avif": ("AVIF", {"quality": 95}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".pgm": ("PPM", {}),
}
_INFO_KEYS = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}
INFO_KEYS = tuple(_INFO_KEYS.values())  # of Pillow's `info`
_EXIF_PREFIX = b"Exif\x00\x00"


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image as the encoder takes it.

    Args:
        pixels: [H, W, 3] uint8, in the colour space of the ICC block (sRGB without one).
        alpha: [H, W] uint8, or None for an opaque image.
        gray: the source had one colour channel; the three planes are equal.
        metadata: raw blocks by name, any of "icc", "exif" (from the TIFF header on) and "xmp".
    """

    pixels: _Plane
    alpha: _Plane | None = None
    gray: bool = False
    metadata: Mapping[str, bytes] = field(default_factory=dict)


def load_image(
    source: str | os.PathLike[str] | bytes, *, strip: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> ImageInput:
    """Read an image file.

    Args:
        source: a path, "-" for standard input, or the bytes of a file.
        strip: as in `from_pil`.
        max_pixels: refuse larger images before decoding them. Pillow's own limit applies as well.

    Returns:
        Pixels, alpha and metadata of the first frame.

    Raises:
        OSError: the file cannot be opened.
        InputError: its content is not an image, or a damaged one.
        LimitExceededError: too many pixels.
    """
    data = source if isinstance(source, bytes) else _read(source)
    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(_READABLE & Image.OPEN.keys()))
    except Image.DecompressionBombError as error:
        raise LimitExceededError(f"{error}; PIL.Image.MAX_IMAGE_PIXELS holds the limit") from error
    except Exception as error:  # Pillow's parsers answer damaged headers with many types
        raise InputError(f"not an image in a supported format: {error}") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise LimitExceededError(f"{width} x {height} pixels exceed the limit of {max_pixels}")
        _warn_of_losses(image, data)
        try:
            image.load()
        except Exception as error:  # and damaged pixel data with as many
            raise InputError(f"the image is damaged: {error}") from error
        return _convert(image, strip)


def from_pil(image: Image.Image, *, strip: bool = False) -> ImageInput:
    """Convert a Pillow image of any common mode.

    Args:
        image: palettes are expanded, 16-bit gray is reduced, CMYK goes to sRGB through its profile. An alpha
            plane that is opaque everywhere is dropped.
        strip: drop EXIF and XMP, and turn the pixels upright first; without it the orientation stays an
            EXIF entry. The ICC block is kept either way, because it gives the colours their meaning.

    Returns:
        Pixels, alpha and metadata.

    Raises:
        InputError: an empty image, or a mode without a defined 8-bit range.
    """
    _warn_of_losses(image)
    return _convert(image, strip)


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
    image.info.update(info_of(metadata or {}))
    return image


def info_of(metadata: Mapping[str, bytes]) -> dict[str, bytes]:
    """Raw blocks by name, as in `ImageInput`, as Pillow's `info` has them."""
    return {_INFO_KEYS[name]: _EXIF_PREFIX + block if name == "exif" else block for name, block in metadata.items()}


def metadata_of(info: Mapping[Any, Any]) -> dict[str, bytes]:
    """The reverse of `info_of`, of what there is and is not empty."""
    blocks = {name: info[key] for name, key in _INFO_KEYS.items() if info.get(key)}
    return {name: block.removeprefix(_EXIF_PREFIX) if name == "exif" else block for name, block in blocks.items()}


def save_image(image: Image.Image, path: str | os.PathLike[str], **options: Any) -> None:
    """Write an image file with its metadata, atomically.

    Args:
        image: as `to_pil` makes it.
        path: the extension names the format; "-" writes PNG to standard output.
        options: for Pillow's writer. The defaults are lossless where the format can be, else quality 95.

    Raises:
        InputError: an extension we do not write, or an image the format cannot hold (alpha in JPEG).
        OSError: the file cannot be written.
    """
    extension = ".png" if os.fspath(path) == "-" else Path(path).suffix.lower()
    if extension not in _WRITABLE:
        raise InputError(f"cannot write {os.fspath(path)!r}; known extensions: {' '.join(_WRITABLE)}")
    format_name, defaults = _WRITABLE[extension]
    blocks = {key: image.info[key] for key in INFO_KEYS if image.info.get(key)}
    if format_name == "PNG" and "xmp" in blocks:
        blocks["pnginfo"] = PngImagePlugin.PngInfo()
        blocks["pnginfo"].add_itxt("XML:com.adobe.xmp", blocks.pop("xmp").decode("utf-8", "replace"))
    buffer = io.BytesIO()
    try:
        image.save(buffer, format_name, **blocks, **defaults | options)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot write this image as {format_name}: {error}") from error
    write_atomic(path, buffer.getvalue())


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file completely or not at all.

    Args:
        path: the target, replaced in one step; pipes and devices are written to; "-" is standard output.
        data: the whole content.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    if os.fspath(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    temporary = target.with_name(f".dca-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def pack_alpha(alpha: _Plane) -> bytes:
    """Compress an alpha plane without loss: rows minus the row above, modulo 256, then zlib.

    Args:
        alpha: [H, W] uint8.

    Returns:
        The payload of an ALPHA section.
    """
    return zlib.compress(np.diff(alpha, axis=0, prepend=np.uint8(0)).tobytes(), 9)


def unpack_alpha(data: bytes, width: int, height: int) -> _Plane:
    """Restore an alpha plane.

    Args:
        data: the payload of an ALPHA section.
        width: columns.
        height: rows.

    Returns:
        [H, W] uint8.

    Raises:
        CorruptStreamError: the payload is not exactly one plane of this size. Never inflates more than that.
    """
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(data, width * height)
        surplus = inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise CorruptStreamError(f"alpha section: {error}") from error
    if surplus or len(rows) != width * height or not inflater.eof or inflater.unused_data:
        raise CorruptStreamError(f"alpha section does not hold exactly {width} x {height} samples")
    return np.cumsum(np.frombuffer(rows, np.uint8).reshape(height, width), axis=0, dtype=np.uint8)


def _read(source: str | os.PathLike[str]) -> bytes:
    if os.fspath(source) == "-":
        return sys.stdin.buffer.read()
    return Path(source).read_bytes()


def _warn_of_losses(image: Image.Image, data: bytes = b"") -> None:
    """Name what conversion will drop; `image` must not be loaded yet, `data` is its file where known."""
    if getattr(image, "is_animated", False):
        warnings.warn("only one of several frames is read", InputWarning, stacklevel=3)
    if _is_deep(image, data):
        warnings.warn("more than 8 bits per sample are reduced to 8", InputWarning, stacklevel=3)
    if image.mode == "CMYK":
        warnings.warn("CMYK is converted to sRGB", InputWarning, stacklevel=3)


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the file holds more than 8 bits per sample; Pillow mostly hides this from the mode."""
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
    return image.mode.startswith("I")


def _convert(image: Image.Image, strip: bool) -> ImageInput:
    if 0 in image.size:
        raise InputError("the image has no pixels")
    if strip:
        image = _upright(image)
    metadata = _metadata(image)
    if strip:
        metadata = {name: block for name, block in metadata.items() if name == "icc"}
    if image.mode == "CMYK":
        image = _cmyk_to_srgb(image, metadata.pop("icc", None))
    image = _to_8_bit(image)
    alpha = np.array(image.getchannel("A")) if "A" in image.getbands() else None
    if alpha is not None and alpha.min() == 255:
        alpha = None
    return ImageInput(np.array(image.convert("RGB")), alpha, image.mode in ("L", "LA"), metadata)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF blocks fail in many ways, and are to be dropped anyway
        warnings.warn(f"the orientation cannot be read: {error}", InputWarning, stacklevel=4)
        return image


def _metadata(image: Image.Image) -> dict[str, bytes]:
    info = dict(image.info)
    if not info.get("exif") and "Raw profile type exif" in info:  # PNG by old ImageMagick
        info["exif"] = image.getexif().tobytes()
    return metadata_of(info)


def _cmyk_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is None:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError as error:
        raise InputError(f"the CMYK profile cannot be used: {error}") from error
    assert converted is not None  # only in-place conversions return nothing
    return converted


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Reduce any mode to L, LA, RGB or RGBA."""
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError("32-bit samples have no defined range; convert the image to 8 or 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise InputError("float samples have no defined range; convert the image to 8 or 16 bits")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if gray else "RGBA")
    return image.convert("L" if gray else "RGB")
