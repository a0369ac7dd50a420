"""This process among those of `torchrun`, or alone."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Number `rank` of `size` processes that train one model on `device`."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over all processes."""
        if self.size == 1:
            return module
        known = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
        return DistributedDataParallel(module, **{option: False})

    def agree(self, value: float) -> float:
        """The first process's value."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared.item())

    def share(self, x: Tensor) -> Tensor:
        """The first process's `x`, in place."""
        if self.size > 1:
            dist.broadcast(x, 0)
        return x

    def mean(self, x: Tensor) -> None:
        """The mean of all processes' `x`, in place."""
        if self.size > 1:
            dist.all_reduce(x)
            x /= self.size

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block before the others enter it."""
        if self.size > 1 and self.rank:
            dist.barrier()
        yield
        if self.size > 1 and not self.rank:
            dist.barrier()


ALONE = World()


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world that `torchrun` made, left at the end; without it, this process alone.

    Args:
        device: "cuda" becomes the GPU of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # where kernels are launched
        yield World(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
