"""The float model's residual blocks and rates for training on a GPU: fused autograd functions.

Definitions: `DepthBlock` and `GatedFfn` of `dca_fast/model/layers.py`. Between two kernels lies one byte a value, not
several floats: operands are kept as int8, in 1/16, forward products are exact int8 ones with multiplier, bias, quality,
activation and rounding in registers, and what the rounding lets through in the backward pass is read from the int8
values. A zero that does not come from above is kept as -128, so that the leaky slope is known. Products of the backward
pass are the library's, in the type of `Quantised.precise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dca_fast.config import LEAKY_SLOPE, OPERAND_ONE

from .choices import choose
from .gemm import _sum, _tile
from .numerics import EXACT, LIMIT8, rounded
from .pointwise import _indices, _launch

__all__ = ["Quantised", "QuantisedWeights", "depth_block", "gated_ffn", "noisy_bits"]

_ONE = tl.constexpr(float(OPERAND_ONE))
_LEAKY = tl.constexpr(LEAKY_SLOPE)
_BELOW = tl.constexpr(-128)  # zero, not from a positive value
_LEAST = tl.constexpr(2.0**-20)  # probability that is told apart
_ROOT_HALF, _INVERSE_ROOT_PI = (tl.constexpr(x) for x in (math.sqrt(0.5), 1 / math.sqrt(math.pi)))
_SIZES = ["rows", "sites", "height", "width"]
_ACT, _GATE, _ADD = (tl.constexpr(i) for i in range(3))  # epilogues
CHUNK = 1024  # sites whose share in a depthwise weight's gradient one program sums
SITES, CHANNELS = 16, 64  # of them at a time


class Quantised(NamedTuple):
    """The weights of a layer as int8 values and their multipliers.

    Args:
        integers: int8 `[O, K]` (depthwise `[C, 9]`), in +-127.
        precise: the integers in the type of the products of the backward pass.
        multiplier: float32 `[O]`, of each output channel: a weight is its integer times this.
    """

    integers: Tensor
    precise: Tensor
    multiplier: Tensor


# All weights of a network in one launch.


@triton.jit
def _quantise_kernel(addresses, lengths, offsets, integers, precise, multipliers, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    length, offset = tl.load(lengths + channel), tl.load(offsets + channel)
    weights = tl.load(addresses + channel).to(tl.pointer_type(tl.float32))
    at = tl.arange(0, BLOCK)  # of one channel
    inside = at < length
    value = tl.load(weights + at, inside, 0.0)
    m = tl.maximum(tl.max(tl.abs(value), 0) / 127, 1e-8)
    code = rounded(tl.div_rn(value, m + tl.zeros([BLOCK], tl.float32)), LIMIT8)
    tl.store(integers + offset + at, code.to(tl.int8), inside)
    tl.store(precise + offset + at, code.to(tl.float32).to(precise.dtype.element_ty), inside)
    tl.store(multipliers + channel, m)


class QuantisedWeights:
    """Many float32 weights as int8, renewed together by one launch.

    Args:
        weights: contiguous, on one device; output channels are their dimension 0. They are kept, and changed in place
            only.
        precise: type of `Quantised.precise`.
    """

    def __init__(self, weights: Sequence[Tensor], precise: torch.dtype) -> None:
        self._weights, device = list(weights), weights[0].device
        counts = [w.shape[0] for w in weights]
        lengths = torch.tensor([w[0].numel() for w in weights for _ in range(w.shape[0])])
        addresses = torch.tensor([w.data_ptr() + 4 * w[0].numel() * o for w in weights for o in range(w.shape[0])])
        total = int(lengths.sum())
        self._channels = addresses.to(device), lengths.to(device), (lengths.cumsum(0) - lengths).to(device)
        self._integers = torch.zeros(total, dtype=torch.int8, device=device)
        self._precise = torch.zeros(total, dtype=precise, device=device)
        self._multipliers = torch.zeros(len(lengths), dtype=torch.float32, device=device)
        self._block = triton.next_power_of_2(int(lengths.max()))
        sizes = [w.numel() for w in weights]
        split = self._integers.split(sizes), self._precise.split(sizes), self._multipliers.split(counts)
        self.layers = [
            Quantised(integers.view(n, -1), precise.view(n, -1), multiplier)
            for n, integers, precise, multiplier in zip(counts, *split, strict=True)
        ]

    def renew(self) -> None:
        """Quantise the weights as they are now."""
        outputs = self._integers, self._precise, self._multipliers
        _quantise_kernel[len(self._multipliers),](*self._channels, *outputs, self._block, num_warps=4, **EXACT)


# Pointwise.


@triton.jit
def _operand_kernel(count, x, unit, out, C: tl.constexpr, UNIT: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    value = tl.load(x + at, inside, 0.0)
    if UNIT:
        value = tl.div_rn(value, tl.load(unit + at % C, inside, 1.0))
    tl.store(out + at, rounded(value * _ONE, LIMIT8).to(tl.int8), inside)


@triton.jit
def _passes(code):
    """Whether rounding let a gradient through."""
    value = code.to(tl.int32)
    return (value < LIMIT8) & ((value > -LIMIT8) | (value == _BELOW))


@triton.jit
def _multiplied_kernel(count, g, factor, out, C: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    value = tl.load(g + at, inside, 0.0) * tl.load(factor + at % C, inside, 0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@triton.jit
def _weight_gradient_kernel(count, g, m, out, K: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of weights, float32, from a product of operands in 1/16 with a gradient times the multipliers."""
    at = _indices(LONG, BLOCK)
    inside = at < count
    value = tl.load(g + at, inside, 0.0).to(tl.float32)
    tl.store(out + at, tl.div_rn(value, tl.load(m + at // K, inside, 1.0) * _ONE), inside)


@triton.jit
def _input_kernel(
    count, g, branch, a, unit, out, C: tl.constexpr, UNIT: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of x: of the trunk, and of the branch where its operand passes one."""
    at = _indices(LONG, BLOCK)
    inside = at < count
    value = tl.load(branch + at, inside, 0.0).to(tl.float32)
    if UNIT:
        value = tl.div_rn(value, tl.load(unit + at % C, inside, 1.0))
    value = tl.where(_passes(tl.load(a + at, inside, 0)), value, 0.0)
    tl.store(out + at, tl.load(g + at, inside, 0.0) + value, inside)


@triton.jit
def _gate_back_kernel(count, g, halves, m, out, H: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of both halves, times the multipliers of their channels, from that of their product."""
    at = _indices(LONG, BLOCK)
    inside = at < count
    channel = at % H
    left = at // H * (2 * H) + channel
    u, v = tl.load(halves + left, inside, 0), tl.load(halves + left + H, inside, 0)
    product = rounded(u.to(tl.float32) * v.to(tl.float32) / _ONE, LIMIT8)
    g = tl.where((product < LIMIT8) & (product > -LIMIT8), tl.load(g + at, inside, 0.0).to(tl.float32), 0.0) / _ONE
    gu = tl.where(_passes(u), g * v.to(tl.float32), 0.0) * tl.load(m + channel, inside, 0.0)
    gv = tl.where(_passes(v), g * u.to(tl.float32), 0.0) * tl.load(m + H + channel, inside, 0.0)
    tl.store(out + left, gu.to(out.dtype.element_ty), inside)
    tl.store(out + left + H, gv.to(out.dtype.element_ty), inside)


# Products of the forward pass.


@triton.jit
def _value(acc, m, bias, slope, t, r, sites, n, N: tl.constexpr, CONDITIONAL: tl.constexpr):
    y = acc.to(tl.float32) * (tl.load(m + n, n < N, 0.0) / _ONE)[None, :] + tl.load(bias + n, n < N, 0.0)[None, :]
    if CONDITIONAL:
        y += tl.load(t + r // sites)[:, None] * tl.load(slope + n, n < N, 0.0)[None, :]
    return y


@triton.jit(do_not_specialize=_SIZES)
def _product_kernel(
    a, w, m, bias, slope, t, residual, halves, out, rows, sites, reach, N: tl.constexpr, K: tl.constexpr,
    EPILOGUE: tl.constexpr, CONDITIONAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """N output columns; with the gate, w has 2N rows."""
    r, inside, n = _tile(rows, N, BM, BN)
    mask = inside[:, None] & (n < N)[None, :]
    within = tl.minimum(r, rows - 1)
    acc = _sum(a, a, w, r, inside, n, N, K, False, BM, BN, BK)
    y = _value(acc, m, bias, slope, t, within, sites, n, N, CONDITIONAL)
    at = (r * N)[:, None] + n[None, :]
    if EPILOGUE == _ADD:
        tl.store(out + at, tl.load(residual + at, mask, 0.0) + reach * y, mask)
    elif EPILOGUE == _ACT:
        code = rounded(tl.where(y < 0, y * _LEAKY, y) * _ONE, LIMIT8)
        tl.store(out + at, tl.where((code == 0) & (y <= 0), _BELOW, code).to(tl.int8), mask)
    else:
        acc = _sum(a, a, w + N * K, r, inside, n, N, K, False, BM, BN, BK)
        v = _value(acc, m + N, bias + N, slope, t, within, sites, n, N, False)
        u, v = rounded(y * _ONE, LIMIT8), rounded(v * _ONE, LIMIT8)
        left = (r * (2 * N))[:, None] + n[None, :]
        tl.store(halves + left, u.to(tl.int8), mask)
        tl.store(halves + left + N, v.to(tl.int8), mask)
        tl.store(out + at, rounded((u * v).to(tl.float32) / _ONE, LIMIT8).to(tl.int8), mask)


def _product(
    a: Tensor,
    layer: Quantised,
    bias: Tensor,
    epilogue: Any,
    slope: Tensor | None = None,
    t: Tensor | None = None,
    residual: Tensor | None = None,
    reach: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Launch `_product_kernel`: its output, and the halves of a gate."""
    k, gated = layer.integers.shape[1], epilogue is _GATE
    n, rows = layer.integers.shape[0] // (2 if gated else 1), a.numel() // k
    dtype = torch.float32 if epilogue is _ADD else torch.int8
    out = torch.empty(*a.shape[:-1], n, dtype=dtype, device=a.device)
    halves = torch.empty(*a.shape[:-1], 2 * n, dtype=torch.int8, device=a.device) if gated else None
    if rows:
        tiles = choose("gate" if gated else "linear", rows, k, n, a.device)
        _product_kernel[(triton.cdiv(rows, tiles["BM"]) * triton.cdiv(n, tiles["BN"]),)](
            a, layer.integers, layer.multiplier, bias, slope, t, residual, halves, out, rows, rows // a.shape[0], reach,
            n, k, epilogue, slope is not None and t is not None, **tiles, **EXACT,
        )  # fmt: skip
    return out, halves


# The depthwise convolution.


@triton.jit
def _neighbour(at, site, dy, dx, height, width, C: tl.constexpr, inside):
    """Index of the same channel of a neighbour, and whether there is one."""
    y, x = site // width % height + dy, site % width + dx
    return at + (dy * width + dx) * C, inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_kernel(
    count, h, w, m, bias, out, height, width, C: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr
):
    at = _indices(LONG, BLOCK)
    inside = at < count
    channel, site = at % C, at // C
    acc = tl.zeros([BLOCK], tl.int32)
    for tap in tl.static_range(9):
        near, there = _neighbour(at, site, tap // 3 - 1, tap % 3 - 1, height, width, C, inside)
        value = tl.load(h + near, there, 0).to(tl.int32)
        acc += tl.where(value == _BELOW, 0, value) * tl.load(w + channel * 9 + tap, inside, 0).to(tl.int32)
    y = acc.to(tl.float32) * (tl.load(m + channel, inside, 0.0) / _ONE) + tl.load(bias + channel, inside, 0.0)
    tl.store(out + at, rounded(y * _ONE, LIMIT8).to(tl.int8), inside)


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_back_kernel(
    count, g, d, h, w, m, m_next, out, height, width, C: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient before the activation, times the multipliers of the channels that made it.

    g: gradient of what the convolution's result, d, was rounded to; h: what the convolution read; m, m_next: of the
    convolution, and of the layer before it.
    """
    at = _indices(LONG, BLOCK)
    inside = at < count
    channel, site = at % C, at // C
    total = tl.zeros([BLOCK], tl.float32)
    for tap in tl.static_range(9):
        near, there = _neighbour(at, site, 1 - tap // 3, 1 - tap % 3, height, width, C, inside)
        value = tl.load(g + near, there, 0.0).to(tl.float32)
        value = tl.where(_passes(tl.load(d + near, there, 0)), value, 0.0)
        total += value * tl.load(w + channel * 9 + tap, inside, 0).to(tl.float32)
    code = tl.load(h + at, inside, 0)
    total = tl.where(_passes(code), tl.where(code.to(tl.int32) < 0, total * _LEAKY, total), 0.0)
    total *= tl.load(m + channel, inside, 0.0) * tl.load(m_next + channel, inside, 0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_weight_kernel(
    rows, g, d, h, out, height, width, C: tl.constexpr, CHUNK: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr
):
    """Sums over the sites of a chunk, float32 [10, C]: nine taps and the bias."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    first = tl.program_id(1).to(tl.int64) * CHUNK
    sums = ()
    for _ in tl.static_range(10):
        sums += (tl.zeros([BC], tl.float32),)
    for start in range(0, CHUNK, BS):
        site = first + start + tl.arange(0, BS)
        inside = (site < rows)[:, None] & (channel < C)[None, :]
        at = site[:, None] * C + channel[None, :]
        value = tl.load(g + at, inside, 0.0).to(tl.float32)
        value = tl.where(_passes(tl.load(d + at, inside, 0)), value, 0.0)
        new = ()
        for tap in tl.static_range(9):
            near, there = _neighbour(at, site[:, None], tap // 3 - 1, tap % 3 - 1, height, width, C, inside)
            code = tl.load(h + near, there, 0).to(tl.int32)
            code = tl.where(code == _BELOW, 0, code).to(tl.float32)
            new += (sums[tap] + tl.sum(value * code, 0),)
        new += (sums[9] + tl.sum(value, 0),)  # type: ignore[misc]
        sums = new
    target = out + tl.program_id(1).to(tl.int64) * (10 * C) + channel
    for tap in tl.static_range(10):
        tl.store(target + tap * C, sums[tap], channel < C)


# Rates.


@triton.jit
def _erfc(x):
    """The complementary error function to 1.2e-7 of itself (Press et al., Numerical Recipes, section 6.2)."""
    z = tl.abs(x)
    t = 1 / (1 + 0.5 * z)
    p = -0.82215223 + t * 0.17087277
    p = -1.13520398 + t * (1.48851587 + t * p)
    p = 0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * p))
    p = -z * z - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * p))
    y = t * tl.exp(p)
    return tl.where(x < 0, 2 - y, y)


@triton.jit
def _gaussian_bits(value, inverse):
    """Bits of `gaussian_bits` and their derivative by log2 of the scale, whose inverse times sqrt(1/2) is given."""
    v = tl.abs(value)
    a, b = (v - 0.5) * inverse, (v + 0.5) * inverse
    exact = 0.5 * (_erfc(a) - _erfc(b))
    p = tl.maximum(exact, _LEAST)
    slope = (b * tl.exp(-b * b) - a * tl.exp(-a * a)) * _INVERSE_ROOT_PI / p
    return -tl.log2(p), tl.where(exact >= _LEAST, slope, 0.0)


@triton.jit
def _noisy_bits_kernel(
    count, x, noise, log2_scale, bits, slope_x, slope_scale, LONG: tl.constexpr, BLOCK: tl.constexpr
):
    at = _indices(LONG, BLOCK)
    inside = at < count
    value = tl.load(x + at, inside, 0.0)
    inverse = tl.exp2(-tl.load(log2_scale + at, inside, 0.0)) * _ROOT_HALF
    value_bits, slope = _gaussian_bits(value + (tl.load(noise + at, inside, 0.0) - 0.5), inverse)
    above, _ = _gaussian_bits(value + 0.5, inverse)
    below, _ = _gaussian_bits(value - 0.5, inverse)
    tl.store(bits + at, value_bits, inside)
    tl.store(slope_x + at, above - below, inside)
    tl.store(slope_scale + at, slope, inside)


class _NoisyBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Tensor, log2_scale: Tensor) -> Tensor:
        bits, *slopes = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(3))
        arguments = x.contiguous(), noise.contiguous(), log2_scale.contiguous(), bits, *slopes
        _launch(_noisy_bits_kernel, x.numel(), *arguments)
        ctx.save_for_backward(*slopes)
        return bits

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        slope_x, slope_scale = ctx.saved_tensors
        return g * slope_x, None, g * slope_scale


def noisy_bits(x: Tensor, noise: Tensor, log2_scale: Tensor) -> Tensor:
    """`dca_fast.model.rates.noisy_bits` with its noise, uniform in 0..1; float32, and the scale broadcasts."""
    bits: Tensor = _NoisyBits.apply(x, noise, log2_scale.expand_as(x))
    return bits


# Autograd of the blocks.


def _operand(x: Tensor, unit: Tensor | None) -> Tensor:
    out = torch.empty_like(x, dtype=torch.int8)
    _launch(_operand_kernel, x.numel(), x, unit, out, x.shape[-1], unit is not None)
    return out


def _multiplied(g: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty_like(g, dtype=dtype)
    _launch(_multiplied_kernel, g.numel(), g, factor, out, g.shape[-1])
    return out


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _weight_gradient(g: Tensor, a: Tensor, layer: Quantised) -> Tensor:
    """Of a layer's weights, from g, a gradient times its multipliers, and the int8 operands a."""
    product = _flat(g).T @ _flat(a).to(g.dtype)
    out = torch.empty_like(product, dtype=torch.float32)
    _launch(_weight_gradient_kernel, product.numel(), product, layer.multiplier, out, product.shape[1])
    return out


def _bias_gradient(g: Tensor, layer: Quantised) -> Tensor:
    return _flat(g).sum(0, dtype=torch.float32) / layer.multiplier


def _bias_and_slope_gradients(g: Tensor, layer: Quantised, t: Tensor) -> tuple[Tensor, Tensor]:
    samples = g.view(g.shape[0], -1, g.shape[-1]).sum(1, dtype=torch.float32) / layer.multiplier
    return samples.sum(0), t.view(-1) @ samples


def _input_gradient(g: Tensor, multiplied: Tensor, layer: Quantised, a: Tensor, unit: Tensor | None) -> Tensor:
    branch = (_flat(multiplied) @ layer.precise).view(a.shape)
    out = torch.empty_like(g)
    _launch(_input_kernel, g.numel(), g, branch, a, unit, out, g.shape[-1], unit is not None)
    return out


class _DepthBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, t: Tensor, unit: Tensor | None, reach: float, layers: Sequence[Quantised], *floats: Tensor
    ) -> Tensor:
        _, bias, slope, _, middle_bias, _, last_bias = floats
        expand, depthwise, project = layers
        x = x.contiguous()
        a = _operand(x, unit)
        h, _ = _product(a, expand, bias, _ACT, slope, t)
        d, (_, height, width, c) = torch.empty_like(h), h.shape
        _launch(_depthwise_kernel, h.numel(), h, *depthwise[::2], middle_bias, d, height, width, c)
        y, _ = _product(d, project, last_bias, _ADD, residual=x, reach=reach)
        ctx.save_for_backward(a, h, d, t)
        ctx.unit, ctx.reach, ctx.layers = unit, reach, layers
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (a, h, d, t), (expand, depthwise, project) = ctx.saved_tensors, ctx.layers
        g, dtype = g.contiguous(), project.precise.dtype
        last = _multiplied(g, project.multiplier * ctx.reach, dtype)
        middle = (_flat(last) @ project.precise).view(d.shape)
        rows, (_, height, width, c) = h.numel() // h.shape[-1], h.shape
        chunks = triton.cdiv(rows, CHUNK)
        sums = torch.empty(chunks, 10, c, dtype=torch.float32, device=g.device)
        _depthwise_weight_kernel[triton.cdiv(c, CHANNELS), chunks](
            rows, middle, d, h, sums, height, width, c, CHUNK, SITES, CHANNELS, num_warps=4, **EXACT
        )
        total = sums.sum(0)
        first = torch.empty_like(middle)
        args = (middle, d, h, *depthwise[::2], expand.multiplier, first, height, width, c)
        _launch(_depthwise_back_kernel, h.numel(), *args)
        floats = (
            _weight_gradient(first, a, expand),
            *_bias_and_slope_gradients(first, expand, t),
            (total[:9] / OPERAND_ONE).T.reshape(c, 3, 3),
            total[9],
            _weight_gradient(last, d, project),
            _bias_gradient(last, project),
        )
        return _input_gradient(g, first, expand, a, ctx.unit), None, None, None, None, *floats


def depth_block(
    x: Tensor, t: Tensor, unit: Tensor | None, reach: float, layers: Sequence[Quantised], floats: Sequence[Tensor]
) -> Tensor:
    """`DepthBlock.forward`.

    Args:
        x: float32 `[N, H, W, C]`.
        t: quality `[N, 1, 1, 1]`, float32.
        unit: float32 `[C]`, of a trunk.
        reach: factor on what the branch adds.
        layers: expand, depthwise, project.
        floats: what gradients are of: weight, bias and slope of expand, weight and bias of depthwise and of project.
    """
    y: Tensor = _DepthBlock.apply(x, t.contiguous(), unit, reach, layers, *floats)
    return y


class _GatedFfn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, unit: Tensor | None, reach: float, layers: Sequence[Quantised], *floats: Tensor
    ) -> Tensor:
        (_, bias, _, last_bias), (expand, project) = floats, layers
        x = x.contiguous()
        a = _operand(x, unit)
        product, halves = _product(a, expand, bias, _GATE)
        y, _ = _product(product, project, last_bias, _ADD, residual=x, reach=reach)
        ctx.save_for_backward(a, product, halves)
        ctx.unit, ctx.reach, ctx.layers = unit, reach, layers
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (a, product, halves), (expand, project) = ctx.saved_tensors, ctx.layers
        g, dtype = g.contiguous(), project.precise.dtype
        last = _multiplied(g, project.multiplier * ctx.reach, dtype)
        middle = _flat(last) @ project.precise
        first = torch.empty_like(halves, dtype=dtype)
        _launch(_gate_back_kernel, middle.numel(), middle, halves, expand.multiplier, first, middle.shape[-1])
        floats = (
            _weight_gradient(first, a, expand),
            _bias_gradient(first, expand),
            _weight_gradient(last, product, project),
            _bias_gradient(last, project),
        )
        return _input_gradient(g, first, expand, a, ctx.unit), None, None, None, *floats


def gated_ffn(
    x: Tensor, unit: Tensor | None, reach: float, layers: Sequence[Quantised], floats: Sequence[Tensor]
) -> Tensor:
    """`GatedFfn.forward`; as `depth_block`, with the layers expand and project, and weight and bias of each."""
    y: Tensor = _GatedFfn.apply(x, unit, reach, layers, *floats)
    return y
