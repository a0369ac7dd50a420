"""Decoded images to image files, with what each format can hold of alpha and metadata; the rest is said."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from dca_fast.errors import InputError
from dca_fast.files.atomic import write_atomic
from dca_fast.files.image_io import no_limit_of_pillow, to_8_bit
from dca_fast.files.metadata import IFDS, INFO_KEYS, profile_space, turned_upright, warn, without_damaged_chunks

__all__ = ["EXTENSIONS", "Format", "format_of", "image_bytes", "is_whole", "save_image"]


@dataclass(frozen=True)
class Format:
    """What is written: Pillow's name and options, and what the format can hold."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    alpha: bool = True
    gray: bool = True
    colour: bool = True
    metadata: bool = True
    deep: bool = False  # 16 bits of gray


_JPEG = Format("JPEG", {"quality": 95, "subsampling": 0}, alpha=False)
_TIFF = Format("TIFF", {"compression": "tiff_adobe_deflate"}, deep=True)
_FORMATS = {
    ".png": Format("PNG", deep=True),
    ".webp": Format("WEBP", {"lossless": True}, gray=False),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".avif": Format("AVIF", {"quality": 95}, gray=False),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": Format("BMP", alpha=False, metadata=False),
    ".ppm": Format("PPM", alpha=False, gray=False, metadata=False),
    ".pgm": Format("PPM", alpha=False, colour=False, metadata=False, deep=True),
}
EXTENSIONS = tuple(_FORMATS)
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}  # Pillow does not mind when they are missing
_WORDS = {"exif": "EXIF", "xmp": "XMP", "icc_profile": "the ICC profile (the colours will look different)"}


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format that the extension of a path, or an extension alone, names.

    Raises:
        InputError: one we do not write.
    """
    text = os.fspath(path)
    extension = text if text in _FORMATS else Path(text).suffix.lower()
    if extension not in _FORMATS:
        raise InputError(f"cannot write {text!r}; known extensions: {' '.join(_FORMATS)}")
    return _FORMATS[extension]


def image_bytes(image: Image.Image, path: str | os.PathLike[str], **options: Any) -> bytes:
    """An image file with its metadata, as far as the format can hold it; what it cannot is an `InputWarning`.

    Args:
        image: as `to_pil` makes it.
        path: its extension names the format.
        options: for Pillow's writer. The defaults are lossless where the format can be, else quality 95.

    Raises:
        InputError: an extension we do not write, or an image the format cannot hold (alpha in JPEG).
    """
    form = format_of(path)
    if not form.alpha and image.has_transparency_data:
        raise InputError(f"{form.name} cannot hold alpha; png, webp, avif and tif can")
    if image.mode.startswith("I") and not form.deep:
        warn(f"{form.name} holds 8 bits per sample: reduced; png, tif and pgm can hold 16 bits of gray")
        reduced = to_8_bit(image)
        reduced.info.update(image.info)
        image = reduced
    gray = image.mode in ("L", "LA") or image.mode.startswith("I")
    if not gray and not form.colour:
        raise InputError("a .pgm is gray and the image is not; .ppm can hold it")
    blocks = {key: image.info[key] for key in INFO_KEYS if image.info.get(key)}
    if blocks and not form.metadata:
        if "exif" in blocks:
            image = turned_upright(image)
        warn(f"{form.name} cannot hold {', '.join(_WORDS[key] for key in blocks)}")
        blocks = {}
    if gray and not form.gray:
        if profile_space(blocks.get("icc_profile", b"")) == "GRAY":
            warn(f"{form.name} holds gray as colours, which a gray profile does not fit: it is left out")
            del blocks["icc_profile"]
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    return _written(image, form, blocks, form.options | options)


def save_image(image: Image.Image, path: str | os.PathLike[str], **options: Any) -> None:
    """Write an image file with its metadata, atomically; "-" is PNG to standard output. As `image_bytes`.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomic(path, image_bytes(image, ".png" if os.fspath(path) == "-" else path, **options))


def is_whole(data: bytes, width: int, height: int) -> bool:
    """Whether an image file of that size, or turned by a quarter, can be decoded to its end."""
    formats = sorted({form.name for form in _FORMATS.values()})
    try:
        with no_limit_of_pillow(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(without_damaged_chunks(data)[0]), formats=formats) as image:
                if sorted(image.size) != sorted((width, height)):
                    return False
                image.load()
                return data.endswith(_ENDS.get(image.format or "", b""))
    except Exception:  # as many types as there are damages
        return False


def _written(image: Image.Image, form: Format, blocks: dict[str, Any], options: dict[str, Any]) -> bytes:
    """With all blocks, or where that fails without the fewest that make it fail."""
    without: list[tuple[str, ...]] = [(), *((key,) for key in blocks), tuple(blocks)]
    first: Exception | None = None
    for lost in dict.fromkeys(without):
        try:
            data = _attempt(image, form, {key: block for key, block in blocks.items() if key not in lost}, options)
        except Exception as error:  # damaged blocks fail in many ways
            first = first or error
            continue
        if lost:
            warn(f"{', '.join(_WORDS[key] for key in lost)} cannot be written as {form.name}: {first}")
        return data
    raise InputError(f"cannot write this image as {form.name}: {first}") from first


def _attempt(image: Image.Image, form: Format, blocks: dict[str, Any], options: dict[str, Any]) -> bytes:
    if form.name == "PNG" and "xmp" in blocks:
        from PIL.PngImagePlugin import PngInfo

        blocks["pnginfo"] = PngInfo()
        blocks["pnginfo"].add_itxt("XML:com.adobe.xmp", blocks.pop("xmp").decode("utf-8"))
    if form.name == "TIFF" and blocks.keys() & {"exif", "xmp"}:
        exif = Image.Exif()
        exif.load(blocks.get("exif", b""))
        if "xmp" in blocks:
            exif[700] = blocks.pop("xmp")
        blocks["exif"] = exif
        exif.get_ifd(ExifTags.IFD.Exif).pop(ExifTags.IFD.Interop, None)  # an offset, of which Pillow writes no new one
        if exif.get(ExifTags.Base.Orientation) not in range(1, 9):
            exif.pop(ExifTags.Base.Orientation, None)  # libtiff would complain about it, and not in one line
        if exif.keys() & set(IFDS):
            options = options | {"compression": None}  # what writes compressed ones would drop these directories
    bare = image.copy()
    bare.info = {}  # Pillow's writers take from it what was left out of the options
    buffer = io.BytesIO()
    bare.save(buffer, form.name, **blocks, **options)
    return buffer.getvalue()
