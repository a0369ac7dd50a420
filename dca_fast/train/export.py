"""Float network -> integer weights. Everything here runs once, in float64; its result is data.

Units: an operand holds x * 16, a feature of the entropy model x * 256, a channel of the transforms' trunk its
coefficient in grey levels times `COEFFICIENT8` or `COEFFICIENT16`; weights are int8 with a multiplier for each output
channel (int16 in the trunk). `lsb` is what an integer 1 stands for, of each channel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dca_fast.config import (
    FEATURE_ONE,
    FIRST_CODED_ROW,
    LATENT_ONE,
    OPERAND_ONE,
    ROWS_PER_OCTAVE,
    ModelConfig,
)
from dca_fast.entropy.tables import Tables, build_gaussian_tables
from dca_fast.errors import ConfigError, WeightsError
from dca_fast.model.hyper import GlobalHyper, LocalHyper, RegionalHyper
from dca_fast.model.layers import DepthBlock, Depthwise, GatedFfn, Linear, WideLinear, WindowAttention
from dca_fast.model.network import Network
from dca_fast.model.transforms import OUTPUT_GAIN, PIXEL_GAIN, PatchAnalysis, PatchSynthesis
from dca_fast.network import weights as weights_io
from dca_fast.network.layout import LOG2_ONE

# An orthonormal coefficient of 8x8x3 (16x16x3) pixels is at most 128 * sqrt(192) = 1774 (3547) grey levels.
COEFFICIENT8, COEFFICIENT16 = 16, 8
WIDE_LIMIT = 32767  # of one int16 weight or operand
WIDE_SUM = 2**31 - 2**24  # of an accumulator; the margin covers rounding: 32767 / 2 for each weight
# What torch and safetensors raise about files that are not theirs, and Python about what is in them.
UNREADABLE = (OSError, EOFError, RuntimeError, PickleError, SafetensorError)
UNUSABLE = (LookupError, TypeError, AttributeError, ValueError)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Where a file is read that may hold anything, and what it holds is put into a network for the first time.

    Raises:
        WeightsError: for all that torch and safetensors raise then.
    """
    try:
        yield
    except (*UNREADABLE, *UNUSABLE) as error:
        raise WeightsError(f"{path} cannot be read as a float model: {error}") from error


class Exporter:
    """Collects the integer tensors of a network under its module names."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        """Store rounded to `dtype`."""
        value = value.detach().double()
        if dtype != torch.float32:
            limits = torch.iinfo(dtype)
            value = value.round()
            if value.numel() and not (limits.min <= value.min() and value.max() <= limits.max):
                raise WeightsError(f"{name} does not fit {dtype}")
        self.tensors[name] = value.to(dtype).contiguous()

    def table(self, name: str, values: Tensor, one: int, dtype: torch.dtype) -> None:
        """A tensor that is stored in units of 1 / `one`."""
        fixed = values * one
        self.put(name, fixed.clamp(-127, 127) if dtype == torch.int8 else fixed, dtype)

    def linear(self, name: str, layer: Linear, out: Tensor | float) -> None:
        """int8 weights; `out` turns the layer's real output into integers (per output channel or one for all)."""
        w = layer.weight.detach().double()
        multiplier = (w.abs().amax(1) / 127).clamp_min(1e-8)
        self.put(f"{name}.w", w / multiplier[:, None], torch.int8)
        self.put(f"{name}.b", layer.bias.double() * OPERAND_ONE / multiplier, torch.int32)
        self.put(f"{name}.m", multiplier / OPERAND_ONE * out, torch.float32)
        if layer.slope is not None:
            self.put(f"{name}.slope", layer.slope.double() * OPERAND_ONE / multiplier, torch.int32)

    def wide(self, name: str, layer: WideLinear, lsb: Tensor | float, out: Tensor | float) -> None:
        """int16 weights; `lsb` is that of the inputs, `out` as above."""
        out_column = out[:, None] if isinstance(out, Tensor) else out
        w = layer.weight.detach().double() * lsb * out_column
        worst = WIDE_LIMIT * w.abs().sum(1) + (layer.bias.detach().double() * out).abs()
        r = torch.minimum(WIDE_LIMIT / w.abs().amax(1), WIDE_SUM / worst).clamp_max(2.0**20)
        self.put(f"{name}.w", w * r[:, None], torch.int16)
        self.put(f"{name}.b", layer.bias.double() * out * r, torch.int32)
        self.put(f"{name}.m", 1 / r, torch.float32)

    def depthwise(self, name: str, layer: Depthwise) -> None:
        w = layer.weight.detach().double()
        multiplier = (w.abs().flatten(1).amax(1) / 127).clamp_min(1e-8)
        self.put(f"{name}.w", (w / multiplier[:, None, None]).permute(1, 2, 0), torch.int8)
        self.put(f"{name}.b", layer.bias.double() * OPERAND_ONE / multiplier, torch.int32)
        self.put(f"{name}.m", multiplier, torch.float32)

    def unit(self, name: str, block: DepthBlock | GatedFfn, lsb: Tensor | float) -> None:
        """How a block reads its trunk."""
        self.put(name, OPERAND_ONE * lsb / block.unit.double(), torch.float32)

    def position(self, name: str, layer: WindowAttention) -> None:
        """Relative position bias of every pair of sites."""
        self.put(name, layer.position[:, layer.pairs] * OPERAND_ONE, torch.int32)

    def latent(self, network: Network, lsb: Tensor) -> None:
        """`lsb` is that of y, in the latent's own unit."""
        self.put("latent.operand8", lsb * OPERAND_ONE, torch.float32)
        self.put("latent.operand16", lsb * FEATURE_ONE, torch.float32)
        self.put("latent.quantise", lsb * LATENT_ONE, torch.float32)
        self.put("latent.dequantise", 1 / (lsb * LATENT_ONE), torch.float32)
        self.put("latent.log2_gain", network.log2_gain * LOG2_ONE, torch.int32)

    def heads(self, name: str, heads: nn.ModuleList, out: Tensor) -> None:
        """The four group heads stacked; `out` as in `linear`."""
        single = Exporter()
        for i, head in enumerate(heads):
            single.linear(str(i), head, out)
        for key in ("w", "b", "m"):
            self.tensors[f"{name}.{key}"] = torch.stack([single.tensors[f"{i}.{key}"] for i in range(len(heads))])

    def residual(self, name: str, block: DepthBlock | GatedFfn, lsb: Tensor | float) -> None:
        """A block on a trunk with this `lsb`."""
        self.unit(f"{name}.m_in", block, lsb)
        self.linear(f"{name}.expand", block.expand, OPERAND_ONE)
        if isinstance(block, DepthBlock):
            self.depthwise(f"{name}.depthwise", block.depthwise)
        self.linear(f"{name}.project", block.project, block.reach / lsb)

    def blocks(self, name: str, module: nn.Module, lsb: Tensor | float) -> None:
        """Every block and windowed attention below `module`."""
        for key, layer in module.named_modules():
            if isinstance(layer, DepthBlock | GatedFfn):
                self.residual(f"{name}.{key}" if key else name, layer, lsb)
            elif isinstance(layer, WindowAttention):
                self.linear(f"{name}.{key}.qkv", layer.qkv, OPERAND_ONE)
                self.linear(f"{name}.{key}.out", layer.out, FEATURE_ONE)
                self.position(f"{name}.{key}.bias", layer)

    def transforms(self, network: Network) -> None:
        a, s = network.analysis, network.synthesis
        if not isinstance(a, PatchAnalysis) or not isinstance(s, PatchSynthesis):
            raise ConfigError("only the patch transforms have an integer program")
        lsb8, lsb16 = (1 / c / u.double() for c, u in ((COEFFICIENT8, a.unit8), (COEFFICIENT16, a.unit16)))
        self.wide("analysis.embed", a.embed, PIXEL_GAIN, 1 / lsb8)
        self.blocks("analysis.blocks8", a.blocks8, lsb8)
        self.wide("analysis.merge", a.merge, lsb8.repeat(4), 1 / lsb16)
        self.blocks("analysis.blocks16", a.blocks16, lsb16)
        self.blocks("synthesis.blocks16", s.blocks16, lsb16)
        self.wide("synthesis.split", s.split, lsb16, 1 / lsb8.repeat(4))
        self.blocks("synthesis.blocks8", s.blocks8, lsb8)
        self.wide("synthesis.pixels", s.pixels, lsb8, OUTPUT_GAIN)
        self.latent(network, lsb16 / a.unit16.double())

    def local(self, name: str, pair: LocalHyper) -> None:
        self.linear(f"{name}.analysis_in", pair.analysis_in, FEATURE_ONE)
        self.blocks(f"{name}.analysis_blocks", pair.analysis_blocks, 1 / FEATURE_ONE)
        self.linear(f"{name}.analysis_out", pair.analysis_out, FEATURE_ONE)
        self.wide(f"{name}.synthesis_in", pair.synthesis_in, 1 / FEATURE_ONE, FEATURE_ONE)
        self.blocks(f"{name}.synthesis_blocks", pair.synthesis_blocks, 1 / FEATURE_ONE)

    def regional(self, name: str, pair: RegionalHyper) -> None:
        for key in ("analysis_block", "analysis_block2", "synthesis_block"):
            self.blocks(f"{name}.{key}", getattr(pair, key), 1 / FEATURE_ONE)
        for key in ("analysis_in", "analysis_down", "synthesis_up"):
            self.linear(f"{name}.{key}", getattr(pair, key), FEATURE_ONE)
        self.linear(f"{name}.analysis_out", pair.analysis_out, FEATURE_ONE)
        self.wide(f"{name}.synthesis_in", pair.synthesis_in, 1 / FEATURE_ONE, FEATURE_ONE)

    def token(self, name: str, pair: GlobalHyper) -> None:
        self.table(f"{name}.queries", pair.queries, OPERAND_ONE, torch.int8)
        self.linear(f"{name}.analysis_kv", pair.analysis_kv, OPERAND_ONE)
        self.linear(f"{name}.analysis_merge", pair.analysis_merge, FEATURE_ONE)
        self.blocks(f"{name}.analysis_ffn", pair.analysis_ffn, 1 / FEATURE_ONE)
        self.linear(f"{name}.analysis_out", pair.analysis_out, FEATURE_ONE)
        self.wide(f"{name}.synthesis_in", pair.synthesis_in, 1 / FEATURE_ONE, FEATURE_ONE)
        self.linear(f"{name}.synthesis_kv", pair.synthesis_kv, OPERAND_ONE)

    def context(self, network: Network) -> None:
        c = network.context
        for i, layer in enumerate(c.decoded):
            self.wide(f"context.decoded.{i}", layer, 1 / FEATURE_ONE, FEATURE_ONE)
        for i, feature in enumerate(c.feature):
            self.linear(f"context.feature.{i}", feature, FEATURE_ONE)
        if c.local is not None:
            self.linear("context.local", c.local, FEATURE_ONE)
        for i, core in enumerate(c.cores):
            name = f"context.cores.{i}"
            self.blocks(name, core, 1 / FEATURE_ONE)
            if "global" in core.order:
                self.linear(f"{name}.global_attention.query", core.global_attention.query, OPERAND_ONE)
                self.linear(f"{name}.global_attention.out", core.global_attention.out, FEATURE_ONE)
            size = core.heads[0].weight.shape[0] // 2
            # Means for gain 1, scales in 1/16 rows.
            out = torch.tensor([LATENT_ONE] * size + [16 * ROWS_PER_OCTAVE] * size).double()
            self.heads(f"{name}.heads", core.heads, out)

    def network(self, network: Network) -> None:
        """Everything."""
        self.transforms(network)
        exporters = {"local": self.local, "regional": self.regional, "global": self.token}
        for name, pair in network.hyper.items():
            exporters[name](f"hyper.{name}", pair)
            model = network.factorised[name]
            prefix = f"factorised.{name}"
            self.table(f"{prefix}.log2_scale", model.log2_scale, LOG2_ONE, torch.int32)
            self.table(f"{prefix}.log2_gain", model.log2_gain, LOG2_ONE, torch.int32)
            if model.levels:
                self.table(f"{prefix}.log2_wider", model.log2_wider, LOG2_ONE, torch.int32)
                self.put(f"{prefix}.weight", model.weight, torch.float32)
        self.context(network)


def export(network: Network) -> weights_io.Tensors:
    """Integer arrays of a float network with patch transforms.

    Raises:
        ConfigError: the configuration has no integer program.
        WeightsError: a value does not fit its type.
    """
    e = Exporter()
    e.network(network)
    index = torch.arange(LOG2_ONE).double()
    e.put("tables.exp2", torch.exp2(index / LOG2_ONE), torch.float32)
    e.put("tables.softmax", 127 * torch.exp(-torch.arange(256).double() / 16), torch.uint8)
    arrays = {name: tensor.numpy() for name, tensor in e.tensors.items()}
    return arrays | put_tables(build_gaussian_tables())


def put_tables(tables: Tables) -> weights_io.Tensors:
    """Tables of the entropy coder as arrays of the weights."""
    return {"tables.freq": tables.freq.astype("int16"), "tables.shift": tables.shift.copy()}


def load_float(path: Path) -> Network:
    """The averaged float network of a training checkpoint (`.pt`) or of float weights (`.safetensors`).

    Raises:
        WeightsError: not such a file.
    """
    with readable(path):
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as f:
                config = ModelConfig.from_dict(json.loads(f.metadata()["config"]))
                state = {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118 (not a dict)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            config, state = ModelConfig.from_dict(saved["config"]), saved["average"]
        if config.blocks > len(state):
            raise WeightsError(f"{path} lacks most of {config.blocks} blocks")
        with torch.device("meta"):  # what a configuration claims costs nothing
            claimed = Network(config).state_dict()
        if {k: v.shape for k, v in claimed.items()} != {k: v.shape for k, v in state.items()}:
            raise WeightsError(f"{path}: its tensors are not those of its configuration")
        network = Network(config)
        network.load_state_dict(state)
    return network.eval()


def save_float(network: Network, path: Path) -> None:
    """Float weights as float16 safetensors: what a later training starts from."""
    state = {k: v.detach().half().contiguous() for k, v in network.state_dict().items()}
    save_file(state, str(path), {"config": json.dumps(network.config.to_dict())})


def mix(network: Network, other: Network, share: float) -> Network:
    """`network`, its weights replaced by a mean with `other`, which counts `share`.

    Two ends of trainings with a common start are better than either where noise is what parts them
    (docs/experiments/training.md; Wortsman et al., "Model soups", ICML 2022).

    Raises:
        ConfigError: share outside of 0..1.
        WeightsError: another configuration.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"a share is within 0..1, got {share}")
    if network.config != other.config:
        raise WeightsError(f"weights of {network.config.name} and {other.config.name} have different configurations")
    theirs, ours = other.state_dict(), network.state_dict()
    network.load_state_dict(
        {k: v * (1 - share) + theirs[k] * share if v.is_floating_point() else v for k, v in ours.items()}
    )
    return network


def export_checkpoint(checkpoint: Path, out: Path, skip: int = FIRST_CODED_ROW) -> weights_io.Weights:
    """Integer weights of a checkpoint, written to `out` and returned as read back."""
    network = load_float(Path(checkpoint))
    return weights_io.save(Path(out), export(network), network.config, skip)
