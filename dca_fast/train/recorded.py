"""A training step as CUDA graphs: crops, forward and backward in one, clipping, optimiser and average in another.

Between the two, many processes average their gradients. What changes from one training step to the next lies in a few
buffers that the host fills: where the crops are, qualities, and the scalars of the optimiser. It computes what
`Trainer.train_step` does launch by launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dca_fast.engines.graphs import record
from dca_fast.train.soap import Scalars, Soap
from dca_fast.train.world import World


class Replay(Protocol):
    """What `record` makes, and stands for in tests."""

    def replay(self) -> None: ...


Record = Callable[[Callable[[], Any]], tuple[Replay, Any]]


class RecordedStep:
    """A training step, recorded at its first use.

    Args:
        objective: image `[N, S, S, 3]`, quality `[N]` and the factor on the hyper latents' rate -> loss, bits per pixel
            and squared error of each sample; on the device.
        optimiser: of its parameters.
        average: averaged values, and the values that they follow.
        crops: what makes a batch of images from what the host gives for it, on the device.
        clip: largest norm of a gradient.
        world: the processes that average their gradients.
        make: what records.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimiser: Soap,
        average: tuple[list[Tensor], list[Tensor]],
        crops: Callable[[Tensor], Tensor],
        clip: float,
        world: World,
        make: Record = record,
    ) -> None:
        self._objective, self._optimiser, self._average = objective, optimiser, average
        self._crops, self._clip, self._world, self._make = crops, clip, world, make
        self._params = [p for group in optimiser.param_groups for p in group["params"]]
        self._device = self._params[0].device
        for value in (*objective.parameters(), *objective.buffers()):
            world.share(value.detach())
        self._inputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._updates: dict[bool, Replay] = {}

    def __call__(
        self, batch: Tensor, quality: Tensor, noise: int, hyper_factor: float, decay: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One training step.

        Args:
            batch: what `crops` takes, of the same shape every time, on the host.
            quality: `[N]`, on the host.
            noise: seed of the step.
            hyper_factor: factor on the rate of the hyper latents.
            decay: of the average.

        Returns:
            Loss, bits per pixel and squared error of each sample; overwritten by the next step.
        """
        of_groups, moments = self._optimiser.advance()
        scalars = torch.tensor([hyper_factor, 1 - decay, *(value for group in of_groups for value in group)])
        if self._inputs is None:
            self._inputs = batch.to(self._device), quality.to(self._device), torch.zeros_like(scalars).to(self._device)
            self._forward, (self._figures, self._gradient) = self._make(self._forward_backward)
        for into, value in zip(self._inputs, (batch, quality, scalars), strict=True):
            into.copy_(value.pin_memory() if into.is_cuda else value, non_blocking=True)
        torch.manual_seed(noise)
        self._forward.replay()
        self._world.mean(self._gradient)
        if moments not in self._updates:
            kept = self._inputs[2].clone()
            self._inputs[2].zero_()  # with which an update changes nothing: it runs once to be recorded
            self._updates[moments], _ = self._make(lambda: self._update(moments))
            self._inputs[2].copy_(kept)
        self._updates[moments].replay()
        self._optimiser.turn()
        loss, bpp, mse = self._figures
        return loss, bpp, mse

    def _forward_backward(self) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Figures, and the gradients of all parameters in one tensor."""
        assert self._inputs is not None
        batch, quality, scalars = self._inputs
        loss, bpp, mse = self._objective(self._crops(batch), quality, scalars[0])
        gradients = torch.autograd.grad(loss, self._params)
        return (loss.detach(), bpp, mse), torch._utils._flatten_dense_tensors(gradients)

    @torch.no_grad()
    def _update(self, moments: bool) -> None:
        assert self._inputs is not None
        scalars = self._inputs[2]
        norm = torch.linalg.vector_norm(self._gradient)
        finite = torch.isfinite(norm)
        factor = (self._clip / (norm + 1e-6)).clamp(max=1.0)
        # Where the gradient is not finite nothing moves, as in a step that is left out.
        gradient = (self._gradient * factor).where(finite, 0.0)
        for p, g in zip(self._params, torch._utils._unflatten_dense_tensors(gradient, self._params), strict=True):
            p.grad = g
        groups = scalars[2:].view(-1, len(Scalars._fields))
        keeping = torch.stack([finite, finite, finite, torch.ones_like(finite), finite])
        self._optimiser.update([Scalars(*group) for group in (groups * keeping).unbind()], moments)
        average, values = self._average
        changes = torch._foreach_sub(values, average)
        torch._foreach_mul_(changes, scalars[1])
        torch._foreach_add_(average, changes)
