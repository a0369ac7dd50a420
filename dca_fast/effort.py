"""Levels of encoder effort: smaller files for more time. Neither the format nor a decoder knows of it.

Levels 1 to 3 are rate-distortion optimised quantisation: a symbol moves one towards zero where the bits saved are worth
the error. Levels 4 to 6 do so again and again around what the decoder's gradient asks for (`descend`), and from level 7
on y and z are annealed (`dca_fast.refine`) before that.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dca_fast.config import MAX_EFFORT, QUALITY_MAX
from dca_fast.entropy.tables import Tables
from dca_fast.errors import ConfigError
from dca_fast.ops import Pricing

# Bits that a squared error of one quantiser step must save. Theory, for a Gaussian at high rate, says 8.7, and it holds
# where the decoder's gradient leads (`first_price`); but y is not where errors are least (docs/effort.md).
PRICES = {1: 150, 2: 100, 3: 70}
DESCENTS = {4: 1, 5: 4, 6: 12, 7: 12, 8: 12, 9: 12}  # iterations of `descend`
ANNEALINGS = {7: 60, 8: 200, 9: 800}  # iterations of the annealing
RIVALS = 0, 3  # the levels that the others must beat
FALL, RISE, STALLED = 0.9, 1.3, 100.0  # factors on the price of `descend`, and where it ends


def check(effort: object) -> int:
    """The level.

    Raises:
        ConfigError: not a whole number of 0..9.
    """
    if isinstance(effort, bool) or not isinstance(effort, Integral) or not 0 <= int(effort) <= MAX_EFFORT:
        raise ConfigError(f"effort must be a whole number within 0..{MAX_EFFORT}, got {effort!r}")
    return int(effort)


def pricings(tables: Tables, device: torch.device | str = "cpu") -> dict[int, Pricing | None]:
    """What levels 0 to 3 price symbols with."""
    costs = torch.from_numpy(tables.symbol_costs().astype(np.int32)).to(device)
    shift = torch.from_numpy(tables.shift.copy()).to(device)
    return {0: None} | {level: Pricing(costs, shift, price) for level, price in PRICES.items()}


def first_price(quality: float) -> float:
    """Where `descend` starts best, from trials: at high qualities a squared step costs more (docs/effort.md)."""
    return 9 + 6 * quality / QUALITY_MAX


class Candidate(NamedTuple):
    """One way to code a picture: bits + priced error, the stream, its symbols' digest, and what they stand for."""

    cost: float
    stream: bytes
    digest: int
    y_hat: Tensor
    z: dict[str, Tensor]


def descend(
    best: Candidate,
    price: float,
    iterations: int,
    slope: Callable[[Candidate], Tensor],
    quantised: Callable[[Tensor, Candidate, int], Candidate],
    report: Callable[[float], None],
) -> Candidate:
    """Iterative hard thresholding (Blumensath and Davies, 2008), code lengths in place of a threshold.

    The error is modelled around y_hat by a parabola with one curvature, in quantiser steps, for all latents: `price`
    bits for a squared step. Each iteration takes the symbols with the least bits + parabola. A success lowers the
    price, so that more may move; a failure raises it and starts again from the best so far.

    Args:
        best: where to start.
        price: the first one.
        iterations: how often to try.
        slope: of a candidate: where y should go, in units of y, times the price.
        quantised: codes a y with rates priced so, and with the z of the candidate that it came from.
        report: told how much is done, 0..1.
    """
    direction = None
    for i in range(iterations):
        if price > STALLED:
            break
        direction = slope(best) if direction is None else direction
        found = quantised(best.y_hat + direction / round(price), best, round(price))
        if found.cost < best.cost:
            best, direction, price = found, None, max(1.0, price * FALL)
        else:
            price *= RISE
        report((i + 1) / iterations)
    return best
