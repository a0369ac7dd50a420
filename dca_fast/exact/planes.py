"""Residuals of planes: what the exact-colour coder does where no colour was there before.

A sample is predicted by eight predictors, weighted by their recent errors, and a filter that learns from every error
(normalised LMS: Nagumo and Noda, 1967); what remains is coded as its magnitude and sign. csrc/exact/exact_model.h
does the same.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from dca_fast.exact.decisions import Coin, Mixer, RangeCoder, mixed

__all__ = ["Impossible", "Planes", "level_of"]

LEVELS = 44  # of sums of errors
TAPS = 24
STEP_SIZE = 192 * 256  # of the filter
FOLLOW = (18, 31)  # how fast probabilities follow


class Impossible(Exception):
    """The stream says what cannot be."""


def level_of(x: int) -> int:
    """Half octaves of x + 1: 0, 1, 2, 3, 3, 4, 4, 5, 5, 5, 5, 6, ..."""
    n = (x + 1).bit_length()
    return 0 if n < 2 else 2 * n - 3 + ((x + 1) >> (n - 2) & 1)


def _clamp(x: int, low: int, high: int) -> int:
    return min(high, max(low, x))


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)


@dataclass
class Site:
    """A sample of one plane: its value, its residual, and by how much every predictor missed it, in 1/8."""

    value: int = 0
    error: int = 0
    miss: list[int] = field(default_factory=lambda: [0] * 8)


class Row(list[Site]):
    """A row of one plane with three columns more on both sides."""

    def __init__(self, width: int, value: int) -> None:
        super().__init__(Site(value) for _ in range(width + 6))

    def at(self, x: int) -> Site:
        return self[x + 3]


class Planes:
    """Green and the differences to it (red, blue), or gray, of one band, with the rows that predictions look at.

    Args:
        coder: of the decisions.
        width: samples in a row.
        channels: 1 or 3.
        depth: 8 or 16, bits per sample.
        step: of the quantiser of residuals, odd; 1: no loss.
    """

    def __init__(self, coder: RangeCoder, width: int, channels: int, depth: int, step: int) -> None:
        self.coder, self.width, self.channels, self.step = coder, width, channels, step
        self.deep, self.most = depth == 16, (1 << depth) - 1
        self.buckets = level_of(2 * self.most) + 1  # of magnitudes
        first = [(1 << depth) // 2, 0, 0]
        self.rows = [[Row(width, first[k]) for _ in range(3)] for k in range(channels)]  # this one, and two above
        self.filters = [[0] * TAPS for _ in range(channels)]  # in 1/16384
        self.biases: dict[tuple[int, ...], int] = defaultdict(int)  # in 1/2048
        self.coins: dict[tuple[int, ...], Coin] = defaultdict(Coin)
        self.mixers: dict[tuple[int, ...], Mixer] = {}
        self._first = True

    def start_row(self) -> None:
        """Begin a row: columns beside the picture repeat the samples at its sides."""
        for rows in self.rows:
            rows.insert(0, Row(self.width, 0))
            rows.pop()
            here, above = rows[0], rows[1]
            for i in range(3):
                if not self._first:
                    above[self.width + 3 + i] = above[self.width + 2]
                here[2 - i] = above[3]
        self._first = False

    def values_of(self, pixel: tuple[int, ...]) -> list[int]:
        """Samples (gray, or red, green and blue) to the values of the planes."""
        if self.channels == 1:
            return [pixel[0]]
        return [pixel[1], pixel[0] - pixel[1], pixel[2] - pixel[1]]

    def pixel_of(self, values: list[int]) -> tuple[int, ...]:
        """The reverse, within the range of samples where there is loss.

        Raises:
            Impossible: a sample is outside of its range.
        """
        pixel = values if self.channels == 1 else [values[0] + values[1], values[0], values[0] + values[2]]
        if self.step > 1:
            pixel = [_clamp(sample, 0, self.most) for sample in pixel]
        if any(not 0 <= sample <= self.most for sample in pixel):
            raise Impossible
        return tuple(pixel)

    def put(self, x: int, pixel: tuple[int, ...]) -> None:
        """A pixel that was coded in another way."""
        for rows, value in zip(self.rows, self.values_of(pixel), strict=True):
            rows[0][x + 3] = Site(value)

    def leave_out(self, x: int) -> None:
        """A pixel that is not coded: the values of the one on its left stand there."""
        for rows in self.rows:
            rows[0][x + 3] = Site(rows[0].at(x - 1).value)

    def code(self, x: int, values: list[int], noise: int) -> list[int]:
        """Code the residuals of one pixel.

        Args:
            x: column.
            values: of the planes; of no meaning to the decoder.
            noise: how many of four neighbours were coded so, where the others were candidates; else 0.

        Returns:
            The values that the decoder has.
        """
        before: list[int] = [0, 0]  # residuals of the planes before, the last one first
        known: list[int] = []
        for k in range(self.channels):
            residual = self._plane(k, x, values[k] if values else 0, before, known, noise)
            before = [residual, before[0]]
        return known

    def _predictors(self, k: int, x: int) -> list[int]:
        """Eight predictions in 1/8."""
        here, up, up2 = self.rows[k]
        w, n, nw, ne = (site.value for site in (here.at(x - 1), up.at(x), up.at(x - 1), up.at(x + 1)))
        ww, nn, nne = here.at(x - 2).value, up2.at(x).value, up2.at(x + 1).value
        median = sorted((w, n, w + n - nw))[1]
        return [
            8 * median,
            8 * (w + n - nw),
            4 * w + 4 * n + 2 * ne - 2 * nw,
            8 * (w + ne - n),
            12 * n - 4 * nn + 4 * w - 4 * nw,
            12 * w - 4 * ww + 2 * ne - 2 * n,
            8 * (n + ne - nne),
            2 * w + 2 * n + nw + ne + ww + nn,
        ]

    def _blend(self, k: int, x: int, predictors: list[int]) -> int:
        """Their mean, weighted by how well they did around."""
        here, up, up2 = self.rows[k]
        around = ((here, -1, 2), (up, 0, 2), (up, -1, 1), (up, 1, 1), (here, -2, 1), (up2, 0, 1))
        missed = [sum(times * row.at(x + dx).miss[i] for row, dx, times in around) for i in range(8)]
        shift = max(0, min(missed).bit_length() - 5)
        weights = [65536 // (min(255, m >> shift) ** 2 + 8) for m in missed]
        total = sum(weight * p for weight, p in zip(weights, predictors, strict=True))
        return _quotient(total, sum(weights))

    def _taps(self, k: int, x: int, base: int) -> list[int]:
        """What the filter looks at: neighbours, and how the planes before change here."""
        here, up, up2 = self.rows[k]
        sites = [here.at(x - 1), up.at(x), up.at(x - 1), up.at(x + 1), here.at(x - 2), up2.at(x), up2.at(x + 1)]
        sites += [up.at(x + 2), here.at(x - 3), up.at(x - 3), up.at(x + 3), up.at(x - 2), up2.at(x - 1)]
        sites += [up2.at(x + 2), up2.at(x - 2)]
        taps = [site.value - base for site in sites] + [0]
        for rows in self.rows[:k]:
            here, up, _ = rows
            value = here.at(x).value
            taps += [value - site.value for site in (here.at(x - 1), up.at(x), up.at(x - 1), up.at(x + 1))]
        return [_clamp(tap, -16383, 16383) for tap in taps] + [0] * (TAPS - len(taps))

    def _plane(self, k: int, x: int, value: int, before: list[int], known: list[int], noise: int) -> int:
        """Code one sample; its value goes to `known`, its residual is returned."""
        here, up, up2 = self.rows[k]
        predictors = self._predictors(k, x)
        blend = self._blend(k, x, predictors)
        taps = self._taps(k, x, (blend + 4) >> 3)
        span = 0 if k == 0 else self.most
        dot = sum(tap * weight for tap, weight in zip(taps, self.filters[k], strict=True))
        filtered = _clamp(blend + (dot >> 11), -8 * span, 8 * self.most)

        w, n, nw, ne = here.at(x - 1), up.at(x), up.at(x - 1), up.at(x + 1)
        activity = 2 * (abs(before[0]) + abs(w.error) + abs(n.error)) + abs(nw.error) + abs(ne.error)
        activity += abs(w.value - nw.value) + abs(n.value - nw.value) + abs(n.value - ne.value)
        level, rounded = min(LEVELS - 1, level_of(activity)), filtered >> 3
        around = (w.value, n.value, nw.value, ne.value, up2.at(x).value, here.at(x - 2).value)
        above = (*(v > rounded for v in around), k > 0 and before[0] > 0)
        context = (k, min(15, level * 5 // 8), *above)
        sharp = filtered + (self.biases[context] >> 8) + 4
        prediction, part = _clamp(sharp >> 3, -span, self.most), sharp & 7

        residual = value - prediction
        residual = _sign(residual) * ((abs(residual) + self.step // 2) // self.step)
        coding = _Residual(self, k, level, part, before, w.error, n.error, noise)
        coding.expect(prediction, prediction + known[0] if k else prediction, abs(n.value - ne.value))
        residual = coding.code(residual)
        got = prediction + residual * self.step
        if not -span - self.step // 2 <= got <= self.most + self.step // 2:
            raise Impossible
        known.append(got)
        miss = [min(4095, abs(8 * got - p) >> (4 if self.deep else 0)) for p in predictors]
        here[x + 3] = Site(got, residual, miss)
        self._learn(k, context, 8 * got - filtered, taps)
        return residual

    def _learn(self, k: int, context: tuple[int, ...], wrong: int, taps: list[int]) -> None:
        """Let the bias and the filter follow an error in 1/8."""
        self.biases[context] += (wrong * 256 - self.biases[context]) >> 7
        most, most_pull = 8 * (self.most + 1) - 1, 2047 if self.deep else 32767
        quotient = _quotient(_clamp(wrong, -most, most) * STEP_SIZE, sum(tap * tap for tap in taps) + 32)
        pull = _clamp(quotient, -most_pull, most_pull)
        self.filters[k] = [
            _clamp(weight, -24000, 24000) + ((tap * pull + 2048) >> 12)
            for weight, tap in zip(self.filters[k], taps, strict=True)
        ]

    def mixer(self, n: int, *context: int) -> Mixer:
        key = (n, *context)
        if key not in self.mixers:
            self.mixers[key] = Mixer(n)
        return self.mixers[key]


def _quotient(a: int, b: int) -> int:
    """a / b, b > 0, rounded towards 0."""
    return a // b if a >= 0 else -(-a // b)


# Families of coins, and of mixers.
_MAGNITUDE, _PAIR, _EXPECTED, _SAMPLE, _LOW, _LOW_EXPECTED, _SIGN, _SIGN_EXPECTED, _SIGN_SAMPLE = range(9)


class _Residual:
    """The contexts of one residual."""

    def __init__(
        self, planes: Planes, k: int, level: int, part: int, before: list[int], ew: int, en: int, noise: int
    ) -> None:
        self.planes, self.k, self.level, self.part = planes, k, level, part
        self.ew, self.en, self.before = ew, en, before
        wide = min(7, level_of(2 * abs(before[0]) + abs(before[1])))
        self.other = (noise, min(7, level_of(abs(before[0]))), wide)[k]
        self.coarse = min(7, level // 2)

    def expect(self, difference: int, sample: int, edge: int) -> None:
        """The value and the sample that are expected, and the step from above to above on the right."""
        self.difference, self.sample = difference & 511, sample & 511
        k, offcentre = self.k, abs(self.part - 4)
        flat = min(7, level_of(edge) // 2) if k == 0 else self.other
        self.contexts: list[tuple[int, ...]] = [
            (_MAGNITUDE, k, self.level, self.other),
            (_PAIR, k, min(15, level_of(abs(self.ew))), min(15, level_of(abs(self.en))), flat),
            (_EXPECTED, k, self.coarse, self.difference),
            (_SAMPLE, k, min(31, self.level), offcentre) if k == 0 else (_SAMPLE, k, self.coarse, self.sample),
        ]

    def code(self, residual: int) -> int:
        magnitude = self._magnitude(abs(residual))
        if magnitude == 0:
            return 0
        planes, k, nearby = self.planes, self.k, min(15, magnitude)
        around = (_sign(self.ew), _sign(self.en), _sign(self.before[0]) if k else 0)
        coins = [
            planes.coins[(_SIGN, k, *around, min(15, self.level // 2), self.part)],
            planes.coins[_SIGN_EXPECTED, k, self.difference, nearby],
            planes.coins[_SIGN_SAMPLE, k, self.sample, nearby],
        ]
        mixer = planes.mixer(3, k, min(7, level_of(magnitude)))
        return magnitude if mixed(planes.coder, residual > 0, coins, mixer, FOLLOW) else -magnitude

    def _is(self, node: int, truth: bool) -> int:
        coins = [self.planes.coins[(*context, node)] for context in self.contexts]
        mixer = self.planes.mixer(4, self.k, min(11, self.level // 2), node)
        return mixed(self.planes.coder, truth, coins, mixer, FOLLOW)

    def _magnitude(self, magnitude: int) -> int:
        """Its half octave: whether it is one from the middle on, then one by one; then the bits below."""
        buckets, bucket = self.planes.buckets, level_of(magnitude)
        middle = max(0, 2 * self.coarse - 7)
        if middle == 0 or self._is(buckets + 7 + middle // 2, bucket >= middle):
            i = middle
            while i < buckets - 1 and not self._is(i, bucket == i):
                i += 1
        else:
            i = middle - 1
            while i > 0 and not self._is(buckets + i, bucket == i):
                i -= 1
        return i if i < 3 else self._low_bits(i, magnitude + 1)

    def _low_bits(self, bucket: int, whole: int) -> int:
        """Of `whole`, the magnitude + 1, whose two highest bits the bucket tells."""
        planes, k, bits = self.planes, self.k, (bucket - 1) // 2
        number = 2 | ((bucket - 1) & 1)
        for j in reversed(range(bits)):
            bit = whole >> j & 1
            if j >= bits - 2:
                node = 0 if j == bits - 1 else 1 + (number & 1)
                coins = [
                    planes.coins[_LOW, k, bucket, self.level, node],
                    planes.coins[_LOW_EXPECTED, k, self.difference, bucket, node],
                ]
                bit = mixed(planes.coder, bit, coins, planes.mixer(2, k), FOLLOW)
            else:
                bit = planes.coder.code(bit, 1 << 15)
            number = number << 1 | bit
        return number - 1
