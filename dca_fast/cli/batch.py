"""Which files a batch takes and where each goes: none twice, none over another, none left out in silence."""

from __future__ import annotations

import os
import stat
import warnings
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dca_fast.errors import InputError, InputWarning

__all__ = ["Job", "files_of", "name_of", "plan", "problem_of"]

_OF_SHELLS = "/dev/fd", "/proc/self/fd"  # where <(...) is


@dataclass(frozen=True)
class Job:
    """One file of a batch.

    Args:
        source: its path.
        relative: its path below the folder that was given, or its name: what a shard goes by.
        target: where it goes; "" for none.
        problem: why it cannot be converted, or "".
        left_out: it is none of the files that were meant, as a text file among pictures.
    """

    source: str
    relative: Path
    target: str = ""
    problem: str = ""
    left_out: bool = False


def name_of(relative: Path, extension: str, suffixes: Collection[str], keep_suffix: bool = False) -> Path:
    """What a file becomes: photo.png photo.dca, or photo.png.dca with its suffix; photo.png.dca photo.png again."""
    stem = relative if keep_suffix or relative.suffix.lower() not in suffixes else relative.with_suffix("")
    return stem if not keep_suffix and stem.suffix.lower() == extension else Path(f"{stem}{extension}")


def plan(
    paths: Sequence[str],
    out: Path,
    extension: str,
    suffixes: Collection[str],
    *,
    keep_suffix: bool = False,
    shard: tuple[int, int] = (1, 1),
    ignore: Collection[Path] = (),
) -> list[Job]:
    """All files and where each goes; those of a folder keep their places below it.

    Args:
        paths: files and folders.
        out: folder of the outputs.
        extension: of the outputs.
        suffixes: of the files that are taken from folders, in lower case.
        keep_suffix: of the inputs, before the extension. Inputs that would become one output keep theirs anyway.
        shard: (i, n), the i-th of n parts of about equal size; a file's part depends on its relative path alone.
        ignore: files that are not even left out.

    Returns:
        Files to convert, files with a problem, and files left out, in the order of the paths and of names.

    Raises:
        InputError: nothing at all to convert.
    """
    jobs: dict[str, Job] = {}  # by real and relative path: a file that is given twice is one
    for path in paths:
        for job in files_of(path, suffixes):
            name = f"{os.path.realpath(job.source)}\0{job.relative}"
            if name not in jobs or jobs[name].left_out:  # what is named is taken, wherever else it lies
                jobs[name] = job
    all_jobs = _with_targets(list(jobs.values()), out, extension, suffixes, keep_suffix)
    skipped = {os.path.realpath(path) for path in [*map(str, ignore), *(job.target for job in all_jobs if job.target)]}
    all_jobs = [job for job in all_jobs if not (job.left_out and os.path.realpath(job.source) in skipped)]
    if all(job.left_out for job in all_jobs):
        what = ".dca files" if ".dca" in suffixes else "pictures"
        others = f", {len(all_jobs)} other files, as {all_jobs[0].source} ({all_jobs[0].problem})" if all_jobs else ""
        raise InputError(f"no {what} in {', '.join(paths)}{others}")
    part, parts = shard
    return [job for job in all_jobs if zlib.crc32(os.fsencode(job.relative.as_posix())) % parts == part - 1]


def files_of(named: str, suffixes: Collection[str]) -> Iterator[Job]:
    """A file, or what is in a folder and below."""
    path = Path(named)
    if not os.path.isdir(path):
        yield Job(named, Path(path.name), problem=problem_of(path))
        return
    problems: list[OSError] = []
    for here, folders, files in os.walk(path, onerror=problems.append):
        folders.sort()
        linked = [name for name in folders if os.path.islink(os.path.join(here, name))]
        for name in sorted(files + linked):
            file = Path(here, name)
            relative = file.relative_to(path)
            if name in linked:
                yield Job(str(file), relative, problem="a link to a folder", left_out=True)
            elif file.suffix.lower() not in suffixes:
                yield Job(str(file), relative, problem="another kind of file", left_out=True)
            elif problem := problem_of(file):
                yield Job(str(file), relative, problem=problem, left_out=True)
            else:
                yield Job(str(file), relative)
    for error in problems:
        yield Job(str(error.filename), Path(os.path.relpath(error.filename, path)), problem=str(error.strerror))


def problem_of(path: Path) -> str:
    """Why a path is not read, or "": it is neither a regular file nor what reading it will tell about.

    On a pipe it would wait for ever, but for those of a shell's <(...), which end.
    """
    try:
        regular = os.fspath(path.parent) in _OF_SHELLS or stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return ""
    return "" if regular else "not a regular file"


def _with_targets(
    jobs: list[Job], out: Path, extension: str, suffixes: Collection[str], keep_suffix: bool
) -> list[Job]:
    def target(job: Job, keep: bool) -> str:
        return str(out / name_of(job.relative, extension, suffixes, keep))

    targets = {i: target(job, keep_suffix) for i, job in enumerate(jobs) if not job.problem}
    for group in [] if keep_suffix else _shared(targets):
        kept = {i: target(jobs[i], True) for i in group}
        targets |= kept
        still = {i for shared in _shared(kept) for i in shared}  # as a.png and A.png
        if sources := " and ".join(jobs[i].source for i in group if i not in still):
            warnings.warn(f"{sources} keep their suffixes, to be told apart", InputWarning, stacklevel=2)
    result = [replace(job, target=targets.get(i, "")) for i, job in enumerate(jobs)]
    for group in _shared(targets):
        sources = " and ".join(jobs[i].source for i in group)
        for i in group:
            why = f"{sources} would both become {targets[i]}: rename one, or convert them into different folders"
            result[i] = replace(jobs[i], problem=why)
    return result


def _shared(targets: dict[int, str]) -> list[list[int]]:
    """Groups of jobs with one target, behind links and without case: so do some file systems compare names."""
    groups = defaultdict(list)
    for i, target in targets.items():
        groups[os.path.realpath(target).casefold()].append(i)
    return [group for group in groups.values() if len(group) > 1]
