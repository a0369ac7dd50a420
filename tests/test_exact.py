"""The exact-colour coder: its definition, the same in C++, hostile streams, and pictures without loss."""

from __future__ import annotations

import hashlib
import io
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import dca_fast.pillow  # noqa: F401 (it registers itself)
from dca_fast import Codec, inspect
from dca_fast.cli.parser import main
from dca_fast.errors import (
    BitstreamError,
    ConfigError,
    CorruptStreamError,
    InputError,
    InputWarning,
    LimitExceededError,
)
from dca_fast.exact import coder, colours, decisions, reference
from dca_fast.exact.colours import Mode
from dca_fast.exact.planes import level_of
from dca_fast.files import container, image_out
from dca_fast.testing import photograph

ROOT = Path(__file__).resolve().parents[1]
NATIVE = coder.available()[0]
native = pytest.mark.skipif(not NATIVE, reason=coder.available()[1])
MODES = [Mode(), Mode(True), Mode(True, True), Mode(step=3), Mode(step=127)]


def graphic(height: int, width: int, channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Boxes of a few colours, and a corner of noise."""
    generator = np.random.default_rng(seed)
    most = np.iinfo(dtype).max
    palette = generator.integers(0, most + 1, (9, channels))
    picture = np.empty((height, width, channels), dtype)
    picture[:] = palette[0]
    for _ in range(14):
        y, x = generator.integers(0, height), generator.integers(0, width)
        picture[y : y + generator.integers(1, 9), x : x + generator.integers(1, 14)] = palette[generator.integers(0, 9)]
    corner = picture[: height // 3, : width // 3]
    corner[:] = generator.integers(0, most + 1, corner.shape)
    return picture


def deep(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A photograph of 16 bits."""
    noise = np.random.default_rng(3).integers(0, 256, (height, width, channels))
    return (photograph(height, width)[..., :channels].astype(np.uint16) * 256 + noise).astype(np.uint16)


PICTURES = {
    "photograph": photograph(40, 50),
    "gray": photograph(40, 50)[..., :1].copy(),
    "graphic": graphic(30, 44),
    "gray graphic": graphic(30, 44, 1),
    "graphic of 16 bits": graphic(30, 44, 3, np.uint16),
    "photograph of 16 bits": deep(30, 40),
    "gray of 16 bits": deep(30, 40, 1),
    "noise": np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8),
    "noise of 16 bits": np.random.default_rng(1).integers(0, 65536, (20, 30, 3), np.uint16),
    "extremes": np.random.default_rng(2).integers(0, 2, (20, 30, 3), np.uint8) * 255,
    "extremes of 16 bits": (np.random.default_rng(2).integers(0, 2, (20, 30, 3)) * 65535).astype(np.uint16),
    "many colours": (np.arange(40 * 70 * 3).reshape(40, 70, 3) * 7 // 3 % 251).astype(np.uint8),
    "a pixel": np.full((1, 1, 3), 9, np.uint8),
    "a column": photograph(30, 1),
    "a row": photograph(1, 30),
}


def test_constants() -> None:
    """Every table follows from integers, so that it is the same everywhere."""
    assert decisions.SQUASH[0] == 22
    assert decisions.SQUASH[2048] == 32768
    assert list(decisions.SQUASH) == sorted(decisions.SQUASH)
    assert list(decisions.STRETCH) == sorted(decisions.STRETCH)
    tables = (decisions.SQUASH, decisions.STRETCH, decisions.RATES, colours.FACTORS)
    digest = hashlib.sha256(repr(tables).encode()).hexdigest()
    assert digest == "4ffc8914573bc9ee6b1396643a8f276f4737046f99d77f45f8cc705329c8485a"
    assert [level_of(x) for x in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 14, 15)] == [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 2, 255, 32768, 65000, 65534, 65535])), max_size=400))
def test_the_range_coder_gives_back_every_bit(bits: list[tuple[int, int]]) -> None:
    encoder = decisions.Encoder()
    for bit, p in bits:
        encoder.code(bit, p)
    data = encoder.finish()
    assert not data.endswith(b"\0")
    decoder = decisions.Decoder(data)
    assert [decoder.code(0, p) for _, p in bits] == [bit for bit, _ in bits]
    assert decoder.finished


def test_the_range_coder_carries_into_bytes_that_are_written() -> None:
    encoder = decisions.Encoder()
    for bit, p in [(0, 65535)] * 9 + [(0, 1)]:
        encoder.code(bit, p)
    before = bytes(encoder._bytes)
    for _ in range(40):
        encoder.code(0, 65535)
    assert encoder.finish()[: len(before)] >= before
    encoder = decisions.Encoder()
    encoder._bytes, encoder._low = bytearray(b"\x12\xff\xff"), 0xFFFFFFFF
    encoder._add(1)
    assert encoder._bytes == b"\x13\0\0"


@native
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", PICTURES)
def test_both_coders_are_the_same(name: str, mode: Mode) -> None:
    samples = PICTURES[name]
    depth = 8 * samples.itemsize
    stream = reference.encode(samples, mode)
    assert coder._encode(samples, mode, 1, False) == stream
    back = reference.decode(stream, *samples.shape, depth)
    assert np.array_equal(coder._decode(stream, samples.shape, depth, 1, False), back)
    bound = mode.step // 2 * np.array([1] if samples.shape[2] == 1 else [2, 1, 2])
    assert (abs(back.astype(int) - samples) <= bound).all()


@native
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])))
    ),
    st.sampled_from(MODES),
)
def test_any_samples(samples: np.ndarray, mode: Mode) -> None:
    stream = reference.encode(samples, mode)
    assert coder._encode(samples, mode, 2, False) == stream
    back = coder._decode(stream, samples.shape, 8 * samples.itemsize, 2, False)
    assert mode.step > 1 or np.array_equal(back, samples)


@native
@pytest.mark.parametrize(("mode", "width"), [(Mode(), 2000), (Mode(True, True), 14000)], ids=str)
def test_bands_depend_on_size_and_mode_alone(mode: Mode, width: int) -> None:
    height = 1200
    halves = [(0, 600), (600, 1200)]
    assert reference.bands(height, width, mode) == halves
    assert len(reference.bands(65535, 65535, mode)) == 64
    assert reference.bands(1, 65535, mode) == [(0, 1)]
    samples = np.ascontiguousarray(np.tile(graphic(60, 100), (20, width // 100, 1)))
    streams = {coder._encode(samples, mode, threads, False) for threads in (1, 2)}
    assert len(streams) == 1
    stream = streams.pop()
    alone = [coder._encode(samples[top:bottom], mode, 1, False)[1:] for top, bottom in halves]
    assert reference._split(stream, height, width) == (mode, alone)
    assert np.array_equal(coder._decode(stream, samples.shape, 8, 2, False), samples)


@native
def test_tables_of_full_size() -> None:
    """Where hashes have all their bits."""
    samples = np.ascontiguousarray(np.tile(graphic(40, 64, seed=5), (4, 7, 1)))
    mode = Mode(True, True)
    assert coder._encode(samples, mode, 1, False) == reference.encode(samples, mode)


@pytest.mark.parametrize("python", [pytest.param(False, marks=native), True])
@pytest.mark.parametrize("name", ["graphic", "photograph of 16 bits", "extremes"])
def test_hostile_streams(name: str, python: bool) -> None:
    """Whatever is changed or cut off: an error, or the samples themselves."""
    samples = np.ascontiguousarray(PICTURES[name][:12, :14])
    depth, digest = 8 * samples.itemsize, coder.digest_of(samples)
    generator = np.random.default_rng(0)
    stream = coder.encode(samples, python=python)
    damaged = [stream[:n] for n in range(len(stream))] + [stream + b"x", stream + b"\0", b"\xff" * 90]
    for _ in range(150):
        bad = bytearray(stream)
        bad[generator.integers(len(bad))] ^= 1 << generator.integers(8)
        damaged.append(bytes(bad))
    for bad in damaged[:: 40 if python else 1]:
        try:
            back = coder.decode(bad, samples.shape, depth, digest, python=python)
        except CorruptStreamError:
            continue
        assert np.array_equal(back, samples)


@pytest.mark.parametrize("python", [pytest.param(False, marks=native), True])
@pytest.mark.parametrize(
    ("stream", "depth", "match"),
    [
        (b"", 8, "empty"),
        (b"\x02", 8, "unknown mode"),
        (b"\x05", 8, "unknown mode"),
        (b"\0\1\0", 8, "not needed"),
        (b"\0" + b"\1" * 60, 8, r"outside|left over|digest"),
        (b"", 16, "ends inside"),
        (b"\0", 16, "ends inside"),
        (b"\0\0\0", 16, "grid"),
        (b"\0\1\x80\x80\4", 16, "grid"),
        (b"\0\x80\x80\x80\x80\x80\x80", 16, "malformed"),
        (b"\0\x80\0\0", 16, "malformed"),
        (b"\0\xff\xff\x03\1\xff\xff", 16, r"outside|left over|digest"),
    ],
)
def test_streams_that_no_encoder_makes(stream: bytes, depth: int, match: str, python: bool) -> None:
    with pytest.raises(CorruptStreamError, match=match):
        coder.decode(stream, (2, 2, 3), depth, 1, python=python)


@pytest.mark.parametrize("python", [pytest.param(False, marks=native), True])
def test_sizes_of_bands_that_do_not_fit(python: bool) -> None:
    for stream, match in ((b"\0", "ends inside"), (b"\0\x80\0", "malformed"), (b"\0\7\1\1", "larger than the stream")):
        with pytest.raises(CorruptStreamError, match=match):
            coder.decode(stream, (2048, 1024, 3), 8, 0, python=python)


@pytest.mark.parametrize(
    ("factor", "offset"), [(257, 0), (257, 255), (64, 3), (16, 0), (1, 0), (255, 7)], ids=lambda value: str(value)
)
def test_16_bits_that_lie_on_a_grid(factor: int, offset: int) -> None:
    """Pictures of 8, 10 or 12 bits that were scaled take no more than before."""
    numbers = photograph(40, 50).astype(np.uint16)
    samples = numbers * np.uint16(factor) + np.uint16(offset)
    stream = coder.encode(samples)
    assert np.array_equal(coder.decode(stream, samples.shape, 16, coder.digest_of(samples)), samples)
    assert len(stream) < 1.02 * len(coder.encode(numbers)) + 8


def test_what_cannot_be_coded_is_refused() -> None:
    for samples in (np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), np.int16)):
        with pytest.raises(InputError, match="samples are"):
            coder.encode(samples)
    with pytest.raises(InputError, match="no pixels"):
        coder.encode(np.zeros((0, 2, 3), np.uint8))
    for step in (0, 2, 129):
        with pytest.raises(InputError, match="step"):
            coder.encode(np.zeros((2, 2, 3), np.uint8), step=step)


def test_the_choice_of_the_encoder() -> None:
    assert coder.likeness(np.zeros((9, 9, 3), np.uint8)) == 256
    assert coder.likeness(PICTURES["noise"]) == 0
    assert coder._modes(PICTURES["photograph of 16 bits"]) == [Mode()]
    assert coder._modes(np.zeros((9, 9, 3), np.uint8)) == [Mode(True, True)]
    assert len(coder._modes(np.zeros((9, 9, 1), np.uint8))) == 3


# ---- alpha ----


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@settings(max_examples=40, deadline=None)
def test_alpha_round_trips(alpha: np.ndarray) -> None:
    assert np.array_equal(coder.unpack_plane(coder.pack_plane(alpha), *alpha.shape, 8), alpha)


def test_alpha_is_small_where_rows_repeat() -> None:
    row = np.random.default_rng(0).integers(0, 256, (1, 40), np.uint8)
    assert len(coder.pack_plane(np.repeat(row, 500, 0))) < 100


@pytest.mark.parametrize(
    "payload", [b"", b"\0\0\0", b"\0\0\0\0", b"\1\2\3\4\0", b"\1\2\3\4\0\7", zlib.compress(bytes(12))]
)
def test_alpha_must_be_exactly_one_plane(payload: bytes) -> None:
    with pytest.raises(CorruptStreamError, match="exact colours"):
        coder.unpack_plane(payload, 3, 4, 8)


# ---- pictures ----


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=2)


def rgba(dtype: type = np.uint8) -> np.ndarray:
    alpha = np.random.default_rng(4).integers(0, 3, (33, 41, 1)) * 127
    return np.dstack([photograph(33, 41), alpha.astype(np.uint8)]).astype(dtype) * (1 if dtype == np.uint8 else 251)


@pytest.mark.parametrize(
    "array",
    [
        photograph(33, 41),
        photograph(33, 41)[..., 0],
        photograph(33, 41)[..., :1],
        graphic(33, 41),
        rgba(),
        rgba(np.uint16),
        np.dstack([photograph(9, 9), np.full((9, 9), 255, np.uint8)]),
        deep(33, 41),
        deep(33, 41, 1),
        deep(33, 41)[::-1, ::2],
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_pictures_come_back_as_they_were(codec: Codec, array: np.ndarray) -> None:
    data = codec.encode(array, "lossless", metadata={"xmp": b"<x/>", "icc": b"profile"})
    back = codec.decode(data, "numpy")
    expected = array if array.ndim == 3 and array.shape[2] > 1 else np.repeat(array.reshape(*array.shape[:2], 1), 3, 2)
    assert back.dtype == array.dtype
    assert np.array_equal(back, expected)
    info = inspect(data)
    assert (info.exact, info.lossless, info.depth, info.quality) == (True, True, 8 * array.itemsize, 100)
    assert (info.model_id, info.section_bytes["xmp"]) == ("00000000", 4)
    assert codec.encode(array, "lossless", metadata={"xmp": b"<x/>", "icc": b"profile"}) == data


def test_the_reference_backend_writes_and_reads_the_same(codec: Codec) -> None:
    pytest.importorskip("torch")
    other = Codec(backend="reference")
    for array in (rgba()[:20, :20], deep(12, 13), photograph(20, 20)):
        data = codec.encode(array, "lossless")
        assert other.encode(array, "lossless") == data
        assert np.array_equal(other.decode(data, "numpy"), array)


def test_tensors(codec: Codec) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(rgba()).permute(2, 0, 1)
    assert torch.equal(codec.decode(codec.encode(tensor, "lossless"), "torch"), tensor)
    assert codec.decode(codec.encode(deep(9, 8), "lossless"), "torch").dtype == torch.uint16
    batch = codec.encode(np.stack([photograph(8, 9)] * 2), "lossless")
    assert [len(batch), batch[0]] == [2, batch[1]]


def test_pillow_images(codec: Codec) -> None:
    for mode in ("L", "RGB", "RGBA", "LA", "1", "P"):
        image = Image.fromarray(rgba() if "A" in mode else photograph(33, 41)).convert(mode)
        back = codec.decode(codec.encode(image, "lossless"))
        expected = image.convert({"1": "L", "P": "RGB"}.get(mode, mode))
        assert back.mode == expected.mode
        assert back.tobytes() == expected.tobytes()
    gray = Image.fromarray(deep(20, 30)[..., 0])
    back = codec.decode(codec.encode(gray, "lossless", metadata={"xmp": b"<x/>"}))
    assert (back.mode, back.tobytes(), back.info["xmp"]) == ("I;16", gray.tobytes(), b"<x/>")
    for array in (deep(20, 30), rgba(np.uint16)):
        data = codec.encode(array, "lossless")
        with pytest.warns(InputWarning, match="reduced to 8"):
            back = codec.decode(data)
        assert np.array_equal(np.asarray(back), (array.astype(int) * 255 + 32767) // 65535)


def test_pillow_saves_and_opens_them() -> None:
    for image in (Image.fromarray(rgba()), Image.fromarray(deep(20, 30)[..., 0]), Image.fromarray(photograph(9, 8))):
        file = io.BytesIO()
        image.save(file, "DCA", lossless=True, xmp=b"<x/>")
        assert inspect(file.getvalue()).lossless
        with Image.open(file) as back:
            assert (back.mode, back.size, back.info["xmp"]) == (image.mode, image.size, b"<x/>")
            assert back.tobytes() == image.tobytes()
    with pytest.raises(ConfigError, match="not both"):
        image.save(io.BytesIO(), "DCA", lossless=True, quality=50)
    with pytest.raises(ConfigError, match="not both"):
        image.save(io.BytesIO(), "DCA", lossless=True, bpp=1)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, array in (("colour", rgba()), ("gray16", deep(20, 30)[..., 0])):
        picture, file, back = (tmp_path / f"{name}{end}" for end in (".png", ".dca", ".back.png"))
        Image.fromarray(array).save(picture)
        assert main(["encode", "--lossless", "--verify", str(picture), str(file)]) == 0
        assert "lossless" in capsys.readouterr().err
        assert main(["decode", str(file), str(back)]) == 0
        assert np.array_equal(np.asarray(Image.open(back)), array)
        capsys.readouterr()
        assert main(["info", str(file)]) == 0
        assert "lossless" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["encode", "--lossless", "--quality", "40", str(picture)])


def test_the_transparent_gray_of_16_bits_is_kept(codec: Codec) -> None:
    file = io.BytesIO()
    gray = np.array([[9, 700, 65535]], np.uint16)
    Image.fromarray(gray).save(file, "PNG", transparency=700)
    back = codec.decode(codec.encode(io.BytesIO(file.getvalue()), "lossless"), "numpy")
    assert np.array_equal(back[..., 0], gray)
    assert back[..., 3].tolist() == [[65535, 0, 65535]]


def test_bits_that_cannot_be_read_are_refused(codec: Codec, tmp_path: Path) -> None:
    """Pillow reads 8 bits of colours alone: a file without loss is not to lose the others silently."""
    path = tmp_path / "deep.ppm"
    path.write_bytes(b"P6 2 1 65535\n" + bytes(range(12)))
    with pytest.raises(InputError, match="as an array"):
        codec.encode(path, "lossless")
    assert main(["encode", "--lossless", str(path)]) == 2


def test_what_a_lossless_file_cannot_be(codec: Codec) -> None:
    with pytest.raises(ConfigError, match="lossless"):
        codec.encode(photograph(8, 8), "perfect")
    for bad in (np.zeros((2, 2), np.int32), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2), np.uint16)):
        with pytest.raises(InputError):
            codec.encode(bad, "lossless")
    with pytest.raises(LimitExceededError):
        Codec(max_pixels=99).encode(np.zeros((10, 10), np.uint8), "lossless")


def test_damaged_files(codec: Codec) -> None:
    """Every truncation and every changed bit is an error; with the checksum mended, an error or the picture itself."""
    array = rgba()[:9, :8]
    data = codec.encode(array, "lossless")
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            codec.decode(data[:size])
    outcomes = set()
    for bit in range(8 * (len(data) - 4)):
        damaged = bytearray(data[:-4])
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            codec.decode(bytes(damaged) + data[-4:])
        try:
            back = codec.decode(bytes(damaged) + zlib.crc32(damaged).to_bytes(4, "little"), "numpy")
            outcomes.add(back.shape[2] == 3 or np.array_equal(back, array))
        except BitstreamError as error:
            outcomes.add(type(error))
    assert False not in outcomes
    assert CorruptStreamError in outcomes


def test_headers_of_exact_files() -> None:
    header = container.Header(3, 2, 10000, bytes(4), 7, exact=True, depth=16)
    data = container.pack(header, b"x")
    assert data[7] == 0x18
    assert container.parse(data).header == header
    for values in ({"quality": 10001}, {"model_id": b"1234"}, {"aq": 1}, {"restoration": (0,) * 18}, {"depth": 12}):
        with pytest.raises(InputError):
            container.pack(container.Header(**({**vars(header)} | values)), b"x")
    with pytest.raises(InputError, match="16 bits"):
        container.pack(container.Header(3, 2, 10000, bytes(4), 7, depth=16), b"x")


@pytest.mark.parametrize("extension", image_out.EXTENSIONS)
def test_gray_of_16_bits_in_every_format(codec: Codec, extension: str) -> None:
    """All of it, or the nearest of 8 bits and a warning; never a part of its range."""
    ramp = np.linspace(0, 65535, 30 * 40).astype(np.uint16).reshape(30, 40)
    image = codec.decode(codec.encode(ramp, "lossless"))
    deep = extension in (".png", ".tif", ".tiff", ".pgm")
    with nullcontext() if deep else pytest.warns(InputWarning, match="holds 8 bits per sample: reduced"):
        data = image_out.image_bytes(image, extension)
    with Image.open(io.BytesIO(data)) as back:
        assert back.mode.startswith("I") == deep
        found = np.asarray(back).astype(int)
    if deep:
        assert np.array_equal(found, ramp)
    else:
        found = found if found.ndim == 2 else found[..., 1]
        assert np.abs(found - ramp / 257).max() < (4 if extension in (".jpg", ".jpeg", ".avif") else 0.51)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_golden_files(backend: str) -> None:
    if backend == "reference":
        pytest.importorskip("torch")
    codec, folder = Codec(backend=backend), ROOT / "tests/golden"
    lines = (folder / "exact.sha256").read_text().splitlines()
    assert len(lines) == 5
    for digest, name in map(str.split, lines):
        pixels = codec.decode(folder / name, "numpy")
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest
        shown = pixels[..., 0] if inspect((folder / name).read_bytes()).grayscale else pixels
        assert codec.encode(shown, "lossless") == (folder / name).read_bytes()


# ---- the highest quality ----


def decibels(codec: Codec, image: np.ndarray, data: bytes) -> float:
    error = np.square(codec.decode(data, "numpy").astype(float) - image).mean()
    return 999.0 if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("name", ["photograph", "graphic", "noise", "extremes", "smooth", "ripples"])
def test_the_highest_quality_has_45_decibels(codec: Codec, name: str) -> None:
    smooth = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None] + 60, 64, 0).repeat(3, 2)
    y, x = np.mgrid[0:64, 0:96]
    ripples = np.rint(128 + 60 * np.sin(x / 17) * np.cos(y / 23))[..., None].repeat(3, 2).astype(np.uint8)
    image = {"smooth": smooth, "ripples": ripples}.get(name, PICTURES.get(name))
    files = [codec.encode(image, quality, effort=0, screen="off") for quality in (60, 90, 99.99, 100)]
    found = [decibels(codec, image, data) for data in files]
    assert found[-1] >= 45
    neighbour = found.pop(2)  # what rounding makes of a picture may differ by so much from 99.99 to 100
    assert found[-1] > neighbour - 0.1
    assert found[-1] == max(found)
    info = inspect(files[-1])
    assert (info.exact, info.quality) == (name != "ripples", 100)
    assert not any(inspect(data).exact for data in files[:-1])


def test_the_highest_quality_without_loss_where_that_is_shorter(codec: Codec) -> None:
    boxes = np.repeat(np.repeat(graphic(20, 30), 3, 0), 3, 1)
    assert inspect(codec.encode(boxes, 100, effort=0)).lossless
    assert not inspect(codec.encode(PICTURES["noise"], 100, effort=0)).lossless
    gray = codec.encode(PICTURES["noise"][..., 0], 100, effort=0)
    assert (inspect(gray).exact, inspect(gray).grayscale) == (True, True)
    assert np.abs(codec.decode(gray, "numpy")[..., 0].astype(int) - PICTURES["noise"][..., 0]).max() == 1


def test_a_goal_that_only_the_highest_quality_reaches(codec: Codec) -> None:
    image = PICTURES["noise"]
    data = codec.encode_to(image, psnr=45, effort=0)
    assert inspect(data).exact
    assert decibels(codec, image, data) >= 45
    with pytest.raises(InputError, match="quality 100 has"):
        codec.encode_to(image, psnr=90, effort=0)


def test_errors_that_are_enough_are_those_of_45_decibels() -> None:
    from dca_fast.exact.picture import is_enough

    limit = 255**2 / 10**4.5
    assert is_enough(int(limit * 10**6) - 1, 10**6)
    assert not is_enough(int(limit * 10**6) + 2, 10**6)


def test_noise_of_few_colours_takes_little_more_than_its_entropy() -> None:
    palette = np.random.default_rng(1).integers(0, 256, (8, 3), np.uint8)
    samples = palette[np.random.default_rng(2).integers(0, 8, (96, 96))]
    stream = coder.encode(samples)
    assert len(stream) < 1.2 * 3 * 96 * 96 / 8
    assert np.array_equal(coder.decode(stream, samples.shape, 8, coder.digest_of(samples)), samples)
