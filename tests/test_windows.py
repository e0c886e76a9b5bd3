"""Windows and tiles: an operator of bounded reach gives piece by piece what it gives at once; else pieces are cross-faded."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmldm.records import Axis
from mmldm.windows import GRID, Context, advance, chunked, complete, tiled


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operator(given: Axis, made: Axis, before: int, after: int, dim: int = 1):
    """A map of cells along `dim` that sees `before` and `after` samples beyond its own, zeros outside of the signal.

    What is missing of the last cell is zeros; a lone first sample is completed by itself, a lone first result cropped.
    """
    weight = rand(before + given.size + after, made.size, seed=before + 7 * after)

    def run(x):
        x = x.movedim(dim, -1)
        missing = given.length(given.cells(x.shape[-1])) - x.shape[-1]
        x = F.pad(x, (0, missing))
        x = torch.cat([x[..., :1].expand(*x.shape[:-1], given.size - given.first), x], -1)
        y = torch.sin(F.pad(x, (before, after)).unfold(-1, len(weight), given.size) @ weight).flatten(-2)
        return y[..., made.size - made.first :].movedim(-1, dim)

    return run


def streamed(run, x, sizes, context, dim=1, last_empty=False):
    out, state, pieces = [], None, list(x.split(sizes, dim))
    pieces += [x.narrow(dim, 0, 0)] * last_empty
    for number, piece in enumerate(pieces):
        y, state = advance(run, piece, state, number == len(pieces) - 1, dim, context)
        out += [] if y is None else [y]
    return torch.cat(out, dim)


CELL, LONE, WIDE = Axis("a", 4, 4, 1.0), Axis("a", 4, 1, 1.0), Axis("a", 3, 3, 1.0)
CASES = {
    "sample to sample": (GRID, GRID, 2, 3),
    "pointwise": (GRID, GRID, 0, 0),
    "causal": (GRID, GRID, 5, 0),
    "samples to cells": (CELL, GRID, 3, 2),
    "cells see far": (CELL, GRID, 9, 6),
    "cells to samples": (GRID, CELL, 2, 1),
    "cells to cells": (CELL, WIDE, 5, 5),
    "lone first sample": (LONE, GRID, 0, 0),
    "lone first sample, seen from afar": (LONE, GRID, 5, 0),
    "lone first sample, seen from both sides": (LONE, GRID, 4, 3),
    "to a lone first sample": (GRID, LONE, 2, 0),
    "lone on both sides": (LONE, LONE, 4, 2),
}


def case(name):
    given, made, before, after = CASES[name]
    return operator(*CASES[name]), Context.of(given, made, before / given.size, after / given.size, 2), given, made


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 2, 13, 30])
def test_windows_with_context_are_the_whole(name, length):
    run, context, _, _ = case(name)
    x = rand(2, length)
    for sizes in ([length], [1] * length, [0, length // 2, 0, length - length // 2], [length // 3, length - length // 3]):
        for empty in (False, True):
            torch.testing.assert_close(streamed(run, x, sizes, context, last_empty=empty), run(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("length", "chunk"), [(1, 1), (5, 1), (13, 2), (30, 3), (29, 100)])
def test_chunked_is_the_whole(name, length, chunk):
    run, context, given, made = case(name)
    x = rand(2, length)
    y = chunked(lambda piece, state, last: advance(run, piece, state, last, 1, context), x, 1, given, made, chunk)
    torch.testing.assert_close(y, run(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if "lone" not in name])
@pytest.mark.parametrize("size", [(1, 1), (7, 16), (13, 30)])
@pytest.mark.parametrize("tile", [1, 2, 3, 8])
def test_tiled_is_the_whole_on_odd_sizes(name, size, tile):
    given, made, before, after = CASES[name]
    high, wide = (operator(given, made, before, after, dim) for dim in (2, 3))
    context = Context.of(given, made, before / given.size, after / given.size, tile)
    x = rand(1, 2, *size)
    y = tiled(lambda part, number: wide(high(part)), x, {2: context, 3: context}, tile)
    torch.testing.assert_close(y, wide(high(x)), rtol=0, atol=1e-12)


def test_the_context_is_not_larger_than_needed():
    """One cell less of it, and the pieces are not the whole."""
    run, context, given, _ = case("cells see far")
    short = Context.of(given, GRID, 4 / 4, 6 / 4, 2)
    x = rand(2, 40)
    assert (context.before, context.after, context.fade) == (3, 2, 0)
    assert (streamed(run, x, [1] * 40, short) - run(x)).abs().max() > 1e-3


# ---------------------------------------------------------------- cross-fades


@pytest.mark.parametrize("fade", [1, 2, 4])
def test_fades_sum_to_one(fade):
    """Pieces that agree stay what they are, however they are blended."""
    x, context = rand(2, 3, 29), Context(GRID, GRID, 4, 4, fade)
    for sizes in ([29], [1] * 29, [10, 10, 9]):
        torch.testing.assert_close(streamed(lambda part: part, x, sizes, context, 2), x, rtol=0, atol=1e-12)
    for tile in (4 * fade, 4 * fade + 3):
        y = tiled(lambda part, number: part, x, {2: context}, tile)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", [(CELL, GRID), (GRID, CELL), (LONE, GRID), (GRID, LONE)])
def test_an_unbounded_operator_is_blended_and_has_the_right_length(axes):
    given, made = axes
    context = Context.of(given, made, math.inf, math.inf, 8)
    run = operator(given, made, 0, 0)
    x = rand(2, 61)
    whole = run(x) + x.mean()
    assert context.fade == 1
    y = streamed(lambda part: run(part) + part.mean(), x, [7] * 8 + [5], context)
    assert y.shape == whole.shape and y.isfinite().all() and not torch.allclose(y, whole)
    assert (y - whole).abs().max() < 2


# ---------------------------------------------------------------- what is kept between pieces


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bounded", [True, False])
def test_the_state_does_not_grow_and_holds_nothing_of_its_input(name, bounded):
    run, context, given, made = case(name)
    if not bounded:
        context = Context.of(given, made, math.inf, math.inf, 8)
    kept, state = [], None
    for _ in range(60):
        piece = rand(2, given.size)
        place = piece.untyped_storage().data_ptr()
        _, state = advance(run, piece, state, False, 1, context)
        held = [t for t in (state.kept, state.tail) if t is not None]
        assert all(t.untyped_storage().data_ptr() != place for t in held)
        kept.append(sum(t.untyped_storage().nbytes() // t.element_size() for t in held))
    assert len(set(kept[30:])) == 1 and kept[-1] <= 2 * (made.size + given.size) * (context.before + context.after + 3)


def test_an_early_piece_is_not_held_by_reference():
    context, x = Context(GRID, GRID, 3, 3), rand(1, 2)
    _, state = advance(lambda part: part, x, None, False, 1, context)
    x.zero_()
    y, _ = advance(lambda part: part, None, state, True, 1, context)
    assert torch.equal(y, rand(1, 2))


def test_nothing_comes_of_nothing_until_the_end():
    context = Context(GRID, GRID)
    assert advance(lambda part: part, None, None, False, 1, context) == (None, None)
    with pytest.raises(ValueError, match="at least one sample"):
        advance(lambda part: part, None, None, True, 1, context)


@pytest.mark.parametrize("axis", [CELL, LONE, GRID])
def test_complete_counts_whole_cells(axis):
    for samples in range(20):
        whole = complete(axis, samples)
        assert whole == max([0, *(n for n in range(1, 21) if axis.length(n) <= samples)])
