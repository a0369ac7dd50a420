"""Levels of encoder effort: smaller files for more time. Neither the format nor a decoder knows of it.

From level 1 on, symbols are chosen again around what the error asks for (`descend`): first as the linear part of f_s
tells (`dca_fast.adjoint`), from level 4 on then as its gradient does (`dca_fast.refine`). From level 7 on y and z are
annealed too, and descended from. Every level up to 6 goes on from the one below; those above keep the result of level 6
where that is better.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dca_fast import latents
from dca_fast.adjoint import Adjoint
from dca_fast.config import MAX_EFFORT, QUALITY_MAX, SKIP_ROW
from dca_fast.config import price as price_of
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import Tables
from dca_fast.errors import ConfigError
from dca_fast.ops import Pricing
from dca_fast.ops.reference import LIMIT16
from dca_fast.program import Program

if TYPE_CHECKING:
    from dca_fast.refine import Refiner

Report = Callable[[float], None]

# Iterations of `descend`: along the linear part of f_s, then along its gradient.
DESCENTS = {1: (1, 0), 2: (2, 0), 3: (4, 0), 4: (4, 2), 5: (4, 4), 6: (4, 12), 7: (4, 12), 8: (4, 12), 9: (4, 12)}
ANNEALINGS = {7: 60, 8: 200, 9: 800}  # iterations of the annealing
TIMES = 1, 4, 16  # of an iteration of each kind, roughly
LINEAR_PRICE = 11  # bits for a squared step where the descent along the linear part starts best (docs/effort.md)
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
    """That of the descent along the gradient: at high qualities a squared step costs more."""
    return 9 + 6 * quality / QUALITY_MAX


class Candidate(NamedTuple):
    """One way to code a picture: bits + priced error, the stream, its symbols' digest, what they stand for, and what is
    missing to the picture, as patches."""

    cost: float
    stream: bytes
    digest: int
    y_hat: Tensor
    z: dict[str, Tensor]
    error: Tensor


_cost = attrgetter("cost")


def descend(
    best: Candidate,
    price: float,
    iterations: int,
    slope: Callable[[Candidate], Tensor],
    quantised: Callable[[Tensor, Candidate, int], Candidate],
    report: Report,
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


class Tools(NamedTuple):
    """What a search needs of a codec: the coder, what symbols cost, where errors lead; the last is made when needed."""

    coder: Coder
    pricing: Pricing
    adjoint: Adjoint
    refiner: Callable[[], Refiner]


class Search:
    """The search for the least bits + priced error of one picture.

    Args:
        tools: of the codec.
        program: at the quality.
        image: uint8 [1, H, W, 3], sides multiples of 64.
        size: height and width of the picture without its padding.
        quality: 0..100.
    """

    def __init__(self, tools: Tools, program: Program, image: Tensor, size: tuple[int, int], quality: float) -> None:
        self._tools, self._program, self._image, self._size, self._quality = tools, program, image, size, quality
        self._wanted = tools.adjoint.patches(image).numpy()
        self._lambda = float(np.float32(price_of(quality)))  # powers differ between machines, beyond a float's digits
        self._price, self._sites = first_price(quality), latents.sites(*size)
        self._features: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None  # of the last z

    def run(self, level: int, progress: Report | None = None) -> Candidate:
        """What the level finds; `progress` is told how much is done, 0..1."""
        few, many = DESCENTS[level]
        work = [few * TIMES[0], many * TIMES[1]]
        if level in ANNEALINGS:
            work += [ANNEALINGS[level] * TIMES[2], many * TIMES[1]]

        def report(phase: int) -> Report:
            def told(done: float) -> None:
                if progress is not None:
                    progress((sum(work[:phase]) + work[phase] * done) / sum(work))

            return told

        y = self._program.analyse(self._image)
        z = self._program.hyper_analyse(y)
        if "global" in z:  # as in a file: the search takes it as it is
            z["global"].masked_fill_(self._program.hyper_rows["global"].view(z["global"].shape) == SKIP_ROW, 0)
        best = descend(self.candidate(y, z), LINEAR_PRICE, few, self._linear, self._quantised, report(0))
        best = descend(best, self._price, many, self._exact, self._quantised, report(1))
        if level in ANNEALINGS:
            refined = self._tools.refiner().refine(
                self._image, self._size, y, z, self._quality, ANNEALINGS[level], report(2)
            )
            start = min((self.candidate(*refined, bits) for bits in (None, ANNEALED_PRICE)), key=_cost)
            best = min(best, descend(start, self._price, many, self._exact, self._quantised, report(3)), key=_cost)
        if progress is not None:
            progress(1.0)
        return best

    def candidate(self, y: Tensor, z: dict[str, Tensor], bits: int | None = None) -> Candidate:
        """The picture coded with these latents; `bits` are those of a squared quantiser step, None: plain rounding."""
        program, pricing = self._program, None if bits is None else self._tools.pricing._replace(price=bits)
        source = latents.EncoderSource(program, y, z, pricing)
        symbols = latents.code_hyper(program, source, *self._sites)
        if self._features is None or self._features[0] is not z:
            self._features = z, program.hyper_features(symbols)
        y_hat = latents.code_steps(program, source, self._features[1], *self._sites)
        stream = self._tools.coder.encode(source.parts)
        picture = program.synthesise(y_hat)
        for beyond in ((slice(self._size[0], None), slice(None)), (slice(None), slice(self._size[1], None))):
            picture[0][beyond] = self._image[0][beyond]  # no error counts there
        error = self._tools.adjoint.patches(picture).numpy()
        np.subtract(self._wanted, error, out=error)
        squares = sum(int(np.square(row, dtype=np.int32).sum(dtype=np.int64)) for row in error[0])
        cost = 8 * len(stream) + self._lambda * squares / 3
        return Candidate(cost, stream, source.digest, y_hat, z, torch.from_numpy(error))

    def _quantised(self, y: Tensor, origin: Candidate, bits: int) -> Candidate:
        whole = np.rint(y.numpy()).clip(-LIMIT16, LIMIT16).astype(np.int16)
        return self.candidate(torch.from_numpy(whole), origin.z, bits)

    def _linear(self, found: Candidate) -> Tensor:
        return self._tools.adjoint.slope(found.error, self._program.gain, self._lambda)

    def _exact(self, found: Candidate) -> Tensor:
        return self._tools.refiner().slope(self._image, self._size, found.y_hat, self._quality)
