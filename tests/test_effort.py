"""Encoder effort: levels, descents, and the way back to floats."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dca_fast import Codec, effort, refine
from dca_fast.adjoint import multipliers
from dca_fast.codec import _padded
from dca_fast.config import ModelConfig, price
from dca_fast.container import pack, parse
from dca_fast.errors import ConfigError, InputError
from dca_fast.export import export, float_network
from dca_fast.latents import EncoderSource, code, sites
from dca_fast.model.layers import DepthBlock, GatedFfn, depth_to_space
from dca_fast.model.network import Network
from dca_fast.model.transforms import OUTPUT_SCALE
from dca_fast.ops import native
from dca_fast.testing import photograph
from dca_fast.weights import Weights, find, load


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


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
    files = [codec.encode(pixels, quality, effort=level) for level in range(7)]
    costs = [cost(codec, pixels, data, quality) for data in files]
    plain = [cost(codec, pixels, unfiltered(data), quality) for data in files]
    assert plain[0] == costs[0]
    assert all(have <= want for have, want in zip(costs, plain, strict=True))
    assert quality < 50 or costs[1] < plain[1]
    assert max(costs[2:]) <= costs[0]
    assert all(after <= 1.005 * before for before, after in itertools.pairwise(costs[2:]))
    assert costs[6] < left * costs[0]
    assert costs[2] <= costs[1] < 1.01 * costs[0]
    assert quality < 50 or costs[1] < 0.99 * costs[0]
    assert parse(files[2]).header.model_id == parse(files[0]).header.model_id


def test_levels_without_floats_are_the_same_everywhere(codec: Codec) -> None:
    pixels = photograph(70, 90, seed=1)
    data = codec.encode(pixels, 60, effort=3)
    assert data != codec.encode(pixels, 60, effort=0)
    assert Codec(backend="reference").encode(pixels, 60, effort=3) == data
    assert Codec(threads=2).encode(pixels, 60, effort=3) == data
    was = native.isa()
    try:
        for isa in native.isas():
            native.set_isa(isa)
            assert codec.encode(pixels, 60, effort=3) == data, isa
    finally:
        native.set_isa(was)


def test_the_adjoint_is_the_linear_part_transposed(codec: Codec) -> None:
    """Against autograd through the two projections of the float network."""
    network = codec._refiner._network.synthesis
    pixels, quality = photograph(128, 192, seed=3), 62.5  # a knot of the gains
    y_hat, program = decoded(codec, pixels, quality), codec._program(6250)
    image, picture = _padded(pixels), program.synthesise(y_hat)
    error = codec._adjoint.missing(image, picture, (128, 192))
    slope = codec._adjoint.slope(error) * multipliers(program.gain, price(quality), 1)
    y = (y_hat / codec._refiner._steps).requires_grad_(True)
    split = depth_to_space(F.linear(y * network.unit16, network.split.weight))
    linear = depth_to_space(F.linear(split, network.pixels.weight) * OUTPUT_SCALE, 8)
    (linear * (picture.float() - image.float())).sum().backward()
    gain = codec._refiner._network.log2_gain.exp2()[5]
    assert y.grad is not None
    wanted = y.grad * codec._refiner._steps * (-price(quality) / 3) / gain.square()
    steps = gain / codec._refiner._steps
    assert float(((slope - wanted) * steps).square().mean() / (wanted * steps).square().mean()) < 1e-3


@pytest.mark.parametrize("size", [(128, 192), (100, 150)])
def test_the_float_network_knows_level_1(codec: Codec, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """What training sees of it, with the codec's tables, is what the integer encoder does without filters."""
    monkeypatch.setattr(codec._refiner._network, "coder", codec._coder)
    network, pixels = codec._refiner._network, photograph(*size, seed=3)
    x, found, program = torch.from_numpy(pixels).float()[None] - 128, [], codec._program(6250)
    step = effort.Step(codec._adjoint, codec._quantiser(1), effort.step_multipliers(program.gain, 62.5))
    first = effort.first_pass(program, step, _padded(pixels), size)
    for level in (0, 1):
        with torch.no_grad():
            out = network(x, torch.tensor([62.5]), noisy=False, effort=level)
        picture = first.picture
        if level:
            picture = effort.second_pass(program, step, first, None, _padded(pixels), size)[1]
        error = np.square(picture[0, : size[0], : size[1]].numpy() - pixels.astype(np.float64)).mean()
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
    class Worse:
        moved = staticmethod(lambda y_hat, slope, m, y=None: y_hat + 5000)

        def slope(self, *arguments: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 4, 4, 384), 1e6)

        answer = slope

    monkeypatch.setitem(vars(codec), "_refiner", Worse())
    monkeypatch.setitem(vars(codec), "_adjoint", Worse())
    for seed in range(3):
        pixels = photograph(64, 64, seed=seed)
        for level in (2, 4, 9):
            assert unfiltered(codec.encode(pixels, 50, effort=level)) == codec.encode(pixels, 50, effort=0)


@pytest.mark.parametrize("level", [5, 8])
@pytest.mark.parametrize("quality", [0, 100])
@pytest.mark.parametrize("size", [(1, 1), (70, 40)])
def test_refinement_of_odd_pictures(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], quality: float, level: int
) -> None:
    monkeypatch.setitem(effort.DESCENTS, 8, (2, 6))
    pixels = photograph(*size)
    data = codec.encode(pixels, quality, effort=level)
    assert codec.decode(data, "numpy").shape == (*size, 3)
    assert codec.encode(pixels[::-1], quality, effort=level)
    gray = pixels[:, :, 0].copy()
    gray.setflags(write=False)
    assert codec.decode(codec.encode(gray, quality, effort=np.int64(level))).mode == "L"


@pytest.mark.parametrize("level", [5, 8])
def test_refinement_ignores_the_modes_of_the_host(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    monkeypatch.setitem(effort.DESCENTS, 8, (2, 6))
    pixels = photograph(64, 100, seed=2)
    expected = Codec().encode(pixels, 45, effort=level)
    assert expected != Codec().encode(pixels, 45)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        codec = Codec()
        with mode:
            assert codec.encode(pixels, 45, effort=level) == expected
        assert codec.encode(pixels, 45, effort=level) == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert Codec().encode(pixels, 45, effort=level) == codec.encode(pixels, 45, effort=level) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_many_threads_refine_with_one_codec(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(effort.DESCENTS, 8, (2, 6))
    images = [photograph(64, 64, seed=i) for i in range(4)]
    for level in (5, 8):
        expected = [codec.encode(image, 40, effort=level) for image in images]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda image, level=level: codec.encode(image, 40, effort=level), images)
            assert list(found) == expected


@pytest.mark.parametrize("level", [5, 8])
def test_a_picture_of_many_tiles(codec: Codec, monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    monkeypatch.setattr(refine, "TILE", 64)
    monkeypatch.setattr(refine, "MARGIN", 64)
    monkeypatch.setitem(effort.DESCENTS, 8, (2, 6))
    pixels = photograph(100, 150, seed=4)
    data = codec.encode(pixels, 45, effort=level)
    assert cost(codec, pixels, data, 45) < cost(codec, pixels, codec.encode(pixels, 45), 45)


def decoded(codec: Codec, pixels: np.ndarray, quality: float) -> torch.Tensor:
    """y_hat of a file."""
    program = codec._program(round(quality * 100))
    y = program.analyse(_padded(pixels))
    source = EncoderSource(program, y, program.hyper_analyse(y), codec._quantiser(1))
    return code(program, source, *sites(*pixels.shape[:2]))


def test_the_slope_is_the_gradient_of_the_error_that_a_decoder_makes(codec: Codec) -> None:
    """By differences: along it the integer program's error falls as it says, less what the curvature takes."""
    pixels, quality = photograph(100, 150, seed=3), 62.5  # a knot of the gains
    program, y_hat = codec._program(6250), decoded(codec, pixels, quality)
    slope = codec._refiner.slope(_padded(pixels), (100, 150), y_hat, quality)
    gain = codec._refiner._network.log2_gain.exp2()[5]
    unit = codec._refiner._steps / gain  # of y in a quantiser step

    def error(y: torch.Tensor) -> float:
        return float(np.square(program.synthesise(y)[0, :100, :150].numpy() - pixels.astype(float)).sum() / 3)

    for p, least in ((300, 0.75), (1000, 0.85)):  # what it moves is whole, so it is never all there
        moved = (y_hat + slope / p).round().to(torch.int16)
        predicted = 2 * float((slope / unit.square() * (moved - y_hat)).sum())
        assert least * predicted < (error(y_hat) - error(moved)) * price(quality) < 1.05 * predicted


def test_slopes_do_not_depend_on_tiles(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a latent does to the picture, and that to another latent, ends within the margin."""
    pixels = photograph(120, 450, seed=3)
    y_hat = decoded(codec, pixels, 40)
    whole = codec._refiner.slope(_padded(pixels), (120, 450), y_hat, 40)
    assert whole.dtype == torch.float32
    monkeypatch.setattr(refine, "TILE", 64)
    assert len(list(refine.tiles(128, 512))) == 16
    parts = codec._refiner.slope(_padded(pixels), (120, 450), y_hat, 40)
    assert torch.allclose(parts, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_descent_goes_on_from_what_is_worse_and_keeps_the_best() -> None:
    """A parabola that is steeper than the first price says: the first step goes too far."""

    def candidate(y: torch.Tensor) -> effort.Candidate:
        return effort.Candidate(float(40 * y.square().sum()), b"", 0, (), y, y, {}, y, y)

    prices: list[float] = []
    seen: list[float] = []

    def moved(origin: effort.Candidate, direction: torch.Tensor, price: float) -> effort.Candidate:
        prices.append(price)
        return candidate(origin.y_hat + direction / price)

    def slope(entry: effort.Candidate) -> torch.Tensor:
        return -40 * entry.y_hat

    start = candidate(torch.full((3,), 100.0))
    assert effort.descend(start, [], slope, moved, seen.append) is start
    assert effort.descend(start, [19.5, 20], slope, moved, seen.append) is start  # too far, then across and back
    seen.clear()
    best = effort.descend(start, effort.evenly((19.5, 21), 4), slope, moved, seen.append)
    assert prices[2:] == [19.5, 20, 20.5, 21]
    # Of y, 1 - 40 / price is left over: prices above 20 shorten it.
    assert best.cost == pytest.approx(start.cost * (20.5 / 19.5 * 20 / 20 * 19.5 / 20.5 * 19 / 21) ** 2)
    assert seen == [0.25, 0.5, 0.75, 1]


def test_metadata_is_refused_before_the_work(codec: Codec) -> None:
    with pytest.raises(InputError, match="ICC section"):
        codec.encode(photograph(8, 8), effort=9, metadata={"icc": bytes((1 << 24) + 1)}, progress=pytest.fail)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (768, 832), (2176, 3840)])
def test_tiles_cover_a_picture_once(height: int, width: int) -> None:
    covered = np.zeros((height // 64, width // 64), int)
    for keep, around in refine.tiles(height, width):
        assert all(edge % 64 == 0 for edge in (*keep, *around))
        assert around.top <= keep.top < keep.bottom <= around.bottom <= height
        assert around.left <= keep.left < keep.right <= around.right <= width
        assert max(keep.bottom - keep.top, keep.right - keep.left) <= refine.TILE
        covered[keep.top // 64 : keep.bottom // 64, keep.left // 64 : keep.right // 64] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("level", [-1, 10, 2.0, True, "3", None])
def test_wrong_levels_are_refused_by_name(codec: Codec, level: object) -> None:
    with pytest.raises(ConfigError, match="effort"):
        codec.encode(photograph(8, 8), effort=level)


SMALL = {
    "width": 32,
    "latent": 64,
    "latent_hidden": 32,
    "context_width": 32,
    "heads": 2,
    "local": 4,
    "regional": 16,
    "tokens": 4,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"contexts": ("regional",)},
        {"contexts": ("local", "regional")},
        {"shared": False},
        {"merge_once": True},
        {"analysis_blocks": (0, 0), "synthesis_blocks": (0, 0)},
    ],
)
def test_integer_weights_make_a_float_network_and_come_back(changes: dict[str, Any]) -> None:
    """The same 8-bit weights, and nearly the same picture and rate as the network that they were made of."""
    torch.manual_seed(1)
    config = ModelConfig("tiny", **{**SMALL, **changes})
    network = Network(config).eval()
    with torch.no_grad():
        for transform in (network.analysis, network.synthesis):
            transform.unit8.fill_(2.0)
            transform.unit16.fill_(3.0)
        for module in network.modules():
            if isinstance(module, DepthBlock | GatedFfn) and (module.unit.numel(), module.reach) != (32, 1.0):
                module.unit.fill_(2.0 if module.unit.numel() == 32 else 3.0)
        for name, p in network.named_parameters():
            if name.endswith(("slope", "bias", "position")):
                p.add_(torch.randn_like(p) * 0.2)
    tensors = export(network)
    back = float_network(Weights(tensors, config, 6, b""))
    again = export(back)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            assert torch.equal(again[name], tensor), name
        else:
            assert again[name].shape == tensor.shape
    x = torch.from_numpy(photograph(64, 128, seed=3)).float()[None] - 128
    quality = torch.tensor([55.0])
    with torch.no_grad():
        want, have = network(x, quality), back(x, quality)
    assert (want["image"] - have["image"]).square().mean() < 0.04 * want["image"].square().mean()
    assert float(have["bits"]) == pytest.approx(float(want["bits"]), rel=0.04)


def test_the_float_network_does_not_code_small_scales() -> None:
    """As in a file: no bits, the mean as value; training alone counts them."""
    network = float_network(load(find("dca-s")))
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

    from dca_fast.cli import main

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
    program = codec._program(6000)
    y = program.analyse(_padded(pixels))
    source = EncoderSource(program, y, program.hyper_analyse(y), codec._quantiser(1))
    code(program, source, *sites(64, 64))
    assert codec._coder.encode(source.parts, plain=source.plain) == parse(codec.encode(pixels, 60, effort=0)).stream


def test_the_search_begins_with_level_one(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without further steps it finds what level 1 makes, or plain rounding where that is better."""
    monkeypatch.setitem(effort.DESCENTS, 2, (1, 0))
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


def test_strips_of_the_answer_are_exact(codec: Codec) -> None:
    torch.manual_seed(3)
    image, picture = (torch.randint(0, 256, (1, 256, 128, 3), dtype=torch.uint8) for _ in range(2))
    for size in ((256, 128), (200, 100), (65, 1)):
        whole = codec._adjoint.answer(image, picture.clone(), size)
        for rows in (4, 8, 12):
            assert torch.equal(codec._adjoint.answer(image, picture.clone(), size, rows), whole)
    assert whole[:, 5:].count_nonzero() == 0
