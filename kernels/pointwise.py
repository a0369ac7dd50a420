"""Kernels that touch every value once: operands, steps and pixels.

Definitions: `dca_fast/ops/reference.py`. `at` is the index of a value: 32-bit where a tensor is small enough (LONG
otherwise), for the divisions that turn it into site and channel are most of the arithmetic here.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dca_fast.config import (
    AQ_CHANNELS,
    AQ_REACH,
    QUADTREE,
    RING_LIMIT,
    RINGS,
    SKIP_ROW,
    TRELLIS_STEP,
    Part,
)
from dca_fast.ops.limits import LIMIT_RESIDUAL, LIMIT_VALUE, MAX_ROW

from .numerics import EXACT, LIMIT8, LIMIT16, LIMIT_MEAN, requantise, saturating_add

__all__ = [
    "act_slope",
    "add",
    "add_slope",
    "coarseness",
    "coarser_rows",
    "depth_to_space2",
    "gate_slope",
    "image_from_patches",
    "neighbour_mean",
    "operand8",
    "operand16",
    "pad_edges",
    "patches_from_image",
    "quadtree_gather",
    "reconstruct",
    "residuals",
    "restore",
    "restore_sums",
    "space_to_depth2",
]

BLOCK = 1024  # values per program

_SIZES = ["width"]  # no new compilation for a new one; `count` divisible by 16 is worth one
_SKIP = tl.constexpr(SKIP_ROW)
_TRELLIS_STEP = tl.constexpr(TRELLIS_STEP)
_LIMIT_RESIDUAL = tl.constexpr(LIMIT_RESIDUAL)
_LIMIT_VALUE = tl.constexpr(LIMIT_VALUE)
_AQ_REACH = tl.constexpr(AQ_REACH)
_MAX_ROW = tl.constexpr(MAX_ROW)
_RING_LIMIT = tl.constexpr(RING_LIMIT)


def _launch(kernel: Any, count: int, *args: Any) -> None:
    """Runs `kernel` over `count` values; a step of `count` belongs to tensors of four times as many."""
    if count:
        kernel[triton.cdiv(count, BLOCK),](count, *args, 4 * count >= 1 << 31, BLOCK, num_warps=BLOCK // 256, **EXACT)


@triton.jit
def _indices(LONG: tl.constexpr, BLOCK: tl.constexpr):
    """Indices of the values of this program."""
    first = tl.program_id(0).to(tl.int64) if LONG else tl.program_id(0)
    return first * BLOCK + tl.arange(0, BLOCK)


# Operands and sums.


@triton.jit
def _operand_kernel(count, x, m, out, C: tl.constexpr, LIMIT: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    r = requantise(tl.load(x + at, inside, 0).to(tl.int32), tl.load(m + at % C, inside, 0.0), LIMIT)
    tl.store(out + at, r.to(out.dtype.element_ty), inside)


def _operand(x: Tensor, m: Tensor, dtype: torch.dtype, limit: int) -> Tensor:
    out = torch.empty_like(x, dtype=dtype)
    _launch(_operand_kernel, x.numel(), x, m, out, x.shape[-1], limit)
    return out


def operand8(x: Tensor, m: Tensor) -> Tensor:
    return _operand(x, m, torch.int8, LIMIT8.value)


def operand16(x: Tensor, m: Tensor) -> Tensor:
    return _operand(x, m, torch.int16, LIMIT16.value)


@triton.jit
def _add_kernel(count, x, y, out, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    tl.store(out + at, saturating_add(tl.load(x + at, inside, 0).to(tl.int32), tl.load(y + at, inside, 0)), inside)


def add(x: Tensor, y: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _launch(_add_kernel, x.numel(), x, y, out)
    return out


# Gradients.


@triton.jit
def _unsaturated(h):
    return (h < 127) & (h > -127)


@triton.jit
def _act_slope_kernel(count, e, h, out, LEAKY: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    slope, operand = tl.load(e + at, inside, 0).to(tl.int32), tl.load(h + at, inside, 0).to(tl.int32)
    if LEAKY:
        slope = tl.where(operand <= 0, (slope + 4) >> 3, slope)
    tl.store(out + at, tl.where(_unsaturated(operand), slope, 0).to(tl.int8), inside)


def act_slope(e: Tensor, h: Tensor, leaky: bool) -> Tensor:
    out = torch.empty_like(e)
    _launch(_act_slope_kernel, e.numel(), e, h, out, leaky)
    return out


@triton.jit
def _gate_slope_kernel(count, e, uv, g, m, out, H: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    c = at % H
    first = at // H * (2 * H) + c
    u, v = tl.load(uv + first, inside, 0).to(tl.int32), tl.load(uv + first + H, inside, 0).to(tl.int32)
    slope = tl.where(_unsaturated(requantise(u * v, g, LIMIT8)), tl.load(e + at, inside, 0).to(tl.int32), 0)
    eu, ev = tl.where(_unsaturated(u), slope * v, 0), tl.where(_unsaturated(v), slope * u, 0)
    tl.store(out + first, requantise(eu, tl.load(m + c, inside, 0.0), LIMIT8).to(tl.int8), inside)
    tl.store(out + first + H, requantise(ev, tl.load(m + H + c, inside, 0.0), LIMIT8).to(tl.int8), inside)


def gate_slope(e: Tensor, uv: Tensor, g: float, m: Tensor) -> Tensor:
    out = torch.empty_like(uv)
    _launch(_gate_slope_kernel, e.numel(), e, uv, g, m, out, e.shape[-1])
    return out


@triton.jit
def _add_slope_kernel(count, slope, d, h, out, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    more = tl.where(_unsaturated(tl.load(h + at, inside, 0)), tl.load(d + at, inside, 0), 0).to(tl.int32)
    tl.store(out + at, saturating_add(more, tl.load(slope + at, inside, 0)), inside)


def add_slope(slope: Tensor, d: Tensor, h: Tensor) -> Tensor:
    out = torch.empty_like(slope)
    _launch(_add_slope_kernel, slope.numel(), slope, d, h, out)
    return out


# Steps. Value i of a step is channel i % G of site i // G; H and W are even.


@triton.jit
def _in_all_groups(at, width, XOR: tl.constexpr, G: tl.constexpr):
    """Channel among 4G, and index in a tensor of 4G channels, of value `at` of a step."""
    site, c = at // G, (at % G).to(tl.int32)
    parity = ((site // width) % 2 * 2 + (site % width) % 2).to(tl.int32)
    channel = (parity ^ XOR) * G + c
    return channel, site * (4 * G) + channel


@triton.jit(do_not_specialize=_SIZES)
def _gather_kernel(count, x, out, width, XOR: tl.constexpr, G: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    _, source = _in_all_groups(at, width, XOR, G)
    tl.store(out + at, tl.load(x + source, inside, 0), inside)


def quadtree_gather(x: Tensor, step: int) -> Tensor:
    n, h, w, c = x.shape
    out = torch.empty(n, h, w, c // 4, dtype=x.dtype, device=x.device)
    _launch(_gather_kernel, out.numel(), x, out, w, QUADTREE[step], c // 4)
    return out


@triton.jit(do_not_specialize=["height", "width", "lines", "columns"])
def _neighbour_mean_kernel(
    count, z, m, out, height, width, lines, columns, TOP: tl.constexpr, LEFT: tl.constexpr, STRIDE: tl.constexpr,
    C: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = _indices(LONG, BLOCK)
    inside, c, site = at < count, at % C, at // C
    x, line = LEFT + site % columns * STRIDE, site // columns
    y, first = TOP + line % lines * STRIDE, line // lines * height
    total, neighbours = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for n in tl.static_range(4):
        if TOP == LEFT:  # corners, else sides
            v, u = y + (n // 2 * 2 - 1) * (STRIDE // 2), x + (n % 2 * 2 - 1) * (STRIDE // 2)
        else:
            v, u = (
                y + (n // 2) * (n % 2 * 2 - 1) * (STRIDE // 2),
                x + (1 - n // 2) * (n % 2 * 2 - 1) * (STRIDE // 2),
            )
        here = inside & (v >= 0) & (v < height) & (u >= 0) & (u < width)
        total += tl.load(z + ((first + v) * width + u) * C + c, here, 0).to(tl.int32)
        neighbours += here.to(tl.int32)
    multiplier = tl.load(m + (neighbours - 1) * C + c, inside, 0.0)
    tl.store(out + at, requantise(total, multiplier, LIMIT16).to(tl.int16), inside)


def neighbour_mean(z: Tensor, m: Tensor, part: Part) -> Tensor:
    n, height, width, c = z.shape
    lines, columns = (-(-(side - first) // part.stride) for side, first in ((height, part.top), (width, part.left)))
    out = torch.empty(n, lines, columns, c, dtype=torch.int16, device=z.device)
    args = (z, m, out, height, width, lines, columns, part.top, part.left, part.stride, c)
    _launch(_neighbour_mean_kernel, out.numel(), *args)
    return out


@triton.jit(do_not_specialize=[*_SIZES, "skip", "strength"])
def _coarseness_kernel(
    count, row, offset, out, width, skip, strength, FIRST: tl.constexpr, G: tl.constexpr, LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One value of `count` is a site; step 0 codes group p at the sites of parity p."""
    site = _indices(LONG, BLOCK).to(tl.int64)  # LONG is about the number of sites, not of the values of `row`
    inside = site < count
    parity = ((site // width) % 2 * 2 + (site % width) % 2).to(tl.int32)
    total = tl.zeros([BLOCK], tl.int32)
    for c in range(FIRST):
        r = tl.load(row + site * G + c, inside, 0).to(tl.int32)
        total += tl.where(r == _SKIP, skip - 1, r) * 16 - tl.load(offset + parity * G + c, inside, 0)
    coarse = (total * strength + 2048) >> 12
    tl.store(out + site, tl.minimum(tl.maximum(coarse, -_AQ_REACH), _AQ_REACH).to(tl.int8), inside)


def coarseness(row: Tensor, offset: Tensor, skip: int, strength: int) -> Tensor:
    out = torch.empty(row.shape[:3], dtype=torch.int8, device=row.device)
    w, g = row.shape[2:]
    args = (row, offset, out, w, skip, strength, min(g, AQ_CHANNELS), g)
    _launch(_coarseness_kernel, out.numel(), *args)
    return out


@triton.jit(do_not_specialize=["skip"])
def _coarser_rows_kernel(count, row, coarse, out, skip, G: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    at = _indices(LONG, BLOCK)
    inside = at < count
    before = tl.load(row + at, inside, _SKIP).to(tl.int32)
    r = tl.minimum(tl.maximum(before - tl.load(coarse + at // G, inside, 0).to(tl.int32), 0), _MAX_ROW)
    tl.store(out + at, tl.where((before == _SKIP) | (r < skip), _SKIP, r).to(tl.uint8), inside)


def coarser_rows(row: Tensor, coarse: Tensor, skip: int) -> Tensor:
    out = torch.empty_like(row)
    _launch(_coarser_rows_kernel, out.numel(), row, coarse, out, skip, row.shape[3])
    return out


@triton.jit(do_not_specialize=_SIZES)
def _residuals_kernel(
    count, y, mean, gain, finer, out, width, ADAPTED: tl.constexpr, XOR: tl.constexpr, G: tl.constexpr,
    LONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = _indices(LONG, BLOCK)
    inside = at < count
    channel, source = _in_all_groups(at, width, XOR, G)
    r = requantise(tl.load(y + source, inside, 0).to(tl.int32), tl.load(gain + channel, inside, 0.0), LIMIT_MEAN)
    r -= tl.load(mean + at, inside, 0)
    if ADAPTED:
        r = requantise(r, tl.load(finer + at // G, inside, 0.0), _LIMIT_RESIDUAL)
    tl.store(out + at, r, inside)


def residuals(y: Tensor, mean: Tensor, gain: Tensor, step: int, finer: Tensor | None = None) -> Tensor:
    out = torch.empty_like(mean)
    w, g = mean.shape[2:]
    _launch(_residuals_kernel, out.numel(), y, mean, gain, finer, out, w, finer is not None, QUADTREE[step], g)
    return out


@triton.jit(do_not_specialize=_SIZES)
def _reconstruct_kernel(
    count, q, mean, inv, coarser, y_hat, width, ADAPTED: tl.constexpr, XOR: tl.constexpr, G: tl.constexpr,
    LONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = _indices(LONG, BLOCK)
    inside = at < count
    channel, target = _in_all_groups(at, width, XOR, G)
    value = tl.load(q + at, inside, 0).to(tl.int32) * _TRELLIS_STEP
    if ADAPTED:
        value = requantise(value, tl.load(coarser + at // G, inside, 0.0), _LIMIT_VALUE)
    r = requantise(value + tl.load(mean + at, inside, 0), tl.load(inv + channel, inside, 0.0), LIMIT16)
    tl.store(y_hat + target, r.to(tl.int16), inside)


def reconstruct(q: Tensor, mean: Tensor, inv: Tensor, step: int, y_hat: Tensor, coarser: Tensor | None = None) -> None:
    w, g = mean.shape[2:]
    args = (q, mean, inv, coarser, y_hat, w, coarser is not None, QUADTREE[step], g)
    _launch(_reconstruct_kernel, q.numel(), *args)


# Pictures.


@triton.jit(do_not_specialize=["height", "width", "across", "line", "column", "colour"])
def _pad_kernel(
    count, image, out, height, width, across, line, column, colour, LONG: tl.constexpr, BLOCK: tl.constexpr
):
    at = _indices(LONG, BLOCK)
    inside = at < count
    pixel, c = at // 3, at % 3
    y = tl.minimum(pixel // across, height - 1).to(tl.int64)
    x = tl.minimum(pixel % across, width - 1).to(tl.int64)
    tl.store(out + at, tl.load(image + (y * line + x * column + c * colour), inside, 0), inside)


def pad_edges(image: Tensor, height: int, width: int, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = torch.empty(1, height, width, 3, dtype=torch.uint8, device=image.device)
    _launch(_pad_kernel, out.numel(), image, out, *image.shape[:2], width, *image.stride())
    return out


# Pixels and sites to channels and back: both sides move in runs of SIZE * C values.


@triton.jit(do_not_specialize=_SIZES)
def _regroup_kernel(
    count, fine, deep, width, C: tl.constexpr, SIZE: tl.constexpr, SHIFT: tl.constexpr, TO_DEEP: tl.constexpr,
    LONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = _indices(LONG, BLOCK)  # in `deep`
    inside = at < count
    site, run = at // (SIZE * SIZE * C), at % (SIZE * SIZE * C)
    dy, rest = run // (SIZE * C), run % (SIZE * C)
    fine_at = ((site // width * SIZE + dy) * width + site % width) * (SIZE * C) + rest
    if TO_DEEP:
        tl.store(deep + at, (tl.load(fine + fine_at, inside, 0).to(deep.dtype.element_ty) - SHIFT), inside)
    else:
        tl.store(fine + fine_at, tl.load(deep + at, inside, 0), inside)


def _space_to_depth(x: Tensor, size: int, dtype: torch.dtype, shift: int) -> Tensor:
    n, h, w, c = x.shape
    out = torch.empty(n, h // size, w // size, size * size * c, dtype=dtype, device=x.device)
    _launch(_regroup_kernel, out.numel(), x, out, w // size, c, size, shift, True)
    return out


def _depth_to_space(x: Tensor, size: int) -> Tensor:
    n, h, w, c = x.shape
    c //= size * size
    out = torch.empty(n, h * size, w * size, c, dtype=x.dtype, device=x.device)
    _launch(_regroup_kernel, x.numel(), out, x, w, c, size, 0, False)
    return out


def patches_from_image(image: Tensor, size: int = 8) -> Tensor:
    return _space_to_depth(image, size, torch.int16, 128)


def image_from_patches(patches: Tensor, size: int = 8) -> Tensor:
    return _depth_to_space(patches, size)


def space_to_depth2(x: Tensor) -> Tensor:
    return _space_to_depth(x, 2, x.dtype, 0)


def depth_to_space2(x: Tensor) -> Tensor:
    return _depth_to_space(x, 2)


# The restoration filter.


@triton.jit
def _difference(picture, y, x, dy, dx, height, width, c, middle, inside):
    """Of a neighbour and the middle; beyond the border the pixels of the border count."""
    line = tl.minimum(tl.maximum(y + dy, 0), height - 1)
    column = tl.minimum(tl.maximum(x + dx, 0), width - 1)
    return tl.load(picture + (line * width + column) * 3 + c, inside, 0).to(tl.int32) - middle


@triton.jit
def _filtered(acc, plain, near, w, ring, c, output, RINGS: tl.constexpr):
    """acc plus the products of the two features with their coefficients for the colour `output`."""
    coefficient = w + output * 6 * RINGS + 6 * ring + c
    return acc + plain * tl.load(coefficient).to(tl.int32) + near * tl.load(coefficient + 3).to(tl.int32)


@triton.jit(do_not_specialize=["height", "width"])
def _restore_kernel(
    count, picture, w, out, height, width, RINGS: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr
):
    at = _indices(LONG, BLOCK)
    inside = at < count
    y, x = at // width, at % width
    red = tl.zeros([BLOCK], tl.int32) + 128
    green, blue = red, red
    for c in tl.static_range(3):
        middle = tl.load(picture + at * 3 + c, inside, 0).to(tl.int32)
        for ring in tl.static_range(RINGS):
            plain = tl.zeros([BLOCK], tl.int32)
            near = plain
            for n in tl.static_range(8 if ring == 0 else 4):
                if ring == 0:  # the 3 x 3 pixels but the middle one
                    d = _difference(
                        picture, y, x, (n + n // 4) // 3 - 1, (n + n // 4) % 3 - 1, height, width, c, middle, inside
                    )
                else:
                    reach = ring * (1 - n % 2 * 2)
                    d = _difference(
                        picture, y, x, reach * (n // 2), reach * (1 - n // 2), height, width, c, middle, inside
                    )
                plain += d
                near += tl.minimum(tl.maximum(d, -_RING_LIMIT), _RING_LIMIT)
            red = _filtered(red, plain, near, w, ring, c, 0, RINGS)
            green = _filtered(green, plain, near, w, ring, c, 1, RINGS)
            blue = _filtered(blue, plain, near, w, ring, c, 2, RINGS)
    for c in tl.static_range(3):
        acc = red if c == 0 else (green if c == 1 else blue)
        value = tl.load(picture + at * 3 + c, inside, 0).to(tl.int32) + (acc >> 8)
        tl.store(out + at * 3 + c, tl.minimum(tl.maximum(value, 0), 255).to(tl.uint8), inside)


def restore(picture: Tensor, w: Tensor) -> Tensor:
    out = torch.empty_like(picture)
    height, width = picture.shape[:2]
    count, block = height * width, 256  # two pixels a thread: more do not fit the registers
    _restore_kernel[triton.cdiv(count, block),](
        count, picture, w, out, height, width, w.shape[1] // 6, 4 * count >= 1 << 31, block, num_warps=4, **EXACT
    )
    return out


@triton.jit
def _digits(x):
    """int32 in -2048..2047 as two int8 digits: x = 16 high + low."""
    return (x >> 4).to(tl.int8), (x & 15).to(tl.int8)


@triton.jit(do_not_specialize=["height", "width", "stride"])
def _restore_sums_kernel(
    count, picture, image, sums, height, width, stride, RINGS: tl.constexpr, EACH: tl.constexpr, LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of EACH samples, BLOCK at a time: products of the 6 RINGS features and the error, as rows of a tile."""
    row = tl.arange(0, 32)[:, None]
    ring, clamped, c = row // 6, row // 3 % 2 == 1, row % 3
    is_feature, is_error = ring < RINGS, (ring == RINGS) & (row % 6 < 3)
    highest, middle, lowest = tl.zeros([32, 32], tl.int32), tl.zeros([32, 32], tl.int32), tl.zeros([32, 32], tl.int32)
    for first in range(0, EACH, BLOCK):
        at = (tl.program_id(0) * EACH + first + tl.arange(0, BLOCK))[None, :]
        inside = (at < count) & (is_feature | is_error)
        y, x = at // width * stride, at % width
        if LONG:
            y = y.to(tl.int64)
        here = tl.load(picture + (y * width + x) * 3 + c, inside, 0).to(tl.int32)
        value = tl.load(image + (y * width + x) * 3 + c, inside & is_error, 0).to(tl.int32) - here
        value = tl.where(is_error, value, 0)
        for n in tl.static_range(8):
            used = is_feature & ((ring == 0) | (n < 4))
            reach = ring * (1 - n % 2 * 2)
            dy = tl.where(ring == 0, (n + n // 4) // 3 - 1, reach * (n // 2))
            dx = tl.where(ring == 0, (n + n // 4) % 3 - 1, reach * (1 - n // 2))
            d = _difference(picture, y, x, dy, dx, height, width, c, here, inside & used)
            d = tl.where(clamped, tl.minimum(tl.maximum(d, -_RING_LIMIT), _RING_LIMIT), d)
            value += tl.where(inside & used, d, 0)
        high, low = _digits(tl.where(inside, value, 0))
        high_t, low_t = tl.trans(high), tl.trans(low)
        highest = tl.dot(high, high_t, highest, out_dtype=tl.int32)
        middle = tl.dot(high, low_t, middle, out_dtype=tl.int32)
        middle = tl.dot(low, high_t, middle, out_dtype=tl.int32)
        lowest = tl.dot(low, low_t, lowest, out_dtype=tl.int32)
    total = highest.to(tl.int64) * 256 + middle.to(tl.int64) * 16 + lowest.to(tl.int64)
    column = tl.arange(0, 32)[None, :]
    counts = (row < 6 * RINGS) & (column < 6 * RINGS + 3)
    tl.atomic_add(sums + row * (6 * RINGS + 3) + column, total, counts)  # integers: in any order


def restore_sums(picture: Tensor, image: Tensor, stride: int) -> Tensor:
    height, width = image.shape[:2]
    count, each, block = triton.cdiv(height, stride) * width, 1024, 128
    sums = torch.zeros(6 * len(RINGS), 6 * len(RINGS) + 3, dtype=torch.int64, device=picture.device)
    _restore_sums_kernel[triton.cdiv(count, each),](
        count, picture, image, sums, height, width, stride, len(RINGS), each, 4 * height * width >= 1 << 31, block,
        num_warps=4, **EXACT,
    )  # fmt: skip
    return sums
