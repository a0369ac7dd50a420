"""The float model inside CompressAI: `compressai.registry.MODELS["dca-paper"]`, and "dca" for any preset.

For research: training recipes, comparisons and tools written for CompressAI's models. Its streams use this project's
tables and rANS coder, but means and scales are floats here, so they decode on the machine that made them; files that
decode everywhere come from `dca_fast.Codec`. Importing this module registers the models; it needs the extra
`dca-fast[compressai]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.config import ALIGN, QUADTREE, QUALITY_MAX, STEPS, ModelConfig, coarse_to_fine, preset
from dca_fast.entropy.coder import Coder, Decoder
from dca_fast.errors import ConfigError, WeightsError
from dca_fast.model import trellis
from dca_fast.model.context import parity_join
from dca_fast.model.network import Network, straight_through
from dca_fast.model.rates import gaussian_bits, noisy_bits
from dca_fast.model.transforms import pad_image
from dca_fast.model.walk import Source, axis, code_hyper, code_latent
from dca_fast.network.walk import Grid
from dca_fast.train.export import load_float

try:
    from compressai.models.base import CompressionModel
    from compressai.registry import register_model
except ImportError as missing:
    raise ImportError(f"this needs `pip install 'dca-fast[compressai]'`: {missing}") from missing

LIMIT = 32767  # of one symbol


class Likelihoods:
    """Keeps the likelihood of every symbol; straight-through gradients."""

    def __init__(self, noisy: bool) -> None:
        self.noisy = noisy
        self.z: dict[str, list[Tensor]] = {}
        self.y: list[Tensor] = []

    def hyper(self, name: str, residual: Tensor | None, log2_scale: Tensor, coded: Tensor) -> Tensor:
        assert residual is not None
        rounded = straight_through(residual, torch.round(residual) * coded)
        bits = noisy_bits(residual, log2_scale) if self.noisy else gaussian_bits(rounded, log2_scale) * coded
        self.z.setdefault(name, []).append(torch.exp2(-bits))
        return rounded

    def step(self, residuals: list[Tensor] | None, log2_scales: list[Tensor], coded: list[Tensor]) -> list[Tensor]:
        assert residuals is not None
        seen, spent = trellis.step(residuals, log2_scales, coded, price=not self.noisy)
        if self.noisy:
            spent = [noisy_bits(r, s) for r, s in zip(residuals, log2_scales, strict=True)]
        self.y.extend(torch.exp2(-bits) for bits in spent)
        return [straight_through(r, s) for r, s in zip(residuals, seen, strict=True)]

    def maps(self, config: ModelConfig, sites: tuple[int, int]) -> dict[str, Tensor]:
        """`[N, C, h, w]` of each latent, by its name in CompressAI; `sites` (h, w) of y."""
        maps = {}
        for name, shape in config.hyper_shapes(*sites).items():
            maps[f"z_{name}"] = self.z[name][0].new_empty(len(self.z[name][0]), *shape)
            for part, likelihood in zip(coarse_to_fine(config.levels(name)), self.z[name], strict=True):
                maps[f"z_{name}"][part.sites] = likelihood
        quarters: list[list[Tensor]] = [[Tensor()] * 4 for _ in range(4)]
        for i, likelihood in enumerate(self.y):
            step, parity = divmod(i, 4)
            quarters[parity][parity ^ QUADTREE[step]] = likelihood
        maps["y"] = parity_join([torch.cat(groups, -1) for groups in quarters])
        return {name: value.permute(0, 3, 1, 2) for name, value in maps.items()}


def _step_rows(log2_scales: list[Tensor], coded: list[Tensor]) -> npt.NDArray[np.uint8]:
    return np.concatenate([trellis.table_rows(*pair) for pair in zip(log2_scales, coded, strict=True)])


def _in_quantiser_steps(values: npt.NDArray[np.int16], like: list[Tensor]) -> list[Tensor]:
    return [trellis.to_quantiser_steps(v, x) for v, x in zip(np.split(values, len(like)), like, strict=True)]


class Writer:
    """Keeps values and rows of one image for the coder."""

    def __init__(self) -> None:
        self.parts: list[tuple[Any, Any]] = []
        self.plain = 0  # parts before those of the trellis

    def hyper(self, name: str, residual: Tensor | None, log2_scale: Tensor, coded: Tensor) -> Tensor:
        assert residual is not None
        symbols = residual.round().clamp(-LIMIT, LIMIT) * coded
        self.parts.append((symbols.to(torch.int16).flatten().cpu().numpy(), trellis.table_rows(log2_scale, coded)))
        self.plain += 1
        return symbols

    def step(self, residuals: list[Tensor] | None, log2_scales: list[Tensor], coded: list[Tensor]) -> list[Tensor]:
        assert residuals is not None
        rows = _step_rows(log2_scales, coded)
        values = trellis.quantise(torch.cat([r.flatten() for r in residuals]), rows)
        self.parts.append((values, rows))
        return _in_quantiser_steps(values, residuals)


class Reader:
    """Takes the values of one image from its stream."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self._step = decoder, 0

    def hyper(self, name: str, residual: Tensor | None, log2_scale: Tensor, coded: Tensor) -> Tensor:
        symbols = torch.from_numpy(self.decoder.decode(trellis.table_rows(log2_scale, coded)))
        return symbols.to(log2_scale).view(log2_scale.shape)

    def step(self, residuals: list[Tensor] | None, log2_scales: list[Tensor], coded: list[Tensor]) -> list[Tensor]:
        self._step += 1
        values = self.decoder.decode(_step_rows(log2_scales, coded), trellis=True, last=self._step == STEPS)
        return _in_quantiser_steps(values, log2_scales)


@register_model("dca")
class Dca(CompressionModel):
    """DCA (arXiv 2411.05832) as a CompressAI model; one network serves every quality.

    Args:
        model: preset or configuration; default: "dca-s".
        quality: 0..100, of every call that names no other.
    """

    DEFAULT = "dca-s"
    config: Tensor

    def __init__(self, model: str | ModelConfig | None = None, quality: float = 60.0) -> None:
        super().__init__()
        model = model or self.DEFAULT
        self.network = Network(preset(model) if isinstance(model, str) else model)
        self.quality = quality
        # Part of the state: widths alone do not tell one configuration from another.
        text = json.dumps(self.network.config.to_dict()).encode()
        self.register_buffer("config", torch.tensor(list(text), dtype=torch.uint8))
        self._coder: Coder | None = None

    def _qualities(self, quality: float | Tensor | None, like: Tensor) -> Tensor:
        """`[N]` float32 for the samples of `like`."""
        value = torch.as_tensor(self.quality if quality is None else quality, dtype=torch.float32)
        if not ((value >= 0) & (value <= QUALITY_MAX)).all():
            raise ConfigError(f"quality must be within 0..{QUALITY_MAX:g}, got {quality}")
        return value.to(like.device).expand(len(like))

    def _y(self, x: Tensor, t: Tensor) -> Tensor:
        image = x.permute(0, 2, 3, 1) * 255 - 128
        y: Tensor = self.network.analysis(pad_image(image, ALIGN), t)
        return y

    def _walk(self, y: Tensor | None, sites: tuple[int, int], quality: Tensor, source: Source) -> Tensor:
        """All latents in the order of a file: y_hat `[N, h, w, M]`."""
        net, t = self.network, axis(quality)
        z = None if y is None else {name: pair.analyse(y, t) for name, pair in net.hyper.items()}
        z_hat = code_hyper(net, source, z, sites, quality)
        features = net.context.prepare(net.synthesise_hyper(z_hat, t))
        return code_latent(net, source, y, features, sites, quality)[0]

    def _pixels(self, y_hat: Tensor, t: Tensor, size: tuple[int, int]) -> Tensor:
        image = self.network.synthesis(y_hat, t)[:, : size[0], : size[1]]
        pixels: Tensor = (image + 128).permute(0, 3, 1, 2) / 255
        return pixels

    def forward(self, x: Tensor, quality: float | Tensor | None = None) -> dict[str, Any]:
        """Code a batch.

        Args:
            x: RGB, `[N, 3, H, W]` float32 in 0..1, any size.
            quality: 0..100, one number or `[N]`.

        Returns:
            "x_hat" `[N, 3, H, W]`, and "likelihoods" `[N, C, h, w]` of "y", "z_local", "z_regional", "z_global": of
            noisy values in training, of the symbols otherwise.
        """
        qualities, likelihoods = self._qualities(quality, x), Likelihoods(self.training)
        t = axis(qualities)
        y = self._y(x, t)
        sites = y.shape[1], y.shape[2]
        y_hat, maps = self._walk(y, sites, qualities, likelihoods), likelihoods.maps(self.network.config, sites)
        return {"x_hat": self._pixels(y_hat, t, (x.shape[2], x.shape[3])), "likelihoods": maps}

    def update(self, scale_table: Any = None, force: bool = False, update_quantiles: bool = False) -> bool:
        """Build the entropy coder; its tables are part of the format and depend on no weights.

        Returns:
            Whether there was anything to do.

        Raises:
            ConfigError: another scale table was asked for.
        """
        if scale_table is not None:
            raise ConfigError("the scale table is part of the format")
        if self._coder is not None and not force:
            return False
        self._coder = trellis.gaussian_coder()
        return True

    def _coder_here(self) -> Coder:
        self.update()
        assert self._coder is not None
        return self._coder

    @torch.no_grad()
    def compress(self, x: Tensor, quality: float | None = None) -> dict[str, Any]:
        """Code each image of `[N, 3, H, W]` in 0..1 by itself, so that it decodes in any batch.

        Returns:
            "strings": one list with a stream for each image; "shape": (H, W), which `decompress` needs.
        """
        coder, streams = self._coder_here(), []
        for image in x.split(1):
            qualities, writer = self._qualities(quality, image), Writer()
            y = self._y(image, axis(qualities))
            self._walk(y, (y.shape[1], y.shape[2]), qualities, writer)
            streams.append(coder.encode(writer.parts, plain=writer.plain))
        return {"strings": [streams], "shape": (x.shape[2], x.shape[3])}

    @torch.no_grad()
    def decompress(
        self, strings: list[list[bytes]], shape: tuple[int, int], quality: float | None = None
    ) -> dict[str, Tensor]:
        """Inverse of `compress` at the same quality: "x_hat" `[N, 3, H, W]` in 0..1.

        Raises:
            BitstreamError: not such a stream, or one made at another quality.
        """
        coder, images = self._coder_here(), []
        height, width = shape
        sites = Grid.of(height, width).sites
        for stream in strings[0]:
            qualities, decoder = self._qualities(quality, self.network.log2_gain[:1]), coder.decoder(stream)
            y_hat = self._walk(None, sites, qualities, Reader(decoder))
            decoder.finish()
            images.append(self._pixels(y_hat, axis(qualities), (height, width)))
        return {"x_hat": torch.cat(images).clamp(0, 1)}

    def aux_loss(self) -> Tensor:
        """Zero: the factorised models have no quantiles that need an optimiser of their own."""
        return torch.zeros((), device=self.network.log2_gain.device, requires_grad=True)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Take the weights of another `Dca`.

        Raises:
            WeightsError: they belong to another configuration.
        """
        config = state_dict.get("config")
        if config is not None and bytes(config.tolist()) != bytes(self.config.tolist()):
            raise WeightsError(f"weights of {bytes(config.tolist()).decode()} for {self.network.config}")
        return super().load_state_dict(state_dict, strict=strict)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> Dca:
        """A model with the configuration and weights of `state_dict`."""
        if "config" not in state_dict:
            raise WeightsError("no state of a Dca model: it holds no configuration")
        config = ModelConfig.from_dict(json.loads(bytes(state_dict["config"].tolist())))
        if config.blocks > len(state_dict):
            raise WeightsError(f"the state lacks most of {config.blocks} blocks")
        model = cls(config)
        model.load_state_dict(state_dict)
        return model

    @classmethod
    def from_checkpoint(cls, path: Path, quality: float = 60.0) -> Dca:
        """A model with the averaged weights of a training (`checkpoint.pt`) or float weights (`.safetensors`).

        `dca_fast.train.export.save_float(model.network, path)` writes what `dca-fast train --start` and
        `dca-fast export` read.
        """
        network = load_float(Path(path))
        model = cls(network.config, quality)
        model.network.load_state_dict(network.state_dict())
        return model


@register_model("dca-paper")
class DcaPaper(Dca):
    """The model nearest to the paper: `dca_fast.config.PRESETS["dca-paper"]` says which widths are whose."""

    DEFAULT = "dca-paper"
