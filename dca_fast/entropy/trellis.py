"""Trellis-coded quantisation of y's residuals, in plain Python: the executable specification.

A value v stands for v * 160 / 256 quantiser steps. Which values a symbol may take depends on those before it: a chain
of symbols has one of 256 states, and the state one of two sets, {0, +-2, +-4, ...} and {0, +-1, +-3, ...}. What is
coded is the index k of the value in its set; its parity leads to the next state. Values of a set are twice as far apart
as those of both, so that rates are those of a coarse quantiser, while the search below, free to choose the path, comes
close to the errors of a finer one (docs/design/trellis.md).

Reference: Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources", IEEE Trans. Comm.
1990; zero in both sets: Marcellin, "On entropy-constrained trellis coded quantization", ibid. 1994; systematic encoders
with feedback: Ungerboeck, "Channel coding with multilevel/phase signals", IEEE Trans. Inf. Theory 1982.

Coded symbol j of a part in a group belongs to chain j % `chains_of`; a chain begins in state 0.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dca_fast.config import LATENT_ONE, SKIP_ROW, TRELLIS_STEP
from dca_fast.errors import InputError

__all__ = ["CHAINS", "STATES", "chains_of", "follow", "index_of", "next_state", "quantise", "set_of", "value_of"]

CHAINS, STATES = 32, 256  # chains: at most
CHAIN_SYMBOLS = 1024  # of each chain at least, unless there is but one
BY_SET, BY_PARITY = 173, 69  # what a set of 1 and an odd index turn over in the next state
LAST_ROW = 127
LIMIT_RESIDUAL = 8191 * LATENT_ONE
# An edge's squared error + charge counts from the least of its symbol, in 1/1024 of a squared quantiser step and not
# beyond a limit. So costs of paths differ by little more than twice what leads from any state to any other in MEMORY
# edges, and fit into 16 bits.
EDGE_SHIFT, EDGE_LIMIT, MEMORY = 6, 2000, STATES.bit_length() - 1
_UNREACHED, _NEVER = MEMORY * EDGE_LIMIT + 1, 1 << 40  # costs of a state in which no chain begins, of an index below 0


def chains_of(symbols: int, groups: int) -> int:
    """How many chains each group has in a part of so many coded symbols: 1, 2, 4, ... 32.

    The first symbols of a chain have little choice of sets, which costs as much as some three bits. But a decoder takes
    no more symbols at once than there are chains.
    """
    return 1 << max(1, min(symbols // groups // CHAIN_SYMBOLS, CHAINS)).bit_length() - 1


def set_of(state: int) -> int:
    """Set of a state, 0 or 1."""
    return state & 1


def next_state(state: int, index: int) -> int:
    """State after an index."""
    return state >> 1 ^ (state & 1) * BY_SET ^ (index & 1) * BY_PARITY


# The set from which each state is entered, and the states before it when the index was even and when it was odd.
_SETS = np.arange(STATES) // (STATES // 2)
_BEFORE = np.stack([(np.arange(STATES) ^ _SETS * BY_SET ^ i * BY_PARITY) << 1 & STATES - 1 | _SETS for i in (0, 1)])


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
    coded = rows != SKIP_ROW
    indices, which = np.abs(values[coded].astype(np.int64)), np.zeros(int(coded.sum()), np.int64)
    chains = chains_of(len(indices), groups)
    for begin, end in pairwise(len(indices) * g // groups for g in range(groups + 1)):
        states = np.zeros(chains, np.int64)
        for first in range(begin, end, chains):
            here = slice(first, min(first + chains, end))
            state = states[: here.stop - first]
            which[here] = state & 1
            indices[here] = (indices[here] + which[here]) >> 1
            state[:] = state >> 1 ^ which[here] * BY_SET ^ (indices[here] & 1) * BY_PARITY
    return np.sign(values[coded]) * indices, which


def quantise(
    residuals: npt.NDArray[np.int32], rows: npt.NDArray[np.uint8], charges: npt.NDArray[np.int32], groups: int
) -> npt.NDArray[np.int16]:
    """Find the values with the least squared error + charge (Viterbi's algorithm), chain by chain.

    Args:
        residuals: [n] int32, 1/256 quantiser steps; beyond +-8191 quantiser steps they saturate.
        rows: [n] uint8: 0..127, or 255 where nothing is coded.
        charges: [2, 128, 256] int32 of `Tables.charges`.
        groups: of the stream, 1..64.

    Returns:
        [n] int16, 0 where nothing is coded.
    """
    if np.any((rows > LAST_ROW) & (rows != SKIP_ROW)):
        raise InputError("a row is neither a table row nor 255")
    values, coded = np.zeros(len(rows), np.int16), np.flatnonzero(rows != SKIP_ROW)
    chains = chains_of(len(coded), groups)
    for begin, end in pairwise(len(coded) * g // groups for g in range(groups + 1)):
        own = coded[begin:end]
        values[own] = _search(residuals[own].astype(np.int64), rows[own], charges, chains)
    return values


def _search(
    residuals: npt.NDArray[np.int64], rows: npt.NDArray[np.uint8], charges: npt.NDArray[np.int32], chains: int
) -> npt.NDArray[np.int64]:
    """Values of the coded positions of one group, all chains at once."""
    costs = np.full((STATES, chains), _UNREACHED, np.int64)
    costs[0] = 0
    decisions: list[npt.NDArray[np.int64]] = []  # for each round: state before and index, [2, state, chain]
    sizes, lanes = np.minimum(np.abs(residuals), LIMIT_RESIDUAL), np.arange(chains)
    rounds = [slice(first, first + chains) for first in range(0, len(residuals), chains)]
    for here in rounds:
        size, row = sizes[here], rows[here]
        edges = [[_nearest(size, s, parity, charges[s, row]) for parity in (0, 1)] for s in (0, 1)]
        cost, index = np.array(edges).transpose(2, 1, 0, 3)  # [parity, set, chain]
        cost = np.minimum(cost - cost.min(axis=(0, 1)) >> EDGE_SHIFT, EDGE_LIMIT)
        now = costs[:, : len(size)]
        even, odd = now[_BEFORE[0]] + cost[0, _SETS], now[_BEFORE[1]] + cost[1, _SETS]
        taken = np.where(odd < even, 1, 0)  # an even index wins ties
        before = np.where(taken, _BEFORE[1][:, None], _BEFORE[0][:, None])
        decisions.append(np.stack([before, index[taken, _SETS[:, None], lanes[: len(size)]]]))
        now[:] = np.minimum(even, odd)
    states, values = costs.argmin(axis=0), np.zeros(len(residuals), np.int64)
    for here, taken in zip(rounds[::-1], decisions[::-1], strict=True):
        state = states[: taken.shape[2]]
        state[:], index = taken[:, state, lanes[: len(state)]]
        values[here] = np.where(residuals[here] < 0, -1, 1) * (2 * index - (state & 1) * (index > 0))
    return values


def _nearest(
    size: npt.NDArray[np.int64], which: int, parity: int, charges: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Least squared error + charge among the two next indices of a parity, and the index; the lower one wins ties.

    `size` [m]; `charges` [m, 256].
    """
    below = (size + TRELLIS_STEP * which) // (2 * TRELLIS_STEP)
    low = np.where(below & 1 == parity, below, below - 1)
    costs = []
    for index in (low, low + 2):
        error = size - TRELLIS_STEP * (2 * index - which * (index > 0))
        charge = charges[np.arange(len(size)), np.clip(index, 0, 255)]
        costs.append(error * error + charge + _NEVER * (index < 0))
    higher = costs[1] < costs[0]
    return np.where(higher, costs[1], costs[0]), np.where(higher, low + 2, low)
