"""Graphics in lossy files: blocks in exact colours, fewer colours, layers, and the choice of the encoder."""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dca_fast.pillow  # noqa: F401 (it registers itself)
from dca_fast import Codec, inspect
from dca_fast.cli.parser import main
from dca_fast.encoder import screen
from dca_fast.errors import BitstreamError, ConfigError, CorruptStreamError, InputError
from dca_fast.exact import coder, layer, reference
from dca_fast.exact.colours import Mode
from dca_fast.exact.decisions import log2_of
from dca_fast.files import container
from dca_fast.testing import page, photograph
from tests.test_exact import graphic, native

ROOT = Path(__file__).resolve().parents[1]


def some_blocks(height: int, width: int, seed: int) -> np.ndarray:
    inside = np.random.default_rng(seed).random(reference.blocks(height, width)) < 0.6
    inside[0, 0] = True
    return inside


# ---- blocks ----


def test_logarithms_are_those_of_integers() -> None:
    for x in [*range(1, 2000), 2**31, 2**32 - 1]:
        assert log2_of(x) == int(np.floor(np.log2(float(x)) * 256 + 1e-9))


@native
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 99), st.integers(0, 200000))
def test_both_coders_of_blocks_are_the_same(height: int, width: int, channels: int, seed: int, price: int) -> None:
    """Streams, what blocks take, colours that became others, layers; in both directions."""
    samples = graphic(height, width, channels, seed=seed)
    inside = some_blocks(height, width, seed)
    merged = coder.merge_colours(samples, inside, price)
    assert np.array_equal(merged, coder.merge_colours(samples, inside, price, python=True))
    stream, spent = coder.encode_blocks(merged, inside, threads=2)
    again, counted = coder.encode_blocks(merged, inside, python=True)
    assert stream == again
    assert np.array_equal(spent, counted)
    assert abs(spent.sum() / 2048 - len(stream)) < 8
    assert not spent[~inside].any()
    payload = layer.pack(merged, stream, inside)
    for python in (False, True):
        back, found = layer.unpack(payload, samples.shape, python=python)
        assert np.array_equal(back, merged)
        assert np.array_equal(found, inside)


@native
@pytest.mark.parametrize("mode", [Mode(), Mode(True), Mode(step=5)], ids=str)
def test_blocks_in_every_mode(mode: Mode) -> None:
    """A decoder takes them, whatever this encoder chooses."""
    samples, inside = graphic(40, 50), some_blocks(40, 50, 2)
    stream = reference.encode(samples, mode, inside)
    back = reference.decode(stream, *samples.shape, 8, inside)
    assert np.array_equal(coder.decode(stream, samples.shape, 8, None, inside), back)
    outside = ~coder.pixels_inside(inside, 40, 50)
    assert not back[outside].any()
    assert mode.step > 1 or np.array_equal(back[~outside], samples[~outside])


@native
def test_blocks_in_bands() -> None:
    """Bands end inside rows of blocks; threads change nothing."""
    samples = np.ascontiguousarray(np.tile(graphic(40, 100), (30, 140, 1)))
    inside = np.ones(reference.blocks(*samples.shape[:2]), bool)
    inside[::3, 5:700] = False
    assert reference.bands(*samples.shape[:2], Mode(True, True)) == [(0, 600), (600, 1200)]
    merged = coder.merge_colours(samples, inside, 0)
    found = [coder.encode_blocks(merged, inside, threads=threads) for threads in (1, 2)]
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])
    assert np.array_equal(coder.decode(found[0][0], samples.shape, 8, None, inside, threads=2), merged)


def test_colours_that_are_merged() -> None:
    """Nothing changes without a price that allows it; rare colours become near ones; errors stay worth their bits."""
    samples = np.zeros((32, 32, 3), np.uint8)
    samples[:16] = 200
    samples[3, 5], samples[20, 20] = (205, 200, 200), (90, 0, 0)
    inside = np.ones((2, 2), bool)
    free = coder.merge_colours(samples, inside, 1 << 20)
    assert np.array_equal(free, samples)
    merged = coder.merge_colours(samples, inside, screen.price_of(6000, 3))
    assert merged[3, 5].tolist() == [200] * 3
    assert merged[20, 20].tolist() == [90, 0, 0]
    coarse = coder.merge_colours(samples, inside, 64)
    assert len(np.unique(coarse.reshape(-1, 3), axis=0)) == 2


# ---- layers ----


def small_layer(channels: int = 3) -> tuple[bytes, np.ndarray, np.ndarray]:
    samples, inside = graphic(40, 50, channels), some_blocks(40, 50, 1)
    samples = coder.merge_colours(samples, inside, 0)
    return layer.pack(samples, coder.encode_blocks(samples, inside)[0], inside), samples, inside


@pytest.mark.parametrize("python", [pytest.param(False, marks=native), True])
@pytest.mark.parametrize("channels", [1, 3])
def test_hostile_layers(channels: int, python: bool) -> None:
    """Whatever is changed or cut off: an error, or the samples themselves."""
    payload, samples, inside = small_layer(channels)
    generator = np.random.default_rng(0)
    damaged = [payload[:n] for n in range(len(payload))] + [payload + b"x", payload + b"\0", b"\xff" * 90, b""]
    for _ in range(400):
        bad = bytearray(payload)
        bad[generator.integers(min(len(bad), 40))] ^= 1 << generator.integers(8)
        damaged.append(bytes(bad))
    for bad in damaged[:: 90 if python else 1]:
        try:
            back, found = layer.unpack(bad, samples.shape, python=python)
        except CorruptStreamError:
            continue
        assert np.array_equal(back, samples)
        assert np.array_equal(found, inside)


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b"\0\0\0\0", "ends inside"),
        (b"\0\0\0\0\1", "ends inside"),
        (b"\0\0\0\0\x80\0\0", "malformed"),
        (b"\0\0\0\0\1\7\1", "larger than the layer"),
        (b"\0\0\0\0\1\2\1\0\0", "not needed"),
        (b"\0\0\0\0\0\0\0", "not 0 blocks"),
        (b"\0\0\0\0\x10\1\1\0", "not 16 blocks"),
        (b"\0\0\0\0\1\x09" + b"\1" * 9 + b"\0", "left over"),
    ],
)
def test_layers_that_no_encoder_makes(payload: bytes, match: str) -> None:
    with pytest.raises(CorruptStreamError, match=match):
        layer.unpack(payload, (40, 50, 3))


def test_a_layer_of_another_picture() -> None:
    payload, samples, _ = small_layer()
    other = bytes(4) + payload[4:]
    with pytest.raises(CorruptStreamError, match="digest"):
        layer.unpack(other, samples.shape)
    with pytest.raises(CorruptStreamError):
        layer.unpack(payload, (90, 90, 3))


def test_layers_in_files() -> None:
    header = container.Header(50, 40, 6000, b"1234", 7)
    payload = small_layer()[0]
    data = container.pack(header, b"x", {container.Section.LAYER: payload, container.Section.XMP: b"<x/>"})
    dca = container.parse(data)
    assert dca.metadata == {"xmp": b"<x/>"}
    assert dca.sections[container.Section.LAYER] == payload
    assert inspect(data).graphic_blocks == some_blocks(40, 50, 1).sum()
    exact = replace(header, exact=True, model_id=bytes(4))
    with pytest.raises(InputError, match="layer"):
        container.pack(exact, b"x", {container.Section.LAYER: payload})
    plain = container.pack(replace(header, model_id=bytes(4)), b"x", {container.Section.LAYER: payload})
    forged = bytearray(plain[:-4])
    forged[7] |= 8
    with pytest.raises(CorruptStreamError, match="layer"):
        container.parse(bytes(forged) + zlib.crc32(forged).to_bytes(4, "little"))
    info = inspect(container.pack(exact, b"\3x"))
    assert (info.exact, info.lossless, info.quality) == (True, False, 60)


# ---- what the network sees ----


def test_blocks_are_filled_smoothly() -> None:
    picture = photograph(70, 90)
    inside = some_blocks(70, 90, 3)
    filled = screen.filled(picture, inside)
    known = ~coder.pixels_inside(inside, 70, 90)
    assert np.array_equal(filled[known], picture[known])
    assert np.abs(np.diff(filled.astype(int), axis=0)[~known[1:]]).mean() < 6
    slope = np.repeat(np.arange(90, dtype=np.uint8)[None, :, None] + 60, 70, 0).repeat(3, 2)
    one = np.zeros((5, 6), bool)
    one[2, 3] = True
    assert np.abs(screen.filled(slope, one).astype(int) - slope).max() <= 6
    flat = np.full((33, 47, 3), 9, np.uint8)
    assert (screen.filled(flat, ~some_blocks(33, 47, 1)) == 9).all()


def test_photographs_are_told_from_graphics() -> None:
    def looks(picture: np.ndarray) -> bool:
        return screen.looks_graphic(picture[:: screen.LINES], picture[1 :: screen.LINES])

    assert looks(page(96, 128))
    assert looks(graphic(300, 300)[150:])
    assert not looks(photograph(96, 128))
    for shape in ((1, 1, 3), (1, 90, 3), (90, 1, 3), (17, 2, 3)):
        looks(np.zeros(shape, np.uint8))


# ---- files ----

PAGE = page(96, 128, seed=11)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


def squares(codec: Codec, data: bytes, picture: np.ndarray) -> float:
    return float(np.square(codec.decode(data, "numpy").astype(float) - picture).mean())


@pytest.mark.parametrize("quality", [0, 30, 60, 90, 99.99])
@pytest.mark.parametrize("effort", [0, 1, 2])
def test_a_page_with_a_photograph(codec: Codec, quality: float, effort: int) -> None:
    """Text comes back nearly as it was, in fewer bytes."""
    data = codec.encode(PAGE, quality, effort=effort)
    plain = codec.encode(PAGE, quality, effort=effort, screen="off")
    info = inspect(data)
    assert 20 <= info.graphic_blocks < 48
    assert not info.exact
    assert info.quality == quality
    assert not inspect(plain).graphic_blocks
    assert len(data) < 0.8 * len(plain)
    assert squares(codec, data, PAGE) < squares(codec, plain, PAGE)
    text = codec.decode(data, "numpy")[:32].astype(int)
    assert np.abs(text - PAGE[:32]).max() <= 40 if quality < 60 else 6


def test_a_picture_that_is_all_graphic_needs_no_model(codec: Codec) -> None:
    picture = np.repeat(np.repeat(graphic(30, 44)[10:], 4, 0), 4, 1)
    data = codec.encode(picture, 60, metadata={"xmp": b"<x/>"})
    info = inspect(data)
    assert (info.exact, info.lossless, info.quality, info.model_id) == (True, False, 60, "00000000")
    assert len(data) < len(codec.encode(picture, 60, screen="off")) / 3
    told: list[float] = []
    assert codec.encode(picture, 60, effort=2, metadata={"xmp": b"<x/>"}, progress=told.append) == data
    assert told == [1.0]


@pytest.mark.parametrize("effort", [0, 1])
def test_photographs_do_not_change(codec: Codec, effort: int) -> None:
    noise = np.random.default_rng(0).integers(0, 9, (33, 40, 3), np.uint8)
    for pixels in (photograph(70, 90), photograph(70, 90)[..., 0].copy(), noise):
        assert codec.encode(pixels, 50, effort=effort) == codec.encode(pixels, 50, effort=effort, screen="off")


def test_gray_alpha_and_metadata(codec: Codec) -> None:
    gray = PAGE[..., 1].copy()
    data = codec.encode(gray, 60)
    assert inspect(data).graphic_blocks or inspect(data).exact
    assert inspect(data).grayscale
    back = codec.decode(data, "numpy")
    assert np.array_equal(back[..., 0], back[..., 2])
    assert np.square(back[..., 0].astype(float) - gray).mean() < 45
    assert codec.decode(data).mode == "L"
    alpha = np.random.default_rng(4).integers(0, 3, (96, 128, 1)) * 127
    data = codec.encode(np.dstack([PAGE, alpha.astype(np.uint8)]), 60, metadata={"icc": b"profile"})
    assert inspect(data).section_bytes.keys() == {"icc", "alpha", "layer"}
    back = codec.decode(data, "numpy")
    assert np.array_equal(back[..., 3:], alpha)
    seen = alpha[..., 0] > 0
    assert np.square(back[..., :3].astype(float) - PAGE)[seen].mean() < 60


def test_every_way_of_calling(codec: Codec) -> None:
    data = codec.encode(PAGE, 40, aq_strength=0.5)
    assert inspect(data).graphic_blocks
    assert Codec(threads=2).encode(PAGE, 40, aq_strength=0.5) == data
    assert codec.encode(np.stack([PAGE] * 2), 40, aq_strength=0.5) == [data] * 2
    assert codec.encode_batch([PAGE], 40, aq_strength=0.5, screen="off") == [
        codec.encode(PAGE, 40, aq_strength=0.5, screen="off")
    ]
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(PAGE).permute(2, 0, 1)
    assert codec.encode(tensor, 40, aq_strength=0.5) == data
    assert torch.equal(codec.decode(data, "torch"), torch.from_numpy(codec.decode(data, "numpy")).permute(2, 0, 1))
    assert codec.encode(PAGE, 100, screen="auto") == codec.encode(PAGE, 100, screen="off")
    for bad in ("on", None, True):
        with pytest.raises(ConfigError, match="screen must be"):
            codec.encode(PAGE, 40, screen=bad)  # type: ignore[arg-type]


def test_the_reference_makes_and_reads_the_same(codec: Codec) -> None:
    pytest.importorskip("torch")
    other, picture = Codec(backend="reference"), page(48, 64, seed=11)
    for pixels in (picture, picture[..., 0].copy()):
        data = codec.encode(pixels, 60, effort=0)
        assert inspect(data).graphic_blocks
        assert np.array_equal(other.decode(data, "numpy"), codec.decode(data, "numpy"))
    assert other.encode(pixels, 60, effort=0) == data


def test_tensors_that_stay_where_they_are(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CUDA device: an engine of tensors, here those of the reference."""
    torch = pytest.importorskip("torch")
    other, picture = Codec(backend="reference"), page(48, 64, seed=11)
    monkeypatch.setattr(other.engine, "takes_tensors", True)
    data = other.encode(torch.from_numpy(picture).permute(2, 0, 1), 60, effort=0)
    assert data == codec.encode(picture, 60, effort=0)
    back = other.decode(data, "torch")
    assert np.array_equal(back.permute(1, 2, 0).numpy(), codec.decode(data, "numpy"))


def test_goals(codec: Codec) -> None:
    data = codec.encode_to(PAGE, psnr=40)
    assert squares(codec, data, PAGE) <= 255**2 / 10**4
    assert len(data) < len(codec.encode_to(PAGE, psnr=40, screen="off"))
    data = codec.encode_to(PAGE, max_bytes=900)
    assert len(data) <= 900
    assert inspect(data).graphic_blocks
    noisy = np.kron(np.random.default_rng(1).integers(0, 256, (20, 30, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    least = len(codec.encode(noisy, 0, screen="off"))
    assert len(codec.encode(noisy, 0)) > least
    small = codec.encode_to(noisy, max_bytes=least + 20)
    assert len(small) <= least + 20
    assert small == codec.encode_to(noisy, max_bytes=least + 20, screen="off")
    with pytest.raises(InputError, match="quality 0 takes"):
        codec.encode_to(noisy, max_bytes=60)


def test_damaged_files(codec: Codec) -> None:
    """Of a layer whose checksum was mended: an error, or the picture itself."""
    data = codec.encode(PAGE, 60)
    at = data.index(container.parse(data).sections[container.Section.LAYER])
    outcomes = set()
    for i in range(at - 2, at + 60):
        damaged = bytearray(data[:-4])
        damaged[i] ^= 1 << i % 8
        try:
            back = codec.decode(bytes(damaged) + zlib.crc32(damaged).to_bytes(4, "little"), "numpy")
            outcomes.add(bool(np.array_equal(back, codec.decode(data, "numpy"))))
        except BitstreamError as error:
            outcomes.add(type(error))
    assert False not in outcomes
    assert CorruptStreamError in outcomes


def test_the_command_line_and_pillow(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "page.png", tmp_path / "page.dca"
    Image.fromarray(PAGE).save(source)
    assert main(["encode", "--verify", str(source), "-q", "60"]) == 0
    assert "graphic blocks" in capsys.readouterr().err
    assert target.read_bytes() == codec.encode(PAGE, 60)
    assert main(["info", str(target)]) == 0
    assert f"graphic_blocks  {inspect(target.read_bytes()).graphic_blocks}" in capsys.readouterr().out
    assert main(["encode", str(source), "-q", "60", "--screen", "off"]) == 0
    assert target.read_bytes() == codec.encode(PAGE, 60, screen="off")
    with pytest.raises(SystemExit):
        main(["encode", "--screen", "on", str(source)])
    file = io.BytesIO()
    Image.fromarray(PAGE).save(file, "DCA", quality=60, screen="off")
    assert file.getvalue() == target.read_bytes()
    with Image.open(io.BytesIO(codec.encode(PAGE, 60))) as back:
        assert np.array_equal(np.asarray(back), codec.decode(codec.encode(PAGE, 60), "numpy"))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_golden_layer(backend: str) -> None:
    if backend == "reference":
        pytest.importorskip("torch")
    data = (ROOT / "tests/golden/layer.dca").read_bytes()
    codec = Codec(backend=backend)
    digest = hashlib.sha256(codec.decode(data, "numpy").tobytes()).hexdigest()
    assert digest == (ROOT / "tests/golden/layer.sha256").read_text().strip()
    if backend == "native":
        assert codec.encode(page(60, 80, seed=11), 60, effort=0) == data
