"""What the commands of `dca-fast` do. Each takes the parsed arguments and returns an exit code.

Modules are imported when a command needs them, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dca_fast.errors import (
    BackendUnavailableError,
    BitstreamError,
    DcaError,
    InputError,
    InputWarning,
    WeightsError,
)

if TYPE_CHECKING:
    from dca_fast.codec import Codec
    from dca_fast.evaluation.measure import CodecLike, Curve, ImageFolder, RowCache
    from dca_fast.files.image_io import ImageInput

T = TypeVar("T")
OK, DISAGREE, BAD_INPUT, BAD_STREAM, BAD_ENVIRONMENT = range(5)
BACKENDS = ("native", "reference")


def say(kind: str, message: object) -> None:
    """One line on standard error, if there is any; kind is "error" or "warning"."""
    text = re.sub(r"[\x00-\x1f\x7f]", lambda control: repr(control[0])[1:-1], str(message).strip())
    note(f"dca-fast: {kind}: {text}")


def note(line: str) -> None:
    """The same of what went well."""
    if sys.stderr is not None:
        with suppress(OSError):  # a pipe that was closed, a full disk
            print(line, file=sys.stderr)


def show_warnings(source: str = "") -> None:
    """Print warnings as one line each, with the input they belong to, until `catch_warnings` ends."""
    warnings.simplefilter("always", InputWarning)
    prefix = f"{source}: " if source else ""
    warnings.showwarning = lambda message, *_, **__: say("warning", f"{prefix}{message}")


def message_of(error: Exception) -> str:
    """What went wrong, for people: without the objects that Python and Pillow name."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    text = re.sub(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))
    if isinstance(error, DcaError) and text:
        return text
    text = " ".join(text.split())  # Python's and other libraries' may have lines
    if isinstance(error, OSError) and text:
        return text
    if isinstance(error, MemoryError):
        return "not enough memory"
    return f"{type(error).__name__}: {text}"


def fail(error: Exception, source: str = "") -> int:
    """Say what went wrong, with the input it went wrong for, and return the exit code."""
    named = isinstance(error, OSError) and error.filename is not None
    say("error", message_of(error) if named or not source else f"{source}: {message_of(error)}")
    if isinstance(error, BitstreamError):
        return BAD_STREAM
    return BAD_ENVIRONMENT if isinstance(error, BackendUnavailableError | WeightsError | MemoryError) else BAD_INPUT


def codec_of(args: argparse.Namespace, backend: str | None = None) -> Codec:
    from dca_fast.codec import Codec

    return Codec(
        args.preset,
        weights=args.weights,
        device=args.device,
        backend=backend or args.backend,
        threads=args.threads,
        **({} if getattr(args, "max_pixels", None) is None else {"max_pixels": args.max_pixels}),
    )


def other_codecs(args: argparse.Namespace, codec: Codec) -> list[Codec]:
    """Codecs of the other backends that can run here."""
    codecs = []
    for name in (name for name in BACKENDS if name != codec.backend):
        try:
            codecs.append(codec_of(args, name))
        except BackendUnavailableError as error:
            say("warning", f"nothing to compare {codec.backend} with: {error}")
    return codecs


class NoBar:
    """A progress bar for those who cannot see one."""

    def add_task(self, description: str, total: float | None = None) -> int:
        return 0

    def advance(self, task: int) -> None:
        pass

    def update(self, task: int, completed: float) -> None:
        pass

    def track(self, sequence: Iterable[T], description: str = "") -> Iterable[T]:
        return sequence


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Any]:
    """A bar on a terminal: `Progress` of rich, or something with the same methods."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield NoBar()
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        yield bar


def info(args: argparse.Namespace) -> int:
    """Facts about a file or a model."""
    if (args.file is None) == (args.preset is None):
        raise InputError("give either a file or --preset NAME")
    facts = _file_facts(args.file) if args.preset is None else _model_facts(args.preset)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:{width}}  {_plain(value)}" for name, value in facts.items()))
    return OK


def _file_facts(source: str) -> dict[str, Any]:
    from dca_fast.files.atomic import read
    from dca_fast.files.container import inspect

    return asdict(inspect(read(source)))


def _model_facts(name: str) -> dict[str, Any]:
    from dca_fast.config import preset
    from dca_fast.network import models
    from dca_fast.network.weights import identity_of

    config = preset(name)
    facts: dict[str, Any] = {"preset": name}
    try:
        import torch

        from dca_fast.model.cost import macs_per_pixel
        from dca_fast.model.network import Network
    except ImportError as error:
        say("warning", f"parameters and multiply-accumulates are counted with PyTorch: {error}")
    else:
        with torch.device("meta"):
            facts["parameters"] = sum(p.numel() for p in Network(config).parameters())
        facts["kmac_per_pixel"] = {part: round(macs / 1000, 2) for part, macs in macs_per_pixel(config).items()}
    try:
        facts["model_id"] = identity_of(models.named(name))[:4].hex()
    except WeightsError as error:
        facts["weights"] = str(error)
    return facts | {"config": config.to_dict()}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def check_reports(
    *targets: Path | str | None,
    inputs: Iterable[Path] = (),
    made: Path | None = None,
    ours: Callable[[bytes], bool] | None = None,
    force: bool,
) -> None:
    """Refuse to write what cannot be written, or what replaces something, before the work is done.

    Args:
        targets: files to write.
        inputs: what is read.
        made: a folder that the work makes where it is missing.
        ours: as of `check_output`.
        force: whatever is there may be replaced.

    Raises:
        InputError: the folder of a target does not exist, or the target does, or it is one of the inputs.
    """
    from dca_fast.files.atomic import check_output, identities

    sources = identities(inputs)
    for target in targets:
        if target is None:
            continue
        parent = Path(target).resolve().parent
        if not parent.is_dir() and not (made and parent == made.resolve()):
            raise InputError(f"{target}: its folder does not exist")
        check_output(target, inputs=sources, ours=ours, force=force)


def colours_of(image: ImageInput) -> ImageInput:
    """The image without alpha, which is said."""
    if image.alpha is None:
        return image
    say("warning", "alpha is left out")
    return replace(image, alpha=None)


def evaluate(args: argparse.Namespace) -> int:
    """Rate and distortion over a folder, beside peers and published curves."""
    from dca_fast.evaluation.measure import ImageFolder, RowCache, load_anchors
    from dca_fast.evaluation.peers import make_peers
    from dca_fast.evaluation.report import PLOT_FORMATS, environment, plot, report, summary
    from dca_fast.files.atomic import write_atomic

    # what would fail after minutes of work must fail before
    if args.plot and args.plot.suffix not in PLOT_FORMATS:
        raise InputError(f"a plot is {', '.join(PLOT_FORMATS)}, not {args.plot.name}")
    check_reports(args.json, args.plot, force=args.force)
    images = ImageFolder(args.folder)
    chosen = args.anchor_set or args.folder.resolve().name
    anchors = load_anchors(args.anchors, chosen, args.anchor_names) if args.anchors else {}
    peers = make_peers(args.peers)
    codec = codec_of(args)
    measured = partial(_curve, images=images, scores=args.ssimulacra2)
    ours = measured(codec.config.name, At(codec, args.effort, args.aq_strength), qualities=args.qualities)
    versions = {name: version for name, version in environment()["versions"].items() if name != "dca-fast"}
    rivals = []
    for peer in peers:
        identity = f"{peer.name}, {peer.version}, {peer.settings}, {versions}"
        cache = RowCache(args.peer_cache, identity) if args.peer_cache else None
        curve = measured(peer.name, peer, qualities=peer.ladder, cache=cache)
        rivals.append((curve, peer.version, peer.settings))
    facts = {
        "backend": codec.backend,
        "threads": codec.threads,
        "effort": args.effort,
        "aq_strength": args.aq_strength,
        **report(ours, rivals, anchors, codec.model_id),
    }
    if args.json:
        write_atomic(args.json, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    if args.plot:
        plot(facts, args.plot)
    print(summary(facts))
    return OK


class At:
    """A codec with the same settings for all, for what knows of none."""

    def __init__(self, codec: Codec, effort: int, aq_strength: float) -> None:
        self._codec, self._effort, self._aq_strength = codec, effort, aq_strength

    def encode(self, image: Any, quality: float) -> bytes:
        return self._codec.encode(image, quality, effort=self._effort, aq_strength=self._aq_strength)

    def decode(self, data: bytes, output: Literal["numpy"]) -> Any:
        return self._codec.decode(data, output)


def _curve(
    name: str,
    codec: CodecLike,
    images: ImageFolder,
    qualities: Sequence[float],
    scores: bool,
    cache: RowCache | None = None,
) -> Curve:
    from dca_fast.evaluation.measure import Row, evaluate

    with progress_bar() as bar:
        task = bar.add_task(name, total=len(images) * len(qualities))

        def advance(_: Row) -> None:
            bar.advance(task)

        return evaluate(codec, images, qualities, name=name, on_row=advance, cache=cache, scores=scores)


def train(args: argparse.Namespace) -> int:
    """Train a model, or go on training it."""
    from dca_fast.tensors import need_torch

    need_torch("training")
    from dca_fast.train.commands import train

    inputs = [path for path in (args.data, args.start, args.tables) if path]
    for target, is_one in ((args.export, _is_safetensors), (args.plot, bool)):
        # A training goes on by the same command, with the weights and the plot that it wrote beside its checkpoint.
        own = target and target.resolve().parent == args.out.resolve() and (args.out / "checkpoint.pt").is_file()
        made = args.out if args.data else None
        check_reports(target, inputs=inputs, made=made, ours=is_one if own else None, force=args.force)
    train(args)
    return OK


def _is_safetensors(head: bytes) -> bool:
    return head[8:10] == b'{"'


def ablate(args: argparse.Namespace) -> int:
    """What each hyper latent is worth: twins of the entropy model trained alike."""
    from dca_fast.tensors import need_torch

    need_torch("training")
    from dca_fast.train.commands import ablate

    ablate(args)
    return OK


def export(args: argparse.Namespace) -> int:
    """Integer weights of a training checkpoint."""
    from dca_fast.tensors import need_torch

    need_torch("reading a checkpoint")
    from dca_fast.train.commands import export

    inputs = [path for path in (args.checkpoint, args.mix) if path]
    check_reports(args.out, args.float, inputs=inputs, force=args.force)
    export(args)
    return OK


def compare(args: argparse.Namespace) -> int:
    """A page with a slider: a picture, and JPEG, WebP, AVIF and JPEG XL at equal bytes."""
    from dca_fast.cli.compare import compare

    compare(args)
    return OK


def package(args: argparse.Namespace) -> int:
    """A Python package of weights, to be installed where their files are read."""
    from dca_fast.cli.package import package

    package(args)
    return OK


def completion(args: argparse.Namespace) -> int:
    """A script that completes commands and options in a shell."""
    try:
        import shtab
    except ImportError as error:
        raise BackendUnavailableError(f"completion needs `pip install shtab`: {error}") from error
    parser = args.parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    for action in (action for command in commands.values() for action in command._actions):
        if action.metavar in ("PATH", "FILE", "DIR", "IMAGE", "CHECKPOINT", "OUT", "STEM"):
            action.complete = shtab.FILE
    print(shtab.complete(parser, args.shell))
    return OK


def help(args: argparse.Namespace) -> int:
    """Help about a command, or about all."""
    args.parser().parse_args([*filter(None, [args.topic]), "--help"])
    return OK


def demo(args: argparse.Namespace) -> int:
    """One photograph at several qualities, and whether the backends agree."""
    from dca_fast.cli import demo
    from dca_fast.files.atomic import read
    from dca_fast.files.image_io import ImageInput, load_image
    from dca_fast.testing import landscape

    path = Path(args.image or "landscape")
    image = colours_of(load_image(read(path), pixels_only=True)) if args.image else ImageInput(landscape())
    codec = codec_of(args)
    others = other_codecs(args, codec)
    shots = demo.run(image, codec)
    height, width = image.pixels.shape[:2]
    model = f"{codec.config.name} {codec.model_id}, backend {codec.backend}, {codec.threads} threads"
    print(f"{path.name}, {width} x {height} pixels; {model}")
    print(demo.table(shots))
    for other in others:
        with progress_bar() as bar:
            tracked = bar.track(demo.QUALITIES, description=f"the same with {other.backend}")
            same = all([demo.agrees(quality, image, codec, other) for quality in tracked])
        if not same:
            say("error", f"{codec.backend} and {other.backend} do not agree")
            return DISAGREE
        print(f"files and pixels of {codec.backend} and {other.backend}: identical, for its most detailed part")
    written = demo.save(image, shots, args.out, path.stem, force=args.force)
    print(f"wrote {written[-1]} and {len(written) - 1} more files beside it")
    return OK
