"""The .dca file, as docs/spec/bitstream.md specifies it: bytes only, no arrays.

magic | version | flags | model id | width | height | quality | digest | restoration | sections | stream | CRC-32
"""

import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from dca_fast.config import AQ_ONE, MAX_AQ
from dca_fast.errors import (
    CorruptStreamError,
    InputError,
    LimitExceededError,
    NotADcaFileError,
    TruncatedStreamError,
    UnsupportedVersionError,
)
from dca_fast.leb128 import leb128, read_leb128

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "MAX_SECTION_BYTES",
    "MAX_SIDE",
    "VERSION",
    "Dca",
    "Header",
    "Info",
    "Section",
    "check_sections",
    "inspect",
    "pack",
    "pack_restoration",
    "parse",
]

MAGIC = b"\x89DCA\r\n"
VERSION = 10  # format 1.0
MAX_SIDE = 65535
MAX_QUALITY = 10000
_RESERVED_QUALITY = 0xC000  # bits of its field that later formats may use
MAX_SECTION_BYTES = 1 << 24  # of all but alpha and layer, which grow with the picture
ANCILLARY = 128  # the first tag of sections that a reader passes over
DEFAULT_MAX_PIXELS = 1 << 28
LAYER_DIGEST_BYTES = 4  # at the start of a LAYER section; the number of its blocks follows
_ALPHA_DIGEST_BYTES = 4  # at the start of an ALPHA section; the stream follows

_GRAYSCALE = 0x01
_SECTIONS = 0x02
_RESTORATION = 0x04
_EXACT = 0x08
_AQ_SHIFT = 4  # of the four highest flags; the lowest of them says in exact files that samples have 16 bits
_END_OF_SECTIONS = 0
_CRC_BYTES = 4
_WEIGHTS = (18, 36, 54)  # of the restoration filter
MAX_WEIGHT = 127
_BytesLike = bytes | bytearray | memoryview


class Section(IntEnum):
    """Tags of the sections that this package knows, in file order."""

    ICC = 1
    EXIF = 2
    XMP = 3
    ALPHA = 4
    LAYER = 5


_TAGS = frozenset(Section)


@dataclass(frozen=True)
class Header:
    """What the decoder must know before the first symbol.

    Args:
        width: columns of the image, 1..65535.
        height: rows of the image, 1..65535.
        quality: hundredths, 0..10000.
        model_id: 4 bytes, the start of the SHA-256 of what a decoder reads of the weights.
        digest: 32-bit digest of the decoded symbols. The file holds it under a checksum of the header, so that a reader
            of a changed header finds another one.
        grayscale: the source had one colour channel.
        aq: strength of adaptive quantisation, 0..15 sixteenths.
        restoration: weights of the filter behind the decoder, -127..127: none, or 18 for each of one to three rings.
        exact: the stream is one of the exact-colour coder (docs/spec/exact.md): the model id is zero, the digest that
            of the samples, and nothing is behind the decoder.
        depth: bits per sample, 8, or 16 in exact files.
    """

    width: int
    height: int
    quality: int
    model_id: bytes
    digest: int
    grayscale: bool = False
    aq: int = 0
    restoration: tuple[int, ...] = ()
    exact: bool = False
    depth: int = 8

    def problem(self) -> str | None:
        """Return what is wrong with the values, or None."""
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            return f"size {self.width} x {self.height} is outside 1..{MAX_SIDE}"
        if not 0 <= self.quality <= MAX_QUALITY:
            return f"quality {self.quality} is outside 0..{MAX_QUALITY} hundredths"
        if len(self.model_id) != 4:
            return f"the model id has {len(self.model_id)} bytes, not 4"
        if not 0 <= self.digest < 1 << 32:
            return f"digest {self.digest} does not fit 32 bits"
        if not 0 <= self.aq <= MAX_AQ:
            return f"strength {self.aq} of adaptive quantisation is outside 0..{MAX_AQ} sixteenths"
        if len(self.restoration) not in (0, *_WEIGHTS) or any(abs(w) > MAX_WEIGHT for w in self.restoration):
            return "restoration has not 18 weights within +-127 for each of at most three rings"
        if self.depth not in (8, 16) or (self.depth == 16 and not self.exact):
            return f"{self.depth} bits per sample"
        plain = (self.model_id, self.aq, self.restoration) == (bytes(4), 0, ())
        if self.exact and not plain:
            return "an exact file with the fields of a model"
        return None


@dataclass(frozen=True)
class Dca:
    """A file taken apart: header, entropy stream, sections by tag. Those from `ANCILLARY` on mean nothing here."""

    header: Header
    stream: bytes
    sections: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, bytes]:
        """Raw blocks by name, as in `ImageInput`."""
        return {Section(tag).name.lower(): block for tag, block in self.sections.items() if tag <= Section.XMP}


@dataclass(frozen=True)
class Info:
    """What `inspect` tells about a file: `quality` 0..100, `aq_strength` 0..15/16, sizes in bytes, bits per pixel.

    `exact`: coded without a model, `lossless`: all samples are as they were; `depth` in bits per sample;
    `graphic_blocks`: of 16 x 16 pixels, of a picture with a model, that are coded without it.
    """

    version: int
    width: int
    height: int
    quality: float
    aq_strength: float
    grayscale: bool
    exact: bool
    lossless: bool
    graphic_blocks: int
    depth: int
    model_id: str
    digest: int
    section_bytes: Mapping[str, int]
    stream_bytes: int
    file_bytes: int
    bpp: float


def pack(header: Header, stream: bytes, sections: Mapping[int, bytes] | None = None) -> bytes:
    """Assemble a .dca file.

    Args:
        header: the fixed fields.
        stream: the entropy stream, any length.
        sections: payload by tag, at most 16 MiB each but for alpha and layer; empty payloads are left out.

    Returns:
        The whole file. Equal arguments give equal bytes.

    Raises:
        InputError: a value the format cannot hold.
    """
    if problem := header.problem():
        raise InputError(problem)
    present = sorted((int(tag), payload) for tag, payload in (sections or {}).items() if payload)
    flags = (_GRAYSCALE if header.grayscale else 0) | (_SECTIONS if present else 0)
    flags |= (_RESTORATION if header.restoration else 0) | (_EXACT if header.exact else 0)
    flags |= (header.aq or header.depth == 16) << _AQ_SHIFT
    out = bytearray(MAGIC)
    out += struct.pack("<BB4s", VERSION, flags, header.model_id)
    out += leb128(header.width) + leb128(header.height)
    out += struct.pack("<H", header.quality)
    check_sections(sections or {})
    if header.exact and Section.LAYER in dict(present):
        raise InputError("an exact file with a layer")
    restoration = pack_restoration(header.restoration) if header.restoration else b""
    out += struct.pack("<I", header.digest ^ zlib.crc32(out + restoration)) + restoration
    for tag, payload in present:
        out.append(tag)
        out += leb128(len(payload)) + payload
    if present:
        out.append(_END_OF_SECTIONS)
    out += stream
    return bytes(out + zlib.crc32(out).to_bytes(_CRC_BYTES, "little"))


def pack_restoration(weights: tuple[int, ...]) -> bytes:
    """The weights of the restoration filter as a file holds them: Rice codes with the parameter that takes least.

    Zeros that all of them end with in binary, seven at most, are counted once.
    """
    shift = 0
    while shift < 7 and not any(w % (2 << shift) for w in weights):
        shift += 1
    mapped = [2 * w if w >= 0 else -2 * w - 1 for w in (weight >> shift for weight in weights)]
    sizes = [sum([value >> k for value in mapped]) + (1 + k) * len(mapped) for k in range(8)]
    k = sizes.index(min(sizes))
    bits, at = 0, 0
    for value in mapped:
        ones = value >> k
        bits |= ((1 << ones) - 1 | (value & (1 << k) - 1) << ones + 1) << at
        at += ones + 1 + k
    return bytes([len(weights) // 18 | k << 2 | shift << 5]) + bits.to_bytes(-(-at // 8), "little")


def _read_restoration(reader: "_Reader") -> tuple[int, ...]:
    start, head = reader.position, reader.take(1)[0]
    rings, k, shift = head & 3, head >> 2 & 7, head >> 5
    if not rings:
        raise CorruptStreamError(f"malformed restoration at byte {start}")
    bits, known = 0, 0
    numbers: list[int] = []

    def take() -> int:
        nonlocal bits, known
        if not known:
            bits, known = reader.take(1)[0], 8
        bit, bits, known = bits & 1, bits >> 1, known - 1
        return bit

    while len(numbers) < 18 * rings:
        ones = 0
        while take():
            ones += 1
            if ones << k > 2 * MAX_WEIGHT:
                raise CorruptStreamError(f"a coefficient of the restoration at byte {reader.position} is too large")
        value = ones << k | sum(take() << i for i in range(k))
        numbers.append(-(value + 1 >> 1) if value & 1 else value >> 1)
    coefficients = tuple(n << shift for n in numbers)
    packed = reader.data[start : reader.position]
    if max(map(abs, coefficients)) > MAX_WEIGHT or pack_restoration(coefficients) != packed:
        raise CorruptStreamError(f"malformed restoration at byte {start}")
    return coefficients


def check_sections(sections: Mapping[int, bytes]) -> None:
    """Refuse what `pack` could not hold.

    Raises:
        InputError: a section is too large, or its tag is none.
    """
    for tag, payload in sections.items():
        if not (tag in _TAGS or ANCILLARY <= tag < 256):
            raise InputError(f"no section has tag {tag}")
        if len(payload) > _most_bytes(tag):
            raise InputError(f"{_name_of(tag)} section of {len(payload)} bytes, {_most_bytes(tag)} allowed")


def _most_bytes(tag: int) -> int:
    return sys.maxsize if tag in (Section.ALPHA, Section.LAYER) else MAX_SECTION_BYTES


def _name_of(tag: int) -> str:
    return Section(tag).name if tag in _TAGS else f"ancillary {tag}"


def parse(data: _BytesLike, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Dca:
    """Take a .dca file apart and verify it.

    Args:
        data: the whole file.
        max_pixels: refuse larger images.

    Returns:
        Header, stream and sections; `pack` of them gives `data` again.

    Raises:
        NotADcaFileError, UnsupportedVersionError, TruncatedStreamError, CorruptStreamError,
        LimitExceededError: what is wrong with the bytes. A file cut inside its header or sections is told
            apart from a changed one; a cut inside the entropy stream shows as a checksum mismatch.
    """
    data = bytes(data)
    _check_start(data)
    intact = zlib.crc32(data[:-_CRC_BYTES]) == int.from_bytes(data[-_CRC_BYTES:], "little")
    try:
        dca = _read_fields(_Reader(data, len(MAGIC) + 1, len(data) - _CRC_BYTES), max_pixels)
    except (CorruptStreamError, LimitExceededError, UnsupportedVersionError):
        if intact:
            raise
    if not intact:
        raise CorruptStreamError("checksum mismatch: the file was changed or cut short")
    return dca


def inspect(data: _BytesLike) -> Info:
    """Read the facts about a .dca file without decoding it.

    Args:
        data: the whole file.

    Returns:
        Header fields, sizes and bits per pixel of the whole file.

    Raises:
        BitstreamError: as `parse`, except that no pixel limit applies.
    """
    data = bytes(data)
    dca = parse(data, max_pixels=MAX_SIDE * MAX_SIDE)
    header, layer = dca.header, dca.sections.get(Section.LAYER)
    return Info(
        version=VERSION,
        width=header.width,
        height=header.height,
        quality=header.quality / 100,
        aq_strength=header.aq / AQ_ONE,
        grayscale=header.grayscale,
        exact=header.exact,
        # The steps of its stream: docs/spec/exact.md.
        lossless=header.exact
        and header.quality == MAX_QUALITY
        and dca.stream[:1] < b"\4"
        and dca.sections.get(Section.ALPHA, b"")[_ALPHA_DIGEST_BYTES:][:1] < b"\4",
        graphic_blocks=0 if layer is None else _blocks_of(layer),
        depth=header.depth,
        model_id=header.model_id.hex(),
        digest=header.digest,
        section_bytes={_name_of(tag).lower(): len(payload) for tag, payload in dca.sections.items()},
        stream_bytes=len(dca.stream),
        file_bytes=len(data),
        bpp=8 * len(data) / (header.width * header.height),
    )


def _blocks_of(layer: bytes) -> int:
    """How many blocks a LAYER section says it has."""
    try:
        return _Reader(layer, LAYER_DIGEST_BYTES, len(layer)).leb128()
    except TruncatedStreamError as error:  # of the section, not of the file
        raise CorruptStreamError("the layer ends inside the number of its blocks") from error


def _check_start(data: bytes) -> None:
    start = data[: len(MAGIC)]
    if not start or not MAGIC.startswith(start):
        raise NotADcaFileError(f"a .dca file starts with {MAGIC!r}, not with {start!r}")
    if len(data) <= len(MAGIC):
        raise TruncatedStreamError(f"the file ends after {len(data)} bytes, inside the header")
    if (version := data[len(MAGIC)]) != VERSION:
        raise UnsupportedVersionError(f"format version {version}; this package reads version {VERSION}")
    if len(data) < len(MAGIC) + 1 + _CRC_BYTES:
        raise TruncatedStreamError(f"the file ends after {len(data)} bytes, inside the header")


def _read_fields(reader: "_Reader", max_pixels: int) -> Dca:
    flags = reader.take(1)[0]
    exact, high = bool(flags & _EXACT), flags >> _AQ_SHIFT
    if exact and (high > 1 or flags & _RESTORATION):
        raise UnsupportedVersionError(f"unknown flags {flags:#04x}")
    model_id = reader.take(4)
    width, height = reader.leb128(), reader.leb128()
    (quality,) = struct.unpack("<H", reader.take(2))
    if quality & _RESERVED_QUALITY:
        raise UnsupportedVersionError(f"unknown bits of the quality, {quality:#06x}")
    if max(width, height) > MAX_SIDE:
        raise LimitExceededError(f"{width} x {height} pixels: a side has at most {MAX_SIDE}")
    header = Header(
        width,
        height,
        quality,
        model_id,
        0,
        bool(flags & _GRAYSCALE),
        0 if exact else high,
        exact=exact,
        depth=16 if exact and high else 8,
    )
    if problem := header.problem():
        raise CorruptStreamError(problem)
    if width * height > max_pixels:
        raise LimitExceededError(f"{width} x {height} pixels exceed the limit of {max_pixels}")
    before = reader.data[: reader.position]
    (digest,) = struct.unpack("<I", reader.take(4))
    restoration = _read_restoration(reader) if flags & _RESTORATION else ()
    digest ^= zlib.crc32(before + (pack_restoration(restoration) if restoration else b""))
    header = replace(header, digest=digest, restoration=restoration)
    sections = _read_sections(reader) if flags & _SECTIONS else {}
    if exact and Section.LAYER in sections:
        raise CorruptStreamError("an exact file with a layer")
    return Dca(header, reader.rest(), sections)


def _read_sections(reader: "_Reader") -> dict[int, bytes]:
    sections: dict[int, bytes] = {}
    previous = 0
    while (tag := reader.take(1)[0]) != _END_OF_SECTIONS:
        if tag <= previous:
            raise CorruptStreamError(f"section tag {tag} after {previous} at byte {reader.position - 1}")
        if tag not in _TAGS and tag < ANCILLARY:
            raise UnsupportedVersionError(f"unknown section tag {tag}")
        size = reader.leb128()
        if size == 0:
            raise CorruptStreamError(f"empty {_name_of(tag)} section at byte {reader.position}")
        if size > _most_bytes(tag):
            raise LimitExceededError(f"{_name_of(tag)} section of {size} bytes, {_most_bytes(tag)} allowed")
        sections[Section(tag) if tag in _TAGS else tag] = reader.take(size)
        previous = tag
    if not sections:
        raise CorruptStreamError("the flags promise sections, but there are none")
    return sections


class _Reader:
    """A cursor over `data[position:end]` that never reads past `end`."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = end

    def take(self, size: int) -> bytes:
        if size > self.end - self.position:
            raise TruncatedStreamError(f"the file ends early: {size} bytes wanted at byte {self.position}")
        self.position += size
        return self.data[self.position - size : self.position]

    def leb128(self) -> int:
        """Read a canonical LEB128 number of at most five bytes."""
        window = self.data[self.position : min(self.position + 5, self.end)]
        cut = TruncatedStreamError(f"the file ends early: inside the number at byte {self.position}")
        malformed = CorruptStreamError(f"malformed number at byte {self.position}")
        value, size = read_leb128(window, 0, 5, cut, malformed)
        self.position += size
        return value

    def rest(self) -> bytes:
        return self.take(self.end - self.position)
