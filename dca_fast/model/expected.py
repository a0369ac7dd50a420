"""Rates as files have them, with a gradient that is right on average.

A search of a trellis makes a value of a residual; which one depends on the state it is in, so that to a gradient the
value is a random one whose mean, mean cost and spread are smooth functions of the residual. They are measured here, for
each row of the scale table, by quantising many Gaussian residuals; their derivatives take the place of those of values
and bits, which are zero or infinite. Uniform noise instead, as is usual, counts several times the bits of a file at low
rates and lets f_a see coefficients that no file holds.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.config import LATENT_ONE, ROWS_PER_OCTAVE, SCALE_MIN, TRELLIS_PRICE, TRELLIS_STEP
from dca_fast.entropy.tables import ROWS
from dca_fast.entropy.trellis import follow
from dca_fast.model import trellis
from dca_fast.model.rates import gaussian_bits, noisy_bits

VALUE_UNIT = TRELLIS_STEP / LATENT_ONE  # what a value of 1 stands for, in quantiser steps
LEAST = 2.0**-24  # of a cell's probability: beyond, an escape is cheaper
# Bins of the sizes of residuals, and up to which size these are measured, in quantiser steps.
BINS_PER_UNIT, REACH = 32, 6
BINS = BINS_PER_UNIT * REACH
SMOOTH = 4  # bins, deviation of the window
MEASURED_ROWS = 65  # larger scales, from 4 quantiser steps on, hardly change the search
BUSY, QUIET_ROWS = 0.15, 24  # most symbols are of lower rows, as in files
SAMPLES, CHUNK = 1 << 25, 1 << 20
PROBES = 1 / 16  # share of samples whose size is as likely as any other


def value_bits(values: Tensor, log2_scale: Tensor, zeros: Tensor | float = 0.5) -> Tensor:
    """Bits of values of a trellis under zero-mean Gaussians, by the cells of the two sets.

    Args:
        values: in quantiser steps, multiples of `VALUE_UNIT`.
        log2_scale: of the Gaussians, alike.
        zeros: how many of the zeros are of set 1; broadcasts.
    """
    inverse = torch.exp2(-log2_scale) * math.sqrt(0.5)
    size = (values / VALUE_UNIT).abs()
    lower = torch.where(size < 1.5, VALUE_UNIT / 2, (size - 1) * VALUE_UNIT)
    tails = torch.erfc(lower * inverse) - torch.erfc((size + 1) * VALUE_UNIT * inverse)
    some = -torch.log2((0.5 * tails).clamp_min(LEAST))
    wide, narrow = (-torch.log2(torch.erf(half * inverse).clamp_min(LEAST)) for half in (VALUE_UNIT, VALUE_UNIT / 2))
    return torch.where(size < 0.5, wide + zeros * (narrow - wide), some)


class Curves(NamedTuple):
    """By row of the scale table: how many zeros are of set 1, `[ROWS]`; and by a residual's size, `[ROWS, BINS]`, the
    derivatives of what its value costs on average, bits and the price of its spread, and of the value's mean."""

    zeros: npt.NDArray[np.float32]
    cost: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]


@cache
def curves() -> Curves:
    """Measured with Gaussian tables; takes some ten seconds."""
    generator, scales = np.random.default_rng(0), SCALE_MIN * np.exp2(np.arange(ROWS) / ROWS_PER_OCTAVE)
    width = BINS + BINS_PER_UNIT
    sums = np.zeros((4, MEASURED_ROWS * width))  # of samples, values, their squares, nonzero values' bits
    zeros = np.zeros((2, MEASURED_ROWS))  # of each set
    for _ in range(SAMPLES // CHUNK):
        busy, quiet = (generator.integers(end, size=CHUNK) for end in (MEASURED_ROWS, QUIET_ROWS))
        rows = np.where(generator.random(CHUNK) < BUSY, busy, quiet)
        residuals = generator.normal(0, scales[rows])
        probed = generator.random(CHUNK) < PROBES
        residuals[probed] = generator.uniform(0, width / BINS_PER_UNIT, int(probed.sum()))
        tensor = torch.from_numpy(residuals.astype(np.float32))
        integers = trellis.quantise(tensor, rows.astype(np.uint8))
        values = trellis.to_quantiser_steps(integers, tensor)
        bits = value_bits(values, torch.from_numpy(np.log2(scales[rows])).float(), 0.0).numpy()
        _, sets = follow(integers, rows.astype(np.uint8))
        for which in (0, 1):
            zeros[which] += np.bincount(rows[(integers == 0) & (sets == which)], minlength=MEASURED_ROWS)
        size, value = np.abs(residuals), values.numpy() * np.sign(residuals)
        near = size < width / BINS_PER_UNIT
        bins = (rows * width + (size * BINS_PER_UNIT).astype(np.int64))[near]
        for total, entries in zip(sums, (np.ones(CHUNK), value, value**2, bits), strict=True):
            total += np.bincount(bins, entries[near], minlength=len(total))
    share = np.full(ROWS, 0.5)
    share[:MEASURED_ROWS] = zeros[1] / np.maximum(zeros.sum(0), 1)
    share[MEASURED_ROWS:] = share[MEASURED_ROWS - 1]
    count, first, second, bits = sums.reshape(4, MEASURED_ROWS, width)
    first, second, bits = (total / np.maximum(count, 1) for total in (first, second, bits))
    centres = (np.arange(BINS) + 0.5) / BINS_PER_UNIT
    cost, value = centres / (scales[:, None] ** 2 * math.log(2)), np.ones((ROWS, BINS))
    cost[:MEASURED_ROWS] = _slope(bits + TRELLIS_PRICE * (second - first**2), 1)
    value[:MEASURED_ROWS] = _slope(first, -1)
    return Curves(*(curve.astype(np.float32) for curve in (share, cost, value)))


def _slope(curve: npt.NDArray[np.float64], sign: int) -> npt.NDArray[np.float64]:
    """Smoothed derivatives by a size, of curves that are even (1) or odd (-1) over its sign: `[rows, BINS]`."""
    window = np.exp(-0.5 * np.square(np.arange(-3 * SMOOTH, 3 * SMOOTH + 1) / SMOOTH))
    both_signs = np.concatenate((sign * curve[:, ::-1], curve), 1)
    smooth = np.stack([np.convolve(row, window / window.sum(), "same") for row in both_signs])
    middle = curve.shape[1]
    return np.gradient(smooth, axis=1)[:, middle : middle + BINS] * BINS_PER_UNIT


class Expected:
    """Counts what values of a trellis take, with gradients that are right on average; on one device."""

    def __init__(self, device: torch.device) -> None:
        self._zeros, self._cost, self._value = (torch.from_numpy(c).to(device).flatten() for c in curves())

    def __call__(self, residual: Tensor, value: Tensor, log2_scale: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
        """Bits, and the slopes of values: their derivatives by residuals.

        Args:
            residual, value: before and after the search, in quantiser steps.
            log2_scale: of the Gaussians, in quantiser steps.
            coded: where a file holds a symbol. Elsewhere nothing is counted, but gradients let scales grow.
        """
        with torch.no_grad():
            size, rows = residual.abs(), trellis.nearest_rows(log2_scale).long()
            far, index = size >= REACH, rows * BINS + (size * BINS_PER_UNIT).long().clamp_max(BINS - 1)
            cost = torch.where(far, size * torch.exp2(-2 * log2_scale) / math.log(2), self._cost[index])
            cost *= residual.sign()
            slope = torch.where(far, 1.0, self._value[index]).where(coded, 0.0)
        bits = value_bits(value, log2_scale, self._zeros[rows]) + cost * (residual - residual.detach())
        return torch.where(coded, bits, uncoded_bits(residual, log2_scale)), slope


def uncoded_bits(x: Tensor, log2_scale: Tensor) -> Tensor:
    """Zero bits of symbols that no file holds, with the gradient by their scales that noisy bits have."""
    bits = noisy_bits(x.detach(), log2_scale)
    return bits - bits.detach()


def rounded_bits(x: Tensor, rounded: Tensor, log2_scale: Tensor, coded: Tensor) -> Tensor:
    """The same of rounded values, those of hyper latents; their derivative by x is that of the mean over x +- 1/4."""
    with torch.no_grad():
        low = x.floor()
        near = (x - low - 0.5).abs() < 0.25
        slope = 2 * near * (gaussian_bits(low + 1, log2_scale) - gaussian_bits(low, log2_scale))
    bits = gaussian_bits(rounded, log2_scale) + slope * (x - x.detach())
    return torch.where(coded, bits, uncoded_bits(x, log2_scale))
