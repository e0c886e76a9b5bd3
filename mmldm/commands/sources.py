"""From cfg.data to sources, data modules and the fingerprint of cached latents."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import DataLoader, Subset

from mmldm import config
from mmldm.commands.digests import conditioner_digest, fingerprint
from mmldm.conditioner import ConditionSet
from mmldm.data import DataModule, FileSource, MediaDataset, Member, Order, Source, StoredEncodings
from mmldm.interfaces import Codec, Media, Reader

__all__ = ["batches", "build_data", "build_source", "checked", "condition_readers", "sized_source"]


def build_source(data: DictConfig, medias: Mapping[str, Media]) -> Source:
    """The source that cfg.data describes; one that reads files is told the media of each stream."""
    source = config.build(data.source)
    if source is None:
        raise ValueError("wanted one source of media, got a mixture or a cache; choose data=folder data.path=… for each source")
    return source(media=dict(medias)) if isinstance(source, functools.partial) else source


def build_data(
    cfg: DictConfig, medias: Mapping[str, Media], readers: Mapping[str, Any], codecs: Mapping[str, Codec], accumulate: int = 1
) -> DataModule:
    """The data module of cfg.data, split and ordered by cfg.seed."""
    data = cfg.data
    if data.batch_size % accumulate:
        raise ValueError(f"wanted data.batch_size divisible by the {accumulate} accumulated batches, got {data.batch_size}")
    members = build_members(data)
    return DataModule(
        members,
        medias,
        readers,
        data.batch_size,
        validation=data.validation,
        seed=cfg.seed,
        crop=data.crop,
        memory=data.memory,
        workers=data.workers,
        cache_fingerprint=fingerprint(codecs) if any(m.cache for m in members.values()) else None,
        max_bad_fraction=data.max_bad_fraction,
        accumulate=accumulate,
        buckets=config.build(data.buckets),
        latent_shape=lambda stream, shape: codecs[stream].latent_shape(shape),
    )


def build_members(data: DictConfig) -> dict[str, Member]:
    """The sources of cfg.data: the one of `path`, `source` or `cache`, or those of `sources` by name."""
    if "sources" not in data:
        return {"": Member(None if data.cache else config.build(data.source), cache=data.cache)}
    if not data.sources:
        raise ValueError("wanted sources to mix, got none; add +data.sources.NAME.path=DIR for each")
    members = {}
    for name, node in config.resolved(data.sources).items():
        known = ("path", "cache", "source", "weight")
        if not isinstance(node, dict) or sum(bool(node.get(key)) for key in known[:3]) != 1 or set(node) - set(known):
            got = ", ".join(node) if isinstance(node, dict) else node
            raise ValueError(f"data.sources.{name}: wanted one of path, cache and source, and a weight, got {got}")
        source = config.build(node.get("source"))
        if node.get("path"):
            source = functools.partial(FileSource.read, node["path"])
        members[name] = Member(source, float(node.get("weight", 1.0)), node.get("cache"))
    return members


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


def condition_readers(data: DictConfig, conditions: ConditionSet) -> dict[str, tuple[str, Reader]]:
    """What reads each condition's field; where data.cache holds a condition's encodings they are read instead of made."""
    readers = conditions.readers
    kept = [node.get("cache") for node in (data.get("sources") or {}).values() if isinstance(node, Mapping)]
    if any(next(Path(cache).glob("encodings-*"), None) for cache in kept if cache):
        logging.getLogger(__name__).warning("stored encodings of captions are read with data.cache alone, not of data.sources")
    for name, conditioner in conditions.conditioners.items() if data.get("cache") else ():
        if conditioner.frozen and StoredEncodings.there(data.cache, digest := conditioner_digest(conditioner)):
            readers[name] = (conditioner.key, StoredEncodings(data.cache, digest))
        elif conditioner.frozen and next(Path(data.cache).glob("encodings-*"), None):
            logging.getLogger(__name__).warning("%s: encodings of another one are in the cache; it is run in training", name)
    return readers
