"""Latents refined by gradients through the decoder, for the upper levels of encoder effort.

Stochastic Gumbel annealing (Yang, Bamler, Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020):
rounding is relaxed to a random mixture of the two nearest integers that hardens as the temperature falls. `slope` is
the gradient that `dca_fast.effort.descend` follows from level 4 on. All runs on the float network that the integer
weights stand for, tile by tile, so other machines and numbers of threads may find other symbols; what is coded is what
the integer program then makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from dca_fast.config import ALIGN, STRIDE, price
from dca_fast.export import COEFFICIENT16, float_network
from dca_fast.model.layers import freeze
from dca_fast.model.network import Network, axis, interpolate
from dca_fast.ops.reference import LIMIT16, LIMIT_SYMBOL
from dca_fast.weights import Weights

TILE, MARGIN = 768, 128  # pixels: the largest tile, and what is refined around it because its neighbours see it
RATE = 0.01  # of Adam, in quantiser steps, until half of the iterations are over (docs/effort.md)
HOT, COLD = 0.6, 0.12  # temperatures at the start and at the end
SEED = 0
Progress = Callable[[float], None]
Latents = tuple[Tensor, dict[str, Tensor]]


@contextmanager
def _as_if_alone(device: torch.device) -> Iterator[None]:
    """Gradients, and none of the modes that the host program may be in."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


class Annealed:
    """Rounding to a random mixture of the two nearest integers; a `dca_fast.model.network.Rounding`."""

    def __init__(self, generator: torch.Generator) -> None:
        self.temperature, self._generator = HOT, generator

    def __call__(self, x: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.floor(x.detach())
        part = (x - low).clamp(1e-4, 1 - 1e-4)
        logit = (torch.atanh(part) - torch.atanh(1 - part)) / self.temperature  # of the upper integer
        uniform = torch.rand(x.shape, generator=self._generator, device=x.device, dtype=x.dtype).clamp(1e-6, 1 - 1e-6)
        # The difference of the two Gumbel variables is logistic.
        soft = (low + torch.sigmoid((logit + torch.logit(uniform)) / self.temperature)) * coded
        return soft, soft


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
    """Refines latents of one model.

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

    def refine(
        self,
        image: Tensor,
        valid: tuple[int, int],
        y: Tensor,
        z: dict[str, Tensor],
        quality: float,
        iterations: int,
        progress: Progress | None = None,
    ) -> Latents:
        """Better latents of one picture.

        Args:
            image: uint8 [1, H, W, 3], sides multiples of 64.
            valid: height and width of the picture without its padding.
            y: int16 [1, H/16, W/16, M], as `Program.analyse` gives it.
            z: symbols as `Program.hyper_analyse` gives them; those of the global latent stay.
            quality: 0..100.
            iterations: steps of Adam for each tile.
            progress: told how much is done, 0..1.

        Returns:
            New y and z of the same form.
        """
        y_new, z_new = y.clone(), {name: value.clone() for name, value in z.items()}
        work = list(tiles(*image.shape[1:3]))
        for i, (keep, around) in enumerate(work):

            def report(done: float, i: int = i) -> None:
                if progress is not None:
                    progress((i + done) / len(work))

            with _as_if_alone(self._device):
                pixels, counted, start = self._tile(around, image, valid, y)
                search = _Search(self._network, pixels, counted, start, z.get("global"), quality)
                found, symbols = search.run(iterations, report)
            inner = keep.within(around)
            limit = (found * self._steps).round().clamp(-LIMIT16, LIMIT16)
            keep.of(y_new, STRIDE).copy_(inner.of(limit, STRIDE))
            for name, value in symbols.items():
                stride = STRIDE if name == "local" else 4 * STRIDE
                keep.of(z_new[name], stride).copy_(inner.of(value, stride))
        return y_new, z_new

    def slope(self, image: Tensor, valid: tuple[int, int], y_hat: Tensor, quality: float) -> Tensor:
        """Where y should go for a smaller error, times the bits that a squared quantiser step costs.

        Args:
            image, valid, quality: as in `refine`.
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


class _Search:
    """The annealing in one tile: offsets of y and of the hyper latents, in quantiser steps."""

    def __init__(
        self, network: Network, x: Tensor, counted: Tensor, y: Tensor, z_global: Tensor | None, quality: float
    ) -> None:
        self.network, self.x, self.counted, self.y, self.lam = network, x, counted, y, price(quality)
        self.sites = counted[:, ::STRIDE, ::STRIDE]  # those that touch the picture
        self.quality = torch.tensor([quality], dtype=torch.float32, device=x.device)
        self.t = axis(self.quality)
        self.gain = torch.exp2(interpolate(network.log2_gain, self.quality))
        self.fixed: dict[str, Tensor] = {}
        if z_global is not None:
            self.fixed["global"] = z_global.to(x.device) / self.gains("global").view(z_global.shape)
        self.z: dict[str, Tensor] = {
            name: pair.analyse(y, self.t)  # type: ignore[operator]
            for name, pair in network.hyper.items()
            if name not in self.fixed
        }
        self.moved = {name: torch.zeros_like(v, requires_grad=True) for name, v in {"y": y, **self.z}.items()}
        self.generator = torch.Generator(x.device).manual_seed(SEED)

    def gains(self, name: str) -> Tensor:
        """Quantiser steps in a unit of a hyper latent."""
        return torch.exp2(interpolate(self.network.get_parameter(f"factorised.{name}.log2_gain"), self.quality))

    def loss(self, rounding: Annealed) -> Tensor:
        """Bits per pixel and weighted squared error of the tile."""
        n, z_hat, bits = self.network, dict(self.fixed), self.y.new_zeros(())
        for name, z in self.z.items():
            value = z + self.moved[name] / self.gains(name)
            sites = self.sites if name == "local" else None
            z_hat[name], spent = n.code_hyper(name, value, self.quality, rounding, sites)
            bits = bits + spent.sum()
        features = n.context.prepare(n.synthesise_hyper({name: z_hat[name] for name in n.hyper}, self.t))
        y = self.y + self.moved["y"] / self.gain
        y_hat, spent, _ = n.code_latent(y, features, self.quality, self.t, rounding, self.sites)
        error = squared_error(n.synthesis(y_hat, self.t), self.x, self.counted)
        loss: Tensor = (bits + spent.sum() + self.lam * error) / self.counted.sum().clamp_min(1)
        return loss

    def run(self, iterations: int, report: Progress) -> Latents:
        """y in its own unit, and symbols of the other hyper latents."""
        rounding = Annealed(self.generator)
        adam = torch.optim.Adam(self.moved.values(), lr=RATE)
        for i in range(iterations):
            done = i / iterations
            rounding.temperature = HOT * (COLD / HOT) ** done
            adam.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - done))
            loss = self.loss(rounding)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            report((i + 1) / iterations)
        with torch.no_grad():
            symbols = {
                name: (z * self.gains(name) + self.moved[name]).round().clamp(-LIMIT_SYMBOL, LIMIT_SYMBOL)
                for name, z in self.z.items()
            }
            return self.y + self.moved["y"] / self.gain, symbols
