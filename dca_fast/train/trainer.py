"""One trainer for a CPU core or a GPU: resumable, with an averaged copy of the weights and a JSON-lines log."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from dca_fast.config import LAMBDA_MAX, LAMBDA_MIN, QUALITY_MAX, ModelConfig
from dca_fast.errors import WeightsError
from dca_fast.model.layers import WideLinear
from dca_fast.model.network import Network
from dca_fast.train.data import Photographs
from dca_fast.train.klt import start_from_components

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How to train. The learning rate warms up, stays, and falls to `final` over the last `cooldown` of the time.

    Args:
        minutes: wall-clock length of this run.
        batch, crop: samples per step and side of a crop in pixels (a multiple of 64).
        rate: Adam's learning rate. The trunk's projections start nearly right and take `trunk_rate` times it (at
            0.3 the transforms alone lost 10 dB within 2,000 steps), the blocks of the transforms `block_rate` times,
            the logarithms of gains and scales, which have far to go, `log_rate` times.
        ramp: the hyper latents' rate counts a tenth at first and fully after so many steps; without it the regional
            and global ones die before their synthesis has learned to read them.
        balance: samples are weighted by lambda ** -balance, so that low qualities are not drowned by high ones.
        average: decay of the averaged weights, per step.
    """

    minutes: float = 60
    batch: int = 4
    crop: int = 192
    rate: float = 8e-4
    trunk_rate: float = 0.03
    block_rate: float = 0.5
    log_rate: float = 3.0
    ramp: int = 2000
    warmup: int = 100
    cooldown: float = 0.35
    final: float = 0.02
    clip: float = 1.0
    balance: float = 0.4
    average: float = 0.999
    seed: int = 0
    save_minutes: float = 5
    compile: bool = False


def loss_of(
    out: dict[str, Tensor], image: Tensor, quality: Tensor, balance: float, hyper: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss (scalar), bits per pixel `[N]` and mean squared error in grey levels `[N]`."""
    pixels = image.shape[1] * image.shape[2]
    bpp = out["bits"] / pixels
    counted = (out["bits_y"].sum(1) + hyper * out["bits_z"].sum(1)) / pixels
    mse = (out["image"] - image).square().flatten(1).mean(1)
    lam = LAMBDA_MIN * (LAMBDA_MAX / LAMBDA_MIN) ** (quality / QUALITY_MAX)
    weight = (lam / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)) ** -balance
    return (weight * (counted + lam * mse)).mean(), bpp.detach(), mse.detach()


def parameter_groups(network: Network, recipe: Recipe) -> list[dict]:
    """Parameters by their factor on the learning rate, see `Recipe.rate`."""
    factors: dict[int, float] = {}
    for part in (network.analysis, network.synthesis):
        factors.update((id(p), recipe.block_rate) for p in part.parameters())
        for module in part.modules():
            if isinstance(module, WideLinear):
                factors.update((id(p), recipe.trunk_rate) for p in module.parameters())
    for p in (network.log2_gain, *network.factorised.parameters()):
        factors[id(p)] = recipe.log_rate
    groups: dict[float, list] = {}
    for p in network.parameters():
        groups.setdefault(factors.get(id(p), 1.0), []).append(p)
    return [{"params": params, "factor": factor} for factor, params in groups.items()]


class Trainer:
    """State of a training: network, average, optimiser, generators.

    Args:
        config: model to build.
        photographs: training data.
        folder: checkpoints and log go here; a checkpoint found there is resumed.
        recipe: see `Recipe`.
        device: torch device.
        start: float weights to start from when there is no checkpoint; default: principal components.

    Raises:
        WeightsError: the checkpoint in `folder` belongs to another configuration.
    """

    def __init__(
        self,
        config: ModelConfig,
        photographs: Photographs,
        folder: Path,
        recipe: Recipe,
        device: str = "cpu",
        start: dict[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.device, self.photographs = recipe, Path(folder), device, photographs
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = Network(config)
        self.step = 0
        saved = self.folder / "checkpoint.pt"
        state = torch.load(saved, map_location="cpu", weights_only=True) if saved.exists() else None
        if state is not None:
            if ModelConfig.from_dict(state["config"]) != config:
                raise WeightsError(f"{saved} belongs to another configuration: {state['config']}")
            self.network.load_state_dict(state["network"])
            self.step = state["step"]
        elif start is not None:
            self.network.load_state_dict(start)
            self.step = recipe.ramp  # trained before, so past the ramp
        else:
            start_from_components(self.network, photographs, recipe.seed)
        self.network.to(device).train()
        self.average = {k: v.detach().clone().float() for k, v in self.network.state_dict().items()}
        self.optimiser = torch.optim.Adam(parameter_groups(self.network, recipe), lr=recipe.rate, fused=True)
        if state is not None:
            self.average = {k: v.to(device) for k, v in state["average"].items()}
            self.optimiser.load_state_dict(state["optimiser"])
        self.generator = np.random.default_rng((recipe.seed, self.step))
        self.forward = torch.compile(self._loss) if recipe.compile else self._loss

    def _loss(self, image: Tensor, quality: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return loss_of(self.network(image, quality), image, quality, self.recipe.balance, hyper)

    def learning_rate(self, since: int, elapsed: float) -> float:
        """Factor on the base rate: `since` steps into this run, `elapsed` in 0..1 of its time."""
        r = self.recipe
        warm = min(1.0, (since + 1) / r.warmup)
        cool = min(1.0, max(0.0, (1 - elapsed) / r.cooldown)) if r.cooldown else 1.0
        return warm * (r.final + (1 - r.final) * cool)

    def train_step(self, factor: float) -> tuple[float, Tensor, Tensor, Tensor]:
        """One optimiser step."""
        r = self.recipe
        image = self.photographs.batch(self.generator, r.batch, r.crop).to(self.device)
        # One quality from each of `batch` equal parts of the axis: every step sees the whole range.
        spread = (np.arange(r.batch) + self.generator.random(r.batch)) / r.batch
        quality = torch.tensor(spread * QUALITY_MAX, dtype=torch.float32, device=self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = r.rate * group["factor"] * factor
        hyper = torch.tensor(min(1.0, 0.1 + 0.9 * self.step / r.ramp) if r.ramp else 1.0, device=self.device)
        loss, bpp, mse = self.forward(image, quality, hyper)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), r.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.step += 1
        decay = min(r.average, self.step / (self.step + 10))
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                self.average[key].lerp_(value.float(), 1 - decay)
        return float(loss.detach()), bpp, mse, quality

    def save(self) -> None:
        """Checkpoint with optimiser state, replaced atomically."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average,
            "step": self.step,
            "optimiser": self.optimiser.state_dict(),
            "config": self.network.config.to_dict(),
        }
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.folder / "checkpoint.pt")

    def run(self) -> None:
        """Train for `recipe.minutes`; logs a line about every 20 seconds, saves every `recipe.save_minutes`."""
        r, begin, since = self.recipe, time.monotonic(), 0
        written = saved = begin
        window: list[float] = []
        with (self.folder / "log.jsonl").open("a") as sink, Progress() as progress:
            task = progress.add_task("training", total=r.minutes)
            sink.write(
                json.dumps({"recipe": asdict(r), "config": self.network.config.to_dict(), "step": self.step}) + "\n"
            )
            while (elapsed := (time.monotonic() - begin) / 60) < r.minutes:
                loss, bpp, mse, quality = self.train_step(self.learning_rate(since, elapsed / r.minutes))
                since += 1
                window.append(loss)
                now = time.monotonic()
                if now - written > 20:
                    line = {
                        "step": self.step,
                        "minutes": round(elapsed, 2),
                        "loss": sum(window) / len(window),
                        "steps_per_s": round(len(window) / (now - written), 3),
                        "quality": quality.tolist(),
                        "bpp": bpp.tolist(),
                        "psnr": (10 * torch.log10(255**2 / mse)).tolist(),
                    }
                    sink.write(json.dumps(line) + "\n")
                    sink.flush()
                    progress.update(task, completed=elapsed, description=f"step {self.step} loss {line['loss']:.3f}")
                    window, written = [], now
                if now - saved > 60 * r.save_minutes:
                    self.save()
                    saved = now
        self.save()
