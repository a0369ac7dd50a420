"""Fused kernels of the trainer: what the float model's blocks do, forward and backward, and what they compile to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dca_fast.config import ModelConfig
from dca_fast.model import layers
from dca_fast.model.fused import fuse
from dca_fast.model.layers import DepthBlock, GatedFfn, channel_multipliers
from dca_fast.model.network import Network
from dca_fast.model.rates import noisy_bits
from tests.kernel_tools import ARCHITECTURES, DEVICE, SHARED_LIMIT, compiled, kernels

training = kernels("training")

TINY = ModelConfig(
    "tiny", width=16, latent=64, latent_hidden=32, context_width=32, heads=2, local=4, regional=16, tokens=4
)
Make = Callable[[int, int, Tensor | None], nn.Module]


@torch.no_grad()
def on_grid(module: nn.Module) -> None:
    """Weights and biases with which every sum is exact, so that both round alike: multipliers are powers of two."""
    for layer in module.modules():
        if isinstance(layer, layers.Int8Layer):
            reach = max(1, layer.weight[0].numel() // 3)
            integers = torch.randint(-127, 128, layer.weight.shape) * (torch.rand(layer.weight.shape) < 3 / reach)
            integers.flatten(1)[:, 0] = 127
            multiplier = 2.0 ** torch.randint(-8, -5, (len(integers),)).view(-1, *[1] * (integers.dim() - 1))
            layer.weight.copy_(integers * multiplier)
            layer.bias.copy_(torch.randint(-20, 21, layer.bias.shape) / 64)
            if getattr(layer, "slope", None) is not None:
                layer.slope.copy_(torch.randint(-20, 21, layer.slope.shape) / 64)


def ready(block: nn.Module, precise: torch.dtype) -> None:
    """What `fuse` does for a network."""
    int8_layers = [layer for layer in block.modules() if isinstance(layer, layers.Int8Layer)]
    weights = training.QuantisedWeights([layer.weight.detach() for layer in int8_layers], precise)
    weights.renew()
    for layer, quantised in zip(int8_layers, weights.layers, strict=True):
        layer.ready = quantised
    block.fused = True  # type: ignore[assignment]


@pytest.mark.parametrize("make", [DepthBlock, GatedFfn])
@pytest.mark.parametrize("shape", [(2, 5, 6, 20, 24), (1, 4, 3, 33, 17), (3, 1, 1, 16, 40)])
@pytest.mark.parametrize(("trunk", "precise"), [(True, torch.float32), (False, torch.float32), (True, torch.bfloat16)])
def test_blocks_are_those_of_the_model(make: Make, shape: tuple[int, ...], trunk: bool, precise: torch.dtype) -> None:
    """Bit for bit forward; values on the edges of rounding, saturation and the leaky slope are among them."""
    n, height, width, c, hidden = shape
    block = make(c, hidden, 2.0 ** torch.randint(-2, 3, (c,)) if trunk else None)
    on_grid(block)
    for layer in block.modules():
        if isinstance(layer, layers.Linear):
            layer.cpu_type = torch.float32
    x = torch.randint(-160, 161, (n, height, width, c)) / 16 * (torch.rand(n, height, width, c) < 0.7)
    t, g = torch.randint(-16, 17, (n, 1, 1, 1)) / 16, torch.randn(n, height, width, c)

    def both_ways(device: str) -> tuple[Tensor, ...]:
        leaf = x.to(device).requires_grad_(True)
        y = block(leaf, t.to(device))
        return y.detach(), *torch.autograd.grad(y, [leaf, *block.parameters()], g.to(device))

    want, *expected = both_ways("cpu")
    block.to(DEVICE)
    ready(block, precise)
    have, *gradients = both_ways(DEVICE)
    assert torch.equal(have.cpu(), want)
    limit = 1e-5 if precise == torch.float32 else 1e-2
    for name, a, b in zip(["x", *dict(block.named_parameters())], gradients, expected, strict=True):
        assert a.shape == b.shape, name
        assert (a.cpu() - b).norm() <= limit * b.norm() + 1e-6, name
        assert b.norm() > 0, name


def test_weights_are_quantised_in_one_launch_as_one_by_one() -> None:
    weights = [torch.randn(5, 7), torch.randn(3, 3, 3), torch.zeros(2, 40), torch.randn(9, 130) * 1e-3]
    weights = [w.to(DEVICE) for w in weights]
    quantised = training.QuantisedWeights(weights, torch.bfloat16)
    for _ in range(2):
        quantised.renew()
        for w, q in zip(weights, quantised.layers, strict=True):
            multiplier = channel_multipliers(w)
            integers = (w / multiplier).round().flatten(1)
            assert q.multiplier.equal(multiplier.flatten())
            assert q.integers.float().equal(integers)
            assert q.precise.float().equal(integers)
        for w in weights:  # in place: what a training step does
            w.mul_(1.5).add_(0.25)


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 0, 3, 4)])
def test_rates_are_those_of_the_model(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Near zero and far out, narrow and wide; the scale of a channel is one number."""
    noise = torch.rand(shape)
    monkeypatch.setattr(torch, "rand_like", lambda x: noise.to(x.device))
    x, scale = torch.randn(shape) * torch.logspace(-2, 2, shape[-1]), torch.linspace(-4, 5, shape[-1]).view(1, 1, 1, -1)
    g = torch.randn(shape)
    results = []
    for fused, device in ((False, "cpu"), (True, DEVICE)):
        leaves = [value.to(device).requires_grad_(True) for value in (x, scale)]
        bits = noisy_bits(*leaves, fused)
        results.append([bits.detach().cpu(), *(y.cpu() for y in torch.autograd.grad(bits, leaves, g.to(device)))])
    for a, b in zip(*results, strict=True):
        # A probability is a difference of two that are up to 2: its last digits are theirs.
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-3)


def test_a_fused_network_is_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of all of it, within what single values cost that round to the other side."""
    torch.manual_seed(0)
    plain, fused = Network(TINY), Network(TINY)
    with torch.no_grad():
        for p in plain.parameters():  # small projections hide what blocks do
            p.mul_(1.0 + 0.2 * torch.randn_like(p))
    fused.load_state_dict(plain.state_dict())
    fused.to(DEVICE)
    for layer in (*plain.modules(), *fused.modules()):
        if isinstance(layer, layers.Linear):
            layer.cpu_type = torch.float32
    fuse(fused, torch.float32)
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))
    picture, qualities = (torch.randn(2, 64, 64, 3).cumsum(1) * 4).clamp(-128, 127), torch.tensor([30.0, 80.0])
    gradients = []
    for network, device in ((plain, "cpu"), (fused, DEVICE)):
        image, quality = picture.to(device), qualities.to(device)
        out = network(image, quality)
        loss = out["bits"].sum() / 4096 + (out["image"] - image).square().mean()
        gradients.append((float(loss.detach()), torch.autograd.grad(loss, list(network.parameters()))))
    (want, expected), (have, found) = gradients
    # Other layers multiply in bfloat16 on a GPU.
    assert have == pytest.approx(want, rel=1e-3 if DEVICE == "cpu" else 2e-2)
    whole = torch.cat([g.flatten() for g in expected]), torch.cat([g.flatten().cpu() for g in found])
    assert (whole[0] - whole[1]).norm() < (0.05 if DEVICE == "cpu" else 0.3) * whole[0].norm()
    with torch.no_grad():  # weights that changed are quantised anew
        for p in fused.parameters():
            p.mul_(0.9)
        assert float((fused(image, quality)["image"] - out["image"]).abs().max()) > 1


def train_blocks() -> None:
    """Every kernel at the sizes of dca-s, for the compiler."""
    for c, hidden, side in ((128, 128, 32), (384, 192, 16)):
        for make in (DepthBlock, GatedFfn):
            block = make(c, hidden, torch.ones(c))
            ready(block, torch.bfloat16)
            x = torch.zeros(64, side, side, c, requires_grad=True)  # enough sites for the largest tiles
            block(x, torch.zeros(64, 1, 1, 1)).sum().backward()
    y = torch.zeros(2, 8, 8, 96, requires_grad=True)
    noisy_bits(y, torch.zeros_like(y), True).sum().backward()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_compiled(architecture: int) -> None:
    records = compiled("tests.test_kernels_training", "train_blocks", architecture)
    names = {record["kernel"] for record in records}
    assert len(names) == 11
    for record in records:
        assert record["local"] == 0, record
        assert record["shared"] <= SHARED_LIMIT[architecture], record
        assert record["tensor_core"] is ("product" in record["kernel"]), record
