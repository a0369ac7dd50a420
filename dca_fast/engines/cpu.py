"""The codec on a CPU: NumPy arrays and C++ kernels, or PyTorch tensors and the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.config import ALIGN, TRELLIS_PRICE
from dca_fast.encoder import restoration_fit
from dca_fast.encoder.effort import Search, Step, Tools, first_pass, second_pass, step_multipliers, worth
from dca_fast.encoder.full_gradient import Gradient
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines import Encoded, Progress
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import Tables
from dca_fast.files.container import Header
from dca_fast.network import walk
from dca_fast.network.program import QUALITY_ONE, Program, ProgramSet
from dca_fast.network.weights import Weights
from dca_fast.ops import Array, Ops
from dca_fast.tensors import is_tensor


class CpuEngine:
    """See `Engine`.

    Args:
        weights: checked integer weights.
        ops: "native" or "reference".
        tables: of the entropy coder, those of the weights.
        threads: how many this process may use; asked before every picture.
    """

    takes_tensors, device = False, "cpu"

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
        height, width = image.shape[:2]
        if height % ALIGN or width % ALIGN:
            host = self.arrays.numpy(image)
            image = self.arrays.array(np.pad(host, ((0, -height % ALIGN), (0, -width % ALIGN), (0, 0)), mode="edge"))
        return image[None]

    def encode(self, image: Array, quality: int, effort: int, aq: int, progress: Progress | None = None) -> Encoded:
        size = image.shape[0], image.shape[1]
        groups = walk.Grid.of(*size).groups
        if effort > 1:
            tools = Tools(
                self.quantiser(groups),
                walk.EncoderSource,
                lambda source: (self.coder.encode(source.parts, groups=groups, plain=source.plain), source.digest),
                self.adjoint,
                self.gradient,
            )
            program = self.program(quality, aq)
            best = Search(tools, program, self.padded(image), size, quality / QUALITY_ONE).run(effort, progress)
            return Encoded(best.stream, best.digest, best.weights)
        symbols, picture = self.symbols(image, quality, effort, aq)
        stream = self.coder.encode(symbols.parts, groups=groups, plain=symbols.plain)
        return Encoded(stream, symbols.digest, () if picture is None else self.fit(picture, image, quality))

    def symbols(self, image: Array, quality: int, effort: int, aq: int) -> tuple[walk.EncoderSource, Array | None]:
        """Everything of the encoder before the entropy coder, and from effort 1 on the picture [1, H, W, 3] that it
        makes; arguments as of `encode`, effort 0 or 1."""
        program, padded = self.program(quality, aq), self.padded(image)
        size = image.shape[0], image.shape[1]
        grid = walk.Grid.of(*size)
        quantise = self.quantiser(grid.groups)
        if effort:
            m = step_multipliers(program.arrays.numpy(program.gain), quality / QUALITY_ONE)
            step = Step(self.adjoint, quantise, program.arrays.array(m))
            first = first_pass(program, step, padded, size)
            weights = self.fit(first.picture, image, quality)
            w = restoration_fit.as_array(program.arrays, weights) if weights else None
            return second_pass(program, step, first, w, padded, size)
        y = program.analyse(padded)
        source = walk.EncoderSource(program, y, program.hyper_analyse(y), quantise)
        walk.code(program, source, grid)
        return source, None

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

    def decode(self, stream: bytes, header: Header) -> tuple[Array, int]:
        program = self.program(header.quality, header.aq)
        decoder = self.coder.decoder(stream)
        source = walk.DecoderSource(program.arrays, decoder)
        y_hat = walk.code(program, source, walk.Grid.of(header.height, header.width))
        decoder.finish()
        return program.synthesise(y_hat)[0, : header.height, : header.width], source.digest

    def restore(self, picture: Array, weights: tuple[int, ...]) -> Array:
        return restoration_fit.apply(self.ops, self.arrays, picture, weights)

    def warm_up(self, height: int, width: int, effort: int, aq: int) -> None:
        """There is nothing to prepare."""
