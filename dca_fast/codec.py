"""Codec: images to bytes and back.

encode: image -> `inputs` -> `Engine.encode`: pad -> analyse -> y, z -> walk (latents) -> rANS -> container
decode: container -> `Engine.decode`: rANS <-> walk (latents) -> y_hat -> synthesise -> crop -> restore -> image
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.backends import resolve
from dca_fast.config import AQ_ONE, DEFAULT_AQ, DEFAULT_EFFORT, MAX_AQ, QUALITY_MAX, ModelConfig
from dca_fast.encoder import rate_control
from dca_fast.encoder.effort import check as check_effort
from dca_fast.engines import Engine
from dca_fast.engines.cpu import CpuEngine
from dca_fast.errors import ConfigError, CorruptStreamError, InputError, UnknownModelError
from dca_fast.exact import picture
from dca_fast.exact.picture import LOSSLESS
from dca_fast.files import container, image_io
from dca_fast.inputs import FileLike, ImageLike, check_size, file_bytes, image_of, images_of
from dca_fast.network import weights as weights_io
from dca_fast.network.program import QUALITY_ONE
from dca_fast.ops import Array
from dca_fast.tensors import need_torch, planes_of, tensor_of
from dca_fast.threads import check as check_threads
from dca_fast.threads import default_threads

OUTPUTS = ("pil", "numpy", "torch")
METADATA = ("icc", "exif", "xmp")


def _quality(quality: float | str) -> int:
    if isinstance(quality, bool) or not isinstance(quality, Real) or not 0 <= quality <= QUALITY_MAX:
        raise ConfigError(f"quality must be {LOSSLESS!r} or a number within 0..{QUALITY_MAX:g}, got {quality!r}")
    return round(float(quality) * QUALITY_ONE)


def _aq(strength: float) -> int:
    """In sixteenths."""
    most = MAX_AQ / AQ_ONE
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 <= strength <= most:
        raise ConfigError(f"aq_strength must be a number within 0..{most:g}, got {strength!r}")
    return round(float(strength) * AQ_ONE)


def _rebuilt(arguments: dict[str, Any]) -> Codec:
    return Codec(**arguments)


class Codec:
    """A DCA codec with one set of weights. Safe to share between threads, and with forked processes.

    Every file decodes to the same pixels on every machine and backend, or raises; see docs/spec/numerics.md. A codec is
    pickled as its arguments and made again where it is unpickled, with the threads of the process there.

    Args:
        model: name of shipped weights.
        weights: path of other weights; then `model` is not used.
        device: "cpu" (the default) or a CUDA device. On a CUDA device images may be tensors there, and
            `decode(..., output="torch")` leaves the image there.
        backend: "auto", "native" or "reference" on the CPU, "auto" or "cuda" on a CUDA device.
        threads: CPU threads of the native backend; default: those of `dca_fast.threads.default_threads`. Changes no
            byte. The native thread pool is one for the process: the codec that works next sets its size.
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
        self._threads = None if threads is None else check_threads(threads)
        self.max_pixels = max_pixels
        ops = resolve(backend, device)
        self.backend = ops.name
        path = Path(weights).absolute() if weights is not None else weights_io.find(model)
        self._weights = weights_io.load(path)
        self._arguments = {
            "model": model,
            "weights": None if weights is None else str(path),
            "device": device,
            "backend": backend,
            "threads": threads,
            "max_pixels": max_pixels,
        }
        self.tables = self._weights.tables
        self.engine: Engine
        if ops.name == "cuda":
            from dca_fast.engines.cuda import CudaEngine

            on_cpu = partial(CpuEngine, self._weights, tables=self.tables, threads=lambda: self.threads)
            chosen = "cuda" if device is None else device
            self.engine = CudaEngine(self._weights, ops, self.tables, chosen, lambda: on_cpu(resolve("auto", "cpu")))
        else:
            self.engine = CpuEngine(self._weights, ops, self.tables, lambda: self.threads)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._arguments,)

    def __copy__(self) -> Codec:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __repr__(self) -> str:
        facts = f"model_id={self.model_id!r}, backend={self.backend!r}, threads={self.threads}"
        device = "" if str(self.engine.device) == "cpu" else f", device={str(self.engine.device)!r}"
        return f"Codec({self.config.name!r}, {facts}{device})"

    @property
    def threads(self) -> int:
        """CPU threads of the native backend."""
        return default_threads() if self._threads is None else self._threads

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
        return sum(t.size for n, t in self._weights.tensors.items() if n.endswith(".w"))

    def encode(
        self,
        image: ImageLike,
        quality: float | str = 60.0,
        *,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
        metadata: Mapping[str, bytes] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> bytes:
        """Compress one image.

        Args:
            image: Pillow image; uint8 array [H, W], [H, W, 1] (gray), [H, W, 3] or [H, W, 4] (alpha last); uint8 tensor
                [1, H, W], [3, H, W] or [4, H, W]; a path or a binary file object of an image; or `ImageInput`. A batch,
                array [N, H, W, C] or tensor [N, C, H, W], gives a list of N files.
            quality: 0..100, continuous; one step is 1/100. 100 has at least 45 dB of PSNR: where the model stays below,
                the exact-colour coder takes its place. Or "lossless": every sample comes back as it was, also those
                under alpha 0; arrays may then be uint16, Pillow images I;16. `effort` and `aq_strength` are not used.
            effort: 0..9, time for fewer bits at equal distortion; no decoder sees a difference. The default, 1, takes
                two to three times as long as 0; from 2 on latents follow gradients of the decoder, and every level
                takes up to some two times as long as the one before (docs/guide/encoding.md).
            aq_strength: of adaptive quantisation, 0..15/16 in steps of 1/16: how much coarser y is quantised where much
                is going on, and finer where little is, which PSNR does not see but MS-SSIM and eyes do. 0 for the least
                squared error of each picture (docs/guide/encoding.md).
            metadata: replaces the image's own "icc", "exif", "xmp" blocks.
            progress: told how much is done, 0..1.

        Returns:
            The .dca file. Equal arguments and weights give equal bytes on every machine.

        Raises:
            InputError: wrong type, shape or dtype, or an empty image.
            LimitExceededError: more than `max_pixels`.
            ConfigError: quality, effort or aq_strength out of range.
        """
        lossless = isinstance(quality, str) and quality == LOSSLESS
        q, level, aq = _quality(QUALITY_MAX if lossless else quality), check_effort(effort), _aq(aq_strength)
        batch = images_of(image)
        if batch is not None:
            files = [self.encode(one, quality, effort=effort, aq_strength=aq_strength) for one in batch]
            return files  # type: ignore[return-value]
        if lossless:
            return self._encode_exact(image, metadata)
        source = self._image(image)
        height, width = source.pixels.shape[:2]
        sections = self._sections(source, metadata)
        coded = self.engine.encode(self.engine.image(source.pixels), q, level, aq, progress)
        if progress is not None and level <= 1:
            progress(1.0)
        header = container.Header(
            width, height, q, self._weights.model_id, coded.digest, source.gray, aq, coded.restoration
        )
        data = container.pack(header, coded.stream, sections)
        return self._at_the_top(source, sections, data) if q == container.MAX_QUALITY else data

    def _encode_exact(self, image: ImageLike, metadata: Mapping[str, bytes] | None) -> bytes:
        source = picture.source_of(image, max_pixels=self.max_pixels)
        check_size(source.pixels.shape, self.max_pixels)
        samples = picture.samples_of(source)
        header = picture.header_of(source, samples)
        stream = picture.coder.encode(samples, threads=self.threads, python=self._python)
        return container.pack(header, stream, self._sections(source, metadata))

    def _at_the_top(
        self, source: image_io.ImageInput, sections: Mapping[container.Section, bytes], data: bytes
    ) -> bytes:
        """A file of the highest quality: that of the model, unless it is not enough or longer than one without loss."""
        dca, engine = container.parse(data, max_pixels=self.max_pixels), self.engine
        error = engine.ops.squared_error(engine.image(source.pixels), self._decoded(dca), None)
        enough = picture.is_enough(error, math.prod(source.pixels.shape))
        samples = picture.samples_of(replace(source, pixels=self._host(engine.image(source.pixels))))
        stream = picture.coder.encode(samples, threads=self.threads, python=self._python)
        if enough and len(stream) > len(dca.stream):
            return data
        if not enough:
            stream, samples = picture.near(samples, stream, threads=self.threads, python=self._python)
        return container.pack(picture.header_of(source, samples), stream, sections)

    @property
    def _python(self) -> bool:
        """Whether the exact-colour coder is the reference, too."""
        return self.backend == "reference"

    def _image(self, image: ImageLike) -> image_io.ImageInput:
        """What is coded; pixels of colour tensors stay on a CUDA device."""
        source = image_of(image, on_device=self.engine.takes_tensors, max_pixels=self.max_pixels)
        check_size(source.pixels.shape, self.max_pixels)
        return image_io.smooth_where_hidden(source)

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
        source = self._image(image)
        sections = self._sections(source, metadata)

        def encoded(quality: float) -> bytes:
            return self.encode(
                source, quality, effort=effort, aq_strength=aq_strength, metadata=metadata, progress=progress
            )

        def error(data: bytes) -> float:
            decoded = self._decoded(container.parse(data, max_pixels=self.max_pixels))
            squares = self.engine.ops.squared_error(self.engine.image(source.pixels), decoded, None)
            return squares / math.prod(source.pixels.shape)

        if kind == "psnr":
            return rate_control.to_psnr(encoded, error, goal, tolerance)
        bits = 8.0 if kind == "max_bytes" else float(math.prod(source.pixels.shape[:2]))
        fixed = sum(map(len, sections.values()))
        return rate_control.to_size(encoded, goal * bits / 8, fixed, tolerance)

    def _sections(
        self, source: image_io.ImageInput, metadata: Mapping[str, bytes] | None
    ) -> dict[container.Section, bytes]:
        blocks = metadata if metadata is not None else source.metadata
        for key, value in blocks.items():
            if key not in METADATA or not isinstance(value, bytes):
                kind = type(value).__name__
                raise InputError(f"metadata holds bytes under {', '.join(METADATA)}, got {kind} under {key!r}")
        sections = {container.Section[key.upper()]: value for key, value in blocks.items()}
        if source.alpha is not None:
            alpha = picture.coder.pack_plane(source.alpha, threads=self.threads, python=self._python)
            sections[container.Section.ALPHA] = alpha
        container.check_sections(sections)
        return sections

    def decode(self, data: FileLike, output: str = "pil") -> Any:
        """Decompress one file.

        Args:
            data: the whole file, its path, or a binary file object.
            output: "pil", "numpy" or "torch".

        Returns:
            Pillow image (L, RGB or with alpha, or I;16; metadata in `info`), uint8 array [H, W, 3], or uint8 tensor
            [3, H, W]; with alpha, if the file has it, as a fourth channel; uint16 for files of 16 bits. Pillow has no
            mode for 16 bits of colours or with alpha: an `InputWarning` says that 8 are left.

        Raises:
            BitstreamError: one of its kinds says what is wrong with the bytes. Never a wrong picture.
            UnknownModelError: the file was made with other weights; files without loss need none.
            InputError: neither bytes nor where they are.
            OSError: the file cannot be read.
            BackendUnavailableError: "torch" without PyTorch.
        """
        if output not in OUTPUTS:
            raise ConfigError(f"output must be one of {OUTPUTS}, got {output!r}")
        if output == "torch":
            need_torch('output="torch"')
        dca = container.parse(file_bytes(data), max_pixels=self.max_pixels)
        header, pixels = dca.header, self._decoded(dca)
        plane = self._alpha(dca)  # now that the stream is known to be whole
        if output == "torch" and self.engine.takes_tensors and header.depth == 8:
            return planes_of(pixels, plane)
        array = self._host(pixels)
        if output == "pil" and header.depth == 16:
            return picture.to_pil(array, plane, gray=header.grayscale, metadata=dca.metadata)
        if output == "pil":
            return image_io.to_pil(array, alpha=plane, gray=header.grayscale, metadata=dca.metadata)
        if plane is not None:
            array = np.dstack((array, plane))
        if output == "numpy":
            return array
        return tensor_of(np.ascontiguousarray(array.transpose(2, 0, 1))).to(self.engine.device)

    def _alpha(self, dca: container.Dca) -> npt.NDArray[Any] | None:
        """The alpha plane of a file, [H, W]."""
        header, payload = dca.header, dca.sections.get(container.Section.ALPHA)
        if payload is None:
            return None
        size = header.height, header.width
        return picture.coder.unpack_plane(payload, *size, header.depth, threads=self.threads, python=self._python)

    def _host(self, pixels: Array) -> npt.NDArray[Any]:
        """[H, W, 3] as an array of its own."""
        array = pixels if isinstance(pixels, np.ndarray) else self.engine.arrays.numpy(pixels)
        return np.ascontiguousarray(array)

    def _decoded(self, dca: container.Dca) -> Array:
        """The picture of a file, uint8 or uint16 [H, W, 3], with its filter; all planes of a gray one are equal."""
        header = dca.header
        if header.exact:
            samples = picture.pixels_of(header, dca.stream, threads=self.threads, python=self._python)
            return samples if header.depth == 16 else self.engine.image(samples)  # engines know 8 bits
        if header.model_id != self._weights.model_id:
            raise UnknownModelError(f"made with model {header.model_id.hex()}, this codec holds {self.model_id}")
        pixels, digest = self.engine.decode(dca.stream, header)
        if digest != header.digest:
            raise CorruptStreamError("the decoded symbols do not have the digest in the header")
        if header.restoration:
            pixels = self.engine.restore(pixels, header.restoration)
        if header.grayscale:
            luma = self.engine.ops.luma(pixels)[:, :, None]
            pixels = self.engine.arrays.broadcast(luma, tuple(pixels.shape))
        return pixels

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
        self.engine.warm_up(height, width, check_effort(effort), _aq(aq_strength))

    def encode_batch(
        self,
        images: Iterable[ImageLike],
        quality: float | str = 60.0,
        *,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
    ) -> list[bytes]:
        """`encode` of each, of a list or of an array or tensor [N, ...]; the bytes do not depend on the batch."""
        return [self.encode(image, quality, effort=effort, aq_strength=aq_strength) for image in images]

    def decode_batch(self, files: Iterable[FileLike], output: str = "pil") -> list[Any]:
        """`decode` of each."""
        return [self.decode(data, output) for data in files]
