"""The order is a function: a bijection per epoch, seekable, the same for any number of processes."""

import numpy as np
import pytest
import torch

from mmldm.data.order import Order, PositionSampler, SpanSampler


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
