"""From cfg.data to sources, data modules and the fingerprint of cached latents."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Subset

from mmldm import config
from mmldm.data import DataModule, FileSource, MediaDataset, Order, Source
from mmldm.interfaces import Codec, Media

__all__ = ["batches", "build_data", "build_source", "checked", "fingerprint", "sized_source"]


def build_source(data: DictConfig, medias: Mapping[str, Media]) -> Source | None:
    """The source that cfg.data describes; one that reads files is told the media of each stream."""
    source = config.build(data.source)
    return source(media=dict(medias)) if isinstance(source, functools.partial) else source


def build_data(
    cfg: DictConfig, medias: Mapping[str, Media], readers: Mapping[str, Any], codecs: Mapping[str, Codec], accumulate: int = 1
) -> DataModule:
    """The data module of cfg.data, split and ordered by cfg.seed."""
    data = cfg.data
    if data.batch_size % accumulate:
        raise ValueError(f"wanted data.batch_size divisible by the {accumulate} accumulated batches, got {data.batch_size}")
    return DataModule(
        None if data.cache else build_source(data, medias),
        medias,
        readers,
        data.batch_size // accumulate,
        validation=data.validation,
        seed=cfg.seed,
        crop=data.crop,
        memory=data.memory,
        workers=data.workers,
        cache=data.cache,
        cache_fingerprint=fingerprint(codecs) if data.cache else None,
        max_bad_fraction=data.max_bad_fraction,
    )


def checked(source: Source, max_bad_fraction: float = 0.01, progress: bool = True) -> Source:
    """The source without files that cannot be used, as training sees it."""
    return source.checked(max_bad_fraction, progress=progress) if isinstance(source, FileSource) else source


def sized_source(cfg: DictConfig, medias: Mapping[str, Media]) -> Source:
    """The checked source of cfg.data."""
    return checked(build_source(cfg.data, medias), cfg.data.max_bad_fraction, progress=False)


def batches(source: Source, medias: Mapping[str, Media], readers: Mapping, items: int, size: int) -> DataLoader:
    """The first clips of the first `items` items, in order."""
    dataset = MediaDataset(source, medias, readers, crop="first", order=Order(len(source), None))
    wanted = Subset(dataset, range(min(items, len(source))))
    return DataLoader(wanted, size, collate_fn=dataset.collate)


def fingerprint(codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """What cached latents depend on besides the files: the weights of each codec and the media it is given."""
    return {stream: {"codec": digest(codec), "media": repr(codec.media)} for stream, codec in codecs.items()}


def digest(codec: Codec) -> str:
    """sha256 over a codec's class and tensors, its vocoder's left out: no latent depends on them."""
    total = hashlib.sha256(type(codec).__qualname__.encode())
    for name, tensor in sorted((k, t) for k, t in codec.state_dict().items() if not k.startswith("vocoder.")):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
