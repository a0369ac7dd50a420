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

_BEGIN = b'{"source": "'  # of every line
_OF_OUTPUT = "output_bytes", "output_sha256"


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
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a run was killed, or its disk was full, while it wrote
                    line = b"\n" + line
            file.write(line)

    def tidy(self) -> None:
        """Keep the last line about each file; what it does not say of an output that is still there is said before."""
        if not self._keeps:
            return
        with self._locked() as file:
            file.seek(0)
            content = file.read()
            last: dict[tuple[str, str | None], dict[str, Any]] = {}
            for line in content.splitlines():
                if facts := _facts_of(line, self._path):
                    name = facts["source"], facts["output"]
                    before = last.get(name, {})
                    last[name] = facts | {key: before[key] for key in _OF_OUTPUT if key in before.keys() - facts.keys()}
            tidied = b"".join(json.dumps(facts).encode() + b"\n" for facts in last.values())
            if len(tidied) < len(content):
                write_atomic(self._path, tidied)


def outputs_of(path: Path) -> tuple[dict[str, str], int]:
    """SHA-256 of every output that a manifest says is there, by its path, in hexadecimal digits.

    With them the number of lines that were not written to their ends: what they name is not known.

    Raises:
        InputError: not a manifest.
        OSError: it cannot be read.
    """
    hashes, torn = {}, 0
    for line in path.read_bytes().splitlines():
        facts = _facts_of(line, path)
        torn += facts is None and bool(line)
        if facts is None:
            continue
        output, digest = facts["output"], facts.get("output_sha256")
        if digest is not None or facts.get("status") in ("done", "kept"):
            if not (isinstance(output, str) and isinstance(digest, str)):
                raise InputError(f"{path} is not a manifest")
            hashes[output] = digest  # the last that was made, also if another attempt has failed since
    return hashes, torn


def _facts_of(line: bytes, path: Path) -> dict[str, Any] | None:
    """What a line says; None for one that a run did not write to its end, as it was killed or the disk was full.

    Raises:
        InputError: it is no line of a manifest.
    """
    try:
        facts = json.loads(line)
    except ValueError:
        if line.startswith(_BEGIN) or _BEGIN.startswith(line):
            return None
    except RecursionError:
        pass
    else:
        ours = isinstance(facts, dict) and isinstance(facts.get("source"), str)
        if ours and isinstance(facts.get("output", 0), str | None):
            return dict(facts)
    raise InputError(f"{path} is not a manifest")
