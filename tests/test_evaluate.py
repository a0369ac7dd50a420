"""Rate, distortion and comparisons: exact on made-up codecs and curves, sane on real ones."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from dca_fast import Codec
from dca_fast.cli import parser as cli
from dca_fast.errors import BackendUnavailableError, ConfigError, InputError, InputWarning
from dca_fast.evaluation.measure import (
    Curve,
    ImageFolder,
    Row,
    RowCache,
    bd_rate,
    evaluate,
    load_anchors,
    ms_ssim,
    psnr,
    rate_inversions,
)
from dca_fast.evaluation.peers import FAMILIES, Peer, make_peers
from dca_fast.evaluation.report import environment, plot, report, summary
from dca_fast.ssimulacra2 import ssimulacra2
from dca_fast.testing import photograph

PEERS = make_peers(FAMILIES)
CURVE = [(0.1 * 1.7**i, 26.0 + 2.1 * i) for i in range(7)]
ROW = Row("a", 10.0, 100, 0.5, 30.0, 0.9, 1.0, 1.0)


class Coarse:
    """Keeps the multiples of 101 - quality, in as many bytes as the quality says."""

    def encode(self, image: np.ndarray, quality: float) -> bytes:
        self.pixels = (image // int(101 - quality) * int(101 - quality)).astype(np.uint8)
        return bytes(int(quality) + image.shape[0])

    def decode(self, data: bytes, output: str) -> np.ndarray:
        assert output == "numpy"
        return self.pixels


def test_psnr_is_that_of_8_bit_rgb() -> None:
    black = np.zeros((4, 5, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + np.uint8(255)) == 0
    assert psnr(black, black + np.uint8(5)) == pytest.approx(10 * math.log10(255**2 / 25))
    one_sample = black.copy()
    one_sample[0, 0, 0] = 60
    assert psnr(black, one_sample) == psnr(one_sample, black) == pytest.approx(10 * math.log10(255**2 / 60))


def test_ms_ssim_needs_161_pixels() -> None:
    image = photograph(161, 170)
    assert ms_ssim(image, image) == pytest.approx(1)
    assert ms_ssim(image[:160], image[:160]) is None
    noisy = image ^ np.random.default_rng(0).integers(0, 32, image.shape, np.uint8)
    near, far = ms_ssim(image, image ^ np.uint8(1)), ms_ssim(image, noisy)
    assert near is not None
    assert far is not None
    assert 0 < far < near < 1


def test_rows_and_means() -> None:
    images = [("a", photograph(40, 60)), ("b", photograph(80, 30))]
    seen: list[Row] = []
    curve = evaluate(Coarse(), images, [90, 50], name="coarse", on_row=seen.append)
    assert list(curve.rows) == seen
    assert [(r.image, r.quality, r.bytes) for r in seen] == [
        ("a", 90, 130),
        ("a", 50, 90),
        ("b", 90, 170),
        ("b", 50, 130),
    ]
    assert seen[0].bpp == 8 * 130 / 2400
    low, high = curve.points
    assert (low.quality, high.quality, low.images) == (50, 90, 2)
    assert high.bpp == pytest.approx((seen[0].bpp + seen[2].bpp) / 2)
    assert high.psnr == pytest.approx((seen[0].psnr + seen[2].psnr) / 2)
    assert low.psnr < high.psnr
    assert low.ms_ssim is None
    assert not rate_inversions(curve.rows)


def test_ms_ssim_is_averaged_over_the_images_that_have_one() -> None:
    rows = (
        replace(ROW, ms_ssim=0.5),
        replace(ROW, image="b", ms_ssim=0.7),
        replace(ROW, image="c", ms_ssim=None),
    )
    assert Curve("x", rows).points[0].ms_ssim == pytest.approx(0.6)


def test_rows_that_are_kept_are_not_measured_again(tmp_path: Path) -> None:
    class Counting(Coarse):
        encoded = 0

        def encode(self, image: np.ndarray, quality: float) -> bytes:
            self.encoded += 1
            return super().encode(image, quality)

    def run(label: str, seed: int, qualities: list[float], identity: str = "coarse 1") -> tuple[Curve, int]:
        codec, images = Counting(), [(label, photograph(40, 60, seed))]
        return evaluate(codec, images, qualities, cache=RowCache(tmp_path / "kept", identity)), codec.encoded

    first, encoded = run("a", 0, [50, 90])
    assert encoded == 2
    again, encoded = run("a", 0, [90, 50])
    assert encoded == 0
    assert set(again.rows) == set(first.rows)
    assert [row.image for row in run("renamed", 0, [50])[0].rows] == ["renamed"]
    assert run("a", 0, [50, 91])[1] == 1  # another quality,
    assert run("a", 1, [50])[1] == 1  # other pixels,
    assert run("a", 0, [50], "coarse 2")[1] == 1  # another codec
    assert not list(tmp_path.glob("kept/*.tmp*"))


def test_scores_are_measured_where_they_are_wanted(tmp_path: Path) -> None:
    images, cache = [("a", photograph(40, 60)), ("b", photograph(7, 60))], RowCache(tmp_path, "coarse")
    assert {row.ssimulacra2 for row in evaluate(Coarse(), images, [50], cache=cache).rows} == {None}
    curve = evaluate(Coarse(), images, [50, 90], cache=cache, scores=True)
    a, small = curve.rows[1], curve.rows[3]
    codec = Coarse()
    codec.encode(images[0][1], 90)
    assert a.ssimulacra2 == ssimulacra2(images[0][1], codec.pixels)
    assert small.ssimulacra2 is None
    assert curve.points[1].ssimulacra2 == a.ssimulacra2
    facts = report(curve, [(curve, "1", "none")], {}, "00")
    assert facts["bd_rate_ssimulacra2"] == {"dca-fast (1)": pytest.approx(0, abs=1e-9)}
    lines = summary(facts).splitlines()
    assert lines[0].endswith("SSIMULACRA2")
    assert lines[2].endswith(f" {a.ssimulacra2:.2f}")
    plot(facts, tmp_path / "plot.svg")
    assert "SSIMULACRA2" not in summary(report(evaluate(Coarse(), images, [50]), [], {}, "00"))


def test_the_command_keeps_what_peers_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(photograph(70, 90)).save(tmp_path / "pictures" / "a.png")
    command = ["eval", str(tmp_path / "pictures"), "--qualities", "20,80", "--peers", "jpeg", "--threads", "1"]
    command += ["--peer-cache", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json"), "--force"]
    assert cli.main(command) == 0
    first = json.loads((tmp_path / "out.json").read_text())
    assert len(list((tmp_path / "kept").iterdir())) == 2
    monkeypatch.delattr(Peer, "encode")
    assert cli.main(command) == 0
    again = json.loads((tmp_path / "out.json").read_text())
    assert again["peers"] == first["peers"]
    assert again["bd_rate"] == first["bd_rate"]
    assert cli.main([*command, "--effort", "5"]) == 0
    refined = json.loads((tmp_path / "out.json").read_text())
    assert (first["effort"], refined["effort"]) == (1, 5)
    assert refined["peers"] == first["peers"]
    assert [p["bpp"] for p in refined["points"]] != [p["bpp"] for p in first["points"]]
    for path in (tmp_path / "kept").iterdir():
        path.write_text("{")
    assert cli.main(command) == 2


def test_nothing_to_measure_or_a_wrong_size_is_refused() -> None:
    class Cropping(Coarse):
        def decode(self, data: bytes, output: str) -> np.ndarray:
            return super().decode(data, output)[1:]

    with pytest.raises(InputError, match="no images"):
        evaluate(Coarse(), [], [50])
    with pytest.raises(InputError, match="came back as"):
        evaluate(Cropping(), [("a", photograph(8, 8))], [50])


def test_shrinking_files_are_named() -> None:
    rows = [replace(ROW, quality=q, bytes=b) for q, b in ((30.0, 90), (10.0, 80), (20.0, 95))]
    assert rate_inversions(rows) == ["a: 95 bytes at 20, 90 at 30"]
    assert rate_inversions([*rows[:2], replace(ROW, image="b", bytes=1)]) == []


def test_bd_rate_of_known_shifts() -> None:
    same = bd_rate(CURVE, CURVE)
    assert same.rate_percent == pytest.approx(0, abs=1e-9)
    assert same.psnr_db == pytest.approx(0, abs=1e-9)
    assert same.overlap == 1
    assert same.psnr_range == (CURVE[0][1], CURVE[-1][1])
    cheaper = bd_rate([(0.8 * rate, level) for rate, level in CURVE[::-1]], CURVE)
    assert cheaper.rate_percent == pytest.approx(-20)
    assert cheaper.psnr_db is not None
    assert cheaper.psnr_db > 0
    better = bd_rate([(rate, level + 0.5) for rate, level in CURVE], CURVE)
    assert better.psnr_db == pytest.approx(0.5)
    assert 0.9 < better.overlap < 1
    assert bd_rate(CURVE[::2], CURVE).overlap == 1  # unequal numbers of points


def test_bd_rate_without_an_answer_says_why() -> None:
    apart = bd_rate(CURVE, [(rate, level + 50) for rate, level in CURVE])
    assert (apart.rate_percent, apart.overlap, apart.psnr_range) == (None, 0, None)
    assert "no range" in apart.note
    falling = [(rate, -level) for rate, level in CURVE]
    assert (
        bd_rate([*CURVE, (9.0, math.inf)], CURVE) == bd_rate(CURVE, [*CURVE, (9.0, math.inf)]) == bd_rate(CURVE, CURVE)
    )
    lossless = [(rate, math.inf) for rate, _ in CURVE]
    assert "a picture that came back without loss has no PSNR" in bd_rate(lossless, CURVE).note
    for curve in (CURVE[:1], [], falling):
        assert "test curve" in bd_rate(curve, CURVE).note
        assert "anchor curve" in bd_rate(CURVE, curve).note
    rates_apart = bd_rate([(1000 * rate, level) for rate, level in CURVE], CURVE)
    assert rates_apart.rate_percent == pytest.approx(99900)
    assert rates_apart.psnr_db is None


@pytest.fixture
def anchors(tmp_path: Path) -> Path:
    curve = {"source": "a table", "bpp": [0.1, 0.5, 1.0], "psnr_rgb": [27, 33, 37]}
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps({"town": {"Old": curve, "New": curve}, "sea": {}}))
    return path


def test_anchors_by_set_and_name(anchors: Path) -> None:
    assert list(load_anchors(anchors, "town")) == ["Old", "New"]
    assert list(load_anchors(anchors, "town", ["New"])) == ["New"]
    assert load_anchors(anchors, "sea") == {}
    with pytest.raises(InputError, match="no set 'hill'; it has town, sea"):
        load_anchors(anchors, "hill")
    with pytest.raises(InputError, match="no curve 'Odd' for town; it has Old, New"):
        load_anchors(anchors, "town", ["Odd"])


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"a": {"b": {"bpp": [1]}}}', '{"a": {"b": {"bpp": [1], "psnr_rgb": []}}}']
    + [
        f'{{"a": {{"b": {{"bpp": [{rate}], "psnr_rgb": [30]}}}}}}'
        for rate in ("0", "-1", "null", '"1"', "NaN", "1e999")
    ],
)
def test_files_that_hold_no_anchors(tmp_path: Path, text: str) -> None:
    (tmp_path / "anchors.json").write_text(text)
    with pytest.raises(InputError, match="holds no anchor curves"):
        load_anchors(tmp_path / "anchors.json", "a")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peers_code_better_at_higher_quality(peer: Peer) -> None:
    image = photograph(90, 130)
    curve = evaluate(peer, [("a", image)], [peer.ladder[i] for i in (1, 4, -1)], name=peer.name)
    levels = [(point.bpp, point.psnr) for point in curve.points]
    assert levels == sorted(levels)
    assert levels[0][1] < levels[1][1] < levels[2][1]
    assert levels[-1][1] > 30
    assert list(peer.ladder) == sorted(set(peer.ladder))
    assert any(digit in peer.version for digit in "0123456789")


def test_settings_of_peers_in_words() -> None:
    settings = {peer.name: peer.settings for peer in PEERS}
    assert settings["JPEG 4:2:0"] == "subsampling 4:2:0, optimize, progressive"
    assert settings["AVIF speed 4 4:4:4 PSNR"] == "speed 4, subsampling 4:4:4, tune psnr"
    assert len(set(settings.values())) == len(PEERS)


def test_jpeg_has_the_chroma_its_name_says(tmp_path: Path) -> None:
    sampling = {}
    for peer in make_peers(["jpeg"]):
        (tmp_path / "a.jpg").write_bytes(peer.encode(photograph(16, 16), 50))
        with Image.open(tmp_path / "a.jpg") as image:
            sampling[peer.name] = JpegImagePlugin.get_sampling(image)
    assert sampling == {"JPEG 4:2:0": 2, "JPEG 4:4:4": 0}


def test_peers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown peer 'bpg'; known: jpeg"):
        make_peers(["jpeg", "bpg"])
    with pytest.raises(ConfigError, match="numpy"):
        PEERS[0].decode(b"", "pil")
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(BackendUnavailableError, match="pip install"):
        make_peers(["jxl"])
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    with pytest.raises(BackendUnavailableError, match="built without webp"):
        make_peers(["webp"])


def facts_of(rows: tuple[Row, ...], anchors: Path) -> dict[str, Any]:
    return report(
        Curve("ours", rows), [(Curve("rival", rows), "lib 1.2", "speed 3")], load_anchors(anchors, "town"), "00c0ffee"
    )


def test_report_holds_everything_as_plain_json(anchors: Path) -> None:
    points = ((10.0, 0.2, 29.0, 0.9), (20.0, 0.4, 32.0, 0.95))
    rows = tuple(replace(ROW, quality=q, bpp=b, psnr=p, ms_ssim=m) for q, b, p, m in points)
    facts = json.loads(json.dumps(facts_of(rows, anchors), allow_nan=False))
    assert facts["model_id"] == "00c0ffee"
    assert facts["qualities"] == [10, 20]
    assert [p["bpp"] for p in facts["points"]] == [0.2, 0.4]
    assert len(facts["per_image"]) == 2
    assert facts["peers"]["rival"]["version"] == "lib 1.2"
    assert facts["peers"]["rival"]["settings"] == "speed 3"
    assert list(facts["bd_rate"]) == ["rival (lib 1.2)", "Old (published)", "New (published)"]
    assert facts["bd_rate"]["rival (lib 1.2)"]["rate_percent"] == pytest.approx(0, abs=1e-9)
    assert facts["bd_rate_ms_ssim"] == {"rival (lib 1.2)": pytest.approx(0, abs=1e-9)}
    dearer = tuple(replace(row, bpp=1.25 * row.bpp) for row in rows)
    against = report(Curve("ours", rows), [(Curve("rival", dearer), "1", "")], {}, "")["bd_rate_ms_ssim"]
    assert against == {"rival (1)": pytest.approx(-20)}
    assert facts["versions"]["torch"]
    assert facts["machine"] == environment()["machine"]
    text = summary(facts)
    assert "0.2000    29.00   0.9000  10.00" in text
    lines = text.splitlines()
    assert next(line for line in lines if "rival" in line).split()[:4] == ["0.0", "0.00", "100%", "0.0"]
    assert next(line for line in lines if "Old (published)" in line).split()[3] == "-"  # PSNR is all that is published


def test_lossless_and_small_images_stay_readable(anchors: Path, tmp_path: Path) -> None:
    rows = (replace(ROW, ms_ssim=None), replace(ROW, quality=20.0, bytes=90, psnr=math.inf, ms_ssim=None))
    facts = json.loads(json.dumps(facts_of(rows, anchors), allow_nan=False))
    text = summary(facts)
    assert "1 images are below 161 pixels" in text
    assert "rate fell with rising quality: a: 100 bytes at 10, 90 at 20" in text
    assert "the test curve does not rise" in text
    plot(facts, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


def test_plots_of_unknown_kind_are_refused(tmp_path: Path, anchors: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        plot(facts_of((ROW,), anchors), tmp_path / "plot.bmp")
    assert not list(tmp_path.glob("plot*"))


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    image = photograph(170, 170)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'dca-fast\[eval\]'"):
        ms_ssim(image, image)


def test_a_folder_is_read_when_iterated_over(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.png"):
        Image.fromarray(photograph(9, 7)).save(tmp_path / name)
    folder = ImageFolder(tmp_path)
    assert len(folder) == 2
    assert [name for name, _ in folder] == ["b.png", "deep/a.png"]
    assert all(np.array_equal(pixels, photograph(9, 7)) for _, pixels in folder)
    with pytest.raises(InputError, match="no images"):
        ImageFolder(tmp_path / "none")
    Image.fromarray(np.dstack([photograph(9, 7), np.eye(9, 7, dtype=np.uint8)])).save(tmp_path / "b.png")
    with pytest.warns(InputWarning, match=rf"^{re.escape(str(tmp_path / 'b.png'))}: alpha is left out"):
        assert next(iter(folder))[1].shape == (9, 7, 3)
    assert len(list(folder)) == 2  # which says it no more
    (tmp_path / "._b.jpg").write_bytes(b"a resource fork")
    with pytest.raises(InputError, match=r"\._b\.jpg: not an image"):
        list(folder := ImageFolder(tmp_path))
    assert len(folder) == 3


def test_our_codec_rises_with_quality() -> None:
    curve = evaluate(Codec("dca-s", threads=1), [("a", photograph(130, 190))], [0, 50, 100])
    assert not rate_inversions(curve.rows)
    levels = [(point.bpp, point.psnr) for point in curve.points]
    assert levels[0][0] < levels[1][0] < levels[2][0]
    assert levels[0][1] < levels[1][1] < levels[2][1]


def test_drawn_pictures_are_the_same_each_time_and_of_all_kinds(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "measure" / "graphics.py"
    drawn = []
    for folder, options in ((tmp_path / "a", []), (tmp_path / "b", []), (tmp_path / "c", ["--own-font"])):
        command = [sys.executable, script, folder, "--count", "5", "--size", "320x200", "--seed", "7", *options]
        subprocess.run(command, check=True)
        drawn.append([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    assert [image.shape for image in drawn[0]] == [(200, 320, 3)] * 5
    for first, again, other in zip(*drawn, strict=True):
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert first.std() > 10
