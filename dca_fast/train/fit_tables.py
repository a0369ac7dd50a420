"""Tables of the entropy coder fitted to photographs: what the scales leave out of the symbols' real distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from dca_fast.codec import Codec
from dca_fast.engines.cpu import CpuEngine
from dca_fast.entropy.tables import SYMBOLS, TABLE_ROWS, Tables, fit_tables
from dca_fast.network import weights as weights_io
from dca_fast.network.program import QUALITY_RANGE
from dca_fast.network.weights import Weights
from dca_fast.train.data import Crops
from dca_fast.train.export import put_tables

CROPS, SIZE = 256, 256
ROUNDS = 6
SEED = 0


def count_symbols(codec: Codec, photographs: Crops, crops: int = CROPS) -> np.ndarray:
    """How often each symbol of each row occurs, over all qualities alike: int64 [384, 256]."""
    counts, tables = np.zeros((TABLE_ROWS, SYMBOLS), np.int64), codec.tables
    generator, engine = np.random.default_rng(SEED), codec.engine
    assert isinstance(engine, CpuEngine)
    for i in track(range(crops), "fitting tables", console=Console(stderr=True)):
        pixels = (photographs.batch(generator, 1, SIZE)[0] + 128).byte().numpy()
        quality = round((i + 0.5) / crops * QUALITY_RANGE)
        (source,), _ = engine.symbols(engine.image(pixels), quality, 1, 0)
        for part, (values, rows) in enumerate(source.parts):
            symbols, table_rows = tables.coded(values, rows, None if part < source.plain else 1)
            np.add.at(counts, (table_rows, symbols), 1)
    return counts


def fit(path: Path, photographs: Crops, crops: int = CROPS, rounds: int = ROUNDS) -> Weights:
    """Replace the tables in a file of integer weights by ones fitted to photographs.

    The search of the trellis takes what the tables make cheap, and what it took they make cheaper: each round counts
    anew with the tables of the last one, towards quantiser and code that fit each other (Chou, Lookabaugh and Gray,
    "Entropy-constrained vector quantization", IEEE Trans. ASSP 1989).

    Returns:
        The weights, with their new model id.
    """
    weights = weights_io.load(path)
    for _ in range(rounds):
        tables: Tables = fit_tables(count_symbols(Codec(weights=path), photographs, crops))
        weights = weights_io.save(path, weights.tensors | put_tables(tables), weights.config, weights.skip)
    return weights
