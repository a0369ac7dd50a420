"""Where y should go for a smaller error, as far as the linear part of f_s tells: its two projections, transposed.

The blocks of f_s add to a trunk that two projections turn into pixels. Without them the gradient of the squared error
is two products with 16-bit integers, in a third of the time of f_s; it points 30 to 60 degrees away from the whole one
(docs/effort.md). Everything is made by operations that every machine rounds alike.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dca_fast.config import LATENT_STEPS, PATCH
from dca_fast.ops import Linear, Ops
from dca_fast.ops.reference import LIMIT16
from dca_fast.weights import ACCUMULATOR, Weights

# Scales of the results: in 1/8 grey levels of a coefficient at 1/8, in 1/4 of one at 1/16, were they orthonormal.
AT_8, AT_16 = 128, 1 / 4


def transposed(w: Tensor, m: Tensor, scale: float) -> Linear:
    """x -> scale * (w * m)^T x. w int16 [O, K], m float32 [O]; takes O inputs and gives K outputs."""
    rows = (w.double() * m.double()[:, None]).T
    unit = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    whole = (rows / unit[:, None] * LIMIT16).round().long()
    most, total = ACCUMULATOR // LIMIT16, whole.abs().sum(1).clamp_min(1)
    total = total.clamp_min(most)  # sums of smaller rows fit an accumulator as they are
    whole = torch.div(whole * most, total[:, None], rounding_mode="trunc")
    size = unit * total.double() / (most * LIMIT16) * scale
    return Linear(whole.short().contiguous(), torch.zeros(len(whole), dtype=torch.int32, device="cpu"), size.float())


class Adjoint:
    """The linear part of one model's f_s, backwards.

    Args:
        weights: integer weights.
        ops: a backend for CPU tensors.
    """

    def __init__(self, weights: Weights, ops: Ops) -> None:
        t = weights.tensors
        self._ops = ops
        self._pixels = transposed(t["synthesis.pixels.w"], t["synthesis.pixels.m"], AT_8)
        self._split = transposed(t["synthesis.split.w"], t["synthesis.split.m"], AT_16)

    def patches(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> int16 [N, H/8, W/8, 192]: pixels as the last layer of f_s makes them."""
        return self._ops.patches_from_image(image, PATCH)

    def slope(self, error: Tensor, gain: Tensor, bits: float) -> Tensor:
        """Half the gradient of the priced error, over the squared gain.

        Args:
            error: patches of the image less those of the picture.
            gain: float32 [M], that of the quality (`Program.gain`).
            bits: that a squared error of one grey level is worth.

        Returns:
            float32 [N, H/16, W/16, M], in integer steps of y times the bits that a squared quantiser step costs.
        """
        at_8 = self._ops.space_to_depth2(self._ops.wide_linear(error, self._pixels))
        product = self._ops.wide_linear(at_8, self._split).numpy()
        scale = bits / 3 / (AT_8 * AT_16) * np.square(LATENT_STEPS / gain.numpy().astype(np.float64))
        return torch.from_numpy(product * scale.astype(np.float32))
