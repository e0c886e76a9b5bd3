"""Manifest, datasets, their order, the latent cache and the LightningDataModule."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "batch": ("FieldReaders", "Item", "LoadedBatch"),
    "buckets": ("Bucket", "Buckets", "Headers", "bucket_table", "survey"),
    "cache": ("LatentCache",),
    "cache_encodings": ("EncodingWriter", "StoredEncodings"),
    "cache_writer": ("CacheWriter", "Together", "begin", "write_cache"),
    "cached": ("CachedDataset",),
    "check": ("Report", "Verdict"),
    "datamodule": ("DataModule",),
    "dataset": ("Clips", "MediaDataset", "windows"),
    "manifest": ("Manifest", "read_manifest"),
    "mixture": ("Member", "Mixture"),
    "order": ("Interleave", "MixedOrder", "Order", "PositionSampler", "SpanSampler"),
    "source": ("FileSource", "Source", "split"),
}

__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: loader processes and commands need only a part."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"mmldm.data.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
