"""Positions of the global order -> items: the crop, the fields, and the replacement of items that cannot be read."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmldm import keyed
from mmldm.data.batch import FieldReaders, Item, LoadedBatch, collate
from mmldm.data.order import Order
from mmldm.data.source import Source
from mmldm.interfaces import Clip, Info, Media, MediaError, Reader

__all__ = ["ATTEMPTS", "CROPS", "Clips", "MediaDataset", "load_clips", "replacement", "row_fields", "windows", "worker_context"]

CROPS = ("random", "first", "windows")
ATTEMPTS = 10


@dataclass(frozen=True)
class Clips:
    """A list of clips: the item's index (int64) and the start in seconds (float64) of each."""

    index: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the clips that belong to these items."""
        return np.flatnonzero(np.isin(self.index, rows))


def clip_seconds(media: Mapping[str, Media]) -> float | None:
    """Duration of one clip over all streams, None for stills."""
    return max((m.seconds for m in media.values() if m.seconds is not None), default=None)


def windows(source: Source, media: Mapping[str, Media], rows: Sequence[int] | np.ndarray | None = None) -> Clips:
    """The consecutive clips that cover each item, in the order of the items (one clip where the header cannot be read)."""
    timed = [m for m in media.values() if m.seconds is not None]
    longest = max(timed, key=lambda m: m.seconds) if timed else None
    index, start = [], []
    for i in range(len(source)) if rows is None else rows:
        try:
            seconds = source.seconds(int(i)) if longest else None
        except MediaError:
            seconds = None
        starts = [0.0] if seconds is None else longest.windows(Info(seconds, (), None, 0))
        index.extend([int(i)] * len(starts))
        start.extend(starts)
    return Clips(np.array(index, dtype=np.int64), np.array(start, dtype=np.float64))


def row_fields(row: Mapping[str, Any], seconds: float | None, start: float) -> dict[str, Any]:
    """The fields a reader can ask for: the row's own, `seconds` (of the whole item, as measured) and `start` (of the clip)."""
    return {**row, "seconds": row.get("seconds") if seconds is None else seconds, "start": start}


def replacement(seed: int, position: int, attempt: int, size: int) -> int:
    """The item read instead of one that cannot be, as a function of the position."""
    return int(keyed.integers((seed, "replace", attempt), [position], size))


def load_clips(source: Source, index: int, start: float, media: Mapping[str, Media]) -> dict[str, Clip | None]:
    """One item's clip of every stream; raises MediaError where a stream is broken or none is there."""
    clips = {stream: source.load(index, stream, kind, start) for stream, kind in media.items()}
    for stream, clip in clips.items():
        if clip is not None and tuple(clip.x.shape) != tuple(media[stream].shape):
            raise ValueError(f"{stream}: wanted clips of shape {tuple(media[stream].shape)}, got {tuple(clip.x.shape)}")
    if all(clip is None for clip in clips.values()):
        raise MediaError(source.row(index).get("file", f"item {index}"), f"has no {' or '.join(clips)}")
    return clips


def _pack(x: Tensor) -> Tensor:
    """The smallest tensor that unpacks to x to the bit: 256 levels as uint8, float16, or x itself."""
    levels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    for packed in (levels, x.half()):
        if torch.equal(_unpack(packed), x):
            return packed
    return x


def _unpack(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


class MediaDataset(Dataset):
    """Global positions -> items of a source, endless: position p reads item `order.index(p)`.

    `crop`: "random" (a start keyed by the seed and the position, one for all streams), "first" (start 0), or "windows" (the
    items are the consecutive clips of all files, as a cache holds them). `rows` are the source's items to use (None: all);
    `order` is keyed by the seed unless given.
    An item that raises MediaError is replaced by another, a function of (seed, position, attempt), and named in `faults`.
    `memory` keeps decoded clips whose start recurs.
    """

    def __init__(
        self,
        source: Source,
        media: Mapping[str, Media],
        readers: Mapping[str, tuple[str, Reader]] | None = None,
        seed: int = 0,
        order: Order | None = None,
        crop: str = "random",
        rows: np.ndarray | None = None,
        memory: bool = False,
    ):
        if crop not in CROPS:
            raise ValueError(f"wanted a crop, got {crop!r}; choose from {', '.join(CROPS)}")
        self.source, self.media, self.readers, self.seed, self.crop = source, dict(media), FieldReaders(readers), seed, crop
        self.rows = rows
        self.clips = windows(source, media, rows) if crop == "windows" else None
        self.order = order or Order(len(self), seed)
        if self.order.size != len(self):
            raise ValueError(f"wanted an order of {len(self)} items, got one of {self.order.size}")
        self._clip = clip_seconds(media)
        self._memory: dict[tuple[int, float], Any] | None = {} if memory else None

    def __len__(self) -> int:
        """Positions in one epoch."""
        return len(self.source if self.rows is None else self.rows) if self.clips is None else len(self.clips)

    def locate(self, position: int, entry: int | None = None) -> tuple[int, float]:
        """(item index, start in seconds) that a position reads; `entry` replaces the order's choice."""
        entry = self.order.index(position) if entry is None else entry
        if self.clips is not None:
            return int(self.clips.index[entry]), float(self.clips.start[entry])
        index = entry if self.rows is None else int(self.rows[entry])
        if self.crop == "first" or self._clip is None:
            return index, 0.0
        slack = (self.source.seconds(index) or 0.0) - self._clip
        return index, slack * float(keyed.uniform((self.seed, "crop"), [position])) if slack > 0 else 0.0

    def row(self, position: int) -> dict[str, Any]:
        """The fields of the item that a position reads."""
        index, start = self.locate(position)
        return row_fields(self.source.row(index), self.source.seconds(index), start)

    def __getitem__(self, position: int) -> Item:
        return self._item(int(position), self.order.index(int(position)))

    def __getitems__(self, positions: Sequence[int]) -> list[Item]:
        entries = self.order.index(np.asarray(positions, dtype=np.int64))
        return [self._item(int(p), int(e)) for p, e in zip(positions, entries, strict=True)]

    def collate(self, items: Sequence[Item]) -> LoadedBatch:
        """Items -> Batch."""
        return collate(items, self.media, self.readers)

    def _item(self, position: int, entry: int) -> Item:
        faults: list[str] = []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                index, start = self.locate(position, entry)
                seconds = self.source.seconds(index)
                values = self.readers.read(row_fields(self.source.row(index), seconds, start))
                return Item(position, index, start, self._load(index, start), values, tuple(faults))
            except MediaError as error:
                faults.append(str(error))
                entry = replacement(self.seed, position, attempt, len(self))
        raise ValueError(f"{ATTEMPTS} items in a row cannot be read at position {position}, the last: {faults[-1]}")

    def _load(self, index: int, start: float) -> dict[str, Clip | None]:
        if self._memory is None or (self.crop == "random" and start > 0):
            return load_clips(self.source, index, start, self.media)
        if (index, start) not in self._memory:
            clips = load_clips(self.source, index, start, self.media)
            self._memory[index, start] = {s: c and (_pack(c.x), c.valid, c.start) for s, c in clips.items()}
        kept = self._memory[index, start]
        return {s: k and Clip(_unpack(k[0]), k[1], k[2]) for s, k in kept.items()}


def worker_context() -> BaseContext:
    """How loader processes start: from a server that has imported torch; never a bare fork, which locks up beside threads."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["torch", __name__])
    return context
