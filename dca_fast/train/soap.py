"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., ICLR 2025).

Matrices of one shape are stacked, so that a training step is a few batched products; other parameters take plain Adam.
Unlike the paper's, the mean squares go along when the eigenbasis turns. Where inputs are mostly zero, as those of a
hyper synthesis are, a new direction would else meet the tiny square of the old one, and its step size would be a
thousand times too large.

A training step calls three methods, so that a GPU can record the second one: `advance` counts on the host, `update`
computes without asking it anything, `turn` renews the eigenbases now and then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOMENT_EVERY = 2  # training steps between two updates of the preconditioner: it decays over fifty
ROUNDS = 3  # of Cholesky QR, the first one shifted
SHIFT = 1e-11  # of unit columns' products, in float64
ASTRAY = 1e-3  # a basis whose columns' products are farther from those of unit vectors is not taken


class Scalars(NamedTuple):
    """What changes from one training step to the next, of one group: shares of what is new in the mean, the squares and
    the preconditioner; what the squares are multiplied with for being young; minus the step size."""

    mean: float | Tensor
    square: float | Tensor
    moment: float | Tensor
    unbias: float | Tensor
    rate: float | Tensor


class Soap(torch.optim.Optimizer):
    """Args:

    params: groups as for Adam; the 2-D parameters of a group are preconditioned.
    lr: learning rate, as for Adam.
    betas: decay of the mean, of the squares in the eigenbasis, and of the preconditioner.
    eps: added to the root of the squares.
    every: training steps between two updates of the eigenbasis (one power iteration and a QR).
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
        scalars, moments = self.advance()
        self.update(scalars, moments)
        self.turn()

    @torch.no_grad()
    def advance(self) -> tuple[list[Scalars], bool]:
        """Count a training step: the scalars of each group, and whether the preconditioner is updated."""
        scalars, step = [], 1
        for group in self.param_groups:
            for params in _of_one_shape(group):
                state = self.state[params[0]]
                if "step" not in state:
                    self._begin(state, params, group["side"])
                state["step"] += 1
                step = state["step"]
            b1, b2, b3 = group["betas"]
            moment = 1 - (b3**MOMENT_EVERY if step > 1 else 0.0)
            scalars.append(Scalars(1 - b1, 1 - b2, moment, 1 / (1 - b2**step), -group["lr"] / (1 - b1**step)))
        return scalars, step % MOMENT_EVERY == 1

    @staticmethod
    def _begin(state: dict[str, Any], params: list[Tensor], side: int) -> None:
        like = torch.stack([p.detach() for p in params])
        state["step"] = 0
        state["rotated_mean"], state["square"] = torch.zeros_like(like), torch.zeros_like(like)
        if like.dim() == 3:
            longest = max(side, min(like.shape[1:]))
            for name, size in zip(("left", "right"), like.shape[1:], strict=True):
                if size <= longest:
                    unit = torch.eye(size, dtype=like.dtype, device=like.device)
                    state[f"basis_{name}"] = unit.repeat(len(params), 1, 1)
                    state[name] = torch.zeros_like(state[f"basis_{name}"])

    @torch.no_grad()
    def update(self, scalars: Sequence[Scalars], moments: bool) -> None:
        """What the device computes of a training step; in place, so that it can be recorded."""
        for group, s in zip(self.param_groups, scalars, strict=True):
            for params in _of_one_shape(group):
                self._update(params, group["eps"], s, moments)

    def _update(self, params: list[Tensor], eps: float, s: Scalars, moments: bool) -> None:
        state = self.state[params[0]]
        roots = [self.state[p].get("root") for p in params]
        grad = torch.stack([p.grad if r is None else p.grad @ r for p, r in zip(params, roots, strict=True)])
        if moments:
            for name in ("left", "right"):
                if name in state:
                    g = grad if name == "left" else grad.mT
                    state[name].lerp_(g @ g.mT, s.moment)
        rotated = self._rotate(grad, state)
        mean = state["rotated_mean"].lerp_(rotated, s.mean)
        square = state["square"].lerp_(rotated.square_(), s.square)
        root = (square * s.unbias).sqrt_().add_(eps)
        update = self._rotate_back(mean / root, state).mul_(s.rate)
        torch._foreach_add_(params, [u if r is None else u @ r for u, r in zip(update, roots, strict=True)])

    @torch.no_grad()
    def turn(self) -> None:
        """Renew the eigenbases, if that is due; sides of one length together."""
        due: dict[int, list[tuple[dict[str, Any], str]]] = {}
        first = False
        for group in self.param_groups:
            for params in _of_one_shape(group):
                state = self.state[params[0]]
                if state["step"] % group["every"] == 0:
                    first = state["step"] == group["every"]
                    for name in ("left", "right"):
                        if name in state:
                            due.setdefault(state[name].shape[1], []).append((state, name))
        new: dict[tuple[int, str], Tensor] = {}
        for sides in due.values():
            moments, bases = (torch.cat([s[f"{kind}{name}"] for s, name in sides]) for kind in ("", "basis_"))
            renewed = self._basis(moments, bases, first).split([len(s[name]) for s, name in sides])
            new.update({(id(s), name): basis for (s, name), basis in zip(sides, renewed, strict=True)})
        for state in {id(s): s for sides in due.values() for s, _ in sides}.values():
            mean, square = self._rotate_back(state["rotated_mean"], state), state["square"]
            for name in ("left", "right"):
                if name in state:
                    basis = new[id(state), name]
                    turn = (basis.mT @ state[f"basis_{name}"]).square()  # a new direction's share of each old one
                    square = turn @ square if name == "left" else square @ turn.mT
                    state[f"basis_{name}"].copy_(basis)
            state["rotated_mean"].copy_(self._rotate(mean, state))
            state["square"].copy_(square)

    @staticmethod
    def _basis(moment: Tensor, basis: Tensor, first: bool) -> Tensor:
        """Eigenvectors of the moments `[N, S, S]`, strongest first; after the first time a power iteration."""
        if first:
            return eigenvectors(moment)
        return cholesky_qr(moment, basis) if moment.is_cuda else torch.linalg.qr(moment @ basis)[0]

    @staticmethod
    def _rotate(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        x = state["basis_left"].mT @ x if "left" in state else x
        return x @ state["basis_right"] if "right" in state else x.clone()

    @staticmethod
    def _rotate_back(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        x = state["basis_left"] @ x if "left" in state else x
        return x @ state["basis_right"].mT if "right" in state else x


def _of_one_shape(group: dict[str, Any]) -> Iterator[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for p in group["params"]:
        shapes.setdefault(p.shape, []).append(p)
    yield from shapes.values()


def eigenvectors(moment: Tensor) -> Tensor:
    """Of symmetric matrices `[N, S, S]`, strongest first. Those of a device are solved by the threads of its host: a
    device solves one after the other."""
    unit = moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(torch.finfo(moment.dtype).tiny)
    normalised = (moment / unit).double()
    if not moment.is_cuda:
        return torch.linalg.eigh(normalised)[1].flip(-1).to(moment)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            vectors = list(pool.map(lambda x: torch.linalg.eigh(x)[1].flip(-1), normalised.cpu()))
    finally:
        torch.set_num_threads(threads)
    return torch.stack(vectors).to(moment)


def cholesky_qr(moment: Tensor, basis: Tensor) -> Tensor:
    """The orthonormal factor of `moment @ basis` but for the signs of its columns, in batched products and triangles.

    Shifted Cholesky QR (Fukaya et al., SIAM J. Sci. Comput. 42, 2020), in float64. Nothing waits for the device: a
    matrix that it cannot factor, such as zero, keeps its basis.
    """
    columns = moment.double() @ basis.double()
    columns = columns / columns.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    for turn in range(ROUNDS):
        products = columns.mT @ columns
        if not turn:
            products.diagonal(dim1=1, dim2=2).add_(SHIFT * basis.shape[1])
        lower = torch.linalg.cholesky_ex(products)[0]
        columns = torch.linalg.solve_triangular(lower, columns.mT, upper=False).mT
    unit = torch.eye(basis.shape[1], dtype=columns.dtype, device=columns.device)
    # False where it is not a number.
    good = (columns.mT @ columns - unit).abs().amax((1, 2)) < ASTRAY
    return torch.where(good[:, None, None], columns.to(basis.dtype), basis)
