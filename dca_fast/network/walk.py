"""The coding walk, written once: hyper latents, then four quadtree steps, with a symbol source as its argument.

The encoder's source quantises and keeps symbols and rows; the decoder's asks the entropy coder. Both see the same
program, so both reconstruct the same y_hat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise, product
from typing import Any, NamedTuple, Protocol

import numpy as np

from dca_fast.config import ALIGN, ORDER, SKIP_ROW, STEPS, STRIDE, Part
from dca_fast.entropy.coder import Coder, Decoder, choose_groups, crc32
from dca_fast.network.program import Adaptation, Program
from dca_fast.ops import Array, Arrays

# residuals int32, in 1/256 quantiser steps, and rows uint8 of one shape -> values int16 of a trellis
Quantiser = Callable[[Array, Array], Array]


def quantiser(arrays: Arrays, coder: Coder, charges: np.ndarray, groups: int) -> Quantiser:
    """That of `Coder.quantise` for a backend's arrays of any shape."""

    def quantise(residuals: Array, rows: Array) -> Array:
        values = coder.quantise(arrays.numpy(residuals).ravel(), arrays.numpy(rows).ravel(), charges, groups)
        return arrays.array(values.reshape(rows.shape))

    return quantise


TILE = 144  # latent sites of a side of a tile, about (docs/spec/bitstream.md)


class Grid(NamedTuple):
    """The latent sites of a picture, or of a tile of a large one, and how many groups its stream has.

    Args:
        sites: (h, w) of the padded picture, multiples of 4.
        valid: those that touch the picture, from the upper left corner.
    """

    sites: tuple[int, int]
    valid: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int) -> Grid:
        """That of a picture of so many pixels."""
        h, w = (-(-side // ALIGN) * (ALIGN // STRIDE) for side in (height, width))
        return cls((h, w), (-(-height // STRIDE), -(-width // STRIDE)))

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the padded picture, in pixels."""
        return self.sites[0] * STRIDE, self.sites[1] * STRIDE

    @property
    def groups(self) -> int:
        """Of the stream, which its trellis and its coder must agree on."""
        return choose_groups(*self.sites)

    def laid(self, arrays: Arrays, parts: Iterable[tuple[Tile, Array]]) -> Array:
        """One array int16 [1, h, w, M] of those of all tiles."""
        whole: Array = None
        for tile, part in parts:
            if tile.grid == self:
                return part
            if whole is None:
                whole = arrays.zeros(1, *self.sites, part.shape[-1])
            whole[tile.sites] = part
        return whole

    def tiles(self) -> tuple[Tile, ...]:
        """What is coded on its own: all at once, or where there are many sites tiles of about one size, by rows of
        tiles; of at most two heights and two widths."""
        short = max(1, _quotient(min(self.sites), TILE))
        long = max(1, _quotient(self.sites[0] * self.sites[1], short * TILE * TILE))
        counts = (short, long) if self.sites[0] <= self.sites[1] else (long, short)
        rows, columns = (pairwise(_cuts(side, count)) for side, count in zip(self.sites, counts, strict=True))
        return tuple(self._tile(*down, *across) for down, across in product(rows, columns))

    def _tile(self, top: int, bottom: int, left: int, right: int) -> Tile:
        valid = min(bottom, self.valid[0]) - top, min(right, self.valid[1]) - left
        return Tile(top, left, Grid((bottom - top, right - left), valid))


def _quotient(a: int, b: int) -> int:
    """a / b, rounded to the nearest whole number, halves upwards."""
    return (2 * a + b) // (2 * b)


def _cuts(sites: int, count: int) -> list[int]:
    """Where so many tiles of a side begin, and where the last one ends: at multiples of four sites."""
    return [sites // 4 * i // count * 4 for i in range(count + 1)]


class Tile(NamedTuple):
    """A part of a picture that is coded on its own, from site (top, left) on."""

    top: int
    left: int
    grid: Grid

    @property
    def bottom(self) -> int:
        """The first row of sites below it."""
        return self.top + self.grid.sites[0]

    @property
    def right(self) -> int:
        """The first column of sites to its right."""
        return self.left + self.grid.sites[1]

    @property
    def sites(self) -> tuple[slice, slice, slice]:
        """Of a tensor `[N, h, w, M]` of the picture."""
        return slice(None), slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def pixels(self) -> tuple[slice, slice, slice]:
        """Of a tensor `[N, H, W, 3]` of the padded picture."""
        down, across = (slice(side.start * STRIDE, side.stop * STRIDE) for side in self.sites[1:])
        return slice(None), down, across


class Source(Protocol):
    """Where symbols come from. `rows` uint8 and the result int16 have one shape."""

    def hyper(self, name: str, part: Part, rows: Array, mean: Array | None) -> Array:
        """Symbols of a part of a hyper latent; mean int16 in 1/256 quantiser steps, None: zero."""

    def step(self, step: int, mean: Array, rows: Array, adaptation: Adaptation | None) -> Array:
        """Values of a quadtree step, of a trellis; mean int32 in 1/256 quantiser steps, rows of steps as adapted."""


def symbol_digest(symbols: np.ndarray, digest: int = 0) -> int:
    """CRC-32 of symbols as little-endian int16, going on from `digest` of the parts before."""
    return int(crc32(np.ascontiguousarray(symbols, "<i2").data, digest))


class EncoderSource:
    """Quantises y and z of one image and keeps (values, rows) of each part, in stream order, and their digest.

    Args:
        program: at the quality.
        y, z: of `analyse` and `hyper_analyse`.
        quantise: what makes values of y's residuals.
    """

    def __init__(self, program: Program, y: Array, z: dict[str, Array], quantise: Quantiser) -> None:
        self._program, self._y, self._z, self._quantise = program, y, z, quantise
        self.pictures = len(y)  # of a batch
        self.parts: list[tuple[Any, Any]] = []
        self.plain = 0  # parts before those of the trellis
        self.digest = 0

    def again(self, y: Array) -> EncoderSource:
        """A source for y that goes on from here, where the hyper latents are coded and no step is."""
        twin = type(self)(self._program, y, self._z, self._quantise)
        twin.parts, twin.plain, twin.digest = list(self.parts), self.plain, self.digest
        return twin

    def _keep(self, symbols: Array, rows: Array) -> Array:
        numpy = self._program.arrays.numpy
        flat = numpy(symbols).ravel()
        self.parts.append((flat, numpy(rows).ravel()))
        self.digest = symbol_digest(flat, self.digest)
        return symbols

    def hyper(self, name: str, part: Part, rows: Array, mean: Array | None) -> Array:
        self.plain += 1
        return self._keep(self._program.ops.hyper_symbols(self._z[name][part.sites], mean, rows), rows)

    def step(self, step: int, mean: Array, rows: Array, adaptation: Adaptation | None) -> Array:
        finer = None if adaptation is None else adaptation.finer
        residuals = self._program.ops.residuals(self._y, mean, self._program.gain, step, finer)
        return self._keep(self._quantise(residuals, rows), rows)


class DecoderSource:
    """Takes the symbols of one image from an entropy decoder and keeps their digest."""

    def __init__(self, arrays: Arrays, decoder: Decoder) -> None:
        self._arrays, self._decoder = arrays, decoder
        self.digest = 0

    def _take(self, rows: Array, trellis: bool = False, last: bool = False) -> Array:
        symbols = self._decoder.decode(np.ascontiguousarray(self._arrays.numpy(rows)).ravel(), trellis, last)
        self.digest = symbol_digest(symbols, self.digest)
        return self._arrays.array(symbols.reshape(rows.shape))

    def hyper(self, name: str, part: Part, rows: Array, mean: Array | None) -> Array:
        return self._take(rows)

    def step(self, step: int, mean: Array, rows: Array, adaptation: Adaptation | None) -> Array:
        return self._take(rows, trellis=True, last=step == STEPS - 1)


def code(program: Program, source: Source, grid: Grid, pictures: int = 1) -> Array:
    """Run the walk.

    Args:
        program: integer network at the file's quality.
        source: see `Source`.
        grid: of the picture.
        pictures: of a batch, which have one grid.

    Returns:
        y_hat int16 [pictures, h, w, M].
    """
    z = code_hyper(program, source, grid, pictures)
    return code_steps(program, source, program.hyper_features(z), grid, pictures)


def code_hyper(program: Program, source: Source, grid: Grid, pictures: int = 1) -> dict[str, Array]:
    """The hyper latents as a decoder sees them, as `Program.hyper_features` takes them."""
    z = {}
    shapes = program.config.hyper_shapes(*grid.sites)
    for name in ORDER:
        if name in shapes:
            z[name] = program.arrays.zeros(pictures, *shapes[name])
            for part, row, mean in program.hyper_parts(name, z[name]):
                # One row for each channel; of the global latent for each channel of each token.
                rows = program.arrays.broadcast(row, z[name][part.sites].shape)
                if name == "local":
                    rows[:, grid.valid[0] :] = SKIP_ROW
                    rows[:, :, grid.valid[1] :] = SKIP_ROW
                z[name][part.sites] = program.ops.hyper_values(source.hyper(name, part, rows, mean), mean)
    return z


def code_steps(program: Program, source: Source, features: dict[str, Array], grid: Grid, pictures: int = 1) -> Array:
    """The four steps; `features` of the hyper latents."""
    y_hat = program.arrays.zeros(pictures, *grid.sites, program.config.latent)  # every step writes a quarter
    ops, at, coarser = program.ops, None, None
    for step in range(STEPS):
        mean, rows = program.step_parameters(step, y_hat, features, grid.valid)
        if program.aq:
            if at is None:
                at = program.adaptation(rows)
                coarser = at.coarser
            rows = ops.coarser_rows(rows, at.coarse, program.skip)
        symbols = source.step(step, mean, rows, at)
        ops.reconstruct(symbols, mean, program.inverse, step, y_hat, coarser)
    return y_hat


def adaptation(program: Program, features: dict[str, Array], grid: Grid) -> Adaptation | None:
    """What `code_steps` adapts quantisers to, whatever the symbols; None without adaptive quantisation."""
    if not program.aq:
        return None
    y_hat = program.arrays.zeros(1, *grid.sites, program.config.latent)
    return program.adaptation(program.step_parameters(0, y_hat, features, grid.valid)[1])
