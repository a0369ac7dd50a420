"""Write the conformance files and their table, `conformance.json`: docs/spec/conformance.md says what they are for.

    python -m tests.conformance.make            # those that are missing; files that are there stay as they are
    python -m tests.conformance.make --check    # fails and says so if files are missing, or not in the table

Pictures are drawn with sums, products and quotients alone, so every machine draws the same. Whatever is written was
decoded by the package and by `decoder.py`, to the same pixels or to the same error.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from dca_fast import Codec
from dca_fast.config import SKIP_ROW, Part
from dca_fast.entropy import rans
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.trellis import chains_of, next_state, set_of, value_of
from dca_fast.errors import BitstreamError
from dca_fast.exact import coder as colours
from dca_fast.exact import reference as exact
from dca_fast.exact.colours import Band, Mode
from dca_fast.exact.decisions import Encoder
from dca_fast.exact.planes import Planes
from dca_fast.files.container import VERSION, Header, Section, pack, pack_restoration, parse
from dca_fast.leb128 import leb128
from dca_fast.network import walk
from dca_fast.network.program import Adaptation
from dca_fast.testing import landscape, page
from tests.conformance import decoder as second

HERE = Path(__file__).parent
WEIGHTS = HERE.parents[1] / "dca_fast" / "data" / "dca-s.safetensors"
TABLE = HERE / "conformance.json"
Pixels = npt.NDArray[Any]
PREVIEWED = (
    "size_1x1",
    "size_65x63",
    "alpha_mask",
    "gray_alpha",
    "layer_83x61",
    "layer_one",
    "exact_dots",
    "deep_gray",
)


class Vector(NamedTuple):
    """A file that decodes; `large`: of megapixels, by a decoder without C++ in a minute or more."""

    name: str
    covers: str
    data: bytes
    large: bool = False


class Refusal(NamedTuple):
    """A file that is refused, and by which error; "": what both decoders say, which depends on the weights."""

    name: str
    breaks: str
    error: str
    data: bytes
    large: bool = False


CODEC = Codec(threads=1)
LANDSCAPE = landscape()


def crop(height: int, width: int, top: int = 300, left: int = 200) -> npt.NDArray[np.uint8]:
    """A part of the landscape: a shore with rocks, water and grass."""
    return np.ascontiguousarray(LANDSCAPE[top : top + height, left : left + width])


def modelled(picture: Pixels, quality: float, **options: Any) -> bytes:
    """A file of the network alone."""
    return CODEC.encode(picture, quality, **({"effort": 0, "screen": "off"} | options))


def with_header(data: bytes, **changes: Any) -> bytes:
    """The same stream under another header."""
    dca = parse(data)
    fields = vars(dca.header) | changes
    return pack(Header(**fields), dca.stream, dca.sections)


# Streams of another layout than the encoder chooses, and of other values.


def laid_out(picture: Pixels, quality: int, lanes: int, groups: int, strength: int = 3) -> bytes:
    """A picture of the network in so many lanes and groups."""
    engine, (height, width) = CODEC.engine, picture.shape[:2]
    program, grid = engine.program(quality, strength), walk.Grid.of(height, width)
    y = program.analyse(engine.padded(picture))
    quantise = walk.quantiser(program.arrays, engine.coder, engine.charges, groups)
    source = walk.EncoderSource(program, y, program.hyper_analyse(y), quantise)
    walk.code(program, source, grid)
    stream = Coder(CODEC.tables).encode(source.parts, lanes, groups, source.plain)
    model = bytes.fromhex(CODEC.model_id)
    return pack(Header(width, height, quality, model, source.digest, aq=strength), stream)


class Drawn:
    """A source of values that no picture has: about as wide as `width`, some of them as large as there are."""

    def __init__(self, groups: int, width: float, extremes: float, seed: int) -> None:
        self.groups, self.width, self.extremes = groups, width, extremes
        self.generator = np.random.default_rng(seed)
        self.parts: list[tuple[Any, Any]] = []
        self.plain = self.digest = 0

    def integers(self, count: int) -> npt.NDArray[np.int64]:
        size = self.generator.geometric(1 / (1 + self.width), count) - 1
        out = np.where(self.generator.random(count) < 0.5, -size, size)
        extreme = self.generator.choice(np.array([-32768, -32767, -16384, 16383, 16384, 32767]), count)
        return np.where(self.generator.random(count) < self.extremes, extreme, out).clip(-32768, 32767)

    def _keep(self, values: npt.NDArray[np.int64], rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
        self.parts.append((values, rows.ravel()))
        symbols = values.astype(np.int16)
        self.digest = walk.symbol_digest(symbols, self.digest)
        return symbols.reshape(rows.shape)

    def hyper(self, name: str, part: Part, rows: Any, mean: Any) -> Any:
        self.plain += 1
        return self._keep(np.where(rows.ravel() == SKIP_ROW, 0, self.integers(rows.size)), rows)

    def step(self, step: int, mean: Any, rows: Any, adaptation: Adaptation | None) -> Any:
        """Values that the trellis can reach; indices beyond 16383 wrap."""
        flat, indices = rows.ravel(), self.integers(rows.size)
        values, coded = np.zeros(len(flat), np.int64), np.flatnonzero(flat != SKIP_ROW)
        n, chains = len(coded), chains_of(len(coded), self.groups)
        for g in range(self.groups):
            states = [0] * chains
            for j, at in enumerate(coded[n * g // self.groups : n * (g + 1) // self.groups].tolist()):
                state, index = states[j % chains], int(indices[at])
                values[at] = value_of(index, set_of(state))
                states[j % chains] = next_state(state, index)
        return self._keep(values, rows)


def drawn(
    size: tuple[int, int],
    quality: int,
    lanes: int,
    groups: int,
    width: float,
    extremes: float = 0.0,
    strength: int = 0,
    seed: int = 1,
) -> bytes:
    """A file of values that were drawn, not of a picture."""
    program, source = CODEC.engine.program(quality, strength), Drawn(groups, width, extremes, seed)
    walk.code(program, source, walk.Grid.of(*size))
    stream = rans.encode(CODEC.tables, source.parts, source.plain, lanes, groups)
    model = bytes.fromhex(CODEC.model_id)
    return pack(Header(size[1], size[0], quality, model, source.digest, aq=strength), stream)


def exactly(samples: Pixels, mode: Mode, quality: int = 10000, sections: dict[int, bytes] | None = None) -> bytes:
    """An exact file in a mode that the encoder may not choose. samples [H, W, 1 or 3]."""
    height, width, channels = samples.shape
    deep = samples.dtype == np.uint16
    grid, numbers = colours._reduced(samples) if deep else (b"", samples)
    stream = exact.encode(np.ascontiguousarray(numbers), mode)
    stream = stream[:1] + grid + stream[1:]
    decoded = colours.decode(stream, samples.shape, 16 if deep else 8, None)
    header = Header(width, height, quality, bytes(4), colours.digest_of(decoded), channels == 1, exact=True)
    if deep:
        header = Header(**(vars(header) | {"depth": 16}))
    return pack(header, stream, sections)


# Files that decode.


def sizes() -> Iterator[Vector]:
    for height, width in ((1, 1), (1, 65), (65, 1), (16, 16), (15, 17), (33, 31), (64, 64), (63, 65), (129, 67)):
        name = f"size_{width}x{height}"
        yield Vector(name, f"{width} x {height} pixels, quality 60", modelled(crop(height, width), 60))
    data = CODEC.encode(crop(150, 200), 70)
    yield Vector("size_200x150", "200 x 150 pixels as the encoder makes them, with a filter and adaptive steps", data)


def qualities() -> Iterator[Vector]:
    picture = crop(40, 56)
    for i in range(17):  # knots of the gains, and the middle between two
        quality = 625 * i
        covers = f"quality {quality / 100:g}: {'between two knots' if i % 2 else 'a knot'} of gains and scales"
        yield Vector(f"quality_{quality:05}", covers, laid_out(picture, quality, 1, 1))
    for quality in (1, 1249, 1251, 9999):
        data = modelled(picture, quality / 100)
        yield Vector(f"quality_{quality:05}", f"quality {quality / 100:g}: beside a knot or an end", data)


def adaptive() -> Iterator[Vector]:
    for strength in (1, 3, 8, 15):
        data = modelled(crop(70, 90, 200), 75, aq_strength=strength / 16)
        yield Vector(f"adaptive_{strength:02}", f"adaptive quantisation, strength {strength}/16", data)


def filters() -> Iterator[Vector]:
    generator, data = np.random.default_rng(5), modelled(crop(40, 56), 40)
    cases = (
        ("one_ring", generator.integers(-6, 7, 18), "one ring"),
        ("two_rings", 8 * generator.integers(-3, 4, 36), "two rings, coefficients that are multiples of 8"),
        ("three_rings", generator.integers(-20, 21, 54), "three rings"),
        ("extreme", generator.choice([-127, 127], 54), "three rings, coefficients of -127 and 127"),
        ("zeros", np.zeros(18, np.int64), "one ring, coefficients that are all zero"),
        ("sparse", np.where(np.arange(36) % 11, 0, 64), "two rings, few coefficients: +64 and zeros"),
    )
    for name, weights, covers in cases:
        changed = with_header(data, restoration=tuple(map(int, weights)))
        yield Vector(f"filter_{name}", f"restoration filter of {covers}", changed)
    gray = with_header(modelled(crop(40, 56)[..., 1], 40), restoration=tuple(map(int, cases[0][1])))
    yield Vector("filter_gray", "restoration filter of a gray picture, reduced to its luma afterwards", gray)


def streams() -> Iterator[Vector]:
    for log2, groups in enumerate((1, 2, 3, 7, 16, 64)):
        lanes = 1 << log2
        data = drawn((70, 90), 5000, lanes, groups, 3.0, seed=log2)
        yield Vector(f"stream_{lanes}_lanes", f"{lanes} lanes in {groups} groups, values that were drawn", data)
    data = drawn((384, 352), 5000, 32, 1, 0.3, seed=6)
    yield Vector("stream_chains", "32 lanes and as many chains of the trellis, values that were drawn", data)
    yield Vector("stream_tail", "32 lanes, most of which give words to the tail", drawn((150, 200), 5000, 32, 1, 1.0))
    yield Vector("stream_picture", "a picture in 32 lanes and 5 groups", laid_out(crop(70, 90), 6000, 32, 5))
    yield Vector("stream_escapes", "escapes and values as large as there are", drawn((60, 60), 5000, 4, 2, 40.0, 0.05))
    data = drawn((40, 56), 10000, 2, 1, 300.0, 0.3, seed=3)
    yield Vector("stream_saturated", "values that saturate whatever they can, quality 100", data)
    data = drawn((40, 56), 0, 2, 1, 300.0, 0.3, 15, seed=4)
    yield Vector("stream_saturated_adaptive", "the same at quality 0 with steps of strength 15/16", data)
    yield Vector("stream_zeros", "coded values that are all zero", drawn((40, 56), 8000, 1, 1, 0.0))
    flat = np.full((40, 56, 3), 128, np.uint8)
    yield Vector("silence", "a gray field at quality 0: hardly a value is coded", modelled(flat, 0))
    empty = drawn((40, 56), 0, 1, 64, 0.0)
    yield Vector("silence_groups", "64 groups with hardly a value", empty)


def channels() -> Iterator[Vector]:
    picture = crop(40, 56)
    gray, ramp = picture[..., 1], np.add.outer(np.arange(40), 3 * np.arange(56)).astype(np.uint8)
    yield Vector("gray", "a gray picture", modelled(gray, 70))
    yield Vector("gray_1x1", "a gray pixel", modelled(gray[:1, :1], 70))
    yield Vector("alpha", "a picture with alpha", modelled(np.dstack([picture, ramp]), 70))
    hidden = np.dstack([picture, np.where(ramp > 90, 255, 0).astype(np.uint8)])
    yield Vector("alpha_mask", "alpha of 0 and 255", modelled(hidden, 70))
    some = {"icc": b"profile", "exif": b"II*\0", "xmp": b"<x:xmpmeta/>"}
    yield Vector("metadata", "ICC, EXIF and XMP sections", modelled(picture, 50, metadata=some))
    long = {"icc": bytes(range(256)) * 64 + b"\0", "xmp": b" " * 128}
    yield Vector("metadata_long", "sections whose sizes take two and three bytes", modelled(picture, 50, metadata=long))
    stepped = {Section.ALPHA: struct.pack("<I", zlib.crc32(near(ramp, 5))) + colours.encode(ramp[..., None], step=5)}
    dca = parse(modelled(picture, 70))
    yield Vector("alpha_steps", "alpha in steps of 5", pack(dca.header, dca.stream, stepped))
    stepped = {Section.ALPHA: struct.pack("<I", zlib.crc32(near(ramp, 3))) + colours.encode(ramp[..., None], step=3)}
    data = exactly(picture, Mode(), sections=stepped)
    yield Vector("exact_alpha_steps", "samples without loss, alpha in steps of 3", data)
    other = {128: b"of a later format", 240: b"owner\0anything", 255: b"\0"}
    yield Vector("ancillary", "ancillary sections, which change nothing", pack(dca.header, dca.stream, other))
    both = {Section.XMP: b"<x:xmpmeta/>"} | other
    yield Vector("exact_ancillary", "the same and XMP in an exact file", exactly(picture, Mode(), sections=both))
    gray_alpha = with_header(modelled(np.dstack([gray, gray, gray, ramp]), 60), grayscale=True)
    yield Vector("gray_alpha", "a gray picture with alpha", gray_alpha)


def layers() -> Iterator[Vector]:
    for height, width, quality in ((90, 130, 60), (61, 83, 85)):
        name = f"layer_{width}x{height}"
        picture = page(height, width, seed=11)
        yield Vector(name, "graphic blocks beside a photograph", CODEC.encode(picture, quality, effort=0))
        gray = CODEC.encode(np.ascontiguousarray(picture[..., 0]), quality, effort=1)
        yield Vector(f"{name}_gray", "graphic blocks of one channel in a gray picture", gray)
    picture, ramp = page(61, 83, seed=3), np.add.outer(np.arange(61), np.arange(83)).astype(np.uint8)
    some = {"icc": b"profile", "exif": b"II*\0", "xmp": b"<x:xmpmeta/>"}
    data = CODEC.encode(np.dstack([picture, ramp]), 60, metadata=some)
    yield Vector("layer_sections", "all five sections, adaptive steps and a filter", data)
    one = blocks(crop(40, 56), [(1, 2)])
    yield Vector("layer_one_block", "one block, in the middle of the picture", one)
    corner = blocks(crop(40, 56), [(0, 0), (2, 3)])
    yield Vector("layer_corners", "blocks in two corners, one of them cut by the border", corner)
    places = [(0, 1), (1, 1), (1, 2), (2, 3)]
    for name, mode in (("residuals", Mode()), ("steps", Mode(step=3)), ("candidates", Mode(candidates=True))):
        covers = f"blocks by {name}" if name != "steps" else "blocks by residuals in steps of 3"
        yield Vector(f"layer_by_{name}", covers, blocks(crop(40, 56), places, mode))
    gray = crop(40, 56)[..., :1]
    yield Vector("layer_gray_residuals", "gray blocks by residuals", blocks(gray, places, Mode()))


def near(plane: Pixels, step: int) -> bytes:
    """What a plane decodes to when it was coded in steps."""
    return colours.decode(colours.encode(plane[..., None], step=step), (*plane.shape, 1), 8, None).tobytes()


def blocks(picture: Pixels, places: list[tuple[int, int]], mode: Mode | None = None) -> bytes:
    """A picture of the network with some blocks of its own exact colours, posterised; `mode`: not the encoder's."""
    from dca_fast.exact import layer

    dca = parse(modelled(picture, 50))
    height, width = picture.shape[:2]
    inside = np.zeros(exact.blocks(height, width), np.bool_)
    for place in places:
        inside[place] = True
    samples = np.where(colours.pixels_inside(inside, height, width)[:, :, None], picture // 64 * 64, 0).astype(np.uint8)
    stream, _ = colours.encode_blocks(samples, inside)
    if mode is not None:
        stream = exact.encode(samples, mode, inside)
        samples = exact.decode(stream, height, width, samples.shape[2], 8, inside)
    return pack(dca.header, dca.stream, {Section.LAYER: layer.pack(samples, stream, inside)})


def exact_files() -> Iterator[Vector]:
    picture, generator = crop(30, 44), np.random.default_rng(9)
    graphic = np.repeat(np.repeat(picture[:15, :22] // 64 * 64, 2, 0), 2, 1)
    noise = generator.integers(0, 256, (24, 28, 3), np.uint8)
    plain, candidates, index = Mode(), Mode(candidates=True), Mode(candidates=True, index=True)
    for name, mode in (("residuals", plain), ("candidates", candidates), ("index", index)):
        for kind, samples in (("photograph", picture), ("graphic", graphic), ("noise", noise)):
            yield Vector(f"exact_{kind}_{name}", f"{kind} without loss, by {name}", exactly(samples, mode))
        gray = np.ascontiguousarray(graphic[..., :1])
        yield Vector(f"exact_gray_{name}", f"gray without loss, by {name}", exactly(gray, mode))
    for step in (3, 127):
        covers = f"residuals in steps of {step}"
        yield Vector(f"exact_step_{step}", covers, exactly(picture, Mode(step=step)))
        yield Vector(f"exact_step_{step}_noise", f"{covers}, noise", exactly(noise, Mode(step=step)))
    dots = np.where(generator.random((40, 60, 1)) < 0.1, 0, 255).astype(np.uint8).repeat(3, 2)
    yield Vector("exact_dots", "flat pixels and runs of them, by index", exactly(dots, index))
    many = generator.integers(0, 256, (66, 66, 3), np.uint8)
    yield Vector("exact_colours", "more than the 4096 colours that have numbers", exactly(many, index))
    palette = generator.integers(0, 256, (300, 3), np.uint8)[generator.integers(0, 300, (40, 60))]
    yield Vector("exact_palette", "dithered pixels of 300 colours, by index", exactly(palette, index))
    yield Vector("exact_1x1", "one pixel without loss", exactly(picture[:1, :1], plain))
    yield Vector("exact_1x40", "one column without loss, by index", exactly(graphic[:, :1].repeat(2, 0)[:40], index))
    yield Vector("exact_40x1", "one row without loss, by index", exactly(graphic[:1, :40], index))
    yield Vector("exact_screen", "a page at quality 60: all graphics", exactly(page(40, 60)[:13, :19], index, 6000))
    yield from deep_files(picture, noise)


def deep_files(picture: Pixels, noise: Pixels) -> Iterator[Vector]:
    wide = picture.astype(np.uint16)
    low = np.random.default_rng(2).integers(0, 256, (24, 28, 3)).astype(np.uint16)
    plain, candidates, index = Mode(), Mode(candidates=True), Mode(candidates=True, index=True)
    yield Vector("deep_8_bits", "16 bits on a grid of 257: numbers of 8 bits", exactly(wide * 257, plain))
    yield Vector("deep_grid", "16 bits on a grid of 100 from 7 on, numbers of 16 bits", exactly(wide * 100 + 7, plain))
    full = noise.astype(np.uint16) << 8 | low
    for name, mode in (("residuals", plain), ("candidates", candidates), ("index", index)):
        yield Vector(f"deep_noise_{name}", f"noise of 16 bits, by {name}", exactly(full, mode))
    ramp = (np.arange(30 * 44).reshape(30, 44, 1) * 49).astype(np.uint16)
    yield Vector("deep_gray", "gray of 16 bits", exactly(ramp, plain))
    alpha = {Section.ALPHA: colours.pack_plane(ramp[:, :, 0])}
    yield Vector("deep_alpha", "16 bits with alpha", exactly(wide * 100 + 7, plain, sections=alpha))
    constant = np.full((9, 9, 3), 65535, np.uint16)
    yield Vector("deep_constant", "16 bits, all samples 65535", exactly(constant, plain))


def large_files() -> Iterator[Vector]:
    across = np.arange(65535) // 257
    wide = np.stack([np.broadcast_to(across, (65, 65535)), np.broadcast_to(255 - across, (65, 65535))], 2)
    wide = np.concatenate([wide, np.broadcast_to(3 * np.arange(65)[:, None, None], (65, 65535, 1))], 2).astype(np.uint8)
    data = modelled(wide, 10, aq_strength=0.5)
    yield Vector("large_tiles", "65535 x 65 pixels in two tiles, with adaptive steps", data, large=True)
    rows, columns = np.mgrid[:1024, :2048]
    flat = ((rows >= 700) * 100 + (columns >= 900) * 50).astype(np.uint8)[:, :, None]
    stream = colours._encode(flat, Mode(), 1, False)
    header = Header(2048, 1024, 10000, bytes(4), colours.digest_of(flat), True, exact=True)
    yield Vector("large_bands", "2048 x 1024 gray pixels without loss, in two bands", pack(header, stream), large=True)


# Files that are refused.

MALFORMED = b"\x80\x00"  # a number with a byte too many


def assembled(data: bytes, **changes: Any) -> bytes:
    """A file with other fields, even such as there must not be, under a digest and a checksum that fit them."""
    dca = parse(data)
    header = dca.header
    sections = b"".join(bytes([tag]) + leb128(len(part)) + part for tag, part in dca.sections.items())
    flags = header.grayscale | bool(sections) << 1 | bool(header.restoration) << 2 | header.exact << 3
    fields: dict[str, Any] = {
        "magic": b"\x89DCA\r\n",
        "version": VERSION,
        "flags": flags | (header.aq or header.depth == 16) << 4,
        "model": header.model_id,
        "width": leb128(header.width),
        "height": leb128(header.height),
        "quality": header.quality,
        "digest": header.digest,
        "restoration": pack_restoration(header.restoration) if header.restoration else b"",
        "sections": sections + b"\0" if sections else b"",
        "stream": dca.stream,
    } | changes
    f = fields
    out = f["magic"] + bytes([f["version"], f["flags"]]) + f["model"] + f["width"] + f["height"]
    out += struct.pack("<H", f["quality"])
    out += struct.pack("<I", f["digest"] ^ zlib.crc32(out + f["restoration"])) + f["restoration"]
    return checked(out + f["sections"] + f["stream"])


def checked(content: bytes) -> bytes:
    return content + zlib.crc32(content).to_bytes(4, "little")


CORRUPT, TRUNCATED, VERSIONS = "CorruptStreamError", "TruncatedStreamError", "UnsupportedVersionError"
LIMIT, NOT_A_FILE, UNKNOWN = "LimitExceededError", "NotADcaFileError", "UnknownModelError"


def refused_headers(data: bytes, plain: bytes) -> Iterator[Refusal]:
    """Of a file with a model, and an exact one."""
    yield Refusal("empty", "no bytes", NOT_A_FILE, b"")
    yield Refusal("magic", "another magic", NOT_A_FILE, assembled(data, magic=b"\x89PNG\r\n"))
    yield Refusal("magic_alone", "nothing behind the magic", TRUNCATED, data[:6])
    yield Refusal("version", "another version", VERSIONS, assembled(data, version=VERSION + 1))
    yield Refusal("version_old", "an older version", VERSIONS, assembled(data, version=VERSION - 1))
    yield Refusal("version_alone", "less behind the version than a checksum", TRUNCATED, data[:10])
    yield Refusal("cut_in_header", "cut inside the header", TRUNCATED, data[:17])
    yield Refusal("cut_in_stream", "cut inside the stream: no checksum", CORRUPT, data[:-9])
    yield Refusal("checksum", "a byte of the stream is another one", CORRUPT, data[:-7] + b"\x55" + data[-6:])
    yield Refusal("trailing", "a byte behind the checksum", CORRUPT, data + b"\0")
    yield Refusal("width_zero", "no columns", CORRUPT, assembled(data, width=b"\0"))
    yield Refusal("height_zero", "no rows", CORRUPT, assembled(data, height=b"\0"))
    yield Refusal("width_65536", "65536 columns", LIMIT, assembled(data, width=leb128(65536)))
    yield Refusal("width_malformed", "a width with a byte too many", CORRUPT, assembled(data, width=b"\xb8\x00"))
    five = b"\x81\x80\x80\x80\x01"
    yield Refusal("width_long", "a width of five bytes", LIMIT, assembled(data, width=five))
    yield Refusal("width_six", "a width of six bytes", CORRUPT, assembled(data, width=b"\x80" + five))
    yield Refusal("quality_reserved", "a reserved bit of the quality", VERSIONS, assembled(data, quality=1 << 14))
    yield Refusal("quality_10001", "quality above 10000", CORRUPT, assembled(data, quality=10001))
    big = assembled(data, width=leb128(65535), height=leb128(65535))
    yield Refusal("pixels", "more than 2^28 pixels", LIMIT, big)
    yield Refusal("model", "no weights with the model id", UNKNOWN, assembled(data, model=b"none"))
    dca = parse(data)
    yield Refusal("digest", "another digest", CORRUPT, assembled(data, digest=dca.header.digest ^ 1))
    for name, covers, field, value in (
        ("quality", "another quality", 12 + 2, 1),
        ("gray", "another gray flag", 7, 1),
        ("strength", "another strength of adaptive quantisation", 7, 0x10),
        ("width", "another width of as many sites", 12, 1),
    ):
        changed = bytearray(data[:-4])
        changed[field] ^= value
        covers = f"{covers} under the same digest, with a checksum that fits"
        yield Refusal(f"changed_{name}", covers, "", checked(bytes(changed)))
    yield Refusal("exact_flags", "bit 5 of the flags of an exact file", VERSIONS, assembled(plain, flags=0x28))
    one = pack_restoration((1,) * 18)
    filtered = assembled(plain, flags=0x0C, restoration=one)
    yield Refusal("exact_filter", "an exact file with a filter", VERSIONS, filtered)
    yield Refusal("exact_model", "an exact file with a model id", CORRUPT, assembled(plain, model=b"none"))
    layer = assembled(plain, flags=0x0A, sections=b"\5\1x\0")
    yield Refusal("exact_layer", "an exact file with a layer", CORRUPT, layer)


def refused_filters(data: bytes) -> Iterator[Refusal]:
    flags, good = parse(data).header.aq << 4 | 4, pack_restoration((3, -1) * 9)

    def filtered(restoration: bytes) -> bytes:
        return assembled(data, flags=flags, restoration=restoration)

    yield Refusal("filter_no_rings", "a filter of no rings", CORRUPT, filtered(b"\0" + good[1:]))
    zeros = bytes(-(-18 * 2 // 8))
    yield Refusal("filter_k", "a filter whose k is not the smallest", CORRUPT, filtered(b"\xe5" + zeros))
    yield Refusal("filter_s", "a filter whose s is not the largest", CORRUPT, filtered(b"\x01" + bytes(3)))
    loose = pack_restoration((0,) * 18)
    yield Refusal("filter_bits", "bits behind the filter", CORRUPT, filtered(loose[:-1] + b"\x80"))
    yield Refusal("filter_large", "a coefficient above 127", CORRUPT, filtered(b"\x1d" + b"\xff" * 40))


def refused_sections(data: bytes) -> Iterator[Refusal]:
    flags = parse(data).header.aq << 4 | 2
    cases = (
        ("none", "a flag for sections, but none", CORRUPT, b"\0"),
        ("order", "tags that decrease", CORRUPT, b"\3\1x\1\1x\0"),
        ("twice", "a tag twice", CORRUPT, b"\1\1x\1\1x\0"),
        ("empty", "an empty section", CORRUPT, b"\1\0\0"),
        ("tag", "an unknown tag", VERSIONS, b"\x63\1x\0"),
        ("tag_127", "the last critical tag", VERSIONS, b"\x7f\1x\0"),
        ("ancillary_order", "ancillary tags that decrease", CORRUPT, b"\x81\1x\x80\1x\0"),
        ("ancillary_empty", "an empty ancillary section", CORRUPT, b"\x80\0\0"),
        ("ancillary_large", "an ancillary section above 2^24 bytes", LIMIT, b"\x80" + leb128((1 << 24) + 1) + b"x\0"),
        ("size", "a size with a byte too many", CORRUPT, b"\1\x81\0x\0"),
        ("large", "a section above 2^24 bytes", LIMIT, b"\1" + leb128((1 << 24) + 1) + b"x\0"),
        ("cut", "a section that is longer than the file", TRUNCATED, b"\1" + leb128(1 << 20) + b"x\0"),
        ("open", "no zero byte behind the sections", TRUNCATED, b"\1" + leb128(len(parse(data).stream) + 1) + b"x"),
    )
    for name, breaks, error, sections in cases:
        changed = assembled(data, flags=flags, sections=sections)
        yield Refusal(f"section_{name}", breaks, error, changed)
    alpha = colours.pack_plane(crop(40, 56)[..., 0])
    for name, breaks, payload in (
        ("digest", "alpha with another digest", bytes([alpha[0] ^ 1]) + alpha[1:]),
        ("short", "alpha of three bytes", alpha[:3]),
        ("empty", "alpha without a stream", alpha[:4]),
    ):
        section = bytes([Section.ALPHA]) + leb128(len(payload)) + payload + b"\0"
        yield Refusal(f"alpha_{name}", breaks, CORRUPT, assembled(data, flags=flags, sections=section))


def refused_streams() -> Iterator[Refusal]:
    """Of a picture in two lanes and three groups."""
    data = laid_out(crop(40, 56), 6000, 2, 3)
    stream = parse(data).stream
    reader = second.Reader(stream, 2)
    sizes = [reader.leb128(), reader.leb128()]
    body = reader.rest()

    def changed(head: bytes = stream[:2], sizes: list[int] = sizes, body: bytes = body) -> bytes:
        return assembled(data, stream=head + b"".join(map(leb128, sizes)) + body)

    yield Refusal("stream_empty", "no stream", TRUNCATED, assembled(data, stream=b""))
    yield Refusal("stream_lanes", "64 lanes", CORRUPT, changed(b"\6" + stream[1:2]))
    yield Refusal("stream_no_groups", "no groups", CORRUPT, changed(stream[:1] + b"\0"))
    yield Refusal("stream_groups", "65 groups", CORRUPT, changed(stream[:1] + b"\x41"))
    malformed = stream[:2] + b"\x85\x00" + stream[2:]
    yield Refusal("stream_size", "a group's size with a byte too many", CORRUPT, assembled(data, stream=malformed))
    yield Refusal("stream_sizes_cut", "cut inside the sizes", TRUNCATED, assembled(data, stream=stream[:3]))
    far = changed(sizes=[1 << 20, sizes[1]])
    yield Refusal("stream_group_cut", "a group that is longer than the stream", TRUNCATED, far)
    yield Refusal("stream_states_cut", "a group inside its states", TRUNCATED, changed(sizes=[6, sizes[1]]))
    odd = changed(sizes=[sizes[0] + 1, sizes[1]], body=body[: sizes[0]] + b"\0" + body[sizes[0] :])
    yield Refusal("stream_odd", "a group of an odd number of bytes", CORRUPT, odd)
    small = changed(body=b"\0\0\0\0" + body[4:])
    yield Refusal("stream_state", "a state below 2^16", CORRUPT, small)
    less = changed(sizes=[sizes[0] - 2, sizes[1]], body=body[: sizes[0] - 2] + body[sizes[0] :])
    yield Refusal("stream_words_short", "a group with a word too few", TRUNCATED, less)
    more = changed(sizes=[sizes[0] + 2, sizes[1]], body=body[: sizes[0]] + b"\0\0" + body[sizes[0] :])
    yield Refusal("stream_words_left", "a group with a word too many", CORRUPT, more)
    idle = parse(drawn((16, 16), 0, 32, 1, 0.0))  # with lanes that code nothing
    for name, at, breaks in (
        ("unused", 0, "a word of a lane that the tail does not take, and that is not 0"),
        ("lane", 2, "a state that is not below 2^17 before the tail"),
    ):
        changed_lane = bytearray(idle.stream)
        changed_lane[2 + 4 * 31 + at] ^= 2
        yield Refusal(f"stream_{name}", breaks, CORRUPT, pack(idle.header, bytes(changed_lane)))
    with patch.object(rans, "LOWER", rans.LOWER + 1):
        state = drawn((40, 56), 5000, 1, 1, 1.0)
    yield Refusal("stream_end", "a state that is not 2^16 in the end", CORRUPT, state)
    values = assembled(data, stream=parse(laid_out(crop(40, 56, 200), 6000, 2, 3)).stream)
    yield Refusal("stream_values", "the stream of another picture", CORRUPT, values)


def refused_tiles() -> Iterator[Refusal]:
    """Of two tiles. The table is checked before a value is decoded."""
    vector = next(large_files()).data
    dca = parse(vector)
    own, digests = second.tile_streams(dca.stream, 2)
    table = struct.pack("<I", digests[0]) + leb128(len(own[0])) + struct.pack("<I", digests[1])

    def changed(table: bytes, **fields: Any) -> bytes:
        return assembled(vector, stream=table + b"".join(own), **fields)

    yield Refusal("tiles_cut", "cut inside the table of tiles", TRUNCATED, assembled(vector, stream=table[:3]))
    malformed = table[:4] + MALFORMED + table[-4:]
    yield Refusal("tiles_size", "a size with a byte too many in the table of tiles", CORRUPT, changed(malformed))
    far = table[:4] + leb128(1 << 24) + table[-4:]
    yield Refusal("tiles_beyond", "a tile that is longer than the stream", TRUNCATED, changed(far))
    wrong = bytes([table[0] ^ 1]) + table[1:]
    total = zlib.crc32(wrong[:4] + wrong[-4:])
    yield Refusal("tiles_digest", "another digest of a tile", CORRUPT, changed(wrong, digest=total), large=True)
    yield Refusal("tiles_total", "another digest of all tiles", CORRUPT, changed(table, digest=1), large=True)


def refused_exact(plain: bytes, deep: bytes) -> Iterator[Refusal]:
    stream, wide = parse(plain).stream, parse(deep).stream
    cases = (
        ("empty", "no stream", b""),
        ("index", "index without candidates", b"\2" + stream[1:]),
        ("step", "candidates with a step", b"\5" + stream[1:]),
        ("zero", "a band whose last byte is zero", stream + b"\0"),
        ("left", "a byte behind the last band", stream + b"\1\1\1\1\1"),
        ("mode", "residuals that are read as candidates", b"\3" + stream[1:]),
        ("noise", "bytes that no encoder makes", b"\0" + bytes(range(255, 55, -1))),
        ("noise_index", "bytes that no encoder makes, by index", b"\3" + bytes(range(3, 203))),
        ("code", "a band whose first number is 2^32 - 1", stream[:1] + b"\xff" * 4 + stream[5:]),
    )
    for name, breaks, changed in cases:
        yield Refusal(f"exact_{name}", breaks, CORRUPT, assembled(plain, stream=changed))
    other = assembled(plain, digest=parse(plain).header.digest ^ 1)
    yield Refusal("exact_digest", "samples of another digest", CORRUPT, other)
    reader = second.Reader(wide, 1)
    factor, offset, bands = reader.leb128(), reader.leb128(), reader.rest()
    most = 65535 // int((CODEC.decode(deep, "numpy").max() - offset) // factor) + 1  # its largest number is too large
    for name, breaks, numbers in (
        ("factor", "a grid with a factor of 0", leb128(0) + leb128(0)),
        ("offset", "a grid from 65536 on", leb128(factor) + leb128(65536)),
        ("beyond", "samples above 65535", leb128(most) + leb128(0)),
        ("malformed", "a factor with a byte too many", b"\x81\x00" + leb128(0)),
    ):
        yield Refusal(f"grid_{name}", breaks, CORRUPT, assembled(deep, stream=wide[:1] + numbers + bands))
    yield Refusal("grid_cut", "cut inside the grid", CORRUPT, assembled(deep, stream=wide[:2]))
    size = {"width": leb128(2048), "height": leb128(1024)}
    beyond = assembled(plain, stream=b"\0" + leb128(1 << 20) + stream[1:], **size)
    yield Refusal("bands_beyond", "a band that is longer than the stream", CORRUPT, beyond)
    malformed = assembled(plain, stream=b"\0" + MALFORMED + stream[1:], **size)
    yield Refusal("bands_size", "a band's size with a byte too many", CORRUPT, malformed)
    yield Refusal("exact_sample", "red above 255", CORRUPT, above_most())


def above_most() -> bytes:
    """An exact file whose planes are in range and whose red is not."""
    samples, encoder = np.array([[[90, 100, 80], [300, 120, 90]]]), Encoder()
    with patch.object(
        Planes, "pixel_of", lambda self, values: (values[0] + values[1], values[0], values[0] + values[2])
    ):
        Band(encoder, 1, 2, 3, 8, Mode()).run(samples)
    return pack(Header(2, 1, 10000, bytes(4), 0, exact=True), bytes(1) + encoder.finish())


def refused_layers() -> Iterator[Refusal]:
    data = blocks(crop(40, 56), [(1, 2)])
    payload = parse(data).sections[Section.LAYER]
    digest, count, size, rest = payload[:4], payload[4:5], payload[5], payload[6:]
    map_, stream = rest[:size], rest[size:]
    cases = (
        ("digest", "a layer with another digest", bytes([digest[0] ^ 1]) + payload[1:]),
        ("count", "another number of blocks", digest + b"\2" + payload[5:]),
        ("no_blocks", "a layer without blocks", digest + b"\0\0" + stream),
        ("map", "a map that is longer than the layer", digest + count + leb128(4000) + rest),
        ("map_zero", "a map whose last byte is zero", digest + count + bytes([size + 1]) + map_ + b"\0" + stream),
        ("map_left", "a byte behind the map", digest + count + bytes([size + 4]) + map_ + b"\1" * 4 + stream),
        ("map_code", "a map whose first number is 2^32 - 1", digest + count + b"\4" + b"\xff" * 4 + stream),
        ("cut", "cut inside the digest", digest[:3]),
        ("stream", "no stream of colours", payload[: 6 + size]),
    )
    flags = parse(data).header.aq << 4 | 2
    for name, breaks, changed in cases:
        section = bytes([Section.LAYER]) + leb128(len(changed)) + changed + b"\0"
        yield Refusal(f"layer_{name}", breaks, CORRUPT, assembled(data, flags=flags, sections=section))


def vectors() -> Iterator[Vector]:
    for some in (sizes, qualities, adaptive, filters, streams, channels, layers, exact_files, large_files):
        yield from some()


def refusals() -> Iterator[Refusal]:
    data = modelled(crop(40, 56), 50)
    plain = exactly(crop(12, 20), Mode())
    deep = exactly(crop(12, 20).astype(np.uint16) * 257, Mode())
    yield from refused_headers(data, plain)
    yield from refused_filters(data)
    yield from refused_sections(data)
    yield from refused_streams()
    yield from refused_tiles()
    yield from refused_exact(plain, deep)
    yield from refused_layers()


# The table.


def digest_of(picture: Pixels) -> str:
    """SHA-256 of samples by rows, pixels and channels, those of 16 bits with the low byte first."""
    return hashlib.sha256(picture.astype(picture.dtype.newbyteorder("<")).tobytes()).hexdigest()


def row_of(vector: Vector, other: second.Decoder) -> dict[str, Any]:
    picture = CODEC.decode(vector.data, "numpy")
    mine = other.decode(vector.data)
    if picture.dtype != mine.dtype or not np.array_equal(picture, mine):
        raise SystemExit(f"{vector.name}: the two decoders differ")
    height, width, channels = picture.shape
    row = {"file": f"vectors/{vector.name}.dca", "covers": vector.covers}
    if not parse(vector.data).header.exact:
        row["model"] = CODEC.model_id
    row |= {"width": width, "height": height, "channels": channels, "bits": 8 * picture.itemsize}
    row["sha256"] = digest_of(picture)
    metadata = parse(vector.data).metadata
    if metadata:
        row["metadata"] = {name: hashlib.sha256(block).hexdigest() for name, block in metadata.items()}
    if vector.large:
        row["large"] = True
    if vector.name.startswith(PREVIEWED):
        previews = {reduce: CODEC.decode(vector.data, "numpy", reduce=reduce) for reduce in (2, 4, 8, 16)}
        if any(not np.array_equal(other.decode(vector.data, n), p) for n, p in previews.items()):
            raise SystemExit(f"{vector.name}: the two decoders differ in a preview")
        row["previews"] = {str(reduce): digest_of(preview) for reduce, preview in previews.items()}
    return row


def refused_by(decode: Callable[[bytes], Any], data: bytes) -> str:
    """The error's name."""
    try:
        decode(data)
    except (BitstreamError, second.BitstreamError) as error:
        return type(error).__name__
    return "pixels"


def refused_row(refusal: Refusal, other: second.Decoder) -> dict[str, Any]:
    names = [refused_by(CODEC.decode, refusal.data), refused_by(other.decode, refusal.data)]
    expected = refusal.error or names[0]
    if not names[0] == names[1] == expected:
        raise SystemExit(f"{refusal.name}: {' and '.join(names)}, not {expected}")
    row: dict[str, Any] = {"file": f"refused/{refusal.name}.dca", "breaks": refusal.breaks, "error": expected}
    return row | ({"large": True} if refusal.large else {})


def text_of(table: dict[str, Any]) -> str:
    """JSON with a line for each file."""
    head = f'"format": {json.dumps(table["format"])},\n'
    lists = (
        f'"{key}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in table[key]) + "\n]"
        for key in ("vectors", "refused")
    )
    return "{\n" + head + ",\n".join(lists) + "\n}\n"


def main() -> None:
    check, other = "--check" in sys.argv[1:], second.Decoder(WEIGHTS)
    table: dict[str, Any] = {"format": VERSION, "vectors": [], "refused": []}
    if TABLE.exists():
        table |= json.loads(TABLE.read_text("utf-8"))
    known = {row["file"] for row in (*table["vectors"], *table["refused"])}
    made: dict[str, bytes] = {}
    for vector in vectors():
        if (file := f"vectors/{vector.name}.dca") not in known:
            made[file] = vector.data
            table["vectors"].append(row_of(vector, other))
    for refusal in refusals():
        if (file := f"refused/{refusal.name}.dca") not in known:
            made[file] = refusal.data
            table["refused"].append(refused_row(refusal, other))
    strange = {str(path.relative_to(HERE)) for path in HERE.glob("*/*.dca")} ^ known
    for file in sorted(strange | made.keys()):
        print(file, "is missing" if check and file in made else "written" if file in made else "is not as in the table")
    if not check:
        for file, data in made.items():
            (HERE / file).parent.mkdir(exist_ok=True)
            (HERE / file).write_bytes(data)
        TABLE.write_text(text_of(table), "utf-8")
    sys.exit(int(bool(strange) or (check and bool(made))))


if __name__ == "__main__":
    main()
