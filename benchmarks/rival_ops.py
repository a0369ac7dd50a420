"""What others would run in place of single operations of ours: PyTorch in fp32, CompressAI's Gaussian model.

Each takes the arguments of our operation, turned into floats beforehand, and is checked against its result.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rivals import FLOAT_WEIGHTS, to_fp32, unrounded
from torch import Tensor

from dca_fast.config import LATENT_ONE, PATCH, QUADTREE
from dca_fast.model.context import parity_join, parity_split
from dca_fast.model.layers import depth_to_space, space_to_depth
from dca_fast.model.transforms import PIXEL_GAIN
from dca_fast.ops import Head
from dca_fast.train.export import load_float

SCORE_ONE = 16  # scores are in 1/16 nat


class Attention:
    """Window attention in fp32 on the same map: roll, split, attend, merge, roll back.

    Args:
        flex: by FlexAttention, compiled, instead of `scaled_dot_product_attention`.
        q, k, v, heads, window, shift, m, bias: as in `dca_fast.ops.reference.window_attention`.
    """

    def __init__(self, flex: bool, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> None:
        self.heads, self.window, self.shift, m, bias, _ = rest
        device = torch.device("cuda" if flex else "cpu")
        self.qkv = [x.to(device, torch.float32) for x in (q, k, v)]
        self.scale = m / SCORE_ONE
        self.bias = bias.to(device, torch.float32) / SCORE_ONE
        height, width = q.shape[1:3]
        wrapped = [torch.arange(side, device=device) >= side - self.shift for side in (height, width)]
        regions = (2 * wrapped[0][:, None] + wrapped[1][None, :].int()).view(1, height, width, 1)
        self.regions = space_to_depth(regions, self.window).view(-1, self.window**2)
        self.attend = self._flex if flex else self._sdpa
        if not flex:
            apart = (self.regions[:, :, None] != self.regions[:, None, :])[:, None]
            self.mask = self.bias[None].masked_fill(apart, -math.inf)

    def __call__(self) -> Tensor:
        n, h, w, _ = self.qkv[0].shape
        y = self.attend(*(self._split(x) for x in self.qkv))
        y = y.transpose(1, 2).reshape(n, h // self.window, w // self.window, -1)
        return depth_to_space(y, self.window).roll((self.shift, self.shift), (1, 2))

    def _split(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        x = space_to_depth(x.roll((-self.shift, -self.shift), (1, 2)), self.window)
        return x.view(-1, self.window**2, self.heads, c // self.heads).transpose(1, 2)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=self.scale)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.where(self.regions[b, i] == self.regions[b, j], s + self.bias[h, i, j], -math.inf)

        if not hasattr(self, "_compiled"):
            self._compiled = torch.compile(flex_attention)
        return self._compiled(q, k, v, score_mod=score, scale=self.scale)

    def check(self, ours: Tensor) -> None:
        """Ours rounds scores to 1/16 nat and exponentials to 7 bits: a few units of int8 apart, no more."""
        difference = (self().cpu() - ours).abs()
        assert float(difference.mean()) < 1, float(difference.mean())
        assert float(difference.max()) < 16, float(difference.max())


class Gaussian:
    """Means, scales, table indexes and symbols of one step: fp32 1x1 layers, then CompressAI's `GaussianConditional`.

    Args:
        t: int8 [N, H, W, C].
        head, step: as in `head_params`.
        y, gain: int16 [N, H, W, 4G], float32 [4G], as in `residuals`.
    """

    def __init__(self, t: Tensor, head: Head, step: int, y: Tensor, gain: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = pytest.importorskip("compressai.entropy_models", reason="CompressAI: needs dca-fast[bench]")
            from compressai.models.google import get_scale_table
        self.model = models.GaussianConditional(get_scale_table().tolist())
        self.model.update()
        self.t, self.groups, size = t.float(), [p ^ QUADTREE[step] for p in range(4)], head.m_mean.shape[1]
        factors = torch.cat([head.m_mean / 256, head.m_scale / 16], 1)  # to quantiser steps and table rows
        self.weight = head.w.float() * factors[:, :, None]
        self.bias = head.b.float() * factors
        self.bias[:, size:] += head.offset / 16
        self.y = [sites.float().chunk(4, -1) for sites in parity_split(y)]
        self.gain = (gain / 256).chunk(4)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Indexes and symbols, [N, H, W, G]."""
        indexes, symbols = [], []
        for p, (x, g) in enumerate(zip(parity_split(self.t), self.groups, strict=True)):
            mean, row = F.linear(x, self.weight[g], self.bias[g]).chunk(2, -1)
            indexes.append(self.model.build_indexes(0.1 * torch.exp2(row / 12)))
            symbols.append(self.model.quantize(self.y[p][g] * self.gain[g], "symbols", mean))
        return parity_join(indexes), parity_join(symbols)

    def check(self, residuals: Tensor, coded: Tensor) -> None:
        """Almost all coded symbols are our residuals, rounded; a tie may round elsewhere."""
        theirs, ours = self()[1], torch.round(residuals / LATENT_ONE)
        assert float((theirs[coded] == ours[coded]).float().mean()) > 0.97


class DepthBlock:
    """The first depthwise block of the analysis in fp32, on the map that it sees.

    Args:
        image: uint8 [N, H, W, 3].
        compiled: by `torch.compile`.
    """

    def __init__(self, image: Tensor, compiled: bool) -> None:
        network = load_float(FLOAT_WEIGHTS)
        with torch.no_grad():
            self.x = network.analysis.embed(space_to_depth((image.float() - 128) * PIXEL_GAIN, PATCH))
            self.t = torch.zeros(1, 1, 1, 1)
            block = network.analysis.blocks8[0].depth
            self.rounded = block(self.x, self.t)
            self.block = to_fp32(block)
        self.run: Any = torch.compile(self.block, dynamic=False) if compiled else self.block

    @torch.no_grad()
    def __call__(self) -> Tensor:
        with unrounded():
            return self.run(self.x, self.t)

    def check(self) -> None:
        """The block adds what the rounded one adds, up to rounding."""
        plain, rounded = self() - self.x, self.rounded - self.x
        assert float((plain - rounded).norm() / rounded.norm()) < 0.1
