"""Measure what is in pictures, videos and sounds of one object or tone: from media tensors alone, without a learned network."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmldm.evaluation.pictures import PictureProbe
from mmldm.evaluation.sounds import SoundProbe

__all__ = ["Probes"]


class Probes:
    """Names the attributes of media by the numbers of a vocabulary; gives some class for anything, noise included.

    `vocabulary[attribute][value]` are plain numbers, as `PictureProbe` and `SoundProbe` say; `tempo` in bounces per second.
    """

    def __init__(self, vocabulary: Mapping[str, Mapping]):
        self.vocabulary = vocabulary
        self.pictures, self.sounds = PictureProbe(vocabulary), SoundProbe(vocabulary)

    def probe_image(self, x: Tensor) -> dict[str, str]:
        """Shape, colour, size and place of the object in (3, H, W)."""
        if x.ndim != 3 or x.shape[0] != 3:
            raise ValueError(f"wanted an image (3, H, W), got {tuple(x.shape)}")
        track = self.pictures.track(x[:, None])
        shape = self.pictures.shape(track)
        return {"shape": shape, "colour": self.pictures.colour(track), "size": self.pictures.size(track, shape),
                "place": self.pictures.place(track)}  # fmt: skip

    def probe_video(self, x: Tensor, fps: float) -> dict[str, str]:
        """Shape, colour, size and motion of the object in (3, T, H, W); motions are amounts per clip, whatever the `fps`."""
        track = self.pictures.track(_video(x))
        shape = self.pictures.shape(track)
        return {"shape": shape, "colour": self.pictures.colour(track), "size": self.pictures.size(track, shape),
                "motion": self.pictures.motion(track)}  # fmt: skip

    def probe_audio(self, x: Tensor, rate: float) -> dict[str, str]:
        """Timbre, pitch and contour of the tone in (C, T)."""
        return self.sounds.tone(_audio(x), rate)

    def probe_bounce(
        self, video: Tensor | None, audio: Tensor | None, fps: float | None, rate: float | None
    ) -> dict[str, str | float]:
        """Colour and tempo of a bouncing ball, timbre of its bounces and, where both streams are given, `offset` in frames:
        the larger of the mean distances from each sound to the nearest impact and from each impact to the nearest sound."""
        found: dict[str, str | float] = {}
        if video is not None:
            track, tempi = self.pictures.track(_video(video)), self.vocabulary["tempo"]
            period, first = _flights(track.y, track.weight, fps)
            found["colour"] = self.pictures.colour(track)
            found["tempo"] = min(tempi, key=lambda name: abs(math.log(tempi[name] * period)))
        if audio is not None:
            found["timbre"] = self.sounds.tone(_audio(audio), rate, glides=False)["timbre"]
        if video is not None and audio is not None:
            found["offset"] = fps * _apart(self.sounds.onsets(audio, rate), period, first, video.shape[1] / fps)
        return found

    def impacts(self, video: Tensor, fps: float) -> Tensor:
        """The times in seconds at which a bouncing ball in (3, T, H, W) touches the floor: (N,)."""
        track = self.pictures.track(_video(video))
        period, first = _flights(track.y, track.weight, fps)
        times = first + period * torch.arange(math.ceil(video.shape[1] / fps / period) + 1)
        return times[times < video.shape[1] / fps]

    def measure(self, kind: str, streams: Mapping[str, Tensor], rates: Mapping[str, float | None]) -> dict[str, str | float]:
        """All attributes of one sample of a kind that its streams (C, *S) show: with their rates by name."""
        measures = {
            "image": lambda: self.probe_image(streams["image"]),
            "video": lambda: self.probe_video(streams["video"], rates["video"]),
            "audio": lambda: self.probe_audio(streams["audio"], rates["audio"]),
            "av": lambda: self.probe_bounce(streams.get("video"), streams.get("audio"), rates.get("video"), rates.get("audio")),
        }
        if kind not in measures:
            raise ValueError(f"wanted a kind that can be measured, got {kind!r}; choose from {', '.join(measures)}")
        return measures[kind]()


def _video(x: Tensor) -> Tensor:
    if x.ndim != 4 or x.shape[0] != 3:
        raise ValueError(f"wanted a video (3, T, H, W), got {tuple(x.shape)}")
    return x


def _audio(x: Tensor) -> Tensor:
    if x.ndim != 2:
        raise ValueError(f"wanted a sound (C, T), got {tuple(x.shape)}")
    return x


def _flights(y: Tensor, weight: Tensor, fps: float) -> tuple[float, float]:
    """Period and first impact in seconds of the parabolic flights that fit the heights y (T,), downwards positive, best."""
    time = torch.arange(len(y), dtype=torch.float64) / fps
    weight = weight.double() / weight.sum()
    y = y.double() - (weight * y).sum()
    periods = 0.28 * (1.4 / 0.28) ** torch.linspace(0, 1, 81, dtype=torch.float64)
    phase = (
        torch.remainder(time - (periods[:, None] * torch.arange(48) / 48)[..., None], periods[:, None, None])
        / periods[:, None, None]
    )
    low = -4 * phase * (1 - phase)  # (periods, firsts, T), 0 at an impact
    low = low - (low * weight).sum(-1, keepdim=True)
    gain = ((low * y * weight).sum(-1) / (low.square() * weight).sum(-1).clamp_min(1e-9)).clamp_min(0)
    miss = ((y - gain[..., None] * low).square() * weight).sum(-1)
    best, step = divmod(int(miss.argmin()), 48)
    return float(periods[best]), float(periods[best]) * step / 48


def _apart(onsets: Tensor, period: float, first: float, seconds: float, end: float = 0.125) -> float:
    """Mean distance in seconds from onsets to impacts or from impacts to onsets, the larger; half a period without onsets.

    An impact in the last `end` seconds may go unheard.
    """
    if not len(onsets):
        return period / 2
    late = (torch.remainder(onsets - first + period / 2, period) - period / 2).abs().mean()
    impacts = first + period * torch.arange(math.ceil(seconds / period) + 1)
    impacts = impacts[impacts < seconds - end]
    missed = (impacts[:, None] - onsets[None]).abs().amin(1).clamp(max=period / 2).mean() if len(impacts) else late
    return max(float(late), float(missed))
