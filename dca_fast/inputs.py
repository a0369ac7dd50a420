"""What `Codec` takes: any kind of image as pixels and metadata, any kind of file as bytes; the rest refused by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from dca_fast.errors import ConfigError, InputError, LimitExceededError
from dca_fast.files.container import DEFAULT_MAX_PIXELS, MAX_SIDE
from dca_fast.files.image_io import ImageInput, from_pil, load_image
from dca_fast.tensors import is_tensor, pixels_of

if TYPE_CHECKING:
    from torch import Tensor

Pixels: TypeAlias = Any  # uint8 [H, W, 3]: `numpy.ndarray`, or `torch.Tensor` for a codec of a CUDA device
ImageLike: TypeAlias = Union[
    Image.Image, npt.NDArray[np.uint8], "Tensor", ImageInput, str, "os.PathLike[str]", BinaryIO
]
FileLike: TypeAlias = Union[bytes, bytearray, memoryview, str, "os.PathLike[str]", BinaryIO]


def file_bytes(source: FileLike) -> bytes | bytearray | memoryview:
    """The content of a file that is given as bytes, path or binary file object.

    Raises:
        InputError: something else.
        OSError: it cannot be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return source
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return file.read()
    return _read(source, "a file is bytes, a path or a binary file object")


def image_of(image: ImageLike, *, on_device: bool, max_pixels: int) -> ImageInput:
    """One image as pixels and metadata.

    Args:
        image: as of `Codec.encode`, but for batches.
        on_device: leave the pixels of colour tensors without alpha where they are, as a tensor.
        max_pixels: of image files, before they are decoded.

    Raises:
        InputError: another type, shape or dtype.
        LimitExceededError: an image file with more pixels.
        OSError: the file cannot be read.
    """
    if isinstance(image, ImageInput):
        return checked(image)
    if isinstance(image, Image.Image):
        return from_pil(image)
    if is_tensor(image):
        pixels = pixels_of(image)
        if on_device and pixels.shape[2] == 3:
            return ImageInput(pixels.contiguous())
        return _of_array(pixels.cpu().numpy())
    if isinstance(image, np.ndarray):
        return _of_array(image)
    return load_image(content_of(image), max_pixels=max_pixels)


def checked(image: ImageInput, depths: Sequence[Any] = (np.uint8,)) -> ImageInput:
    """The same image, if its pixels and alpha are what it says.

    Args:
        depths: types that samples may have, of NumPy; pixels on a device are uint8.

    Raises:
        InputError: another shape or type.
    """
    kind: Any
    pixels, alpha, names = image.pixels, image.alpha, " or ".join(np.dtype(depth).name for depth in depths)
    if is_tensor(pixels):
        known, kind = str(pixels.dtype) == "torch.uint8", np.dtype("uint8")
    else:
        known, kind = isinstance(pixels, np.ndarray) and pixels.dtype in depths, getattr(pixels, "dtype", None)
    if not known or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(f"pixels must be {names} [H, W, 3], got {_told(pixels)}")
    shape = tuple(pixels.shape[:2])
    if alpha is not None and not (isinstance(alpha, np.ndarray) and alpha.dtype == kind and alpha.shape == shape):
        raise InputError(f"alpha must be {kind} {list(shape)}, got {_told(alpha)}")
    if image.gray and not bool((pixels == pixels[..., :1]).all()):
        raise InputError("the image is gray, but its three planes are not equal")
    return image


def _told(samples: Any) -> str:
    """Type and shape of an array or tensor, or the class of anything else."""
    is_array = isinstance(samples, np.ndarray) or is_tensor(samples)
    return f"{samples.dtype} {list(samples.shape)}" if is_array else type(samples).__name__


def content_of(image: ImageLike) -> bytes:
    """The bytes of an image file that is given as its path or a binary file object.

    Raises:
        InputError: something else.
        OSError: it cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    return _read(image, "expected a Pillow image, an array, a tensor, a path or a binary file object")


def images_of(image: object) -> Sequence[Any] | None:
    """The images of a batch, an array or tensor of four dimensions; None for anything else."""
    return image if getattr(image, "ndim", 0) == 4 and (is_tensor(image) or isinstance(image, np.ndarray)) else None  # type: ignore[return-value]


def pixel_limit(given: int | None) -> int:
    """How many pixels a picture may have: as given, else DCA_MAX_PIXELS, else 2^28.

    Raises:
        ConfigError: not a whole number of at least 1.
    """
    if given is None:
        text = os.environ.get("DCA_MAX_PIXELS", "").strip()
        if not text:
            return DEFAULT_MAX_PIXELS
        digits = text.isascii() and text.isdecimal() and text.lstrip("0")[:20]  # with more of them it is no limit
        if not digits:
            raise ConfigError(f"DCA_MAX_PIXELS must be a whole number of at least 1, got {text[:40]!r}")
        return int(digits)
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
        raise ConfigError(f"max_pixels must be a whole number of at least 1, got {given!r}")
    return int(given)


def check_size(shape: Sequence[int], max_pixels: int) -> None:
    """Refuse pictures that no file holds, and those above the limit; `shape` [H, W, ...].

    Raises:
        InputError, LimitExceededError: it is such a one.
    """
    height, width = shape[:2]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise InputError(f"sides must be 1..{MAX_SIDE}, got {width} x {height}")
    if height * width > max_pixels:
        raise LimitExceededError(f"{width} x {height} pixels exceed the limit of {max_pixels}")


def _of_array(array: npt.NDArray[Any]) -> ImageInput:
    array = np.asarray(array)  # of a matrix, too
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if array.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3, 4):
        raise InputError(f"an array must be uint8 [H, W] or [H, W, 1, 3 or 4], got {array.dtype} {list(array.shape)}")
    if shape[2] == 1:
        return ImageInput(np.repeat(array.reshape(shape), 3, 2), gray=True)
    if shape[2] == 3 or 0 in shape:
        return ImageInput(array[..., :3])
    source = from_pil(Image.fromarray(array, "RGBA"))
    return replace(source, metadata={})


def _read(source: Any, kinds: str) -> bytes:
    """The content of a file object."""
    read = getattr(source, "read", None)
    if not callable(read):
        raise InputError(f"{kinds}, got {type(source).__name__}")
    content = read()
    if not isinstance(content, bytes):
        raise InputError(f"{kinds}, got a file object that reads {type(content).__name__}")
    return content
