"""The codec on a CUDA device: from image tensor to byte buffer and back with everything between them there.

Walk, program and file are those of the CPU. What is here is where tensors live and how launches are recorded: for each
size and strength of adaptive quantisation one or two CUDA graphs that encode at a level of effort and one that decodes,
at every quality.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.config import RINGS, TRELLIS_PRICE, Part
from dca_fast.encoder import restoration_fit
from dca_fast.encoder.effort import Pass, Search, Step, Tools, first_pass, second_pass, step_multipliers, worth
from dca_fast.encoder.full_gradient import Gradient
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines import Encoded, Engine, Progress
from dca_fast.engines.graphs import CAPTURE, record
from dca_fast.entropy.coder import choose_lanes
from dca_fast.entropy.cuda_coder import DeviceCoder, DeviceDecoder
from dca_fast.entropy.tables import Tables
from dca_fast.errors import DeviceMemoryError
from dca_fast.files.container import Header
from dca_fast.network import walk
from dca_fast.network.program import CACHED_QUALITIES, QUALITY_ONE, Adaptation, Model, Program, ProgramSet, settings
from dca_fast.network.weights import Weights
from dca_fast.ops import Ops
from dca_fast.tensors import tensor_of

CACHED_GRAPHS = 16
LARGEST_GRAPH = 1 << 25  # pixels: above, launches cost little beside the work, and a graph keeps its memory
STRIP_ROWS = (None, 64, 16)  # latent rows that the transforms compute at a time, tried in turn when memory is short
_STREAM_ROOM = 1 << 16  # bytes that a recorded decoder takes beyond one for each pixel
_ALIGNMENT = 256
_PACKED_QUALITIES = 64  # kept on the host, about 100 KiB each

T = TypeVar("T")
Size = tuple[int, int]
Fit = Callable[[Tensor], Tensor]  # of a restoration filter to a picture, see `CudaEngine._fitted`
# Of a graph: way, size in pixels and effort, or latent grid and valid sites, and strength of adaptive quantisation.
Key = tuple[str, Size, Size | int, int]


def _all_settings(weights: Weights, quality: int) -> dict[str, Tensor]:
    """Those of the program, and "step", `multipliers` of effort 1; quality in 1/100."""
    values = settings(weights, quality)
    values["step"] = step_multipliers(values["gain"], quality / QUALITY_ONE)
    return {name: torch.from_numpy(value) for name, value in values.items()}


class _Settings:
    """What depends on the quality, in fixed device memory, so that recorded launches follow its changes."""

    def __init__(self, model: Model) -> None:
        values = _all_settings(model.weights, 0)
        self._weights, self._places, end = model.weights, {}, 0
        for name, value in values.items():
            self._places[name] = end
            end += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._flat = torch.zeros(end, dtype=torch.uint8, device=model.device)
        self.views = {
            name: self._flat[at : at + values[name].nbytes].view(values[name].dtype).view(values[name].shape)
            for name, at in self._places.items()
        }
        self._packed = lru_cache(_PACKED_QUALITIES)(self._pack)

    def _pack(self, quality: int) -> Tensor:
        flat = torch.zeros(self._flat.shape, dtype=torch.uint8, device="cpu", pin_memory=self._flat.is_cuda)
        for name, value in _all_settings(self._weights, quality).items():
            at = self._places[name]
            flat[at : at + value.nbytes] = value.view(-1).view(torch.uint8)
        return flat

    def load(self, quality: int) -> None:
        """Copy the settings of a quality to the device, on the current stream."""
        self._flat.copy_(self._packed(quality), non_blocking=True)


class _EncoderSource(walk.EncoderSource):
    """Keeps symbols and rows as tensors; the coder takes their digest."""

    def _keep(self, symbols: Tensor, rows: Tensor) -> Tensor:
        self.parts.append((symbols.flatten(), rows.flatten()))
        return symbols


class _DecoderSource:
    """Symbols that stay on the device; the decoder takes their digest."""

    def __init__(self, decoder: DeviceDecoder) -> None:
        self._decoder = decoder

    def hyper(self, name: str, part: Part, rows: Tensor, mean: Tensor | None) -> Tensor:
        return self._decoder.decode(rows.flatten()).view(rows.shape)

    def step(self, step: int, mean: Tensor, rows: Tensor, adaptation: Adaptation | None) -> Tensor:
        return self._decoder.decode(rows.flatten(), trellis=True).view(rows.shape)


def _analyse(
    program: Program, image: Tensor, size: Size, step: Step, fit: Fit | None, rows: int | None
) -> tuple[walk.EncoderSource, Tensor | None]:
    """Everything of the encoder before the coder: uint8 [1, H, W, 3] to values and rows of each part, and from effort 1
    on the picture that they make.

    Args:
        size: height and width without the padding.
        fit: of effort 1; None: effort 0.
    """
    if fit is None:
        return _plain(program, image, size, step, rows), None
    first = first_pass(program, step, image, size, _EncoderSource, rows)
    return second_pass(program, step, first, fit(first.picture), image, size, rows)


def _plain(program: Program, image: Tensor, size: Size, step: Step, rows: int | None = None) -> walk.EncoderSource:
    """`_analyse` at effort 0."""
    y = program.analyse(image, rows)
    source = _EncoderSource(program, y, program.hyper_analyse(y), step.quantise)
    walk.code(program, source, walk.Grid.of(*size))
    return source


def _synthesise(program: Program, decoder: DeviceDecoder, grid: walk.Grid, rows: int | None) -> Tensor:
    """Everything of the decoder after `reset`: uint8 [1, H, W, 3]."""
    y_hat = walk.code(program, _DecoderSource(decoder), grid)
    decoder.close()
    picture: Tensor = program.synthesise(y_hat, rows)
    return picture


class _EncoderGraph:
    """Recorded analysis and walk for one image size and level of effort; `step` takes `multipliers`.

    At effort 1 the host fits the filter that the step sees, between two graphs.
    """

    @torch.inference_mode(False)  # what is made here is written to later, in any mode
    def __init__(
        self, model: Model, image: Tensor, size: Size, step: Callable[[Tensor], Step], effort: int, aq: int
    ) -> None:
        self.lock, self.settings, self.image = threading.Lock(), _Settings(model), image.clone()
        program = Program(model, self.settings.views, model.silent).adapted(aq)
        work = self._kept = program, step(self.settings.views["step"])  # as in `_DecoderGraph`
        self._first: tuple[torch.cuda.CUDAGraph, Pass] | None = None
        self.picture: Tensor | None = None
        self.source: walk.EncoderSource
        if effort:
            self._first = record(partial(first_pass, *work, self.image, size, _EncoderSource))
            self._w = torch.zeros(3, 6 * len(RINGS), dtype=torch.int8, device=model.device)
            second = partial(second_pass, *work, self._first[1], self._w, self.image, size)
            self._graph, (self.source, self.picture) = record(second)
        else:
            self._graph, self.source = record(partial(_plain, work[0], self.image, size, work[1]))

    def replay(self, fit: Fit) -> None:
        """Everything, of the settings and the image that were copied here."""
        if self._first is not None:
            graph, first = self._first
            graph.replay()
            self._w.copy_(fit(first.picture))
        self._graph.replay()


class _DecoderGraph:
    """Recorded walk, entropy decoder and synthesis for one image size."""

    @torch.inference_mode(False)
    def __init__(self, model: Model, coder: DeviceCoder, grid: walk.Grid, aq: int, stream: bytes) -> None:
        self.lock, self.settings = threading.Lock(), _Settings(model)
        sites = grid.sites[0] * grid.sites[1]
        self.decoder = coder.decoder(
            stream, capacity=_capacity(grid), positions=sites * model.weights.config.latent // 4
        )
        # A graph knows addresses only: what a program made for itself, as packed weights, must stay.
        self._program = Program(model, self.settings.views, model.silent).adapted(aq)
        self.graph, self.pixels = record(partial(_synthesise, self._program, self.decoder, grid, None))


def _capacity(grid: walk.Grid) -> int:
    return math.prod(grid.padded) + _STREAM_ROOM


def _encoder_key(size: Size, effort: int, aq: int) -> Key:
    """Effort looks at pixels, so that it needs the size; without it all sizes with the same sites share a graph."""
    return ("encode", size if effort else walk.Grid.of(*size).valid, effort, aq)


class CudaEngine:
    """Pixels to streams and back on one CUDA device. Safe to share between threads and CUDA streams.

    The first image of a size is coded launch by launch, the second one is recorded as a CUDA graph; `warm_up` does both
    at once. The `CACHED_GRAPHS` graphs used last are kept: for each strength of adaptive quantisation one to decode a
    size, one each to encode it at effort 0 and 1. Searches, of higher levels, are not recorded.

    Args:
        weights: checked integer weights.
        ops: a backend for CUDA tensors.
        device: a CUDA device.
        on_cpu: makes an engine for searches that the device has no memory for; it finds the same.
    """

    takes_tensors = True

    def __init__(
        self,
        weights: Weights,
        ops: Ops,
        tables: Tables,
        device: torch.device | str,
        on_cpu: Callable[[], Engine],
    ) -> None:
        self.weights, self.ops, self.tables, self.coder = weights, ops, tables, DeviceCoder(tables, device)
        self.device = self.coder.device
        self._programs = ProgramSet(weights, ops, self.device)
        self.model = self._programs.model
        self.arrays, self._on_cpu = self.model.arrays, on_cpu
        self._seen: OrderedDict[Key, _EncoderGraph | _DecoderGraph | None] = OrderedDict()
        self._lock = threading.Lock()
        self._charges = torch.from_numpy(tables.charges(1 / TRELLIS_PRICE)).to(self.device)
        self._adjoint = Adjoint(weights, ops, self.device)
        self._gradient = Gradient(self._adjoint, ops)
        self._multipliers = lru_cache(CACHED_QUALITIES)(lambda q: _all_settings(weights, q)["step"].to(self.device))

    def program(self, quality: int, aq: int = 0) -> Program:
        """The integer network at a quality in 1/100 and a strength of adaptive quantisation, 0..15."""
        return self._programs.at(quality, aq)

    def warm_up(self, height: int, width: int, effort: int, aq: int) -> None:
        """Compile, load and record everything for images of one size, so that the next ones take no longer than others.

        Args:
            height, width: pixels.
            effort: of the encoder; above 1 its launches are not recorded.
            aq: strength of adaptive quantisation, 0..15.

        Raises:
            DeviceMemoryError: the device cannot hold it.
        """
        image = torch.zeros(height, width, 3, dtype=torch.uint8, device=self.device)
        for level in (min(effort, 1), min(effort, 2)):  # searches of higher levels only go on like this
            stream = self.encode(image, 0, level, aq).stream
            self.decode(stream, Header(width, height, 0, b"", 0, aq=aq))

    def image(self, pixels: Tensor | npt.NDArray[np.uint8]) -> Tensor:
        """Pixels uint8 [H, W, 3] on the device."""
        return (pixels if isinstance(pixels, Tensor) else tensor_of(pixels)).to(self.device)

    def recorded(self, height: int, width: int, effort: int, aq: int) -> bool:
        """Whether graphs encode and decode images of this size, in pixels."""
        keys = _encoder_key((height, width), effort, aq), ("decode", *walk.Grid.of(height, width), aq)
        with self._lock:
            return all(self._seen.get(key) for key in keys)

    def encode(
        self,
        image: Tensor,
        quality: int,
        effort: int,
        aq: int,
        progress: Progress | None = None,
    ) -> Encoded:
        """See `Engine`. Up to effort 1 a picture that the device has too little memory for is coded by strips."""
        height, width = image.shape[:2]
        grid = walk.Grid.of(height, width)
        groups = grid.groups
        step = partial(Step, self._adjoint, partial(self.quantise, groups))
        fit = partial(self._fitted, image, quality)
        with torch.cuda.device(self.device):
            if effort > 1:
                try:
                    return self._in_memory(lambda rows: self._search(image, quality, effort, aq, progress), 2)
                except DeviceMemoryError:
                    on_cpu = self._on_cpu()  # searches need more memory than encoders that go by strips
                    return on_cpu.encode(on_cpu.image(image), quality, effort, aq, progress)
            padded = self._padded(image, grid)
            make = partial(_EncoderGraph, self.model, padded, (height, width), step, effort, aq)
            graph = self._graph(_encoder_key((height, width), effort, aq), grid, make)
            if isinstance(graph, _EncoderGraph):
                with graph.lock:  # until the outputs are read: the next replay overwrites them
                    graph.settings.load(quality)
                    graph.image.copy_(padded)
                    graph.replay(fit)
                    stream, digest = self.code(graph.source, groups)
                    return Encoded(stream, digest, self._restoration(graph.picture, image, quality))
            program, at = self._programs.at(quality, aq), step(self._multipliers(quality))
            work = partial(_analyse, program, padded, (height, width), at, fit if effort else None)
            source, picture = self._in_memory(work)
            return Encoded(*self.code(source, groups), self._restoration(picture, image, quality))

    def _padded(self, image: Tensor, grid: walk.Grid) -> Tensor:
        down, across = (
            torch.arange(padded, device=self.device).clamp_(max=side - 1)
            for padded, side in zip(grid.padded, image.shape, strict=False)
        )
        return image[down][:, across][None]

    def _search(self, image: Tensor, quality: int, effort: int, aq: int, progress: Progress | None) -> Encoded:
        height, width = image.shape[:2]
        grid = walk.Grid.of(height, width)
        groups, padded = grid.groups, self._padded(image, grid)
        quantise, code = partial(self.quantise, groups), partial(self.code, groups=groups)
        tools = Tools(quantise, _EncoderSource, code, self._adjoint, self._gradient)
        search = Search(tools, self._programs.at(quality, aq), padded, (height, width), quality / QUALITY_ONE)
        best = search.run(effort, progress)
        return Encoded(best.stream, best.digest, best.weights)

    def _restoration(self, picture: Tensor | None, image: Tensor, quality: int) -> tuple[int, ...]:
        if picture is None:
            return ()
        bits = worth(quality / QUALITY_ONE)
        return restoration_fit.fit(self.ops, self.model.arrays, picture[0], image.contiguous(), bits)

    def _fitted(self, image: Tensor, quality: int, picture: Tensor) -> Tensor:
        """`_restoration` as the operation takes it, int8 on the device; zeros change nothing."""
        weights = self._restoration(picture, image, quality)
        w: Tensor = restoration_fit.as_array(self.model.arrays, weights, len(RINGS))
        return w

    def quantise(self, groups: int, residuals: Tensor, rows: Tensor) -> Tensor:
        """Values of a trellis of streams of so many groups, see `latents.quantiser`."""
        return self.coder.quantise(residuals.flatten(), rows.flatten(), self._charges, groups).view(rows.shape)

    def code(self, source: walk.EncoderSource, groups: int) -> tuple[bytes, int]:
        """The stream of what is coded, and the digest of its symbols."""
        rows = [rows for _, rows in source.parts]
        lanes = choose_lanes(self.coder.estimate_bytes(rows, source.plain) // groups)
        return self.coder.start_encode(source.parts, lanes, groups, source.plain).read()

    def restore(self, picture: Tensor, weights: tuple[int, ...]) -> Tensor:
        restored: Tensor = restoration_fit.apply(self.ops, self.arrays, picture, weights)
        return restored

    def decode(self, stream: bytes, header: Header) -> tuple[Tensor, int]:
        """See `Engine`."""
        height, width, quality, aq = header.height, header.width, header.quality, header.aq
        grid = walk.Grid.of(height, width)
        with torch.cuda.device(self.device):
            graph = None
            if len(stream) <= _capacity(grid):
                make = partial(_DecoderGraph, self.model, self.coder, grid, aq, stream)
                graph = self._graph(("decode", *grid, aq), grid, make)
            if isinstance(graph, _DecoderGraph):
                with graph.lock:
                    graph.settings.load(quality)
                    graph.decoder.reset(stream)
                    graph.graph.replay()
                    pixels = graph.pixels[0, :height, :width].clone()
                    return pixels, graph.decoder.check()
            program = self._programs.at(quality, aq)

            def once(rows: int | None) -> tuple[Tensor, int]:
                decoder = self.coder.decoder(stream)
                pixels = _synthesise(program, decoder, grid, rows)
                return pixels[0, :height, :width].contiguous(), decoder.check()

            return self._in_memory(once)

    def _graph(
        self, key: Key, grid: walk.Grid, make: Callable[[], _EncoderGraph | _DecoderGraph]
    ) -> _EncoderGraph | _DecoderGraph | None:
        """The graph of a key, made when the key comes for the second time; None before, or if memory is short."""
        if math.prod(grid.padded) > LARGEST_GRAPH:
            return None
        with self._lock:
            if key not in self._seen:
                self._seen[key] = None
            elif self._seen[key] is None:
                try:
                    self._seen[key] = make()
                except torch.cuda.OutOfMemoryError:
                    return None
            self._seen.move_to_end(key)
            while len(self._seen) > CACHED_GRAPHS:
                self._seen.popitem(last=False)
            return self._seen[key]

    def _in_memory(self, work: Callable[[int | None], T], tries: int | None = None) -> T:
        """`work` with all rows at a time, or with fewer where the device has too little memory, and without graphs."""
        for rows in STRIP_ROWS[:tries]:
            try:
                return work(rows)
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error)
            with self._lock:
                self._seen.clear()
            with CAPTURE:
                torch.cuda.empty_cache()
        raise DeviceMemoryError(reason)
