"""Encoder effort: levels, rate-distortion optimised quantisation, gradient refinement, and the way back to floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dca_fast import Codec, effort, refine
from dca_fast.codec import _padded
from dca_fast.container import parse
from dca_fast.effort import pricings
from dca_fast.entropy.tables import CENTER, ESCAPE, build_gaussian_tables
from dca_fast.errors import ConfigError
from dca_fast.export import export, float_network
from dca_fast.latents import EncoderSource, code, sites
from dca_fast.ops import reference
from dca_fast.testing import photograph
from dca_fast.weights import find, load


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


def cost(codec: Codec, pixels: np.ndarray, data: bytes, quality: float) -> float:
    """Bits and priced error of a file."""
    error = np.square(codec.decode(data, "numpy").astype(float) - pixels).sum() / 3
    return 8 * len(parse(data).stream) + refine.price(quality) * error


@pytest.mark.parametrize("quality", [15, 50, 85])
def test_optimised_quantisation_costs_less(codec: Codec, quality: float) -> None:
    pixels = photograph(150, 200, seed=4)
    files = [codec.encode(pixels, quality, effort=level) for level in range(4)]
    costs = [cost(codec, pixels, data, quality) for data in files]
    assert min(costs[1:]) < costs[0]
    assert len(files[3]) < len(files[0])
    assert parse(files[2]).header.model_id == parse(files[0]).header.model_id


def test_optimised_quantisation_is_the_same_everywhere(codec: Codec) -> None:
    pixels = photograph(70, 90, seed=1)
    data = codec.encode(pixels, 60, effort=2)
    assert Codec(backend="reference").encode(pixels, 60, effort=2) == data
    assert Codec(threads=2).encode(pixels, 60, effort=2) == data


def test_optimised_symbols_follow_the_rule() -> None:
    """Written out symbol by symbol: one towards zero exactly where the saved bits are worth the error."""
    torch.manual_seed(5)
    tables = build_gaussian_tables()
    pricing = pricings(tables)[2]
    assert pricing is not None
    shape, size = (1, 12, 20, 16), 16
    y = torch.randint(-900, 900, (*shape[:3], 4 * size), dtype=torch.int16)
    mean = torch.randint(-500, 500, shape, dtype=torch.int32)
    row = torch.randint(0, 128, shape, dtype=torch.uint8)
    row[:, :, 0] = 255
    gain = torch.full((4 * size,), 0.7)
    plain = reference.quantize(y, mean, row, gain, 1)
    chosen = reference.quantize_priced(y, mean, row, gain, pricing, 1)
    target = reference.quadtree_gather(reference.requantise(y, gain, 1 << 20), 1)

    def bits(row: int, value: int) -> float:
        low = int(tables.shift[row])
        bucket = (value >> low) + CENTER
        freq = int(tables.freq[row, bucket]) if 0 <= bucket < ESCAPE else 0
        escape = 12 - np.log2(int(tables.freq[row, ESCAPE])) + 16 - low
        return float(12 - np.log2(freq)) if freq else float(escape)

    moved = 0
    for was, now, aim, m, r in zip(*(t.flatten().tolist() for t in (plain, chosen, target, mean, row)), strict=True):
        if was == 0:
            assert now == 0
            continue
        lower = was - (1 if was > 0 else -1)
        worse = ((aim - m - 256 * lower) ** 2 - (aim - m - 256 * was) ** 2) / 65536
        gain_bits = bits(r, was) - bits(r, lower) - pricing.price * worse
        if abs(gain_bits) > 0.02:  # costs are kept in 1/256 bit
            assert now == (lower if gain_bits > 0 else was)
        moved += now != was
    assert moved > 20
    assert (chosen[:, :, 0] == 0).all()


def test_costs_are_code_lengths() -> None:
    tables = build_gaussian_tables()
    costs = tables.symbol_costs()
    assert costs[30, CENTER] == round(256 * (12 - np.log2(float(tables.freq[30, CENTER]))))
    unused = int(np.flatnonzero(tables.freq[0] == 0)[0])
    assert costs[0, unused] == costs[0, ESCAPE] > costs[0, CENTER]


def test_refinement_costs_less(codec: Codec) -> None:
    pixels, seen = photograph(64, 100, seed=2), []
    data = codec.encode(pixels, 45, effort=4, progress=seen.append)
    assert cost(codec, pixels, data, 45) < 0.99 * cost(codec, pixels, codec.encode(pixels, 45), 45)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert np.array_equal(Codec(backend="reference").decode(data, "numpy"), codec.decode(data, "numpy"))


def test_refined_latents_that_cost_more_are_not_used(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = photograph(64, 64, seed=3)

    class Worse:
        def refine(self, image: object, valid: object, y: torch.Tensor, z: dict, *_: object) -> object:
            return torch.zeros_like(y), z

    monkeypatch.setitem(vars(codec), "_refiner", Worse())
    assert codec.encode(pixels, 50, effort=9) == codec.encode(pixels, 50, effort=effort.BEST_QUANTISED)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (768, 832), (2176, 3840)])
def test_tiles_cover_a_picture_once(height: int, width: int) -> None:
    covered = np.zeros((height // 64, width // 64), int)
    for keep, around in refine.tiles(height, width):
        assert all(edge % 64 == 0 for edge in (*keep, *around))
        assert around.top <= keep.top < keep.bottom <= around.bottom <= height
        assert around.left <= keep.left < keep.right <= around.right <= width
        assert keep.bottom - keep.top <= refine.TILE + 64
        covered[keep.top // 64 : keep.bottom // 64, keep.left // 64 : keep.right // 64] += 1
    assert (covered == 1).all()


def test_tiles_are_put_where_they_belong(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a step of descent every latent comes back as it was, whatever the tiles."""
    monkeypatch.setattr(refine, "TILE", 64)
    monkeypatch.setattr(refine, "MARGIN", 64)
    pixels = photograph(128, 192, seed=5)
    program, image = codec._program(6000), _padded(pixels)
    y = program.analyse(image)
    z = program.hyper_analyse(y)
    same, symbols = codec._refiner.refine(image, (128, 192), y, z, 60, 0)
    assert torch.equal(same, y)
    assert symbols.keys() == z.keys()
    changed, _ = codec._refiner.refine(image, (128, 192), y, z, 60, 2)
    for top in range(0, 8, 4):
        for left in range(0, 12, 4):
            assert not torch.equal(changed[:, top : top + 4, left : left + 4], y[:, top : top + 4, left : left + 4])


@pytest.mark.parametrize("level", [-1, 10, 2.0, True, "3", None])
def test_wrong_levels_are_refused_by_name(codec: Codec, level: object) -> None:
    with pytest.raises(ConfigError, match="effort"):
        codec.encode(photograph(8, 8), effort=level)


def test_integer_weights_make_a_float_network_and_come_back() -> None:
    weights = load(find("dca-s"))
    again = export(float_network(weights))
    for name, tensor in weights.tensors.items():
        if tensor.dtype == torch.int8:
            assert torch.equal(again[name], tensor), name
        elif tensor.dtype in (torch.int16, torch.float32):
            torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1 if tensor.dtype == torch.int16 else 0)


def test_the_float_network_does_not_code_small_scales() -> None:
    """As in a file: no bits, the mean as value; training alone counts them."""
    network = float_network(load(find("dca-s")))
    with torch.no_grad():
        for head in network.context.cores[0].heads:
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
    for level in (0, 2):
        arguments = ["encode", str(tmp_path / "in.png"), str(tmp_path / f"{level}.dca"), "--effort", str(level)]
        assert main(arguments) == 0
    assert (tmp_path / "2.dca").stat().st_size < (tmp_path / "0.dca").stat().st_size
    with pytest.raises(SystemExit):
        main(["encode", "a", "b", "--effort", "10"])


def test_the_plain_source_is_level_zero(codec: Codec) -> None:
    pixels = photograph(64, 64)
    program = codec._program(6000)
    y = program.analyse(_padded(pixels))
    source = EncoderSource(program, y, program.hyper_analyse(y))
    code(program, source, *sites(64, 64))
    assert codec._coder.encode(source.parts) == parse(codec.encode(pixels, 60)).stream
