"""The coder in plain Python: the executable specification of the stream, written for clarity.

Stream:  byte log2(lanes) | byte groups | LEB128 sizes of all groups but the last | group streams
Group:   lanes x uint32 final states | uint16 words; all numbers little-endian
Positions with row 255 hold value 0 and are not coded. The n coded symbols of a part are cut into the
ranges [n*g//groups, n*(g+1)//groups); symbol j of a range belongs to lane j % lanes, and in parts of a
trellis to chain j % chains (`dca_fast.entropy.trellis`), where no more lanes than chains are used.
Symbols are processed in rounds of one for each lane. A decoder takes the words of one round in three
sweeps over the lanes: refills after the frequencies, refills after the raw low bits, raw values of
escapes. The encoder does exactly the opposite, from the last symbol of the last part to the first.

Where an encoder begins, the 17 bits of a lane's state say nothing. So it begins with a quarter of the
lanes, which code the tail: the last 1/32 of the last part. The other lanes then begin with the words
written so far, as the low 16 bits of their states, and a decoder has them back when it comes to the tail.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dca_fast.entropy.tables import CENTER, ESCAPE, PROB_BITS, ROWS, SKIP_ROW, Tables
from dca_fast.entropy.trellis import CHAINS, chains_of, index_of, next_state, set_of, value_of
from dca_fast.errors import CorruptStreamError, InputError, TruncatedStreamError
from dca_fast.leb128 import leb128, read_leb128

__all__ = ["Decoder", "encode"]

LOWER = 1 << 16  # states live in [LOWER, LOWER << 16)
TAIL_SHARE = 32
MAX_GROUPS = 64
Values = npt.NDArray[np.int16]
Rows = npt.NDArray[np.uint8]


def encode(tables: Tables, parts: Sequence[tuple[Values, Rows]], plain: int, lanes: int, groups: int) -> bytes:
    """Encode parts of (values int16 [n], rows uint8 [n]) into one stream; all after the first `plain` of a trellis."""
    streams = []
    for g in range(groups):
        states, words = [LOWER] * lanes, list[int]()  # words last first: rANS is a stack
        for i, (values, rows) in reversed(list(enumerate(parts))):
            coded = [(int(values[position]), row) for position, row in _coded(rows, g, groups)]
            chains = CHAINS if i < plain else chains_of(int(np.sum(rows != SKIP_ROW)), groups)
            coded = coded if i < plain else _indices(coded, chains)
            tail, few = tail_begin(len(coded)) if i == len(parts) - 1 else len(coded), tail_lanes(lanes)
            for first, count in reversed(_rounds(tail, len(coded), min(few, chains))):
                _encode_round(tables, coded[first : first + count], states, words)
            if i == len(parts) - 1:
                states[few:] = [LOWER | (words.pop() if words else 0) for _ in range(few, lanes)]
            for first, count in reversed(_rounds(0, tail, min(lanes, chains))):
                _encode_round(tables, coded[first : first + count], states, words)
        streams.append(np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes())
    sizes = b"".join(leb128(len(stream)) for stream in streams[:-1])
    return bytes([lanes.bit_length() - 1, groups]) + sizes + b"".join(streams)


def _encode_round(tables: Tables, coded: list[tuple[int, int]], states: list[int], words: list[int]) -> None:
    def spill(lane: int, limit: int) -> None:
        if states[lane] >= limit:
            words.append(states[lane] & 0xFFFF)
            states[lane] >>= 16

    lanes = [(lane, value, row, _symbol(tables, value, row)) for lane, (value, row) in enumerate(coded)][::-1]
    words.extend(value & 0xFFFF for _, value, _, symbol in lanes if symbol == ESCAPE)
    for lane, value, row, symbol in lanes:
        if symbol != ESCAPE and (shift := int(tables.shift[row])):
            spill(lane, 1 << (32 - shift))
            states[lane] = states[lane] << shift | value & ((1 << shift) - 1)
    for lane, _, row, symbol in lanes:
        freq, start = int(tables.freq[row, symbol]), int(tables.freq[row, :symbol].sum())
        spill(lane, freq << (32 - PROB_BITS))
        states[lane] = (states[lane] // freq << PROB_BITS) + states[lane] % freq + start


def _rounds(begin: int, end: int, count: int) -> list[tuple[int, int]]:
    """Where each round of so many symbols begins, and how many it has."""
    return [(first, min(count, end - first)) for first in range(begin, end, count)]


def _indices(coded: list[tuple[int, int]], chains: int) -> list[tuple[int, int]]:
    """Values and rows of a trellis -> its indices and the rows of its tables."""
    states, out = [0] * chains, []
    for j, (value, row) in enumerate(coded):
        state = states[j % chains]
        index = index_of(value, set_of(state))
        if value_of(index, set_of(state)) != value:
            raise InputError("a value is not on the grid of its state")
        out.append((index, table_row(row, state)))
        states[j % chains] = next_state(state, index)
    return out


def tail_lanes(lanes: int) -> int:
    """How many lanes the tail has."""
    return max(1, lanes // 4)


def tail_begin(symbols: int) -> int:
    """Where the tail of so many coded symbols of the last part begins: at a whole round of chains."""
    return symbols * (TAIL_SHARE - 1) // (TAIL_SHARE * CHAINS) * CHAINS


def table_row(row: int, state: int) -> int:
    """Row of the tables for a row of a trellis in a state."""
    return ROWS * (1 + set_of(state)) + row


class Decoder:
    """Decodes the parts of one stream in the order they were encoded."""

    def __init__(self, tables: Tables, stream: bytes) -> None:
        self._tables = tables
        self._lanes, self._states, self._words = _open(stream)
        self._spare = [False] * len(self._words)  # whether all words that are left come from lanes

    def decode(self, rows: Rows, trellis: bool = False, last: bool = False) -> Values:
        """Decode the next part: rows uint8 [n] -> values int16 [n]; `last`: of the stream."""
        values = np.zeros(len(rows), np.int16)
        for g, (states, words) in enumerate(zip(self._states, self._words, strict=True)):
            coded, count = _coded(rows, g, len(self._states)), CHAINS
            if trellis:
                count = chains_of(int(np.sum(rows != SKIP_ROW)), len(self._states))
            chains = [0] * count
            tail, few = tail_begin(len(coded)) if last else len(coded), tail_lanes(self._lanes)
            rounds = _rounds(0, tail, min(self._lanes, count)) + _rounds(tail, len(coded), min(few, count))
            for first, symbols in rounds:
                if first == tail:
                    self._spare[g] = not words
                    words += [state & 0xFFFF for state in states[: few - 1 : -1]]
                    states[few:] = [LOWER if state >> 16 == 1 else 0 for state in states[few:]]
                positions, round_rows = zip(*coded[first : first + symbols], strict=True)
                if not trellis:
                    values[list(positions)] = self._decode_round(round_rows, states, words)
                    continue
                used = [(first + lane) % count for lane in range(symbols)]
                table_rows = [table_row(row, chains[c]) for row, c in zip(round_rows, used, strict=True)]
                indices = self._decode_round(table_rows, states, words)
                for position, c, index in zip(positions, used, indices, strict=True):
                    values[position] = np.int64(value_of(index, set_of(chains[c]))).astype(np.int16)
                    chains[c] = next_state(chains[c], index)
        return values

    def _decode_round(self, rows: Sequence[int], states: list[int], words: list[int]) -> list[int]:
        def word() -> int:
            if not words:
                raise TruncatedStreamError("a coder group ends before its symbols")
            return words.pop()

        def refill(lane: int) -> None:
            if states[lane] < LOWER:
                states[lane] = states[lane] << 16 | word()

        symbols = []
        for lane, row in enumerate(rows):
            slot, freq = states[lane] % (1 << PROB_BITS), self._tables.freq[row]
            symbol = int(np.searchsorted(freq.cumsum(), slot, side="right"))
            states[lane] = int(freq[symbol]) * (states[lane] >> PROB_BITS) + slot - int(freq[:symbol].sum())
            refill(lane)
            symbols.append(symbol)
        values = [symbol - CENTER for symbol in symbols]
        for lane, row in enumerate(rows):
            if symbols[lane] != ESCAPE and (shift := int(self._tables.shift[row])):
                values[lane] = values[lane] << shift | states[lane] & ((1 << shift) - 1)
                states[lane] >>= shift
                refill(lane)
        for lane, symbol in enumerate(symbols):
            if symbol == ESCAPE:
                values[lane] = (word() ^ 0x8000) - 0x8000  # int16 of a uint16
        return values

    def finish(self) -> None:
        """Raise CorruptStreamError unless the stream ends exactly here."""
        unused = any(any(words) if spare else words for words, spare in zip(self._words, self._spare, strict=True))
        if unused or any(state != LOWER for states in self._states for state in states):
            raise CorruptStreamError("coder words are left over or the final states are wrong")


def _coded(rows: Rows, group: int, groups: int) -> list[tuple[int, int]]:
    """Positions and rows of the coded symbols of one group."""
    if np.any((rows >= ROWS) & (rows != SKIP_ROW)):
        raise InputError("a row is neither a table row nor 255")
    coded = np.flatnonzero(rows != SKIP_ROW)
    own = coded[len(coded) * group // groups : len(coded) * (group + 1) // groups]
    return list(zip(own.tolist(), rows[own].tolist(), strict=True))


def _symbol(tables: Tables, value: int, row: int) -> int:
    symbol = (value >> int(tables.shift[row])) + CENTER
    return symbol if 0 <= symbol < ESCAPE and tables.freq[row, symbol] > 0 else ESCAPE


def _open(stream: bytes) -> tuple[int, list[list[int]], list[list[int]]]:
    """Take a stream apart: number of lanes, states of each group, words of each group (last first)."""
    if len(stream) < 2:
        raise TruncatedStreamError("the coder stream ends in its header")
    lanes, groups, offset = 1 << min(stream[0], 6), stream[1], 2
    if lanes > 32 or not 1 <= groups <= MAX_GROUPS:
        raise CorruptStreamError("the coder stream has an unknown number of lanes or groups")
    sizes = []
    for _ in range(groups - 1):
        cut = TruncatedStreamError("the coder stream ends in its header")
        malformed = CorruptStreamError("a group size of the coder stream is not canonical")
        size, offset = read_leb128(stream, offset, 5, cut, malformed)
        sizes.append(size)
    states, words = [], []
    for size in [*sizes, max(0, len(stream) - offset - sum(sizes))]:
        group, offset = stream[offset : offset + size], offset + size
        if len(group) < max(size, 4 * lanes):
            raise TruncatedStreamError("a coder group is cut short")
        if size % 2:
            raise CorruptStreamError("a coder group has an odd number of bytes")
        states.append(np.frombuffer(group, "<u4", lanes).tolist())
        words.append(np.frombuffer(group[4 * lanes :], "<u2").tolist()[::-1])
        if min(states[-1]) < LOWER:
            raise CorruptStreamError("a coder state is out of range")
    return lanes, states, words
