"""The order is a function: a bijection per epoch, seekable, the same for any number of processes."""

import numpy as np
import pytest
import torch

from mmldm.data.order import Interleave, MixedOrder, Order, PositionSampler, SpanSampler


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 1000, 4099])
def test_each_epoch_is_a_permutation(size):
    order = Order(size, seed=3)
    epochs = order.index(np.arange(3 * size)).reshape(3, size)
    assert (np.sort(epochs, 1) == np.arange(size)).all()
    if size >= 64:
        assert not (epochs[0] == epochs[1]).all() and (epochs[0] == np.arange(size)).mean() < 0.1


def test_any_position_without_the_ones_before():
    order, other = Order(1000, 0), Order(1000, 0)
    positions = np.random.default_rng(0).integers(0, 10**12, 300)
    together = order.index(positions)
    assert together.tolist() == [other.index(int(p)) for p in positions]
    assert torch.equal(order.index(torch.from_numpy(positions)), torch.from_numpy(together))
    assert isinstance(order.index(5), int) and order.index([5, 6]).shape == (2,)
    assert Order(10**12, 0).index(10**15 + 7) < 10**12


def test_epochs_seeds_and_purposes_are_independent():
    def agreement(a, b):
        return (a.index(np.arange(1000)) == b.index(np.arange(1000))).mean()

    assert agreement(Order(1000, 0), Order(1000, 1)) < 0.02
    assert agreement(Order(1000, 0), Order(1000, 0, "validation")) < 0.02


@pytest.mark.parametrize("size", [5, 24])
def test_every_item_is_as_likely_at_every_place(size):
    epochs = 4000
    index = Order(size, 11).index(np.arange(size * epochs)).reshape(epochs, size)
    for place in range(size):
        counts = np.bincount(index[:, place], minlength=size)
        chi2 = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
        assert chi2 < size - 1 + 6 * np.sqrt(2 * (size - 1))
    pairs = np.bincount(index[:, 0] * size + index[:, 1], minlength=size * size)
    assert (pairs > 0).sum() > 0.98 * size * (size - 1) and pairs.reshape(size, size).trace() == 0


def test_no_seed_keeps_the_natural_order():
    assert Order(4, None).index(np.arange(9)).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_global_batches_are_the_same_for_any_number_of_processes():
    whole = list(PositionSampler(5, 12, steps=4))
    assert whole[0] == list(range(60, 72))
    for world in (2, 3, 12):
        parts = [list(PositionSampler(5, 12, rank, world, steps=4)) for rank in range(world)]
        assert [sum(step, []) for step in zip(*parts, strict=True)] == whole


def test_the_sampler_is_endless_and_says_so():
    steps = iter(PositionSampler(2, 3))
    assert [next(steps) for _ in range(2)] == [[6, 7, 8], [9, 10, 11]]
    with pytest.raises(TypeError):
        len(PositionSampler(0, 3))
    assert len(PositionSampler(0, 3, steps=5)) == 5
    with pytest.raises(ValueError, match="divide evenly"):
        PositionSampler(0, 10, 0, 3)
    with pytest.raises(ValueError, match="rank"):
        PositionSampler(0, 10, 2, 2)


@pytest.mark.parametrize(("count", "size", "world"), [(10, 4, 1), (10, 4, 2), (11, 6, 3), (1, 4, 2), (8, 4, 4)])
def test_a_span_covers_each_position_in_equally_many_batches(count, size, world):
    parts = [list(SpanSampler(count, size, rank, world)) for rank in range(world)]
    assert {len(p) for p in parts} == {len(SpanSampler(count, size))}
    assert all(batch for p in parts for batch in p)
    seen = [position for p in parts for batch in p for position in batch]
    assert set(seen) == set(range(count))
    if world == 1 or count % size in (0, *range(world, size)):
        assert len(seen) == count


def test_several_spans_are_read_batch_by_batch_spread_over_each_other():
    for world in (1, 2):
        parts = [list(SpanSampler([9, 4, 20], [3, 4, 2], rank, world)) for rank in range(world)]
        assert {len(p) for p in parts} == {3 + 1 + 10} == {len(SpanSampler([9, 4, 20], [3, 4, 2]))}
        batches = [sum(step, []) for step in zip(*parts, strict=True)]
        assert sorted(set(sum(batches, []))) == list(range(33))
        span = [int(np.searchsorted([9, 13], batch[0], side="right")) for batch in batches]
        assert all(int(np.searchsorted([9, 13], b[-1], side="right")) == s for b, s in zip(batches, span, strict=True))
        assert set(span[:8]) == {0, 1, 2}


WEIGHTS = [[1], [1, 1], [3, 1, 0.5], [0.01, 1, 7, 7, 7], [100, *[1] * 30]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_members_are_woven_by_their_weights_each_occurrence_once(weights):
    woven, places = Interleave(weights, 3), np.arange(3000)
    which, before = woven.index(places)
    share = np.array(weights) / sum(weights)
    for member in range(len(weights)):
        assert (before[which == member] == np.arange((which == member).sum())).all()
    counts = np.cumsum(which[:, None] == np.arange(len(weights)), 0)
    assert (np.abs(counts - (places[:, None] + 1) * share) < 1 + share * len(weights)).all()
    for place in (0, 1, 17, 2999):
        assert woven.index(place) == (which[place], before[place])


def test_the_weave_is_known_at_any_place_without_the_ones_before():
    woven = Interleave([5, 2, 3], 1)
    which, before = woven.index(10**9 + np.arange(1000))
    assert all((np.diff(before[which == member]) == 1).all() for member in range(3))
    assert woven.index(10**12)[1] == pytest.approx(10**12 * woven.weights[woven.index(10**12)[0]], abs=4)
    first = Interleave([1, 1], 1).index(np.arange(2000))[0].reshape(-1, 2)[:, 0]
    assert 0.45 < first.mean() < 0.55  # which of two is first in a round is drawn anew
    other = Interleave([5, 2, 3], 2).index(np.arange(1000))[0]
    assert 0.2 < (other == woven.index(np.arange(1000))[0]).mean() < 0.6
    for weights in ([], [1, 0], [1, float("nan")], [-1]):
        with pytest.raises(ValueError, match="weights > 0"):
            Interleave(weights)


def test_a_mixed_order_goes_through_each_part_in_epochs_of_its_own():
    order = MixedOrder([5, 11], [1, 3], 7)
    entries = order.index(np.arange(400))
    assert order.size == 16 and order.index(17) == entries[17] and abs((entries < 5).mean() - 0.25) < 0.01
    for part, size in ((entries[entries < 5], 5), (entries[entries >= 5] - 5, 11)):
        epochs = part[: len(part) // size * size].reshape(-1, size)
        assert (np.sort(epochs, 1) == np.arange(size)).all()
    assert (MixedOrder([9], [2.0], 7).index(np.arange(40)) == Order(9, 7).index(np.arange(40))).all()


def test_a_step_is_cut_into_accumulated_batches_and_ranks_of_what_it_uses():
    used = [8, 4, 8, 4].__getitem__
    whole = list(PositionSampler(0, 8, steps=4, used=used))
    assert whole == [list(range(8)), [8, 9, 10, 11], list(range(16, 24)), [24, 25, 26, 27]]
    parts = [list(PositionSampler(2, 8, rank, 2, 6, accumulate=2, used=used)) for rank in range(2)]
    batches = [sum(step, []) for step in zip(*parts, strict=True)]
    assert [a + b for a, b in zip(batches[::2], batches[1::2], strict=True)] == whole[1:]
    with pytest.raises(ValueError, match="2 processes and 3 accumulated batches divide evenly, got 8"):
        PositionSampler(0, 8, 0, 2, accumulate=3)
