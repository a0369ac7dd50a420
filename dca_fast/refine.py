"""The gradient of the error through f_s, which `dca_fast.effort.descend` follows from level 4 on.

It runs on the float network that the integer weights stand for, tile by tile, so other machines and numbers of threads
may find other symbols; what is coded is what the integer program then makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from dca_fast.config import ALIGN, STRIDE, price
from dca_fast.export import COEFFICIENT16, float_network
from dca_fast.model.layers import freeze
from dca_fast.model.network import axis, interpolate
from dca_fast.weights import Weights

TILE, MARGIN = 768, 128  # pixels: the largest tile, and what is computed around it because its neighbours see it


@contextmanager
def _as_if_alone(device: torch.device) -> Iterator[None]:
    """Gradients, and none of the modes that the host program may be in."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


class Tile(NamedTuple):
    """First and last pixel rows and columns."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x: Tensor, stride: int) -> Tensor:
        """The view of a map `[N, H/stride, W/stride, C]` inside."""
        return x[:, self.top // stride : self.bottom // stride, self.left // stride : self.right // stride]

    def within(self, other: Tile) -> Tile:
        """This tile, counted from the corner of another."""
        return Tile(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left)


def tiles(height: int, width: int) -> Iterator[tuple[Tile, Tile]]:
    """What to keep of each tile, and what to compute for it; sides in pixels, multiples of 64."""
    for top, bottom in _parts(height):
        for left, right in _parts(width):
            around = Tile(
                max(0, top - MARGIN), min(height, bottom + MARGIN), max(0, left - MARGIN), min(width, right + MARGIN)
            )
            yield Tile(top, bottom, left, right), around


def _parts(side: int) -> Iterator[tuple[int, int]]:
    count = -(-side // TILE)
    size = -(-side // (count * ALIGN)) * ALIGN
    for start in range(0, side, size):
        yield start, min(side, start + size)


class Refiner:
    """Gradients for one model.

    Args:
        weights: integer weights.
        device: where the float network runs.
    """

    def __init__(self, weights: Weights, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        with _as_if_alone(self._device), torch.device("cpu"):
            network = float_network(weights)
            self._network = network.requires_grad_(False).to(self._device, torch.float32)
            freeze(self._network)
            unit: Tensor = self._network.get_buffer("synthesis.unit16")
            self._steps = COEFFICIENT16 * unit * unit  # integer steps of y in its own unit

    def slope(self, image: Tensor, valid: tuple[int, int], y_hat: Tensor, quality: float) -> Tensor:
        """Where y should go for a smaller error, times the bits that a squared quantiser step costs.

        Args:
            image: uint8 or int16 [1, H, W, 3], sides multiples of 64.
            valid: height and width of the picture without its padding.
            quality: 0..100.
            y_hat: int16 [1, H/16, W/16, M], what a decoder sees.

        Returns:
            float32 like `y_hat`, on its device and in its unit: half the gradient of the priced error, in bits, over
            the squared gain.
        """
        found = torch.empty_like(y_hat, dtype=torch.float32)
        at = torch.tensor([quality], dtype=torch.float32, device=self._device)
        for keep, around in tiles(*image.shape[1:3]):
            with _as_if_alone(self._device):
                pixels, counted, y = self._tile(around, image, valid, y_hat)
                y.requires_grad_(True)
                error = squared_error(self._network.synthesis(y, axis(at)), pixels, counted)
                (gradient,) = torch.autograd.grad(error, y)
                gain = torch.exp2(interpolate(self._network.log2_gain, at))
                way = gradient * (-0.5 * price(quality) * self._steps / gain.square())
            keep.of(found, STRIDE).copy_(keep.within(around).of(way, STRIDE))
        return found

    def _tile(self, around: Tile, image: Tensor, valid: tuple[int, int], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Grey levels - 128, whether they count, and y in its own unit, of one tile."""
        pixels = around.of(image, 1).to(self._device, torch.float32) - 128
        counted = torch.zeros_like(pixels[..., :1], dtype=torch.bool)
        counted[:, : valid[0] - around.top, : valid[1] - around.left] = True  # a tile is larger than the padding
        return pixels, counted, around.of(y, STRIDE).to(self._device) / self._steps


def squared_error(picture: Tensor, pixels: Tensor, counted: Tensor) -> Tensor:
    """Sum over the pixels that count, in squared grey levels, mean of the three colours."""
    return ((picture.clamp(-128, 127) - pixels).square() * counted).sum() / 3
