"""The decoder of tests/conformance, written from docs/spec/ alone, reads what the codec writes."""

from pathlib import Path

import numpy as np
import pytest

from dca_fast import Codec
from dca_fast.files.container import parse
from dca_fast.testing import page, photograph
from tests.conformance.decoder import Decoder, tiles

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


def test_the_model_id(codec: Codec, decoder: Decoder) -> None:
    """docs/spec/weights.md."""
    assert decoder.weights is not None
    assert decoder.weights.model.hex() == codec.model_id == (GOLDEN / "photograph.dca").read_bytes()[8:12].hex()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.dca")), ids=lambda path: path.stem)
def test_it_reads_the_golden_files(codec: Codec, decoder: Decoder, path: Path) -> None:
    if path.stem == "tiles":
        pytest.skip("half a minute: test_it_reads_tiles has smaller ones")
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
