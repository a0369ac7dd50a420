"""The walk over one band of the exact-colour coder: colours that are proposed, known or new.

csrc/exact/exact_model.h does the same.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.exact.decisions import Coin, Encoder, Mixer, RangeCoder, mixed, single
from dca_fast.exact.planes import Impossible, Planes

__all__ = ["BLOCK", "Band", "Map", "Mode", "Samples"]

BLOCK = 16  # pixels of the side of a block

MAX_CANDIDATES = 8
MAX_COLOURS = 4096
GOLDEN = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1

Samples = npt.NDArray[Any]  # uint8 or uint16
Map = npt.NDArray[np.bool_]  # [ceil(H / 16), ceil(W / 16)]: blocks of a picture that are coded
Place = tuple[object, ...]  # of a probability in its table
Colour = int  # samples of a pixel side by side, the first one highest

# Neighbours (columns, rows) in the order in which contexts take them: context i has the first ORDERS[i].
ORDERS = (1, 2, 4, 6, 14, 37)
NEIGHBOURS = (
    (-1, 0), (0, -1), (-1, -1), (1, -1), (-2, 0), (0, -2), (-3, 0), (-2, -1), (2, -1), (-1, -2), (1, -2), (0, -3),
    (2, -2), (-2, -2), (-4, 0), (-3, -1), (3, -1), (-5, 0), (-4, -1), (4, -1), (-6, 0), (-5, -1), (5, -1), (-7, 0),
    (-6, -1), (6, -1), (-8, 0), (-7, -1), (7, -1), (0, -4), (0, -5), (0, -6), (0, -7), (-3, -3), (3, -3), (-5, -5),
    (5, -5),
)  # fmt: skip
TRUST = (0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5)  # classes of a slot's trust
FIRST, LATER, RESIDUAL = range(3)  # how a pixel was coded


def _factors() -> tuple[int, ...]:
    """Of the neighbours in a hash."""
    factors = [GOLDEN]
    while len(factors) < len(NEIGHBOURS):
        factors.append((factors[-1] * 0xD1342543DE82EF95 + 2) & WORD)
    return tuple(factors)


FACTORS = _factors()


def scrambled(x: int) -> int:
    """A hash of 64 bits."""
    x = (x ^ x >> 32) * GOLDEN & WORD
    return x ^ x >> 29


def hashed(a: int, b: int, bits: int) -> int:
    """Of two numbers, in `bits` bits."""
    return (scrambled((a * FACTORS[0] + b * FACTORS[1]) & WORD) * GOLDEN & WORD) >> (64 - bits)


@dataclass(frozen=True)
class Mode:
    """How a stream is coded.

    Args:
        candidates: colours that followed the same neighbours before are proposed first.
        index: with candidates: colours that were there before are coded by their number.
        step: without candidates: step of the quantiser of residuals, odd, 1..127; 1: no loss.
    """

    candidates: bool = False
    index: bool = False
    step: int = 1

    def byte(self) -> int:
        return self.candidates | self.index << 1 | self.step // 2 << 2


@dataclass
class Slot:
    """What followed a context: the colour that did so last, another one, and how often the first was right."""

    first: Colour
    second: Colour | None
    check: int
    trust: int = 1


@dataclass
class Context:
    """Everything around a pixel that is coded with candidates."""

    flat: bool
    w: Colour
    n: Colour
    nw: Colour
    ne: Colour
    pattern: int
    history: int
    noise: int
    order: list[int] = field(default_factory=list)
    slots: list[Slot | None] = field(default_factory=list)
    longest: int = -1


class Band:
    """The walk over one band; the same for an encoder and a decoder.

    Args:
        coder: `Encoder` or `Decoder`.
        height, width, channels: of the band; 1 or 3 channels.
        depth: 8 or 16.
        mode: of the stream.
    """

    def __init__(self, coder: RangeCoder, height: int, width: int, channels: int, depth: int, mode: Mode) -> None:
        self.coder, self.height, self.width, self.channels, self.mode = coder, height, width, channels, mode
        self.depth, self.encoding = depth, isinstance(coder, Encoder)
        self.planes = Planes(coder, width, channels, depth, mode.step)
        size = (height * width).bit_length()
        self.hash_bits, self.slot_bits = min(18, max(12, size + 1)), min(16, max(10, size))
        self.none = 1 << 3 * depth  # no colour
        self.outside = self.none + 1  # of the band
        self.colours_of_rows = [[self.outside] * (width + 20) for _ in range(8)]
        self.kinds = [[FIRST] * (width + 20) for _ in range(2)]
        self.slots: list[dict[int, Slot]] = [{} for _ in ORDERS]
        self.coins: dict[Place, Coin] = defaultdict(Coin)
        self.mixers: dict[Place, Mixer] = {}
        self.runs = [0] * width
        self.colours: list[Colour] = []
        self.number: dict[Colour, int] = {}

    def run(
        self, samples: Samples, top: int = 0, inside: Map | None = None, spent: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Code [height, width, channels]: read by the encoder, written by the decoder.

        Args:
            top: the row of the picture where the band begins.
            inside: of the picture: pixels of other blocks are not coded. None: all are.
            spent: of the picture's blocks: the encoder adds what they take, in 1/256 bits.
        """
        for y in range(self.height):
            self.planes.start_row()
            if y and self.mode.candidates:
                self.colours_of_rows = [[self.outside] * (self.width + 20), *self.colours_of_rows[:-1]]
                self.kinds = [[FIRST] * (self.width + 20), self.kinds[0]]
            for x in range(self.width):
                block = (top + y) // BLOCK, x // BLOCK
                if inside is not None and not inside[block]:
                    self.planes.leave_out(x)
                    continue
                before = self.coder.spent() if isinstance(self.coder, Encoder) else 0
                pixel = tuple(map(int, samples[y, x])) if self.encoding else ()
                pixel = self._with_candidates(x, pixel) if self.mode.candidates else self._residual(x, pixel, 0)
                if not self.encoding:
                    samples[y, x] = pixel
                if spent is not None and isinstance(self.coder, Encoder):
                    spent[block] += self.coder.spent() - before

    def _residual(self, x: int, pixel: tuple[int, ...], noise: int) -> tuple[int, ...]:
        values = self.planes.values_of(pixel) if pixel else []
        return self.planes.pixel_of(self.planes.code(x, values, noise))

    def _colour(self, pixel: tuple[int, ...]) -> Colour:
        colour = 0
        for sample in pixel:
            colour = colour << self.depth | sample
        return colour

    def _pixel(self, colour: Colour) -> tuple[int, ...]:
        return tuple(colour >> self.depth * k & (1 << self.depth) - 1 for k in reversed(range(self.channels)))

    def _mixed(self, bit: int, family: str, keys: list[Place], mixer: int, limits: tuple[int, int]) -> int:
        key = (family, mixer)
        if key not in self.mixers:
            self.mixers[key] = Mixer(len(keys))
        coins = [self.coins[(family, i, *place)] for i, place in enumerate(keys)]
        return mixed(self.coder, bit, coins, self.mixers[key], limits)

    def _with_candidates(self, x: int, pixel: tuple[int, ...]) -> tuple[int, ...]:
        rows = self.colours_of_rows
        colour = self._colour(pixel)
        around = self._around(x)
        hit, kind = False, FIRST
        if around.flat:  # all neighbours agree: one decision
            w = around.w
            far = (rows[3][x + 10], rows[1][x + 13], rows[0][x + 7], rows[2][x + 11])
            wider = sum((c == w) << i for i, c in enumerate(far))
            keys: list[Place] = [(wider, self.runs[x]), (hashed(w, wider, 14),)]
            hit = bool(self._mixed(colour == w, "flat", keys, 0, (17, 29)))
        if hit:
            colour = around.w
            self.runs[x] = min(63, self.runs[x] + 1)
        else:
            self.runs[x] = 0
            self._look_up(x, around)
            colour, kind = self._unlike(x, pixel, colour, around)
            self._learn(colour, around)
        rows[0][x + 10], self.kinds[0][x + 10] = colour, kind
        if kind != RESIDUAL:
            self.planes.put(x, self._pixel(colour))
        return self._pixel(colour)

    def _around(self, x: int) -> Context:
        """Neighbours; one outside of the band is replaced by one that is not."""
        rows, outside, at = self.colours_of_rows, self.outside, x + 10
        w, n, nw, ne = rows[0][at - 1], rows[1][at], rows[1][at - 1], rows[1][at + 1]
        ww, nn, nee = rows[0][at - 2], rows[2][at], rows[1][at + 2]
        if w == outside:
            w = next((c for c in (n, nw) if c != outside), ne)
        n = w if n == outside else n
        nw = n if nw == outside else nw
        ne = n if ne == outside else ne
        ww = w if ww == outside else ww
        nn = n if nn == outside else nn
        flat = w != outside and all(c == w for c in (n, nw, ne, ww, nn)) and nee in (w, outside)
        pattern = sum(equal << i for i, equal in enumerate((w == n, w == nw, n == ne, n == nw, w == ww, n == nn)))
        here, up = self.kinds
        by_residual = [kind == RESIDUAL for kind in (here[at - 1], up[at], up[at + 1], up[at - 1])]
        history, noise = by_residual[0] + 2 * by_residual[1], sum(by_residual)
        return Context(flat, w, n, nw, ne, pattern, history, noise)

    def _look_up(self, x: int, around: Context) -> None:
        """Hashes of the contexts, and what followed them."""
        total = start = 0
        for i, end in enumerate(ORDERS):
            for (dx, dy), factor in zip(NEIGHBOURS[start:end], FACTORS[start:end], strict=True):
                total += self.colours_of_rows[-dy][x + 10 + dx] * factor
            start = end
            order = scrambled((total + i) & WORD)
            slot = self.slots[i].get(order >> (64 - self.slot_bits))
            around.order.append(order)
            around.slots.append(slot if slot is not None and slot.check == order & 0xFFFF else None)
            if around.slots[-1] is not None:
                around.longest = i

    def _candidates(self, around: Context) -> list[Colour]:
        """The colours to propose, the likeliest first: those that followed the longest contexts, then neighbours."""
        proposed: list[Colour | None] = [slot.first for slot in reversed(around.slots) if slot]
        proposed += [slot.second for slot in reversed(around.slots[1:]) if slot]
        proposed += [around.w, around.n, around.ne, around.nw]
        colours = dict.fromkeys(c for c in proposed if c is not None and c < self.none)
        if around.flat:
            colours.pop(around.w, None)
        return list(colours)[:MAX_CANDIDATES]

    def _unlike(self, x: int, pixel: tuple[int, ...], colour: Colour, around: Context) -> tuple[Colour, int]:
        """A pixel that is not like all its neighbours: a candidate, a colour by number, or residuals."""
        candidates, noise = self._candidates(around), around.noise
        number = self.number.get(colour, -1) if self.encoding and self.mode.index else -1
        skipped = False
        if noise == 4:
            proposed = number >= 0 or colour in candidates
            coin = self.coins["skip", min(63, len(self.colours) >> 6)]
            skipped = bool(single(self.coder, not proposed, coin, (11, 29)))
        if not skipped:
            for i, candidate in enumerate(candidates):
                if self._is(candidate, i, colour, around):
                    return candidate, LATER if i else FIRST
        known = 0
        if self.mode.index and not skipped:
            coin = self.coins["known", noise, min(7, len(self.colours) >> 4)]
            known = single(self.coder, number >= 0, coin, (11, 29))
        if known:
            return self._by_number(number, around), LATER
        colour = self._colour(self._residual(x, pixel, noise))
        if self.mode.index and len(self.colours) < MAX_COLOURS and colour not in self.number:
            self.number[colour] = len(self.colours)
            self.colours.append(colour)
        return colour, RESIDUAL

    def _is(self, candidate: Colour, i: int, colour: Colour, around: Context) -> int:
        """Whether it is the i-th candidate."""
        agree = sum(slot is not None and slot.first == candidate for slot in around.slots)
        longest = around.slots[around.longest] if around.longest >= 0 else None
        trust = TRUST[min(21, longest.trust)] if longest else 0
        neighbours = (around.w, around.n, around.ne, around.nw)
        same = sum((candidate == c) << j for j, c in enumerate(neighbours))
        keys: list[Place] = [
            (i, around.longest, trust, agree, around.history, around.noise == 4),
            (i, around.pattern, same, around.noise),
            (hashed(around.order[2], candidate * 8 + i, self.hash_bits),),
        ]
        return self._mixed(candidate == colour, "candidate", keys, i * 7 + around.longest + 1, (12, 26))

    def _by_number(self, number: int, around: Context) -> Colour:
        """A colour by its number among those so far, highest bit first."""
        bits, node = max(1, len(self.colours) - 1).bit_length(), 1
        for i in reversed(range(bits)):
            contexts = (around.w, around.order[1], around.n * 3 + around.nw)
            keys: list[Place] = [(node,), *((hashed(c, node, self.hash_bits),) for c in contexts)]
            node = node << 1 | self._mixed(number >> i & 1, "number", keys, i, (12, 26))
        number = node - (1 << bits)
        if number >= len(self.colours):
            raise Impossible
        return self.colours[number]

    def _learn(self, colour: Colour, around: Context) -> None:
        """Let the contexts know what followed them."""
        for table, order, slot in zip(self.slots, around.order, around.slots, strict=True):
            if slot is None:
                table[order >> (64 - self.slot_bits)] = Slot(colour, None, order & 0xFFFF)
            elif slot.first == colour:
                slot.trust = min(60, slot.trust + 1)
            elif slot.trust > 1:
                slot.trust >>= 1
                slot.second = colour
            else:
                slot.first, slot.second = colour, slot.first
