"""Several sources as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mmldm.data.source import Source
from mmldm.interfaces import Clip, Media

__all__ = ["Joined"]


class Joined:
    """Sources laid end to end: the items of the first, then those of the next."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self.ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self.ends[-1]

    def __repr__(self) -> str:
        return f"Joined({self.sources!r})"

    def _at(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"wanted an item in [0, {len(self)}), got {index}")
        which = bisect_right(self.ends, index)
        return self.sources[which], index - (self.ends[which - 1] if which else 0)

    def row(self, index: int) -> dict[str, Any]:
        source, place = self._at(index)
        return source.row(place)

    def seconds(self, index: int) -> float | None:
        source, place = self._at(index)
        return source.seconds(place)

    def key(self, index: int) -> str:
        source, place = self._at(index)
        return source.key(place)

    def load(self, index: int, stream: str, media: Media, start: float) -> Clip | None:
        source, place = self._at(index)
        return source.load(place, stream, media, start)
