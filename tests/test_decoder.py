"""The C library (csrc/decoder) gives the pixels of `Codec.decode`, and refuses what it refuses, for the same reason."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dca_fast import Codec, inspect
from dca_fast.config import STRIDE
from dca_fast.errors import (
    BackendUnavailableError,
    BitstreamError,
    ConfigError,
    CorruptStreamError,
    DcaError,
    LimitExceededError,
    UnknownModelError,
    WeightsError,
)
from dca_fast.files import container
from dca_fast.files.container import Section
from dca_fast.network import weights as weights_io
from dca_fast.network.layout import is_of_encoder
from dca_fast.network.walk import Grid
from dca_fast.testing import page, photograph
from tests.decoder_library import (
    BAD_ARGUMENT,
    ROOT,
    STATUS,
    WEIGHTS,
    Decoder,
    build,
    can_build,
    library,
    random_weights,
)
from tests.test_conformance import BAD_WEIGHTS

pytestmark = can_build
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.dca"))
MAX_PIXELS = 1 << 18


@pytest.fixture(scope="module")
def lib() -> Any:
    return library()


@pytest.fixture(scope="module")
def content() -> bytes:
    return WEIGHTS.read_bytes()


@pytest.fixture(scope="module")
def decoder(lib: Any, content: bytes) -> Decoder:
    return Decoder(lib, content, threads=2)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=2)


def expected(codec: Codec, data: bytes, **options: Any) -> np.ndarray:
    """As the library returns them: one channel of gray."""
    pixels = codec.decode(data, "numpy", **options)
    return np.concatenate([pixels[..., :1], pixels[..., 3:]], 2) if inspect(data).grayscale else pixels


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files(decoder: Decoder, codec: Codec, path: Path) -> None:
    data = path.read_bytes()
    pixels = decoder.decode(data)
    assert pixels.dtype == (np.uint16 if inspect(data).depth == 16 else np.uint8)
    assert np.array_equal(pixels, expected(codec, data))


def test_the_model_is_that_of_the_weights(decoder: Decoder, codec: Codec) -> None:
    assert decoder.model_id.hex() == codec.model_id


@pytest.mark.parametrize("quality", [0, 35, 60.5, 100])
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 1), (16, 16), (63, 129), (64, 64), (100, 37)])
def test_any_size_at_any_quality(decoder: Decoder, codec: Codec, size: tuple[int, int], quality: float) -> None:
    picture = photograph(*size, seed=int(quality))
    for image in (picture, picture[..., 0], np.dstack([picture, picture[..., 1]])):
        data = codec.encode(image, quality)
        assert np.array_equal(decoder.decode(data), expected(codec, data))


@pytest.mark.parametrize("kind", ["photograph", "page"])
def test_restoration_adaptive_quantisation_gray_alpha_and_layers_together(
    decoder: Decoder, codec: Codec, kind: str
) -> None:
    picture = page(160, 230) if kind == "page" else photograph(160, 230)
    alpha = (np.arange(160)[:, None] + np.arange(230)) % 256
    pillow = Image.fromarray(np.dstack([picture, alpha]).astype(np.uint8))
    seen = Counter()
    for mode in ("RGB", "RGBA", "L", "LA"):
        for effort, aq in ((0, 0), (1, 15 / 16)):
            data = codec.encode(pillow.convert(mode), 45, effort=effort, aq_strength=aq)
            assert np.array_equal(decoder.decode(data), expected(codec, data))
            dca = container.parse(data)
            seen.update(["restoration"] * bool(dca.header.restoration), aq=bool(dca.header.aq))
            seen.update(section.name for section in dca.sections)
            assert decoder.inspect(data).graphic_blocks == inspect(data).graphic_blocks
    assert seen["ALPHA"] == 4
    assert seen["aq"]
    assert seen["LAYER"] if kind == "page" else seen["restoration"]


@pytest.mark.parametrize("reduce", [2, 4, 8, 16])
def test_previews(decoder: Decoder, codec: Codec, reduce: int) -> None:
    """From the latent, and of decoded pixels; with alpha, in gray, over graphic blocks, of 16 bits."""
    small, screen = photograph(61, 83), page(100, 145)
    alpha = (np.arange(61)[:, None] * 4 + np.arange(83)).astype(np.uint8)
    files = [path.read_bytes() for path in GOLDEN]
    files += [codec.encode(image, 50) for image in (small, small[..., 0], np.dstack([small, alpha]), screen)]
    files += [codec.encode(Image.fromarray(screen).convert("L"), 50), codec.encode(small[:1, :1], 50)]
    for data in files:
        found = decoder.decode(data, reduce)
        assert found.shape[:2] == (-(-inspect(data).height // reduce), -(-inspect(data).width // reduce))
        assert np.array_equal(found, expected(codec, data, reduce=reduce))
    with pytest.raises(ConfigError):
        decoder.decode(files[0], reduce + 1)
    with pytest.raises(CorruptStreamError):
        decoder.decode(files[0][:-5] + bytes(5), reduce)


def crop(pixels: np.ndarray, region: tuple[int, int, int, int]) -> np.ndarray:
    left, top, width, height = region
    return pixels[top : top + height, left : left + width]


def test_regions(decoder: Decoder, codec: Codec) -> None:
    """Crops of the whole: alone, of gray, with alpha, a filter and graphic blocks, of 16 bits."""
    generator = np.random.default_rng(0)
    small, screen = photograph(161, 203), page(170, 230)
    alpha = (np.arange(161)[:, None] + np.arange(203)).astype(np.uint8)
    files = [path.read_bytes() for path in GOLDEN]
    files += [codec.encode(image, 40, effort=1) for image in (small, small[..., 0], np.dstack([small, alpha]), screen)]
    files += [codec.encode(Image.fromarray(screen).convert("L"), 50), codec.encode(small[:1, :1], 50)]
    files.append(codec.encode(np.arange(20 * 30, dtype=np.uint16).reshape(20, 30), "lossless"))
    plain = container.parse(codec.encode(small, 40, effort=0))
    weights = tuple(generator.integers(-9, 10, 54).tolist())
    files.append(container.pack(replace(plain.header, restoration=weights), plain.stream))
    for data in files:
        whole = decoder.decode(data)
        height, width = whole.shape[:2]
        regions = [(0, 0, width, height), (0, 0, 1, 1), (width - 1, height - 1, 1, 1), (0, height // 2, width, 1)]
        for left, top, right, bottom in generator.random((6, 4)):
            left, top = int(left * width), int(top * height)
            regions.append((left, top, 1 + int(right * (width - left)), 1 + int(bottom * (height - top))))
        for region in regions:
            part = decoder.decode(data, region=region)
            assert np.array_equal(part, crop(whole, region)), region
            assert np.array_equal(part, expected(codec, data, region=region)), region


@pytest.mark.parametrize(
    "region",
    [
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (0, 0, 84, 1),
        (0, 0, 1, 62),
        (83, 0, 1, 1),
        (0, 61, 1, 1),
        (1, 1, 83, 60),
        (2**32 - 1, 0, 1, 1),
        (2**32 - 1, 0, 2, 1),
        (1, 1, 2**32 - 1, 2**32 - 1),
        (2**31, 2**31, 2**31, 2**31),
    ],
)
def test_regions_outside_of_the_picture_are_refused(
    decoder: Decoder, codec: Codec, region: tuple[int, int, int, int]
) -> None:
    picture = photograph(61, 83)
    for data in (codec.encode(picture, 50), codec.encode(picture, "lossless")):
        with pytest.raises(ConfigError, match="region"):
            decoder.decode(data, region=region)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_exact_files(decoder: Decoder, codec: Codec, lib: Any, channels: int, dtype: type) -> None:
    generator = np.random.default_rng(channels)
    most = np.iinfo(dtype).max
    noise = generator.integers(0, most + 1, (20, 33, channels)).astype(dtype)
    steps = np.repeat(noise[:, :3], 11, 1)
    coarse = noise // dtype(most // 9) * dtype(most // 9)
    without = Decoder(lib, None)
    assert without.model_id == bytes(4)
    for samples in (noise, steps, coarse):
        data = codec.encode(samples if channels > 1 else samples[..., 0], "lossless")
        for one in (decoder, without):
            assert np.array_equal(one.decode(data), samples)
        assert decoder.inspect(data).exact == 1
    with pytest.raises(UnknownModelError):
        without.decode(GOLDEN[-2].read_bytes())


@pytest.mark.parametrize(("channels", "rows"), [(1, 3), (3, 1)])
def test_exact_files_in_bands(decoder: Decoder, codec: Codec, channels: int, rows: int) -> None:
    """Two bands of a megapixel each."""
    down = np.arange(1100 // rows * rows)[:, None, None] // 7
    picture = (down + np.arange(2000)[None, :, None] // 11 + np.arange(channels)).astype(np.uint8)
    data = codec.encode(picture[..., 0] if channels == 1 else picture, "lossless")
    assert np.array_equal(decoder.decode(data), picture)


def test_tiles_and_strips(decoder: Decoder, codec: Codec) -> None:
    """A long picture in two tiles, and in two strips of the synthesis, with a filter across them."""
    down, across = np.mgrid[:33000, :290]
    picture = np.stack([down // 200, across // 2, (down // 150 + across) % 256], 2).astype(np.uint8)
    picture[:, 100:140] += photograph(33000, 40) // 8
    data = codec.encode(picture, 30, effort=0, screen="off")
    header = container.parse(data).header
    assert np.array_equal(decoder.decode(data), codec.decode(data, "numpy"))
    weights = tuple(np.random.default_rng(0).integers(-9, 10, 54).tolist())
    filtered = container.pack(replace(header, restoration=weights), container.parse(data).stream)
    whole = codec.decode(filtered, "numpy")
    assert np.array_equal(decoder.decode(filtered), whole)
    _, below = Grid.of(33000, 290).tiles()
    middle = below.top * STRIDE
    first, second = (30, 100, 70, 90), (0, 30000, 290, 40)
    for region in (first, second, (5, middle - 20, 280, 50), (280, 0, 1, 33000)):
        assert np.array_equal(decoder.decode(filtered, region=region), crop(whole, region)), region
    damaged = bytearray(filtered)
    damaged[-2000] ^= 1  # in the second tile
    damaged[-4:] = zlib.crc32(damaged[:-4]).to_bytes(4, "little")
    assert np.array_equal(decoder.decode(bytes(damaged), region=first), crop(whole, first))
    for region in (second, None):
        with pytest.raises(BitstreamError):
            decoder.decode(bytes(damaged), region=region)


def test_what_a_file_says(decoder: Decoder, codec: Codec) -> None:
    blocks = {"icc": b"profile", "exif": b"II*\0 and more", "xmp": b"<x/>" * 100}
    data = codec.encode(photograph(30, 41), 61.25, metadata=blocks)
    info = decoder.inspect(data)
    assert (info.width, info.height, info.channels, info.depth, info.quality) == (41, 30, 3, 8, 6125)
    assert info.row_bytes == 3 * 41
    assert info.metadata() == blocks
    assert bytes(info.model_id) == decoder.model_id
    assert decoder.inspect(codec.encode(photograph(30, 41))).metadata() == {}


def test_memory_of_the_caller(decoder: Decoder, codec: Codec) -> None:
    data = codec.encode(np.dstack([photograph(20, 31)] * 2)[..., :4], 50)
    memory = np.full((20, 200), 7, np.uint8)
    decoder.decode_to(data, memory, 200)
    assert np.array_equal(memory[:, :124].reshape(20, 31, 4), decoder.decode(data))
    assert (memory[:, 124:] == 7).all()
    memory[:] = 9
    for stride in (0, 123):
        with pytest.raises(ConfigError):
            decoder.decode_to(data, memory, stride)
    with pytest.raises(CorruptStreamError):
        decoder.decode_to(data[:-9] + bytes(9), memory, 200)
    assert (memory == 9).all()
    deep = codec.encode(np.arange(600, dtype=np.uint16).reshape(20, 30), "lossless")
    for start, stride in ((0, 61), (1, 62)):
        with pytest.raises(ConfigError):
            decoder.decode_to(deep, memory.ravel()[start:], stride)


def test_arguments_that_make_no_sense(lib: Any, content: bytes, decoder: Decoder) -> None:
    for wrong in ({"threads": -1}, {"threads": 257}):
        with pytest.raises(ConfigError):
            Decoder(lib, content, **wrong)
    with pytest.raises(BackendUnavailableError):
        Decoder(lib, content, isa="mmx")
    assert lib.dca_decode(None, b"", ctypes.c_size_t(0), None, None, None) != 0
    assert lib.dca_inspect(None, ctypes.c_size_t(5), None, None) != 0
    with pytest.raises(DcaError, match="not those of"):
        decoder.inspect(b"")
    assert lib.dca_format_version() == container.VERSION


def test_every_instruction_set(lib: Any, content: bytes, codec: Codec) -> None:
    native = pytest.importorskip("dca_fast.ops.native")
    files = [path.read_bytes() for path in GOLDEN if path.stem in ("photograph", "photograph_90", "layer")]
    wanted = [expected(codec, data) for data in files]
    for isa in (*native.isas(), native.isas()[-1]):  # the fastest one stays
        decoder = Decoder(lib, content, isa=isa)
        assert all(np.array_equal(decoder.decode(data), w) for data, w in zip(files, wanted, strict=True)), isa


def test_threads_share_a_decoder(decoder: Decoder, codec: Codec) -> None:
    files = [codec.encode(photograph(90, 130, seed), 20 + 15 * seed) for seed in range(5)]
    wanted = [codec.decode(data, "numpy") for data in files]
    wrong: list[int] = []

    def work(first: int) -> None:
        for i in range(first, first + 10):
            if not np.array_equal(decoder.decode(files[i % 5]), wanted[i % 5]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Hostile bytes


def outcome(decode: Any, data: bytes) -> type | np.ndarray:
    try:
        return decode(data)
    except BitstreamError as error:
        return type(error)


def same(a: type | np.ndarray, b: type | np.ndarray) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a is b


def mutated(data: bytes, generator: np.random.Generator, mend: bool) -> bytes:
    """One to four changes: bits, bytes, ranges that are removed or repeated; half of them at the start."""
    body = bytearray(data[:-4] if mend else data)
    for _ in range(generator.integers(1, 5)):
        at = int(generator.integers(len(body) if generator.random() < 0.5 else min(len(body), 40)))
        kind, size = generator.integers(4), int(generator.integers(1, 9))
        if kind == 0:
            body[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            body[at] = int(generator.integers(256))
        elif kind == 2:
            del body[at : at + size]
        else:
            body[at:at] = body[at : at + size]
    return bytes(body) + (zlib.crc32(body).to_bytes(4, "little") if mend else b"")


@pytest.fixture(scope="module")
def careful(lib: Any, content: bytes) -> tuple[Decoder, Codec]:
    """Both readers with a limit of pixels, one thread each."""
    return Decoder(lib, content, max_pixels=MAX_PIXELS), Codec(threads=1, max_pixels=MAX_PIXELS)


def hostile_files(codec: Codec) -> dict[str, bytes]:
    small = photograph(40, 50)
    files = {path.stem: path.read_bytes() for path in GOLDEN if path.stat().st_size < 20000}
    files["restoration"] = codec.encode(photograph(90, 130), 50, effort=1)
    files["sections"] = codec.encode(np.dstack([small, small[..., 0]]), 40, metadata={"icc": b"i" * 9, "xmp": b"x"})
    files["gray"] = codec.encode(small[..., 0], 70)
    return files


def test_damaged_files_are_refused_for_the_same_reason(careful: tuple[Decoder, Codec]) -> None:
    decoder, codec = careful
    outcomes: Counter[str] = Counter()
    generator = np.random.default_rng(5)
    for name, data in hostile_files(codec).items():
        cases = [data[:size] for size in {*range(60), *range(len(data) - 12, len(data))}]
        cases += [mutated(data, generator, mend) for mend in (False, True, True, True) for _ in range(30)]
        for case in cases:
            found, wanted = outcome(decoder.decode, case), outcome(lambda data: expected(codec, data), case)
            assert same(found, wanted), (name, found, wanted, case.hex())
            outcomes[wanted.__name__ if isinstance(wanted, type) else "pixels"] += 1
    assert set(outcomes) >= {
        "NotADcaFileError",
        "UnsupportedVersionError",
        "UnknownModelError",
        "TruncatedStreamError",
        "CorruptStreamError",
        "LimitExceededError",
        "pixels",
    }, outcomes


def test_mutations_that_know_the_layout(
    careful: tuple[Decoder, Codec], benchmark_script: Callable[[str], ModuleType]
) -> None:
    """Those of benchmarks/measure/hostile.py: other streams, lanes, groups, headers and sections."""
    decoder, codec = careful
    hostile = benchmark_script("measure/hostile")
    seeds = hostile.seeds_of([ROOT / "tests" / "golden"], Codec(threads=1))
    endless = hostile.cases(seeds, np.random.default_rng(3))
    for _ in range(1000):
        kind, seed, case = next(endless)
        found, wanted = outcome(decoder.decode, case), outcome(lambda data: expected(codec, data), case)
        assert same(found, wanted), (kind, seed.name, found, wanted, case.hex())


def limited(data: bytes, folder: Path) -> int:
    """The status with which the example ends where it has 144 MiB for all of it, 0 where it has done its work."""
    program, source = build() / "decode", folder / "picture.dca"
    source.write_bytes(data)
    command = 'ulimit -v 147456; exec "$0" "$@"'
    arguments = [program, WEIGHTS, source, folder / "picture.ppm"]
    done = subprocess.run(["sh", "-c", command, *arguments], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return int(done.stderr.split()[1].rstrip(":")) if done.returncode else 0


needs_limits = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory cannot be limited")


@needs_limits
@pytest.mark.parametrize("kind", ["network", "cut", "exact", "alpha"])
def test_what_a_small_file_claims_costs_nothing(tmp_path: Path, codec: Codec, kind: str) -> None:
    """As of `Codec`: few bytes that name many pixels are refused before there is memory for them."""
    side = {"network": 1 << 14, "exact": 1 << 14}.get(kind, 2700)
    own = container.parse(codec.encode(photograph(64, 64), 50))
    exact = container.Header(side, side, 10000, bytes(4), 1, exact=True)
    header = exact if kind in ("exact", "alpha") else replace(own.header, width=side, height=side)
    stream = own.stream[:40] if kind == "cut" else bytes(30)
    data = container.pack(header, stream, {Section.ALPHA: bytes(30)} if kind == "alpha" else {})
    assert issubclass(STATUS[limited(data, tmp_path)], BitstreamError)


@needs_limits
def test_a_lack_of_memory_is_an_error(tmp_path: Path, codec: Codec) -> None:
    assert limited(codec.encode(photograph(64, 64), 30), tmp_path) == 0
    data = codec.encode(np.tile(photograph(64, 64), (48, 48, 1)), 30, effort=0)
    assert STATUS[limited(data, tmp_path)] is MemoryError


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_fields_that_the_format_excludes(careful: tuple[Decoder, Codec]) -> None:
    """One for each rule of the header, under a correct checksum."""
    decoder, codec = careful
    data = codec.encode(photograph(20, 30), 50, effort=0, metadata={"icc": b"abc"})
    body, exact = data[:-4], codec.encode(photograph(4, 5), "lossless")[:-4]
    head = body[:6] + body[6:7]
    sections = body.index(b"\x01\x03abc\x00")
    layered = container.pack(container.parse(data).header, b"\0\1", {Section.LAYER: bytes(8)})
    cases = {
        "version": body[:6] + b"\xfe" + body[7:],
        "flags of an exact file": exact[:7] + bytes([exact[7] | 4]) + exact[8:],
        "exact strength": exact[:7] + bytes([exact[7] | 0x20]) + exact[8:],
        "exact model": exact[:8] + b"\1" + exact[9:],
        "no width": body[:12] + b"\0" + body[13:],
        "long width": body[:12] + b"\x9e\x80\0" + body[13:],
        "wide": body[:12] + b"\x80\x80\x04" + body[13:],
        "endless number": body[:12] + b"\xff\xff\xff\xff\xff" + body[13:],
        "many pixels": body[:12] + b"\xff\xff\x03\xff\xff\x03" + body[14:],
        "quality": body[:14] + b"\x11\x27" + body[16:],
        "model": body[:8] + b"\0\0\0\0" + body[12:],
        "no sections": body[:sections] + b"\0" + body[sections + 6 :],
        "order": body[:sections] + b"\2\1e\1\1i\0" + body[sections + 6 :],
        "twice": body[:sections] + b"\1\1i\1\1i\0" + body[sections + 6 :],
        "unknown tag": body[:sections] + b"\6\1i\0" + body[sections + 6 :],
        "empty section": body[:sections] + b"\1\0\0" + body[sections + 6 :],
        "large section": body[:sections] + b"\1\x81\x80\x80\x08\0" + body[sections + 6 :],
        "cut": head + body[7:13],
        "nothing but a start": head,
        "layer": layered[:-4],
    }
    kinds = {name: outcome(decoder.decode, sealed(case)) for name, case in cases.items()}
    assert kinds == {name: outcome(lambda data: expected(codec, data), sealed(case)) for name, case in cases.items()}
    assert all(isinstance(kind, type) for kind in kinds.values()), kinds
    assert kinds["many pixels"] is LimitExceededError


@pytest.mark.parametrize("change", ["zero ring", "large", "wrong k", "wrong s", "left over"])
def test_restorations_that_no_writer_makes(careful: tuple[Decoder, Codec], change: str) -> None:
    decoder, codec = careful
    file = container.parse(codec.encode(photograph(20, 30), 50, effort=0))
    weights = (4,) * 17 + (-8,)
    data = container.pack(replace(file.header, restoration=weights), file.stream)
    packed, zeros = container.pack_restoration(weights), container.pack_restoration((0,) * 18)
    assert np.array_equal(decoder.decode(data), codec.decode(data, "numpy"))
    wrong = {
        "zero ring": b"\0" + packed[1:],
        "large": packed[:1] + b"\xff" * 60,
        "wrong k": bytes([packed[0] ^ 4]) + packed[1:],
        "wrong s": bytes([zeros[0] & 31]) + zeros[1:],
        "left over": packed[:-1] + bytes([packed[-1] | 0x80]),
    }[change]
    case = sealed(data[:-4].replace(packed, wrong))
    assert outcome(decoder.decode, case) is outcome(codec.decode, case) is CorruptStreamError


# Weights


def test_damaged_weights_are_refused(lib: Any, content: bytes, decoder: Decoder) -> None:
    """Unless no decoder looks at what is damaged."""
    generator = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:header])
    cases = [b"", content[:7], content[:9], content[:header], content[:-1], content + b"\0", bytes(100)]
    places = [tensors[name]["data_offsets"] for name in tensors if name != "__metadata__" and not is_of_encoder(name)]
    for _ in range(40):
        first, last = places[generator.integers(len(places))]
        at = int(generator.integers(8) if generator.random() < 0.3 else header + generator.integers(first, last))
        cases.append(content[:at] + bytes([content[at] ^ 1 << int(generator.integers(8))]) + content[at + 1 :])
    for case in cases:
        with pytest.raises(WeightsError):
            Decoder(lib, case)
    picture, loaded = decoder.decode(GOLDEN[-2].read_bytes()), 0
    for at in range(8, 400):  # the metadata
        case = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with suppress(WeightsError):
            assert np.array_equal(Decoder(lib, case).decode(GOLDEN[-2].read_bytes()), picture)
            loaded += 1
    assert loaded < 200  # the keys of the encoder, and its digest


def weights_file(tensors: dict[str, np.ndarray], config: dict[str, Any], skip: object) -> bytes:
    """With the right identity, whatever it holds."""
    metadata = json.dumps({"format": weights_io.FORMAT, "config": config, "skip": skip})
    identity = weights_io._identity(tensors, config, skip).hex()  # type: ignore[arg-type]
    return weights_io.save_bytes(tensors, {"dca_fast": metadata, "identity": identity})


def test_weights_for_decoders_alone(lib: Any, decoder: Decoder) -> None:
    """Without the tensors of the encoder, or without some."""
    weights = weights_io.load(WEIGHTS)
    encoder = [name for name in weights.tensors if is_of_encoder(name)]
    data = GOLDEN[-2].read_bytes()
    for left_out in (encoder, encoder[1:]):
        tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in left_out}
        case = weights_file(tensors, weights.config.to_dict(), weights.skip)
        light = Decoder(lib, case)
        assert light.model_id == decoder.model_id
        assert np.array_equal(light.decode(data), decoder.decode(data))


def test_metadata_of_weights_is_checked(lib: Any) -> None:
    """As `dca_fast.network.weights` does."""
    weights = weights_io.load(WEIGHTS)
    for change, skip in (
        ({"width": True}, 6),
        ({"width": 24}, 6),
        ({"regional_levels": 10**12}, 6),
        ({"contexts": ["regional", "regional"]}, 6),
        ({"contexts": [1]}, 6),
        ({"window": 3}, 6),
        ({"surprise": 1}, 6),
        ({"transforms": "elic"}, 6),
        ({"window": None}, 6),
        ({}, "6"),
        ({}, -1),
    ):
        with pytest.raises(WeightsError):
            Decoder(lib, weights_file(weights.tensors, weights.config.to_dict() | change, skip))
    for key in weights.config.to_dict():
        config = {name: value for name, value in weights.config.to_dict().items() if name != key}
        case = weights_file(weights.tensors, config, weights.skip)
        if key.startswith("analysis_"):  # which no decoder looks at
            assert Decoder(lib, case).model_id == weights.model_id
            continue
        with pytest.raises(WeightsError):
            Decoder(lib, case)
    strange = weights.config.to_dict() | {"analysis_blocks": [1], "analysis_hidden": "many"}
    assert Decoder(lib, weights_file(weights.tensors, strange, weights.skip)).model_id == weights.model_id


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_break_a_rule(lib: Any, case: str) -> None:
    weights = weights_io.load(WEIGHTS)
    tensors = dict(weights.tensors)
    BAD_WEIGHTS[case](tensors)
    with pytest.raises(WeightsError):
        Decoder(lib, weights_file(tensors, weights.config.to_dict(), weights.skip))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shared": False, "regional_levels": 0, "name": 'ti"n\u00fc\U0001f600y'},
        {"merge_once": True, "local_blocks": 1},
        {"contexts": ("regional",)},
        {"contexts": ("global", "local"), "synthesis_blocks": (0, 0)},
        {"contexts": ("local", "regional"), "window": 2, "synthesis_blocks": (1, 3)},
        {"analysis_hidden": (8, 24), "analysis_blocks": (3, 1)},
    ],
    ids=lambda change: ",".join(change) or "tiny",
)
def test_other_networks(lib: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    """Of other shapes, with random weights."""
    path = random_weights(tmp_path / "w.safetensors", **change)
    codec, decoder = Codec(weights=path, threads=1), Decoder(lib, path.read_bytes())
    assert decoder.model_id.hex() == codec.model_id
    for quality in (0, 40, 97):
        data = codec.encode(photograph(100, 150), quality, effort=0, screen="off")
        assert np.array_equal(decoder.decode(data), codec.decode(data, "numpy"))


# The program and the installation


@pytest.mark.skipif(shutil.which("pkg-config") is None or shutil.which("cc") is None, reason="no pkg-config, no cc")
def test_an_installed_library_is_found(tmp_path: Path, codec: Codec) -> None:
    """By a program in C99 that knows nothing but pkg-config."""
    subprocess.run(["cmake", "--install", build(), "--prefix", tmp_path], check=True, capture_output=True)
    found = next(tmp_path.rglob("dca.pc"))
    environment = os.environ | {"PKG_CONFIG_PATH": str(found.parent), "LD_LIBRARY_PATH": str(found.parents[1])}
    asked = ["pkg-config", "--cflags", "--libs", "dca"]
    flags = subprocess.run(asked, env=environment, check=True, capture_output=True, text=True).stdout.split()
    program = tmp_path / "program"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(["cc", *strict, ROOT / "examples" / "decode.c", *flags, "-o", program], check=True)
    out = tmp_path / "out.ppm"
    done = subprocess.run([program, WEIGHTS, GOLDEN[-2], out], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().endswith(codec.decode(GOLDEN[-2], "numpy").tobytes())


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="no pkg-config")
def test_folders_of_an_installation_may_be_absolute(tmp_path: Path) -> None:
    options = f"-DCMAKE_INSTALL_LIBDIR={tmp_path / 'own' / 'lib'}", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'prefix'}"
    source = ROOT / "csrc" / "decoder"
    subprocess.run(["cmake", "-S", source, "-B", tmp_path / "b", *options], check=True, capture_output=True)
    environment = os.environ | {"PKG_CONFIG_PATH": str(tmp_path / "b")}
    asked = ["pkg-config", "--cflags", "--libs", "dca"]
    flags = subprocess.run(asked, env=environment, check=True, capture_output=True, text=True).stdout.split()
    assert flags == [f"-I{tmp_path / 'prefix' / 'include'}", f"-L{tmp_path / 'own' / 'lib'}", "-ldca"]


def test_a_part_of_another_project_changes_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "x.c").touch()
    source = ROOT / "csrc" / "decoder"
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.16)\nproject(p C CXX)\nadd_subdirectory({source} dca)\n"
        "add_library(mine x.c)\nget_target_property(kind mine TYPE)\n"
        "message(STATUS kind:${kind}:${CMAKE_BUILD_TYPE}:)\n"
        "if(TARGET decode)\n  message(FATAL_ERROR decode)\nendif()\n"
    )
    done = subprocess.run(["cmake", "-S", tmp_path, "-B", tmp_path / "b"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kind:STATIC_LIBRARY::" in done.stdout
    assert " -O3 " in next((tmp_path / "b").rglob("dca.dir/flags.make")).read_text()  # but for itself
    assert "dca.h" not in (tmp_path / "b" / "cmake_install.cmake").read_text()


def test_nothing_where_something_belongs(lib: Any) -> None:
    model_id, handle = (ctypes.c_uint8 * 4)(1, 2, 3, 4), ctypes.c_void_p()
    lib.dca_decoder_model(None, model_id)
    assert bytes(model_id) == bytes(4)
    lib.dca_decoder_model(None, None)
    size = ctypes.c_size_t(5)
    assert lib.dca_decoder_new(None, size, None, ctypes.byref(handle), None) == BAD_ARGUMENT
    assert not handle


@pytest.mark.parametrize("name", ["\u00fc" * 200, "\u20ac" * 200, "\U0001f600" * 200, "x" * 400])
def test_a_message_that_is_cut_ends_with_a_character(lib: Any, name: str) -> None:
    for before in range(4):
        header = json.dumps({"x" * before + name: 3}, ensure_ascii=False).encode()
        with pytest.raises(WeightsError):  # which decodes the message as UTF-8
            Decoder(lib, len(header).to_bytes(8, "little") + header)


def test_the_example_writes_pictures(tmp_path: Path, codec: Codec) -> None:
    program = build() / "decode"
    deep = np.arange(0, 65536, 41, dtype=np.uint16)[:600].reshape(20, 30)
    for name, image, quality in (
        ("colour.ppm", photograph(20, 31), 60),
        ("gray.pgm", photograph(20, 31)[..., 0], 60),
        ("deep.pgm", deep, "lossless"),
    ):
        data = codec.encode(image, quality)
        (tmp_path / "picture.dca").write_bytes(data)
        command = [program, WEIGHTS, tmp_path / "picture.dca", tmp_path / name]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(tmp_path / name) as opened:
            pixels = np.asarray(opened)
        wanted = expected(codec, data)
        assert np.array_equal(pixels, wanted if wanted.shape[2] > 1 else wanted[..., 0])
    (tmp_path / "picture.dca").write_bytes(codec.encode(np.dstack([photograph(9, 5)] * 2)[..., :4], 60))
    command[3] = tmp_path / "alpha.pam"
    subprocess.run(command, check=True, capture_output=True)
    written = command[3].read_bytes()
    assert b"TUPLTYPE RGB_ALPHA" in written
    assert written.endswith(codec.decode(tmp_path / "picture.dca", "numpy").tobytes())
    part = [*command[:3], tmp_path / "part.pam", "1", "2", "3", "6"]
    subprocess.run(part, check=True, capture_output=True)
    assert part[3].read_bytes().endswith(codec.decode(tmp_path / "picture.dca", "numpy", region=(1, 2, 3, 6)).tobytes())
    for wrong in ("-1", "5", "x", "4294967297", ""):
        done = subprocess.run([*part[:4], wrong, *part[5:]], capture_output=True, text=True)
        assert done.returncode == 1
        assert "error 8: " in done.stderr
    (tmp_path / "picture.dca").write_bytes(b"no picture")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error 1: " in done.stderr
