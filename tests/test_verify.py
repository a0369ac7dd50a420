"""`dca-fast verify`: every damage is found and named, and nothing is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dca_fast.cli.parser import main
from dca_fast.files.container import parse
from dca_fast.testing import photograph

COUNT = 6


def run(*arguments: object) -> int:
    return main(["verify", *map(str, arguments), "--threads", "1"])


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(COUNT):
        Image.fromarray(photograph(30 + i, 40, seed=i)).save(source / f"{i}.png")
    out, manifest = tmp_path / "archive", tmp_path / "archive.jsonl"
    assert main(["encode", str(source), "-o", str(out), "--manifest", str(manifest), "--effort", "0", "--quiet"]) == 0
    (out / "notes.txt").write_text("not a picture")
    return out


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_whole_archive(archive: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    before = state(archive)
    capsys.readouterr()
    assert run(archive, archive / "0.dca", "--manifest", f"{archive}.jsonl", *options) == 0
    size = sum(len(data) for name, data in before.items() if name.endswith(".dca"))
    assert capsys.readouterr().err.startswith(f"{COUNT} whole, 0 not; {size:,} bytes;")
    assert state(archive) == before
    assert run(archive, "--quiet", *options) == 0
    assert capsys.readouterr().err == ""


def test_rotten_bits(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One flipped bit in each file, at another place."""
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        data = bytearray((archive / f"{i}.dca").read_bytes())
        data[generator.integers(len(data))] ^= 1 << generator.integers(8)
        (archive / f"{i}.dca").write_bytes(data)
    for options in ((), ("--quick",)):
        capsys.readouterr()
        assert run(archive, *options) != 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == COUNT + 1
        assert all(f"{archive / f'{i}.dca'}: " in line for i, line in enumerate(lines[:-1]))
        assert lines[-1].startswith(f"0 whole, {COUNT} not;")


def test_files_that_are_gone_cut_or_others(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = f"{archive}.jsonl"
    (archive / "0.dca").unlink()
    data = (archive / "1.dca").read_bytes()
    (archive / "1.dca").write_bytes(data[:40])
    (archive / "2.dca").write_bytes((archive / "3.dca").read_bytes())
    capsys.readouterr()
    assert run("--manifest", manifest) != 0
    errors = capsys.readouterr().err
    assert f"{archive / '0.dca'}: No such file" in errors
    assert f"{archive / '1.dca'}: " in errors
    assert f"{archive / '2.dca'}: whole, but not the file in the manifest" in errors
    assert f"{COUNT - 3} whole, 3 not;" in errors


def test_a_right_checksum_does_not_hide_a_wrong_stream(archive: Path) -> None:
    """--quick compares checksums; without it the symbols are decoded and compared."""
    from zlib import crc32

    data = (archive / "0.dca").read_bytes()
    end = len(data) - 4
    changed = bytearray(data[:end])
    changed[end - len(parse(data).stream) // 2] ^= 1
    (archive / "0.dca").write_bytes(bytes(changed) + crc32(changed).to_bytes(4, "little"))
    assert run(archive / "0.dca", "--quick") == 0
    assert run(archive / "0.dca") == 3


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_what_is_not_looked_at_is_said(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/bad.dca").write_bytes(b"bad")
    (archive / "linked").symlink_to(tmp_path / "other")
    os.mkfifo(archive / "pipe.dca")
    capsys.readouterr()
    assert run(archive) == 0
    errors = capsys.readouterr().err
    assert f"not looked at: {archive / 'linked'}, a link to a folder" in errors
    assert f"not looked at: {archive / 'pipe.dca'}, not a regular file" in errors
    assert "notes.txt" not in errors
    assert run(archive / "pipe.dca") == 2
    assert "not a regular file" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_what_took_the_place_of_an_output(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe would be waited for, and a device has no end."""
    for name in ("0.dca", "1.dca", "2.dca"):
        (archive / name).unlink()
    os.mkfifo(archive / "0.dca")
    (archive / "1.dca").symlink_to("/dev/zero")
    (archive / "2.dca").mkdir()
    capsys.readouterr()
    assert run("--manifest", f"{archive}.jsonl") == 2
    said = capsys.readouterr().err
    assert said.count("not a regular file") == 3
    assert f"{COUNT - 3} whole, 3 not;" in said


def test_a_file_is_known_although_an_attempt_to_make_it_again_failed(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, manifest = archive.parent / "in", f"{archive}.jsonl"
    (source / "0.png").write_bytes(b"junk")
    for _ in range(2):
        assert (
            main(["encode", str(source), "-o", str(archive), "--manifest", manifest, "--effort", "0", "--quiet"]) == 2
        )
    lines = Path(manifest).read_bytes().splitlines()
    assert len(lines) == COUNT
    assert all(line.startswith(b'{"source": "') for line in lines)  # by which a torn one is known
    assert run("--manifest", manifest) == 0
    (archive / "0.dca").unlink()
    capsys.readouterr()
    assert run("--manifest", manifest) == 2
    assert f"{archive / '0.dca'}: No such file" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="such names")
def test_names_are_told_as_they_are(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a  b.dca", "c\nd.dca"):
        (archive / name).write_bytes(b"bad")
    capsys.readouterr()
    run(archive)
    said = capsys.readouterr().err
    assert f"{archive}/a  b.dca: " in said
    assert f"{archive}/c\\nd.dca: " in said


def test_wrong_arguments(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ((), "give files, or --manifest"),
        ((empty,), "no .dca files in"),
        (("--manifest", archive / "notes.txt"), "is not a manifest"),
        (("--manifest", tmp_path / "none"), "No such file"),
        ((archive, "--max-pixels", 9), "limit of 9"),
    ):
        capsys.readouterr()
        assert run(*arguments) in (2, 3)
        assert message in capsys.readouterr().err
    (tmp_path / "m.jsonl").write_text(json.dumps({"status": "failed", "source": "a.png", "output": None}) + "\n")
    assert run("--manifest", tmp_path / "m.jsonl") == 2
    assert "m.jsonl names no outputs" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, COUNT])
def test_torn_lines_of_a_manifest_are_failures(archive: Path, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    """They may name files, which nobody looks at."""
    manifest = Path(f"{archive}.jsonl")
    content = manifest.read_bytes().splitlines(keepends=True)[:lines]
    manifest.write_bytes(b"".join(content)[:-30])
    assert run("--manifest", manifest) == 2
    said = capsys.readouterr().err
    assert f"{manifest}: 1 of its lines are torn" in said
    assert f"{lines - 1} whole, 0 not" in said


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="a shell's <(...)")
def test_what_a_shell_pipes(archive: Path) -> None:
    for command in ('verify <(cat "$0")', 'verify <(head -c 50 "$0")'):
        script = f'"{sys.executable}" -m dca_fast {command} --threads 1'
        done = subprocess.run(["bash", "-c", script, archive / "0.dca"], capture_output=True, text=True)
        assert done.returncode == (0 if "cat" in command else 3), done.stderr
