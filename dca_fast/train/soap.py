"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., ICLR 2025).

Matrices of one shape are stacked, so that a step is a few batched products; other parameters take plain Adam.
Unlike the paper's, the mean squares go along when the eigenbasis turns. Where inputs are mostly zero, as those of a
hyper synthesis are, a new direction would else meet the tiny square of the old one, and take a step a thousand times
too long.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENT_EVERY = 2  # steps between two updates of the preconditioner: it decays over fifty


class Soap(torch.optim.Optimizer):
    """Args:

    params: groups as for Adam; the 2-D parameters of a group are preconditioned.
    lr: learning rate, on Adam's scale.
    betas: decay of the mean, of the squares in the eigenbasis, and of the preconditioner.
    eps: added to the root of the squares.
    every: steps between two updates of the eigenbasis (one power iteration and a QR).
    side: a side longer than this is preconditioned only if the other one is too.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.95, 0.98, 0.98),
        eps: float = 1e-8,
        every: int = 10,
        side: int = 256,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "every": every, "side": side})

    def whiten(self, p: Tensor, root: Tensor) -> None:
        """From now on update V instead of `p` = constant + V `root`; before the first step.

        Args:
            root: C^(-1/2) `[I, I]` for `p` `[O, I]` that is multiplied with inputs of second moment C.
        """
        self.state[p]["root"] = root

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter; all must have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for params in shapes.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        state, (b1, b2, b3) = self.state[params[0]], group["betas"]
        roots = [self.state[p].get("root") for p in params]
        grad = torch.stack([p.grad if r is None else p.grad @ r for p, r in zip(params, roots, strict=True)])
        if "step" not in state:
            state["step"] = 0
            state["rotated_mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
            if grad.dim() == 3:
                rows, columns = grad.shape[1:]
                longest = max(group["side"], min(rows, columns))
                for name, size in (("left", rows), ("right", columns)):
                    if size <= longest:
                        state[name] = torch.zeros(len(params), size, size, dtype=grad.dtype, device=grad.device)
        state["step"] += 1
        step = state["step"]
        if step == 1:
            for name, size in zip(("left", "right"), grad.shape[1:], strict=False):
                if name in state:
                    state[f"basis_{name}"] = torch.eye(size, device=grad.device).expand_as(state[name]).clone()
        if step % MOMENT_EVERY == 1:
            for name in ("left", "right"):
                if name in state:
                    g = grad if name == "left" else grad.mT
                    state[name].lerp_(g @ g.mT, 1 - (b3**MOMENT_EVERY if step > 1 else 0.0))
        rotated = self._rotate(grad, state)
        mean = state["rotated_mean"].lerp_(rotated, 1 - b1)
        square = state["square"].mul_(b2).addcmul_(rotated, rotated, value=1 - b2)
        root = (square / (1 - b2**step)).sqrt_().add_(group["eps"])
        update = self._rotate_back(mean / root, state).mul_(-group["lr"] / (1 - b1**step))
        updates = [u if r is None else u @ r for u, r in zip(update, roots, strict=True)]
        torch._foreach_add_(params, updates)
        if step % group["every"] == 0:
            mean = self._rotate_back(mean, state)
            for name in ("left", "right"):
                if name in state:
                    old = state[f"basis_{name}"]
                    state[f"basis_{name}"] = new = self._basis(state[name], old, first=step == group["every"])
                    turn = (new.mT @ old).square()  # a new direction's share of each old one
                    square = turn @ square if name == "left" else square @ turn.mT
            state["rotated_mean"], state["square"] = self._rotate(mean, state), square

    @staticmethod
    def _basis(moment: Tensor, basis: Tensor, first: bool) -> Tensor:
        if not first:
            return torch.linalg.qr(moment @ basis)[0]
        unit = moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(torch.finfo(moment.dtype).tiny)
        return torch.linalg.eigh((moment / unit).double())[1].flip(-1).to(basis.dtype)

    @staticmethod
    def _rotate(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        x = state["basis_left"].mT @ x if "left" in state else x
        return x @ state["basis_right"] if "right" in state else x.clone()

    @staticmethod
    def _rotate_back(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        x = state["basis_left"] @ x if "left" in state else x
        return x @ state["basis_right"].mT if "right" in state else x
