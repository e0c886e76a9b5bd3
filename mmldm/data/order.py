"""The order of training as a function: which row each global position reads, for any epoch, rank and starting step."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

__all__ = ["Interleave", "MixedOrder", "Order", "PositionSampler", "SpanSampler"]

ROUNDS = 8


def _mix(x: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 over x and key (uint64)."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order:
    """Which of `size` items each global position reads: every epoch of `size` positions is its own keyed permutation.

    A generalised Feistel network with cycle walking (Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains): an exact
    bijection per epoch, any position in O(1), no state. `seed` None keeps the natural order.
    """

    def __init__(self, size: int, seed: int | None = 0, name: str = "order"):
        if size < 1:
            raise ValueError(f"wanted at least one item to order, got {size}")
        self.size, self.seed, self.name = int(size), seed, name
        side = max(1, int(np.ceil(np.sqrt(self.size))))
        self._sides = np.uint64(side), np.uint64(-(-self.size // side))

    def index(self, position: Any) -> Any:
        """Position (int, array, CPU tensor) -> item index in [0, size), of the same kind; a sequence gives an array."""
        array = np.asarray(position, dtype=np.int64)
        epoch, place = np.divmod(np.atleast_1d(array), self.size)
        index = (place if self.seed is None else self._shuffle(epoch, place.astype(np.uint64))).reshape(array.shape)
        if isinstance(position, torch.Tensor):
            return torch.from_numpy(index)
        return index if array.ndim else int(index)

    def _keys(self, epoch: int) -> np.ndarray:
        digest = hashlib.blake2b(repr((self.name, self.seed, int(epoch))).encode(), digest_size=8 * ROUNDS).digest()
        return np.frombuffer(digest, dtype="<u8").astype(np.uint64)[:, None]

    def _shuffle(self, epoch: np.ndarray, place: np.ndarray) -> np.ndarray:
        if (epoch == epoch.flat[0]).all():
            keys = np.broadcast_to(self._keys(epoch.flat[0]), (ROUNDS, place.size))
        else:
            epochs, which = np.unique(epoch, return_inverse=True)
            keys = np.concatenate([self._keys(e) for e in epochs], 1)[:, which.ravel()]
        flat = self._feistel(place.ravel(), keys)
        while (outside := flat >= self.size).any():
            flat[outside] = self._feistel(flat[outside], keys[:, outside])
        return flat.astype(np.int64).reshape(place.shape)

    def _feistel(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        a, b = self._sides
        left, right = x // b, x % b
        for i in range(0, ROUNDS, 2):
            left = (left + _mix(right, keys[i])) % a
            right = (right + _mix(left, keys[i + 1])) % b
        return left * b + right


class Interleave:
    """Members woven into one endless sequence in proportion to their weights, as a function of the place: no state.

    Occurrence j of member b has the time (j + U(b, j)) / w_b, U keyed and uniform in [0, 1), the weights normalised; place k
    is the k-th occurrence in the order of time. Each (b, j) comes exactly once; of the first K places member b has
    K·w_b, give or take less than 1 + w_b times the number of members.
    """

    def __init__(self, weights: Sequence[float], seed: int = 0, name: str = "interleave"):
        weight = np.asarray(weights, dtype=np.float64)
        if weight.ndim != 1 or not weight.size or not (np.isfinite(weight) & (weight > 0)).all():
            raise ValueError(f"wanted finite weights > 0, at least one, got {list(weights)}")
        self.weights = weight / weight.sum()
        keys = [hashlib.blake2b(repr((name, seed, b)).encode(), digest_size=8).digest() for b in range(len(weight))]
        self._keys = np.array([int.from_bytes(key, "little") for key in keys], dtype=np.uint64)
        # place k has a time in [k - B, k + 1 + B): of each member the occurrences that may lie there, laid end to end
        counts = np.ceil((2 * len(weight) + 1) * self.weights).astype(np.int64) + 4
        self._member = np.repeat(np.arange(len(weight)), counts)
        self._after = np.concatenate([np.arange(n) for n in counts])

    def index(self, place: Any) -> tuple[Any, Any]:
        """Place (int or array) -> (member, how many places of that member come before), of the same kind."""
        array = np.asarray(place, dtype=np.int64)
        flat = array.reshape(-1, 1)
        if len(self.weights) == 1:
            return (np.zeros_like(array), array) if array.ndim else (0, int(array))
        first = np.maximum(0, np.floor((flat - len(self.weights)) * self.weights).astype(np.int64) - 1)
        occurrence = first[:, self._member] + self._after
        time = (occurrence + self._uniform(occurrence)) / self.weights[self._member]
        rank = (flat - first.sum(1, keepdims=True)).ravel()
        chosen = np.argsort(time, 1, kind="stable")[np.arange(len(flat)), rank]
        which, before = self._member[chosen], occurrence[np.arange(len(flat)), chosen]
        return (which.reshape(array.shape), before.reshape(array.shape)) if array.ndim else (int(which[0]), int(before[0]))

    def _uniform(self, occurrence: np.ndarray) -> np.ndarray:
        bits = _mix(occurrence.astype(np.uint64), self._keys[self._member]) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53


class MixedOrder:
    """Which entry of several parts, laid end to end, each place reads: parts drawn by weight, each in an Order of its own."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int = 0, name: str = "order"):
        self.size = int(sum(sizes))
        self._first = np.cumsum([0, *sizes[:-1]])
        alone = len(sizes) == 1
        self._orders = [Order(n, seed, name if alone else f"{name}/{i}") for i, n in enumerate(sizes)]
        self._parts = Interleave(weights, seed, name)

    def index(self, place: Any) -> Any:
        """Place (int or array) -> entry in [0, size), of the same kind."""
        which, before = self._parts.index(np.atleast_1d(np.asarray(place, dtype=np.int64)))
        entry = np.empty_like(before)
        for part in np.unique(which):
            chosen = which == part
            entry[chosen] = self._first[part] + self._orders[part].index(before[chosen])
        return entry if np.ndim(place) else int(entry[0])


class PositionSampler(Sampler[list[int]]):
    """Batches of global positions: step k of a run owns k*G … k*G + G - 1 and uses the first `used(k)` of them (None: all).

    A step is `accumulate` batches; each rank takes its slice of every one. `start` is the first batch, `batch_size` is G,
    `steps` how many batches to yield (None: for ever, without a length). What a step reads is the same for any `world`.
    """

    def __init__(self, start: int = 0, batch_size: int = 1, rank: int = 0, world: int = 1, steps: int | None = None,
                 accumulate: int = 1, used: Callable[[int], int] | None = None):  # fmt: skip
        if batch_size < 1 or batch_size % (world * accumulate):
            told = f"{world} processes" + (f" and {accumulate} accumulated batches" if accumulate > 1 else "")
            raise ValueError(f"wanted a global batch size that {told} divide evenly, got {batch_size}")
        if not 0 <= rank < world or start < 0:
            raise ValueError(f"wanted 0 <= rank < world and start >= 0, got rank {rank} of {world}, start {start}")
        self.start, self.batch_size, self.rank, self.world, self.steps = start, batch_size, rank, world, steps
        self.accumulate, self.used = accumulate, used

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.islice(itertools.count(self.start), self.steps):
            step, turn = divmod(batch, self.accumulate)
            size = self.batch_size if self.used is None else self.used(step)
            share = size // (self.world * self.accumulate)
            first = step * self.batch_size + (turn * self.world + self.rank) * share
            yield list(range(first, first + share))

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("an endless sampler has no length")
        return self.steps


class SpanSampler(Sampler[list[int]]):
    """Positions 0 … count - 1 once, in batches split over the ranks; every rank yields the same number of non-empty batches.

    Several counts and batch sizes are spans laid end to end, each batch of one span, the batches of all spread evenly. Only
    where the last batch of a span has fewer items than there are ranks do the ranks left over repeat its last item.
    """

    def __init__(self, count: int | Sequence[int], batch_size: int | Sequence[int], rank: int = 0, world: int = 1):
        self.counts = [count] if isinstance(count, int) else list(count)
        self.sizes = [batch_size] if isinstance(batch_size, int) else list(batch_size)
        self.rank, self.world = rank, world

    def _batches(self) -> list[tuple[int, int]]:
        """(first position, samples) of each global batch."""
        begins, found = np.cumsum([0, *self.counts]).tolist(), []
        for begin, count, size in zip(begins, self.counts, self.sizes, strict=False):
            batches = -(-count // size)
            found += [((i + 0.5) / batches, begin + i * size, min(size, count - i * size)) for i in range(batches)]
        return [batch[1:] for batch in sorted(found)]

    def __iter__(self) -> Iterator[list[int]]:
        for first, size in self._batches():
            begin, end = (first + size * r // self.world for r in (self.rank, self.rank + 1))
            yield list(range(begin, end)) or [first + size - 1]

    def __len__(self) -> int:
        return sum(-(-count // size) for count, size in zip(self.counts, self.sizes, strict=True))
