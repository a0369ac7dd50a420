"""Learned rivals with the two methods of a codec: CompressAI's models, and our own float model in PyTorch."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import MethodType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dca_fast.config import ALIGN, OPERAND_ONE
from dca_fast.evaluation.measure import Pixels
from dca_fast.model import layers
from dca_fast.model.network import Network
from dca_fast.model.walk import Source, axis, code_hyper, code_latent
from dca_fast.network.walk import Grid
from dca_fast.train.export import load_float

OPERAND_LIMIT = 127 / OPERAND_ONE
FLOAT_WEIGHTS = Path(__file__).parents[1] / "checkpoints" / "dca-s.safetensors"
COMPRESSAI = {  # name: model of compressai.zoo or class of compressai.models, its quality
    "mbt2018-mean": ("mbt2018_mean", 4),
    "cheng2020-anchor": ("cheng2020_anchor", 4),
    "ELIC": ("Elic2022Official", None),
}


class CompressAi:
    """A model of CompressAI with random weights, seeded.

    Its pictures mean nothing; the arithmetic and the number of coded symbols are those of the trained model, and the
    time is about its time.

    Args:
        name: key of `COMPRESSAI`.
    """

    def __init__(self, name: str) -> None:
        with warnings.catch_warnings():  # on import, about its own dependencies
            warnings.simplefilter("ignore")
            zoo = pytest.importorskip("compressai.zoo", reason="CompressAI: needs dca-fast[bench]")
            models = pytest.importorskip("compressai.models")
            model, quality = COMPRESSAI[name]
            if quality is None and not hasattr(models, model):
                pytest.skip(f"{name}: CompressAI {metadata.version('compressai')} has no {model}")
            torch.manual_seed(0)
            network = getattr(zoo, model)(quality, pretrained=False) if quality else getattr(models, model)()
        self.network = network.eval()
        self.network.update(force=True)

    @torch.inference_mode()
    def encode(self, image: Pixels, quality: float) -> tuple[Any, ...]:
        """`[H, W, 3]` uint8 to strings, shape of z, height and width."""
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % ALIGN), (0, -width % ALIGN), (0, 0)), mode="edge")
        with warnings.catch_warnings():  # of the autoregressive models, which warn that they are slow
            warnings.simplefilter("ignore")
            out = self.network.compress(torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255)
        return out["strings"], out["shape"], height, width

    @torch.inference_mode()
    def decode(self, data: tuple[Any, ...], output: str) -> Pixels:
        """The inverse of `encode`."""
        strings, shape, height, width = data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = self.network.decompress(strings, shape)["x_hat"][0, :, :height, :width]
        return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _linear(self: layers.Linear, x: Tensor, t: Tensor | None = None) -> Tensor:
    y = F.linear(x, self.weight, self.bias)
    return y if self.slope is None or t is None else y + t * self.slope


def _depthwise(self: layers.Depthwise, x: Tensor) -> Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, None], self.bias, padding=1, groups=self.weight.shape[0])
    return y.permute(0, 2, 3, 1)


def to_fp32(module: nn.Module) -> nn.Module:
    """Turn a module of the float model into a plain fp32 network: quantised weights as floats, products in fp32.

    Its operands are not rounded inside of `unrounded`.
    """
    for layer in module.modules():
        if isinstance(layer, layers.Linear | layers.Depthwise):
            layer.weight.data = layer.fake_quantised().detach()
            layer.forward = MethodType(_linear if isinstance(layer, layers.Linear) else _depthwise, layer)
    return module.eval().requires_grad_(False)


@contextmanager
def unrounded() -> Iterator[None]:
    """Operands of the float model saturate, which the weights rely on, but are not rounded to the integer grid."""
    modules = ("layers", "hyper", "context")
    patches = [mock.patch(f"dca_fast.model.{name}.operand", _saturate) for name in modules]
    patches.append(mock.patch("dca_fast.model.layers.gate", _gate))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _saturate(x: Tensor) -> Tensor:
    return F.hardtanh(x, -OPERAND_LIMIT, OPERAND_LIMIT)


def _gate(x: Tensor) -> Tensor:
    u, v = _saturate(x).chunk(2, -1)
    return _saturate(u * v)


class Rounding:
    """Keeps rounded residuals; hyper latents are 0 where no file has any: nothing keeps such values within 16 bits."""

    def __init__(self) -> None:
        self.symbols: list[Tensor] = []

    def hyper(self, name: str, residual: Tensor | None, log2_scale: Tensor, coded: Tensor) -> Tensor:
        assert residual is not None
        self.symbols.append(torch.round(residual) * coded)
        return self.symbols[-1]

    def step(self, residuals: list[Tensor] | None, log2_scales: list[Tensor], coded: list[Tensor]) -> list[Tensor]:
        assert residuals is not None
        values = [torch.round(residual) for residual in residuals]
        self.symbols += values
        return values


class Symbols:
    """Gives what `Rounding` kept, as one flat tensor, of one image."""

    def __init__(self, flat: Tensor) -> None:
        self._flat, self._offset = flat, 0

    def _next(self, like: Tensor) -> Tensor:
        start, self._offset = self._offset, self._offset + like.numel()
        return self._flat[start : self._offset].view(like.shape)

    def hyper(self, name: str, residual: Tensor | None, log2_scale: Tensor, coded: Tensor) -> Tensor:
        return self._next(log2_scale)

    def step(self, residuals: list[Tensor] | None, log2_scales: list[Tensor], coded: list[Tensor]) -> list[Tensor]:
        return [self._next(scale) for scale in log2_scales]


class FloatModel:
    """The float model as plain fp32 PyTorch, without entropy coder: a "file" is its symbols as int16.

    Encoder: analysis, hyper analyses and syntheses, four context steps with rounding. Decoder: hyper syntheses, four
    context steps, synthesis. Neither looks for table rows or codes bits, which the real codec must.

    Args:
        compiled: by `torch.compile`, once for each size.
    """

    def __init__(self, compiled: bool) -> None:
        self.network: Network = to_fp32(load_float(FLOAT_WEIGHTS))
        self._encode, self._decode = self._analyse, self._synthesise
        if compiled:
            self._encode, self._decode = (torch.compile(f, dynamic=False) for f in (self._encode, self._decode))

    @torch.no_grad()
    def encode(self, image: Pixels, quality: float) -> bytes:
        """`[H, W, 3]` uint8 to size, quality and symbols."""
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % ALIGN), (0, -width % ALIGN), (0, 0)), mode="edge")
        with unrounded():
            kept = self._encode(torch.from_numpy(padded)[None], torch.tensor([quality]))
        symbols = torch.cat([tensor.flatten() for tensor in kept]).to(torch.int16).numpy()
        return struct.pack("<HHf", height, width, quality) + symbols.tobytes()

    @torch.no_grad()
    def decode(self, data: bytes, output: str) -> Pixels:
        """The inverse of `encode`."""
        height, width, quality = struct.unpack_from("<HHf", data)
        symbols = torch.from_numpy(np.frombuffer(data, np.int16, offset=8).astype(np.float32))
        with unrounded():
            picture = self._decode(symbols, Grid.of(height, width).sites, torch.tensor([quality]))
        return picture[0, :height, :width].contiguous().numpy()

    def _analyse(self, image: Tensor, quality: Tensor) -> list[Tensor]:
        n, t = self.network, axis(quality)
        y = n.analysis(image.float() - 128, t)
        z = {name: pair.analyse(y, t) for name, pair in n.hyper.items()}
        source = Rounding()
        self._walk(source, z, y, (y.shape[1], y.shape[2]), quality)
        return source.symbols

    def _synthesise(self, symbols: Tensor, sites: tuple[int, int], quality: Tensor) -> Tensor:
        y_hat = self._walk(Symbols(symbols), None, None, sites, quality)
        return (self.network.synthesis(y_hat, axis(quality)) + 128).round().clamp(0, 255).to(torch.uint8)

    def _walk(
        self,
        source: Source,
        z: dict[str, Tensor] | None,
        y: Tensor | None,
        sites: tuple[int, int],
        quality: Tensor,
    ) -> Tensor:
        n = self.network
        features = n.context.prepare(n.synthesise_hyper(code_hyper(n, source, z, sites, quality), axis(quality)))
        return code_latent(n, source, y, features, sites, quality)[0]
