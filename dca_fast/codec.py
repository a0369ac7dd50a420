"""Codec: images to bytes and back.

encode: image -> `inputs` -> `Engine.encode`: pad -> analyse -> y, z -> walk (latents) -> rANS -> container
decode: container -> `Engine.decode`: rANS <-> walk (latents) -> y_hat -> synthesise -> crop -> restore -> image
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from dca_fast import metrics
from dca_fast.backends import resolve
from dca_fast.config import AQ_ONE, DEFAULT_AQ, DEFAULT_EFFORT, MAX_AQ, QUALITY_MAX, RING_REACH, ModelConfig
from dca_fast.encoder import rate_control
from dca_fast.encoder import screen as graphics
from dca_fast.encoder.effort import check as check_effort
from dca_fast.engines import Encoded, Engine
from dca_fast.engines.cpu import CpuEngine
from dca_fast.errors import (
    ConfigError,
    CorruptStreamError,
    InputError,
    OutOfMemoryError,
    UnknownModelError,
    WeightsError,
)
from dca_fast.exact import layer, picture
from dca_fast.exact.picture import LOSSLESS
from dca_fast.files import container, image_io
from dca_fast.inputs import FileLike, ImageLike, check_size, file_bytes, image_of, images_of, pixel_limit
from dca_fast.network import models
from dca_fast.network import weights as weights_io
from dca_fast.network.program import QUALITY_ONE
from dca_fast.ops import Array
from dca_fast.reduced import box_mean
from dca_fast.reduced import check as check_reduction
from dca_fast.region import Region
from dca_fast.ssimulacra2 import ssimulacra2 as score
from dca_fast.tensors import need_torch, planes_of, tensor_of
from dca_fast.threads import check as check_threads
from dca_fast.threads import default_threads

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
Plane = npt.NDArray[Any]  # samples [height, width, ...]
OUTPUTS = ("pil", "numpy", "torch")
METADATA = ("icc", "exif", "xmp")
_LIKENESS: dict[str, Callable[..., float | None]] = {"ms_ssim": metrics.ms_ssim, "ssimulacra2": score}


def _is_lossless(quality: object) -> bool:
    return isinstance(quality, str) and quality == LOSSLESS  # an array compares with each of its elements


def _quality(quality: float | str) -> int:
    if isinstance(quality, bool) or not isinstance(quality, Real) or not 0 <= quality <= QUALITY_MAX:
        raise ConfigError(f"quality must be {LOSSLESS!r} or a number within 0..{QUALITY_MAX:g}, got {quality!r}")
    return round(float(quality) * QUALITY_ONE)


def _part_of(progress: Callable[[float], None] | None, i: int, count: int) -> Callable[[float], None] | None:
    """What the i-th of so many images is told instead."""
    return None if progress is None else lambda done: progress((i + done) / count)


def _aq(strength: float) -> int:
    """In sixteenths."""
    most = MAX_AQ / AQ_ONE
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 <= strength <= most:
        raise ConfigError(f"aq_strength must be a number within 0..{most:g}, got {strength!r}")
    return round(float(strength) * AQ_ONE)


class _Work(NamedTuple):
    """An image, what the engine codes of it, uint8 [H, W, 3], and the sections of its file."""

    source: image_io.ImageInput
    pixels: Array
    sections: Mapping[int, bytes]


def _in_memory(method: Method) -> Method:
    """A method whose lack of memory is an error of this package, whoever lacks it."""

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except OutOfMemoryError:
            raise
        except MemoryError as error:
            raise OutOfMemoryError(f"not enough memory: {error}".removesuffix(": ")) from error

    return cast(Method, wrapped)


def _rebuilt(arguments: dict[str, Any]) -> Codec:
    return Codec(**arguments)


class Codec:
    """A DCA codec. Safe to share between threads, and with forked processes.

    It encodes with one set of weights. It decodes files of every model whose weights are installed or in a folder of
    DCA_WEIGHTS.

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
        max_pixels: larger images are refused, in both directions; default: DCA_MAX_PIXELS, else 2^28.

    Raises:
        ConfigError: bad argument.
        WeightsError: weights missing or damaged.
        BackendUnavailableError: with the reason.
    """

    @_in_memory
    def __init__(
        self,
        model: str = "dca-s",
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str | None = None,
        backend: str = "auto",
        threads: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._threads = None if threads is None else check_threads(threads)
        self.max_pixels = pixel_limit(max_pixels)
        ops = resolve(backend, device)
        self.backend = ops.name
        path = Path(weights).absolute() if weights is not None else models.named(model)
        self._weights = weights_io.load(path)
        self._arguments = {
            "model": model,
            "weights": None if weights is None else str(path),
            "device": device,
            "backend": backend,
            "threads": threads,
            "max_pixels": max_pixels,
        }
        self._others: dict[bytes, Codec] = {}  # by model id, for files of other models
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
    def encoder_problem(self) -> str:
        """Why it can encode without loss alone, or "": weights may be for decoders, or have a damaged encoder."""
        if self._weights.encodes:
            return ""
        why = self._weights.problem or "that this version knows"
        return f"the weights of model {self.model_id} have no encoder{': ' if self._weights.problem else ' '}{why}"

    @property
    def parameters(self) -> int:
        """Number of integer weights."""
        return sum(t.size for n, t in self._weights.tensors.items() if n.endswith(".w"))

    @_in_memory
    def encode(
        self,
        image: ImageLike,
        quality: float | str = 60.0,
        *,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
        screen: str = "auto",
        alpha_quality: float = 100.0,
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
                under alpha 0; arrays may then be uint16, Pillow images I;16. Other options are not used then.
            effort: 0..9, time for fewer bits at equal distortion; no decoder sees a difference. The default, 1, takes
                two to three times as long as 0; from 2 on latents follow gradients of the decoder, and every level
                takes up to some two times as long as the one before (docs/guide/encoding.md).
            aq_strength: of adaptive quantisation, 0..15/16 in steps of 1/16: how much coarser y is quantised where much
                is going on, and finer where little is, which PSNR does not see but MS-SSIM and eyes do. 0 for the least
                squared error of each picture (docs/guide/encoding.md).
            screen: "auto": screens, text and charts, or the blocks of them in a picture, are coded by the exact-colour
                coder, nearly without loss, where that takes fewer bits at equal distortion; or "off". Photographs are
                the same files with both.
            alpha_quality: 0..100. 100 keeps alpha as it is; below, it is rounded to fewer levels, of which transparent
                and opaque always are two: 92 of them at 79, 23 at 50, two at 0.
            metadata: replaces the image's own "icc", "exif", "xmp" blocks, of every image of a batch.
            progress: told how much is done, 0..1.

        Returns:
            The .dca file. Equal arguments and weights give equal bytes on every machine.

        Raises:
            InputError: wrong type, shape or dtype, or an empty image.
            LimitExceededError: more than `max_pixels`.
            ConfigError: quality, effort, aq_strength, screen or alpha_quality out of range.
            WeightsError: the weights have no encoder, or one of a later version.
            OutOfMemoryError: there is too little memory.
        """
        lossless = _is_lossless(quality)
        q, level, aq = _quality(QUALITY_MAX if lossless else quality), check_effort(effort), _aq(aq_strength)
        look = graphics.check(screen) and q < container.MAX_QUALITY
        levels = picture.alpha_levels(100 if lossless else alpha_quality)
        batch = images_of(image)
        if batch is not None:
            options: dict[str, Any] = {"effort": effort, "aq_strength": aq_strength, "screen": screen}
            options |= {"alpha_quality": alpha_quality, "metadata": metadata}
            return [  # type: ignore[return-value]
                self.encode(one, quality, progress=_part_of(progress, i, len(batch)), **options)
                for i, one in enumerate(batch)
            ]
        if lossless:
            data = self._encode_exact(image, metadata)
            if progress is not None:
                progress(1.0)
            return data
        source = self._image(image)
        return self._file(source, self._sections(source, metadata, levels), q, level, aq, look, progress)

    def _file(
        self,
        source: image_io.ImageInput,
        sections: Mapping[int, bytes],
        quality: int,
        level: int,
        aq: int,
        look: bool,
        progress: Callable[[float], None] | None,
    ) -> bytes:
        """Of an image whose alpha and metadata are coded."""
        work = self._prepared(source, sections, quality, aq, look)
        if isinstance(work, bytes):
            data = work
        else:
            coded = self.engine.encode(self.engine.image(work.pixels), quality, level, aq, progress)
            data = self._packed(work, coded, quality, aq)
        if progress is not None and (level <= 1 or isinstance(work, bytes)):
            progress(1.0)
        return data

    def _prepared(
        self, source: image_io.ImageInput, sections: Mapping[int, bytes], quality: int, aq: int, look: bool
    ) -> _Work | bytes:
        """What the engine codes of an image, and what goes beside it; or the file, if it is all graphics."""
        pixels = source.pixels
        chosen = self._graphics(source, quality, aq) if look else None
        if chosen is not None and chosen.whole:
            return container.pack(picture.header_of(source, chosen.samples, quality), chosen.stream, sections)
        if chosen is not None:
            sections = {**sections, container.Section.LAYER: chosen.payload}
            pixels = graphics.filled(self._host(pixels), chosen.inside)
        return _Work(source, pixels, sections)

    def _packed(self, work: _Work, coded: Encoded, quality: int, aq: int) -> bytes:
        """The file."""
        source, sections = work.source, work.sections
        height, width = source.pixels.shape[:2]
        header = container.Header(
            width, height, quality, self._weights.model_id, coded.digest, source.gray, aq, coded.restoration
        )
        data = container.pack(header, coded.stream, sections)
        return self._at_the_top(source, sections, data) if quality == container.MAX_QUALITY else data

    def _graphics(self, source: image_io.ImageInput, quality: int, aq: int) -> graphics.Graphics | None:
        """The blocks of a picture that the exact-colour coder takes, if any."""
        above, below = (self._host(source.pixels[i :: graphics.LINES]) for i in range(2))
        if not graphics.looks_graphic(above, below):
            return None
        channels, size = 1 if source.gray else 3, source.pixels.shape[:2]

        def network() -> tuple[int, npt.NDArray[np.uint8]]:
            coded = self.engine.encode(self.engine.image(source.pixels), quality, 0, aq)
            header = container.Header(size[1], size[0], quality, self._weights.model_id, coded.digest, source.gray, aq)
            decoded = self._decoded(container.Dca(header, coded.stream))
            return 8 * len(coded.stream), self._host(decoded[..., :channels])

        samples, price = self._host(source.pixels[..., :channels]), graphics.price_of(quality, channels)
        return graphics.choose(samples, price, network, threads=self.threads, python=self._python)

    def _encode_exact(self, image: ImageLike, metadata: Mapping[str, bytes] | None) -> bytes:
        source = picture.source_of(image, max_pixels=self.max_pixels)
        check_size(source.pixels.shape, self.max_pixels)
        samples = picture.samples_of(source)
        header = picture.header_of(source, samples)
        stream = picture.coder.encode(samples, threads=self.threads, python=self._python)
        return container.pack(header, stream, self._sections(source, metadata))

    def _at_the_top(self, source: image_io.ImageInput, sections: Mapping[int, bytes], data: bytes) -> bytes:
        """A file of the highest quality: that of the model, unless it is not enough or longer than one without loss."""
        dca, engine = container.parse(data, max_pixels=self.max_pixels), self.engine
        decoded = self._decoded(dca)
        error = engine.ops.squared_error(engine.image(source.pixels), decoded, None)
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
        if self.encoder_problem:
            raise WeightsError(self.encoder_problem)
        source = image_of(image, on_device=self.engine.takes_tensors, max_pixels=self.max_pixels)
        check_size(source.pixels.shape, self.max_pixels)
        return image_io.smooth_where_hidden(source)

    @_in_memory
    def encode_to(
        self,
        image: ImageLike,
        *,
        max_bytes: int | None = None,
        bpp: float | None = None,
        psnr: float | None = None,
        ms_ssim: float | None = None,
        ssimulacra2: float | None = None,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
        screen: str = "auto",
        alpha_quality: float = 100.0,
        metadata: Mapping[str, bytes] | None = None,
        progress: Callable[[float], None] | None = None,
        tolerance: float = 0.01,
    ) -> bytes:
        """Compress one image to a size, at the highest quality that it allows, or to a fidelity, at the lowest.

        Takes a few encodings.

        Args:
            image, effort, aq_strength, screen, alpha_quality, metadata: as of `encode`.
            max_bytes: of the file, its metadata included.
            bpp: the same in bits per pixel.
            psnr: least peak signal-to-noise ratio of the decoded pixels in dB, over their three colours.
            ms_ssim: least MS-SSIM of the decoded pixels, below 1, as of `dca_fast.metrics.ms_ssim`; of pictures from
                161 pixels a side on.
            ssimulacra2: least score of the decoded pixels, below 100, as of `dca_fast.ssimulacra2`; of pictures from 8
                pixels a side on.
            progress: of every encoding, 0..1.
            tolerance: part of the bytes without metadata and alpha, or of the error (the squared one, or what is
                missing to 1 or 100), that may be left unused, between 0 and 1.

        Returns:
            The .dca file; equal arguments and weights give equal bytes on every machine, except for `ms_ssim` and
            `ssimulacra2`, whose last digits depend on the machine.

        Raises:
            InputError: no quality does it; the message tells what the last one gives. The picture is too small for the
                measure. Else as `encode`.
            ConfigError: not one of the goals, or one that is not a positive number or too large; as `encode`.
            BackendUnavailableError: `ms_ssim` without its packages, those of `dca-fast[eval]`.
        """
        given = (max_bytes, bpp, psnr, ms_ssim, ssimulacra2)
        goals = dict(zip(rate_control.GOALS, given, strict=True))
        kind, goal = rate_control.check(goals, tolerance)
        source = self._image(image)
        sections = self._sections(source, metadata, picture.alpha_levels(alpha_quality))
        level, aq, look = check_effort(effort), _aq(aq_strength), graphics.check(screen)

        def encoded(quality: float) -> bytes:
            q = _quality(quality)
            return self._file(source, sections, q, level, aq, look and q < container.MAX_QUALITY, progress)

        def error(data: bytes) -> float:
            dca = container.parse(data, max_pixels=self.max_pixels)
            decoded = self._decoded(dca)
            if kind == "psnr":
                squares = self.engine.ops.squared_error(self.engine.image(source.pixels), decoded, None)
                return squares / math.prod(source.pixels.shape)
            likeness = _LIKENESS[kind](self._host(source.pixels), self._host(decoded))
            if likeness is None:
                raise InputError(f"MS-SSIM is of pictures of {metrics.MS_SSIM_SIDE} pixels a side or more")
            return rate_control.PERFECT[kind] - likeness

        if kind not in ("max_bytes", "bpp"):
            return rate_control.to_fidelity(encoded, error, kind, goal, tolerance)
        bits = 8.0 if kind == "max_bytes" else float(math.prod(source.pixels.shape[:2]))
        fixed = sum(map(len, sections.values()))
        try:
            return rate_control.to_size(encoded, goal * bits / 8, fixed, tolerance)
        except InputError:
            if not look:
                raise
        look = False  # graphics do not become as small as the network's pictures
        return rate_control.to_size(encoded, goal * bits / 8, fixed, tolerance)

    def _sections(
        self, source: image_io.ImageInput, metadata: Mapping[str, bytes] | None, levels: int = picture.ALL_LEVELS
    ) -> dict[int, bytes]:
        blocks = metadata if metadata is not None else source.metadata
        if not isinstance(blocks, Mapping):
            raise InputError(f"metadata holds bytes under {', '.join(METADATA)}, got {type(blocks).__name__}")
        for key, value in blocks.items():
            if key not in METADATA or not isinstance(value, bytes):
                kind = type(value).__name__
                raise InputError(f"metadata holds bytes under {', '.join(METADATA)}, got {kind} under {key!r}")
        sections: dict[int, bytes] = {container.Section[key.upper()]: value for key, value in blocks.items()}
        if source.alpha is not None:
            plane = picture.with_levels(source.alpha, levels)
            alpha = picture.coder.pack_plane(plane, threads=self.threads, python=self._python)
            sections[container.Section.ALPHA] = alpha
        container.check_sections(sections)
        return sections

    @_in_memory
    def decode(
        self, data: FileLike, output: str = "pil", *, region: Sequence[int] | None = None, reduce: int = 1
    ) -> Any:
        """Decompress one file, a part of its picture, or a small one of it.

        Args:
            data: the whole file, its path, or a binary file object.
            output: "pil", "numpy" or "torch".
            region: (left, top, width, height) in pixels: that part of the picture alone, equal to the crop of the whole
                one. Of large pictures only the tiles that it depends on are decoded (docs/guide/large.md).
            reduce: 2, 4, 8 or 16: a preview with a pixel for so many by so many, sides rounded upwards. For 8 and 16 it
                comes from the latent and takes some 60 % of the time; else it is the mean of decoded pixels.

        Returns:
            Pillow image (L, RGB or with alpha, or I;16; metadata in `info`), uint8 array [H, W, 3], or uint8 tensor
            [3, H, W]; with alpha, if the file has it, as a fourth channel; uint16 for files of 16 bits. Pillow has no
            mode for 16 bits of colours or with alpha: an `InputWarning` says that 8 are left.

        Raises:
            BitstreamError: one of its kinds says what is wrong with the bytes. Never a wrong picture.
            UnknownModelError: no weights of the file's model are here; files without a model need none.
            WeightsError: those weights are damaged.
            InputError: neither bytes nor where they are; a region that is empty or not within the picture.
            OSError: the file cannot be read.
            OutOfMemoryError: there is too little memory.
            ConfigError: another output or reduction, or a region and a reduction.
            BackendUnavailableError: "torch" without PyTorch.
        """
        _check_output(output)
        if check_reduction(reduce) > 1 and region is not None:
            raise ConfigError("give a region or a reduction, not both")
        dca = container.parse(file_bytes(data), max_pixels=self.max_pixels)
        return self._of_model(dca.header)._decoded_as(dca, output, region, reduce)

    def _decoded_as(self, dca: container.Dca, output: str, region: Sequence[int] | None, reduce: int) -> Any:
        header = dca.header
        if reduce > 1:
            pixels = self._reduced(dca, reduce)
            plane = self._alpha(dca)
            plane = None if plane is None else box_mean(plane, reduce)
        else:
            part = None if region is None else Region.of(region, header.height, header.width)
            pixels = self._decoded(dca, part)
            plane = self._alpha(dca, part)  # now that the stream is known to be whole
        return self._given(dca, pixels, plane, output)

    def _given(self, dca: container.Dca, pixels: Array, plane: Plane | None, output: str) -> Any:
        """Pixels and alpha of a file as the caller wants them."""
        header = dca.header
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

    def _alpha(self, dca: container.Dca, region: Region | None = None) -> npt.NDArray[Any] | None:
        """The alpha plane of a file, or a region of it, [height, width]."""
        header, payload = dca.header, dca.sections.get(container.Section.ALPHA)
        if payload is None:
            return None
        size = header.height, header.width
        plane = picture.coder.unpack_plane(payload, *size, header.depth, threads=self.threads, python=self._python)
        return plane if region is None else plane[region.of_array()]

    def _host(self, pixels: Array) -> npt.NDArray[Any]:
        """[H, W, 3] as an array of its own."""
        array = pixels if isinstance(pixels, np.ndarray) else self.engine.arrays.numpy(pixels)
        return np.ascontiguousarray(array)

    def _decoded(
        self, dca: container.Dca, region: Region | None = None, decoded: tuple[Array, int] | None = None
    ) -> Array:
        """The picture of a file, or a region of it, uint8 or uint16 [height, width, 3], with its filter; all planes of
        a gray one are equal. `decoded` is what the engine made of the whole stream, where it did so already."""
        header, engine = dca.header, self.engine
        region = Region.whole(header.height, header.width) if region is None else region
        if header.exact:
            samples = picture.pixels_of(header, dca.stream, threads=self.threads, python=self._python)
            samples = samples[region.of_array()]
            return samples if header.depth == 16 else engine.image(samples)  # engines know 8 bits
        seen = region.around(RING_REACH if header.restoration else 0, header.height, header.width)
        pixels, digest = engine.decode(dca.stream, header, seen) if decoded is None else decoded
        self._check_digest(header, digest)
        if header.restoration:
            pixels = engine.restore(pixels, header.restoration)[region.of_array(seen.top, seen.left)]
        pixels = self._in_gray(pixels) if header.grayscale else pixels
        return self._with_layer(pixels, dca, lambda samples: samples[region.of_array()])

    def _reduced(self, dca: container.Dca, reduce: int) -> Array:
        """A preview, uint8 or uint16 [ceil(H / reduce), ceil(W / reduce), 3]."""
        header = dca.header
        if not header.exact:
            preview = self.engine.preview(dca.stream, header, reduce)
            if preview is not None:
                pixels, digest = preview
                self._check_digest(header, digest)
                pixels = self._in_gray(pixels) if header.grayscale else pixels
                return self._with_layer(pixels, dca, lambda samples: box_mean(samples, reduce))
        pixels = box_mean(self._host(self._decoded(dca)), reduce)
        return pixels if header.depth == 16 else self.engine.image(pixels)

    def _of_model(self, header: container.Header) -> Codec:
        """This codec, or one with the weights of the file's model and else the same arguments."""
        if header.exact or header.model_id == self._weights.model_id:
            return self
        if header.model_id not in self._others:
            try:
                path = models.of_id(header.model_id)
            except WeightsError as error:
                raise UnknownModelError(f"{error}; this codec holds {self.model_id}") from error
            # Two threads may both make one; either serves.
            self._others.setdefault(header.model_id, _rebuilt(self._arguments | {"weights": path}))
        return self._others[header.model_id]

    @staticmethod
    def _check_digest(header: container.Header, digest: int) -> None:
        if digest != header.digest:
            raise CorruptStreamError("the decoded symbols do not have the digest in the header")

    def _in_gray(self, pixels: Array) -> Array:
        """Three planes of luma."""
        luma = self.engine.ops.luma(self.engine.arrays.contiguous(pixels))[:, :, None]
        return self.engine.arrays.broadcast(luma, tuple(pixels.shape))

    def _with_layer(
        self, pixels: Array, dca: container.Dca, seen: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    ) -> Array:
        """Pixels with the graphic blocks of the file, if it has any; `seen` takes what the pixels show from samples of
        the whole picture."""
        header, payload = dca.header, dca.sections.get(container.Section.LAYER)
        if payload is None:
            return pixels
        shape = header.height, header.width, 1 if header.grayscale else 3
        samples, inside = layer.unpack(payload, shape, threads=self.threads, python=self._python)
        outside = ~picture.coder.pixels_inside(inside, *shape[:2])[:, :, None]
        samples, outside = (np.ascontiguousarray(seen(array)) for array in (samples, outside.view(np.uint8)))
        # Samples outside of the blocks are 0, and a pixel of a preview lies in one block.
        return pixels * self.engine.image(outside) + self.engine.image(samples)

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

    @_in_memory
    def encode_batch(
        self,
        images: Iterable[ImageLike],
        quality: float | str = 60.0,
        *,
        effort: int = DEFAULT_EFFORT,
        aq_strength: float = DEFAULT_AQ,
        screen: str = "auto",
        alpha_quality: float = 100.0,
    ) -> list[bytes]:
        """`encode` of each, with the same bytes.

        A CUDA device codes pictures of about one size together at effort 0 (docs/guide/gpu.md). No more
        pictures are taken from `images` at a time than are coded together.

        Args:
            images: as of `encode`; or an array [N, H, W, C], or a tensor [N, C, H, W].
            quality, effort, aq_strength, screen, alpha_quality: as of `encode`.

        Returns:
            The files, in the order of the images.

        Raises:
            DcaError: as `encode`, of the first image that cannot be coded.
        """
        lossless = _is_lossless(quality)
        q = _quality(QUALITY_MAX if lossless else quality)
        level, aq, look = check_effort(effort), _aq(aq_strength), graphics.check(screen) and q < container.MAX_QUALITY
        levels = picture.alpha_levels(alpha_quality)
        files: list[bytes] = []
        for some in _some(images, self.engine.together):
            if len(some) == 1 or lossless:
                options: dict[str, Any] = {"effort": effort, "aq_strength": aq_strength, "screen": screen}
                options["alpha_quality"] = alpha_quality
                files += [self.encode(image, quality, **options) for image in some]
                continue
            sources = map(self._image, some)
            prepared = [self._prepared(s, self._sections(s, None, levels), q, aq, look) for s in sources]
            works = [work for work in prepared if isinstance(work, _Work)]
            coded = iter(self.engine.encode_batch([self.engine.image(work.pixels) for work in works], q, level, aq))
            files += [w if isinstance(w, bytes) else self._packed(w, next(coded), q, aq) for w in prepared]
        return files

    @_in_memory
    def decode_batch(self, files: Iterable[FileLike], output: str = "pil") -> list[Any]:
        """`decode` of each, with the same result.

        A CUDA device decodes files of about one size and of one quality together. No more files are read at a time
        than are decoded together.

        Raises:
            DcaError: as `decode`, of a file that cannot be decoded.
        """
        _check_output(output)
        results: list[Any] = []
        for some in _some(files, self.engine.together):
            if len(some) == 1:
                results.append(self.decode(some[0], output))
                continue
            dcas = [container.parse(file_bytes(data), max_pixels=self.max_pixels) for data in some]
            mine = [dca for dca in dcas if dca.header.model_id == self._weights.model_id]
            decoded = iter(self.engine.decode_batch([dca.stream for dca in mine], [dca.header for dca in mine]))
            for dca in dcas:
                if dca.header.model_id == self._weights.model_id:
                    results.append(
                        self._given(dca, self._decoded(dca, decoded=next(decoded)), self._alpha(dca), output)
                    )
                else:
                    results.append(self._of_model(dca.header)._decoded_as(dca, output, None, 1))
        return results


def _some(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """So many at a time, the last ones fewer."""
    iterator = iter(items)
    while some := list(islice(iterator, count)):
        yield some


def _check_output(output: str) -> None:
    if output not in OUTPUTS:
        raise ConfigError(f"output must be one of {OUTPUTS}, got {output!r}")
    if output == "torch":
        need_torch('output="torch"')
