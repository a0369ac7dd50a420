"""Graphics in lossy files: which blocks of a picture the exact-colour coder takes, and what the network sees instead.

Screens, text and charts have few colours and sharp edges, on which the network spends many bits. A cheap look at some
rows tells them from photographs. Then both ways of coding are compared by bits + priced error, block by block, and for
the file. Every decision is one of integers: all machines make the same (docs/design/graphics.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isqrt

import numpy as np
import numpy.typing as npt

from dca_fast.encoder.effort import worth
from dca_fast.errors import ConfigError
from dca_fast.exact import coder, layer
from dca_fast.exact.colours import BLOCK, Map, Samples
from dca_fast.network.program import QUALITY_ONE

__all__ = ["MODES", "Graphics", "check", "choose", "filled", "looks_graphic", "price_of"]

MODES = ("auto", "off")
LINES = 16  # rows from one pair that is looked at to the next
SAME = 4  # one of so many pixels is like its neighbours on the left and above: less in photographs (at most 0.19)
ALIKE = 32  # pixels of 256 like two of their four neighbours: fewer in blocks that the network codes
STRIP = 8 * BLOCK  # rows that are looked at together
UNIT = 256  # costs are in 1/256 bits
NOTHING = 164  # what the network takes for a block without anything: about the root of so many prices

Costs = npt.NDArray[np.int64]  # [block rows, block columns]


@dataclass(frozen=True)
class Graphics:
    """Blocks in exact colours.

    Args:
        samples: uint8 [H, W, 1 or 3] with the colours that are coded, zeros outside of the blocks.
        stream: of the exact-colour coder.
        inside: the blocks.
        costs: bits + priced error of each.
    """

    samples: Samples
    stream: bytes
    inside: Map
    costs: Costs

    @property
    def whole(self) -> bool:
        """Whether nothing is left to the network."""
        return bool(self.inside.all())

    @cached_property
    def payload(self) -> bytes:
        """That of a LAYER section."""
        return layer.pack(self.samples, self.stream, self.inside)


def check(screen: object) -> bool:
    """Whether to look for graphics.

    Raises:
        ConfigError: not one of `MODES`.
    """
    if screen not in MODES:
        raise ConfigError(f"screen must be one of {', '.join(MODES)}, got {screen!r}")
    return screen == "auto"


def price_of(quality: int, channels: int) -> int:
    """What a squared error of one sample costs at a quality in 1/100, in 2^-20 bits."""
    return round(worth(quality / QUALITY_ONE) * 2**20 / channels)


def looks_graphic(above: Samples, below: Samples) -> bool:
    """Whether a picture may have graphics.

    Args:
        above, below: uint8 [N, W, 3]: every `LINES`-th row from the first on, and those below them.
    """
    above = above[: len(below)]
    same = (below[:, 1:] == below[:, :-1]).all(2) & (below[:, 1:] == above[:, 1:]).all(2)
    return bool(np.count_nonzero(same) * SAME > same.size)


def choose(
    samples: Samples, price: int, network: Callable[[], tuple[int, Samples]], *, threads: int, python: bool
) -> Graphics | None:
    """The blocks that are worth it; None where the network alone is better.

    Args:
        samples: uint8 [H, W, 1 or 3].
        price: of a squared error of one sample, in 2^-20 bits.
        network: codes the picture without a layer: its bits, and the samples that a decoder has.
        threads, python: as of the exact-colour coder.
    """

    def coded(inside: Map) -> Graphics:
        merged = coder.merge_colours(samples, inside, price, python=python)
        stream, spent = coder.encode_blocks(merged, inside, threads=threads, python=python)
        errors = np.where(inside, _squares(merged, samples), 0)
        return Graphics(merged, stream, inside, spent + (errors * price >> 12))

    def cost(candidate: Graphics) -> int:
        rest = 0 if candidate.whole else nothing * int(np.count_nonzero(candidate.inside))
        return int(candidate.costs.sum()) + rest + int(theirs[~candidate.inside].sum())

    alike, flat = _kinds(samples)
    if not alike.any():
        return None
    bits, decoded = network()
    nothing = isqrt(NOTHING * price)
    errors = _squares(decoded, samples)
    # Bits go where errors do: quantisers leave about as much of whatever they code.
    theirs = (errors * price >> 12) + errors * bits // max(1, int(errors.sum())) * UNIT
    best = coded(alike)
    inside = alike & (flat | (best.costs + nothing < theirs))
    if inside.any() and not np.array_equal(inside, alike):
        best = min(best, coded(inside), key=cost)
    if not best.whole and 8 * np.count_nonzero(best.inside) > 7 * best.inside.size:
        best = min(best, coded(np.ones_like(alike)), key=cost)
    return best if 33 * cost(best) < 32 * int(theirs.sum()) else None


def _strips(height: int) -> list[slice]:
    """Rows of whole blocks that are looked at together, so that what is counted of pixels takes little memory."""
    return [slice(top, min(top + STRIP, height)) for top in range(0, height, STRIP)]


def _kinds(samples: Samples) -> tuple[Map, Map]:
    """Blocks in which pixels are like their neighbours, and those of one colour."""
    parts = [_kinds_of(samples, rows) for rows in _strips(len(samples))]
    alike, flat = (np.concatenate(maps) for maps in zip(*parts, strict=True))
    return alike, flat


def _kinds_of(samples: Samples, strip: slice) -> tuple[Map, Map]:
    first = max(0, strip.start - 1)  # with the rows above and below, whose pixels are neighbours
    around = samples[first : strip.stop + 1]
    colours = around[..., 0].astype(np.int32)
    for k in range(1, samples.shape[2]):
        colours = colours << 8 | around[..., k]
    across, down = colours[:, 1:] == colours[:, :-1], colours[1:] == colours[:-1]
    count = np.zeros(colours.shape, np.uint8)
    count[:, 1:] += across
    count[:, :-1] += across
    count[1:] += down
    count[:-1] += down
    own = slice(strip.start - first, strip.stop - first)
    count, colours = count[own], colours[own]
    pixels = _sums(np.ones(colours.shape, np.uint8))
    alike = _sums(count >= 2) * 256 >= ALIKE * pixels
    rows, columns = (np.arange(0, side, BLOCK) for side in colours.shape)
    most = np.maximum.reduceat(np.maximum.reduceat(colours, rows, 0), columns, 1)
    least = np.minimum.reduceat(np.minimum.reduceat(colours, rows, 0), columns, 1)
    flat = most == least
    return alike | flat, flat


def _sums(values: npt.NDArray[np.generic]) -> Costs:
    """Of each block."""
    rows, columns = (np.arange(0, side, BLOCK) for side in values.shape)
    return np.add.reduceat(np.add.reduceat(values, rows, 0, dtype=np.int32), columns, 1, dtype=np.int64)


def _squares(one: Samples, other: Samples) -> Costs:
    """Squared errors of each block."""
    parts = [_sums(np.square(one[rows].astype(np.int32) - other[rows]).sum(2)) for rows in _strips(len(one))]
    return np.concatenate(parts)


def filled(pixels: Samples, inside: Map) -> Samples:
    """What the network sees: uint8 [H, W, 3] with the blocks filled smoothly from the pixels around them."""
    known, result = ~coder.pixels_inside(inside, *pixels.shape[:2]), np.empty_like(pixels)
    for k in range(pixels.shape[2]):  # one by one: they take twelve times the memory of the picture
        result[..., k : k + 1] = _filled(pixels[..., k : k + 1].astype(np.int32), known)
    return result


def _filled(values: npt.NDArray[np.int32], known: Map) -> npt.NDArray[np.int32]:
    """Unknown values from means of ever larger squares, from fine to coarse and back ("pull-push")."""
    if known.all():
        return values
    height, width = known.shape
    if (height, width) == (1, 1):
        return np.full_like(values, 128)
    ends = ((0, height % 2), (0, width % 2))
    weights = np.pad(known, ends).astype(np.int32)[:, :, None]
    sums = np.pad(values, (*ends, (0, 0))) * weights
    sums, weights = ((a[0::2] + a[1::2]) for a in (sums, weights))
    sums, weights = ((a[:, 0::2] + a[:, 1::2]) for a in (sums, weights))
    coarse = _filled((2 * sums + weights) // np.maximum(1, 2 * weights), weights[:, :, 0] > 0)
    up = _doubled(_doubled(coarse).swapaxes(0, 1)).swapaxes(0, 1)[:height, :width]
    return np.where(known[:, :, None], values, up)


def _doubled(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Twice as many rows, interpolated."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    between = [(3 * values + padded[:-2] + 2) >> 2, (3 * values + padded[2:] + 2) >> 2]
    doubled: npt.NDArray[np.int32] = np.stack(between, 1).reshape(2 * len(values), *values.shape[1:])
    return doubled
