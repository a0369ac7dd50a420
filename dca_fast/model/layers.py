"""Layers of the float model, built for integers: every GEMM reads an operand on the int8 grid.

All maps are NHWC, `[N, H, W, C]`. `t` is the quality of each sample, `[N, 1, 1, 1]` in [-1, 1].
Rounding is straight-through, so that training sees what the integer program (docs/spec/numerics.md) does.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dca_fast.config import LEAKY_SLOPE, OPERAND_ONE

if TYPE_CHECKING:  # Triton is not loaded before something trains on a GPU
    from dca_fast.kernels.training import Quantised

OPERAND_LIMIT = 127 / OPERAND_ONE
# Adding and subtracting it rounds a float32 of the operand's range half to even to a multiple of 1 / OPERAND_ONE.
_ROUNDER = 1.5 * 2**23 / OPERAND_ONE


def _saturate(x: Tensor, inplace: bool = False) -> Tensor:
    x = x.float()  # what the sums below are made for
    y = x.clamp_(-OPERAND_LIMIT, OPERAND_LIMIT) if inplace else x.clamp(-OPERAND_LIMIT, OPERAND_LIMIT)
    return y.add_(_ROUNDER).sub_(_ROUNDER)


def _inside(gradient: Tensor, y: Tensor) -> Tensor:
    """The gradient where `y` isn't saturated, else 0."""
    return torch.ops.aten.hardtanh_backward(gradient, y, -OPERAND_LIMIT, OPERAND_LIMIT)


class _Operand(torch.autograd.Function):
    """Straight-through inside the range, no gradient outside; written out, as `_Gate` and `_FakeQuantise` are, because
    a chain of small operators costs a CPU trainer more than its GEMMs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _saturate(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _inside(gradient, ctx.saved_tensors[0])


def operand(x: Tensor) -> Tensor:
    """Saturate and round to the int8 operand grid: multiples of 1/16 within +-127/16."""
    return _Operand.apply(x)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        halves = _saturate(x)
        u, v = halves.chunk(2, -1)
        y = _saturate(u * v, inplace=True)
        ctx.save_for_backward(halves, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        halves, y = ctx.saved_tensors
        gradient = _inside(gradient, y)
        u, v = halves.chunk(2, -1)
        return _inside(torch.cat((gradient * v, gradient * u), -1), halves)


def gate(x: Tensor) -> Tensor:
    """operand(operand(u) * operand(v)) of the halves u, v of the last dimension."""
    return _Gate.apply(x)


def channel_multipliers(weight: Tensor) -> Tensor:
    """What the int8 values of every output channel (dimension 0) are times, broadcastable to `weight`."""
    return (weight.detach().flatten(1).abs().amax(1) / 127).clamp_min(1e-8).view(-1, *[1] * (weight.dim() - 1))


class _FakeQuantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        multiplier = channel_multipliers(weight)
        return (weight / multiplier).round_().mul_(multiplier)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Product(torch.autograd.Function):
    """x W^T of an operand and int8 weights, in bfloat16.

    Both are exact there; only the product's sum is rounded. The gradient goes straight through to the weights that were
    quantised.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, integers: Tensor, multiplier: Tensor) -> Tensor:
        x = x.bfloat16()
        ctx.save_for_backward(x, integers, multiplier)
        return F.linear(x, integers).float() * multiplier

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, integers, multiplier = ctx.saved_tensors
        g = (gradient * multiplier).bfloat16()
        weight = g.flatten(0, -2).T @ x.flatten(0, -2)
        return (g @ integers).float(), weight.float() / multiplier[:, None], None, None


class Int8Layer(nn.Module):
    """A layer with int8 weights; `ready` has them where they are renewed for all layers at once (`model/fused.py`)."""

    weight: Tensor
    ready: Quantised | None = None

    def integers(self) -> tuple[Tensor, Tensor]:
        """The int8 values of the weight as bfloat16, and their multipliers `[O]`; no gradient."""
        if self.ready is not None:
            return self.ready.precise.bfloat16(), self.ready.multiplier
        multiplier = channel_multipliers(self.weight)
        return (self.weight.detach() / multiplier).round_().bfloat16(), multiplier.flatten()

    def fake_quantised(self) -> Tensor:
        """The weight as its int8 values represent it (straight-through)."""
        return _FakeQuantise.apply(self.weight)


@cache
def cpu_type() -> torch.dtype:
    """What this CPU multiplies faster: float32 unless Linux says otherwise.

    Not timed, so that all processes and every resumed training find the same. bfloat16 was faster with AMD's
    AVX512_BF16 and slower with Intel's without AMX (docs/experiments/weights.md); with AMX it is assumed to be.
    """
    path = Path("/proc/cpuinfo")
    facts = path.read_text() if path.exists() else ""
    fast = "amx_bf16" in facts or ("AuthenticAMD" in facts and "avx512_bf16" in facts)
    return torch.bfloat16 if fast else torch.float32


class Linear(Int8Layer):
    """int8-weight 1x1 layer on an operand; `conditional` adds a bias that is linear in the quality."""

    def __init__(self, inputs: int, outputs: int, conditional: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * gain / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.slope = nn.Parameter(torch.zeros(outputs)) if conditional else None
        self.cpu_type = cpu_type()

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """`[..., inputs]` on the operand grid -> `[..., outputs]` float32."""
        if x.device.type == "cpu" and self.cpu_type == torch.float32:
            y = F.linear(x, self.fake_quantised(), self.bias)
        else:
            y = _Product.apply(x, self.weight, *self.integers()) + self.bias
        return y if self.slope is None or t is None else y + t * self.slope


class WideLinear(nn.Module):
    """1x1 layer of the trunk: 16-bit operands and weights in the integer program, float32 here."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Depthwise(Int8Layer):
    """3x3 depthwise convolution, zero padding, int8 weights; starts near the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        weight = torch.randn(channels, 3, 3) * 0.15
        weight[:, 1, 1] += 1
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, H, W, C]` on the operand grid -> the same shape."""
        weight = self.fake_quantised()[:, None]
        # NHWC permuted is channels-last: neither permutation copies.
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, self.bias, padding=1, groups=weight.shape[0])
        return y.permute(0, 2, 3, 1)


# What a branch adds to a trunk of the transforms, in that trunk's unit (coefficient / sqrt(deviation)). Added in the
# channels' own unit instead, the noise of Adam alone held the transforms at 34 dB.
TRUNK_REACH = 2.0


class _Branch(nn.Module):
    """What adds to a trunk; `unit` is given for the transforms' trunks, which it brings to the operand's range.

    `fused`: by the functions of `kernels/training.py`, which do the same in fewer passes with less memory.
    """

    expand: Linear
    project: Linear
    fused = False

    def __init__(self, channels: int, unit: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(channels) if unit is None else unit.clone())
        self.trunk, self.reach = unit is not None, 1.0 if unit is None else TRUNK_REACH

    def read(self, x: Tensor) -> Tensor:
        return operand(x / self.unit if self.trunk else x)

    def add(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.add(x, self.project(h), alpha=self.reach)

    def by_kernels(self, name: str, x: Tensor, t: Tensor | None, layers: tuple[Int8Layer, ...]) -> Tensor:
        """The branch by a function of `kernels/training.py`."""
        from dca_fast.kernels import training

        floats = [value for layer in layers for value in layer.parameters(recurse=False)]
        arguments = (x,) if t is None else (x, t)
        unit = self.unit if self.trunk else None
        return getattr(training, name)(*arguments, unit, self.reach, [layer.ready for layer in layers], floats)


class DepthBlock(_Branch):
    """x + W2 dw3x3(leaky(W1 x)): the spatial half of a block; the branch reads x / unit."""

    def __init__(self, channels: int, hidden: int, unit: Tensor | None = None) -> None:
        super().__init__(channels, unit)
        self.expand = Linear(channels, hidden, conditional=True)
        self.depthwise = Depthwise(hidden)
        self.project = Linear(hidden, channels, gain=0.02)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.fused:
            return self.by_kernels("depth_block", x, t, (self.expand, self.depthwise, self.project))
        h = operand(F.leaky_relu(self.expand(self.read(x), t), LEAKY_SLOPE))
        return self.add(x, operand(self.depthwise(h)))


class GatedFfn(_Branch):
    """x + W2 (u * v) with u, v = W1 x: the channel half of a block."""

    def __init__(self, channels: int, hidden: int, unit: Tensor | None = None) -> None:
        super().__init__(channels, unit)
        self.expand = Linear(channels, 2 * hidden)
        self.project = Linear(hidden, channels, gain=0.02)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        if self.fused:
            return self.by_kernels("gated_ffn", x, None, (self.expand, self.project))
        return self.add(x, gate(self.expand(self.read(x))))


class Block(nn.Module):
    """DepthBlock then GatedFfn (the depthwise block of DCVC-DC, gate without activation)."""

    def __init__(self, channels: int, hidden: int, unit: Tensor | None = None) -> None:
        super().__init__()
        self.depth = DepthBlock(channels, hidden, unit)
        self.ffn = GatedFfn(channels, hidden, unit)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.ffn(self.depth(x, t))


def space_to_depth(x: Tensor, r: int = 2) -> Tensor:
    """`[N, H, W, C]` -> `[N, H/r, W/r, r*r*C]`, order (dy, dx, c)."""
    n, h, w, c = x.shape
    return x.view(n, h // r, r, w // r, r, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // r, w // r, r * r * c)


def depth_to_space(x: Tensor, r: int = 2) -> Tensor:
    """Inverse of `space_to_depth`."""
    n, h, w, c = x.shape
    return x.view(n, h, w, r, r, c // (r * r)).permute(0, 1, 3, 2, 4, 5).reshape(n, h * r, w * r, c // (r * r))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Softmax attention: q `[B, P, C]`, k and v `[B, T, C]`, bias broadcastable to `[B, heads, P, T]`."""
    b, p, c = q.shape
    q, k, v = (s.reshape(b, -1, heads, c // heads).transpose(1, 2) for s in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(c // heads)
    attention = (scores if bias is None else scores + bias).softmax(-1)
    return (attention @ v).transpose(1, 2).reshape(b, p, c)


class WindowAttention(nn.Module):
    """x + O(attention inside ws x ws windows) with a learned relative position bias (Swin, ICCV 2021)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = Linear(channels, 3 * channels)
        self.out = Linear(channels, channels, gain=0.02)
        self.position = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))
        yx = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"), -1).view(-1, 2)
        delta = yx[:, None] - yx[None, :] + window - 1
        self.register_buffer("pairs", delta[..., 0] * (2 * window - 1) + delta[..., 1], persistent=False)

    def _regions(self, x: Tensor) -> Tensor:
        """0 where a pair of a rolled window belongs together, -inf where the roll wrapped around."""

        def label(n: int) -> Tensor:
            i = torch.arange(n, device=x.device)
            return (i >= n - self.shift).long()

        h, w = x.shape[1:3]
        labels = (label(h)[:, None] * 2 + label(w)[None, :]).view(1, h, w, 1)
        flat = space_to_depth(labels, self.window).view(-1, self.window**2)
        return x.new_zeros(flat.shape[0], 1, *self.pairs.shape).masked_fill(
            (flat[:, :, None] != flat[:, None, :])[:, None], -math.inf
        )

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        q, k, v = operand(self.qkv(operand(x))).chunk(3, -1)
        windows = []
        for s in (q, k, v):
            if self.shift:
                s = s.roll((-self.shift, -self.shift), (1, 2))
            windows.append(space_to_depth(s, self.window).reshape(-1, self.window**2, c))
        bias = self.position[:, self.pairs][None]
        if self.shift:
            bias = bias + self._regions(x).repeat(n, 1, 1, 1)
        y = attend(*windows, self.heads, bias)
        y = depth_to_space(y.reshape(n, h // self.window, w // self.window, -1), self.window)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        return x + self.out(operand(y))


class TokenAttention(nn.Module):
    """x + O(attention of every site over a few tokens); keys and values come ready from `token_kv`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(channels, channels)
        self.out = Linear(channels, channels, gain=0.02)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x `[N, H, W, C]`, keys and values `[N, T, C]` on the operand grid."""
        n, h, w, c = x.shape
        q = operand(self.query(operand(x))).view(n, h * w, c)
        return x + self.out(operand(attend(q, keys, values, self.heads))).view(n, h, w, c)
