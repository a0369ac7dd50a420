"""The trainer: data from a folder, initialisation, progress, resume."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dca_fast.config import LAMBDA_MAX, LAMBDA_MIN, ModelConfig
from dca_fast.errors import InputError, WeightsError
from dca_fast.export import load_float
from dca_fast.model.layers import depth_to_space, space_to_depth
from dca_fast.model.network import Network
from dca_fast.testing import photograph
from dca_fast.train.data import Photographs
from dca_fast.train.klt import principal_components, start_from_components
from dca_fast.train.trainer import Recipe, Trainer, loss_of

TINY = ModelConfig(
    "tiny", width=32, latent=64, latent_hidden=32, context_width=32, heads=2, local=4, regional=16, tokens=4
)
RECIPE = Recipe(minutes=0.05, batch=2, crop=64, warmup=5, compile=False, save_minutes=1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(3):
        Image.fromarray(photograph(128 + 16 * i, 160, i)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 this is not a photograph")
    Image.fromarray(photograph(32, 32)).save(folder / "small.png")
    return Photographs(folder, folder / "cache" / "pack", smallest=128)


def test_photographs_are_packed_once_and_bad_ones_counted(photographs: Photographs) -> None:
    assert len(photographs.images) == 3
    assert photographs.skipped == 2
    assert np.array_equal(photographs.images[0], photograph(128, 160, 0))
    batch = photographs.batch(np.random.default_rng(0), 4, 64)
    assert batch.shape == (4, 64, 64, 3)
    assert -128 <= batch.min() < batch.max() <= 127
    assert torch.equal(batch, photographs.batch(np.random.default_rng(0), 4, 64))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        Photographs(tmp_path, tmp_path / "cache")


def test_components_are_orthonormal_and_ordered() -> None:
    torch.manual_seed(0)
    basis, deviation = principal_components(torch.randn(4000, 12) * torch.arange(1, 13), 6)
    assert torch.allclose(basis @ basis.T, torch.eye(6), atol=1e-5)
    assert (deviation.diff() <= 0).all()
    assert deviation[0] == pytest.approx(12, rel=0.1)


def test_the_start_is_an_orthonormal_transform(photographs: Photographs) -> None:
    """Without blocks, synthesis of analysis loses only the dropped components."""
    config = ModelConfig(**{**TINY.to_dict(), "width": 192, "latent": 768, "tokens": 4})
    network = Network(config)
    start_from_components(network, photographs)
    a, s = network.analysis, network.synthesis
    x = photographs.batch(np.random.default_rng(1), 1, 64)
    y = a.merge(space_to_depth(a.embed(space_to_depth(x / 16, 8))))
    back = depth_to_space(s.pixels(depth_to_space(s.split(y))) * 4, 8)
    assert (back - x).abs().max() < 0.05


def test_loss_is_rate_plus_lambda_times_error() -> None:
    image = torch.zeros(2, 8, 8, 3)
    out = {
        "image": image + 3,
        "bits": torch.tensor([74.0, 64.0]),
        "bits_y": torch.tensor([[64.0], [64.0]]),
        "bits_z": torch.tensor([[10.0], [0.0]]),
    }
    loss, bpp, mse = loss_of(out, image, torch.tensor([0.0, 100.0]), 0.0, torch.tensor(0.5))
    assert bpp.tolist() == pytest.approx([74 / 64, 1])
    assert mse.tolist() == [9, 9]
    assert float(loss) == pytest.approx((69 / 64 + 9 * LAMBDA_MIN + 1 + 9 * LAMBDA_MAX) / 2)


def test_training_lowers_the_loss_and_resumes(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(TINY, photographs, tmp_path, RECIPE)

    def fixed_loss() -> float:
        image = photographs.batch(np.random.default_rng(5), 8, 64)
        quality = torch.linspace(0, 100, 8)
        with torch.no_grad():
            out = trainer.network(image, quality, noisy=False)
        return float(loss_of(out, image, quality, RECIPE.balance, torch.tensor(1.0))[0])

    before = fixed_loss()
    for _ in range(60):
        trainer.train_step(1.0)
    assert fixed_loss() < 0.9 * before
    trainer.save()
    again = Trainer(TINY, photographs, tmp_path, RECIPE)
    assert again.step == 60
    for a, b in zip(trainer.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)
    # The same next step, from weights, averages, optimiser and data order.
    trainer.generator = np.random.default_rng((RECIPE.seed, 60))
    torch.manual_seed(7)
    first = trainer.train_step(1.0)[0]
    torch.manual_seed(7)
    assert again.train_step(1.0)[0] == first
    for a, b in zip(trainer.average.values(), again.average.values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_model_is_refused(photographs: Photographs, tmp_path: Path) -> None:
    Trainer(TINY, photographs, tmp_path, RECIPE).save()
    with pytest.raises(WeightsError, match="another configuration"):
        Trainer(replace(TINY, tokens=8), photographs, tmp_path, RECIPE)


def test_a_start_from_weights_is_past_the_ramp(photographs: Photographs, tmp_path: Path) -> None:
    first = Trainer(TINY, photographs, tmp_path / "first", RECIPE)
    state = {key: value.clone() for key, value in first.network.state_dict().items()}
    again = Trainer(TINY, photographs, tmp_path / "again", RECIPE, start=state)
    assert again.step == RECIPE.ramp
    assert all(torch.equal(value, state[key]) for key, value in again.network.state_dict().items())


def test_run_writes_log_and_checkpoint(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(TINY, photographs, tmp_path, RECIPE)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["config"]["name"] == "tiny"
    assert trainer.step > 0
    average = load_float(tmp_path / "checkpoint.pt")
    assert average.config == TINY


def test_learning_rate_warms_up_stays_and_falls(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(TINY, photographs, tmp_path, RECIPE)
    assert trainer.learning_rate(0, 0.0) == pytest.approx(1 / RECIPE.warmup)
    assert trainer.learning_rate(100, 0.5) == 1
    assert trainer.learning_rate(100, 1.0) == pytest.approx(RECIPE.final)
