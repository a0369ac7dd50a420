"""Networks of other shapes than the shipped one, whose weights are drawn: without PyTorch, and without training."""

from typing import Any

import numpy as np

from dca_fast.config import ModelConfig
from dca_fast.entropy.tables import build_gaussian_tables
from dca_fast.network import weights
from dca_fast.network.layout import layout

SMALL: dict[str, Any] = {
    "width": 32,
    "latent": 64,
    "latent_hidden": 32,
    "context_width": 32,
    "heads": 2,
    "local": 4,
    "regional": 16,
    "regional_levels": 2,
    "tokens": 4,
    "local_blocks": 2,
}


def drawn_weights(config: ModelConfig) -> weights.Tensors:
    """Weights of a configuration that were drawn: features of some hundreds, operands of some tens."""
    generator = np.random.default_rng(7)
    out: weights.Tensors = {}
    for name, (dtype, shape) in layout(config).items():
        kind, inputs = name.split(".")[-1], shape[-1]
        if dtype == "float32":
            wide = name.startswith(("synthesis.split", "synthesis.pixels", "context.decoded", "analysis.embed"))
            wide |= "synthesis_in" in name or "merge" in name.split(".")[1]
            operands = any(part in name for part in ("expand", "qkv", "query", "_kv", "depthwise"))
            size = (0.06 if wide else 1.0) * (1 if operands else 12) / 73 / np.sqrt(shape[-1])
            size = {"m": size, "m_in": 1 / 16}.get(kind, 1.0)
            out[name] = (size * generator.uniform(0.5, 1.5, shape)).astype(np.float32)
        elif kind == "w":
            most = 127 if dtype == "int8" else 60000 // inputs
            out[name] = generator.integers(-most, most + 1, shape).astype(dtype)
        else:
            out[name] = generator.integers(-3000, 3000, shape).astype(dtype)
    out["tables.exp2"] = np.exp2(np.arange(4096) / 4096).astype(np.float32)
    out["tables.softmax"] = (127 * np.exp(-np.arange(256) / 16)).round().astype(np.uint8)
    tables = build_gaussian_tables()
    return out | {"tables.freq": tables.freq.astype(np.int16), "tables.shift": tables.shift}
