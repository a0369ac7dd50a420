"""Codec: images to bytes and back. The whole path is readable here; each stage has its own module.

encode: image -> pad -> analyse -> y, z -> walk (latents) -> rANS -> container
decode: container -> rANS <-> walk (latents) -> y_hat -> synthesise -> crop -> restore -> image
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dca_fast import container, image_io, latents, rate_control, restoration
from dca_fast import weights as weights_io
from dca_fast.adjoint import Adjoint
from dca_fast.backends import resolve
from dca_fast.config import (
    ALIGN,
    AQ_STEPS,
    DEFAULT_AQ,
    DEFAULT_EFFORT,
    MAX_AQ,
    QUALITY_MAX,
    TRELLIS_PRICE,
    ModelConfig,
)
from dca_fast.effort import Search, Step, Tools, first_pass, second_pass, squared_error, step_multipliers, worth
from dca_fast.effort import check as check_effort
from dca_fast.entropy.coder import Coder
from dca_fast.errors import (
    ConfigError,
    CorruptStreamError,
    DeviceMemoryError,
    InputError,
    LimitExceededError,
    UnknownModelError,
)
from dca_fast.gradient import Gradient
from dca_fast.program import QUALITY_STEPS, Program, ProgramSet

if TYPE_CHECKING:
    from dca_fast.device import DeviceCodec

ImageLike = Image.Image | np.ndarray | Tensor | image_io.ImageInput
OUTPUTS = ("pil", "numpy", "torch")
METADATA = ("icc", "exif", "xmp")


def _threads(threads: int | None) -> int:
    """The argument, else DCA_THREADS, else the cores this process may use."""
    if threads is None:
        text = os.environ.get("DCA_THREADS")
        if not text:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        try:
            threads = int(text)
        except ValueError as error:
            raise ConfigError(f"DCA_THREADS must be a number, got {text!r}") from error
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads must be a whole number of at least 1, got {threads!r}")
    return threads


def _as_input(image: ImageLike) -> image_io.ImageInput:
    """Any accepted image as pixels and metadata; refuses wrong shapes and dtypes by name."""
    if isinstance(image, image_io.ImageInput):
        return image_io.smooth_where_hidden(image)
    if isinstance(image, Image.Image):
        return image_io.smooth_where_hidden(image_io.from_pil(image))
    if isinstance(image, Tensor):
        return _as_input(_as_pixels(image).cpu().numpy())
    if not isinstance(image, np.ndarray):
        raise InputError(f"expected a Pillow image, an array or a tensor, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"an array must be uint8 [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}")
    gray = image.ndim == 2
    return image_io.ImageInput(np.repeat(image[:, :, None], 3, 2) if gray else image, gray=gray)


def _quality(quality: float) -> int:
    if isinstance(quality, bool) or not isinstance(quality, Real) or not 0 <= quality <= QUALITY_MAX:
        raise ConfigError(f"quality must be a number within 0..{QUALITY_MAX:g}, got {quality!r}")
    return round(float(quality) * QUALITY_STEPS)


def _aq(strength: float) -> int:
    """In sixteenths."""
    most = MAX_AQ / AQ_STEPS
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 <= strength <= most:
        raise ConfigError(f"aq_strength must be a number within 0..{most:g}, got {strength!r}")
    return round(float(strength) * AQ_STEPS)


def _as_pixels(image: Tensor) -> Tensor:
    """uint8 [3, H, W] as [H, W, 3], on its device."""
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise InputError(f"a tensor must be uint8 [3, H, W], got {image.dtype} {list(image.shape)}")
    return image.permute(1, 2, 0).contiguous()


class _Shared:
    """An array as NumPy sees it when it is told that it may write to it."""

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _as_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """The same memory if contiguous. PyTorch has no read-only tensors and warns; nothing writes to this one."""
    pixels = np.ascontiguousarray(pixels).ravel().reshape(pixels.shape)  # sides of one pixel may keep negative strides
    return torch.from_numpy(pixels if pixels.flags.writeable else np.asarray(_Shared(pixels)))


def _padded(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [1, H, W, 3] with sides that are multiples of 64."""
    height, width = pixels.shape[:2]
    if height % ALIGN or width % ALIGN:
        pixels = np.pad(pixels, ((0, -height % ALIGN), (0, -width % ALIGN), (0, 0)), mode="edge")
    return _as_tensor(pixels)[None]


def _luma(pixels: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 in integers: uint8 [H, W, 3] to [H, W]."""
    red, green, blue = pixels.to(torch.int32).unbind(-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)


def _compare(digest: int, expected: int) -> None:
    if digest != expected:
        raise CorruptStreamError("the decoded symbols do not have the digest in the header")


class Codec:
    """A DCA codec with one set of weights. Safe to share between threads.

    Every file decodes to the same pixels on every machine and backend, or raises; see docs/numerics.md.

    Args:
        model: name of shipped weights.
        weights: path of other weights; then `model` is not used.
        device: "cpu" (the default) or a CUDA device. On a CUDA device images may be tensors there, and
            `decode(..., output="torch")` leaves the image there.
        backend: "auto", "native" or "reference" on the CPU, "auto" or "cuda" on a CUDA device.
        threads: CPU threads of the native backend; default DCA_THREADS or all cores. Changes no byte. The
            native thread pool is one for the process: the codec that works next sets its size.
        max_pixels: larger images are refused, in both directions.

    Raises:
        ConfigError: bad argument.
        WeightsError: weights missing or damaged.
        BackendUnavailableError: with the reason.
    """

    def __init__(
        self,
        model: str = "dca-s",
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str | None = None,
        backend: str = "auto",
        threads: int | None = None,
        max_pixels: int = container.DEFAULT_MAX_PIXELS,
    ) -> None:
        self.threads, self.max_pixels = _threads(threads), max_pixels
        ops = resolve(backend, device)
        self.backend = ops.name
        self._weights = weights_io.load(Path(weights) if weights is not None else weights_io.find(model))
        self.tables = self._weights.tables
        self._device: DeviceCodec | None = None
        if ops.name == "cuda":
            from dca_fast.device import DeviceCodec

            self._device = DeviceCodec(self._weights, ops, self.tables, "cuda" if device is None else device)
            ops = resolve("auto", "cpu")  # for searches that the device has no memory for
        self._coder = Coder(self.tables, "python" if ops.name == "reference" else "native", threads=self.threads)
        self._programs = ProgramSet(self._weights, ops)

    @property
    def config(self) -> ModelConfig:
        """The model's `ModelConfig`."""
        return self._weights.config

    @property
    def model_id(self) -> str:
        """Eight hexadecimal digits: the start of the hash of the weights, as files carry it."""
        return self._weights.model_id.hex()

    @property
    def parameters(self) -> int:
        """Number of integer weights."""
        return sum(t.numel() for n, t in self._weights.tensors.items() if n.endswith(".w"))

    def _program(self, quality: int, aq: int = 0) -> Program:
        if self._programs.model.ops.name == "native":
            from dca_fast.ops.native import set_threads

            set_threads(self.threads)
        return self._programs.at(quality, aq)

    def encode(
        self,
        image: ImageLike,
        quality: float = 60.0,
        *,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
        metadata: Mapping[str, bytes] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> bytes:
        """Compress one image.

        Args:
            image: Pillow image; uint8 array [H, W, 3] or [H, W]; uint8 tensor [3, H, W]; or `ImageInput`.
            quality: 0..100, continuous; one step is 1/100.
            effort: 0..9, time for fewer bits at equal distortion; no decoder sees a difference. The default, 1, takes
                two to three times as long as 0; from 2 on latents follow gradients of the decoder, and every level
                takes up to some two times as long as the one before (docs/effort.md).
            aq_strength: of adaptive quantisation, 0..15/16 in steps of 1/16: how much coarser y is quantised where much
                is going on, and finer where little is, which PSNR does not see but MS-SSIM and eyes do. 0 for the least
                squared error of each picture (docs/adaptive.md).
            metadata: replaces the image's own "icc", "exif", "xmp" blocks.
            progress: told how much is done, 0..1.

        Returns:
            The .dca file. Equal arguments and weights give equal bytes on every machine.

        Raises:
            InputError: wrong type, shape or dtype, or an empty image.
            LimitExceededError: more than `max_pixels`.
            ConfigError: quality, effort or aq_strength out of range.
        """
        q, level, aq = _quality(quality), check_effort(effort), _aq(aq_strength)
        source: image_io.ImageInput | None = None
        pixels: npt.NDArray[np.uint8] | Tensor
        if self._device is not None and isinstance(image, Tensor):
            pixels = _as_pixels(image)
        else:
            source = _as_input(image)
            pixels = source.pixels
        height, width = pixels.shape[:2]
        if not (0 < height <= container.MAX_SIDE and 0 < width <= container.MAX_SIDE):
            raise InputError(f"sides must be 1..{container.MAX_SIDE}, got {width} x {height}")
        if height * width > self.max_pixels:
            raise LimitExceededError(f"{width} x {height} pixels exceed the limit of {self.max_pixels}")
        sections = self._sections(source, metadata)
        stream, digest, weights = self._encode_pixels(pixels, q, level, aq, progress)
        if progress is not None and level <= 1:
            progress(1.0)
        gray = source is not None and source.gray
        return container.pack(
            container.Header(width, height, q, self._weights.model_id, digest, gray, aq, weights), stream, sections
        )

    def encode_to(
        self,
        image: ImageLike,
        *,
        max_bytes: int | None = None,
        bpp: float | None = None,
        psnr: float | None = None,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
        metadata: Mapping[str, bytes] | None = None,
        progress: Callable[[float], None] | None = None,
        tolerance: float = 0.01,
    ) -> bytes:
        """Compress one image to a size, at the highest quality that it allows, or to a fidelity, at the lowest.

        Takes a few encodings.

        Args:
            image, effort, aq_strength, metadata: as of `encode`.
            max_bytes: of the file, its metadata included.
            bpp: the same in bits per pixel.
            psnr: least peak signal-to-noise ratio of the decoded pixels in dB, over their three colours.
            progress: of every encoding, 0..1.
            tolerance: part of the bytes without metadata and alpha, or of the squared error, that may be left unused,
                between 0 and 1.

        Returns:
            The .dca file; equal arguments and weights give equal bytes on every machine.

        Raises:
            InputError: no quality does it; the message tells what the last one gives. Else as `encode`.
            ConfigError: not one of `max_bytes`, `bpp` and `psnr`, or one that is not a positive number; as `encode`.
        """
        goals = {"max_bytes": max_bytes, "bpp": bpp, "psnr": psnr}
        kind, goal = rate_control.check(goals, tolerance)
        source: image_io.ImageInput | None = None
        if isinstance(image, Tensor) and self._device is not None:
            pixels = _as_pixels(image)
        else:
            image = source = _as_input(image)
            pixels = _as_tensor(source.pixels)

        def encoded(quality: float) -> bytes:
            return self.encode(
                image, quality, effort=effort, aq_strength=aq_strength, metadata=metadata, progress=progress
            )

        def error(data: bytes) -> float:
            decoded = self.decode(data, "torch").permute(1, 2, 0)
            return squared_error(pixels, decoded.to(pixels.device)) / pixels.numel()

        if kind == "psnr":
            return rate_control.to_psnr(encoded, error, goal, tolerance)
        bits = 8.0 if kind == "max_bytes" else float(pixels.shape[0] * pixels.shape[1])
        fixed = sum(map(len, self._sections(source, metadata).values()))
        return rate_control.to_size(encoded, goal * bits / 8, fixed, tolerance)

    def _encode_pixels(
        self,
        pixels: npt.NDArray[np.uint8] | Tensor,
        quality: int,
        effort: int,
        aq: int,
        progress: Callable[[float], None] | None,
    ) -> tuple[bytes, int, tuple[int, ...]]:
        """The stream, the digest of its symbols, and the restoration filter; quality in 1/100, aq in 1/16."""
        if self._device is not None:
            image = pixels if isinstance(pixels, Tensor) else _as_tensor(pixels)
            try:
                return self._device.encode(image.to(self._device.device), quality, effort, aq, progress)
            except DeviceMemoryError:
                if effort <= 1:
                    raise  # searches need more memory than encoders that go by strips, and the CPU finds the same
        array = pixels.cpu().numpy() if isinstance(pixels, Tensor) else pixels
        program, size = self._program(quality, aq), (array.shape[0], array.shape[1])
        groups = latents.groups_of(*size)
        if effort > 1:
            tools = Tools(
                self._quantiser(groups),
                latents.EncoderSource,
                lambda source: (self._coder.encode(source.parts, groups=groups, plain=source.plain), source.digest),
                self._adjoint,
                self._gradient,
            )
            best = Search(tools, program, _padded(array), size, quality / QUALITY_STEPS).run(effort, progress)
            return best.stream, best.digest, best.weights
        symbols, picture = self._symbols(array, quality, effort, aq)
        stream = self._coder.encode(symbols.parts, groups=groups, plain=symbols.plain)
        return stream, symbols.digest, () if picture is None else self._fit(picture, array, quality)

    def _fit(self, picture: Tensor, pixels: npt.NDArray[np.uint8], quality: int) -> tuple[int, ...]:
        """The restoration filter from the decoded picture [1, H, W, 3] to the pixels; quality in 1/100."""
        bits = worth(quality / QUALITY_STEPS)
        return restoration.fit(self._programs.model.ops, picture[0], _as_tensor(pixels), bits)

    def _symbols(
        self, pixels: npt.NDArray[np.uint8], quality: int, effort: int, aq: int
    ) -> tuple[latents.EncoderSource, Tensor | None]:
        """Everything of the encoder before the entropy coder, and from effort 1 on the picture that it makes.

        Args:
            quality: in 1/100.
            effort: 0 or 1.
            aq: in 1/16.
        """
        program, image = self._program(quality, aq), _padded(pixels)
        size = pixels.shape[0], pixels.shape[1]
        quantise = self._quantiser(latents.groups_of(*size))
        if effort:
            m = step_multipliers(program.gain, quality / QUALITY_STEPS)
            step = Step(self._adjoint, quantise, m)
            first = first_pass(program, step, image, size)
            weights = self._fit(first.picture, pixels, quality)
            w = restoration.as_tensor(weights) if weights else None
            return second_pass(program, step, first, w, image, size)
        y = program.analyse(image)
        source = latents.EncoderSource(program, y, program.hyper_analyse(y), quantise)
        latents.code(program, source, *latents.sites(*size))
        return source, None

    def _quantiser(self, groups: int) -> latents.Quantiser:
        return latents.quantiser(self._coder, self._charges, groups)

    @cached_property
    def _charges(self) -> npt.NDArray[np.int32]:
        return self.tables.charges(1 / TRELLIS_PRICE)

    @cached_property
    def _adjoint(self) -> Adjoint:
        return Adjoint(self._weights, self._programs.model.ops)

    @cached_property
    def _gradient(self) -> Gradient:
        return Gradient(self._adjoint, self._programs.model.ops)

    @staticmethod
    def _sections(
        source: image_io.ImageInput | None, metadata: Mapping[str, bytes] | None
    ) -> dict[container.Section, bytes]:
        blocks = metadata if metadata is not None else {} if source is None else source.metadata
        for key, value in blocks.items():
            if key not in METADATA or not isinstance(value, bytes):
                kind = type(value).__name__
                raise InputError(f"metadata holds bytes under {', '.join(METADATA)}, got {kind} under {key!r}")
        sections = {container.Section[key.upper()]: value for key, value in blocks.items()}
        if source is not None and source.alpha is not None:
            sections[container.Section.ALPHA] = image_io.pack_alpha(source.alpha)
        container.check_sections(sections)
        return sections

    def decode(self, data: bytes | bytearray | memoryview, output: str = "pil") -> Any:
        """Decompress one file.

        Args:
            data: the whole file.
            output: "pil", "numpy" or "torch".

        Returns:
            Pillow image (mode L, RGB or with alpha; metadata in `info`), uint8 array [H, W, 3], or uint8 tensor
            [3, H, W].

        Raises:
            BitstreamError: one of its kinds says what is wrong with the bytes. Never a wrong picture.
            UnknownModelError: the file was made with other weights.
        """
        if output not in OUTPUTS:
            raise ConfigError(f"output must be one of {OUTPUTS}, got {output!r}")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"a file is bytes, got {type(data).__name__}")
        dca = container.parse(data, max_pixels=self.max_pixels)
        header = dca.header
        if header.model_id != self._weights.model_id:
            raise UnknownModelError(f"made with model {header.model_id.hex()}, this codec holds {self.model_id}")
        alpha = dca.sections.get(container.Section.ALPHA)
        plane = None if alpha is None else image_io.unpack_alpha(alpha, header.width, header.height)
        pixels = self._decode_pixels(header, dca.stream)
        if header.restoration:
            pixels = self._restore(pixels, header.restoration)
        if header.grayscale:
            pixels = _luma(pixels)[:, :, None].expand(-1, -1, 3)  # all three planes equal, as they were
        if output == "torch":
            return pixels.permute(2, 0, 1).contiguous()
        array = np.ascontiguousarray(pixels.cpu().numpy())
        if output == "numpy":
            return array
        return image_io.to_pil(array, alpha=plane, gray=header.grayscale, metadata=dca.metadata)

    def _decode_pixels(self, header: container.Header, stream: bytes) -> Tensor:
        """uint8 [H, W, 3]."""
        if self._device is not None:
            pixels, digest = self._device.decode(stream, header.height, header.width, header.quality, header.aq)
            _compare(digest, header.digest)
            return pixels
        program = self._program(header.quality, header.aq)
        decoder = self._coder.decoder(stream)
        source = latents.DecoderSource(decoder)
        y_hat = latents.code(program, source, *latents.sites(header.height, header.width))
        decoder.finish()
        _compare(source.digest, header.digest)
        return program.synthesise(y_hat)[0, : header.height, : header.width]

    def _restore(self, pixels: Tensor, weights: tuple[int, ...]) -> Tensor:
        ops = self._programs.model.ops if self._device is None else self._device.ops
        return ops.restore(pixels.contiguous(), restoration.as_tensor(weights).to(pixels.device))

    def warm_up(
        self, height: int, width: int, *, effort: int = DEFAULT_EFFORT, aq_strength: float = DEFAULT_AQ
    ) -> None:
        """Prepare for images of one size: on a CUDA device, compile and record what they need. Else there is no need.

        Args:
            height, width: pixels.
            effort, aq_strength: those of `encode`; nothing is recorded for an effort of more than 1.

        Raises:
            ConfigError: effort or aq_strength out of range.
            DeviceMemoryError: the device cannot hold it.
        """
        level, aq = check_effort(effort), _aq(aq_strength)
        if self._device is not None:
            self._device.warm_up(height, width, level, aq)

    def encode_batch(
        self,
        images: Sequence[ImageLike],
        quality: float = 60.0,
        *,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
    ) -> list[bytes]:
        """`encode` of each; the bytes do not depend on the batch."""
        return [self.encode(image, quality, effort=effort, aq_strength=aq_strength) for image in images]

    def decode_batch(self, files: Sequence[bytes], output: str = "pil") -> list[Any]:
        """`decode` of each."""
        return [self.decode(data, output) for data in files]
