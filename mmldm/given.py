"""What is given to a generation: a part to keep, media that stand beside what is made, streams that are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmldm.diffusion.known import Context, cells_kept
from mmldm.interfaces import Media, Reference, grid_positions
from mmldm.model import Model

__all__ = ["Given", "Known", "Placed", "paste"]


@dataclass(frozen=True)
class Known:
    """Given media of one stream: a whole clip x (C, *S), of which the seconds [start, end) are to be kept."""

    x: Tensor
    start: float = 0.0
    end: float = float("inf")


@dataclass(frozen=True)
class Placed:
    """Given media of one stream that stand beside what is made: x (C, *S) of any extent, which begins `at` seconds."""

    x: Tensor
    at: float = 0.0


@dataclass(frozen=True)
class Given:
    """What is given of the streams: kept parts, media beside the grids, and which streams are not there."""

    known: Mapping[str, Known] = field(default_factory=dict)
    references: Mapping[str, Sequence[Placed]] = field(default_factory=dict)
    absent: Sequence[str] = ()

    def check(self, medias: Mapping[str, Media], knows: bool = True) -> None:
        """Raise ValueError for streams that there are not, media that do not fit, and a model that `knows` no references."""
        beside = {s: [placed.x for placed in each] for s, each in self.references.items()}
        for what, streams in (("known", self.known), ("references", beside), ("absent", self.absent)):
            if odd := sorted(set(streams) - set(medias)):
                raise ValueError(
                    f"wanted {what} of streams of the model, got {', '.join(odd)}; choose from {', '.join(medias)}"
                )
        if set(self.absent) >= set(medias) or set(self.absent) & {*self.known, *self.references}:
            raise ValueError(
                f"wanted absent streams of which nothing is given beside one that is made, got {list(self.absent)}"
            )
        if any(beside.values()) and not knows:
            raise ValueError(
                "wanted a model trained with references (diffusion/known=references), got one trained with nothing"
            )
        for stream, known in self.known.items():
            if tuple(known.x.shape) != tuple(medias[stream].shape):
                raise ValueError(f"wanted {stream} of shape {medias[stream].shape} to keep, got {tuple(known.x.shape)}")
        for stream, x in ((s, x) for s, xs in beside.items() for x in xs):
            shape = medias[stream].shape
            if x.ndim != len(shape) or x.shape[0] != shape[0]:
                raise ValueError(f"wanted {stream} like {tuple(shape)} as a reference, got {tuple(x.shape)}")

    def context(self, model: Model, stream: str, media: Media, count: int, device: torch.device, dtype: torch.dtype) -> Context:
        """Positions of a stream's grid, what is known of it, and what stands beside it, in `count` rows."""
        codec, known, place = model.codecs[stream], self.known.get(stream), {"device": device, "dtype": dtype}
        cells, kept = model.latent_shape(stream, media.shape)[1:], {}
        beside = tuple(reference(model, stream, placed, count, **place) for placed in self.references.get(stream, ()))
        if known is not None:
            span, patch = (known.start, known.end), model.denoiser.patches[stream]
            mask = cells_kept(span, media.seconds, codec.axes, cells, codec.lookahead, patch)
            kept = {"z": latent(model, stream, known.x, count, **place), "known": mask.expand(count, *cells).to(device)}
        return model.context(stream, cells, device, references=beside, **kept)


def reference(model: Model, stream: str, placed: Placed, count: int, device: torch.device, dtype: torch.dtype) -> Reference:
    """Given media encoded on their own, at their place."""
    z = latent(model, stream, placed.x, count, device, dtype)
    return Reference(z, grid_positions(model.codecs[stream].axes, z.shape[2:], placed.at).to(device))


def latent(model: Model, stream: str, x: Tensor, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Media (C, *S) -> its whitened latent in `count` rows."""
    z = model.whiten(stream, model.encode(stream, x[None].to(device=device, dtype=dtype)))
    return z.expand(count, *z.shape[1:])


def paste(x: Tensor, media: Media, known: Known | None) -> Tensor:
    """The known samples themselves in place of their reconstruction: (B, C, *S)."""
    if known is None:
        return x
    if media.time_axis is None:
        return known.x.to(x).expand_as(x)
    axis = media.time_axis + 2
    first, last = (round(min(max(edge, 0.0), media.seconds) * media.rate) for edge in (known.start, known.end))
    out = x.clone()
    out.narrow(axis, first, last - first).copy_(known.x.narrow(axis - 1, first, last - first))
    return out
