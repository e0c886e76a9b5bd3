"""Known cells: what of a stream is given, in sampling and in training, as one mask mechanism for every edit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm import keyed
from mmldm.interfaces import Axis, Reference

__all__ = [
    "Box", "Context", "Drawn", "First", "KnownDraw", "KnownMixture", "Nothing", "Prefix", "Span", "Suffix", "Whole",
    "cells_covered", "cells_known", "merge", "snap",
]  # fmt: skip

Cells = Mapping[str, Sequence[int]]
Axes = Mapping[str, Sequence[Axis]]
Streams = tuple[str, ...] | None


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


# ---------------------------------------------------------------- masks of training


class KnownDraw(ABC):
    """A law of known cells: draws one item's masks for all streams, in physical units, so that streams agree in time."""

    @abstractmethod
    def masks(self, random: torch.Generator, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        """The masks (*L) of the streams of which something is known."""

    def draw(self, key: Sequence[int | str], position: int, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        """One item's masks (*L) bool of every stream, keyed by (*key, position)."""
        drawn = self.masks(keyed.generator(*key, int(position)), cells, axes)
        return {stream: drawn.get(stream, torch.zeros(tuple(size), dtype=torch.bool)) for stream, size in cells.items()}


class Nothing(KnownDraw):
    """Nothing is known: plain generation."""

    def masks(self, random: torch.Generator, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class First(KnownDraw):
    """The first `count` cells along an axis are known (of a causal codec: a still that begins the clip)."""

    axis: str = "time"
    count: int = 1
    streams: Streams = None

    def masks(self, random: torch.Generator, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        having = _having(self.axis, axes, self.streams)
        return {s: _lines(cells[s], a, torch.arange(cells[s][a]) < self.count) for s, a in having}


@dataclass(frozen=True)
class Box(KnownDraw):
    """A box is unknown (or, `inside`, known): along each of `axes` a share of the extent between `low` and `high`, anywhere.

    The streams that have any of the axes share the box; along their other axes it is everything.
    """

    axes: tuple[str, ...] = ("height", "width")
    low: float = 0.25
    high: float = 0.75
    inside: bool = False
    streams: Streams = None

    def __post_init__(self):
        _check_range(self.low, self.high)

    def interval(self, random: torch.Generator) -> tuple[float, float]:
        """Begin and end of the box as shares of an axis."""
        size, place = torch.rand(2, generator=random, dtype=torch.float64).tolist()
        size = self.low + size * (self.high - self.low)
        return place * (1 - size), place * (1 - size) + size

    def masks(self, random: torch.Generator, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        boxes: dict[str, Tensor] = {}
        for name in self.axes:
            low, high = self.interval(random)
            having = _having(name, axes, self.streams)
            edges = {s: axes[s][a].edges(cells[s][a]).double() for s, a in having}
            extent = max((float(e[-1, 1]) for e in edges.values()), default=0.0)
            for s, a in having:
                begin, end = edges[s].unbind(-1)
                slack = 0.01 * axes[s][a].unit
                if self.inside:
                    line = (begin >= low * extent - slack) & (end <= high * extent + slack)
                else:
                    line = (end > low * extent + slack) & (begin < high * extent - slack)
                boxes[s] = boxes.get(s, torch.ones((), dtype=torch.bool)) & _lines(cells[s], a, line)
        return boxes if self.inside else {s: ~box for s, box in boxes.items()}


class Span(Box):
    """A span along one axis is unknown, what lies before and after it is known (or, `inside`, the reverse)."""

    def __init__(self, axis: str = "time", low: float = 0.1, high: float = 0.9, inside: bool = False, streams: Streams = None):
        super().__init__((axis,), low, high, inside, streams)


class Prefix(Box):
    """The beginning of an axis is known, a share of it between `low` and `high` (extension)."""

    def __init__(self, axis: str = "time", low: float = 0.1, high: float = 0.9, streams: Streams = None):
        super().__init__((axis,), low, high, True, streams)

    def interval(self, random: torch.Generator) -> tuple[float, float]:
        return 0.0, self.low + float(torch.rand((), generator=random, dtype=torch.float64)) * (self.high - self.low)


class Suffix(Prefix):
    """The end of an axis is known; not for causal codecs, whose later cells know the beginning."""

    def interval(self, random: torch.Generator) -> tuple[float, float]:
        return 1.0 - super().interval(random)[1], 1.0


@dataclass(frozen=True)
class Whole(KnownDraw):
    """One stream is known entirely: the others are made for it."""

    stream: str

    def masks(self, random: torch.Generator, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        if self.stream not in cells:
            raise ValueError(f"wanted a stream to be known wholly, got {self.stream!r}; choose from {sorted(cells)}")
        return {self.stream: torch.ones(tuple(cells[self.stream]), dtype=torch.bool)}


@dataclass(frozen=True)
class Drawn:
    """A batch of draws: `known[stream]` (B, *L) bool and `absent[stream]` (B,) bool (level t = 1, loss 0)."""

    known: dict[str, Tensor]
    absent: dict[str, Tensor]


class KnownMixture:
    """One law per item: `draws` are (probability, KnownDraw), the rest is Nothing; `absent` gives the probability that a stream
    is not there, in their order. A stream of which something is known is never absent; something always remains to be made."""

    def __init__(self, draws: Sequence[tuple[float, KnownDraw]] = (), absent: Mapping[str, float] | None = None):
        self.draws, self.absent = [(float(p), draw) for p, draw in draws], dict(absent or {})
        every = [p for p, _ in self.draws]
        if any(not 0 <= p <= 1 for p in (*every, *self.absent.values())) or sum(every) > 1 + 1e-9:
            raise ValueError(f"wanted probabilities in [0, 1] whose sum is at most 1, got {every} and {self.absent}")

    def __call__(self, key: Sequence[int | str], positions: Sequence[int] | Tensor, cells: Cells, axes: Axes) -> Drawn:
        """The draws of a batch, item i keyed by (*key, positions[i]) alone."""
        unknown = set(self.absent) - set(cells)
        if unknown:
            raise ValueError(f"wanted absent streams among {sorted(cells)}, got {sorted(unknown)}")
        items = [self._item(key, int(p), cells, axes) for p in positions]
        return Drawn({s: torch.stack([known[s] for known, _ in items]) for s in cells},
                     {s: torch.tensor([s in absent for _, absent in items]) for s in cells})  # fmt: skip

    def _item(self, key: Sequence[int | str], position: int, cells: Cells, axes: Axes) -> tuple[dict[str, Tensor], set[str]]:
        random = keyed.generator(*key, "which", position)
        u, *chances = torch.rand(1 + len(cells), generator=random, dtype=torch.float64).tolist()
        chosen: KnownDraw = Nothing()
        for probability, draw in self.draws:
            if 0 <= u < probability:
                chosen = draw
                break
            u -= probability
        known = chosen.draw((*key, "known"), position, cells, axes)
        free = [s for s in cells if not bool(known[s].all())]
        absent: set[str] = set()
        for stream, chance in zip(cells, chances, strict=True):
            wanted = chance < self.absent.get(stream, 0.0) and not bool(known[stream].any())
            if wanted and any(s != stream and s not in absent for s in free):
                absent.add(stream)
        return known, absent


def _having(name: str, axes: Axes, streams: Streams) -> list[tuple[str, int]]:
    """The streams (of those wanted) that have the axis, with its index."""
    wanted = [s for s in axes if streams is None or s in streams]
    return [(s, i) for s in wanted for i, axis in enumerate(axes[s]) if axis.name == name]


def _lines(size: Sequence[int], axis: int, line: Tensor) -> Tensor:
    """A mask along one axis, the same along the others: (*L)."""
    return line.reshape([-1 if i == axis else 1 for i in range(len(size))]).expand(*size)


def _check_range(low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise ValueError(f"wanted 0 <= low <= high <= 1, got {low} and {high}")
