"""The plain records that the interfaces exchange: geometry, clips and batches, posteriors, conditions, noisy grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Axis", "Batch", "Clip", "Cond", "CondWidths", "Encoded", "Geometry", "Info", "MediaError", "Noisy", "Posterior", "Preview",
    "Reference", "grid_positions",
]  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One axis of a latent grid: cell 0 covers `first` media samples, every other cell `size`; `unit` is the extent of one
    media sample in seconds (`time`), pixels (`height`, `width`) or bins (`freq`)."""

    name: str
    size: int
    first: int
    unit: float

    def cells(self, length: int) -> int:
        """Number of cells that cover `length` media samples, the last one possibly in part."""
        return 1 + max(0, -(-(length - self.first) // self.size))

    def length(self, cells: int) -> int:
        """Number of media samples that `cells` cells cover."""
        return self.first + (cells - 1) * self.size

    def edges(self, cells: int, start: float = 0.0) -> Tensor:
        """Start and end of each cell in physical units, `start` being where the grid begins: (cells, 2) float32."""
        end = self.first + self.size * torch.arange(cells, dtype=torch.float64)
        begin = torch.cat([torch.zeros(1, dtype=torch.float64), end[:-1]])
        return (torch.stack([begin, end], -1) * self.unit + start).float()


def grid_positions(axes: Sequence[Axis], cells: Sequence[int], start: float = 0.0) -> Tensor:
    """Start and end of each cell of a grid along each axis: (*L, A, 2); `start` (seconds) moves the axis named `time`."""
    if len(axes) != len(cells):
        raise ValueError(f"wanted one size per axis {[a.name for a in axes]}, got {tuple(cells)}")
    edges = [axis.edges(n, start if axis.name == "time" else 0.0) for axis, n in zip(axes, cells, strict=True)]
    grid = [e.reshape([-1 if i == a else 1 for i in range(len(axes))] + [2]).expand(*cells, 2) for a, e in enumerate(edges)]
    return torch.stack(grid, -2)


@dataclass(frozen=True)
class Geometry:
    """What a denoiser must know of a codec: the latent channels D and the axes of its grid."""

    channels: int
    axes: tuple[Axis, ...]


class MediaError(ValueError):
    """A file that cannot be used: `path` and a one-line `reason`."""

    def __init__(self, path: str | Path, reason: str):
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self):
        return MediaError, (self.path, self.reason)


@dataclass(frozen=True)
class Info:
    """What a file's header says: `seconds` (None for a still), native grid `shape`, `rate` (samples or frames per second),
    `channels`, `format` (container/codec in words)."""

    seconds: float | None
    shape: tuple[int, ...]
    rate: float | None
    channels: int
    format: str = ""


@dataclass(frozen=True)
class Clip:
    """One loaded crop: `x` (C, *S) in [-1, 1], padded to the media's shape; `valid` media samples per grid axis are real; the
    crop begins `start` seconds into the file."""

    x: Tensor
    valid: tuple[int, ...]
    start: float = 0.0


@dataclass(frozen=True)
class Preview:
    """A small file that shows a media tensor: `kind` is `picture`, `audio` or `video` (how a page plays it)."""

    path: Path
    kind: str
    caption: str = ""


@dataclass
class Batch:
    """A batch of samples; each sample is a dict of streams.

    `position` (B,) int64 is the sample's place in the global training order (the key of its randomness) and `index` (B,)
    its row of the manifest. `media[stream]` (B, C, *S), or `latents[stream]` where a cache gives the posterior.
    `valid[stream]` (B, axes of S) counts the real media samples per axis, all 0 where the stream is absent.
    `start` (B,) seconds into the file. `fields[name]` is what the conditioner's reader collated, `present[name]` (B,) bool.
    `bucket` names the shapes and the origin that the samples of one optimiser step share; `total` is the number of samples of
    that step over all processes and accumulated batches (None: the whole global batch).
    """

    position: Tensor
    index: Tensor
    media: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[str, Posterior] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    start: Tensor | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    bucket: str = ""
    total: int | None = None

    def __len__(self) -> int:
        return len(self.position)


class Encoded(NamedTuple):
    """A field of a batch that is encoded already: `value` is what its conditioner's `encode` gives."""

    value: Any


@dataclass(frozen=True)
class Posterior:
    """The latent's distribution: mean and std (B, D, *L); std None for a deterministic codec. This is what a cache stores."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise; the mean where there is no std."""
        return self.mean if self.std is None else self.mean + self.std * noise

    def joined(self) -> Tensor:
        """Mean and std in one tensor (B, D or 2·D, *L)."""
        return self.mean if self.std is None else torch.cat([self.mean, self.std], 1)

    @classmethod
    def parted(cls, joined: Tensor, channels: int) -> Posterior:
        """The posterior of `channels` latent channels that was joined."""
        return cls(joined) if joined.shape[1] == channels else cls(*joined.split(channels, 1))


@dataclass(frozen=True)
class CondWidths:
    """What a conditioner gives: width of its tokens and of its vector (None: not given), channels aligned with each stream."""

    tokens: int | None = None
    vector: int | None = None
    aligned: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cond:
    """One encoded condition; every field optional and named.

    tokens (B, N, W) with mask (B, N), True = valid (each row has at least one); positions (B, N, A, 2);
    vector (B, W); aligned[stream] (B, channels, *L).
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    vector: Tensor | None = None
    aligned: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """Concatenate along the batch; shorter token lists are padded with masked tokens."""
        first = conds[0]
        tokens = mask = positions = None
        if first.tokens is not None:
            longest = max(c.tokens.shape[1] for c in conds)
            tokens = torch.cat([_pad_tokens(c.tokens, longest) for c in conds])
            masks = [torch.ones(c.tokens.shape[:2], dtype=torch.bool, device=c.tokens.device) if c.mask is None else c.mask
                     for c in conds]  # fmt: skip
            mask = torch.cat([_pad_tokens(m, longest) for m in masks])
        if first.positions is not None:
            positions = torch.cat([_pad_tokens(c.positions, longest) for c in conds])
        vector = None if first.vector is None else torch.cat([c.vector for c in conds])
        aligned = {stream: torch.cat([c.aligned[stream] for c in conds]) for stream in first.aligned}
        return Cond(tokens, mask, positions, vector, aligned)

    def where(self, keep: Tensor, other: Cond) -> Cond:
        """Rows of self where keep (B,) is True, rows of `other` elsewhere."""
        rows = torch.where(
            keep, torch.arange(len(keep), device=keep.device), torch.arange(len(keep), device=keep.device) + len(keep)
        )
        both = Cond.cat([self, other])
        pick = lambda tensor: None if tensor is None else tensor[rows]  # noqa: E731
        return Cond(pick(both.tokens), pick(both.mask), pick(both.positions), pick(both.vector),
                    {stream: pick(tensor) for stream, tensor in both.aligned.items()})  # fmt: skip


def _pad_tokens(tensor: Tensor, length: int) -> Tensor:
    missing = length - tensor.shape[1]
    return tensor if missing == 0 else torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], 1)


@dataclass(frozen=True)
class Reference:
    """Known media appended as tokens of the same stream at level 0: z (B, D, *L'), positions (*L', A, 2) or
    (B, *L', A, 2), present (B,) bool (None: in every row)."""

    z: Tensor
    positions: Tensor
    present: Tensor | None = None


@dataclass(frozen=True)
class Noisy:
    """One stream as the network sees it: z (B, D, *L) already scaled to about unit variance, clean where known.

    level (B,) in [0, 1] is what the network hears of the noise (0 clean, 1 noise); known (B, *L) True where z is given
    (level 0); valid (B, *L) False on padding; positions (*L, A, 2) or (B, *L, A, 2).
    """

    z: Tensor
    level: Tensor
    positions: Tensor
    known: Tensor | None = None
    valid: Tensor | None = None
    references: tuple[Reference, ...] = ()
