"""The one rounding rule of the codec as Triton device functions, for every kernel.

    requantise(acc, m) = RNE(fl32(fl32(acc) * m)), clamped       (docs/spec/numerics.md)

The clamp stands between the product and the addition that rounds, so no compiler can contract the two into a
fused multiply-add, whatever the launch options; kernels still say `**EXACT`.
"""

from __future__ import annotations

import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}  # options of every launch

# Limits of results.
LIMIT8 = tl.constexpr(127)
LIMIT16 = tl.constexpr(32767)
LIMIT_MEAN = tl.constexpr(1 << 20)  # of means and scores

# 1.5 * 2^23: floats of this size are 1 apart, so adding it rounds half to even, below 2^22.
_MAGIC = tl.constexpr(12582912.0)
_MAGIC_BITS = tl.constexpr(0x4B400000)


@triton.jit
def rounded(r, LIMIT: tl.constexpr):
    """float32 (not NaN) -> int32: clamped to [-LIMIT, LIMIT], rounded half to even. LIMIT <= 2^22."""
    r = tl.minimum(tl.maximum(r, -1.0 * LIMIT), 1.0 * LIMIT)
    return (r + _MAGIC).to(tl.int32, bitcast=True) - _MAGIC_BITS


@triton.jit
def requantise(acc, m, LIMIT: tl.constexpr):
    """int32 accumulator times float32 multiplier -> int32 in [-LIMIT, LIMIT]. LIMIT <= 2^22."""
    return rounded(acc.to(tl.float32) * m, LIMIT)


@triton.jit
def requantise_leaky(acc, m, LIMIT: tl.constexpr):
    """`requantise` with a slope of 1/8 below zero, applied before rounding."""
    r = acc.to(tl.float32) * m
    return rounded(tl.where(r < 0, r * 0.125, r), LIMIT)


@triton.jit
def saturating_add(r, residual):
    """int32 in +-32767 plus int16 -> int16 in +-32767."""
    return tl.minimum(tl.maximum(r + residual.to(tl.int32), -32767), 32767).to(tl.int16)
