"""The operations in C++ (`dca_fast._cpu`), on CPU tensors; same names, signatures and bits as the reference.

The extension sees NumPy views of the tensors, checks every type, shape and layout, and raises `InputError`
instead of copying or guessing. Weights are packed for the processor the first time a layer is used and kept
in its `cache`, so a layer must not be changed in place afterwards.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from dca_fast import _cpu
from dca_fast.config import Part
from dca_fast.errors import InputError
from dca_fast.ops import (
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

_cpu.set_error_type(InputError)

NAME = "native"
_tensor = torch.from_numpy


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
        make = getattr(_cpu, type(p).__name__)
        handle = p.cache[NAME] = make(*(t.numpy() for t in p.tensors()))
    return handle


def _arguments(p: Params) -> tuple[Any, ...]:
    """The fields as the extension takes them."""
    found = p.cache.get(NAME)
    if found is None:
        found = p.cache[NAME] = tuple(
            v.numpy() if isinstance(v, Tensor) else _packed(v) if isinstance(v, Linear | Depthwise) else v
            for v in p.values()
        )
    return found


def operand8(x: Tensor, m: Tensor) -> Tensor:
    return _tensor(_cpu.operand8(x.numpy(), m.numpy()))


def operand16(x: Tensor, m: Tensor) -> Tensor:
    return _tensor(_cpu.operand16(x.numpy(), m.numpy()))


def linear_act(x: Tensor, p: Linear, leaky: bool) -> Tensor:
    return _tensor(_cpu.linear_act(x.numpy(), _packed(p), leaky))


def linear_gate(x: Tensor, p: Linear, g: float) -> Tensor:
    return _tensor(_cpu.linear_gate(x.numpy(), _packed(p), g))


def linear_add(x: Tensor, p: Linear, residual: Tensor | None = None) -> Tensor:
    return _tensor(_cpu.linear_add(x.numpy(), _packed(p), None if residual is None else residual.numpy()))


def add(x: Tensor, y: Tensor) -> Tensor:
    return _tensor(_cpu.add(x.numpy(), y.numpy()))


def wide_linear(x: Tensor, p: Linear, residual: Tensor | None = None) -> Tensor:
    return _tensor(_cpu.wide_linear(x.numpy(), _packed(p), None if residual is None else residual.numpy()))


def decoded_linear(y_hat: Tensor, m: Tensor, p: Linear, residual: Tensor, step: int) -> Tensor:
    name = f"{NAME} {step}"
    handle = p.cache.get(name)
    if handle is None:
        handle = p.cache[name] = _cpu.Decoded(*(t.numpy() for t in p.tensors()), step)
    return _tensor(_cpu.decoded_linear(y_hat.numpy(), m.numpy(), handle, residual.numpy()))


def wide_pixels(x: Tensor, p: Linear) -> Tensor:
    return _tensor(_cpu.wide_pixels(x.numpy(), _packed(p)))


def act_slope(e: Tensor, h: Tensor, leaky: bool) -> Tensor:
    return _tensor(_cpu.act_slope(e.numpy(), h.numpy(), leaky))


def gate_slope(e: Tensor, uv: Tensor, g: float, m: Tensor) -> Tensor:
    return _tensor(_cpu.gate_slope(e.numpy(), uv.numpy(), g, m.numpy()))


def add_slope(slope: Tensor, d: Tensor, h: Tensor) -> Tensor:
    return _tensor(_cpu.add_slope(slope.numpy(), d.numpy(), h.numpy()))


def depthwise3x3(x: Tensor, p: Depthwise) -> Tensor:
    return _tensor(_cpu.depthwise3x3(x.numpy(), _packed(p)))


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
    out = _cpu.window_attention(q.numpy(), k.numpy(), v.numpy(), heads, window, shift, m, bias.numpy(), table.numpy())
    return _tensor(out)


def token_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, m: float, table: Tensor) -> Tensor:
    return _tensor(_cpu.token_attention(q.numpy(), k.numpy(), v.numpy(), heads, m, table.numpy()))


def head_params(t: Tensor, p: Head, step: int, skip: int, valid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    mean, row = _cpu.head_params(t.numpy(), _packed(p), step, skip, *valid)
    return _tensor(mean), _tensor(row)


def quadtree_gather(x: Tensor, step: int) -> Tensor:
    return _tensor(_cpu.quadtree_gather(x.numpy(), step))


def neighbour_mean(z: Tensor, m: Tensor, part: Part) -> Tensor:
    return _tensor(_cpu.neighbour_mean(z.numpy(), m.numpy(), part.top, part.left, part.step))


def coarseness(row: Tensor, offset: Tensor, skip: int, strength: int) -> Tensor:
    return _tensor(_cpu.coarseness(row.numpy(), offset.numpy(), skip, strength))


def coarser_rows(row: Tensor, coarse: Tensor, skip: int) -> Tensor:
    return _tensor(_cpu.coarser_rows(row.numpy(), coarse.numpy(), skip))


def residuals(y: Tensor, mean: Tensor, gain: Tensor, step: int, finer: Tensor | None = None) -> Tensor:
    factors = None if finer is None else finer.numpy()
    return _tensor(_cpu.residuals(y.numpy(), mean.numpy(), gain.numpy(), step, factors))


def reconstruct(q: Tensor, mean: Tensor, inv: Tensor, step: int, y_hat: Tensor, coarser: Tensor | None = None) -> None:
    factors = None if coarser is None else coarser.numpy()
    _cpu.reconstruct(q.numpy(), mean.numpy(), inv.numpy(), step, y_hat.numpy(), factors)


def patches_from_image(image: Tensor, size: int = 8) -> Tensor:
    return _tensor(_cpu.patches_from_image(image.numpy(), size))


def image_from_patches(patches: Tensor, size: int = 8) -> Tensor:
    return _tensor(_cpu.image_from_patches(patches.numpy(), size))


def restore(picture: Tensor, w: Tensor) -> Tensor:
    return _tensor(_cpu.restore(picture.numpy(), w.numpy()))


def restore_sums(picture: Tensor, image: Tensor, stride: int) -> Tensor:
    return _tensor(_cpu.restore_sums(picture.numpy(), image.numpy(), stride))


def space_to_depth2(x: Tensor) -> Tensor:
    return _tensor(_cpu.space_to_depth2(x.numpy()))


def depth_to_space2(x: Tensor) -> Tensor:
    return _tensor(_cpu.depth_to_space2(x.numpy()))


def depth_block(x: Tensor, p: DepthBlockParams) -> Tensor:
    return _tensor(_cpu.depth_block(x.numpy(), *_arguments(p)))


def gated_ffn(x: Tensor, p: GatedFfnParams) -> Tensor:
    return _tensor(_cpu.gated_ffn(x.numpy(), *_arguments(p)))


def block(x: Tensor, depth: DepthBlockParams, ffn: GatedFfnParams) -> Tensor:
    return _tensor(_cpu.block(x.numpy(), *_arguments(depth), *_arguments(ffn)))


def window_block(x: Tensor, p: WindowParams) -> Tensor:
    return _tensor(_cpu.window_block(x.numpy(), *_arguments(p)))


def token_block(x: Tensor, k: Tensor, v: Tensor, p: TokenParams) -> Tensor:
    return _tensor(_cpu.token_block(x.numpy(), k.numpy(), v.numpy(), *_arguments(p)))


OPS: Ops = collect(NAME, sys.modules[__name__])
