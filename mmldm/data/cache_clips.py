"""Which clips of a data set a cache holds: windows or random crops of each item, of the length and size of its bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmldm import keyed
from mmldm.data.buckets import Bucket, Buckets, Headers
from mmldm.data.dataset import Clips, clip_seconds, windows
from mmldm.data.source import Source
from mmldm.interfaces import Media, MediaError

__all__ = ["Wanted", "seconds_of", "wanted_clips"]


@dataclass(frozen=True)
class Wanted:
    """The clips that are wanted, in the order of the items; `kind` (clips,) numbers the media (`medias`) each is read with.

    `keys` is what identifies each item's content, and the shapes it is read in where there are several.
    """

    clips: Clips
    kind: np.ndarray
    medias: list[dict[str, Media]]
    keys: list[str]


def wanted_clips(source: Source, media: Mapping[str, Media], keys: Sequence[str], crops: int | None, seed: int,
                 buckets: Buckets | None = None) -> Wanted:  # fmt: skip
    """The clips of the first len(keys) items: consecutive windows, or `crops` random ones of each, keyed by `seed`."""
    rows, several = np.arange(len(keys)), buckets is not None and buckets.several
    kinds = buckets.of(media) if several else [Bucket("", dict(media))]
    of_item = buckets.assign(Headers.read(source, rows, media), media) if several else np.zeros(len(keys), dtype=np.int64)
    found = []
    for number, bucket in enumerate(kinds):
        chosen = rows[of_item == number]
        found.append(random_clips(source, bucket.medias, keys, chosen, crops, seed) if crops
                     else windows(source, bucket.medias, chosen))  # fmt: skip
    index, start = (np.concatenate([getattr(clips, name) for clips in found]) for name in ("index", "start"))
    order = np.argsort(index, kind="stable")
    shapes = [f" {sorted((s, m.shape) for s, m in bucket.medias.items())}" if several else "" for bucket in kinds]
    named = [key + shapes[kind] for key, kind in zip(keys, of_item.tolist(), strict=True)]
    clips = Clips(index[order], start[order])
    return Wanted(clips, of_item[clips.index], [bucket.medias for bucket in kinds], named)


def random_clips(source: Source, media: Mapping[str, Media], keys: Sequence[str], rows: np.ndarray, count: int,
                 seed: int) -> Clips:  # fmt: skip
    """`count` clips of each item, their starts keyed by the seed, the item's content and their number; one of a short item."""
    seconds, index, start = clip_seconds(media), [], []
    for i in rows.tolist():
        slack = (seconds_of(source, i) or 0.0) - (seconds or 0.0)
        drawn = keyed.uniform((seed, "crops", keys[i]), range(count)).tolist() if seconds is not None and slack > 0 else [0.0]
        index += [i] * len(drawn)
        start += [slack * u if slack > 0 else 0.0 for u in drawn]
    return Clips(np.array(index, dtype=np.int64), np.array(start, dtype=np.float64))


def seconds_of(source: Source, index: int) -> float | None:
    """Duration of an item; None for a still and for what cannot be read."""
    try:
        return source.seconds(index)
    except MediaError:
        return None
