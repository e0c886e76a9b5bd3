"""From cfg.data to sources, data modules and the fingerprint of cached latents."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from mmldm import config
from mmldm.data import DataModule, FileSource, Source
from mmldm.interfaces import Codec, Media

__all__ = ["build_data", "build_source", "fingerprint"]


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


def fingerprint(codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """What cached latents depend on besides the files: the weights of each codec and the media it is given."""
    return {stream: {"codec": digest(codec), "media": repr(codec.media)} for stream, codec in codecs.items()}


def digest(codec: Codec) -> str:
    """sha256 over a codec's class and tensors."""
    total = hashlib.sha256(type(codec).__qualname__.encode())
    for name, tensor in sorted(codec.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
    return total.hexdigest()
