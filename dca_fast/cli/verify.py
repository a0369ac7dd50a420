"""Whether the files of an archive are still whole: what `dca-fast verify` does."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dca_fast.cli.batch import files_of
from dca_fast.cli.commands import OK, codec_of, fail, note, progress_bar, show_warnings
from dca_fast.cli.manifest import outputs_of
from dca_fast.errors import CorruptStreamError, InputError
from dca_fast.files.atomic import read

if TYPE_CHECKING:
    from dca_fast.codec import Codec


def verify(args: argparse.Namespace) -> int:
    """Decode .dca files, writing nothing, and say which are damaged."""
    hashes = outputs_of(args.manifest) if args.manifest else {}
    files = list(_files(args.paths)) + sorted(hashes)
    if not files:
        raise InputError(f"no .dca files in {', '.join(args.paths)}" if args.paths else "give files, or --manifest")
    codec = codec_of(args)
    codes, size, start = [], 0, time.perf_counter()
    unique = {str(Path(name)): name for name in files}  # a file that is found twice is one
    with progress_bar(args.quiet) as bar:
        for name in bar.track(list(unique), description="verifying"):
            show_warnings(name)
            try:
                size += _check(name, codec, hashes.get(unique[name]), quick=args.quick)
            except Exception as error:  # of any kind: the other files are to be looked at, too
                codes.append(fail(error, name))
    if not args.quiet:
        took = time.perf_counter() - start
        note(f"{len(unique) - len(codes)} whole, {len(codes)} not; {size:,} bytes; {took:.1f} s")
    return codes[0] if codes else OK


def _files(paths: list[str]) -> Iterator[str]:
    """The .dca files in folders and below, and whatever else is named."""
    for path in paths:
        for job in files_of(Path(path), {".dca"}):
            if not job.left_out:
                yield job.source


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
