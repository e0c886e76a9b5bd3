"""Patches of a grid of any rank: which cells share a token, grids to tokens and back, where a token lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmldm.interfaces import Geometry

__all__ = ["midpoints", "patchify", "resolve_patches", "unpatchify"]

Size = int | Sequence[int] | Mapping[str, int]


def resolve_patches(patch: Size | Mapping[str, Size], streams: Mapping[str, Geometry]) -> dict[str, tuple[int, ...]]:
    """Cells per token along each axis of each stream, from one number, one per axis, or a mapping by stream or axis."""
    known = set(streams) | {axis.name for g in streams.values() for axis in g.axes}
    for name in patch if isinstance(patch, Mapping) else ():
        if name not in known:
            raise ValueError(f"wanted patch sizes by stream or axis, got {name!r}; choose from {sorted(known)}")
    return {name: _of_stream(name, patch, geometry) for name, geometry in streams.items()}


def _of_stream(stream: str, patch: Any, geometry: Geometry) -> tuple[int, ...]:
    names = [axis.name for axis in geometry.axes]
    if isinstance(patch, Mapping) and stream in patch:
        patch = patch[stream]
    if isinstance(patch, Mapping):
        sizes = [patch.get(name, 1) for name in names]
    else:
        sizes = [patch] * len(names) if isinstance(patch, int) else list(patch)
    if len(sizes) != len(names) or not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise ValueError(f"wanted one patch size of 1 or more for each axis {names} of stream {stream!r}, got {patch!r}")
    return tuple(sizes)


def patchify(grid: Tensor, patch: Sequence[int], fill: float = 0.0) -> Tensor:
    """Grid (B, C, *L), padded with `fill` to whole patches -> tokens (B, N, C·prod(patch))."""
    missing = [-n % p for n, p in zip(grid.shape[2:], patch, strict=True)]
    if any(missing):
        grid = F.pad(grid, [side for m in reversed(missing) for side in (0, m)], value=fill)
    if all(p == 1 for p in patch):
        return grid.flatten(2).transpose(1, 2)
    split = [size for n, p in zip(grid.shape[2:], patch, strict=True) for size in (n // p, p)]
    places, inside = [2 + 2 * i for i in range(len(patch))], [3 + 2 * i for i in range(len(patch))]
    return grid.reshape(*grid.shape[:2], *split).permute(0, *places, 1, *inside).flatten(1, len(patch)).flatten(2)


def unpatchify(tokens: Tensor, patch: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Tokens (B, N, C·prod(patch)) -> grid (B, C, *cells), cropped to `cells`."""
    rank, counts = len(patch), [-(-n // p) for n, p in zip(cells, patch, strict=True)]
    split = tokens.unflatten(1, counts).unflatten(-1, (-1, *patch))
    order = [axis for i in range(rank) for axis in (1 + i, 2 + rank + i)]
    whole = [n * p for n, p in zip(counts, patch, strict=True)]
    grid = split.permute(0, 1 + rank, *order).reshape(len(tokens), -1, *whole)
    return grid[(slice(None), slice(None), *(slice(0, n) for n in cells))] if list(cells) != whole else grid


def midpoints(positions: Tensor, patch: Sequence[int]) -> Tensor:
    """Cell edges (*L, A, 2) or (B, *L, A, 2) -> the middle of each patch's cells (1 or B, N, A)."""
    rank = len(patch)
    if positions.ndim == rank + 2:
        positions = positions[None]
    begin, end = positions[..., 0], positions[..., 1]
    for axis, size in enumerate(patch, 1):
        count = positions.shape[axis]
        if size > 1:
            first = torch.arange(0, count, size, device=positions.device)
            begin, end = begin.index_select(axis, first), end.index_select(axis, (first + size - 1).clamp_max(count - 1))
    return ((begin + end) / 2).flatten(1, rank)
