"""Training from a cache: the positions, windows, fields and replacements of training from files, latents instead of media."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmldm.data.batch import FieldReaders, Item, LoadedBatch, collate
from mmldm.data.cache import CacheWriter, LatentCache
from mmldm.data.dataset import ATTEMPTS, Clips, load_clips, replacement, row_fields, windows, worker_context
from mmldm.data.order import Order
from mmldm.data.source import Source
from mmldm.interfaces import Media, MediaError, Posterior, Reader

__all__ = ["CachedDataset", "write_cache"]


class CachedDataset(Dataset):
    """Global positions -> batches of cached latents: `MediaDataset(crop="windows")` over the same items, encoded.

    `rows` are the items to use (None: all); `order` is keyed by the seed unless given.
    """

    def __init__(
        self,
        cache: LatentCache,
        readers: Mapping[str, tuple[str, Reader]] | None = None,
        seed: int = 0,
        order: Order | None = None,
        rows: np.ndarray | None = None,
    ):
        self.cache, self.readers, self.seed = cache, FieldReaders(readers), seed
        self.entries = np.arange(len(cache)) if rows is None else cache.clips.of(rows)
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
        return row_fields(self.cache.items[index]["row"], self.cache.items[index]["seconds"], start)

    def __getitem__(self, position: int) -> LoadedBatch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> LoadedBatch:
        position = np.asarray(positions, dtype=np.int64)
        clips, faults = self.cache.clips, []
        entries = self.entries[self.order.index(position)]
        whole = zip(
            clips.index[entries].tolist(), clips.start[entries].tolist(), self.cache.unreadable[entries].tolist(), strict=True
        )
        values = []
        for i, (index, start, unreadable) in enumerate(whole):
            try:
                values.append(self._read(index, start, unreadable))
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

    def _read(self, index: int, start: float, unreadable: bool) -> dict[str, Any]:
        item = self.cache.items[index]
        if unreadable:
            raise MediaError(item["row"].get("file", item["key"]), "could not be read when the cache was made")
        return self.readers.read(row_fields(item["row"], item["seconds"], start))

    def _replace(self, position: int, faults: list[str]) -> tuple[int, dict[str, Any]]:
        """(clip, read fields) instead of those that could not be read."""
        for attempt in range(1, ATTEMPTS):
            clip = self.entries[replacement(self.seed, position, attempt, len(self))]
            try:
                start, unreadable = float(self.cache.clips.start[clip]), bool(self.cache.unreadable[clip])
                return clip, self._read(int(self.cache.clips.index[clip]), start, unreadable)
            except MediaError as error:
                faults.append(str(error))
        raise ValueError(f"{ATTEMPTS} items in a row cannot be read at position {position}, the last: {faults[-1]}")


class _Wanted(Dataset):
    """The clips a cache lacks, each an Item or the reason why it cannot be read."""

    def __init__(self, source: Source, media: Mapping[str, Media], clips: Clips, wanted: list[int]):
        self.source, self.media, self.clips, self.wanted = source, dict(media), clips, wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, i: int) -> tuple[int, Item | str]:
        clip = self.wanted[i]
        index, start = int(self.clips.index[clip]), float(self.clips.start[clip])
        try:
            return clip, Item(i, index, start, load_clips(self.source, index, start, self.media))
        except MediaError as error:
            return clip, error.reason


def _items(source: Source, clips: Clips, limit: int) -> Iterator[dict[str, Any]]:
    """What the cache keeps of each item."""
    with ThreadPoolExecutor(8) as pool:
        begins = np.searchsorted(clips.index, np.arange(limit + 1))
        for i, key in enumerate(pool.map(source.key, range(limit))):
            try:
                seconds = source.seconds(i)
            except MediaError:
                seconds = None
            yield {
                "key": key,
                "seconds": seconds,
                "starts": clips.start[begins[i] : begins[i + 1]].tolist(),
                "row": source.row(i),
            }


def write_cache(
    folder: str | Path,
    source: Source,
    media: Mapping[str, Media],
    encode: Callable[[str, Tensor], Posterior],
    fingerprint: Mapping[str, Any],
    batch_size: int = 16,
    workers: int = 0,
    limit: int | None = None,
    shard_bytes: int = 256 << 20,
    progress: bool = True,
) -> LatentCache:
    """Encode whole items in consecutive windows into a cache folder, skipping what is there; `limit`: the first items only.

    `encode(stream, x)` maps media (B, C, *S) on the CPU to a Posterior. Raises ValueError where other parts made the folder.
    """
    count = min(len(source), limit or len(source))
    clips = windows(source, media, range(count))
    with CacheWriter(folder, fingerprint, shard_bytes) as writer:
        items = list(_items(source, clips, count))
        writer.rows(items)
        unique = {
            (items[row]["key"], start): i for i, (row, start) in enumerate(zip(clips.index, clips.start.tolist(), strict=True))
        }
        wanted = sorted(i for clip, i in unique.items() if not writer.has(*clip))
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        loader = DataLoader(_Wanted(source, media, clips, wanted), batch_size, num_workers=workers, collate_fn=list,
                            multiprocessing_context=worker_context() if workers else None)  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task("encoding", total=len(wanted))
            for loaded in loader:
                _add(writer, loaded, items, clips, media, encode)
                bar.advance(task, len(loaded))
    return LatentCache(folder, fingerprint)


def _add(writer: CacheWriter, loaded: list[tuple[int, Item | str]], items: list[dict[str, Any]], clips: Clips,
         media: Mapping[str, Media], encode: Callable[[str, Tensor], Posterior]) -> None:  # fmt: skip
    for clip, reason in loaded:
        if isinstance(reason, str):
            writer.fault(items[clips.index[clip]]["key"], clips.start[clip], reason)
    good = [item for _, item in loaded if isinstance(item, Item)]
    if good:
        batch = collate(good, media, FieldReaders())
        keys = [items[item.index]["key"] for item in good]
        with torch.no_grad():
            latents = {stream: encode(stream, x) for stream, x in batch.media.items()}
        writer.add(keys, [item.start for item in good], latents, batch.valid)
