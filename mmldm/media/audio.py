"""Sound through PyAV: files <-> (C, T) in [-1, 1], placed by its time stamps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, gcd
from pathlib import Path

import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from PIL import Image
from torch import Tensor

from mmldm.interfaces import Clip, Info, Media, MediaError, Preview
from mmldm.media import encode
from mmldm.media.container import decoded, end_of, format_of, length_of, opened, pick, too_short
from mmldm.media.limits import Limits

__all__ = ["AudioMedia", "resample"]

MARGIN = 0.1  # seconds decoded around a window: decoders settle in, the resampling filter sees real neighbours
JITTER = 0.02  # seconds by which time stamps may disagree with the sample count before they count as a gap


@dataclass(frozen=True, init=False)
class AudioMedia(Media):
    """Sound (C, T) in [-1, 1] at `rate` samples per second, mixed to `channels`; sample n of a clip is the file's sound at
    start + n / rate. WAV, FLAC, MP3, Ogg, Opus, M4A, AAC and the sound of any video."""

    rate: int
    channels: int
    samples: int
    limits: Limits

    suffixes = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac",
                ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")  # fmt: skip
    time_axis = 0

    def __init__(self, rate: int, channels: int, seconds: float, limits: Limits | None = None):
        if rate < 1 or rate != int(rate) or channels < 1 or round(rate * seconds) < 1:
            raise ValueError(f"wanted a whole rate >= 1, channels >= 1 and seconds > 0, got {rate, channels, seconds}")
        values = {"rate": int(rate), "channels": int(channels), "samples": round(rate * seconds), "limits": limits or Limits()}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.samples)

    def resized(self, seconds: float | None = None, size: tuple[int, int] | None = None) -> AudioMedia:
        if size is not None:
            raise ValueError(f"wanted seconds, got size={size}: sound has no height and width")
        return self if seconds is None else AudioMedia(self.rate, self.channels, seconds, self.limits)

    def probe(self, path: str | Path) -> Info:
        with opened(path, self.limits) as container:
            stream = pick(container, "audio", path, self.limits)
            rate, channels = self._check(container, stream, path)
            seconds, name = end_of(container, stream, path), format_of(container, stream)
        self.limits.check(path, seconds=seconds)
        return Info(seconds, (max(0, round(seconds * rate)),), float(rate), channels, name)

    def _check(self, container, stream, path: str | Path) -> tuple[int, int]:
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        if rate < 1 or channels < 1:
            raise MediaError(path, f"declares {rate} samples per second and {channels} channels")
        if channels > 2 and self.channels > 2 and channels != self.channels:
            raise MediaError(path, f"wanted {self.channels} channels, got {channels}")
        self.limits.check(path, rate=rate, seconds=length_of(container))
        return rate, channels

    def plan(self, info: Info) -> list[str]:
        done = []
        if info.rate != self.rate:
            done.append(f"resampled {info.rate:.0f} -> {self.rate} Hz")
        if info.channels != self.channels:
            done.append(f"mixed {info.channels} -> {self.channels} channels")
        if info.seconds < self.seconds - 0.5 / self.rate:
            done.append(f"padded {info.seconds:.2f} -> {self.seconds:.2f} s")
        elif info.seconds > self.seconds + 0.5 / self.rate:
            done.append(f"cropped {info.seconds:.2f} -> {self.seconds:.2f} s")
        return done

    def load(self, path: str | Path, start: float = 0.0) -> Clip:
        if start < 0:
            raise ValueError(f"wanted start >= 0 seconds, got {start}")
        with opened(path, self.limits) as container:
            stream = pick(container, "audio", path, self.limits)
            native, _ = self._check(container, stream, path)
            first = round(start * self.rate)
            step = native // gcd(native, self.rate)  # both clocks tick together every `step` native samples
            begin = floor((first / self.rate - MARGIN) * native / step) * step
            stop = ceil(((first + self.samples) / self.rate + MARGIN) * native)
            sound, end = self._sound(container, stream, native, begin, stop)
            total = length_of(container)
            wanted = start + self.seconds
            if too_short(end, min(wanted, total)) and too_short(end, min(wanted, end_of(container, stream, path))):
                raise MediaError(path, f"declares {total:.2f} s of sound, decodes to {max(end, 0):.2f} s")
        if end <= start and total <= start + 1e-3:  # where the picture goes on, the sound is silence with nothing valid
            raise MediaError(path, f"ends at {max(end, 0):.2f} s, before the wanted start {start:.2f} s")
        x = resample(sound, native, self.rate)
        skip = first - begin * self.rate // native
        x = torch.from_numpy(x[:, skip : skip + self.samples])
        x = torch.nn.functional.pad(x, (0, self.samples - x.shape[1])).clamp(-1, 1)
        valid = min(self.samples, max(0, floor(end * self.rate + 1e-3) - first))
        x[:, valid:] = 0.0
        return Clip(x, (valid,), start)

    def _sound(self, container, stream, native: int, begin: int, stop: int) -> tuple[np.ndarray, float]:
        """Native samples [begin, stop) of the file's time, zeros where there are none: (C, n); and the end in seconds."""
        mixer, parts = AudioResampler(format="fltp", layout="stereo", rate=native), []
        for time, frame in decoded(container, stream, max(0.0, begin / native)):
            if frame.sample_rate != native:
                raise ValueError(f"the sample rate changes from {native} to {frame.sample_rate}")
            parts.append((round(time * native), _mixed(frame, self.channels, mixer)))
            if parts[-1][0] >= stop:
                break
        sound, end = np.zeros((self.channels, stop - begin), dtype=np.float32), 0
        for place, part in _placed(parts, JITTER * native):
            end = place + part.shape[1]
            low, high = max(place, begin), min(end, stop)
            if low < high:
                sound[:, low - begin : high - begin] = part[:, low - place : high - place]
        return np.nan_to_num(sound, posinf=1.0, neginf=-1.0), end / native

    def save(self, x: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        return encode.save_audio(x, path, self.rate, metadata)

    def preview(self, x: Tensor, folder: str | Path, name: str) -> list[Preview]:
        """A WAV player and a spectrogram (mel scale, dB) below the waveform."""
        from mmldm.media import draw

        player = encode.save_audio(x, Path(folder) / f"{name}.wav", self.rate)
        picture = Path(folder) / f"{name}.spectrogram.png"
        draw.save(draw.spectrogram(x, self.rate), picture)
        return [Preview(player, "audio"), Preview(picture, "picture", "spectrogram")]

    def picture(self, x: Tensor) -> Image.Image:
        """What a contact sheet shows of `x`: a spectrogram."""
        from mmldm.media import draw

        return draw.spectrogram(x, self.rate, size=(3.2, 2.2))


def _placed(parts: list[tuple[int, np.ndarray]], jitter: float) -> list[tuple[int, np.ndarray]]:
    """Runs of frames become contiguous, each run at the median of what its (rounded) time stamps say."""
    runs: list[list[tuple[int, int, np.ndarray]]] = []
    count = 0
    for place, part in parts:
        if not runs or abs(place - count - (runs[-1][0][0] - runs[-1][0][1])) > jitter:
            runs.append([])
        runs[-1].append((place, count, part))
        count += part.shape[1]
    out = []
    for run in runs:
        shift = int(np.median([place - before for place, before, _ in run]))
        out += [(before + shift, part) for _, before, part in run]
    return out


def resample(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(C, n) float32 at `rate` -> (C, about n * wanted / rate), by FFmpeg's windowed sinc; sample 0 stays sample 0."""
    if rate == wanted:
        return sound
    resampler, parts = AudioResampler(format="flt", layout=_layout(len(sound)), rate=wanted), []
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(sound.T).reshape(1, -1), format="flt", layout=_layout(len(sound)))
    frame.sample_rate = rate
    for out in [*resampler.resample(frame), *resampler.resample(None)]:
        parts.append(out.to_ndarray().reshape(-1, len(sound)).T)
    return np.ascontiguousarray(np.concatenate(parts, 1)) if parts else sound[:, :0]


def _layout(channels: int) -> str:
    return {1: "mono", 2: "stereo"}.get(channels, f"{channels}c")


def _mixed(frame: AudioFrame, channels: int, mixer: AudioResampler) -> np.ndarray:
    """A decoded frame -> (channels, n) float32 in [-1, 1]: mono is copied, stereo averaged, surround folded to stereo first."""
    here = frame.layout.nb_channels
    if here > 2 and here != channels:
        frame.pts = None
        parts = [_mixed(part, channels, mixer) for part in mixer.resample(frame)]
        return np.concatenate(parts, 1) if parts else np.zeros((channels, 0), np.float32)
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, here).T
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float64) / 2.0 ** (8 * values.dtype.itemsize - 1)
    if here == channels:
        return values.astype(np.float32)
    return np.repeat(values.mean(0, keepdims=True), channels, 0).astype(np.float32)
