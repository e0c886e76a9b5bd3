"""A file through a codec and back, piece by piece: what is held does not grow with the file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mmldm.evaluation import log_spectral_distance, ssim
from mmldm.interfaces import Codec, Media
from mmldm.media import regrouped, with_last

__all__ = ["Distances", "read", "reconstructed", "time_of", "usual_chunk"]

SECONDS = 2.0  # taken at once where a codec does not say how much
WINDOW = 1024  # samples, the least that a log-spectral distance is taken of
HEARD = 8000.0  # samples per second from which on a signal is a sound


def time_of(codec: Codec) -> int | None:
    """Which axis of media and latent runs in time; None for stills, and for codecs that take a clip whole."""
    time = codec.media.time_axis
    return time if time is not None and codec.axes[time].name == "time" else None


def usual_chunk(codec: Codec) -> int | None:
    """Cells along time that are taken at once where a codec does not say how many."""
    time = time_of(codec)
    return None if time is None else max(4, round(SECONDS / (codec.axes[time].size * codec.axes[time].unit)))


def read(codec: Codec, media: Media, path: Path, count: int | None) -> Iterator[Tensor]:
    """A file in the pieces that the codec takes, at most `count` samples of it; whole for a codec without an axis of time."""
    time = time_of(codec)
    size = round(SECONDS * (media.rate or 1)) if time is None else codec.chunk * codec.axes[time].size
    pieces = media.stream(path, max(1, size))
    if media.time_axis is None:
        return pieces
    pieces = limited(pieces, 1 + media.time_axis, count)
    if time is None:
        return iter([torch.cat(list(pieces), 1 + media.time_axis)])
    return regrouped(pieces, size, 1 + time, codec.axes[time].length(codec.chunk))


def limited(pieces: Iterable[Tensor], dim: int, count: int | None) -> Iterator[Tensor]:
    """The first `count` samples along `dim`; all where None."""
    left = math.inf if count is None else count
    for piece in pieces:
        yield piece.narrow(dim, 0, min(left, piece.shape[dim]))
        left -= piece.shape[dim]
        if left <= 0:
            return


def reconstructed(codec: Codec, pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces (C, *S) of one clip -> the same, perhaps cut elsewhere, with what the codec makes of them: (x, y), on the CPU.

    Together the y are `codec.decode(codec.encode(x).mean)`.
    """
    dim, kept = 1 + (codec.media.time_axis or 0), []

    def remembered() -> Iterator[Tensor]:
        for piece in pieces:
            kept.append(piece)
            yield piece

    for y in decoded(codec, encoded(codec, remembered())):
        x, y = torch.cat(kept, dim), y[0].cpu()
        count = min(x.shape[dim], y.shape[dim])
        shape = [count if d == dim else n for d, n in enumerate(x.shape)]
        kept[:] = [x.narrow(dim, count, x.shape[dim] - count).clone()]
        yield x.narrow(dim, 0, count), y[tuple(slice(0, n) for n in shape)]
    if kept and kept[0].shape[dim]:
        raise ValueError(f"wanted as many samples back as were read, got {kept[0].shape[dim]} fewer")


def encoded(codec: Codec, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Latents (1, D, *L), in the order of time, not whitened."""
    state, like = None, next(codec.parameters(), None)
    for x, last in with_last(pieces):
        posterior, state = codec.encode_chunk(x[None] if like is None else x[None].to(like), state, last)
        if posterior is not None:
            yield posterior.mean


def decoded(codec: Codec, latents: Iterable[Tensor]) -> Iterator[Tensor]:
    """Media (1, C, *S) of whole cells, in the order of time."""
    time, state = time_of(codec), None
    for z, last in with_last(latents if time is None else regrouped(latents, codec.chunk, 2 + time)):
        y, state = codec.decode_chunk(z, state, last)
        if y is not None:
            yield y


class Distances:
    """How far what came back is from what was read, told of the whole: sums over pieces."""

    def __init__(self, media: Media):
        self.picture = media.shape[0] == 3 and len(media.shape) >= 3
        self.sound = len(media.shape) == 2 and (media.rate or 0) >= HEARD
        self.error = self.signal = self.samples = self.likeness = self.count = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Pieces (C, *S) of equal shapes."""
        y = y.clamp(-1, 1) if self.picture or self.sound else y
        self.error += float((x.double() - y).square().sum())
        self.signal += float(x.double().square().sum())
        self.samples += x.numel()
        if self.picture or self.sound and x.shape[-1] >= WINDOW:
            likeness, weight = ssim if self.picture else log_spectral_distance, x.shape[1] if x.ndim != 3 else 1
            self.likeness += weight * float(likeness(y[None], x[None]))
            self.count += weight

    def __str__(self) -> str:
        peak = 4 * self.samples if self.picture else self.signal
        ratio = 10 * math.log10(max(peak, 1e-12) / max(self.error, peak * 1e-10, 1e-12))
        told = f"{'PSNR' if self.picture else 'SNR'} {ratio:.2f} dB"
        if not self.count:
            return told
        likeness = self.likeness / self.count
        return f"{told}  SSIM {likeness:.4f}" if self.picture else f"{told}  log-spectral distance {likeness:.2f} dB"
