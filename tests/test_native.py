"""The C++ operations as a module: what they refuse, empty inputs, callers in parallel, forked processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dca_fast.config import Part
from dca_fast.errors import InputError
from dca_fast.ops import (
    DepthBlockParams,
    Depthwise,
    GatedFfnParams,
    Head,
    Linear,
    TokenParams,
    WindowParams,
    reference,
)
from dca_fast.ops import native as native_module
from tests.bridge import OnTensors

native = OnTensors(native_module)
TABLE = torch.arange(255, -1, -1).div(2, rounding_mode="floor").to(torch.uint8)


def int8(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def int16(*shape: int) -> Tensor:
    return torch.randint(-32767, 32768, shape, dtype=torch.int16)


def int32(*shape: int) -> Tensor:
    return torch.randint(-1000, 1001, shape, dtype=torch.int32)


def linear(o: int, k: int) -> Linear:
    return Linear(int8(o, k), int32(o), torch.rand(o) / 500)


def depthwise(c: int) -> Depthwise:
    return Depthwise(int8(3, 3, c), int32(c), torch.rand(c) / 500)


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    threads = native.threads()
    yield
    native.set_threads(threads)


def test_instruction_sets_can_be_forced() -> None:
    before = native.isa()
    for name in native.isas():
        native.set_isa(name)
        assert native.isa() == name
    native.set_isa("auto")
    assert native.isa() == native.isas()[-1]
    native.set_isa(before)


def test_layers_are_packed_once() -> None:
    p, x = linear(6, 8).map(np.asarray), int8(4, 8).numpy()
    native_module.linear_act(x, p, True)
    packed = dict(p.cache)
    native_module.linear_act(x, p, True)
    assert packed
    assert p.cache == packed
    assert p.map(np.copy).cache == linear(6, 8).to("cpu").cache == {}


def _refusals() -> list[tuple[str, Callable[[], Any]]]:
    x, p = int8(4, 8), linear(6, 8)
    y, f = int16(2, 4, 4, 8), int8(2, 4, 4, 8)
    m8, bias = torch.ones(8), int32(2, 4, 4)
    head = Head(int8(4, 4, 8), int32(4, 4), torch.ones(4, 2), torch.ones(4, 2), int32(4, 2))
    mean, row = int32(2, 4, 4, 2), torch.zeros(2, 4, 4, 2, dtype=torch.uint8)
    window = partial(native.window_attention, f, f, f)
    tokens = partial(native.token_attention, int8(1, 2, 8))
    block = DepthBlockParams(m8, linear(6, 8), depthwise(6), linear(8, 6))
    windows = WindowParams(m8, linear(24, 8), 2, 2, 0, 0.1, bias, TABLE, linear(8, 8))
    few = TokenParams(m8, linear(8, 8), 2, 0.1, TABLE, linear(8, 8))
    wide = Linear(int16(6, 8) // 8, int32(6), torch.rand(6))
    bad_m = Linear(p.w, p.b, torch.full((6,), math.inf))
    tall = Depthwise(torch.ones(3, 3, 8, dtype=torch.int8), int32(8), torch.full((8,), 1e9))
    overflow = Linear(p.w, torch.full((6,), (1 << 31) - 1, dtype=torch.int32), p.m)
    return [
        ("dtype", lambda: native.linear_act(x.to(torch.int16), p, True)),
        ("columns", lambda: native.linear_act(int8(4, 9), p, True)),
        ("layout", lambda: native.linear_act(int8(8, 4).T, p, True)),
        ("scalar", lambda: native.linear_act(torch.tensor(1, dtype=torch.int8), p, True)),
        ("odd gate", lambda: native.linear_gate(x, linear(7, 8), 0.1)),
        ("gate scale", lambda: native.linear_gate(x, p, math.nan)),
        ("residual", lambda: native.linear_add(x, p, int16(4, 7))),
        ("residual shape", lambda: native.linear_add(x, p, int16(1, 4, 6))),
        ("slope operand", lambda: native.act_slope(x, int8(4, 7), True)),
        ("slope halves", lambda: native.gate_slope(int8(2, 3, 4), int8(3, 2, 8), 0.1, m8)),
        ("slope scale", lambda: native.gate_slope(int8(2, 3, 4), int8(2, 3, 8), 0.1, m8[:4])),
        ("slope sum", lambda: native.add_slope(int16(4, 8), int16(4, 8), int8(8, 4))),
        ("wide weights", lambda: native.wide_linear(int16(4, 8), p)),
        ("multipliers", lambda: native.linear_act(x, bad_m, True)),
        ("overflow", lambda: native.linear_act(x, overflow, True)),
        ("large result", lambda: native.linear_act(x, Linear(p.w, p.b, torch.full((6,), 1e9)), True)),
        ("large gate scale", lambda: native.linear_gate(x, p, 2.0**18)),
        ("large depthwise", lambda: native.depthwise3x3(int8(2, 4, 4, 8), tall)),
        ("large operand", lambda: native.depth_block(y, replace(block, m_in=m8 + 2.0**16))),
        ("nan operand", lambda: native.gated_ffn(y, GatedFfnParams(m8 * math.nan, linear(12, 8), 0.1, linear(8, 6)))),
        ("bias", lambda: native.linear_act(x, Linear(p.w, int32(5), p.m), True)),
        ("scale", lambda: native.operand8(y, torch.ones(7))),
        ("scale type", lambda: native.operand8(y, torch.ones(8, dtype=torch.float64))),
        ("depthwise", lambda: native.depthwise3x3(int8(2, 4, 8), depthwise(8))),
        ("window", lambda: window(2, 3, 0, 0.1, bias, TABLE)),
        ("heads", lambda: window(3, 2, 0, 0.1, bias, TABLE)),
        ("no heads", lambda: window(0, 2, 0, 0.1, bias, TABLE)),
        ("shift", lambda: window(2, 2, 2, 0.1, bias, TABLE)),
        ("table", lambda: window(2, 2, 0, 0.1, bias, TABLE[:255])),
        ("empty table", lambda: window(2, 2, 0, 0.1, bias, torch.zeros_like(TABLE))),
        ("keys", lambda: tokens(int8(1, 0, 8), int8(1, 0, 8), 2, 0.1, TABLE)),
        ("values", lambda: tokens(int8(1, 3, 8), int8(1, 2, 8), 2, 0.1, TABLE)),
        ("step", lambda: native.head_params(f, head, 4, 6, (4, 4))),
        ("negative step", lambda: native.quadtree_gather(y, -1)),
        ("odd map", lambda: native.head_params(int8(1, 3, 4, 8), head, 0, 6, (3, 4))),
        ("groups", lambda: native.quadtree_gather(int16(1, 2, 2, 6), 0)),
        ("latents", lambda: native.residuals(y.int(), mean, m8, 0)),
        ("mean", lambda: native.residuals(y, mean[:1], m8, 0)),
        ("mean type", lambda: native.residuals(y, mean.to(torch.int16), m8, 0)),
        ("gain", lambda: native.residuals(y, mean, m8[:4], 0)),
        ("fifth step", lambda: native.residuals(y, mean, m8, 4)),
        ("finer", lambda: native.residuals(y, mean, m8, 0, torch.ones(2, 4, 3))),
        ("finer size", lambda: native.residuals(y, mean, m8, 0, torch.full((2, 4, 4), 8.0))),
        ("coarser", lambda: native.reconstruct(y[..., :2].contiguous(), mean, m8, 0, y.clone(), torch.zeros(2, 4, 4))),
        ("weights of neighbours", lambda: native.neighbour_mean(y, torch.zeros(3, 8), Part(0, 1, 1, 2))),
        ("no neighbours", lambda: native.neighbour_mean(y, torch.zeros(4, 8), Part(None, 0, 0, 2))),
        ("odd part", lambda: native.neighbour_mean(y, torch.zeros(4, 8), Part(0, 1, 1, 3))),
        ("no sites", lambda: native.neighbour_mean(y, torch.zeros(4, 8), Part(0, 4, 4, 8))),
        ("rows", lambda: native.coarseness(f, int32(4, 8), 6, 3)),
        ("offset", lambda: native.coarseness(row, int32(4, 3), 6, 3)),
        ("large offset", lambda: native.coarseness(row, torch.full((4, 2), 1 << 21, dtype=torch.int32), 6, 3)),
        ("strength", lambda: native.coarseness(row, int32(4, 2), 6, 16)),
        ("odd rows", lambda: native.coarseness(row[:, :3].contiguous(), int32(4, 2), 6, 3)),
        ("coarse", lambda: native.coarser_rows(row, torch.zeros(2, 4, 3, dtype=torch.int8), 6)),
        ("skip of rows", lambda: native.coarser_rows(row, torch.zeros(2, 4, 4, dtype=torch.int8), -1)),
        ("symbols", lambda: native.reconstruct(int16(2, 4, 4, 3), mean, m8, 0, y)),
        ("image", lambda: native.patches_from_image(torch.zeros(1, 8, 8, 4, dtype=torch.uint8))),
        ("image size", lambda: native.patches_from_image(torch.zeros(1, 12, 8, 3, dtype=torch.uint8))),
        ("patch size", lambda: native.image_from_patches(torch.zeros(1, 2, 2, 12, dtype=torch.uint8))),
        ("odd space", lambda: native.space_to_depth2(int8(1, 3, 2, 4))),
        ("depth", lambda: native.depth_to_space2(int8(1, 3, 2, 6))),
        ("block", lambda: native.depth_block(y, replace(block, project=linear(8, 7)))),
        ("ffn", lambda: native.gated_ffn(y, GatedFfnParams(m8, linear(6, 8), 0.1, linear(8, 4)))),
        ("parts", lambda: native.block(y, block, GatedFfnParams(m8[:6], linear(12, 6), 0.1, linear(6, 6)))),
        ("skip", lambda: native.head_params(f, head, 0, 129, (4, 4))),
        ("valid", lambda: native.head_params(f, head, 0, 6, (5, 4))),
        ("decoded step", lambda: native.decoded_linear(y, m8, wide, int16(2, 4, 4, 6), 0)),
        ("decoded residual", lambda: native.decoded_linear(y, m8, wide, int16(2, 4, 4, 8), 1)),
        ("decoded channels", lambda: native.decoded_linear(int16(2, 4, 4, 4), m8[:4], wide, int16(2, 4, 4, 6), 1)),
        ("qkv", lambda: native.window_block(y, replace(windows, qkv=linear(16, 8)))),
        ("window of block", lambda: native.window_block(y, replace(windows, window=3))),
        ("query", lambda: native.token_block(y, int8(2, 3, 8), int8(2, 3, 8), replace(few, query=linear(6, 8)))),
        ("tokens", lambda: native.token_block(y, int8(1, 3, 8), int8(2, 3, 8), few)),
        ("exponential", lambda: native.token_block(y, int8(2, 3, 8), int8(2, 3, 8), replace(few, table=TABLE + 1))),
        ("isa", lambda: native.set_isa("sse9")),
    ]


@pytest.mark.parametrize("name", [name for name, _ in _refusals()])
def test_bad_arguments_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        dict(_refusals())[name]()


def test_empty_inputs_give_empty_outputs() -> None:
    assert native.linear_act(int8(0, 8), linear(6, 8), True).shape == (0, 6)
    block = DepthBlockParams(torch.ones(8), linear(6, 8), depthwise(6), linear(8, 6))
    assert native.depth_block(int16(0, 4, 4, 8), block).shape == (0, 4, 4, 8)
    ffn = GatedFfnParams(torch.ones(8), linear(12, 8), 0.1, linear(8, 6))
    assert native.block(int16(0, 4, 4, 8), block, ffn).shape == (0, 4, 4, 8)
    queries, keys = int8(1, 0, 8), int8(1, 2, 8)
    assert native.token_attention(queries, keys, keys, 2, 0.1, TABLE).shape == (1, 0, 8)


@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (2, 3), (5, 8), (8, 8), (9, 2), (5, 9)])
@pytest.mark.parametrize("m", [1e-3, 3.0, -1e30])
def test_few_tokens_have_kernels_of_their_own(heads: int, tokens: int, m: float) -> None:
    c, before = 32 * heads, native.isa()
    x, k, v = int16(2, 5, 21, c), int8(2, tokens, c), int8(2, tokens, c)
    p = TokenParams(torch.randn(c) / 200, linear(c, c), heads, m, TABLE, linear(c, c))
    expected = reference.token_block(x, k, v, p)
    for isa in native.isas():
        native.set_isa(isa)
        assert native.token_block(x, k, v, p).equal(expected), isa
    native.set_isa(before)


def test_concurrent_callers_do_not_disturb_each_other() -> None:
    native.set_threads(3)
    inputs, p = [int8(1500, 96) for _ in range(8)], linear(64, 96)
    expected = [reference.linear_act(x, p, True) for x in inputs]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(5):
            got = list(callers.map(lambda x: native.linear_act(x, p, True), inputs))
            assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def _child(x: np.ndarray[Any, Any], p: Linear, expected: np.ndarray[Any, Any]) -> None:
    same = np.array_equal(native_module.linear_act(x, p.map(np.asarray), True), expected)
    os._exit(0 if same else 1)


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the default of no other platform")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_gets_its_own_threads() -> None:
    native.set_threads(3)
    x, p = int8(1500, 96), linear(64, 96)
    expected = native.linear_act(x, p, True).numpy()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(x.numpy(), p, expected))
    child.start()
    child.join(timeout=30)
    assert child.exitcode == 0


def test_a_result_takes_the_memory_of_one_that_is_gone() -> None:
    """Whatever else took memory in between."""
    x = torch.randint(-99, 99, (1, 1024, 1024, 20), dtype=torch.int16)  # 40 MiB: the system gets its pages back
    first = native.add(x, x)
    address = first.data_ptr()
    del first
    other = np.empty(x.shape, np.int16)
    second = native.add(x, x)
    assert second.data_ptr() == address != other.ctypes.data
    third = native.add(second, x)
    assert second.equal(2 * x)
    assert third.equal(3 * x)
