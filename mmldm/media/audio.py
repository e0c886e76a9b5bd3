"""Sound through PyAV: files <-> (C, T) in [-1, 1], placed by its time stamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil, floor, gcd, inf
from pathlib import Path

import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from PIL import Image
from torch import Tensor

from mmldm.interfaces import Clip, Info, Media, MediaError, Preview
from mmldm.media import encode
from mmldm.media.container import GAP, decoded, end_of, format_of, length_of, opened, pick, too_short
from mmldm.media.limits import Limits, unlimited
from mmldm.media.pieces import regrouped

__all__ = ["AudioMedia", "resample"]

MARGIN = 0.1  # seconds decoded around a window: decoders settle in, the resampling filter sees real neighbours
BLOCK = 1 << 16  # samples of silence at once
SETTLE = 64  # frames whose time stamps together say where a run of them lies
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
            begin, skip = self._before(start, native)
            stop = ceil(((round(start * self.rate) + self.samples) / self.rate + MARGIN) * native)
            blocks = list(_contiguous(self._placed(container, stream, native, begin, stop), begin, stop))
            end = blocks[-1][1] / native if blocks else 0.0
            self._check_end(container, stream, path, start, end, start + self.seconds)
        sound = _finite(np.concatenate([np.zeros((self.channels, 0), np.float32), *(block for block, _ in blocks)], 1))
        sound = np.pad(sound[:, : stop - begin], ((0, 0), (0, max(0, stop - begin - sound.shape[1]))))
        x = torch.from_numpy(resample(sound, native, self.rate)[:, skip : skip + self.samples])
        x = torch.nn.functional.pad(x, (0, self.samples - x.shape[1])).clamp(-1, 1)
        valid = min(self.samples, self._length(start, end))
        x[:, valid:] = 0.0
        return Clip(x, (valid,), start)

    def stream(self, path: str | Path, samples: int, start: float = 0.0) -> Iterator[Tensor]:
        if start < 0 or samples < 1:
            raise ValueError(f"wanted start >= 0 seconds and samples >= 1, got {start} and {samples}")
        return regrouped(unlimited(self)._whole(path, start), samples, 1)

    def _whole(self, path: str | Path, start: float) -> Iterator[Tensor]:
        """Everything from `start` on, as it is decoded."""
        with opened(path, self.limits) as container:
            stream = pick(container, "audio", path, self.limits)
            native, _ = self._check(container, stream, path)
            begin, skip = self._before(start, native)
            resampled, count, end = _Resampler(native, self.rate, self.channels), -skip, 0.0
            for block, place in _contiguous(self._placed(container, stream, native, begin), begin, most=GAP * native):
                x, end = resampled(_finite(block)), place / native
                yield torch.from_numpy(x[:, max(0, -count) :]).clamp(-1, 1)
                count += x.shape[1]
            self._check_end(container, stream, path, start, end)
            left = self._length(start, end) - max(0, count)
            silence = np.zeros((self.channels, ceil(MARGIN * native)), np.float32)  # follows the end, as where a clip is padded
            x = np.concatenate([resampled(silence), resampled(None)], 1)[:, max(0, -count) :][:, : max(0, left)]
            yield torch.from_numpy(np.pad(x, ((0, 0), (0, max(0, left - x.shape[1]))))).clamp(-1, 1)

    def _before(self, start: float, native: int) -> tuple[int, int]:
        """The native sample, a little before `start`, to decode from, and how many samples at our rate it lies before."""
        first = round(start * self.rate)
        step = native // gcd(native, self.rate)  # both clocks tick together every `step` native samples
        begin = floor((first / self.rate - MARGIN) * native / step) * step
        return begin, first - begin * self.rate // native

    def _length(self, start: float, end: float) -> int:
        """Samples from `start` to the end of the sound."""
        return max(0, floor(end * self.rate + 1e-3) - round(start * self.rate))

    def _check_end(self, container, stream, path: str | Path, start: float, end: float, wanted: float = inf) -> None:
        """Raise MediaError where the sound ends before `start`, or before what its header declares of what is wanted."""
        total = length_of(container)
        if too_short(end, min(wanted, total)) and too_short(end, min(wanted, end_of(container, stream, path))):
            raise MediaError(path, f"declares {total:.2f} s of sound, decodes to {max(end, 0):.2f} s")
        if end <= start and total <= start + 1e-3:  # where the picture goes on, the sound is silence with nothing valid
            raise MediaError(path, f"ends at {max(end, 0):.2f} s, before the wanted start {start:.2f} s")

    def _placed(self, container, stream, native: int, begin: int, stop: float = inf) -> Iterator[tuple[int, np.ndarray]]:
        """Decoded sound (C, n) with the native sample of the file's time that it begins at, from `begin` or before on."""
        mixer = AudioResampler(format="fltp", layout="stereo", rate=native)

        def frames() -> Iterator[tuple[int, np.ndarray]]:
            for time, frame in decoded(container, stream, max(0.0, begin / native)):
                if frame.sample_rate != native:
                    raise ValueError(f"the sample rate changes from {native} to {frame.sample_rate}")
                place = round(time * native)
                yield place, _mixed(frame, self.channels, mixer)
                if place >= stop:
                    return

        return _placed(frames(), JITTER * native)

    def save(self, x: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        return encode.save_audio(x, path, self.rate, metadata)

    def writer(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> AbstractContextManager[encode.Write]:
        return encode.audio_writer(path, self.rate, metadata)

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


def _placed(parts: Iterable[tuple[int, np.ndarray]], jitter: float) -> Iterator[tuple[int, np.ndarray]]:
    """Runs of frames become contiguous, each run at the median of what the (rounded) time stamps of its first frames say."""
    waiting: list[tuple[int, int, np.ndarray]] = []  # of a run whose place is not known yet: stamp, samples before, samples
    first, shift, count = None, None, 0
    for place, part in parts:
        if first is not None and abs(place - count - first) > jitter:
            yield from _settled(waiting)
            waiting, first, shift = [], None, None
        first = place - count if first is None else first
        if shift is None:
            waiting.append((place, count, part))
        else:
            yield count + shift, part
        count += part.shape[1]
        if len(waiting) == SETTLE:
            shift = _shift(waiting)
            yield from _settled(waiting)
            waiting = []
    yield from _settled(waiting)


def _settled(run: list[tuple[int, int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    return [(before + _shift(run), part) for _, before, part in run]


def _shift(run: list[tuple[int, int, np.ndarray]]) -> int:
    return int(np.median([place - before for place, before, _ in run]))


def _contiguous(
    parts: Iterable[tuple[int, np.ndarray]], begin: int, stop: float = inf, most: float = inf
) -> Iterator[tuple[np.ndarray, int]]:
    """The samples from `begin` on, each block with its part's end; at most `most` zeros where there are none before `stop`."""
    now = begin
    for place, part in parts:
        end = place + part.shape[1]
        if min(place, stop) - now > most:
            raise ValueError(f"nothing for {place - now} samples")
        while now < min(place, stop):
            block = np.zeros((len(part), int(min(place - now, stop - now, BLOCK))), np.float32)
            now += block.shape[1]
            yield block, end
        part = part[:, max(0, now - place) :]
        now += part.shape[1]
        yield part, end


def _finite(sound: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as they are; what is no number is silence."""
    return np.nan_to_num(sound, posinf=1.0, neginf=-1.0)


class _Resampler:
    """(C, n) float32 at `rate` -> (C, about n * wanted / rate) piece by piece, by FFmpeg's windowed sinc; sample 0 stays sample
    0; None gives what is left at the end."""

    def __init__(self, rate: int, wanted: int, channels: int):
        self.rate, self.channels, self.layout = rate, channels, _layout(channels)
        same = rate == wanted
        self.resampler = None if same else AudioResampler(format="flt", layout=self.layout, rate=wanted)

    def __call__(self, sound: np.ndarray | None) -> np.ndarray:
        nothing = np.zeros((self.channels, 0), np.float32)
        if self.resampler is None:
            return nothing if sound is None else sound
        frame = None
        if sound is not None:
            if not sound.shape[1]:
                return nothing
            values = np.ascontiguousarray(sound.T).reshape(1, -1)
            frame = AudioFrame.from_ndarray(values, format="flt", layout=self.layout)
            frame.sample_rate = self.rate
        parts = [out.to_ndarray().reshape(-1, self.channels).T for out in self.resampler.resample(frame)]
        return np.ascontiguousarray(np.concatenate([nothing, *parts], 1))


def resample(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """All of (C, n) at once, see `_Resampler`."""
    resampled = _Resampler(rate, wanted, len(sound))
    return np.concatenate([resampled(sound), resampled(None)], 1)


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
        values = values * np.float32(2.0 ** (1 - 8 * values.dtype.itemsize))
    if here == channels:
        return values.astype(np.float32, copy=False)
    one = (values[0] + values[1]) * 0.5 if here == 2 else values[0]
    return np.repeat(one[None].astype(np.float32, copy=False), channels, 0)
