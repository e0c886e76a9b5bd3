"""The page to read first: the contracts between the parts of mmldm; the records they exchange are in records.py.

Letters: x media tensor, z clean latent, z_t noisy latent, t in [0, 1] with t = 0 clean and t = 1 noise.
Shapes:  B batch, C media channels, D latent channels, *S media grid, *L latent grid, N tokens, A axes, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmldm.piecewise import Piecewise
from mmldm.records import (
    Axis,
    Batch,
    Clip,
    Cond,
    CondWidths,
    Encoded,
    Geometry,
    Info,
    MediaError,
    Noisy,
    Posterior,
    Preview,
    Reference,
    grid_positions,
)  # fmt: skip

__all__ = [
    "Axis", "Batch", "Clip", "Codec", "Cond", "CondWidths", "Conditioner", "Denoiser", "Encoded", "Geometry", "Info", "Media",
    "MediaError", "Noisy", "Posterior", "Preview", "Reader", "Reference", "grid_positions",
]  # fmt: skip


# ---------------------------------------------------------------- media


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
        """Starts in seconds of the consecutive clips of a file; a trailing part shorter than half a clip is left out."""
        if info.seconds is None or self.seconds is None:
            return [0.0]
        return [i * self.seconds for i in range(max(1, int(info.seconds / self.seconds + 0.5)))]

    @abstractmethod
    def load(self, path: str | Path, start: float = 0.0) -> Clip:
        """The clip that begins `start` seconds into the file, decoding little else; raises MediaError."""

    def stream(self, path: str | Path, samples: int, start: float = 0.0) -> Iterator[Tensor]:
        """Consecutive pieces (C, *S) of a whole file, `samples` media samples along time each, the last one shorter; a still
        is one piece. They hold what `load` gives of them; raises MediaError, at the end where the file is cut short."""
        if self.time_axis is None:
            yield self.load(path, start).x
            return
        piece, seconds, place = self.resized(seconds=samples / self.rate), self.probe(path).seconds, 0
        while not place or start + (place + 0.5) / self.rate < seconds:
            clip = piece.load(path, start + place / self.rate)
            yield clip.x.narrow(1 + self.time_axis, 0, clip.valid[self.time_axis])
            place += samples

    @abstractmethod
    def save(self, x: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        """Write (C, *S) to a file whose suffix chooses the format."""

    @contextmanager
    def writer(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> Iterator[Callable[[Tensor], None]]:
        """Gives `write(x)`, which appends a piece (C, *S) along time; the file has its name once the block ends well.

        Here the pieces are kept and saved at the end; media that run in time write them as they come.
        """
        pieces: list[Tensor] = []
        yield pieces.append
        if not pieces or (self.time_axis is None and len(pieces) > 1):
            raise ValueError(f"wanted {'a' if pieces else 'at least one'} piece to write to {path}, got {len(pieces)}")
        self.save(pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1 + self.time_axis), path, metadata)

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


# ---------------------------------------------------------------- codecs


class Codec(Piecewise, ABC):
    """One modality: media tensor (B, C, *S) <-> latent (B, D, *L).

    A fixed `front` (identity by default; log-mel for audio) turns media into features, a trained body encodes features;
    codec training compares features. The first of the `axes` are those of the media, in order; a front may add others.

    `lookahead`: media samples after a cell's own end that its encoding may see along the time axis: 0 is causal, None is
    unbounded. `reach[axis]`: media samples on either side of a cell's own that its encoding may see; `decode_reach[axis]`:
    cells on either side of a sample's own that its decoding may see; an axis that is not named is unbounded. `chunk`: cells
    along time that are encoded and decoded at once, `tile`: cells of a side above which a plane is taken in parts (None: all
    at once). `encode(x)`, `decode(z, shape)`, and `encode_chunk`, `decode_chunk` of a clip as it comes, are made of the
    methods here; pieces make the whole exactly where what they see is bounded, else they are cross-faded along `blended`.

    `whitening`: mean and std of each latent channel where they are known beforehand (None: fitted after training).
    `embedded`: what a trained model writes instead of these keys of the codec's yaml, so that it needs no other files.
    `decoding`: the names of submodules and tensors that no latent depends on: cached latents outlive a change of them.
    """

    media: Media
    latent_channels: int
    axes: tuple[Axis, ...]
    lookahead: int | None = None
    reach: Mapping[str, int] | None = None
    decode_reach: Mapping[str, int] | None = None
    chunk: int | None = None
    tile: int | None = None
    whitening: tuple[Tensor, Tensor] | None = None
    embedded: Mapping[str, Any] = MappingProxyType({})
    decoding: tuple[str, ...] = ()

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


# ---------------------------------------------------------------- conditions


class Conditioner(nn.Module, ABC):
    """Turns one field of a batch into a Cond: `encode` is the frozen part (cacheable), `forward` the trained projection.

    `frozen`: the names of the submodules that `encode` runs, whose work a cache may store; () where that is not worth it.
    """

    key: str
    reader: Reader
    widths: CondWidths
    frozen: tuple[str, ...] = ()

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


class Denoiser(nn.Module, ABC):
    """Maps noisy latent grids of any rank and number of streams to a prediction F of the same shapes.

    Built by `Denoiser(streams={name: Geometry}, conditions={name: CondWidths}, <sizes>)`. `patches[stream]` is the number of
    cells per axis that share a token: known masks are snapped inward to whole patches before they come here.
    """

    patches: dict[str, tuple[int, ...]]

    def layers(self) -> Sequence[nn.Module]:
        """The modules of which each is compiled and sharded on its own, in the order that they run; none by default.

        A part of them whose parameters are read by methods beside forward names those in `entries`.
        """
        return ()

    def silence(self, conditions: Iterable[str]) -> None:
        """Let conditions that a trained model is given anew say nothing at first; by default they speak as they begin."""

    def prepare(self, conds: dict[str, Cond]) -> Any:
        """All that does not depend on the noise level, once per sample (a tree of tensors, batch first)."""
        return conds

    @abstractmethod
    def forward(self, noisy: dict[str, Noisy], prepared: Any, residuals: Any = None) -> dict[str, Tensor]:
        """The prediction F of each stream, (B, D, *L)."""
