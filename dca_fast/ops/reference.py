"""The definition of every operation in plain PyTorch: integers in, integers out, no speed intended.

Products of integers are summed in float64, which is exact below 2^53 in any order. The only other floating
point operation is one float32 multiply per output (`requantise`), which IEEE 754 defines to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dca_fast.config import (
    AQ_CHANNELS,
    AQ_REACH,
    LATENT_ONE,
    QUADTREE,
    RING_LIMIT,
    RING_ONE,
    RINGS,
    SKIP_ROW,
    STRIDE,
    TRELLIS_STEP,
    Part,
)
from dca_fast.ops import (
    DepthBlockParams,
    Depthwise,
    GatedFfnParams,
    Head,
    Linear,
    Ops,
    TokenParams,
    WindowParams,
    collect,
)
from dca_fast.ops.limits import LIMIT8, LIMIT16, LIMIT_MEAN, LIMIT_RESIDUAL, LIMIT_VALUE, MAX_ROW


class TorchArrays:
    """`Arrays` of PyTorch tensors on one device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def array(self, values: npt.NDArray[Any]) -> Tensor:
        # PyTorch has no read-only tensors.
        return torch.from_numpy(values if values.flags.writeable else values.copy()).to(self.device)

    def numpy(self, x: Tensor) -> npt.NDArray[Any]:
        return x.cpu().numpy()

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int16, device=self.device)

    def contiguous(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def broadcast(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.expand(shape).clone(memory_format=torch.contiguous_format)

    def concat(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(tuple(arrays), axis)

    def gather(self, strips: Iterable[Tensor], height: int) -> Tensor:
        out, at = None, 0
        for strip in strips:
            if out is None:
                out = strip.new_empty(strip.shape[0], height, *strip.shape[2:])
            out[:, at : at + strip.shape[1]] = strip
            at += strip.shape[1]
        assert out is not None
        assert at == height
        return out

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


arrays = TorchArrays


def requantise(acc: Tensor, m: Tensor | float, limit: int, leaky: bool = False) -> Tensor:
    """Integers times float32, rounded half to even, clamped to [-limit, limit]; int32."""
    m = torch.as_tensor(m, dtype=torch.float32, device=acc.device)
    r = acc.to(torch.float32) * m
    if leaky:
        r = torch.where(r < 0, r * 0.125, r)
    return r.round().clamp(-limit, limit).to(torch.int32)


def _accumulate(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x [..., K] . w [O, K] + b [O] as int32 [..., O]."""
    return (x.double() @ w.double().T + b.double()).to(torch.int32)


def operand8(x: Tensor, m: Tensor) -> Tensor:
    """Feature to 8-bit operand. x int16 [..., C], m float32 [C]; returns int8 [..., C] in +-127."""
    return requantise(x, m, LIMIT8).to(torch.int8)


def operand16(x: Tensor, m: Tensor) -> Tensor:
    """Feature to 16-bit operand. x int16 [..., C], m float32 [C]; returns int16 [..., C] in +-32767."""
    return requantise(x, m, LIMIT16).to(torch.int16)


def linear_act(x: Tensor, p: Linear, leaky: bool) -> Tensor:
    """1x1 layer, slope 1/8 below zero if `leaky`. x int8 [..., K]; returns int8 [..., O]."""
    return requantise(_accumulate(x, p.w, p.b), p.m, LIMIT8, leaky).to(torch.int8)


def linear_gate(x: Tensor, p: Linear, g: float) -> Tensor:
    """1x1 layer to 2H channels, the product of the halves times g. x int8 [..., K]; returns int8 [..., H]."""
    u, v = linear_act(x, p, False).to(torch.int32).chunk(2, dim=-1)
    return requantise(u * v, g, LIMIT8).to(torch.int8)


def linear_add(x: Tensor, p: Linear, residual: Tensor | None = None) -> Tensor:
    """1x1 layer to a feature, plus residual if given. x int8 [..., K]; returns int16 [..., O]."""
    r = requantise(_accumulate(x, p.w, p.b), p.m, LIMIT16)
    return r.to(torch.int16) if residual is None else _saturating_add(r, residual)


def wide_linear(x: Tensor, p: Linear, residual: Tensor | None = None) -> Tensor:
    """`linear_add` on 16-bit operands and weights. x int16 [..., K]; returns int16 [..., O]."""
    return linear_add(x, p, residual)


def decoded_linear(y_hat: Tensor, m: Tensor, p: Linear, residual: Tensor, step: int) -> Tensor:
    """`wide_linear` of the operand of y_hat, by m, of the groups decoded before `step` only.

    Args:
        y_hat: int16 [N, H, W, 4G], H and W even.
        step: 1..3.

    Returns:
        int16 [N, H, W, O].
    """
    known = torch.zeros_like(y_hat)
    size = y_hat.shape[-1] // 4
    for earlier in range(step):
        for py, px, g in _groups(earlier):
            group = (slice(None), slice(py, None, 2), slice(px, None, 2), slice(g * size, (g + 1) * size))
            known[group] = y_hat[group]
    return wide_linear(operand16(known, m), p, residual)


def wide_pixels(x: Tensor, p: Linear) -> Tensor:
    """1x1 layer on 16-bit operands to pixel values around 128. x int16 [..., K]; returns uint8 [..., O]."""
    r = requantise(_accumulate(x, p.w, p.b), p.m, LIMIT16)
    return (r + 128).clamp(0, 255).to(torch.uint8)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Saturating sum of two features. x, y int16 of one shape; returns int16."""
    return _saturating_add(x.to(torch.int32), y)


def _saturating_add(r: Tensor, residual: Tensor) -> Tensor:
    return (r + residual.to(torch.int32)).clamp(-LIMIT16, LIMIT16).to(torch.int16)


def _unsaturated(h: Tensor) -> Tensor:
    return h.abs() < LIMIT8


def act_slope(e: Tensor, h: Tensor, leaky: bool) -> Tensor:
    """Gradient before the rounding to the operand h: zero where h saturates, with `leaky` an eighth where it is not
    positive (0 mostly stands for what is a little below). e, h int8 [..., C]; returns int8 [..., C]."""
    r = torch.where(h <= 0, (e.to(torch.int32) + 4) >> 3, e) if leaky else e
    return (r * _unsaturated(h)).to(torch.int8)


def gate_slope(e: Tensor, uv: Tensor, g: float, m: Tensor) -> Tensor:
    """Gradient of both halves of what `linear_gate` multiplies: that of the product times the other half, times m.

    Args:
        e: int8 [..., H], of the product.
        uv: int8 [..., 2H], the halves.
        g: of the product; where that or a half saturates the gradient is zero.
        m: float32 [2H].

    Returns:
        int8 [..., 2H].
    """
    u, v = uv.to(torch.int32).chunk(2, dim=-1)
    e = e.to(torch.int32) * _unsaturated(requantise(u * v, g, LIMIT8))
    return requantise(torch.cat((e * v, e * u), -1) * _unsaturated(uv), m, LIMIT8).to(torch.int8)


def add_slope(slope: Tensor, d: Tensor, h: Tensor) -> Tensor:
    """Saturating sum of a gradient and what comes back through the operand h, where h does not saturate. slope, d int16
    [..., C], h int8 [..., C]; returns int16 [..., C]."""
    return add(slope, d * _unsaturated(h))


def depthwise3x3(x: Tensor, p: Depthwise) -> Tensor:
    """3x3 convolution per channel, zero padding. x int8 [N, H, W, C]; returns the same shape."""
    _, h, w, _ = x.shape
    padded = torch.nn.functional.pad(x.to(torch.int32), (0, 0, 1, 1, 1, 1))
    acc = p.b.expand(x.shape).clone()
    for dy in range(3):
        for dx in range(3):
            acc += padded[:, dy : dy + h, dx : dx + w] * p.w[dy, dx].to(torch.int32)
    return requantise(acc, p.m, LIMIT8).to(torch.int8)


def _exponentials(s: Tensor, allowed: Tensor | None, table: Tensor) -> Tensor:
    """table[max s - s] along the last axis, zero where not allowed; int64."""
    if allowed is not None:
        s = torch.where(allowed, s, -(1 << 30))
    d = (s.amax(dim=-1, keepdim=True) - s).clamp(max=255)
    e = table.to(torch.int64)[d.long()]
    return e if allowed is None else torch.where(allowed, e, 0)


def _mix(e: Tensor, v: Tensor, bits: int) -> Tensor:
    """Mean of v, each times its e, by a rounded-down reciprocal of `bits` bits; int8."""
    r = (1 << bits) // e.sum(dim=-1, keepdim=True)
    acc = (e.double() @ v.double()).to(torch.int64)
    return ((acc * r + (1 << (bits - 1))) >> bits).to(torch.int8)


def _scores(q: Tensor, k: Tensor, m: float) -> Tensor:
    return requantise((q.double() @ k.double().transpose(-1, -2)).to(torch.int32), m, LIMIT_MEAN)


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
    """Attention inside windows of the map rolled by -shift; wrapped-around regions do not see each other.

    Args:
        q, k, v: int8 [N, H, W, C]; H and W multiples of `window`, C of `heads`.
        shift: 0 <= shift < window.
        m: float32 value; turns q.k into score units of 1/16 nat.
        bias: int32 [heads, window^2, window^2] in score units, within +-2^20.
        table: uint8 [256], exponential of minus the score difference: 0..127, table[0] = 127.

    Returns:
        int8 [N, H, W, C].
    """
    n, h, w, c = q.shape
    ny, nx, area = h // window, w // window, window * window

    def split(t: Tensor) -> Tensor:  # -> [N, ny, nx, heads, area, C / heads]
        t = t.roll((-shift, -shift), (1, 2)).view(n, ny, window, nx, window, heads, c // heads)
        return t.permute(0, 1, 3, 5, 2, 4, 6).reshape(n, ny, nx, heads, area, c // heads)

    wrapped_y = torch.arange(h, device=q.device) >= h - shift
    wrapped_x = torch.arange(w, device=q.device) >= w - shift
    region = 2 * wrapped_y[:, None].int() + wrapped_x[None, :].int()
    region = region.view(ny, window, nx, window).permute(0, 2, 1, 3).reshape(ny, nx, 1, area)
    allowed = region[..., :, None] == region[..., None, :]
    e = _exponentials(_scores(split(q), split(k), m) + bias, allowed, table)
    out = _mix(e, split(v), 23).view(n, ny, nx, heads, window, window, c // heads)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(n, h, w, c).roll((shift, shift), (1, 2))


def token_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, m: float, table: Tensor) -> Tensor:
    """Attention of P queries over T tokens. q int8 [N, P, C], k, v int8 [N, T, C]; returns int8 [N, P, C]."""
    n, sites, c = q.shape

    def split(t: Tensor) -> Tensor:  # -> [N, heads, T, C / heads]
        return t.view(n, -1, heads, c // heads).transpose(1, 2)

    e = _exponentials(_scores(split(q), split(k), m), None, table)
    return _mix(e, split(v), 40).transpose(1, 2).reshape(n, sites, c)


@cache
def _groups(step: int) -> tuple[tuple[int, int, int], ...]:
    """(y parity, x parity, channel group) of the sites of each parity in this step."""
    return tuple((p >> 1, p & 1, p ^ QUADTREE[step]) for p in range(4))


def sum_around(z: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    """Sum of the sites around each site of a part of `z` [N, H, W, C], as far as there are any: [N, H', W', C], alike;
    and how many they are: int64 [H', W', 1]."""
    reach, (_, height, width, _) = part.stride // 2, z.shape
    border = (0, 0, reach, reach, reach, reach)
    padded, inside = F.pad(z, border), F.pad(torch.ones_like(z[0, ..., :1], dtype=torch.int64), border)
    total, count = z.new_zeros(()), inside.new_zeros(())
    for down, right in part.around:
        lines = slice(reach + part.top + down, reach + height + down, part.stride)
        columns = slice(reach + part.left + right, reach + width + right, part.stride)
        total, count = total + padded[:, lines, columns], count + inside[lines, columns]
    return total, count


def neighbour_mean(z: Tensor, m: Tensor, part: Part) -> Tensor:
    """What the sites of a part of a hyper latent are expected to be (docs/spec/numerics.md).

    Args:
        z: int16 [N, H, W, C], 1/256 quantiser steps, as far as it is decoded.
        m: float32 [4, C]: multipliers of the sum of one, two, three and four sites around.
        part: of a kind; has sites.

    Returns:
        int16 [N, H', W', C], one for each site of the part.
    """
    total, count = sum_around(z.to(torch.int32), part)
    return requantise(total, m[count[..., 0] - 1], LIMIT16).to(torch.int16)


def hyper_symbols(z: Tensor, mean: Tensor | None, rows: Tensor) -> Tensor:
    """Symbols of a part of a hyper latent: what is not expected of it, in whole quantiser steps.

    Args:
        z: int16 [N, H, W, C], 1/256 quantiser steps; any strides.
        mean: int16 alike, of `neighbour_mean`; None: zero.
        rows: uint8 alike; where SKIP_ROW nothing is coded.

    Returns:
        int16 alike, 0 where nothing is coded.
    """
    residuals = z.to(torch.int32) if mean is None else z.to(torch.int32) - mean
    symbols = (residuals + LATENT_ONE // 2).div(LATENT_ONE, rounding_mode="floor")
    return symbols.masked_fill(rows == SKIP_ROW, 0).to(torch.int16)


def hyper_values(symbols: Tensor, mean: Tensor | None) -> Tensor:
    """The hyper latent that `hyper_symbols` stand for. symbols, mean as there; int16 alike."""
    z = symbols.to(torch.int32) * LATENT_ONE
    return (z if mean is None else z + mean).clamp(-LIMIT16, LIMIT16).to(torch.int16)


def head_params(t: Tensor, p: Head, step: int, skip: int, valid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and scale-table row of the symbols of one step.

    Args:
        t: int8 [N, H, W, C], H and W even.
        step: 0..3.
        skip: rows below it are not worth coding, 0..128.
        valid: sites (h, w) that touch the image, from the upper left corner; 0 <= h <= H, 0 <= w <= W.

    Returns:
        mean int32 [N, H, W, G] in 1/256 quantiser steps within +-2^20, row uint8 [N, H, W, G] in 0..127, or SKIP_ROW.
    """
    n, h, w, _ = t.shape
    size = p.m_mean.shape[1]
    mean = torch.empty(n, h, w, size, dtype=torch.int32, device=t.device)
    row = torch.empty(n, h, w, size, dtype=torch.uint8, device=t.device)
    for py, px, g in _groups(step):
        acc = _accumulate(t[:, py::2, px::2], p.w[g], p.b[g])
        mean[:, py::2, px::2] = requantise(acc[..., :size], p.m_mean[g], LIMIT_MEAN)
        scale = requantise(acc[..., size:], p.m_scale[g], LIMIT_MEAN) + p.offset[g]
        row[:, py::2, px::2] = ((scale + 8) >> 4).clamp(0, MAX_ROW).to(torch.uint8)
    row.masked_fill_(row < skip, SKIP_ROW)
    row[:, valid[0] :] = SKIP_ROW
    row[:, :, valid[1] :] = SKIP_ROW
    return mean, row


def quadtree_gather(x: Tensor, step: int) -> Tensor:
    """The channel group of each site in this step. x int16 or int32 [N, H, W, 4G]; returns [N, H, W, G]."""
    n, h, w, c = x.shape
    size = c // 4
    out = x.new_empty(n, h, w, size)
    for py, px, g in _groups(step):
        out[:, py::2, px::2] = x[:, py::2, px::2, g * size : (g + 1) * size]
    return out


def coarseness(row: Tensor, offset: Tensor, skip: int, strength: int) -> Tensor:
    """How much coarser than elsewhere y is quantised at each site (docs/spec/adaptive.md).

    Args:
        row: uint8 [N, H, W, G] of step 0; SKIP_ROW counts as skip - 1.
        offset: int32 [4, G] of the head: rows of channels at their typical deviation, in 1/16.
        skip: as of `head_params`.
        strength: 0..15: sixteenths of how many rows the first channels lie above their typical ones.

    Returns:
        int8 [N, H, W] in +-AQ_REACH: how many rows larger quantiser steps are.
    """
    first = min(row.shape[3], AQ_CHANNELS)
    total = torch.where(row == SKIP_ROW, skip - 1, row.to(torch.int32))[..., :first].sum(-1) * 16
    for py, px, g in _groups(0):
        total[:, py::2, px::2] -= offset[g, :first].sum()
    return ((total * strength + 2048) >> 12).clamp(-AQ_REACH, AQ_REACH).to(torch.int8)


def coarser_rows(row: Tensor, coarse: Tensor, skip: int) -> Tensor:
    """Rows of symbols whose quantiser steps are larger by `coarse` rows.

    Args:
        row: uint8 [N, H, W, G], 0..127 or SKIP_ROW, which stays.
        coarse: int8 [N, H, W] of `coarseness`.
        skip: rows below it become SKIP_ROW.

    Returns:
        uint8 [N, H, W, G].
    """
    r = (row.to(torch.int32) - coarse[..., None]).clamp(0, MAX_ROW)
    return torch.where((row == SKIP_ROW) | (r < skip), SKIP_ROW, r).to(torch.uint8)


def coarseness_factors(coarse: Tensor, factors: Tensor) -> Tensor:
    """By what quantiser steps, and values in them, change at each site.

    Args:
        coarse: int8 [N, H, W] of `coarseness`.
        factors: float32 [2, 2 AQ_REACH + 1], of -AQ_REACH, -AQ_REACH + 1...

    Returns:
        float32 [2, N, H, W].
    """
    return factors.index_select(1, coarse.flatten().int() + AQ_REACH).view(2, *coarse.shape)


def residuals(y: Tensor, mean: Tensor, gain: Tensor, step: int, finer: Tensor | None = None) -> Tensor:
    """y in 1/256 quantiser steps minus mean, of one step, times `finer` of the site; int32. Shapes: see `Ops`."""
    r = quadtree_gather(requantise(y, gain, LIMIT_MEAN), step) - mean
    return r if finer is None else requantise(r, finer[..., None], LIMIT_RESIDUAL)


def reconstruct(q: Tensor, mean: Tensor, inv: Tensor, step: int, y_hat: Tensor, coarser: Tensor | None = None) -> None:
    """Writes (160 q * coarser + mean) * inv into this step's group of y_hat int16 [N, H, W, 4G]. Shapes: see `Ops`."""
    value = q.to(torch.int32) * TRELLIS_STEP
    value = mean + (value if coarser is None else requantise(value, coarser[..., None], LIMIT_VALUE))
    size = q.shape[-1]
    for py, px, g in _groups(step):
        group = slice(g * size, (g + 1) * size)
        r = requantise(value[:, py::2, px::2], inv[group], LIMIT16)
        y_hat[:, py::2, px::2, group] = r.to(torch.int16)


def pad_edges(image: Tensor, height: int, width: int, out: Tensor | None = None) -> Tensor:
    """An image with its last line and column repeated.

    Args:
        image: uint8 [H, W, 3], of any strides.
        height, width: of the result, at least H and W.
        out: where it goes, contiguous uint8 [1, height, width, 3]; None: new memory.

    Returns:
        uint8 [1, height, width, 3].
    """
    down, across = (
        torch.arange(padded, device=image.device).clamp(max=side - 1)
        for padded, side in zip((height, width), image.shape[:2], strict=True)
    )
    padded = image[down][:, across][None].contiguous()
    return padded if out is None else out.copy_(padded)


def patches_from_image(image: Tensor, size: int = 8) -> Tensor:
    """uint8 [N, H, W, 3] -> int16 [N, H/size, W/size, 3 size^2] of pixel - 128, order (dy, dx, colour)."""
    return _space_to_depth(image.to(torch.int16) - 128, size)


def image_from_patches(patches: Tensor, size: int = 8) -> Tensor:
    """uint8 [N, h, w, 3 size^2] -> uint8 [N, size h, size w, 3], in the order of `patches_from_image`."""
    return _depth_to_space(patches, size)


def ring_features(picture: Tensor, rings: int, stride: int = 1) -> Tensor:
    """The restoration filter's features: for each ring the sums of its pixels' differences from the middle, then those
    of the differences clamped to +-RING_LIMIT. Beyond the border the pixels of the border count.

    Args:
        picture: uint8 [H, W, 3].
        rings: of `RINGS`, the first so many.
        stride: of the lines to look at.

    Returns:
        int32 [ceil(H / stride), W, 6 rings], order (ring, plain or clamped, colour), within +-2040.
    """
    (height, width), x = picture.shape[:2], picture.to(torch.int32)
    down = torch.arange(0, height, stride, device=picture.device)
    across = torch.arange(width, device=picture.device)
    middle, features = x[::stride], []
    for ring in RINGS[:rings]:
        plain, clamped = torch.zeros_like(middle), torch.zeros_like(middle)
        for i, j in ring:
            lines, columns = (down + i).clamp(0, height - 1), (across + j).clamp(0, width - 1)
            difference = x[lines][:, columns] - middle
            plain += difference
            clamped += difference.clamp(-RING_LIMIT, RING_LIMIT)
        features += [plain, clamped]
    return torch.cat(features, -1)


def restore(picture: Tensor, w: Tensor) -> Tensor:
    """The restoration filter (docs/spec/restoration.md).

    Args:
        picture: uint8 [H, W, 3].
        w: int8 [3, 6 R], in 1/RING_ONE, for the colours of the result and `ring_features` of R rings.

    Returns:
        uint8 [H, W, 3].
    """
    features = ring_features(picture, w.shape[1] // 6)
    acc = (features.double() @ w.double().T).to(torch.int64)
    return (picture + ((acc + RING_ONE // 2) >> 8)).clamp(0, 255).to(torch.uint8)


def restore_sums(picture: Tensor, image: Tensor, stride: int) -> Tensor:
    """Normal equations of the restoration filter with all rings, over lines 0, stride, 2 stride...

    Args:
        picture, image: uint8 [H, W, 3], decoded and original.

    Returns:
        int64 [18, 21]: sums of products of the features with each other, then with the error image - picture.
    """
    features = ring_features(picture, len(RINGS), stride).flatten(0, 1).double()
    error = (image[::stride].to(torch.int32) - picture[::stride].to(torch.int32)).flatten(0, 1).double()
    return (features.T @ torch.cat((features, error), 1)).to(torch.int64)


def squared_error(a: Tensor, b: Tensor, factors: Tensor | None = None) -> int:
    """Sum of the squared differences of two pictures.

    Args:
        a, b: uint8 [H, W, 3].
        factors: int64 [h, w], of those of each site of 16 x 16 pixels; None: 1.
    """
    squares = (a.to(torch.int32) - b.to(torch.int32)).square()
    if factors is None:
        return int(squares.sum(dtype=torch.int64))
    squares = F.pad(squares.sum(-1), (0, -a.shape[1] % STRIDE, 0, -a.shape[0] % STRIDE))
    of_sites = squares.view(squares.shape[0] // STRIDE, STRIDE, -1, STRIDE).sum((1, 3))
    return int((of_sites * factors[: of_sites.shape[0], : of_sites.shape[1]]).sum())


def luma(picture: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 in integers: uint8 [H, W, 3] to [H, W]."""
    red, green, blue = picture.to(torch.int32).unbind(-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)


def space_to_depth2(x: Tensor) -> Tensor:
    """int8 or int16 [N, H, W, C] -> [N, H/2, W/2, 4C], channels in order (dy, dx, c)."""
    return _space_to_depth(x, 2)


def depth_to_space2(x: Tensor) -> Tensor:
    """int8 or int16 [N, h, w, 4C] -> [N, 2h, 2w, C], the inverse of `space_to_depth2`."""
    return _depth_to_space(x, 2)


def _space_to_depth(x: Tensor, s: int) -> Tensor:
    n, h, w, c = x.shape
    return x.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // s, w // s, s * s * c)


def _depth_to_space(x: Tensor, s: int) -> Tensor:
    n, h, w, c = x.shape
    x = x.view(n, h, w, s, s, c // (s * s)).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * s, w * s, c // (s * s))


def depth_block(x: Tensor, p: DepthBlockParams) -> Tensor:
    """Residual block 1x1, leaky, depthwise 3x3, 1x1. x int16 [N, H, W, C]; returns the same shape."""
    hidden = linear_act(operand8(x, p.m_in), p.expand, True)
    return linear_add(depthwise3x3(hidden, p.depthwise), p.project, x)


def gated_ffn(x: Tensor, p: GatedFfnParams) -> Tensor:
    """Residual block 1x1, gate, 1x1. x int16 [..., C]; returns the same shape."""
    return linear_add(linear_gate(operand8(x, p.m_in), p.gate, p.g), p.project, x)


def block(x: Tensor, depth: DepthBlockParams, ffn: GatedFfnParams) -> Tensor:
    """`depth_block`, then `gated_ffn`. x int16 [N, H, W, C]; returns the same shape."""
    return gated_ffn(depth_block(x, depth), ffn)


def window_block(x: Tensor, p: WindowParams) -> Tensor:
    """Residual window attention: 1x1 to q, k, v, `window_attention`, 1x1. x int16 [N, H, W, C]; returns the same."""
    q, k, v = (s.contiguous() for s in linear_act(operand8(x, p.m_in), p.qkv, False).chunk(3, -1))
    y = window_attention(q, k, v, p.heads, p.window, p.shift, p.m, p.bias, p.table)
    return linear_add(y, p.out, x)


def token_block(x: Tensor, k: Tensor, v: Tensor, p: TokenParams) -> Tensor:
    """Residual attention of every site over T tokens. x int16 [N, H, W, C], k, v int8 [N, T, C]; returns as x."""
    q = linear_act(operand8(x, p.m_in), p.query, False)
    y = token_attention(q.flatten(1, 2), k, v, p.heads, p.m, p.table).view(x.shape)
    return linear_add(y, p.out, x)


OPS: Ops = collect("reference", sys.modules[__name__])
