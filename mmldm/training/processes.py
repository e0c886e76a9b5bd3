"""What the processes of one training share beyond what Lightning does for them: averages, and tensors in shards (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["average_", "full", "gathered", "is_sharded", "local", "placed", "whole"]


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over all processes; with one process nothing happens."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    tensors = list(tensors)
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()
    torch._foreach_div_(tensors, dist.get_world_size())


# ---------------------------------------------------------------- shards


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards in every process, or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards, on the CPU: every process must ask, the first is given it and others something empty.

    A tensor that is not sharded is given back as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = full(tensor)
    return gathered.cpu() if dist.get_rank() == 0 else gathered.new_empty(0)


def placed(tensor: Tensor, p: Tensor) -> Tensor:
    """A whole tensor that every process has, on the device and in the shards of `p`."""
    if isinstance(p, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor.detach().to(p.device), p.device_mesh, p.placements, src_data_rank=None)
    return tensor.detach().to(p.device)


def is_sharded(module: nn.Module) -> bool:
    """Whether every process must take part in whatever uses the weights of a module."""
    return isinstance(module, FSDPModule)


@contextmanager
def gathered(module: LightningModule) -> Iterator[None]:
    """Inside this context, which every process must enter, the parts of a sharded module can be called outside its steps.

    They compute in the precision of the training, as gathered layers do.
    """
    if not is_sharded(module):
        yield
        return
    module.unshard()
    try:
        with module.trainer.precision_plugin.forward_context():
            yield
    finally:
        module.reshard()
