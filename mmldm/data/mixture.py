"""The data set of a training: its sources mixed by weight, its buckets, and which of them each optimiser step reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmldm.data.batch import LoadedBatch
from mmldm.data.buckets import Bucket, Buckets, Headers, bucket_line, cells_of
from mmldm.data.cache import LatentCache
from mmldm.data.cached import CachedDataset
from mmldm.data.dataset import MediaDataset
from mmldm.data.joined import Joined
from mmldm.data.order import Interleave, MixedOrder, Order
from mmldm.data.source import Source
from mmldm.interfaces import Media

__all__ = ["Member", "Mixture", "Opened", "Part", "apart", "parts_of"]


@dataclass(frozen=True)
class Member:
    """One of the sources that a training mixes: `weight` is its share of the samples in relation to the others'.

    `source` is a Source, or a function of `media` that gives one; with `cache`, a folder of its latents, that is read instead.
    """

    source: Source | Callable[..., Source] | None = None
    weight: float = 1.0
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < np.inf:
            raise ValueError(f"wanted a finite weight > 0 of a source, got {self.weight}")


@dataclass(frozen=True)
class Opened:
    """A member that is open, and the rows of it that are used."""

    name: str
    items: Source | LatentCache
    rows: np.ndarray
    weight: float = 1.0


@dataclass
class Part:
    """One bucket of a mixture: its dataset, how many entries each member has in it, and the members' shares of the samples.

    `used` samples are in a step; `cells` latent cells are in an item (None: not known); `usage` is what is done to the items.
    """

    name: str
    dataset: MediaDataset | CachedDataset
    counts: dict[str, int]
    cells: int | None
    shares: dict[str, float] = field(default_factory=dict)
    used: int = 0
    usage: dict[str, float] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """The bucket as a line of a table."""
        return bucket_line(self.name or "all", len(self.dataset), self.used, self.cells, self.usage)


class StepOrder:
    """Which entry of a bucket a global position reads: one step after the other takes the next of the bucket's own order."""

    def __init__(self, steps: Interleave, batch_size: int, used: int, order: Order | MixedOrder):
        self.steps, self.batch_size, self.used, self.order, self.size = steps, batch_size, used, order, order.size

    def index(self, position: Any) -> Any:
        """Position (int or array), of a step that reads this bucket -> entry, of the same kind."""
        step, place = np.divmod(position, self.batch_size)
        index = self.order.index(self.steps.index(step)[1] * self.used + place)
        return index if np.ndim(position) else int(index)


@dataclass(frozen=True)
class Consecutive:
    """Positions from `first` on read the entries as they come."""

    first: int
    size: int

    def index(self, position: Any) -> Any:
        """Position (int or array) -> entry."""
        return position - self.first


class Mixture(Dataset):
    """Global positions -> batches, each of one part.

    In training step k, positions k*G … k*G + G - 1 with the global batch G, reads the part that an Interleave of the parts
    gives: every entry of a member is as frequent as any other of it, the members are by their weights. In `validation` the
    positions are the parts end to end, every entry once.
    """

    def __init__(self, parts: Sequence[Part], batch_size: int, seed: int = 0, validation: bool = False):
        self.parts, self.batch_size = list(parts), batch_size
        self.ends = np.cumsum([len(part.dataset) for part in parts])
        weights = [sum(part.shares.values()) / part.used for part in parts]
        self.steps = None if validation else Interleave(weights, seed, "buckets")
        for part, end in zip(self.parts, self.ends, strict=True):
            part.dataset.order = self._order(part, int(end), seed)

    def _order(self, part: Part, end: int, seed: int) -> StepOrder | Consecutive:
        if self.steps is None:
            return Consecutive(end - len(part.dataset), len(part.dataset))
        members = [name for name, count in part.counts.items() if count]
        name = "order" if len(self.parts) == 1 else f"order/{part.name}"
        order = MixedOrder([part.counts[m] for m in members], [part.shares[m] for m in members], seed, name)
        return StepOrder(self.steps, self.batch_size, part.used, order)

    def part(self, position: int) -> Part:
        """The part that a position reads."""
        if self.steps is None:
            return self.parts[int(np.searchsorted(self.ends, position, side="right"))]
        return self.parts[self.steps.index(int(position) // self.batch_size)[0]]

    def used(self, step: int) -> int:
        """How many samples a step of the training has."""
        return self.parts[self.steps.index(step)[0]].used

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, position: int) -> LoadedBatch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> LoadedBatch:
        """The batch of these positions, all of one step."""
        part = self.part(positions[0])
        batch = part.dataset.collate(part.dataset.__getitems__(positions))
        return replace(batch, bucket=part.name, total=None if self.steps is None else part.used)

    @staticmethod
    def collate(batch: LoadedBatch) -> LoadedBatch:
        """The batch is whole already."""
        return batch

    def row(self, position: int) -> dict[str, Any]:
        """The fields of the item that a position reads."""
        return self.part(position).dataset.row(position)

    def shown(self, count: int) -> range:
        """The first positions of one part, that which holds most: what a person is shown of a validation set."""
        part, end = max(zip(self.parts, self.ends.tolist(), strict=True), key=lambda p: len(p[0].dataset) * (p[0].cells or 1))
        return range(end - len(part.dataset), min(end, end - len(part.dataset) + count))


# ---------------------------------------------------------------- from members to parts


def apart(train: Sequence[Opened], held_out: Sequence[Opened]) -> list[Opened]:
    """The members without the files that another member holds out: what is in several is trained on in none.

    Raises ValueError where nothing of a member is left.
    """
    if len(train) < 2:
        return list(train)
    held = {file for member in held_out for file in _files(member)} - {None}
    found = []
    for member in train:
        keep = np.array([file not in held for file in _files(member)], dtype=bool)
        if not keep.any():
            raise ValueError(
                f"wanted items of {member.name} to train on, got none that no other source holds out for validation"
            )
        if left := int((~keep).sum()):
            told = "%s: %d items are left out of training, since another source holds out their files for validation"
            logging.getLogger(__name__).warning(told, member.name, left)
        found.append(replace(member, rows=member.rows[keep]))
    return found


def _files(member: Opened) -> list[str | None]:
    """The files of a member's rows; none of what is computed."""
    rows = getattr(member.items, "rows", None)
    return [None if rows is None else rows[i].get("file") for i in member.rows.tolist()]


def parts_of(
    members: Sequence[Opened],
    medias: Mapping[str, Media],
    buckets: Buckets,
    batch_size: int,
    make: Callable[..., MediaDataset | CachedDataset],
    latent_shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] | None,
) -> list[Part]:
    """The buckets of all members, with batch sizes and shares: files of all members share buckets, each cache has its own.

    `make(items, medias, rows)` gives the dataset of a bucket's rows (of a cache: of its entries).
    """
    files = [m for m in members if not isinstance(m.items, LatentCache)]
    parts = [*_of_files(files, medias, buckets, make, latent_shape)] if files else []
    for member in members:
        if isinstance(member.items, LatentCache):
            parts += _of_cache(member, len(members) > 1, make)
    for member in members:
        total = sum(part.counts.get(member.name, 0) for part in parts)
        for part in parts:
            if count := part.counts.get(member.name, 0):
                part.shares[member.name] = member.weight * count / total
    for part in parts:
        part.used = buckets.batch_size(part.cells, batch_size)
    return parts


def _of_files(members: Sequence[Opened], medias: Mapping[str, Media], buckets: Buckets, make: Callable[..., MediaDataset],
              latent_shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] | None) -> Iterator[Part]:  # fmt: skip
    source = members[0].items if len(members) == 1 else Joined([m.items for m in members])
    begins = np.cumsum([0, *(len(m.items) for m in members)])
    rows = np.concatenate([begin + m.rows for begin, m in zip(begins, members, strict=False)])
    kinds = buckets.of(medias) if buckets.several else [Bucket("", dict(medias))]
    headers = [Headers.read(m.items, m.rows, medias) for m in members] if buckets.several else []
    where = np.concatenate([buckets.assign(h, medias) for h in headers]) if headers else np.zeros(len(rows), dtype=np.int64)
    for number, bucket in enumerate(kinds):
        chosen = where == number
        if chosen.any():
            dataset = make(source, bucket.medias, rows[chosen])
            entries = dataset.rows if dataset.clips is None else dataset.clips.index
            counts = np.histogram(entries, begins)[0].tolist()
            usage = bucket.usage(_joined(headers)[chosen]) if headers else {}
            counts = dict(zip((m.name for m in members), counts, strict=True))
            yield Part(bucket.name, dataset, counts, cells_of(bucket.medias, latent_shape), usage=usage)


def _joined(headers: Sequence[Headers]) -> Headers:
    return Headers(*(np.concatenate(column) for column in zip(*(vars(h).values() for h in headers), strict=True)))


def _of_cache(member: Opened, several: bool, make: Callable[..., CachedDataset]) -> Iterator[Part]:
    cache, entries = member.items, member.items.clips.of(member.rows)
    for number, shapes in enumerate(cache.shapes):
        chosen = entries[cache.shape_of[entries] == number]
        if len(chosen):
            sizes = "+".join("x".join(map(str, shape[1:])) for shape in shapes.values())
            name = "/".join([member.name] * several + [f"latents_{sizes}"] * (several or len(cache.shapes) > 1))
            cells = sum(math.prod(shape[1:]) for shape in shapes.values())
            yield Part(name, make(cache, None, chosen), {member.name: len(chosen)}, cells)
