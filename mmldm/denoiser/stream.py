"""One stream of a diffusion transformer: its grids to tokens, and tokens back to its grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmldm.denoiser.patches import midpoints, patchify, unpatchify
from mmldm.interfaces import Geometry, Noisy, Reference

__all__ = ["Segment", "StreamTokens", "token_extents"]


@dataclass(frozen=True)
class Segment:
    """Tokens (B, N, W) of one grid: `points` (1 or B, N, A); `known` and `valid` (B, N), None: none known, all valid."""

    tokens: Tensor
    points: Tensor
    known: Tensor | None
    valid: Tensor | None


class StreamTokens(nn.Module):
    """Patch embedding and output of one stream; the known mask and aligned conditions enter as further channels."""

    def __init__(self, geometry: Geometry, patch: tuple[int, ...], width: int, aligned: int = 0):
        super().__init__()
        self.channels, self.axes, self.patch, self.aligned = geometry.channels, geometry.axes, patch, aligned
        self.embed = nn.Linear((geometry.channels + 1 + aligned) * math.prod(patch), width)
        self.out = nn.Linear(width, geometry.channels * math.prod(patch))

    def segments(self, noisy: Noisy, aligned: Tensor | None) -> list[Segment]:
        """The stream's own tokens, then those of each reference."""
        return [self._own(noisy, aligned), *(self._reference(r) for r in noisy.references)]

    def grid(self, tokens: Tensor, cells: tuple[int, ...]) -> Tensor:
        """Normalised tokens (B, N, W) -> the prediction (B, D, *cells)."""
        return unpatchify(self.out(tokens), self.patch, cells)

    def _own(self, noisy: Noisy, aligned: Tensor | None) -> Segment:
        z, known, valid = noisy.z, noisy.known, noisy.valid
        mask = torch.zeros_like(z[:, :1]) if known is None else known[:, None].to(z.dtype)
        grid = self._stack(z, mask, aligned)
        if valid is not None:
            grid = grid.masked_fill(~valid[:, None], 0.0)
        if known is not None:
            settled = known if valid is None else known | ~valid
            known = patchify(settled[:, None], self.patch, True).all(-1)
        if valid is not None:
            valid = patchify(valid[:, None], self.patch, False).any(-1)
        return Segment(self._embedded(grid), midpoints(noisy.positions, self.patch), known, valid)

    def _reference(self, reference: Reference) -> Segment:
        z = reference.z
        grid = self._stack(z, torch.ones_like(z[:, :1]), None)
        tokens = self._embedded(grid)
        known = torch.ones(tokens.shape[:2], dtype=torch.bool, device=z.device)
        valid = None if reference.present is None else reference.present[:, None] & known
        return Segment(tokens, midpoints(reference.positions, self.patch), known, valid)

    def _embedded(self, grid: Tensor) -> Tensor:
        """Grid (B, C, *L) -> tokens (B, N, W), in the type of the weights."""
        return self.embed(patchify(grid.to(self.embed.weight.dtype), self.patch))

    def _stack(self, z: Tensor, mask: Tensor, aligned: Tensor | None) -> Tensor:
        if self.aligned and aligned is None:
            aligned = z.new_zeros(len(z), self.aligned, *z.shape[2:])
        if self.aligned and aligned.shape[2:] != z.shape[2:]:
            raise ValueError(f"wanted an aligned condition on the grid {tuple(z.shape[2:])}, got {tuple(aligned.shape[2:])}")
        return torch.cat([z, mask] + ([aligned.to(z.dtype)] if self.aligned else []), 1)


def token_extents(streams: Mapping[str, Geometry], patches: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """The extent of one token along each axis name of any stream, the smallest where streams share a name."""
    extents: dict[str, float] = {}
    for name, geometry in streams.items():
        for axis, size in zip(geometry.axes, patches[name], strict=True):
            extent = axis.size * axis.unit * size
            extents[axis.name] = min(extent, extents.get(axis.name, extent))
    return extents
