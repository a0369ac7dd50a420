"""Coordinates in which the inputs of the trunk's projections are white, for the optimiser.

A projection reads coefficients from a thousand grey levels down to one. A training step of Adam or SOAP is about
equally long in every direction of a weight: far too long for the strong inputs or far too short for the weak ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dca_fast.config import QUALITY_MAX
from dca_fast.model.layers import WideLinear
from dca_fast.model.network import Network
from dca_fast.train.data import Crops

CROPS, SIZE = 48, 128
WEAKEST = 1e-5  # of the strongest direction's power: a weaker one counts as this strong


def trunk(network: Network) -> list[WideLinear]:
    """The projections of f_a and f_s; none in transforms of another kind."""
    transforms = (network.analysis, network.synthesis)
    return [layer for transform in transforms for layer in transform.modules() if isinstance(layer, WideLinear)]


@torch.no_grad()
def whitening(network: Network, photographs: Crops, seed: int) -> dict[nn.Module, Tensor]:
    """C^(-1/2) `[inputs, inputs]` of every layer of the trunk; C: second moment of its inputs, at all qualities."""
    layers = trunk(network)
    if not layers:
        return {}
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(lambda layer, x: inputs.update({layer: x[0]})) for layer in layers]
    image = photographs.batch(np.random.default_rng(seed), CROPS, SIZE)
    network(image, torch.linspace(0, QUALITY_MAX, CROPS), noisy=False)
    for hook in hooks:
        hook.remove()
    return {layer: inverse_root(inputs[layer].flatten(0, -2)) for layer in layers}


def inverse_root(x: Tensor) -> Tensor:
    """C^(-1/2) of the second moment C of `x` `[P, K]`, float32."""
    values, vectors = torch.linalg.eigh(x.double().T @ x.double() / x.shape[0])
    values = values.clamp_min(WEAKEST * values[-1]).clamp_min(torch.finfo(torch.float32).tiny)
    return ((vectors / values.sqrt()) @ vectors.T).float()
