"""Levels of effort, and rate-distortion optimised quantisation: smaller files for more time at the encoder.

Neither the format nor a decoder knows of it. Levels 1 to 3 move a symbol towards zero where the bits saved are worth
the error; from level 4 on y and z are refined by gradients (`dca_fast.refine`) before they are coded as ever.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.config import MAX_EFFORT
from dca_fast.entropy.tables import CENTER, ESCAPE, Tables
from dca_fast.errors import ConfigError
from dca_fast.latents import EncoderSource
from dca_fast.ops.reference import LIMIT_MEAN, MEAN_BITS, requantise
from dca_fast.program import Program

BEST_QUANTISED = 2  # the level that the refined ones must beat
# Bits that a squared error of one quantiser step must save. Theory, for a Gaussian at high rate, says 8.7; but whatever
# moves disturbs the context of what follows, and these are what pays (docs/training.md).
PRICES = {1: 100, 2: 70, 3: 50}
ITERATIONS = {4: 50, 5: 100, 6: 200, 7: 400, 8: 800, 9: 1600}  # of the refinement
Ints = npt.NDArray[np.int64]


def check(effort: object) -> int:
    """The level.

    Raises:
        ConfigError: not a whole number of 0..9.
    """
    if isinstance(effort, bool) or not isinstance(effort, int) or not 0 <= effort <= MAX_EFFORT:
        raise ConfigError(f"effort must be a whole number within 0..{MAX_EFFORT}, got {effort!r}")
    return effort


class OptimisedSource(EncoderSource):
    """Quantises y with the bits of its symbols in view; integers only, so alike on every machine.

    Args:
        program, y, z: as for `EncoderSource`.
        tables: those of the coder.
        price: of `PRICES`.
    """

    def __init__(self, program: Program, y: Tensor, z: dict[str, Tensor], tables: Tables, price: int) -> None:
        super().__init__(program, y, z)
        self._costs, self._shifts, self._price = tables.symbol_costs(), tables.shift, price
        # Of a symbol rounded away from zero, in 1/256 quantiser steps: with less, no saving of bits is worth it.
        self._least = (int(self._costs.max() << MEAN_BITS) // price - (1 << 2 * MEAN_BITS)) >> MEAN_BITS + 1
        self._target = requantise(y, program.gain, LIMIT_MEAN)

    def step(self, step: int, mean: Tensor, rows: Tensor) -> Tensor:
        ops, gain = self._program.ops, self._program.gain
        symbols = ops.quantize(self._y, mean, rows, gain, step)
        away = (ops.quadtree_gather(self._target, step) - mean - (symbols.int() << MEAN_BITS)) * symbols.sign()
        places = torch.nonzero(((away <= self._least) & (symbols != 0)).view(-1)).view(-1).numpy()
        flat = symbols.view(-1).numpy()
        value, row = flat[places].astype(np.int64), rows.view(-1).numpy()[places]
        lower = value - np.sign(value)
        # Squared error in units of 1/65536: (away + 256)^2 - away^2.
        worse = (1 << 2 * MEAN_BITS) + (away.view(-1).numpy()[places].astype(np.int64) << MEAN_BITS + 1)
        saved = self._bits(row, value) - self._bits(row, lower)  # in 1/256
        flat[places] = np.where(saved << MEAN_BITS > self._price * worse, lower, value)
        return self._keep(symbols, rows)

    def _bits(self, row: npt.NDArray[np.uint8], value: Ints) -> Ints:
        bucket = (value >> self._shifts[row]) + CENTER
        outside = (bucket < 0) | (bucket >= ESCAPE)
        found: Ints = self._costs[row, np.where(outside, ESCAPE, bucket)]
        return found
