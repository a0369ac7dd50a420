"""Pillow with .dca files: `Image.open` and `save` do what the codec does."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import dca_fast.pillow
from dca_fast import Codec, inspect
from dca_fast.errors import BitstreamError, ConfigError, CorruptStreamError, InputError
from dca_fast.testing import photograph

PICTURE = Image.fromarray(photograph(50, 70, seed=2))
ICC, XMP = b"profile" * 20, b"<x:xmpmeta/>"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec("dca-s", threads=1)


@pytest.fixture(autouse=True)
def chosen(codec: Codec) -> None:
    dca_fast.pillow.use(codec)


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "DCA", **options)
    return buffer.getvalue()


def test_files_are_those_of_the_codec(codec: Codec, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.dca")
    data = (tmp_path / "a.dca").read_bytes()
    assert data == codec.encode(PICTURE)
    with Image.open(tmp_path / "a.dca") as image:
        assert (image.format, image.size, image.mode) == ("DCA", (70, 50), "RGB")
        assert image.get_format_mimetype() == "image/x-dca"
        assert np.array_equal(np.array(image), codec.decode(data, "numpy"))
    with Image.open(tmp_path / "a.dca") as image:
        assert image.resize((7, 5)).size == (7, 5)
        assert np.array_equal(np.array(image.copy()), codec.decode(data, "numpy"))


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_file_with_more_bytes_than_pixels(codec: Codec, tmp_path: Path, mode: str) -> None:
    """Pillow maps files whose pixels could lie in them as they are."""
    picture = PICTURE.resize((8, 8)).convert(mode)
    if mode == "RGBA":
        picture.putalpha(100)
    picture.save(tmp_path / "a.dca", icc_profile=ICC * 10)
    with Image.open(tmp_path / "a.dca") as image:
        assert image.mode == mode
        assert image.tobytes() == codec.decode((tmp_path / "a.dca").read_bytes()).tobytes()


def test_options(codec: Codec) -> None:
    assert saved(PICTURE, quality=33.25, effort=0) == codec.encode(PICTURE, 33.25, effort=0)
    assert saved(PICTURE, aq_strength=0.5, effort=0) == codec.encode(PICTURE, aq_strength=0.5, effort=0)
    assert saved(PICTURE, max_bytes=900, effort=0) == codec.encode_to(PICTURE, max_bytes=900, effort=0)
    assert saved(PICTURE, psnr=30.0, effort=0) == codec.encode_to(PICTURE, psnr=30.0, effort=0)
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99)
    for image in (deep, PICTURE.convert("RGBA")):
        data = saved(image, quality="lossless")
        assert data == saved(image, lossless=True)
        assert Image.open(io.BytesIO(data)).tobytes() == image.tobytes()
    for mistake in (
        {"quality": 101},
        {"quality": np.array([1, 2])},
        {"bpp": 1.0, "psnr": 30.0},
        {"bpp": 1.0, "quality": 3},
    ):
        with pytest.raises(ConfigError):
            saved(PICTURE, **mistake)
    with pytest.raises(ConfigError, match=r"unknown option 'qualty' of save; a \.dca file has quality, lossless"):
        saved(PICTURE, qualty=3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"quality": 200}, ConfigError),
        ({"subsampling": 0}, ConfigError),
        ({"max_bytes": 20}, InputError),
        ({"exif": 3}, InputError),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path, options: dict[str, object], error: type) -> None:
    path = tmp_path / "a.dca"
    with pytest.raises(error):
        PICTURE.save(path, **options)
    assert not path.exists()
    path.write_bytes(b"old")
    for name in (path, str(path), os.fsencode(path)):
        with pytest.raises(error):
            PICTURE.save(name, **options)
    with pytest.raises(error):
        PICTURE.save(path, "DCA", **options)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"a.dca": b"old"}
    PICTURE.save(path)
    with Image.open(path) as image:
        with pytest.raises(error):
            image.save(path, **options)
        image.save(path, quality=5, effort=0)  # over the file that it was read from
    assert inspect(path.read_bytes()).quality == 5


def test_a_name_of_another_suffix_and_other_formats(codec: Codec, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.bin", "dca", effort=0)
    assert (tmp_path / "a.bin").read_bytes() == codec.encode(PICTURE, effort=0)
    PICTURE.save(tmp_path / "a.DCA", effort=0)
    assert (tmp_path / "a.DCA").read_bytes() == codec.encode(PICTURE, effort=0)
    PICTURE.save(tmp_path / "a.png")
    PICTURE.save(tmp_path / "b.dca", "PNG")
    for name in ("a.png", "b.dca"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes(codec: Codec, mode: str) -> None:
    picture = PICTURE.convert(mode)
    if "A" in mode:
        picture.putalpha(Image.fromarray(photograph(50, 70, seed=4)).convert("L"))
    data = saved(picture)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        assert image.tobytes() == codec.decode(data).tobytes()
        assert image.mode == mode


def test_metadata_is_there_before_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = saved(PICTURE, icc_profile=ICC, exif=exif, xmp=XMP)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == ICC
        assert image.info["xmp"] == XMP
        assert image.getexif()[0x010F] == "maker"
        assert set(inspect(saved(image)).section_bytes) == {"icc", "exif", "xmp"}
        assert set(inspect(saved(image, exif=None, xmp=b"")).section_bytes) == {"icc"}
        assert set(inspect(saved(image, exif=Image.Exif())).section_bytes) == {"icc", "xmp"}
        other = saved(image, icc_profile=b"another")
        assert inspect(other).section_bytes["icc"] == 7
        assert set(inspect(other).section_bytes) == {"icc", "exif", "xmp"}


def test_pixels_are_decoded_once_and_when_needed(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls = saved(PICTURE), []
    decode = codec.decode
    monkeypatch.setattr(codec, "decode", lambda bytes_, **options: (calls.append(1), decode(bytes_, **options))[1])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (70, 50)
        assert not calls
        image.load()
        image.load()
        assert len(calls) == 1


def test_damaged_files_are_os_errors(codec: Codec, tmp_path: Path) -> None:
    data = saved(PICTURE)
    for damaged in (data[:-1], data[:20], bytes([*data[:40], data[40] ^ 1, *data[41:]])):
        with pytest.raises(OSError, match=r"ends|checksum") as caught:
            Image.open(io.BytesIO(damaged))
        assert isinstance(caught.value.__cause__, BitstreamError)
        assert not isinstance(caught.value, UnidentifiedImageError)
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"no picture"))


def test_what_decoding_finds_is_an_os_error(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes, **options: int) -> None:
        raise CorruptStreamError("another digest")

    with Image.open(io.BytesIO(saved(PICTURE))) as image:
        monkeypatch.setattr(codec, "decode", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="another digest"):
                image.load()


def test_an_import_is_enough(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.dca")
    script = (
        "import sys\nimport dca_fast.pillow\nfrom PIL import Image\n"
        "image = Image.open(sys.argv[1])\nassert '.dca' in Image.registered_extensions()\n"
        "image.convert('L').save(sys.argv[1] + '.png')"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.dca"], check=True)
    with Image.open(tmp_path / "a.dca.png") as image:
        assert image.size == (70, 50)
