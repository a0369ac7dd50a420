"""Which tensors a weights file of a configuration holds: names, types and shapes, known before any is read.

Layers are those of `dca_fast.network.program`; docs/spec/numerics.md says what they do.
"""

from __future__ import annotations

from typing import NamedTuple

from dca_fast.config import STEPS, STRIDE, ModelConfig
from dca_fast.entropy.tables import SYMBOLS, TABLE_ROWS
from dca_fast.errors import WeightsError

ANCHORS = 9  # knots of gains and scales over the quality axis
LOG2_ONE = 4096  # of their log2 in fixed point, and entries of "tables.exp2"
SOFTMAX_ENTRIES = 256  # of "tables.softmax"


class Spec(NamedTuple):
    """A tensor: its NumPy type and shape."""

    dtype: str
    shape: tuple[int, ...]


Layout = dict[str, Spec]


PREVIEWS = (8, 16)  # pixels of a side that become one, where weights may have a layer for it


ENCODER_ONLY = "analysis_"  # how those keys of a configuration begin that no decoder looks at


def is_of_encoder(name: str) -> bool:
    """Whether no decoder reads the tensor: it may change without making older decoders unable to read new files."""
    parts = name.split(".")
    return (
        name.startswith("analysis.")
        or (parts[0] == "hyper" and len(parts) > 2 and parts[2].startswith(("analysis_", "queries")))
        or name in ("latent.operand8", "latent.quantise")
    )


class _Layers:
    """Collects the tensors of layers by their names."""

    def __init__(self) -> None:
        self.tensors: Layout = {}

    def put(self, name: str, dtype: str, *shape: int) -> None:
        self.tensors[name] = Spec(dtype, shape)

    def linear(self, name: str, inputs: int, outputs: int, *, wide: bool = False, conditional: bool = False) -> None:
        self.put(f"{name}.w", "int16" if wide else "int8", outputs, inputs)
        self.put(f"{name}.b", "int32", outputs)
        self.put(f"{name}.m", "float32", outputs)
        if conditional:
            self.put(f"{name}.slope", "int32", outputs)

    def depth(self, name: str, channels: int, hidden: int) -> None:
        self.put(f"{name}.m_in", "float32", channels)
        self.linear(f"{name}.expand", channels, hidden, conditional=True)
        self.put(f"{name}.depthwise.w", "int8", 3, 3, hidden)
        self.put(f"{name}.depthwise.b", "int32", hidden)
        self.put(f"{name}.depthwise.m", "float32", hidden)
        self.linear(f"{name}.project", hidden, channels)

    def gated(self, name: str, channels: int, hidden: int) -> None:
        self.put(f"{name}.m_in", "float32", channels)
        self.linear(f"{name}.expand", channels, 2 * hidden)
        self.linear(f"{name}.project", hidden, channels)

    def block(self, name: str, channels: int, hidden: int) -> None:
        self.depth(f"{name}.depth", channels, hidden)
        self.gated(f"{name}.ffn", channels, hidden)

    def windows(self, name: str, config: ModelConfig) -> None:
        d, area = config.context_width, config.window**2
        for i in range(config.local_blocks):
            self.linear(f"{name}.attention.{i}.qkv", d, 3 * d)
            self.linear(f"{name}.attention.{i}.out", d, d)
            self.put(f"{name}.attention.{i}.bias", "int32", config.heads, area, area)
            self.gated(f"{name}.ffn.{i}", d, d)


def layout(config: ModelConfig) -> Layout:
    """Every tensor of the weights of a configuration, by name.

    Raises:
        WeightsError: the configuration has no integer program.
    """
    if config.transforms != "patch":
        raise WeightsError("only the patch transforms have an integer program")
    layers = _Layers()
    _transforms(layers, config)
    for name in config.latents:
        {"local": _local, "regional": _regional, "global": _global}[name](layers, f"hyper.{name}", config)
        _factorised(layers, name, config)
    _context(layers, config)
    layers.put("tables.exp2", "float32", LOG2_ONE)
    layers.put("tables.softmax", "uint8", SOFTMAX_ENTRIES)
    layers.put("tables.freq", "int16", TABLE_ROWS, SYMBOLS)
    layers.put("tables.shift", "uint8", TABLE_ROWS)
    return layers.tensors


def previews(config: ModelConfig) -> list[Layout]:
    """The tensors that weights hold besides, or do not: those of each reduced picture."""
    parts = []
    for reduce in PREVIEWS:
        layers = _Layers()
        layers.linear(f"preview.{reduce}", config.latent, 3 * (STRIDE // reduce) ** 2, wide=True)
        parts.append(layers.tensors)
    return parts


def _transforms(layers: _Layers, c: ModelConfig) -> None:
    pixels = 3 * 8 * 8
    for name, hidden, counts in (
        ("analysis", c.analysis_hidden or (c.width, c.latent_hidden), c.analysis_blocks),
        ("synthesis", (c.width, c.latent_hidden), c.synthesis_blocks),
    ):
        for i in range(counts[0]):
            layers.block(f"{name}.blocks8.{i}", c.width, hidden[0])
        for i in range(counts[1]):
            layers.block(f"{name}.blocks16.{i}", c.latent, hidden[1])
    layers.linear("analysis.embed", pixels, c.width, wide=True)
    layers.linear("analysis.merge", 4 * c.width, c.latent, wide=True)
    layers.linear("synthesis.split", c.latent, 4 * c.width, wide=True)
    layers.linear("synthesis.pixels", c.width, pixels, wide=True)
    for name in ("operand8", "operand16", "quantise", "dequantise"):
        layers.put(f"latent.{name}", "float32", c.latent)
    layers.put("latent.log2_gain", "int32", ANCHORS, c.latent)


def _local(layers: _Layers, name: str, c: ModelConfig) -> None:
    layers.linear(f"{name}.analysis_in", c.latent, c.context_width, conditional=True)
    layers.windows(f"{name}.analysis_blocks", c)
    layers.linear(f"{name}.analysis_out", c.context_width, c.local)
    layers.linear(f"{name}.synthesis_in", c.local, c.context_width, wide=True)
    layers.windows(f"{name}.synthesis_blocks", c)


def _regional(layers: _Layers, name: str, c: ModelConfig) -> None:
    r = c.regional
    layers.linear(f"{name}.analysis_in", c.latent, r, conditional=True)
    for block in ("analysis_block", "analysis_block2", "synthesis_block"):
        layers.block(f"{name}.{block}", r, r)
    layers.linear(f"{name}.analysis_down", 4 * r, r)
    layers.linear(f"{name}.analysis_out", 4 * r, r)
    layers.linear(f"{name}.synthesis_in", r, 4 * r, wide=True)
    layers.linear(f"{name}.synthesis_up", r, 4 * c.context_width)


def _global(layers: _Layers, name: str, c: ModelConfig) -> None:
    d, size = c.context_width, c.latent // c.tokens
    layers.put(f"{name}.queries", "int8", c.tokens, d)
    layers.linear(f"{name}.analysis_kv", c.latent, 2 * d, conditional=True)
    layers.linear(f"{name}.analysis_merge", d, d)
    layers.gated(f"{name}.analysis_ffn", d, d)
    layers.linear(f"{name}.analysis_out", d, size)
    layers.linear(f"{name}.synthesis_in", size, d, wide=True)
    layers.linear(f"{name}.synthesis_kv", d, 2 * d)


def _factorised(layers: _Layers, name: str, c: ModelConfig) -> None:
    channels, kinds = {"local": c.local, "regional": c.regional, "global": c.latent}[name], 2 * c.levels(name)
    for table in ("log2_scale", "log2_gain"):
        layers.put(f"factorised.{name}.{table}", "int32", ANCHORS, channels)
    if kinds:
        layers.put(f"factorised.{name}.log2_wider", "int32", kinds, channels)
        layers.put(f"factorised.{name}.weight", "float32", kinds, channels)


def _context(layers: _Layers, c: ModelConfig) -> None:
    d, outputs = c.context_width, c.latent // 2  # of a head: means, then scales, of a channel group
    for i in range(STEPS - 1):
        layers.linear(f"context.decoded.{i}", c.latent, d, wide=True)
    for i in range(STEPS):
        layers.linear(f"context.feature.{i}", d, d, conditional=True)
    if "local" in c.contexts:
        layers.linear("context.local", d, d)
    for i in range(1 if c.shared else STEPS):
        name = f"context.cores.{i}"
        for k in range(c.context_blocks):
            layers.block(f"{name}.regional_blocks.{k}", d, d)
        if "global" in c.contexts:
            layers.linear(f"{name}.global_attention.query", d, d)
            layers.linear(f"{name}.global_attention.out", d, d)
            layers.gated(f"{name}.global_ffn", d, d)
        if "local" in c.contexts:
            layers.gated(f"{name}.local_ffn", d, d)
        layers.put(f"{name}.heads.w", "int8", 4, outputs, d)
        layers.put(f"{name}.heads.b", "int32", 4, outputs)
        layers.put(f"{name}.heads.m", "float32", 4, outputs)
