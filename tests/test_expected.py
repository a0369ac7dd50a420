"""Rates as files have them in training: what is counted, and gradients that are right on average."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dca_fast.config import TRELLIS_PRICE
from dca_fast.model import trellis
from dca_fast.model.expected import BINS_PER_UNIT, REACH, VALUE_UNIT, Expected, curves, rounded_bits, value_bits
from dca_fast.testing import landscape
from dca_fast.train.export import load_float

CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "dca-s.safetensors"


def coded(row: int, residuals: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of residuals that are quantised together, in quantiser steps, and their bits by the tables."""
    rows = np.full(len(residuals), row, np.uint8)
    sizes = torch.from_numpy(residuals.astype(np.float32))
    values = trellis.quantise(sizes, rows)
    return trellis.to_quantiser_steps(values, sizes), torch.from_numpy(trellis.bits_of(values, rows, None, 1))


@pytest.mark.parametrize("row", [20, 40, 60])
def test_values_take_what_tables_say(row: int) -> None:
    scale = 0.1 * 2 ** (row / 12)
    residuals = np.random.default_rng(row).normal(0, scale, 50_000)
    values, bits = coded(row, residuals)
    mine = value_bits(values, torch.full_like(values, math.log2(scale))).double()
    some = values != 0  # a zero is of either set here, and no longer known of which
    assert float(mine[some].mean()) == pytest.approx(float(bits[some].mean()), rel=0.01)
    assert float((mine - bits)[some].abs().mean()) < 0.1
    zero = float(bits[~some].min()), float(bits[~some].max())
    assert zero[0] - 0.01 < float(mine[~some].mean()) < zero[1] + 0.01


@pytest.mark.parametrize("row", [12, 30, 55])
def test_slopes_add_up_to_what_residuals_cost(row: int) -> None:
    """Between two sizes: by the slopes, and by quantising many residuals of these sizes among Gaussian ones."""
    scale, generator = 0.1 * 2 ** (row / 12), np.random.default_rng(1)
    ends = 0.3, 1.2

    def means(size: float) -> tuple[float, float]:
        residuals = generator.normal(0, scale, 400_000)
        some = torch.from_numpy(generator.random(len(residuals)) < 0.05)
        residuals[some.numpy()] = size
        values, _ = coded(row, residuals)
        bits = value_bits(values, torch.full_like(values, math.log2(scale)))[some]
        spread = values[some].var(correction=0)
        return float(bits.mean() + TRELLIS_PRICE * spread), float(values[some].mean())

    (low_cost, low), (high_cost, high) = map(means, ends)
    first, last = (round(end * BINS_PER_UNIT) for end in ends)
    cost, value = (float(curve[row, first:last].sum()) / BINS_PER_UNIT for curve in curves()[1:])
    assert cost == pytest.approx(high_cost - low_cost, abs=0.35)
    assert value == pytest.approx(high - low, abs=0.12)  # curves are smoothed, and of chains of other rows too


def test_gradients_are_those_of_the_slopes_and_silence_is_heard() -> None:
    expected = Expected(torch.device("cpu"))
    residual = torch.tensor([0.5, -0.5, 0.5, REACH + 4.0], requires_grad=True)
    scale = torch.full((4,), math.log2(0.4), requires_grad=True)
    value = torch.tensor([VALUE_UNIT, -VALUE_UNIT, 0.0, 0.0])
    is_coded = torch.tensor([True, True, False, True])
    bits, slopes = expected(residual, value, scale, is_coded)
    assert bits[2] == 0
    assert slopes[2] == 0
    assert slopes[3] == 1
    bits.sum().backward()
    cost, slope = (curve[24, int(0.5 * BINS_PER_UNIT)] for curve in curves()[1:])
    assert residual.grad is not None
    assert scale.grad is not None
    assert residual.grad[:3].tolist() == pytest.approx([cost, -cost, 0])
    assert slopes[:2].tolist() == pytest.approx([slope, slope])
    assert scale.grad[2] != 0  # what is not coded is not counted, but its scale may grow


def test_rounded_values_hear_of_the_next_ones_near_the_middle_only() -> None:
    x = torch.tensor([0.1, 0.4, -0.6, 2.0], requires_grad=True)
    bits = rounded_bits(x, x.detach().round(), torch.zeros(4), torch.ones(4, dtype=torch.bool))
    bits.sum().backward()
    assert x.grad is not None
    assert x.grad[[0, 3]].tolist() == [0, 0]
    assert x.grad[1] > 0 > x.grad[2]


@pytest.mark.parametrize(("quality", "within", "least"), [(10.0, 0.2, 5.0), (60.0, 0.1, 1.05)])
def test_training_counts_what_files_hold(quality: float, within: float, least: float) -> None:
    """Uniform noise counts several times as much at low rates."""
    network = load_float(CHECKPOINT).requires_grad_(False)
    image, q = torch.from_numpy(landscape(128, 192))[None].float() - 128, torch.tensor([quality])
    torch.manual_seed(0)
    real, noisy = (float(network(image, q, noisy=noise)["bits"]) for noise in (False, True))
    network.expected = Expected(torch.device("cpu"))
    assert float(network(image, q, noisy=True)["bits"]) == pytest.approx(real, rel=within)
    assert noisy > least * real
