"""DCA inside CompressAI: its calls, its checks, and the way of a checkpoint into it and back."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dca_fast.config import ModelConfig
from dca_fast.errors import BitstreamError, ConfigError, WeightsError
from dca_fast.model.network import Network
from dca_fast.testing import photograph
from dca_fast.train.data import Images
from dca_fast.train.export import load_float, save_float
from dca_fast.train.trainer import Recipe, Trainer

TINY = ModelConfig(
    "tiny", width=32, latent=64, latent_hidden=32, context_width=32, heads=2, local=4, regional=16, tokens=4
)
LATENTS = {"y", "z_local", "z_regional", "z_global"}


@pytest.fixture(scope="module")
def models() -> Any:
    """The module, once CompressAI and what it warns about are loaded."""
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("compressai", reason="needs the extra dca-fast[compressai]")
        return importlib.import_module("dca_fast.model.compressai")


@pytest.fixture
def model(models: Any) -> Any:
    """Untrained, but with scales wide enough for its values, as a trained one has."""
    torch.manual_seed(3)
    model = models.Dca(TINY, quality=70).eval()
    with torch.no_grad():
        for head in model.network.context.cores[0].heads:
            head.bias.chunk(2)[1].add_(4)
        for factorised in model.network.factorised.values():
            factorised.log2_scale.fill_(2)
    return model


def picture(n: int = 1, height: int = 80, width: int = 100) -> torch.Tensor:
    return torch.stack([torch.from_numpy(photograph(height, width, i)) for i in range(n)]).permute(0, 3, 1, 2) / 255


def test_models_are_registered(models: Any) -> None:
    from compressai.registry import MODELS

    assert MODELS["dca"](TINY).network.config == TINY
    assert MODELS["dca-paper"] is models.DcaPaper
    with torch.device("meta"):
        assert MODELS["dca-paper"]().network.config.name == "dca-paper"


def test_the_package_does_not_need_compressai() -> None:
    code = "import sys; sys.modules['compressai'] = None; import dca_fast.cli\nfrom dca_fast import Codec"
    subprocess.run([sys.executable, "-c", code], check=True)
    failing = f"{code}\nimport dca_fast.model.compressai"
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True)
    assert done.returncode == 1
    assert "dca-fast[compressai]" in done.stderr


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (80, 100), (17, 1)])
def test_forward_has_the_shapes_of_compressai(model: Any, training: bool, size: tuple[int, int]) -> None:
    x = picture(2, *size)
    out = model.train(training)(x)
    assert out["x_hat"].shape == x.shape
    assert set(out["likelihoods"]) == LATENTS
    h, w = (-(-side // 64) * 4 for side in size)
    shapes = {name: tuple(value.shape) for name, value in out["likelihoods"].items()}
    assert shapes == {
        "y": (2, 64, h, w),
        "z_local": (2, 4, h, w),
        "z_regional": (2, 16, h // 4, w // 4),
        "z_global": (2, 16, 1, 4),
    }
    for value in out["likelihoods"].values():
        assert 0 < value.min() <= value.max() <= 1


@pytest.mark.parametrize(
    "change",
    [{}, {"contexts": ("regional",)}, {"contexts": ("local", "regional"), "shared": False}, {"regional_levels": 2}],
)
def test_likelihoods_are_the_bits_of_the_network(models: Any, change: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(TINY.to_dict() | change)
    model, x = models.Dca(config, quality=40).eval(), picture(2, 64, 128)
    with torch.no_grad():
        out = model(x)
        own = model.network(x.permute(0, 2, 3, 1) * 255 - 128, torch.full((2,), 40.0))
    bits = sum(-value.log2().flatten(1).sum(1) for value in out["likelihoods"].values())
    assert torch.allclose(bits, own["bits"], rtol=1e-4)
    assert torch.allclose(out["x_hat"], (own["image"].permute(0, 3, 1, 2) + 128) / 255, atol=1e-5)


def test_gradients_reach_every_parameter(model: Any) -> None:
    from compressai.losses import RateDistortionLoss

    x = picture(2, 64, 64)
    loss = RateDistortionLoss(lmbda=0.01)(model.train()(x), x)["loss"] + model.aux_loss()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.aux_loss().item() == 0


@pytest.mark.parametrize("size", [(64, 64), (50, 130)])
def test_decompress_gives_what_forward_gives(model: Any, size: tuple[int, int]) -> None:
    assert model.update() is True
    assert model.update() is False
    assert model.update(force=True) is True
    x = picture(2, *size)
    packed = model.compress(x)
    x_hat = model.decompress(packed["strings"], packed["shape"])["x_hat"]
    with torch.no_grad():
        out = [model(image) for image in x.split(1)]
    assert torch.allclose(x_hat, torch.cat([o["x_hat"] for o in out]).clamp(0, 1), atol=1e-5)
    for stream, o in zip(packed["strings"][0], out, strict=True):
        bits = sum(-float(value.log2().sum()) for value in o["likelihoods"].values())
        # y's bits are those of the tables, z's those of scales that the tables round to 1/12 octave.
        assert 8 * len(stream) == pytest.approx(bits, rel=0.01, abs=100)


def test_quality_is_an_argument_and_an_attribute(model: Any) -> None:
    x = picture()
    sizes = [len(model.compress(x, quality)["strings"][0][0]) for quality in (10, 50, 90)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    model.quality = 10
    packed = model.compress(x)
    assert len(packed["strings"][0][0]) == sizes[0]
    with torch.no_grad():
        spread = model(x.repeat(2, 1, 1, 1), quality=torch.tensor([10.0, 90.0]))
    assert torch.allclose(spread["x_hat"][0], model(x)["x_hat"][0], atol=1e-3)
    with pytest.raises(BitstreamError):
        model.decompress(packed["strings"], packed["shape"], quality=90)
    with pytest.raises(ConfigError, match="quality"):
        model(x, quality=101)
    with pytest.raises(ConfigError, match="scale table"):
        model.update([1.0, 2.0])


def test_state_carries_the_configuration(models: Any, model: Any, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    again = models.Dca.from_state_dict(state).eval()
    assert again.network.config == TINY
    x = picture()
    with torch.no_grad():
        assert torch.equal(again(x, 70)["x_hat"], model(x)["x_hat"])
    other = models.Dca(ModelConfig.from_dict(TINY.to_dict() | {"contexts": ("local", "global", "regional")}))
    with pytest.raises(WeightsError, match="tiny"):
        other.load_state_dict(state)
    with pytest.raises(WeightsError, match="no configuration"):
        models.Dca.from_state_dict({})


def test_a_checkpoint_goes_into_compressai_and_back(models: Any, tmp_path: Path) -> None:
    data = Images([photograph(128, 128, i) for i in range(2)])
    trainer = Trainer(TINY, data, tmp_path / "run", Recipe(batch=1, crop=64))
    trainer.train_step(1.0)
    trainer.save()
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    model = models.Dca.from_checkpoint(checkpoint)
    average = load_float(checkpoint)
    # One more step in CompressAI's way, through its kind of file.
    x = picture(1, 64, 64)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    (model.train()(x)["x_hat"] - x).square().mean().backward()
    optimiser.step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    back = models.Dca.from_state_dict(state).network
    assert any(not torch.equal(a, b) for a, b in zip(back.parameters(), average.parameters(), strict=True))
    on = Trainer(TINY, data, tmp_path / "on", Recipe(batch=1, crop=64), start=back.state_dict())
    for a, b in zip(on.network.parameters(), back.parameters(), strict=True):
        assert torch.equal(a, b)
    save_float(back, tmp_path / "back.safetensors")
    assert isinstance(load_float(tmp_path / "back.safetensors"), Network)
    for a, b in zip(load_float(tmp_path / "back.safetensors").parameters(), back.parameters(), strict=True):
        assert np.allclose(a.detach(), b.detach(), rtol=1e-3, atol=1e-6)
