"""What symbols take, as a float network counts it: of Gaussians, with uniform noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_bits(value: Tensor, log2_scale: Tensor) -> Tensor:
    """Bits of a zero-mean Gaussian integrated over [value - 1/2, value + 1/2]."""
    inverse = torch.exp2(-log2_scale)
    v = value.abs()
    upper = torch.erfc((v - 0.5) * inverse * math.sqrt(0.5))
    lower = torch.erfc((v + 0.5) * inverse * math.sqrt(0.5))
    return -torch.log2((0.5 * (upper - lower)).clamp_min(2.0**-20))


def noisy_bits(x: Tensor, log2_scale: Tensor, fused: bool = False) -> Tensor:
    """What training counts: bits of x and uniform noise; `fused`: by the kernel of `kernels/training.py`.

    Their derivative by x is that of the mean over the noise, bits(x + 1/2) - bits(x - 1/2), instead of the sample's:
    the same on average, and a fifth less noise in the gradient of f_a (docs/experiments/weights.md).
    """
    noise = torch.rand_like(x)
    if fused:
        from dca_fast.kernels import training

        return training.noisy_bits(x, noise, log2_scale)
    seen = x + noise - 0.5
    if not x.requires_grad:
        return gaussian_bits(seen, log2_scale)
    with torch.no_grad():
        slope = gaussian_bits(x + 0.5, log2_scale) - gaussian_bits(x - 0.5, log2_scale)
    return gaussian_bits(seen.detach(), log2_scale) + slope * (x - x.detach())
