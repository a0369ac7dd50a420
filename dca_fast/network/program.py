"""The integer program: what the codec computes, encoder and decoder, bit-identical on every machine.

    patches -> embed, merge, blocks -> y        (int16, coefficients in fixed point)
    y -> l_a, r_a, g_a -> z                     (int16, 1/256 of a quantiser step; coded: symbols)
    z -> l_s, r_s, g_s -> phi                   (int16 features; keys and values of the tokens int8)
    per step: y_hat, phi -> c -> mean, row      (int32, 1/256 of a quantiser step; uint8)
    y_hat -> blocks, split, pixels -> patches   (uint8)

It is written once, over an `Ops` record, so reference and fast backends differ in nothing else. Reference: DCA
(arXiv 2411.05832), sections 3.1 and 3.2; number formats: docs/spec/numerics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dca_fast.config import (
    AQ_REACH,
    FEATURE_ONE,
    OPERAND_ONE,
    QUALITY_MAX,
    ROWS_PER_OCTAVE,
    SCALE_MIN,
    SKIP_ROW,
    STRIDE,
    ModelConfig,
    Part,
    coarse_to_fine,
)
from dca_fast.network.layout import LOG2_ONE
from dca_fast.network.weights import Weights
from dca_fast.ops import (
    Array,
    DepthBlockParams,
    Depthwise,
    GatedFfnParams,
    Head,
    Linear,
    Ops,
    TokenParams,
    WindowParams,
)
from dca_fast.ops.limits import MAX_ROW

QUALITY_ONE = 100  # a file holds quality * 100
QUALITY_RANGE = int(QUALITY_MAX) * QUALITY_ONE
GATE = 1 / OPERAND_ONE  # product of two operands -> operand
_ROW_OFFSET = round(-math.log2(SCALE_MIN) * LOG2_ONE)
CACHED_QUALITIES = 8


def interpolate(knots: np.ndarray, quality: int) -> np.ndarray:
    """Piecewise linear in integers. knots int64 [A, C]; quality in 1/100, 0..10000; returns int64 [C]."""
    position = quality * (knots.shape[0] - 1)
    low = min(position // QUALITY_RANGE, knots.shape[0] - 2)
    f = position - low * QUALITY_RANGE
    return (knots[low] * (QUALITY_RANGE - f) + knots[low + 1] * f + QUALITY_RANGE // 2) // QUALITY_RANGE


def exp2(table: np.ndarray, log2: np.ndarray) -> np.ndarray:
    """2 ** (log2 / 4096) as float32 [C]: a table entry times a power of two, exact on every machine."""
    return np.ldexp(table[log2 & (LOG2_ONE - 1)], (log2 >> 12).astype(np.int32)).astype(np.float32)


def settings(weights: Weights, quality: int) -> dict[str, npt.NDArray[Any]]:
    """Everything in the network that depends on the quality, by name.

    Args:
        weights: checked integer weights.
        quality: in 1/100, 0..10000.

    Returns:
        "gain" and "inverse" float32 [M] of y; of each head "*.m_mean" float32 and "*.offset" int32 [4, G]; of each
        hyper latent "gain.*" and "inverse.*" float32 [C], to 1/256 of its quantiser step and back, and "rows.*" uint8
        [1 + 2 levels, C], of sites without a mean and of each kind with one, SKIP_ROW where not worth coding; the bias
        "*.b" int32 [O] of each layer that is conditioned on the quality.
    """
    t = weights.tensors
    out: dict[str, npt.NDArray[Any]] = {}
    table = t["tables.exp2"]

    def log2_of(name: str) -> np.ndarray:
        return interpolate(t[name].astype(np.int64), quality)

    log2 = log2_of("latent.log2_gain")
    gain = exp2(table, log2)
    quantise = t.get("latent.quantise", np.zeros_like(t["latent.dequantise"]))  # weights without an encoder lack it
    out["gain"], out["inverse"] = quantise * gain, t["latent.dequantise"] * exp2(table, -log2)
    groups = gain.reshape(4, -1)
    offset = ((log2 + _ROW_OFFSET) * 16 * ROWS_PER_OCTAVE + LOG2_ONE // 2) // LOG2_ONE
    for i in range(1 if weights.config.shared else 4):
        name = f"context.cores.{i}.heads"
        out[f"{name}.m_mean"] = t[f"{name}.m"][:, : groups.shape[1]] * groups
        out[f"{name}.offset"] = offset.reshape(4, -1).astype(np.int32)
    for name in weights.config.latents:
        scale = log2_of(f"factorised.{name}.log2_scale")[None]
        if weights.config.levels(name):
            scale = np.concatenate([scale, scale + t[f"factorised.{name}.log2_wider"]])
        rows = ((scale + _ROW_OFFSET) * ROWS_PER_OCTAVE + LOG2_ONE // 2) // LOG2_ONE
        out[f"rows.{name}"] = np.where(rows < weights.skip, SKIP_ROW, rows.clip(0, MAX_ROW)).astype(np.uint8)
        gain = log2_of(f"factorised.{name}.log2_gain")
        out[f"gain.{name}"], out[f"inverse.{name}"] = exp2(table, gain), exp2(table, -gain)
    half = QUALITY_RANGE // 2
    for name, slope in t.items():
        if name.endswith(".slope"):
            bias = name.removesuffix(".slope") + ".b"
            change = (slope.astype(np.int64) * (quality - half) + half // 2) // half
            out[bias] = (t[bias] + change).astype(np.int32)
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


def silent(values: Mapping[str, npt.NDArray[Any]]) -> frozenset[str]:
    """Hyper latents with no symbol worth coding, from `settings` of a quality."""
    named = (key for key, rows in values.items() if key.startswith("rows.") and (rows == SKIP_ROW).all())
    return frozenset(key.removeprefix("rows.") for key in named)


class Adaptation(NamedTuple):
    """How y is quantised at each site, [1, h, w]: so many rows `coarse` (int8), which makes steps `coarser` times as
    large and values in steps `finer` times (float32)."""

    coarse: Array
    coarser: Array
    finer: Array


class Model:
    """What serves every quality: the weights as a backend's arrays and the layers made of them on first use.

    Args:
        device: of the arrays; "cpu", or a CUDA device.
    """

    def __init__(self, weights: Weights, ops: Ops, device: Any = "cpu") -> None:
        self.weights, self.ops, self.device, self.arrays = weights, ops, device, ops.arrays(device)
        array = self.arrays.array
        self.tensors: dict[str, Array] = {name: array(tensor) for name, tensor in weights.tensors.items()}
        self.linear: dict[str, Linear] = {}
        self.depthwise: dict[str, Depthwise] = {}
        widest = max(tensor.shape[-1] for name, tensor in weights.tensors.items() if name.endswith(".w"))
        rows = np.arange(-AQ_REACH, AQ_REACH + 1) * LOG2_ONE
        log2 = (2 * rows + ROWS_PER_OCTAVE) // (2 * ROWS_PER_OCTAVE)
        factors = np.stack([exp2(weights.tensors["tables.exp2"], sign * log2) for sign in (1, -1)])
        self.factors = array(factors)  # 2^(r / 12) and 2^(-r / 12), r from -AQ_REACH on
        # Weights of one to four sites around, of hyper latents that are coded from coarse to fine: [kinds, 4, C].
        self.neighbours: dict[str, Array] = {}
        for name in weights.config.latents:
            if weights.config.levels(name):
                weight = weights.tensors[f"factorised.{name}.weight"]
                self.neighbours[name] = array(weight[:, None] / np.arange(1, 5, dtype=np.float32)[:, None])
        self.to_operand = array(np.full(widest, OPERAND_ONE / FEATURE_ONE, np.float32))

    @cached_property
    def silent(self) -> frozenset[str]:
        """Hyper latents that are `silent` at every quality: scales are linear between knots."""
        last = self.weights.tensors["latent.log2_gain"].shape[0] - 1
        knots = (QUALITY_RANGE * i // last for i in range(last + 1))
        return frozenset.intersection(*(silent(settings(self.weights, quality)) for quality in knots))


class Program:
    """The integer network at one quality and one strength `aq`, 0..15, of adaptive quantisation.

    Args:
        model: weights and backend.
        settings: what `settings` gives for the quality, as arrays of the model.
        silent: hyper latents with no symbol worth coding at this quality, all zero: they need no analysis, and no
            attention to sites or global tokens that are all alike.
    """

    def __init__(self, model: Model, settings: Mapping[str, Array], silent: frozenset[str] = frozenset()) -> None:
        self.config: ModelConfig = model.weights.config
        self.ops, self.skip = model.ops, model.weights.skip
        self.device, self.arrays = model.device, model.arrays
        self._t: Mapping[str, Array] = model.tensors
        self._shared, self._settings, self._silent = model, settings, silent
        # By name, built once: a lookup takes a fraction of what making one does, and there are a hundred in a picture.
        self._layers: dict[str, Linear] = {}
        self._params: dict[str, Any] = {}
        self.contexts = self.config.latents
        self.stages = self.config.stages
        self._table = self._t["tables.softmax"]
        d = self.config.context_width // self.config.heads
        self._score = float(np.float32(OPERAND_ONE / (OPERAND_ONE**2 * math.sqrt(d))))
        self.gain, self.inverse = settings["gain"], settings["inverse"]
        self.hyper_rows = {name: settings[f"rows.{name}"] for name in self.contexts}
        self._parts = {name: coarse_to_fine(self.config.levels(name)) for name in self.contexts}
        self._heads = [self._head(f"context.cores.{i}.heads") for i in range(1 if self.config.shared else 4)]
        self.aq = 0

    def adapted(self, aq: int) -> Program:
        """The same with another strength of adaptive quantisation, 0..15."""
        if aq == self.aq:
            return self
        twin = copy(self)
        twin.aq = aq
        return twin

    # Layers by name, built once.

    def _head(self, name: str) -> Head:
        t, s = self._t, self._settings
        size = s[f"{name}.offset"].shape[1]
        m_scale = self.arrays.contiguous(t[f"{name}.m"][:, size:])
        return Head(t[f"{name}.w"], t[f"{name}.b"], s[f"{name}.m_mean"], m_scale, s[f"{name}.offset"])

    def _linear(self, name: str) -> Linear:
        if name not in self._layers:
            t, bias = self._t, self._settings.get(f"{name}.b")
            layers = self._shared.linear if bias is None else self._layers
            if name not in layers:
                layers[name] = Linear(t[f"{name}.w"], t[f"{name}.b"] if bias is None else bias, t[f"{name}.m"])
            self._layers[name] = layers[name]
        return self._layers[name]

    def _depthwise(self, name: str) -> Depthwise:
        layers = self._shared.depthwise
        if name not in layers:
            layers[name] = Depthwise(*(self._t[f"{name}.{k}"] for k in "wbm"))
        return layers[name]

    def _depth(self, name: str) -> DepthBlockParams:
        if name not in self._params:
            self._params[name] = DepthBlockParams(
                self._t[f"{name}.m_in"],
                self._linear(f"{name}.expand"),
                self._depthwise(f"{name}.depthwise"),
                self._linear(f"{name}.project"),
            )
        return self._params[name]

    def _gated(self, name: str) -> GatedFfnParams:
        if name not in self._params:
            self._params[name] = GatedFfnParams(
                self._t[f"{name}.m_in"], self._linear(f"{name}.expand"), GATE, self._linear(f"{name}.project")
            )
        return self._params[name]

    def _ffn(self, x: Array, name: str) -> Array:
        return self.ops.gated_ffn(x, self._gated(name))

    def _block(self, x: Array, name: str) -> Array:
        return self.ops.block(x, self._depth(f"{name}.depth"), self._gated(f"{name}.ffn"))

    def _blocks(self, x: Array, name: str, count: int) -> Array:
        for i in range(count):
            x = self._block(x, f"{name}.{i}")
        return x

    def _feature(self, x: Array, name: str) -> Array:
        """int8 operand -> int16 [..., O], no residual."""
        return self.ops.linear_add(x, self._linear(name))

    def _to_operand(self, x: Array) -> Array:
        """Multipliers from a feature of the entropy model (1/256) to an operand (1/16)."""
        return self._shared.to_operand[: x.shape[-1]]

    def _operand(self, x: Array) -> Array:
        return self.ops.operand8(x, self._to_operand(x))

    def _windows(self, x: Array, name: str) -> Array:
        c = self.config
        for i in range(c.local_blocks):
            p = f"{name}.attention.{i}"
            if p not in self._params:
                qkv, out, bias = self._linear(f"{p}.qkv"), self._linear(f"{p}.out"), self._t[f"{p}.bias"]
                m, shift = self._to_operand(x), (i % 2) * c.window // 2
                self._params[p] = WindowParams(m, qkv, c.heads, c.window, shift, self._score, bias, self._table, out)
            x = self._ffn(self.ops.window_block(x, self._params[p]), f"{name}.ffn.{i}")
        return x

    # The stages, in the order of the data.

    def analyse(self, image: Array, lines: int | None = None) -> Array:
        """uint8 [N, H, W, 3], sides multiples of 64 -> y int16 [N, H/16, W/16, M].

        What is at 1/8 is computed by so many `lines` of y at a time; fewer take less memory and a little more work, and
        change no bit.
        """
        fine, coarse = self.config.analysis_blocks
        x = self._by_lines(self._analyse_fine, image, lines, STRIDE, 1, fine)
        return self._blocks(x, "analysis.blocks16", coarse)

    def _analyse_fine(self, image: Array) -> Array:
        x = self.ops.wide_linear(self.ops.patches_from_image(image), self._linear("analysis.embed"))
        x = self._blocks(x, "analysis.blocks8", self.config.analysis_blocks[0])
        return self.ops.wide_linear(self.ops.space_to_depth2(x), self._linear("analysis.merge"))

    def hyper_analyse(self, y: Array) -> dict[str, Array]:
        """y -> z, int16, in 1/256 steps: local [N, h, w, C], regional [N, h/4, w/4, C], global [N, 1, T, M/T]."""
        operand = self.ops.operand8(y, self._t["latent.operand8"])
        makers = {"local": self._analyse_local, "regional": self._analyse_regional, "global": self._analyse_global}
        z = {n: self._scale(makers[n](operand), n, "gain") for n in self.contexts if n not in self._silent}
        shapes = self.config.hyper_shapes(y.shape[1], y.shape[2])
        for name in self._silent:
            z[name] = self.arrays.zeros(y.shape[0], *shapes[name])
        return z

    def _scale(self, z: Array, name: str, key: str) -> Array:
        """Feature of a hyper latent to 1/256 quantiser steps ("gain"), or back ("inverse")."""
        m = self._settings[f"{key}.{name}"]
        return self.ops.operand16(z.reshape(z.shape[0], -1, m.shape[0]), m).reshape(z.shape)

    def _analyse_local(self, operand: Array) -> Array:
        x = self._windows(self._feature(operand, "hyper.local.analysis_in"), "hyper.local.analysis_blocks")
        return self._feature(self._operand(x), "hyper.local.analysis_out")

    def _analyse_regional(self, operand: Array) -> Array:
        p = "hyper.regional"
        x = self._feature(operand, f"{p}.analysis_in")
        x = self._block(x, f"{p}.analysis_block")
        x = self._feature(self.ops.space_to_depth2(self._operand(x)), f"{p}.analysis_down")
        x = self._block(x, f"{p}.analysis_block2")
        return self._feature(self.ops.space_to_depth2(self._operand(x)), f"{p}.analysis_out")

    def _analyse_global(self, operand: Array) -> Array:
        p, n = "hyper.global", operand.shape[0]
        kv = self.ops.linear_act(operand, self._linear(f"{p}.analysis_kv"), False)
        keys, values = self._halved(kv.reshape(n, -1, kv.shape[-1]))
        queries = self._t[f"{p}.queries"]
        queries = self.arrays.broadcast(queries, (n, *queries.shape[-2:]))
        pooled = self.ops.token_attention(queries, keys, values, self.config.heads, self._score, self._table)
        x = self._ffn(self._feature(pooled, f"{p}.analysis_merge"), f"{p}.analysis_ffn")
        return self._feature(self._operand(x), f"{p}.analysis_out")[:, None]

    def hyper_parts(self, name: str, z_hat: Array) -> Iterator[tuple[Part, Array, Array | None]]:
        """The parts of a hyper latent that have sites, with table rows, uint8 [1, 1, ..., C], and mean.

        Args:
            z_hat: int16 [1, H, W, C] in 1/256 quantiser steps; a part must be in it before the next one is asked for.
        """
        for part in self._parts[name]:
            if part.top < z_hat.shape[1] and part.left < z_hat.shape[2]:
                rows = self.hyper_rows[name][0 if part.kind is None else 1 + part.kind]
                rows = rows.reshape(1, 1, -1, z_hat.shape[3])
                mean = None
                if part.kind is not None:
                    mean = self.ops.neighbour_mean(z_hat, self._shared.neighbours[name][part.kind], part)
                yield part, rows, mean

    def hyper_features(self, z: dict[str, Array]) -> dict[str, Array]:
        """z, as `hyper_analyse` gives it, decoded -> what c needs and what does not depend on the step.

        Returns:
            "regional": operand of what phi_r gives each step, int8 [N, h, w, D]; "local": phi_l projected, int16;
            "keys", "values": int8 [N, T, D]; "token0".. of each c: what silent tokens add, int16 [N, 1, 1, D].
        """
        z = {name: self._scale(value, name, "inverse") for name, value in z.items()}
        p = "hyper.regional"
        x = self.ops.depth_to_space2(self.ops.wide_linear(z["regional"], self._linear(f"{p}.synthesis_in")))
        x = self._block(x, f"{p}.synthesis_block")
        regional = self._operand(self.ops.depth_to_space2(self._feature(self._operand(x), f"{p}.synthesis_up")))
        out = {"regional": regional}
        if "local" in z:
            out["local"] = self._local_feature(z["local"])
        if "global" in z:
            tokens = self.arrays.contiguous(z["global"][:, 0])
            tokens = self.ops.wide_linear(tokens, self._linear("hyper.global.synthesis_in"))
            kv = self.ops.linear_act(self._operand(tokens), self._linear("hyper.global.synthesis_kv"), False)
            out["keys"], out["values"] = self._halved(kv)
            if "global" in self._silent:  # tokens are all alike, and so attention to them is the same everywhere
                for core in range(len(self._heads)):
                    layer = self._linear(f"context.cores.{core}.global_attention.out")
                    token = self.ops.linear_add(self.arrays.contiguous(out["values"][:, :1]), layer)
                    out[f"token{core}"] = token[:, None]
        return out

    def _local_feature(self, z: Array) -> Array:
        """phi_l projected, int16 [N, h, w, D], of z_l as a feature, int16 [N, h, w, C]."""
        sites = z.shape[:-1]
        if "local" in self._silent:  # sites are all alike, and so attention to them is the same in every window
            z = self.arrays.contiguous(z[:, : self.config.window, : self.config.window])
        x = self.ops.wide_linear(z, self._linear("hyper.local.synthesis_in"))
        x = self._feature(self._operand(self._windows(x, "hyper.local.synthesis_blocks")), "context.local")
        return self.arrays.broadcast(x[:, :1, :1], (*sites, x.shape[-1])) if "local" in self._silent else x

    def _halved(self, x: Array) -> tuple[Array, Array]:
        """The halves of the channels."""
        half = x.shape[-1] // 2
        return self.arrays.contiguous(x[..., :half]), self.arrays.contiguous(x[..., half:])

    def step_parameters(
        self, step: int, y_hat: Array, features: dict[str, Array], valid: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Mean (int32, 1/256 quantiser steps) and scale-table row (uint8) of step 0..3, [N, h, w, M/4] each.

        Sites outside of `valid` (h, w) and rows below the skip threshold have SKIP_ROW.
        """
        x = self._feature(features["regional"], f"context.feature.{step}")
        if step:
            layer = self._linear(f"context.decoded.{step - 1}")
            x = self.ops.decoded_linear(y_hat, self._t["latent.operand16"], layer, x, step)
        core = 0 if self.config.shared else step
        if self.config.merge_once and "local" in features:
            x = self.ops.add(x, features["local"])
        for stage in self.stages:
            x = self._stage(stage, core, x, features)
        return self.ops.head_params(self._operand(x), self._heads[core], step, self.skip, valid)

    def adaptation(self, row: Array) -> Adaptation:
        """From the rows of step 0, uint8 [1, h, w, M/4]."""
        coarse = self.ops.coarseness(row, self._heads[0].offset, self.skip, self.aq)
        return Adaptation(coarse, *self.ops.coarseness_factors(coarse, self._shared.factors))

    def _stage(self, stage: str, core: int, x: Array, features: dict[str, Array]) -> Array:
        name = f"context.cores.{core}"
        if stage == "regional":
            return self._blocks(x, f"{name}.regional_blocks", self.config.context_blocks)
        if stage == "local":
            x = x if self.config.merge_once else self.ops.add(x, features["local"])
            return self._ffn(x, f"{name}.local_ffn")
        if "global" in self._silent:
            x = self.ops.add(x, self.arrays.broadcast(features[f"token{core}"], x.shape))
        else:
            p = f"{name}.global_attention"
            if p not in self._params:
                query, out = self._linear(f"{p}.query"), self._linear(f"{p}.out")
                m, heads = self._to_operand(x), self.config.heads
                self._params[p] = TokenParams(m, query, heads, self._score, self._table, out)
            x = self.ops.token_block(x, features["keys"], features["values"], self._params[p])
        return self._ffn(x, f"{name}.global_ffn")

    def synthesise(self, y_hat: Array, lines: int | None = None) -> Array:
        """y_hat int16 [N, h, w, M] -> image uint8 [N, 16h, 16w, 3]; `lines` as in `analyse`."""
        fine, coarse = self.config.synthesis_blocks
        x = self._blocks(y_hat, "synthesis.blocks16", coarse)
        return self._by_lines(self._synthesise_fine, x, lines, 1, STRIDE, fine)

    def _synthesise_fine(self, x: Array) -> Array:
        return self._pixels(self._blocks(self._split(x), "synthesis.blocks8", self.config.synthesis_blocks[0]))

    def previews(self, reduce: int) -> bool:
        """Whether there is a preview with a pixel for so many by so many."""
        return f"preview.{reduce}.w" in self._t

    def preview(self, y_hat: Array, reduce: int) -> Array:
        """y_hat int16 [N, h, w, M] -> uint8 [N, 16h / reduce, 16w / reduce, 3], without f_s; `reduce` of `previews`."""
        pixels = self.ops.wide_pixels(y_hat, self._linear(f"preview.{reduce}"))
        return pixels if reduce == STRIDE else self.ops.image_from_patches(pixels, STRIDE // reduce)

    @property
    def reach(self) -> int:
        """Latent sites around one that its pixels depend on."""
        fine, coarse = self.config.synthesis_blocks
        return coarse + -(-fine // 2)

    def _split(self, x: Array) -> Array:
        return self.ops.depth_to_space2(self.ops.wide_linear(x, self._linear("synthesis.split")))

    def _pixels(self, x: Array) -> Array:
        return self.ops.image_from_patches(self.ops.wide_pixels(x, self._linear("synthesis.pixels")))

    def synthesis_halves(self, y_hat: Array) -> tuple[Halves, Halves, Array]:
        """`synthesise`, and what each half of a block read for it, with its weights, in order: at 1/16 and at 1/8."""
        fine, coarse = self.config.synthesis_blocks
        at_16, x = self._halves(y_hat, "synthesis.blocks16", coarse)
        at_8, x = self._halves(self._split(x), "synthesis.blocks8", fine)
        return at_16, at_8, self._pixels(x)

    def _halves(self, x: Array, name: str, count: int) -> tuple[Halves, Array]:
        halves: Halves = []
        for i in range(count):
            depth, ffn = self._depth(f"{name}.{i}.depth"), self._gated(f"{name}.{i}.ffn")
            middle = self.ops.depth_block(x, depth)
            halves += [(x, depth), (middle, ffn)]
            x = self.ops.gated_ffn(middle, ffn)
        return halves, x

    def _by_lines(
        self, transform: Callable[[Array], Array], x: Array, lines: int | None, scale: int, out: int, fine: int
    ) -> Array:
        """`transform` of strips of x, each with as much around it as its blocks see: the same bits as of all at once.

        Args:
            lines: lines of sites of a strip; None for all.
            scale, out: lines of x, and of the result, in a line of sites.
            fine: how many 3x3 layers at 1/8 it has.
        """
        height = x.shape[1] // scale
        if lines is None or lines >= height:
            return transform(x)
        reach = -(-fine // 2)

        def strip(top: int) -> Array:
            first, last, end = max(0, top - reach), min(height, top + lines + reach), min(height, top + lines)
            computed = transform(self.arrays.contiguous(x[:, first * scale : last * scale]))
            return computed[:, (top - first) * out : (end - first) * out]

        return self.arrays.gather(map(strip, range(0, height, lines)), height * out)


Halves = list[tuple[Array, DepthBlockParams | GatedFfnParams]]


class ProgramSet:
    """Programs of one model and backend, one for each quality and strength of adaptive quantisation in use.

    Layers that do not depend on the quality are shared; the most recent `CACHED_QUALITIES` are kept.
    """

    def __init__(self, weights: Weights, ops: Ops, device: Any = "cpu") -> None:
        self.model = Model(weights, ops, device)
        self._plain = lru_cache(CACHED_QUALITIES)(self._at)
        self._adapted = lru_cache(CACHED_QUALITIES)(lambda quality, aq: self._plain(quality).adapted(aq))

    def at(self, quality: int, aq: int = 0) -> Program:
        """At a quality in 1/100, with a strength of adaptive quantisation, 0..15."""
        program: Program = self._adapted(quality, aq)
        return program

    def _at(self, quality: int) -> Program:
        values = settings(self.model.weights, quality)
        arrays = {name: self.model.arrays.array(value) for name, value in values.items()}
        program = Program(self.model, arrays, silent(values))
        self.model.arrays.settle()
        return program
