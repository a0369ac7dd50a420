"""The codec on a CPU: NumPy arrays and C++ kernels, or PyTorch tensors and the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.config import STRIDE, TRELLIS_PRICE
from dca_fast.encoder import restoration_fit
from dca_fast.encoder.effort import Search, Step, Tools, first_pass, second_pass, step_multipliers, worth
from dca_fast.encoder.full_gradient import Gradient
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines import Encoded, Progress, tiles
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import Tables
from dca_fast.files.container import Header
from dca_fast.network import walk
from dca_fast.network.program import QUALITY_ONE, Program, ProgramSet
from dca_fast.network.weights import Weights
from dca_fast.ops import Array, Ops
from dca_fast.region import Region
from dca_fast.tensors import is_tensor

STRIP_PIXELS = 1 << 23  # that the transforms compute at a time, about; fewer take less memory and some more work


def _lines(width: int) -> int:
    """Lines of sites of a strip, for pictures of so many columns."""
    return max(1, STRIP_PIXELS // (STRIDE * width))


class CpuEngine:
    """See `Engine`.

    Args:
        weights: checked integer weights.
        ops: "native" or "reference".
        tables: of the entropy coder, those of the weights.
        threads: how many this process may use; asked before every picture.
    """

    takes_tensors, together, device = False, 1, "cpu"

    def __init__(self, weights: Weights, ops: Ops, tables: Tables, threads: Callable[[], int]) -> None:
        self.ops, self.weights, self.tables, self._threads = ops, weights, tables, threads
        self.coder = Coder(tables, "python" if ops.name == "reference" else "native", threads=threads())
        self._programs = ProgramSet(weights, ops)
        self.arrays = self._programs.model.arrays

    def program(self, quality: int, aq: int = 0) -> Program:
        """The integer network at a quality in 1/100 and a strength of adaptive quantisation, 0..15."""
        if self.ops.name == "native":
            from dca_fast.ops.native import set_threads

            self.coder.threads = self._threads()  # of this process, which may be a fork of the one that made the engine
            set_threads(self.coder.threads)
        return self._programs.at(quality, aq)

    def image(self, pixels: Any) -> Array:
        host: npt.NDArray[np.uint8] = pixels.cpu().numpy() if is_tensor(pixels) else pixels
        return self.arrays.array(np.ascontiguousarray(host))

    def padded(self, image: Array) -> Array:
        """uint8 [1, H, W, 3] with sides that are multiples of 64."""
        return self.ops.pad_edges(image, *walk.Grid.of(*image.shape[:2]).padded)

    def encode(self, image: Array, quality: int, effort: int, aq: int, progress: Progress | None = None) -> Encoded:
        size = image.shape[0], image.shape[1]
        if effort > 1:
            tools = Tools(self.quantiser, walk.EncoderSource, self._coded, tiles.join, self.adjoint, self.gradient)
            program = self.program(quality, aq)
            best = Search(tools, program, self.padded(image), size, quality / QUALITY_ONE).run(effort, progress)
            return Encoded(best.stream, best.digest, best.coefficients)
        coded, picture = self.symbols(image, quality, effort, aq, self._coded)
        return Encoded(*tiles.join(coded), () if picture is None else self.fit(picture, image, quality))

    def symbols(
        self,
        image: Array,
        quality: int,
        effort: int,
        aq: int,
        finish: Callable[[walk.EncoderSource, walk.Grid], Any] = lambda source, grid: source,
    ) -> tuple[list[Any], Array | None]:
        """Everything of the encoder before the entropy coder.

        Args:
            image, quality, effort, aq: as of `encode`, effort 0 or 1.
            finish: what is kept of the source of each tile and its grid; default: the source.

        Returns:
            What is kept, and from effort 1 on the picture [1, H, W, 3] that it makes.
        """
        program, padded = self.program(quality, aq), self.padded(image)
        size, lines = (image.shape[0], image.shape[1]), _lines(image.shape[1])
        if effort:
            m = step_multipliers(program.arrays.numpy(program.gain), quality / QUALITY_ONE)
            step = Step(self.adjoint, self.quantiser, program.arrays.array(m))
            first = [first_pass(program, step, padded, size, lines=lines)]
            coefficients = self.fit(first[0].picture, image, quality)
            w = restoration_fit.as_array(program.arrays, coefficients) if coefficients else None
            return second_pass(program, step, first.pop(), w, padded, size, lines, finish)
        y = program.analyse(padded, lines)
        kept = []
        for tile in walk.Grid.of(*size).tiles():
            own = program.arrays.contiguous(y[tile.sites])
            source = walk.EncoderSource(program, own, program.hyper_analyse(own), self.quantiser(tile.grid.groups))
            walk.code(program, source, tile.grid)
            kept.append(finish(source, tile.grid))
        return kept, None

    def _coded(self, source: walk.EncoderSource, grid: walk.Grid) -> tuple[bytes, int]:
        """The stream of a tile, and its digest."""
        return self.coder.encode(source.parts, groups=grid.groups, plain=source.plain), source.digest

    def fit(self, picture: Array, image: Array, quality: int) -> tuple[int, ...]:
        """The restoration filter from the decoded picture [1, H, W, 3] to the image; quality in 1/100."""
        return restoration_fit.fit(self.ops, self.arrays, picture[0], image, worth(quality / QUALITY_ONE))

    def quantiser(self, groups: int) -> walk.Quantiser:
        """That of streams of so many groups."""
        return walk.quantiser(self.arrays, self.coder, self.charges, groups)

    @cached_property
    def charges(self) -> npt.NDArray[np.int32]:
        """What indices cost the search of the trellis, see `Tables.charges`."""
        return self.tables.charges(1 / TRELLIS_PRICE)

    @cached_property
    def adjoint(self) -> Adjoint:
        """The linear part of f_s backwards."""
        return Adjoint(self.weights, self.ops)

    @cached_property
    def gradient(self) -> Gradient:
        """All of f_s backwards."""
        return Gradient(self.adjoint, self.ops)

    def decode(self, stream: bytes, header: Header, region: Region) -> tuple[Array, int]:
        program, y_hat, begin, digest = self.latent(stream, header, region)
        picture = program.synthesise(y_hat, _lines(y_hat.shape[2] * STRIDE))
        return picture[0][region.of_array(*begin)], digest

    def encode_batch(self, images: Sequence[Array], quality: int, effort: int, aq: int) -> list[Encoded]:
        return [self.encode(image, quality, effort, aq) for image in images]

    def decode_batch(self, streams: Sequence[bytes], headers: Sequence[Header]) -> list[tuple[Array, int]]:
        pairs = zip(streams, headers, strict=True)
        return [self.decode(stream, header, Region.whole(header.height, header.width)) for stream, header in pairs]

    def preview(self, stream: bytes, header: Header, reduce: int) -> tuple[Array, int] | None:
        if not self.program(header.quality, header.aq).previews(reduce):
            return None
        program, y_hat, _, digest = self.latent(stream, header, Region.whole(header.height, header.width))
        picture = program.preview(y_hat, reduce)
        return picture[0, : -(-header.height // reduce), : -(-header.width // reduce)], digest

    def latent(self, stream: bytes, header: Header, region: Region) -> tuple[Program, Array, tuple[int, int], int]:
        """The program of a file, and as `tiles.latent`."""
        program = self.program(header.quality, header.aq)

        def walked(own: bytes, grid: walk.Grid) -> tuple[Array, int]:
            decoder = self.coder.decoder(own)
            source = walk.DecoderSource(program.arrays, decoder)
            y_hat = walk.code(program, source, grid)
            decoder.finish()
            return y_hat, source.digest

        return program, *tiles.latent(program, stream, walk.Grid.of(header.height, header.width), region, walked)

    def restore(self, picture: Array, coefficients: tuple[int, ...]) -> Array:
        return restoration_fit.apply(self.ops, self.arrays, picture, coefficients)

    def warm_up(self, height: int, width: int, effort: int, aq: int) -> None:
        """There is nothing to prepare."""
