"""Binary decisions in integers: adaptive probabilities, their mixture in the logistic domain, and the range coder.

Logistic mixing: Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression" (2005). Range coder:
Martin, "Range encoding" (1979). This is the definition; csrc/exact/exact_range.h and exact_model.h do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Coin", "Decoder", "Encoder", "Mixer", "RangeCoder", "log2_of", "mixed", "single"]

ONE = 1 << 16  # probabilities are in 1/65536
# 65536 / (1 + e^-x) at x = -8, -7.75, ... 8.
KNOTS = (
    22, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267, 342, 439, 562, 720, 922, 1179, 1506, 1921, 2446, 3108, 3938, 4971,
    6249, 7812, 9702, 11955, 14595, 17625, 21025, 24743, 28693, 32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834,
    57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030, 64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328,
    65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508, 65514,
)  # fmt: skip
DIVISORS = (
    2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224,
    256, 320, 384,
)  # fmt: skip
RATES = tuple(ONE // divisor for divisor in DIVISORS)  # by how often a probability was seen
LOGIT = 2047  # the largest, in 1/256
FIRST_WEIGHTS = {2: 36000, 3: 26000, 4: 22000}  # of a mixer, in 1/65536


def _squash() -> tuple[int, ...]:
    """Probability of the logit (i - 2048) / 256: straight lines between the knots."""
    table = []
    for i in range(4096):
        left, right = KNOTS[i >> 6], KNOTS[(i >> 6) + 1]
        table.append(left + ((right - left) * (i & 63) + 32) // 64)
    return tuple(table)


SQUASH = _squash()


def _stretch() -> tuple[int, ...]:
    """The inverse for a probability of p / 4096: the first logit that is not below the middle of p's range."""
    table, i = [], 0
    for p in range(4096):
        while i < 4095 and SQUASH[i] < 16 * p + 8:
            i += 1
        table.append(i - 2048)
    return tuple(table)


STRETCH = _stretch()


def log2_of(x: int) -> int:
    """log2 of x, 1..2^32 - 1, in 1/256, rounded down, by repeated squaring."""
    whole = x.bit_length() - 1
    mantissa = x << (31 - whole)  # within 1..2, in 1/2^31
    for _ in range(8):
        mantissa = mantissa * mantissa >> 31
        carry = mantissa >> 32
        whole = whole << 1 | carry
        mantissa >>= carry
    return whole


class Coin:
    """An adaptive probability of a one: the mean of two that follow at their own pace."""

    __slots__ = ("fast", "seen", "slow")

    def __init__(self) -> None:
        self.fast = self.slow = ONE // 2
        self.seen = 0

    def p(self) -> int:
        return (self.fast + self.slow) >> 1

    def update(self, bit: int, limits: tuple[int, int]) -> None:
        """Follow `bit`; `limits`: the last entries of `RATES` that the two probabilities reach."""
        target = ONE - 1 if bit else 0
        self.fast += ((target - self.fast) * RATES[min(self.seen, limits[0])]) >> 16
        self.slow += ((target - self.slow) * RATES[min(self.seen, limits[1])]) >> 16
        self.seen = min(self.seen + 1, limits[1])


class Mixer:
    """Weights of n logits, learned from the error of the mixture."""

    __slots__ = ("weights",)

    def __init__(self, n: int) -> None:
        self.weights = [FIRST_WEIGHTS[n]] * n


class Encoder:
    """Bits and their probabilities to bytes."""

    def __init__(self) -> None:
        self._low, self._range, self._bytes = 0, 0xFFFFFFFF, bytearray()

    def code(self, bit: int, p: int) -> int:
        """Code a bit that is 1 with probability p / 65536, p in 1..65535; returns it."""
        bound = self._range * p >> 16
        if bit:
            self._range = bound
        else:
            self._add(bound)
            self._range -= bound
        while self._range < 1 << 24:
            self._bytes.append(self._low >> 24)
            self._low = self._low << 8 & 0xFFFFFFFF
            self._range <<= 8
        return bit

    def _add(self, amount: int) -> None:
        self._low += amount
        if self._low >> 32:  # the carry goes into the bytes that are written
            self._low &= 0xFFFFFFFF
            at = len(self._bytes) - 1
            while self._bytes[at] == 0xFF:
                self._bytes[at] = 0
                at -= 1
            self._bytes[at] += 1

    def spent(self) -> int:
        """What was coded so far takes, in 1/256 bits."""
        return (8 * len(self._bytes) + 32) * 256 - log2_of(self._range)

    def finish(self) -> bytes:
        """The bytes: the fewest that decode so with zeros behind them."""
        for count in range(5):
            mask = (1 << (32 - 8 * count)) - 1
            number = (self._low + mask) & ~mask
            if number < self._low + self._range:
                self._add(number - self._low)
                self._bytes += self._low.to_bytes(4, "big")[:count]
                break
        return bytes(self._bytes).rstrip(b"\0")


class Decoder:
    """The reverse of `Encoder`; behind the bytes follow zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._range = data, 4, 0xFFFFFFFF
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._proper = self._code < self._range
        self._code *= self._proper  # else it would never come down again

    def code(self, _: int, p: int) -> int:
        bound = self._range * p >> 16
        bit = int(self._code < bound)
        if bit:
            self._range = bound
        else:
            self._code -= bound
            self._range -= bound
        while self._range < 1 << 24:
            following = self._data[self._at] if self._at < len(self._data) else 0
            self._code = self._code << 8 | following
            self._at += 1
            self._range <<= 8
        return bit

    @property
    def finished(self) -> bool:
        """Whether all bytes were used, and were such as an encoder makes."""
        return self._at >= len(self._data) and self._proper


RangeCoder = Encoder | Decoder


def single(coder: RangeCoder, bit: int, coin: Coin, limits: tuple[int, int]) -> int:
    """Code a bit with one probability."""
    bit = coder.code(bit, min(ONE - 17, max(16, coin.p())))
    coin.update(bit, limits)
    return bit


def mixed(coder: RangeCoder, bit: int, coins: Sequence[Coin], mixer: Mixer, limits: tuple[int, int]) -> int:
    """Code a bit with the mixture of several probabilities; logits of coins that are new count half."""
    logits = [STRETCH[coin.p() >> 4] >> (coin.seen < 3) for coin in coins]
    dot = sum(weight * logit for weight, logit in zip(mixer.weights, logits, strict=True)) >> 16
    p = SQUASH[min(LOGIT, max(-LOGIT, dot)) + 2048]
    bit = coder.code(bit, p)
    error = bit * ONE - p
    for i, (coin, logit) in enumerate(zip(coins, logits, strict=True)):
        mixer.weights[i] += (logit * error * 5 + (1 << 17)) >> 18
        coin.update(bit, limits)
    return bit
