"""The three hyper pairs of DCA (section 3.1, "Diversify"): local, regional, global.

Each pair: `analyse(y, t)` gives z before rounding, `synthesise(z_hat)` the feature for c. y is in its own unit,
`[N, H/16, W/16, M]`; z is in units of its own quantiser step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dca_fast.config import ModelConfig
from dca_fast.model.layers import (
    Block,
    GatedFfn,
    Linear,
    WideLinear,
    WindowAttention,
    attend,
    depth_to_space,
    operand,
    space_to_depth,
)


class _WindowBlocks(nn.Module):
    """Windowed attention and FFN; every second attention is shifted by half a window."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.context_width
        self.attention = nn.ModuleList(
            WindowAttention(d, config.heads, config.window, (i % 2) * config.window // 2)
            for i in range(config.local_blocks)
        )
        self.ffn = nn.ModuleList(GatedFfn(d, d) for _ in range(config.local_blocks))

    def forward(self, x: Tensor) -> Tensor:
        for attention, ffn in zip(self.attention, self.ffn, strict=True):
            x = ffn(attention(x))
        return x


class LocalHyper(nn.Module):
    """z_l `[N, H/16, W/16, M/16]`: each latent site and its window describe themselves."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.context_width
        self.analysis_in = Linear(config.latent, d, conditional=True)
        self.analysis_blocks = _WindowBlocks(config)
        self.analysis_out = Linear(d, config.local)
        self.synthesis_in = WideLinear(config.local, d)
        self.synthesis_blocks = _WindowBlocks(config)

    def analyse(self, y: Tensor, t: Tensor) -> Tensor:
        return self.analysis_out(operand(self.analysis_blocks(self.analysis_in(operand(y), t))))

    def synthesise(self, z_hat: Tensor) -> Tensor:
        """-> phi_l `[N, H/16, W/16, D]`."""
        return self.synthesis_blocks(self.synthesis_in(z_hat))


class RegionalHyper(nn.Module):
    """z_r `[N, H/64, W/64, regional]`: two halvings, two doublings (the usual hyperprior)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, r = config.context_width, config.regional
        self.analysis_in = Linear(config.latent, r, conditional=True)
        self.analysis_block = Block(r, r)
        self.analysis_down = Linear(4 * r, r)
        self.analysis_block2 = Block(r, r)
        self.analysis_out = Linear(4 * r, r)
        self.synthesis_in = WideLinear(r, 4 * r)
        self.synthesis_block = Block(r, r)
        self.synthesis_up = Linear(r, 4 * d)

    def analyse(self, y: Tensor, t: Tensor) -> Tensor:
        x = self.analysis_block(self.analysis_in(operand(y), t), t)
        x = self.analysis_block2(self.analysis_down(space_to_depth(operand(x))), t)
        return self.analysis_out(space_to_depth(operand(x)))

    def synthesise(self, z_hat: Tensor, t: Tensor) -> Tensor:
        """-> phi_r `[N, H/16, W/16, D]`."""
        x = self.synthesis_block(depth_to_space(self.synthesis_in(z_hat)), t)
        return depth_to_space(self.synthesis_up(operand(x)))


class GlobalHyper(nn.Module):
    """z_g `[N, 1, T, M/T]`: learned tokens attend to every site (Informer, NeurIPS 2022)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, size = config.context_width, config.latent // config.tokens
        self.heads = config.heads
        self.queries = nn.Parameter(torch.randn(config.tokens, d))
        self.analysis_kv = Linear(config.latent, 2 * d, conditional=True)
        self.analysis_merge = Linear(d, d)
        self.analysis_ffn = GatedFfn(d, d)
        self.analysis_out = Linear(d, size)
        self.synthesis_in = WideLinear(size, d)
        self.synthesis_kv = Linear(d, 2 * d)

    def analyse(self, y: Tensor, t: Tensor) -> Tensor:
        n, h, w, _ = y.shape
        keys, values = operand(self.analysis_kv(operand(y), t)).view(n, h * w, -1).chunk(2, -1)
        queries = operand(self.queries).expand(n, -1, -1)
        pooled = operand(attend(queries, keys, values, self.heads))
        tokens = self.analysis_ffn(self.analysis_merge(pooled))
        return self.analysis_out(operand(tokens))[:, None]

    def synthesise(self, z_hat: Tensor) -> Tensor:
        """-> keys and values of phi_g, `[N, T, 2 D]` on the operand grid."""
        return operand(self.synthesis_kv(operand(self.synthesis_in(z_hat[:, 0]))))
