"""The page to read first: every object that two folders of mmldm share, and the contracts between them.

Letters: x media tensor, z clean latent, z_t noisy latent, t in [0, 1] with t = 0 clean and t = 1 noise.
Shapes:  B batch, C media channels, D latent channels, *S media grid, *L latent grid, N tokens, A axes, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Axis", "Batch", "Clip", "Codec", "Cond", "CondWidths", "Conditioner", "Denoiser", "Geometry", "Info", "Media",
    "MediaError", "Noisy", "Posterior", "Preview", "Reader", "Reference", "grid_positions",
]  # fmt: skip


# ---------------------------------------------------------------- geometry of a latent grid


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


# ---------------------------------------------------------------- media


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


class Media(ABC):
    """Files <-> tensors of one modality: picklable, without weights; knows sizes, rates and limits.

    `shape` is the (C, *S) of one clip as it is trained; `time_axis` is the index into *S that runs in time (None for
    stills); `rate` is media samples per second along it.
    """

    suffixes: tuple[str, ...]
    shape: tuple[int, ...]
    time_axis: int | None = None
    rate: float | None = None

    @property
    def seconds(self) -> float | None:
        """Duration of one clip, None for stills."""
        return None if self.time_axis is None else self.shape[1 + self.time_axis] / self.rate

    @abstractmethod
    def resized(self, seconds: float | None = None, size: tuple[int, int] | None = None) -> Media:
        """The same media with clips of another duration or (height, width); raises ValueError for what it does not have."""

    @abstractmethod
    def probe(self, path: str | Path) -> Info:
        """Read the header only; raises MediaError where the file is unusable or over a limit."""

    @abstractmethod
    def plan(self, info: Info) -> list[str]:
        """What `load` will do to such a file, in words: `resampled 44100 -> 16000 Hz`, `padded 1.2 -> 2.0 s`; [] if nothing."""

    def windows(self, info: Info) -> list[float]:
        """Starts in seconds of the consecutive clips that cover a file (a trailing part shorter than half a clip is left out)."""
        if info.seconds is None or self.seconds is None:
            return [0.0]
        return [i * self.seconds for i in range(max(1, int(info.seconds / self.seconds + 0.5)))]

    @abstractmethod
    def load(self, path: str | Path, start: float = 0.0) -> Clip:
        """The clip that begins `start` seconds into the file, decoding little else; raises MediaError."""

    @abstractmethod
    def save(self, x: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        """Write (C, *S) to a file whose suffix chooses the format."""

    @abstractmethod
    def preview(self, x: Tensor, folder: str | Path, name: str) -> list[Preview]:
        """Write what a person needs to judge `x`: a player and a picture."""


# ---------------------------------------------------------------- what a data loader yields


class Reader(ABC):
    """CPU work of a conditioner in the data loader: picklable, without weights (a tokenizer, a vocabulary, a Media)."""

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """One item's field -> numbers (tensors); `value` is never None."""

    @abstractmethod
    def collate(self, items: list[Any]) -> Any:
        """A list of what `__call__` gave, None where the field is missing -> one batch of tensors."""


@dataclass
class Batch:
    """A batch of samples; each sample is a dict of streams.

    `position` (B,) int64 is the sample's place in the global training order (the key of its randomness) and `index` (B,)
    its row of the manifest. `media[stream]` (B, C, *S), or `latents[stream]` where a cache gives the posterior.
    `valid[stream]` (B, axes of S) counts the real media samples per axis, all 0 where the stream is absent.
    `start` (B,) seconds into the file. `fields[name]` is what the conditioner's reader collated, `present[name]` (B,) bool.
    """

    position: Tensor
    index: Tensor
    media: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[str, Posterior] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    start: Tensor | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.position)


# ---------------------------------------------------------------- codecs


@dataclass(frozen=True)
class Posterior:
    """The latent's distribution: mean and std (B, D, *L); std None for a deterministic codec. This is what a cache stores."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise; the mean where there is no std."""
        return self.mean if self.std is None else self.mean + self.std * noise


class Codec(nn.Module, ABC):
    """One modality: media tensor (B, C, *S) <-> latent (B, D, *L).

    A fixed `front` (identity by default; log-mel for audio) turns media into features, a trained body encodes features;
    codec training compares features. `lookahead`: media samples after a cell's own end that its encoding may see along the
    time axis: 0 is causal, None is unbounded.
    """

    media: Media
    latent_channels: int
    axes: tuple[Axis, ...]
    lookahead: int | None = None

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.latent_channels, tuple(self.axes))

    def front(self, x: Tensor) -> Tensor:
        """Media (B, C, *S) -> features (B, F, *G); fixed, differentiable where it can be."""
        return x

    def unfront(self, features: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Features (B, F, *G) -> media (B, C, *S)."""
        return features

    @abstractmethod
    def encode_features(self, features: Tensor) -> Posterior:
        """Features (B, F, *G) -> Posterior of (B, D, *L); any length is padded up to whole cells."""

    @abstractmethod
    def decode_features(self, z: Tensor) -> Tensor:
        """Latents (B, D, *L) -> features (B, F, *G) of whole cells."""

    @abstractmethod
    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, *S) of a media tensor -> (D, *L) of its latent: exactly what `encode` gives."""

    def encode(self, x: Tensor) -> Posterior:
        """Media (B, C, *S) in [-1, 1] -> Posterior of (B, D, *L), not whitened."""
        return self.encode_features(self.front(x))

    def decode(self, z: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Latents (B, D, *L), not whitened -> media (B, C, *S), cropped to `shape` = (C, *S) where given."""
        x = self.unfront(self.decode_features(z), shape)
        return x if shape is None else x[(slice(None), slice(None), *(slice(0, n) for n in shape[1:]))]


# ---------------------------------------------------------------- conditions


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

    def repeat(self, n: int) -> Cond:
        """Each row n times, adjacent."""
        pick = lambda tensor: None if tensor is None else tensor.repeat_interleave(n, 0)  # noqa: E731
        return replace(self, tokens=pick(self.tokens), mask=pick(self.mask), positions=pick(self.positions),
                       vector=pick(self.vector), aligned={s: pick(a) for s, a in self.aligned.items()})  # fmt: skip


def _pad_tokens(tensor: Tensor, length: int) -> Tensor:
    missing = length - tensor.shape[1]
    return tensor if missing == 0 else torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], 1)


class Conditioner(nn.Module, ABC):
    """Turns one field of a batch into a Cond: `encode` is the frozen part (cacheable), `forward` the trained projection."""

    key: str
    reader: Reader
    widths: CondWidths

    def encode(self, read: Any) -> Any:
        """What the reader collated -> the frozen encoding (tensors); identity by default."""
        return read

    @abstractmethod
    def forward(self, encoded: Any) -> Cond:
        """The frozen encoding -> Cond of its batch."""

    @abstractmethod
    def null(self, batch_size: int) -> Cond:
        """The learned "not given" of this condition for `batch_size` rows, at least one valid token where tokens are given."""


# ---------------------------------------------------------------- denoisers


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


class Denoiser(nn.Module, ABC):
    """Maps noisy latent grids of any rank and number of streams to a prediction F of the same shapes.

    Built by `Denoiser(streams={name: Geometry}, conditions={name: CondWidths}, <sizes>)`. `patches[stream]` is the number of
    cells per axis that share a token: known masks are snapped inward to whole patches before they come here.
    """

    patches: dict[str, tuple[int, ...]]

    def prepare(self, conds: dict[str, Cond]) -> Any:
        """All that does not depend on the noise level, once per sample (a tree of tensors, batch first)."""
        return conds

    @abstractmethod
    def forward(self, noisy: dict[str, Noisy], prepared: Any, residuals: Any = None) -> dict[str, Tensor]:
        """The prediction F of each stream, (B, D, *L)."""
