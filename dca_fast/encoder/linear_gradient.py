"""Where y should go for a smaller error, as far as the linear part of f_s tells: its two projections, transposed.

The blocks of f_s add to a trunk that two projections turn into pixels. Without them the gradient of the squared error
is two products with 16-bit integers, in a third of the time of f_s; it points 30 to 60 degrees away from the whole one
(docs/design/effort.md). Everything is made by operations that every machine rounds alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.config import BACK, GRADIENT_BACK, LATENT_ONE, PATCH
from dca_fast.network.weights import ACCUMULATOR, Weights
from dca_fast.ops import Array, Linear, Ops
from dca_fast.ops.limits import LIMIT16

# Scales of the results: in 1/8 grey levels of a coefficient at 1/8, in 1/4 of one at 1/16, were they orthonormal.
AT_8, AT_16 = 128, 1 / 4


def transposed(w: npt.NDArray[np.int16], m: npt.NDArray[np.float32], scale: float) -> Linear:
    """x -> scale * (w * m)^T x, in host memory. w int16 [O, K], m float32 [O]; takes O inputs and gives K outputs."""
    rows = (w.astype(np.float64) * m.astype(np.float64)[:, None]).T
    unit = np.maximum(np.abs(rows).max(1), float(np.finfo(np.float32).tiny))
    whole = np.rint(rows / unit[:, None] * LIMIT16).astype(np.int64)
    # Sums of smaller rows fit an accumulator as they are.
    most = ACCUMULATOR // LIMIT16
    total = np.maximum(np.abs(whole).sum(1), most)
    whole = np.sign(whole) * (np.abs(whole) * most // total[:, None])
    size = unit * total.astype(np.float64) / (most * LIMIT16) * scale
    w16 = np.ascontiguousarray(whole.astype(np.int16))
    return Linear(w16, np.zeros(len(whole), np.int32), size.astype(np.float32))


def multipliers(gain: npt.NDArray[np.float32], bits: float, price: float) -> npt.NDArray[np.float32]:
    """What turns a slope into a step of y.

    Args:
        gain: float32 [M], that of the quality (`Program.gain`), in host memory.
        bits: that a squared error of one grey level is worth.
        price: bits that a squared step of the quantiser costs.

    Returns:
        float32 [M], at most 2^15, with which no product leaves 32 bits.
    """
    scale = np.square(LATENT_ONE / gain.astype(np.float64)) * (bits / 3 / (AT_8 * AT_16) / price)
    m: npt.NDArray[np.float32] = np.minimum(scale, 1 << 15).astype(np.float32)
    return m


class Adjoint:
    """The linear part of one model's f_s, backwards.

    Args:
        weights: integer weights.
        ops: a backend.
        device: of its tensors.
    """

    def __init__(self, weights: Weights, ops: Ops, device: Any = "cpu") -> None:
        self._ops, self.arrays = ops, ops.arrays(device)

        def backwards(name: str, scale: float) -> Linear:
            layer = transposed(weights.tensors[f"{name}.w"], weights.tensors[f"{name}.m"], scale)
            return layer.map(self.arrays.array)

        self._pixels, self._split = backwards("synthesis.pixels", AT_8), backwards("synthesis.split", AT_16)

        def part(share: float) -> Array:
            return self.arrays.array(np.full(weights.config.latent, share, np.float32))

        self._ways = {back: (part(1 - back), part(back)) for back in (BACK, GRADIENT_BACK)}

    def missing(self, image: Array, picture: Array, size: tuple[int, int]) -> Array:
        """What is missing to a picture, as patches: pixels as the last layer of f_s makes them.

        Args:
            image, picture: uint8 [1, H, W, 3]. Beyond `size`, height and width, no error counts: there `picture` is
                overwritten.

        Returns:
            int16 [1, H/8, W/8, 192].
        """
        picture[:, size[0] :] = image[:, size[0] :]
        picture[:, :, size[1] :] = image[:, :, size[1] :]
        error = self._ops.patches_from_image(image, PATCH)
        error -= self._ops.patches_from_image(picture, PATCH)
        return error

    def slope(self, error: Array) -> Array:
        """Half the gradient of the squared error, with the opposite sign, in a fixed unit.

        Args:
            error: patches of the image less those of the picture.

        Returns:
            int16 [N, H/16, W/16, M].
        """
        return self.at_16(self.at_8(error))

    def at_8(self, error: Array) -> Array:
        """The first half of `slope`: int16 [N, H/8, W/8, C]."""
        return self._ops.wide_linear(error, self._pixels)

    def at_16(self, slope: Array) -> Array:
        """The second half, from the first."""
        return self._ops.wide_linear(self._ops.space_to_depth2(slope), self._split)

    def answer(self, image: Array, picture: Array, size: tuple[int, int]) -> Array:
        """`slope` of what is `missing`."""
        return self.slope(self.missing(image, picture, size))

    def moved(self, y_hat: Array, slope: Array, m: Array, y: Array | None = None, back: float = BACK) -> Array:
        """y_hat, a step along the slope away. All int16 [N, H/16, W/16, M] but `m` of `multipliers`, on the device.

        Args:
            y: before its quantisation; the step then begins a part of the way back to it.
            back: which part, BACK or GRADIENT_BACK.
        """
        ops, (kept, returned) = self._ops, self._ways[back]
        start = y_hat if y is None else ops.add(ops.operand16(y_hat, kept), ops.operand16(y, returned))
        return ops.add(start, ops.operand16(slope, m))
