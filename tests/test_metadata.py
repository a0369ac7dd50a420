"""What survives from one image format through .dca to another: each cell of the table in docs/guide/metadata.md."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from dca_fast import Codec
from dca_fast.errors import InputError, InputWarning
from dca_fast.files.image_io import ImageInput, from_pil, load_image, to_pil
from dca_fast.files.image_out import EXTENSIONS, image_bytes, is_whole, save_image
from dca_fast.testing import photograph

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/">Größe</x:xmpmeta>'.encode()
PHOTO = photograph(40, 64)
ALPHA = np.where(np.mgrid[0:40, 0:64][1] < 30, 0, 255).astype(np.uint8)
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "guide" / "metadata.md"
LETTERS = "IEXOAG"


def exif_block() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x829A] = 0.125  # exposure time
    exif.get_ifd(0x8825)[1] = "N"  # latitude
    return exif


def entries(block: bytes | Image.Exif) -> dict[object, object]:
    """Of an EXIF block, without the orientation."""
    exif = block if isinstance(block, Image.Exif) else Image.Exif()
    if isinstance(block, bytes):
        exif.load(block)
    found: dict[object, object] = {tag: exif[tag] for tag in (0x010F,) if tag in exif}
    return found | {(ifd, tag): value for ifd in (0x8769, 0x8825) for tag, value in exif.get_ifd(ifd).items()}


def file_of(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def with_xmp(image: Image.Image, name: str) -> bytes:
    """A file of a format that has all three blocks and an orientation."""
    options: dict[str, object] = {"icc_profile": SRGB, "exif": exif_block().tobytes(), "xmp": XMP}
    if name == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if name == "TIFF":
        exif = Image.Exif()
        exif.load(exif_block().tobytes())
        exif[700] = XMP
        options = {"icc_profile": SRGB, "exif": exif}
    if name in ("WEBP", "AVIF", "JXL"):
        options["lossless" if name != "AVIF" else "quality"] = True if name != "AVIF" else 90
    if name == "JXL":
        options |= {"use_original_profile": True, "use_container": True}
    return file_of(image, name, **options)


def jpeg_2000(image: Image.Image, name: str) -> bytes:
    """With an ICC profile, which Pillow does not write."""
    data = file_of(image, name)
    at = data.index(b"colr") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    box = (len(SRGB) + 11).to_bytes(4, "big") + b"colr\x02\0\0" + SRGB
    data = data[:at] + box + data[at + size :]
    header = data.index(b"jp2h") - 4
    new = int.from_bytes(data[header : header + 4], "big") + len(box) - size
    return data[:header] + new.to_bytes(4, "big") + data[header + 4 :]


def plain(image: Image.Image, name: str) -> bytes:
    return file_of(image, name)


# Rows of the table: Pillow's format, what can make a file of it, and what such a file holds.
INPUTS: dict[str, tuple[str, Callable[[Image.Image, str], bytes], str]] = {
    "png": ("PNG", with_xmp, "IEXOAG"),
    "jpg": ("JPEG", with_xmp, "IEXOG"),
    "webp": ("WEBP", with_xmp, "IEXOA"),
    "avif": ("AVIF", with_xmp, "IEXOA"),
    "tif": ("TIFF", with_xmp, "IEXOAG"),
    "heic": ("HEIF", with_xmp, "IEXOA"),
    "jxl": ("JXL", with_xmp, "IEXOAG"),
    "jp2": ("JPEG2000", jpeg_2000, "IAG"),
    "gif": ("GIF", plain, "A"),
    "bmp": ("BMP", plain, "G"),
    "tga": ("TGA", plain, "AG"),
    "qoi": ("QOI", plain, "A"),
    "ppm": ("PPM", plain, "G"),
}


def table() -> dict[tuple[str, str], str]:
    """The cells of the document by input and output."""
    lines = re.findall(r"^\|(.*)\|$", DOCUMENT.read_text("utf-8").split("## Pairs")[1].split("\n## ")[0], re.M)
    outputs, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {
        (name, output): cell.replace(" ", "").replace("-", "")
        for name, *cells in rows
        for output, cell in zip(outputs[1:], cells, strict=True)
    }


@cache
def codec() -> Codec:
    return Codec(threads=1)


@cache
def through(name: str, what: str) -> Image.Image:
    """A picture that was a file of one format, and then a .dca file."""
    format_name, make, _ = INPUTS[name]
    if format_name == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if format_name == "JXL":
        pytest.importorskip("pillow_jxl")
    image = Image.fromarray(PHOTO)
    if what == "blocks":
        data = make(image, format_name)
    elif what == "gray":
        data = file_of(image.convert("L"), format_name)
    else:
        image.putalpha(Image.fromarray(ALPHA))
        data = file_of(image, format_name, **({"quality": -1} if format_name == "HEIF" else {}))
    decoded: Image.Image = codec().decode(codec().encode(load_image(data), 95, effort=0))
    return decoded


def kept(name: str, output: str, what: str) -> tuple[set[str], list[str]]:
    """What of one kind of file is in the output, as letters, and what was said."""
    image = through(name, what)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        data = image_bytes(image, f".{output}")
    said = [str(warning.message) for warning in caught]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        back = load_image(data)
    if what == "alpha":
        assert np.array_equal(back.alpha, ALPHA)
        return {"A"}, said
    if what == "gray":
        return {"G"} & ({"G"} if back.gray else set()), said
    found = {"I"} if back.metadata.get("icc") == image.info.get("icc_profile", 0) else set()
    if entries(exif_block()).items() <= entries(back.metadata.get("exif", b"")).items():
        found.add("E")
    if back.metadata.get("xmp") == XMP:
        found.add("X")
    with Image.open(io.BytesIO(data)) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    wanted = np.rot90(PHOTO, -1)
    if upright.shape == wanted.shape and abs(upright - wanted).mean() < 6 < abs(upright[::-1] - wanted).mean():
        found.add("O")
    return found, said


def test_the_table_is_complete() -> None:
    assert set(table()) == {(name, output.removeprefix(".")) for name in INPUTS for output in EXTENSIONS} - {
        (name, alias) for name in INPUTS for alias in ("jpeg", "tiff")
    }


@pytest.mark.parametrize("output", sorted({extension.removeprefix(".") for extension in EXTENSIONS} - {"jpeg", "tiff"}))
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.filterwarnings("ignore::dca_fast.errors.InputWarning")
def test_a_pair(name: str, output: str) -> None:
    """Everything that the input holds is in the output, or it is said, or the output is refused."""
    holds, found = INPUTS[name][2], set()
    for what, letters in (("blocks", set("IEXO")), ("alpha", {"A"}), ("gray", {"G"})):
        if not letters & set(holds):
            continue
        refused = (what == "alpha" and output in ("jpg", "bmp", "ppm", "pgm")) or (what == "blocks" and output == "pgm")
        if refused:
            with pytest.raises(InputError, match=r"cannot hold alpha|is gray and the image is not"):
                kept(name, output, what)
            continue
        letters_kept, said = kept(name, output, what)
        found |= letters_kept
        for letter, word in (("I", "ICC"), ("E", "EXIF"), ("X", "XMP")):
            if what == "blocks" and letter in set(holds) - letters_kept:
                assert any(word in text for text in said), (letter, said)
        if what == "blocks" and output != "pgm" and "O" in holds:
            assert "O" in letters_kept  # the pixels are turned where nothing else can be
    assert "".join(letter for letter in LETTERS if letter in found) == table()[name, output]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 2, rows: bytes = bytes(4)) -> bytes:
    """One pixel, or one row of them where `rows` says so, with chunks that Pillow does not write."""
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    width = (len(rows) - 1) // (samples * depth // 8)
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = b"".join(chunk(*pair) for pair in (*chunks, (b"IDAT", zlib.compress(rows))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def comment_and_blocks() -> bytes:
    """A JPEG file with segments of several programs."""
    data = file_of(Image.fromarray(PHOTO), "JPEG", comment="hello")
    extra = b"\xff\xe1" + struct.pack(">H", 40) + b"http://ns.adobe.com/xmp/extension/\0abc"
    extra += b"\xff\xed" + struct.pack(">H", 20) + b"Photoshop 3.0\0" + bytes(4)
    extra += b"\xff\xe5" + struct.pack(">H", 6) + b"note"
    return data[:2] + extra + data[2:]


def tiff(**tags: object) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[int(name[1:])] = value
    return file_of(Image.fromarray(PHOTO), "TIFF", tiffinfo=info)


RESOLUTION = b"Exif\0\0MM\0*" + struct.pack(">IHHHIIIII", 8, 1, 0x011A, 5, 1, 26, 0, 300, 1)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (file_of(Image.fromarray(PHOTO), "PNG", dpi=(300, 300)), "the resolution of 300 dpi"),
        (png((b"gAMA", struct.pack(">I", 100000))), "gAMA of 1 "),
        (png((b"cHRM", struct.pack(">8I", *(31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)))), "cHRM"),
        (png((b"cICP", bytes([9, 16, 0, 1]))), "cICP (the colours will look different)"),
        (png((b"tEXt", b"Author\0me"), (b"tIME", bytes(7))), "text (Author), PNG chunk tIME"),
        (png((b"caBX", b"C2PA")), "PNG chunk caBX"),
        (comment_and_blocks(), "the comment, extended XMP, IPTC or Photoshop data, JPEG APP5"),
        (file_of(Image.fromarray(PHOTO), "GIF", comment=b"hello"), "the comment"),
        (tiff(_33723=b"iptc", _34377=b"psd", _42113="-1"), "IPTC, Photoshop data, TIFF tag 42113"),
        (file_of(Image.fromarray(PHOTO), "JPEG2000") + b"\0\0\0\x0cuuidabcd", "JPEG 2000 box uuid"),
        (file_of(Image.fromarray(PHOTO), "AVIF"), None),
        (file_of(Image.fromarray(PHOTO), "JPEG", dpi=(72, 72)), None),
        (png((b"gAMA", struct.pack(">I", 45455)), (b"sRGB", b"\0")), None),
        (png((b"cICP", bytes([1, 13, 0, 1]))), None),
        (png((b"sRGB", b"\0"), (b"cHRM", bytes(32))), None),  # which sRGB overrules
        (png((b"iCCP", b"p\0\0" + zlib.compress(SRGB)), (b"gAMA", struct.pack(">I", 100000))), None),
        (file_of(Image.fromarray(PHOTO), "JPEG", dpi=(300, 300), exif=RESOLUTION), None),  # which EXIF tells
    ],
)
def test_what_is_dropped_is_said(data: bytes, what: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        load_image(data)
    said = [str(warning.message) for warning in caught]
    assert said == [] if what is None else [what in text and text.startswith("not kept: ") for text in said] == [True]


def test_foreign_colours_of_avif_are_said() -> None:
    data = file_of(Image.fromarray(PHOTO), "AVIF")
    at = data.index(b"colrnclx") + 8
    with pytest.warns(InputWarning, match=r"CICP of 9/16 \(the colours will look different\)"):
        load_image(data[:at] + bytes([0, 9, 0, 16]) + data[at + 4 :])


def test_a_picture_in_memory_is_not_asked_for_facts() -> None:
    """What Pillow read may hold a comment that nobody meant to save; its colours matter all the same."""
    with Image.open(io.BytesIO(comment_and_blocks())) as image:
        from_pil(image)
    with Image.open(io.BytesIO(png((b"gAMA", struct.pack(">I", 100000))))) as image, pytest.warns(InputWarning):
        from_pil(image)


def test_blocks_that_cannot_be_kept_are_warnings() -> None:
    image = Image.fromarray(PHOTO)
    for info, what in (
        ({"xmp": bytes((1 << 24) + 1)}, "XMP of 16777217 bytes is too large"),
        ({"icc_profile": 3}, "ICC cannot be read"),
        ({"icc_profile": SRGB[:16] + b"GRAY" + SRGB[20:]}, "the GRAY profile does not fit the pixels"),
    ):
        image.info = info
        with pytest.warns(InputWarning, match=what):
            assert from_pil(image).metadata == {}
    image.info = {"xmp": "text"}
    assert from_pil(image).metadata == {"xmp": b"text"}


def test_blocks_that_are_too_large_for_pillow(tmp_path: Path) -> None:
    """It takes no more than a mebibyte of a PNG file's, and a .dca does."""
    large = SRGB + bytes(3 << 19)
    data = png((b"iCCP", b"p\0\0" + zlib.compress(large)), rows=b"\0abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data).metadata == {"icc": large}
        save_image(to_pil(PHOTO, metadata={"icc": large}), tmp_path / "a.png")
        assert load_image(tmp_path / "a.png").metadata == {"icc": large}
    assert is_whole((tmp_path / "a.png").read_bytes(), *PHOTO.shape[1::-1])
    text = b"Comment\0\0" + zlib.compress(bytes(2 << 20))
    for chunk in ((b"zTXt", text), (b"iCCP", b"p\0\0" + zlib.compress(bytes((1 << 24) + 1)))):
        with pytest.warns(InputWarning, match=f"too large, and not kept: PNG chunk {chunk[0].decode()}"):
            assert load_image(png(chunk, rows=b"\0abc")).metadata == {}


def test_many_blocks_that_are_too_large_are_named_once() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(2 << 20))
    with pytest.warns(InputWarning) as said:
        load_image(png(*[(b"zTXt", text)] * 500, rows=b"\0abc"))
    assert [str(warning.message).count("zTXt") for warning in said] == [1]


def test_an_avif_file_with_a_damaged_exif_block_is_read() -> None:
    data = file_of(Image.fromarray(PHOTO), "AVIF", exif=exif_block().tobytes())
    at = data.index(b"MM\0*") if b"MM\0*" in data else data.index(b"II*\0")
    with pytest.warns(InputWarning, match="EXIF cannot be read"):
        loaded = load_image(data[:at] + b"garb" + data[at + 4 :])
    assert loaded.pixels.shape == PHOTO.shape
    exif = Image.Exif()
    exif.load(loaded.metadata["exif"])
    assert dict(exif) == {0x0112: 6}  # which AVIF keeps elsewhere


def test_damaged_blocks_do_not_make_a_picture_unreadable() -> None:
    profile = (b"iCCP", b"p\0\0" + zlib.compress(SRGB))
    whole = png(profile, (b"eXIf", exif_block().tobytes()[6:]), rows=b"\0abc")
    for kind, missing in ((b"iCCP", "icc"), (b"eXIf", "exif")):
        at = whole.index(kind) + 20
        with pytest.warns(InputWarning, match=f"not kept: PNG chunk {kind.decode()}"):
            loaded = load_image(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert loaded.pixels.tolist() == [[[97, 98, 99]]]
        assert loaded.metadata.keys() == {"icc", "exif"} - {missing}
    for chunk in ((b"gAMA", b"\1"), (b"cHRM", b"\1\2"), (b"iCCP", b""), (b"zTXt", b"a\0\7"), (b"pHYs", b"")):
        with pytest.warns(InputWarning, match=f"not kept: PNG chunk {chunk[0].decode()}"):
            assert load_image(png(chunk, rows=b"\0abc")).pixels.tolist() == [[[97, 98, 99]]]
    at = whole.index(b"IDAT") + 6
    with pytest.raises(InputError):
        load_image(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.warns(InputWarning, match="the ICC profile, which is damaged"):
        load_image(png((b"iCCP", b"p\0\0garbage")))
    jpeg = file_of(Image.fromarray(PHOTO), "JPEG", icc_profile=SRGB)
    at = jpeg.index(b"ICC_PROFILE\0") + 13  # the number of parts
    with pytest.warns(InputWarning, match="the ICC profile, which is damaged"):
        load_image(jpeg[:at] + b"\x07" + jpeg[at + 1 :])


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_a_turned_tiff_is_turned_once(compression: str | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(PHOTO), "TIFF", exif=exif, compression=compression)
    loaded = load_image(data)
    assert np.array_equal(loaded.pixels, np.rot90(PHOTO, -1))
    assert loaded.metadata == {}


@pytest.mark.filterwarnings("ignore:more than 8 bits")
def test_the_alpha_of_16_bit_pictures_is_kept() -> None:
    def shorts(*values: int) -> bytes:
        return b"\0" + struct.pack(f">{len(values)}H", *values)

    gray = load_image(png(depth=16, colour=4, rows=shorts(257 * 9, 257 * 100, 257 * 50, 257 * 200)))
    assert (gray.gray, gray.pixels[0, :, 0].tolist(), gray.alpha.tolist()) == (True, [9, 50], [[100, 200]])
    colour = load_image(png(depth=16, colour=6, rows=shorts(257 * 9, 257 * 10, 257 * 11, 257 * 77)))
    assert (colour.gray, colour.pixels.tolist(), colour.alpha.tolist()) == (False, [[[9, 10, 11]]], [[77]])
    key = (b"tRNS", struct.pack(">H", 1000))
    gray = load_image(png(key, depth=16, colour=0, rows=shorts(1000, 1001, 257 * 9)))
    assert (gray.gray, gray.alpha.tolist()) == (True, [[0, 255, 255]])
    key = (b"tRNS", struct.pack(">3H", 1000, 2000, 3000))
    colour = load_image(png(key, depth=16, colour=2, rows=shorts(1000, 2000, 3000, 9000, 2000, 3000)))
    assert colour.alpha.tolist() == [[0, 255]]


def test_writers_say_what_they_cannot_hold() -> None:
    image = Image.fromarray(PHOTO)
    for info, extension, what in (
        ({"icc_profile": SRGB, "xmp": XMP}, ".bmp", r"BMP cannot hold the ICC profile .*, XMP"),
        ({"exif": b"Exif\0\0garbage!"}, ".ppm", "orientation cannot be read"),
        ({"xmp": b"\xff\xfe"}, ".png", "XMP cannot be written as PNG"),
        ({"exif": exif_block().tobytes() + bytes(70000), "xmp": XMP}, ".jpg", "EXIF cannot be written as JPEG"),
    ):
        image.info = info
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InputWarning)
            back = load_image(image_bytes(image, extension), pixels_only=True)
        assert any(re.search(what, str(warning.message)) for warning in caught)
        assert back.pixels.shape == PHOTO.shape
    with pytest.warns(InputWarning, match="EXIF cannot be written as JPEG"):
        assert load_image(image_bytes(image, ".jpg")).metadata == {"xmp": XMP}  # only what fails is left out
    gray = image.convert("L")
    gray.info = {"icc_profile": SRGB[:16] + b"GRAY" + SRGB[20:]}
    with pytest.warns(InputWarning, match="which a gray profile does not fit"):
        assert load_image(image_bytes(gray, ".webp")).metadata == {}
    assert isinstance(load_image(image_bytes(gray, ".png")), ImageInput)
