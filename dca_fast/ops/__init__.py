"""The integer operations of the codec: one record of callables per backend, and the weights they take.

Every operation is an exact integer function: `dca_fast.ops.reference` defines it, every other backend
implements the same name and signature and returns the same bits. Arrays are those of the backend: NumPy's with
"native", PyTorch's with "reference" and "cuda". They are contiguous and channels-last ([N, H, W, C]); "..." means any
leading shape. 8-bit operands lie in +-127, 16-bit ones in +-32767, multipliers are float32 that keep every result below
2^31. One rule rounds: requantise(acc, m) = RNE(fl32(fl32(acc) * m)), and clamps (`docs/spec/numerics.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy.typing as npt

from dca_fast.config import Part

__all__ = [
    "Array",
    "Arrays",
    "DepthBlockParams",
    "Depthwise",
    "GatedFfnParams",
    "Head",
    "Linear",
    "Ops",
    "Params",
    "TokenParams",
    "WindowParams",
    "collect",
]

Array: TypeAlias = Any  # of a backend: `numpy.ndarray` or `torch.Tensor`

L = TypeVar("L", bound="_Layer")


class Arrays(Protocol):
    """What is done with a backend's arrays beside its operations, on one device."""

    def array(self, values: npt.NDArray[Any]) -> Array:
        """Host memory as an array of the backend; the memory may be shared."""

    def numpy(self, x: Array) -> npt.NDArray[Any]:
        """An array in host memory; waits for the device. The memory may be shared."""

    def zeros(self, *shape: int) -> Array:
        """int16 zeros."""

    def contiguous(self, x: Array) -> Array:
        """`x`, copied if its elements do not follow one another."""

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        """A contiguous copy of `x` in a shape that it broadcasts to."""

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        """Arrays one after the other along an axis."""

    def gather(self, strips: Iterable[Array], height: int) -> Array:
        """Arrays [N, rows, ...] one after the other, `height` rows in all; each is let go when the next one is made."""

    def settle(self) -> None:
        """Wait for what was launched on a device, before its results go into a cache: other threads, which find them
        there, have other streams."""


@dataclass(frozen=True, eq=False)
class Params:
    """What an operation takes beside its input; in `cache` a backend keeps what it derives from it, by its own name."""

    cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def values(self) -> tuple[Any, ...]:
        """Returns the fields in their order, without the cache."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name != "cache")


class _Layer(Params):
    """The arrays of one layer."""

    def tensors(self) -> tuple[Array, ...]:
        """Returns them in field order."""
        return self.values()

    def map(self: L, function: Callable[[Array], Array]) -> L:
        """Returns the same layer of what the function makes of its arrays, with an empty cache."""
        return type(self)(*map(function, self.tensors()))

    def to(self: L, device: Any) -> L:
        """Returns the same layer of tensors on another device."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True, eq=False)
class Linear(_Layer):
    """A 1x1 layer: acc = w . x + b, then requantise with m.

    Args:
        w: [O, K] int8 (or int16 for the `wide_*` operations); max|x| * sum|w| + |b| < 2^31 for every output channel.
        b: [O] int32.
        m: [O] float32.
    """

    w: Array
    b: Array
    m: Array


@dataclass(frozen=True, eq=False)
class Depthwise(_Layer):
    """A 3x3 depthwise layer: w [3, 3, C] int8 (dy, dx, channel), b [C] int32, m [C] float32."""

    w: Array
    b: Array
    m: Array


@dataclass(frozen=True, eq=False)
class Head(_Layer):
    """The parameter head: one linear layer for each channel group, G means then G table rows.

    Args:
        w: [4, 2G, C] int8.
        b: [4, 2G] int32.
        m_mean: [4, G] float32, to 1/256 quantiser steps.
        m_scale: [4, G] float32, to 1/16 table rows.
        offset: [4, G] int32, 1/16 table rows, |offset| <= 2^20.
    """

    w: Array
    b: Array
    m_mean: Array
    m_scale: Array
    offset: Array


@dataclass(frozen=True, eq=False)
class DepthBlockParams(Params):
    """1x1 C -> E, leaky, depthwise 3x3, 1x1 E -> C; m_in [C] float32 turns the feature into the operand."""

    m_in: Array
    expand: Linear
    depthwise: Depthwise
    project: Linear


@dataclass(frozen=True, eq=False)
class GatedFfnParams(Params):
    """1x1 C -> 2H, product of the halves times g, 1x1 H -> C; m_in [C] float32 as above."""

    m_in: Array
    gate: Linear
    g: float
    project: Linear


@dataclass(frozen=True, eq=False)
class WindowParams(Params):
    """1x1 C -> 3C (q, k, v), attention inside windows, 1x1 C -> C; the other fields as in `window_attention`."""

    m_in: Array
    qkv: Linear
    heads: int
    window: int
    shift: int
    m: float
    bias: Array
    table: Array
    out: Linear


@dataclass(frozen=True, eq=False)
class TokenParams(Params):
    """1x1 C -> C (q), attention over tokens, 1x1 C -> C; the other fields as in `token_attention`."""

    m_in: Array
    query: Linear
    heads: int
    m: float
    table: Array
    out: Linear


@dataclass(frozen=True)
class Ops:
    """All operations of one backend. Exact: the same bits from every backend, device and thread count."""

    name: str
    # Its arrays on a device: "cpu", or a CUDA device.
    arrays: Callable[[Any], Arrays]
    # (x int16 [..., C], m float32 [C]) -> int8 / int16 [..., C]
    operand8: Callable[[Array, Array], Array]
    operand16: Callable[[Array, Array], Array]
    # (x int8 [..., K], p [O, K], leaky) -> int8 [..., O]
    linear_act: Callable[[Array, Linear, bool], Array]
    # (x int8 [..., K], p [2H, K], g) -> int8 [..., H]
    linear_gate: Callable[[Array, Linear, float], Array]
    # (x int8 [..., K], p [O, K], residual int16 [..., O] or None) -> int16 [..., O]
    linear_add: Callable[..., Array]
    # (x and y int16 of one shape) -> int16, saturating
    add: Callable[[Array, Array], Array]
    # (x int16 [..., K], p int16 [O, K], residual int16 [..., O] or None) -> int16 [..., O]
    wide_linear: Callable[..., Array]
    # (y_hat int16 [N, H, W, 4G], m float32 [4G], p int16 [O, 4G], residual int16 [N, H, W, O], step 1..3)
    # -> int16 [N, H, W, O]; reads the groups of the steps before `step` only
    decoded_linear: Callable[[Array, Array, Linear, Array, int], Array]
    # (x int16 [..., K], p int16 [O, K]) -> uint8 [..., O]
    wide_pixels: Callable[[Array, Linear], Array]
    # (x int8 [N, H, W, C], p) -> int8 [N, H, W, C]
    depthwise3x3: Callable[[Array, Depthwise], Array]
    # (q, k, v int8 [N, H, W, C], heads, window, shift, m, bias int32 [heads, window^2, window^2],
    #  table uint8 [256]) -> int8 [N, H, W, C]
    window_attention: Callable[[Array, Array, Array, int, int, int, float, Array, Array], Array]
    # (q int8 [N, P, C], k and v int8 [N, T, C], heads, m, table uint8 [256]) -> int8 [N, P, C]
    token_attention: Callable[[Array, Array, Array, int, float, Array], Array]
    # (z int16 [N, H, W, C], m float32 [4, C], part of a kind, with sites) -> int16 [N, H', W', C], at these sites
    neighbour_mean: Callable[[Array, Array, Part], Array]
    # (z int16 [N, H, W, C], mean int16 alike or None, rows uint8 alike) -> int16: symbols; and back from
    # (symbols int16 [N, H, W, C], mean) -> int16
    hyper_symbols: Callable[[Array, Array | None, Array], Array]
    hyper_values: Callable[[Array, Array | None], Array]
    # (t int8 [N, H, W, C], p, step 0..3, skip 0..128, valid (h, w)) -> mean int32, row uint8, both [N, H, W, G];
    # rows below `skip` and at sites outside of `valid` are SKIP_ROW
    head_params: Callable[[Array, Head, int, int, tuple[int, int]], tuple[Array, Array]]
    # (x int16 or int32 [N, H, W, 4G], step) -> [N, H, W, G]
    quadtree_gather: Callable[[Array, int], Array]
    # (row uint8 [N, H, W, G] of step 0, offset int32 [4, G], skip, strength 0..15) -> int8 [N, H, W] in +-15, and
    # (row uint8 [N, H, W, G], coarse int8 [N, H, W], skip) -> uint8: rows of quantiser steps so many rows larger
    coarseness: Callable[[Array, Array, int, int], Array]
    coarser_rows: Callable[[Array, Array, int], Array]
    # (coarse int8 [N, H, W] in +-15, factors float32 [2, 31]) -> float32 [2, N, H, W]: a column of the factors each
    coarseness_factors: Callable[[Array, Array], Array]
    # (y int16 [N, H, W, 4G], mean int32 [N, H, W, G], gain float32 [4G], step, finer float32 [N, H, W] or None)
    # -> int32 [N, H, W, G], 1/256 quantiser steps; `finer`: of quantiser steps 1 / finer times as large
    residuals: Callable[..., Array]
    # (q int16 [N, H, W, G], mean int32 [N, H, W, G], inv float32 [4G], step, y_hat int16 [N, H, W, 4G],
    # coarser float32 [N, H, W] or None): writes the group of this step into y_hat; `coarser`: q in quantiser steps so
    # many times as large
    reconstruct: Callable[..., None]
    # (image uint8 [H, W, 3] of any strides, height, width, out or None) -> uint8 [1, height, width, 3], `out` if given
    pad_edges: Callable[..., Array]
    # (image uint8 [N, H, W, 3], size) -> int16 [N, H/size, W/size, 3 size^2], and back from uint8
    patches_from_image: Callable[..., Array]
    image_from_patches: Callable[..., Array]
    # (picture uint8 [H, W, 3], w int8 [3, 6 R], of R rings, 1..3) -> uint8 [H, W, 3]
    restore: Callable[[Array, Array], Array]
    # (picture and image uint8 [H, W, 3], stride) -> int64 [18, 21], from lines 0, stride, 2 stride, ...
    restore_sums: Callable[[Array, Array, int], Array]
    # (a and b uint8 [H, W, 3], factors int64 [h, w] of the sites of 16 x 16 pixels, or None: all 1) -> int
    squared_error: Callable[[Array, Array, Array | None], int]
    # (picture uint8 [H, W, 3]) -> uint8 [H, W]
    luma: Callable[[Array], Array]
    # (x int8 or int16 [N, H, W, C]) -> [N, H/2, W/2, 4C], and back
    space_to_depth2: Callable[[Array], Array]
    depth_to_space2: Callable[[Array], Array]
    # Gradients before the operands `h`, `uv` (encoders only): (e and h int8 [..., C], leaky) ->
    # int8 [..., C]; (e int8 [..., H], uv int8 [..., 2H], g, m float32 [2H]) -> int8 [..., 2H];
    # (slope and d int16 [..., C], h int8 [..., C]) -> int16 [..., C]
    act_slope: Callable[[Array, Array, bool], Array]
    gate_slope: Callable[[Array, Array, float, Array], Array]
    add_slope: Callable[[Array, Array, Array], Array]
    # (x int16 [N, H, W, C], p) -> int16 [N, H, W, C]
    depth_block: Callable[[Array, DepthBlockParams], Array]
    # (x int16 [..., C], p) -> int16 [..., C]
    gated_ffn: Callable[[Array, GatedFfnParams], Array]
    # (x int16 [N, H, W, C], p of depth_block, p of gated_ffn) -> int16 [N, H, W, C]: one, then the other
    block: Callable[[Array, DepthBlockParams, GatedFfnParams], Array]
    # (x int16 [N, H, W, C], p) -> int16 [N, H, W, C]
    window_block: Callable[[Array, WindowParams], Array]
    # (x int16 [N, H, W, C], k and v int8 [N, T, C], p) -> int16 [N, H, W, C]
    token_block: Callable[[Array, Array, Array, TokenParams], Array]


def collect(name: str, module: ModuleType) -> Ops:
    """Returns the record whose operations are the functions of that name in `module`."""
    return Ops(name, **{f.name: getattr(module, f.name) for f in fields(Ops) if f.name != "name"})
