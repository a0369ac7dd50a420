"""Start of the "patch" transforms: principal components of photographs instead of noise.

The projections of f_a become PCA bases (8x8x3 -> width, 2x2xwidth -> latent), those of f_s their transposes, and
the trunk's units the deviations of the components. Orthonormal transforms, so quantiser steps are in grey levels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dca_fast.config import PATCH, STEPS
from dca_fast.model.layers import DepthBlock, GatedFfn, space_to_depth
from dca_fast.model.network import Network
from dca_fast.model.transforms import OUTPUT_GAIN, PIXEL_GAIN, PatchAnalysis, PatchSynthesis
from dca_fast.train.data import Crops

SMALLEST_DEVIATION = 1.0  # grey levels; below it a channel is noise and must not be blown up


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows of the basis `[count, K]`, strongest first, and deviations `[count]` of `x` `[P, K]` (no mean removed)."""
    covariance = (x.T.double() @ x.double()) / x.shape[0]
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    # The sign is arbitrary: make the largest entry positive, so that the result is reproducible.
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return (vectors * sign).T.float(), values.clamp_min(SMALLEST_DEVIATION**2).sqrt().float()


def dealt(count: int) -> Tensor:
    """Which component each of so many latent channels is: the groups of the quadtree take one after another in turn.

    In the order of their power, the first group would hold nearly all the bits, and its channels would know nothing of
    each other at a site (docs/experiments/training.md).
    """
    return torch.arange(count).view(-1, STEPS).T.flatten()


@torch.no_grad()
def _set_units(module: torch.nn.Module, unit: Tensor) -> None:
    for layer in module.modules():
        if isinstance(layer, DepthBlock | GatedFfn):
            layer.unit.copy_(unit)


@torch.no_grad()
def start_from_components(network: Network, photographs: Crops, seed: int = 0) -> None:
    """Initialise transforms and gains of a "patch" network in place.

    A channel of deviation d is carried as coefficient / sqrt(d): halfway between grey levels and the channel's own
    unit, so that one training step of Adam on any weight changes the picture about equally.
    """
    analysis, synthesis = network.analysis, network.synthesis
    if not isinstance(analysis, PatchAnalysis) or not isinstance(synthesis, PatchSynthesis):
        return
    batch = photographs.batch(np.random.default_rng(seed), 192, 128)
    patches = space_to_depth(batch, PATCH)
    basis8, deviation8 = principal_components(patches.flatten(0, 2), network.config.width)
    merged = space_to_depth(patches @ basis8.T)
    basis16, deviation16 = principal_components(merged.flatten(0, 2), network.config.latent)
    order = dealt(network.config.latent)
    basis16, deviation16 = basis16[order], deviation16[order]
    unit8, unit16 = deviation8.sqrt(), deviation16.sqrt()
    wide8 = unit8.repeat(4)
    analysis.embed.weight.copy_(basis8 / unit8[:, None] / PIXEL_GAIN)
    analysis.merge.weight.copy_(basis16 * wide8 / unit16[:, None])
    synthesis.split.weight.copy_(basis16.T * unit16 / wide8[:, None])
    synthesis.pixels.weight.copy_(basis8.T * unit8 / OUTPUT_GAIN)
    for transform in (analysis, synthesis):
        transform.unit8.copy_(unit8)
        transform.unit16.copy_(unit16)
        _set_units(transform.blocks8, unit8)
        _set_units(transform.blocks16, unit16)
    network.log2_gain.add_(deviation16.log2() - 6)
