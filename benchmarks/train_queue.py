"""Trainings of a queue, one after the other, until the time is over: the last part of benchmarks/gpu_slot.sh.

    python benchmarks/train_queue.py --data PACK.crops --out OUT --until TIME [--queue FILE] [--resume FOLDER]
    python benchmarks/train_queue.py --join OUT NAME CHECKPOINT.pt

The queue (benchmarks/gpu_queue.json) is a list of trainings: "name", "start" (float weights, in the repository),
"arguments" (of `dca-fast train`; which of them: below) and "minutes" of its schedule, of which one slot may see a part;
without "minutes" it takes what is left. The folder OUT holds few and small files, because that is what returns from a
lent machine: of a training that is over NAME.safetensors (its averaged weights, for `dca-fast export` and as a start),
of one that was cut short NAME.0.safetensors, ... with which the next slot goes on (--resume: a folder with the files
of earlier ones), and training.jsonl, the log of all. --join makes of the latter what `dca-fast train --out` resumes and
`dca-fast export` takes. A training that fails is named, and the next one begins; one that fails for no fault of its own
is first tried without fused kernels and then launch by launch, each time in a fresh process, because after an error of
CUDA nothing runs in the old one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from dca_fast.cli.parser import make_parser
from dca_fast.config import preset
from dca_fast.errors import DcaError, InputError
from dca_fast.train.commands import make_trainer
from dca_fast.train.export import load_float, save_float
from dca_fast.train.sharded import join_shards, shard_files, write_shards
from dca_fast.train.trainer import Trainer
from dca_fast.train.world import World

HERE = Path(__file__).resolve().parent
MAX_FILES, MAX_BYTES = 8, 64_000_000  # of OUT, other files included
SAVE_MINUTES = 1.5
MARGIN = 0.5  # seconds by which a schedule that fills a slot is over before
SHORTEST = 5.0  # seconds that are worth a beginning
CAREFUL = ((), ("--no-fused",), ("--no-fused", "--no-record"))  # arguments of further tries
OWN = {"--data", "--out", "--start", "--minutes", "--steps", "--device"}  # arguments that are not the queue's


class Cut(Trainer):
    """A trainer whose schedule may have begun in an earlier slot, and which stops when this one is over."""

    name: str
    results: Path
    deadline: float  # of time.monotonic
    before: float = 0.0  # minutes of its schedule in earlier slots
    minutes = 0.0

    def progress(self, since: int, minutes: float) -> tuple[int, float]:
        self.minutes = self.before + minutes
        whole = self.minutes / self.recipe.minutes
        return since, 1.0 if time.monotonic() > self.deadline else whole

    @property
    def over(self) -> bool:
        return self.minutes >= self.recipe.minutes

    def save(self) -> None:
        super().save()
        if room(self.results, self.name) < 3:
            say(f"{self.name}: no room for its checkpoint in {self.results}")
        else:
            write_shards(self.state(), self.results, self.name, {"minutes": self.minutes})
        log(self.results, self.name, self.folder / "log.jsonl")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def files_of(out: Path, name: str) -> list[Path]:
    return [path for path in (*shard_files(out, name), out / f"{name}.safetensors") if path.exists()]


def room(out: Path, name: str) -> int:
    """Files of weights that OUT takes beside those of other trainings."""
    others = [path for path in out.iterdir() if path.is_file() and path not in files_of(out, name)]
    logs = not (out / "training.jsonl").exists()
    by_size = (MAX_BYTES - sum(path.stat().st_size for path in others)) // 15_000_000
    return max(0, min(MAX_FILES - len(others) - logs, by_size))


def log(out: Path, name: str, lines: Path) -> None:
    """The log of a training, in place of its older lines in that of all."""
    path = out / "training.jsonl"
    old = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in old if json.loads(line)["name"] != name]
    new = [json.dumps({"name": name} | json.loads(line)) for line in lines.read_text().splitlines()]
    path.write_text("\n".join([*kept, *new]) + "\n")


def arguments_of(item: dict[str, Any], args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Those of `dca-fast train`, for one training of the queue.

    Raises:
        InputError: it has arguments that are not its own.
    """
    if wrong := OWN & {argument.partition("=")[0] for argument in item.get("arguments", ())}:
        raise InputError(f"{', '.join(sorted(wrong))} of {item['name']} are not for a queue to choose")
    given = ["train", "--data", str(args.data), "--out", str(folder), "--device", args.device]
    given += [*item.get("arguments", ()), *CAREFUL[args.careful]]
    if item.get("start"):
        given += ["--start", str(HERE.parent / item["start"])]
    args = make_parser().parse_args(given)
    args.save_minutes = SAVE_MINUTES
    return args


def train(item: dict[str, Any], args: argparse.Namespace, deadline: float, folder: Path) -> None:
    """One training, from where an earlier slot left it."""
    name, before = item["name"], 0.0
    if earlier := [saved for saved in (args.out, args.resume) if shard_files(saved, name)]:
        before = join_shards(earlier[0], name, folder / "checkpoint.pt")["minutes"]
    given = arguments_of(item, args, folder)
    trainer = make_trainer(given, preset(given.preset), World(device=args.device), Cut)
    minutes = item.get("minutes") or before + (deadline - MARGIN - time.monotonic()) / 60
    trainer.recipe = replace(trainer.recipe, minutes=minutes)
    trainer.name, trainer.results, trainer.deadline, trainer.before = name, args.out, deadline, before
    say(f"{name}: from step {trainer.step}, {before:.1f} of {minutes:.1f} minutes done")
    trainer.run()
    if trainer.over:
        for path in shard_files(args.out, name):
            path.unlink()
        if room(args.out, name):
            save_float(load_float(folder / "checkpoint.pt"), args.out / f"{name}.safetensors")
        else:
            say(f"{name}: no room for its weights in {args.out}")
    say(f"{name}: {trainer.step - trainer.first} steps, {'over' if trainer.over else 'to be continued'}")


def again(careful: int) -> None:
    """All that is not over, in a fresh process."""
    say(f"once more, {' '.join(CAREFUL[careful])}")
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--careful")]
    os.execv(sys.executable, [sys.executable, str(Path(__file__).resolve()), *arguments, f"--careful={careful}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--join", nargs=3, metavar=("OUT", "NAME", "CHECKPOINT"), help="put a checkpoint together")
    parser.add_argument("--queue", type=Path, default=HERE / "gpu_queue.json")
    parser.add_argument("--data", type=Path, help="photographs, as dca-fast train takes them")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--until", type=float, metavar="TIME", help="when to end, in seconds of `date +%%s`")
    parser.add_argument("--resume", type=Path, help="files of earlier slots; default: OUT itself")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--careful", type=int, default=0, choices=range(len(CAREFUL)), help="without what is newest")
    args = parser.parse_args()
    if args.join:
        join_shards(Path(args.join[0]), args.join[1], Path(args.join[2]))
        return 0
    if not (args.data and args.out and args.until):
        parser.error("--data, --out and --until are needed")
    deadline, failed = time.monotonic() + args.until - time.time(), []
    args.out.mkdir(parents=True, exist_ok=True)
    args.resume = args.resume or args.out
    with tempfile.TemporaryDirectory() as work:
        for item in json.loads(args.queue.read_text()):
            if any((saved / f"{item['name']}.safetensors").exists() for saved in (args.out, args.resume)):
                say(f"{item['name']}: is over")
                continue
            if deadline - time.monotonic() < SHORTEST:
                say(f"{item['name']}: no time left")
                continue
            try:
                train(item, args, deadline, Path(work) / item["name"])
            except Exception as error:
                say(f"{item['name']}: {traceback.format_exc()}")
                if args.careful + 1 < len(CAREFUL) and not isinstance(error, DcaError):
                    again(args.careful + 1)
                failed.append(item["name"])
    if failed:
        say(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
