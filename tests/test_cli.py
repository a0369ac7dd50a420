"""The command line: what it writes, what it says, and how it ends."""

import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

import dca_fast
from dca_fast import Codec, inspect
from dca_fast.cli import demo
from dca_fast.cli.examples import EXAMPLES
from dca_fast.cli.parser import main, make_parser
from dca_fast.errors import BackendUnavailableError
from dca_fast.evaluation import measure
from dca_fast.files.container import parse
from dca_fast.files.image_io import load_image
from dca_fast.network import models
from dca_fast.testing import photograph
from tests.optional import torch

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec("dca-s", threads=1)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(photograph(50, 70)).save(path, icc_profile=ICC)
    return path


def run(*arguments: object) -> int:
    """Exit code of a command with one thread where it takes any."""
    threads = ["--threads", "1"] if arguments and arguments[0] in ("encode", "decode", "eval", "demo") else []
    return main([str(argument) for argument in arguments] + threads)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which holds one line and no traceback."""
    text = capsys.readouterr().err
    assert text.startswith("dca-fast: ")
    assert text.count("\n") == 1
    assert ".tmp" not in text
    assert not re.search(r"object at|0x[0-9a-f]{6}", text)
    return text


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> io.BytesIO:
    """Make `data` standard input and return where standard output goes."""
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=output, flush=output.flush))
    return output


def test_there_and_back(codec: Codec, png: Path, tmp_path: Path) -> None:
    dca, back = tmp_path / "a.dca", tmp_path / "back.png"
    assert run("encode", png, dca, "-q", "42.5", "--aq-strength", "0.5") == 0
    assert dca.read_bytes() == codec.encode(load_image(png), 42.5, aq_strength=0.5)
    assert inspect(dca.read_bytes()).quality == 42.5
    assert run("decode", "--quiet", dca, "--max-pixels", 9999, back) == 0  # paths and options in any order
    with Image.open(back) as image:
        assert np.array_equal(np.array(image), codec.decode(dca.read_bytes(), "numpy"))
        assert image.info["icc_profile"] == ICC


@pytest.mark.parametrize("goal", [("--max-bytes", 1400), ("--bpp", 2.5), ("--psnr", 30.5)])
def test_goals(codec: Codec, png: Path, tmp_path: Path, goal: tuple[str, float]) -> None:
    option, value = goal
    assert run("encode", png, tmp_path / "a.dca", option, value, "-e", 0) == 0
    name = option.removeprefix("--").replace("-", "_")
    assert (tmp_path / "a.dca").read_bytes() == codec.encode_to(load_image(png), effort=0, **{name: value})


def test_a_goal_that_cannot_be_reached(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", png, tmp_path / "a.dca", "--max-bytes", 50, "-e", 0) == 2
    assert "more than 50" in said(capsys)
    assert not (tmp_path / "a.dca").exists()


def test_strip_drops_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    Image.fromarray(photograph(20, 20)).save(tmp_path / "in.png", exif=exif)
    for options, expected in (((), {"exif"}), (("--strip",), set())):  # a .dca of ours is replaced
        assert run("encode", tmp_path / "in.png", tmp_path / "a.dca", *options) == 0
        assert {tag.name.lower() for tag in parse((tmp_path / "a.dca").read_bytes()).sections} == expected


def test_pipes(codec: Codec, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dca = piped(monkeypatch, png.read_bytes())
    assert run("encode", "-", "-") == 0
    assert dca.getvalue() == codec.encode(load_image(png))
    back = piped(monkeypatch, dca.getvalue())
    assert run("decode", "-", "-") == 0
    assert np.array_equal(load_image(back.getvalue()).pixels, codec.decode(dca.getvalue(), "numpy"))


def test_as_a_process(png: Path) -> None:
    command = [sys.executable, "-m", "dca_fast", "info", "-"]
    done = subprocess.run(command, input=png.read_bytes(), capture_output=True)
    assert done.returncode == 3
    assert done.stderr.decode().splitlines() == [
        "dca-fast: error: a .dca file starts with b'\\x89DCA\\r\\n', not with b'\\x89PNG\\r\\n'"
    ]


def test_help_and_mistakes_need_no_heavy_modules() -> None:
    script = (
        "import sys\nfrom dca_fast.cli.parser import main\n"
        "for line in (['--help'], ['eval', '--help'], ['encode', '-q', 'x']):\n"
        "    try: main(line)\n"
        "    except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for command in ("encode", "decode", "info", "eval", "train", "export", "demo"):
        assert f"\n    {command} " in done.stdout
    assert not {"torch", "numpy", "PIL", "rich", "matplotlib"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "required: COMMAND"),
        (("encode", "-q", "101", "a", "b"), "must be within 0..100, got 101"),
        (("encode", "-q", "best", "a", "b"), "invalid quality value: 'best'"),
        (("encode", "--threads", "0", "a", "b"), "must be at least 1, got 0"),
        (("encode", "--aq-strength", "1", "a", "b"), "must be within 0..0.9375, got 1"),
        (("encode", "--bpp", "0", "a", "b"), "must be a positive number, got 0"),
        (("encode", "--bpp", "1", "-q", "50", "a", "b"), "not allowed with argument"),
        (("decode", "--backend", "magic", "a", "b"), "invalid choice: 'magic'"),
        (("eval", "DIR", "--qualities", "10,-1"), "must be within 0..100, got -1"),
        (("train", "--data", "a", "--out", "b", "--crop", "100"), "must be a multiple of 64, got 100"),
    ],
)
def test_usage_mistakes(arguments: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert what in said(capsys)


def test_inputs_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", tmp_path / "none.png", tmp_path / "a.dca") == 2
    assert said(capsys) == f"dca-fast: error: {tmp_path / 'none.png'}: No such file or directory\n"
    assert run("encode", tmp_path / "none.png") == 2
    assert "none.png: No such file" in said(capsys)
    assert run("encode", "a.png", "b.png", "c.png") == 2
    assert "one input and one output" in said(capsys)
    assert run("info") == 2
    assert "either a file or --preset" in said(capsys)
    assert run("info", "--preset", "dca-none") == 2
    assert "unknown preset 'dca-none'" in said(capsys)
    assert run("eval", tmp_path) == 2
    assert "no images" in said(capsys)
    assert not list(tmp_path.iterdir())


def test_bytes_that_cannot_be_decoded(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(codec.encode(photograph(20, 30)))
    data[-9] ^= 1
    (tmp_path / "bad.dca").write_bytes(data)
    assert run("decode", tmp_path / "bad.dca", tmp_path / "a.png") == 3
    assert "checksum mismatch" in said(capsys)
    assert run("info", tmp_path / "bad.dca") == 3
    assert "checksum mismatch" in said(capsys)
    assert not (tmp_path / "a.png").exists()


def test_what_the_machine_lacks(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.dca"
    assert run("encode", png, target, "--weights", tmp_path / "none.safetensors") == 4
    assert "none.safetensors" in said(capsys)
    assert run("encode", png, target, "--device", "abacus") == 4
    assert "abacus" in said(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"in.png"}
    assert torch.__version__
    assert run("export", tmp_path / "none.pt", tmp_path / "w.safetensors") == 4
    assert "none.pt" in said(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"in.png"}


def test_export_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither its input nor other weights; checked before the work."""
    assert torch.__version__
    checkpoint, weights = tmp_path / "checkpoint.pt", tmp_path / "own.safetensors"
    for path in (checkpoint, weights):
        path.write_bytes(b"mine")
    for arguments, what in (
        ((checkpoint, checkpoint), "is the input"),
        ((checkpoint, weights), "exists; --force replaces it"),
        ((checkpoint, tmp_path / "new.safetensors", "--float", weights), "exists; --force replaces it"),
        ((checkpoint, tmp_path / "none" / "new.safetensors"), "its folder does not exist"),
    ):
        assert run("export", *arguments) == 2
        assert what in said(capsys)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"mine"}


def test_nothing_is_written_when_writing_fails(
    codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dca").write_bytes(codec.encode(photograph(20, 30)))
    assert run("decode", tmp_path / "a.dca", tmp_path / "a.xyz") == 2
    assert "known extensions" in said(capsys)
    assert run("decode", tmp_path / "a.dca", tmp_path / "no" / "a.png") == 2
    assert said(capsys) == f"dca-fast: error: {tmp_path / 'no' / 'a.png'}: No such file or directory\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.dca"}


def test_encode_destroys_nothing(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not its input, under whatever name; not another picture; not a file of another kind that is called *.dca."""
    other, mine = tmp_path / "other.png", tmp_path / "mine.dca"
    Image.fromarray(photograph(20, 30)).save(other)
    mine.write_bytes(b"mine")
    for name in ("soft.dca", "hard.dca"):
        getattr(tmp_path / name, "symlink_to" if name == "soft.dca" else "hardlink_to")(png)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for target, what in (
        (other, "is not called *.dca; several inputs need -o DIR"),  # a shell's *.png, where there are two
        (png, "is not called *.dca"),
        (tmp_path / "new.png", "is not called *.dca; --force"),
        (tmp_path / "soft.dca", f"is the input {png} itself"),
        (tmp_path / "hard.dca", f"is the input {png} itself"),
        (mine, "exists and was not made by this program"),
        (tmp_path, "is a folder"),
    ):
        assert run("encode", png, target) == 2
        assert what in said(capsys)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for target in (mine, other, tmp_path / "new.png"):
        assert run("encode", png, target, "--force") == 0
        assert inspect(target.read_bytes()).width == 70
    assert run("encode", png, os.devnull) == 0


def test_decode_replaces_nothing(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dca, target = tmp_path / "a.dca", tmp_path / "a.png"
    dca.write_bytes(codec.encode(photograph(20, 30)))
    target.write_bytes(b"mine")
    for arguments in ((dca, target), (dca,)):
        assert run("decode", *arguments) == 2
        assert said(capsys) == f"dca-fast: error: {target} exists; --force replaces it\n"
        assert target.read_bytes() == b"mine"
    assert run("decode", dca, dca) == 2
    assert "known extensions" in said(capsys)
    assert run("decode", dca, target, "--force") == 0
    assert load_image(target).pixels.shape == (20, 30, 3)
    before = target.read_bytes()
    assert run("decode", dca, target, "--force", "--no-overwrite") == 2
    assert target.read_bytes() == before


def test_what_appears_during_the_work_is_not_replaced(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, target = Codec.encode, tmp_path / "a.dca"

    def slow(self: Codec, *args: Any, **options: Any) -> bytes:
        target.write_bytes(b"mine")
        return encode(self, *args, **options)

    monkeypatch.setattr(Codec, "encode", slow)
    assert run("encode", png, target) == 2
    assert "was not made by this program" in said(capsys)
    assert target.read_bytes() == b"mine"


def test_outputs_beside_their_inputs(codec: Codec, png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", png, "--bpp", "2", "-e", "0") == 0
    data = png.with_suffix(".dca").read_bytes()
    quality = inspect(data).quality
    facts = f"70 x 50, {len(data):,} bytes, {8 * len(data) / 3500:.3f} bpp, quality {quality:g}, "
    line = rf"{re.escape(str(png.with_suffix('.dca')))}: {facts}\d+\.\d\d s\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    assert run("encode", png, "--keep-suffix") == 0
    assert png.with_name("in.png.dca").exists()
    png.unlink()
    capsys.readouterr()
    assert run("decode", png.with_suffix(".dca")) == 0
    assert capsys.readouterr().err.startswith(f"{png}: 70 x 50, {png.stat().st_size:,} bytes, ")
    assert np.array_equal(load_image(png).pixels, codec.decode(data, "numpy"))
    assert run("decode", png.with_suffix(".dca"), "--format", "TIF", "--quiet") == 0
    assert np.array_equal(load_image(png.with_suffix(".tif")).pixels, codec.decode(data, "numpy"))
    assert capsys.readouterr().err == ""


def test_the_format_of_standard_output(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    back = piped(monkeypatch, codec.encode(photograph(20, 30)))
    assert run("decode", "-", "-", "--format", "ppm") == 0
    assert back.getvalue().startswith(b"P6\n30 20\n255\n")


def test_options_are_checked_before_the_work(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(*_: object, **__: object) -> None:
        pytest.fail("a codec was made")

    monkeypatch.setattr(Codec, "__init__", early)
    for arguments, what in (
        (("decode", png, tmp_path / "a.xyz"), "known extensions"),
        (("decode", png, "-o", tmp_path / "out", "--format", "xyz"), "known extensions"),
        (("decode", png, tmp_path / "a.png", "--format", "jpg"), "--format is for outputs without a name"),
        (("encode", png, "-o", png), "is not a folder"),
        (("encode", png, "--shard", "1/2"), "--shard is for a batch"),
        (("encode", tmp_path), "is a folder: say with -o DIR"),
        (("encode", "-"), "standard input needs an output"),
    ):
        assert run(*arguments) == 2
        assert what in said(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"in.png"}


def test_max_pixels(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dca = tmp_path / "a.dca"
    assert run("encode", png, dca, "--max-pixels", "3499") == 3
    assert "70 x 50 pixels exceed the limit of 3499" in said(capsys)
    assert run("encode", png, dca, "--max-pixels", "3500", "--quiet") == 0
    assert run("decode", dca, "--max-pixels", "3499") == 3
    assert "exceed the limit of 3499" in said(capsys)


def test_the_limit_is_ours_alone(png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has a lower one of its own, which no option could raise."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert run("encode", png, tmp_path / "a.dca") == 0
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_no_overwrite(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.dca"
    assert run("encode", png, target, "-q", 10) == 0
    old = target.read_bytes()
    capsys.readouterr()
    assert run("encode", png, target, "--no-overwrite") == 2
    assert f"{target} exists" in said(capsys)
    assert target.read_bytes() == old
    assert run("encode", png, target) == 0
    assert target.read_bytes() != old


def test_a_batch_goes_on_after_failures(
    codec: Codec, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    assert run("encode", tmp_path / "broken.png", tmp_path / "none.png", png, "-o", out) == 2
    errors = capsys.readouterr().err
    assert f"dca-fast: error: {tmp_path / 'broken.png'}: not an image" in errors
    assert f"dca-fast: error: {tmp_path / 'none.png'}: No such file" in errors
    assert "1 converted, 0 kept, 2 failed" in errors
    assert {path.name for path in out.iterdir()} == {"in.dca"}

    (out / "bad.dca").write_bytes(b"\x89DCA\r\n")
    assert run("decode", out, "-o", out, "--format", "bmp") == 3
    assert "bad.dca: the file ends after 6 bytes" in capsys.readouterr().err
    expected = codec.decode((out / "in.dca").read_bytes(), "numpy")
    assert np.array_equal(load_image(out / "in.bmp").pixels, expected)


def test_a_manifest_tells_what_became_of_each_file(
    codec: Codec, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, out, manifest = tmp_path / "broken.png", tmp_path / "out", tmp_path / "manifest.jsonl"
    broken.write_bytes(b"not a picture")
    assert run("encode", broken, png, "-o", out, "--manifest", manifest, "-q", 30) == 2
    failed, done = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert run("encode", png, "-o", out, "--manifest", manifest, "--no-overwrite") == 0
    assert json.loads(manifest.read_text().splitlines()[0]) == failed
    kept = json.loads(manifest.read_text().splitlines()[1])
    assert len(manifest.read_text().splitlines()) == 2  # one line for each file, whatever the number of runs
    assert kept | {"status": "done"} == done
    data = (out / "in.dca").read_bytes()
    assert failed["status"] == "failed"
    assert failed["source_sha256"] == hashlib.sha256(b"not a picture").hexdigest()
    assert "output_bytes" not in failed
    assert failed["source"] == str(broken)
    assert "not an image" in failed["error"]
    assert done.pop("bpp") == pytest.approx(inspect(data).bpp)
    assert done == {
        "source": str(png),
        "output": str(out / "in.dca"),
        "status": "done",
        "source_bytes": png.stat().st_size,
        "source_sha256": hashlib.sha256(png.read_bytes()).hexdigest(),
        "output_bytes": len(data),
        "output_sha256": hashlib.sha256(data).hexdigest(),
        "width": inspect(data).width,
        "height": inspect(data).height,
        "quality": 30,
        "model_id": codec.model_id,
    }
    assert kept["status"] == "kept"
    manifest.unlink()
    assert run("decode", out, "-o", out, "--manifest", manifest) == 0
    assert len(manifest.read_text().splitlines()) == 1
    back = json.loads(manifest.read_text())
    assert (back["model_id"], back["source_sha256"]) == (done["model_id"], done["output_sha256"])
    capsys.readouterr()
    assert run("encode", png, tmp_path / "a.dca", "--manifest", manifest) == 2
    assert "for a batch" in said(capsys)
    assert run("encode", png, "-o", out, "--manifest", tmp_path / "no" / "a.jsonl") == 2
    assert "No such file" in capsys.readouterr().err


def test_a_folder_keeps_its_shape_and_can_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.fromarray(photograph(20, 30)).save(source / name)
    assert run("encode", source, "-o", out) == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.dca")} == {"a.dca", "deep/b.dca"}
    whole = (out / "a.dca").read_bytes()
    (out / "deep/b.dca").unlink()
    capsys.readouterr()
    assert run("encode", source, "-o", out, "--no-overwrite", "-q", 5) == 0
    assert "1 converted, 1 kept, 0 failed" in capsys.readouterr().err
    assert (out / "a.dca").read_bytes() == whole
    assert run("decode", source, "-o", out) == 2
    assert "no .dca files" in said(capsys)


def test_a_batch_takes_no_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", "-", "-o", tmp_path / "out") == 2
    assert "standard input" in said(capsys)
    assert not (tmp_path / "out").exists()


def test_warnings_are_one_line_and_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ink = tmp_path / "ink.tif"
    Image.fromarray(photograph(20, 30)).convert("CMYK").save(ink)
    assert run("encode", ink, tmp_path / "a.dca", "--quiet") == 0
    assert said(capsys) == "dca-fast: warning: CMYK is converted to sRGB\n"
    assert run("encode", ink, "-o", tmp_path) == 0
    assert f"dca-fast: warning: {ink}: CMYK is converted to sRGB\n" in capsys.readouterr().err


def test_verify(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.__version__
    target = tmp_path / "a.dca"
    decode, decoded = Codec.decode, []

    def differ(self: Codec, data: bytes, output: str = "pil") -> Any:
        decoded.append(self.backend)
        return Image.eval(decode(self, data, output), lambda v: v ^ (self.backend == "reference"))

    monkeypatch.setattr(Codec, "decode", differ)
    assert run("encode", png, target) == 0
    assert not decoded
    assert run("encode", "--verify", png, target) == 0  # with the backend in use alone
    assert decoded == [Codec().backend]
    target.unlink()
    capsys.readouterr()
    assert run("encode", png, target, "--verify=reference") == 3
    assert "native and reference decode to different pixels" in said(capsys)
    assert not target.exists()

    def damaged(self: Codec, data: bytes, output: str = "pil") -> Any:
        return decode(self, data[:-1], output)

    monkeypatch.setattr(Codec, "decode", damaged)
    assert run("encode", png, target, "--verify") == 3
    assert "checksum" in said(capsys)
    assert not target.exists()


def test_verify_needs_the_backend_it_names(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Codec.__init__

    def only_native(self: Codec, model: str, *, backend: str, **options: Any) -> None:
        if backend == "reference":
            raise BackendUnavailableError("no PyTorch is here")
        make(self, model, backend=backend, **options)

    monkeypatch.setattr(Codec, "__init__", only_native)
    assert run("encode", png, tmp_path / "a.dca", "--verify=reference") == 4
    assert said(capsys) == "dca-fast: error: no PyTorch is here\n"
    assert not (tmp_path / "a.dca").exists()


def test_no_failure_names_objects(
    png: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise RuntimeError(f"the thing {object()} broke\nin two")

    monkeypatch.setattr(Codec, "encode", surprise)
    assert run("encode", png, "-") == 2
    assert said(capsys) == "dca-fast: error: RuntimeError: the thing broke in two\n"
    monkeypatch.setenv("DCA_DEBUG", "1")
    with pytest.raises(RuntimeError):
        run("encode", png, "-")
    monkeypatch.delenv("DCA_DEBUG")
    text = png.with_suffix(".txt")
    text.write_text("no picture")
    assert run("encode", text) == 2
    assert said(capsys) == "dca-fast: error: not an image in a supported format\n"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `dca-fast` is this program."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = f'dca-fast() {{ {shlex.quote(sys.executable)} -m dca_fast "$@"; }}\n{command}'
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("dca-fast info a.dca | head -c 0; exit ${PIPESTATUS[0]}", (0, 141), ""),
        ("dca-fast --help | head -c 0; exit ${PIPESTATUS[0]}", (0, 141), ""),
        ("dca-fast info a.dca > /dev/full", (2,), "No space left on device\n"),
        ("dca-fast info a.dca >&-", (0,), ""),
        ("dca-fast decode a.dca - >&-", (2,), "dca-fast: error: standard output is closed\n"),
        ("dca-fast decode - - <&- >/dev/null", (2,), "dca-fast: error: standard input is closed\n"),
        ("dca-fast decode a.dca - 2>&- | cmp - a.ppm 2>/dev/null; exit ${PIPESTATUS[0]}", (0, 141), ""),
        ("dca-fast decode none.dca 2>&-", (2,), ""),
        ("dca-fast decode none.dca 2>/dev/full", (2,), ""),
        ("dca-fast encode 2>&-", (2,), ""),
    ],
)
def test_closed_streams(codec: Codec, tmp_path: Path, command: str, code: tuple[int, ...], error: str) -> None:
    (tmp_path / "a.dca").write_bytes(codec.encode(photograph(20, 30)))
    (tmp_path / "a.ppm").touch()
    done = shell(command, tmp_path)
    assert done.returncode in code
    assert done.stderr.endswith(error)
    assert done.stderr.count("\n") == bool(error)


def test_nothing_is_written_into_a_file_that_took_the_place_of_standard_error(codec: Codec, tmp_path: Path) -> None:
    """What opens first gets the number of a closed stream, and C libraries write their warnings to number 2."""
    data = codec.encode(photograph(20, 30))
    (tmp_path / "a.dca").write_bytes(data)
    script = "import os, sys; from dca_fast.cli.parser import main; main(['info', 'a.dca']); print(os.open('a.dca', 0))"
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} 2>&-", tmp_path)
    assert int(done.stdout.splitlines()[-1]) > 2


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, start in (
        (("--version",), f"dca-fast {dca_fast.__version__}\n"),
        (("help",), "usage: dca-fast "),
        (("help", "encode"), "usage: dca-fast encode "),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert not caught.value.code
        assert capsys.readouterr().out.startswith(start)


@pytest.mark.parametrize("name", ["bash", "zsh", "tcsh"])
def test_completion(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", name) == 0
    script = capsys.readouterr().out
    assert "encode" in script
    if name == "bash":
        assert "--no-overwrite" in script
        assert "encode_pos_0_COMPGEN=_shtab_compgen_files" in script
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    commands = make_parser()._subparsers._group_actions[0].choices
    assert EXAMPLES.keys() == {"", *commands}
    for command, lines in EXAMPLES.items():
        with pytest.raises(SystemExit):
            main([*filter(None, [command]), "--help"])
        shown = capsys.readouterr().out
        assert lines
        assert all(f"\n  {line}\n" in shown for line in lines)


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: command or "dca-fast")
def test_examples_run(
    codec: Codec, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command != "eval" or torch.__version__
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "QUALITIES", (10,))
    Path("photos").mkdir()
    Path("archive").mkdir()
    for name in ("photo.jpg", "photos/a.png", "photos/b.png"):
        Image.fromarray(photograph(64, 96)).save(name)
    if command not in ("", "encode"):
        for name in ("photo.dca", "archive/a.dca", "archive/b.dca"):
            Path(name).write_bytes(codec.encode(photograph(64, 96)))
    if command == "verify":
        assert run("encode", "photos", "-o", "archive", "--manifest", "archive.jsonl") == 0
    if command == "package":
        Path("own.safetensors").write_bytes(models.named("dca-s").read_bytes())
    for line in EXAMPLES[command]:
        assert line.startswith(("dca-fast ", "cat "))
        words = shlex.split(line)[1:]
        if command in ("train", "ablate", "export"):  # hours, and inputs of hours
            assert make_parser().parse_args(words)
        elif {"|", ">"} & set(words):
            assert shell(f"set -o pipefail; {line}", tmp_path).returncode == 0
        else:
            try:
                assert main(words) == 0
            except SystemExit as end:
                assert not end.code  # noqa: PT017 (help ends so)


def test_interrupts_end_quietly(png: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Codec, "encode", interrupt)
    assert run("encode", png, "-") == 130
    assert capsys.readouterr() == ("", "")


def test_info_of_a_file(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = codec.encode(photograph(20, 30), 25)
    (tmp_path / "a.dca").write_bytes(data)
    assert run("info", tmp_path / "a.dca", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"], facts["quality"], facts["aq_strength"]) == (30, 20, 25, 0.1875)
    assert facts["model_id"] == codec.model_id
    assert facts["file_bytes"] == len(data)
    assert run("info", tmp_path / "a.dca") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["model_id"] == codec.model_id
    assert lines["section_bytes"] == "none"


def test_info_of_a_model(codec: Codec, capsys: pytest.CaptureFixture[str]) -> None:
    assert torch.__version__
    assert run("info", "--preset", "dca-s", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model_id"] == codec.model_id
    assert facts["parameters"] > codec.parameters / 2
    assert 5 < facts["kmac_per_pixel"]["decode"] < 40
    assert facts["config"]["latent"] == codec.config.latent
    assert run("info", "--preset", "dca-paper") == 0
    assert "no weights are called 'dca-paper'" in capsys.readouterr().out


def test_eval(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert torch.__version__
    folder = tmp_path / "town"
    folder.mkdir()
    Image.fromarray(photograph(70, 50)).save(folder / "a.png")
    anchors = {"town": {"Old": {"source": "s", "bpp": [0.01, 40], "psnr_rgb": [5, 70]}}}
    (tmp_path / "anchors.json").write_text(json.dumps(anchors))
    options = [
        "--anchors",
        tmp_path / "anchors.json",
        "--json",
        tmp_path / "o.json",
        "--plot",
        tmp_path / "o.svg",
    ]
    assert run("eval", folder, "--qualities", "80,20", "--peers", "jpeg", *options) == 0
    facts = json.loads((tmp_path / "o.json").read_text())
    assert facts["model_id"] == codec.model_id
    assert facts["backend"] == codec.backend
    assert facts["qualities"] == [20, 80]
    assert facts["per_image"][0]["bytes"] == len(codec.encode(photograph(70, 50), 20))
    assert list(facts["peers"]) == ["JPEG 4:2:0", "JPEG 4:4:4"]
    assert "Old (published)" in facts["bd_rate"]
    assert "<svg" in (tmp_path / "o.svg").read_text()
    assert "BD-rate" in capsys.readouterr().out


def test_eval_refuses_early_what_would_fail_late(
    png: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    monkeypatch.setattr(measure, "evaluate", late)
    folder = png.parent
    for options, what in (
        (("--plot", "plot.bmp"), "a plot is .png, .svg, .pdf"),
        (("--json", folder / "no" / "o.json"), "its folder does not exist"),
        (("--json", png), "in.png exists; --force replaces it"),
        (("--peers", "bpg"), "unknown peer 'bpg'"),
        (("--anchors", folder / "none.json"), "none.json: No such file"),
    ):
        assert run("eval", folder, *options) == 2
        assert what in said(capsys)


@pytest.fixture
def portrait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small picture, and two qualities instead of four: the reference backend is slow."""
    monkeypatch.setattr(demo, "QUALITIES", (10, 90))
    path = tmp_path / "portrait.png"
    Image.fromarray(photograph(64, 48)).save(path)
    return path


def test_demo(codec: Codec, portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert torch.__version__
    out = tmp_path / "out"
    assert run("demo", portrait, "--out", out) == 0
    text = capsys.readouterr().out
    assert "files and pixels of native and reference: identical" in text
    for quality in demo.QUALITIES:
        data = (out / f"portrait-q{quality}.dca").read_bytes()
        assert data == codec.encode(photograph(64, 48), quality)
        assert np.array_equal(load_image(out / f"portrait-q{quality}.png").pixels, codec.decode(data, "numpy"))
        assert f"{len(data):10d}" in text
    with Image.open(out / "portrait-comparison.png") as sheet:
        assert sheet.width > 3 * demo.TILE
    assert run("demo", portrait, "--out", out) == 0  # its own files may be replaced
    Image.fromarray(photograph(48, 48)).save(portrait)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert run("demo", portrait, "--out", out) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_demo_fails_when_backends_disagree(
    portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.__version__
    encode = Codec.encode

    def differ(self: Codec, *arguments: Any) -> bytes:
        return encode(self, *arguments) + b"x" * (self.backend == "reference")

    monkeypatch.setattr(Codec, "encode", differ)
    assert run("demo", portrait, "--out", tmp_path / "out") == 1
    assert "native and reference do not agree" in capsys.readouterr().err


def test_a_demo_of_alpha_under_any_name(tmp_path: Path) -> None:
    """Where the encoding of the output lacks a character of the name, it is spelt otherwise."""
    picture = photograph(40, 40)
    Image.fromarray(np.dstack([picture, picture[..., 0]])).save(tmp_path / "写真.png")
    command = [sys.executable, "-m", "dca_fast", "demo", tmp_path / "写真.png", "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "DCA_BACKEND": "native"}
    done = subprocess.run([*command, "--backend", "native"], env=environment, capture_output=True, check=True)
    assert b"\\u5199\\u771f.png, 40 x 40 pixels" in done.stdout
    assert b"alpha is left out" in done.stderr
    assert (tmp_path / "out" / "写真-comparison.png").exists()


def test_the_demo_needs_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--out", tmp_path / "out", "--backend", "native") == 0
    assert "landscape, 768 x 512 pixels" in capsys.readouterr().out
    assert (tmp_path / "out" / "landscape-comparison.png").exists()


def test_the_most_detailed_part_is_found() -> None:
    image = np.zeros((90, 120, 3), np.uint8)
    image[41:51, 70:80] = np.random.default_rng(0).integers(0, 256, (10, 10, 3))
    top, left = demo.most_detailed(image, 12)
    assert 39 <= top <= 41
    assert 68 <= left <= 70
    assert demo.most_detailed(image, 500) == (0, 0)


@pytest.mark.slow
def test_train_export_encode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.__version__
    from dca_fast.train import finish
    from dca_fast.train.export import load_float

    monkeypatch.setattr(finish, "fit_tables", partial(finish.fit_tables, crops=64, rounds=2))
    monkeypatch.setattr(finish, "fit_previews", partial(finish.fit_previews, crops=8))
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(photograph(256, 320)).save(data / "a.png")
    options = ["--minutes", "0.001", "--batch", "1", "--crop", "64", "--no-compile", "--threads", "1", "--seed", "5"]
    for start in ([], ["--start", tmp_path / "run" / "checkpoint.pt"]):
        folder = tmp_path / ("again" if start else "run")
        assert run("train", "--data", data, "--out", folder, "--cache", tmp_path / "cache", *options, *start) == 0
        recipe = json.loads((folder / "log.jsonl").read_text().splitlines()[0])["recipe"]
        assert (recipe["crop"], recipe["seed"]) == (64, 5)
    capsys.readouterr()
    weights = tmp_path / "own.safetensors"
    floats = tmp_path / "float.safetensors"
    assert run("export", tmp_path / "again" / "checkpoint.pt", weights, "--float", floats) == 0
    assert load_float(floats).config.name == "dca-s"
    gaussian = Codec(weights=weights, threads=1)
    assert gaussian.model_id in capsys.readouterr().out
    mixed, first = tmp_path / "mixed.safetensors", tmp_path / "run" / "checkpoint.pt"
    command = ["export", tmp_path / "again" / "checkpoint.pt", tmp_path / "b.safetensors", "--mix", first]
    assert run(*command, "--share", "0.25", "--float", mixed) == 0
    names = (tmp_path / "again" / "checkpoint.pt", first, mixed)
    ours, theirs, mean = (load_float(path).state_dict()["context.local.weight"] for path in names)
    assert torch.allclose(mean, 0.75 * ours + 0.25 * theirs, atol=1e-3)
    assert not torch.equal(ours, theirs)
    with pytest.raises(SystemExit):
        run(*command, "--share", "1.5")
    assert "--share: must be within 0..1" in said(capsys)
    again = tmp_path / "again" / "checkpoint.pt"
    assert run("export", again, weights, "--force", "--data", data, "--cache", tmp_path / "cache") == 0
    fitted = Codec(weights=weights, threads=1)
    model_id = fitted.model_id
    assert model_id in capsys.readouterr().out
    assert model_id != gaussian.model_id
    assert len(fitted.encode(photograph(256, 320), 60)) < len(gaussian.encode(photograph(256, 320), 60))
    assert run("encode", data / "a.png", tmp_path / "a.dca", "--weights", weights, "--quiet") == 0
    assert inspect((tmp_path / "a.dca").read_bytes()).model_id == model_id
    assert run("decode", tmp_path / "a.dca", tmp_path / "back.png") == 3
    assert f"made with model {model_id}" in said(capsys)


def shell_blocks() -> list[str]:
    """Contents of the fenced blocks without a language in all documents, with continued lines joined."""
    root = Path(__file__).resolve().parents[1]
    texts = [path.read_text("utf-8") for path in (root / "README.md", *sorted((root / "docs").rglob("*.md")))]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(texts), re.MULTILINE | re.DOTALL)
    return [block.replace("\\\n", " ") for language, block in blocks if not language]


def test_the_readme_shows_what_its_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    example, shown = re.findall(r"^```(?:python)?\n(.*?)^```$", readme, re.M | re.S)[:2]
    exec(example, {})
    assert capsys.readouterr().out == shown


def test_the_commands_of_readme_and_documents_exist() -> None:
    text = "\n".join(shell_blocks())
    commands = re.findall(r"(?:^|\| |/)dca-fast ([^|>&\n]*)", text, re.MULTILINE)
    names = {make_parser().parse_args(shlex.split(words, comments=True)).command.__name__ for words in commands}
    assert names >= {"encode", "decode", "info", "evaluate", "train", "ablate", "export", "demo"}
