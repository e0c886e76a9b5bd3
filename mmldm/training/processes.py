"""What the processes of one training share beyond what Lightning does for them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["average_"]


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over all processes; with one process nothing happens."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    tensors = list(tensors)
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()
    torch._foreach_div_(tensors, dist.get_world_size())
