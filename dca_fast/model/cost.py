"""Multiply-accumulates of a configuration, counted by walking the float network on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dca_fast.config import STEPS, ModelConfig
from dca_fast.model.layers import Depthwise, Linear, WideLinear
from dca_fast.model.network import Network

SIDE = 256  # pixels; the global tokens cost more per pixel in smaller images


def _macs(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    if isinstance(layer, Linear | WideLinear):
        return output.numel() * layer.weight.shape[1]
    if isinstance(layer, Depthwise):
        return output.numel() * 9
    if isinstance(layer, nn.ConvTranspose2d):
        return inputs[0].numel() * layer.weight[0].numel()
    assert isinstance(layer, nn.Conv2d)
    return output.numel() * layer.weight[0].numel()


def macs_per_pixel(config: ModelConfig) -> dict[str, float]:
    """Multiply-accumulates per pixel of a 256x256 image, attention scores left out (below 2 %).

    Returns:
        "analysis", "hyper_analysis", "hyper_synthesis", "context" (all four steps), "synthesis", and the sums
        "encode" (all but synthesis) and "decode" (the last three).
    """
    with torch.device("meta"):
        network = Network(config).eval()
        counts = dict.fromkeys(("analysis", "hyper_analysis", "hyper_synthesis", "context", "synthesis"), 0)

        def stage(name: str) -> str:
            head = name.split(".")[0]
            if head != "hyper":
                return head
            return "hyper_analysis" if "analysis" in name else "hyper_synthesis"

        def hook(key: str) -> Any:
            def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                counts[key] += _macs(layer, inputs, output)

            return count

        def decoded(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Before step i + 1, i + 1 of the four groups are known; training multiplies the zeros of the others.
            counts["context"] += _macs(layer, inputs, output) * (known[layer] + 1) // STEPS

        known = {layer: i for i, layer in enumerate(network.context.decoded)}
        kinds = (Linear, WideLinear, Depthwise, nn.Conv2d, nn.ConvTranspose2d)
        for name, layer in network.named_modules():
            if isinstance(layer, kinds):
                layer.register_forward_hook(decoded if layer in known else hook(stage(name)))
        network(torch.zeros(1, SIDE, SIDE, 3), torch.zeros(1))
    out = {name: value / SIDE**2 for name, value in counts.items()}
    out["encode"] = sum(out.values()) - out["synthesis"]
    out["decode"] = out["hyper_synthesis"] + out["context"] + out["synthesis"]
    return out
