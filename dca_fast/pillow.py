"""Pillow reads and writes .dca files once this module is imported.

    import dca_fast.pillow

    image = Image.open("photo.dca")
    image.save("copy.dca", quality=60)

`Image.open` reads size, mode and metadata; pixels are decoded when they are needed. `crop` before that decodes no more
than it shows, and `draft`, which `thumbnail` calls, makes it a preview (docs/guide/large.md). Options of `save`:
`quality`, or `lossless=True` (16 bits of mode I;16, too), or a goal (`max_bytes`, `bpp`, `psnr`, `ms_ssim`,
`ssimulacra2`); `effort`, `aq_strength`, `screen` and `alpha_quality`, as of `Codec.encode` and `Codec.encode_to`;
`icc_profile`, `exif` and `xmp`, bytes that replace those of the image (None: none). Others are a `ConfigError`. A file
that cannot be decoded is an OSError, as Pillow's users expect, with the `BitstreamError` as its cause. A file is
replaced when its new bytes are there: where they cannot be made, the old ones stay.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import replace
from functools import cache, wraps
from typing import IO, Any

from PIL import Image, ImageFile

from dca_fast.codec import Codec
from dca_fast.config import REDUCTIONS
from dca_fast.encoder.rate_control import GOALS
from dca_fast.errors import BitstreamError, ConfigError, InputError
from dca_fast.exact.picture import LOSSLESS
from dca_fast.files import container
from dca_fast.files.atomic import write_atomic
from dca_fast.files.image_io import from_pil
from dca_fast.files.metadata import INFO_KEYS, info_of, metadata_of

FORMAT, MIME = "DCA", "image/x-dca"
_chosen: list[Codec] = []


@cache
def _default() -> Codec:
    return Codec()


def use(codec: Codec | None) -> None:
    """Let Pillow use this codec, None: one with shipped weights on the CPU, which is made when it is needed."""
    _chosen[:] = [] if codec is None else [codec]


def _codec() -> Codec:
    return _chosen[0] if _chosen else _default()


class DcaImageFile(ImageFile.ImageFile):
    """A .dca file whose pixels wait for being needed."""

    format = FORMAT
    format_description = "DCA neural image"
    _bytes: bytes | None = None
    _reduce = 1

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        try:
            dca = container.parse(data, max_pixels=container.MAX_SIDE**2)  # Pillow has a limit of its own
        except BitstreamError as error:
            raise OSError(str(error)) from error
        header = dca.header
        self._bytes, self._size = data, (header.width, header.height)
        alpha = container.Section.ALPHA in dca.sections
        self._mode = ("L" if header.grayscale else "RGB") + ("A" if alpha else "")
        if header.depth == 16 and header.grayscale and not alpha:
            self._mode = "I;16"
        self.info.update(info_of(dca.metadata))

    def load(self) -> Any:
        """Decode, the first time."""
        if self._bytes is not None:
            image = self._decoded(reduce=self._reduce)
            self._bytes = None
            if self.fp is not None and self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(image.tobytes())
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        return super().load()

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """As of all images; a box within one that is not decoded yet decodes what it needs, and leaves it so."""
        if box is not None and self._bytes is not None and self._reduce == 1 and all(x == int(x) for x in box):
            left, top, right, lower = map(int, box)
            if 0 <= left < right <= self.width and 0 <= top < lower <= self.height:
                image = self._decoded(region=(left, top, right - left, lower - top))
                image.info = self.info.copy()
                return image
        return super().crop(box)

    def _decoded(self, **options: Any) -> Image.Image:
        try:
            image: Image.Image = _codec().decode(self._bytes or b"", **options)
        except BitstreamError as error:
            raise OSError(str(error)) from error
        return image

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Become the smallest preview that is not smaller than a size, as long as nothing is decoded; `mode` stays."""
        if self._bytes is None or size is None or self._reduce > 1:
            return None
        most = min(self.width // max(1, size[0]), self.height // max(1, size[1]))
        self._reduce = max(reduce for reduce in REDUCTIONS if reduce <= max(1, most))
        width, height = self.width / self._reduce, self.height / self._reduce
        self._size = (math.ceil(width), math.ceil(height))
        return self.mode, (0, 0, width, height)

    def load_seek(self, pos: int) -> None:
        """Pillow would map the file instead of reading what was decoded, were this not here."""


_OPTIONS = ("quality", "lossless", "effort", "aq_strength", "screen", "alpha_quality", *GOALS)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """What Pillow calls with a file that it has opened."""
    options: dict[str, Any] = getattr(image, "encoderinfo", {})
    if unknown := options.keys() - {*_OPTIONS, *INFO_KEYS}:
        known = ", ".join((*_OPTIONS, *INFO_KEYS))
        raise ConfigError(f"unknown option {min(unknown)!r} of save; a .dca file has {known}")
    if isinstance(options.get("quality"), str) and options["quality"] == LOSSLESS:
        options = {**options, "quality": None, "lossless": True}
    lossless = bool(options.get("lossless"))
    source = from_pil(image, exact=lossless)
    info: dict[str, Any] = {**info_of(source.metadata), **{key: options[key] for key in INFO_KEYS if key in options}}
    exif = info.get("exif")
    if exif and isinstance(exif, Image.Exif):  # one without entries is none
        info["exif"] = exif.tobytes()
    for key, block in info.items():
        if block and not isinstance(block, bytes):
            raise InputError(f"{key} must be bytes, not {type(block).__name__}")
    given = {name: options[name] for name in _OPTIONS if name != "lossless" and options.get(name) is not None}
    goal = given.keys() & set(GOALS)
    if lossless and (goal or "quality" in given):
        raise ConfigError(f"give lossless or {min({*goal, 'quality'} & given.keys())}, not both")
    if goal and "quality" in given:
        raise ConfigError(f"give quality or {goal.pop()}, not both")
    work = _codec().encode_to if goal else _codec().encode
    if lossless:
        given["quality"] = LOSSLESS
    file.write(work(replace(source, metadata=metadata_of(info)), **given))


def _keep_old_files() -> None:
    """Let `Image.save` make the bytes of a .dca file before it opens, and so empties, what has its name.

    Pillow has no hook before that.
    """
    save = Image.Image.save

    @wraps(save)
    def atomic(self: Image.Image, fp: Any, format: str | None = None, **options: Any) -> None:
        if not isinstance(fp, str | bytes | os.PathLike):
            save(self, fp, format, **options)
            return
        path = os.fsdecode(fp)
        if (format or Image.EXTENSION.get(os.path.splitext(path)[1].lower(), "")).upper() != FORMAT:
            save(self, fp, format, **options)
            return
        buffer = io.BytesIO()
        save(self, buffer, FORMAT, **options)
        write_atomic(os.path.abspath(path), buffer.getvalue())

    setattr(Image.Image, "save", atomic)  # noqa: B010 (an assignment is none of a type's)


_keep_old_files()
Image.register_open(FORMAT, DcaImageFile, lambda prefix: prefix.startswith(container.MAGIC))
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".dca")
Image.register_mime(FORMAT, MIME)
