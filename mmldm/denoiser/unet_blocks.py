"""Blocks of a U-Net over lists of cells: what a level knows of its grids, residual blocks, the resampling between levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.interfaces import Axis
from mmldm.nn.attention import normalise
from mmldm.nn.conv import Conv, Downsample, Upsample, per_axis
from mmldm.nn.transformer import ModulatedBlock, select

__all__ = ["Down", "ResidualBlock", "Scale", "UNetBlock", "Up", "kernels_of", "strides_of"]

Tables = tuple[Tensor, Tensor]
Stride = int | Sequence[int] | Mapping[str, int]


@dataclass(frozen=True)
class Scale:
    """What one level knows of its N cells: the sizes of the `grids` they fill in turn, which are `hidden` (B, N, 1), the
    noise level each hears (`chosen`, one-hot), rotary `tables` and the `mask` of what attention sees (None: all alike)."""

    grids: tuple[tuple[int, ...], ...]
    hidden: Tensor | None = None
    chosen: Tensor | None = None
    tables: Tables | None = None
    mask: Tensor | None = None

    def grid_wise(self, layer: nn.Module, x: Tensor, onto: Scale | None = None) -> Tensor:
        """A layer of grids (B, C, *L) on each of the grids in x (B, N, C), hidden cells 0 as beyond the edge; `onto` is the
        scale of the result where the layer changes the sizes, cropped to them."""
        if self.hidden is not None:
            x = x.masked_fill(self.hidden, 0.0)
        parts, results = x.split([prod(cells) for cells in self.grids], 1), []
        for part, cells, wanted in zip(parts, self.grids, (onto or self).grids, strict=True):
            y = layer(part.transpose(1, 2).unflatten(2, cells))
            y = y[(slice(None), slice(None), *(slice(0, n) for n in wanted))]
            results.append(y.flatten(2).transpose(1, 2))
        return results[0] if len(results) == 1 else torch.cat(results, 1)


class Down(Downsample):
    """Space to depth and a projection; a grid that the stride does not divide is continued with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [-n % s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        return super().forward(F.pad(x, [side for m in reversed(missing) for side in (0, m)]) if any(missing) else x)


class Up(Upsample):
    """A projection and depth to space, the mirror of Down: what exceeds the grid is for the caller to crop."""


class ResidualBlock(nn.Module):
    """x + conv(silu(modulated norm(conv(silu(norm(x)))))), scale and shift from the noise level (arXiv 2105.05233, section 3);
    the identity (or, between two widths, a projection) at first.

    Norms are per cell, so that neither padding nor another cell enters the statistics.
    """

    def __init__(self, rank: int, in_width: int, width: int, kernels: Sequence[Sequence[int]]):
        super().__init__()
        self.conv_in = Conv(rank, in_width, width, kernels[0])
        self.conv_out = Conv(rank, width, width, kernels[1])
        self.shortcut = nn.Linear(in_width, width) if in_width != width else nn.Identity()
        nn.init.zeros_(self.conv_out.conv.weight)

    def forward(self, x: Tensor, modulation: Tensor, scale: Scale) -> Tensor:
        """x (B, N, in_width), modulation (B, K, 2·width) for K noise levels -> (B, N, width)."""
        h = scale.grid_wise(self.conv_in, F.silu(normalise(x)))
        shift, gain = select(modulation, scale.chosen).chunk(2, -1)
        h = F.silu(normalise(h) * (1 + gain) + shift)
        return self.shortcut(x) + scale.grid_wise(self.conv_out, h)


class UNetBlock(nn.Module):
    """A residual block and, with `heads`, a modulated transformer block over the cells of all grids."""

    def __init__(
        self,
        rank: int,
        in_width: int,
        width: int,
        kernels: Sequence[Sequence[int]],
        heads: int = 0,
        mlp_ratio: float = 4.0,
        cross: bool = False,
    ):
        super().__init__()
        self.residual = ResidualBlock(rank, in_width, width, kernels)
        self.attention = ModulatedBlock(width, heads, mlp_ratio, cross) if heads else None

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        base: Tensor,
        scale: Scale,
        context: Tables | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, in_width), modulation (B, K, 2·width) of the residual and base (B, K, 6·width) of the transformer block,
        projected context and its mask (B, 1, 1, M) -> (B, N, width)."""
        x = self.residual(x, modulation, scale)
        if self.attention is None:
            return x
        return self.attention(x, base, scale.chosen, scale.tables, scale.mask, context, context_mask)


def kernels_of(axes: Sequence[Axis]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernels of a residual block's two convolutions: 3 along every axis, but of three axes with `time` the first convolution
    takes the others and the second takes time (arXiv 1711.11248, section 3.5)."""
    if not _is_clip(axes):
        return (3,) * len(axes), (3,) * len(axes)
    slow = [axis.name == "time" for axis in axes]
    return tuple(1 if s else 3 for s in slow), tuple(3 if s else 1 for s in slow)


def strides_of(strides: Sequence[Stride] | None, axes: Sequence[Axis], levels: int) -> list[tuple[int, ...]]:
    """Strides per axis of each descent: one number, one per axis, or a mapping by axis name; None: 2 everywhere, except along
    the `time` of three axes, whose cells are few."""
    names = [axis.name for axis in axes]
    if strides is None:
        strides = [[1 if _is_clip(axes) and name == "time" else 2 for name in names]] * (levels - 1)
    if len(strides) != levels - 1:
        raise ValueError(f"wanted a stride for each of the {levels - 1} descents between {levels} widths, got {strides}")
    for stride in strides:
        foreign = set(stride) - set(names) if isinstance(stride, Mapping) else ()
        if foreign:
            raise ValueError(f"wanted strides by axis, got {sorted(foreign)}; choose from {names}")
    each = [[s.get(name, 1) for name in names] if isinstance(s, Mapping) else s for s in strides]
    return [per_axis(stride, len(names), "stride") for stride in each]


def _is_clip(axes: Sequence[Axis]) -> bool:
    return len(axes) == 3 and any(axis.name == "time" for axis in axes)
