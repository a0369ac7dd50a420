"""Twins of the entropy model: what they share, what they do not, how they are compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dca_fast.cli.parser import main
from dca_fast.config import ModelConfig
from dca_fast.errors import InputError
from dca_fast.model.network import Network
from dca_fast.testing import photograph
from dca_fast.train import ablate
from dca_fast.train.ablate import BASE, TWINS, Plan, build, entropy, run, train_twin, training_latents
from dca_fast.train.ablate_report import confidence, plot, summarise, table
from dca_fast.train.data import Images
from dca_fast.train.export import save_float

TINY = ModelConfig(
    "tiny", width=32, latent=64, latent_hidden=32, context_width=32, heads=2, local=4, regional=16, tokens=4
)
PLAN = Plan(steps=2, batch=2, crop=64, pool=4, tested=2, qualities=(20.0, 80.0), seeds=(0,))


@pytest.fixture
def start() -> Network:
    torch.manual_seed(5)
    return Network(TINY).eval()


@pytest.fixture(scope="module")
def data() -> Images:
    return Images([photograph(96, 96, i) for i in range(3)])


def test_a_twin_inherits_the_regional_path_and_nothing_else(start: Network) -> None:
    given = start.state_dict()
    for name in TWINS:
        state = build(name, start, 1, inherited=True).state_dict()
        for key in ("hyper.regional.analysis_in.weight", "context.feature.2.weight", "context.decoded.0.weight"):
            assert torch.equal(state[key], given[key])
        assert torch.equal(state["context.cores.0.heads.3.weight"], given["context.cores.0.heads.3.weight"])
        fresh = [key for key in state if "local" in key or "global" in key]
        assert not any(torch.equal(state[key], given[key]) for key in fresh if key in given and key.endswith("weight"))
    each = build("per-step", start, 1, inherited=True).context.cores
    assert len(each) == 4
    assert torch.equal(each[3].heads[1].weight, given["context.cores.0.heads.1.weight"])
    scratch = build("r", start, 1, inherited=False).state_dict()
    assert not torch.equal(scratch["context.feature.2.weight"], given["context.feature.2.weight"])


def test_transforms_and_gains_are_shared_and_stay(start: Network, data: Images) -> None:
    before = {key: value.clone() for key, value in start.state_dict().items()}
    network = build("rgl", start, 1, inherited=True)
    own = {key: value.clone() for key, value in network.state_dict().items()}
    losses: list[float] = []
    train_twin(network.train(), training_latents(start, data, PLAN), PLAN, losses.append)
    assert len(losses) == PLAN.steps
    assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())
    frozen = ("analysis.", "synthesis.", "log2_gain")
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, own[key])}
    assert moved
    assert not any(key.startswith(frozen) for key in moved)
    trained = {name.removesuffix(".weight") for name, p in network.named_parameters() if p.requires_grad}
    assert not any(name.startswith(frozen) for name in trained)


def test_training_lowers_the_rate(start: Network, data: Images) -> None:
    plan = replace(PLAN, steps=40, warmup=2)
    losses: list[float] = []
    train_twin(build("rl", start, 0, True).train(), training_latents(start, data, plan), plan, losses.append)
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


def test_bits_are_those_of_the_whole_network(start: Network, data: Images) -> None:
    image, quality = data.batch(np.random.default_rng(0), 2, 64), torch.tensor([20.0, 80.0])
    with torch.no_grad():
        whole = start(image, quality)
        entropy_model = entropy(start, start.analysis(image, ablate.axis(quality)), quality, False)
    for key in ("bits_y", "bits_z", "error"):
        assert torch.equal(entropy_model[key], whole[key])


def test_scales_from_phi_do_not_see_decoded_latents(start: Network) -> None:
    context = build("phi-scales", start, 0, True).context
    assert isinstance(context, ablate.ScalesFromPhi)
    t = torch.zeros(1, 1, 1, 1)
    z = {name: torch.randn(1, 4, 4, c) for name, c in (("local", 4), ("regional", 16))}
    z["regional"], z["global"] = z["regional"][:, :1, :1], torch.randn(1, 1, 4, 16)
    network = build("phi-scales", start, 0, True)
    with torch.no_grad():
        features = context.prepare(network.synthesise_hyper(z, t))
        one, two = (context(2, torch.randn(1, 4, 4, 64), features, t) for _ in range(2))
    for (mean, scale), (other, same) in zip(one, two, strict=True):
        assert torch.equal(scale, same)
        assert not torch.equal(mean, other)


def test_every_twin_runs_and_is_not_run_again(
    start: Network, data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list(run(start, data, data, PLAN, tmp_path, tuple(TWINS)))
    assert [line["twin"] for line in lines] == list(TWINS)
    assert all(set(line["test"]) == {"20", "80"} for line in lines)
    for line in lines:
        for test in line["test"].values():
            assert test["bpp"] == pytest.approx(sum(test["bpp_steps"]) + sum(test["bpp_side"].values()))
    monkeypatch.setattr(ablate, "one_twin", lambda *_: pytest.fail("trained again"))
    assert list(run(start, data, data, PLAN, tmp_path, tuple(TWINS))) == lines
    with pytest.raises(InputError, match="another plan"):
        list(run(start, data, data, replace(PLAN, steps=3), tmp_path, ("r",)))
    with pytest.raises(InputError, match="no twin 'x'"):
        list(run(start, data, data, PLAN, tmp_path, ("x",)))
    with pytest.raises(InputError, match="multiple of 64"):
        list(run(start, data, data, replace(PLAN, crop=100), tmp_path, ("r",)))


def line(twin: str, seed: int, bpp: float, psnr: float = 30.0) -> dict:
    test = {"bpp_steps": [bpp / 5] * 4, "bpp_side": {"regional": bpp / 5}, "bpp": bpp, "rms_steps": [1.0] * 4}
    return {"twin": twin, "seed": seed, "parameters": 7, "test": {"50": test | {"psnr": psnr}}}


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    lines = [line(BASE, 0, 1.0), line(BASE, 1, 2.0), line("rgl", 0, 0.9, 30.1), line("rgl", 1, 1.84, 30.3)]
    report = summarise(lines, {"start": "x"})
    twin = report["twins"]["rgl"]
    assert twin["percent_seeds"] == pytest.approx([-10, -8])
    assert twin["percent"] == pytest.approx(-9)
    assert twin["percent_confidence"] == pytest.approx(12.71)  # t with one degree of freedom * deviation / sqrt(2)
    assert twin["psnr_gain"] == pytest.approx(0.2)
    assert report["twins"][BASE]["percent"] == 0
    text = table(report)
    assert "-9.00 ± 12.71 %" in text
    assert len({row.count("|") for row in text.splitlines()}) == 1
    plot(report, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="a plot is"):
        plot(report, tmp_path / "ablation.txt")
    with pytest.raises(InputError, match="no twin 'r' with seed 3"):
        summarise([*lines, line("rgl", 3, 1.0)], {})


def test_confidence_needs_more_than_one_seed() -> None:
    assert confidence([1.0]) is None
    assert confidence([1.0, 1.0, 1.0]) == 0
    assert confidence([0.0, 1.0] * 50) == pytest.approx(1.96 * 0.5025 / 10, rel=1e-3)


def test_the_command_writes_table_json_and_plot(
    start: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "photographs", tmp_path / "out"
    folder.mkdir()
    for i in range(11):
        Image.fromarray(photograph(256, 256, i)).save(folder / f"{i:02d}.png")
    save_float(start, tmp_path / "start.safetensors")
    options = ("--start", tmp_path / "start.safetensors", "--twins", "r,rl", "--steps", 1, "--crop", 64)
    arguments = ("ablate", "--data", folder, "--out", out, *options, "--qualities", "50", "--seeds", "3")
    assert main([str(a) for a in arguments]) == 0
    assert "R, L" in capsys.readouterr().out
    report = json.loads((out / "ablation.json").read_text())
    assert report["twins"]["rl"]["seeds"] == [3]
    assert report["runs"][0]["plan"]["steps"] == 1
    assert (out / "ablation.md").exists()
    assert (out / "ablation.png").exists()
