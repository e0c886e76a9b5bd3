"""Arrays of any rank from .npy: files <-> (C, *S) float32 of any range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmldm.interfaces import Clip, Info, Media, MediaError, Preview
from mmldm.media.files import checked_suffix, reading, replacing
from mmldm.media.limits import Limits

__all__ = ["ArrayMedia"]


@dataclass(frozen=True)
class ArrayMedia(Media):
    """Arrays (C, *length) from .npy, values as they are; with a `rate` the first axis after C runs in time. Files of one
    channel may leave the channel axis out."""

    channels: int
    length: int | tuple[int, ...]
    rate: float | None = None
    limits: Limits = field(default_factory=Limits)

    suffixes = (".npy",)

    def __post_init__(self) -> None:
        lengths = (self.length,) if isinstance(self.length, int) else tuple(int(n) for n in self.length)
        if self.channels < 1 or not lengths or min(lengths) < 1 or (self.rate is not None and self.rate <= 0):
            raise ValueError(f"wanted channels, length and rate > 0, got {self.channels, self.length, self.rate}")
        object.__setattr__(self, "length", lengths)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.length)

    @property
    def time_axis(self) -> int | None:
        return None if self.rate is None else 0

    def resized(self, seconds: float | None = None, size: tuple[int, int] | None = None) -> ArrayMedia:
        length = self.length
        if seconds is not None:
            if self.rate is None:
                raise ValueError(f"wanted no seconds, got {seconds}: this array has no rate")
            length = (max(1, round(seconds * self.rate)), *length[1:])
        if size is not None:
            if len(length) - (self.rate is not None) != 2:
                raise ValueError(f"wanted an array with height and width, got length {self.length}")
            length = (*length[:-2], int(size[0]), int(size[1]))
        return replace(self, length=length)

    def probe(self, path: str | Path) -> Info:
        array = self._mapped(path)
        seconds = None if self.rate is None else array.shape[1] / self.rate
        self.limits.check(path, seconds=seconds)
        return Info(seconds, tuple(array.shape[1:]), self.rate, array.shape[0], f"npy/{array.dtype.name}")

    def _mapped(self, path: str | Path) -> np.ndarray:
        """The file as a memory map (C, *S)."""
        self.limits.check_file(path)
        with reading(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise MediaError(path, f"wanted an array of real numbers, got {getattr(array, 'dtype', type(array).__name__)}")
        if self.channels == 1 and array.ndim == len(self.length):
            array = array[None]
        if array.ndim != 1 + len(self.length) or array.shape[0] != self.channels:
            raise MediaError(path, f"wanted {self.channels} channels and {len(self.length)} axes, got shape {array.shape}")
        if 0 in array.shape:
            raise MediaError(path, f"is empty: shape {array.shape}")
        return array

    def plan(self, info: Info) -> list[str]:
        done = []
        for axis, (have, want) in enumerate(zip(info.shape, self.length, strict=True)):
            if have != want:
                done.append(f"axis {axis} {'padded' if have < want else 'cropped'} {have} -> {want}")
        return done

    def load(self, path: str | Path, start: float = 0.0) -> Clip:
        if start < 0:
            raise ValueError(f"wanted start >= 0 seconds, got {start}")
        array, window, valid = self._mapped(path), [slice(None)], []
        for axis, (have, want) in enumerate(zip(array.shape[1:], self.length, strict=True)):
            begin = round(start * self.rate) if axis == self.time_axis else max(0, have - want) // 2
            if begin >= have:
                raise MediaError(path, f"ends at {have / self.rate:.2f} s, before the wanted start {start:.2f} s")
            window.append(slice(begin, begin + want))
            valid.append(min(want, have - begin))
        with reading(path):
            part = torch.from_numpy(np.array(array[tuple(window)], dtype=np.float32))
        if not part.isfinite().all():
            raise MediaError(path, "holds NaN or infinite values")
        x = torch.zeros(self.shape)
        x[(slice(None), *(slice(0, n) for n in valid))] = part
        return Clip(x, tuple(valid), start)

    def save(self, x: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        """Write (C, *S) float32 as .npy, which has no room for metadata."""
        with self.writer(path) as write:
            write(x)
        return Path(path)

    @contextmanager
    def writer(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> Iterator[Callable[[Tensor], None]]:
        checked_suffix(path, self.suffixes)
        with replacing(path) as temporary, TemporaryFile(dir=temporary.parent) as aside:
            shapes: list[tuple[int, ...]] = []

            def write(x: Tensor) -> None:
                if shapes and (self.time_axis is None or (len(x), *x.shape[2:]) != (shapes[0][0], *shapes[0][2:])):
                    raise ValueError(f"wanted a piece that follows {shapes[0]} along time, got {tuple(x.shape)}")
                shapes.append(tuple(x.shape))
                aside.write(np.ascontiguousarray(x.detach().float().cpu().numpy()).data)

            yield write
            if not shapes:
                raise ValueError(f"wanted at least one piece to write to {path}, got none")
            with open(temporary, "wb") as file:
                _put_together(aside, shapes, file)

    def preview(self, x: Tensor, folder: str | Path, name: str) -> list[Preview]:
        """Curves of the channels (a heat map where there are many or more axes)."""
        from mmldm.media import draw

        path = Path(folder) / f"{name}.png"
        draw.save(draw.curves(x, self.rate), path)
        return [Preview(path, "picture")]

    def picture(self, x: Tensor) -> Image.Image:
        """What a contact sheet shows of `x`: its curves."""
        from mmldm.media import draw

        return draw.curves(x, self.rate, size=(3.2, 2.2))


def _put_together(aside: BinaryIO, shapes: list[tuple[int, ...]], file: BinaryIO) -> None:
    """One .npy (C, T, *S) of pieces that lie one after another, channel by channel, a piece of a channel at a time."""
    channels, *rest = shapes[0]
    length = [sum(shape[1] for shape in shapes), *rest[1:]] if rest else []
    header = {"descr": "<f4", "fortran_order": False, "shape": (channels, *length)}
    np.lib.format.write_array_header_2_0(file, header)
    for channel in range(channels):
        begin = 0
        for shape in shapes:
            size = 4 * prod(shape[1:])
            aside.seek(begin + channel * size)
            file.write(aside.read(size))
            begin += size * channels
