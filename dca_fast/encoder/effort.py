"""Levels of encoder effort: smaller files for more time. Neither the format nor a decoder knows of it.

From level 1 on, symbols are chosen again around what the error asks for, the error behind a restoration filter: once
as the linear part of f_s tells (`second_pass`, `linear_gradient`), from level 2 on then as the gradient of f_s does
(`descend`, `full_gradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dca_fast.config import BACK, GRADIENT_BACK, LINEAR_PRICE, MAX_EFFORT, RINGS
from dca_fast.config import price as price_of
from dca_fast.encoder.full_gradient import Exponents, Gradient
from dca_fast.encoder.linear_gradient import Adjoint, multipliers
from dca_fast.encoder.restoration_fit import as_array, fit, restored
from dca_fast.errors import ConfigError
from dca_fast.files.container import pack_restoration
from dca_fast.network import walk
from dca_fast.network.program import Adaptation, Halves, Program
from dca_fast.ops import Array, Arrays

# Iterations of `descend` of the levels from 2 on, and the range of their prices (docs/design/effort.md).
DESCENTS = {2: 1, 3: 2, 4: 4, 5: 8, 6: 16, 7: 32, 8: 64, 9: 128}
PRICES = 36, 64
FACTOR_ONE = 4096  # of factors of sites


def check(effort: object) -> int:
    """The level.

    Raises:
        ConfigError: not a whole number of 0..9.
    """
    if isinstance(effort, bool) or not isinstance(effort, Integral) or not 0 <= int(effort) <= MAX_EFFORT:
        raise ConfigError(f"effort must be a whole number within 0..{MAX_EFFORT}, got {effort!r}")
    return int(effort)


def worth(quality: float) -> float:
    """Bits that a squared error of one grey level is worth, alike on all machines: their powers differ beyond a float's
    digits."""
    return float(np.float32(price_of(quality)))


class Candidate(NamedTuple):
    """One way to code a picture: bits + priced error (where quantisers adapt, at each site's price); the stream, its
    values' digest and the restoration filter; the y that was quantised and what became of it; the picture behind the
    filter."""

    cost: float
    stream: bytes
    digest: int
    coefficients: tuple[int, ...]
    y: Array
    y_hat: Array
    picture: Array


_cost = attrgetter("cost")


def descend(
    start: Candidate,
    prices: Sequence[float],
    slope: Callable[[Candidate], Array],
    moved: Callable[[Candidate, Array, float], Candidate],
    report: Callable[[int], None],
) -> Candidate:
    """Descent of the error, with the search of the trellis after every step (docs/design/effort.md).

    A step goes from what is coded, y_hat, a part of the way back to the y that was quantised, and along a slope over
    a price: the error is modelled by a parabola with one curvature, in quantiser steps, for all latents, and the price
    is bits for a squared step. Each one goes on from the last, better or not: held to improvements, the descent soon
    ends where no single step is one.

    Args:
        start: where to start.
        prices: of the steps; steps become shorter as they grow.
        slope: of a candidate: where y should go.
        moved: codes a candidate after a step along a slope at such a price.
        report: told how many steps are done.

    Returns:
        The best of all, `start` included.
    """
    best = last = start
    for done, price in enumerate(prices, 1):
        last = moved(last, slope(last), price)
        best = min(best, last, key=_cost)
        report(done)
    return best


def between(ends: tuple[float, float], count: int) -> list[float]:
    """The middles of so many equal parts of a range."""
    return [ends[0] + (ends[1] - ends[0]) * (i + 0.5) / count for i in range(count)]


def step_multipliers(gain: npt.NDArray[np.float32], quality: float) -> npt.NDArray[np.float32]:
    """`multipliers` of level 1: float32 [M]; `gain` float32 [M] in host memory, quality 0..100."""
    return multipliers(gain, worth(quality), LINEAR_PRICE)


Quantisers = Callable[[int], walk.Quantiser]  # of streams of so many groups


class Step(NamedTuple):
    """What level 1 needs besides the program: how errors go back, the quantisers, and `step_multipliers`."""

    adjoint: Adjoint
    quantiser: Quantisers
    m: Array


class Begun(NamedTuple):
    """A tile of a picture of which the hyper latents are coded: its y, a source that goes on from there, and what they
    say of y."""

    tile: walk.Tile
    y: Array
    source: walk.EncoderSource
    features: dict[str, Array]

    def coded(self, program: Program, y: Array) -> tuple[walk.EncoderSource, Array]:
        """All of it with this y: the source of what is coded, and what becomes of y."""
        source = self.source.again(y)
        return source, walk.code_steps(program, source, self.features, self.tile.grid)


class Pass(NamedTuple):
    """A picture coded once: its tiles, what became of y, and the picture it makes."""

    tiles: list[Begun]
    y_hat: Array
    picture: Array


Sources = Callable[..., walk.EncoderSource]


def begin(program: Program, quantiser: Quantisers, source: Sources, y: Array, grid: walk.Grid) -> list[Begun]:
    """Codes the hyper latents of all tiles of y, [1, h, w, M]; other arguments as of `first_pass`."""
    begun = []
    for tile in grid.tiles():
        own = program.arrays.contiguous(y[tile.sites])
        coded = source(program, own, program.hyper_analyse(own), quantiser(tile.grid.groups))
        begun.append(Begun(tile, own, coded, program.hyper_features(walk.code_hyper(program, coded, tile.grid))))
    return begun


def first_pass(
    program: Program,
    step: Step,
    image: Array,
    size: tuple[int, int],
    source: Sources = walk.EncoderSource,
    lines: int | None = None,
) -> Pass:
    """Level 1 as far as the picture that its step answers. Nothing in it depends on the data, so that a GPU can record
    it; likewise `second_pass`.

    Args:
        program: at the quality.
        image: uint8 [1, H, W, 3], sides multiples of 64, on the program's device.
        size: height and width of the picture without its padding.
        source: class of the sources.
        lines: as `Program.analyse` takes them.
    """
    grid = walk.Grid.of(*size)
    tiles = begin(program, step.quantiser, source, program.analyse(image, lines), grid)
    y_hat = grid.laid(program.arrays, ((one.tile, one.coded(program, one.y)[1]) for one in tiles))
    return Pass(tiles, y_hat, program.synthesise(y_hat, lines))


def second_pass(
    program: Program,
    step: Step,
    first: Pass,
    w: Array | None,
    image: Array,
    size: tuple[int, int],
    lines: int | None = None,
    finish: Callable[[walk.EncoderSource, walk.Grid], Any] = lambda source, grid: source,
) -> tuple[list[Any], Array]:
    """The step along the linear part, whatever comes of it, and what is coded then.

    Args:
        first: of `first_pass`; let go before the last picture is made.
        w: the restoration filter of its picture, int8 [3, 6 R] on the device; the error behind it is answered.
        image, size, lines: as there.
        finish: what is kept of the source of each tile and its grid.

    Returns:
        What is kept, and the picture that is coded, without a filter.
    """
    kept: list[Any] = []

    def walked(answered: Iterator[tuple[walk.Tile, walk.EncoderSource, Array]]) -> Iterator[tuple[walk.Tile, Array]]:
        for tile, source, y_hat in answered:
            kept.append(finish(source, tile.grid))
            yield tile, y_hat

    answered = _answered(program, step, first, w, image, size)
    del first
    y_hat = walk.Grid.of(*size).laid(program.arrays, walked(answered))
    del answered
    return kept, program.synthesise(y_hat, lines)


def _answered(
    program: Program, step: Step, first: Pass, w: Array | None, image: Array, size: tuple[int, int]
) -> Iterator[tuple[walk.Tile, walk.EncoderSource, Array]]:
    """The tiles of `second_pass`: what is coded, and its y_hat."""
    contiguous = program.arrays.contiguous
    for one in first.tiles:
        part = one.tile.pixels
        if w is None:
            picture = contiguous(first.picture[part])
        else:
            picture = restored(program.ops, program.arrays, first.picture, w, size, part)
        within = size[0] - part[1].start, size[1] - part[2].start
        slope = step.adjoint.answer(contiguous(image[part]), picture, within)
        y_hat = contiguous(first.y_hat[one.tile.sites])
        yield one.tile, *one.coded(program, step.adjoint.moved(y_hat, slope, step.m, one.y))


class Tools(NamedTuple):
    """What a search needs of a codec, on the program's device: the quantisers and class of its sources, what makes the
    stream and the digest of a tile, what joins those of all, and where errors lead."""

    quantiser: Quantisers
    source: Sources
    code: Callable[[walk.EncoderSource, walk.Grid], tuple[bytes, int]]
    join: Callable[[Sequence[tuple[bytes, int]]], tuple[bytes, int]]
    adjoint: Adjoint
    gradient: Gradient


def site_factors(arrays: Arrays, adaptation: Adaptation | None) -> Array | None:
    """What a squared error at each site counts where quantisers adapt, int64 [h, w] in 1/FACTOR_ONE: less in the same
    measure as the squared steps grow."""
    if adaptation is None:
        return None
    finer = arrays.numpy(adaptation.finer[0])
    return arrays.array(np.rint(np.square(finer, dtype=np.float64) * FACTOR_ONE).astype(np.int64))


class Search:
    """The search for the least bits + priced error of one picture.

    Args:
        tools: of the codec.
        program: at the quality.
        image: uint8 [1, H, W, 3], sides multiples of 64, on its device.
        size: height and width of the picture without its padding.
        quality: 0..100.
    """

    def __init__(self, tools: Tools, program: Program, image: Array, size: tuple[int, int], quality: float) -> None:
        self._tools, self._program, self._image, self._size = tools, program, image, size
        self._lambda = worth(quality)
        self._grid = walk.Grid.of(*size)
        self._arrays = program.arrays
        self._inside = self._arrays.contiguous(image[0, : size[0], : size[1]])
        self._all = walk.Tile(0, 0, self._grid).pixels
        self._exponents: Exponents = {}
        # Of the last y_hat that was synthesised; those of more take too much memory.
        self._halves: tuple[Array, tuple[Halves, Halves]] | None = None
        self._y = program.analyse(image)
        self._tiles = begin(program, tools.quantiser, tools.source, self._y, self._grid)
        self._factors = self._site_factors()

    def _site_factors(self) -> Array | None:
        """`site_factors` of the picture."""
        rows: dict[int, list[Array]] = {}
        for tile, _, _, features in self._tiles:
            factors = site_factors(self._arrays, walk.adaptation(self._program, features, tile.grid))
            if factors is None:
                return None
            rows.setdefault(tile.top, []).append(factors)
        return self._arrays.concat([self._arrays.concat(row, 1) for row in rows.values()], 0)

    def run(self, level: int, progress: Callable[[float], None] | None = None) -> Candidate:
        """What the level finds; `progress` is told how much is done, 0..1."""
        prices = between(PRICES, DESCENTS[level])

        def report(done: int) -> None:
            if progress is not None:
                progress((2 + done) / (2 + len(prices)))

        start = self.candidate(self._y)  # level 0, with a filter, then level 1
        report(-1)
        answered = self._moved(start, self._tools.adjoint.slope(self._missing(start)), LINEAR_PRICE, BACK)
        report(0)
        return descend(min(start, answered, key=_cost), prices, self._slope, self._step, report)

    def candidate(self, y: Array) -> Candidate:
        """The picture coded with this y."""
        program, coded = self._program, []

        def walked() -> Iterator[tuple[walk.Tile, Array]]:
            for one in self._tiles:
                source, y_hat = one.coded(program, self._arrays.contiguous(y[one.tile.sites]))
                coded.append(self._tools.code(source, one.tile.grid))
                yield one.tile, y_hat

        y_hat = self._grid.laid(self._arrays, walked())
        stream, digest = self._tools.join(coded)
        self._halves = None
        at_16, at_8, picture = program.synthesis_halves(y_hat)
        self._halves = y_hat, (at_16, at_8)
        coefficients = fit(program.ops, self._arrays, picture[0], self._inside, self._lambda)
        if coefficients:
            rings = 0 if str(program.device) == "cpu" else len(RINGS)  # a kernel for each number of them
            w = as_array(self._arrays, coefficients, rings)
            picture = restored(program.ops, self._arrays, picture, w, self._size, self._all)
        height, width = self._size
        squares = program.ops.squared_error(self._inside, picture[0, :height, :width], self._factors)
        error = squares if self._factors is None else squares / FACTOR_ONE
        bits = 8 * len(stream) + (8 * len(pack_restoration(coefficients)) if coefficients else 0)
        cost = bits + self._lambda * error / 3
        return Candidate(cost, stream, digest, coefficients, y, y_hat, picture)

    def _missing(self, candidate: Candidate) -> Array:
        picture = self._arrays.broadcast(
            candidate.picture, candidate.picture.shape
        )  # a copy: its padding is overwritten
        return self._tools.adjoint.missing(self._image, picture, self._size)

    def _slope(self, candidate: Candidate) -> Array:
        if self._halves is None or self._halves[0] is not candidate.y_hat:
            self._halves = candidate.y_hat, self._program.synthesis_halves(candidate.y_hat)[:2]
        (at_16, at_8), self._halves = self._halves[1], None
        # The filter's share in the picture is taken as given.
        return self._tools.gradient.slope(at_16, at_8, self._missing(candidate), self._exponents)

    def _moved(self, candidate: Candidate, slope: Array, price: float, back: float) -> Candidate:
        m = self._arrays.array(multipliers(self._arrays.numpy(self._program.gain), self._lambda, price))
        return self.candidate(self._tools.adjoint.moved(candidate.y_hat, slope, m, candidate.y, back))

    def _step(self, candidate: Candidate, slope: Array, price: float) -> Candidate:
        return self._moved(candidate, slope, price, GRADIENT_BACK)
