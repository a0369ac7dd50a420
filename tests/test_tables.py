"""Probability tables: rules of the format, closeness to the Gaussian, and refusal of damaged tables."""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from dca_fast.config import LATENT_ONE, TRELLIS_STEP
from dca_fast.entropy import trellis
from dca_fast.entropy.tables import (
    CENTER,
    ESCAPE,
    PROB_BITS,
    ROWS,
    SYMBOLS,
    TABLE_ROWS,
    Tables,
    build_gaussian_tables,
    fit_tables,
    row_frequencies,
    row_shift,
    row_sigma,
)
from dca_fast.errors import WeightsError

TABLES = build_gaussian_tables()
STEP = TRELLIS_STEP / LATENT_ONE  # of the trellis, in quantiser steps
TOTAL = 1 << PROB_BITS
Floats = npt.NDArray[np.float64]
Frequencies = npt.NDArray[np.uint16]


def gaussian(row: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Integers -2000..2000 of a row's table and the probability of each: of what is nearest to its value."""
    values = np.arange(-2000, 2001)
    table = row // ROWS
    middles = values * 1.0 if table == 0 else np.array([STEP * trellis.value_of(int(k), table - 1) for k in values])
    edges = np.r_[middles[0] - 1, (middles[1:] + middles[:-1]) / 2, middles[-1] + 1] / (row_sigma(row) * math.sqrt(2))
    above, below = (np.array([math.erfc(sign * edge) for edge in edges]) for sign in (1, -1))
    p = np.where(edges[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1]) / 2
    return values, p


def entropy_and_cost(row: int, freq: Frequencies) -> tuple[float, float]:
    """Entropy of a row's Gaussian and the expected cost of coding it with `freq`, bits per value."""
    values, p = gaussian(row)
    symbol = (values >> row_shift(row)) + CENTER
    kept = (symbol >= 0) & (symbol < ESCAPE) & (freq[symbol.clip(0, ESCAPE)] > 0)
    coded = np.where(kept, symbol, ESCAPE)
    bits = math.log2(freq.sum()) - np.log2(freq[coded]) + np.where(kept, row_shift(row), 16)
    return -float((p[p > 0] * np.log2(p[p > 0])).sum()), float((p * bits).sum())


def test_the_tables_are_those_of_the_format() -> None:
    assert (TABLES.freq.sum(axis=1) == TOTAL).all()
    assert (TABLES.freq[:, ESCAPE] >= 1).all()
    assert TABLES.freq.max() < TOTAL
    shifts = [row_shift(row) for row in range(TABLE_ROWS)]
    assert TABLES.shift.tolist() == shifts == 3 * ([0] * 95 + [1] * 12 + [2] * 12 + [3] * 9)
    assert all(row_sigma(row) / 2**shift <= 24 for row, shift in enumerate(shifts))
    assert row_sigma(0) == 0.1
    assert row_sigma(24) == row_sigma(152) == row_sigma(280) == pytest.approx(0.4)


def test_every_row_codes_one_symmetric_range() -> None:
    radii = []
    for freq in TABLES.freq:
        coded = np.flatnonzero(freq[:ESCAPE]) - CENTER
        radii.append(int(coded[-1]))
        assert coded.tolist() == list(range(-radii[-1], radii[-1] + 1))
    assert min(radii) == 1
    assert max(radii) < CENTER
    for table in range(3):
        assert radii[ROWS * table :][:95] == sorted(radii[ROWS * table :][:95])


@pytest.mark.parametrize("row", range(TABLE_ROWS))
def test_the_cost_is_close_to_the_entropy(row: int) -> None:
    entropy, cost = entropy_and_cost(row, TABLES.freq[row])
    assert entropy - 1e-9 <= cost <= entropy + 0.0011 + 0.001 * entropy


def test_the_average_cost_is_within_a_twentieth_of_a_percent() -> None:
    rows = [entropy_and_cost(row, TABLES.freq[row]) for row in range(12, 61)]
    entropy, cost = np.sum(rows, axis=0)
    assert cost < entropy * 1.0005


def moved(freq: Frequencies, *moves: tuple[int, int, int]) -> Frequencies:
    """Copy of `freq` with (slots, from symbol, to symbol) moved."""
    freq = freq.copy()
    for slots, source, target in moves:
        freq[source] -= slots
        freq[target] += slots
    return freq


@pytest.mark.parametrize("row", range(4, TABLE_ROWS, 9))
def test_no_other_frequencies_are_better(row: int) -> None:
    freq = TABLES.freq[row]
    low, high = (int(symbol) for symbol in np.flatnonzero(freq[:ESCAPE])[[0, -1]])
    others = [moved(freq, (1, CENTER, low - 1), (1, CENTER, high + 1))]
    if high > CENTER + 1:
        others.append(moved(freq, (int(freq[low]), low, CENTER), (int(freq[high]), high, CENTER)))
    large = np.flatnonzero(freq > 1).tolist()
    for source, target in zip(large, [ESCAPE, *large[::-1]], strict=False):
        others += [moved(freq, (1, source, target)), moved(freq, (1, CENTER, source))]
    best = entropy_and_cost(row, freq)[1]
    for other in others:
        assert other.sum() == TOTAL
        assert entropy_and_cost(row, other)[1] >= best - 1e-6


@pytest.mark.parametrize("bits", [11, 12, 13])
def test_more_bits_are_closer_to_the_entropy(bits: int) -> None:
    coarse, fine = (
        sum(entropy_and_cost(row, row_frequencies(row, b))[1] for row in range(0, ROWS, 8)) for b in (bits, bits + 1)
    )
    assert fine < coarse


def test_row_bits_is_the_expected_cost_under_the_table_itself() -> None:
    bits = TABLES.row_bits()
    for row in (*range(12, ROWS), *range(ROWS + 24, 2 * ROWS), *range(2 * ROWS + 12, TABLE_ROWS)):
        assert bits[row] == pytest.approx(entropy_and_cost(row, TABLES.freq[row])[1], rel=0.05, abs=0.005)
    p = np.array([0.5, 0.25, 0.25])
    freq = np.zeros((TABLE_ROWS, SYMBOLS), np.uint16)
    freq[:, [CENTER, CENTER + 1, ESCAPE]] = p * TOTAL
    shifted = Tables(freq, np.full(TABLE_ROWS, 2, np.uint8))
    assert shifted.row_bits() == pytest.approx(1.5 + 0.75 * 2 + 0.25 * 16)
    mean = TABLES.mean_bits()
    assert np.array_equal(mean[0], bits[:ROWS])
    assert mean[1] == pytest.approx((bits[ROWS : 2 * ROWS] + bits[2 * ROWS :]) / 2)


def test_the_digest_covers_both_arrays() -> None:
    assert TABLES.digest() == build_gaussian_tables().digest()
    other = TABLES.freq.copy()
    other[3, CENTER] -= 1
    other[3, CENTER + 1] += 1
    shift = TABLES.shift.copy()
    shift[0] = 1
    digests = {TABLES.digest(), Tables(other, TABLES.shift).digest(), Tables(TABLES.freq, shift).digest()}
    assert len(digests) == 3


def _add(row: int, symbol: int, step: int) -> Callable[[Tables], Tables]:
    def change(tables: Tables) -> Tables:
        tables.freq[row, symbol] = int(tables.freq[row, symbol]) + step
        return tables

    return change


def _no_escape(tables: Tables) -> Tables:
    tables.freq[5, CENTER] += tables.freq[5, ESCAPE]
    tables.freq[5, ESCAPE] = 0
    return tables


def _one_symbol(tables: Tables) -> Tables:
    tables.freq[9] = 0
    tables.freq[9, ESCAPE] = TOTAL
    return tables


def _large_shift(tables: Tables) -> Tables:
    tables.shift[100] = 9
    return tables


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_add(7, CENTER, 1), "row 7: frequencies do not sum to 4096"),
        (_add(127, CENTER + 1, -1), "row 127: frequencies do not sum to 4096"),
        (_no_escape, "row 5: the escape symbol has no frequency"),
        (_one_symbol, "row 9: a frequency is above 4095"),
        (_large_shift, "row 100: the shift is above 8"),
        (lambda t: Tables(t.freq.astype(np.int32), t.shift), "freq must be uint16"),
        (lambda t: Tables(t.freq[:64], t.shift), "freq must be uint16"),
        (lambda t: Tables(t.freq, t.shift.astype(np.int64)), "shift must be uint8"),
        (lambda t: Tables(t.freq, t.shift[:, None]), "shift must be uint8"),
    ],
)
def test_damaged_tables_are_refused(damage: Callable[[Tables], Tables], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        damage(Tables(TABLES.freq.copy(), TABLES.shift.copy())).validate()


def test_tables_fitted_to_nothing_are_gaussian() -> None:
    fitted = fit_tables(np.zeros((TABLE_ROWS, SYMBOLS), np.int64))
    assert (fitted.freq == TABLES.freq).all()
    assert (fitted.shift == TABLES.shift).all()


def test_single_outliers_do_not_widen_a_row() -> None:
    counts = np.zeros((TABLE_ROWS, SYMBOLS), np.int64)
    for row in (8, 20):
        counts[row] = np.rint(TABLES.freq[row] / TOTAL * 3000)
        counts[row, CENTER + 100] = 1
    counts[40, ESCAPE] = 10**8
    fitted = fit_tables(counts)
    for row in (8, 20):
        before, after = (entropy_and_cost(row, tables.freq[row])[1] for tables in (TABLES, fitted))
        assert after < 1.01 * before + 0.001
    assert fitted.freq[40, ESCAPE] > 4000


def test_fitted_tables_code_what_they_saw_in_fewer_bits() -> None:
    """Laplacian symbols where the rows stand for Gaussians of the same deviation; another draw is the test."""
    generator, rows = np.random.default_rng(2), (8, 30, 60, 90, 100)
    draws = []
    for _ in range(2):
        counts = np.zeros((TABLE_ROWS, SYMBOLS), np.int64)
        for row in rows:
            values = np.rint(generator.laplace(scale=row_sigma(row) / math.sqrt(2), size=20000)).astype(int)
            bucket = (values >> row_shift(row)) + CENTER
            np.add.at(counts[row], np.where((bucket < 0) | (bucket >= ESCAPE), ESCAPE, bucket), 1)
        draws.append(counts)
    fitted = fit_tables(draws[0])
    before, after = ((draws[1] * tables.symbol_bits()).sum(1) for tables in (TABLES, fitted))
    for row in rows:
        assert after[row] < 0.995 * before[row], row
    untouched = [row for row in range(TABLE_ROWS) if row not in rows]
    assert (fitted.freq[untouched] == TABLES.freq[untouched]).all()
    assert (fitted.freq[30, :ESCAPE] == fitted.freq[30, :ESCAPE][::-1]).sum() > ESCAPE - 30


def test_charges_are_code_lengths() -> None:
    charges = TABLES.charges(1 / 16)
    assert charges.shape == (2, ROWS, SYMBOLS)
    for which, row, size in ((0, 30, 0), (0, 30, 1), (1, 30, 2), (1, 70, 9), (0, 100, 31)):
        table_row = ROWS * (1 + which) + row
        shift = int(TABLES.shift[table_row])
        bits = PROB_BITS - math.log2(TABLES.freq[table_row, CENTER + (size >> shift)]) + shift
        assert charges[which, row, size] == pytest.approx(bits / 16 * LATENT_ONE**2, abs=9)  # kept in 1/256 bit
    escape = PROB_BITS - math.log2(TABLES.freq[ROWS, ESCAPE]) + 16
    assert charges[0, 0, 200] == pytest.approx(escape / 16 * LATENT_ONE**2, abs=9)
    assert hashlib.sha256(charges.astype("<i4").tobytes()).hexdigest()[:16] == "5d5f29a998888c44"  # on every machine


def test_bits_of_values_are_those_of_their_symbols() -> None:
    rows = np.array([20, 255, 60, 110, 20], np.uint8)
    values = np.array([1, 7, -2000, 33, 0], np.int16)
    symbols, at = TABLES.coded(values, rows)
    assert at.tolist() == [20, 60, 110, 20]
    assert symbols.tolist() == [CENTER + 1, ESCAPE, CENTER + (33 >> row_shift(110)), CENTER]
    freq = TABLES.freq[at, symbols]
    raw = np.array([0, 16, row_shift(110), 0])
    assert TABLES.value_bits(values, rows) == pytest.approx(PROB_BITS - np.log2(freq) + raw)
    # In a trellis the chain of each group begins in state 0, whose set is the first one.
    even = np.array([2, 0, -4, 66, 0], np.int16)
    symbols, at = TABLES.coded(even, rows, 4)
    assert at.tolist() == [148, 188, 238, 148]
    assert symbols.tolist() == [CENTER + 1, CENTER - 2, CENTER + (33 >> row_shift(110)), CENTER]
