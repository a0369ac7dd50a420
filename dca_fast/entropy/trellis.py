"""Trellis-coded quantisation of y's residuals, in plain Python: the executable specification.

A value v stands for v * 160 / 256 quantiser steps. Which values a symbol may take depends on those before it: a chain
of symbols has one of eight states, and the state one of two sets, {0, +-2, +-4, ...} and {0, +-1, +-3, ...}. What is
coded is the index k of the value in its set; its parity leads to the next state. Steps within a set are larger than the
grid's, so that rates are those of a coarse quantiser, while the search below, free to choose the path, comes close to
the errors of a finer one: 0.1 bits per symbol at the same error (docs/bitstream.md).

Reference: Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources", IEEE Trans. Comm.
1990; zero in both sets: Marcellin, "On entropy-constrained trellis coded quantization", ibid. 1994; this trellis:
JPEG 2000 part 2.

Coded symbol j of a part in a group belongs to chain j % 32; a chain begins in state 0.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dca_fast.config import LATENT_STEPS, SKIP_ROW, TRELLIS_STEP
from dca_fast.errors import InputError

__all__ = ["CHAINS", "STATES", "follow", "index_of", "next_state", "quantise", "set_of", "value_of"]

CHAINS, STATES = 32, 8
LAST_ROW = 127
LIMIT_RESIDUAL = 8191 * LATENT_STEPS
_UNREACHED, _NEVER = 1 << 28, 1 << 40  # costs of a state in which no chain begins, of an index below 0


def set_of(state: int) -> int:
    """Set of a state, 0 or 1."""
    return state & 1


def next_state(state: int, index: int) -> int:
    """State after an index."""
    return (state << 1 & 6) | ((index ^ state.bit_count()) & 1)


def index_of(value: int, which: int) -> int:
    """Index of a value in a set."""
    size = (abs(value) + which) >> 1
    return size if value > 0 else -size


def value_of(index: int, which: int) -> int:
    """Value of an index in a set."""
    return 2 * index - which * ((index > 0) - (index < 0))


def follow(
    values: npt.NDArray[np.int16], rows: npt.NDArray[np.uint8], groups: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What the coded positions of a part are coded as.

    Args:
        values, rows, groups: as of `quantise`.

    Returns:
        Indices and sets, int64 [coded positions].
    """
    coded, n = rows != SKIP_ROW, len(rows)
    indices, which = np.abs(values[coded].astype(np.int64)), np.zeros(int(coded.sum()), np.int64)
    odd = np.array([state.bit_count() & 1 for state in range(STATES)])
    ends = [int(coded[: n * g // groups].sum()) for g in range(groups + 1)]
    for begin, end in pairwise(ends):
        states = np.zeros(CHAINS, np.int64)
        for first in range(begin, end, CHAINS):
            here = slice(first, min(first + CHAINS, end))
            state = states[: here.stop - first]
            which[here] = state & 1
            indices[here] = (indices[here] + which[here]) >> 1
            state[:] = (state << 1 & 6) | ((indices[here] ^ odd[state]) & 1)
    return np.sign(values[coded]) * indices, which


def quantise(
    residuals: npt.NDArray[np.int32], rows: npt.NDArray[np.uint8], charges: npt.NDArray[np.int32], groups: int
) -> npt.NDArray[np.int16]:
    """Find the values with the least squared error + charge (Viterbi's algorithm), chain by chain.

    Args:
        residuals: [n] int32, 1/256 quantiser steps; beyond +-8191 steps they saturate.
        rows: [n] uint8: 0..127, or 255 where nothing is coded.
        charges: [2, 128, 256] int32 of `Tables.charges`.
        groups: of the stream, 1..64.

    Returns:
        [n] int16, 0 where nothing is coded.
    """
    if np.any((rows > LAST_ROW) & (rows != SKIP_ROW)):
        raise InputError("a row is neither a table row nor 255")
    values, n = np.zeros(len(rows), np.int16), len(rows)
    for g in range(groups):
        coded = np.arange(n * g // groups, n * (g + 1) // groups)
        coded = coded[rows[coded] != SKIP_ROW]
        values[coded] = _search(residuals[coded].astype(np.int64), rows[coded], charges)
    return values


def _search(
    residuals: npt.NDArray[np.int64], rows: npt.NDArray[np.uint8], charges: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Values of the coded positions of one group, all chains at once."""
    costs = np.full((STATES, CHAINS), _UNREACHED, np.int64)
    costs[0] = 0
    decisions: list[npt.NDArray[np.int64]] = []  # for each round: state before and index, [state, 2, chain]
    sizes, lanes = np.minimum(np.abs(residuals), LIMIT_RESIDUAL), np.arange(CHAINS)
    rounds = [slice(first, first + CHAINS) for first in range(0, len(residuals), CHAINS)]
    for here in rounds:
        size, row = sizes[here], rows[here]
        metric = {(s, p): _nearest(size, s, p, charges[s, row]) for s in (0, 1) for p in (0, 1)}
        now, new, decision = costs[:, : len(size)], [], []
        for state in range(STATES):
            paths = []
            for before in (state >> 1, state >> 1 | 4):
                cost, index = metric[set_of(before), (state ^ before.bit_count()) & 1]
                paths.append((now[before] + cost, before, index))
            (low, first, a), (high, second, b) = paths
            worse = high < low  # the first one wins ties
            new.append(np.where(worse, high, low))
            decision.append((np.where(worse, second, first), np.where(worse, b, a)))
        decisions.append(np.array(decision))
        now[:] = np.array(new) - np.min(new, axis=0)
    states, values = costs.argmin(axis=0), np.zeros(len(residuals), np.int64)
    for here, taken in zip(rounds[::-1], decisions[::-1], strict=True):
        at = states[: taken.shape[2]]
        at[:], index = taken[at, :, lanes[: len(at)]].T
        values[here] = np.where(residuals[here] < 0, -1, 1) * (2 * index - (at & 1) * (index > 0))
    return values


def _nearest(
    size: npt.NDArray[np.int64], which: int, parity: int, charges: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Least squared error + charge among the two next indices of a parity, and the index; the lower one wins ties.

    `size` [m]; `charges` [m, 256].
    """
    at = (size + TRELLIS_STEP * which) // (2 * TRELLIS_STEP)
    low = np.where(at & 1 == parity, at, at - 1)
    found = []
    for index in (low, low + 2):
        error = size - TRELLIS_STEP * (2 * index - which * (index > 0))
        charge = charges[np.arange(len(size)), np.clip(index, 0, 255)]
        found.append(error * error + charge + _NEVER * (index < 0))
    higher = found[1] < found[0]
    return np.where(higher, found[1], found[0]), np.where(higher, low + 2, low)
