"""Items and batches: reading the fields of a row, and collating items into a Batch that can move between devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmldm.interfaces import Batch, Clip, Media, Posterior, Reader

__all__ = ["FieldReaders", "Item", "LoadedBatch", "collate"]

REMEMBERED, SMALL = 65536, 4096  # texts whose reading is kept, and the largest reading that is


@dataclass(frozen=True)
class Item:
    """One sample: clips (None: the stream is absent), read fields (None: missing), and what could not be read in its place."""

    position: int
    index: int
    start: float
    clips: dict[str, Clip | None]
    values: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Posterior):
        return Posterior(function(value.mean), None if value.std is None else function(value.std))
    if isinstance(value, Mapping):
        return {k: _map(v, function) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, function) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(v, function) for v in value)
    return value


@dataclass
class LoadedBatch(Batch):
    """A Batch as a loader yields it: movable, and with a word on each bad item that was replaced (`faults`)."""

    faults: list[str] = field(default_factory=list)

    def map(self, function: Callable[[Tensor], Tensor]) -> LoadedBatch:
        """The batch with every tensor in it replaced by its image."""
        return replace(self, **{f.name: _map(getattr(self, f.name), function) for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = True) -> LoadedBatch:
        """The batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> LoadedBatch:
        """The batch in page-locked memory."""
        return self.map(Tensor.pin_memory)


class FieldReaders:
    """The readers of all conditioners: {name: (the field of the row, the reader)}; small readings of texts are remembered."""

    def __init__(self, readers: Mapping[str, tuple[str, Reader]] | None = None):
        self.readers = dict(readers or {})
        self._known: dict[str, dict[str, Any]] = {name: {} for name in self.readers}

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row -> what each reader makes of its field, None where the field is missing."""
        values = {}
        for name, (key, reader) in self.readers.items():
            value, known = row.get(key), self._known[name]
            if value is None or (isinstance(value, str) and value in known):
                values[name] = None if value is None else known[value]
                continue
            values[name] = reader(value)
            if isinstance(value, str) and len(known) < REMEMBERED and _small(values[name]):
                known[value] = values[name]
        return values

    def collate(self, values: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `read` gave for each item -> (fields, present)."""
        columns = {name: [value[name] for value in values] for name in self.readers}
        collated = {name: reader.collate(columns[name]) for name, (_, reader) in self.readers.items()}
        return collated, {name: torch.tensor([v is not None for v in column]) for name, column in columns.items()}


def _small(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() <= SMALL
    if isinstance(value, (list, tuple)):
        return len(value) <= SMALL and all(isinstance(v, (int, float)) for v in value)
    return isinstance(value, (int, float))


def collate(items: Sequence[Item], media: Mapping[str, Media], readers: FieldReaders) -> LoadedBatch:
    """Items -> a batch; an absent stream is zeros with `valid` 0."""
    tensors, valid = {}, {}
    for stream, kind in media.items():
        clips = [item.clips[stream] for item in items]
        tensors[stream] = torch.stack([torch.zeros(kind.shape) if clip is None else clip.x for clip in clips])
        nothing = (0,) * (len(kind.shape) - 1)
        valid[stream] = torch.tensor([nothing if clip is None else tuple(clip.valid) for clip in clips])
    read, present = readers.collate([item.values for item in items])
    return LoadedBatch(
        position=torch.tensor([item.position for item in items]),
        index=torch.tensor([item.index for item in items]),
        media=tensors,
        valid=valid,
        start=torch.tensor([item.start for item in items], dtype=torch.float32),
        fields=read,
        present=present,
        faults=[fault for item in items for fault in item.faults],
    )
