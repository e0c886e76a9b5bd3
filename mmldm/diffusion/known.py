"""Known cells: what of a stream is given, in sampling and in training, as one mask mechanism for every edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm.interfaces import Axis, Reference

__all__ = ["Context", "cells_covered", "merge", "reference_cells", "samples_covered", "snap"]


@dataclass(frozen=True)
class Context:
    """What is given of one stream: `positions` (*L, A, 2) or (B, *L, A, 2), the clean latent `z` (B, D, *L) and where it is
    `known` (B, *L), which cells are `valid` (B, *L; None: all), and known media appended as `references`."""

    positions: Tensor | None = None
    z: Tensor | None = None
    known: Tensor | None = None
    valid: Tensor | None = None
    references: tuple[Reference, ...] = ()

    def __post_init__(self):
        known, z = self.known, self.z
        if known is None:
            return
        if z is None:
            raise ValueError("wanted z with a known mask, got None: known cells need their latents")
        if known.shape != z.shape[:1] + z.shape[2:] or known.dtype != torch.bool:
            raise ValueError(f"wanted known (B, *L) bool for z {tuple(z.shape)}, got {tuple(known.shape)} {known.dtype}")

    @property
    def free(self) -> Tensor | None:
        """Where a prediction is made: valid and not known, (B, *L); None: everywhere."""
        if self.known is None:
            return self.valid
        return ~self.known if self.valid is None else ~self.known & self.valid


def merge(z_hat: Tensor, context: Context | None) -> Tensor:
    """z_hat (B, D, *L) with z, equal to the bit, where it is known."""
    if context is None or context.known is None:
        return z_hat
    return torch.where(context.known[:, None], context.z.to(z_hat), z_hat)


def snap(mask: Tensor, patch: Sequence[int]) -> Tensor:
    """Shrink a mask (..., *L) to whole patches: a cell stays True if its whole patch is (cut-off patches: all they have)."""
    for axis, size in zip(range(-len(patch), 0), patch, strict=True):
        length = mask.shape[axis]
        missing = -length % size
        if missing:
            mask = torch.cat([mask, torch.ones_like(mask.narrow(axis, 0, 1)).repeat_interleave(missing, axis)], axis)
        whole = mask.unflatten(axis, (-1, size)).all(axis)
        mask = whole.repeat_interleave(size, axis).narrow(axis, 0, length)
    return mask


# ---------------------------------------------------------------- from known media to known cells


def cells_covered(mask: Tensor, axes: Sequence[Axis], fields: Sequence[tuple[float, float]] | None = None) -> Tensor:
    """A mask of known media samples (..., *S) -> the mask of cells (..., *L) all of whose samples are known.

    `fields` gives for each axis how many samples before and after its own an encoding sees (inf: all): then these must be
    known too, so that the cell is determined. What lies outside the media counts as known.
    """
    for dim, (axis, field) in enumerate(zip(axes, fields or [(0, 0)] * len(axes), strict=True), start=-len(axes)):
        length = mask.shape[dim]
        before, after = (int(min(far, length)) for far in field)
        end = (axis.first + axis.size * torch.arange(axis.cells(length), device=mask.device)).clamp(max=length)
        begin = torch.cat([end.new_zeros(1), end[:-1]])
        begin, end = (begin - before).clamp(min=0), (end + after).clamp(max=length)
        holes = torch.cat([torch.zeros_like(mask.narrow(dim, 0, 1), dtype=torch.int64), (~mask).cumsum(dim)], dim)
        mask = holes.index_select(dim, end) == holes.index_select(dim, begin)
    return mask


def samples_covered(mask: Tensor, axes: Sequence[Axis], shape: Sequence[int]) -> Tensor:
    """A mask of cells (..., *L) -> the mask of the media samples (..., *S), S = `shape`, that they hold."""
    for dim, (axis, length) in enumerate(zip(axes, shape, strict=True), start=-len(axes)):
        cell = (torch.arange(length, device=mask.device) - axis.first).div(axis.size, rounding_mode="floor") + 1
        mask = mask.index_select(dim, cell.clamp(min=0))
    return mask


# ---------------------------------------------------------------- beside the grid


def reference_cells(
    z: Tensor, positions: Tensor, cells: Mapping[int, Tensor], valid: Tensor | None = None
) -> tuple[Reference, ...]:
    """Cells of z (B, D, *L) at `positions` (*L, A, 2) as references, one for each axis in `cells`.

    cells[axis] (B,) is the cell taken along that axis (all of the others), -1 in rows without one; a row whose cell is not
    wholly `valid` (B, *L) has none either. An axis that no row asks for gives no reference.
    """
    found = []
    for axis, cell in sorted(cells.items()):
        if not bool((cell >= 0).any()):
            continue
        cell = cell.to(z.device)
        rows, present = cell.clamp(min=0), cell >= 0
        part = [1 if i == axis else n for i, n in enumerate(z.shape[2:])]
        place = rows.reshape(-1, *[1] * len(part))
        if valid is not None:
            present = present & valid.gather(1 + axis, place.expand(-1, *part)).flatten(1).all(1)
        at = positions.index_select(axis, rows.to(positions.device)).movedim(axis, 0).unsqueeze(1 + axis)
        found.append(Reference(z.gather(2 + axis, place[:, None].expand(-1, z.shape[1], *part)), at, present))
    return tuple(found)
