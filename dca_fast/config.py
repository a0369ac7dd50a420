"""Model configurations: frozen dataclasses with named presets. No torch here.

Reference: DCA, arXiv 2411.05832; widths that the paper does not state are marked in `PRESETS`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from dca_fast.errors import ConfigError

CONTEXTS = ("regional", "global", "local")
ORDER = ("global", "local", "regional")  # of the hyper latents in the stream
TRANSFORMS = ("patch", "elic")

# The quality axis, shared by trainer, exporter and codec.
QUALITY_MAX = 100.0
LAMBDA_MIN, LAMBDA_MAX = 0.0004, 0.15  # bits per pixel for a squared error of one grey level


def price(quality: Any) -> Any:
    """lambda of a quality (a number or a tensor): bits per pixel that a squared error of one grey level is worth."""
    return LAMBDA_MIN * (LAMBDA_MAX / LAMBDA_MIN) ** (quality / QUALITY_MAX)


# The fixed-point grid of the integer line (docs/spec/numerics.md).
OPERAND_ONE = 16  # int8 operands hold multiples of 1/16: range +-127/16
FEATURE_ONE = 256  # int16 features of the entropy model hold multiples of 1/256
LATENT_ONE = 256  # means and latents are held in 1/256 of a quantiser step
TRELLIS_STEP = 160  # of the grid on which a trellis quantises y, in the same unit (docs/spec/bitstream.md)
TRELLIS_PRICE = 12  # bits that a squared quantiser step is worth to the search of the trellis (docs/design/trellis.md)
ROWS_PER_OCTAVE = 12  # rows of the scale table: scale = SCALE_MIN * 2 ** (row / ROWS_PER_OCTAVE)
SCALE_MIN = 0.1
LEAKY_SLOPE = 0.125

MAX_EFFORT, DEFAULT_EFFORT = 9, 1  # of the encoder (docs/design/effort.md)
# Its level 1: bits for a squared quantiser step of y, and where between y_hat (0) and y (1) a step of its descent
# starts; the latter along gradients, from level 2 on.
LINEAR_PRICE, BACK, GRADIENT_BACK = 18, 1 / 2, 4 / 5

STEPS = 4  # of the quadtree
QUADTREE = (0, 3, 2, 1)  # step s codes channel group p ^ QUADTREE[s] at the sites of parity p (DCVC-DC)

CENTER, ESCAPE = 127, 255  # symbols of the entropy coder: that of value 0, and that of values without one
SKIP_ROW = 255  # table row of a symbol that is not coded: it is zero and costs nothing
FIRST_CODED_ROW = 6  # symbols with scales below 0.14 quantiser steps are not coded

# The restoration filter (docs/spec/restoration.md): where a pixel's neighbours lie, ring by ring, as lines and columns
# away; from which difference on a neighbour counts no more; and the coefficient that stands for 1.
RINGS = (
    ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    ((-1, 0), (0, -1), (0, 1), (1, 0)),
    ((-2, 0), (0, -2), (0, 2), (2, 0)),
)
RING_LIMIT, RING_ONE = 8, 256
RING_REACH = max(abs(offset) for ring in RINGS for neighbour in ring for offset in neighbour)

# Adaptive quantisation (docs/spec/adaptive.md): the strength that stands for 1, and the strongest one; by how many rows
# of the scale table it changes a quantiser step at most; and how many channels of a group, the strongest, it looks at.
AQ_ONE, MAX_AQ = 16, 15
AQ_REACH, AQ_CHANNELS = 15, 16
DEFAULT_AQ = 3 / AQ_ONE

PATCH = 8  # pixels per side of the first patch of the "patch" transforms
STRIDE = 16  # pixels per latent site
REDUCTIONS = (1, 2, 4, 8, 16)  # of previews: pixels of a side that become one
ALIGN = 64  # images are padded to multiples of this: two more halvings for the regional hyper latent


class Part(NamedTuple):
    """Sites of a hyper latent that are coded together: those at lines `top`, `top + stride`, ... and columns `left`,
    `left + stride`, ...; `kind` numbers how they are predicted from sites `stride / 2` away, None: not at all."""

    kind: int | None
    top: int
    left: int
    stride: int

    @property
    def sites(self) -> tuple[slice, slice, slice]:
        """Of a tensor `[N, H, W, C]`."""
        return slice(None), slice(self.top, None, self.stride), slice(self.left, None, self.stride)

    @property
    def around(self) -> list[tuple[int, int]]:
        """Lines and columns from a site to those that predict it: its four corners, or its four sides."""
        offsets = -self.stride // 2, self.stride // 2
        if self.top == self.left:
            return [(down, right) for down in offsets for right in offsets]
        return [(down, 0) for down in offsets] + [(0, right) for right in offsets]


def coarse_to_fine(levels: int) -> list[Part]:
    """The parts of a hyper latent in their order (docs/spec/numerics.md): the sites whose line and column are multiples
    of `2^levels`, then level by level the sites in the middle of four, predicted from these, and those between two and
    two."""
    parts = [Part(None, 0, 0, 1 << levels)]
    for level in reversed(range(levels)):
        reach = 1 << level
        kind = 2 * level
        parts += [
            Part(kind + (top != left), top, left, 2 * reach) for top, left in ((reach, reach), (0, reach), (reach, 0))
        ]
    return parts


MAX_WIDTH, MAX_LEVELS, MAX_BLOCKS = 4096, 6, 64  # of a configuration: hostile weights ask for no more memory


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{name} must be a whole number within {least}..{most}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """Widths and structure of one DCA model.

    Args:
        name: preset name, stored with the weights.
        transforms: "patch" (depthwise-convolution blocks at 1/8 and 1/16) or "elic".
        width: channels at 1/8 ("patch") or of the inner layers ("elic", N).
        latent: channels M of y at 1/16; divisible by 16 and by 4 * tokens.
        latent_hidden: hidden width of the blocks at 1/16.
        analysis_blocks, synthesis_blocks: number of blocks at (1/8, 1/16).
        analysis_hidden: hidden widths of the blocks of f_a at (1/8, 1/16); None: as in f_s.
        context_width: width of the contextualisation model c and of the hyper features.
        context_blocks: shared regional blocks of c.
        heads: attention heads; divides context_width.
        window: side of the local attention window, in latent sites.
        local_blocks: windowed attention blocks on each side of the local bottleneck; every second one is shifted.
        local: channels of z_l at 1/16.
        regional: channels of z_r at 1/64.
        regional_levels: levels by which z_r is coded from coarse to fine, each part from the sites around it; 0: all
            sites at once and alike (the paper).
        tokens: number of global tokens; z_g has `latent / tokens` values for each.
        contexts: which hyper latents exist and the order in which c uses them, in every step.
        merge_once: add all hyper features before c instead of one after another (ablation).
        shared: one c for all four steps, but for the first 1x1 (the paper); False: one for each step.

    Raises:
        ConfigError: inconsistent values.
    """

    name: str
    transforms: str = "patch"
    width: int = 128
    latent: int = 384
    latent_hidden: int = 192
    analysis_blocks: tuple[int, int] = (2, 2)
    synthesis_blocks: tuple[int, int] = (3, 2)
    analysis_hidden: tuple[int, int] | None = None
    context_width: int = 160
    context_blocks: int = 2
    heads: int = 5
    window: int = 4
    local_blocks: int = 1
    local: int = 24
    regional: int = 128
    regional_levels: int = 0
    tokens: int = 8
    contexts: tuple[str, ...] = CONTEXTS
    merge_once: bool = False
    shared: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "int":
                least, most = (0, MAX_LEVELS) if f.name == "regional_levels" else (1, MAX_WIDTH)
                _check_number(f.name, value, least, most)
            elif f.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{f.name} must be true or false, got {value!r}")
        for name in ("analysis_blocks", "synthesis_blocks", "analysis_hidden"):
            pair, hidden = getattr(self, name), name == "analysis_hidden"
            if hidden and pair is None:
                continue
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ConfigError(f"{name} must be two numbers, got {pair!r}")
            for value in pair:
                _check_number(name, value, int(hidden), MAX_WIDTH if hidden else MAX_BLOCKS)
        if self.transforms not in TRANSFORMS:
            raise ConfigError(f"transforms must be one of {TRANSFORMS}, got {self.transforms!r}")
        if self.latent % (4 * self.tokens) or self.latent % 16:
            raise ConfigError(f"latent ({self.latent}) must be divisible by 16 and by 4 * tokens ({self.tokens})")
        if self.context_width % self.heads:
            raise ConfigError(f"context_width ({self.context_width}) must be divisible by heads ({self.heads})")
        if not isinstance(self.contexts, tuple) or not all(isinstance(name, str) for name in self.contexts):
            raise ConfigError(f"contexts must be names, got {self.contexts!r}")
        if len(set(self.contexts)) != len(self.contexts) or not set(self.contexts) <= set(CONTEXTS):
            raise ConfigError(f"contexts must be distinct members of {CONTEXTS}, got {self.contexts}")
        if ALIGN // STRIDE % self.window:
            raise ConfigError(f"window ({self.window}) must divide {ALIGN // STRIDE}")

    @property
    def latents(self) -> tuple[str, ...]:
        """Hyper latents that exist: phi_r feeds the input layer of every step, so the regional one always does."""
        return tuple(dict.fromkeys(("regional", *self.contexts)))

    @property
    def blocks(self) -> int:
        """Those of the entropy model. Each has tensors of its own, so that a file with fewer is not worth a look."""
        local = self.local_blocks if "local" in self.contexts else 0
        return self.context_blocks * (1 if self.shared else STEPS) + local

    def levels(self, latent: str) -> int:
        """Levels by which a hyper latent is coded from coarse to fine."""
        return self.regional_levels if latent == "regional" else 0

    def hyper_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Shapes of the hyper latents of one picture, in the order of the stream, for so many latent sites."""
        shapes = {
            "global": (1, self.tokens, self.latent // self.tokens),
            "local": (height, width, self.local),
            "regional": (height // 4, width // 4, self.regional),
        }
        return {name: shapes[name] for name in ORDER if name in self.latents}

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of c in order; without a regional context its blocks still run, first."""
        return self.contexts if "regional" in self.contexts else self.latents

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; refuses unknown and missing keys."""
        known = {f.name for f in fields(cls)}
        if set(values) - known or "name" not in values:
            raise ConfigError(f"not a model configuration: unknown {sorted(set(values) - known)}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


PRESETS = {
    # Own widths: about 18 kMAC per pixel at decode. A c for each step is four times as large and no slower.
    "dca-s": ModelConfig("dca-s", regional_levels=2, shared=False),
    # From the paper: three hyper latents, used in the order regional, global, local; quadtree of four steps; one c for
    # all steps but for its first 1x1; Swin blocks for the local pair, a Transformer for the global one. It states no
    # widths that are known here. From its antecedents: transforms with N=192, M=320 and 192 regional channels (ELIC);
    # local bottleneck M/16=20, 8 tokens, 2M=640 wide context in heads of 64 (Informer); windows of 4, two blocks
    # (SwinT-ChARM). Own choice: three context blocks, of the kind that DCVC-DC has, and the widths inside the blocks.
    "dca-paper": ModelConfig(
        "dca-paper",
        transforms="elic",
        width=192,
        latent=320,
        latent_hidden=320,
        analysis_blocks=(0, 0),
        synthesis_blocks=(0, 0),
        context_width=640,
        context_blocks=3,
        heads=10,
        local_blocks=2,
        local=20,
        regional=192,
    ),
}


def preset(name: str) -> ModelConfig:
    """The named configuration.

    Raises:
        ConfigError: unknown name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
