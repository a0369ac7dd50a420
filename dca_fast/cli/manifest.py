"""A manifest: what became of each file of a batch, one line of JSON for each, also after several runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dca_fast.errors import InputError
from dca_fast.files.atomic import write_atomic

try:
    import fcntl
except ImportError:  # on Windows, where processes must not share a manifest
    fcntl = None  # type: ignore[assignment]

__all__ = ["Manifest", "outputs_of"]

_NO_LINE = (ValueError, KeyError, TypeError, RecursionError)  # what reading and looking into other files raises


class Manifest:
    """Lines are added as files are done; the last one about a file replaces those before when a run begins or ends.

    Processes can share a manifest.

    Args:
        path: made if missing. A pipe or device only gets the lines.

    Raises:
        InputError: a file of that name holds something else.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open(path, "ab"):
            self._keeps = path.is_file()
        self.tidy()

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        while True:
            with open(self._path, "a+b") as file:
                if fcntl:
                    with contextlib.suppress(OSError):  # file systems without locks
                        fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    current = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
                except FileNotFoundError:
                    current = False
                if current:  # else another process has tidied it since it was opened
                    yield file
                    return

    def add(self, facts: Mapping[str, Any]) -> None:
        """Write one line about the file `facts["source"]` that became `facts["output"]`."""
        line = json.dumps(facts).encode() + b"\n"
        if not self._keeps:
            with open(self._path, "ab") as file:
                file.write(line)
            return
        with self._locked() as file:
            file.write(line)

    def tidy(self) -> None:
        """Keep the last line about each file."""
        if not self._keeps:
            return
        with self._locked() as file:
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            last: dict[tuple[str, str], bytes] = {}
            for line in lines:
                try:
                    facts = json.loads(line)
                    last[facts["source"], facts["output"]] = line
                except _NO_LINE as error:
                    if line is lines[-1] and last and not line.endswith(b"\n"):
                        continue  # a run was killed while it wrote
                    raise InputError(f"{self._path} exists and is not a manifest") from error
            if len(last) < len(lines):
                write_atomic(self._path, b"".join(last.values()))


def outputs_of(path: Path) -> dict[str, str]:
    """SHA-256 of every output that a manifest says is there, by its path, in hexadecimal digits.

    Raises:
        InputError: not a manifest.
        OSError: it cannot be read.
    """
    hashes = {}
    for line in path.read_bytes().splitlines():
        try:
            facts = json.loads(line)
            if facts["status"] in ("done", "kept"):
                hashes[facts["output"]] = facts["output_sha256"]
        except _NO_LINE as error:
            raise InputError(f"{path} is not a manifest") from error
    return hashes
