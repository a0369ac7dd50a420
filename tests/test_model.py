"""The float network: any size, any contexts, the quadtree's order, what depends on what."""

from dataclasses import replace

import pytest
import torch

from dca_fast.config import PRESETS, QUADTREE, ModelConfig, preset
from dca_fast.errors import ConfigError
from dca_fast.model.context import parity_join, parity_split
from dca_fast.model.cost import macs_per_pixel
from dca_fast.model.layers import OPERAND_STEPS, GatedFfn, Linear, gate, operand, space_to_depth
from dca_fast.model.layers import depth_to_space as to_space
from dca_fast.model.network import Network, gaussian_bits, rate, to_nearest, with_noise

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
            parts = [list(part.chunk(4, -1)) for part in parity_split(y)]
            for late in range(step, 4):
                for p in range(4):
                    parts[p][p ^ QUADTREE[late]] = parts[p][p ^ QUADTREE[late]] + 1
            changed = parity_join([torch.cat(groups, -1) for groups in parts])
            seen.append([])
            network.code_latent(changed, features, torch.tensor([50.0]), t, to_nearest)
    plain = seen.pop()
    for step, run in enumerate(seen):
        assert all(torch.equal(run[s], plain[s]) for s in range(step + 1))
        assert step == 3 or not torch.equal(run[step + 1], plain[step + 1])


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
    assert ((y * OPERAND_STEPS) == (y * OPERAND_STEPS).round()).all()
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
    seen = with_noise(x, torch.ones(41, dtype=torch.bool))[1]
    bits = rate(x, seen, log2_scale, with_noise)
    assert torch.equal(bits, gaussian_bits(seen, log2_scale))
    bits.sum().backward()
    assert torch.allclose(x.grad, wanted, atol=1e-5)
    assert log2_scale.grad is not None
    again = log2_scale.detach().requires_grad_(True)
    gaussian_bits(seen.detach(), again).sum().backward()
    assert torch.equal(log2_scale.grad, again.grad)


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
