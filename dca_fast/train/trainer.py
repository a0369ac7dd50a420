"""One trainer for a CPU core, a GPU, or many of either under `torchrun`.

Resumable, with an averaged copy of the weights and a JSON-lines log. What a training step sees depends on the seed and
its number alone, so a training that was stopped goes on as if it had not been. Names here count training steps, as
PyTorch's do.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from dca_fast.config import LAMBDA_MAX, LAMBDA_MIN, QUALITY_MAX, STEPS, ModelConfig, price
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import Tables
from dca_fast.errors import ConfigError, TrainingError, WeightsError
from dca_fast.model.expected import Expected
from dca_fast.model.fused import fuse
from dca_fast.model.network import Network
from dca_fast.train.data import Crops, DeviceImages, Images
from dca_fast.train.export import readable
from dca_fast.train.klt import start_from_components
from dca_fast.train.recorded import RecordedStep
from dca_fast.train.soap import Soap
from dca_fast.train.whiten import trunk, whitening
from dca_fast.train.world import ALONE, World

log = logging.getLogger(__name__)
LOG_SECONDS = 20
FORMAT = 2  # of a checkpoint's optimiser state
WATCHED = 200  # training steps whose mean loss may not exceed `ASTRAY` times the lowest such mean before
ASTRAY = 1.2
PENDING = 16  # training steps whose losses are fetched from a GPU at once: fetching waits for it
# Training steps between two updates of SOAP's eigenbases. One on a GPU sees more pixels, and an update takes longer.
HOST_EVERY, DEVICE_EVERY = 10, 25
DEVICE_SHARE = 0.4  # of a GPU's free memory that photographs may take
ARGUMENTS = {"modules": "parts"}  # fields of a recipe that the command line and the log call otherwise


@dataclass(frozen=True)
class Recipe:
    """How to train. The learning rate warms up, stays, and falls to `final` over the last `cooldown` of the time.

    Args:
        minutes: wall-clock length of this run.
        steps: length of the whole training instead, earlier runs in the same folder included; 0: `minutes` counts.
        batch, crop: samples per training step and process, and side of a crop in pixels (a multiple of 64).
        optimiser: "soap" (fewer steps, each a third longer on one core: docs/experiments/training.md) or "adam".
        rate: learning rate. The trunk's projections start nearly right and take `trunk_rate` times it, in coordinates
            in which their inputs are white (`train/whiten.py`; Adam, which has only the weights' own, a third of
            that), the blocks of the transforms `block_rate` times, the logarithms of gains and scales, which have far
            to go, `log_rate` times.
        ramp: the hyper latents' rate counts a tenth at first and fully after so many steps; without it the regional
            and global ones die before their synthesis has learned to read them.
        balance: samples count lambda ** -balance, so that low qualities are not drowned by high ones.
        average: decay of the averaged weights, per training step.
        modules: of the network, that are trained: "analysis", "hyper", "factorised", "context", "synthesis", or modules
            of these, as "analysis.blocks8.2"; the others stay as they are. None: all, and the gains. The command line
            and the log call them parts.
        effort: level of the encoder that is trained for: 0, or 1 where "analysis" is not among `modules`. The answer of
            level 1 undoes most of what f_a changes, so that f_a would drift (docs/experiments/training.md).
        aq_strength: of adaptive quantisation (docs/spec/adaptive.md), 0..15/16; squared errors count at the price of
            their site.
        rates: "noise" counts bits of uniform noise around y, "expected" those of the values that a file holds, with
            gradients that are right on average (`model/expected.py`).
        rate_only: the loss is bits alone and f_s is left out, for modules without transforms: half as many steps again
            in the same time.
        bf16: on a GPU, convolutions of the transforms in bfloat16. The GEMMs of int8 layers are so there anyway.
        fused: on a GPU, blocks run by fused kernels (`kernels/training.py`).
        record: on a GPU, training steps are recorded in CUDA graphs (`train/recorded.py`); not with "adam" or
            `compile`.
    """

    minutes: float = 60
    steps: int = 0
    batch: int = 4
    crop: int = 192
    optimiser: str = "soap"
    rate: float = 8e-4
    trunk_rate: float = 0.1
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
    effort: int = 0
    aq_strength: float = 0.0
    rates: str = "noise"
    rate_only: bool = False
    bf16: bool = True
    fused: bool = True
    record: bool = True
    modules: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the log."""
        values = asdict(self)
        return {ARGUMENTS.get(name, name): value for name, value in values.items()}

    def check(self, config: ModelConfig) -> None:
        """Whether a configuration allows it.

        Raises:
            ConfigError: it does not.
        """
        modules = self.modules
        if self.effort and (modules is None or "analysis" in modules or config.transforms != "patch"):
            raise ConfigError('effort 1 is for parts without "analysis", and for "patch" transforms')
        if self.rate_only and (modules is None or {"analysis", "synthesis"} & set(modules)):
            raise ConfigError("bits alone are a loss for parts without transforms")
        if self.rates not in ("noise", "expected"):
            raise ConfigError(f'rates are "noise" or "expected", got {self.rates!r}')


def loss_of(
    out: dict[str, Tensor], image: Tensor, quality: Tensor, balance: float, hyper_factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (scalar; where quantisers adapt, of errors at their site's price), bits per pixel `[N]` and mean squared
    error in grey levels `[N]`."""
    pixels = image.shape[1] * image.shape[2]
    bpp = out["bits"] / pixels
    counted = (out["bits_y"].sum(1) + hyper_factor * out["bits_z"].sum(1)) / pixels
    squares = (out["image"] - image).square()
    priced = (squares * out["worth"]).flatten(1).mean(1)
    lam = price(quality)
    factor = (lam / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)) ** -balance
    return (factor * (counted + lam * priced)).mean(), bpp.detach(), squares.detach().flatten(1).mean(1)


def draw_qualities(generator: np.random.Generator, count: int) -> np.ndarray:
    """One quality from each of `count` equal intervals, float64 `[count]`: every training step sees the whole range."""
    qualities: np.ndarray = (np.arange(count) + generator.random(count)) / count * QUALITY_MAX
    return qualities


def parameter_groups(network: Network, recipe: Recipe) -> list[dict]:
    """Parameters by their factor on the learning rate, see `Recipe.rate`."""
    factors: dict[int, float] = {}
    trunk_rate = recipe.trunk_rate * (1.0 if recipe.optimiser == "soap" else 0.3)
    for transform in (network.analysis, network.synthesis):
        factors.update((id(p), recipe.block_rate) for p in transform.parameters())
    for layer in trunk(network):
        factors.update((id(p), trunk_rate) for p in layer.parameters())
    logarithms = (p for name, p in network.factorised.named_parameters() if ".log2_" in name)
    factors.update((id(p), recipe.log_rate) for p in (network.log2_gain, *logarithms))
    groups: dict[float, list] = {}
    for p in (p for p in network.parameters() if p.requires_grad):
        groups.setdefault(factors.get(id(p), 1.0), []).append(p)
    return [{"params": params, "factor": factor} for factor, params in groups.items()]


def train_only(network: Network, modules: tuple[str, ...]) -> None:
    """Leave everything but these modules of the network as it is.

    Raises:
        ConfigError: a module that there is not.
    """
    names = {name for name, _ in network.named_modules() if name}
    if not modules or not set(modules) <= names:
        known = ", ".join(sorted(name for name, _ in network.named_children()))
        raise ConfigError(f"parts must be among {known}, or modules of these, got {', '.join(modules)}")
    for name, p in network.named_parameters():
        p.requires_grad_(any(name.startswith(f"{module}.") for module in modules))


def learning_rate(recipe: Recipe, since: int, elapsed: float) -> float:
    """Factor on the base rate: `since` steps into this run, `elapsed` in 0..1 of it."""
    warm = min(1.0, (since + 1) / recipe.warmup)
    cool = min(1.0, max(0.0, (1 - elapsed) / recipe.cooldown)) if recipe.cooldown else 1.0
    return warm * (recipe.final + (1 - recipe.final) * cool)


class Objective(nn.Module):
    """Network and loss in one module, which is what many processes run and what is compiled."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.balance = network, recipe.balance
        self.options: dict[str, Any] = {
            "effort": recipe.effort,
            "picture": not recipe.rate_only,
            "aq_strength": recipe.aq_strength,
        }

    def forward(self, image: Tensor, quality: Tensor, hyper_factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return loss_of(self.network(image, quality, **self.options), image, quality, self.balance, hyper_factor)


def in_bfloat16(module: nn.Module, device: str) -> None:
    """Let the products and convolutions of `module` run in bfloat16; its result is float32 as before."""
    forward = module.forward

    def cast(*arguments: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return forward(*arguments).float()

    module.forward = cast


def make_optimiser(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe.

    Raises:
        ConfigError: unknown name.
    """
    groups = parameter_groups(network, recipe)
    if recipe.optimiser == "soap":
        on_device = network.log2_gain.is_cuda
        return Soap(groups, lr=recipe.rate, every=DEVICE_EVERY if on_device else HOST_EVERY)
    if recipe.optimiser == "adam":
        return torch.optim.Adam(groups, lr=recipe.rate, fused=True)
    raise ConfigError(f"optimiser must be soap or adam, got {recipe.optimiser!r}")


def recorded_in_graphs(recipe: Recipe, device: torch.device) -> bool:
    """Whether a training records its steps."""
    return device.type == "cuda" and recipe.record and recipe.optimiser == "soap" and not recipe.compile


def uploaded(photographs: Crops, device: torch.device) -> DeviceImages | None:
    """The photographs in a GPU's memory, if there is one and they are no stream and leave room."""
    if device.type != "cuda" or not isinstance(photographs, Images):
        return None
    if sum(image.size for image in photographs.images) > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return DeviceImages(photographs, device)


def grown(weights: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Weights for a network with more: a c for each coding step, what they lack being that of the first one; sites of a
    hyper latent that expect something of those around, at first nothing; an f_a with wider or further blocks, which add
    nothing at first."""
    weights = weights | {
        name: _widened(name, weights.get(name), value)
        for name, value in network.state_dict().items()
        if name.startswith("analysis.blocks")
    }
    if not network.config.shared:
        first = "context.cores.0."
        shared = {name.removeprefix(first): value for name, value in weights.items() if name.startswith(first)}
        weights = {f"context.cores.{i}.{k}": v for i in range(1, STEPS) for k, v in shared.items()} | weights
    around = {f"factorised.{k}": v for k, v in network.factorised.state_dict().items() if "weight" in k or "wider" in k}
    return around | weights


def _widened(name: str, old: Tensor | None, new: Tensor) -> Tensor:
    """A parameter of a block of f_a: as it was, in the first channels of a wider one; else as new, but for what adds to
    the trunk, which is silent."""
    if old is not None and old.shape == new.shape:
        return old
    value = torch.zeros_like(new) if name.endswith(("bias", "slope", "project.weight")) else new.clone()
    if old is None:
        return value
    if ".ffn.expand." in name:  # two halves
        for mine, theirs in zip(value.chunk(2), old.chunk(2), strict=True):
            mine[: len(theirs)] = theirs
    else:
        value[tuple(map(slice, old.shape))] = old
    return value


class Watch:
    """Stops a training whose mean loss rises: `WATCHED` and `ASTRAY`."""

    def __init__(self) -> None:
        self._recent, self._lowest = deque[float](maxlen=WATCHED), math.inf

    def see(self, losses: Iterable[float], step: int) -> None:
        """The losses of further steps, the last one being `step`.

        Raises:
            TrainingError: their mean rose far above what it was.
        """
        for loss in losses:
            self._recent.append(loss)
            if len(self._recent) == WATCHED:
                mean = math.fsum(self._recent) / WATCHED
                self._lowest = min(self._lowest, mean)
                if not mean <= ASTRAY * self._lowest:
                    raise TrainingError(f"step {step}: the loss rose from {self._lowest:.3f} to {mean:.3f}")


class Trainer:
    """State of a training: network, average, optimiser, generators.

    Args:
        config: model to build.
        photographs: training data.
        folder: checkpoints and log go here; a checkpoint found there is resumed.
        recipe: see `Recipe`.
        device: torch device.
        start: float weights to start from when there is no checkpoint; default: principal components. What the
            configuration has beyond theirs is filled in, see `grown`.
        world: this process among all; the first one writes.
        tables: with which the trellis is searched; default: Gaussian ones.

    Raises:
        WeightsError: the checkpoint in `folder`, or the start, belongs to another configuration, or the checkpoint to
            another version of the trainer.
        ConfigError: a recipe that the configuration does not allow.
    """

    def __init__(
        self,
        config: ModelConfig,
        photographs: Crops,
        folder: Path,
        recipe: Recipe,
        device: str = "cpu",
        start: dict[str, Tensor] | None = None,
        world: World = ALONE,
        tables: Tables | None = None,
    ) -> None:
        recipe.check(config)
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.device, self.world = recipe, Path(folder), device, world
        self.folder.mkdir(parents=True, exist_ok=True)
        self.photographs, self.network = photographs, Network(config)
        self.step = self.first = 0
        state = self._saved()
        self._begin(state, start)
        kept = (state or {}).get("optimiser")  # a sharded checkpoint (`train/sharded.py`) has none
        fresh = kept is None and recipe.optimiser == "soap"
        white = whitening(self.network, photographs, recipe.seed) if fresh else {}
        self.network.to(device).train()
        if tables is not None:
            self.network.coder = Coder(tables)
        if recipe.modules is not None:
            train_only(self.network, recipe.modules)
        self.average = {k: v.detach().clone().float() for k, v in self.network.state_dict().items()}
        self.optimiser = make_optimiser(self.network, recipe)
        if state is not None:
            with readable(self._checkpoint):
                for key, value in self.average.items():
                    value.copy_(state["average"][key])
                if kept is not None:
                    self.optimiser.load_state_dict(kept)
        if isinstance(self.optimiser, Soap):
            for layer, root in white.items():
                if layer.get_parameter("weight").requires_grad:
                    self.optimiser.whiten(layer.get_parameter("weight"), world.share(root.to(device)))
        self._on_device = uploaded(photographs, torch.device(device))
        self._forms()
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future] | None = None

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _saved(self) -> dict[str, Any] | None:
        """The state in the folder, if there is one that fits."""
        saved = self._checkpoint
        if not saved.exists():
            return None
        with readable(saved):
            state: dict[str, Any] = torch.load(saved, map_location="cpu", weights_only=True)
            config, version = ModelConfig.from_dict(state["config"]), state.get("format")
        if config != self.network.config:
            raise WeightsError(f"{saved} belongs to another configuration: {state['config']}")
        if version != FORMAT:
            raise WeightsError(f"{saved} is of another version of the trainer: --start takes it up in another folder")
        return state

    def _begin(self, state: dict[str, Any] | None, start: dict[str, Tensor] | None) -> None:
        """The weights of a state, or of a start, or principal components."""
        if state is not None:
            with readable(self._checkpoint):
                self.network.load_state_dict(state["network"])
                self.step, self.first = int(state["step"]), int(state.get("first", 0))
        elif start is not None:
            try:
                self.network.load_state_dict(grown(start, self.network))
            except RuntimeError as error:
                raise WeightsError(f"the start is of another configuration: {error}") from error
            self.step = self.first = self.recipe.ramp  # trained before, so past the ramp
        else:
            start_from_components(self.network, self.photographs, self.recipe.seed)

    def _forms(self) -> None:
        """How the network computes on its device, and what takes a step."""
        recipe, network, device = self.recipe, self.network, torch.device(self.device)
        on_cuda = device.type == "cuda"
        if on_cuda and recipe.bf16 and network.config.transforms == "elic":
            for transform in (network.analysis, network.synthesis):
                in_bfloat16(transform, "cuda")
        if on_cuda and recipe.fused and not recipe.compile:
            fuse(network)
        if recipe.rates == "expected":
            network.expected = Expected(device)
        objective = Objective(network, recipe)
        self.recorded: RecordedStep | None = None
        if recorded_in_graphs(recipe, device):
            self.record(objective)
        else:
            parallel = self.world.parallel(objective)
            self.forward: Callable = torch.compile(parallel) if recipe.compile else parallel

    def record(self, objective: nn.Module) -> None:
        """Take all further steps by graphs."""
        assert isinstance(self.optimiser, Soap)
        # Modules that are not trained stay: their average is what they are.
        names = [name for name, p in self.network.named_parameters() if p.requires_grad]
        values = dict(self.network.named_parameters())
        average = [self.average[name] for name in names], [values[name].detach() for name in names]
        self.recorded = RecordedStep(objective, self.optimiser, average, self.crops, self.recipe.clip, self.world)

    def crops(self, batch: Tensor) -> Tensor:
        """Images `[N, S, S, 3]` on the device from what `batch_of` gives."""
        return batch.to(self.device) if self._on_device is None else self._on_device.cut(batch, self.recipe.crop)

    def batch_of(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Crops, or where they lie if a GPU holds the photographs, and qualities of this process in `step`, and the
        seed of its noise.

        With n processes a step has n times `batch` crops; process r takes crops r, r + n, r + 2n, ...
        """
        r, world = self.recipe, self.world
        generator, count = np.random.default_rng((r.seed, step)), r.batch * world.size
        mine = slice(world.rank, None, world.size)
        noise = int(generator.integers(2**62)) + world.rank
        quality = draw_qualities(generator, count)
        batch = self.photographs.batch if self._on_device is None else self._on_device.offsets
        return batch(generator, count, r.crop, mine), torch.tensor(quality[mine], dtype=torch.float32), noise

    def _batch(self) -> tuple[Tensor, Tensor, int]:
        """That of the current step; the next one is read while this one is computed."""
        step, future = self._ahead or (-1, Future())
        batch = future.result() if step == self.step else self.batch_of(self.step)
        self._ahead = self.step + 1, self._reader.submit(self.batch_of, self.step + 1)
        return batch

    def train_step(self, factor: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One training step.

        Returns:
            Loss, and of each sample bits per pixel, squared error and quality. None of them is waited for, and the next
            step may overwrite them.
        """
        r = self.recipe
        batch, quality, noise = self._batch()
        for group in self.optimiser.param_groups:
            group["lr"] = r.rate * group["factor"] * factor
        hyper_factor = min(1.0, 0.1 + 0.9 * self.step / r.ramp) if r.ramp else 1.0
        self.step += 1
        decay = min(r.average, self.step / (self.step + 10))
        if self.recorded is not None:
            return *self.recorded(batch, quality, noise, hyper_factor, decay), quality
        torch.manual_seed(noise)
        image, quality = self.crops(batch.to(self.device)), quality.to(self.device)
        loss, bpp, mse = self.forward(image, quality, torch.tensor(hyper_factor, device=self.device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), r.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                self.average[key].lerp_(value.float(), 1 - decay)
        return loss.detach(), bpp, mse, quality

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, but for the optimiser."""
        return {
            "format": FORMAT,
            "network": self.network.state_dict(),
            "average": self.average,
            "step": self.step,
            "first": self.first,
            "config": self.network.config.to_dict(),
        }

    def save(self) -> None:
        """Checkpoint with optimiser state, replaced atomically."""
        if self.world.rank:
            return
        unfinished = self.folder / "checkpoint.part"
        torch.save(self.state() | {"optimiser": self.optimiser.state_dict()}, unfinished)
        unfinished.replace(self._checkpoint)

    def progress(self, since: int, minutes: float) -> tuple[int, float]:
        """Steps since the warm-up began, and how much of the training is over, 0..1.

        Args:
            since, minutes: steps and time since this run began.
        """
        if self.recipe.steps:
            return self.step - self.first, (self.step - self.first) / self.recipe.steps
        # The first process's clock: all must take the same steps at the same rates.
        return since, self.world.agree(minutes / self.recipe.minutes if self.recipe.minutes else 1.0)

    def run(self) -> None:
        """Train to the end of the recipe; logs a line about every 20 seconds, saves every `recipe.save_minutes`.

        Raises:
            TrainingError: the loss rises far above what it was. The checkpoint stays that of the last save.
        """
        r, begin, first = self.recipe, time.monotonic(), self.step
        written = saved = begin
        window: list[float] = []
        pending: list[Tensor] = []
        few = PENDING if torch.device(self.device).type == "cuda" else 1
        watch = Watch()
        log_file = self.folder / "log.jsonl" if self.world.rank == 0 else Path(os.devnull)
        with log_file.open("a") as sink, Progress(console=Console(stderr=True), disable=self.world.rank > 0) as bar:
            task = bar.add_task("training", total=1.0)
            facts = {"recipe": r.to_dict(), "config": self.network.config.to_dict(), "processes": self.world.size}
            if sink.tell() and not log_file.read_bytes().endswith(b"\n"):
                sink.write("\n")  # a run was killed while it wrote
            sink.write(json.dumps({**facts, "step": self.step, "skipped": self.photographs.skipped}) + "\n")
            while True:
                since, elapsed = self.progress(self.step - first, (time.monotonic() - begin) / 60)
                now, over = time.monotonic(), elapsed >= 1
                due = now - saved > 60 * r.save_minutes
                if pending and (len(pending) == few or over or due):
                    losses, pending = torch.stack(pending).tolist(), []
                    watch.see(losses, self.step)
                    window += losses
                if window and (over or now - written > LOG_SECONDS):
                    line = self._line(window, now - written, (now - begin) / 60)
                    sink.write(json.dumps(line) + "\n")
                    sink.flush()
                    bar.update(task, completed=elapsed, description=f"step {self.step} loss {line['loss']:.3f}")
                    window, written = [], now
                if over:
                    break
                if due:
                    self.save()
                    saved = now
                loss, *self._last = self.train_step(learning_rate(r, since, elapsed))
                pending.append(loss.clone())
        self.save()

    def _line(self, window: list[float], seconds: float, minutes: float) -> dict[str, Any]:
        """What the log says about the steps of `window`; rates and distortions are those of the last one."""
        bpp, mse, quality = self._last
        pixels = self.recipe.batch * self.recipe.crop**2 * self.world.size
        return {
            "step": self.step,
            "minutes": round(minutes, 2),
            "loss": sum(window) / len(window),
            "steps_per_s": round(len(window) / seconds, 3),
            "pixels_per_s": round(len(window) / seconds * pixels),
            "skipped": self.photographs.skipped,
            "quality": quality.tolist(),
            "bpp": bpp.tolist(),
            "psnr": None if self.recipe.rate_only else (10 * torch.log10(255**2 / mse)).tolist(),
        }
