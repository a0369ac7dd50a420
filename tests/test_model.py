"""The float network: any size, any contexts, the quadtree's order, what depends on what."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dca_fast.config import PRESETS, QUADTREE, SKIP_ROW, TRELLIS_STEP, ModelConfig, Part, coarse_to_fine, preset
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import Tables
from dca_fast.entropy.trellis import LIMIT_RESIDUAL
from dca_fast.errors import ConfigError
from dca_fast.model import trellis
from dca_fast.model.context import parity_join, parity_split
from dca_fast.model.cost import macs_per_pixel
from dca_fast.model.layers import OPERAND_ONE, GatedFfn, Linear, gate, operand, space_to_depth
from dca_fast.model.layers import depth_to_space as to_space
from dca_fast.model.network import Network, straight_through
from dca_fast.model.rates import gaussian_bits, noisy_bits
from dca_fast.model.walk import Factorised, code_latent
from dca_fast.ops.reference import neighbour_mean
from tests import test_rans_device

TINY = ModelConfig(
    "tiny", width=16, latent=64, latent_hidden=32, context_width=32, heads=2, local=4, regional=16, tokens=4
)


def photo(*shape: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, 3).cumsum(1).clamp(-128, 127)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (65, 63), (64, 128)])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_at_any_size(name: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        out = Network(preset(name)).eval()(photo(1, *size), torch.tensor([30.0]))
    assert out["image"].shape == (1, *size, 3)
    assert torch.isfinite(out["image"]).all()
    assert (out["bits"] > 0).all()
    assert torch.allclose(out["bits"], out["bits_y"].sum(1) + out["bits_z"].sum(1))


@pytest.mark.parametrize(
    "change",
    [
        {"contexts": ("regional",)},
        {"contexts": ("regional", "local")},
        {"contexts": ("local", "global", "regional")},
        {"contexts": ("global",)},
        {"merge_once": True},
        {"shared": False},
        {"local_blocks": 2},
        {"regional_levels": 2},
    ],
)
def test_every_configuration_trains(change: dict) -> None:
    network = Network(replace(TINY, **change))
    out = network(photo(2, 64, 64), torch.tensor([10.0, 90.0]))
    (out["bits"].sum() + out["image"].square().mean()).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None]
    # A context that is not used leaves no layers behind, and the last decoded step feeds nothing.
    assert without == []


def test_parameters_depend_only_on_earlier_steps() -> None:
    """Change y where step s and later code it: mean and scale of step s must stay, those of s + 1 must not."""
    network = Network(TINY).eval()
    z = {"local": torch.zeros(1, 4, 4, 4), "regional": torch.zeros(1, 1, 1, 16), "global": torch.zeros(1, 1, 4, 16)}
    t = torch.zeros(1, 1, 1, 1)
    seen: list[list[torch.Tensor]] = []

    def record(step: int, y_hat: torch.Tensor | None, features: dict, t: torch.Tensor) -> list:
        out = forward(step, y_hat, features, t)
        seen[-1].append(torch.cat([torch.cat(pair, -1) for pair in out]))
        return out

    forward, network.context.forward = network.context.forward, record
    y = torch.randn(1, 4, 4, 64)
    with torch.no_grad():
        features = network.context.prepare(network.synthesise_hyper(z, t))
        for step in range(5):
            groups = [list(sites.chunk(4, -1)) for sites in parity_split(y)]
            for late in range(step, 4):
                for p in range(4):
                    groups[p][p ^ QUADTREE[late]] = groups[p][p ^ QUADTREE[late]] + 1
            changed = parity_join([torch.cat(of_parity, -1) for of_parity in groups])
            seen.append([])
            code_latent(network, network.rates(False), changed, features, (4, 4), torch.tensor([50.0]))
    plain = seen.pop()
    for step, run in enumerate(seen):
        assert all(torch.equal(run[s], plain[s]) for s in range(step + 1))
        assert step == 3 or not torch.equal(run[step + 1], plain[step + 1])


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 13)])
def test_parts_of_a_hyper_latent_see_only_earlier_ones(levels: int, size: tuple[int, int]) -> None:
    """Every site is coded once; change it, and the means of its own and earlier parts stay."""
    model = Factorised(5, levels)
    shape, means = (1, *size, 5), []
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)

    def code(values: torch.Tensor, part: Part, mean: torch.Tensor, log2_scale: torch.Tensor) -> torch.Tensor:
        means[-1].append(mean)
        return values[part.sites]

    values, scale = torch.randn(shape), torch.zeros(1, 1, 1, 5)
    means.append([])
    z_hat = model.walk(shape, scale, partial(code, values))
    assert torch.equal(z_hat, values)
    first = means[0]
    parts = coarse_to_fine(levels)
    for i, part in enumerate(parts):
        changed = values.clone()
        changed[part.sites] += 1
        means.append([])
        model.walk(shape, scale, partial(code, changed))
        assert all(torch.equal(a, b) for a, b in zip(first[: i + 1], means[-1], strict=False))
        later = [not torch.equal(a, b) for a, b in zip(first[i + 1 :], means[-1][i + 1 :], strict=True)]
        assert part.stride <= 2 or size != (8, 13) or any(later)
        if part.kind is not None and first[i].numel():  # as the integer program does it
            steps = (256 * values).round().short()
            m = model.weight[part.kind].detach() / torch.tensor([1.0, 2, 3, 4])[:, None]
            mean = neighbour_mean(steps, m, part)
            assert torch.allclose(mean / 256, first[i], atol=0.01)


def test_quadtree_codes_every_value_once() -> None:
    seen = {(p, p ^ QUADTREE[step]) for step in range(4) for p in range(4)}
    assert len(seen) == 16
    # A site has one quarter of its channels coded in each step.
    assert all(len({p ^ QUADTREE[step] for step in range(4)}) == 4 for p in range(4))


def test_layout_helpers_invert() -> None:
    x = torch.randn(2, 8, 12, 5)
    assert torch.equal(parity_join(parity_split(x)), x)
    assert torch.equal(to_space(space_to_depth(x)), x)
    assert torch.equal(space_to_depth(x)[0, 0, 0].view(2, 2, 5), x[0, :2, :2])


def test_operand_grid_and_gradient() -> None:
    x = torch.tensor([-100.0, -7.9, 0.03, 0.04, 1.0, 100.0], requires_grad=True)
    y = operand(x)
    assert y.detach().tolist() == [-127 / 16, -126 / 16, 0, 1 / 16, 1, 127 / 16]
    assert ((y * OPERAND_ONE) == (y * OPERAND_ONE).round()).all()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_gate_is_the_product_of_operands() -> None:
    torch.manual_seed(4)
    x = (6 * torch.randn(3, 5, 64)).requires_grad_()
    u, v = x.chunk(2, -1)
    composed = operand(operand(u) * operand(v))
    fused = gate(x)
    assert torch.equal(fused, composed)
    weight = torch.randn_like(composed)
    gradients = [torch.autograd.grad((y * weight).sum(), x, retain_graph=True)[0] for y in (fused, composed)]
    assert torch.equal(*gradients)
    assert 0 < (gradients[0] == 0).sum() < x.numel()  # some are saturated


def test_both_types_of_a_product_agree() -> None:
    """float32 and bfloat16: inputs and weights are exact in both, only sums are rounded."""
    torch.manual_seed(5)
    layer, x = Linear(48, 40), operand(3 * torch.randn(7, 48))
    results = []
    for layer.cpu_type in (torch.float32, torch.bfloat16):
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), layer.weight.grad.clone(), layer.bias.grad.clone()))
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 0.01 * a.norm()


def test_a_block_compiles_into_one_graph() -> None:
    block, x = GatedFfn(16, 8, torch.full((16,), 2.0)), torch.randn(2, 4, 4, 16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), block(x))
    compiled(x).square().sum().backward()
    assert block.project.weight.grad is not None


def test_gaussian_bits_against_the_error_function() -> None:
    v = torch.arange(-6, 7).double()
    scale = torch.tensor(1.7).double()
    p = torch.special.ndtr((v + 0.5) / scale) - torch.special.ndtr((v - 0.5) / scale)
    assert torch.allclose(gaussian_bits(v, scale.log2()), -p.log2(), atol=1e-9)


def test_the_rate_has_the_derivative_of_its_mean_over_the_noise() -> None:
    x = torch.linspace(-2, 2, 41).double().requires_grad_(True)
    log2_scale = torch.tensor(-0.5).double().requires_grad_(True)
    points = (torch.arange(4000).double() + 0.5) / 4000 - 0.5
    gaussian_bits(x[:, None] + points, log2_scale).mean(1).sum().backward()
    assert x.grad is not None
    wanted, x.grad, log2_scale.grad = x.grad, None, None
    state = torch.get_rng_state()
    bits = noisy_bits(x, log2_scale)
    torch.set_rng_state(state)
    seen = x + torch.rand_like(x) - 0.5
    assert torch.equal(bits, gaussian_bits(seen, log2_scale))
    torch.set_rng_state(state)
    assert torch.equal(bits, noisy_bits(x.detach(), log2_scale))
    bits.sum().backward()
    assert torch.allclose(x.grad, wanted, atol=1e-5)
    assert log2_scale.grad is not None
    again = log2_scale.detach().requires_grad_(True)
    gaussian_bits(seen.detach(), again).sum().backward()
    assert torch.equal(log2_scale.grad, again.grad)


def test_straight_through() -> None:
    x = torch.randn(7, requires_grad=True)
    y, weight = straight_through(x, torch.round(x)), torch.randn(7)
    assert torch.allclose(y, torch.round(x), atol=1e-6)
    (y * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weight)


# The trellis.


@pytest.fixture
def wide() -> Network:
    """Untrained, but with scales wide enough for its values, as a trained one has."""
    torch.manual_seed(3)
    network = Network(TINY)
    with torch.no_grad():
        for head in network.context.cores[0].heads:
            head.bias.chunk(2)[1].add_(4)
        for factorised in network.factorised.values():
            factorised.log2_scale.fill_(2)
    return network


Step = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]


def made_up_step(n: int, h: int, w: int, g: int) -> Step:
    """Residuals of the four parities, log2 of their scales, what is coded: about three in four."""
    scales = [torch.empty(n, h, w, g).uniform_(-3, 4) for _ in range(4)]
    residuals = [torch.randn_like(s) * torch.exp2(s) for s in scales]
    return residuals, scales, [s > -1.25 for s in scales]


def test_a_step_is_what_a_stream_holds_and_costs_its_bits() -> None:
    residuals, scales, coded = made_up_step(2, 12, 16, 24)
    seen, bits = trellis.step(residuals, scales, coded, price=True)
    coder = trellis.gaussian_coder()
    for n in range(2):
        rows = np.concatenate([trellis.table_rows(s[n], c[n]) for s, c in zip(scales, coded, strict=True)])
        values = trellis.quantise(torch.cat([r[n].flatten() for r in residuals]), rows)
        stream = coder.encode([(values, rows)], plain=0)
        decoder = coder.decoder(stream)
        decoded = decoder.decode(rows, trellis=True)
        decoder.finish()
        mine = torch.cat([s[n].flatten() for s in seen])
        assert torch.equal(mine, torch.from_numpy(decoded).float() * (TRELLIS_STEP / 256))
        assert torch.equal(mine, trellis.to_quantiser_steps(decoded, mine))
        assert (values != 0).sum() > len(values) / 4
        spent = torch.cat([b[n].flatten() for b in bits])
        assert float(spent.sum()) == pytest.approx(8 * len(stream), rel=0.01)
        skipped = torch.from_numpy(rows == SKIP_ROW)
        assert torch.equal(skipped, ~torch.cat([c[n].flatten() for c in coded]))
        assert not mine[skipped].any()
        assert not spent[skipped].any()
        assert (spent[~skipped] > 0).all()


emulated_library, emulation = test_rans_device.emulated_library, test_rans_device.emulation


@test_rans_device.needs_gcc
@pytest.mark.usefixtures("emulation")
def test_the_search_on_a_device_is_that_of_each_image() -> None:
    """Of more images than a stream has groups, too."""
    on_device = trellis.DeviceSearch(trellis.gaussian_coder().tables, torch.device("cpu"))
    for n in (3, 70):
        scale = torch.empty(n, 90).uniform_(-3, 4)
        residual = torch.randn_like(scale) * torch.exp2(scale)
        rows = trellis.nearest_rows(scale).where(scale > -1.25, SKIP_ROW).to(torch.uint8)
        values = on_device(residual, rows)
        assert values.dtype == torch.int16
        assert torch.equal(values, trellis.search(residual, rows))
        assert torch.equal(values[-1], torch.from_numpy(trellis.quantise(residual[-1], rows[-1].numpy())))


def test_the_trellis_saves_a_tenth_of_a_bit_at_the_same_error() -> None:
    scale = torch.empty(1, 16, 16, 96).uniform_(2, 4)
    residual = torch.randn_like(scale) * torch.exp2(scale)
    (seen,), (bits,) = trellis.step([residual], [scale], [scale > 0], price=True)
    error = float((seen - residual).square().mean())
    rounded = math.sqrt(12 * error)  # the step of a plain quantiser
    plain = torch.round(residual / rounded)
    assert float((plain * rounded - residual).square().mean()) == pytest.approx(error, rel=0.02)
    saved = gaussian_bits(plain, scale - math.log2(rounded)) - bits
    assert 0.1 < float(saved.mean()) < 0.25


def test_a_step_without_bits_and_gradients() -> None:
    residuals, scales, coded = made_up_step(2, 4, 4, 6)
    seen, _ = trellis.step(residuals, scales, coded, price=True)
    leaves = [r.requires_grad_(True) for r in residuals]
    again, bits = trellis.step(leaves, [s.requires_grad_(True) for s in scales], coded, price=False)
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert not any(b.any() for b in bits)
    assert not any(t.requires_grad for t in (*again, *bits))


def test_a_graph_is_compiled_around_the_trellis() -> None:
    def around(residual: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        seen, bits = trellis.step([2 * residual], [scale + 1], [scale > -1], price=True)
        return seen[0].square() + bits[0]

    scale = torch.empty(1, 4, 4, 8).uniform_(-3, 4)
    residual = torch.randn_like(scale) * torch.exp2(scale)
    compiled = torch.compile(around, backend="eager")
    assert torch.equal(compiled(residual, scale), around(residual, scale))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    step = made_up_step(3, 4, 4, 6)
    together = trellis.step(*step, price=True)
    for n in range(3):
        alone = trellis.step(*([t[n : n + 1] for t in part] for part in step), price=True)
        for mine, theirs in zip(alone, together, strict=True):
            assert all(torch.equal(a[0], b[n]) for a, b in zip(mine, theirs, strict=True))


def test_large_residuals_saturate() -> None:
    rows = np.full(6, 127, np.uint8)
    values = trellis.quantise(torch.tensor([1e30, -1e30, math.inf, -math.inf, 9000.0, 3.0]), rows)
    steps = trellis.to_quantiser_steps(values, torch.empty(2, 3))
    assert steps.shape == (2, 3)
    limit = LIMIT_RESIDUAL / 256
    assert torch.allclose(steps.flatten()[:5], limit * torch.tensor([1.0, -1, 1, -1, 1]), atol=3)
    assert float(steps[1, 2]) == pytest.approx(3, abs=3)


@pytest.mark.parametrize("fitted", [False, True])
def test_without_noise_bits_are_those_of_streams(wide: Network, monkeypatch: pytest.MonkeyPatch, fitted: bool) -> None:
    """Of a network in training as well, and of tables that are not Gaussian; with noise the picture is the same one."""
    image, quality, streams, plain = photo(2, 64, 128), torch.tensor([30.0, 70.0]), [], []
    quantise, bits_of = trellis.quantise, trellis.bits_of
    gaussian = trellis.gaussian_coder()
    freq = gaussian.tables.freq // 2
    freq[:, 255] += (4096 - freq.sum(1)).astype(np.uint16)
    other_coder = Coder(Tables(freq, gaussian.tables.shift))  # dear symbols

    def kept(residuals: torch.Tensor, rows: np.ndarray, coder: Coder | None) -> np.ndarray:
        assert coder is (other_coder if fitted else None)
        values = quantise(residuals, rows, coder)
        streams.append(8 * len((coder or gaussian).encode([(values, rows)], plain=0)))
        return values

    def priced(values: np.ndarray, rows: np.ndarray, coder: Coder | None, groups: int | None) -> np.ndarray:
        if groups is None:
            plain.append(8 * len(other_coder.encode([(values, rows)], plain=1)))
        return bits_of(values, rows, coder, groups)

    monkeypatch.setattr(trellis, "quantise", kept)
    monkeypatch.setattr(trellis, "bits_of", priced)
    monkeypatch.setattr(wide, "coder", other_coder if fitted else None)
    with torch.no_grad():
        out = wide.eval()(image, quality)
        assert len(plain) == 3 * fitted
        if fitted:
            assert -8 < sum(plain) - float(out["bits_z"].sum()) < 3 * 60
        spent = torch.tensor(streams).view(4, 2).T
        assert torch.allclose(out["bits_y"], spent.float(), rtol=0.01, atol=60)  # a stream begins with some bytes
        again = wide.train()(image, quality, noisy=False)
        assert all(torch.equal(out[key], again[key]) for key in out)
        noisy, other = wide(image, quality), wide(image, quality)
    assert torch.equal(noisy["image"], out["image"])
    assert torch.equal(noisy["error"], out["error"])
    for key in ("bits_y", "bits_z"):
        assert not torch.equal(noisy[key], other[key])
    if not fitted:  # noisy bits are always Gaussian ones
        assert torch.allclose(noisy["bits"], out["bits"], rtol=0.3)


def test_gradients_go_straight_through_the_trellis(wide: Network) -> None:
    y, t, quality = torch.randn(1, 4, 4, 64), torch.zeros(1, 1, 1, 1), torch.tensor([50.0])
    z = {"local": torch.zeros(1, 4, 4, 4), "regional": torch.zeros(1, 1, 1, 16), "global": torch.zeros(1, 1, 4, 16)}
    features = wide.context.prepare(wide.synthesise_hyper(z, t))
    for noisy in (False, True):
        leaf = y.clone().requires_grad_(True)
        source = wide.rates(noisy)
        y_hat, _ = code_latent(wide, source, leaf, features, (4, 4), quality)
        bits = source.totals(())["bits_y"]
        assert not torch.allclose(y_hat, y, atol=1e-3)
        weight = torch.randn_like(y)
        (slope,) = torch.autograd.grad((y_hat * weight).sum(), leaf, retain_graph=True)
        assert torch.allclose(slope, weight, atol=1e-4)
        assert bits.requires_grad is noisy


def test_configuration_round_trip_and_refusals() -> None:
    config = preset("dca-s")
    assert ModelConfig.from_dict(config.to_dict()) == config
    for bad in (
        {"latent": 100},
        {"contexts": ("nearby",)},
        {"heads": 7},
        {"width": 0},
        {"transforms": "dct"},
        {"window": 3},
    ):
        with pytest.raises(ConfigError):
            replace(config, **bad)
    with pytest.raises(ConfigError):
        ModelConfig.from_dict({"name": "x", "depth": 3})
    with pytest.raises(ConfigError):
        preset("dca-xxl")


def test_cost_stays_in_budget() -> None:
    cost = macs_per_pixel(preset("dca-s"))
    assert 10_000 < cost["decode"] < 25_000
    # ELIC's transforms: 255 kMAC per pixel each, as published.
    assert abs(macs_per_pixel(preset("dca-paper"))["analysis"] / 255_000 - 1) < 0.01
