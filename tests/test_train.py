"""The trainer: data from folders, packs and shards, initialisation, progress, resume, many processes, the end."""

import functools
import io
import json
import math
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dca_fast.cli.parser import main
from dca_fast.config import LAMBDA_MAX, LAMBDA_MIN, ModelConfig, price
from dca_fast.entropy.tables import SYMBOLS, Tables, build_gaussian_tables
from dca_fast.errors import ConfigError, InputError, TrainingError, WeightsError
from dca_fast.model.layers import depth_to_space, space_to_depth
from dca_fast.model.network import Network
from dca_fast.testing import photograph
from dca_fast.train import pack, sharded, tune_gains
from dca_fast.train import trainer as trainer_module
from dca_fast.train.data import DeviceImages, Images, Photographs, Shards, open_data, read_pixels
from dca_fast.train.export import load_float
from dca_fast.train.finish import export_and_check, plot_losses
from dca_fast.train.klt import principal_components, start_from_components
from dca_fast.train.recorded import RecordedStep
from dca_fast.train.trainer import Recipe, Trainer, in_bfloat16, learning_rate, loss_of, make_optimiser
from tests.recording_tools import overwrite_unowned, recorded

ROOT = Path(__file__).resolve().parents[1]
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


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="soap or adam"):
        make_optimiser(Network(TINY), Recipe(optimiser="sgd"))


def test_a_heavier_analysis_begins_as_the_lighter_one() -> None:
    torch.manual_seed(2)
    light = Network(TINY).eval()
    with torch.no_grad():
        for p in light.parameters():
            p.add_(0.1 * torch.randn_like(p))
    heavy = Network(replace(TINY, analysis_blocks=(3, 3), analysis_hidden=(48, 40))).eval()
    heavy.load_state_dict(trainer_module.grown(light.state_dict(), heavy))
    image, t = torch.randn(1, 64, 128, 3) * 40, torch.tensor([0.3]).view(1, 1, 1, 1)
    assert torch.allclose(heavy.analysis(image, t), light.analysis(image, t), atol=1e-4)
    assert sum(p.numel() for p in heavy.parameters()) > sum(p.numel() for p in light.parameters())


def test_modules_of_parts_can_be_trained(photographs: Photographs, tmp_path: Path) -> None:
    recipe = replace(RECIPE, minutes=0, steps=1, modules=("analysis.blocks8.1",), rates="expected", optimiser="adam")
    trainer = Trainer(TINY, photographs, tmp_path, recipe)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.run()
    moved = {name for name, p in trainer.network.named_parameters() if not p.equal(before[name])}
    assert moved
    assert all(name.startswith("analysis.blocks8.1.") for name in moved)
    for wrong in (replace(recipe, rates="loud"), replace(recipe, modules=("analysis.blocks9",))):
        with pytest.raises(ConfigError, match=r"rates|parts"):
            Trainer(TINY, photographs, tmp_path / "other", wrong)


def test_parts_alone_are_trained(photographs: Photographs, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = Network(TINY).state_dict()
    recipe = replace(RECIPE, minutes=0, steps=3, modules=("synthesis", "context"))
    trainer = Trainer(TINY, photographs, tmp_path, recipe, start=start)
    trainer.step = trainer.first = 0  # the start is past the ramp, and with it past so few steps
    trainer.run()
    changed = {name.split(".")[0] for name, value in trainer.network.named_parameters() if not value.equal(start[name])}
    assert changed == {"synthesis", "context"}
    for modules in ((), ("synthesis", "decoder")):
        with pytest.raises(ConfigError, match="parts must be among analysis, context"):
            Trainer(TINY, photographs, tmp_path / "other", replace(recipe, modules=modules))


def test_effort_1_is_trained_without_the_analysis(photographs: Photographs, tmp_path: Path) -> None:
    for modules in (None, ("analysis", "synthesis")):
        with pytest.raises(ConfigError, match="effort 1 is for parts without"):
            Trainer(TINY, photographs, tmp_path / "refused", replace(RECIPE, effort=1, modules=modules))
    losses = []
    for effort in (0, 1):
        recipe = replace(RECIPE, effort=effort, modules=("synthesis", "context"))
        losses.append(Trainer(TINY, photographs, tmp_path / str(effort), recipe).train_step(1.0)[0])
    assert losses[1] < 0.98 * losses[0]


def test_the_rate_alone_is_trained_without_the_synthesis(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for modules in (None, ("context", "synthesis"), ("analysis",)):
        with pytest.raises(ConfigError, match="bits alone"):
            Trainer(TINY, photographs, tmp_path / "refused", replace(RECIPE, rate_only=True, modules=modules))
    recipe = replace(RECIPE, minutes=0, steps=2, rate_only=True, balance=0.0, modules=("context", "hyper"))
    trainer = Trainer(TINY, photographs, tmp_path / "run", recipe)
    monkeypatch.setattr(trainer.network.synthesis, "forward", None)
    loss, bpp, _, _ = trainer.train_step(1.0)
    assert 0 < loss <= float(bpp.mean()) + 1e-5  # hyper latents count a tenth at first
    trainer.run()
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["psnr"] is None
    assert last["step"] == 2
    plot_losses(tmp_path / "run" / "log.jsonl", tmp_path / "losses.svg")


def test_training_with_adaptive_quantisation_prices_errors_by_site(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(TINY, photographs, tmp_path, replace(RECIPE, aq_strength=0.9375))
    image, quality, noise = trainer.batch_of(0)
    torch.manual_seed(noise)
    with torch.no_grad():
        out = trainer.network(image, quality, aq_strength=0.9375)
    assert out["worth"].unique().numel() > 2
    losses = [
        float(loss_of(o, image, quality, 0.4, torch.tensor(0.1))[0]) for o in (out, out | {"worth": torch.ones(1)})
    ]
    assert float(trainer.train_step(1.0)[0]) == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


def test_photographs_are_packed_once_and_bad_ones_counted(photographs: Photographs) -> None:
    assert len(photographs.images) == 3
    assert photographs.skipped == 2
    assert np.array_equal(photographs.images[0], photograph(128, 160, 0))
    batch = photographs.batch(np.random.default_rng(0), 4, 64)
    assert batch.shape == (4, 64, 64, 3)
    assert -128 <= batch.min() < batch.max() <= 127
    assert torch.equal(batch, photographs.batch(np.random.default_rng(0), 4, 64))
    # Every process makes its own share of the batch.
    assert torch.equal(batch[1::2], photographs.batch(np.random.default_rng(0), 4, 64, slice(1, None, 2)))


def jpeg(seed: int, side: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photograph(side, side, seed)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data))


def test_shards_are_read_in_place_and_bad_samples_counted(tmp_path: Path) -> None:
    good = {f"{i:06d}.jpg": jpeg(i) for i in range(3)}
    bad = {"000003.jpg": jpeg(3)[:900], "000004.jpg": b"nothing", "000005.jpg": jpeg(5, 32), "000005.cls": b"7"}
    make_shard(tmp_path / "a-000000.tar", good | {"000000.json": b"{}"})
    make_shard(tmp_path / "a-000001.tar", bad)
    shards = open_data(tmp_path, tmp_path / "unused", 64)
    assert isinstance(shards, Shards)
    assert len(shards.members) == 6
    batch = shards.batch(np.random.default_rng(0), 40, 64)
    assert batch.shape == (40, 64, 64, 3)
    assert shards.skipped == 3
    # What was skipped before does not change what is drawn.
    assert torch.equal(batch, shards.batch(np.random.default_rng(0), 40, 64))
    assert torch.equal(batch[::2], shards.batch(np.random.default_rng(0), 40, 64, slice(0, None, 2)))
    assert isinstance(open_data(tmp_path / "a-000000.tar", tmp_path / "unused", 64), Shards)


def test_shards_without_usable_photographs_are_refused(tmp_path: Path) -> None:
    make_shard(tmp_path / "labels.tar", {"000000.cls": b"7"})
    with pytest.raises(InputError, match="no images"):
        Shards([tmp_path / "labels.tar"])
    (tmp_path / "text.tar").write_text("no tar file")
    with pytest.raises(InputError, match="not a tar file"):
        Shards([tmp_path / "text.tar"])
    make_shard(tmp_path / "bad.tar", {"000000.jpg": b"nothing"})
    with pytest.raises(InputError, match="could not be used, 1 in all"):
        Shards([tmp_path / "bad.tar"]).batch(np.random.default_rng(0), 1, 64)


def test_a_pack_is_read_without_its_folder(photographs: Photographs, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, side in enumerate((64, 128)):
        Image.fromarray(photograph(side, side, i)).save(folder / f"{i}.png")
    Photographs(folder, tmp_path / "pack", 64)
    pack = open_data(tmp_path / "pack.bin", tmp_path / "unused", 100)
    assert isinstance(pack, Images)
    assert [image.shape for image in pack.images] == [(128, 128, 3)]
    assert np.array_equal(pack.images[0], photograph(128, 128, 1))
    assert pack.skipped == 1
    with pytest.raises(InputError, match="at least 200 pixels"):
        open_data(tmp_path / "pack.bin", tmp_path / "unused", 200)


def test_a_cache_is_that_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any crash, and after any change of the folder; nothing of others is replaced, nothing is left behind."""
    folders = tmp_path / "one", tmp_path / "two"
    for level, folder in enumerate(folders):
        folder.mkdir()
        Image.new("RGB", (64, 64), (50 + 100 * level,) * 3).save(folder / "a.png")
    cache = tmp_path / "cache.v1"

    def level(folder: Path) -> list[int]:
        return [int(image[0, 0, 0]) for image in Photographs(folder, cache, 64).images]

    assert level(folders[0]) == [50]
    assert sorted(path.name for path in tmp_path.glob("cache*")) == ["cache.v1.bin", "cache.v1.json"]
    with monkeypatch.context() as patch:
        patch.setattr("dca_fast.train.data.write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # between the pixels and the index
            level(folders[1])
    with pytest.raises(InputError, match="without an index"):
        level(folders[0])
    (tmp_path / "cache.v1.bin").unlink()
    assert level(folders[0]) == [50]
    Image.new("RGB", (64, 64), (7, 7, 7)).save(folders[0] / "b.png")
    assert level(folders[0]) == [50, 7]
    with (tmp_path / "cache.v1.bin").open("ab") as file:
        file.write(b"more")
    assert level(folders[0]) == [50, 7]
    with monkeypatch.context() as patch:
        patch.setattr("dca_fast.train.data.read_pixels", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            level(folders[1])
    assert level(folders[0]) == [50, 7]
    for foreign in ("[]", "{", '{"shapes": 3}'):
        (tmp_path / "cache.v1.json").write_text(foreign)
        with pytest.raises(InputError, match="is no index of photographs"):
            level(folders[0])
        assert (tmp_path / "cache.v1.json").read_text() == foreign
    assert sorted(path.name for path in tmp_path.glob("cache*")) == ["cache.v1.bin", "cache.v1.json"]
    with pytest.raises(InputError, match="no packed photographs"):
        open_data(tmp_path / "none.bin", tmp_path / "unused", 64)


def test_photographs_are_read_as_the_codec_reads_them(
    tmp_path: Path, benchmark_script: Callable[[str], ModuleType]
) -> None:
    """Gray of 16 bits is reduced, not cut off; whatever a plugin raises about damage, the photograph is left out."""
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert np.abs(Photographs(tmp_path, tmp_path / "cache", 64).images[0][..., 0] - ramp / 257).max() < 0.51
    mutate, draw, skipped = benchmark_script("measure/hostile").mutate, np.random.default_rng(0), 0
    for extension in ("avif", "tif", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(photograph(64, 64)).save(buffer, "TIFF" if extension == "tif" else extension)
        skipped += sum(read_pixels(io.BytesIO(mutate(buffer.getvalue(), draw)), "x", 64) is None for _ in range(40))
    assert skipped > 10


def test_a_pack_has_every_crop(tmp_path: Path) -> None:
    Image.fromarray(photograph(64, 64)).save(tmp_path / "a.png")
    counts = {pack.write_pack(tmp_path, tmp_path / "a.crops", 1 << 20, 32, threads=threads) for threads in (1, 2, 3)}
    assert counts == {len(list(pack.crops(tmp_path, 32, 0)))}


def test_a_checkpoint_of_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than ten, and fewer than there were."""
    monkeypatch.setattr(sharded, "LIMIT", 40)
    for count in (12, 3):
        network = {f"{i:02}": torch.full((8,), float(i)) for i in range(count)}
        state = {"network": network, "average": network, "format": 1, "step": count, "first": 0, "config": {}}
        paths = sharded.write_shards(state, tmp_path, "a", {})
        assert sharded.shard_files(tmp_path, "a") == paths
        back, _ = sharded.read_shards(tmp_path, "a")
        assert back["step"] == count
        assert all(torch.equal(back["network"][key], value) for key, value in network.items())


@pytest.mark.parametrize(
    ("option", "value"),
    [("--minutes", "-1"), ("--minutes", "nan"), ("--rate", "0"), ("--rate", "inf"), ("--seed", "-1")],
)
def test_numbers_of_a_training(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--out", "out", "--data", "x", option, value])
    assert "must be" in capsys.readouterr().err


def test_a_pack_travels(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as it may be and no larger, of all photographs, and the same pixels but for what AVIF loses."""
    folder, out = tmp_path / "photographs", tmp_path / "pack.crops"
    folder.mkdir()
    sources = [photograph(96 + 32 * i, 160, i) for i in range(3)]
    for i, pixels in enumerate(sources):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    Image.fromarray(photograph(48, 200)).save(folder / "small.png")
    arguments = ["pack", str(folder), str(out), "--side", "64", "--mib"]
    monkeypatch.setattr(sys, "argv", [*arguments, "0.03"])
    assert pack.main() == 0
    assert 20_000 < out.stat().st_size <= 0.03 * (1 << 20)
    data = open_data(out, tmp_path / "unused", 64)
    assert isinstance(data, Images)
    assert f"{len(data.images)} crops" in capsys.readouterr().out
    assert all(image.shape == (64, 64, 3) for image in data.images)

    def found_in(crop: np.ndarray, image: np.ndarray) -> bool:
        windows = np.lib.stride_tricks.sliding_window_view(image[..., 1], (64, 64)).astype(np.int16)
        return bool((np.abs(windows - crop[..., 1]).mean((2, 3)) < 4).any())

    homes = [[found_in(crop, image) for image in sources].index(True) for crop in data.images]
    assert sorted(homes[:3]) == [0, 1, 2]
    monkeypatch.setattr(sys, "argv", [*arguments, "4"])  # more than there is
    assert pack.main() == 0
    assert len(open_data(out, tmp_path / "unused", 64).images) > len(homes)  # type: ignore[attr-defined]
    for wrong in (["0.001"], ["1", "--side", "256"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *wrong])
        assert pack.main() == 2
    (tmp_path / "text.crops").write_text("no pack")
    for name in ("text.crops", "nowhere.crops"):
        with pytest.raises(InputError, match="not a pack"):
            open_data(tmp_path / name, tmp_path / "unused", 64)
    with pytest.raises(InputError, match="at least 65 pixels"):
        open_data(out, tmp_path / "unused", 65)


def test_held_out_photographs_are_not_trained_on() -> None:
    images = [np.full((64, 64, 3), i, np.uint8) for i in range(7)]
    rest, held = Images(images).hold_out(3)
    assert [int(image[0, 0, 0]) for image in rest.images] == [1, 2, 4, 5]
    assert [int(image[0, 0, 0]) for image in held.images] == [0, 3, 6]
    with pytest.raises(InputError, match="too few"):
        Images(images).hold_out(8)


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
    # Strong and weak components in every group of the quadtree.
    assert a.unit16.equal(s.unit16)
    assert (a.unit16.view(4, -1).T.flatten().diff() <= 0).all()


def test_loss_is_rate_plus_lambda_times_error_at_its_price() -> None:
    image, worth = torch.zeros(2, 8, 8, 3), torch.ones(2, 8, 8, 1)
    worth[1, :2] = 3
    out = {
        "image": image + 3,
        "worth": worth,
        "bits": torch.tensor([74.0, 64.0]),
        "bits_y": torch.tensor([[64.0], [64.0]]),
        "bits_z": torch.tensor([[10.0], [0.0]]),
    }
    loss, bpp, mse = loss_of(out, image, torch.tensor([0.0, 100.0]), 0.0, torch.tensor(0.5))
    assert bpp.tolist() == pytest.approx([74 / 64, 1])
    assert mse.tolist() == [9, 9]
    assert float(loss) == pytest.approx((69 / 64 + 9 * LAMBDA_MIN + 1 + 9 * 1.5 * LAMBDA_MAX) / 2)


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


def weights_after(photographs: Photographs, folder: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    trainer = Trainer(TINY, photographs, folder, recipe)
    trainer.run()
    return trainer.network.state_dict() | {f"average.{key}": value for key, value in trainer.average.items()}


def test_a_stopped_training_goes_on_as_if_it_had_not_been(photographs: Photographs, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=6, warmup=2, save_minutes=0)
    whole = weights_after(photographs, tmp_path / "whole", recipe)

    class Killed(Exception):
        """Stands for what ends the process."""

    trainer = Trainer(TINY, photographs, tmp_path / "resumed", recipe)
    step = trainer.train_step

    def until_killed(factor: float) -> tuple:
        if trainer.step == 3:
            raise Killed
        return step(factor)

    trainer.train_step = until_killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run()
    torch.rand(99)  # whatever else the process drew does not matter
    resumed = weights_after(photographs, tmp_path / "resumed", recipe)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    # Nothing is left to do.
    again = Trainer(TINY, photographs, tmp_path / "resumed", recipe)
    again.run()
    assert again.step == 6


@pytest.fixture
def in_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings do on the CPU what they do on a GPU, but for the search of the trellis."""
    monkeypatch.setattr(trainer_module, "uploaded", lambda photographs, device: DeviceImages(photographs, device))
    monkeypatch.setattr(trainer_module, "recorded_in_graphs", lambda recipe, device: recipe.record)
    monkeypatch.setattr(trainer_module, "RecordedStep", functools.partial(RecordedStep, make=recorded))


@pytest.mark.usefixtures("in_graphs")
@pytest.mark.parametrize("change", [{}, {"aq_strength": 0.1875, "modules": ("synthesis", "context"), "effort": 1}])
def test_recorded_steps_are_those_launch_by_launch(change: dict, photographs: Photographs, tmp_path: Path) -> None:
    """Also where memory that nobody owns is overwritten, stopped and resumed, and beyond a turn of the eigenbases."""
    recipe = replace(RECIPE, **change)

    def trained(record: bool) -> tuple[Trainer, list[float]]:
        trainer = Trainer(TINY, photographs, tmp_path / str(record), replace(recipe, record=record))
        losses = [float(trainer.train_step(1.0)[0]) for _ in range(5 - trainer.step)]
        if record and losses:
            overwrite_unowned(trainer.recorded)
        losses += [float(trainer.train_step(1.0)[0]) for _ in range(4)]
        trainer.save()
        return trainer, losses

    start = Trainer(TINY, photographs, tmp_path / "start", recipe).network.state_dict()
    (graphs, mine), (plain, theirs) = trained(True), trained(False)
    assert graphs.step == plain.step == 9
    # Eigenvectors of few gradients magnify their last digits, from the first turn of the eigenbases on.
    assert mine[:4] == pytest.approx(theirs[:4], rel=1e-5)
    assert mine == pytest.approx(theirs, rel=0.03)
    for name, value in plain.network.named_parameters():
        moved = (value - start[name]).norm()
        assert (graphs.network.get_parameter(name) - value).norm() <= 0.25 * moved, name
        assert (graphs.average[name] - plain.average[name]).norm() <= 0.25 * moved, name
    (graphs, mine), (plain, theirs) = trained(True), trained(False)
    assert graphs.step == plain.step == 13
    assert mine == pytest.approx(theirs, rel=0.03)


@pytest.mark.usefixtures("in_graphs")
def test_a_recorded_step_leaves_out_what_is_not_finite(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(TINY, photographs, tmp_path, RECIPE)
    for _ in range(3):
        trainer.train_step(1.0)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    squares = [state["square"].clone() for state in trainer.optimiser.state.values() if "square" in state]
    trainer.crops = None  # type: ignore[assignment]
    recorded_step = trainer.recorded
    assert recorded_step is not None
    recorded_step._crops = lambda batch: torch.full((RECIPE.batch, 64, 64, 3), torch.nan)
    trainer.train_step(1.0)
    assert all(p.equal(before[name]) for name, p in trainer.network.named_parameters())
    after = [state["square"] for state in trainer.optimiser.state.values() if "square" in state]
    assert all(a.equal(b) for a, b in zip(squares, after, strict=True))


@pytest.mark.gpu
def test_a_gpu_trains_as_the_host_says(photographs: Photographs, tmp_path: Path) -> None:
    """Recorded and fused, recorded alone, and launch by launch: the same losses but for bfloat16."""
    losses = {}
    for record, fused in ((True, True), (True, False), (False, True), (False, False)):
        recipe = replace(RECIPE, batch=8, record=record, fused=fused, aq_strength=0.1875)
        trainer = Trainer(TINY, photographs, tmp_path / f"{record}{fused}", recipe, "cuda")
        assert (trainer.recorded is not None) is record
        losses[record, fused] = [float(trainer.train_step(1.0)[0]) for _ in range(60)]  # two turns of the bases
        assert trainer.average["log2_gain"].isfinite().all()
    plain = losses.pop((False, False))
    for curve in losses.values():
        assert curve[:5] == pytest.approx(plain[:5], rel=0.02)
        assert np.mean(curve[-20:]) == pytest.approx(np.mean(plain[-20:]), rel=0.05)


def test_crops_on_a_device_are_those_of_the_host(photographs: Photographs) -> None:
    on_device = DeviceImages(photographs, "cpu")
    for indices in (slice(None), slice(1, None, 3)):
        host, device = (np.random.default_rng(8) for _ in range(2))
        offsets = on_device.offsets(device, 40, 64, indices)
        assert on_device.cut(offsets, 64).equal(photographs.batch(host, 40, 64, indices))
        assert host.random() == device.random()


PROCESS = """
import functools
import sys
from pathlib import Path
import torch
from dca_fast.config import ModelConfig
from dca_fast.train import trainer as trainer_module
from dca_fast.train.data import DeviceImages, open_data
from dca_fast.train.trainer import Recipe, Trainer
from dca_fast.train.world import join
from tests.recording_tools import recorded

torch.set_num_threads(1)
noise, torch.rand_like = torch.rand_like, lambda x: torch.full_like(x, 0.5)  # none
pack, out, config = Path(sys.argv[1]), Path(sys.argv[2]), ModelConfig(**eval(sys.argv[3]))
with join("cpu") as world:
    with world.first_alone():
        data = open_data(pack, pack, 64)
    recipe = Recipe(steps=2, batch=1, crop=64, warmup=1)
    trainer = Trainer(config, data, out, recipe, start=None, world=world)
    image, quality, _ = trainer.batch_of(0)
    trainer.forward(image, quality, torch.tensor(1.0))[0].backward()
    torch.rand_like = noise
    if world.rank == 0:
        torch.save({n: p.grad for n, p in trainer.network.named_parameters()}, out / "gradients.pt")
    trainer.run()
    torch.save(trainer.network.state_dict(), out / f"weights{world.rank}.pt")
    # By the clock: the first process's, so that no process waits for one that has stopped.
    timed = Trainer(config, data, out / "timed", Recipe(minutes=0.02, batch=1, crop=64), world=world)
    timed.run()
    (out / f"steps{world.rank}").write_text(str(timed.step))
    # As on GPUs: recorded steps, which average gradients themselves, from crops in the memory of each.
    trainer_module.uploaded = lambda photographs, device: DeviceImages(photographs, device)
    trainer_module.recorded_in_graphs = lambda recipe, device: True
    trainer_module.RecordedStep = functools.partial(trainer_module.RecordedStep, make=recorded)
    graphs = Trainer(config, data, out / "graphs", recipe, start=None, world=world)
    graphs.run()
    torch.save(graphs.network.state_dict(), out / f"graphs{world.rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(photograph(128, 128, i)).save(folder / f"{i}.png")
    pack = tmp_path / "pack.bin"
    data = Photographs(folder, pack, 64)
    trainer = Trainer(TINY, data, tmp_path / "one", replace(RECIPE, batch=2))
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))  # no noise
    image, quality, _ = trainer.batch_of(0)
    trainer.forward(image, quality, torch.tensor(1.0))[0].backward()

    (tmp_path / "process.py").write_text(PROCESS)
    out = tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "process.py"), str(pack), str(out), repr(TINY.to_dict())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([*torchrun, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    gradients = torch.load(out / "gradients.pt", weights_only=True)
    both = {name: p.grad.clone() for name, p in trainer.network.named_parameters()}
    trainer.network.zero_grad()
    trainer.forward(image[:1], quality[:1], torch.tensor(1.0))[0].backward()
    half = {name: p.grad for name, p in trainer.network.named_parameters()}

    def distance(a: dict, b: dict) -> float:
        """Largest difference of one parameter's gradient, as a share of its size."""
        return max(float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-12)) for name in b)

    # Where the GEMMs of int8 layers are in bfloat16, whose steps are 1/256, their sums depend on the order that much.
    assert distance(gradients, both) < 1 / 64
    assert distance(half, both) > 1 / 4
    first, second = (torch.load(out / f"weights{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(second[key], value) for key, value in first.items())
    assert int((out / "steps0").read_text()) == int((out / "steps1").read_text()) > 0
    graphs, others = (torch.load(out / f"graphs{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(others[key], value) for key, value in graphs.items())
    assert all(torch.allclose(value, first[key], atol=1e-4) for key, value in graphs.items())
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line.get("processes") for line in lines] == [2, None]
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 2


def test_bfloat16_convolutions_are_close_to_float32() -> None:
    config = ModelConfig.from_dict(TINY.to_dict() | {"transforms": "elic", "width": 16})
    network, image = Network(config).eval(), torch.randn(1, 64, 64, 3) * 40
    plain = network.analysis(image, torch.zeros(1))
    in_bfloat16(network.analysis, "cpu")
    y = network.analysis(image, torch.zeros(1))
    assert y.dtype == torch.float32
    error = (y - plain).abs().max() / plain.abs().max()
    assert 0 < error < 0.05


def test_a_checkpoint_of_another_model_is_refused(photographs: Photographs, tmp_path: Path) -> None:
    Trainer(TINY, photographs, tmp_path, RECIPE).save()
    with pytest.raises(WeightsError, match="another configuration"):
        Trainer(replace(TINY, tokens=8), photographs, tmp_path, RECIPE)


def test_a_checkpoint_of_an_older_trainer_is_refused(photographs: Photographs, tmp_path: Path) -> None:
    Trainer(TINY, photographs, tmp_path, RECIPE).save()
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["format"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match="another version of the trainer"):
        Trainer(TINY, photographs, tmp_path, RECIPE)


def hostile_checkpoints(whole: dict, draw: np.random.Generator) -> Iterator[object]:
    """What is no checkpoint, or one of which a part is missing, of another kind or of another size."""
    yield from ([], 7, {}, {"config": 7}, {"config": {"name": 7, 5: 6}}, whole | {"config": {}})
    for key in whole:
        yield {name: value for name, value in whole.items() if name != key}
        yield from (whole | {key: other} for other in (None, [], "seven", {"name": 1}, {3: torch.ones(2)}))
    blocks = {"context_blocks": 4096, "local_blocks": 4096, "shared": False}
    for huge in ({"width": 4096, "latent": 4096}, {"width": 1 << 40}, {"analysis_blocks": [64, 64]}, blocks):
        yield whole | {"config": whole["config"] | huge}
    for _ in range(40):
        part = ("network", "average")[draw.integers(2)]
        tensors = dict(whole[part])
        name = list(tensors)[draw.integers(len(tensors))]
        kind = draw.integers(4)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            tensors[f"{name}.more"] = tensors[name]
        else:
            tensors[name] = torch.ones(3, 1, 7) if kind == 2 else "no tensor"
        yield whole | {part: tensors}


def test_hostile_checkpoints_raise_one_kind_of_error_or_work(
    photographs: Photographs, tmp_path: Path, benchmark_script: Callable[[str], ModuleType]
) -> None:
    """A training that would go on from one, and what reads its average."""
    Trainer(TINY, photographs, tmp_path, RECIPE).save()
    path, draw, outcomes = tmp_path / "checkpoint.pt", np.random.default_rng(0), Counter[str]()
    content, mutate = path.read_bytes(), benchmark_script("measure/hostile").mutate

    def cases() -> Iterator[bytes]:
        yield from (content[:size] for size in (0, 1, 100, len(content) // 2, len(content) - 1))
        for _ in range(20):  # the pickle, then the directory of the archive
            yield mutate(content[:4000], draw) + content[4000:]
            yield content[:-4000] + mutate(content[-4000:], draw)
        for case in hostile_checkpoints(torch.load(io.BytesIO(content), weights_only=True), draw):
            buffer = io.BytesIO()
            torch.save(case, buffer)
            yield buffer.getvalue()

    for case in cases():
        path.write_bytes(case)
        for use in (lambda: load_float(path), lambda: Trainer(TINY, photographs, tmp_path, RECIPE)):
            try:
                use()
                outcomes["works"] += 1
            except WeightsError:
                outcomes["refused"] += 1
        assert path.read_bytes() == case
    assert outcomes["refused"] > 100


@pytest.mark.parametrize("worst", [1.15, 1.3, math.nan])
def test_a_training_that_goes_astray_stops(
    worst: float, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "WATCHED", 3)
    trainer = Trainer(TINY, photographs, tmp_path, replace(RECIPE, steps=12))
    losses = iter([2.0, 1.0, 1.0, 1.0, 1.0, worst, worst, worst, worst, 1.0, 1.0, 1.0])

    def step(factor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        trainer.step += 1
        return torch.tensor(next(losses)), *(torch.ones(1),) * 3

    monkeypatch.setattr(trainer, "train_step", step)
    if worst == 1.15:
        trainer.run()
        assert trainer.step == 12
    else:
        with pytest.raises(TrainingError, match=r"the loss rose from 1\.000"):
            trainer.run()
        assert not (tmp_path / "checkpoint.pt").exists()


def test_a_start_from_weights_is_past_the_ramp(photographs: Photographs, tmp_path: Path) -> None:
    first = Trainer(TINY, photographs, tmp_path / "first", RECIPE)
    state = {key: value.clone() for key, value in first.network.state_dict().items()}
    again = Trainer(TINY, photographs, tmp_path / "again", RECIPE, start=state)
    assert again.step == RECIPE.ramp
    assert all(torch.equal(value, state[key]) for key, value in again.network.state_dict().items())


def test_a_start_without_levels_expects_nothing_of_neighbours(photographs: Photographs, tmp_path: Path) -> None:
    start = Network(TINY).eval()
    levels = replace(TINY, regional_levels=2)
    trainer = Trainer(levels, photographs, tmp_path, RECIPE, start=start.state_dict())
    x, quality = photographs.batch(np.random.default_rng(0), 1, 128), torch.tensor([90.0])
    with torch.no_grad():
        want, have = start(x, quality), trainer.network.eval()(x, quality)
    assert torch.allclose(want["bits"], have["bits"])
    assert torch.equal(want["image"], have["image"])


def test_a_shared_c_becomes_the_start_of_one_for_each_step(photographs: Photographs, tmp_path: Path) -> None:
    start = Network(TINY).eval()
    per_step = replace(TINY, shared=False)
    trainer = Trainer(per_step, photographs, tmp_path / "run", RECIPE, start=start.state_dict())
    x, quality = photographs.batch(np.random.default_rng(0), 1, 64), torch.tensor([60.0])
    with torch.no_grad():
        want, have = start(x, quality), trainer.network.eval()(x, quality)
    assert torch.equal(want["bits_y"], have["bits_y"])
    assert len(trainer.network.context.cores) == 4
    # Their own weights are left as they are, and a c for each step does not become a shared one.
    state = Network(per_step).state_dict()
    again = Trainer(per_step, photographs, tmp_path / "again", RECIPE, start=state)
    assert all(torch.equal(value, state[key]) for key, value in again.network.state_dict().items())
    with pytest.raises(WeightsError, match="another configuration"):
        Trainer(TINY, photographs, tmp_path / "other", RECIPE, start=state)


def test_the_trellis_of_a_training_is_searched_with_its_tables(photographs: Photographs, tmp_path: Path) -> None:
    gaussian = build_gaussian_tables()
    level = Tables(np.full_like(gaussian.freq, (1 << 12) // SYMBOLS), gaussian.shift)  # all symbols cost the same
    losses = []
    for i, tables in enumerate((None, gaussian, level)):
        trainer = Trainer(TINY, photographs, tmp_path / str(i), RECIPE, tables=tables)
        losses.append(trainer.train_step(1.0)[0])
    assert losses[0] == losses[1] != losses[2]


def test_the_end_of_a_training(photographs: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, pictures = tmp_path / "run", tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(photograph(64, 80, 9)).save(pictures / "a.png")
    Trainer(TINY, photographs, out, replace(RECIPE, steps=2)).run()
    line = export_and_check(out / "checkpoint.pt", tmp_path / "weights.safetensors")
    assert "reference" in line
    assert (tmp_path / "weights.safetensors").exists()
    log = (out / "log.jsonl").read_text()
    (out / "log.jsonl").write_text(log + log.splitlines()[-1][:9])  # a run was killed while it wrote
    Trainer(TINY, photographs, out, replace(RECIPE, steps=3)).run()
    assert (out / "log.jsonl").read_text().startswith(log + log.splitlines()[-1][:9] + "\n{")
    plot_losses(out / "log.jsonl", tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    # The same by the command; without --data nothing is trained.
    asked = ("--plot", tmp_path / "again.svg", "--validate", pictures)
    assert main([str(a) for a in ("train", "--out", out, *asked)]) == 0
    assert "dB" in capsys.readouterr().out
    assert json.loads((out / "validation.json").read_text())["per_image"]
    assert (tmp_path / "again.svg").read_text().startswith("<?xml")
    assert main([str(a) for a in ("train", "--out", out, *asked)]) == 2
    assert "again.svg exists; --force replaces it" in capsys.readouterr().err
    assert main([str(a) for a in ("train", "--out", out, *asked, "--force")]) == 0
    for _ in range(2):  # what lies beside the checkpoint is of the training, which goes on by the same command
        assert main([str(a) for a in ("train", "--out", out, "--plot", out / "losses.png")]) == 0
    before = (out / "checkpoint.pt").read_bytes(), (out / "log.jsonl").read_bytes()
    for name in ("checkpoint.pt", "log.jsonl"):
        assert main([str(a) for a in ("train", "--out", out, "--plot", out / "a.png", "--export", out / name)]) == 2
        assert f"{name} exists and was not made by this program" in capsys.readouterr().err
    assert before == ((out / "checkpoint.pt").read_bytes(), (out / "log.jsonl").read_bytes())


def test_a_training_makes_the_folder_of_its_outputs(tmp_path: Path) -> None:
    out, pictures = tmp_path / "new", tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(photograph(300, 280, 9)).save(pictures / "a.png")
    command = ("train", "--data", pictures, "--out", out, "--steps", 1, "--batch", 1, "--crop", 64, "--threads", 1)
    assert main([str(a) for a in (*command, "--plot", tmp_path / "none" / "losses.png")]) == 2
    assert not out.exists()
    assert main([str(a) for a in (*command, "--plot", out / "losses.png")]) == 0
    assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --data"),
        (("--plot", "losses.txt"), "a plot is"),
        (("--plot", "losses.png"), "holds no losses"),
        (("--data", "x", "--preset", "dca-paper", "--export", "w.safetensors"), "no integer program"),
        (("--data", "x", "--validate", "nowhere"), "not a folder"),
        (("--data", "nowhere"), "no images"),
    ],
)
def test_train_refuses_before_it_works(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_run_writes_log_and_checkpoint(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(TINY, photographs, tmp_path, RECIPE)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["config"]["name"] == "tiny"
    assert lines[0]["recipe"]["parts"] is None  # the name of `modules` on the command line and in the log
    assert trainer.step > 0
    average = load_float(tmp_path / "checkpoint.pt")
    assert average.config == TINY


def test_learning_rate_warms_up_stays_and_falls() -> None:
    assert learning_rate(RECIPE, 0, 0.0) == pytest.approx(1 / RECIPE.warmup)
    assert learning_rate(RECIPE, 100, 0.5) == 1
    assert learning_rate(RECIPE, 100, 1.0) == pytest.approx(RECIPE.final)


def test_steps_of_bands_go_where_files_are_cheapest() -> None:
    """Parabolas with minima that sum to zero, on slopes that trade bits for errors at the price of each knot."""
    wanted = 0.1 * np.array([0.2, -0.4, 0.6, 0, 0, -0.6, 0.3, -0.3, 0.2])
    changes = np.concatenate([np.zeros((1, 9)), np.kron(np.eye(9), [[-tune_gains.DELTA], [tune_gains.DELTA]])])
    finer, bowl = changes @ np.linspace(0.1, 0.5, 9), 0.5 * np.square(changes - wanted).sum(1)
    prices = np.array([price(quality) for quality in tune_gains.QUALITIES])
    bits = np.broadcast_to(1 + finer[:, None], (19, 9))
    errors = (1 - finer + bowl)[:, None] / prices
    octaves = tune_gains.best(np.stack([bits, errors], -1))
    assert np.abs(octaves - wanted).max() < 1e-9
    gains = tune_gains.change(torch.zeros(9, 384), octaves)
    for start in range(0, 384, 96):
        assert gains[:, start : start + 4].flatten().tolist() == pytest.approx([0.02, 0.02, -0.04, -0.04] * 9)
