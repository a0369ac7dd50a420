"""Encoder effort: levels, descents, and the gradients that they follow."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dca_fast import Codec
from dca_fast.config import price
from dca_fast.encoder import effort
from dca_fast.encoder.linear_gradient import multipliers
from dca_fast.errors import ConfigError, InputError
from dca_fast.files.container import pack, parse
from dca_fast.model.layers import depth_to_space
from dca_fast.model.network import Network
from dca_fast.model.transforms import OUTPUT_GAIN
from dca_fast.network.walk import EncoderSource, Grid, code, code_hyper, code_steps
from dca_fast.ops import native
from dca_fast.testing import photograph
from dca_fast.train.export import COEFFICIENT16, load_float


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


@pytest.fixture
def network() -> Network:
    """The float network that the shipped weights were made of, but for the rounding of its file."""
    return load_float(Path(__file__).resolve().parents[1] / "checkpoints" / "dca-s.safetensors").requires_grad_(False)


def padded(pixels: np.ndarray) -> np.ndarray:
    """uint8 [1, H, W, 3] with sides that are multiples of 64."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")[None]


def steps_of(network: Network) -> torch.Tensor:
    """Integer steps of y in its own unit."""
    unit = network.get_buffer("synthesis.unit16")
    return COEFFICIENT16 * unit * unit


def unfiltered(data: bytes) -> bytes:
    """The file without its restoration filter, for what is chosen before there is one."""
    dca = parse(data)
    return pack(replace(dca.header, restoration=()), dca.stream, dca.sections)


def cost(codec: Codec, pixels: np.ndarray, data: bytes, quality: float) -> float:
    """Bits and priced error of a file."""
    error = np.square(codec.decode(data, "numpy").astype(float) - pixels).sum() / 3
    return 8 * len(data) + price(quality) * error


@pytest.mark.parametrize(("quality", "left"), [(15, 0.997), (50, 0.97), (85, 0.985)])
def test_levels_cost_less_and_less(codec: Codec, quality: float, left: float) -> None:
    """But for level 1, which does not look at what comes of its step; more steps may end a little higher."""
    pixels = photograph(150, 200, seed=4)
    files = [codec.encode(pixels, quality, effort=level, aq_strength=0) for level in range(7)]
    costs = [cost(codec, pixels, data, quality) for data in files]
    plain = [cost(codec, pixels, unfiltered(data), quality) for data in files]
    assert plain[0] == costs[0]
    assert all(have <= want for have, want in zip(costs, plain, strict=True))
    assert quality < 50 or costs[1] < plain[1]
    assert max(costs[2:]) <= costs[0]
    assert all(after <= 1.02 * before for before, after in itertools.pairwise(costs[2:]))
    assert costs[6] < left * costs[0]
    assert costs[2] <= costs[1] < 1.01 * costs[0]
    assert quality < 50 or costs[1] < 0.99 * costs[0]
    assert parse(files[2]).header.model_id == parse(files[0]).header.model_id


@pytest.mark.parametrize("level", [2, 5])
def test_levels_are_the_same_everywhere(codec: Codec, level: int) -> None:
    pixels = photograph(70, 90, seed=3)
    data = codec.encode(pixels, 60, effort=level)
    assert data != codec.encode(pixels, 60, effort=level - 1)
    assert Codec(backend="reference").encode(pixels, 60, effort=level) == data
    assert Codec(threads=2).encode(pixels, 60, effort=level) == data
    was = native.isa()
    try:
        for isa in native.isas():
            native.set_isa(isa)
            assert codec.encode(pixels, 60, effort=level) == data, isa
    finally:
        native.set_isa(was)


def float_slope(codec: Codec, network: Network, y: torch.Tensor, error: torch.Tensor, knot: int) -> torch.Tensor:
    """What `Adjoint.slope` times `multipliers` at a price of 1 stands for; `error` with a gradient by y, in floats."""
    error.backward()
    gain = network.log2_gain.exp2()[knot]
    assert y.grad is not None
    return y.grad * steps_of(network) * (-price(12.5 * knot) / 2) / gain.square()


def test_the_adjoint_is_the_linear_part_transposed(codec: Codec, network: Network) -> None:
    """Against autograd through the two projections of the float network."""
    synthesis = network.get_submodule("synthesis")
    pixels, quality = photograph(128, 192, seed=3), 62.5  # a knot of the gains
    y_hat, program = decoded(codec, pixels, quality), codec.engine.program(6250)
    image, picture = padded(pixels), program.synthesise(y_hat)
    error = codec.engine.adjoint.missing(image, picture, (128, 192))
    slope = torch.from_numpy(codec.engine.adjoint.slope(error) * multipliers(program.gain, price(quality), 1))
    y = (torch.from_numpy(y_hat) / steps_of(network)).requires_grad_(True)
    split = depth_to_space(F.linear(y * synthesis.unit16, synthesis.split.weight))
    linear = depth_to_space(F.linear(split, synthesis.pixels.weight) * OUTPUT_GAIN, 8)
    # Linear in y, with the slope of the squared error: twice the error of the picture, mean of three colours.
    difference = torch.from_numpy(picture.astype(np.float32) - image)
    wanted = float_slope(codec, network, y, (linear * difference).sum() * (2 / 3), 5)
    unit = network.log2_gain.exp2()[5] / steps_of(network)
    assert float(((slope - wanted) * unit).square().mean() / (wanted * unit).square().mean()) < 1e-3


@pytest.mark.parametrize("knot", [1, 5, 8])
def test_the_gradient_is_that_of_the_float_network(codec: Codec, network: Network, knot: int) -> None:
    """Against autograd through all of f_s; 8-bit gradients and operands on other sides of their limits part them."""
    pixels, size = photograph(100, 150, seed=3), (100, 150)
    program, y_hat = codec.engine.program(1250 * knot), decoded(codec, pixels, 12.5 * knot)
    image = padded(pixels)
    at_16, at_8, made = program.synthesis_halves(y_hat)
    assert np.array_equal(made, program.synthesise(y_hat))
    error = codec.engine.adjoint.missing(image, made, size)
    exponents: dict[tuple[int, int], int] = {}
    slope = codec.engine.gradient.slope(at_16, at_8, error, exponents)
    assert len(exponents) == 3 * 2 * sum(codec.config.synthesis_blocks)
    assert np.array_equal(codec.engine.gradient.slope(at_16, at_8, error, exponents), slope)
    y = (torch.from_numpy(y_hat) / steps_of(network)).requires_grad_(True)
    picture = network.synthesis(y, torch.full((1, 1, 1, 1), knot / 4 - 1.0)).clamp(-128, 127)
    difference = (picture - (torch.from_numpy(image).float() - 128))[:, : size[0], : size[1]]
    wanted = float_slope(codec, network, y, difference.square().sum() / 3, knot)
    unit = network.log2_gain.exp2()[knot] / steps_of(network)
    have, wanted = (
        (torch.from_numpy(slope * multipliers(program.gain, price(12.5 * knot), 1)) * unit).flatten(),
        (wanted * unit).flatten(),
    )
    assert float(F.cosine_similarity(have, wanted, dim=0)) > 0.9
    assert float(have.norm() / wanted.norm()) == pytest.approx(1, abs=0.08)


def test_exponents_of_an_error_of_nothing_are_looked_for_again(codec: Codec) -> None:
    program = codec.engine.program(5000)
    exponents: dict[tuple[int, int], int] = {}
    at_16, at_8, _ = program.synthesis_halves(np.full((1, 4, 8, 384), 50, np.int16))
    none = np.zeros((1, 8, 16, 192), np.int16)
    assert not codec.engine.gradient.slope(at_16, at_8, none, exponents).any()
    assert not exponents
    error = none + np.arange(192, dtype=np.int16)
    slope = codec.engine.gradient.slope(at_16, at_8, error, exponents)
    assert np.array_equal(codec.engine.gradient.slope(at_16, at_8, error, {}), slope)
    assert set(exponents) == set(itertools.product(range(10), range(3)))


def test_gradients_of_nothing_and_of_much_stay_within_range(codec: Codec) -> None:
    reference = Codec(backend="reference")
    program, y_hat = codec.engine.program(5000), np.zeros((1, 4, 8, 384), np.int16)
    for error in (0, 255, -255):
        patches = np.full((1, 8, 16, 192), error, np.int16)
        for latents in (y_hat, y_hat + np.int16(32767), y_hat - np.int16(32767)):
            slope = codec.engine.gradient.slope(*program.synthesis_halves(latents)[:2], patches, {})
            assert slope.dtype == np.int16
            assert slope.any() == bool(error)
            halves = reference.engine.program(5000).synthesis_halves(torch.from_numpy(latents))[:2]
            expected = reference.engine.gradient.slope(*halves, torch.from_numpy(patches), {})
            assert np.array_equal(expected.numpy(), slope)


@pytest.mark.parametrize("size", [(128, 192), (100, 150)])
def test_the_float_network_knows_level_1(codec: Codec, network: Network, size: tuple[int, int]) -> None:
    """What training sees of it, with the codec's tables, is what the integer encoder does without filters."""
    network.coder, pixels = codec.engine.coder, photograph(*size, seed=3)
    x, found, program = torch.from_numpy(pixels).float()[None] - 128, [], codec.engine.program(6250)
    step = effort.Step(codec.engine.adjoint, codec.engine.quantiser, effort.step_multipliers(program.gain, 62.5))
    first = effort.first_pass(program, step, padded(pixels), size)
    for level in (0, 1):
        with torch.no_grad():
            out = network(x, torch.tensor([62.5]), noisy=False, effort=level)
        picture = first.picture
        if level:
            picture = effort.second_pass(program, step, first, None, padded(pixels), size)[1]
        error = np.square(picture[0, : size[0], : size[1]] - pixels.astype(np.float64)).mean()
        assert float((out["image"] - x).square().mean()) == pytest.approx(error, rel=0.03)
        found.append(error)
    assert found[1] < 0.97 * found[0]


def test_refinement_costs_less(codec: Codec) -> None:
    """On average: a small picture may end where it began."""
    ratios = []
    for size, seed in (((64, 100), 2), ((64, 100), 3), ((64, 64), 5)):
        pixels, seen = photograph(*size, seed=seed), []
        data = codec.encode(pixels, 45, effort=5, progress=seen.append)
        ratios.append(cost(codec, pixels, data, 45) / cost(codec, pixels, codec.encode(pixels, 45), 45))
        assert seen == sorted(seen)
        assert seen[-1] == 1
        assert np.array_equal(Codec(backend="reference").decode(data, "numpy"), codec.decode(data, "numpy"))
    assert np.mean(ratios) < 0.995


def test_latents_that_cost_more_are_not_used(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec.engine.adjoint, "moved", lambda y_hat, slope, m, y=None, back=0.5: y_hat + 5000)
    for seed in range(3):
        pixels = photograph(64, 64, seed=seed)
        for level in (2, 4, 9):
            assert unfiltered(codec.encode(pixels, 50, effort=level)) == codec.encode(pixels, 50, effort=0)


@pytest.mark.parametrize("level", [3, 5])
@pytest.mark.parametrize("quality", [0, 100])
@pytest.mark.parametrize("size", [(1, 1), (70, 40)])
def test_refinement_of_odd_pictures(codec: Codec, size: tuple[int, int], quality: float, level: int) -> None:
    pixels = photograph(*size)
    data = codec.encode(pixels, quality, effort=level)
    assert codec.decode(data, "numpy").shape == (*size, 3)
    assert codec.encode(pixels[::-1], quality, effort=level)
    gray = pixels[:, :, 0].copy()
    gray.setflags(write=False)
    assert codec.decode(codec.encode(gray, quality, effort=np.int64(level))).mode == "L"


def test_refinement_ignores_the_modes_of_the_host() -> None:
    pixels = photograph(100, 150, seed=4)
    expected = Codec().encode(pixels, 45, effort=4)
    assert expected != Codec().encode(pixels, 45)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        codec = Codec()
        with mode:
            assert codec.encode(pixels, 45, effort=4) == expected
        assert codec.encode(pixels, 45, effort=4) == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert Codec().encode(pixels, 45, effort=4) == codec.encode(pixels, 45, effort=4) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_many_threads_refine_with_one_codec(codec: Codec) -> None:
    images = [photograph(64, 64, seed=i) for i in range(4)]
    for level in (2, 5):
        expected = [codec.encode(image, 40, effort=level) for image in images]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda image, level=level: codec.encode(image, 40, effort=level), images)
            assert list(found) == expected


def decoded(codec: Codec, pixels: np.ndarray, quality: float) -> np.ndarray:
    """y_hat of a file."""
    program = codec.engine.program(round(quality * 100))
    y = program.analyse(padded(pixels))
    source = EncoderSource(program, y, program.hyper_analyse(y), codec.engine.quantiser(1))
    return code(program, source, Grid.of(*pixels.shape[:2]))


def test_the_slope_is_the_gradient_of_the_error_that_a_decoder_makes(codec: Codec) -> None:
    """By differences: along it the integer program's error falls as it says, less what the curvature takes."""
    pixels, quality = photograph(100, 150, seed=3), 62.5  # a knot of the gains
    program, y_hat = codec.engine.program(6250), decoded(codec, pixels, quality)
    at_16, at_8, picture = program.synthesis_halves(y_hat)
    error = codec.engine.adjoint.missing(padded(pixels), picture, (100, 150))
    slope = codec.engine.gradient.slope(at_16, at_8, error, {}) * multipliers(program.gain, price(quality), 1)
    unit = 256 / program.gain  # of y in a quantiser step

    def squares(y: np.ndarray) -> float:
        return float(np.square(program.synthesise(y)[0, :100, :150] - pixels.astype(float)).sum() / 3)

    for p, least in ((300, 0.75), (1000, 0.85)):  # what it moves is whole, so it is never all there
        moved = np.rint(y_hat + slope / p).astype(np.int16)
        predicted = 2 * float((slope / np.square(unit) * (moved - y_hat)).sum())
        assert least * predicted < (squares(y_hat) - squares(moved)) * price(quality) < 1.05 * predicted


def test_descent_goes_on_from_what_is_worse_and_keeps_the_best() -> None:
    """A parabola that is steeper than the first price says: the first step goes too far."""

    def candidate(y: torch.Tensor) -> effort.Candidate:
        return effort.Candidate(float(40 * y.square().sum()), b"", 0, (), y, y, y)

    prices: list[float] = []
    seen: list[int] = []

    def moved(origin: effort.Candidate, direction: torch.Tensor, price: float) -> effort.Candidate:
        prices.append(price)
        return candidate(origin.y_hat + direction / price)

    def slope(entry: effort.Candidate) -> torch.Tensor:
        return -40 * entry.y_hat

    start = candidate(torch.full((3,), 100.0))
    assert effort.descend(start, [], slope, moved, seen.append) is start
    assert effort.descend(start, [19.5, 20], slope, moved, seen.append) is start  # too far, then across and back
    seen.clear()
    best = effort.descend(start, [19.5, 20, 20.5, 21], slope, moved, seen.append)
    assert prices[2:] == [19.5, 20, 20.5, 21]
    # Of y, 1 - 40 / price is left over: prices above 20 shorten it.
    assert best.cost == pytest.approx(start.cost * (20.5 / 19.5 * 20 / 20 * 19.5 / 20.5 * 19 / 21) ** 2)
    assert seen == [1, 2, 3, 4]
    assert effort.between((34, 66), 1) == [50]
    assert effort.between((34, 66), 4) == [38, 46, 54, 62]


def test_metadata_is_refused_before_the_work(codec: Codec) -> None:
    with pytest.raises(InputError, match="ICC section"):
        codec.encode(photograph(8, 8), effort=9, metadata={"icc": bytes((1 << 24) + 1)}, progress=pytest.fail)


@pytest.mark.parametrize("level", [-1, 10, 2.0, True, "3", None])
def test_wrong_levels_are_refused_by_name(codec: Codec, level: object) -> None:
    with pytest.raises(ConfigError, match="effort"):
        codec.encode(photograph(8, 8), effort=level)


def test_the_float_network_does_not_code_small_scales(network: Network) -> None:
    """As in a file: no bits, the mean as value; training alone counts them."""
    with torch.no_grad():
        for head in (head for core in network.context.cores for head in core.heads):
            head.weight.chunk(2)[1].zero_()
            head.bias.chunk(2)[1].fill_(-30)
    x = torch.from_numpy(photograph(64, 64)).float()[None] - 128
    out = network(x, torch.tensor([60.0]), noisy=False)
    assert (out["bits_y"] == 0).all()
    trained = network(x, torch.tensor([60.0]), noisy=True)
    assert (trained["bits_y"] > 0).all()


def test_the_command_line_takes_effort(tmp_path: Path) -> None:
    from PIL import Image

    from dca_fast.cli.parser import main

    Image.fromarray(photograph(64, 80, seed=1)).save(tmp_path / "in.png")
    pixels, costs = photograph(64, 80, seed=1), []
    for level in (0, 2):
        arguments = ["encode", str(tmp_path / "in.png"), str(tmp_path / f"{level}.dca"), "--effort", str(level)]
        assert main(arguments) == 0
        costs.append(cost(Codec(), pixels, (tmp_path / f"{level}.dca").read_bytes(), 60))
    assert costs[1] < costs[0]
    with pytest.raises(SystemExit):
        main(["encode", "a", "b", "--effort", "10"])


def test_the_plain_source_is_level_zero(codec: Codec) -> None:
    pixels = photograph(64, 64)
    program = codec.engine.program(6000)
    y = program.analyse(padded(pixels))
    source = EncoderSource(program, y, program.hyper_analyse(y), codec.engine.quantiser(1))
    code(program, source, Grid.of(64, 64))
    plain = parse(codec.encode(pixels, 60, effort=0, aq_strength=0)).stream
    assert codec.engine.coder.encode(source.parts, plain=source.plain) == plain


def test_the_search_begins_with_level_one(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without further steps it finds what level 1 makes, or plain rounding where that is better."""
    monkeypatch.setitem(effort.DESCENTS, 2, 0)
    found = set()
    for seed, quality in ((1, 70), (2, 30), (3, 5)):
        pixels = photograph(100, 90, seed=seed)
        files = [codec.encode(pixels, quality, effort=level) for level in range(3)]
        best = min(files[:2], key=lambda data: cost(codec, pixels, data, quality))
        assert files[2] == best
        found.add(files.index(best))
    assert 1 in found


@pytest.mark.parametrize("level", range(4))
def test_progress_ends_with_all_done(codec: Codec, level: int) -> None:
    seen: list[float] = []
    codec.encode(photograph(64, 64), 50, effort=level, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert codec.warm_up(64, 64, effort=level) is None
    with pytest.raises(ConfigError, match="effort"):
        codec.warm_up(64, 64, effort=-1)


def test_sources_of_other_ys_go_on_from_the_same_hyper_latents(codec: Codec) -> None:
    """Also those made of another such source: all that is coded of z, and its digest, which a file needs."""
    program, grid, image = codec.engine.program(5000, 3), Grid.of(64, 128), padded(photograph(64, 128, seed=2))
    y = program.analyse(image)
    first, coded = (EncoderSource(program, y, program.hyper_analyse(y), codec.engine.quantiser(1)) for _ in range(2))
    y_hat, features = code(program, first, grid), program.hyper_features(code_hyper(program, coded, grid))
    before = coded.again(y + np.int16(9))
    for source in (coded.again(y), before.again(y)):
        assert np.array_equal(code_steps(program, source, features, grid), y_hat)
        assert (source.digest, source.plain, len(source.parts)) == (first.digest, first.plain, len(first.parts))
        for (values, rows), (expected, where) in zip(source.parts, first.parts, strict=True):
            assert np.array_equal(values, expected)
            assert np.array_equal(rows, where)
    assert len(before.parts) == before.plain == len(first.parts) - 4
