"""Levels of encoder effort: smaller files for more time. Neither the format nor a decoder knows of it.

Levels 1 to 3 are rate-distortion optimised quantisation: a symbol moves one towards zero where the bits saved are worth
the error. From level 4 on y and z are refined by gradients (`dca_fast.refine`) before they are coded.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch

from dca_fast.config import MAX_EFFORT
from dca_fast.entropy.tables import Tables
from dca_fast.errors import ConfigError
from dca_fast.ops import Pricing

# Bits that a squared error of one quantiser step must save. Theory, for a Gaussian at high rate, says 8.7; but whatever
# moves disturbs the context of what follows, and these are what pays (docs/effort.md).
PRICES = {1: 150, 2: 100, 3: 70}
ITERATIONS = {4: 25, 5: 50, 6: 100, 7: 200, 8: 400, 9: 800}  # of the refinement
RIVALS = 0, 3  # the levels that the refined ones must beat


def check(effort: object) -> int:
    """The level.

    Raises:
        ConfigError: not a whole number of 0..9.
    """
    if isinstance(effort, bool) or not isinstance(effort, Integral) or not 0 <= int(effort) <= MAX_EFFORT:
        raise ConfigError(f"effort must be a whole number within 0..{MAX_EFFORT}, got {effort!r}")
    return int(effort)


def pricings(tables: Tables, device: torch.device | str = "cpu") -> dict[int, Pricing | None]:
    """What levels 0 to 3 price symbols with."""
    costs = torch.from_numpy(tables.symbol_costs().astype(np.int32)).to(device)
    shift = torch.from_numpy(tables.shift.copy()).to(device)
    return {0: None} | {level: Pricing(costs, shift, price) for level, price in PRICES.items()}
