"""The integer operations: the definition against hand-made cases, C++ against the definition, bit for bit."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dca_fast.config import SKIP_ROW, TRELLIS_STEP, Part, coarse_to_fine
from dca_fast.ops import (
    DepthBlockParams,
    GatedFfnParams,
    Head,
    Linear,
    Ops,
    TokenParams,
    WindowParams,
    reference,
)
from dca_fast.ops import native as native_module
from tests.bridge import OPERATIONS, OnTensors
from tests.kernel_tools import EXTREME_M, TABLE, depthwise, int8, int16, int32, linear, multipliers, wide

native = OnTensors(native_module)
OP_NAMES = [f.name for f in fields(Ops) if f.name != "name"]


@pytest.fixture(autouse=True)
def _restore_native() -> Iterator[None]:
    isa, threads = native.isa(), native.threads()
    yield
    native.set_isa(isa)
    native.set_threads(threads)


def outputs(module: ModuleType | OnTensors, function: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What an operation returns, or the tensor that `reconstruct` writes into, a copy of its argument."""
    if function == "reconstruct":
        args = (*args[:4], args[4].clone(), *args[5:])
    out = getattr(module, function)(*args)
    if isinstance(out, int):  # of `squared_error`
        return (torch.tensor(out),)
    return out if isinstance(out, tuple) else (args[4] if out is None else out,)


def every_backend(function: str, *args: Any) -> None:
    """Asserts that C++ equals the reference for every instruction set and 1 to 3 threads."""
    expected = outputs(reference, function, args)
    for isa, threads in itertools.product(native.isas(), (1, 2, 3)):
        native.set_isa(isa)
        native.set_threads(threads)
        for want, have in zip(expected, outputs(native, function, args), strict=True):
            assert (have.dtype, have.shape, have.is_contiguous()) == (want.dtype, want.shape, True)
            assert torch.equal(want, have), f"{function} {isa} {threads} threads"


SHAPES = list(itertools.product((1, 5, 63, 1000), (1, 3, 20, 33, 160), (1, 7, 96, 161)))


def test_backends_have_the_same_operations_and_signatures() -> None:
    for name in OP_NAMES:
        if name in OPERATIONS:
            mine, definition = (
                [(p.name, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
                for module in (native_module, reference)
            )
            assert mine == definition, name
        assert getattr(native.OPS, name) is getattr(native_module, name)
        assert getattr(reference.OPS, name) is getattr(reference, name)
    assert (native.OPS.name, reference.OPS.name) == ("native", "reference")


@pytest.mark.parametrize(("rows", "k", "o"), SHAPES)
def test_linear(rows: int, k: int, o: int) -> None:
    x, p, residual = int8(rows, k), linear(o, k), int16(rows, o)
    every_backend("linear_act", x, p, True)
    every_backend("linear_act", x, p, False)
    every_backend("linear_add", x, linear(o, k, reach=20000.0))
    every_backend("linear_add", x, linear(o, k, reach=20000.0), residual)
    every_backend("linear_gate", x, linear(2 * o, k), 0.013)


@pytest.mark.parametrize(("rows", "k", "o"), SHAPES)
def test_wide(rows: int, k: int, o: int) -> None:
    x, p = int16(rows, k), wide(o, k)
    every_backend("wide_linear", x, p)
    every_backend("wide_linear", x, p, int16(rows, o))
    every_backend("wide_pixels", x, Linear(p.w, p.b, p.m / 128))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2, 20), (2, 5, 7, 33), (4, 700, 161)])
def test_operands_and_gated_block(shape: tuple[int, ...]) -> None:
    x, c = int16(*shape), shape[-1]
    every_backend("operand8", x, multipliers(c, reach=200))
    every_backend("operand16", x, multipliers(c, reach=0.7))
    params = GatedFfnParams(multipliers(c, reach=200), linear(2 * 37, c), -0.02, linear(c, 37, reach=20000.0))
    every_backend("gated_ffn", x, params)


MAPS = [(1, 1, 1, 1), (2, 1, 5, 3), (1, 7, 1, 20), (2, 5, 13, 33), (1, 64, 96, 64), (3, 17, 31, 161)]


@pytest.mark.parametrize("shape", [(1,), (5, 7), (2, 40, 41, 33)])
def test_add_saturates(shape: tuple[int, ...]) -> None:
    x, y = int16(*shape), int16(*shape)
    every_backend("add", x, y)
    assert torch.equal(reference.add(x, y).int(), (x.int() + y.int()).clamp(-32767, 32767))


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 5, 7, 33)])
def test_symbols_of_hyper_latents(shape: tuple[int, ...]) -> None:
    """Halves go up; what is skipped is zero; values are clamped."""
    z, mean = int16(*shape), int16(*shape)
    rows = torch.randint(0, 128, shape).to(torch.uint8)
    rows[torch.rand(shape) < 0.3] = SKIP_ROW
    for m in (None, mean):
        every_backend("hyper_symbols", z, m, rows)
        every_backend("hyper_values", int16(*shape), m)
        symbols = reference.hyper_symbols(z, m, rows).double()
        exact = (z.double() - (0 if m is None else m.double())) / 256
        assert not symbols[rows == SKIP_ROW].any()
        assert torch.equal(symbols[rows != SKIP_ROW], (exact + 0.5).floor()[rows != SKIP_ROW])
    back = reference.hyper_values(torch.tensor([[[[-3, 200, -200]]]], dtype=torch.int16), None)
    assert back.flatten().tolist() == [-768, 32767, -32767]


@pytest.mark.parametrize("size", [(1, 1), (16, 33), (150, 101)])
def test_errors_and_luma_of_pictures(size: tuple[int, int]) -> None:
    a, b = (torch.randint(0, 256, (*size, 3)).to(torch.uint8) for _ in range(2))
    factors = torch.randint(1, 40000, (-(-size[0] // 16), -(-size[1] // 16)))
    every_backend("squared_error", a, b)
    every_backend("squared_error", a, b, factors)
    every_backend("luma", a)
    assert reference.luma(torch.full((1, 1, 3), 255, dtype=torch.uint8)).item() == 255


def test_factors_of_steps() -> None:
    coarse = torch.arange(-15, 16, dtype=torch.int8).view(1, 1, 31)
    factors = torch.rand(2, 31)
    every_backend("coarseness_factors", coarse, factors)
    assert torch.equal(reference.coarseness_factors(coarse, factors).flatten(1), factors)


@pytest.mark.parametrize("shape", [(1, 2), (5, 14), (2, 40, 41, 66), (3, 320)])
def test_slopes(shape: tuple[int, ...]) -> None:
    """With many operands at their limits, where no gradient passes, and at 0."""
    e, h = int8(*shape), (int8(*shape).int() * 2).clamp(-127, 127).to(torch.int8)
    h[..., ::5] = 0
    every_backend("act_slope", e, h, True)
    every_backend("act_slope", e, h, False)
    every_backend("add_slope", int16(*shape), int16(*shape), h)
    half = shape[-1] // 2
    for g in (0.0625, 0.002):
        every_backend("gate_slope", int8(*shape[:-1], half), h, g, multipliers(2 * half, reach=3000))


def test_slopes_are_gradients() -> None:
    """Of what `linear_gate` multiplies, against autograd; and nothing where a value is clamped."""
    uv, e = int8(500, 8), int8(500, 4)
    x = uv.double().requires_grad_(True)
    u, v = x.chunk(2, -1)
    product = (u * v / 16).clamp(-126.49, 126.49)
    (product * e.double()).sum().backward()
    assert x.grad is not None
    have = reference.gate_slope(e, uv, 1 / 16, torch.full((8,), 1 / 64))
    wanted = (x.grad * 16 / 64).round().clamp(-127, 127) * (uv.abs() < 127)
    assert torch.equal(have.double(), wanted)
    assert 0.1 < float((have == 0).double().mean()) < 0.9
    h = torch.tensor([-127, -126, -1, 0, 1, 126, 127], dtype=torch.int8)
    slope = torch.full((7,), 100, dtype=torch.int8)
    assert reference.act_slope(slope, h, True).tolist() == [0, 13, 13, 13, 100, 100, 0]
    assert reference.act_slope(-slope, h, False).tolist() == [0, -100, -100, -100, -100, -100, 0]
    d = torch.full((7,), 32000, dtype=torch.int16)
    assert reference.add_slope(torch.full_like(d, 1000), d, h).tolist() == [1000, *[32767] * 5, 1000]


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (40, 33)])
def test_padding(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    for padded in (size, (64, 64)):
        every_backend("pad_edges", image, *padded)
        every_backend("pad_edges", image, *padded, torch.zeros(1, *padded, 3, dtype=torch.uint8))
    assert reference.pad_edges(image[:1, :1], 2, 3).equal(image[:1, :1].expand(2, 3, 3)[None])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (40, 33), (5, 1030), (100, 31)])
def test_restoration(size: tuple[int, int]) -> None:
    picture, image = (torch.randint(0, 256, (*size, 3)).to(torch.uint8) for _ in range(2))
    picture[: size[0] // 2].clamp_(100, 110)  # differences on both sides of the limit
    for rings in (1, 2, 3):
        every_backend("restore", picture, torch.randint(-127, 128, (3, 6 * rings)).to(torch.int8))
    for stride in (1, 3):
        every_backend("restore_sums", picture, image, stride)


def test_restoration_at_the_ends_of_its_range() -> None:
    """The largest features, sums of a whole run of them, and results beyond both ends of a byte."""
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(1100), indexing="ij")
    dots = ((rows % 3 == 1) & (columns % 3 == 1)).to(torch.uint8).mul(255)[:, :, None].repeat(1, 1, 3)
    assert int(reference.ring_features(dots, 3).abs().max()) == 8 * 255
    for picture in (dots, 255 - dots):
        for weight in (-127, 127):
            every_backend("restore", picture, torch.full((3, 18), weight, dtype=torch.int8))
        every_backend("restore_sums", picture, 255 - picture, 1)
    step = torch.zeros(6, 600, 3, dtype=torch.uint8)
    step[1::3] = 255
    every_backend("restore_sums", step, 255 - step, 1)


def test_restoration_of_a_hand_made_picture() -> None:
    picture = torch.zeros(5, 5, 3, dtype=torch.uint8)
    picture[2, 2] = torch.tensor([100, 4, 0])
    w = torch.zeros(3, 18, dtype=torch.int8)
    w[0, 0], w[0, 6], w[1, 9], w[2, 1 + 12] = 16, 32, 64, 64
    out = reference.restore(picture, w)
    # The middle: red 100 - (16 * 8 * 100 + 32 * 4 * 100) / 256; green, from red's clamped cross, 4 - 64 * 4 * 8 / 256.
    assert out[2, 2].tolist() == [0, 0, 0]
    assert out[2, 1].tolist() == [19, 2, 0]
    assert out[1, 1].tolist() == [6, 0, 0]
    assert out[2, 0].tolist() == [0, 0, 1]
    assert not out[0, 1].any()


@pytest.mark.parametrize("shape", MAPS)
def test_depthwise_and_block(shape: tuple[int, ...]) -> None:
    c, hidden = shape[-1], shape[-1] + 5
    every_backend("depthwise3x3", int8(*shape), depthwise(c))
    params = DepthBlockParams(
        multipliers(c, reach=200), linear(hidden, c), depthwise(hidden), linear(c, hidden, reach=20000.0)
    )
    every_backend("depth_block", int16(*shape), params)
    ffn = GatedFfnParams(multipliers(c, reach=200), linear(2 * 37, c), -0.02, linear(c, 37, reach=20000.0))
    every_backend("block", int16(*shape), params, ffn)


@pytest.mark.parametrize(
    ("shape", "heads", "window", "shift"),
    [
        ((1, 1, 1, 1), 1, 1, 0),
        ((2, 4, 6, 6), 2, 2, 1),
        ((1, 7, 14, 33), 3, 7, 0),
        ((1, 8, 8, 20), 1, 8, 4),
        ((2, 24, 32, 160), 8, 8, 3),
        ((1, 24, 12, 34), 2, 12, 5),
    ],
)
def test_window_attention(shape: tuple[int, ...], heads: int, window: int, shift: int) -> None:
    q, k, v = (int8(*shape) for _ in range(3))
    bias = int32(heads, window**2, window**2, limit=30)
    every_backend("window_attention", q, k, v, heads, window, shift, 1e-3, bias, TABLE)
    every_backend("window_attention", q, k, v, heads, window, shift, -3.0, bias * 30000, TABLE)


@pytest.mark.parametrize(
    ("n", "queries", "keys", "channels", "heads"),
    [(1, 1, 1, 1, 1), (2, 8, 1000, 20, 4), (1, 1000, 8, 160, 5), (2, 100, 33, 33, 1), (1, 2, 20000, 6, 2)],
)
def test_token_attention(n: int, queries: int, keys: int, channels: int, heads: int) -> None:
    q, k, v = int8(n, queries, channels), int8(n, keys, channels), int8(n, keys, channels)
    every_backend("token_attention", q, k, v, heads, 1e-3, TABLE)
    every_backend("token_attention", q, k, v, heads, 0.0, TABLE)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize(("n", "h", "w", "c", "size"), [(1, 2, 2, 1, 1), (2, 6, 10, 33, 7), (1, 32, 48, 160, 80)])
def test_latent_step(n: int, h: int, w: int, c: int, size: int, step: int) -> None:
    scale = 5000 * math.sqrt(c)
    head = Head(
        int8(4, 2 * size, c),
        int32(4, 2 * size, limit=5000),
        multipliers(4, size, reach=scale / 3000),
        multipliers(4, size, reach=scale / 2000),
        int32(4, size, limit=2000),
    )
    t, y = int8(n, h, w, c), int16(n, h, w, 4 * size)
    for skip, valid in ((0, (h, w)), (40, (h - 1, w)), (128, (h, w)), (0, (0, w - 2))):
        every_backend("head_params", t, head, step, skip, valid)
    mean, row = reference.head_params(t, head, step, 40, (h, w - 1))
    assert int((row == SKIP_ROW).sum()) >= n * h * size
    every_backend("quadtree_gather", y, step)
    every_backend("quadtree_gather", y.int() * 30000, step)
    gain = multipliers(4 * size, reach=1.0)
    every_backend("residuals", y, mean, gain, step)
    every_backend("residuals", y, mean // 40, gain / 20, step)
    every_backend("reconstruct", int16(n, h, w, size), mean, 1 / gain, step, y)
    every_backend("reconstruct", int16(n, h, w, size, limit=9), mean // 40, 1 / gain, step, y)
    for strength, skip in ((0, 0), (3, 6), (15, 128)):
        every_backend("coarseness", row, int32(4, size, limit=2000), skip, strength)
    coarse = torch.randint(-15, 16, (n, h, w), dtype=torch.int8)
    for skip in (0, 6, 128):
        every_backend("coarser_rows", row, coarse, skip)
    rows = torch.tensor([*range(128), SKIP_ROW], dtype=torch.uint8).expand(1, 1, 31, 129).contiguous()
    for skip in (0, 1, 6, 127, 128):
        every_backend("coarser_rows", rows, torch.arange(-15, 16, dtype=torch.int8).view(1, 1, 31), skip)
    factor = torch.exp2(coarse / 12)
    every_backend("residuals", y, mean // 40, gain / 20, step, 1 / factor)
    every_backend("reconstruct", int16(n, h, w, size), mean // 40, 1 / gain, step, y, factor)


@pytest.mark.parametrize(("n", "h", "w"), [(1, 8, 8), (2, 24, 40), (1, 256, 384)])
def test_pixels_and_space(n: int, h: int, w: int) -> None:
    image = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)
    patches = (reference.patches_from_image(image) + 128).to(torch.uint8)
    every_backend("patches_from_image", image)
    every_backend("patches_from_image", image, 4)
    every_backend("image_from_patches", patches)
    assert torch.equal(native.image_from_patches(patches), image)
    for x in (int8(n, h, w, 5), int16(n, h, w, 16)):
        every_backend("space_to_depth2", x)
        every_backend("depth_to_space2", reference.space_to_depth2(x))
        assert torch.equal(native.depth_to_space2(native.space_to_depth2(x)), x)


# Extremes.


def test_extreme_accumulators_and_multipliers() -> None:
    largest = 1 - 2.0**-20  # whose product with 2^31 - 1 still is a result
    m = torch.tensor(EXTREME_M).clamp(-largest, largest)
    k, o = 1000, len(EXTREME_M)
    for sign_x, sign_w in itertools.product((-127, 127), repeat=2):
        x = torch.full((3, k), sign_x, dtype=torch.int8)
        w = torch.full((o, k), sign_w, dtype=torch.int8)
        p = Linear(w, torch.full((o,), (1 << 31) - 1 - 127 * 127 * k, dtype=torch.int32), m)
        every_backend("linear_act", x, p, True)
        every_backend("linear_add", x, p, torch.full((3, o), sign_x * 258, dtype=torch.int16))
    for value, weight in itertools.product((-32767, 32767), (-65535 // 2, 32767)):
        x = torch.full((3, 2), value, dtype=torch.int16)
        w = torch.tensor([[weight, weight]] * o, dtype=torch.int16)
        w[:, 1] = 2  # 32767 * (32767 + 2) + bias is 2^31 - 1 with this bias
        p = Linear(w, torch.full((o,), (1 << 31) - 1 - 32767 * (abs(weight) + 2), dtype=torch.int32), m)
        every_backend("wide_linear", x, p)
        every_backend("wide_linear", x, p, torch.full((3, o), value, dtype=torch.int16))
        every_backend("wide_pixels", x, p)


def test_every_feature_value_with_ties_and_saturation() -> None:
    x = torch.arange(-32767, 32768, dtype=torch.int16).repeat_interleave(2).view(-1, 2).contiguous()
    for m in (*EXTREME_M, 1 / 3, 1.5, 2.0**-8):
        scale = torch.tensor([m, -m])
        every_backend("operand8", x, scale)
        every_backend("operand16", x, scale)


def test_large_sums_round_to_float_before_the_product() -> None:
    acc = torch.arange((1 << 30) + 1, (1 << 30) + 4096, 3, dtype=torch.int32)
    acc = torch.cat([acc, -acc])
    p = Linear(torch.zeros(len(acc), 1, dtype=torch.int8), acc, torch.full((len(acc),), 2.0**-16))
    every_backend("linear_add", int8(2, 1), p, int16(2, len(acc)))


def test_attention_of_opposed_extremes() -> None:
    high = torch.full((1, 4, 4, 6), 127, dtype=torch.int8)
    for q, k, v in itertools.product((high, -high), repeat=3):
        for m in (0.0, 1e-4, 1e30, -1e30):
            bias = torch.full((2, 16, 16), 1 << 20, dtype=torch.int32)
            every_backend("window_attention", q, k, v, 2, 4, 2, m, bias, TABLE)
            assert torch.equal(native.window_attention(q, k, v, 2, 4, 2, m, bias, TABLE), v)


def test_large_means_and_values_saturate() -> None:
    y = torch.full((1, 2, 2, 4), 32767, dtype=torch.int16)
    for mean, gain in itertools.product((-(1 << 20), 0, 1 << 20), (-1e9, -1.0, 1e9)):
        means = torch.full((1, 2, 2, 1), mean, dtype=torch.int32)
        every_backend("residuals", y, means, torch.full((4,), gain), 2)
        assert int(reference.residuals(y, means, torch.full((4,), gain), 2).abs().max()) <= 1 << 21
        factor = torch.full((1, 2, 2), 2.375)
        every_backend("residuals", y, means, torch.full((4,), gain), 2, factor)
        for value in (-32768, 8191, 32767):
            q = torch.full((1, 2, 2, 1), value, dtype=torch.int16)
            every_backend("reconstruct", q, means, torch.full((4,), gain), 1, y)
            every_backend("reconstruct", q, means, torch.full((4,), gain), 1, y, factor)


@pytest.mark.parametrize(
    ("n", "h", "w", "c"), [(1, 1, 1, 3), (2, 2, 1, 20), (1, 3, 5, 33), (2, 8, 4, 16), (1, 17, 30, 128)]
)
def test_means_of_neighbours(n: int, h: int, w: int, c: int) -> None:
    z, m = int16(n, h, w, c), multipliers(4, c, reach=1.0)
    parts = [p for p in coarse_to_fine(3) if p.kind is not None and p.top < h and p.left < w]
    for part in parts:
        every_backend("neighbour_mean", z, m, part)
        every_backend("neighbour_mean", z, torch.full((4, c), 3e38), part)
    assert len(parts) == 9 or h * w < 100


def test_means_of_one_to_four_neighbours() -> None:
    z = torch.arange(1, 10, dtype=torch.int16).view(1, 3, 3, 1) * 100
    m = torch.tensor([1.0, 0.5, 1 / 3, 0.25])[:, None]
    assert reference.neighbour_mean(z, m, Part(0, 1, 1, 2)).flatten().tolist() == [500]
    assert reference.neighbour_mean(z, m, Part(1, 0, 1, 2)).flatten().tolist() == [300, 700]  # of 1, 3, 5 and 5, 7, 9
    assert reference.neighbour_mean(z, m, Part(1, 1, 0, 2)).flatten().tolist() == [433, 567]
    assert reference.neighbour_mean(z[:, :2, :2], m, Part(0, 1, 1, 2)).flatten().tolist() == [100]


def test_extreme_offsets_of_coarseness() -> None:
    row = torch.tensor([0, 127, SKIP_ROW, 6], dtype=torch.uint8).view(1, 2, 2, 1).expand(1, 2, 2, 40).contiguous()
    for offset in (-(1 << 20), 0, 1 << 20):
        every_backend("coarseness", row, torch.full((4, 40), offset, dtype=torch.int32), 6, 15)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(seed: int) -> None:
    torch.manual_seed(seed)
    n, h, w, rows, keys = (int(i) for i in torch.randint(1, 14, (5,)))
    heads, depth, c, o, size = (int(i) for i in torch.randint(1, 40, (5,)))
    every_backend("linear_act", int8(rows, c), linear(o, c), True)
    every_backend("wide_linear", int16(rows, c), wide(o, c), int16(rows, o))
    params = DepthBlockParams(multipliers(c, reach=200), linear(o, c), depthwise(o), linear(c, o, reach=20000.0))
    every_backend("depth_block", int16(n, h, w, c), params)
    ffn = GatedFfnParams(multipliers(c, reach=200), linear(2 * o, c), 0.01, linear(c, o, reach=20000.0))
    every_backend("gated_ffn", int16(n, h, w, c), ffn)
    every_backend("block", int16(n, h, w, c), params, ffn)
    q, k, v = (int8(n, i, heads * depth) for i in (rows, keys, keys))
    every_backend("token_attention", q, k, v, heads, 1e-3, TABLE)
    window, shift = 1 + h % 5, w % (1 + h % 5)
    bias = int32(heads, window**2, window**2, limit=30)
    q, k, v = (int8(n, 2 * window, 3 * window, heads * depth) for _ in range(3))
    every_backend("window_attention", q, k, v, heads, window, shift, 1e-3, bias, TABLE)
    y, mean = int16(n, 2 * h, 2 * w, 4 * size), int32(n, 2 * h, 2 * w, size, limit=9000)
    every_backend("residuals", y, mean, multipliers(4 * size, reach=1.0), seed % 4)
    m, layer = multipliers(4 * size, reach=4.0), wide(o, 4 * size)
    every_backend("decoded_linear", y, m, layer, int16(n, 2 * h, 2 * w, o), 1 + seed % 3)
    x = int16(n, 2 * h, 2 * w, heads * depth)
    m, out = multipliers(heads * depth, reach=200), linear(heads * depth, heads * depth, reach=20000.0)
    k, v = int8(n, keys, heads * depth), int8(n, keys, heads * depth)
    query = linear(heads * depth, heads * depth)
    every_backend("token_block", x, k, v, TokenParams(m, query, heads, 1e-3, TABLE, out))
    x = int16(n, 2 * window, 3 * window, heads * depth)
    qkv = linear(3 * heads * depth, heads * depth)
    every_backend("window_block", x, WindowParams(m, qkv, heads, window, shift, 1e-3, bias, TABLE, out))


# The definition itself.


def test_requantise_rounds_half_to_even_and_clamps() -> None:
    x = torch.tensor([-300, -5, -3, -1, 0, 1, 3, 5, 300], dtype=torch.int16)[:, None]
    assert reference.operand8(x, torch.tensor([0.5])).flatten().tolist() == [-127, -2, -2, 0, 0, 0, 2, 2, 127]


def test_leaky_slope_is_applied_before_rounding() -> None:
    p = Linear(torch.ones(1, 1, dtype=torch.int8), torch.zeros(1, dtype=torch.int32), torch.ones(1))
    x = torch.tensor([[-12], [-20], [-4], [7]], dtype=torch.int8)
    assert reference.linear_act(x, p, True).flatten().tolist() == [-2, -2, 0, 7]


def test_window_attention_from_first_principles() -> None:
    size, window, shift, depth = 4, 2, 1, 3
    q, k, v = (int8(1, size, size, depth) for _ in range(3))
    bias = int32(1, 4, 4, limit=20)
    got = reference.window_attention(q, k, v, 1, window, shift, 2.0**-9, bias, TABLE)

    def rolled(t: Tensor, y: int, x: int) -> list[int]:
        return t[0, (y + shift) % size, (x + shift) % size].tolist()

    for y, x in itertools.product(range(size), repeat=2):
        row = y % window * window + x % window
        scores = {}
        for dy, dx in itertools.product(range(window), repeat=2):
            ky, kx = y // window * window + dy, x // window * window + dx
            if (ky + shift >= size, kx + shift >= size) != (y + shift >= size, x + shift >= size):
                continue
            product = sum(a * b for a, b in zip(rolled(q, y, x), rolled(k, ky, kx), strict=True))
            scores[ky, kx] = round(product / 512) + int(bias[0, row, dy * window + dx])
        top = max(scores.values())
        weights = {at: int(TABLE[min(top - s, 255)]) for at, s in scores.items()}
        reciprocal = (1 << 23) // sum(weights.values())
        for c in range(depth):
            total = sum(e * rolled(v, *at)[c] for at, e in weights.items())
            want = (total * reciprocal + (1 << 22)) >> 23
            assert got[0, (y + shift) % size, (x + shift) % size, c] == want


def test_decoded_linear_reads_nothing_that_is_not_decoded() -> None:
    y, m = int16(1, 4, 6, 8), torch.ones(8)
    p, residual = wide(5, 8), int16(1, 4, 6, 5)
    known, mean = torch.zeros_like(y), torch.zeros(1, 4, 6, 2, dtype=torch.int32)
    for step in range(3):
        group = reference.quadtree_gather(y, step)
        reference.reconstruct(torch.zeros_like(group), group.int() + mean, torch.ones(8), step, known)
        want = reference.wide_linear(reference.operand16(known, m), p, residual)
        assert reference.decoded_linear(y, m, p, residual, step + 1).equal(want)


def test_four_steps_visit_every_latent_once() -> None:
    y = torch.arange(4 * 4 * 8, dtype=torch.int32).view(1, 4, 4, 8)
    seen = torch.cat([reference.quadtree_gather(y, step).flatten() for step in range(4)])
    assert sorted(seen.tolist()) == y.flatten().tolist()
    assert reference.quadtree_gather(y, 0)[0, 1, 0].tolist() == y[0, 1, 0, 4:6].tolist()  # parity 2, group 2


def test_residuals_then_reconstruct_is_within_half_a_step_of_the_grid() -> None:
    y, mean = int16(1, 4, 4, 8, limit=3000), int32(1, 4, 4, 2, limit=500)
    y_hat, gain = torch.zeros_like(y), torch.full((8,), 1.0)
    for step in range(4):
        left = reference.residuals(y, mean, gain, step)
        assert (left + mean).equal(reference.quadtree_gather(y, step).int())
        q = torch.round(left / TRELLIS_STEP).to(torch.int16)
        reference.reconstruct(q, mean, gain, step, y_hat)
        assert reference.quadtree_gather(y_hat, step).int().equal(q.int() * TRELLIS_STEP + mean)
    assert 64 < int((y.int() - y_hat.int()).abs().max()) <= TRELLIS_STEP // 2  # units of 1/256 step
