"""The .dca container: one byte form per file, and a typed error for every damaged one."""

import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dca_fast
from dca_fast.errors import (
    BitstreamError,
    CorruptStreamError,
    InputError,
    LimitExceededError,
    NotADcaFileError,
    TruncatedStreamError,
    UnsupportedVersionError,
)
from dca_fast.files import container
from dca_fast.files.container import Header, Section, inspect, pack, pack_restoration, parse

HEADER = Header(width=768, height=5, quality=6000, model_id=b"\x01\x02\x03\x04", digest=0xDEADBEEF)
SECTIONS = {Section.ALPHA: b"a" * 200, Section.ICC: b"profile"}
PLAIN = pack(HEADER, b"stream")
FULL = pack(HEADER, b"stream", SECTIONS)
FILTER = tuple(range(-9, 9)) + (0,) * 17 + (-127,)
FILTERED = pack(replace(HEADER, restoration=FILTER), b"stream", SECTIONS)
HEADER_BYTES = 6 + 1 + 1 + 4 + 2 + 1 + 2 + 4


def sealed(body: bytes) -> bytes:
    """Append the right checksum, as a hostile writer would."""
    return body + struct.pack("<I", zlib.crc32(body))


def with_flags(flags: int, tail: bytes) -> bytes:
    """A file with the fixed fields of HEADER, the given flags, and `tail` after them."""
    start = PLAIN[:HEADER_BYTES]
    return sealed(start[:7] + bytes([flags]) + start[8:] + tail)


def test_bytes_of_a_small_file() -> None:
    body = b"\x89DCA\r\n" + b"\x0a\x02" + b"\x01\x02\x03\x04" + b"\x80\x06" + b"\x05" + b"\x70\x17"
    body += (0xDEADBEEF ^ zlib.crc32(body)).to_bytes(4, "little")
    body += b"\x01\x07profile" + b"\x04\xc8\x01" + b"a" * 200 + b"\x00" + b"stream"
    assert sealed(body) == FULL


def test_round_trip_keeps_everything() -> None:
    dca = parse(FULL)
    assert (dca.header, dca.stream, dca.sections) == (HEADER, b"stream", SECTIONS)
    assert list(dca.sections) == sorted(SECTIONS)


@given(
    width=st.integers(1, 65535),
    height=st.integers(1, 65535),
    quality=st.integers(0, 10000),
    model_id=st.binary(min_size=4, max_size=4),
    digest=st.integers(0, 2**32 - 1),
    grayscale=st.booleans(),
    aq=st.integers(0, 15),
    stream=st.binary(max_size=300),
    sections=st.dictionaries(st.sampled_from(Section), st.binary(min_size=1, max_size=300)),
    restoration=st.integers(0, 3).flatmap(
        lambda rings: st.tuples(*[st.integers(-127, 127) | st.integers(-3, 3)] * (18 * rings))
    ),
)
def test_any_file_round_trips(
    width: int,
    height: int,
    quality: int,
    model_id: bytes,
    digest: int,
    grayscale: bool,
    aq: int,
    stream: bytes,
    sections: dict[Section, bytes],
    restoration: tuple[int, ...],
) -> None:
    header = Header(width, height, quality, model_id, digest, grayscale, aq, restoration)
    data = pack(header, stream, sections)
    dca = parse(memoryview(bytearray(data)), max_pixels=65535 * 65535)
    assert (dca.header, dca.stream, dca.sections) == (header, stream, sections)
    assert pack(dca.header, dca.stream, dca.sections) == data


def test_empty_payloads_are_left_out() -> None:
    assert pack(HEADER, b"stream", {Section.XMP: b""}) == PLAIN


@pytest.mark.parametrize("data", [PLAIN, FULL, FILTERED], ids=["plain", "sections", "filtered"])
def test_every_truncation_is_an_error(data: bytes) -> None:
    stream_start = len(data) - 4 - len(b"stream")
    for size in range(1, len(data)):
        with pytest.raises((TruncatedStreamError, CorruptStreamError)) as caught:
            parse(data[:size])
        # the last four bytes present are taken for the checksum, so the fields end four bytes earlier
        assert caught.type is (TruncatedStreamError if size - 4 < stream_start else CorruptStreamError), size


@pytest.mark.parametrize("data", [PLAIN, FULL, FILTERED], ids=["plain", "sections", "filtered"])
def test_every_bit_flip_is_an_error(data: bytes) -> None:
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError) as caught:
            parse(damaged)
        if bit >= 8 * 7 and data is PLAIN:  # behind magic and version, nothing in it has a length
            assert caught.type in (CorruptStreamError, TruncatedStreamError), bit


@given(st.binary(max_size=64))
def test_hostile_fields_under_a_right_checksum(tail: bytes) -> None:
    data = sealed(b"\x89DCA\r\n" + bytes([container.VERSION]) + tail)
    try:
        dca = parse(data)
    except BitstreamError:
        return
    assert pack(dca.header, dca.stream, dca.sections) == data


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"DCA", PLAIN[1:], b"\x89DCA\n"])
def test_other_files_are_named_as_such(data: bytes) -> None:
    with pytest.raises(NotADcaFileError):
        parse(data)


def test_other_formats_are_named_as_such() -> None:
    for version in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11):
        with pytest.raises(UnsupportedVersionError, match=f"version {version}"):
            parse(sealed(PLAIN[:6] + bytes([version]) + PLAIN[7:-4]))
    for flags in (0x28, 0x0C):
        with pytest.raises(UnsupportedVersionError, match=f"flags {flags:#04x}"):
            parse(with_flags(flags, b""))
    with pytest.raises(CorruptStreamError, match="exact file"):
        parse(with_flags(0x08, b""))
    with pytest.raises(UnsupportedVersionError, match="tag 6"):
        parse(with_flags(2, b"\x06\x01x\x00"))


@pytest.mark.parametrize(
    ("tail", "match"),
    [
        (b"\x00", "none"),
        (b"\x01\x00\x00", "empty ICC"),
        (b"\x02\x01x\x02\x01x\x00", "tag 2 after 2"),
        (b"\x02\x01x\x01\x01x\x00", "tag 1 after 2"),
        (b"\x01\x81\x00x\x00", "malformed number"),
        (b"\x01\x80\x80\x80\x80\x80\x01", "malformed number"),
    ],
)
def test_sections_have_one_form(tail: bytes, match: str) -> None:
    with pytest.raises(CorruptStreamError, match=match):
        parse(with_flags(2, tail))


def test_sections_cannot_run_into_the_checksum() -> None:
    assert parse(with_flags(2, b"\x01\x04abcd\x00")).sections == {Section.ICC: b"abcd"}
    with pytest.raises(TruncatedStreamError):
        parse(with_flags(2, b"\x01\x05abcd\x00"[:-1]))


@pytest.mark.parametrize("fields", [b"\x00\x01\x00\x00", b"\x01\x00\x00\x00", b"\x01\x01\x11\x27"])
def test_impossible_values_are_refused(fields: bytes) -> None:
    with pytest.raises(CorruptStreamError, match="outside"):
        parse(sealed(PLAIN[:12] + fields + bytes(4)))


def test_sides_and_bits_of_later_formats_are_not_called_damage() -> None:
    with pytest.raises(LimitExceededError, match="a side has at most 65535"):
        parse(sealed(PLAIN[:12] + b"\x80\x80\x04\x01\x00\x00" + bytes(4)), max_pixels=1 << 40)
    for bit in (14, 15):
        with pytest.raises(UnsupportedVersionError, match="quality"):
            parse(sealed(PLAIN[:12] + b"\x01\x01" + (1 << bit).to_bytes(2, "little") + bytes(4)))


def test_ancillary_sections_are_passed_over_and_kept() -> None:
    sections = {2: b"exif", 128: b"later", 255: b"own\0"}
    data = pack(HEADER, b"stream", sections)
    dca = parse(data)
    assert (dca.sections, dca.metadata) == (sections, {"exif": b"exif"})
    assert pack(dca.header, dca.stream, dca.sections) == data
    assert inspect(data).section_bytes == {"exif": 4, "ancillary 128": 5, "ancillary 255": 4}


def test_alpha_and_layer_may_be_longer_than_metadata() -> None:
    much = bytes(container.MAX_SECTION_BYTES + 1)
    for tag in (Section.ALPHA, Section.LAYER):
        assert parse(pack(HEADER, b"", {tag: much})).sections[tag] == much
    for tag in (Section.ICC, 200):
        with pytest.raises(InputError, match="allowed"):
            pack(HEADER, b"", {tag: much})
    with pytest.raises(InputError, match="tag 6"):
        pack(HEADER, b"", {6: b"x"})


def test_limits() -> None:
    assert parse(PLAIN, max_pixels=768 * 5).header == HEADER
    with pytest.raises(LimitExceededError, match="768 x 5"):
        parse(PLAIN, max_pixels=768 * 5 - 1)
    with pytest.raises(LimitExceededError, match="EXIF"):
        parse(with_flags(2, b"\x02\x81\x80\x80\x08"))
    huge = pack(Header(65535, 65535, 0, bytes(4), 0), b"")
    with pytest.raises(LimitExceededError):
        parse(huge)
    assert inspect(huge).width == 65535


@pytest.mark.parametrize(
    "values",
    [
        {"width": 0},
        {"height": 65536},
        {"quality": -1},
        {"quality": 10001},
        {"model_id": b"123"},
        {"digest": 1 << 32},
    ],
)
def test_pack_refuses_what_the_format_cannot_hold(values: dict[str, int]) -> None:
    fields = {"width": 1, "height": 1, "quality": 0, "model_id": bytes(4), "digest": 0}
    with pytest.raises(InputError):
        pack(Header(**(fields | values)), b"")


def test_pack_refuses_large_sections() -> None:
    limit = container.MAX_SECTION_BYTES
    assert len(parse(pack(HEADER, b"", {Section.XMP: bytes(limit)})).sections[Section.XMP]) == limit
    with pytest.raises(InputError, match="XMP"):
        pack(HEADER, b"", {Section.XMP: bytes(limit + 1)})


def test_bytes_of_a_restoration_filter() -> None:
    # One ring; of the parameters 0 takes least: a one and a zero more for each value but zero.
    assert pack_restoration((1, -1, 0, 2) + (0,) * 14) == b"\x01\xcb\x03\x00\x00"
    assert pack_restoration((4, -4, 0, 8) + (0,) * 14) == b"\x41\xcb\x03\x00\x00"
    assert pack_restoration((0,) * 18) == b"\xe1" + bytes(3)
    sizes = {len(pack_restoration(tuple([weight] * 18))) for weight in (-127, 127)}
    assert sizes == {1 + 18 * 9 // 8 + 1}


@pytest.mark.parametrize(
    ("tail", "match"),
    [
        (b"\x00" + bytes(3), "malformed restoration"),  # no ring
        (b"\x01" + bytes(3), "malformed restoration"),  # zeros that could be counted once
        (b"\x21\xef" + bytes(3), "malformed restoration"),  # the same: 4, -4, 0...
        (b"\xe1\x01\x00\x00", "malformed restoration"),  # -128
        (b"\x05" + bytes(5), "malformed restoration"),  # a parameter that takes more bits
        (b"\x01" + bytes(2) + b"\x80", "malformed restoration"),  # bits behind the last weight
        (b"\x01" + b"\xff" * 60, "too large"),
        (b"\x1d" + b"\xff" * 60, "too large"),
        (b"\x1d" + b"\xfe" * 60, "malformed restoration"),  # -128
    ],
)
def test_malformed_restoration_filters_are_refused(tail: bytes, match: str) -> None:
    with pytest.raises(CorruptStreamError, match=match):
        parse(with_flags(4, tail + b"stream"))


def test_restoration_filters_that_no_file_holds() -> None:
    for weights in ((1,) * 17, (128,) + (0,) * 17, (0,) * 72):
        with pytest.raises(InputError, match="restoration"):
            pack(replace(HEADER, restoration=weights), b"stream")


def test_inspect_tells_the_facts() -> None:
    info = dca_fast.inspect(FULL)
    assert (info.version, info.width, info.height, info.quality, info.aq_strength) == (10, 768, 5, 60.0, 0)
    assert (info.grayscale, info.model_id, info.digest) == (False, "01020304", 0xDEADBEEF)
    assert info.section_bytes == {"icc": 7, "alpha": 200}
    assert (info.stream_bytes, info.file_bytes) == (6, len(FULL))
    assert info.bpp == 8 * len(FULL) / (768 * 5)
    with pytest.raises(CorruptStreamError):
        dca_fast.inspect(FULL[:-1] + b"\x00")


@pytest.mark.parametrize("layer", [b"1234", b"1234\x80", b"12", b"1234\x80\x00"])
def test_a_layer_that_is_cut_is_corrupt(layer: bytes) -> None:
    """The file itself is whole."""
    with pytest.raises(CorruptStreamError):
        inspect(pack(HEADER, b"stream", {Section.LAYER: layer}))
