"""The quality that a size or a fidelity asks for, found by encoding a few times.

Bytes and errors are nearly exponential in the quality, so their logarithms are interpolated. For sizes and PSNR all of
it are integers and correctly rounded floats: every machine tries the same qualities and ends with the same file. Of
MS-SSIM and SSIMULACRA2 the last digits depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import numpy as np

from dca_fast.config import QUALITY_MAX
from dca_fast.errors import ConfigError, InputError
from dca_fast.network.program import QUALITY_ONE, QUALITY_RANGE

GOALS = ("max_bytes", "bpp", "psnr", "ms_ssim", "ssimulacra2")  # of `Codec.encode_to`
PERFECT = {"ms_ssim": 1.0, "ssimulacra2": 100.0}  # of equal pictures; errors are what is missing
_OCTAVES = 5.4  # by which bytes grow and squared errors fall over the whole axis, about
_PEAK, _HIGHEST = 255**2, 300.0  # square, and dB beyond which there is nothing
_LARGEST = 1e300  # of a goal
_HASTE = 8  # numbers that are tried by interpolation; then intervals are halved


def check(goals: dict[str, float | None], tolerance: float) -> tuple[str, float]:
    """The one goal that is given: its name and value.

    Raises:
        ConfigError: there is not one, it is not a positive number below that of equal pictures, or the tolerance is not
            within 0..1.
    """
    given = {name: goal for name, goal in goals.items() if goal is not None}
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(goals)}, got {', '.join(given) or 'none'}")
    ((name, goal),) = given.items()
    try:  # of any type: NumPy compares a float32 with no larger number
        value = math.nan if isinstance(goal, bool) or not isinstance(goal, Real) else float(goal)
    except OverflowError:
        value = math.inf
    if not 0 < value < _LARGEST:
        raise ConfigError(f"{name} must be a positive number, got {goal!r}")
    if value >= PERFECT.get(name, math.inf):
        raise ConfigError(f"{name} must be below {PERFECT[name]:g}, got {goal!r}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 < tolerance < 1:
        raise ConfigError(f"tolerance must be a number between 0 and 1, got {tolerance!r}")
    return name, value


def to_size(encode: Callable[[float], bytes], room: float, fixed: int, tolerance: float) -> bytes:
    """The file of the highest quality that takes at most `room` bytes; `fixed` of them do not depend on it.

    Raises:
        InputError: that of quality 0 takes more.
    """
    files: dict[int, bytes] = {}
    if fixed >= room:
        raise InputError(f"metadata and alpha take {fixed} bytes, more than {room:.0f}")

    def ratio(quality: int) -> float:
        files[quality] = encode(quality / QUALITY_ONE)
        return (len(files[quality]) - fixed) / (room - fixed)

    quality = largest(ratio, QUALITY_RANGE, tolerance)
    if quality is None:
        raise InputError(f"quality 0 takes {len(files[0])} bytes, more than {room:.0f}")
    return files[quality]


def to_fidelity(
    encode: Callable[[float], bytes], error: Callable[[bytes], float], kind: str, goal: float, tolerance: float
) -> bytes:
    """The file of the lowest quality whose fidelity is at least the goal.

    Args:
        encode: the file of a quality.
        error: of a file: its mean square for "psnr", for others what it lacks to `PERFECT`.
        kind: "psnr", "ms_ssim" or "ssimulacra2".
        goal: PSNR in dB, or the measure itself.
        tolerance: part of the error that may be left unused.

    Raises:
        InputError: that of the highest quality has less.
    """
    files: dict[int, bytes] = {}
    errors: dict[int, float] = {}
    # Alike on all machines: their powers differ beyond a float's digits.
    squares = float(np.float32(_PEAK / 10 ** (min(goal, _HIGHEST) / 10)))
    most = squares if kind == "psnr" else PERFECT[kind] - goal

    def ratio(lowered: int) -> float:
        files[lowered] = encode((QUALITY_RANGE - lowered) / QUALITY_ONE)
        errors[lowered] = error(files[lowered])
        return errors[lowered] / most

    quality = largest(ratio, QUALITY_RANGE, tolerance)
    if quality is None:
        best = 10 * math.log10(_PEAK / errors[0]) if kind == "psnr" else PERFECT[kind] - errors[0]
        unit = " dB" if kind == "psnr" else f" of {kind}"
        raise InputError(f"quality {QUALITY_MAX:g} has {best:.4f}{unit}, less than {goal:g}")
    return files[quality]


def largest(ratio: Callable[[int], float], most: int, tolerance: float) -> int | None:
    """The largest of 0..most whose ratio is at most 1; one whose ratio is at least 1 - tolerance is good enough.

    Args:
        ratio: grows with its argument, exponentially and mostly; called once for every number that is tried.
        most: end of the range.
        tolerance: below 1.

    Returns:
        None if there is none: 0 was tried then.
    """
    low, high = -1, most + 1  # all up to `low` are small enough, all from `high` on too large, as far as is known
    below = above = math.nan  # their logarithms
    aim = _log2(1 - tolerance / 2)
    guess, tried = most // 2, 0
    side = 0  # how often, one after the other, one end has moved: negative for the lower one
    while high - low > 1:
        measured, tried = ratio(guess), tried + 1
        if measured <= 1:
            low, below, side = guess, _log2(measured), min(side, 0) - 1
            if measured >= 1 - tolerance:
                break
        else:
            high, above, side = guess, _log2(measured), max(side, 0) + 1
        if low >= 0 and high <= most:
            part = 0.5 if abs(side) > 2 or tried > _HASTE else (aim - below) / (above - below)
            guess = low + round((high - low) * part)
        else:  # ever larger steps
            step = max(abs(aim - _log2(measured)), 0.01) * most / _OCTAVES
            guess += round(math.copysign(min(step * 2 ** min(abs(side) - 1, 30), most + 1), -side))
        guess = min(max(guess, low + 1), high - 1)
    return None if low < 0 else low


def _log2(x: float) -> float:
    """About log2, piecewise linear: machines round a real one differently."""
    mantissa, exponent = math.frexp(max(x, 2.0**-60))
    return exponent + 2 * mantissa - 2
