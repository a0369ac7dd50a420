"""The paper's ablations: twins of the entropy model, trained alike on one frozen pair of transforms.

The latents y of the crops are computed once, so that a training step costs the entropy model alone. Transforms and
quantiser steps are the same for all twins; what differs is how many bits they need for the same y. Reference: DCA
(arXiv 2411.05832), section 3 and its ablations; the twins are those that `TWINS` lists.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dca_fast.config import ALIGN, LAMBDA_MAX, LAMBDA_MIN, STEPS, price
from dca_fast.errors import InputError
from dca_fast.model.context import Contextualiser
from dca_fast.model.network import Network
from dca_fast.model.walk import axis, code_latent
from dca_fast.train.data import Crops
from dca_fast.train.trainer import Recipe, learning_rate, parameter_groups

BASE = "r"  # the twin that the others are compared with: the usual single hyper latent
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "r": ("R", {"contexts": ("regional",)}),
    "rg": ("R, G", {"contexts": ("regional", "global")}),
    "rl": ("R, L", {"contexts": ("regional", "local")}),
    "rgl": ("R, G, L (the paper's)", {}),
    "lgr": ("L, G, R", {"contexts": ("local", "global", "regional")}),
    "grl": ("G, R, L", {"contexts": ("global", "regional", "local")}),
    "merged": ("R, G, L; L merged before the first stage", {"merge_once": True}),
    "per-step": ("R, G, L; one c for each step", {"shared": False}),
    "phi-scales": ("R, G, L; scales from phi only", {}),
}
QUIET = 0.02  # factor on what a fresh local feature adds to an inherited c


@dataclass(frozen=True)
class Plan:
    """How the twins are trained and tested.

    Args:
        steps, batch: training steps of each twin, and crops in each.
        crop: side of a crop in pixels, a multiple of 64.
        pool: crops whose y is kept in memory; they are gone through in order, again and again.
        tested: held-out crops.
        qualities: of the crops: a training crop has one of them, a held-out crop is tested at each.
        rate, log_rate, warmup, ramp, cooldown: as in `Recipe`; ramp as a share of the training steps.
        seeds: of the weights' start and of the noise; the data and their order are the same for all.
        inherit: all twins take the trained regional path of `start`; False: all start from noise.
    """

    steps: int = 400
    batch: int = 1
    crop: int = 256
    pool: int = 1024
    tested: int = 24
    qualities: tuple[float, ...] = (10.0, 30.0, 50.0, 70.0, 90.0)
    rate: float = 1e-3
    log_rate: float = 20.0
    warmup: int = 20
    ramp: float = 0.0
    cooldown: float = 0.35
    seeds: tuple[int, ...] = (0, 1)
    inherit: bool = True


class ScalesFromPhi(Contextualiser):
    """c whose scales do not see decoded latents: with them, all table rows of an image are known before step 1."""

    def forward(
        self, step: int, y_hat: Tensor | None, features: dict[str, Tensor], t: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        seeing = super().forward(step, y_hat, features, t)
        if y_hat is None:
            return seeing
        blind = super().forward(step, None, features, t)
        return [(mean, scale) for (mean, _), (_, scale) in zip(seeing, blind, strict=True)]


@dataclass(frozen=True)
class Latents:
    """y of crops: `y` `[N, h, w, M]` and `quality` `[N]`; `image` `[N, H, W, 3]` where distortion is measured."""

    y: Tensor
    quality: Tensor
    image: Tensor | None = None

    def batch(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """y and qualities of `count` crops from `start` on, going round."""
        index = torch.arange(start, start + count) % len(self.y)
        return self.y[index], self.quality[index]


@torch.no_grad()
def training_latents(start: Network, data: Crops, plan: Plan) -> Latents:
    """y of the pool of training crops, each at one of the qualities in turn."""
    generator, count = np.random.default_rng(0), min(plan.pool, plan.steps * plan.batch)
    quality = torch.tensor([plan.qualities[i % len(plan.qualities)] for i in range(count)])
    chunks = [start.analysis(data.batch(generator, len(q), plan.crop), axis(q)) for q in quality.split(4)]
    return Latents(torch.cat(chunks), quality)


@torch.no_grad()
def test_latents(start: Network, data: Crops, plan: Plan) -> dict[float, Latents]:
    """y of the same held-out crops at every quality."""
    image = data.batch(np.random.default_rng(1), plan.tested, plan.crop)
    latents = {}
    for quality in plan.qualities:
        q = torch.full((len(image),), quality)
        y = torch.cat([start.analysis(chunk, axis(q[:1])) for chunk in image.split(4)])
        latents[quality] = Latents(y, q, image)
    return latents


@torch.no_grad()
def inherit(network: Network, start: Network) -> None:
    """Give a twin the regional path of `start`: its hyper pair, input layers of c, regional blocks and heads.

    The local and global modules start anew in every twin, and add little at first.
    """
    state, given = network.state_dict(), start.state_dict()
    for key, value in state.items():
        source = re.sub(r"^context\.cores\.\d+", "context.cores.0", key)
        if source in given and not re.search(r"local|global", key):
            value.copy_(given[source])
    if network.context.local is not None:
        network.context.local.weight.mul_(QUIET)


def build(name: str, start: Network, seed: int, inherited: bool) -> Network:
    """A twin around the transforms and gains of `start`, which stay as they are."""
    torch.manual_seed(seed)
    network = Network(replace(start.config, **({"shared": True} | TWINS[name][1])))
    network.analysis, network.synthesis = start.analysis, start.synthesis
    network.log2_gain = start.log2_gain
    if name == "phi-scales":
        plain, network.context = network.context, ScalesFromPhi(network.config)
        network.context.load_state_dict(plain.state_dict())
    if inherited:
        inherit(network, start)
    for frozen in (network.analysis, network.synthesis):
        frozen.requires_grad_(False)
    network.log2_gain.requires_grad_(False)
    return network


def entropy(network: Network, y: Tensor, quality: Tensor, noisy: bool) -> dict[str, Tensor]:
    """`bits_y` `[N, 4]`, `bits_z` `[N, contexts]`, `error` `[N, 4]` as `Network` gives them, and `y_hat`."""
    source = network.rates(noisy)
    features = network.features(y, source, quality)
    y_hat, _ = code_latent(network, source, y, features, (y.shape[1], y.shape[2]), quality)
    return source.totals(network.hyper) | {"y_hat": y_hat}


def train_twin(network: Network, data: Latents, plan: Plan, on_step: Callable[[float], None]) -> None:
    """Train everything of `network` that is not frozen; `on_step` gets each loss."""
    recipe = Recipe(rate=plan.rate, log_rate=plan.log_rate, warmup=plan.warmup, cooldown=plan.cooldown)
    groups = [
        {**group, "params": kept}
        for group in parameter_groups(network, recipe)
        if (kept := [p for p in group["params"] if p.requires_grad])
    ]
    trained = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.Adam(groups, lr=recipe.rate, fused=True)
    pixels = plan.crop**2
    for step in range(plan.steps):
        y, quality = data.batch(step * plan.batch, plan.batch)
        out = entropy(network, y, quality, True)
        hyper_factor = min(1.0, 0.1 + 0.9 * step / max(1.0, plan.ramp * plan.steps))
        lam = price(quality)
        factor = (lam / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)) ** -recipe.balance
        loss = (factor * (out["bits_y"].sum(1) + hyper_factor * out["bits_z"].sum(1)) / pixels).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * group["factor"] * learning_rate(recipe, step, step / plan.steps)
        optimiser.step()
        on_step(float(loss.detach()))


@torch.no_grad()
def test_twin(network: Network, tests: dict[float, Latents]) -> dict[str, dict[str, Any]]:
    """Bits per pixel of each step and hyper latent, RMS of (y - mean) / sigma, PSNR; means over the crops."""
    results = {}
    for quality, data in tests.items():
        assert data.image is not None
        measured = []
        for y, q, image in zip(data.y.split(4), data.quality.split(4), data.image.split(4), strict=True):
            out = entropy(network, y, q, False)
            pixels = network.synthesis(out["y_hat"], axis(q)).round().clamp(-128, 127)
            mse = (pixels - image).square().flatten(1).mean(1, keepdim=True)
            bits = torch.cat((out["bits_y"], out["bits_z"]), 1) / image[0, ..., 0].numel()
            measured.append(torch.cat((bits, out["error"], 10 * torch.log10(255**2 / mse)), 1))
        mean = torch.cat(measured).double().mean(0).tolist()
        names, side = list(network.hyper), mean[STEPS : -STEPS - 1]
        results[f"{quality:g}"] = {
            "bpp_steps": mean[:STEPS],
            "bpp_side": dict(zip(names, side, strict=True)),
            "bpp": sum(mean[:STEPS]) + sum(side),
            "rms_steps": [math.sqrt(v) for v in mean[-STEPS - 1 : -1]],
            "psnr": mean[-1],
        }
    return results


def finished(store: Path, settings: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of an earlier run by twin and seed; refuses those of another plan."""
    lines = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    if any(line["plan"] != settings for line in lines):
        raise InputError(f"{store} holds results of another plan")
    return {(line["twin"], line["seed"]): line for line in lines}


def run(
    start: Network,
    training: Crops,
    held_out: Crops,
    plan: Plan,
    folder: Path,
    twins: Sequence[str],
    on_step: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Train and test every twin with every seed; a twin that `folder` has results of is not trained again.

    Args:
        start: float network whose transforms and gains are used.
        training, held_out: sources of crops.
        folder: `twins.jsonl` there has one line for each finished twin and seed.
        on_step: told what is being done.

    Yields:
        The line of each twin and seed, as soon as it is there.

    Raises:
        InputError: unknown twin, or results of another plan in `folder`.
    """
    if unknown := [name for name in twins if name not in TWINS]:
        raise InputError(f"no twin {unknown[0]!r}; there are {', '.join(TWINS)}")
    if plan.crop % ALIGN:
        raise InputError(f"crop ({plan.crop}) must be a multiple of {ALIGN}")
    store = folder / "twins.jsonl"
    settings = json.loads(json.dumps({key: value for key, value in asdict(plan).items() if key != "seeds"}))
    done = finished(store, settings)
    on_step("latents of the crops")
    data, tests = training_latents(start, training, plan), test_latents(start, held_out, plan)
    for seed in plan.seeds:
        for name in twins:
            if (name, seed) not in done:
                done[name, seed] = {"twin": name, "seed": seed, "plan": settings}
                done[name, seed] |= one_twin(name, start, seed, data, tests, plan, on_step)
                with store.open("a") as sink:
                    sink.write(json.dumps(done[name, seed]) + "\n")
            yield done[name, seed]


def one_twin(
    name: str,
    start: Network,
    seed: int,
    data: Latents,
    tests: dict[float, Latents],
    plan: Plan,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Parameters, losses, seconds and test results of one twin with one seed."""
    network, losses, begin = build(name, start, seed, plan.inherit), [], time.monotonic()

    def note(loss: float) -> None:
        losses.append(loss)
        on_step(f"{name}, seed {seed}, loss {sum(losses[-20:]) / len(losses[-20:]):.3f}")

    train_twin(network.train(), data, plan, note)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    seconds = round(time.monotonic() - begin, 1)
    return {"parameters": trained, "seconds": seconds, "loss": losses, "test": test_twin(network.eval(), tests)}
