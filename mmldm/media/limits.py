"""What a file may cost: limits that are checked before anything is decoded."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TypeVar

from mmldm.interfaces import Media, MediaError

__all__ = ["Limits", "unlimited"]

M = TypeVar("M", bound=Media)


@dataclass(frozen=True)
class Limits:
    """The largest file that is read: bytes, pixels of one picture, frames, seconds, samples per second."""

    max_bytes: float = 8 << 30
    max_pixels: int = 50_000_000
    max_frames: float = 2_000_000
    max_seconds: float = 6 * 3600.0
    max_rate: float = 768_000.0

    def check_file(self, path: str | Path) -> None:
        """Raise MediaError where `path` is no readable file, is empty or has too many bytes."""
        try:
            size = os.stat(path).st_size
        except (OSError, ValueError) as error:
            raise MediaError(path, "no such file" if isinstance(error, FileNotFoundError) else str(error)) from error
        if os.path.isdir(path):
            raise MediaError(path, "is a folder")
        if size == 0:
            raise MediaError(path, "is empty")
        self._check(path, "bytes", size, self.max_bytes)

    def check(
        self,
        path: str | Path,
        *,
        pixels: float | None = None,
        frames: float | None = None,
        seconds: float | None = None,
        rate: float | None = None,
    ) -> None:
        """Raise MediaError where one of the given numbers is over its limit."""
        given = {"pixels": (pixels, self.max_pixels), "frames": (frames, self.max_frames),
                 "seconds": (seconds, self.max_seconds), "samples per second": (rate, self.max_rate)}  # fmt: skip
        for what, (value, most) in given.items():
            self._check(path, what, value, most)

    @staticmethod
    def _check(path: str | Path, what: str, value: float | None, most: float) -> None:
        if value is not None and value > most:
            raise MediaError(path, f"has {value:.10g} {what}, the limit is {most:.10g}")


def unlimited(media: M) -> M:
    """The media for files of any length, as they are read piece by piece: without limits of bytes, frames and seconds."""
    if not isinstance(getattr(media, "limits", None), Limits):
        return media
    other = copy.copy(media)
    object.__setattr__(other, "limits", replace(media.limits, max_bytes=inf, max_frames=inf, max_seconds=inf))
    return other
