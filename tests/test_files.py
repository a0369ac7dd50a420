"""Files of users: complete or not at all, and nothing replaced that is not ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dca_fast.errors import InputError
from dca_fast.files import atomic
from dca_fast.files.atomic import check_output, identities, is_dca, write_atomic
from dca_fast.files.container import MAGIC


def test_what_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    check_output(path)
    path.write_bytes(b"")
    check_output(path)
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists; --force"):
        check_output(path)
    with pytest.raises(InputError, match="was not made by this program"):
        check_output(path, ours=is_dca)
    check_output(path, force=True)
    for content in (MAGIC + b"rest", MAGIC[:3]):
        path.write_bytes(content)
        check_output(path, ours=is_dca)
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path, force=True)
    for special in ("-", os.devnull):
        check_output(special)


def test_an_input_is_no_output_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a.dca"
    path.write_bytes(MAGIC)
    (tmp_path / "soft").symlink_to(path)
    (tmp_path / "hard").hardlink_to(path)
    for name in ("a.dca", "soft", "hard", "../" + tmp_path.name + "/a.dca"):
        with pytest.raises(InputError, match=r"is the input .*a\.dca itself"):
            check_output(tmp_path / name, inputs=identities([path, tmp_path / "none"]), ours=is_dca)


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.touch(0o600)
    write_atomic(path, b"data")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_write_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder would allow it."""
    path = tmp_path / "mine"
    path.write_bytes(b"mine")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o200))  # not as root
    with pytest.raises(PermissionError, match="write-protected"):
        write_atomic(path, b"data")
    assert path.read_bytes() == b"mine"


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(tmp_path / "no" / "a.dca", b"data")
    assert caught.value.filename == str(tmp_path / "no" / "a.dca")
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = atomic._host()
    left = tmp_path / f".dca-{host}-{dead.pid}-0123456789abcdef.tmp"
    kept = [
        tmp_path / f".dca-{host}-{os.getppid()}-0123456789abcdef.tmp",  # runs
        tmp_path / f".dca-ffffffff-{dead.pid}-0123456789abcdef.tmp",  # of another machine
        tmp_path / ".dca-notes.tmp",  # of the user
    ]
    for path in (left, *kept):
        path.write_bytes(b"half")
    write_atomic(tmp_path / "a", b"data")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a", *kept])


@pytest.mark.skipif(os.name != "posix", reason="POSIX asks for it")
def test_the_folder_is_synced_behind_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.path.isdir(f"/dev/fd/{descriptor}"), (tmp_path / "a").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_atomic(tmp_path / "a", b"data")
    assert synced == [(False, False), (True, True)]
