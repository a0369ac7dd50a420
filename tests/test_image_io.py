"""Image files in and out: modes, metadata, refusals, alpha planes, atomic writes."""

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageCms

from dca_fast.errors import InputError, InputWarning, LimitExceededError
from dca_fast.files.atomic import write_atomic
from dca_fast.files.image_io import from_pil, load_image, no_limit_of_pillow, to_pil
from dca_fast.files.image_out import save_image

RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GRAY = RNG.integers(0, 256, (5, 7), np.uint8)
ALPHA = RNG.integers(0, 255, (5, 7), np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/">Größe</x:xmpmeta>'.encode()


def file_of(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG from scratch, for what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    return exif.tobytes().removeprefix(b"Exif\x00\x00")


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(ALPHA))
    return image


def test_colour_and_gray() -> None:
    colour = from_pil(Image.fromarray(COLOUR))
    assert np.array_equal(colour.pixels, COLOUR)
    assert (colour.alpha, colour.gray, colour.metadata) == (None, False, {})
    gray = from_pil(Image.fromarray(GRAY))
    assert np.array_equal(gray.pixels, np.repeat(GRAY[..., None], 3, axis=2))
    assert (gray.alpha, gray.gray) == (None, True)
    assert colour.pixels.flags.writeable  # torch wants to own what it wraps
    assert colour.pixels.flags.c_contiguous


def test_alpha_is_split_off() -> None:
    colour = from_pil(with_alpha(Image.fromarray(COLOUR)))
    assert np.array_equal(colour.pixels, COLOUR)
    assert np.array_equal(colour.alpha, ALPHA)
    gray = from_pil(with_alpha(Image.fromarray(GRAY)))
    assert gray.gray
    assert np.array_equal(gray.alpha, ALPHA)
    opaque = Image.fromarray(COLOUR).convert("RGBA")
    assert from_pil(opaque).alpha is None


def test_palettes_and_bitmaps_are_expanded() -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    assert np.array_equal(from_pil(palette).pixels, np.asarray(palette.convert("RGB")))
    transparent = load_image(file_of(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])))
    assert np.array_equal(transparent.alpha == 0, np.asarray(palette) == np.asarray(palette)[0, 0])
    bitmap = from_pil(Image.fromarray(GRAY).convert("1"))
    assert bitmap.gray
    assert set(np.unique(bitmap.pixels)) == {0, 255}


def test_colour_keys_become_alpha() -> None:
    colour = load_image(file_of(Image.fromarray(COLOUR), "PNG", transparency=tuple(map(int, COLOUR[2, 3]))))
    assert colour.alpha is not None
    assert np.argwhere(colour.alpha == 0).tolist() == [[2, 3]]
    gray = load_image(file_of(Image.new("L", (3, 2), 9), "PNG", transparency=9))
    assert gray.gray
    assert not gray.alpha.any()


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "LAB"])
def test_other_colour_models_become_rgb(mode: str) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    told = nullcontext() if mode == "RGBX" else pytest.warns(InputWarning, match=f"{mode} is converted to s?RGB")
    with told:
        assert np.array_equal(from_pil(image).pixels, np.asarray(image.convert("RGB")))


def test_an_animation_that_is_cut_gives_its_first_frame() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("P", (8, 6), i) for i in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    data, outcomes = buffer.getvalue(), set()
    for end in range(30, len(data)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InputWarning)
                outcomes.add(load_image(data[:end]).pixels.shape)
        except InputError:
            outcomes.add(None)
    assert outcomes == {None, (6, 8, 3)}


def test_frames_of_a_file_that_is_closed_are_not_known() -> None:
    buffer = io.BytesIO()
    Image.new("P", (8, 6), 1).save(buffer, "GIF")
    with Image.open(buffer) as image:
        image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_pil(image).pixels.shape == (6, 8, 3)


def test_threads_lift_the_limit_of_pillow_together() -> None:
    limit, inside = Image.MAX_IMAGE_PIXELS, threading.Barrier(2)

    def first() -> None:
        with no_limit_of_pillow():
            inside.wait(60)  # the second one is in
            inside.wait(60)
        inside.wait(60)  # this one is out

    thread = threading.Thread(target=first)
    thread.start()
    with no_limit_of_pillow():
        inside.wait(60)
        inside.wait(60)
        inside.wait(60)
        assert Image.MAX_IMAGE_PIXELS is None
    thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_has_the_limit_of_pillow_that_its_threads_want() -> None:
    limit, started, over = Image.MAX_IMAGE_PIXELS, threading.Event(), threading.Event()

    def other() -> None:
        with no_limit_of_pillow():
            started.set()
            over.wait(60)

    def of_child() -> int:
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(1 if Image.MAX_IMAGE_PIXELS is None else 2 if limit == Image.MAX_IMAGE_PIXELS else 3)

    thread = threading.Thread(target=other)
    thread.start()
    assert started.wait(60)
    assert of_child() == 2
    with no_limit_of_pillow():
        assert of_child() == 1
    over.set()
    thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_no_process_forks_while_the_limit_of_pillow_changes() -> None:
    """A child would keep what was half done."""
    limit, over = Image.MAX_IMAGE_PIXELS, threading.Event()

    def other() -> None:
        while not over.is_set():
            with no_limit_of_pillow():
                pass

    threads, interval = [threading.Thread(target=other) for _ in range(2)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(25):
        if child := os.fork():
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            with no_limit_of_pillow():
                pass
            os._exit(limit != Image.MAX_IMAGE_PIXELS)
    over.set()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not any(codes)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_cmyk_becomes_srgb_with_a_warning() -> None:
    image = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    with pytest.warns(InputWarning, match="CMYK"):
        converted = from_pil(image)
    assert converted.pixels[0, 0].tolist() == [255, 0, 0]
    for profile in (SRGB, b"garbage"):  # one for other inks than the image has, and a damaged one
        image.info["icc_profile"] = profile
        with pytest.warns(InputWarning, match="is converted"), pytest.warns(InputWarning, match="cannot be used"):
            converted = from_pil(image)
        assert converted.pixels[0, 0].tolist() == [255, 0, 0]
        assert not converted.metadata


def test_16_bit_gray_is_reduced_with_a_warning() -> None:
    samples = np.array([[0, 128, 129, 65535, 257 * 77]], np.uint16)
    for format_name in ("PNG", "TIFF", "JPEG2000"):
        with pytest.warns(InputWarning, match="8 bits"):
            image = load_image(file_of(Image.fromarray(samples), format_name))
        assert image.gray
        assert image.pixels[0, :, 0].tolist() == [0, 0, 1, 255, 77]


@pytest.mark.parametrize(
    "data",
    [
        png(2, 1, 16, 2, b"\x00" + struct.pack(">6H", *(257 * v for v in (1, 2, 3, 4, 5, 6)))),
        b"P6 2 1 65535\n" + struct.pack(">6H", *(257 * v for v in (1, 2, 3, 4, 5, 6))),
    ],
    ids=["PNG", "PPM"],
)
def test_16_bit_colour_is_reduced_with_a_warning(data: bytes) -> None:
    with pytest.warns(InputWarning, match="8 bits"):
        image = load_image(data)
    assert image.pixels.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    with pytest.warns(InputWarning, match="8 bits"):
        from_pil(Image.open(io.BytesIO(data)))


def test_ranges_that_are_not_defined_are_refused() -> None:
    with pytest.raises(InputError, match="float"):
        from_pil(Image.new("F", (2, 2)))
    with pytest.warns(InputWarning, match="8 bits"), pytest.raises(InputError, match="32-bit"):
        from_pil(Image.new("I", (2, 2), 1 << 20))
    with pytest.raises(InputError, match="no pixels"):
        from_pil(Image.new("RGB", (0, 2)))


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame_is_read_and_the_loss_named(format_name: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = file_of(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(InputWarning, match="several frames"):
        image = load_image(data)
    assert image.pixels[0, 0].tolist() == [255, 0, 0]


def test_huge_images_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    undecodable = png(5000, 5000, 8, 2, b"")
    with pytest.raises(LimitExceededError, match="5000 x 5000"):
        load_image(undecodable, max_pixels=5000 * 5000 - 1)
    with pytest.raises(InputError, match="damaged"):
        load_image(undecodable, max_pixels=5000 * 5000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(LimitExceededError, match="MAX_IMAGE_PIXELS"):
        load_image(undecodable)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_damaged_files_are_input_errors(format_name: str) -> None:
    data = file_of(Image.fromarray(COLOUR), format_name)
    load_image(data)
    for size in (0, 3, len(data) // 4, len(data) // 2):
        with pytest.raises(InputError):
            load_image(data[:size])


def test_formats_that_are_programs_are_refused() -> None:
    with pytest.raises(InputError, match="supported format"):
        load_image(file_of(Image.fromarray(COLOUR), "EPS"))


def test_sources(tmp_path: Path) -> None:
    data = file_of(Image.fromarray(COLOUR), "PNG")
    path = tmp_path / "image.bin"  # the content decides, not the name
    path.write_bytes(data)
    for source in (data, path, str(path)):
        assert np.array_equal(load_image(source).pixels, COLOUR)
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "missing.png")


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_pil_round_trip(gray: bool, alpha: np.ndarray | None) -> None:
    pixels = np.repeat(GRAY[..., None], 3, axis=2) if gray else COLOUR
    image = to_pil(pixels, alpha=alpha, gray=gray, metadata={"icc": SRGB, "exif": oriented(6), "xmp": XMP})
    assert image.mode == ("L" if gray else "RGB") + ("" if alpha is None else "A")
    back = from_pil(image)
    assert np.array_equal(back.pixels, pixels)
    assert back.gray == gray
    assert back.alpha is None if alpha is None else np.array_equal(back.alpha, alpha)
    assert back.metadata == {"icc": SRGB, "exif": oriented(6), "xmp": XMP}


def test_to_pil_refuses_other_arrays() -> None:
    with pytest.raises(InputError, match="pixels"):
        to_pil(GRAY)
    with pytest.raises(InputError, match="pixels"):
        to_pil(COLOUR.astype(np.float32))
    with pytest.raises(InputError, match="alpha"):
        to_pil(COLOUR, alpha=ALPHA[:-1])


@pytest.mark.parametrize("extension", ["png", "webp", "jpg", "avif"])
def test_metadata_survives_files(tmp_path: Path, extension: str) -> None:
    blocks = {"icc": SRGB, "exif": oriented(6), "xmp": XMP}
    path = tmp_path / f"image.{extension.upper()}"
    save_image(to_pil(COLOUR, metadata=blocks), path)
    loaded = load_image(path)
    assert loaded.pixels.shape == COLOUR.shape
    assert {name: loaded.metadata[name] for name in ("icc", "xmp")} == {"icc": SRGB, "xmp": XMP}
    exif = Image.Exif()
    exif.load(loaded.metadata["exif"])  # AVIF keeps the orientation elsewhere and writes the block anew
    assert dict(exif) == {0x0112: 6, 0x010F: "maker"}
    if extension in ("png", "webp"):
        assert np.array_equal(loaded.pixels, COLOUR)


def test_strip_turns_the_pixels_upright() -> None:
    data = file_of(to_pil(COLOUR, metadata={"icc": SRGB, "exif": oriented(6)}), "PNG", exif=oriented(6))
    kept, stripped = load_image(data), load_image(data, strip=True)
    assert np.array_equal(kept.pixels, COLOUR)
    assert kept.metadata["exif"] == oriented(6)
    assert np.array_equal(stripped.pixels, np.rot90(COLOUR, -1))
    assert stripped.metadata == {"icc": SRGB}


def test_strip_survives_a_damaged_exif_block() -> None:
    image = to_pil(COLOUR, metadata={"exif": b"garbage"})
    assert from_pil(image).metadata == {"exif": b"garbage"}
    with pytest.warns(InputWarning, match="orientation"):
        stripped = from_pil(image, strip=True)
    assert np.array_equal(stripped.pixels, COLOUR)
    assert not stripped.metadata


def test_save_image_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extension in ("png", "tif", "bmp", "ppm"):
        save_image(to_pil(COLOUR), tmp_path / f"image.{extension}")
        assert np.array_equal(load_image(tmp_path / f"image.{extension}").pixels, COLOUR)
    with pytest.raises(InputError, match="JPEG"):
        save_image(to_pil(COLOUR, alpha=ALPHA), tmp_path / "alpha.jpg")
    with pytest.raises(InputError, match="known extensions"):
        save_image(to_pil(COLOUR), tmp_path / "image.gif")
    assert len(list(tmp_path.iterdir())) == 4
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    save_image(to_pil(COLOUR), "-")
    assert np.array_equal(load_image(out.getvalue()).pixels, COLOUR)


def test_write_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    link = tmp_path / "link"
    link.symlink_to(path)
    write_atomic(link, b"new")
    assert path.read_bytes() == b"new"
    assert link.is_symlink()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"newer")
    assert path.read_bytes() == b"new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link"]


def test_write_atomic_does_not_replace_devices_or_folders(tmp_path: Path) -> None:
    write_atomic(os.devnull, b"gone")
    assert not Path(os.devnull).is_file()
    with pytest.raises(OSError, match="irectory"):
        write_atomic(tmp_path, b"data")
