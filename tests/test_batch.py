"""Many files: none is destroyed, none is left out in silence, and the failure of one does not stop the others."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dca_fast import Codec
from dca_fast.cli.batch import Job, name_of, plan
from dca_fast.cli.manifest import Manifest, outputs_of
from dca_fast.cli.parser import main
from dca_fast.errors import InputError, InputWarning
from dca_fast.files.image_io import load_image, suffixes
from dca_fast.testing import photograph

PICTURE = Image.fromarray(photograph(20, 30))


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--threads", "1"])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def lines(manifest: Path) -> dict[str, dict[str, Any]]:
    """Of a manifest, by the names of the sources."""
    found = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len({line["source"] for line in found}) == len(found)
    return {Path(line["source"]).name: line for line in found}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def test_every_readable_suffix_is_taken_from_a_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that Pillow reads safely, in any case; what is left out is counted, named, and in the manifest."""
    pictures = ("a.png", "b.jfif", "c.jpe", "d.gif", "e.ppm", "f.jp2", "g.tga", "h.qoi", "i.PNG", "j.TiF", "k.webp")
    for name in pictures:
        PICTURE.save(source / name)
    (source / "notes.txt").write_text("notes")
    (source / "script.eps").write_text("%!PS")
    out, manifest = tmp_path / "out", tmp_path / "m.jsonl"
    assert run("encode", source, "-o", out, "--manifest", manifest) == 0
    assert names(out) == {f"{name[0]}.dca" for name in pictures}
    said = capsys.readouterr().err
    assert f"left out 2 files: {source / 'notes.txt'}, {source / 'script.eps'}" in said
    assert "11 converted, 0 kept, 0 failed, 2 left out; " in said
    assert lines(manifest)["notes.txt"] == {
        "source": str(source / "notes.txt"),
        "output": None,
        "status": "left out",
        "error": "another kind of file",
    }
    assert len(lines(manifest)) == 13

    (out / "a.dca").rename(out / "X.DCA")
    assert run("decode", out, "-o", tmp_path / "back") == 0
    assert names(tmp_path / "back") == {f"{name[0]}.png" for name in pictures if name != "a.png"} | {"X.png"}


def test_many_files_left_out_are_counted(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PICTURE.save(source / "a.png")
    for i in range(25):
        (source / f"{i:02}.txt").touch()
    assert run("encode", source, "-o", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "left out 25 files: " in said
    assert f"{source / '19.txt'} and 5 more\n" in said


def test_plugins_of_pillow_are_loaded(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    PICTURE.save(tmp_path / "a.jxl", lossless=True)
    assert ".jxl" in suffixes()
    assert np.array_equal(load_image(tmp_path / "a.jxl").pixels, np.array(PICTURE))


def test_heif_is_read_where_its_plugin_is(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    PICTURE.save(tmp_path / "a.heic")
    assert {".heic", ".heif"} <= suffixes()
    assert load_image(tmp_path / "a.heic").pixels.shape == (20, 30, 3)


def test_the_summary_adds_up(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        PICTURE.save(source / name)
    assert run("encode", source, "-o", tmp_path / "out") == 0
    read, written = (sum(f.stat().st_size for f in d.iterdir()) for d in (source, tmp_path / "out"))
    said = capsys.readouterr().err
    assert f"; {read:,} bytes in, {written:,} out, ratio {read / written:.2f}; " in said
    assert run("encode", source, "-o", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr().err == ""


class Surprise(Exception):
    """Of no type that anybody expects."""


def test_any_failure_of_one_file_is_its_own(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        PICTURE.save(source / name)
    encode, calls = Codec.encode, []

    def fail_once(self: Codec, *args: Any, **options: Any) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            raise Surprise("with", object())
        return encode(self, *args, **options)

    monkeypatch.setattr(Codec, "encode", fail_once)
    out, manifest = tmp_path / "out", tmp_path / "m.jsonl"
    assert run("encode", source, "-o", out, "--manifest", manifest) == 2
    said = capsys.readouterr().err
    assert f"dca-fast: error: {source / 'b.png'}: Surprise: ('with',)\n" in said
    assert "2 converted, 0 kept, 1 failed" in said
    assert names(out) == {"a.dca", "c.dca"}
    assert [line["status"] for line in lines(manifest).values()] == ["done", "failed", "done"]
    assert run("encode", source, "-o", out, "--manifest", manifest, "--no-overwrite") == 0
    assert [line["status"] for line in lines(manifest).values()] == ["kept", "done", "kept"]


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        ("avif", "a.dca: EXIF cannot be written as AVIF"),
        ("tif", "a.dca: EXIF cannot be written as TIFF"),
        ("bmp", "a.dca: BMP cannot hold EXIF"),
        ("png", ""),
        ("webp", ""),
        ("jpg", ""),
    ],
)
def test_a_damaged_exif_block_is_a_warning(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extension: str, said: str
) -> None:
    PICTURE.save(source / "a.jpg", exif=b"Exif\0\0garbage!")
    PICTURE.save(source / "b.jpg")
    assert run("encode", source, "-o", tmp_path / "dca") == 0
    assert run("decode", tmp_path / "dca", "-o", tmp_path / "back", "--format", extension) == 0
    assert names(tmp_path / "back") == {f"a.{extension}", f"b.{extension}"}
    assert said in capsys.readouterr().err


def test_inputs_of_one_name_are_kept_apart(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.png", "x.jpg", "other.png", "Y.png", "y.gif"):
        PICTURE.save(source / name)
    out = tmp_path / "out"
    assert run("encode", source, "-o", out) == 0
    assert names(out) == {"x.png.dca", "x.jpg.dca", "other.dca", "Y.png.dca", "y.gif.dca"}
    assert f"{source / 'x.jpg'} and {source / 'x.png'} keep their suffixes" in capsys.readouterr().err
    assert run("decode", out, "-o", tmp_path / "back") == 0
    assert names(tmp_path / "back") == {"x.png", "x.jpg.png", "other.png", "Y.png", "y.gif.png"}
    assert run("encode", source, "-o", tmp_path / "kept", "--keep-suffix") == 0
    assert names(tmp_path / "kept") == {"x.png.dca", "x.jpg.dca", "other.png.dca", "Y.png.dca", "y.gif.dca"}


def test_inputs_that_cannot_be_kept_apart_are_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("1", "2"):
        (source / folder).mkdir()
        PICTURE.save(source / folder / "a.png")
    PICTURE.save(source / "b.png")
    files = [source / "1" / "a.png", source / "2" / "a.png", source / "b.png", source / "b.png"]
    manifest = tmp_path / "m.jsonl"
    assert run("encode", *files, "-o", tmp_path / "out", "--manifest", manifest) == 2
    assert names(tmp_path / "out") == {"b.dca"}  # the same file twice is one
    said = capsys.readouterr().err
    assert "would both become" in said
    assert "1 converted, 0 kept, 2 failed" in said
    assert len(manifest.read_text().splitlines()) == 3


def test_a_pipe_in_a_folder_is_left_out(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading one would wait for ever."""
    PICTURE.save(source / "a.png")
    os.mkfifo(source / "b.png")
    assert run("encode", source, "-o", tmp_path / "out") == 0
    assert f"left out 1 files: {source / 'b.png'}" in capsys.readouterr().err
    assert run("encode", source / "a.png", source / "b.png", "-o", tmp_path / "out") == 2
    assert f"{source / 'b.png'}: not a regular file" in capsys.readouterr().err
    os.mkfifo(tmp_path / "out" / "c.dca")
    assert run("decode", tmp_path / "out", "-o", tmp_path / "back") == 0
    assert names(tmp_path / "back") == {"a.png"}


def test_folders_that_are_not_searched_are_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    PICTURE.save(source / "a.png")
    (source / "loop").symlink_to(source)
    (source / "locked").mkdir()
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert run("encode", source, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"left out 1 files: {source / 'loop'}" in said
    assert f"{source / 'locked'}: Permission denied" in said
    assert names(tmp_path / "out") == {"a.dca"}


def test_resuming_looks_at_what_is_there(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a power cut leaves is made again; what is not ours is named and left alone."""
    for name in "abcd":
        PICTURE.save(source / f"{name}.png")
    out = tmp_path / "out"
    assert run("encode", source, "-o", out) == 0
    whole = (out / "a.dca").read_bytes()
    (out / "b.dca").write_bytes(b"")
    (out / "c.dca").write_bytes(whole[:-5])
    (out / "d.dca").write_bytes(b"not ours")
    capsys.readouterr()
    assert run("encode", source, "-o", out, "--no-overwrite") == 2
    said = capsys.readouterr().err
    assert "2 converted, 1 kept, 1 failed" in said
    assert f"{out / 'd.dca'} exists, and is damaged or another file" in said
    assert [(out / f"{name}.dca").read_bytes() for name in "abcd"] == [whole, whole, whole, b"not ours"]
    assert run("encode", source, "-o", out, "--no-overwrite", "--force") == 0
    assert (out / "d.dca").read_bytes() == whole

    back = tmp_path / "back"
    assert run("decode", out, "-o", back) == 0
    picture = (back / "a.png").read_bytes()
    (back / "b.png").write_bytes(b"")
    (back / "c.png").write_bytes(picture[:-20])
    PICTURE.resize((5, 5)).save(back / "d.png")
    mine = (back / "d.png").read_bytes()
    capsys.readouterr()
    assert run("decode", out, "-o", back, "--no-overwrite") == 2
    assert "1 converted, 1 kept, 2 failed" in capsys.readouterr().err
    assert (back / "b.png").read_bytes() == picture
    assert (back / "d.png").read_bytes() == mine


def test_a_batch_replaces_no_picture(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Encoding and decoding in one folder would replace the originals by lossy copies."""
    PICTURE.save(source / "a.png")
    original = (source / "a.png").read_bytes()
    assert run("encode", source, "-o", source) == 0
    capsys.readouterr()
    assert run("decode", source, "-o", source) == 2
    assert f"{source / 'a.png'} exists; --force replaces it" in capsys.readouterr().err
    assert (source / "a.png").read_bytes() == original
    assert run("encode", source, "-o", source) == 0  # its own output is neither left out nor refused
    assert "left out 1" not in capsys.readouterr().err
    assert run("decode", source, "-o", source, "--force") == 0
    assert (source / "a.png").read_bytes() != original


def test_shards_are_a_partition(source: Path, tmp_path: Path) -> None:
    for i in range(20):
        PICTURE.save(source / f"{i}.png")
    found: list[str] = []
    for part in (1, 2, 3):
        out = tmp_path / str(part)
        assert run("encode", source, "-o", out, "--shard", f"{part}/3", "-e", "0") == 0
        found += names(out)
        assert 2 <= len(names(out)) <= 12
    assert sorted(found) == sorted(f"{i}.dca" for i in range(20))
    moved = tmp_path / "moved"
    source.rename(moved)
    (moved / "0.png").unlink()
    parts = [{job.relative for job in plan([str(moved)], tmp_path, ".dca", {".png"}, shard=(i, 3))} for i in (1, 2, 3)]
    assert parts == [
        {Path(name).with_suffix(".png") for name in names(tmp_path / str(i))} - {Path("0.png")} for i in (1, 2, 3)
    ]


def test_names() -> None:
    known = {".png", ".jpg"}
    for place, name in (("a.png", "a.dca"), ("a.PNG", "a.dca"), ("b/a.1.jpg", "b/a.1.dca"), ("a.1", "a.1.dca")):
        assert name_of(Path(place), ".dca", known) == Path(name)
    assert name_of(Path("a.png"), ".dca", known, keep_suffix=True) == Path("a.png.dca")
    assert name_of(Path("a.dca"), ".png", {".dca"}) == Path("a.png")
    assert name_of(Path("a.png.dca"), ".png", {".dca"}) == Path("a.png")
    assert name_of(Path("a.jpg.dca"), ".png", {".dca"}) == Path("a.jpg.png")


def test_a_plan_never_names_a_target_twice(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "x.png.png"):
        (tmp_path / name).touch()
    with pytest.warns(InputWarning, match="keep their suffixes"):
        jobs = plan([str(tmp_path)], Path("out"), ".dca", {".png", ".jpg"})
    good = [job for job in jobs if not job.problem]
    assert [(job.relative.name, job.target) for job in good] == [("x.jpg", "out/x.jpg.dca")]
    assert all("would both become out/x.png.dca" in job.problem for job in jobs if job not in good)
    with pytest.raises(InputError, match=r"no pictures in .*, 3 other files, as .*x.jpg"):
        plan([str(tmp_path)], Path("out"), ".dca", {".gif"})
    assert Job("a", Path("a")).problem == ""


def test_a_manifest_is_not_written_into_another_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURE.save(source / "a.png")
    for content in (b"my notes\n", b"{}\n", b"\x89PNG"):
        (tmp_path / "m").write_bytes(content)
        assert run("encode", source, "-o", tmp_path / "out", "--manifest", tmp_path / "m") == 2
        assert "is not a manifest" in capsys.readouterr().err
        assert (tmp_path / "m").read_bytes() == content
    assert not (tmp_path / "out").exists()


def test_a_manifest_survives_an_interrupted_run(tmp_path: Path) -> None:
    path = tmp_path / "m"
    manifest = Manifest(path)
    for status in ("failed", "done"):
        manifest.add({"source": "a", "output": "b", "status": status})
    with path.open("ab") as file:
        file.write(b'{"source": "c", "out')
    manifest = Manifest(path)
    manifest.add({"source": "c", "output": "d", "status": "done"})
    assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == ["done", "done"]


@pytest.mark.parametrize("torn", [b"{", b'{"sour', b'{"source": "c", "out'])
def test_a_torn_line_anywhere_costs_no_other(torn: bytes, tmp_path: Path) -> None:
    """As after a full disk: at the beginning, and before what another process added."""
    path, facts = tmp_path / "m", {"source": "a", "output": "b", "status": "done", "output_sha256": "0" * 64}
    path.write_bytes(torn)
    manifest = Manifest(path)
    manifest.add(facts)
    with path.open("ab") as file:
        file.write(torn)
    manifest.add(facts | {"source": "c"})
    manifest.add(facts | {"source": "d", "output": "e"})
    assert outputs_of(path) == ({"b": "0" * 64, "e": "0" * 64}, 1)
    manifest.tidy()
    assert outputs_of(path) == ({"b": "0" * 64, "e": "0" * 64}, 0)
    assert [json.loads(line)["source"] for line in path.read_text().splitlines()] == ["a", "c", "d"]


@pytest.mark.parametrize(
    "line", ['{"source": "a"}', '{"source": ["a"], "output": "b"}', '{"source": "a", "output": 1}']
)
def test_lines_of_others_are_no_torn_ones(line: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(line + "\n")
    with pytest.raises(InputError, match="is not a manifest"):
        Manifest(tmp_path / "m")
    with pytest.raises(InputError, match="is not a manifest"):
        outputs_of(tmp_path / "m")
    assert (tmp_path / "m").read_text() == line + "\n"


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_in_the_output_make_no_two_inputs_one(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, name in (("x", "p.png"), ("y", "p.jpg")):
        (source / folder).mkdir()
        PICTURE.save(source / folder / name)
    for name in ("a.png", "b.png"):
        PICTURE.save(source / name)
    (out / "y").mkdir(parents=True)
    (out / "x").symlink_to("y")
    (out / "a.dca").symlink_to("b.dca")
    assert run("encode", source, "-o", out) == 0
    assert {"y/p.png.dca", "y/p.jpg.dca", "a.png.dca", "b.png.dca"} <= names(out)


def test_a_path_that_cannot_be_looked_at_is_one_failure(source: Path, tmp_path: Path) -> None:
    PICTURE.save(source / "a.png")
    assert run("encode", "x" * 300, source / "a.png", "-o", tmp_path / "out") == 2
    assert names(tmp_path / "out") == {"a.dca"}


def test_empty_paths_are_no_folder(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PICTURE.save(source / "a.png")
    for arguments in (
        ("", "-o", tmp_path / "out"),
        (source, "-o", ""),
        ("", tmp_path / "a.dca"),
        (source, "-q", 3, ""),
    ):
        with pytest.raises(SystemExit):
            run("encode", *arguments)
    for arguments in (("info", ""), ("eval", source, "--json", ""), ("verify", "--manifest", "")):
        with pytest.raises(SystemExit):
            run(*arguments)
    assert capsys.readouterr().err.count("a path is empty") == 6
    assert names(tmp_path) == {"in/a.png"}


def test_what_is_named_is_taken_beside_its_folder(source: Path, tmp_path: Path) -> None:
    PICTURE.save(source / "picture", "PNG")
    assert run("encode", source, source / "picture", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == {"picture.dca"}


def test_a_file_called_minus_is_no_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    PICTURE.save("-", "PNG")
    assert run("encode", "./-", "-o", "out") == 0
    assert run("verify", "./-") == 3
    assert "./-: " in capsys.readouterr().err
    assert Codec(threads=1).encode("-", 60) == (tmp_path / "out/-.dca").read_bytes()


def test_processes_share_a_manifest(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from dca_fast.cli.manifest import Manifest
        for i in range(50):
            manifest = Manifest(Path(sys.argv[1]))
            manifest.add({"source": f"{sys.argv[2]}{i}", "output": None})
            manifest.tidy()
        """
    command = [sys.executable, "-c", script, str(tmp_path / "m")]
    workers = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert len(lines(tmp_path / "m")) == 100


def test_a_manifest_that_cannot_be_written_stops_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        PICTURE.save(source / name)
    assert run("encode", source, "-o", tmp_path / "out", "--manifest", "/dev/full") == 2
    assert names(tmp_path / "out") == {"a.dca", "b.dca"}
    assert capsys.readouterr().err.count("No space left on device") == 1
