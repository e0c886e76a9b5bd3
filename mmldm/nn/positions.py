"""Positions: Fourier features of numbers, and axial rotary embedding of points in physical units."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["AxialAngles", "Fourier", "Frequencies", "LevelEmbedding", "rotary_tables", "rotate"]


class Frequencies(nn.Module):
    """A fixed row of frequencies that stays float32 or wider when the module around it becomes half precision."""

    def __init__(self, frequency: Tensor):
        super().__init__()
        self.register_buffer("frequency", frequency.float(), persistent=False)

    def _apply(self, fn, recurse: bool = True):
        exact = self.frequency
        super()._apply(fn, recurse)
        if self.frequency.dtype.itemsize < exact.dtype.itemsize and self.frequency.dtype.itemsize < 4:
            self.frequency = exact.to(self.frequency.device)
        return self


class Fourier(Frequencies):
    """Cosines and sines of a number in [0, 1] (...) -> (..., 2·pairs), frequencies geometric from pi/2 to pi·2^7."""

    def __init__(self, pairs: int = 64):
        super().__init__(math.pi / 2 * 256.0 ** torch.linspace(0, 1, pairs, dtype=torch.float64))
        self.width = 2 * pairs

    def forward(self, x: Tensor) -> Tensor:
        angle = x.to(self.frequency.dtype)[..., None] * self.frequency
        return torch.cat([angle.cos(), angle.sin()], -1)


class LevelEmbedding(nn.Sequential):
    """Noise levels in [0, 1] (...) -> vectors (..., width): Fourier features in float32 or wider, layers in their own type."""

    def __init__(self, width: int):
        fourier = Fourier()
        super().__init__(fourier, nn.Linear(fourier.width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level: Tensor) -> Tensor:
        fourier, *layers = self
        heard = fourier(level).to(layers[0].weight.dtype)
        for layer in layers:
            heard = layer(heard)
        return heard


class AxialAngles(Frequencies):
    """Angles of points for rotary embedding, the pairs of a head shared out among named axes.

    `extents[axis]` is the extent of one token in that axis's unit: frequencies fall geometrically from 1 rad per token to
    1/`longest` rad, so an axis of any name and unit works (RoFormer, arXiv 2104.09864, eq. 15, one set per axis).
    """

    def __init__(self, dim: int, extents: Mapping[str, float], longest: float = 256.0):
        pairs, axes = dim // 2, tuple(extents)
        if dim % 2 or not 1 <= len(axes) <= pairs:
            raise ValueError(f"wanted an even dimension with a pair for each axis of {list(extents)}, got {dim}")
        counts = [pairs // len(axes) + (a < pairs % len(axes)) for a in range(len(axes))]
        falling = [longest ** -(torch.arange(n, dtype=torch.float64) / max(1, n - 1)) for n in counts]
        super().__init__(torch.cat([f / extents[axis] for axis, f in zip(axes, falling, strict=True)]))
        self.axes, self.counts = axes, counts

    def forward(self, points: Tensor, axes: tuple[str, ...]) -> Tensor:
        """Points (..., A) whose columns are `axes` -> angles (..., dim/2); an axis they lack counts as 0."""
        points = points.to(self.frequency.dtype)
        zero = torch.zeros_like(points[..., :1])
        columns = [points[..., axes.index(a), None] if a in axes else zero for a in self.axes]
        angles = [c * f for c, f in zip(columns, self.frequency.split(self.counts), strict=True)]
        return torch.cat(angles, -1)


def rotary_tables(angles: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Angles (B or 1, N, dim/2) -> the (cos, signed sin) that `rotate` wants; written out over q, k and heads where B = 1, so
    that a batch is rotated in long contiguous runs."""
    cos, sin = angles.cos(), angles.sin()
    tables = [torch.cat(pair, -1)[:, :, None, None] for pair in ((cos, cos), (-sin, sin))]
    if len(angles) == 1:
        tables = [t.expand(-1, -1, 2, heads, -1).contiguous() for t in tables]
    return tables[0], tables[1]


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B, N, 2, heads, dim) by its tables: pair i is (x_i, x_{i + dim/2})."""
    cos, sin = tables
    return x.roll(x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)
