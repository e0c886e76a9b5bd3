"""Laws of known cells: merging, snapping, from media to cells, and the keyed masks of training."""

import pytest
import torch

from mmldm.diffusion import (
    Box,
    Context,
    First,
    KeyCell,
    KnownMixture,
    Nothing,
    Prefix,
    Span,
    Suffix,
    Whole,
    cells_covered,
    merge,
    reference_cells,
    samples_covered,
    snap,
)
from mmldm.interfaces import Axis, grid_positions

FILM = (Axis("time", 4, 1, 1 / 8), Axis("height", 8, 8, 1.0), Axis("width", 8, 8, 1.0))
SOUND = (Axis("time", 160, 160, 1 / 1600), Axis("freq", 4, 4, 1.0))
AXES = {"film": FILM, "sound": SOUND}
CELLS = {"film": (5, 4, 6), "sound": (21, 3)}  # 17 frames at 8 Hz = 2.125 s, 21 cells of 0.1 s
END = {"film": FILM[0].edges(5)[:, 1].double(), "sound": SOUND[0].edges(21)[:, 1].double()}
KEY = (7, "known", 3)


def test_merge_is_equal_to_the_bit():
    z, z_hat, known = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.rand(2, 5) < 0.5
    out = merge(z_hat, Context(z=z, known=known))
    mask = known[:, None].expand_as(z)
    assert torch.equal(out[mask], z[mask]) and torch.equal(out[~mask], z_hat[~mask])
    assert merge(z_hat, None) is z_hat and merge(z_hat, Context()) is z_hat


def test_context_says_what_is_free_and_what_is_wrong():
    z, known = torch.zeros(1, 2, 3), torch.tensor([[True, False, False]])
    valid = torch.tensor([[True, True, False]])
    assert Context().free is None and torch.equal(Context(valid=valid).free, valid)
    assert Context(z=z, known=known).free.tolist() == [[False, True, True]]
    assert Context(z=z, known=known, valid=valid).free.tolist() == [[False, True, False]]
    for build in (
        lambda: Context(known=known),
        lambda: Context(z=z, known=known[:, :2]),
        lambda: Context(z=z, known=known.float()),
    ):
        with pytest.raises(ValueError, match="wanted"):
            build()


def test_snap_shrinks_to_whole_patches():
    line = torch.tensor([True, True, True, False, True, True, True])
    assert snap(line, (2,)).tolist() == [True, True, False, False, True, True, True]
    grid = torch.rand(3, 5, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.8
    out = snap(grid, (1, 2, 3))
    for i in range(5):
        for j in range(6):
            for k in range(7):
                patch = grid[:, i, j - j % 2 : j - j % 2 + 2, k - k % 3 : k - k % 3 + 3]
                assert torch.equal(out[:, i, j, k], patch.flatten(1).all(1))
    assert torch.equal(snap(out, (1, 2, 3)), out) and not bool((out & ~grid).any())


def test_cells_covered_are_those_whose_samples_are_known():
    axes = (Axis("time", 4, 1, 0.5), Axis("width", 3, 3, 1.0))
    mask = torch.rand(2, 10, 7, generator=torch.Generator().manual_seed(0)) < 0.9
    out = cells_covered(mask, axes)
    assert out.shape == (2, 4, 3)
    times, widths = [(0, 1), (1, 5), (5, 9), (9, 10)], [(0, 3), (3, 6), (6, 7)]
    for i, (a, b) in enumerate(times):
        for j, (c, d) in enumerate(widths):
            assert torch.equal(out[:, i, j], mask[:, a:b, c:d].flatten(1).all(1))
    causal = cells_covered(mask, axes, [(float("inf"), 0), (0, 0)])
    assert torch.equal(
        causal, torch.stack([mask[:, :b, c:d].flatten(1).all(1) for _, b in times for c, d in widths], 1).reshape(2, 4, 3)
    )


def test_cells_determined_are_those_whose_field_is_known():
    axis, line = (Axis("time", 4, 1, 0.25),), torch.ones(17, dtype=torch.bool)  # ends of the cells: 1, 5, 9, 13, 17
    holes = {
        (0, 0): {9: [1, 1, 1, 0, 1], 8: [1, 1, 0, 1, 1], 0: [0, 1, 1, 1, 1]},
        (float("inf"), 0): {9: [1, 1, 1, 0, 0], 0: [0] * 5},  # causal: prefixes only
        (float("inf"), 1): {9: [1, 1, 0, 0, 0]},
        (4, 0): {9: [1, 1, 1, 0, 0], 8: [1, 1, 0, 0, 1]},
        (1, 1): {9: [1, 1, 0, 0, 1], 16: [1, 1, 1, 1, 0]},
        (float("inf"), float("inf")): {9: [0] * 5},
    }
    for field, cases in holes.items():
        assert cells_covered(line, axis, [field]).all()
        for hole, known in cases.items():
            assert cells_covered(line.clone().index_fill(0, torch.tensor(hole), False), axis, [field]).tolist() == known
    assert cells_covered(line[:16], axis).tolist() == [True] * 5  # the last cell is cut off: what is there


def test_samples_covered_are_those_of_the_cells():
    axes, cells = (Axis("time", 4, 1, 0.5), Axis("width", 3, 3, 1.0)), torch.rand(2, 4, 3) < 0.5
    samples = samples_covered(cells, axes, (10, 7))
    assert samples.shape == (2, 10, 7) and torch.equal(cells_covered(samples, axes), cells)
    assert torch.equal(samples[:, [0, 1, 5, 9]][:, :, [0, 3, 6]], cells)


def times(mask):
    """A mask that is constant along everything but time, as a line."""
    flat = mask.flatten(1)
    assert torch.equal(flat, flat[:, :1].expand_as(flat))
    return flat[:, 0]


@pytest.mark.parametrize("position", range(6))
def test_masks_agree_in_seconds(position):
    prefix = Prefix(low=0.2, high=0.8).draw(KEY, position, CELLS, AXES)
    assert prefix["film"].shape == CELLS["film"] and prefix["sound"].shape == CELLS["sound"]
    ends = {s: END[s][times(m)].max().item() if times(m).any() else 0.0 for s, m in prefix.items()}
    nexts = {s: END[s][~times(m)].min().item() for s, m in prefix.items()}
    assert max(ends.values()) < min(nexts.values()) and ends["sound"] > 0  # one cut, in seconds, between both
    assert all(bool((times(m)[1:] <= times(m)[:-1]).all()) for m in prefix.values())
    suffix = Suffix(low=0.2, high=0.8).draw(KEY, position, CELLS, AXES)
    assert all(bool((times(m)[1:] >= times(m)[:-1]).all()) for m in suffix.values()) and bool(times(suffix["sound"])[-2])
    outside = times(Span(low=0.3, high=0.5).draw(KEY, position, CELLS, AXES)["sound"])
    inside = times(Span(low=0.3, high=0.5, inside=True).draw(KEY, position, CELLS, AXES)["sound"])
    assert not bool((outside & inside).any()) and 5 <= int((~outside).sum()) <= 13
    assert int((~outside).sum()) - int(inside.sum()) in (0, 1, 2)  # cells that the span cuts are unknown both ways


def test_boxes_and_whole_and_first():
    box = Box(("height", "width"), 0.5, 0.5, inside=True).draw(KEY, 0, CELLS, AXES)
    assert not bool(box["sound"].any()) and bool((box["film"] == box["film"][:1]).all())
    plane = box["film"][0]
    rows, columns = plane.any(1), plane.any(0)
    assert torch.equal(plane, rows[:, None] & columns[None]) and 1 <= int(rows.sum()) <= 2 and 2 <= int(columns.sum()) <= 3
    hole = Box(("height", "width"), 0.5, 0.5).draw(KEY, 0, CELLS, AXES)
    assert not bool((hole["film"] & box["film"]).any()) and not bool(hole["sound"].any())
    only = Box(("time", "freq"), 0.4, 0.6, streams=("sound",)).draw(KEY, 1, CELLS, AXES)
    assert bool(only["sound"].any()) and not bool(only["film"].any())
    whole = Whole("film").draw(KEY, 0, CELLS, AXES)
    assert bool(whole["film"].all()) and not bool(whole["sound"].any())
    first = First(streams=("film",)).draw(KEY, 0, CELLS, AXES)
    assert times(first["film"]).tolist() == [True, False, False, False, False] and not bool(first["sound"].any())
    assert not any(bool(m.any()) for m in Nothing().draw(KEY, 0, CELLS, AXES).values())
    with pytest.raises(ValueError, match="choose from"):
        Whole("text").draw(KEY, 0, CELLS, AXES)


MIXTURE = KnownMixture([(0.3, Prefix()), (0.2, Whole("film")), (0.1, Box())], {"sound": 0.3, "film": 0.2})


def test_mixture_is_keyed_and_knows_no_batch():
    positions = torch.arange(100, 124)
    drawn = MIXTURE(KEY, positions, CELLS, AXES)
    assert drawn.known["film"].shape == (24, *CELLS["film"]) and drawn.absent["sound"].shape == (24,)
    for rows in (range(24), range(23, -1, -1)):
        single = [MIXTURE(KEY, positions[i : i + 1], CELLS, AXES) for i in rows]
        for s in CELLS:
            assert torch.equal(torch.cat([d.known[s] for d in single]), drawn.known[s][list(rows)])
            assert torch.equal(torch.cat([d.absent[s] for d in single]), drawn.absent[s][list(rows)])
    other = MIXTURE((8, "known", 3), positions, CELLS, AXES)
    assert not torch.equal(other.known["film"], drawn.known["film"])


def test_mixture_has_its_probabilities_and_leaves_something_to_do():
    drawn = MIXTURE(KEY, range(1200), CELLS, AXES)
    known, absent = drawn.known, drawn.absent
    whole = known["film"].flatten(1).all(1)
    assert abs(float(whole.float().mean()) - 0.2) < 0.04
    nothing = ~known["film"].flatten(1).any(1) & ~known["sound"].flatten(1).any(1)
    assert abs(float(nothing.float().mean()) - 0.4) < 0.06  # the rest, and a few prefixes shorter than a cell
    assert abs(float(absent["film"][nothing].float().mean()) - 0.2) < 0.04
    assert abs(float(absent["sound"][nothing].float().mean()) - 0.3 * 0.8) < 0.05  # not where the film is absent already
    assert not bool((absent["sound"] & absent["film"]).any()) and not bool((absent["sound"] & whole).any())
    assert not bool((absent["sound"][:, None, None] & known["sound"]).any())


def test_key_cells_are_keyed_and_agree_in_seconds():
    last = KeyCell(low=1.0).places(KEY, 0, CELLS, AXES)
    assert last == {"film": (0, 4), "sound": (0, 20)} and KeyCell(high=0.0).places(KEY, 0, CELLS, AXES)["film"] == (0, 0)
    drawn = [KeyCell().places(KEY, p, CELLS, AXES) for p in range(40)]
    assert drawn == [KeyCell().places(KEY, p, CELLS, AXES) for p in range(40)]
    assert len({d["film"][1] for d in drawn}) == 5 or len({d["film"][1] for d in drawn}) == 4  # the first cell is short
    for d in drawn:
        edges = {s: AXES[s][0].edges(CELLS[s][0])[d[s][1]] for s in d}
        assert edges["film"][0] <= edges["sound"][1] and edges["sound"][0] <= edges["film"][1]
    assert KeyCell(axis="freq", streams=("film",)).places(KEY, 0, CELLS, AXES) == {}
    mixture = KnownMixture([(0.5, KeyCell()), (0.2, KeyCell("freq"))], {"sound": 1.0})
    whole = mixture(KEY, range(30), CELLS, AXES)
    single = [mixture(KEY, [p], CELLS, AXES) for p in range(30)]
    for s, axes in (("film", (0,)), ("sound", (0, 1))):
        assert tuple(whole.places[s]) == axes and not bool(whole.known[s].any())
        for a in axes:
            assert whole.places[s][a].tolist() == [int(d.places[s].get(a, torch.tensor([-1]))) for d in single]
    given = (whole.places["sound"][0] >= 0) | (whole.places["sound"][1] >= 0)
    assert torch.equal(whole.absent["sound"], ~given) and 10 < int(given.sum()) < 30  # never absent where something is given


def test_reference_cells_are_cells_at_their_places():
    z, positions = torch.randn(3, 2, 5, 4, 6), grid_positions(FILM, (5, 4, 6))
    first, second = reference_cells(z, positions, {2: torch.tensor([5, -1, 0]), 0: torch.tensor([4, 2, -1])})
    assert first.present.tolist() == [True, True, False] and second.present.tolist() == [True, False, True]
    assert torch.equal(first.z[0], z[0, :, 4:]) and torch.equal(first.z[1], z[1, :, 2:3])
    assert torch.equal(second.z[0], z[0, ..., 5:]) and torch.equal(second.z[2], z[2, ..., :1])
    assert torch.equal(first.positions[1], positions[2:3]) and torch.equal(second.positions[0], positions[:, :, 5:])
    valid = torch.ones(3, 5, 4, 6, dtype=torch.bool)
    valid[0, 4, 1] = False
    assert reference_cells(z, positions, {0: torch.tensor([4, 2, -1])}, valid)[0].present.tolist() == [False, True, False]
    assert reference_cells(z, positions, {0: torch.tensor([-1, -1, -1])}) == ()


def test_wrong_mixtures_say_what_was_wanted():
    for build in (
        lambda: KnownMixture([(0.7, Nothing()), (0.5, Prefix())]),
        lambda: KnownMixture([(-0.1, Nothing())]),
        lambda: KnownMixture([], {"sound": 2.0}),
        lambda: KnownMixture([], {"other": 0.5})(KEY, [0], CELLS, AXES),
        lambda: Prefix(low=0.8, high=0.2),
    ):
        with pytest.raises(ValueError, match="wanted"):
            build()
