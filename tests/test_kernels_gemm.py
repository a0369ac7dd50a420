"""Triton kernels with a matrix product: the bits of the reference, in the interpreter or on a GPU; tile choices; and
what the kernels compile to."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dca_fast.errors import InputError
from dca_fast.ops import DepthBlockParams, GatedFfnParams, Head, Linear, reference
from tests.kernel_tools import (
    ARCHITECTURES,
    DEVICE,
    EXTREME_M,
    INFINITE_PRODUCTS,
    check_compiled,
    compiled,
    depthwise,
    int8,
    int16,
    int32,
    kernels,
    linear,
    multipliers,
    same,
    wide,
)

gemm = kernels("gemm")
choices = kernels("choices")
autotune = kernels("autotune")

pytestmark = INFINITE_PRODUCTS
ENTRIES: dict[str, dict[str, list[dict[str, int]]]] = json.loads(choices.CHOICES.read_text("utf-8"))
DEFAULTS = ENTRIES["default"]
EVERY_ENTRY = [(op, entry) for ops in ENTRIES.values() for op, entries in ops.items() for entry in entries]


def agree(name: str, *args: Any) -> None:
    same(getattr(gemm, name), getattr(reference, name), *args)


def head(c: int, size: int) -> Head:
    scale = 5000 * math.sqrt(c)
    w, b, offset = int8(4, 2 * size, c), int32(4, 2 * size, limit=5000), int32(4, size, limit=2000)
    return Head(w, b, multipliers(4, size, reach=scale / 3000), multipliers(4, size, reach=scale / 500), offset)


def ffn(c: int, hidden: int) -> GatedFfnParams:
    m_in, gate, project = multipliers(c, reach=200), linear(2 * hidden, c), linear(c, hidden, reach=20000.0)
    return GatedFfnParams(m_in, gate, -0.013, project)


def depth(c: int, hidden: int) -> DepthBlockParams:
    m_in, expand, project = multipliers(c, reach=200), linear(hidden, c), linear(c, hidden, reach=20000.0)
    return DepthBlockParams(m_in, expand, depthwise(hidden), project)


SHAPES = [(0, 3, 4), (1, 1, 1), (5, 33, 7), (37, 45, 67), (70, 160, 33)]


@pytest.mark.parametrize(("rows", "k", "o"), SHAPES)
def test_linear(rows: int, k: int, o: int) -> None:
    x, p, feature = int8(rows, k), linear(o, k), linear(o, k, reach=20000.0)
    agree("linear_act", x, p, True)
    agree("linear_act", x.view(1, rows, k), p, False)
    agree("linear_add", x, feature)
    agree("linear_add", x, feature, int16(rows, o))
    agree("linear_gate", x, linear(2 * o, k), 0.013)


@pytest.mark.parametrize(("rows", "k", "o"), SHAPES)
def test_wide(rows: int, k: int, o: int) -> None:
    x, p = int16(rows, k), wide(o, k)
    agree("wide_linear", x, p)
    agree("wide_linear", x, p, int16(rows, o))
    agree("wide_pixels", x, Linear(p.w, p.b, p.m / 128))


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize(("n", "h", "w", "size", "o"), [(1, 2, 2, 1, 1), (2, 4, 6, 7, 33), (1, 2, 14, 40, 5)])
def test_decoded_linear(n: int, h: int, w: int, size: int, o: int, step: int) -> None:
    y, p = int16(n, h, w, 4 * size), wide(o, 4 * size)
    agree("decoded_linear", y, multipliers(4 * size, reach=4.0), p, int16(n, h, w, o), step)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize(("n", "h", "w", "c", "size"), [(1, 2, 2, 1, 1), (2, 6, 10, 33, 7), (1, 2, 6, 20, 40)])
def test_head_params(n: int, h: int, w: int, c: int, size: int, step: int) -> None:
    t, p = int8(n, h, w, c), head(c, size)
    for skip, valid in ((0, (h, w)), (40, (h - 1, w)), (128, (h, w)), (0, (0, w - 2))):
        agree("head_params", t, p, step, skip, valid)


MAPS = [(0, 2, 2, 4), (1, 1, 1, 1), (2, 1, 5, 3), (1, 7, 1, 20), (2, 5, 13, 33)]


@pytest.mark.parametrize("shape", MAPS)
def test_blocks(shape: tuple[int, ...]) -> None:
    c, hidden = shape[-1], shape[-1] + 5
    x = int16(*shape)
    agree("depthwise3x3", int8(*shape), depthwise(c))
    agree("depth_block", x, depth(c, hidden))
    agree("gated_ffn", x, ffn(c, hidden))
    agree("block", x, depth(c, hidden), ffn(c, hidden))


def call(op: str) -> tuple[str, tuple[Any, ...]]:
    """An operation that uses the tile choice `op`, with more rows and channels than most tiles."""
    x = int16(1, 6, 22, 140)
    calls: dict[str, tuple[str, tuple[Any, ...]]] = {
        "linear": ("linear_act", (int8(132, 70), linear(131, 70), True)),
        "gate": ("linear_gate", (int8(132, 70), linear(134, 70), 0.02)),
        "wide": ("wide_linear", (int16(132, 70), wide(67, 70), int16(132, 67))),
        "decoded": ("decoded_linear", (x, multipliers(140, reach=4.0), wide(67, 140), int16(1, 6, 22, 67), 3)),
        "head": ("head_params", (int8(1, 6, 22, 70), head(70, 35), 2, 30, (6, 21))),
        "ffn": ("gated_ffn", (x, ffn(140, 70))),
        "depth": ("depth_block", (x, depth(140, 40))),
        "depthwise": ("depthwise3x3", (int8(1, 6, 22, 70), depthwise(70))),
    }
    return calls[op]


@pytest.mark.parametrize(("op", "entry"), EVERY_ENTRY)
def test_every_choice(op: str, entry: dict[str, int]) -> None:
    name, args = call(op)
    with choices.forced(op, {key: value for key, value in entry.items() if key not in choices.LIMITS}):
        agree(name, *args)


# Extremes.

WIDE_EXTREMES = list(itertools.product((-32767, 32767), (-32768, -32640, 32639, 32640, 32767)))


@pytest.mark.parametrize(("sign_x", "sign_w"), list(itertools.product((-127, 127), repeat=2)))
def test_extreme_sums_and_multipliers(sign_x: int, sign_w: int) -> None:
    k, o = 1000, len(EXTREME_M)
    x, w = torch.full((3, k), sign_x, dtype=torch.int8), torch.full((o, k), sign_w, dtype=torch.int8)
    p = Linear(w, torch.full((o,), (1 << 31) - 1 - 127 * 127 * k, dtype=torch.int32), torch.tensor(EXTREME_M))
    agree("linear_act", x, p, True)
    agree("linear_add", x, p, torch.full((3, o), sign_x * 258, dtype=torch.int16))


@pytest.mark.parametrize(("value", "weight"), WIDE_EXTREMES)
def test_extreme_wide_sums(value: int, weight: int) -> None:
    o = len(EXTREME_M)
    x = torch.full((3, 2), value, dtype=torch.int16)
    w = torch.tensor([[weight, 2]] * o, dtype=torch.int16)  # 32767 * (32767 + 2) + bias is 2^31 - 1
    b = torch.full((o,), (1 << 31) - 1 - 32767 * (abs(weight) + 2), dtype=torch.int32)
    p = Linear(w, b, torch.tensor(EXTREME_M))
    agree("wide_linear", x, p)
    agree("wide_linear", x, p, torch.full((3, o), value, dtype=torch.int16))
    agree("wide_pixels", x, p)
    exact = Linear(w, b, torch.full((o,), 2.0**-16))
    agree("wide_linear", x, exact)


def test_large_sums_round_to_float_before_the_product() -> None:
    acc = torch.arange((1 << 30) + 1, (1 << 30) + 400, 3, dtype=torch.int32)
    acc = torch.cat([acc, -acc])
    p = Linear(torch.zeros(len(acc), 1, dtype=torch.int8), acc, torch.full((len(acc),), 2.0**-16))
    agree("linear_add", int8(2, 1), p, int16(2, len(acc)))


def test_block_of_extremes_saturates() -> None:
    for m, sign in itertools.product((3e38, -1.0, 0.5), (-1, 1)):
        x = torch.full((1, 3, 4, 8), sign * 32767, dtype=torch.int16)
        scale, eight = torch.full((8,), m), torch.full((8, 8), 127, dtype=torch.int8)
        layer = Linear(eight, torch.full((8,), (1 << 31) - 1 - 127 * 127 * 8, dtype=torch.int32), scale)
        gate = Linear(eight.repeat(2, 1), layer.b.repeat(2), scale.repeat(2))
        agree("gated_ffn", x, GatedFfnParams(scale, gate, 3e38, layer))
        agree("depth_block", x, DepthBlockParams(scale, layer, depthwise(8), layer))


@pytest.mark.parametrize("largest", [32639, 32767])
def test_digits_hold_every_weight(largest: int) -> None:
    w = torch.arange(-32768, largest + 1, dtype=torch.int16).view(1, -1)
    packed = gemm._pack_wide(Linear(w, torch.zeros(1, dtype=torch.int32), torch.ones(1)), 1)
    assert packed.biased is (largest > 32639)
    assert torch.equal(256 * packed.high.int() + packed.low.int() + 128 * packed.biased, w.int())


def test_weights_are_packed_once() -> None:
    p, x = wide(5, 8).to(DEVICE), int16(2, 2, 4, 8).to(DEVICE)
    gemm.wide_linear(x, p)
    before = dict(p.cache)
    gemm.wide_linear(x, p)
    assert list(p.cache) == ["triton.1"]
    assert p.cache["triton.1"] is before["triton.1"]
    layer, operand = depthwise(40).to(DEVICE), int8(1, 3, 4, 40).to(DEVICE)
    gemm.depthwise3x3(operand, layer)
    ((name, packed),) = layer.cache.items()
    gemm.depthwise3x3(operand, layer)
    assert layer.cache[name] is packed


def test_wrong_tensors_are_refused() -> None:
    x, feature, p, layer = int8(2, 4, 8), int16(1, 4, 4, 8), linear(5, 8), wide(5, 8)
    bad: list[tuple[str, tuple[Any, ...]]] = [
        ("linear_act", (int16(2, 4, 8), p, True)),
        ("linear_act", (int8(2, 4, 7), p, True)),
        ("linear_act", (int8(8, 2, 4).permute(1, 2, 0), p, True)),
        ("linear_add", (x, p, int16(2, 5, 5))),
        ("linear_gate", (int8(2, 4, 9), linear(6, 8), 1.0)),
        ("wide_linear", (x, layer)),
        ("wide_linear", (feature, layer, int16(1, 4, 4, 4))),
        ("wide_pixels", (int16(3, 7), layer)),
        ("decoded_linear", (int16(1, 3, 4, 8), torch.ones(8), layer, int16(1, 3, 4, 5), 1)),
        ("head_params", (int8(1, 4, 3, 8), head(8, 2), 0, 0, (4, 3))),
        ("gated_ffn", (int16(4, 9), ffn(8, 3))),
        ("depth_block", (int16(1, 4, 4, 9), depth(8, 3))),
        ("depthwise3x3", (int16(1, 4, 4, 8), depthwise(8))),
    ]
    for name, args in bad:
        with pytest.raises(InputError, match="expected a contiguous"):
            getattr(gemm, name)(*args)


# Tile choices.


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of choices with made-up entries, in use."""
    path = tmp_path / "choices.json"
    default = {"ffn": [{"rows": 100, "width": 64, "BM": 16}, {"width": 64, "BM": 32}, {"BM": 64}]}
    path.write_text(json.dumps({"default": default}), "utf-8")
    monkeypatch.setattr(choices, "CHOICES", path)
    for cached in (choices._choices, choices._look_up):
        cached.cache_clear()
    yield path
    monkeypatch.undo()
    for cached in (choices._choices, choices._look_up):
        cached.cache_clear()


def test_the_first_entry_that_fits_is_chosen(table: Path) -> None:
    device = torch.device("cpu")
    assert choices.choose("ffn", 100, 64, 32, device) == {"BM": 16}
    assert choices.choose("ffn", 101, 64, 32, device) == {"BM": 32}
    assert choices.choose("ffn", 1, 32, 65, device) == {"BM": 64}
    with choices.forced("ffn", {"BM": 1}):
        with choices.forced("ffn", {"BM": 2}):
            assert choices.choose("ffn", 1, 1, 1, device) == {"BM": 2}
        assert choices.choose("ffn", 1, 1, 1, device) == {"BM": 1}
    assert choices.choose("ffn", 1, 1, 1, device) == {"BM": 16}


def test_measured_entries_come_before_defaults(table: Path) -> None:
    autotune.save(table, "cpu", "ffn", [{"k": 64, "n": 32, "rows": 50, "BM": 128}])
    choices._choices.cache_clear()
    device = torch.device("cpu")
    assert choices.choose("ffn", 50, 64, 32, device) == {"BM": 128}
    assert choices.choose("ffn", 51, 64, 32, device) == {"BM": 16}
    assert choices.choose("ffn", 50, 32, 64, device) == {"BM": 16}


def test_the_file_of_choices_is_as_autotune_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text(choices.CHOICES.read_text("utf-8"), "utf-8")
    autotune.save(path, "default", "ffn", DEFAULTS["ffn"])
    assert path.read_text("utf-8") == choices.CHOICES.read_text("utf-8")
    assert all(isinstance(value, int) for _, entry in EVERY_ENTRY for value in entry.values())


def test_every_width_has_a_default() -> None:
    assert all(ops.keys() <= DEFAULTS.keys() for ops in ENTRIES.values())
    for op in DEFAULTS:
        assert choices.choose(op, 1 << 40, 4096, 4096, torch.device("cpu"))


def test_climbing_finds_the_best_of_a_valley() -> None:
    asked = []

    def cost(entry: dict[str, int]) -> float:
        asked.append(entry)
        return abs(math.log2(entry["BM"]) - 6) + abs(entry["num_stages"] - 3)

    assert autotune.climb(cost, {"BM": 16, "num_stages": 1}) == {"BM": 64, "num_stages": 3}
    assert len(asked) == len({tuple(entry.items()) for entry in asked})


@pytest.mark.parametrize("op", autotune.SHAPES)
def test_cases_of_autotune_reach_many_values(op: str) -> None:
    run = autotune.case(op, 32, 16, 2, 4, torch.device(DEVICE))
    for value in run():
        assert len(value.unique()) > 8


def test_autotune_says_that_it_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(autotune, "is_available", lambda: (False, "no device in this test"))
    with pytest.raises(SystemExit) as caught:
        autotune.main([])
    assert caught.value.code == 2
    assert "no device in this test" in capsys.readouterr().err


@pytest.mark.gpu
def test_autotune_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choices.json"
    path.write_text(choices.CHOICES.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(autotune, "SHAPES", {"head": [(32, 32)]})
    monkeypatch.setattr(autotune, "AXES", {"BM": (16, 32), "num_warps": (2, 4)})
    monkeypatch.setattr(autotune, "MAPS", [((8, 16), None)])
    autotune.main(["--op", "head", "--out", str(path)])
    name = choices.architecture(torch.device("cuda", torch.cuda.current_device()))
    (entry,) = json.loads(path.read_text("utf-8"))[name]["head"]
    assert (entry["k"], entry["n"]) == (32, 32)


# Compilation, with the shapes of dca-s. CPU tensors: the process compiles and computes nothing.


def _map(h: int, w: int, c: int, dtype: torch.dtype = torch.int16) -> torch.Tensor:
    return torch.empty(1, h, w, c, dtype=dtype)


def blocks_of_4k() -> None:
    for h, w, c, hidden in ((270, 480, 128, 128), (135, 240, 160, 160), (135, 240, 384, 192)):
        gemm.gated_ffn(_map(h, w, c), ffn(c, hidden))
        gemm.depth_block(_map(h, w, c), depth(c, hidden))


def blocks_of_768x512() -> None:
    for c, hidden in ((128, 128), (160, 160), (384, 192)):
        gemm.gated_ffn(_map(32, 48, c), ffn(c, hidden))
        gemm.depth_block(_map(32, 48, c), depth(c, hidden))


def layers_of_4k() -> None:
    h, w = 270, 480
    gemm.linear_add(_map(h, w, 160, torch.int8), linear(160, 160), _map(h, w, 160))
    gemm.linear_gate(_map(h, w, 160, torch.int8), linear(320, 160), 0.1)
    gemm.wide_linear(_map(h, w, 384), wide(512, 384))
    gemm.wide_pixels(_map(h, w, 128), wide(192, 128))
    gemm.decoded_linear(_map(h, w, 384), multipliers(384, reach=4.0), wide(160, 384), _map(h, w, 160), 3)
    gemm.head_params(_map(h, w, 160, torch.int8), head(160, 96), 1, 8, (h, w))


def depthwise_of_4k() -> None:
    gemm.depthwise3x3(_map(270, 480, 160, torch.int8), depthwise(160))


LAUNCHES = [
    *(("blocks_of_4k", architecture) for architecture in ARCHITECTURES),
    *(("layers_of_4k", architecture) for architecture in ARCHITECTURES),
    ("blocks_of_768x512", 90),
    ("depthwise_of_4k", 90),
]


@pytest.mark.slow
@pytest.mark.parametrize(("function", "architecture"), LAUNCHES)
def test_kernels_compile(function: str, architecture: int) -> None:
    for record in compiled(__name__, function, architecture):
        check_compiled(record, architecture, tensor_core=True)
