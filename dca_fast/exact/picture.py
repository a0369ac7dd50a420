"""Pictures without loss: what `Codec` takes as samples of 8 or 16 bits, and samples as what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dca_fast.errors import ConfigError, InputError
from dca_fast.exact import coder
from dca_fast.exact.colours import Samples
from dca_fast.files import container, image_io
from dca_fast.files import metadata as meta
from dca_fast.inputs import ImageLike, checked, content_of
from dca_fast.tensors import is_tensor
from dca_fast.tensors import pixels_of as pixels_of_tensor

__all__ = [
    "ALL_LEVELS",
    "LOSSLESS",
    "alpha_levels",
    "coder",
    "header_of",
    "is_enough",
    "near",
    "pixels_of",
    "samples_of",
    "source_of",
    "to_pil",
    "with_levels",
]

LOSSLESS = "lossless"  # as a quality
ALL_LEVELS = 256  # of alpha
# What the highest quality has at least: a PSNR of 45 dB, 255^2 / 10^4.5 of squared error per sample, in 1/100000.
MOST_ERROR = 205627
NEAR_STEP = 3  # samples are off by at most 1 in gray and green, by 2 in red and blue; about 48 dB


def alpha_levels(quality: object) -> int:
    """How many values alpha has at a quality: 2 at 0, twice as many each seventh of the way, all 256 at 100.

    Raises:
        ConfigError: not a number within 0..100.
    """
    if isinstance(quality, bool) or not isinstance(quality, Real) or not 0 <= float(quality) <= 100:
        raise ConfigError(f"alpha_quality must be within 0..100, got {quality!r}")
    return round(2 ** (1 + 7 * float(quality) / 100))


def with_levels(alpha: npt.NDArray[Any], levels: int) -> npt.NDArray[Any]:
    """A plane of alpha, uint8, in the nearest of so many values, 2..256, at equal distances from 0 to 255."""
    if levels == ALL_LEVELS:
        return alpha
    steps, values = levels - 1, np.arange(ALL_LEVELS)
    level = (2 * values * steps + 255) // 510
    rounded: npt.NDArray[Any] = ((2 * level * 255 + steps) // (2 * steps)).astype(np.uint8)[alpha]
    return rounded


def source_of(image: ImageLike, *, max_pixels: int) -> image_io.ImageInput:
    """An image with all bits of its samples, pixels [H, W, 3] uint8 or uint16; alpha is kept where it is opaque, too.

    Args:
        image: as of `Codec.encode`; arrays and Pillow images may have 16 bits.
        max_pixels: of image files, before they are decoded.

    Raises:
        InputError: another type or shape, or bits that cannot be read.
        LimitExceededError: an image file with more pixels.
        OSError: the file cannot be read.
    """
    if isinstance(image, image_io.ImageInput):
        return checked(image, (np.uint8, np.uint16))
    if is_tensor(image):
        return _of_array(pixels_of_tensor(image).cpu().numpy())
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Image.Image):
        return image_io.from_pil(image, exact=True)
    return image_io.load_image(content_of(image), exact=True, max_pixels=max_pixels)


def _of_array(array: npt.NDArray[Any]) -> image_io.ImageInput:
    array = np.asarray(array)  # of a matrix, too
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if array.dtype not in (np.uint8, np.uint16) or len(shape) != 3 or shape[2] not in (1, 3, 4):
        given = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"an array must be uint8 or uint16, [H, W] or [H, W, 1, 3 or 4], got {given}")
    if 0 in shape:
        raise InputError("the image has no pixels")
    if shape[2] == 1:
        return image_io.ImageInput(np.repeat(array.reshape(shape), 3, 2), gray=True)
    return image_io.ImageInput(array[..., :3], array[..., 3] if shape[2] == 4 else None)


def samples_of(source: image_io.ImageInput) -> Samples:
    """[H, W, 1 or 3]."""
    return np.ascontiguousarray(source.pixels[..., :1] if source.gray else source.pixels)


def header_of(source: image_io.ImageInput, samples: Samples, quality: int = container.MAX_QUALITY) -> container.Header:
    height, width = samples.shape[:2]
    return container.Header(
        width,
        height,
        quality,
        bytes(4),
        coder.digest_of(samples),
        source.gray,
        exact=True,
        depth=8 * samples.dtype.itemsize,
    )


def is_enough(squared_error: int, samples: int) -> bool:
    """Whether so many samples of 8 bits have the fidelity of the highest quality."""
    return squared_error * 100000 <= samples * MOST_ERROR


def near(samples: Samples, stream: bytes, *, threads: int, python: bool) -> tuple[bytes, Samples]:
    """Samples of 8 bits with the fidelity of the highest quality, or all of it where that takes no more.

    Args:
        samples: uint8 [H, W, 1 or 3].
        stream: of all of them.
        threads, python: as of `coder.encode`.

    Returns:
        The stream, and the samples that it decodes to.
    """
    short = coder.encode(samples, step=NEAR_STEP, threads=threads, python=python)
    if len(short) < len(stream):
        height, width, channels = samples.shape
        decoded = coder.decode(short, (height, width, channels), 8, None, threads=threads, python=python)
        if is_enough(int(np.square(decoded.astype(np.int64) - samples).sum()), samples.size):
            return short, decoded
    return stream, samples


def pixels_of(header: container.Header, stream: bytes, *, threads: int, python: bool) -> Samples:
    """[H, W, 3] of an exact file; all three planes of a gray one are equal.

    Raises:
        CorruptStreamError: the stream is not one of such a picture.
    """
    shape = header.height, header.width, 1 if header.grayscale else 3
    samples = coder.decode(stream, shape, header.depth, header.digest, threads=threads, python=python)
    return np.repeat(samples, 3, 2) if header.grayscale else samples


def to_pil(pixels: Samples, alpha: Samples | None, *, gray: bool, metadata: Mapping[str, bytes]) -> Image.Image:
    """A Pillow image of 16-bit samples [H, W, 3]: mode I;16 for gray; others, which have no mode, become 8-bit."""
    if gray and alpha is None:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
        image.info.update(meta.info_of(metadata))
        return image
    meta.warn('Pillow holds 16 bits of gray without alpha alone: reduced to 8; output="numpy" keeps them')
    plane = None if alpha is None else _reduced(alpha)
    return image_io.to_pil(_reduced(pixels), alpha=plane, gray=gray, metadata=metadata)


def _reduced(samples: Samples) -> npt.NDArray[np.uint8]:
    return ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
