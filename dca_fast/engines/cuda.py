"""The codec on a CUDA device: from image tensor to byte buffer and back with everything between them there.

Walk, program and file are those of the CPU. What is here is where tensors live and how launches are recorded: for each
size and strength of adaptive quantisation one or two CUDA graphs that encode at a level of effort and one that decodes,
at every quality.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.config import RINGS, STEPS, TRELLIS_PRICE, Part
from dca_fast.encoder import restoration_fit
from dca_fast.encoder.effort import Pass, Search, Step, Tools, first_pass, second_pass, step_multipliers, worth
from dca_fast.encoder.full_gradient import Gradient
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines import Encoded, Engine, Progress, tiles
from dca_fast.engines.graphs import CAPTURE, record
from dca_fast.entropy.cuda_coder import DeviceCoder, DeviceDecoder, Fetched
from dca_fast.entropy.cuda_coder import Encoded as Streams
from dca_fast.entropy.tables import Tables
from dca_fast.errors import DeviceMemoryError
from dca_fast.files.container import Header
from dca_fast.network import walk
from dca_fast.network.program import CACHED_QUALITIES, QUALITY_ONE, Adaptation, Model, Program, ProgramSet, settings
from dca_fast.network.weights import Weights
from dca_fast.ops import Ops
from dca_fast.region import Region
from dca_fast.tensors import tensor_of

CACHED_GRAPHS = 16
LARGEST_GRAPH = 1 << 25  # pixels: above, launches cost little beside the work, and a graph keeps its memory
BATCHES = (64, 32, 16, 8, 4, 2, 1)  # pictures of one size that are coded at once, in LARGEST_GRAPH pixels
STRIP_LINES = (None, 64, 16)  # lines of sites that the transforms compute at a time, tried in turn when memory is short
_STREAM_ROOM = 1 << 16  # bytes that a recorded decoder takes beyond one for each pixel
_ALIGNMENT = 256
_PACKED_QUALITIES = 64  # kept on the host, about 100 KiB each

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Size = tuple[int, int]
Fit = Callable[[Tensor], Callable[[], tuple[int, ...]]]  # of a restoration filter to a picture: `CudaEngine._fitting`
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
        return self._decoder.decode(rows.flatten(), trellis=True, last=step == STEPS - 1).view(rows.shape)


def _analyse(
    program: Program, image: Tensor, size: Size, step: Step, fit: Fit | None, lines: int | None
) -> tuple[list[walk.EncoderSource], Tensor | None]:
    """Everything of the encoder before the coder: uint8 [1, H, W, 3] to values and rows of each part of each tile, and
    from effort 1 on the picture that they make.

    Args:
        size: height and width without the padding.
        fit: of effort 1; None: effort 0.
    """
    if fit is None:
        return _plain(program, image, size, step, lines), None
    first = first_pass(program, step, image, size, _EncoderSource, lines)
    return second_pass(program, step, first, _filter(program, fit(first.picture)()), image, size, lines)


def _filter(program: Program, coefficients: tuple[int, ...]) -> Tensor:
    """As the operation takes it; zeros, of rings that are left out, change nothing."""
    w: Tensor = restoration_fit.as_array(program.arrays, coefficients, len(RINGS))
    return w


def _plain(
    program: Program, image: Tensor, size: Size, step: Step, lines: int | None = None
) -> list[walk.EncoderSource]:
    """`_analyse` at effort 0; of a batch [N, H, W, 3], too."""
    y, sources = program.analyse(image, lines), list[walk.EncoderSource]()
    for tile in walk.Grid.of(*size).tiles():
        own = y[tile.sites].contiguous()
        source = _EncoderSource(program, own, program.hyper_analyse(own), step.quantiser(tile.grid.groups))
        walk.code(program, source, tile.grid, len(own))
        sources.append(source)
    return sources


def _walked(program: Program, decoder: DeviceDecoder, grid: walk.Grid) -> Tensor:
    """y_hat of a tile, after `reset` of its decoder, of as many pictures as that has."""
    y_hat: Tensor = walk.code(program, _DecoderSource(decoder), grid, decoder.pictures)
    decoder.close()
    return y_hat


def _synthesise(program: Program, decoders: list[DeviceDecoder], grid: walk.Grid, lines: int | None) -> Tensor:
    """Everything of the decoder after `reset` of those of all tiles: uint8 [N, H, W, 3]."""
    parts = ((tile, _walked(program, decoder, tile.grid)) for tile, decoder in zip(grid.tiles(), decoders, strict=True))
    picture: Tensor = program.synthesise(grid.laid(program.arrays, parts), lines)
    return picture


class _EncoderGraph:
    """Recorded analysis, walk and coder for pictures [N, H, W, 3] of one size and a level of effort.

    At effort 1, of one picture, the host fits the filter that the step sees between two graphs, and the one of the
    picture that it makes while a third graph codes.

    Args:
        step: takes `multipliers`.
        code: starts to encode what the sources of all tiles hold.
    """

    @torch.inference_mode(False)  # what is made here is written to later, in any mode
    def __init__(
        self,
        model: Model,
        image: Tensor,
        size: Size,
        step: Callable[[Tensor], Step],
        code: Callable[[list[walk.EncoderSource]], list[Streams]],
        effort: int,
        aq: int,
    ) -> None:
        self.lock, self.settings, self.image = threading.Lock(), _Settings(model), image.clone()
        program = Program(model, self.settings.views, model.silent).adapted(aq)
        work = program, step(self.settings.views["step"])
        self._kept = work, code  # as in `_DecoderGraph`
        self._first: tuple[torch.cuda.CUDAGraph, Pass] | None = None
        self.streams: list[Streams]  # of each tile
        if effort:
            self._first = record(partial(first_pass, *work, self.image, size, _EncoderSource))
            self._w = torch.zeros(3, 6 * len(RINGS), dtype=torch.int8, device=model.device)
            self._second = record(partial(second_pass, *work, self._first[1], self._w, self.image, size))
            self._graph, self.streams = record(partial(code, self._second[1][0]))
        else:
            self._graph, self.streams = record(lambda: code(_plain(work[0], self.image, size, work[1])))

    def replay(self, fit: Fit) -> Callable[[], tuple[int, ...]]:
        """Everything, of the settings and the image that were copied here; returns what waits for the filter."""
        fitting: Callable[[], tuple[int, ...]] = tuple
        if self._first is not None:
            graph, first = self._first
            graph.replay()
            self._w.copy_(_filter(self._kept[0][0], fit(first.picture)()))
            graph, (_, picture) = self._second
            graph.replay()
            fitting = fit(picture)
        self._graph.replay()
        return fitting


class _DecoderGraph:
    """Recorded walk, entropy decoder and synthesis for pictures of one size; `streams` of each tile, those of all."""

    @torch.inference_mode(False)
    def __init__(
        self, model: Model, coder: DeviceCoder, grid: walk.Grid, aq: int, streams: list[tuple[bytes, ...]]
    ) -> None:
        self.lock, self.settings = threading.Lock(), _Settings(model)
        channels = model.weights.config.latent // 4
        self.decoders = [
            coder.decoder(
                own,
                capacity=len(own) * _capacity(tile.grid),
                positions=len(own) * math.prod(tile.grid.sites) * channels,
            )
            for tile, own in zip(grid.tiles(), streams, strict=True)
        ]
        # A graph knows addresses only: what a program made for itself, as packed weights, must stay.
        self._program = Program(model, self.settings.views, model.silent).adapted(aq)
        self.graph, self.pixels = record(partial(_synthesise, self._program, self.decoders, grid, None))


def _by_grid(keys: Sequence[K]) -> list[tuple[K, list[int]]]:
    """Which pictures have a key, for each key."""
    groups: dict[K, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.items())


def _batches(indices: list[int], grid: walk.Grid, *, together: bool) -> Iterator[list[int]]:
    """Pictures with one grid, as many at a time as there are graphs for; alone if not `together` or of many tiles."""
    most = LARGEST_GRAPH // math.prod(grid.padded) if together and len(grid.tiles()) == 1 else 1
    while indices:
        count = next(n for n in BATCHES if n <= max(1, min(most, len(indices))))
        yield indices[:count]
        indices = indices[count:]


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

    takes_tensors, together = True, BATCHES[0]

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
            self.decode(stream, Header(width, height, 0, b"", 0, aq=aq), Region.whole(height, width))

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
        step = partial(Step, self._adjoint, self.quantiser)
        fit = partial(self._fitting, image, quality)
        with torch.cuda.device(self.device):
            if effort > 1:
                try:
                    return self._in_memory(lambda lines: self._search(image, quality, effort, aq, progress), 2)
                except DeviceMemoryError:
                    on_cpu = self._on_cpu()  # searches need more memory than encoders that go by strips
                    return on_cpu.encode(on_cpu.image(image), quality, effort, aq, progress)
            make = self._recorder([image], grid, step, effort, aq)
            graph = self._graph(_encoder_key((height, width), effort, aq), grid, make)
            if isinstance(graph, _EncoderGraph):
                with graph.lock:  # until the outputs are read: the next replay overwrites them
                    graph.settings.load(quality)
                    self._padded([image], grid, graph.image)
                    coefficients = graph.replay(fit)()
                    ((stream, digest),) = self._joined(graph.streams)
                    return Encoded(stream, digest, coefficients)
            program, at = self._programs.at(quality, aq), step(self._multipliers(quality))
            padded = self._padded([image], grid)
            work = partial(_analyse, program, padded, (height, width), at, fit if effort else None)
            sources, picture = self._in_memory(work)
            fitting: Callable[[], tuple[int, ...]] = tuple if picture is None else fit(picture)
            streams = self._started(grid, sources)
            coefficients = fitting()
            ((stream, digest),) = self._joined(streams)
            return Encoded(stream, digest, coefficients)

    def encode_batch(self, images: Sequence[Tensor], quality: int, effort: int, aq: int) -> list[Encoded]:
        """See `Engine`. At effort 0 pictures with the same latent sites, of one tile, go through one graph together."""
        encoded: dict[int, Encoded] = {}
        for grid, indices in _by_grid([walk.Grid.of(*image.shape[:2]) for image in images]):
            for some in _batches(indices, grid, together=effort == 0):
                if len(some) > 1:
                    own = self._encode_together([images[i] for i in some], grid, quality, aq)
                else:
                    own = [self.encode(images[i], quality, effort, aq) for i in some]
                encoded |= zip(some, own, strict=True)
        return [encoded[i] for i in range(len(images))]

    def _encode_together(self, images: list[Tensor], grid: walk.Grid, quality: int, aq: int) -> list[Encoded]:
        step, size = partial(Step, self._adjoint, self.quantiser), (images[0].shape[0], images[0].shape[1])
        with torch.cuda.device(self.device):
            make = self._recorder(images, grid, step, 0, aq)
            graph = self._graph((f"encode {len(images)}", grid.valid, 0, aq), grid, make)
            if isinstance(graph, _EncoderGraph):
                with graph.lock:
                    graph.settings.load(quality)
                    self._padded(images, grid, graph.image)
                    graph.replay(lambda picture: tuple)
                    return [Encoded(*coded, ()) for coded in self._joined(graph.streams)]
            at = step(self._multipliers(quality))
            work = partial(_plain, self._programs.at(quality, aq), self._padded(images, grid), size, at)
            return [Encoded(*coded, ()) for coded in self._joined(self._started(grid, self._in_memory(work)))]

    def _recorder(
        self, images: list[Tensor], grid: walk.Grid, step: Callable[[Tensor], Step], effort: int, aq: int
    ) -> Callable[[], _EncoderGraph]:
        """What makes the graph of pictures like these."""
        size, code = (images[0].shape[0], images[0].shape[1]), partial(self._started, grid)
        return lambda: _EncoderGraph(self.model, self._padded(images, grid), size, step, code, effort, aq)

    def _padded(self, images: list[Tensor], grid: walk.Grid, out: Tensor | None = None) -> Tensor:
        """Pictures of one grid with its padding, uint8 [N, H, W, 3]; into `out`, if given."""
        if out is None:
            out = torch.empty(len(images), *grid.padded, 3, dtype=torch.uint8, device=self.device)
        for i, image in enumerate(images):
            self.ops.pad_edges(image, *grid.padded, out[i : i + 1])
        return out

    def _search(self, image: Tensor, quality: int, effort: int, aq: int, progress: Progress | None) -> Encoded:
        height, width = image.shape[:2]
        padded = self._padded([image], walk.Grid.of(height, width))
        tools = Tools(self.quantiser, _EncoderSource, self.code, tiles.join, self._adjoint, self._gradient)
        search = Search(tools, self._programs.at(quality, aq), padded, (height, width), quality / QUALITY_ONE)
        best = search.run(effort, progress)
        return Encoded(best.stream, best.digest, best.coefficients)

    def _fitting(self, image: Tensor, quality: int, picture: Tensor) -> Callable[[], tuple[int, ...]]:
        """Starts `restoration_fit.fit`; what it returns waits for the sums, not for what is launched after them."""
        sums = Fetched(restoration_fit.sums_of(self.ops, self.model.arrays, picture[0], image.contiguous()))
        size, bits = (image.shape[0], image.shape[1]), worth(quality / QUALITY_ONE)
        return lambda: restoration_fit.chosen(sums.numpy(), size, bits)

    def quantiser(self, groups: int) -> walk.Quantiser:
        """That of a trellis of streams of so many groups, see `latents.quantiser`."""
        return partial(self._quantise, groups)

    def _quantise(self, groups: int, residuals: Tensor, rows: Tensor) -> Tensor:
        flat = residuals.flatten(), rows.flatten()
        return self.coder.quantise(*flat, self._charges, groups, len(rows)).view(rows.shape)

    def code(self, source: walk.EncoderSource, grid: walk.Grid) -> tuple[bytes, int]:
        """The stream of a tile, and the digest of its symbols."""
        ((stream, digest),) = self._start(source, grid).read()
        return stream, digest

    def _start(self, source: walk.EncoderSource, grid: walk.Grid) -> Streams:
        """Starts to encode a tile of every picture of a batch."""
        return self.coder.start_encode(source.parts, None, grid.groups, source.plain, source.pictures)

    def _started(self, grid: walk.Grid, sources: list[walk.EncoderSource]) -> list[Streams]:
        """Those of all tiles."""
        return [self._start(source, tile.grid) for source, tile in zip(sources, grid.tiles(), strict=True)]

    @staticmethod
    def _joined(streams: list[Streams]) -> list[tuple[bytes, int]]:
        """Waits for the tiles of every picture: stream and digest of each picture."""
        return [tiles.join(own) for own in zip(*(tile.read() for tile in streams), strict=True)]

    def restore(self, picture: Tensor, coefficients: tuple[int, ...]) -> Tensor:
        restored: Tensor = restoration_fit.apply(self.ops, self.arrays, picture, coefficients)
        return restored

    def decode(self, stream: bytes, header: Header, region: Region) -> tuple[Tensor, int]:
        """See `Engine`."""
        height, width = header.height, header.width
        with torch.cuda.device(self.device):
            if region == Region.whole(height, width):
                recorded = self._decode_recorded([stream], [header])
                if recorded:
                    return recorded[0]

            def once(lines: int | None) -> tuple[Tensor, int]:
                program, y_hat, begin, digest = self._latent(stream, header, region)
                return program.synthesise(y_hat, lines)[0][region.of_array(*begin)].contiguous(), digest

            return self._in_memory(once)

    def decode_batch(self, streams: Sequence[bytes], headers: Sequence[Header]) -> list[tuple[Tensor, int]]:
        """See `Engine`. Pictures with the same latent sites, of one tile, one quality and one strength of adaptive
        quantisation go through one graph together."""
        decoded: dict[int, tuple[Tensor, int]] = {}
        grids = [walk.Grid.of(header.height, header.width) for header in headers]
        for (grid, *_), indices in _by_grid([(g, h.quality, h.aq) for g, h in zip(grids, headers, strict=True)]):
            for some in _batches(indices, grid, together=True):
                own = [streams[i] for i in some], [headers[i] for i in some]
                if len(some) > 1:
                    with torch.cuda.device(self.device):
                        decoded |= zip(some, self._decode_recorded(*own) or self._decode_together(*own), strict=True)
                else:
                    region = Region.whole(own[1][0].height, own[1][0].width)
                    decoded[some[0]] = self.decode(own[0][0], own[1][0], region)
        return [decoded[i] for i in range(len(streams))]

    def _decode_recorded(self, streams: list[bytes], headers: list[Header]) -> list[tuple[Tensor, int]] | None:
        """Whole pictures with one grid, by their graph; None if there is none."""
        first, count = headers[0], len(streams)
        grid = walk.Grid.of(first.height, first.width)
        parts = grid.tiles()
        split, digests = zip(*(tiles.split(stream, len(parts)) for stream in streams), strict=True)
        by_tile = list(zip(*split, strict=True))
        for own, tile in zip(by_tile, parts, strict=True):
            if any(len(stream) > _capacity(tile.grid) for stream in own):
                return None
        kind = "decode" if count == 1 else f"decode {count}"
        make = partial(_DecoderGraph, self.model, self.coder, grid, first.aq, by_tile)
        graph = self._graph((kind, *grid, first.aq), grid, make)
        if not isinstance(graph, _DecoderGraph):
            return None
        with graph.lock:
            graph.settings.load(first.quality)
            for decoder, own in zip(graph.decoders, by_tile, strict=True):
                decoder.reset(*own)
            graph.graph.replay()
            pixels = [graph.pixels[i, : h.height, : h.width].clone() for i, h in enumerate(headers)]
            outcomes = zip(*(decoder.check() for decoder in graph.decoders), strict=True)
        return [(p, tiles.checked(d, own)) for p, d, own in zip(pixels, digests, outcomes, strict=True)]

    def _decode_together(self, streams: list[bytes], headers: list[Header]) -> list[tuple[Tensor, int]]:
        """The same of pictures of one tile, launch by launch."""
        first = headers[0]
        grid, program = walk.Grid.of(first.height, first.width), self._programs.at(first.quality, first.aq)

        def once(lines: int | None) -> list[tuple[Tensor, int]]:
            decoder = self.coder.decoder(streams)
            pixels = program.synthesise(_walked(program, decoder, grid), lines)
            own = [pixels[i, : h.height, : h.width].contiguous() for i, h in enumerate(headers)]
            return list(zip(own, decoder.check(), strict=True))

        return self._in_memory(once)

    def preview(self, stream: bytes, header: Header, reduce: int) -> tuple[Tensor, int] | None:
        """See `Engine`."""
        if not self._programs.at(header.quality, header.aq).previews(reduce):
            return None
        height, width = header.height, header.width

        def once(lines: int | None) -> tuple[Tensor, int]:
            program, y_hat, _, digest = self._latent(stream, header, Region.whole(height, width))
            picture = program.preview(y_hat, reduce)[0, : -(-height // reduce), : -(-width // reduce)]
            return picture.contiguous(), digest

        with torch.cuda.device(self.device):
            return self._in_memory(once, 1)

    def _latent(self, stream: bytes, header: Header, region: Region) -> tuple[Program, Tensor, tuple[int, int], int]:
        """The program of a file, and as `tiles.latent`, launch by launch."""
        program = self._programs.at(header.quality, header.aq)

        def walked(own: bytes, grid: walk.Grid) -> tuple[Tensor, int]:
            decoder = self.coder.decoder(own)
            y_hat = _walked(program, decoder, grid)
            return y_hat, decoder.check()[0]

        return program, *tiles.latent(program, stream, walk.Grid.of(header.height, header.width), region, walked)

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
        """`work` with all lines at a time, or with fewer where the device has too little memory, and without graphs."""
        for lines in STRIP_LINES[:tries]:
            try:
                return work(lines)
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error)
            with self._lock:
                self._seen.clear()
            with CAPTURE:
                torch.cuda.empty_cache()
        raise DeviceMemoryError(reason)
