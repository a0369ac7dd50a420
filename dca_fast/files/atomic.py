"""Files of users, read and written: complete or not at all, and nothing replaced that is not ours to replace."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dca_fast.errors import InputError
from dca_fast.files.container import MAGIC

__all__ = ["StrPath", "check_output", "identities", "is_dca", "read", "remove_abandoned", "write_atomic"]

StrPath = str | os.PathLike[str]
_HEAD = 64  # bytes that tell what a file is


def _standard(name: str) -> Any:
    """The bytes of standard "input" or "output"."""
    stream = sys.stdin if name == "input" else sys.stdout
    if stream is None:
        raise InputError(f"standard {name} is closed")
    return stream.buffer


def read(source: StrPath) -> bytes:
    """All bytes of a file; "-" is standard input.

    Raises:
        OSError: it cannot be read.
        InputError: standard input is closed.
    """
    if os.fspath(source) == "-":
        return bytes(_standard("input").read())
    return Path(source).read_bytes()


def is_dca(head: bytes) -> bool:
    """Whether a file that begins so is a .dca file, or the beginning of one."""
    return head.startswith(MAGIC) or MAGIC.startswith(head)


def identities(paths: Iterable[StrPath]) -> dict[tuple[int, int], StrPath]:
    """The files that are there, by what is one for all their names and links."""
    files = {}
    for path in paths:
        with contextlib.suppress(OSError):
            there = os.stat(path)
            files[there.st_dev, there.st_ino] = path
    return files


def check_output(
    path: StrPath,
    *,
    inputs: Mapping[tuple[int, int], StrPath] | None = None,
    ours: Callable[[bytes], bool] | None = None,
    force: bool = False,
    special: bool = True,
) -> None:
    """Refuse an output that would destroy what this program did not make.

    Args:
        path: what shall be written. "-" may always be.
        inputs: `identities` of what is read; under whatever name, none of them may be written to.
        ours: whether a file that begins with these bytes may be replaced. An empty file always may.
        force: whatever there is may be replaced.
        special: pipes and devices may be written to; a pipe waits for somebody who reads it.

    Raises:
        InputError: and why.
    """
    if os.fspath(path) == "-":
        return
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(there.st_mode):
        raise InputError(f"{path} is a folder")
    if not stat.S_ISREG(there.st_mode):
        if special:
            return
        raise InputError(f"{path} is not a regular file")
    if force:
        return
    if source := (inputs or {}).get((there.st_dev, there.st_ino)):
        raise InputError(f"{path} is the input {source} itself; --force replaces it")
    if there.st_size == 0:
        return
    if ours is None:
        raise InputError(f"{path} exists; --force replaces it")
    with open(path, "rb") as file:
        if not ours(file.read(_HEAD)):
            raise InputError(f"{path} exists and was not made by this program; --force replaces it")


def write_atomic(path: StrPath, data: bytes) -> None:
    """Write a file completely or not at all, also where the power fails.

    Args:
        path: the target, replaced in one step; it keeps its permissions. Pipes and devices are written to; "-" is
            standard output.
        data: the whole content.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
        InputError: standard output is closed.
    """
    if os.fspath(path) == "-":
        output = _standard("output")
        output.write(data)
        output.flush()
        return
    target = Path(os.path.realpath(path))
    mode = target.stat().st_mode if target.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        target.write_bytes(data)
        return
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected", os.fspath(path))
    remove_abandoned(target.parent)
    temporary = target.with_name(f".dca-{_host()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # not the name of the temporary file
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Let the new name reach the disk, where the system can say so."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # folders that cannot be read, file systems that cannot do it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _host() -> str:
    """This machine, or container, in the name of a temporary file: process numbers mean nothing to others."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        processes = ""
    return hashlib.sha256(f"{platform.node()}{processes}".encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=1024)
def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of processes of this machine that were killed; looked for once in a folder."""
    paths: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that cannot be read
        paths += folder.glob(f".dca-{_host()}-*.tmp")
    for path in paths:
        with contextlib.suppress(OSError, ValueError, OverflowError):  # names of others
            if not _runs(int(path.name.split("-")[2])):
                path.unlink()


def _runs(process: int) -> bool:
    """Whether there is such a process; others of its number count as it, so that nothing in use goes."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
