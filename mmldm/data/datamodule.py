"""The LightningDataModule: a source, split and loaded in an order that any number of processes shares."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from mmldm.data.batch import LoadedBatch
from mmldm.data.buckets import Buckets
from mmldm.data.cache import LatentCache
from mmldm.data.cached import CachedDataset
from mmldm.data.check import Report
from mmldm.data.dataset import CROPS, MediaDataset, worker_context
from mmldm.data.mixture import Member, Mixture, Opened, apart, parts_of
from mmldm.data.order import PositionSampler, SpanSampler
from mmldm.data.source import FileSource, Source, split
from mmldm.data.workers import leave_signals
from mmldm.interfaces import Media, Reader

__all__ = ["DataModule"]


class DataModule(LightningDataModule):
    """Training data without end and validation data in fixed order, from sources or from caches of their latents.

    `source` is a Source, or a function of `media` that gives one (`partial(FileSource.read, path)`), or several Members by
    name, mixed by weight. `batch_size` is the global batch of an optimiser step, which comes in `accumulate` batches.
    `validation` is another such source, or the number (int) or fraction (float) of the items of each source held out of
    training, chosen by the seed. With `cache` the items, fields and windows come from that folder, which must have been made
    with `cache_fingerprint` (None: any), and `source` is not read. `buckets` give clips of several lengths and sizes;
    `latent_shape(stream, shape of the media)` tells how large a batch of each may be. Files whose header cannot be read are
    dropped; ValueError where they are more than `max_bad_fraction`. The trainer must run with use_distributed_sampler=False.
    """

    def __init__(
        self,
        source: Source | Callable[..., Source] | Mapping[str, Member] | None,
        medias: Mapping[str, Media],
        readers: Mapping[str, tuple[str, Reader]] | None = None,
        batch_size: int = 16,
        validation: Source | Callable[..., Source] | int | float = 0.05,
        seed: int = 0,
        crop: str = "random",
        memory: bool = False,
        workers: int = 0,
        cache: str | Path | None = None,
        cache_fingerprint: Mapping[str, Any] | None = None,
        max_bad_fraction: float = 0.01,
        progress: bool = True,
        accumulate: int = 1,
        buckets: Buckets | None = None,
        latent_shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] | None = None,
    ):
        super().__init__()
        self.members = dict(source) if isinstance(source, Mapping) else {"": Member(source, cache=cache)}
        if not self.members or any(m.source is None and m.cache is None for m in self.members.values()):
            raise ValueError("wanted a source or a cache, got neither")
        if crop not in CROPS:
            raise ValueError(f"wanted a crop, got {crop!r}; choose from {', '.join(CROPS)}")
        if batch_size < 1 or batch_size % accumulate:
            raise ValueError(
                f"wanted a batch_size >= 1 that the {accumulate} accumulated batches divide evenly, got {batch_size}"
            )
        self.validation, self.medias, self.readers = validation, dict(medias), readers
        self.batch_size, self.seed, self.crop, self.memory, self.workers = batch_size, seed, crop, memory, workers
        self.cache_fingerprint, self.max_bad_fraction, self.progress = cache_fingerprint, max_bad_fraction, progress
        self.accumulate, self.buckets, self.latent_shape = accumulate, buckets or Buckets(), latent_shape
        self.start = 0
        self.opened: dict[str, Source | LatentCache] = {}
        self.train: Mixture | None = None
        self.val: Mixture | None = None
        self.faults: list[str] = []

    # ------------------------------------------------------------ datasets

    def setup(self, stage: str | None = None) -> None:
        """Read the headers or open the caches, and split; once."""
        if self.train is not None:
            return
        self.opened = {name: self._open(m.source if m.cache is None else m.cache) for name, m in self.members.items()}
        train, val = [], []
        for name, items in self.opened.items():
            if isinstance(self.validation, (int, float)):
                rows, held_out = split(items, self.validation, self.seed)
                val.append(Opened(name, items, held_out))
            else:
                rows = np.arange(len(items.rows) if isinstance(items, LatentCache) else len(items))
            train.append(Opened(name, items, rows, self.members[name].weight))
        train = apart(train, val)
        if not val:
            items = self._open(self.validation)
            val = [Opened("", items, np.arange(len(items)))]
        self.val = self._mixture(val, "first" if self.crop == "random" else self.crop, True)
        self.train = self._mixture(train, self.crop, False)

    def _open(self, items: Source | Callable[..., Source] | str | Path) -> Source | LatentCache:
        if isinstance(items, (str, Path)):
            return LatentCache(items, self.cache_fingerprint)
        source = items if isinstance(items, Source) else items(media=self.buckets.reading(self.medias))
        return source.checked(self.max_bad_fraction, progress=self.progress) if isinstance(source, FileSource) else source

    def _mixture(self, members: list[Opened], crop: str, validation: bool) -> Mixture:
        def make(items: Source | LatentCache, medias: Mapping[str, Media], rows: np.ndarray) -> MediaDataset | CachedDataset:
            if isinstance(items, LatentCache):
                return CachedDataset(items, self.readers, self.seed, entries=rows)
            return MediaDataset(items, medias, self.readers, self.seed, None, crop, rows, self.memory)

        parts = parts_of(members, self.medias, self.buckets, self.batch_size, make, self.latent_shape)
        return Mixture(parts, self.batch_size, self.seed, validation)

    @property
    def reports(self) -> dict[str, Report]:
        """What the headers of the files said, by source; nothing of sources without files."""
        self.setup()
        return {name: items.report for name, items in self.opened.items() if isinstance(items, FileSource)}

    @property
    def items(self) -> Source | LatentCache:
        """Where the training items come from: the opened source or cache, the first of several."""
        self.setup()
        return next(iter(self.opened.values()))

    def labels(self, key: str = "label") -> list[str]:
        """The sorted values of one field over all items: the classes of a label conditioner."""
        self.setup()
        tables = [getattr(s, "rows", None) or [s.row(i) for i in range(len(s))] for s in self.opened.values()]
        return sorted({str(row[key]) for rows in tables for row in rows if row.get(key) is not None})

    def fingerprint(self) -> str:
        """Which data this is: sha256 over the fields of all items, folders left out (without rows: over the source's repr)."""
        self.setup()
        facts = {name: (self.members[name].weight, _facts(items)) for name, items in self.opened.items()}
        told = facts[""][1] if list(facts) == [""] else facts
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def table(self) -> list[dict[str, Any]]:
        """What lands in which bucket of the training, a line each, as `bucket_table` shows it."""
        self.setup()
        return [part.line() for part in self.train.parts]

    def validation_rows(self, count: int) -> list[dict[str, Any]]:
        """The fields of the first validation items, of one bucket."""
        self.setup()
        return [self.val.row(i) for i in self.val.shown(count)]

    def validation_batch(self, count: int) -> LoadedBatch:
        """The first validation items, of one bucket, loaded in this process."""
        self.setup()
        return self.val.__getitems__(self.val.shown(count))

    def sample_batches(self, count: int) -> Iterator[LoadedBatch]:
        """The first training batches, loaded in this process."""
        self.setup()
        sampler = PositionSampler(0, self.batch_size, steps=count, accumulate=self.accumulate, used=self.train.used)
        yield from map(self.train.__getitems__, sampler)

    # ------------------------------------------------------------ loaders

    def set_start(self, batch: int) -> None:
        """Begin at this batch of the endless order: its step is batch // accumulate."""
        self.start = int(batch)

    def _process(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _agree(self) -> None:
        """Raise ValueError, in every process, where one has found other items than the first: their orders would differ."""
        strategy, mine = self.trainer.strategy, self.fingerprint()
        if not strategy.reduce_boolean_decision(mine == strategy.broadcast(mine)):
            raise ValueError(
                f"wanted the same items in every process, got others in some (here {len(self.train)} entries to train on); "
                "see that every machine can read every file"
            )

    def _loader(self, dataset: Mixture, sampler: PositionSampler | SpanSampler) -> DataLoader:
        cached = all(isinstance(part.dataset, CachedDataset) for part in dataset.parts)
        workers = 0 if self.memory or cached else self.workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=dataset.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals,
            multiprocessing_context=worker_context() if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
        )

    def train_dataloader(self) -> DataLoader:
        """Endless: step k of the run is the global positions k * batch_size …, of which this process gets its slice."""
        self.setup()
        rank, world = self._process()
        if world > 1:
            self._agree()
        sampler = PositionSampler(self.start, self.batch_size, rank, world, accumulate=self.accumulate, used=self.train.used)
        for part in self.train.parts:
            if part.used % (world * self.accumulate):
                raise ValueError(
                    f"wanted batches that {world} processes × {self.accumulate} accumulated batches divide evenly, got "
                    f"{part.used} in the bucket {part.name}; choose such a data.buckets.multiple"
                )
        return self._loader(self.train, sampler)

    def val_dataloader(self) -> DataLoader:
        """Every validation item once, in order."""
        self.setup()
        counts, sizes = zip(*((len(p.dataset), max(1, p.used // self.accumulate)) for p in self.val.parts), strict=True)
        return self._loader(self.val, SpanSampler(counts, sizes, *self._process()))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Collect what could not be read."""
        if isinstance(batch, LoadedBatch) and batch.faults:
            new = [fault for fault in dict.fromkeys(batch.faults) if fault not in self.faults]
            for fault in new:
                logging.getLogger(__name__).warning("replaced by another item: %s", fault)
            self.faults.extend(new)
        return batch


def _facts(items: Source | LatentCache) -> Any:
    rows = getattr(items, "rows", None)
    if rows is None:
        return repr(items)
    return [{k: Path(v).name if _is_file(k) and isinstance(v, str) else v for k, v in row.items()} for row in rows]


def _is_file(field: str) -> bool:
    return field == "file" or field.endswith(("_file", "_file_name"))
