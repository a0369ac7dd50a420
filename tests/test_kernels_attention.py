"""Attention Triton kernels: the bits of the reference, in the interpreter or on a GPU; and what they compile to."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from dca_fast.ops import TokenParams, WindowParams, reference
from tests.kernel_tools import (
    ARCHITECTURES,
    INFINITE_PRODUCTS,
    TABLE,
    check_compiled,
    compiled,
    int8,
    int16,
    int32,
    kernels,
    linear,
    multipliers,
    same,
)

attention = kernels("attention")
pytestmark = INFINITE_PRODUCTS


@pytest.mark.parametrize(
    ("shape", "heads", "window", "shift"),
    [
        ((1, 1, 1, 1), 1, 1, 0),
        ((2, 4, 6, 6), 2, 2, 1),
        ((1, 7, 14, 33), 3, 7, 0),
        ((1, 8, 8, 20), 1, 8, 4),
        ((2, 8, 12, 160), 5, 4, 2),
        ((1, 6, 12, 34), 2, 6, 5),
    ],
)
def test_window_attention(shape: tuple[int, ...], heads: int, window: int, shift: int) -> None:
    q, k, v = (int8(*shape) for _ in range(3))
    bias = int32(heads, window**2, window**2, limit=30)
    for m, scale in ((1e-3, 1), (-3.0, 30000)):
        args = (q, k, v, heads, window, shift, m, bias * scale, TABLE)
        same(attention.window_attention, reference.window_attention, *args)


def test_window_attention_of_opposed_extremes() -> None:
    high = torch.full((1, 4, 4, 6), 127, dtype=torch.int8)
    for q, k, v in itertools.product((high, -high), repeat=3):
        for m in (0.0, 1e-4, 1e30, -3e38):
            bias = torch.full((2, 16, 16), 1 << 20, dtype=torch.int32)
            args = (q, k, v, 2, 4, 2, m, bias, TABLE)
            same(attention.window_attention, reference.window_attention, *args)


def window_params(c: int, heads: int, window: int, shift: int) -> WindowParams:
    bias, out = int32(heads, window**2, window**2, limit=30), linear(c, c, reach=20000.0)
    return WindowParams(multipliers(c, reach=200), linear(3 * c, c), heads, window, shift, 1e-3, bias, TABLE, out)


@pytest.mark.parametrize(
    ("shape", "heads", "window", "shift"),
    [((1, 2, 2, 1), 1, 1, 0), ((2, 4, 12, 33), 3, 4, 2), ((1, 4, 20, 160), 5, 4, 0), ((1, 6, 3, 20), 2, 3, 1)],
)
def test_window_block(shape: tuple[int, ...], heads: int, window: int, shift: int) -> None:
    params = window_params(shape[-1], heads, window, shift)
    same(attention.window_block, reference.window_block, int16(*shape), params)


@pytest.mark.parametrize("table", [TABLE, torch.full((256,), 127, dtype=torch.uint8)])
@pytest.mark.parametrize(
    ("n", "queries", "keys", "channels", "heads"),
    [(1, 1, 1, 1, 1), (2, 70, 8, 20, 4), (1, 65, 8, 160, 5), (2, 9, 64, 33, 3)],
)
def test_token_attention_over_few(
    n: int, queries: int, keys: int, channels: int, heads: int, table: torch.Tensor
) -> None:
    q, k, v = int8(n, queries, channels), int8(n, keys, channels), int8(n, keys, channels)
    for m in (1e-3, 0.0, -0.2):
        same(attention.token_attention, reference.token_attention, q, k, v, heads, m, table)


@pytest.mark.parametrize("table", [TABLE, torch.full((256,), 127, dtype=torch.uint8)])
@pytest.mark.parametrize(
    ("n", "queries", "keys", "channels", "heads"),
    [(1, 1, 65, 1, 1), (2, 8, 300, 20, 4), (1, 17, 600, 12, 2), (1, 8, 1100, 64, 2)],
)
def test_token_attention_over_many(
    n: int, queries: int, keys: int, channels: int, heads: int, table: torch.Tensor
) -> None:
    q, k, v = int8(n, queries, channels), int8(n, keys, channels), int8(n, keys, channels)
    for m in (1e-3, -0.2):
        same(attention.token_attention, reference.token_attention, q, k, v, heads, m, table)


def test_token_attention_of_opposed_extremes() -> None:
    for keys, multipliers_of in ((5, (0.0, 1e30, -3e38)), (600, (0.0, 3e38))):
        high, q = torch.full((1, keys, 6), 127, dtype=torch.int8), torch.full((1, 3, 6), 127, dtype=torch.int8)
        for sq, sv, m in itertools.product((1, -1), (1, -1), multipliers_of):
            same(attention.token_attention, reference.token_attention, q * sq, high, high * sv, 2, m, TABLE)


def test_every_sum_of_exponentials_divides_exactly() -> None:
    """The long division of `_reciprocal40`, through attention: one key of weight 127, others share a smaller one."""
    v = torch.zeros(1, 64, 32, dtype=torch.int8)
    v[:, 0], v[:, 1] = 127, -126
    k = torch.zeros(1, 64, 32, dtype=torch.int8)
    k[:, 1:, 0] = -1
    q = torch.zeros(1, 127, 32, dtype=torch.int8)
    q[0, :, 0] = torch.arange(1, 128)
    table = torch.cat([torch.arange(127, 0, -1), torch.zeros(129)]).to(torch.uint8)
    for keys in (2, 7, 33, 64):
        args = (q, k[:, :keys].contiguous(), v[:, :keys].contiguous(), 1, 1.0, table)
        same(attention.token_attention, reference.token_attention, *args)


@pytest.mark.parametrize(
    ("shape", "keys", "heads"),
    [((1, 1, 1, 1), 1, 1), ((2, 6, 11, 33), 5, 3), ((1, 10, 7, 160), 8, 5), ((1, 2, 3, 20), 70, 2)],
)
def test_token_block(shape: tuple[int, ...], keys: int, heads: int) -> None:
    n, _, _, c = shape
    query, out = linear(c, c), linear(c, c, reach=20000.0)
    params = TokenParams(multipliers(c, reach=200), query, heads, 1e-3, TABLE, out)
    same(attention.token_block, reference.token_block, int16(*shape), int8(n, keys, c), int8(n, keys, c), params)


def test_blocks_saturate() -> None:
    c = 32
    x = int16(1, 4, 4, c).sign() * 32767
    for reach in (1.0, 1e12):
        params = window_params(c, 2, 4, 2)
        params = replace(params, out=linear(c, c, reach=reach), m_in=multipliers(c, reach=1e-9))
        same(attention.window_block, reference.window_block, x, params)
        tokens = TokenParams(params.m_in, linear(c, c, reach=1e6), 2, 3e38, TABLE, params.out)
        same(attention.token_block, reference.token_block, x, int8(1, 8, c), int8(1, 8, c), tokens)


# Compilation, with the shapes of dca-s.


def dca_s_calls() -> None:
    c, heads, x = 160, 5, int16(1, 16, 24, 160)
    params = window_params(c, heads, 4, 2)
    attention.window_block(x, params)
    q = int8(1, 16, 24, c)
    attention.window_attention(q, q, q, heads, 4, 2, 1e-3, params.bias, TABLE)
    tokens = int8(1, 8, c)
    attention.token_block(x, tokens, tokens, TokenParams(params.m_in, linear(c, c), heads, 1e-3, TABLE, params.out))
    sites = q.view(1, -1, c)
    attention.token_attention(sites, tokens, tokens, heads, 1e-3, TABLE)
    attention.token_attention(tokens, sites, sites, heads, 1e-3, TABLE)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile(architecture: int) -> None:
    for record in compiled(__name__, "dca_s_calls", architecture):
        check_compiled(record, architecture, tensor_core=record["kernel"] != "_combine_kernel")
