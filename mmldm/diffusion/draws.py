"""What training gives of a sample: one keyed law per item, of known cells, of references and of absent streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmldm import keyed
from mmldm.interfaces import Axis

__all__ = [
    "Box", "Drawn", "First", "KeyCell", "KnownDraw", "KnownMixture", "Nothing", "Prefix", "Span", "Suffix", "Whole",
]  # fmt: skip

Cells = Mapping[str, Sequence[int]]
Axes = Mapping[str, Sequence[Axis]]
Streams = tuple[str, ...] | None


class KnownDraw(ABC):
    """A law of known cells: draws one item's masks for all streams, in physical units, so that streams agree in time."""

    @abstractmethod
    def masks(self, random: torch.Generator, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        """The masks (*L) of the streams of which something is known."""

    def draw(self, key: Sequence[int | str], position: int, cells: Cells, axes: Axes) -> dict[str, Tensor]:
        """One item's masks (*L) bool of every stream, keyed by (*key, position)."""
        drawn = self.masks(keyed.generator(*key, int(position)), cells, axes)
        return {stream: drawn.get(stream, torch.zeros(tuple(size), dtype=torch.bool)) for stream, size in cells.items()}

    def places(self, key: Sequence[int | str], position: int, cells: Cells, axes: Axes) -> dict[str, tuple[int, int]]:
        """Of each stream (axis, cell): the cell along that axis which is given beside the grid, as a reference; keyed alike."""
        return {}


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
class KeyCell(Nothing):
    """One cell along an axis is given beside the grid, as a reference, at its own place: a key frame, a last frame.

    The place is a share of the extent between `low` and `high` (both 1: the end), the same for all streams. It is the cell of
    the clean latent, which under a codec with context knows what lies around it; in sampling the given media stand alone.
    """

    axis: str = "time"
    low: float = 0.0
    high: float = 1.0
    streams: Streams = None

    def __post_init__(self):
        _check_range(self.low, self.high)

    def places(self, key: Sequence[int | str], position: int, cells: Cells, axes: Axes) -> dict[str, tuple[int, int]]:
        random = keyed.generator(*key, int(position))
        share = self.low + (self.high - self.low) * float(torch.rand((), generator=random, dtype=torch.float64))
        having = _having(self.axis, axes, self.streams)
        ends = {s: axes[s][a].edges(cells[s][a])[:, 1].double().contiguous() for s, a in having}
        at = share * max((float(e[-1]) for e in ends.values()), default=0.0)
        return {s: (a, min(int(torch.searchsorted(ends[s], at, right=True)), cells[s][a] - 1)) for s, a in having}


@dataclass(frozen=True)
class Drawn:
    """A batch of draws: `known[stream]` (B, *L) bool, `absent[stream]` (B,) bool (level t = 1, loss 0) and, where cells are
    given as references, `places[stream][axis]` (B,): which cell along that axis, -1 for none."""

    known: dict[str, Tensor]
    absent: dict[str, Tensor]
    places: dict[str, dict[int, Tensor]] = field(default_factory=dict)


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
        return Drawn({s: torch.stack([known[s] for known, _, _ in items]) for s in cells},
                     {s: torch.tensor([s in absent for _, absent, _ in items]) for s in cells},
                     {s: _by_axis([places.get(s) for _, _, places in items]) for s in cells})  # fmt: skip

    def _item(
        self, key: Sequence[int | str], position: int, cells: Cells, axes: Axes
    ) -> tuple[dict[str, Tensor], set[str], dict[str, tuple[int, int]]]:
        random = keyed.generator(*key, "which", position)
        u, *chances = torch.rand(1 + len(cells), generator=random, dtype=torch.float64).tolist()
        chosen: KnownDraw = Nothing()
        for probability, draw in self.draws:
            if 0 <= u < probability:
                chosen = draw
                break
            u -= probability
        known = chosen.draw((*key, "known"), position, cells, axes)
        places = chosen.places((*key, "places"), position, cells, axes)
        free = [s for s in cells if not bool(known[s].all())]
        absent: set[str] = set()
        for stream, chance in zip(cells, chances, strict=True):
            wanted = chance < self.absent.get(stream, 0.0) and not bool(known[stream].any()) and stream not in places
            if wanted and any(s != stream and s not in absent for s in free):
                absent.add(stream)
        return known, absent, places


def _by_axis(places: Sequence[tuple[int, int] | None]) -> dict[int, Tensor]:
    """One (axis, cell) or None per item -> by axis the cells (B,), -1 where an item has none along it."""
    axes = sorted({place[0] for place in places if place is not None})
    return {a: torch.tensor([place[1] if place is not None and place[0] == a else -1 for place in places]) for a in axes}


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
