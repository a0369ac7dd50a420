"""Previews: means of squares, layers of the weights, and what Pillow and the command line make of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dca_fast.pillow
from dca_fast import Codec
from dca_fast.cli.parser import main
from dca_fast.config import REDUCTIONS
from dca_fast.errors import BitstreamError, ConfigError, CorruptStreamError
from dca_fast.files import container
from dca_fast.network import models, walk, weights
from dca_fast.network.layout import PREVIEWS
from dca_fast.network.program import Model, Program, settings
from dca_fast.ops import native, reference
from dca_fast.reduced import box_mean
from dca_fast.testing import photograph

SIZE = 230, 402


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=2)


def mean_of(picture: np.ndarray, reduce: int) -> np.ndarray:
    """`box_mean`, square by square."""
    rows, columns = (range(0, side, reduce) for side in picture.shape[:2])
    out = np.empty((len(rows), len(columns), *picture.shape[2:]), picture.dtype)
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            square = picture[top : top + reduce, left : left + reduce].astype(int)
            out[i, j] = np.floor(square.mean((0, 1)) + 0.5)
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (17, 1, 3), (33, 47, 3), (1100, 3)])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_means_are_exact(reduce: int, shape: tuple[int, ...], dtype: Any) -> None:
    picture = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    assert np.array_equal(box_mean(picture, reduce), mean_of(picture, reduce))
    assert np.array_equal(box_mean(np.full(shape, np.iinfo(dtype).max, dtype), reduce).ravel()[0], np.iinfo(dtype).max)


def test_shipped_weights_have_layers() -> None:
    tensors = weights.load(models.named("dca-s")).tensors
    assert all(f"preview.{reduce}.w" in tensors for reduce in PREVIEWS)


@pytest.mark.parametrize("kind", ["colour", "gray", "alpha", "lossless", "deep"])
@pytest.mark.parametrize("reduce", REDUCTIONS[1:])
def test_previews_look_like_the_means(codec: Codec, reduce: int, kind: str) -> None:
    image: Any = photograph(*SIZE, seed=5)
    if kind == "gray":
        image = image[..., 0]
    if kind == "alpha":
        image = np.dstack([image, np.full(SIZE, 200, np.uint8)])
    if kind == "deep":
        image = image.astype(np.uint16)[..., 0] * 257
    exact = kind in ("lossless", "deep")
    data = codec.encode(image, "lossless" if exact else 55)
    whole, preview = (codec.decode(data, "numpy", reduce=n) for n in (1, reduce))
    expected = box_mean(whole, reduce)
    assert (preview.shape, preview.dtype) == (expected.shape, expected.dtype)
    if exact or reduce not in PREVIEWS:
        assert np.array_equal(preview, expected)
    else:
        inside = preview[: SIZE[0] // reduce, : SIZE[1] // reduce].astype(int)
        error = np.square(inside - expected[: SIZE[0] // reduce, : SIZE[1] // reduce]).mean()
        assert error < 4  # above 42 dB
    picture, tensor = (codec.decode(data, output, reduce=reduce) for output in ("pil", "torch"))
    assert picture.size == expected.shape[1::-1]
    assert np.array_equal(np.asarray(tensor).transpose(1, 2, 0), preview)


@pytest.mark.parametrize("reduce", PREVIEWS)
def test_backends_and_tiles_make_the_same_previews(codec: Codec, reduce: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "TILE", 8)
    data = codec.encode(photograph(*SIZE, seed=6), 40)
    preview = codec.decode(data, "numpy", reduce=reduce)
    assert np.array_equal(Codec(backend="reference").decode(data, "numpy", reduce=reduce), preview)
    damaged = container.parse(data)
    stream = bytearray(damaged.stream)
    stream[-20] ^= 1
    with pytest.raises(BitstreamError):
        codec.decode(container.pack(damaged.header, bytes(stream)), reduce=reduce)
    header = damaged.header.__class__(**{**vars(damaged.header), "digest": damaged.header.digest ^ 1})
    with pytest.raises(CorruptStreamError, match="digest"):
        codec.decode(container.pack(header, damaged.stream), reduce=reduce)


def test_a_preview_is_the_layer_and_blocks_of_its_pixels() -> None:
    """As docs/spec/numerics.md has it, at the ends of the ranges too."""
    loaded = weights.load(models.named("dca-s"))
    y_hat = np.random.default_rng(3).integers(-32767, 32768, (1, 4, 8, 384)).astype(np.int16)
    y_hat[:, :2] //= 64
    for reduce in PREVIEWS:
        w, b, m = (loaded.tensors[f"preview.{reduce}.{key}"] for key in "wbm")
        total = (y_hat.astype(np.int64) @ w.astype(np.int64).T + b).astype(np.float32) * m
        pixels = (np.rint(total).clip(-32767, 32767) + 128).clip(0, 255).astype(np.uint8)
        n = 16 // reduce
        expected = pixels.reshape(4, 8, n, n, 3).transpose(0, 2, 1, 3, 4).reshape(4 * n, 8 * n, 3)
        for module in (native, reference):
            model = Model(loaded, module.OPS)
            values = {name: model.arrays.array(value) for name, value in settings(loaded, 5000).items()}
            program = Program(model, values)
            found = program.preview(model.arrays.array(y_hat), reduce)
            assert np.array_equal(model.arrays.numpy(found)[0], expected)


def test_weights_without_layers_have_previews_too(codec: Codec, tmp_path: Path) -> None:
    shipped = weights.load(models.named("dca-s"))
    tensors = {name: t for name, t in shipped.tensors.items() if not name.startswith("preview.")}
    weights.save(tmp_path / "plain.safetensors", tensors, shipped.config, shipped.skip)
    plain = Codec(weights=tmp_path / "plain.safetensors")
    data = plain.encode(photograph(70, 50, seed=1), 40)
    whole = plain.decode(data, "numpy")
    for reduce in REDUCTIONS:
        assert np.array_equal(plain.decode(data, "numpy", reduce=reduce), box_mean(whole, reduce))


def test_what_cannot_be_is_refused(codec: Codec) -> None:
    data = codec.encode(photograph(40, 40, seed=1), 20, effort=0)
    for reduce in (0, 3, 32, -1, 2.0, True, "8", None):
        with pytest.raises(ConfigError, match="reduce must be one of 1, 2, 4, 8, 16"):
            codec.decode(data, reduce=reduce)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="region or a reduction"):
        codec.decode(data, region=(0, 0, 5, 5), reduce=2)


@pytest.mark.parametrize("gray", [False, True])
def test_pillow_makes_thumbnails_from_previews(codec: Codec, gray: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dca_fast.pillow.use(codec)
    pixels = photograph(640, 800, seed=2)
    data = codec.encode(pixels[..., 0] if gray else pixels, 50, effort=0)
    asked, decode = [], codec.decode

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return decode(*arguments, **options)

    monkeypatch.setattr(codec, "decode", noted)
    for size, reduce in (((50, 40), 8), ((100, 100), 2), ((24, 20), 16), ((500, 500), 1), ((1, 1), 16)):
        asked.clear()
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail(size)
            assert asked == [{"reduce": reduce}]
            whole = decode(data)
            whole.thumbnail(size)
            assert image.size == whole.size
            assert np.abs(np.asarray(image).astype(int) - np.asarray(whole)).mean() < 4
    with Image.open(io.BytesIO(data)) as image:
        assert image.draft(None, (60, 60)) == (image.mode, (0, 0, 100, 80))
        assert image.size == (100, 80)
        assert image.draft(None, (10, 10)) is None
        assert np.array_equal(np.asarray(image), np.asarray(decode(data, reduce=8)))
        assert image.draft(None, (10, 10)) is None
    dca_fast.pillow.use(None)


def test_pillow_crops_what_is_not_decoded(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    dca_fast.pillow.use(codec)
    data = codec.encode(photograph(200, 300, seed=2), 50, effort=0, metadata={"xmp": b"<x/>"})
    asked, decode, whole = [], codec.decode, codec.decode(data)

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return decode(*arguments, **options)

    monkeypatch.setattr(codec, "decode", noted)
    with Image.open(io.BytesIO(data)) as image:
        for box in ((10, 20, 60, 50), (0, 0, 1, 1), (250.0, 150.0, 300.0, 200.0)):
            part = image.crop(box)
            assert asked.pop() == {"region": tuple(map(int, (box[0], box[1], box[2] - box[0], box[3] - box[1])))}
            assert part.tobytes() == whole.crop(box).tobytes()
            assert part.info == image.info
        for box in ((-5, 0, 10, 10), (290, 190, 310, 210), (0.5, 0, 9, 9), (5, 5, 5, 9)):
            assert image.crop(box).tobytes() == whole.crop(box).tobytes()
        assert asked == [{"reduce": 1}]
        assert image.crop((1, 2, 3, 4)).tobytes() == whole.crop((1, 2, 3, 4)).tobytes()
        assert len(asked) == 1
    broken = bytearray(data)
    with Image.open(io.BytesIO(data)) as image:
        image._bytes = bytes(broken[:-9])  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="checksum"):
            image.crop((0, 0, 5, 5))
    dca_fast.pillow.use(None)


def test_the_command_line(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a.dca", tmp_path / "a.png"
    source.write_bytes(codec.encode(photograph(90, 130, seed=2), 50, effort=0))
    assert main(["decode", str(source), str(out), "--region", "16,8,64,48"]) == 0
    assert "64 x 48" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(out)), codec.decode(source, "numpy", region=(16, 8, 64, 48)))
    assert main(["decode", str(source), str(out), "--force", "--reduce", "8"]) == 0
    assert "17 x 12" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(out)), codec.decode(source, "numpy", reduce=8))
    assert main(["decode", str(source), str(out), "--force", "--region", "100,0,64,48"]) == 2
    assert "not within" in capsys.readouterr().err
    assert main(["decode", str(source), str(out), "--force", "--region", "0,0,64,48", "--reduce", "8"]) == 2
    assert "not both" in capsys.readouterr().err
    for wrong in (["--region", "1,2,3"], ["--region", "a,b,c,d"], ["--reduce", "3"]):
        with pytest.raises(SystemExit):
            main(["decode", str(source), *wrong])
        capsys.readouterr()
    batch = ["decode", str(tmp_path), "-o", str(tmp_path / "out"), "--reduce", "8", "--no-overwrite"]
    assert main(batch) == 0
    made = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert main(batch) == 0  # what is there is whole
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == made
