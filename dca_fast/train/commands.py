"""`dca-fast train`, `dca-fast export` and `dca-fast ablate`."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import Progress

from dca_fast.config import ModelConfig, preset
from dca_fast.errors import ConfigError, InputError
from dca_fast.evaluation.report import PLOT_FORMATS
from dca_fast.files.atomic import write_atomic
from dca_fast.network import weights
from dca_fast.train import ablate_report
from dca_fast.train.ablate import TWINS, Plan, run
from dca_fast.train.data import Crops, Images, open_data
from dca_fast.train.export import load_float, mix, save_float
from dca_fast.train.finish import export_and_check, plot_losses, validate
from dca_fast.train.trainer import ARGUMENTS, Recipe, Trainer
from dca_fast.train.world import World, join

HELD_OUT = 10  # of the ablation's photographs, one in so many is for the test
T = TypeVar("T", bound=Trainer)
SMALLEST = 256  # side of a photograph, and at least that of a crop


def train(args: argparse.Namespace) -> None:
    """Train, then do what was asked for at the end; without data only draw the losses of an earlier run."""
    config, data = config_of(args), None
    check(args, config)
    if args.data:
        with join(args.device) as world:
            data = train_here(args, config, world)
            if world.rank:
                return
    if args.export or args.validate:
        out = args.export or args.out / "weights.safetensors"
        print(export_and_check(args.out / "checkpoint.pt", out, data))
        if args.validate:
            print(validate(out, args.validate, args.out / "validation.json"))
    if args.plot:
        plot_losses(args.out / "log.jsonl", args.plot)


def config_of(args: argparse.Namespace) -> ModelConfig:
    """The preset, with what was asked for otherwise."""
    names = ("analysis_blocks", "analysis_hidden")
    return replace(preset(args.preset), **{n: getattr(args, n) for n in names if getattr(args, n) is not None})


def check(args: argparse.Namespace, config: ModelConfig) -> None:
    """Refuse now what would fail after hours."""
    if not (args.data or args.plot):
        raise InputError("give --data DIR to train, or --plot FILE to draw what an earlier training logged")
    if (args.export or args.validate) and config.transforms != "patch":
        raise ConfigError(f"{config.name} has no integer program: it cannot be exported")
    if args.plot and args.plot.suffix not in PLOT_FORMATS:
        raise InputError(f"a plot is {', '.join(PLOT_FORMATS)}, not {args.plot.name}")
    if args.validate and not args.validate.is_dir():
        raise InputError(f"{args.validate} is not a folder")


def train_here(args: argparse.Namespace, config: ModelConfig, world: World) -> Crops:
    """What this process does of a training; its photographs."""
    trainer = make_trainer(args, config, world, Trainer)
    trainer.run()
    return trainer.photographs


def make_trainer(args: argparse.Namespace, config: ModelConfig, world: World, kind: type[T]) -> T:
    """The trainer, of class `kind`, that the arguments of the command ask for."""
    if args.threads:
        torch.set_num_threads(args.threads)
    start = load_float(args.start).state_dict() if args.start else None
    given = {f.name: getattr(args, ARGUMENTS.get(f.name, f.name), None) for f in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
    with world.first_alone():
        data = open_data(args.data, args.cache or args.out / "photographs", max(SMALLEST, recipe.crop))
    tables = weights.load(args.tables).tables if args.tables else None
    return kind(config, data, args.out, recipe, world.device, start, world, tables)


def export(args: argparse.Namespace) -> None:
    """Integer weights of a checkpoint, and float ones if asked for."""
    network, checkpoint, data = load_float(args.checkpoint), args.checkpoint, None
    with TemporaryDirectory() as folder:
        if args.mix:
            network = mix(network, load_float(args.mix), args.share)
            checkpoint = Path(folder) / "mixed.safetensors"
            save_float(network, checkpoint)
        if args.data:
            data = open_data(args.data, args.cache or args.out.with_suffix(".photographs"), SMALLEST)
        print(export_and_check(checkpoint, args.out, data))
    if args.float:
        save_float(network, args.float)


def ablate(args: argparse.Namespace) -> None:
    """Train the twins, and write `ablation.json`, `.md` and `.png` into the folder."""
    if args.threads:
        torch.set_num_threads(args.threads)
    given = ("steps", "batch", "crop", "rate", "log_rate", "seeds", "qualities", "inherit")
    plan = replace(Plan(), **{name: getattr(args, name) for name in given if getattr(args, name) is not None})
    twins = args.twins or tuple(TWINS)
    args.out.mkdir(parents=True, exist_ok=True)
    data = open_data(args.data, args.cache or args.out / "photographs", max(SMALLEST, plan.crop))
    if not isinstance(data, Images):
        raise InputError("an ablation takes a folder of photographs or a packed .bin, not shards")
    training, held_out = data.hold_out(HELD_OUT)
    start, lines = load_float(args.start), []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("ablation", total=len(twins) * len(plan.seeds))
        for line in run(
            start, training, held_out, plan, args.out, twins, lambda text: progress.update(task, description=text)
        ):
            lines.append(line)
            progress.advance(task)
    report = ablate_report.summarise(lines, {"start": Path(args.start).name, "photographs": len(data.images)})
    write_atomic(args.out / "ablation.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(args.out / "ablation.md", (ablate_report.table(report) + "\n").encode())
    ablate_report.plot(report, args.out / "ablation.png")
    print(ablate_report.table(report))
