"""From a composed configuration to a cache of latents: what `mmldm encode` and `mmldm demo` run, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning
import torch
from omegaconf import DictConfig
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmldm import config, store, trained
from mmldm.commands.digests import conditioner_digest, fingerprint
from mmldm.commands.sources import build_source, checked
from mmldm.commands.training import quiet
from mmldm.conditioner import ConditionSet
from mmldm.data import CacheWriter, EncodingWriter, LatentCache, Together, begin
from mmldm.data.cache_writer import progress_bar
from mmldm.interfaces import Codec, Posterior

__all__ = ["Encoder", "encode", "main"]

SHARD_BYTES = 64 << 20


def main(cfg: DictConfig) -> None:
    """Encode what the configuration describes and say what is in the cache."""
    cache = encode(cfg)
    if cache is not None:
        bad, told = cache.unreadable.nonzero()[0], [f"{len(cache)} clips in {cfg.out}"]
        if len(bad):
            file = cache.rows[int(cache.clips.index[bad[0]])].get("file", "an item")
            told.append(f"{len(bad)} of them could not be read, the first: {file}: {cache.reason(bad[0])}")
        if cache.unused:
            told.append(f"{cache.unused} further entries belong to none of these files and are not used")
        print("\n".join(told))


def encode(cfg: DictConfig, progress: bool = True) -> LatentCache | None:
    """Write the cache of all streams of cfg.models; returns it in the first process, None in the others."""
    config.check(cfg, "encode")
    quiet()
    codecs = load_codecs(cfg)
    medias = {stream: codec.media for stream, codec in codecs.items()}
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    trainer = config.build(cfg.trainer, precision="32-true", **dict.fromkeys(off, False))
    progress = progress and trainer.is_global_zero
    folder = begin(cfg.out, fingerprint(codecs), cfg.cache.dtype)
    buckets = config.build(cfg.data.buckets)
    source = checked(build_source(cfg.data, buckets.reading(medias)), cfg.data.max_bad_fraction, progress)
    conditions = config.build(cfg.conditions)
    frozen = {conditioner_digest(c): c for c in conditions.conditioners.values() if c.frozen}
    size = sum(8 * math.prod(codec.latent_shape(codec.media.shape)) for codec in codecs.values())  # bytes of an entry
    options = {"crops": cfg.cache.crops, "seed": cfg.seed, "block": max(1, min(4096, SHARD_BYTES // size)), "buckets": buckets}

    def writers(together: Together) -> tuple[CacheWriter, list[EncodingWriter]]:
        latents = CacheWriter(folder, source, medias, cfg.batch_size, together=together, **options)
        made = (folder, latents.rows, cfg.batch_size, together)
        return latents, [EncodingWriter(c, digest, *made) for digest, c in frozen.items()]

    with progress_bar(progress) as bar:
        encoder = Encoder(codecs, conditions, writers, bar, cfg.data.workers)
        trainer.predict(encoder, return_predictions=False)
    return encoder.latents.finish() if trainer.is_global_zero else None


def load_codecs(cfg: DictConfig) -> dict[str, Codec]:
    """The codecs of cfg.models by stream, their media as cfg.data asks."""
    codecs: dict[str, Codec] = {}
    for model in cfg.models:
        for stream, part in trained.load_codecs(store.load_model(model), tuple(cfg.trust)).items():
            if stream in codecs:
                raise ValueError(f"wanted one codec per stream, got a second one of {stream} in {model}")
            codecs[stream] = part.codec
    for codec in codecs.values():
        codec.media = trained.sized(codec.media, cfg.data.seconds, cfg.data.size)
    trained.share_seconds(codecs)
    return codecs


class Batches:
    """What a process iterates over, taken as it is: Lightning would split a DataLoader once more."""

    def __init__(self, batches: Sequence | DataLoader):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Encoder(lightning.LightningModule):
    """Writes a cache in Lightning's predict loop: each process the blocks that are its own.

    `writers(together)` gives what writes the latents, and what writes each condition's encodings.
    """

    def __init__(self, codecs: Mapping[str, Codec], conditions: ConditionSet, writers: Callable[[Together], Any],
                 bar: Progress, workers: int = 0):  # fmt: skip
        super().__init__()
        self.codecs, self.conditions = nn.ModuleDict(codecs), conditions
        self._writers, self._bar, self._workers = writers, bar, workers

    def setup(self, stage: str) -> None:
        """Find out, all processes together, what is missing."""
        trainer = self.trainer
        self.latents, self.encodings = self._writers(
            Together(trainer.global_rank, trainer.world_size, lambda value, rank: trainer.strategy.broadcast(value, rank))
        )
        if trainer.is_global_zero and (damaged := [*self.latents.damaged, *(d for w in self.encodings for d in w.damaged)]):
            self._bar.console.print(f"{len(damaged)} damaged parts are made anew: {', '.join(damaged[:3])}", soft_wrap=True)
        self._task = self._bar.add_task("encoding", total=len(self.latents) + sum(map(len, self.encodings)))

    def predict_dataloader(self) -> list[Batches]:
        """This process's clips, then its blocks of values of each condition."""
        return [Batches(self.latents.loader(self._workers)), *(Batches(writer.blocks) for writer in self.encodings)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Encode a batch of clips, or a block of values."""
        if dataloader_idx:
            self.encodings[dataloader_idx - 1].write(batch, self.device)
        else:
            self.latents.add(batch, self._encode)
        self._bar.advance(self._task, len(batch))

    def _encode(self, stream: str, x: Tensor) -> Posterior:
        with torch.autocast(self.device.type, enabled=False):
            return self.codecs[stream].encode(x.to(self.device))

    def teardown(self, stage: str) -> None:
        """Wait until every process has written what is its own."""
        self.trainer.strategy.barrier()
