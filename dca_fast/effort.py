"""Levels of encoder effort: smaller files for more time. Neither the format nor a decoder knows of it.

From level 1 on, symbols are chosen again around what the error asks for (`descend`): first as the linear part of f_s
tells (`dca_fast.adjoint`), from level 4 on then as its gradient does (`dca_fast.refine`). From level 7 on y and z are
annealed too, and descended from. Every level up to 6 goes on from the one below, and those above keep its result where
it is better.
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

# Iterations of `descend`: along the linear part of f_s, then along its gradient.
DESCENTS = {1: (1, 0), 2: (2, 0), 3: (4, 0), 4: (4, 2), 5: (4, 4), 6: (4, 12), 7: (4, 12), 8: (4, 12), 9: (4, 12)}
ANNEALINGS = {7: 60, 8: 200, 9: 800}  # iterations of the annealing
TIMES = 1, 4, 16  # of an iteration of each kind, roughly
ANNEALED_PRICE = 150  # bits for a squared step: the annealing hardly leaves symbols that cost more than they are worth
FALL, RISE, STALLED = 0.9, 1.3, 100.0  # factors on the price of `descend`, and where it ends


def check(effort: object) -> int:
    """The level.

    Raises:
        ConfigError: not a whole number of 0..9.
    """
    if isinstance(effort, bool) or not isinstance(effort, Integral) or not 0 <= int(effort) <= MAX_EFFORT:
        raise ConfigError(f"effort must be a whole number within 0..{MAX_EFFORT}, got {effort!r}")
    return int(effort)


def pricing(tables: Tables) -> Pricing:
    """What symbols cost; the price is still to be set."""
    costs = torch.from_numpy(tables.symbol_costs().astype(np.int32))
    return Pricing(costs, torch.from_numpy(tables.shift.copy()), 1)


def first_price(quality: float) -> float:
    """Where `descend` starts best, from trials: at high qualities a squared step costs more (docs/effort.md)."""
    return 9 + 6 * quality / QUALITY_MAX


class Candidate(NamedTuple):
    """One way to code a picture: bits + priced error, the stream, its symbols' digest, what they stand for, and what is
    missing to the picture (`Adjoint.error`)."""

    cost: float
    stream: bytes
    digest: int
    y_hat: Tensor
    z: dict[str, Tensor]
    error: Tensor


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
        moved = best.y_hat.numpy() + direction.numpy() / np.float32(round(price))
        found = quantised(torch.from_numpy(moved), best, round(price))
        if found.cost < best.cost:
            best, direction, price = found, None, max(1.0, price * FALL)
        else:
            price *= RISE
        report((i + 1) / iterations)
    return best
