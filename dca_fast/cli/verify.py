"""Whether the files of an archive are still whole: what `dca-fast verify` does."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dca_fast.cli.batch import Job, files_of, problem_of
from dca_fast.cli.commands import OK, codec_of, fail, note, progress_bar, say, show_warnings
from dca_fast.cli.manifest import outputs_of
from dca_fast.errors import CorruptStreamError, InputError
from dca_fast.files.atomic import read

if TYPE_CHECKING:
    from dca_fast.codec import Codec


def verify(args: argparse.Namespace) -> int:
    """Decode .dca files, writing nothing, and say which are damaged."""
    hashes, torn = outputs_of(args.manifest) if args.manifest else ({}, 0)
    found = [job for path in args.paths for job in files_of(path, {".dca"})]
    jobs = [job for job in found if not job.left_out]
    jobs += [Job(name, Path(name), problem=problem_of(Path(name))) for name in sorted(hashes)]
    if not (jobs or torn):
        nothing = f"{args.manifest} names no outputs" if args.manifest else "give files, or --manifest"
        raise InputError(f"no .dca files in {', '.join(args.paths)}" if args.paths else nothing)
    codec = codec_of(args)
    codes, size, start = [], 0, time.perf_counter()
    unique = {str(Path(job.source)): job for job in jobs}  # a file that is found twice is one
    with progress_bar(args.quiet) as bar:
        for job in bar.track(list(unique.values()), description="verifying"):
            show_warnings(job.source)
            try:
                if job.problem:
                    raise InputError(job.problem)
                size += _check(job.source, codec, hashes.get(job.source), quick=args.quick)
            except Exception as error:  # of any kind: the other files are to be looked at, too
                codes.append(fail(error, job.source))
    for job in found:
        if job.left_out and (job.source.lower().endswith(".dca") or os.path.isdir(job.source)):
            say("warning", f"not looked at: {job.source}, {job.problem}")
    failed = len(codes)
    if torn:
        why = f"{torn} of its lines are torn: what they name is not looked at; the batch, run again, mends them"
        codes.append(fail(InputError(why), str(args.manifest)))
    if not args.quiet:
        took = time.perf_counter() - start
        note(f"{len(unique) - failed} whole, {failed} not; {size:,} bytes; {took:.1f} s")
    return codes[0] if codes else OK


def _check(name: str, codec: Codec, wanted: str | None, *, quick: bool) -> int:
    """Raise what is wrong with a file; the number of its bytes."""
    from dca_fast.files.container import parse

    data = read(name)
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        parse(data, max_pixels=codec.max_pixels)  # which says more
        raise CorruptStreamError("whole, but not the file in the manifest")
    if quick:
        parse(data, max_pixels=codec.max_pixels)
    else:
        codec.decode(data, "numpy")
    return len(data)
