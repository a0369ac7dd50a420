"""Adaptive quantisation: what steps become, what it does to a picture, and that everyone agrees on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dca_fast import Codec, inspect
from dca_fast.config import MAX_AQ, ROWS_PER_OCTAVE, SCALE_MIN, SKIP_ROW
from dca_fast.encoder.effort import FACTOR_ONE, Candidate, Search, site_factors, worth
from dca_fast.entropy.coder import Coder
from dca_fast.errors import BitstreamError, ConfigError
from dca_fast.files import container
from dca_fast.model.context import parity_split
from dca_fast.model.walk import coarseness
from dca_fast.network import walk
from dca_fast.ops import reference
from dca_fast.testing import photograph
from dca_fast.train.export import load_float

CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "dca-s.safetensors"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(backend="native", threads=1)


def half_busy() -> np.ndarray:
    """A soft ramp on the left, noise on the right."""
    picture = np.repeat(np.linspace(90, 120, 128)[:, None], 256, 1)[:, :, None].repeat(3, 2)
    picture[:, :128] += 2 * np.sin(np.arange(128)[:, None, None] / 5) * np.cos(np.arange(128)[None, :, None] / 7)
    picture[:, 128:] += np.random.default_rng(0).normal(0, 25, (128, 128, 3))
    return np.rint(picture.clip(0, 255)).astype(np.uint8)


def test_sites_above_their_typical_rows_are_coarser() -> None:
    row = torch.tensor([40, 40, 60, SKIP_ROW], dtype=torch.uint8).view(1, 2, 2, 1).expand(1, 2, 2, 16).contiguous()
    offset = torch.tensor([40, 20, 40, 5]).mul(16).int()[:, None].expand(4, 16).contiguous()
    assert reference.coarseness(row, offset, 6, 8).flatten().tolist() == [0, 10, 10, 0]  # half of 0, 20, 20 and 5 - 5
    assert reference.coarseness(row, offset, 6, MAX_AQ).flatten().tolist() == [0, 15, 15, 0]
    assert not reference.coarseness(row, offset, 6, 0).any()


def test_rows_follow_the_steps() -> None:
    row = torch.tensor([0, 6, 20, 127, SKIP_ROW], dtype=torch.uint8).view(1, 1, 5, 1)

    def changed(by: int) -> list[int]:
        coarse = torch.full((1, 1, 5), by, dtype=torch.int8)
        return reference.coarser_rows(row, coarse, 6).flatten().tolist()

    assert changed(3) == [SKIP_ROW, SKIP_ROW, 17, 124, SKIP_ROW]
    assert changed(-6) == [6, 12, 26, 127, SKIP_ROW]


def test_factors_are_powers_of_two_to_the_row(codec: Codec) -> None:
    program = codec.engine.program(5000, 15)
    row = (np.arange(16 * 128) % 128).astype(np.uint8).reshape(1, 16, 128, 1)
    found = program.adaptation(np.repeat(row, 96, 3))
    assert np.unique(found.coarse).tolist() == list(range(-15, 16))
    exact = np.exp2(found.coarse.astype(np.float64) / ROWS_PER_OCTAVE)
    assert np.allclose(found.coarser, exact, rtol=1e-4)
    assert np.allclose(found.finer * exact, 1, rtol=1e-4)


@pytest.mark.parametrize("size", [(48, 80), (70, 33)])
def test_backends_agree_at_every_strength(codec: Codec, size: tuple[int, int]) -> None:
    image, other = photograph(*size, seed=3), Codec(backend="reference")
    for strength, level in ((0, 1), (1 / 16, 0), (0.5, 1), (15 / 16, 2)):
        data = codec.encode(image, 50, effort=level, aq_strength=strength)
        assert inspect(data).aq_strength == strength
        assert other.encode(image, 50, effort=level, aq_strength=strength) == data
        assert np.array_equal(other.decode(data, "numpy"), codec.decode(data, "numpy"))


@pytest.mark.parametrize("level", [0, 1, 3])
def test_errors_move_to_where_much_is_going_on(codec: Codec, level: int) -> None:
    picture = half_busy()

    def errors(strength: float) -> tuple[float, float]:
        back = codec.decode(codec.encode(picture, 50, effort=level, aq_strength=strength), "numpy")
        squares = np.square(back.astype(float) - picture)
        return squares[:, :112].mean(), squares[:, 144:].mean()

    plain, adapted = errors(0), errors(0.5)
    assert adapted[0] < 0.9 * plain[0]
    assert adapted[1] / plain[1] > 1.2 * adapted[0] / plain[0]


def test_another_strength_is_another_file(codec: Codec) -> None:
    """The strength in the header is what rows and steps are made with: a wrong one does not go unnoticed."""
    dca = container.parse(codec.encode(photograph(96, 96, seed=5), 60, aq_strength=0.5))
    for aq in (0, 7, 9, 15):
        with pytest.raises(BitstreamError):
            codec.decode(container.pack(replace(dca.header, aq=aq), dca.stream))


@pytest.mark.parametrize("strength", [-0.1, 0.94, True, "0.5", None, float("nan")])
def test_wrong_strengths_are_refused_by_name(codec: Codec, strength: object) -> None:
    for call in (codec.encode, lambda image, **options: codec.encode_to(image, bpp=1.0, **options)):
        with pytest.raises(ConfigError, match="aq_strength"):
            call(photograph(8, 8), aq_strength=strength)
    with pytest.raises(ConfigError, match="aq_strength"):
        codec.warm_up(8, 8, aq_strength=strength)


def test_searches_count_errors_at_the_price_of_their_site(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, costs = photograph(90, 120, seed=6), []

    class Watched(Search):
        def candidate(self, y: torch.Tensor) -> Candidate:
            found = super().candidate(y)
            costs.append(found.cost)
            return found

    monkeypatch.setattr("dca_fast.engines.cpu.Search", Watched)
    data = codec.encode(pixels, 40, effort=2, aq_strength=0.75)
    dca, program = container.parse(data), codec.engine.program(4000, 12)
    back = codec.decode(data, "numpy")
    y = program.analyse(codec.engine.padded(pixels))
    source = walk.EncoderSource(program, y, program.hyper_analyse(y), codec.engine.quantiser(1))
    features = program.hyper_features(walk.code_hyper(program, source, walk.Grid.of(90, 120)))
    at = walk.adaptation(program, features, walk.Grid.of(90, 120))
    weights = site_factors(program.arrays, at)
    assert len(np.unique(weights)) > 5
    error = program.ops.squared_error(pixels, back, weights) / FACTOR_ONE
    bits = 8 * (len(dca.stream) + len(container.pack_restoration(dca.header.restoration)))
    assert min(costs) == bits + worth(40) * error / 3


def test_squared_errors_of_sites_are_weighted() -> None:
    a, b = (torch.from_numpy(photograph(150, 101, seed=seed)) for seed in (1, 2))
    weights = torch.randint(1, 9 * FACTOR_ONE, (12, 8))
    squared_error = reference.squared_error
    squares = (a.double() - b.double()).square().sum(-1)
    each = weights.repeat_interleave(16, 0).repeat_interleave(16, 1)[:150, :101]
    assert squared_error(a, b, weights) == int((squares * each).sum())
    assert squared_error(a, b, torch.full((12, 8), FACTOR_ONE)) == FACTOR_ONE * squared_error(a, b)
    assert site_factors(reference.arrays(), None) is None


def test_the_float_network_finds_the_same_sites_coarse(codec: Codec) -> None:
    rows = torch.randint(2, 128, (1, 6, 8, 96))
    rows[rows < 6] = SKIP_ROW
    offset = torch.randint(16 * 50, 16 * 80, (4, 96), dtype=torch.int32)
    lowest = math.log2(SCALE_MIN)
    scales = torch.where(rows == SKIP_ROW, 3, rows).double() / ROWS_PER_OCTAVE + lowest
    gains = [g.view(1, 1, 1, -1).double() / 16 / ROWS_PER_OCTAVE + lowest for g in offset]
    for strength in (1, 3, 15):
        coarse = reference.coarseness(rows.to(torch.uint8), offset, 6, strength)
        found = ROWS_PER_OCTAVE * coarseness(parity_split(scales), gains, strength / 16)[..., 0]
        assert (found - coarse).abs().round().sum() <= 2  # a half goes up, or to even
        assert coarse.unique().numel() > strength / 2


@torch.no_grad()
def test_the_float_network_adapts_as_files_do(codec: Codec) -> None:
    network = load_float(CHECKPOINT).eval()
    network.coder = Coder(codec.tables)
    pixels = photograph(192, 320, seed=3)  # no padding, which costs the float network bits
    image = torch.from_numpy(pixels)[None].float() - 128
    for quality, aq in ((30, 3), (70, 10)):
        out = network(image, torch.tensor([float(quality)]), aq_strength=aq / 16)
        data = codec.encode(pixels, quality, effort=0, aq_strength=aq / 16)
        error = np.square(codec.decode(data, "numpy") - (image[0].numpy() + 128)).mean()
        assert float((out["image"] - image).square().mean()) == pytest.approx(float(error), rel=0.03)
        assert float(out["bits"]) == pytest.approx(8 * len(data), rel=0.05, abs=500)  # header, states of the coder
        assert out["worth"].unique().numel() > aq // 2
    plain = network(image, torch.tensor([30.0]))
    assert plain["worth"].unique().tolist() == [1]
