"""Hostile pictures, metadata and manifests: whatever they hold, they are taken or refused with one type of error."""

import io
import json
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dca_fast import Codec, inspect
from dca_fast.cli.manifest import Manifest, outputs_of
from dca_fast.errors import InputError, LimitExceededError
from dca_fast.files import container
from dca_fast.files.image_io import load_image, to_pil
from dca_fast.files.image_out import EXTENSIONS, image_bytes
from dca_fast.testing import photograph
from tests.test_metadata import SRGB, XMP, exif_block

PHOTO = photograph(20, 31)
FORMATS = "PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"
MAX_PIXELS = 1 << 16
EXIF = exif_block().tobytes()
BLOCKS = {"icc": SRGB, "exif": EXIF.removeprefix(b"Exif\0\0"), "xmp": XMP}

Mutate = Callable[[bytes, np.random.Generator], bytes]


@pytest.fixture(scope="module")
def mutate(benchmark_script: Callable[[str], ModuleType]) -> Mutate:
    """Changed bits, bytes and parts, as in files that are decoded."""
    changed: Mutate = benchmark_script("measure/hostile").mutate
    return changed


def pictures(form: str) -> Iterator[bytes]:
    """Files of a format: in colour and gray, with a palette and with every block that it takes."""
    for mode in ("RGB", "L", "RGBA", "P"):
        options: dict[str, object] = {"icc_profile": SRGB, "exif": EXIF, "xmp": XMP}
        if form == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
        buffer = io.BytesIO()
        image = Image.fromarray(PHOTO).convert("RGB" if mode == "RGBA" and form in ("JPEG", "PPM") else mode)
        image = image.convert("RGB") if mode == "P" and form not in ("PNG", "GIF", "BMP", "TIFF") else image
        image.save(buffer, form, **({} if form in ("GIF", "BMP", "PPM") else options))
        yield buffer.getvalue()


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the checksums that a hostile writer would put there."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : min(at + 8 + size, len(data) - 4)]
        out += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + size
    return b"".join(out)


@pytest.mark.parametrize("form", FORMATS)
def test_pictures(form: str, mutate: Mutate) -> None:
    codec, draw, outcomes = Codec(threads=1), np.random.default_rng(0), Counter[str]()
    files = list(pictures(form))
    for i in range(400):
        data = mutate(files[i % 4], draw)
        if form == "PNG" and i % 8 < 4:
            data = with_checksums(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = load_image(data, max_pixels=MAX_PIXELS)
        except (InputError, LimitExceededError) as error:
            outcomes[type(error).__name__] += 1
            continue
        outcomes["taken"] += 1
        if i % 5 == 0:  # as it is, with what it says of itself
            facts = inspect(codec.encode(image, 40, effort=0))
            assert (facts.height, facts.width) == image.pixels.shape[:2]
    assert outcomes["taken"] > 10
    assert outcomes["InputError"] > 10


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_metadata_that_is_written(extension: str, mutate: Mutate) -> None:
    """A file of every format comes out, without the blocks that it cannot hold."""
    draw = np.random.default_rng(1)
    pixels = PHOTO[..., :1].repeat(3, 2) if extension == ".pgm" else PHOTO
    for _ in range(60 if extension == ".avif" else 150):
        chosen = {name: block for name, block in BLOCKS.items() if draw.integers(4)}
        blocks = {
            name: draw.bytes(int(draw.integers(1, 90))) if draw.integers(4) == 0 else mutate(block, draw) or b"\0"
            for name, block in chosen.items()
        }
        image = to_pil(pixels, gray=extension == ".pgm", metadata=blocks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            back = load_image(image_bytes(image, extension), pixels_only=True)
        assert back.pixels.size == pixels.size


def test_metadata_that_is_carried(mutate: Mutate) -> None:
    """Whatever the blocks of a .dca file are, they come back as they were."""
    codec, draw = Codec(threads=1), np.random.default_rng(2)
    for _ in range(20):
        blocks = {name: mutate(block, draw) or b"\0" for name, block in BLOCKS.items()}
        data = codec.encode(PHOTO, 50, effort=0, metadata=blocks)
        assert container.parse(data).metadata == blocks
        assert codec.decode(data, "pil").size == PHOTO.shape[1::-1]


def test_manifests(tmp_path: Path, mutate: Mutate) -> None:
    line = {"source": "a.png", "output": "a.dca", "status": "done", "output_sha256": "00" * 32}
    whole = b"".join(json.dumps(line | {"source": f"{i}"}).encode() + b"\n" for i in range(3))
    draw, path, refused = np.random.default_rng(3), tmp_path / "m", 0
    cases = [mutate(whole, draw) for _ in range(400)] + [
        b"[" * 100000,
        b"\xff\xfe",
        b"1\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
    ]
    cases += [json.dumps(line | {"output": value}).encode() for value in ([], {}, None, 1)]
    for case in cases:
        for work in (lambda: outputs_of(path), lambda: Manifest(path).tidy()):
            path.write_bytes(case)
            try:
                work()
            except InputError:
                refused += 1
                assert path.read_bytes() == case
    assert refused > 100
