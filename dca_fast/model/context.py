"""The contextualisation model c (DCA, section 3.2) and the quadtree partition (DCVC-DC).

In each of four steps c reads what is decoded so far and the three hyper features, in the configured order
(the paper's: regional, global, local), and gives mean and scale of the next quarter of y.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dca_fast.config import QUADTREE, STEPS, ModelConfig
from dca_fast.model.layers import Block, GatedFfn, Linear, TokenAttention, WideLinear, operand


def parity_split(x: Tensor) -> list[Tensor]:
    """`[N, H, W, C]` -> four `[N, H/2, W/2, C]`, parity 2 * (line & 1) + (column & 1)."""
    return [x[:, i::2, j::2] for i in range(2) for j in range(2)]


def parity_join(parities: list[Tensor]) -> Tensor:
    """Inverse of `parity_split`."""
    n, h, w, c = parities[0].shape
    return torch.stack(parities).view(2, 2, n, h, w, c).permute(2, 3, 0, 4, 1, 5).reshape(n, 2 * h, 2 * w, c)


class ContextCore(nn.Module):
    """The module of c that all steps can share: one stage for each context, then the heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, group = config.context_width, config.latent // 4
        self.order = config.stages
        self.merge_once = config.merge_once
        self.regional_blocks = nn.ModuleList(Block(d, d) for _ in range(config.context_blocks))
        if "global" in config.contexts:
            self.global_attention = TokenAttention(d, config.heads)
            self.global_ffn = GatedFfn(d, d)
        if "local" in config.contexts:
            self.local_ffn = GatedFfn(d, d)
        # One head for each channel group: `group` means, then `group` scales.
        self.heads = nn.ModuleList(Linear(d, 2 * group, gain=0.5) for _ in range(4))

    def stage(self, name: str, x: Tensor, features: dict[str, Tensor], t: Tensor) -> Tensor:
        """One context: `x` `[N, H, W, D]` in and out."""
        if name == "regional":
            for block in self.regional_blocks:
                x = block(x, t)
            return x
        if name == "global":
            keys, values = features["global"].chunk(2, -1)
            return self.global_ffn(self.global_attention(x, keys, values))
        return self.local_ffn(x if self.merge_once else x + features["local"])

    def forward(self, x: Tensor, features: dict[str, Tensor], t: Tensor) -> Tensor:
        if self.merge_once and "local" in features:
            x = x + features["local"]
        for name in self.order:
            x = self.stage(name, x, features, t)
        return operand(x)


class Contextualiser(nn.Module):
    """c with its per-step input layer: y_hat so far and phi_r -> D, then the shared core."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.context_width
        self.decoded = nn.ModuleList(WideLinear(config.latent, d) for _ in range(STEPS - 1))
        self.feature = nn.ModuleList(Linear(d, d, conditional=True) for _ in range(STEPS))
        self.local = Linear(d, d) if "local" in config.contexts else None
        self.cores = nn.ModuleList(ContextCore(config) for _ in range(1 if config.shared else STEPS))

    def prepare(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What does not depend on the step: phi_r and phi_l as operands, phi_l projected."""
        ready = dict(features)
        if "regional" in features:
            ready["regional"] = operand(features["regional"])
        if self.local is not None:
            ready["local"] = self.local(operand(features["local"]))
        return ready

    def forward(
        self, step: int, y_hat: Tensor | None, features: dict[str, Tensor], t: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Mean and log2 scale in the latent's own unit, for the four parities: `[N, H/2, W/2, M/4]` each.

        Args:
            step: 0..3.
            y_hat: decoded so far, zero elsewhere, `[N, H, W, M]`; None in step 0.
            features: of `prepare`.
            t: quality.
        """
        core = self.cores[step if len(self.cores) > 1 else 0]
        x = self.feature[step](features["regional"], t)
        if y_hat is not None:
            x = x + self.decoded[step - 1](y_hat)
        x = core(x, features, t)
        out = []
        for p, sites in enumerate(parity_split(x)):
            mean, scale = core.heads[p ^ QUADTREE[step]](sites).chunk(2, -1)
            out.append((mean, scale))
        return out
