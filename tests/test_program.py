"""Float network against integer program, export, weights, and the walk in both directions."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dca_fast import Codec
from dca_fast.config import FIRST_CODED_ROW, SKIP_ROW, ModelConfig, Part, preset
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import build_gaussian_tables
from dca_fast.errors import ConfigError, WeightsError
from dca_fast.model.network import Network
from dca_fast.model.walk import neighbours
from dca_fast.network import models, walk, weights
from dca_fast.network.layout import is_of_encoder, layout
from dca_fast.network.program import Model, Program, ProgramSet, exp2, interpolate, settings, silent
from dca_fast.ops import Array, Arrays, native
from dca_fast.ops.reference import OPS
from dca_fast.testing import photograph
from dca_fast.train.export import export, export_checkpoint, load_float, save_float
from dca_fast.train.klt import start_from_components

TINY = ModelConfig(
    "tiny",
    width=32,
    latent=64,
    latent_hidden=32,
    context_width=32,
    heads=2,
    local=4,
    regional=16,
    regional_levels=2,
    tokens=4,
    local_blocks=2,
)
TABLES = build_gaussian_tables()
QUANTISE = walk.quantiser(OPS.arrays("cpu"), Coder(TABLES), TABLES.charges(1 / 14), 1)


class SyntheticPhotographs:
    """Stands in for `Photographs`: crops of synthetic pictures."""

    def batch(self, generator: np.random.Generator, count: int, size: int) -> torch.Tensor:
        seeds = generator.integers(1 << 30, size=count)
        return torch.from_numpy(np.stack([photograph(size, size, int(s)) for s in seeds])).float() - 128


@pytest.fixture(scope="module")
def network() -> Network:
    """Principal components, random elsewhere, so that symbols of all sizes occur."""
    torch.manual_seed(3)
    net = Network(TINY).eval()
    start_from_components(net, SyntheticPhotographs())
    with torch.no_grad():
        for p in net.factorised.parameters():
            p.add_(torch.randn_like(p) * 0.5 + 1)
        for name, p in net.named_parameters():
            if name.endswith(("slope", "bias")):
                p.add_(torch.randn_like(p) * 0.2)
    return net


@pytest.fixture(scope="module")
def packed(network: Network, tmp_path_factory: pytest.TempPathFactory) -> weights.Weights:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return weights.save(path, export(network), network.config, FIRST_CODED_ROW)


def encode(program: Program, image: np.ndarray) -> tuple[walk.EncoderSource, torch.Tensor]:
    y = program.analyse(torch.from_numpy(image)[None])
    source = walk.EncoderSource(program, y, program.hyper_analyse(y), QUANTISE)
    return source, walk.code(program, source, walk.Grid(y.shape[1:3], y.shape[1:3]))


@pytest.mark.parametrize("quality", [0, 3333, 10000])
def test_integer_program_follows_the_float_network(network: Network, packed: weights.Weights, quality: int) -> None:
    """Same picture within the rounding of the two paths, stage by stage."""
    image = photograph(128, 64, seed=2)
    program = ProgramSet(packed, OPS).at(quality)
    x = torch.from_numpy(image)[None].float() - 128
    q = torch.tensor([quality / 100])
    t = (q / 50 - 1).view(1, 1, 1, 1)
    with torch.no_grad():
        y = network.analysis(x, t)
        mine = program.analyse(torch.from_numpy(image)[None])
        own = mine.double() * packed.tensors["latent.operand16"] / 256
        assert (own - y).abs().mean() < 0.01 * y.abs().mean()
        z = {name: pair.analyse(y, t) for name, pair in network.hyper.items()}
        symbols = program.hyper_analyse(mine)
        for name, value in z.items():
            gain = program._settings[f"gain.{name}"] * 256
            expected = (value.reshape(1, -1, gain.numel()) * gain).round().view(value.shape)
            assert (symbols[name] - expected).abs().double().mean() < 0.1 + 0.1 * expected.abs().mean()
        out = program.synthesise(mine).float() - 128
        expected = network.synthesis(y, t).round().clamp(-128, 127)
    assert (out - expected).abs().mean() < 1.0


@pytest.mark.parametrize("quality", [0, 5000, 10000])
def test_decoder_walk_reproduces_the_encoder_walk(packed: weights.Weights, quality: int) -> None:
    class Replay:
        def __init__(self, parts: list) -> None:
            self.parts = iter(parts)

        def _next(self, rows: torch.Tensor) -> torch.Tensor:
            symbols, expected = next(self.parts)
            assert np.array_equal(rows.flatten().numpy(), expected)
            return torch.from_numpy(symbols.copy()).view(rows.shape)

        def hyper(self, name: str, part: Part, rows: torch.Tensor, mean: torch.Tensor | None) -> torch.Tensor:
            return self._next(rows)

        def step(self, step: int, mean: torch.Tensor, rows: torch.Tensor, adaptation: object) -> torch.Tensor:
            return self._next(rows)

    program = ProgramSet(packed, OPS).at(quality)
    source, y_hat = encode(program, photograph(64, 128, seed=5))
    again = walk.code(program, Replay(source.parts), walk.Grid((4, 8), (4, 8)))
    assert torch.equal(again, y_hat)
    coded = sum(int((rows != SKIP_ROW).sum()) for _, rows in source.parts)
    assert coded > 0


def test_skipped_and_outside_symbols_are_zero(packed: weights.Weights) -> None:
    program = ProgramSet(packed, OPS).at(5000)
    y = program.analyse(torch.from_numpy(photograph(64, 64, seed=1))[None])
    source = walk.EncoderSource(program, y, program.hyper_analyse(y), QUANTISE)
    walk.code(program, source, walk.Grid((4, 4), (1, 2)))
    for symbols, rows in source.parts:
        assert (symbols[rows == SKIP_ROW] == 0).all()
        assert ((rows >= packed.skip) | (rows == SKIP_ROW)).all()
    step = source.parts[-1][1].reshape(4, 4, -1)
    assert (step[1:] == SKIP_ROW).all()
    assert (step[:, 2:] == SKIP_ROW).all()


class Hostile:
    """Any values that a stream can hold; keeps what it was told before each part."""

    def __init__(self, arrays: Arrays, choice: list[int]) -> None:
        self.arrays, self.told = arrays, []
        self.generator, self.choice = np.random.default_rng(1), np.array(choice, np.int16)

    def hyper(self, name: str, part: Part, rows: Array, mean: Array | None) -> Array:
        rows = self.arrays.numpy(rows).copy()
        self.told += [rows, np.zeros(0) if mean is None else self.arrays.numpy(mean).copy()]
        return self.arrays.array(self.generator.choice(self.choice, rows.shape) * (rows != SKIP_ROW))

    def step(self, step: int, mean: Array, rows: Array, adaptation: object) -> Array:
        return self.hyper("y", Part(None, 0, 0, 1), rows, mean)


@pytest.mark.parametrize("choice", [[-32768, 32767, -128, 128, 0], [-2, -1, 0, 0, 1, 2]])
@pytest.mark.parametrize("grid", [(4, 4), (4, 12), (20, 12)])
def test_backends_walk_alike_whatever_a_stream_holds(
    packed: weights.Weights, grid: tuple[int, int], choice: list[int]
) -> None:
    for quality, aq in ((0, 0), (3000, 15), (10000, 3)):
        found, told = [], []
        for ops in (OPS, native.OPS):
            arrays = ops.arrays("cpu")
            source = Hostile(arrays, choice)
            y_hat = walk.code(ProgramSet(packed, ops).at(quality, aq), source, walk.Grid(grid, (grid[0], grid[1] - 1)))
            found.append(arrays.numpy(y_hat))
            told.append(source.told)
        assert np.array_equal(*found)
        assert all(np.array_equal(a, b) for a, b in zip(*told, strict=True))
        assert len(told[0]) == 2 * (2 + 4 + {(4, 4): 1, (4, 12): 3, (20, 12): 7}[grid])


def test_rows_and_means_of_the_regional_latent(network: Network, packed: weights.Weights) -> None:
    """They follow weights and scales of the float network, the finest kinds first."""
    program, model = ProgramSet(packed, OPS).at(2500), network.factorised["regional"]
    z_hat = torch.randint(-900, 900, (1, 5, 3, 16), dtype=torch.int16)
    for part, rows, mean in program.hyper_parts("regional", z_hat):
        scale = model.log2_scale[2] + (0 if part.kind is None else model.log2_wider[part.kind])
        row = ((scale + math.log2(10)) * 12).round().clamp_max(127)
        assert (rows.flatten().float() - row)[row >= packed.skip].abs().max() <= 1
        assert (rows.flatten()[row < packed.skip - 1] == SKIP_ROW).all()
        if part.kind is not None:
            expected = model.weight[part.kind] * neighbours(z_hat.float(), part)
            assert mean is not None
            assert (mean - expected).abs().max() < 0.6


@pytest.mark.parametrize("name", ["global", "local", "regional"])
def test_what_is_silent_needs_no_analysis(packed: weights.Weights, name: str) -> None:
    model = Model(packed, OPS)
    values = settings(packed, 5000)
    values[f"rows.{name}"].fill(SKIP_ROW)
    values = {name: torch.from_numpy(value) for name, value in values.items()}
    image = photograph(64, 128, seed=8)
    (whole, y), (spared, y_spared) = (
        encode(Program(model, values, spare), image) for spare in (frozenset(), frozenset({name}))
    )
    assert y.equal(y_spared)
    assert all(
        np.array_equal(a, b) for p, q in zip(whole.parts, spared.parts, strict=True) for a, b in zip(p, q, strict=True)
    )


def test_what_is_silent_at_every_quality() -> None:
    model = ProgramSet(weights.load(models.named("dca-s")), OPS).model
    at = {quality: silent(settings(model.weights, quality)) for quality in (0, 700, 5000, 6249, 8888, 10000)}
    assert model.silent == frozenset.intersection(*at.values()) == {"global"}
    assert at[0] != at[10000]


def test_strips_change_no_bit() -> None:
    program = ProgramSet(weights.load(models.named("dca-s")), OPS).at(7000)
    image = torch.from_numpy(photograph(256, 64, seed=4))[None]
    y = program.analyse(image)
    pixels = program.synthesise(y)
    for rows in (1, 3, 8, 15, 16):
        assert program.analyse(image, rows).equal(y)
        assert program.synthesise(y, rows).equal(pixels)
    # one row less around a strip shows: the reach is as small as it can be
    x = program._blocks(y, "synthesis.blocks16", program.config.synthesis_blocks[1])
    short = program._by_lines(program._synthesise_fine, x, 8, 1, 16, 2)
    assert not short.equal(pixels)


def test_pixels_depend_on_the_sites_around_alone() -> None:
    program = ProgramSet(weights.load(models.named("dca-s")), OPS).at(7000)
    y = program.analyse(torch.from_numpy(photograph(256, 192, seed=4))[None])
    pixels, reach = program.synthesise(y), program.reach
    changed = y.clone()
    changed[:, 8, 6] += 300
    rows, columns = (program.synthesise(changed) != pixels)[0].any(-1).nonzero().unbind(-1)
    assert 16 * (8 - reach) <= rows.min() < 16 * (9 - reach)
    assert 16 * (8 + reach) <= rows.max() < 16 * (9 + reach)
    assert 16 * (6 - reach) <= columns.min() < 16 * (7 - reach)
    window = y[:, 8 - reach : 9 + reach, 6 - reach : 7 + reach].contiguous()
    middle = program.synthesise(window)[:, 16 * reach : 16 * reach + 16, 16 * reach : 16 * reach + 16]
    assert middle.equal(pixels[:, 128:144, 96:112])


def test_quality_axis_is_continuous(packed: weights.Weights) -> None:
    """Gains grow with every hundredth and meet the knots exactly."""
    knots = np.array([[0, 100], [4096, 300], [9000, -5]], dtype=np.int64)
    assert interpolate(knots, 0).tolist() == [0, 100]
    assert interpolate(knots, 5000).tolist() == [4096, 300]
    assert interpolate(knots, 10000).tolist() == [9000, -5]
    line = np.array([interpolate(knots, q)[0] for q in range(10001)])
    assert (np.diff(line) >= 0).all()
    table = packed.tensors["tables.exp2"]
    log2 = np.array([-40000, -1, 0, 1, 4096, 50000])
    assert np.allclose(exp2(table, log2), 2.0 ** (log2 / 4096), rtol=1e-6)


def test_programs_are_cached_and_share_layers(packed: weights.Weights) -> None:
    programs = ProgramSet(packed, OPS)
    assert programs.at(100) is programs.at(100)
    name = "synthesis.split"
    assert programs.at(100)._linear(name) is programs.at(200)._linear(name)
    conditional = "synthesis.blocks8.0.depth.expand"
    a, b = (programs.at(q)._linear(conditional) for q in (0, 10000))
    slope = packed.tensors[f"{conditional}.slope"]
    assert np.array_equal((b.b - a.b).numpy(), 2 * slope)


def test_weights_refuse_what_could_overflow(packed: weights.Weights, tmp_path: Path) -> None:
    bad = dict(packed.tensors)
    bad["synthesis.split.w"] = np.full_like(bad["synthesis.split.w"], 32767)
    with pytest.raises(WeightsError, match=r"synthesis\.split can overflow"):
        weights.save(tmp_path / "bad.safetensors", bad, TINY, FIRST_CODED_ROW)
    for name, factor, message in (
        ("synthesis.blocks8.0.depth.m_in", 2.0**20, "larger than any multiplier"),
        ("synthesis.split.m", 2.0**18, "can overflow a 32-bit result"),
        ("latent.quantise", 2.0**15, "gains beyond"),
        ("tables.exp2", 1.5, "within 1 and 2"),
    ):
        bad = dict(packed.tensors)
        bad[name] = bad[name] * np.float32(factor)
        with pytest.raises(WeightsError, match=message):
            weights.check(bad)
    bad = dict(packed.tensors)
    bad["synthesis.split.m"] = bad["synthesis.split.m"] * np.float32("nan")
    with pytest.raises(WeightsError, match="not finite"):
        weights.check(bad)


def test_weights_file_is_checked(packed: weights.Weights, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot read"):
        weights.load(tmp_path / "missing.safetensors")
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(WeightsError, match="cannot read"):
        weights.load(path)
    save_file({"x": torch.zeros(1)}, str(path))
    with pytest.raises(WeightsError, match="no dca-fast weights"):
        weights.load(path)
    save_file({"x": torch.zeros(1)}, str(path), {"dca_fast": json.dumps({"format": 99})})
    with pytest.raises(WeightsError, match="format 99"):
        weights.load(path)
    with pytest.raises(WeightsError, match="no weights are called 'dca-xl'"):
        models.named("dca-xl")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"contexts": ("regional",)},
        {"contexts": ("local", "regional"), "shared": False},
        {"contexts": ("global",), "regional_levels": 2},
        {"analysis_hidden": (8, 24), "analysis_blocks": (3, 1), "local_blocks": 2, "merge_once": True},
    ],
)
def test_the_layout_is_what_is_exported(change: dict) -> None:
    config = replace(TINY, **change)
    tensors = export(Network(config))
    assert layout(config) == {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()}


def hostile(config: dict, tensors: weights.Tensors, skip: object) -> bytes:
    """A weights file with a right digest, whatever it holds."""
    metadata = json.dumps({"format": weights.FORMAT, "config": config, "skip": skip})
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    digest, identity = weights._digest(arrays, metadata), weights._identity(arrays, config, skip)
    return weights.save_bytes(arrays, {"dca_fast": metadata, "sha256": digest.hex(), "identity": identity.hex()})


@pytest.mark.parametrize(
    ("config", "skip", "message"),
    [
        ({"regional_levels": 10**12}, 6, "regional_levels must be a whole number within 0..6"),
        ({"width": 1 << 20}, 6, "width must be"),
        ({"width": True}, 6, "width must be"),
        ({"shared": 1}, 6, "shared must be"),
        ({"synthesis_blocks": [99, 1]}, 6, "synthesis_blocks must be"),
        ({"synthesis_blocks": [1]}, 6, "two numbers"),
        ({"synthesis_blocks": "ab"}, 6, "two numbers"),
        ({"contexts": [1]}, 6, "contexts must be names"),
        ({"transforms": "elic"}, 6, "the patch transforms have an integer program"),
        ({"width": 24}, 6, "must be"),
        ({"context_blocks": 4096, "shared": False}, 6, "lacks most of 16386 blocks"),
        ({}, 10**9, "rows are coded"),
        ({}, -1, "rows are coded"),
        ({}, "6", "rows are coded"),
    ],
)
def test_hostile_configurations(
    packed: weights.Weights, tmp_path: Path, config: dict, skip: object, message: str
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(hostile(packed.config.to_dict() | config, packed.tensors, skip))
    with pytest.raises(WeightsError, match=message):
        weights.load(path)


@pytest.mark.parametrize(
    "config",
    [{"analysis_blocks": [99, 1]}, {"analysis_blocks": [1]}, {"analysis_hidden": "ab"}, {"analysis_of_tomorrow": 1}],
)
def test_an_encoder_that_is_not_understood_leaves_a_decoder(
    packed: weights.Weights, tmp_path: Path, config: dict
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(hostile(packed.config.to_dict() | config, packed.tensors, packed.skip))
    loaded = weights.load(path)
    assert packed.encodes
    assert not loaded.encodes
    assert loaded.identity == packed.identity


def test_hostile_tensors_raise_one_kind_of_error_or_work(packed: weights.Weights, tmp_path: Path) -> None:
    """Shapes, types, values, tensors that are missing or too many; what is let through codes without a fault."""
    generator, path = np.random.default_rng(0), tmp_path / "w.safetensors"
    whole = Codec(weights=_saved(packed, tmp_path), threads=1)
    known = whole.encode(photograph(30, 40), 50)
    decoded = whole.decode(known, "numpy")
    names, pixels, outcomes = sorted(packed.tensors), photograph(70, 90), []
    for _ in range(300):
        tensors, name = dict(packed.tensors), names[generator.integers(len(names))]
        tensor = tensors[name]
        kind = int(generator.integers(6))
        if kind == 0:
            tensors[name] = tensor.ravel()[: generator.integers(tensor.size)]
        elif kind == 1:
            tensors[name] = np.concatenate((tensor, tensor))
        elif kind == 2:
            with np.errstate(all="ignore"):
                tensors[name] = tensor.astype(generator.choice(["i1", "i2", "i4", "f4", "u1", "i8", "f2"]))
        elif kind == 3:
            del tensors[name]
        elif kind == 4:
            tensors[f"{name}.more"] = tensor
        else:
            flat = tensor.ravel().copy()
            at = generator.integers(flat.size, size=generator.choice([1, 5, flat.size]))
            if flat.dtype == np.float32:
                flat[at] = generator.choice([0.0, 1e30, -1e30, np.inf, np.nan, 1e-40, -1.0])
            else:
                limits = np.iinfo(flat.dtype)
                flat[at] = generator.choice([limits.min, limits.max, 0, 1])
            tensors[name] = flat.reshape(tensor.shape)
        path.write_bytes(hostile(packed.config.to_dict(), tensors, packed.skip))
        try:
            codec = Codec(weights=path, threads=1)
        except WeightsError:
            outcomes.append("refused")
            continue
        if not codec._weights.encodes:
            assert np.array_equal(codec.decode(known, "numpy"), decoded)
            with pytest.raises(WeightsError, match=re.escape(codec._weights.problem)):
                codec.encode(pixels)
            outcomes.append("decodes")
            continue
        data = codec.encode(pixels, 50, effort=int(generator.integers(2)))
        assert codec.decode(data, "numpy").shape == pixels.shape
        outcomes.append("works")
    assert outcomes.count("refused") > 80
    assert outcomes.count("decodes") > 40
    assert outcomes.count("works") > 5


def test_damaged_weights_are_refused(packed: weights.Weights, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(path, packed.tensors, packed.config, packed.skip)
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        weights.load(path)
    for name, value, message in (
        ("tables.softmax", np.full(256, 255, np.uint8), "127"),
        ("hyper.local.synthesis_blocks.attention.0.bias", np.full((2, 16, 16), 2**21, np.int32), "scores"),
    ):
        with pytest.raises(WeightsError, match=message):
            weights.save(path, {**packed.tensors, name: value}, packed.config, packed.skip)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage that is long enough for any header"])
def test_float_weights_that_are_none_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a float model"):
        load_float(tmp_path / name)


def test_a_dead_output_with_a_bias_is_exported(network: Network) -> None:
    layer = network.hyper["local"].synthesis_in
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with torch.no_grad():
        layer.weight[0] *= 1e-3
        layer.bias[0] = 2
        tensors = export(network)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    weights.check(tensors)


def test_digest_names_the_weights(packed: weights.Weights, tmp_path: Path) -> None:
    same = weights.save(tmp_path / "same.safetensors", packed.tensors, packed.config, packed.skip)
    assert same.identity == packed.identity
    changed = dict(packed.tensors)
    changed["synthesis.split.b"] = changed["synthesis.split.b"] + 1
    other = weights.save(tmp_path / "other.safetensors", changed, packed.config, packed.skip)
    assert other.identity != packed.identity
    assert weights.save(tmp_path / "skip.safetensors", packed.tensors, packed.config, 9).identity != packed.identity


def test_decoders_read_files_of_another_encoder(network: Network, packed: weights.Weights, tmp_path: Path) -> None:
    """A heavier f_a and other hyper analyses have the model id of what decodes."""
    path, other = tmp_path / "w.safetensors", tmp_path / "other.safetensors"
    weights.save(path, packed.tensors, packed.config, packed.skip)
    torch.manual_seed(4)
    config = replace(TINY, analysis_blocks=(3, 3), analysis_hidden=(48, 40))
    theirs = export(Network(config))
    mine = {name: theirs[name] if is_of_encoder(name) else packed.tensors[name] for name in layout(config)}
    assert sum(is_of_encoder(name) for name in mine) > 60
    assert weights.save(other, mine, config, packed.skip).identity == packed.identity
    old, new, pixels = Codec(weights=path), Codec(weights=other), photograph(70, 90)
    data = new.encode(pixels, 60, effort=0)
    assert data != old.encode(pixels, 60, effort=0)
    assert np.array_equal(old.decode(data, "numpy"), new.decode(data, "numpy"))


def test_a_decoder_reads_nothing_of_the_encoder(packed: weights.Weights, tmp_path: Path) -> None:
    """What the model id leaves out may hold anything."""
    codec, pixels = Codec(weights=_saved(packed, tmp_path), threads=1), photograph(70, 90)
    data = codec.encode(pixels, 60, effort=1)
    zero = {name: np.zeros_like(tensor) if is_of_encoder(name) else tensor for name, tensor in packed.tensors.items()}
    weights.save(tmp_path / "zero.safetensors", zero, packed.config, packed.skip)
    blind = Codec(weights=tmp_path / "zero.safetensors", threads=1)
    assert np.array_equal(blind.decode(data, "numpy"), codec.decode(data, "numpy"))


def _saved(packed: weights.Weights, folder: Path) -> Path:
    weights.save(folder / "saved.safetensors", packed.tensors, packed.config, packed.skip)
    return folder / "saved.safetensors"


def test_float_weights_round_trip(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "float.safetensors"
    save_float(network, path)
    back = load_float(path)
    state = network.state_dict()
    assert all(torch.allclose(v, state[k], rtol=2e-3, atol=1e-4) for k, v in back.state_dict().items())
    assert export_checkpoint(path, tmp_path / "int.safetensors").config == TINY
    assert "synthesis.pixels.w" in load_file(tmp_path / "int.safetensors")
    with pytest.raises(WeightsError):
        load_float(tmp_path / "int.safetensors")


def test_elic_transforms_have_no_integer_program() -> None:
    with pytest.raises(ConfigError, match="patch"):
        export(Network(preset("dca-paper")))
