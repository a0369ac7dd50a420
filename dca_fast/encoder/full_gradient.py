"""Where y should go for a smaller error, as all of f_s tells: its gradient in 8-bit integers.

Backpropagation, written with the operations of the codec: a block's transposed products read int8 gradients, a trunk
carries an int16 one. What scales the forward rows of a layer scales its operand on the way back, so that the transposed
weights are those of the file. Rounding and clamping pass a gradient as they do in training (`dca_fast.model.layers`).
A power of two for every int8 gradient, found once for a picture, keeps it within range (docs/design/effort.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.network.program import GATE, Halves
from dca_fast.ops import Array, Arrays, DepthBlockParams, Depthwise, GatedFfnParams, Linear, Ops
from dca_fast.ops.limits import LIMIT8, LIMIT16

# Root mean square of an int8 gradient: tails are long, so a sixteenth of the range loses least. Attempts to find its
# power of two, and a step of one where all is zero.
RMS, ATTEMPTS, LEAP = 8, 4, 6
SAMPLES = 1 << 14  # values of it that are looked at, at least
MAX_PRODUCT = 2**31 - 2**24  # of an accumulator and a multiplier
FIRST = 6, -9, 8  # powers of two that are tried first

Half = DepthBlockParams | GatedFfnParams
Exponents = dict[tuple[int, int], int]  # the powers of two of one picture, by half of a block and place in it


def bounded(m: npt.NDArray[np.float64], accumulator: npt.NDArray[np.int64] | int) -> npt.NDArray[np.float32]:
    """float32 multipliers that take no sum of so much out of 32 bits."""
    most = MAX_PRODUCT / np.asarray(accumulator, np.float64)
    return np.clip(m, -most, most).astype(np.float32)


def plain_linear(w: npt.NDArray[np.int8], m: npt.NDArray[np.float64]) -> Linear:
    """Layer without bias, in host memory. w int8 [O, K], m float64 [O]."""
    most = LIMIT8 * np.maximum(np.abs(w.astype(np.int64)).sum(1), 1)
    return Linear(np.ascontiguousarray(w), np.zeros(len(w), np.int32), bounded(m, most))


class Gradient:
    """The gradient of one model's f_s.

    Args:
        adjoint: its projections backwards.
        ops: a backend.
    """

    def __init__(self, adjoint: Adjoint, ops: Ops) -> None:
        self._adjoint, self._ops, self._arrays = adjoint, ops, adjoint.arrays
        self._layers: dict[tuple[int, int, int], Any] = {}  # by half, place and power: they know no quality

    def slope(self, at_16: Halves, at_8: Halves, error: Array, exponents: Exponents) -> Array:
        """Half the gradient of the squared error, with the opposite sign, in the unit of `Adjoint.slope`.

        Args:
            at_16, at_8: of `Program.synthesis_halves`, for a y_hat of [N, H/16, W/16, M].
            error: what is `missing` to the picture that it makes, int16 [N, H/8, W/8, 192].
            exponents: filled by the first call, of a picture like those of the calls that follow.

        Returns:
            int16 like y_hat.
        """
        slope = self._adjoint.at_8(error)
        for i, (x, half) in reversed(list(enumerate(at_8, len(at_16)))):
            slope = self._back(slope, x, half, i, exponents)
        slope = self._adjoint.at_16(slope)
        for i, (x, half) in reversed(list(enumerate(at_16))):
            slope = self._back(slope, x, half, i, exponents)
        return slope

    def _back(self, slope: Array, x: Array, half: Half, index: int, exponents: Exponents) -> Array:
        """The slope of what half a block reads, from that of what it makes."""
        ops = self._ops
        h = ops.operand8(x, half.m_in)

        def layer(stage: int, power: int) -> Any:
            key = index, stage, power
            if key not in self._layers:
                transposed_layer = backwards(self._arrays, half, stage, power)
                self._arrays.settle()
                self._layers[key] = transposed_layer
            return self._layers[key]

        total = 0

        def fitted(stage: int, run: Callable[[Any], Array]) -> Array:
            nonlocal total
            power = exponents.get((index, stage))
            if power is None:
                power, result = fit_exponent(self._arrays, FIRST[stage], lambda power: run(layer(stage, power)))
                if result.any():  # else the next iteration looks again
                    exponents[index, stage] = power
            else:
                result = run(layer(stage, power))
            total += power
            return result

        e8 = fitted(0, lambda m: ops.operand8(slope, m))
        expanded = fitted(1, lambda linear: ops.linear_act(e8, linear, False))
        if isinstance(half, DepthBlockParams):
            hidden = ops.linear_act(h, half.expand, True)
            passed = ops.act_slope(expanded, ops.depthwise3x3(hidden, half.depthwise), False)
            e = ops.act_slope(fitted(2, lambda depthwise: ops.depthwise3x3(passed, depthwise)), hidden, True)
        else:
            hidden = ops.linear_act(h, half.gate, False)
            e = fitted(2, lambda m: ops.gate_slope(expanded, hidden, half.g, m))
        return ops.add_slope(slope, ops.linear_add(e, layer(3, -total)), h)


def backwards(arrays: Arrays, half: Half, stage: int, power: int) -> Any:
    """The multipliers or the layer at one of four places on the way back through half a block.

    Args:
        arrays: those of `half`.
        half: the weights of the way there.
        stage: 0 and 2 before and after the first transposed product, or the convolution; 1 and 3 the products.
        power: results are 2^power times what they are.
    """
    scale = 2.0**power
    first = (half.expand if isinstance(half, DepthBlockParams) else half.gate).map(arrays.numpy)
    project, m = half.project.map(arrays.numpy), first.m.astype(np.float64)
    if stage == 0:
        return arrays.array(bounded(project.m.astype(np.float64) * scale, LIMIT16 + 1))
    if stage == 1:
        return plain_linear(project.w.T, np.full(project.w.shape[1], scale)).map(arrays.array)
    if stage == 2 and isinstance(half, DepthBlockParams):
        d = half.depthwise.map(arrays.numpy)
        bound = bounded(d.m.astype(np.float64) * m * scale, 9 * LIMIT8**2)
        return Depthwise(np.ascontiguousarray(d.w[::-1, ::-1]), np.zeros_like(d.b), bound).map(arrays.array)
    if stage == 2:
        return arrays.array(bounded(m * (GATE * scale), LIMIT8**2))
    return plain_linear(first.w.T, arrays.numpy(half.m_in).astype(np.float64) * scale).map(arrays.array)


def fit_exponent(arrays: Arrays, power: int, run: Callable[[int], Array]) -> tuple[int, Array]:
    """The power of two with which the int8 result of `run` has a root mean square near RMS, and that result."""
    gradient = run(power)
    for _ in range(ATTEMPTS):
        flat = gradient.reshape(-1)
        step = 6 * (len(flat) // (6 * SAMPLES)) + 1  # sees all channels: their number has no other factors
        values = arrays.numpy(flat[::step])
        squares = int(np.einsum("i,i", values, values, dtype=np.int64))
        # frexp instead of a logarithm, which machines round differently: no change from RMS / sqrt(2) to RMS sqrt(2).
        change = math.frexp(RMS**2 * values.size / squares)[1] // 2 if squares else LEAP
        if not change:
            break
        power += change
        gradient = run(power)
    return power, gradient
