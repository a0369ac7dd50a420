"""The optimiser: Adam where it does not precondition, better than Adam where curvature is not along the axes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from dca_fast.train.soap import Soap, cholesky_qr, eigenvectors
from dca_fast.train.whiten import inverse_root


def test_vectors_take_plain_adam() -> None:
    torch.manual_seed(0)
    start = torch.randn(40)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    soap = Soap([{"params": [mine]}], lr=1e-2, betas=(0.9, 0.99, 0.9))
    adam = torch.optim.Adam([theirs], lr=1e-2, betas=(0.9, 0.99))
    for _ in range(25):
        gradient = torch.randn(40)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        soap.step()
        adam.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


def _descend(optimiser: torch.optim.Optimizer, w: Tensor, left: Tensor, right: Tensor, steps: int) -> float:
    """Square of left @ w @ right after so many steps."""
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (left @ w @ right).square().mean()
        loss.backward()
        optimiser.step()
    return float((left @ w.detach() @ right).square().mean())


def test_rotated_curvature_is_no_obstacle() -> None:
    torch.manual_seed(1)

    def curved(size: int) -> Tensor:
        basis = torch.linalg.qr(torch.randn(size, size))[0]
        return basis @ torch.diag(torch.logspace(0, -2, size)) @ basis.T

    left, right, start = curved(24), curved(16), torch.randn(24, 16)
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    soap = _descend(Soap([{"params": [a]}], lr=3e-2), a, left, right, 400)
    adam = _descend(torch.optim.Adam([b], lr=3e-2), b, left, right, 400)
    assert soap < 0.25 * adam


def test_inputs_that_are_mostly_zero_take_no_leaps() -> None:
    generator, rate = torch.Generator().manual_seed(4), 1e-2
    w = torch.nn.Parameter(torch.zeros(24, 16))
    soap = Soap([{"params": [w]}], lr=rate)
    for _ in range(60):
        x = torch.randn(64, 16, generator=generator) * torch.logspace(0, -3, 16)
        x[:, 8:] *= torch.rand(64, 8, generator=generator) < 0.003
        before = w.detach().clone()
        w.grad = torch.randn(24, 64, generator=generator) @ x / 64
        soap.step()
        assert (w.detach() - before).abs().max() < 3 * rate


def test_only_short_sides_are_preconditioned_and_zero_gradients_are_harmless() -> None:
    wide, flat = torch.nn.Parameter(torch.ones(8, 20)), torch.nn.Parameter(torch.ones(30, 30))
    soap = Soap([{"params": [wide, flat]}], every=2, side=10)
    for _ in range(5):
        wide.grad, flat.grad = torch.zeros(8, 20), torch.zeros(30, 30)
        soap.step()
    assert "left" in soap.state[wide]
    assert "right" not in soap.state[wide]
    assert {"left", "right"} <= set(soap.state[flat])
    assert wide.equal(torch.ones(8, 20))
    assert flat.equal(torch.ones(30, 30))


def test_a_resumed_optimiser_goes_on_as_if_nothing_happened() -> None:
    torch.manual_seed(2)
    first = [torch.nn.Parameter(torch.randn(6, 5)), torch.nn.Parameter(torch.randn(6, 5))]
    gradients = torch.randn(12, 2, 6, 5)

    def run(optimiser: Soap, params: list[torch.nn.Parameter], steps: range) -> None:
        for i in steps:
            for p, g in zip(params, gradients[i], strict=True):
                p.grad = g.clone()
            optimiser.step()

    soap = Soap([{"params": first}], every=3)
    run(soap, first, range(7))
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    again = Soap([{"params": second}], every=3)
    again.load_state_dict(deepcopy(soap.state_dict()))
    run(soap, first, range(7, 12))
    run(again, second, range(7, 12))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_a_whitened_parameter_follows_its_stand_in() -> None:
    torch.manual_seed(3)
    x, start = torch.randn(50, 6) * torch.logspace(0, -2, 6), torch.randn(4, 6)
    root = inverse_root(x)
    white = x @ root
    assert torch.allclose(white.T @ white / 50, torch.eye(6), atol=1e-3)
    w, v = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(4, 6))
    optimisers = [Soap([{"params": [w]}], lr=1e-2), Soap([{"params": [v]}], lr=1e-2)]
    optimisers[0].whiten(w, root)
    for _ in range(9):  # before there is an eigenbasis: of so few gradients it is arbitrary
        for optimiser, weight in zip(optimisers, (w, start + v @ root), strict=True):
            optimiser.zero_grad()
            (x @ weight.T).square().mean().backward()
            optimiser.step()
    assert not torch.allclose(w, start, rtol=0.01)
    assert torch.allclose(w, start + v @ root, rtol=1e-3)


def test_the_basis_of_a_device_is_that_of_the_host() -> None:
    """But for signs, which the optimiser does not see; of moments as they come, nearly singular, and of zero."""
    generator = torch.Generator().manual_seed(5)
    gradients = torch.randn(7, 96, 200, generator=generator) * torch.logspace(0, -4, 96)[:, None]
    moment = gradients @ gradients.mT
    before = eigenvectors(moment + 0.1 * moment.mean(0))
    mine, theirs = cholesky_qr(moment, before), torch.linalg.qr(moment.double() @ before.double())[0]
    unit = torch.eye(96)
    assert (mine.mT @ mine - unit).abs().max() < 1e-5
    shares = (mine.double() * theirs).sum(1).abs()
    assert shares.min() > 1 - 1e-4
    assert cholesky_qr(torch.zeros_like(moment), before).equal(before)
    assert cholesky_qr(torch.full_like(moment, torch.nan), before).equal(before)


def test_steps_with_the_basis_of_a_device_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(6)
    start = torch.randn(3, 12, 20, generator=generator)
    gradients = torch.randn(40, 3, 12, 20, generator=generator) * torch.logspace(0, -2, 20)
    ends = []
    for basis in (Soap._basis, lambda m, b, first: eigenvectors(m) if first else cholesky_qr(m, b)):
        monkeypatch.setattr(Soap, "_basis", staticmethod(basis))
        params = [torch.nn.Parameter(x.clone()) for x in start]
        soap = Soap([{"params": params}], lr=1e-2, every=5)
        for i in range(len(gradients)):
            for p, g in zip(params, gradients[i], strict=True):
                p.grad = g
            soap.step()
        ends.append(torch.stack(params).detach())
    moved = (ends[0] - start).abs().max()
    assert (ends[0] - ends[1]).abs().max() < 1e-3 * moved
