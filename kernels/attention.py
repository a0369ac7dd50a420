"""Attention kernels: inside windows and over tokens, alone and fused with the layers around them.

Definitions: `dca_fast/ops/reference.py`. A fused block is one pass over the feature: operand, projections, scores,
table of exponentials, mix by reciprocal, projection and residual, with nothing in between written to memory. All
products run on the int8 tensor cores: the exponentials are at most 127, so they are operands too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dca_fast.ops import TokenParams, WindowParams

from .gemm import linear_act, linear_add
from .numerics import EXACT, LIMIT8, LIMIT16, LIMIT_MEAN, requantise, saturating_add
from .pointwise import operand8

__all__ = ["token_attention", "token_block", "window_attention", "window_block"]

ROWS = 64  # sites per program
DOT = 32  # least inner dimension of an int8 product
KEYS = 128  # keys per round of the split attention
FEW = 64  # tokens that one program takes at once
OPTIONS = {"num_warps": 4, "num_stages": 2, **EXACT}

_SIZES = ["count", "height", "width", "shift", "sites", "queries", "tokens", "keys", "per_split", "splits"]
_UNSEEN = tl.constexpr(-(1 << 30))


def _padded(size: int) -> int:
    return max(DOT, triton.next_power_of_2(size))


def _chunk(channels: int) -> int:
    """Channels per round of a projection: the largest power of two up to 128 that divides them, else 32."""
    return next((size for size in (128, 64, 32) if channels % size == 0), DOT)


# What kernels share. [R, X] tiles hold one row for each site or query; `at` is the index of a value.


@triton.jit
def _operands(x, m_in, site, live, C: tl.constexpr, CHUNK: tl.constexpr):
    """int8 operand of the feature x at `site`, as one [R, CHUNK] tile for each chunk of channels."""
    tiles = ()
    for first in tl.static_range(0, C, CHUNK):
        c = first + tl.arange(0, CHUNK)
        v = tl.load(x + site[:, None] * C + c[None, :], live[:, None] & (c < C)[None, :], 0).to(tl.int32)
        tiles += (requantise(v, tl.load(m_in + c, c < C, 0.0)[None, :], LIMIT8).to(tl.int8),)
    return tiles


@triton.jit
def _project8(tiles, w, b, m, o, live, C: tl.constexpr, CHUNK: tl.constexpr):
    """Outputs `o` of a 1x1 layer C -> int8 on the tiles of `_operands`; zero where not `live`."""
    acc = tl.zeros([tiles[0].shape[0], o.shape[0]], tl.int32)
    for first in tl.static_range(0, C, CHUNK):
        c = first + tl.arange(0, CHUNK)
        weights = tl.load(w + o[None, :] * C + c[:, None], live[None, :] & (c < C)[:, None], 0)
        acc = tl.dot(tiles[first // CHUNK], weights, acc, out_dtype=tl.int32)
    acc += tl.load(b + o, live, 0)[None, :]
    return requantise(acc, tl.load(m + o, live, 0.0)[None, :], LIMIT8).to(tl.int8)


@triton.jit
def _project_out(
    tiles, w, b, m, x, out, site, live,
    C: tl.constexpr, CHUNK: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """out = x + the 1x1 layer C -> C of the heads' [R, DP] tiles."""
    for first in tl.static_range(0, C, CHUNK):
        o = first + tl.arange(0, CHUNK)
        acc = tl.zeros([tiles[0].shape[0], CHUNK], tl.int32)
        for head in tl.static_range(0, HEADS):
            d = tl.arange(0, DP)
            inside = (o < C)[None, :] & (d < D)[:, None]
            weights = tl.load(w + o[None, :] * C + head * D + d[:, None], inside, 0)
            acc = tl.dot(tiles[head], weights, acc, out_dtype=tl.int32)
        acc += tl.load(b + o, o < C, 0)[None, :]
        r = requantise(acc, tl.load(m + o, o < C, 0.0)[None, :], LIMIT16)
        at, inside = site[:, None] * C + o[None, :], live[:, None] & (o < C)[None, :]
        tl.store(out + at, saturating_add(r, tl.load(x + at, inside, 0)), inside)


@triton.jit
def _exponentials(s, seen, peak, table):
    """table[peak - s], zero where not `seen`; int32."""
    d = tl.minimum(peak - s, 255)
    return tl.load(table + d, seen, 0).to(tl.int32)


@triton.jit
def _windowed(q, k, v, m, bias, pair, seen, table):
    """Mix of v for each row of the [R, DP] tiles over the rows it sees, one head.

    Rows are compared in groups of S only: `seen` [R / S, S, S], and `pair` there the index of a pair in `bias`.
    """
    shape: tl.constexpr = [seen.shape[0], seen.shape[1], q.shape[1]]
    q, k, v = tl.reshape(q, shape), tl.reshape(k, shape), tl.reshape(v, shape)
    s = requantise(tl.dot(q, tl.permute(k, (0, 2, 1)), out_dtype=tl.int32), m, LIMIT_MEAN)
    s = tl.where(seen, s + tl.load(bias + pair, seen, 0), _UNSEEN)
    e = _exponentials(s, seen, tl.max(s, 2)[:, :, None], table)
    r = (1 << 23) // tl.maximum(tl.sum(e, 2), 1)
    acc = tl.dot(e.to(tl.int8), v, out_dtype=tl.int32)
    y = ((acc * r[:, :, None] + (1 << 22)) >> 23).to(tl.int8)
    return tl.reshape(y, [seen.shape[0] * seen.shape[1], q.shape[2]])


@triton.jit
def _window_rows(
    count, height, width, shift,
    WINDOW: tl.constexpr, AREA: tl.constexpr, SLOT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The ROWS // SLOT windows of this program: site and liveness of each row, and `seen` and `pair` of `_windowed`
    in groups of GROUP rows. Rows of a window beyond AREA are padding."""
    row = tl.arange(0, ROWS)
    window, p = tl.program_id(0) * (ROWS // SLOT) + row // SLOT, row % SLOT
    live = (window < count) & (p < AREA)
    across = width // WINDOW
    per_map = height // WINDOW * across
    y = window % per_map // across * WINDOW + p // WINDOW
    x = window % across * WINDOW + p % WINDOW
    site = (window // per_map * height + (y + shift) % height).to(tl.int64) * width + (x + shift) % width
    # Pairs with equal marks: the same window, and wrapped around the same borders.
    mark = window * 4 + (y >= height - shift).to(tl.int32) * 2 + (x >= width - shift).to(tl.int32)
    mark = tl.reshape(tl.where(live, mark, -1), [ROWS // GROUP, GROUP])
    p = tl.reshape(p, [ROWS // GROUP, GROUP])
    seen = (mark[:, :, None] == mark[:, None, :]) & (mark >= 0)[:, None, :]
    return site, live, seen, p[:, :, None] * AREA + p[:, None, :]


@triton.jit(do_not_specialize=_SIZES)
def _window_attention_kernel(
    q, k, v, m, bias, table, out, count, height, width, shift,
    C: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    WINDOW: tl.constexpr, AREA: tl.constexpr, SLOT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    site, live, seen, pair = _window_rows(count, height, width, shift, WINDOW, AREA, SLOT, GROUP, ROWS)
    head, d = tl.program_id(1), tl.arange(0, DP)
    at, inside = site[:, None] * C + head * D + d[None, :], live[:, None] & (d < D)[None, :]
    y = _windowed(
        tl.load(q + at, inside, 0), tl.load(k + at, inside, 0), tl.load(v + at, inside, 0),
        m, bias + head * (AREA * AREA), pair, seen, table,
    )  # fmt: skip
    tl.store(out + at, y, inside)


@triton.jit(do_not_specialize=_SIZES)
def _window_block_kernel(
    x, m_in, w, b, mw, m, bias, table, wo, bo, mo, out, count, height, width, shift,
    C: tl.constexpr, CHUNK: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    WINDOW: tl.constexpr, AREA: tl.constexpr, SLOT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    site, live, seen, pair = _window_rows(count, height, width, shift, WINDOW, AREA, SLOT, GROUP, ROWS)
    tiles = _operands(x, m_in, site, live, C, CHUNK)
    heads = ()
    for head in tl.static_range(0, HEADS):
        d = tl.arange(0, DP)
        o = head * D + d
        q = _project8(tiles, w, b, mw, o, d < D, C, CHUNK)
        k = _project8(tiles, w, b, mw, C + o, d < D, C, CHUNK)
        v = _project8(tiles, w, b, mw, 2 * C + o, d < D, C, CHUNK)
        heads += (_windowed(q, k, v, m, bias + head * (AREA * AREA), pair, seen, table),)
    _project_out(heads, wo, bo, mo, x, out, site, live, C, CHUNK, HEADS, D, DP)


def _windows(shape: torch.Size, window: int, shift: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(windows, height, width, shift), (its side, sites, padded sites, rows compared, rows of a program), programs."""
    n, h, w, _ = shape
    area, slot = window * window, triton.next_power_of_2(window * window)
    rows = max(ROWS, slot)
    count = n * (h // window) * (w // window)
    return (count, h, w, shift), (window, area, slot, max(DOT, slot), rows), triton.cdiv(count, rows // slot)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    window: int,
    shift: int,
    m: float,
    bias: Tensor,
    table: Tensor,
) -> Tensor:
    out, c = torch.empty_like(q), q.shape[-1]
    sizes, sides, programs = _windows(q.shape, window, shift)
    d = c // heads
    _window_attention_kernel[programs, heads](q, k, v, m, bias, table, out, *sizes, c, d, _padded(d), *sides, **OPTIONS)
    return out


def window_block(x: Tensor, p: WindowParams) -> Tensor:
    out, c = torch.empty_like(x), x.shape[-1]
    sizes, sides, programs = _windows(x.shape, p.window, p.shift)
    d = c // p.heads
    _window_block_kernel[programs,](
        x, p.m_in, *p.qkv.tensors(), p.m, p.bias, p.table, *p.out.tensors(), out, *sizes,
        c, _chunk(c), p.heads, d, _padded(d), *sides, **OPTIONS,
    )  # fmt: skip
    return out


# Tokens.


@triton.jit
def _reciprocal40(total):
    """2^40 // total for 0 < total < 2^21, by long division in 32 bits; int64."""
    high = (1 << 20) // total
    rest = ((1 << 20) - high * total) << 10
    middle = rest // total
    low = ((rest - middle * total) << 10) // total
    return (high.to(tl.int64) << 20) + (middle << 10) + low


@triton.jit
def _tile(base, row, live, C: tl.constexpr, c, inside):
    """Rows of channels `c` of a tensor [rows, C]: [rows, channels]."""
    return tl.load(base + row.to(tl.int64)[:, None] * C + c[None, :], live[:, None] & inside[None, :], 0)


@triton.jit
def _over_tokens(q, k, v, m, table, seen):
    """Mix of v for each row of q over at most 64 tokens, one head. q [R, DP], k, v [T, DP], seen [T]."""
    s = requantise(tl.dot(q, tl.trans(k), out_dtype=tl.int32), m, LIMIT_MEAN)
    s = tl.where(seen[None, :], s, _UNSEEN)
    e = _exponentials(s, seen[None, :], tl.max(s, 1)[:, None], table)
    r = _reciprocal40(tl.sum(e, 1))
    acc = tl.dot(e.to(tl.int8), v, out_dtype=tl.int32)
    return ((acc.to(tl.int64) * r[:, None] + (1 << 39)) >> 40).to(tl.int8)


@triton.jit(do_not_specialize=_SIZES)
def _few_tokens_kernel(
    q, k, v, m, table, out, queries, tokens,
    C: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head, n, d, t = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.arange(0, DP), tl.arange(0, TOKENS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c, start = head * D + d, n * tokens * C
    kt, vt = (_tile(k + start, t, t < tokens, C, c, d < D), _tile(v + start, t, t < tokens, C, c, d < D))
    y = _over_tokens(_tile(q + n * queries * C, row, row < queries, C, c, d < D), kt, vt, m, table, t < tokens)
    at = (n * queries + row)[:, None] * C + c[None, :]
    tl.store(out + at, y, (row < queries)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _token_block_kernel(
    x, k, v, m_in, w, b, mw, m, table, wo, bo, mo, out, sites, tokens,
    C: tl.constexpr, CHUNK: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    n, t = tl.program_id(1).to(tl.int64), tl.arange(0, TOKENS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    site, live = n * sites + row, row < sites
    tiles = _operands(x, m_in, site, live, C, CHUNK)
    heads = ()
    for head in tl.static_range(0, HEADS):
        d = tl.arange(0, DP)
        o, start = head * D + d, n * tokens * C
        q = _project8(tiles, w, b, mw, o, d < D, C, CHUNK)
        kt, vt = _tile(k + start, t, t < tokens, C, o, d < D), _tile(v + start, t, t < tokens, C, o, d < D)
        heads += (_over_tokens(q, kt, vt, m, table, t < tokens),)
    _project_out(heads, wo, bo, mo, x, out, site, live, C, CHUNK, HEADS, D, DP)


# Attention over many keys, the global analysis: each split of the keys finds its largest score, then its sums under
# the largest of all, then the sums are added. Integers, so the split changes nothing.


@triton.jit
def _split(keys, per_split, queries, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr):
    """(map, query rows, channels of a head, its channels, first and end key) of this program."""
    blocks = tl.cdiv(queries, ROWS)
    first = tl.program_id(0) * per_split
    row = tl.program_id(2) % blocks * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DP)
    return (
        (tl.program_id(2) // blocks).to(tl.int64),
        row,
        d,
        tl.program_id(1) * D + d,
        first,
        tl.minimum(first + per_split, keys),
    )


@triton.jit(do_not_specialize=_SIZES)
def _peaks_kernel(
    q, k, m, peaks, queries, keys, per_split,
    C: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    n, row, d, c, first, end = _split(keys, per_split, queries, D, DP, ROWS)
    qt = _tile(q + n * queries * C, row, row < queries, C, c, d < D)
    peak = tl.full([ROWS], _UNSEEN, tl.int32)
    for start in range(first, end, KEYS):
        t = start + tl.arange(0, KEYS)
        kt = _tile(k + n * keys * C, t, t < end, C, c, d < D)
        s = requantise(tl.dot(qt, tl.trans(kt), out_dtype=tl.int32), m, LIMIT_MEAN)
        peak = tl.maximum(peak, tl.max(tl.where((t < end)[None, :], s, _UNSEEN), 1))
    first = ((n * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)) * queries
    tl.store(peaks + first + row, peak, row < queries)


@triton.jit(do_not_specialize=_SIZES)
def _sums_kernel(
    q, k, v, m, table, peaks, totals, mixes, queries, keys, per_split,
    C: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    n, row, d, c, first, end = _split(keys, per_split, queries, D, DP, ROWS)
    qt = _tile(q + n * queries * C, row, row < queries, C, c, d < D)
    first_split = (n * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    split = tl.arange(0, SPLITS)
    inside = (split < tl.num_programs(0))[:, None] & (row < queries)[None, :]
    peak = tl.max(tl.load(peaks + (first_split + split)[:, None] * queries + row[None, :], inside, _UNSEEN), 0)
    total, mix = tl.zeros([ROWS], tl.int32), tl.zeros([ROWS, DP], tl.int32)
    for start in range(first, end, KEYS):
        t = start + tl.arange(0, KEYS)
        kt, vt = _tile(k + n * keys * C, t, t < end, C, c, d < D), _tile(v + n * keys * C, t, t < end, C, c, d < D)
        s = requantise(tl.dot(qt, tl.trans(kt), out_dtype=tl.int32), m, LIMIT_MEAN)
        e = _exponentials(s, (t < end)[None, :] & (row < queries)[:, None], peak[:, None], table)
        total += tl.sum(e, 1)
        mix = tl.dot(e.to(tl.int8), vt, mix, out_dtype=tl.int32)
    at = (first_split + tl.program_id(0)) * queries + row
    tl.store(totals + at, total, row < queries)
    tl.store(mixes + at[:, None] * D + d[None, :], mix, (row < queries)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _combine_kernel(totals, mixes, out, splits, D: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr):
    """One query of one head of one map: programs (queries, heads, maps)."""
    split, d = tl.arange(0, SPLITS), tl.arange(0, DP)
    queries, heads = tl.num_programs(0), tl.num_programs(1)
    row, head, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = ((n * heads + head) * splits + split) * queries + row
    total = tl.sum(tl.load(totals + at, split < splits, 0).to(tl.int64), 0)
    inside = (split < splits)[:, None] & (d < D)[None, :]
    mix = tl.sum(tl.load(mixes + at[:, None] * D + d[None, :], inside, 0).to(tl.int64), 0)
    y = (mix * ((1 << 40) // total) + (1 << 39)) >> 40
    tl.store(out + ((n * queries + row) * heads + head) * D + d, y.to(tl.int8), d < D)


def _splits(keys: int) -> tuple[int, int]:
    """Splits of the keys, and keys of each: a multiple of KEYS; e * v of one split must fit int32, 2^17 keys."""
    splits = max(min(triton.cdiv(keys, 512), 64), triton.cdiv(keys, 1 << 16))
    per_split = triton.cdiv(triton.cdiv(keys, splits), KEYS) * KEYS
    return triton.cdiv(keys, per_split), per_split


def _many_tokens(q: Tensor, k: Tensor, v: Tensor, heads: int, m: float, table: Tensor) -> Tensor:
    (n, queries, c), keys = q.shape, k.shape[1]
    d, rows = c // heads, 16
    splits, per_split = _splits(keys)
    peaks, totals = (torch.empty(n, heads, splits, queries, dtype=torch.int32, device=q.device) for _ in range(2))
    mixes = torch.empty(n, heads, splits, queries, d, dtype=torch.int32, device=q.device)
    grid, sizes = (splits, heads, n * triton.cdiv(queries, rows)), (queries, keys, per_split)
    shape = (c, d, _padded(d))
    _peaks_kernel[grid](q, k, m, peaks, *sizes, *shape, rows, KEYS, **OPTIONS)
    power = triton.next_power_of_2(splits)
    _sums_kernel[grid](q, k, v, m, table, peaks, totals, mixes, *sizes, *shape, power, rows, KEYS, **OPTIONS)
    out = torch.empty_like(q)
    _combine_kernel[queries, heads, n](totals, mixes, out, splits, *shape[1:], power, num_warps=4, **EXACT)
    return out


def token_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, m: float, table: Tensor) -> Tensor:
    (n, queries, c), tokens = q.shape, k.shape[1]
    if tokens > FEW:
        return _many_tokens(q, k, v, heads, m, table)
    out, d = torch.empty_like(q), c // heads
    _few_tokens_kernel[triton.cdiv(queries, ROWS), heads, n](
        q, k, v, m, table, out, queries, tokens, c, d, _padded(d), _padded(tokens), ROWS, **OPTIONS
    )
    return out


def token_block(x: Tensor, k: Tensor, v: Tensor, p: TokenParams) -> Tensor:
    n, h, w, c = x.shape
    tokens, d = k.shape[1], c // p.heads
    if tokens > FEW:
        q = linear_act(operand8(x, p.m_in), p.query, False).view(n, h * w, c)
        y = token_attention(q, k, v, p.heads, p.m, p.table).view(x.shape)
        return linear_add(y, p.out, x)
    out = torch.empty_like(x)
    _token_block_kernel[triton.cdiv(h * w, ROWS), n](
        x, k, v, p.m_in, *p.query.tensors(), p.m, p.table, *p.out.tensors(), out, h * w, tokens,
        c, _chunk(c), p.heads, d, _padded(d), _padded(tokens), ROWS, **OPTIONS,
    )  # fmt: skip
    return out
