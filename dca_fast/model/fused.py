"""A network that runs by the fused functions of `kernels/training.py`, as trainings on a GPU do."""

from __future__ import annotations

import torch

from dca_fast.model.layers import DepthBlock, GatedFfn, Int8Layer
from dca_fast.model.network import Network


def fuse(network: Network, precise: torch.dtype = torch.bfloat16) -> None:
    """From now on blocks and rates are fused, and one launch before each pass quantises all weights of `network`.

    Args:
        network: on the device where it stays; its weights may change in place only.
        precise: type of the blocks' products in the backward pass.
    """
    from dca_fast.kernels.training import QuantisedWeights

    layers = [layer for layer in network.modules() if isinstance(layer, Int8Layer)]
    quantised = QuantisedWeights([layer.weight.detach() for layer in layers], precise)
    for layer, ready in zip(layers, quantised.layers, strict=True):
        layer.ready = ready
    for module in network.modules():
        if isinstance(module, DepthBlock | GatedFfn):
            module.fused = True
    network.fused = True
    network.register_forward_pre_hook(lambda *_: quantised.renew())
