"""Means of named numbers over a window of steps, gathered without waiting for the device."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Tally", "bins"]


class Tally:
    """Sums and counts by name, kept where they were computed; `means` waits for them, `add` never does."""

    def __init__(self) -> None:
        self.sums: dict[tuple[Hashable, ...], Tensor] = {}

    def add(self, names: Iterable[Hashable], sums: Tensor, counts: Tensor | int) -> None:
        """Add the sums (K,) of `counts` (K,) values under K names; a scalar is one of each."""
        names = tuple(names)
        sums = sums.detach().to(torch.promote_types(sums.dtype, torch.float32)).reshape(len(names))
        pair = torch.stack([sums, torch.as_tensor(counts, device=sums.device).to(sums).expand(len(names))])
        self.sums[names] = self.sums[names] + pair if names in self.sums else pair

    def means(self) -> dict[Hashable, float]:
        """The mean by name over all processes, names without a count left out; every process must ask. Starts anew."""
        pairs, self.sums = [(names, pair.tolist()) for names, pair in self.sums.items()], {}
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:  # each may know other names
            parts: list = [None] * dist.get_world_size()
            dist.all_gather_object(parts, pairs)
            pairs = [pair for part in parts for pair in part]
        found: dict[Hashable, list[float]] = {}
        for names, (sums, counts) in pairs:
            for name, total, count in zip(names, sums, counts, strict=True):
                old = found.get(name, (0.0, 0.0))
                found[name] = [old[0] + total, old[1] + count]
        return {name: total / count for name, (total, count) in found.items() if count > 0}


def bins(values: Tensor, where: Tensor, centres: Iterable[float]) -> tuple[Tensor, Tensor]:
    """Sums (K,) and counts (K,) of the values (B,) by the nearest of K centres to their place `where` (B,) in [0, 1]; a place
    outside [0, 1] counts nowhere."""
    centres = torch.tensor(list(centres), device=where.device, dtype=where.dtype)
    nearest = (where[:, None] - centres).abs().argmin(1, keepdim=True)
    inside = (nearest == torch.arange(len(centres), device=where.device)) & ((where >= 0) & (where <= 1))[:, None]
    return (inside * values.detach()[:, None]).sum(0), inside.sum(0)
