"""An operator applied to a signal piece by piece: windows with context along one dimension, tiles with halos over others.

Exact where every output depends on a bounded neighbourhood of the input that the context covers; else neighbours are
cross-faded. Positions are counted in cells; an Axis says how many samples the cells of a side have (`GRID`: one each).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmldm.records import Axis

__all__ = ["GRID", "Context", "Window", "advance", "chunked", "complete", "tiled"]

GRID = Axis("cell", 1, 1, 1.0)


@dataclass(frozen=True)
class Context:
    """How an operator reads one dimension: cells as samples `given` and `made`, cells `before` and `after` that it sees
    beyond its own, and over how many cells neighbouring pieces are cross-faded (0: exact)."""

    given: Axis
    made: Axis
    before: int = 0
    after: int = 0
    fade: int = 0

    @classmethod
    def of(cls, given: Axis, made: Axis, before: float, after: float, size: int | None) -> Context:
        """What cells see beyond their own, rounded up; where that is unbounded, pieces of `size` cells are cross-faded,
        which takes at least 8 of them."""
        size = 16 if size is None else size
        unbounded = math.inf in (before, after)
        if size < 1:
            raise ValueError(f"wanted pieces of at least 1 cell, got {size}")
        before, after = (size // 4 if far == math.inf else far for far in (before, after))
        before = math.ceil(before + 1 - given.first / given.size)  # what is put before a lone first sample is not there
        return cls(given, made, max(before, int(made.first != made.size)), math.ceil(after), size // 8 if unbounded else 0)

    def begin(self, cell: int) -> int:
        """The sample at which an input must begin for its first cell to be (or to stand where) `cell` is."""
        return 0 if cell == 0 else self.given.length(cell + 1) - self.given.first

    def piece(self, y: Tensor, dim: int, origin: int, start: int, end: int) -> Tensor:
        """Cells start to end of an output that begins at cell `origin`."""
        low = self.made.length(start - origin) if start > origin else 0
        return y.narrow(dim, low, self.made.length(end - origin) - low)


def complete(axis: Axis, samples: int) -> int:
    """Cells that `samples` samples fill."""
    return 0 if samples < axis.first else 1 + (samples - axis.first) // axis.size


# ---------------------------------------------------------------- one dimension, as it comes


@dataclass(frozen=True)
class Window:
    """Between two pieces: the input still needed, the cell that it begins at, cells made so far, what waits to be faded."""

    kept: Tensor
    origin: int
    made: int
    tail: Tensor | None = None


def advance(
    run: Callable[[Tensor], Tensor], x: Tensor | None, state: Window | None, last: bool, dim: int, context: Context
) -> tuple[Tensor | None, Window | None]:
    """The next piece of `run` over a signal of which `x` is the next part: what can be told already, None where nothing.

    `run` maps a part of the signal to its cells; where its input begins or ends within the signal, its first and last cells
    within the context are dropped.
    """
    kept = x if state is None else state.kept if x is None else torch.cat([state.kept, x], dim)
    if kept is None:
        if last:
            raise ValueError("wanted at least one sample before the end, got none")
        return None, None
    origin, made = (0, 0) if state is None else (state.origin, state.made)
    tail = None if state is None else state.tail
    received = context.begin(origin) + kept.shape[dim]
    ready = context.given.cells(received) if last else complete(context.given, received) - context.after
    given_out = ready if last else ready - context.fade
    if ready <= made or given_out <= made:
        return (tail if last else None), (None if last else Window(kept.clone(), origin, made, tail))
    y = run(kept)
    fresh = context.piece(y, dim, origin, made, ready)
    if tail is not None:
        fresh = _joined(tail, fresh, dim)
    size = context.made.length(given_out) - (context.made.length(made) if made else 0)
    if last:
        return fresh, None
    keep = max(origin, given_out - context.before)
    rest = kept.narrow(dim, context.begin(keep) - context.begin(origin), received - context.begin(keep)).clone()
    tail = fresh.narrow(dim, size, fresh.shape[dim] - size).clone() if context.fade else None
    return fresh.narrow(dim, 0, size), Window(rest, keep, given_out, tail)


def _joined(old: Tensor, new: Tensor, dim: int) -> Tensor:
    """`new` with its beginning faded in over `old`."""
    size = old.shape[dim]
    weight = _ramp(size, new, dim)
    begin = torch.lerp(old, new.narrow(dim, 0, size), weight)
    return torch.cat([begin, new.narrow(dim, size, new.shape[dim] - size)], dim)


def _ramp(size: int, like: Tensor, dim: int) -> Tensor:
    ramp = (torch.arange(size, dtype=torch.float64, device=like.device) + 0.5) / size
    return ramp.to(like.dtype).reshape([-1 if d == dim else 1 for d in range(like.ndim)])


def chunked(
    step: Callable[[Tensor, Any, bool], tuple[Tensor | None, Any]], x: Tensor, dim: int, given: Axis, made: Axis, chunk: int
) -> Tensor:
    """All that `step(piece, state, last)` makes of `x` when it is given `chunk` cells at a time, in one tensor."""
    out, state, at, total = None, None, 0, made.length(given.cells(x.shape[dim]))
    for piece, last in _pieces(x, dim, given, chunk):
        y, state = step(piece, state, last)
        if y is None:
            continue
        if last and out is None:
            return y
        if out is None:
            out = y.new_empty([total if d == dim else n for d, n in enumerate(y.shape)])
        out.narrow(dim, at, y.shape[dim]).copy_(y)
        at += y.shape[dim]
    return out


def _pieces(x: Tensor, dim: int, given: Axis, chunk: int) -> Iterator[tuple[Tensor, bool]]:
    length, begin, end = x.shape[dim], 0, given.length(chunk)
    while True:
        yield x.narrow(dim, begin, min(end, length) - begin), end >= length
        if end >= length:
            return
        begin, end = end, end + chunk * given.size


# ---------------------------------------------------------------- several dimensions at once


def tiled(run: Callable[[Tensor, int], Tensor | None], x: Tensor, contexts: dict[int, Context], tile: int) -> Tensor | None:
    """`run(part, number of the tile)` over tiles of at most `tile` cells along the dimensions of `contexts`, put together.

    None where `run` gives none. A fade is at most a quarter of a tile.
    """
    cells = {dim: context.given.cells(x.shape[dim]) for dim, context in contexts.items()}
    spans = [[(dim, a, b) for a, b in _shares(n, tile)] for dim, n in cells.items()]
    if all(len(span) == 1 for span in spans):
        return run(x, 0)
    out = None
    for number, spot in enumerate(itertools.product(*spans)):
        part, cut = x, []
        for dim, a, b in spot:
            part, crop = _tile(part, dim, a, b, cells[dim], contexts[dim])
            cut.append(crop)
        y = run(part, number)
        if y is None:
            continue
        for crop in cut:
            y = crop(y)
        if out is None:
            sizes = {dim: context.made.length(cells[dim]) for dim, context in contexts.items()}
            out = y.new_zeros([sizes.get(d, n) for d, n in enumerate(y.shape)])
        target = out
        for dim, a, b in spot:
            context = contexts[dim]
            begin = max(0, a - context.fade)
            low = context.made.length(begin) if begin else 0
            target = target.narrow(dim, low, context.made.length(min(b + context.fade, cells[dim])) - low)
        target.add_(y)
    return out


def _shares(cells: int, tile: int) -> list[tuple[int, int]]:
    """The cells in the fewest parts of at most `tile`, as equal as can be."""
    count = -(-cells // tile)
    edges = [round(i * cells / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _tile(x: Tensor, dim: int, a: int, b: int, cells: int, context: Context) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The input of cells a to b with its halo, and what takes those cells, faded at inner edges, from the output."""
    begin, end = max(0, a - context.fade), min(cells, b + context.fade)
    origin, reach = max(0, begin - context.before), min(cells, end + context.after)
    low = context.begin(origin)
    high = x.shape[dim] if reach == cells else context.given.length(reach)
    edges = (a > 0 and context.fade > 0, b < cells and context.fade > 0)
    return x.narrow(dim, low, high - low), partial(_faded, dim, context, origin, begin, end, edges)


def _faded(dim: int, context: Context, origin: int, begin: int, end: int, edges: Sequence[bool], y: Tensor) -> Tensor:
    y = context.piece(y, dim, origin, begin, end)
    size = min(2 * context.fade * context.made.size, y.shape[dim])
    ramp = _ramp(size, y, dim) if any(edges) else None
    if edges[0]:
        y = torch.cat([y.narrow(dim, 0, size) * ramp, y.narrow(dim, size, y.shape[dim] - size)], dim)
    if edges[1]:
        y = torch.cat([y.narrow(dim, 0, y.shape[dim] - size), y.narrow(dim, y.shape[dim] - size, size) * ramp.flip(dim)], dim)
    return y
