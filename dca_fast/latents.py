"""The coding walk, written once: hyper latents, then four quadtree steps, with a symbol source as its argument.

The encoder's source quantises and keeps symbols and rows; the decoder's asks the entropy coder. Both see the same
program, so both reconstruct the same y_hat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dca_fast.config import ALIGN, LATENT_STEPS, SKIP_ROW, STEPS, STRIDE, Part
from dca_fast.entropy.coder import Coder, Decoder, choose_groups, crc32
from dca_fast.ops.reference import LIMIT16
from dca_fast.program import Adaptation, Program, compact

ORDER = ("global", "local", "regional")  # of the hyper latents in the stream
_STEP_BITS = LATENT_STEPS.bit_length() - 1


# residuals int32, in 1/256 quantiser steps, and rows uint8 of one shape -> values int16 of a trellis
Quantiser = Callable[[Tensor, Tensor], Tensor]


def quantiser(coder: Coder, charges: np.ndarray, groups: int) -> Quantiser:
    """That of `Coder.quantise` for tensors of any shape."""

    def quantise(residuals: Tensor, rows: Tensor) -> Tensor:
        values = coder.quantise(residuals.numpy().ravel(), rows.numpy().ravel(), charges, groups)
        return torch.from_numpy(values).view(rows.shape)

    return quantise


def sites(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Latent sites (h, w) of the padded image, and those that touch the image; height and width in pixels."""
    h, w = (-(-side // ALIGN) * (ALIGN // STRIDE) for side in (height, width))
    return (h, w), (-(-height // STRIDE), -(-width // STRIDE))


def groups_of(height: int, width: int) -> int:
    """Groups of the stream of an image, which its trellis and its coder must agree on; sides in pixels."""
    return choose_groups(*sites(height, width)[0])


class Source(Protocol):
    """Where symbols come from. `rows` uint8 and the result int16 have one shape."""

    def hyper(self, name: str, part: Part, rows: Tensor, mean: Tensor | None) -> Tensor:
        """Symbols of a part of a hyper latent; mean int16 in 1/256 quantiser steps, None: zero."""

    def step(self, step: int, mean: Tensor, rows: Tensor, adaptation: Adaptation | None) -> Tensor:
        """Values of a quadtree step, of a trellis; mean int32 in 1/256 quantiser steps, rows of steps as adapted."""


def symbol_digest(symbols: np.ndarray, digest: int = 0) -> int:
    """CRC-32 of symbols as little-endian int16, going on from `digest` of the parts before."""
    return int(crc32(np.ascontiguousarray(symbols, "<i2").data, digest))


class EncoderSource:
    """Quantises y and z of one image and keeps (values, rows) of each part, in stream order, and their digest.

    Args:
        program: at the quality.
        y, z: of `analyse` and `hyper_analyse`.
        quantise: what makes values of y's residuals.
    """

    def __init__(self, program: Program, y: Tensor, z: dict[str, Tensor], quantise: Quantiser) -> None:
        self._program, self._y, self._z, self._quantise = program, y, z, quantise
        self.parts: list[tuple[Any, Any]] = []
        self.plain = 0  # parts before those of the trellis
        self.digest = 0

    def again(self, y: Tensor) -> EncoderSource:
        """A source for y that goes on from here, where the hyper latents are coded and no step is."""
        twin = type(self)(self._program, y, self._z, self._quantise)
        twin.parts, twin.plain, twin.digest = list(self.parts), self.plain, self.digest
        return twin

    def _keep(self, symbols: Tensor, rows: Tensor) -> Tensor:
        flat = symbols.flatten().numpy()
        self.parts.append((flat, rows.flatten().numpy()))
        self.digest = symbol_digest(flat, self.digest)
        return symbols

    def hyper(self, name: str, part: Part, rows: Tensor, mean: Tensor | None) -> Tensor:
        z = self._z[name][part.sites]
        if z.device.type != "cpu":
            residuals = z.int() if mean is None else z.int() - mean
            symbols = ((residuals + LATENT_STEPS // 2) >> _STEP_BITS).masked_fill_(rows == SKIP_ROW, 0).short()
        else:  # without PyTorch, see `compact`
            values = z.numpy().astype(np.int32) + LATENT_STEPS // 2
            if mean is not None:
                values -= mean.numpy()
            values >>= _STEP_BITS
            values *= rows.numpy() != SKIP_ROW
            symbols = torch.from_numpy(values.astype(np.int16))
        self.plain += 1
        return self._keep(symbols, rows)

    def step(self, step: int, mean: Tensor, rows: Tensor, adaptation: Adaptation | None) -> Tensor:
        finer = None if adaptation is None else adaptation.finer
        residuals = self._program.ops.residuals(self._y, mean, self._program.gain, step, finer)
        return self._keep(self._quantise(residuals, rows), rows)


class DecoderSource:
    """Takes the symbols of one image from an entropy decoder and keeps their digest."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.digest = 0

    def _take(self, rows: Tensor, trellis: bool = False) -> Tensor:
        symbols = self._decoder.decode(rows.contiguous().flatten().numpy(), trellis)
        self.digest = symbol_digest(symbols, self.digest)
        return torch.from_numpy(symbols).view(rows.shape)

    def hyper(self, name: str, part: Part, rows: Tensor, mean: Tensor | None) -> Tensor:
        return self._take(rows)

    def step(self, step: int, mean: Tensor, rows: Tensor, adaptation: Adaptation | None) -> Tensor:
        return self._take(rows, trellis=True)


def code(program: Program, source: Source, grid: tuple[int, int], valid: tuple[int, int]) -> Tensor:
    """Run the walk for one image.

    Args:
        program: integer network at the file's quality.
        source: see `Source`.
        grid: latent sites (h, w), multiples of 4.
        valid: sites that touch the image, (ceil(H / 16), ceil(W / 16)).

    Returns:
        y_hat int16 [1, h, w, M].
    """
    z = code_hyper(program, source, grid, valid)
    return code_steps(program, source, program.hyper_features(z), grid, valid)


def code_hyper(program: Program, source: Source, grid: tuple[int, int], valid: tuple[int, int]) -> dict[str, Tensor]:
    """The hyper latents as a decoder sees them, as `Program.hyper_features` takes them."""
    z = {}
    shapes = program.hyper_shapes(*grid)
    for name in ORDER:
        if name in shapes:
            z[name] = torch.zeros(1, *shapes[name], dtype=torch.int16, device=program.device)
            for part, row, mean in program.hyper_parts(name, z[name]):
                place = z[name][part.sites]
                # One row for each channel; of the global latent for each channel of each token.
                rows = compact(row.expand(place.shape))
                if name == "local":
                    rows[:, valid[0] :] = SKIP_ROW
                    rows[:, :, valid[1] :] = SKIP_ROW
                _put(place, source.hyper(name, part, rows, mean), mean)
    return z


def _put(place: Tensor, symbols: Tensor, mean: Tensor | None) -> None:
    """Symbols around a mean into their place in z_hat."""
    if place.device.type != "cpu":
        z = symbols.int() * LATENT_STEPS
        place.copy_((z if mean is None else z + mean).clamp_(-LIMIT16, LIMIT16))
    else:  # without PyTorch, see `compact`
        values = symbols.numpy().astype(np.int32) * LATENT_STEPS
        if mean is not None:
            values += mean.numpy()
        place.numpy()[:] = values.clip(-LIMIT16, LIMIT16)


def code_steps(
    program: Program, source: Source, features: dict[str, Tensor], grid: tuple[int, int], valid: tuple[int, int]
) -> Tensor:
    """The four steps; `features` of the hyper latents."""
    # Every step writes a quarter.
    y_hat = torch.empty(1, *grid, program.config.latent, dtype=torch.int16, device=program.device)
    ops, at, coarser = program.ops, None, None
    for step in range(STEPS):
        mean, rows = program.step_parameters(step, y_hat, features, valid)
        if program.aq:
            if at is None:
                at = program.adaptation(rows)
                coarser = at.coarser
            rows = ops.coarser_rows(rows, at.coarse, program.skip)
        symbols = source.step(step, mean, rows, at)
        ops.reconstruct(symbols, mean, program.inverse, step, y_hat, coarser)
    return y_hat


def adaptation(
    program: Program, features: dict[str, Tensor], grid: tuple[int, int], valid: tuple[int, int]
) -> Adaptation | None:
    """What `code_steps` adapts quantisers to, whatever the symbols; None without adaptive quantisation."""
    if not program.aq:
        return None
    y_hat = torch.empty(1, *grid, program.config.latent, dtype=torch.int16, device=program.device)
    return program.adaptation(program.step_parameters(0, y_hat, features, valid)[1])
