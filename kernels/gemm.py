"""Kernels with a matrix product: 1x1 layers, the parameter head, and the two residual blocks.

Definitions: `dca_fast/ops/reference.py`. Products of int8 tiles run on tensor cores with int32 sums, which cannot
overflow (the weights are checked), so their order does not matter. Requantisation, gate, residual and table row
happen in registers before the one store. Rows of a product are sites; `at` is the index of a value. Weights are
contiguous along the sum, as wgmma wants it.

16-bit operands and weights are two int8 digits each (`_split`, `_WidePacked`): four products whose sums cannot
overflow either (below 2 * 2^14 * K), so tensor cores that saturate and ones that wrap agree. Only putting them
together, `(high << 16) + (mid << 8) + low`, wraps around, modulo 2^32, and the true sum fits.

Tiles are masked at every edge, so any number of rows and channels will do. `choices.choose` gives tile sizes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dca_fast.config import QUADTREE, SKIP_ROW
from dca_fast.errors import InputError
from dca_fast.ops import DepthBlockParams, Depthwise, GatedFfnParams, Head, Linear
from dca_fast.ops.reference import TorchArrays

from .choices import choose
from .numerics import EXACT, requantise, requantise_leaky, saturating_add

__all__ = [
    "block",
    "decoded_linear",
    "depth_block",
    "depthwise3x3",
    "gated_ffn",
    "head_params",
    "linear_act",
    "linear_add",
    "linear_gate",
    "wide_linear",
    "wide_pixels",
]

NAME = "triton"  # of the packed weights in a layer's cache

# Epilogues.
_ACT, _LEAKY, _GATE, _FEATURE, _PIXELS = (tl.constexpr(i) for i in range(5))
_LIMIT8 = tl.constexpr(127)
_LIMIT16 = tl.constexpr(32767)
_LIMIT_MEAN = tl.constexpr(1 << 20)
_MAX_ROW = tl.constexpr(127)
_SKIP = tl.constexpr(SKIP_ROW)
_QUADTREE = tl.constexpr(QUADTREE)
_SIZES = ["rows", "height", "width"]  # no new compilation for a new image size


def _require(x: Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Kernels believe shapes and layouts; a wrong one would read other memory."""
    if x.dtype != dtype or x.shape != shape or not x.is_contiguous():
        raise InputError(f"expected a contiguous {dtype} tensor {list(shape)}, got {x.dtype} {list(x.shape)}")


# Tiles. Row offsets are 64-bit, everything else 32-bit.


@triton.jit
def _load(x, r, inside, c, C: tl.constexpr, STRIDE: tl.constexpr):
    """Tile of a matrix with C columns: rows r (int64) where `inside`, columns c; zero elsewhere."""
    return tl.load((x + r * STRIDE)[:, None] + c[None, :], inside[:, None] & (c < C)[None, :], 0)


@triton.jit
def _weights(w, n, N: tl.constexpr, k, K: tl.constexpr, STRIDE: tl.constexpr):
    """Tile [k, n] of the transpose of int8 weights [N, K]; zero elsewhere."""
    return tl.trans(tl.load(w + n[:, None] * STRIDE + k[None, :], (n < N)[:, None] & (k < K)[None, :], 0))


@triton.jit
def _operand(x, m_in, r, inside, c, C: tl.constexpr):
    """Tile of an int16 feature as int8 operand."""
    m = tl.load(m_in + c, c < C, 0.0)
    return requantise(_load(x, r, inside, c, C, C).to(tl.int32), m[None, :], _LIMIT8).to(tl.int8)


@triton.jit
def _requantised(acc, b, m, n, N: tl.constexpr, LIMIT: tl.constexpr, LEAKY: tl.constexpr):
    """Add the bias of columns n and requantise."""
    acc += tl.load(b + n, n < N, 0)[None, :]
    multiplier = tl.load(m + n, n < N, 0.0)[None, :]
    return requantise_leaky(acc, multiplier, LIMIT) if LEAKY else requantise(acc, multiplier, LIMIT)


@triton.jit
def _gated(u, v, b, m, g, n, H: tl.constexpr):
    """Requantise both halves of a layer to 2H channels and multiply them; int8."""
    u = _requantised(u, b, m, n, H, _LIMIT8, False)
    v = _requantised(v, b + H, m + H, n, H, _LIMIT8, False)
    return requantise(u * v, g, _LIMIT8).to(tl.int8)


@triton.jit
def _store_feature(r32, residual, out, r, inside, n, N: tl.constexpr, RESIDUAL: tl.constexpr):
    """Store a requantised tile as int16, plus the residual if there is one."""
    y = r32.to(tl.int16)
    if RESIDUAL:
        y = saturating_add(r32, _load(residual, r, inside, n, N, N))
    tl.store((out + r * N)[:, None] + n[None, :], y, inside[:, None] & (n < N)[None, :])


@triton.jit
def _tile(rows, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Rows (int64), which of them exist, and columns of this program; neighbours share rows, through the cache."""
    columns: tl.constexpr = (N + BN - 1) // BN
    r = (tl.program_id(0) // columns).to(tl.int64) * BM + tl.arange(0, BM)
    return r, r < rows, tl.program_id(0) % columns * BN + tl.arange(0, BN)


# 1x1 layers.


@triton.jit
def _sum(
    x, m_in, w, r, inside, n, N: tl.constexpr, K: tl.constexpr, OPERAND: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """int32 tile of x . w, x an int8 operand or, with OPERAND, an int16 feature that becomes one."""
    acc = tl.zeros([BM, BN], tl.int32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        a = _operand(x, m_in, r, inside, k, K) if OPERAND else _load(x, r, inside, k, K, K)
        acc = tl.dot(a, _weights(w, n, N, k, K, K), acc, out_dtype=tl.int32)
    return acc


@triton.jit(do_not_specialize=_SIZES)
def _linear_kernel(
    x, m_in, w, b, m, g, residual, out, rows, N: tl.constexpr, K: tl.constexpr, OPERAND: tl.constexpr,
    EPILOGUE: tl.constexpr, RESIDUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """N output columns; with the gate, w has 2N rows."""
    r, inside, n = _tile(rows, N, BM, BN)
    acc = _sum(x, m_in, w, r, inside, n, N, K, OPERAND, BM, BN, BK)
    if EPILOGUE == _FEATURE:
        _store_feature(_requantised(acc, b, m, n, N, _LIMIT16, False), residual, out, r, inside, n, N, RESIDUAL)
    else:
        if EPILOGUE == _GATE:
            v = _sum(x, m_in, w + N * K, r, inside, n, N, K, OPERAND, BM, BN, BK)
            y = _gated(acc, v, b, m, g, n, N)
        else:
            y = _requantised(acc, b, m, n, N, _LIMIT8, EPILOGUE == _LEAKY).to(tl.int8)
        tl.store((out + r * N)[:, None] + n[None, :], y, inside[:, None] & (n < N)[None, :])


def _linear(x: Tensor, m_in: Tensor | None, p: Linear, epilogue: Any, g: float, residual: Tensor | None) -> Tensor:
    """Launch `_linear_kernel`; m_in makes an int16 feature the operand."""
    k, n = p.w.shape[1], p.w.shape[0] // (2 if epilogue is _GATE else 1)
    _require(x, torch.int8 if m_in is None else torch.int16, *x.shape[:-1], k)
    rows = x.numel() // k
    dtype = torch.int16 if epilogue is _FEATURE else torch.int8
    out = torch.empty(*x.shape[:-1], n, dtype=dtype, device=x.device)
    if residual is not None:
        _require(residual, torch.int16, *out.shape)
    if rows:
        t = choose("gate" if epilogue is _GATE else "linear", rows, k, n, x.device)
        _linear_kernel[(triton.cdiv(rows, t["BM"]) * triton.cdiv(n, t["BN"]),)](
            x, m_in, p.w, p.b, p.m, g, residual, out, rows, n, k, m_in is not None, epilogue, residual is not None,
            **t, **EXACT,
        )  # fmt: skip
    return out


def linear_act(x: Tensor, p: Linear, leaky: bool) -> Tensor:
    return _linear(x, None, p, _LEAKY if leaky else _ACT, 0.0, None)


def linear_gate(x: Tensor, p: Linear, g: float) -> Tensor:
    return _linear(x, None, p, _GATE, g, None)


def linear_add(x: Tensor, p: Linear, residual: Tensor | None = None) -> Tensor:
    return _linear(x, None, p, _FEATURE, 0.0, residual)


# 16-bit operands and weights.


class _WidePacked(NamedTuple):
    """Weights int16 [O, K] as digits: w = 256 high + low + (128 if biased).

    Args:
        high, low: int8 [O, K].
        start: int32 [groups, O], 128 * sum of (256 high + low) over the channels of a group: what `_split` leaves out.
        biased: the low digit is unsigned minus 128. Balanced digits, which save the sum of the operand, end at 32639.
    """

    high: Tensor
    low: Tensor
    start: Tensor
    biased: bool


def _pack_wide(p: Linear, groups: int) -> _WidePacked:
    """Digits of the weights, split once for a layer; nothing else here waits for the device."""
    key = f"{NAME}.{groups}"
    if key not in p.cache:
        biased = int(p.w.max()) > 127 * 256 + 127
        w = p.w.to(torch.int32)
        high = w >> 8 if biased else (w + 128) >> 8
        low = w - 256 * high - (128 if biased else 0)
        start = 128 * (256 * high + low).view(len(w), groups, -1).sum(2).T
        start = start.to(torch.int32).contiguous()
        digits = _WidePacked(high.to(torch.int8), low.to(torch.int8), start, biased)
        TorchArrays(w.device).settle()
        p.cache[key] = digits
    packed: _WidePacked = p.cache[key]
    return packed


@triton.jit
def _split(x):
    """int16 -> int8 digits: x = 256 high + low + 128, for every x."""
    return (x >> 8).to(tl.int8), (x ^ 128).to(tl.int8)


@triton.jit
def _parity_sites(i, parity, width):
    """Flat sites (int64) with these indices among the sites of a parity; both sides of the map are even."""
    return (i // (width // 2) * 2 + parity // 2) * width + i % (width // 2) * 2 + parity % 2


@triton.jit(do_not_specialize=_SIZES)
def _wide_kernel(
    x, m_in, high, low, start, b, m, residual, out, rows, width, N: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr,
    BIASED: tl.constexpr, EPILOGUE: tl.constexpr, RESIDUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """STEP 0: all K channels of all rows. STEP 1..3: the groups decoded before, `rows` sites of each parity."""
    GROUPS: tl.constexpr = STEP if STEP > 0 else 1
    G: tl.constexpr = K // 4 if STEP > 0 else K
    r, inside, n = _tile(rows, N, BM, BN)
    parity = tl.program_id(1)
    if STEP > 0:
        r = _parity_sites(r, parity, width)
    upper = tl.zeros([BM, BN], tl.int32)
    mid = tl.zeros([BM, BN], tl.int32)
    lower = tl.zeros([BM, BN], tl.int32)
    if BIASED:
        total = tl.zeros([BM], tl.int32)
    for earlier in tl.static_range(GROUPS):
        group = (parity ^ _QUADTREE[earlier]) if STEP > 0 else 0
        lower += tl.load(start + group * N + n, n < N, 0)[None, :]
        for first in range(0, G, BK):
            k = first + tl.arange(0, BK)
            t = _load(x + group * G, r, inside, k, G, K)
            if STEP > 0:
                multiplier = tl.load(m_in + group * G + k, k < G, 0.0)
                t = requantise(t.to(tl.int32), multiplier[None, :], _LIMIT16).to(tl.int16)
            x_high, x_low = _split(t)
            w_high = _weights(high + group * G, n, N, k, G, K)
            w_low = _weights(low + group * G, n, N, k, G, K)
            upper = tl.dot(x_high, w_high, upper, out_dtype=tl.int32)
            mid = tl.dot(x_high, w_low, mid, out_dtype=tl.int32)
            mid = tl.dot(x_low, w_high, mid, out_dtype=tl.int32)
            lower = tl.dot(x_low, w_low, lower, out_dtype=tl.int32)
            if BIASED:
                total += tl.sum(t.to(tl.int32), 1)
    acc = (upper << 16) + (mid << 8) + lower
    if BIASED:
        acc += (total << 7)[:, None]
    y = _requantised(acc, b, m, n, N, _LIMIT16, False)
    if EPILOGUE == _PIXELS:
        y = tl.minimum(tl.maximum(y + 128, 0), 255).to(tl.uint8)
        tl.store((out + r * N)[:, None] + n[None, :], y, inside[:, None] & (n < N)[None, :])
    else:
        _store_feature(y, residual, out, r, inside, n, N, RESIDUAL)


def _wide(x: Tensor, m_in: Tensor | None, p: Linear, epilogue: Any, residual: Tensor | None, step: int) -> Tensor:
    """Launch `_wide_kernel`."""
    (n, k), classes = p.w.shape, 4 if step else 1
    _require(x, torch.int16, *x.shape[:-1], k)
    rows = x.numel() // k // classes
    dtype = torch.uint8 if epilogue is _PIXELS else torch.int16
    out = torch.empty(*x.shape[:-1], n, dtype=dtype, device=x.device)
    if residual is not None:
        _require(residual, torch.int16, *out.shape)
    if rows:
        packed, t = _pack_wide(p, classes), choose("decoded" if step else "wide", rows * classes, k, n, x.device)
        _wide_kernel[(triton.cdiv(rows, t["BM"]) * triton.cdiv(n, t["BN"]), classes)](
            x, m_in, packed.high, packed.low, packed.start, p.b, p.m, residual, out, rows, x.shape[-2] if step else 0,
            n, k, step, packed.biased, epilogue, residual is not None, **t, **EXACT,
        )  # fmt: skip
    return out


def wide_linear(x: Tensor, p: Linear, residual: Tensor | None = None) -> Tensor:
    return _wide(x, None, p, _FEATURE, residual, 0)


def decoded_linear(y_hat: Tensor, m: Tensor, p: Linear, residual: Tensor, step: int) -> Tensor:
    n, h, w, c = y_hat.shape
    _require(y_hat, torch.int16, n, h // 2 * 2, w // 2 * 2, c)
    return _wide(y_hat, m, p, _FEATURE, residual, step)


def wide_pixels(x: Tensor, p: Linear) -> Tensor:
    return _wide(x, None, p, _PIXELS, None, 0)


# The parameter head.


@triton.jit(do_not_specialize=[*_SIZES, "skip", "valid_y", "valid_x"])
def _head_kernel(
    t, w, b, m_mean, m_scale, offset, mean, row, rows, height, width, skip, valid_y, valid_x, STEP: tl.constexpr,
    G: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Means and table rows of G channels, at `rows` sites of each parity."""
    i, inside, n = _tile(rows, G, BM, BN)
    parity = tl.program_id(1)
    group = parity ^ _QUADTREE[STEP]
    r = _parity_sites(i, parity, width)
    w += group * (2 * G * K)
    b += group * (2 * G)
    means = tl.zeros([BM, BN], tl.int32)
    scales = tl.zeros([BM, BN], tl.int32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        a = _load(t, r, inside, k, K, K)
        means = tl.dot(a, _weights(w, n, G, k, K, K), means, out_dtype=tl.int32)
        scales = tl.dot(a, _weights(w + G * K, n, G, k, K, K), scales, out_dtype=tl.int32)
    at = r[:, None] * G + n[None, :]
    mask = inside[:, None] & (n < G)[None, :]
    tl.store(mean + at, _requantised(means, b, m_mean + group * G, n, G, _LIMIT_MEAN, False), mask)
    scales = _requantised(scales, b + G, m_scale + group * G, n, G, _LIMIT_MEAN, False)
    scales += tl.load(offset + group * G + n, n < G, 0)[None, :]
    table_row = tl.minimum(tl.maximum((scales + 8) >> 4, 0), _MAX_ROW)
    touched = (r // width % height < valid_y) & (r % width < valid_x)
    table_row = tl.where((table_row >= skip) & touched[:, None], table_row, _SKIP)
    tl.store(row + at, table_row.to(tl.uint8), mask)


def head_params(t: Tensor, p: Head, step: int, skip: int, valid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    (n, h, w, _), k = t.shape, p.w.shape[2]
    _require(t, torch.int8, n, h // 2 * 2, w // 2 * 2, k)
    size, rows = p.m_mean.shape[1], n * h * w // 4
    mean = torch.empty(n, h, w, size, dtype=torch.int32, device=t.device)
    row = torch.empty(n, h, w, size, dtype=torch.uint8, device=t.device)
    if rows:
        c = choose("head", 4 * rows, k, size, t.device)
        _head_kernel[(triton.cdiv(rows, c["BM"]) * triton.cdiv(size, c["BN"]), 4)](
            t, p.w, p.b, p.m_mean, p.m_scale, p.offset, mean, row, rows, h, w, skip, *valid, step, size, k, **c, **EXACT
        )
    return mean, row


# Residual blocks: one program computes all output channels of its sites, as a tuple of tiles of BC channels.


@triton.jit
def _zeros(C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    acc = ()
    for _ in tl.static_range(0, C, BC):
        acc += (tl.zeros([BM, BC], tl.int32),)
    return acc


@triton.jit
def _project(acc, hidden, w, C: tl.constexpr, h, H: tl.constexpr, BC: tl.constexpr):
    """Add the product of hidden channels h, int8, to the output tiles."""
    total = ()
    for i in tl.static_range(0, C, BC):
        w_tile = _weights(w, i + tl.arange(0, BC), C, h, H, H)
        total += (tl.dot(hidden, w_tile, acc[i // BC], out_dtype=tl.int32),)
    return total


@triton.jit
def _store_block(acc, b, m, x, out, r, inside, C: tl.constexpr, BC: tl.constexpr):
    """Requantise the output tiles, add x and store."""
    for i in tl.static_range(0, C, BC):
        n = i + tl.arange(0, BC)
        _store_feature(_requantised(acc[i // BC], b, m, n, C, _LIMIT16, False), x, out, r, inside, n, C, True)


@triton.jit(do_not_specialize=_SIZES)
def _ffn_kernel(
    x, m_in, w, b, m, g, w_out, b_out, m_out, out, rows, C: tl.constexpr, H: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gated block: operand and sums stay in registers while the hidden channels pass, BH at a time."""
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    inside = r < rows
    a = ()
    for i in tl.static_range(0, C, BC):
        a += (_operand(x, m_in, r, inside, i + tl.arange(0, BC), C),)
    acc = _zeros(C, BM, BC)
    for first in range(0, H, BH):
        h = first + tl.arange(0, BH)
        u = tl.zeros([BM, BH], tl.int32)
        v = tl.zeros([BM, BH], tl.int32)
        for i in tl.static_range(0, C, BC):
            c = i + tl.arange(0, BC)
            u = tl.dot(a[i // BC], _weights(w, h, H, c, C, C), u, out_dtype=tl.int32)
            v = tl.dot(a[i // BC], _weights(w + H * C, h, H, c, C, C), v, out_dtype=tl.int32)
        acc = _project(acc, _gated(u, v, b, m, g, h, H), w_out, C, h, H, BC)
    _store_block(acc, b_out, m_out, x, out, r, inside, C, BC)


def gated_ffn(x: Tensor, p: GatedFfnParams) -> Tensor:
    c, hidden = p.project.w.shape
    _require(x, torch.int16, *x.shape[:-1], c)
    rows, out = x.numel() // c, torch.empty_like(x)
    if rows:
        t = choose("ffn", rows, c, hidden, x.device)
        _ffn_kernel[(triton.cdiv(rows, t["BM"]),)](
            x, p.m_in, *p.gate.tensors(), p.g, *p.project.tensors(), out, rows, c, hidden, **t, **EXACT
        )
    return out


@triton.jit
def _map_tile(height, width, BM: tl.constexpr, TX: tl.constexpr):
    """Sites of this program, BM / TX lines of TX: flat (int64), y, x, and which of them exist."""
    TY: tl.constexpr = BM // TX
    across, down = tl.cdiv(width, TX), tl.cdiv(height, TY)
    tile, i = tl.program_id(0), tl.arange(0, BM)
    y = tile // across % down * TY + i // TX
    x = tile % across * TX + i % TX
    return ((tile // (across * down)).to(tl.int64) * height + y) * width + x, y, x, (y < height) & (x < width)


def _pack_depthwise(p: Depthwise, size: int) -> Tensor:
    """Weights [3, 3, C] as int8 matrices [9, C, size], output channel by input channel of its block of `size` channels:
    of each row one value counts. Made once for a layer."""
    key = f"{NAME}.{size}"
    if key not in p.cache:
        channels = torch.arange(p.w.shape[2], device=p.w.device)
        packed = torch.zeros(9, len(channels), size, dtype=torch.int8, device=p.w.device)
        packed[:, channels, channels % size] = p.w.view(9, -1)
        TorchArrays(p.w.device).settle()
        p.cache[key] = packed
    packed = p.cache[key]
    return packed


@triton.jit
def _depthwise(
    a, w, b, m, r, y, x, inside, height, width, first, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """int8 tile of the 3x3 layer at the sites r, BC channels from `first` on, a multiple of BC: nine products with
    diagonal matrices. Widening each value for a product of its own takes far more instructions."""
    c, k = first + tl.arange(0, BC), tl.arange(0, BC)
    acc = tl.zeros([BM, BC], tl.int32)
    for i in tl.static_range(9):
        dy, dx = i // 3 - 1, i % 3 - 1
        near = inside & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        tile = _load(a, r + (dy * width + dx), near, c, C, C)
        acc = tl.dot(tile, _weights(w + i * C * BC, c, C, k, BC, BC), acc, out_dtype=tl.int32)
    return _requantised(acc, b, m, c, C, _LIMIT8, False).to(tl.int8)


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_kernel(
    a, w, b, m, out, height, width, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, TX: tl.constexpr
):
    r, y, x, inside = _map_tile(height, width, BM, TX)
    first = tl.program_id(1) * BC
    c = first + tl.arange(0, BC)
    tile = _depthwise(a, w, b, m, r, y, x, inside, height, width, first, C, BM, BC)
    tl.store((out + r * C)[:, None] + c[None, :], tile, inside[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _depth_kernel(
    a, w, b, m, w_out, b_out, m_out, x, out, height, width, C: tl.constexpr, E: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr, BE: tl.constexpr, TX: tl.constexpr,
):  # fmt: skip
    """Second half of the depth block: 3x3 of the E hidden channels, 1x1 to C, residual x."""
    r, line, column, inside = _map_tile(height, width, BM, TX)
    acc = _zeros(C, BM, BC)
    for first in range(0, E, BE):
        hidden = _depthwise(a, w, b, m, r, line, column, inside, height, width, first, E, BM, BE)
        acc = _project(acc, hidden, w_out, C, first + tl.arange(0, BE), E, BC)
    _store_block(acc, b_out, m_out, x, out, r, inside, C, BC)


def _map_tiles(x: Tensor, t: dict[str, int]) -> int:
    n, h, w, _ = x.shape
    tiles: int = n * triton.cdiv(h, t["BM"] // t["TX"]) * triton.cdiv(w, t["TX"])
    return tiles


def depthwise3x3(x: Tensor, p: Depthwise) -> Tensor:
    (n, h, w, _), c = x.shape, p.w.shape[2]
    _require(x, torch.int8, n, h, w, c)
    out = torch.empty_like(x)
    if x.numel():
        t = choose("depthwise", x.numel() // c, c, c, x.device)
        grid = (_map_tiles(x, t), triton.cdiv(c, t["BC"]))
        _depthwise_kernel[grid](x, _pack_depthwise(p, t["BC"]), p.b, p.m, out, h, w, c, **t, **EXACT)
    return out


def depth_block(x: Tensor, p: DepthBlockParams) -> Tensor:
    # Two kernels: a 3x3 needs the neighbours of a site, and a tile in registers cannot be shifted. The hidden map
    # between them is one byte a value.
    (c, e), (n, h, w, _) = p.project.w.shape, x.shape
    _require(x, torch.int16, n, h, w, c)
    hidden = _linear(x, p.m_in, p.expand, _LEAKY, 0.0, None)
    out = torch.empty_like(x)
    if x.numel():
        t = choose("depth", x.numel() // c, c, e, x.device)
        _depth_kernel[(_map_tiles(x, t),)](
            hidden, _pack_depthwise(p.depthwise, t["BE"]), p.depthwise.b, p.depthwise.m, *p.project.tensors(), x, out,
            h, w, c, e, **t, **EXACT,
        )  # fmt: skip
    return out


def block(x: Tensor, depth: DepthBlockParams, ffn: GatedFfnParams) -> Tensor:
    return gated_ffn(depth_block(x, depth), ffn)
