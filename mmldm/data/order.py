"""The order of training as a function: which row each global position reads, for any epoch, rank and starting step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

__all__ = ["Order", "PositionSampler", "SpanSampler"]

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


class PositionSampler(Sampler[list[int]]):
    """Batches of global positions: step k of a run is positions k*G … k*G + G - 1, of which each rank takes its slice.

    `start` is the first step, `batch_size` the global batch G, `steps` how many to yield (None: for ever, without a length).
    The global batches are the same for any `world`.
    """

    def __init__(self, start: int = 0, batch_size: int = 1, rank: int = 0, world: int = 1, steps: int | None = None):
        if batch_size < 1 or batch_size % world:
            raise ValueError(f"wanted a global batch size that {world} processes divide evenly, got {batch_size}")
        if not 0 <= rank < world or start < 0:
            raise ValueError(f"wanted 0 <= rank < world and start >= 0, got rank {rank} of {world}, start {start}")
        self.start, self.batch_size, self.rank, self.world, self.steps = start, batch_size, rank, world, steps

    def __iter__(self) -> Iterator[list[int]]:
        share, step = self.batch_size // self.world, self.start
        while self.steps is None or step < self.start + self.steps:
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))
            step += 1

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("an endless sampler has no length")
        return self.steps


class SpanSampler(Sampler[list[int]]):
    """Positions 0 … count - 1 once, in batches split over the ranks; every rank yields the same number of non-empty batches.

    Only where the last batch has fewer items than there are ranks do the ranks left over repeat its last item.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1):
        self.count, self.batch_size, self.rank, self.world = count, batch_size, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - first)
            begin, end = (first + size * r // self.world for r in (self.rank, self.rank + 1))
            yield list(range(begin, end)) or [first + size - 1]

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)
