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
from mmldm.data.cache import LatentCache
from mmldm.data.cached import CachedDataset
from mmldm.data.check import Report
from mmldm.data.dataset import CROPS, MediaDataset, worker_context
from mmldm.data.order import Order, PositionSampler, SpanSampler
from mmldm.data.source import FileSource, Source, split
from mmldm.interfaces import Media, Reader

__all__ = ["DataModule"]


class DataModule(LightningDataModule):
    """Training data without end and validation data in fixed order, from a source or from a cache of its latents.

    `source` is a Source, or a function of `media` that gives one (`partial(FileSource.read, path)`). `batch_size` is the global
    batch. `validation` is another such source, or the number (int) or fraction (float) of the items held out of training,
    chosen by the seed. With `cache` the items, fields and windows come from that folder, which must have been made with
    `cache_fingerprint` (None: any), and `source` is not read. Files whose header cannot be read are dropped; ValueError where
    they are more than `max_bad_fraction`. The trainer must run with use_distributed_sampler=False.
    """

    def __init__(
        self,
        source: Source | Callable[..., Source] | None,
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
    ):
        super().__init__()
        if source is None and cache is None:
            raise ValueError("wanted a source or a cache, got neither")
        if crop not in CROPS:
            raise ValueError(f"wanted a crop, got {crop!r}; choose from {', '.join(CROPS)}")
        self.source, self.validation, self.medias, self.readers = source, validation, dict(medias), readers
        self.batch_size, self.seed, self.crop, self.memory, self.workers = batch_size, seed, crop, memory, workers
        self.cache, self.cache_fingerprint = cache, cache_fingerprint
        self.max_bad_fraction, self.progress = max_bad_fraction, progress
        self.start = 0
        self.train: MediaDataset | CachedDataset | None = None
        self.val: MediaDataset | CachedDataset | None = None
        self.faults: list[str] = []

    # ------------------------------------------------------------ datasets

    def setup(self, stage: str | None = None) -> None:
        """Read the headers or open the cache, and split; once."""
        if self.train is not None:
            return
        if self.cache is not None:
            items = LatentCache(self.cache, self.cache_fingerprint)
        else:
            items = self.source = self._opened(self.source)
        held_out = isinstance(self.validation, (int, float))
        train, val = split(items, self.validation, self.seed) if held_out else (None, None)
        if not held_out:
            self.validation = self._opened(self.validation)
        self.train = self._dataset(items, train, None)
        self.val = self._dataset(items if held_out else self.validation, val, "validation")

    def _opened(self, source: Source | Callable[..., Source]) -> Source:
        source = source if isinstance(source, Source) else source(media=self.medias)
        return source.checked(self.max_bad_fraction, progress=self.progress) if isinstance(source, FileSource) else source

    def _dataset(self, items: Source | LatentCache, rows: np.ndarray | None, part: str | None) -> MediaDataset | CachedDataset:
        if isinstance(items, LatentCache):
            dataset = CachedDataset(items, self.readers, self.seed, rows=rows)
        else:
            crop = self.crop if part is None or self.crop == "windows" else "first"
            dataset = MediaDataset(items, self.medias, self.readers, self.seed, None, crop, rows, self.memory)
        if part == "validation":
            dataset.order = Order(len(dataset), None)
        return dataset

    @property
    def report(self) -> Report | None:
        """What the headers of the files said; None for other sources."""
        return getattr(self.source, "report", None)

    @property
    def items(self) -> Source | LatentCache:
        """Where the training items come from: the opened source or cache."""
        self.setup()
        return self.train.source if isinstance(self.train, MediaDataset) else self.train.cache

    def labels(self, key: str = "label") -> list[str]:
        """The sorted values of one field over all items: the classes of a label conditioner."""
        rows = getattr(self.items, "rows", None) or [self.items.row(i) for i in range(len(self.items))]
        return sorted({str(row[key]) for row in rows if row.get(key) is not None})

    def fingerprint(self) -> str:
        """Which data this is: sha256 over the fields of all items, folders left out (without rows: over the source's repr)."""
        rows = getattr(self.items, "rows", None)
        facts = repr(self.items) if rows is None else [
            {**row, "file": Path(row["file"]).name} if "file" in row else row for row in rows]  # fmt: skip
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def validation_rows(self, count: int) -> list[dict[str, Any]]:
        """The fields of the first validation items."""
        self.setup()
        return [self.val.row(i) for i in range(min(count, len(self.val)))]

    def validation_batch(self, count: int) -> LoadedBatch:
        """The first validation items, loaded in this process."""
        self.setup()
        return self.val.collate(self.val.__getitems__(range(min(count, len(self.val)))))

    def sample_batches(self, count: int) -> Iterator[LoadedBatch]:
        """The first training batches, loaded in this process."""
        self.setup()
        for positions in PositionSampler(0, self.batch_size, steps=count):
            yield self.train.collate(self.train.__getitems__(positions))

    # ------------------------------------------------------------ loaders

    def set_start(self, step: int) -> None:
        """Begin at this batch of the endless order: the next train_dataloader's first position is step * batch_size."""
        self.start = int(step)

    def _process(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _loader(self, dataset: MediaDataset | CachedDataset, sampler: PositionSampler | SpanSampler) -> DataLoader:
        workers = 0 if self.memory or isinstance(dataset, CachedDataset) else self.workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=dataset.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context=worker_context() if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
        )

    def train_dataloader(self) -> DataLoader:
        """Endless: step k of the run is the global positions k * batch_size …, of which this process gets its slice."""
        self.setup()
        rank, world = self._process()
        return self._loader(self.train, PositionSampler(self.start, self.batch_size, rank, world))

    def val_dataloader(self) -> DataLoader:
        """Every validation item once, in order."""
        self.setup()
        return self._loader(self.val, SpanSampler(len(self.val), self.batch_size, *self._process()))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Collect what could not be read."""
        if isinstance(batch, LoadedBatch) and batch.faults:
            new = [fault for fault in dict.fromkeys(batch.faults) if fault not in self.faults]
            for fault in new:
                logging.getLogger(__name__).warning("replaced by another item: %s", fault)
            self.faults.extend(new)
        return batch
