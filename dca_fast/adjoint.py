"""Where y should go for a smaller error, as far as the linear part of f_s tells: its two projections, transposed.

The blocks of f_s add to a trunk that two projections turn into pixels. Without them the gradient of the squared error
is two products with 16-bit integers, in a third of the time of f_s; it points 30 to 60 degrees away from the whole one
(docs/effort.md). Everything is made by operations that every machine rounds alike.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dca_fast.config import BACK, GRADIENT_BACK, LATENT_STEPS, PATCH, STRIDE
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


def multipliers(gain: Tensor, bits: float, price: float) -> Tensor:
    """What turns a slope into a step of y.

    Args:
        gain: float32 [M], that of the quality (`Program.gain`), on the CPU.
        bits: that a squared error of one grey level is worth.
        price: bits that a squared step of the quantiser costs.

    Returns:
        float32 [M], at most 2^15, with which no product leaves 32 bits.
    """
    scale = np.square(LATENT_STEPS / gain.numpy().astype(np.float64)) * (bits / 3 / (AT_8 * AT_16) / price)
    return torch.from_numpy(np.minimum(scale, 1 << 15).astype(np.float32))


class Adjoint:
    """The linear part of one model's f_s, backwards.

    Args:
        weights: integer weights.
        ops: a backend.
        device: of its tensors.
    """

    def __init__(self, weights: Weights, ops: Ops, device: torch.device | str = "cpu") -> None:
        self._ops = ops

        def backwards(name: str, scale: float) -> Linear:
            layer = transposed(weights.tensors[f"{name}.w"], weights.tensors[f"{name}.m"], scale)
            return Linear(layer.w.to(device), layer.b.to(device), layer.m.to(device))

        self._pixels, self._split = backwards("synthesis.pixels", AT_8), backwards("synthesis.split", AT_16)
        part = partial(torch.full, (weights.config.latent,), dtype=torch.float32, device="cpu")
        self._ways = {back: (part(1 - back).to(device), part(back).to(device)) for back in (BACK, GRADIENT_BACK)}

    def missing(self, image: Tensor, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """What is missing to a picture, as patches: pixels as the last layer of f_s makes them.

        Args:
            image, picture: uint8 [1, H, W, 3]. Beyond `size`, height and width, no error counts: there `picture` is
                overwritten.

        Returns:
            int16 [1, H/8, W/8, 192].
        """
        on_cpu = image.device.type == "cpu"  # without PyTorch there, see `program.compact`
        target: Any
        source: Any
        target, source = (x[0].numpy() if on_cpu else x[0] for x in (picture, image))
        for beyond in ((slice(size[0], None), slice(None)), (slice(None), slice(size[1], None))):
            target[beyond] = source[beyond]
        wanted, found = (self._ops.patches_from_image(x, PATCH) for x in (image, picture))
        if on_cpu:
            np.subtract(wanted.numpy(), found.numpy(), out=wanted.numpy())
            return wanted
        return wanted.sub_(found)

    def slope(self, error: Tensor) -> Tensor:
        """Half the gradient of the squared error, with the opposite sign, in a fixed unit.

        Args:
            error: patches of the image less those of the picture.

        Returns:
            int16 [N, H/16, W/16, M].
        """
        return self.at_16(self.at_8(error))

    def at_8(self, error: Tensor) -> Tensor:
        """The first half of `slope`: int16 [N, H/8, W/8, C]."""
        return self._ops.wide_linear(error, self._pixels)

    def at_16(self, slope: Tensor) -> Tensor:
        """The second half, from the first."""
        return self._ops.wide_linear(self._ops.space_to_depth2(slope), self._split)

    def answer(self, image: Tensor, picture: Tensor, size: tuple[int, int], rows: int | None = None) -> Tensor:
        """`slope` of what is `missing`; `rows` as `Program.analyse` takes them."""
        if rows is None or rows * STRIDE >= image.shape[1]:
            return self.slope(self.missing(image, picture, size))
        strips = []
        for top in range(0, image.shape[1], rows * STRIDE):
            strip = slice(top, top + rows * STRIDE)
            within = max(0, size[0] - top), size[1]
            strips.append(self.slope(self.missing(image[:, strip], picture[:, strip], within)))
        return torch.cat(strips, 1)

    def moved(self, y_hat: Tensor, slope: Tensor, m: Tensor, y: Tensor | None = None, back: float = BACK) -> Tensor:
        """y_hat, a step along the slope away. All int16 [N, H/16, W/16, M] but `m` of `multipliers`, on the device.

        Args:
            y: before its quantisation; the step then begins a part of the way back to it.
            back: which part, BACK or GRADIENT_BACK.
        """
        ops, (kept, returned) = self._ops, self._ways[back]
        start = y_hat if y is None else ops.add(ops.operand16(y_hat, kept), ops.operand16(y, returned))
        return ops.add(start, ops.operand16(slope, m))
