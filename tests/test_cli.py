"""The command line: what it writes, what it says, and how it ends."""

import hashlib
import io
import json
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
import torch
from PIL import Image, ImageCms

from dca_fast import Codec, demo, evaluate, inspect
from dca_fast.cli import main, make_parser
from dca_fast.container import parse
from dca_fast.errors import BackendUnavailableError
from dca_fast.export import load_float
from dca_fast.image_io import load_image
from dca_fast.testing import photograph
from dca_fast.train import finish

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
    return text


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> io.BytesIO:
    """Make `data` standard input and return where standard output goes."""
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=output))
    return output


def test_there_and_back(codec: Codec, png: Path, tmp_path: Path) -> None:
    dca, back = tmp_path / "a.dca", tmp_path / "back.png"
    assert run("encode", png, dca, "-q", "42.5", "--aq-strength", "0.5") == 0
    assert dca.read_bytes() == codec.encode(load_image(png), 42.5, aq_strength=0.5)
    assert inspect(dca.read_bytes()).quality == 42.5
    assert run("decode", dca, back) == 0
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
    for options, expected in (((), {"exif"}), (("--strip",), set())):
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
        "import sys\nfrom dca_fast.cli import main\n"
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
    assert run("export", tmp_path / "none.pt", tmp_path / "w.safetensors") == 4
    assert "none.pt" in said(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"in.png"}


def test_nothing_is_written_when_writing_fails(
    codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dca").write_bytes(codec.encode(photograph(20, 30)))
    assert run("decode", tmp_path / "a.dca", tmp_path / "a.xyz") == 2
    assert "known extensions" in said(capsys)
    assert run("decode", tmp_path / "a.dca", tmp_path / "no" / "a.png") == 2
    assert "No such file" in said(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"a.dca"}


def test_no_overwrite(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.dca"
    target.write_bytes(b"mine")
    assert run("encode", png, target, "--no-overwrite") == 2
    assert f"{target} exists" in said(capsys)
    assert target.read_bytes() == b"mine"
    assert run("encode", png, target) == 0
    assert target.read_bytes() != b"mine"


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
    assert run("encode", png, "-o", out, "--manifest", manifest, "--no-overwrite") == 0
    failed, done, kept = [json.loads(line) for line in manifest.read_text().splitlines()]
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
    (out / "a.dca").write_bytes(b"kept")
    (out / "deep/b.dca").unlink()
    capsys.readouterr()
    assert run("encode", source, "-o", out, "--no-overwrite") == 0
    assert "1 converted, 1 kept, 0 failed" in capsys.readouterr().err
    assert (out / "a.dca").read_bytes() == b"kept"
    assert run("decode", source, "-o", out) == 2
    assert "no .dca files" in said(capsys)


def test_a_batch_never_writes_one_file_twice(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photograph(20, 30)).save(tmp_path / "in.webp")
    assert run("encode", png, tmp_path / "in.webp", "-o", tmp_path / "out") == 2
    assert "would both become" in said(capsys)
    assert run("encode", "-", "-o", tmp_path / "out") == 2
    assert "standard input" in said(capsys)
    assert not (tmp_path / "out").exists()


def test_warnings_are_one_line_and_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ink = tmp_path / "ink.tif"
    Image.fromarray(photograph(20, 30)).convert("CMYK").save(ink)
    assert run("encode", ink, tmp_path / "a.dca") == 0
    assert said(capsys) == "dca-fast: warning: CMYK is converted to sRGB\n"
    assert run("encode", ink, "-o", tmp_path) == 0
    assert f"dca-fast: warning: {ink}: CMYK is converted to sRGB\n" in capsys.readouterr().err


def test_verify(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.dca"
    assert run("encode", png, target, "--verify") == 0
    target.unlink()
    decode = Codec.decode

    def differ(self: Codec, data: bytes, output: str = "pil") -> Any:
        return decode(self, data, output) ^ np.uint8(self.backend == "reference")

    monkeypatch.setattr(Codec, "decode", differ)
    capsys.readouterr()
    assert run("encode", png, target, "--verify") == 3
    assert "native and reference decode to different pixels" in said(capsys)
    assert not target.exists()


def test_verify_says_when_there_is_only_one_backend(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Codec.__init__

    def only_reference(self: Codec, model: str, *, backend: str, **options: Any) -> None:
        if backend == "native":
            raise BackendUnavailableError("no compiler was here")
        make(self, model, backend=backend, **options)

    monkeypatch.setattr(Codec, "__init__", only_reference)
    assert run("encode", png, tmp_path / "a.dca", "--backend", "reference", "--verify") == 0
    assert said(capsys) == "dca-fast: warning: nothing to compare reference with: no compiler was here\n"


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
    assert run("info", "--preset", "dca-s", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model_id"] == codec.model_id
    assert facts["parameters"] > codec.parameters / 2
    assert 5 < facts["kmac_per_pixel"]["decode"] < 40
    assert facts["config"]["latent"] == codec.config.latent
    assert run("info", "--preset", "dca-paper") == 0
    assert "no weights are shipped for 'dca-paper'" in capsys.readouterr().out


def test_eval(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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

    monkeypatch.setattr(evaluate, "evaluate", late)
    folder = png.parent
    for options, what in (
        (("--plot", "plot.bmp"), "a plot is .png, .svg, .pdf"),
        (("--json", folder / "no" / "o.json"), "its folder does not exist"),
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


def test_demo_fails_when_backends_disagree(
    portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Codec.encode

    def differ(self: Codec, *arguments: Any) -> bytes:
        return encode(self, *arguments) + b"x" * (self.backend == "reference")

    monkeypatch.setattr(Codec, "encode", differ)
    assert run("demo", portrait, "--out", tmp_path / "out") == 1
    assert "native and reference do not agree" in capsys.readouterr().err


def test_the_readme_shows_what_its_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    example, shown = re.findall(r"^```(?:python)?\n(.*?)^```$", readme, re.M | re.S)[:2]
    exec(example, {})
    assert capsys.readouterr().out == shown


def test_the_sample_photograph_is_there() -> None:
    pixels = load_image(demo.sample_photograph()).pixels
    assert min(pixels.shape[:2]) > 500


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
    monkeypatch.setattr(finish, "fit", partial(finish.fit, crops=64, rounds=2))
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
    assert run(*command, "--share", "1.5") == 2
    assert "share" in said(capsys)
    again = tmp_path / "again" / "checkpoint.pt"
    assert run("export", again, weights, "--data", data, "--cache", tmp_path / "cache") == 0
    fitted = Codec(weights=weights, threads=1)
    model_id = fitted.model_id
    assert model_id in capsys.readouterr().out
    assert model_id != gaussian.model_id
    assert len(fitted.encode(photograph(256, 320), 60)) < len(gaussian.encode(photograph(256, 320), 60))
    assert run("encode", data / "a.png", tmp_path / "a.dca", "--weights", weights) == 0
    assert inspect((tmp_path / "a.dca").read_bytes()).model_id == model_id
    assert run("decode", tmp_path / "a.dca", tmp_path / "back.png") == 3
    assert f"made with model {model_id}" in said(capsys)


def readme_blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of README.md."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in blocks if name == language]


def test_the_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = readme_blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"\(512, 6\d\d\) RGB: \d+ bytes, \d\.\d{3} bits per pixel\n", capsys.readouterr().out)


def test_the_commands_of_the_readme_exist() -> None:
    text = "\n".join(readme_blocks(""))
    commands = re.findall(r"(?:^|\| |/)dca-fast ([^|>&\n]*)", text, re.MULTILINE)
    names = {make_parser().parse_args(shlex.split(words, comments=True)).command.__name__ for words in commands}
    assert names == {"encode", "decode", "info", "evaluate", "train", "ablate", "export", "demo"}
