"""Converting files: what `dca-fast encode` and `decode` do, one file or many."""

from __future__ import annotations

import argparse
import errno
import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dca_fast.cli.batch import Job, name_of, plan
from dca_fast.cli.commands import OK, codec_of, fail, message_of, note, progress_bar, say, show_warnings
from dca_fast.cli.manifest import Manifest
from dca_fast.errors import BitstreamError, DcaError, InputError, WeightsError
from dca_fast.files.atomic import StrPath, check_output, identities, is_dca, read, remove_abandoned, write_atomic

if TYPE_CHECKING:
    from dca_fast.codec import Codec
    from dca_fast.files.container import Info

NAMED = 20  # files left out that standard error names; the manifest names all


@dataclass(frozen=True)
class Conversion:
    """One direction of `dca-fast`.

    Args:
        convert: the bytes of a file to those of its output, whose name is the second argument.
        whole: whether an output that is there needs not be made again; its bytes and the path of its source.
        ours: whether a file that begins so may be replaced; None: none may.
        tell: an output in words; its bytes and those of its source.
    """

    convert: Callable[[bytes, str], bytes]
    whole: Callable[[bytes, str], bool]
    ours: Callable[[bytes], bool] | None
    tell: Callable[[bytes, bytes], str]


def encode(args: argparse.Namespace) -> int:
    """Images to .dca files."""
    from dca_fast.encoder.rate_control import GOALS
    from dca_fast.files import image_io

    jobs = _jobs(args, ".dca", image_io.suffixes())
    codec = codec_of(args)
    if codec.encoder_problem and not args.lossless:
        raise WeightsError(codec.encoder_problem)
    other = codec_of(args, "reference") if args.verify == "reference" else None

    def convert(data: bytes, _: str) -> bytes:
        image = image_io.load_image(data, strip=args.strip, exact=args.lossless, max_pixels=codec.max_pixels)
        with _effort_bar(args) as progress:
            goals = {name: getattr(args, name) for name in GOALS}
            options = {name: getattr(args, name) for name in ("effort", "aq_strength", "screen", "alpha_quality")}
            options["progress"] = progress
            if any(goal is not None for goal in goals.values()):
                encoded = codec.encode_to(image, **goals, **options)
            else:
                encoded = codec.encode(image, "lossless" if args.lossless else args.quality, **options)
        if args.verify:
            _verify(encoded, codec, other)
        return encoded

    def whole(output: bytes, _: str) -> bool:
        from dca_fast.files.container import inspect

        with suppress(BitstreamError):
            return bool(inspect(output))
        return False

    def tell(output: bytes, _: bytes) -> str:
        from dca_fast.files.container import inspect

        info = inspect(output)
        how = "lossless" if info.lossless else f"quality {info.quality:g}"
        how += ", all graphic" if info.exact and not info.lossless else ""
        how += f", {info.graphic_blocks} graphic blocks" if info.graphic_blocks else ""
        return f"{info.width} x {info.height}, {len(output):,} bytes, {info.bpp:.3f} bpp, {how}"

    with image_io.no_limit_of_pillow():  # --max-pixels is one
        return _run(args, jobs, Conversion(convert, whole, is_dca, tell))


def _verify(data: bytes, codec: Codec, other: Codec | None) -> None:
    """Decode: a codec checks the digest of its symbols, and the pixels of two are compared here."""
    pixels = codec.decode(data)
    if other is not None and pixels.tobytes() != other.decode(data).tobytes():
        raise BitstreamError(f"{codec.backend} and {other.backend} decode to different pixels")


@contextmanager
def _effort_bar(args: argparse.Namespace) -> Iterator[Callable[[float], None] | None]:
    """A bar for one file that takes long; a batch has its own."""
    if args.effort < 2 or args.lossless or args.out_dir is not None:
        yield None
        return
    with progress_bar(args.quiet) as bar:
        task = bar.add_task("refining", total=100)
        yield lambda done: bar.update(task, completed=round(100 * done))


def decode(args: argparse.Namespace) -> int:
    """.dca files to images."""
    from dca_fast.files import image_out

    named = args.out_dir is None and len(args.paths) == 2 and args.paths[1] != "-"
    if named and args.format is not None:
        raise InputError("--format is for outputs without a name; this one has a name")
    if args.region and args.reduce > 1:
        raise InputError("give --region or --reduce, not both")
    extension = f".{args.format or 'png'}"
    image_out.format_of(args.paths[1] if named else extension)
    jobs = _jobs(args, extension, {".dca"})
    codec = codec_of(args)

    def convert(data: bytes, target: str) -> bytes:
        image = codec.decode(data, region=args.region, reduce=args.reduce)
        return image_out.image_bytes(image, extension if target == "-" else target)

    def shown(info: Info) -> tuple[int, int]:
        """Width and height of an output."""
        width, height = args.region[2:] if args.region else (info.width, info.height)
        return -(-width // args.reduce), -(-height // args.reduce)

    def whole(output: bytes, source: str) -> bool:
        from dca_fast.files.container import inspect

        return image_out.is_whole(output, *shown(inspect(read(source))))

    def tell(output: bytes, source: bytes) -> str:
        from dca_fast.files.container import inspect

        width, height = shown(inspect(source))
        return f"{width} x {height}, {len(output):,} bytes"

    return _run(args, jobs, Conversion(convert, whole, None, tell))


def _jobs(args: argparse.Namespace, extension: str, suffixes: Collection[str]) -> list[Job]:
    """What to convert, once the options make sense together."""
    if args.out_dir is None:
        return [_single(args, extension, suffixes)]
    if "-" in args.paths:
        raise InputError("standard input needs an output, not -o DIR")
    out = Path(args.out_dir)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder")
    ignore = [args.manifest] if args.manifest else []
    keep = getattr(args, "keep_suffix", False)
    return plan(args.paths, out, extension, suffixes, keep_suffix=keep, shard=args.shard or (1, 1), ignore=ignore)


def _single(args: argparse.Namespace, extension: str, suffixes: Collection[str]) -> Job:
    for option in ("manifest", "shard"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option} is for a batch, with -o DIR")
    source, *rest = args.paths
    if len(rest) > 1:
        raise InputError("give one input and one output, or several inputs and -o DIR")
    if source != "-" and Path(source).is_dir():
        raise InputError(f"{source} is a folder: say with -o DIR where its files shall go")
    if not rest:
        if source == "-":
            raise InputError("standard input needs an output, '-' for a pipe")
        rest = [str(name_of(Path(source), extension, suffixes, getattr(args, "keep_suffix", False)))]
    target = rest[0]
    special = target == "-" or (Path(target).exists() and not Path(target).is_file())  # a pipe, or a device
    if extension == ".dca" and not (special or args.force or target.lower().endswith(".dca")):
        hint = "several inputs need -o DIR" if Path(target).exists() else "--force writes it all the same"
        raise InputError(f"the output {target} is not called *.dca; {hint}")
    return Job(source, Path(source), target)


@dataclass
class Totals:
    """Of a batch."""

    codes: list[int] = field(default_factory=list)
    done: int = 0
    kept: int = 0
    read: int = 0
    written: int = 0
    start: float = field(default_factory=time.perf_counter)


def _run(args: argparse.Namespace, jobs: Sequence[Job], conversion: Conversion) -> int:
    """One file, whose failure is that of the command, or a batch, which goes on after one; its first code then."""
    if args.out_dir is None:
        _convert_one(args, jobs[0], conversion)
        return OK
    left_out = [job for job in jobs if job.left_out]
    totals = Totals()
    manifest = _manifest(args.manifest, totals)
    sources = identities(job.source for job in jobs)
    for folder in {Path(job.target).parent for job in jobs if job.target}:
        remove_abandoned(folder)
    with progress_bar(args.quiet) as bar:
        for job in bar.track(jobs, description="converting"):
            facts = _convert_of_batch(args, job, conversion, sources, totals)
            try:
                if manifest is not None:
                    manifest.add(facts)
            except OSError as error:  # a full disk; the files go on
                totals.codes.append(fail(error, str(args.manifest)))
                manifest = None
    try:
        if manifest is not None:
            manifest.tidy()
    except (DcaError, OSError) as error:
        totals.codes.append(fail(error, str(args.manifest)))
    if left_out:
        names = ", ".join(job.source for job in left_out[:NAMED])
        more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
        say("warning", f"left out {len(left_out)} files: {names}{more}")
    if not args.quiet:
        note(_summary(totals, len(left_out)))
    return totals.codes[0] if totals.codes else OK


def _manifest(path: Path | None, totals: Totals) -> Manifest | None:
    """None for a disk that is full already, which is a failure, but none of the files."""
    try:
        return Manifest(path) if path else None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        totals.codes.append(fail(error, str(path)))
        return None


def _summary(totals: Totals, left_out: int) -> str:
    large, small = max(totals.read, totals.written), min(totals.read, totals.written)
    ratio = f", ratio {large / small:.2f}" if small else ""
    return (
        f"{totals.done} converted, {totals.kept} kept, {len(totals.codes)} failed, {left_out} left out; "
        f"{totals.read:,} bytes in, {totals.written:,} out{ratio}; {time.perf_counter() - totals.start:.1f} s"
    )


def _convert_one(args: argparse.Namespace, job: Job, conversion: Conversion) -> None:
    if args.no_overwrite and job.target != "-" and Path(job.target).exists():
        raise InputError(f"{job.target} exists")
    check = partial(check_output, job.target, ours=conversion.ours, force=args.force)
    check(inputs=identities([job.source]))
    start = time.perf_counter()
    data = read(job.source)
    output = conversion.convert(data, job.target)
    check()  # it may be there by now
    write_atomic(job.target, output)
    if not args.quiet:
        took = time.perf_counter() - start
        note(f"{job.target}: {conversion.tell(output, data)}, {took:.2f} s")


def _convert_of_batch(
    args: argparse.Namespace,
    job: Job,
    conversion: Conversion,
    sources: Mapping[tuple[int, int], StrPath],
    totals: Totals,
) -> dict[str, Any]:
    """Convert one file, whatever happens; what became of it, for the manifest."""
    facts: dict[str, Any] = {"source": job.source, "output": job.target or None}
    if job.left_out:
        return facts | {"status": "left out", "error": job.problem}
    show_warnings(job.source)
    data = output = None
    try:
        if job.problem:
            raise InputError(job.problem)
        if args.no_overwrite and Path(job.target).is_file():
            existing = read(job.target)
            if conversion.whole(existing, job.source):
                output, facts["status"] = existing, "kept"
                data = read(job.source) if args.manifest else None
                totals.kept += 1
            elif existing and not args.force and not (conversion.ours and conversion.ours(existing)):
                raise InputError(f"{job.target} exists, and is damaged or another file")
        if output is None:
            check = partial(check_output, job.target, inputs=sources, ours=conversion.ours, force=args.force)
            check(special=False)
            data = read(job.source)
            converted = conversion.convert(data, job.target)
            check(special=False)  # it may be there by now
            Path(job.target).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(job.target, converted)
            output, facts["status"] = converted, "done"
            totals.done += 1
            totals.read += len(data)
            totals.written += len(output)
    except Exception as error:  # of any kind: the other files are not to suffer from it
        totals.codes.append(fail(error, job.source))
        facts |= {"status": "failed", "error": message_of(error)}
    return facts | (_facts(data, output) if args.manifest else {})


def _facts(source: bytes | None, output: bytes | None) -> dict[str, Any]:
    """Sizes and hashes of both files, and what the .dca says: of those there are."""
    from dca_fast.files.container import inspect

    facts: dict[str, Any] = {}
    for name, data in (("source", source), ("output", output)):
        if data is None:
            continue
        facts |= {f"{name}_bytes": len(data), f"{name}_sha256": hashlib.sha256(data).hexdigest()}
        with suppress(DcaError):  # not a .dca
            info = inspect(data)
            facts |= {key: getattr(info, key) for key in ("width", "height", "quality", "bpp", "model_id")}
    return facts
