"""What is given to a generation: media kept or varied, media that stand beside what is made, streams that are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmldm.interfaces import Media

__all__ = ["Given", "Known", "Placed", "axes_of", "box"]


def axes_of(media: Media) -> dict[str, int]:
    """The axes of a clip's grid *S that have a name, `time`, `height` and `width`, and which they are."""
    time = {} if media.time_axis is None else {"time": media.time_axis}
    rank = len(media.shape) - 1
    return time | ({"height": rank - 2, "width": rank - 1} if rank - len(time) == 2 else {})


def box(media: Media, **spans: tuple[float, float]) -> Tensor:
    """The samples (*S) of a clip within spans of `time` (seconds), `height` and `width` (pixels); one not named is everything.

    Boxes are joined by `|`; raises ValueError for an axis that the media has not.
    """
    axes, mask = axes_of(media), torch.ones(media.shape[1:], dtype=torch.bool)
    if odd := sorted(set(spans) - set(axes)):
        raise ValueError(f"wanted spans of {', '.join(axes) or 'no axis'}, got {', '.join(odd)}")
    for name, span in spans.items():
        place = torch.arange(mask.shape[axes[name]])
        first, last = (edge * (media.rate if name == "time" else 1) for edge in span)
        inside = (place + 0.5 > first) & (place + 0.5 < last)
        mask = mask & inside.reshape([-1 if d == axes[name] else 1 for d in range(mask.ndim)])
    return mask


@dataclass(frozen=True)
class Known:
    """Given media of one stream: a whole clip x (C, *S) and which of its samples are kept, `mask` (*S) bool (None: all)."""

    x: Tensor
    mask: Tensor | None = None

    @staticmethod
    def spans(x: Tensor, media: Media, *spans: tuple[float, float]) -> Known:
        """Known in the seconds [start, end) of each span."""
        return Known(x, torch.stack([box(media, time=span) for span in spans]).any(0))

    @property
    def kept(self) -> Tensor:
        """The mask (*S), of everything where it is not given."""
        return torch.ones(self.x.shape[1:], dtype=torch.bool) if self.mask is None else self.mask

    @property
    def whole(self) -> bool:
        """Whether everything is kept."""
        return self.mask is None or bool(self.mask.all())


@dataclass(frozen=True)
class Placed:
    """Given media of one stream that stand beside what is made: x (C, *S) of any extent, which begins `at` seconds."""

    x: Tensor
    at: float = 0.0


@dataclass(frozen=True)
class Given:
    """What is given of the streams: kept parts, media beside the grids, which streams are not there, and whole clips `init`
    (C, *S) to vary from level `strength` in (0, 1] on."""

    known: Mapping[str, Known] = field(default_factory=dict)
    references: Mapping[str, Sequence[Placed]] = field(default_factory=dict)
    absent: Sequence[str] = ()
    init: Mapping[str, Tensor] = field(default_factory=dict)
    strength: float = 0.6

    @property
    def whole(self) -> set[str]:
        """The streams of which everything is known: the others are made for them."""
        return {s for s, known in self.known.items() if known.whole}

    def check(self, medias: Mapping[str, Media], knows: bool = True) -> None:
        """Raise ValueError for streams that there are not, media that do not fit, and a model that `knows` no references."""
        beside = {s: [placed.x for placed in each] for s, each in self.references.items()}
        named = {"known": self.known, "references": beside, "absent": self.absent, "init": self.init}
        for what, streams in named.items():
            if odd := sorted(set(streams) - set(medias)):
                raise ValueError(
                    f"wanted {what} of streams of the model, got {', '.join(odd)}; choose from {', '.join(medias)}"
                )
        self._check_shapes(medias, beside)
        if set(self.absent) >= set(medias) or set(self.absent) & {*self.known, *self.references, *self.init}:
            raise ValueError(
                f"wanted absent streams of which nothing is given beside one that is made, got {list(self.absent)}"
            )
        if {*self.whole, *self.absent} >= set(medias):
            whole = ", ".join(s for s in medias if s in self.whole)
            raise ValueError(f"wanted something left to make, got all of {whole} known; keep less")
        if odd := sorted(self.whole & set(self.init)):
            raise ValueError(f"wanted {', '.join(odd)} varied or kept, got both; keep less of it, or vary another stream")
        if any(beside.values()) and not knows:
            raise ValueError(
                "wanted a model trained with references (diffusion/known=references), got one trained with nothing"
            )
        if not 0 < self.strength <= 1:
            raise ValueError(f"wanted a strength in (0, 1], got {self.strength:g}")

    def _check_shapes(self, medias: Mapping[str, Media], beside: Mapping[str, Sequence[Tensor]]) -> None:
        whole = [("keep", s, known.x) for s, known in self.known.items()] + [("vary", s, x) for s, x in self.init.items()]
        for what, stream, x in whole:
            if tuple(x.shape) != tuple(medias[stream].shape):
                raise ValueError(f"wanted {stream} of shape {tuple(medias[stream].shape)} to {what}, got {tuple(x.shape)}")
        for stream, known in self.known.items():
            mask = known.kept
            if mask.shape != known.x.shape[1:] or mask.dtype != torch.bool or not bool(mask.any()):
                got = f"{tuple(mask.shape)} {str(mask.dtype).removeprefix('torch.')}, {int(mask.sum())} kept"
                raise ValueError(f"wanted a bool mask {tuple(known.x.shape[1:])} of {stream} that keeps something, got {got}")
        for stream, x in ((s, x) for s, xs in beside.items() for x in xs):
            shape = medias[stream].shape
            if x.ndim != len(shape) or x.shape[0] != shape[0]:
                raise ValueError(f"wanted {stream} like {tuple(shape)} as a reference, got {tuple(x.shape)}")
