"""Clips of another length or size, and which media have either."""

from __future__ import annotations

from collections.abc import Sequence

from mmldm.interfaces import Media

__all__ = ["planar", "sized"]


def planar(media: Media) -> bool:
    """Whether a media has a height and a width: its last two axes."""
    return len(media.shape) - 1 - (media.time_axis is not None) == 2


def sized(media: Media, seconds: float | None = None, size: Sequence[int] | None = None) -> Media:
    """The media with another duration or (height, width), of what it has: a still ignores seconds, a sound ignores size."""
    seconds = seconds if media.time_axis is not None else None
    size = tuple(size) if size and planar(media) else None
    return media.resized(seconds=seconds, size=size) if seconds or size else media
