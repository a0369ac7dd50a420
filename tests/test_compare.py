"""`dca-fast compare`: a page that needs nothing else, and the rule of equal bytes."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dca_fast import Codec
from dca_fast.cli.compare import Shown, at_most, page
from dca_fast.cli.parser import main
from dca_fast.testing import photograph


@pytest.mark.parametrize("size", [0, 3, 10, 57, 1000])
def test_the_largest_file_that_is_no_larger(size: int) -> None:
    data, quality = at_most(lambda quality: bytes(3 + quality), size)
    assert len(data) == min(103, max(4, size)) == 3 + quality


def test_a_page_has_every_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a & b.png", tmp_path / "a & b.html"
    pixels = photograph(48, 64)
    Image.fromarray(pixels).save(source)
    assert main(["compare", str(source), "-o", str(out), "-q", "80", "--threads", "1"]) == 0
    text = out.read_text("utf-8")
    assert "<title>a &amp; b.png</title>" in text
    assert "http" not in text
    pictures = json.loads(re.findall(r"const pictures = (.*);\n", text)[0])
    assert [picture["name"].split()[0] for picture in pictures[:4]] == ["original", "dca-fast", "JPEG", "WebP"]
    shown = [Image.open(io.BytesIO(base64.b64decode(p["url"].partition(",")[2]))).convert("RGB") for p in pictures]
    assert {image.size for image in shown} == {(64, 48)}
    codec = Codec(threads=1)
    assert np.array_equal(np.asarray(shown[0]), pixels)
    data = codec.encode(pixels, 80)
    assert np.array_equal(np.asarray(shown[1]), codec.decode(data, "numpy"))
    assert f"<td>{len(data):,}<td>" in text
    command = [sys.executable, "-m", "dca_fast", "compare", "-", "-q", "80", "--threads", "1"]
    page_of_pipe = ["-o", str(tmp_path / "pipe.html")]
    subprocess.run(command + page_of_pipe, input=source.read_bytes(), check=True, capture_output=True)
    assert (tmp_path / "pipe.html").read_text("utf-8") == text.replace("a &amp; b.png", "-")
    done = subprocess.run(command, input=source.read_bytes(), capture_output=True)
    assert (done.returncode, done.stderr) == (2, b"dca-fast: error: standard input needs an output\n")
    before = out.read_bytes()
    assert main(["compare", str(source), "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["compare", str(source), "-o", str(source)]) == 2
    assert out.read_bytes() == before


def test_alpha_is_left_out_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = photograph(48, 64)
    for name, image in (("a", np.dstack([pixels, pixels[..., 0] // 200 * 255])), ("b", pixels)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        assert main(["compare", str(tmp_path / f"{name}.png"), "-o", str(tmp_path / f"{name}.html")]) == 0
    assert "alpha is left out" in capsys.readouterr().err
    first, second = ((tmp_path / f"{name}.html").read_text("utf-8") for name in "ab")
    assert first.replace("a.png", "b.png") == second
    assert main(["compare", str(tmp_path / "b.png"), "-o", str(tmp_path / "nowhere" / "c.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_what_a_format_cannot_hold_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "wide\udce9.png"  # a byte that is no UTF-8
    Image.fromarray(photograph(8, 16400)).save(source)
    assert main(["compare", str(source), "-o", str(tmp_path / "a.html"), "--effort", "0", "--threads", "1"]) == 0
    assert "left out: webp: " in capsys.readouterr().err
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "<title>wide?.png</title>" in text
    assert '"name": "JPEG' in text
    assert '"name": "WebP' not in text


def test_what_no_file_is_small_enough_for_is_said() -> None:
    pixels = photograph(8, 8)
    shown = [Shown("ours", 10, 30.0, "data:"), Shown("<b>", 11, 20.0, "data:"), Shown("c", 10, 20.0, "data:")]
    text = page("x", pixels, shown)
    assert "&lt;b&gt;: no file is that small." in text
    assert "<b>" not in text
