"""The decoder of tests/conformance, which is docs/spec/ as a program, reads what the codec writes."""

import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dca_fast import Codec
from dca_fast.config import ModelConfig
from dca_fast.errors import BitstreamError
from dca_fast.exact import reference as exact
from dca_fast.files.container import parse
from dca_fast.network import weights
from dca_fast.testing import page, photograph
from tests.conformance import decoder as second
from tests.conformance.decoder import Decoder, tiles
from tests.drawn_weights import SMALL, drawn_weights

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "dca_fast" / "data" / "dca-s.safetensors"
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec()


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(WEIGHTS)


def test_it_shares_nothing_with_the_package() -> None:
    text = (ROOT / "tests" / "conformance" / "decoder.py").read_text("utf-8")
    imports = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert "numpy" in imports
    assert not imports & {"dca_fast", "torch", "safetensors", "tests"}


def test_the_tables_of_the_page_are_the_decoders() -> None:
    page = (ROOT / "docs" / "spec" / "exact.md").read_text("utf-8")
    blocks = re.findall(r"(?:^    [\d(][-\d,() ]*\n)+", page, re.M)
    knots, neighbours = (re.sub(r"\s+", " ", block).strip() for block in blocks)
    assert knots == " ".join(map(str, second.KNOTS))
    assert neighbours == " ".join(map(str, second.NEIGHBOURS))
    divisors = re.search(r"65536 // d for d = ([\d,\s]+)\.", page)
    assert divisors is not None
    assert tuple(map(int, divisors[1].split(","))) == second.DIVISORS


def test_the_model_id(codec: Codec, decoder: Decoder) -> None:
    """docs/spec/weights.md."""
    assert decoder.weights is not None
    assert decoder.weights.model.hex() == codec.model_id == (GOLDEN / "photograph.dca").read_bytes()[8:12].hex()


# But tiles.dca, for which it takes half a minute: test_it_reads_tiles has smaller ones.
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("[!t]*.dca")), ids=lambda path: path.stem)
def test_it_reads_the_golden_files(codec: Codec, decoder: Decoder, path: Path) -> None:
    data = path.read_bytes()
    assert np.array_equal(decoder.decode(data), codec.decode(data, "numpy"))
    for reduce in (2, 4, 8, 16):
        assert np.array_equal(decoder.decode(data, reduce), codec.decode(data, "numpy", reduce=reduce))


@pytest.mark.parametrize(("quality", "strength", "effort"), [(3.5, 0.5, 0), (62.37, 0.1875, 1), (99.99, 0, 1)])
@pytest.mark.parametrize("gray", [False, True])
def test_it_reads_what_the_codec_writes(
    codec: Codec, decoder: Decoder, quality: float, strength: float, effort: int, gray: bool
) -> None:
    picture = photograph(70, 133)
    pixels = picture[..., 0] if gray else picture
    data = codec.encode(pixels, quality, effort=effort, aq_strength=strength, metadata={"xmp": b"<x/>"})
    assert np.array_equal(decoder.decode(data), codec.decode(data, "numpy"))


@pytest.mark.parametrize("effort", [0, 1, 2])
def test_it_reads_tiles(codec: Codec, effort: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dca_fast.network.walk.TILE", 8)
    data = codec.encode(photograph(230, 400, seed=3), 50, effort=effort)
    assert len(tiles(16, 28, 8)) == 8
    assert np.array_equal(Decoder(WEIGHTS, 8).decode(data), codec.decode(data, "numpy"))


@pytest.mark.parametrize("quality", ["lossless", 100])
@pytest.mark.parametrize("shape", [(20, 33), (20, 33, 3)])
def test_it_reads_files_without_a_model(codec: Codec, quality: float | str, shape: tuple[int, ...]) -> None:
    data = codec.encode(np.random.default_rng(1).integers(0, 256, shape, np.uint8), quality)
    assert parse(data).header.exact
    assert np.array_equal(Decoder().decode(data), codec.decode(data, "numpy"))


@pytest.mark.parametrize("factor", [1, 100, 257])
def test_it_reads_16_bits_without_loss(codec: Codec, factor: int) -> None:
    pixels = (np.random.default_rng(1).integers(0, 250, (20, 33, 3)) * factor + 7).astype(np.uint16)
    pixels[0, 0] = 40000 // factor * factor + 7
    assert np.array_equal(Decoder().decode(codec.encode(pixels, "lossless")), pixels)


@pytest.mark.parametrize("gray", [False, True])
def test_it_reads_layers(codec: Codec, decoder: Decoder, gray: bool) -> None:
    picture = page(90, 130, seed=11)
    data = codec.encode(picture[..., 0].copy() if gray else picture, 70)
    assert parse(data).sections
    assert np.array_equal(decoder.decode(data), codec.decode(data, "numpy"))


# Other models.


OTHERS: dict[str, dict[str, Any]] = {
    "one core": {},
    "another order": {"contexts": ("local", "global"), "shared": False, "regional_levels": 0, "window": 2},
    "one context": {"contexts": ("global",), "regional_levels": 1, "heads": 4},
    "merged": {"contexts": ("local", "regional"), "merge_once": True, "local_blocks": 3},
    "none": {"contexts": (), "regional_levels": 3, "synthesis_blocks": (1, 0), "context_blocks": 1},
    "few channels": {"latent": 48, "tokens": 12, "window": 1, "shared": False},
}


@pytest.mark.parametrize("name", OTHERS)
def test_it_reads_files_of_other_models(name: str, tmp_path: Path) -> None:
    config, path = ModelConfig("drawn", **(SMALL | OTHERS[name])), tmp_path / "drawn.safetensors"
    weights.save(path, drawn_weights(config), config, 6)
    codec, decoder = Codec(weights=path), Decoder(path)
    assert decoder.weights is not None
    assert decoder.weights.model.hex() == codec.model_id
    for quality, strength in ((20, 0.9375), (80, 0)):
        data = codec.encode(photograph(70, 140, seed=4), quality, effort=0, aq_strength=strength, screen="off")
        pixels = codec.decode(data, "numpy")
        assert pixels.std() > 10
        assert np.array_equal(decoder.decode(data), pixels)


def test_it_reads_bands(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller ones than files have."""
    picture, sizes = photograph(30, 40), {False: 256, True: 512}
    monkeypatch.setattr(exact, "BAND_PIXELS", sizes)
    for mode in (exact.Mode(), exact.Mode(candidates=True, index=True)):
        stream = exact.encode(picture, mode)
        count = len(exact.bands(30, 40, mode))
        assert count == 1200 // sizes[mode.candidates] > 1
        reader = second.Reader(stream, 1)
        lengths = [reader.leb128() for _ in range(count - 1)]
        rows = exact.bands(30, 40, mode)
        for (top, bottom), size in zip(rows, [*lengths, len(stream)], strict=True):
            data = reader.take(min(size, len(stream) - reader.at))
            band = second.Band(data, bottom - top, 40, 3, 8, mode.byte())
            assert np.array_equal(band.decode(None), picture[top:bottom])


# The page of examples.


def table(heading: str, number: int) -> list[list[str]]:
    """Cells of a table below a heading of docs/spec/examples.md, without its head."""
    page = (ROOT / "docs" / "spec" / "examples.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", page.split(f"\n## {heading}\n")[1].split("\n## ")[0], re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number].splitlines()[2:]]


def example(name: str) -> bytes:
    return (ROOT / "tests" / "conformance" / "vectors" / name).read_bytes()


@pytest.mark.parametrize("name", ["size_1x1.dca", "exact_1x1.dca"])
def test_the_bytes_of_the_examples(name: str) -> None:
    """Bytes are the file's, and a number that a value begins with is that of the bytes."""
    data, at, says = example(name), 0, dict[str, str]()
    for place, digits, field, value in table(name, 0):
        field_bytes = bytes.fromhex(digits.strip("`"))
        assert (int(place), data[at : at + len(field_bytes)]) == (at, field_bytes)
        number = re.match(r"0x[\dA-F]+|\d+", value)
        assert number is None or int(number[0], 0) == int.from_bytes(field_bytes, "little")
        at, says[field] = at + len(field_bytes), value
    assert at == len(data)
    file = second.parse(data)
    assert (says["width"], says["height"]) == (str(file.width), str(file.height))
    assert says["quality"] == f"{file.quality}, which is {file.quality / 100:g}"
    assert says["model id"] == f"`{file.model.hex()}`"
    assert f"the value digest is 0x{file.digest:08X}" in says["digest"]
    assert f"0x{zlib.crc32(data[:16]):08X}" in says["digest"]


def test_the_values_of_the_example(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tables of size_1x1.dca say of its parts and first rounds."""
    parts: list[list[str]] = []
    rounds: list[list[str]] = []
    part, decode_round = second.Stream.part, second.Stream.round

    def traced_part(self: second.Stream, rows: Any, trellis: bool, last: bool) -> Any:
        values = part(self, rows, trellis, last)
        found = ", ".join(f"{values[i]} at {i}" for i in np.flatnonzero(values))
        coded = int((rows != second.SKIPPED).sum())
        parts.append([str(len(rows)), str(coded), found or "none", f"`{self.states[0][0]:08X}`"])
        return values

    def traced_round(self: second.Stream, g: int, rows: list[int]) -> list[int]:
        (row,), (before,) = rows, self.states[g]
        integers = decode_round(self, g, rows)
        symbol = second.bisect_right(self.starts[row], before % 4096) - 1
        about = [row, before % 4096, symbol, self.frequencies[row][symbol], self.starts[row][symbol]]
        rounds.append([*map(str, [*about, self.shifts[row], *integers]), f"`{self.states[g][0]:08X}`"])
        return integers

    monkeypatch.setattr(second.Stream, "part", traced_part)
    monkeypatch.setattr(second.Stream, "round", traced_round)
    (pixel,) = decoder.decode(example("size_1x1.dca"))[0].tolist()
    assert [row[1:] for row in table("size_1x1.dca", 1)] == parts
    shown = table("size_1x1.dca", 2)
    assert len(shown) > 3
    assert shown == rounds[: len(shown)]
    page = (ROOT / "docs" / "spec" / "examples.md").read_text("utf-8")
    assert f"The pixel is red {pixel[0]}, green {pixel[1]}, blue {pixel[2]}." in page


def test_the_decisions_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table of exact_1x1.dca says of its planes."""
    planes: list[list[str]] = []
    bits = ""
    decode_bit, sample = second.Decisions.bit, second.Residuals.sample

    def traced_bit(self: second.Decisions, p: int) -> int:
        nonlocal bits
        assert p == 32768
        bits += str(bit := decode_bit(self, p))
        return bit

    def traced_sample(self: second.Residuals, k: int, x: int, before: Any, values: list[int], noise: int) -> int:
        nonlocal bits
        bits = ""
        residual = sample(self, k, x, before, values, noise)
        planes.append([bits, str(residual), str(values[-1])])
        return residual

    monkeypatch.setattr(second.Decisions, "bit", traced_bit)
    monkeypatch.setattr(second.Residuals, "sample", traced_sample)
    pixel = Decoder().decode(example("exact_1x1.dca"))[0, 0].tolist()
    shown = table("exact_1x1.dca", 1)
    assert [[re.sub(r"[` ]", "", row[-3]), *row[-2:]] for row in shown] == planes
    assert [int(row[1]) + int(row[-2]) for row in shown] == [int(row[-1]) for row in shown]
    page = (ROOT / "docs" / "spec" / "examples.md").read_text("utf-8")
    assert f"The pixel is red {pixel[0]}, green {pixel[1]}, blue {pixel[2]}." in page


# Damage.


def outcome(decode: Callable[[bytes], Any], data: bytes) -> Any:
    """Pixels, or the name of the error."""
    try:
        return decode(data).tobytes()
    except (BitstreamError, second.BitstreamError) as error:
        return type(error).__name__


@pytest.mark.parametrize("name", ["size_16x16", "filter_two_rings", "layer_one_block", "metadata", "exact_dots"])
def test_both_say_the_same_of_damaged_files(decoder: Decoder, name: str) -> None:
    """One to three bytes are others, are missing or are new; most checksums are mended."""
    whole = (ROOT / "tests" / "conformance" / "vectors" / f"{name}.dca").read_bytes()[:-4]
    codec, generator, seen = Codec(max_pixels=1 << 16), random.Random(name), set()
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(min(len(data), generator.choice((12, 30, len(data)))))
            change = generator.choice(("flip", "flip", "new", "missing"))
            if change == "flip":
                data[at] ^= 1 << generator.randrange(8)
            else:
                data[at : at + (change == "missing")] = bytes([generator.choice((0, 1, 128))] * (change == "new"))
        damaged = bytes(data)
        if generator.random() < 0.9:
            damaged += zlib.crc32(damaged).to_bytes(4, "little")
        says = outcome(lambda data: decoder.decode(data, max_pixels=1 << 16), damaged)
        assert outcome(lambda data: codec.decode(data, "numpy"), damaged) == says
        seen.add(says)
    assert len(seen) >= 3
