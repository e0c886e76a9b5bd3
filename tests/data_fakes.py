"""A media of .npy signals, readers and a source that computes its items, for the tests of mmldm.data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mmldm.interfaces import Clip, Info, Media, MediaError, Posterior, Reader


@dataclass(frozen=True)
class Signal(Media):
    """(C, T) from a .npy file (channels, samples) at 10 samples per second; the rows `channels` picks are this stream's."""

    length: int = 10
    channels: tuple[int, ...] = (0,)
    suffixes = (".npy",)
    time_axis = 0
    rate = 10.0

    @property
    def shape(self):
        return (len(self.channels), self.length)

    def resized(self, seconds=None, size=None):
        return self if seconds is None else replace(self, length=round(seconds * self.rate))

    def _open(self, path):
        try:
            x = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise MediaError(path, f"is no array: {error}") from error
        if max(self.channels) >= len(x):
            raise MediaError(path, f"has no channel {max(self.channels)}")
        return x

    def probe(self, path):
        x = self._open(path)
        return Info(x.shape[1] / self.rate, x.shape[1:], self.rate, x.shape[0], "npy")

    def plan(self, info):
        if info.seconds == self.seconds:
            return []
        return [f"{'padded' if info.seconds < self.seconds else 'cropped'} {info.seconds} -> {self.seconds} s"]

    def load(self, path, start=0.0):
        x = np.array(self._open(path), dtype=np.float32)[list(self.channels)]
        if np.isnan(x).any():
            raise MediaError(path, "is broken inside")
        first = round(start * self.rate)
        part = torch.from_numpy(x[:, first : first + self.length].copy())
        valid = part.shape[1]
        return Clip(torch.nn.functional.pad(part, (0, self.length - valid)), (valid,), start)

    def save(self, x, path, metadata=None):
        np.save(path, x.numpy())
        return path

    def preview(self, x, folder, name):
        return []


class Words(Reader):
    """Text -> its length; batch: a tensor, -1 where missing."""

    def __call__(self, value):
        return len(str(value))

    def collate(self, items):
        return torch.tensor([-1 if i is None else i for i in items])


class Raw(Reader):
    """The value itself; batch: a list."""

    def __call__(self, value):
        return value

    def collate(self, items):
        return items


class Computed:
    """A source without files: item i is a ramp that begins at i."""

    def __init__(self, size=20):
        self.size = size

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"Computed({self.size})"

    def row(self, index):
        return {"text": f"number {index}", "label": str(index % 3)}

    def seconds(self, index):
        return None

    def key(self, index):
        return f"ramp/{index}"

    def load(self, index, stream, media, start):
        return Clip((index + torch.arange(media.length) / media.length).repeat(media.shape[0], 1), (media.length,), start)


class Process:
    """The trainer of one of several processes, as a data module sees it; `others`: what the first has found."""

    def __init__(self, rank, world, others=None):
        self.global_rank, self.world_size, self.others, self.strategy = rank, world, others, self

    def broadcast(self, value):
        return self.others or value

    def reduce_boolean_decision(self, decision):
        return decision


def encode(stream, x):
    """A posterior that shows which media it came from: mean (B, 2, T/5), std (B, 2, T/5)."""
    cells = x[:, :1].unflatten(-1, (-1, 5)).mean(-1)
    mean = torch.cat([cells, cells.square()], 1)
    return Posterior(mean, mean.abs() * 0.1 + 0.01)


def write_signals(folder, lengths, channels=2, start=0):
    """Files s000.npy … of these numbers of samples, each with a sidecar caption; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, length in enumerate(lengths, start):
        x = np.random.default_rng(i).standard_normal((channels, length)).astype(np.float32)
        paths.append(folder / f"s{i:03d}.npy")
        np.save(paths[-1], x)
        paths[-1].with_suffix(".txt").write_text(f"signal {i} of {length} samples\n")
    return paths
