"""Metadata of image files: the blocks that a .dca holds (ICC, EXIF, XMP), and names for everything else.

All of it is best effort: what cannot be read is a warning, never a failure. docs/guide/metadata.md has the tables.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngStream

from dca_fast.errors import InputWarning
from dca_fast.files.container import MAX_SECTION_BYTES

__all__ = [
    "IFDS",
    "INFO_KEYS",
    "blocks_of",
    "dropped",
    "hidden_blocks",
    "info_of",
    "metadata_of",
    "profile_space",
    "turned_upright",
    "warn",
    "without_damaged_chunks",
]

_INFO_KEYS = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}
INFO_KEYS = tuple(_INFO_KEYS.values())  # of Pillow's `info`
_EXIF_PREFIX = b"Exif\x00\x00"

# Of the first directory of a TIFF file: what EXIF has, too; what says how the pixels are stored; and blocks kept apart.
_TIFF_EXIF = {269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316, 33432, *range(40091, 40096)}
_TIFF_RESOLUTION = {282, 283, 296}
_TIFF_STORAGE = {*range(254, 267), *range(273, 282), 284, 292, 293, 297, 317, *range(320, 326), 338, 339, 347}
_TIFF_STORAGE |= {274, 529, 530, 531, 532, 700, 34675}
_TIFF_NAMES = {330: "further images", 33723: "IPTC", 34377: "Photoshop data"}
IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_HANDLED = {"IHDR", "PLTE", "IDAT", "IEND", "tRNS", "iCCP", "sRGB", "gAMA", "cHRM", "eXIf", "pHYs", "hIST", "iDOT"}
_PNG_HANDLED |= {"tEXt", "zTXt", "iTXt", "acTL", "fcTL", "fdAT", "cICP"}
# What a chunk says by itself.
_PNG_FACTS = {"iCCP", "sRGB", "gAMA", "cHRM", "eXIf", "pHYs", "tEXt", "zTXt", "iTXt"}
_PNG_MOST_DAMAGED = 16
_SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_USUAL_DPI = {1, 72, 96}  # what programs write that know nothing, and TIFF without a unit


def warn(text: str) -> None:
    """An `InputWarning`; its line in the source says nothing."""
    warnings.warn(text, InputWarning, stacklevel=2)


def info_of(metadata: Mapping[str, bytes]) -> dict[str, bytes]:
    """Raw blocks by name, as in `ImageInput`, as Pillow's `info` has them."""
    return {_INFO_KEYS[name]: _EXIF_PREFIX + block if name == "exif" else block for name, block in metadata.items()}


def metadata_of(info: Mapping[Any, Any]) -> dict[str, bytes]:
    """The reverse of `info_of`, of what there is and is not empty."""
    blocks: dict[str, bytes] = {name: info[key] for name, key in _INFO_KEYS.items() if info.get(key)}
    return {name: block.removeprefix(_EXIF_PREFIX) if name == "exif" else block for name, block in blocks.items()}


def blocks_of(image: Image.Image, data: bytes = b"") -> dict[str, bytes]:
    """ICC, EXIF and XMP of an image that is loaded, and of its file where known; warns of those that cannot be kept."""
    info: dict[Any, Any] = {**hidden_blocks(image, data), **image.info}
    if not info.get("exif"):
        try:
            if "Raw profile type exif" in info:  # PNG by old ImageMagick
                info["exif"] = image.getexif().tobytes()
            elif image.format == "TIFF":
                info["exif"] = _exif_of_tiff(image)
        except MemoryError:
            raise
        except Exception as error:  # damaged blocks fail in many ways
            warn(f"EXIF cannot be read and is not kept: {error}")
    for name, key in _INFO_KEYS.items():
        block = info.get(key)
        if isinstance(block, str):
            info[key] = block = block.encode()
        if block and not isinstance(block, bytes):
            warn(f"{name.upper()} cannot be read and is not kept")
            del info[key]
        elif block and len(block) > MAX_SECTION_BYTES:
            warn(f"{name.upper()} of {len(block)} bytes is too large and is not kept")
            del info[key]
    return metadata_of(info)


def _exif_of_tiff(image: Image.Image) -> bytes:
    """What the first directory says about the picture, if it is more than a resolution; the pixels are upright."""
    tags = image.getexif()
    exif = Image.Exif()
    for tag in _TIFF_EXIF & tags.keys():
        exif[tag] = tags[tag]
    for ifd in IFDS:
        if entries := tags.get_ifd(ifd):
            exif[ifd] = {tag: value for tag, value in entries.items() if tag != ExifTags.IFD.Interop}
    return exif.tobytes() if exif.keys() - _TIFF_RESOLUTION else b""


def hidden_blocks(image: Image.Image, data: bytes) -> dict[str, bytes]:
    """Blocks in a file that Pillow and its plugins do not read, under the keys of `info`."""
    if image.format == "JPEG2000":
        start = data.find(b"colr\x02") + 7
        size = int.from_bytes(data[max(0, start - 11) : start - 7], "big") - 11
        if start >= 11 and data[start + 36 : start + 40] == b"acsp":
            return {"icc_profile": data[start : start + size]}
    if image.format == "JXL":
        return dict([("xmp", body) for kind, body in _boxes(data) if kind == "xml "][:1])
    return {}


def without_damaged_chunks(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A PNG file without the optional chunks for which Pillow would refuse it; warns of them.

    Returns:
        The file; and a profile that is too large for Pillow, as its `info` would have it.
    """
    if not data.startswith(_PNG_START):
        return data, {}
    reader, kept, at, damaged = PngStream(io.BytesIO()), [data[:8]], 8, []
    profile, profiles = b"", 0
    for kind, body in _chunks(data):
        chunk = data[at : at + 12 + len(body)]
        at += len(chunk)
        if not kind[:1].islower() or kind == "tRNS":
            kept.append(chunk)
        elif zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            damaged.append(kind)
        elif kind not in _PNG_FACTS:
            kept.append(chunk)
        elif (kind == "iCCP" and profiles) or len(damaged) > _PNG_MOST_DAMAGED:  # looking into many takes long
            damaged.append(kind)
        elif _is_read(reader, kind, body):
            kept.append(chunk)
        elif kind != "iCCP" or not (profile := _inflated(body.partition(b"\0")[2][1:])):
            damaged.append(kind)
        profiles += kind == "iCCP"
    if damaged:
        warn(f"damaged or too large, and not kept: PNG chunk {', '.join(dict.fromkeys(damaged))}")
    return b"".join([*kept, data[at:]]), {"icc_profile": profile} if profile else {}


def _is_read(reader: PngStream, kind: str, body: bytes) -> bool:
    """Whether Pillow takes a chunk, after those that it has read before."""
    reader.fp = io.BytesIO(body)
    try:
        reader.call(kind.encode(), 0, len(body))
    except MemoryError:
        raise
    except Exception:  # many types
        return False
    return True


def _inflated(data: bytes) -> bytes:
    """What a .dca can hold of what was deflated; else nothing."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, MAX_SECTION_BYTES + 1)
    except zlib.error:
        return b""
    return plain if inflater.eof and len(plain) <= MAX_SECTION_BYTES else b""


def dropped(image: Image.Image, data: bytes = b"", *, colours_only: bool = False) -> list[str]:
    """What a .dca does not keep of an image that is loaded, in words, and of its file where known.

    Args:
        image: before its mode is changed.
        data: its file.
        colours_only: leave out what does not change how the picture looks.
    """
    try:
        dropped = list(_dropped_colours(image, data))
        return dropped if colours_only else dropped + list(_dropped_facts(image, data))
    except MemoryError:
        raise
    except Exception as error:  # an info of an unusual type
        return [f"what cannot be read ({type(error).__name__})"]


def _dropped_colours(image: Image.Image, data: bytes) -> Iterator[str]:
    info = image.info
    chunks = dict(_chunks(data)) if image.format == "PNG" else {}
    if "cICP" in chunks and chunks["cICP"][:2] != b"\1\15":  # what sRGB has
        yield "cICP (the colours will look different)"
    elif not info.get("icc_profile") and "srgb" not in info and "cICP" not in chunks:
        if abs(info.get("gamma", 1 / 2.2) - 1 / 2.2) > 0.001:
            yield f"gAMA of {info['gamma']:g} (the colours will look different)"
        if any(abs(a - b) > 0.001 for a, b in zip(info.get("chromaticity", ()), _SRGB_CHROMATICITIES, strict=False)):
            yield "cHRM (the colours will look different)"
    icc_of_jpeg = any(body.startswith(b"ICC_PROFILE") for _, body in getattr(image, "applist", []))
    if not info.get("icc_profile") and ("iCCP" in chunks or icc_of_jpeg):
        yield "the ICC profile, which is damaged (the colours will look different)"
    if image.format in ("AVIF", "HEIF") and not info.get("icc_profile"):
        at = data.find(b"colrnclx") + 8
        primaries, transfer = data[at : at + 2], data[at + 2 : at + 4]
        if at >= 8 and (primaries[-1:] not in b"\1\2" or transfer[-1:] not in b"\1\2\6\15"):
            codes = int.from_bytes(primaries, "big"), int.from_bytes(transfer, "big")
            yield f"CICP of {codes[0]}/{codes[1]} (the colours will look different)"


def _dropped_facts(image: Image.Image, data: bytes) -> Iterator[str]:
    info = image.info
    dpi = info.get("dpi")
    if dpi and not {round(float(x)) for x in dpi} <= _USUAL_DPI and not _has_resolution(image):
        yield f"the resolution of {float(dpi[0]):.4g} dpi"
    applist: list[tuple[str, bytes]] = getattr(image, "applist", [])
    if info.get("comment") and not (image.format == "JPEG2000" and info["comment"].startswith(b"Created by")):
        yield "the comment"
    if any(body.startswith(b"http://ns.adobe.com/xmp/extension/") for _, body in applist):
        yield "extended XMP"
    known = {"APP0", "APP1", "APP2", "APP14", "COM"}
    markers = sorted({marker for marker, _ in applist} - known)
    yield from ("IPTC or Photoshop data" if marker == "APP13" else f"JPEG {marker}" for marker in markers)
    if texts := [name for name in getattr(image, "text", {}) if not name.startswith(("XML:com.adobe", "Raw profile"))]:
        yield f"text ({', '.join(texts)})"
    if image.format == "PNG":
        yield from sorted({f"PNG chunk {kind}" for kind, _ in _chunks(data) if kind not in _PNG_HANDLED})
    if image.format == "TIFF":
        others = set(image.getexif()) - _TIFF_EXIF - _TIFF_STORAGE - set(IFDS)
        yield from (_TIFF_NAMES.get(tag, f"TIFF tag {tag}") for tag in sorted(others))
    if image.format == "JPEG2000":
        yield from sorted({f"JPEG 2000 box {kind}" for kind, _ in _boxes(data) if kind in ("uuid", "xml ")})
    for key in ("depth_images", "aux"):
        if info.get(key):
            yield "auxiliary images"


def _has_resolution(image: Image.Image) -> bool:
    """Whether the EXIF block that is kept tells it."""
    try:
        return bool(image.info.get("exif")) and 282 in image.getexif()
    except MemoryError:
        raise
    except Exception:  # a damaged one does not
        return False


def _chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Types and contents of the chunks of a PNG file."""
    at = 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8].decode("latin-1"), data[at + 8 : at + 8 + size]
        at += 12 + size


def _boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Types and contents of the outer boxes of a JPEG XL or JPEG 2000 file."""
    at = 0
    while at + 8 <= len(data):
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or len(data) - at
        if size < header:
            return
        yield data[at + 4 : at + 8].decode("latin-1"), data[at + header : at + size]
        at += size


def turned_upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it to be seen; warns where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # damaged EXIF blocks fail in many ways
        warn(f"the orientation cannot be read: {error}")
        return image


def profile_space(profile: bytes) -> str:
    """Colour space of the samples that an ICC profile describes: "RGB", "GRAY", "CMYK", ..."""
    return profile[16:20].decode("latin-1").strip()
