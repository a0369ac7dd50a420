"""Analysis f_a and synthesis f_s. An image is `[N, H, W, 3]` in grey levels minus 128, sides multiples of 64.

y comes out of f_a, and enters f_s, in the latent's own unit: each channel divided by its typical deviation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dca_fast.config import PATCH, ModelConfig
from dca_fast.model.layers import Block, WideLinear, depth_to_space, space_to_depth

PIXEL_GAIN = 1 / 16  # grey levels -> input of the first layer
OUTPUT_GAIN = 4.0  # output of the last layer -> grey levels


class PatchAnalysis(nn.Module):
    """8x8 patches -> blocks at 1/8 -> 2x2 merge -> blocks at 1/16.

    `unit8` and `unit16` are the deviations of the trunk's channels. `dca_fast.train.klt` sets them, and the two
    projections, from the principal components of photographs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("unit8", torch.ones(config.width))
        self.register_buffer("unit16", torch.ones(config.latent))
        self.embed = WideLinear(3 * PATCH**2, config.width)
        self.merge = WideLinear(4 * config.width, config.latent)
        fine, coarse = config.analysis_blocks
        hidden8, hidden16 = config.analysis_hidden or (config.width, config.latent_hidden)
        self.blocks8 = nn.ModuleList(Block(config.width, hidden8, self.unit8) for _ in range(fine))
        self.blocks16 = nn.ModuleList(Block(config.latent, hidden16, self.unit16) for _ in range(coarse))

    def forward(self, image: Tensor, t: Tensor) -> Tensor:
        x = self.embed(space_to_depth(image * PIXEL_GAIN, PATCH))
        for block in self.blocks8:
            x = block(x, t)
        x = self.merge(space_to_depth(x))
        for block in self.blocks16:
            x = block(x, t)
        return x / self.unit16


class PatchSynthesis(nn.Module):
    """Mirror of `PatchAnalysis`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("unit8", torch.ones(config.width))
        self.register_buffer("unit16", torch.ones(config.latent))
        self.split = WideLinear(config.latent, 4 * config.width)
        self.pixels = WideLinear(config.width, 3 * PATCH**2)
        fine, coarse = config.synthesis_blocks
        self.blocks16 = nn.ModuleList(Block(config.latent, config.latent_hidden, self.unit16) for _ in range(coarse))
        self.blocks8 = nn.ModuleList(Block(config.width, config.width, self.unit8) for _ in range(fine))

    def forward(self, y_hat: Tensor, t: Tensor) -> Tensor:
        x = y_hat * self.unit16
        for block in self.blocks16:
            x = block(x, t)
        x = depth_to_space(self.split(x))
        for block in self.blocks8:
            x = block(x, t)
        return depth_to_space(self.pixels(x) * OUTPUT_GAIN, PATCH)

    def linear_adjoint(self, error: Tensor) -> Tensor:
        """An error of pixels `[N, H, W, 3]` through the two projections backwards: `[N, H/16, W/16, M]`."""
        at_8 = space_to_depth(error, PATCH) @ self.pixels.weight * OUTPUT_GAIN
        return space_to_depth(at_8) @ self.split.weight * self.unit16


class _Residual(nn.Module):
    """1x1, 3x3, 1x1 bottleneck with ReLU (ELIC's residual bottleneck)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n, n // 2, 1),
            nn.ReLU(),
            nn.Conv2d(n // 2, n // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(n // 2, n, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _Attention(nn.Module):
    """ELIC's (Cheng et al., CVPR 2020) attention without non-local part: x + a * sigmoid(b)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(_Residual(n) for _ in range(3)))
        self.mask = nn.Sequential(*(_Residual(n) for _ in range(3)), nn.Conv2d(n, n, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.trunk(x) * self.mask(x).sigmoid()


def _down(i: int, o: int) -> nn.Module:
    return nn.Conv2d(i, o, 5, stride=2, padding=2)


def _up(i: int, o: int) -> nn.Module:
    return nn.ConvTranspose2d(i, o, 5, stride=2, padding=2, output_padding=1)


class ElicAnalysis(nn.Module):
    """ELIC f_a (He et al., CVPR 2022, figure 4): four stride-2 5x5 convolutions, bottlenecks, two attentions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n, m = config.width, config.latent
        r = lambda: [_Residual(n) for _ in range(3)]  # noqa: E731
        self.body = nn.Sequential(
            _down(3, n), *r(), _down(n, n), *r(), _Attention(n), _down(n, n), *r(), _down(n, m), _Attention(m)
        )

    def forward(self, image: Tensor, t: Tensor) -> Tensor:
        return self.body(image.permute(0, 3, 1, 2) / 64).permute(0, 2, 3, 1)


class ElicSynthesis(nn.Module):
    """Mirror of `ElicAnalysis`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n, m = config.width, config.latent
        r = lambda: [_Residual(n) for _ in range(3)]  # noqa: E731
        self.body = nn.Sequential(
            _Attention(m), _up(m, n), *r(), _up(n, n), _Attention(n), *r(), _up(n, n), *r(), _up(n, 3)
        )

    def forward(self, y_hat: Tensor, t: Tensor) -> Tensor:
        return self.body(y_hat.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * 64


def build_transforms(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """f_a and f_s of the configuration."""
    if config.transforms == "elic":
        return ElicAnalysis(config), ElicSynthesis(config)
    return PatchAnalysis(config), PatchSynthesis(config)


def pad_image(image: Tensor, multiple: int) -> Tensor:
    """Replicate the last line and column of `[N, H, W, 3]` up to multiples of `multiple`."""
    h, w = image.shape[1:3]
    x = F.pad(image.permute(0, 3, 1, 2), (0, -w % multiple, 0, -h % multiple), mode="replicate")
    return x.permute(0, 2, 3, 1)
