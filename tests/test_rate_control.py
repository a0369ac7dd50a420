"""Files of a size or a fidelity: goals are kept, nothing better is left, mistakes are named."""

from collections.abc import Callable

import numpy as np
import pytest

from dca_fast import Codec, inspect
from dca_fast.encoder.rate_control import PERFECT, largest
from dca_fast.errors import ConfigError, InputError
from dca_fast.exact import picture
from dca_fast.metrics import ms_ssim, psnr
from dca_fast.ssimulacra2 import ssimulacra2
from dca_fast.testing import photograph
from tests.optional import torch

IMAGE = photograph(150, 200, seed=3)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec("dca-s", threads=1)


def test_alpha_is_coded_once_and_options_are_kept(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    image, calls = np.dstack([IMAGE, IMAGE[..., 1]]), []
    pack = picture.coder.pack_plane
    monkeypatch.setattr(picture.coder, "pack_plane", lambda *args, **kwargs: calls.append(0) or pack(*args, **kwargs))
    options = {"effort": 0, "aq_strength": 0.25, "screen": "off", "alpha_quality": 50, "metadata": {"xmp": b"<x/>"}}
    data = codec.encode_to(image, psnr=30, **options)
    assert len(calls) == 1
    assert data == codec.encode(image, inspect(data).quality, **options)


def test_the_search_finds_the_border_in_few_steps() -> None:
    rng = np.random.default_rng(5)
    for octaves in (0.3, 2.0, 5.4, 12.0):
        for bend in (0.4, 1.0, 3.0):
            places = (np.arange(1001) / 1000) ** bend * octaves + rng.random(1001).cumsum() / 1000
            for border in (0, 1, 400, 999, 1000):
                ratios = 2.0 ** (places - places[border])
                tried: list[int] = []

                def ratio(step: int, ratios: np.ndarray = ratios, tried: list[int] = tried) -> float:
                    tried.append(step)
                    return float(ratios[step])

                assert largest(ratio, 1000, 1e-12) == border
                assert len(set(tried)) == len(tried) <= 25
                found = largest(lambda step, ratios=ratios: float(ratios[step]), 1000, 0.05)
                assert found is not None
                assert found == border or 0.95 < ratios[found] <= 1


def test_the_search_ends_on_cliffs_and_plateaus() -> None:
    for border in (0, 3, 4999, 7000, 9999, 10000):
        for low, high in ((1e-9, 1e9), (0.98, 1.001), (1e-9, 1.0000001)):
            tried: list[int] = []

            def ratio(
                step: int, tried: list[int] = tried, ends: tuple[float, float, int] = (low, high, border)
            ) -> float:
                tried.append(step)
                return ends[0] if step <= ends[2] else ends[1]

            assert largest(ratio, 10000, 1e-12) == border
            assert len(set(tried)) == len(tried) <= 25
    assert largest(lambda step: 1.0, 10000, 1e-12) == 5000


def test_the_search_says_when_there_is_nothing() -> None:
    tried = []
    assert largest(lambda step: (tried.append(step), 2.0 + step)[1], 1000, 0.01) is None
    assert 0 in tried
    assert largest(lambda step: 0.5, 1000, 0.01) == 1000


@pytest.mark.parametrize("room", [700, 2500, 5000])
def test_a_size_is_kept_and_used(codec: Codec, room: int) -> None:
    for tolerance in (0.01, 1e-9):
        data = codec.encode_to(IMAGE, max_bytes=room, effort=0, tolerance=tolerance)
        assert len(data) <= room
        assert data == codec.encode(IMAGE, inspect(data).quality, effort=0)
        better = codec.encode(IMAGE, inspect(data).quality + 0.01, effort=0)
        assert len(data) >= (1 - tolerance) * room or len(better) > room
    assert len(data) > 0.97 * room


def test_bits_per_pixel_are_a_size(codec: Codec) -> None:
    data = codec.encode_to(IMAGE, bpp=0.8)
    assert data == codec.encode_to(IMAGE, max_bytes=3000) == codec.encode(IMAGE, inspect(data).quality)
    assert 0.78 < inspect(data).bpp <= 0.8


@pytest.mark.parametrize("goal", [29.0, 31, np.float32(34)])
def test_a_fidelity_is_reached(codec: Codec, goal: float) -> None:
    def fidelity(data: bytes) -> float:
        return psnr(codec.decode(data, "numpy"), IMAGE)

    for tolerance, more in ((0.01, 0.045), (1e-9, 1e-8)):
        data = codec.encode_to(IMAGE, psnr=goal, effort=0, tolerance=tolerance)
        assert goal <= fidelity(data) < goal + 0.4  # of so small a picture one step of quality may change 0.2 dB
        worse = codec.encode(IMAGE, inspect(data).quality - 0.01, effort=0)
        assert fidelity(data) < goal + more or fidelity(worse) < goal


@pytest.mark.parametrize(("kind", "goal"), [("ms_ssim", 0.97), ("ssimulacra2", 50), ("ssimulacra2", 75)])
def test_a_likeness_is_reached(codec: Codec, kind: str, goal: float) -> None:
    image = photograph(170, 200, seed=3)
    measure: Callable[..., float | None] = {"ms_ssim": ms_ssim, "ssimulacra2": ssimulacra2}[kind]

    def likeness(data: bytes) -> float:
        if kind == "ms_ssim":
            assert torch.__version__
            pytest.importorskip("pytorch_msssim")
        value = measure(image, codec.decode(data, "numpy"))
        assert value is not None
        return value

    likeness(codec.encode(image, 50, effort=0))
    data = codec.encode_to(image, **{kind: goal}, effort=0)
    assert data == codec.encode(image, inspect(data).quality, effort=0)
    worse = codec.encode(image, inspect(data).quality - 0.01, effort=0)
    assert goal <= likeness(data)
    assert likeness(data) < goal + 0.01 * (PERFECT[kind] - goal) or likeness(worse) < goal


def test_a_likeness_that_cannot_be_had(codec: Codec) -> None:
    with pytest.raises(InputError, match=r"quality 100 has \d\d\.\d{4} of ssimulacra2, less than 99.99"):
        codec.encode_to(IMAGE, ssimulacra2=99.99, effort=0)
    with pytest.raises(InputError, match="MS-SSIM is of pictures of 161 pixels"):
        codec.encode_to(IMAGE, ms_ssim=0.9, effort=0)
    with pytest.raises(InputError, match="8 pixels a side or more"):
        codec.encode_to(IMAGE[:7], ssimulacra2=50, effort=0)


def test_more_than_the_highest_quality_is_not_given(codec: Codec) -> None:
    assert codec.encode_to(IMAGE, max_bytes=10**6, effort=0) == codec.encode(IMAGE, 100, effort=0)
    assert codec.encode_to(IMAGE, psnr=1e-3, effort=0) == codec.encode(IMAGE, 0, effort=0)


def test_every_kind_of_picture(codec: Codec) -> None:
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    assert codec.encode_to(tensor, bpp=0.5, effort=0) == codec.encode_to(IMAGE, bpp=0.5, effort=0)
    gray = codec.encode_to(IMAGE[:, :, 0], psnr=30, effort=0)
    assert inspect(gray).grayscale
    assert psnr(codec.decode(gray, "numpy"), np.repeat(IMAGE[:, :, :1], 3, 2)) >= 30


def test_backends_find_the_same_file(codec: Codec) -> None:
    assert torch.__version__
    image, reference = photograph(40, 70, seed=1), Codec("dca-s", backend="reference")
    for goal in ({"max_bytes": 400}, {"psnr": 30.5}):
        assert reference.encode_to(image, **goal, effort=0) == codec.encode_to(image, **goal, effort=0)


def test_metadata_counts(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    metadata = {"xmp": rng.bytes(2000)}
    data = codec.encode_to(IMAGE, max_bytes=4000, metadata=metadata, effort=0)
    assert 3950 < len(data) <= 4000
    assert inspect(data).section_bytes == {"xmp": 2000}
    with pytest.raises(InputError, match=r"quality 0 takes 2\d\d\d bytes, more than 2100"):
        codec.encode_to(IMAGE, max_bytes=2100, metadata=metadata, effort=0)
    with pytest.raises(InputError, match="metadata and alpha take 2000 bytes, more than 1500"):
        codec.encode_to(IMAGE, max_bytes=1500, metadata=metadata, effort=0)
    large = codec.encode_to(IMAGE, max_bytes=302_000, metadata={"icc": rng.bytes(300_000)}, effort=0)
    assert 301_900 < len(large) <= 302_000


@pytest.mark.parametrize(
    ("goals", "what"),
    [
        ({}, "give one of max_bytes, bpp, psnr, ms_ssim, ssimulacra2, got none"),
        ({"ms_ssim": 1.0}, "ms_ssim must be below 1, got 1.0"),
        ({"ssimulacra2": 100}, "ssimulacra2 must be below 100, got 100"),
        ({"ssimulacra2": -5}, "ssimulacra2 must be a positive number"),
        ({"bpp": 1.0, "psnr": 30.0}, "got bpp, psnr"),
        ({"bpp": 0.0}, "bpp must be a positive number, got 0.0"),
        ({"max_bytes": True}, "max_bytes must be a positive number, got True"),
        ({"psnr": float("nan")}, "psnr must be a positive number"),
        ({"psnr": float("inf")}, "psnr must be a positive number"),
        ({"psnr": "30"}, "psnr must be a positive number"),
        ({"max_bytes": 10**400}, "max_bytes must be a positive number"),
        ({"bpp": 1.0, "tolerance": -0.1}, "tolerance must be a number between 0 and 1"),
        ({"bpp": 1.0, "tolerance": 1}, "tolerance must be a number between 0 and 1"),
        ({"bpp": 1.0, "effort": 10}, "effort must be a whole number"),
    ],
)
def test_mistakes_are_named(codec: Codec, goals: dict[str, float], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        codec.encode_to(IMAGE, **goals)


@pytest.mark.parametrize("psnr", [60.0, 1e6])
def test_what_no_quality_reaches_is_refused(codec: Codec, psnr: float) -> None:
    with pytest.raises(InputError, match=r"quality 100 has \d\d\.\d\d\d\d dB, less than"):
        codec.encode_to(IMAGE, psnr=psnr, effort=0)


def test_pictures_without_pixels_are_refused(codec: Codec) -> None:
    goals: list[Callable[[], bytes]] = [
        lambda: codec.encode_to(IMAGE[:0], bpp=1.0),
        lambda: codec.encode_to(IMAGE[:0], psnr=30.0),
        lambda: codec.encode_to(b"photo", psnr=30.0),  # type: ignore[arg-type]
    ]
    for goal in goals:
        with pytest.raises(InputError):
            goal()
