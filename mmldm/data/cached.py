"""Training from a cache: the positions, windows, fields and replacements of training from files, latents instead of media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmldm.data.batch import FieldReaders, LoadedBatch
from mmldm.data.cache import LatentCache
from mmldm.data.dataset import ATTEMPTS, replacement, row_fields
from mmldm.data.order import Order
from mmldm.interfaces import MediaError, Reader

__all__ = ["CachedDataset"]


class CachedDataset(Dataset):
    """Global positions -> batches of cached latents: `MediaDataset(crop="windows")` over the same items, encoded.

    `entries` are the clips to use (None: all); `order` is keyed by the seed unless given.
    """

    def __init__(
        self,
        cache: LatentCache,
        readers: Mapping[str, tuple[str, Reader]] | None = None,
        seed: int = 0,
        order: Order | None = None,
        entries: np.ndarray | None = None,
    ):
        self.cache, self.readers, self.seed = cache, FieldReaders(readers), seed
        self.entries = np.arange(len(cache)) if entries is None else entries
        self.order = order or Order(len(self), seed)
        if self.order.size != len(self):
            raise ValueError(f"wanted an order of {len(self)} items, got one of {self.order.size}")

    def __len__(self) -> int:
        """Positions in one epoch."""
        return len(self.entries)

    def locate(self, position: int, entry: int | None = None) -> tuple[int, float]:
        """(item index, start in seconds) that a position reads; `entry` replaces the order's choice."""
        entry = self.entries[self.order.index(position) if entry is None else entry]
        return int(self.cache.clips.index[entry]), float(self.cache.clips.start[entry])

    def row(self, position: int) -> dict[str, Any]:
        """The fields of the item that a position reads."""
        index, start = self.locate(position)
        return row_fields(self.cache.rows[index], self.cache.seconds(index), start)

    def __getitem__(self, position: int) -> LoadedBatch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> LoadedBatch:
        position = np.asarray(positions, dtype=np.int64)
        entries, values, faults = self.entries[self.order.index(position)], [], []
        for i, entry in enumerate(entries.tolist()):
            try:
                values.append(self._read(entry))
            except MediaError as error:
                faults.append(str(error))
                entries[i], value = self._replace(int(position[i]), faults)
                values.append(value)
        latents, valid = self.cache.batch(entries)
        read, present = self.readers.collate(values)
        return LoadedBatch(
            position=torch.from_numpy(position),
            index=torch.from_numpy(self.cache.clips.index[entries]),
            latents=latents,
            valid=valid,
            start=torch.from_numpy(self.cache.clips.start[entries]).float(),
            fields=read,
            present=present,
            faults=faults,
        )

    @staticmethod
    def collate(batch: LoadedBatch) -> LoadedBatch:
        """The batch is whole already."""
        return batch

    def _read(self, entry: int) -> dict[str, Any]:
        index, start = int(self.cache.clips.index[entry]), float(self.cache.clips.start[entry])
        row = self.cache.rows[index]
        if self.cache.unreadable[entry]:
            raise MediaError(row.get("file", f"item {index}"), f"{self.cache.reason(entry)} (when the cache was made)")
        return self.readers.read(row_fields(row, self.cache.seconds(index), start))

    def _replace(self, position: int, faults: list[str]) -> tuple[int, dict[str, Any]]:
        """(clip, read fields) instead of those that could not be read."""
        for attempt in range(1, ATTEMPTS):
            entry = int(self.entries[replacement(self.seed, position, attempt, len(self))])
            try:
                return entry, self._read(entry)
            except MediaError as error:
                faults.append(str(error))
        raise ValueError(f"{ATTEMPTS} items in a row cannot be read at position {position}, the last: {faults[-1]}")
