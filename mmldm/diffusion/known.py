"""Known cells: what of a stream is given, in sampling and in training, as one mask mechanism for every edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm.interfaces import Axis, Reference

__all__ = ["Context", "cells_covered", "cells_kept", "cells_known", "merge", "reference_cells", "snap"]


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


def cells_covered(
    mask: Tensor, axes: Sequence[Axis], lookahead: int | None = None, reach: Mapping[str, int] | None = None
) -> Tensor:
    """A mask of known media samples (..., *S) -> the mask of cells (..., *L) that they determine.

    A cell is known when all its samples are, and `reach[axis]` samples on either side (what lies outside the media counts as
    known). `lookahead` is the codec's: None asks no more; a number (0: causal) asks for everything from the beginning of the
    axis `time` to `lookahead` samples after the cell, so that only prefixes can be known.
    """
    for dim, axis in zip(range(-len(axes), 0), axes, strict=True):
        length = mask.shape[dim]
        end = (axis.first + axis.size * torch.arange(axis.cells(length), device=mask.device)).clamp(max=length)
        begin = torch.cat([end.new_zeros(1), end[:-1]])
        margin = (reach or {}).get(axis.name, 0)
        begin, end = (begin - margin).clamp(min=0), (end + margin).clamp(max=length)
        if lookahead is not None and axis.name == "time":
            begin, end = torch.zeros_like(begin), (end + lookahead).clamp(max=length)
        holes = torch.cat([torch.zeros_like(mask.narrow(dim, 0, 1), dtype=torch.int64), (~mask).cumsum(dim)], dim)
        mask = holes.index_select(dim, end) == holes.index_select(dim, begin)
    return mask


def cells_known(
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    axes: Sequence[Axis],
    shape: Sequence[int],
    lookahead: int | None = None,
    start: float = 0.0,
    reach: Mapping[str, int] | None = None,
) -> Tensor:
    """Known intervals in physical units per axis name -> cells (*L) of a media grid *S = `shape` that lie wholly within them.

    An axis without intervals is known all along, several axes make boxes; on the axis `time` the grid begins at `start`
    seconds. {"time": [(0, 1.5)]} is a prefix; {} is everything. The rest as in `cells_covered`.
    """
    unknown = set(intervals) - {axis.name for axis in axes}
    if unknown:
        raise ValueError(f"wanted intervals on {[axis.name for axis in axes]}, got {sorted(unknown)}")
    out = torch.ones((), dtype=torch.bool)
    for axis, length in zip(axes, shape, strict=True):
        samples = torch.ones(length, dtype=torch.bool)
        if axis.name in intervals:
            begin = torch.arange(length, dtype=torch.float64) + (start / axis.unit if axis.name == "time" else 0.0)
            ends = [(low / axis.unit - 1e-3, high / axis.unit + 1e-3) for low, high in intervals[axis.name]]
            inside = [(begin >= low) & (begin + 1 <= high) for low, high in ends]
            samples = torch.stack([torch.zeros_like(samples), *inside]).any(0)
        out = out[..., None] & cells_covered(samples, [axis], lookahead, reach)
    return out


def cells_kept(
    span: tuple[float, float],
    seconds: float | None,
    axes: Sequence[Axis],
    cells: Sequence[int],
    lookahead: int | None,
    patch: Sequence[int],
) -> Tensor:
    """Cells (*L) of a clip of `seconds` (None: a still, kept wholly) that hold the seconds [start, end) of `span`, in whole
    patches; raises ValueError, with what could be kept, where no cell can hold it."""
    if seconds is None:
        return torch.ones(tuple(cells), dtype=torch.bool)
    start, end = span[0], span[1] if span[1] < seconds else float("inf")
    got = f"got {span[0]:g}:{span[1]:g}; choose 0:{seconds:g}, or give media as a reference"
    if lookahead is None and (start > 0 or end < seconds):
        raise ValueError(f"wanted a codec that is causal in time to keep a part, {got}")
    if start > 0:
        raise ValueError(f"wanted a part from the start to keep (0:END), as a codec that is causal in time can hold, {got}")
    lengths = [axis.length(n) for axis, n in zip(axes, cells, strict=True)]
    mask = snap(cells_known({"time": [(start, end)]}, axes, lengths, lookahead), patch)
    if not bool(mask.any()):
        (axis, size), *_ = [(a, p) for a, p in zip(axes, patch, strict=True) if a.name == "time"]
        least = min((axis.length(size) + (lookahead or 0)) * axis.unit, seconds)
        raise ValueError(f"wanted at least {least:.3g} s from the start to keep, {got}")
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
