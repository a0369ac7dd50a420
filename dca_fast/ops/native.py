"""The operations in C++ (`dca_fast._cpu`), on NumPy arrays; same names, signatures and bits as the reference.

The extension checks every type, shape and layout, and raises `InputError` instead of copying or guessing. Weights are
packed for the processor the first time a layer is used and kept in its `cache`, so a layer must not be changed in
place afterwards. What a picture needs once or twice is NumPy here, without its BLAS: nothing but the extension has
threads, so that a forked process can go on with all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast import _cpu
from dca_fast.config import AQ_REACH, LATENT_ONE, SKIP_ROW, STRIDE, Part
from dca_fast.errors import InputError
from dca_fast.ops import (
    Array,
    DepthBlockParams,
    Depthwise,
    GatedFfnParams,
    Head,
    Linear,
    Ops,
    Params,
    TokenParams,
    WindowParams,
    collect,
)
from dca_fast.ops.limits import LIMIT16

_cpu.set_error_type(InputError)

NAME = "native"


class NumpyArrays:
    """`Arrays` of NumPy."""

    def __init__(self, device: object = "cpu") -> None:
        """There is no other device."""

    def array(self, values: npt.NDArray[Any]) -> Array:
        return values

    def numpy(self, x: Array) -> npt.NDArray[Any]:
        return x

    def zeros(self, *shape: int) -> Array:
        return np.zeros(shape, np.int16)

    def contiguous(self, x: Array) -> Array:
        return np.ascontiguousarray(x)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(x, shape).copy()

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return np.concatenate(arrays, axis)

    def gather(self, strips: Iterable[Array], height: int) -> Array:
        out, at = None, 0
        for strip in strips:
            if out is None:
                out = np.empty((strip.shape[0], height, *strip.shape[2:]), strip.dtype)
            out[:, at : at + strip.shape[1]] = strip
            at += strip.shape[1]
        assert out is not None
        assert at == height
        return out

    def settle(self) -> None:
        """All is done when a call returns."""


arrays = NumpyArrays


def isas() -> list[str]:
    """Returns the instruction sets this machine can run, slowest first.

    Of "scalar", "neon", "avx2", "avx512", "avx512-tall" and "amx".
    """
    return list(_cpu.isas())


def isa() -> str:
    """Returns the instruction set in use."""
    return str(_cpu.isa())


def set_isa(name: str) -> None:
    """Forces an instruction set, or "auto" for the fastest. Raises InputError where it cannot run or is refused."""
    _cpu.set_isa(name)


def threads() -> int:
    """Returns how many threads one call may use, the caller included."""
    return int(_cpu.threads())


def set_threads(count: int) -> None:
    """Sets how many threads one call may use; clamped to 1..256."""
    _cpu.set_threads(count)


def _packed(p: Linear | Depthwise | Head) -> Any:
    handle = p.cache.get(NAME)
    if handle is None:
        pack = getattr(_cpu, type(p).__name__)
        handle = p.cache[NAME] = pack(*p.tensors())
    return handle


def _arguments(p: Params) -> tuple[Any, ...]:
    """The fields as the extension takes them."""
    arguments = p.cache.get(NAME)
    if arguments is None:
        arguments = p.cache[NAME] = tuple(_packed(v) if isinstance(v, Linear | Depthwise) else v for v in p.values())
    return arguments


def operand8(x: Array, m: Array) -> Array:
    return _cpu.operand8(x, m)


def operand16(x: Array, m: Array) -> Array:
    return _cpu.operand16(x, m)


def linear_act(x: Array, p: Linear, leaky: bool) -> Array:
    return _cpu.linear_act(x, _packed(p), leaky)


def linear_gate(x: Array, p: Linear, g: float) -> Array:
    return _cpu.linear_gate(x, _packed(p), g)


def linear_add(x: Array, p: Linear, residual: Array | None = None) -> Array:
    return _cpu.linear_add(x, _packed(p), residual)


def add(x: Array, y: Array) -> Array:
    return _cpu.add(x, y)


def wide_linear(x: Array, p: Linear, residual: Array | None = None) -> Array:
    return _cpu.wide_linear(x, _packed(p), residual)


def decoded_linear(y_hat: Array, m: Array, p: Linear, residual: Array, step: int) -> Array:
    name = f"{NAME} {step}"
    handle = p.cache.get(name)
    if handle is None:
        handle = p.cache[name] = _cpu.Decoded(*p.tensors(), step)
    return _cpu.decoded_linear(y_hat, m, handle, residual)


def wide_pixels(x: Array, p: Linear) -> Array:
    return _cpu.wide_pixels(x, _packed(p))


def act_slope(e: Array, h: Array, leaky: bool) -> Array:
    return _cpu.act_slope(e, h, leaky)


def gate_slope(e: Array, uv: Array, g: float, m: Array) -> Array:
    return _cpu.gate_slope(e, uv, g, m)


def add_slope(slope: Array, d: Array, h: Array) -> Array:
    return _cpu.add_slope(slope, d, h)


def depthwise3x3(x: Array, p: Depthwise) -> Array:
    return _cpu.depthwise3x3(x, _packed(p))


def window_attention(
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    window: int,
    shift: int,
    m: float,
    bias: Array,
    table: Array,
) -> Array:
    return _cpu.window_attention(q, k, v, heads, window, shift, m, bias, table)


def token_attention(q: Array, k: Array, v: Array, heads: int, m: float, table: Array) -> Array:
    return _cpu.token_attention(q, k, v, heads, m, table)


def head_params(t: Array, p: Head, step: int, skip: int, valid: tuple[int, int]) -> tuple[Array, Array]:
    mean, row = _cpu.head_params(t, _packed(p), step, skip, *valid)
    return mean, row


def quadtree_gather(x: Array, step: int) -> Array:
    return _cpu.quadtree_gather(x, step)


def neighbour_mean(z: Array, m: Array, part: Part) -> Array:
    return _cpu.neighbour_mean(z, m, part.top, part.left, part.stride)


def hyper_symbols(z: Array, mean: Array | None, rows: Array) -> Array:
    values = z.astype(np.int32) + LATENT_ONE // 2
    if mean is not None:
        values -= mean
    values //= LATENT_ONE
    values *= rows != SKIP_ROW
    return values.astype(np.int16)


def hyper_values(symbols: Array, mean: Array | None) -> Array:
    values = symbols.astype(np.int32) * LATENT_ONE
    if mean is not None:
        values += mean
    return values.clip(-LIMIT16, LIMIT16).astype(np.int16)


def coarseness(row: Array, offset: Array, skip: int, strength: int) -> Array:
    return _cpu.coarseness(row, offset, skip, strength)


def coarser_rows(row: Array, coarse: Array, skip: int) -> Array:
    return _cpu.coarser_rows(row, coarse, skip)


def coarseness_factors(coarse: Array, factors: Array) -> Array:
    return np.take(factors, coarse.astype(np.intp) + AQ_REACH, axis=1)


def residuals(y: Array, mean: Array, gain: Array, step: int, finer: Array | None = None) -> Array:
    return _cpu.residuals(y, mean, gain, step, finer)


def reconstruct(q: Array, mean: Array, inv: Array, step: int, y_hat: Array, coarser: Array | None = None) -> None:
    _cpu.reconstruct(q, mean, inv, step, y_hat, coarser)


def pad_edges(image: Array, height: int, width: int, out: Array | None = None) -> Array:
    if image.shape[:2] == (height, width) and out is None:
        return np.ascontiguousarray(image)[None]
    padded = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")[None]
    if out is None:
        return padded
    out[...] = padded
    return out


def patches_from_image(image: Array, size: int = 8) -> Array:
    return _cpu.patches_from_image(image, size)


def image_from_patches(patches: Array, size: int = 8) -> Array:
    return _cpu.image_from_patches(patches, size)


def restore(picture: Array, w: Array) -> Array:
    return _cpu.restore(picture, w)


def restore_sums(picture: Array, image: Array, stride: int) -> Array:
    return _cpu.restore_sums(picture, image, stride)


def squared_error(a: Array, b: Array, factors: Array | None = None) -> int:
    total, starts = 0, np.arange(0, a.shape[1] * a.shape[2], STRIDE * a.shape[2])
    for top in range(0, len(a), STRIDE):  # strips stay in the cache
        difference: Any = a[top : top + STRIDE] - b[top : top + STRIDE].astype(np.int16)
        columns: Any = np.square(difference, dtype=np.int32).sum(0, dtype=np.int32)
        if factors is None:
            total += int(columns.sum(dtype=np.int64))
        else:
            sums = np.add.reduceat(columns.ravel(), starts, dtype=np.int64)
            total += int((sums * factors[top // STRIDE, : len(starts)]).sum())
    return total


def luma(picture: Array) -> Array:
    out = np.empty(picture.shape[:2], np.uint8)
    for top in range(0, len(picture), STRIDE):  # strips stay in the cache
        red, green, blue = (picture[top : top + STRIDE, :, i].astype(np.int32) for i in range(3))
        out[top : top + STRIDE] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return out


def space_to_depth2(x: Array) -> Array:
    return _cpu.space_to_depth2(x)


def depth_to_space2(x: Array) -> Array:
    return _cpu.depth_to_space2(x)


def depth_block(x: Array, p: DepthBlockParams) -> Array:
    return _cpu.depth_block(x, *_arguments(p))


def gated_ffn(x: Array, p: GatedFfnParams) -> Array:
    return _cpu.gated_ffn(x, *_arguments(p))


def block(x: Array, depth: DepthBlockParams, ffn: GatedFfnParams) -> Array:
    return _cpu.block(x, *_arguments(depth), *_arguments(ffn))


def window_block(x: Array, p: WindowParams) -> Array:
    return _cpu.window_block(x, *_arguments(p))


def token_block(x: Array, k: Array, v: Array, p: TokenParams) -> Array:
    return _cpu.token_block(x, k, v, *_arguments(p))


OPS: Ops = collect(NAME, sys.modules[__name__])
