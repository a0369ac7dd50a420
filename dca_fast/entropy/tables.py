"""Probability tables of the entropy coder: built once in float64, from then on data.

Three tables, one below the other: integers as they are (hyper latents), and the indices of a trellis's two sets
(`dca_fast.entropy.trellis`). Each has 128 rows, one per standard deviation 0.1 * 2**(row / 12) quantiser steps. Row `r`
codes an integer `k = (bucket << shift[r]) + low`: the bucket (-127..127) with a 12-bit frequency, `low` with `shift[r]`
raw bits. Symbol 255 escapes to a raw 16-bit value.
Frequencies are Gaussian, or fitted to the symbols of photographs.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.config import CENTER, ESCAPE, LATENT_ONE, SKIP_ROW, TRELLIS_STEP
from dca_fast.entropy.trellis import follow
from dca_fast.errors import WeightsError

__all__ = [
    "CENTER",
    "ESCAPE",
    "PROB_BITS",
    "ROWS",
    "SKIP_ROW",
    "SYMBOLS",
    "TABLE_ROWS",
    "Tables",
    "build_gaussian_tables",
    "fit_tables",
]

PROB_BITS = 12
ROWS = 128  # of one table
TABLE_ROWS = 3 * ROWS  # plain, set 0, set 1
SYMBOLS = 256
MAX_SHIFT = 8  # 127 << 8 still fits int16
_RAW_BITS = 16
_PRIOR_COUNT = 500  # symbols that the Gaussian counts for beside what was seen
_MAX_BUCKET_SIGMA = 24.0  # +-127 buckets are then more than five deviations


@dataclass(frozen=True, eq=False)
class Tables:
    """Frequencies and bypass shifts, as they are stored with the weights.

    Args:
        freq: [384, 256] uint16; every row sums to 4096; 0 = the symbol cannot be coded and escapes.
        shift: [384] uint8, 0..8; number of low bits coded raw.
    """

    freq: npt.NDArray[np.uint16]
    shift: npt.NDArray[np.uint8]

    def validate(self) -> "Tables":
        """Check every rule the coder relies on.

        Returns:
            The tables themselves.

        Raises:
            WeightsError: naming the first rule that does not hold.
        """
        freq, shift = self.freq, self.shift
        if freq.shape != (TABLE_ROWS, SYMBOLS) or freq.dtype != np.uint16:
            raise WeightsError(f"freq must be uint16 [{TABLE_ROWS}, {SYMBOLS}] (got {freq.dtype} {freq.shape})")
        if shift.shape != (TABLE_ROWS,) or shift.dtype != np.uint8:
            raise WeightsError(f"shift must be uint8 [{TABLE_ROWS}] (got {shift.dtype} {shift.shape})")
        for name, bad in (
            ("frequencies do not sum to 4096", freq.sum(axis=1, dtype=np.int64) != 1 << PROB_BITS),
            ("the escape symbol has no frequency", freq[:, ESCAPE] == 0),
            ("a frequency is above 4095", (freq >= 1 << PROB_BITS).any(axis=1)),
            (f"the shift is above {MAX_SHIFT}", shift > MAX_SHIFT),
        ):
            if bad.any():
                raise WeightsError(f"table row {int(bad.argmax())}: {name}")
        return self

    def digest(self) -> bytes:
        """Return the SHA-256 (32 bytes) of the little-endian frequencies followed by the shifts."""
        return hashlib.sha256(self.freq.astype("<u2").tobytes() + self.shift.tobytes()).digest()

    def symbols(self, values: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the symbols of integers in table rows 0..383: their buckets, ESCAPE outside of the range; int64."""
        bucket = (values.astype(np.int64) >> self.shift[rows]) + CENTER
        return np.where((bucket < 0) | (bucket > ESCAPE), ESCAPE, bucket)

    def coded(
        self, values: npt.NDArray[np.int16], rows: npt.NDArray[np.uint8], groups: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the symbols of a part's coded positions and the rows of their tables, int64 [coded positions].

        Args:
            values, rows: as the coder takes them, [n] int16 and [n] uint8.
            groups: of the stream, for a part of a trellis; None: a plain one.
        """
        kept = rows != SKIP_ROW
        indices, row = values[kept].astype(np.int64), rows[kept].astype(np.int64)
        if groups is not None:
            indices, which = follow(values, rows, groups)
            row += ROWS * (1 + which)
        return self.symbols(indices, row), row

    def value_bits(
        self, values: npt.NDArray[np.int16], rows: npt.NDArray[np.uint8], groups: int | None = None
    ) -> npt.NDArray[np.float64]:
        """Return the bits of a part's coded positions, [coded positions] float64; arguments as of `coded`."""
        symbols, row = self.coded(values, rows, groups)
        bits: npt.NDArray[np.float64] = self.symbol_bits()[row, symbols]
        escape = (symbols == ESCAPE) | (self.freq[row, symbols] == 0)
        bits += np.where(escape, 0, self.shift[row])
        return bits

    def symbol_bits(self) -> npt.NDArray[np.float64]:
        """Return the bits of every symbol, an escape's value included but not raw low bits: [384, 256] float64."""
        bits = PROB_BITS - np.log2(np.maximum(self.freq, 1))
        escape = bits[:, ESCAPE:] + _RAW_BITS
        bits = np.where(self.freq > 0, bits, escape)
        bits[:, ESCAPE:] = escape
        return bits

    def charges(self, price: float) -> npt.NDArray[np.int32]:
        """Return what the indices of the two sets cost a search: [2, 128, 256] int32, squared 1/256 quantiser steps.

        The last axis is the size of an index, either sign alike; beyond 255 costs are those of 255. The nearest tie of
        the rounding is a thousand times farther away than any logarithm is wrong: alike on every machine.

        Args:
            price: squared quantiser steps that a bit is worth.
        """
        sizes = np.arange(SYMBOLS)
        rows = np.arange(ROWS, TABLE_ROWS)[:, None]
        symbols = self.symbols(np.broadcast_to(sizes, (2 * ROWS, SYMBOLS)), rows)
        escape = (symbols == ESCAPE) | (self.freq[rows, symbols] == 0)
        bits = np.rint(256 * (self.symbol_bits()[rows, symbols] + np.where(escape, 0, self.shift[rows])))
        charges: npt.NDArray[np.int32] = np.rint(bits * (price * LATENT_ONE)).astype(np.int32)
        return np.ascontiguousarray(charges).reshape(2, ROWS, SYMBOLS)

    def row_bits(self) -> npt.NDArray[np.float64]:
        """Return the expected cost of one integer of each row, [384] float64, bits."""
        p = self.freq / float(1 << PROB_BITS)
        bits = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=1)
        escape = p[:, ESCAPE]
        result: npt.NDArray[np.float64] = bits + escape * _RAW_BITS + (1 - escape) * self.shift
        return result

    def mean_bits(self) -> npt.NDArray[np.float64]:
        """Return `row_bits` of a plain part and of a trellis's, where both sets are as likely: [2, 128]."""
        plain, *sets = self.row_bits().reshape(3, ROWS)
        return np.stack([plain, np.mean(sets, axis=0)])


def build_gaussian_tables() -> Tables:
    """Build the tables of zero-mean Gaussians with deviations 0.1 * 2**(row / 12) quantiser steps.

    Returns:
        Validated tables.
    """
    freq = np.stack([row_frequencies(row, PROB_BITS) for row in range(TABLE_ROWS)])
    return Tables(freq, np.array([row_shift(row) for row in range(TABLE_ROWS)], np.uint8)).validate()


def row_sigma(row: int) -> float:
    """Return the standard deviation that row `row` (0..383) stands for."""
    return float(0.1 * 2.0 ** (row % ROWS / 12))


def row_shift(row: int) -> int:
    """Return the smallest shift that brings the deviation of a row to at most 24 buckets."""
    return next(k for k in range(MAX_SHIFT + 1) if row_sigma(row) / (1 << k) <= _MAX_BUCKET_SIGMA)


def row_frequencies(row: int, prob_bits: int) -> npt.NDArray[np.uint16]:
    """Quantise one Gaussian row to `prob_bits` bits.

    Returns:
        [256] uint16, sum 2**prob_bits.
    """
    return _frequencies(_bucket_probabilities(row), row_shift(row), prob_bits)


def fit_tables(counts: npt.NDArray[np.int64]) -> Tables:
    """Build tables that follow what was counted as far as there was enough of it, and Gaussians beyond.

    Args:
        counts: [384, 256], how often each symbol of each row occurred; escapes in the last column.

    Returns:
        Validated tables.
    """
    freq, shift = np.zeros((TABLE_ROWS, SYMBOLS), np.uint16), np.zeros(TABLE_ROWS, np.uint8)
    for row in range(TABLE_ROWS):
        shift[row] = row_shift(row)
        p = _bucket_probabilities(row)
        p[ESCAPE] = max(0.0, 1.0 - float(p.sum()))
        seen = counts[row].astype(np.float64)
        if not shift[row]:  # a negative residual is as likely as a positive one
            seen[:ESCAPE] = (seen[:ESCAPE] + seen[:ESCAPE][::-1]) / 2
        p = (seen + _PRIOR_COUNT * p) / (seen.sum() + _PRIOR_COUNT)
        freq[row] = _frequencies(p, int(shift[row]), PROB_BITS)
    return Tables(freq, shift).validate()


def _frequencies(p: npt.NDArray[np.float64], shift: int, prob_bits: int) -> npt.NDArray[np.uint16]:
    """Quantise the probabilities of one row.

    A bucket saves the raw bits of escapes, p * (16 - shift), and takes one slot from the others, which costs
    log2(e) / 2**prob_bits. The range is the one that saves most; buckets -1..1 are always kept, because real
    residuals have heavier tails than the narrow rows.
    """
    saved = np.cumsum(
        (_RAW_BITS - shift) * (p[CENTER:ESCAPE] + p[CENTER::-1]) / 2 - math.log2(math.e) / (1 << prob_bits)
    )
    radius = max(1, int(saved.argmax()))
    kept = np.r_[CENTER - radius : CENTER + radius + 1, ESCAPE]
    p = p.copy()
    p[ESCAPE] = max(0.0, 1.0 - float(p[kept[:-1]].sum()))
    freq = np.zeros(SYMBOLS, np.uint16)
    freq[kept] = _optimal_frequencies(p[kept], 1 << prob_bits)
    return freq


def _lower_edges(index: npt.NDArray[np.int64], table: int) -> npt.NDArray[np.float64]:
    """Where the cell of an integer begins, in quantiser steps: half-way to the next value of its table."""
    spacing = 2 * TRELLIS_STEP / LATENT_ONE  # of the values of a set
    if table == 0:
        return index - 0.5
    if table == 1:
        return spacing * (index - 0.5)
    inner = (index == 0) | (index == 1)  # next to zero, which is nearer than the others
    return spacing * np.where(inner, (2 * index - 1) / 4, np.where(index > 0, index - 1, index))


def _bucket_probabilities(row: int) -> npt.NDArray[np.float64]:
    """Integrate the Gaussian over each bucket: [256] float64, the escape still 0."""
    starts = np.arange(-CENTER, CENTER + 2) << row_shift(row)
    edges = _lower_edges(starts, row // ROWS) / (row_sigma(row) * math.sqrt(2.0))
    upper = np.array([math.erfc(edge) for edge in edges])  # tail above each edge; mirrored for accuracy
    lower = np.array([math.erfc(-edge) for edge in edges])
    p = 0.5 * np.where(edges[:-1] > 0, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    return np.append(p, 0.0)


def _optimal_frequencies(p: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Minimise the expected code length -sum(p * log2(freq)) with freq >= 1 and sum(freq) == total.

    The cost is convex and separable, so moving single slots until no move pays is optimal.
    """
    freq: npt.NDArray[np.int64] = np.maximum(1, np.floor(p * total).astype(np.int64))
    while True:
        saved = p * np.log2((freq + 1) / freq)
        lost = np.where(freq > 1, p * np.log2(freq / np.maximum(1, freq - 1)), np.inf)
        give, take = int(saved.argmax()), int(lost.argmin())
        missing = total - int(freq.sum())
        if missing == 0 and saved[give] <= lost[take]:
            break
        if missing >= 0:
            freq[give] += 1
        if missing <= 0:
            freq[take] -= 1
    return freq
