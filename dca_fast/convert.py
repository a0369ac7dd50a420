"""Converting files: what `dca-fast encode` and `decode` do, one file or many."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dca_fast.commands import OK, codec_of, fail, other_codecs, progress_bar, read, show_warnings
from dca_fast.errors import BitstreamError, DcaError, InputError

if TYPE_CHECKING:
    from dca_fast.codec import Codec


@contextmanager
def _effort_bar(args: argparse.Namespace) -> Iterator[Callable[[float], None] | None]:
    """A bar for one file that takes long; a batch has its own."""
    if args.effort < 2 or args.out_dir is not None:
        yield None
        return
    with progress_bar() as bar:
        task = bar.add_task("refining", total=100)
        yield lambda done: bar.update(task, completed=round(100 * done))


def encode(args: argparse.Namespace) -> int:
    """Images to .dca files."""
    from dca_fast.image_io import load_image, write_atomic
    from dca_fast.rate_control import GOALS

    codec = codec_of(args)
    others = other_codecs(args, codec) if args.verify else []

    def convert(source: str, target: str) -> None:
        image = load_image(source, strip=args.strip)
        with _effort_bar(args) as progress:
            goals = {name: getattr(args, name) for name in GOALS}
            options = {"effort": args.effort, "aq_strength": args.aq_strength, "progress": progress}
            if any(goal is not None for goal in goals.values()):
                data = codec.encode_to(image, **goals, **options)
            else:
                data = codec.encode(image, args.quality, **options)
        if args.verify:
            _verify(data, codec, others)
        write_atomic(target, data)

    return _convert_all(args, ".dca", convert)


def _verify(data: bytes, codec: Codec, others: list[Codec]) -> None:
    """Decode with every codec; each checks the digest of its symbols, the pixels are compared here."""
    pixels = codec.decode(data, "numpy")
    for other in others:
        if pixels.tobytes() != other.decode(data, "numpy").tobytes():
            raise BitstreamError(f"{codec.backend} and {other.backend} decode to different pixels")


def decode(args: argparse.Namespace) -> int:
    """.dca files to images."""
    from dca_fast.image_io import save_image

    codec = codec_of(args)

    def convert(source: str, target: str) -> None:
        save_image(codec.decode(read(source)), target)

    return _convert_all(args, f".{args.format}", convert)


def _convert_all(args: argparse.Namespace, extension: str, convert: Callable[[str, str], None]) -> int:
    """One input to one output, or a batch that goes on after a failure; the exit code is the first one's."""
    if args.out_dir is None:
        if len(args.paths) != 2:
            raise InputError("give one input and one output, or several inputs and -o DIR")
        if args.manifest is not None:
            raise InputError("--manifest is for a batch, with -o DIR")
        source, target = args.paths
        if args.no_overwrite and target != "-" and os.path.lexists(target):
            raise InputError(f"{target} exists")
        convert(source, target)
        return OK
    jobs = _jobs(args, extension)
    codes, done = [], 0
    with progress_bar() as bar, nullcontext() if not args.manifest else args.manifest.open("a") as manifest:
        for source, target in bar.track(jobs, description="converting"):
            facts: dict[str, Any] = {"source": source, "output": target}
            show_warnings(source)
            try:
                if args.no_overwrite and os.path.lexists(target):
                    facts["status"] = "kept"
                else:
                    Path(target).parent.mkdir(parents=True, exist_ok=True)
                    convert(source, target)
                    facts["status"] = "done"
                    done += 1
            except (DcaError, OSError) as error:
                codes.append(fail(error, source))
                facts |= {"status": "failed", "error": str(error)}
            if manifest is not None:
                print(json.dumps(facts | _facts(source, target)), file=manifest, flush=True)
    kept = len(jobs) - done - len(codes)
    print(f"{done} converted, {kept} kept, {len(codes)} failed", file=sys.stderr)
    return codes[0] if codes else OK


def _facts(source: str, target: str) -> dict[str, Any]:
    """Sizes and hashes of both files, and what the .dca says: of what can be read."""
    from dca_fast.container import inspect

    facts: dict[str, Any] = {}
    for name, path in (("source", source), ("output", target)):
        try:
            data = read(path)
            facts |= {f"{name}_bytes": len(data), f"{name}_sha256": hashlib.sha256(data).hexdigest()}
            info = inspect(data)
        except (DcaError, OSError):  # not there, or not a .dca
            continue
        facts |= {key: getattr(info, key) for key in ("width", "height", "quality", "bpp", "model_id")}
    return facts


def _jobs(args: argparse.Namespace, extension: str) -> list[tuple[str, str]]:
    """Inputs and where each goes; the files of a folder keep their places below it."""
    out, jobs = Path(args.out_dir), []
    for name in args.paths:
        if name == "-":
            raise InputError("standard input needs an output, not -o DIR")
        root = Path(name)
        for path in _images(root, extension) if root.is_dir() else [root]:
            place = path.relative_to(root) if root.is_dir() else Path(path.name)
            jobs.append((str(path), str(out / place.with_suffix(extension))))
    sources: dict[str, str] = {}
    for source, target in jobs:
        if target in sources:
            raise InputError(f"{sources[target]} and {source} would both become {target}")
        sources[target] = source
    return jobs


def _images(folder: Path, extension: str) -> list[Path]:
    if extension == ".dca":
        from dca_fast.train.data import list_images

        return list_images(folder)
    files = sorted(folder.rglob("*.dca"))
    if not files:
        raise InputError(f"no .dca files in {folder}")
    return files
