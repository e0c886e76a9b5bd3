"""Writing sound and video through PyAV, piece by piece."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from math import inf
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from torch import Tensor

from mmldm.interfaces import MediaError
from mmldm.media.container import opened, origin, pick
from mmldm.media.files import checked_suffix, replacing, to_tags
from mmldm.media.gif import gif_writer
from mmldm.media.limits import Limits

__all__ = ["SOUND", "VIDEO", "Write", "audio_writer", "can_carry", "save_audio", "save_video", "video_writer"]

SOUND = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".opus": "libopus", ".ogg": "libopus", ".oga": "libopus",
         ".m4a": "aac", ".aac": "aac"}  # fmt: skip
VIDEO = {".mp4": ("libx264", "aac"), ".m4v": ("libx264", "aac"), ".mov": ("libx264", "aac"), ".mkv": ("libx264", "flac"),
         ".webm": ("libvpx-vp9", "libopus"), ".gif": (None, None)}  # fmt: skip
MUXER = {".m4a": "ipod", ".m4v": "mp4", ".aac": "adts", ".oga": "ogg", ".mkv": "matroska"}
MUXING = {**dict.fromkeys((".mp4", ".m4v", ".mov", ".m4a"), {"movflags": "use_metadata_tags+faststart"}),
          ".wav": {"rf64": "auto"}}  # fmt: skip
QUALITY = {"libx264": {"crf": "14", "preset": "medium"},
           "libvpx-vp9": {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0"}}  # fmt: skip
BT709 = 1  # FFmpeg's number of the colour matrix, primaries and curve
CHUNK = 4096  # samples handed to an encoder at once
ANY = Limits(max_bytes=inf, max_frames=inf, max_seconds=inf)

Write = Callable[[Tensor], None]


# ---------------------------------------------------------------- sound


def save_audio(x: Tensor, path: str | Path, rate: float, metadata: Mapping[str, str] | None = None) -> Path:
    """Write (C, samples) in [-1, 1]: WAV and FLAC keep 16 bits exactly; MP3, Opus (.opus, .ogg), AAC (.m4a, .aac)."""
    with audio_writer(path, rate, metadata) as write:
        write(x)
    return Path(path)


@contextmanager
def audio_writer(path: str | Path, rate: float, metadata: Mapping[str, str] | None = None) -> Iterator[Write]:
    """Gives `write(x)` for consecutive sounds (C, samples), which `save_audio` would write at once; above 4 GB a WAV file is
    an RF64 one."""
    suffix, track = checked_suffix(path, tuple(SOUND)), None
    with replacing(path) as temporary, _writing(temporary, suffix, metadata) as container:

        def write(x: Tensor) -> None:
            nonlocal track
            samples = _samples(x, rate)
            track = track or _Track(container, SOUND[suffix], rate, len(samples))
            track.write(samples)

        yield write
        if track is None:
            raise ValueError(f"wanted at least one piece of sound to write to {path}, got none")
        track.close()


class _Track:
    """A sound in a container, at the nearest rate that the codec has and that loses nothing."""

    def __init__(self, container: OutputContainer, codec: str, rate: float, channels: int):
        choices = sorted(av.Codec(codec, "w").audio_rates or [int(rate)])
        chosen = next((r for r in choices if r >= rate), choices[-1])
        layout = {1: "mono", 2: "stereo"}.get(channels, f"{channels}c")
        self.container, self.rate, self.channels, self.written = container, round(rate), channels, 0
        self.stream = container.add_stream(codec, rate=chosen, layout=layout)
        if codec in ("pcm_s16le", "flac"):
            self.stream.format = "s16"
        else:
            low = codec == "libmp3lame" and chosen < 32000
            self.stream.bit_rate = 128_000 if channels == 1 or low else 192_000

    def write(self, samples: np.ndarray) -> None:
        """Append int16 samples (C, n); the encoder resamples and converts them itself."""
        if len(samples) != self.channels:
            raise ValueError(f"wanted sound of {self.channels} channels, got {len(samples)}")
        layout = self.stream.codec_context.layout.name
        for begin in range(0, samples.shape[1], CHUNK):
            part = np.ascontiguousarray(samples[:, begin : begin + CHUNK].T).reshape(1, -1)
            frame = AudioFrame.from_ndarray(part, format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, self.written, Fraction(1, self.rate)
            self.container.mux(self.stream.encode(frame))
            self.written += samples[:, begin : begin + CHUNK].shape[1]

    def close(self) -> None:
        """Write what the encoder still holds."""
        self.container.mux(self.stream.encode(None))


def _samples(x: Tensor, rate: float) -> np.ndarray:
    """(C, n) in [-1, 1] -> int16 (C, n)."""
    if x.ndim != 2 or not x.shape[1] or not rate or rate <= 0:
        raise ValueError(f"wanted sound (C, samples) and a rate > 0, got {tuple(x.shape)} at {rate}")
    return (x.detach().double().cpu().nan_to_num(0.0) * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()


# ---------------------------------------------------------------- video


def save_video(
    x: Tensor,
    path: str | Path,
    fps: float,
    sound: Tensor | None = None,
    rate: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write (3, T, H, W) in [-1, 1] with its `sound` (C, samples) at `rate`: MP4, MOV (H.264 + AAC), MKV (H.264 + FLAC), WebM
    (VP9 + Opus), GIF (silent). Odd heights and widths are extended by one row or column, as the formats demand."""
    with video_writer(path, fps, metadata, sound, rate) as write:
        write(x)
    return Path(path)


@contextmanager
def video_writer(
    path: str | Path,
    fps: float,
    metadata: Mapping[str, str] | None = None,
    sound: Tensor | str | Path | None = None,
    rate: float | None = None,
) -> Iterator[Write]:
    """Gives `write(x)` for consecutive clips (3, T, H, W), which `save_video` would write at once; a file as `sound` is one
    whose sound is copied, unchanged, up to the end of the pictures (see `can_carry`)."""
    suffix, size = checked_suffix(path, tuple(VIDEO)), None
    if isinstance(sound, Tensor) and rate is None:
        raise ValueError("wanted the rate of the sound in samples per second, got None")
    if isinstance(sound, (str, Path)) and not can_carry(path, sound):
        raise ValueError(f"wanted a file whose sound {suffix} can carry as it is, got {sound}")
    with replacing(path) as temporary:
        moving = suffix == ".gif"
        with gif_writer(temporary, fps, metadata) if moving else _film(temporary, suffix, fps, metadata, sound, rate) as append:

            def write(x: Tensor) -> None:
                nonlocal size
                if size not in (None, x.shape[2:]):
                    raise ValueError(f"wanted pictures of {size[0]} x {size[1]} as before, got {tuple(x.shape)}")
                append(_pictures(x))
                size = x.shape[2:]

            yield write
            if size is None:
                raise ValueError(f"wanted at least one picture to write to {path}, got none")


def can_carry(path: str | Path, source: str | Path) -> bool:
    """Whether a file of `path`'s format can carry the sound of `source` as it is; False where `source` has none."""
    suffix = checked_suffix(path, tuple(VIDEO))
    if suffix == ".gif":
        return False
    try:
        with opened(source, ANY) as given, av.open(io.BytesIO(), "w", format=MUXER.get(suffix, suffix[1:])) as container:
            sound = pick(given, "audio", source, ANY)
            track = container.add_stream_from_template(sound)
            packet = next((p for p in given.demux(sound) if p.size), None)
            if packet is None:
                return False
            packet.stream = track
            container.mux(packet)  # some formats refuse only when the file is closed
    except (MediaError, ValueError, OSError):
        return False
    return True


def _pictures(x: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1] -> uint8 (T, H, W, 3)."""
    if x.ndim != 4 or x.shape[0] not in (1, 3) or not x.shape[1]:
        raise ValueError(f"wanted a video (3, T, H, W), got {tuple(x.shape)}")
    levels = (x.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1) * 127.5 + 127.5).round().byte()
    return levels.expand(3, -1, -1, -1).permute(1, 2, 3, 0).contiguous().numpy()


class _Film:
    """Pictures in a container, and beside them the sound up to the same moment, so that players can stream."""

    def __init__(self, container: OutputContainer, suffix: str, fps: float, sound, rate: float | None):
        self.container, self.codec, self.fps = container, VIDEO[suffix][0], fps
        self.stream, self.count, self.heard = None, 0, inf
        self.sounds = _sounds(container, VIDEO[suffix][1], sound, rate)
        self.whole = isinstance(sound, Tensor)

    def write(self, pictures: np.ndarray) -> None:
        """Append uint8 (T, H, W, 3)."""
        pictures = np.pad(pictures, ((0, 0), (0, pictures.shape[1] % 2), (0, pictures.shape[2] % 2), (0, 0)), mode="edge")
        if self.stream is None:
            self.stream = _video_stream(self.container, self.codec, self.fps, pictures)
            self.heard = next(self.sounds, inf)
        for picture in pictures:
            self._hear(self.count / self.fps)
            self.container.mux(self.stream.encode(_yuv(picture, self.count, self.stream)))
            self.count += 1

    def close(self) -> None:
        """Write the rest of the sound and what the encoder still holds."""
        self._hear(inf if self.whole else self.count / self.fps - 1e-6)
        self.sounds.close()
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))

    def _hear(self, seconds: float) -> None:
        while self.heard <= seconds and self.heard < inf:
            self.heard = next(self.sounds, inf)


@contextmanager
def _film(path: Path, suffix: str, fps: float, metadata, sound, rate) -> Iterator[Callable[[np.ndarray], None]]:
    with _writing(path, suffix, metadata) as container:
        film = _Film(container, suffix, fps, sound, rate)
        yield film.write
        film.close()


def _sounds(container: OutputContainer, codec: str, sound, rate: float | None) -> Iterator[float]:
    """Gives the time in seconds of what it writes next; adds its stream before the first."""
    if isinstance(sound, Tensor):
        samples = _samples(sound, rate)
        track = _Track(container, codec, rate, len(samples))
        for begin in range(0, samples.shape[1], CHUNK):
            yield begin / rate
            track.write(samples[:, begin : begin + CHUNK])
        track.close()
    elif sound is not None:
        with opened(sound, ANY) as source:
            given = pick(source, "audio", sound, ANY)
            zero, stream = round(origin(source) / given.time_base), container.add_stream_from_template(given)
            for packet in source.demux(given):
                if packet.dts is None or packet.pts is None:  # the end
                    continue
                packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
                yield float(packet.pts * packet.time_base)
                packet.stream = stream
                container.mux(packet)


def _video_stream(container: OutputContainer, codec: str, fps: float, pictures: np.ndarray) -> Stream:
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=QUALITY[codec])
    stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
    context = stream.codec_context
    context.thread_count = 1  # the same bytes on every machine
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709  # range 1: limited
    return stream


def _yuv(picture: np.ndarray, index: int, stream) -> VideoFrame:
    flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
    frame = VideoFrame.from_ndarray(picture, "rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=flags, threads=1
    )
    frame.pts, frame.time_base = index, 1 / stream.codec_context.framerate
    return frame


def _writing(path: Path, suffix: str, metadata: Mapping[str, str] | None) -> OutputContainer:
    container = av.open(str(path.resolve()), "w", format=MUXER.get(suffix), options=MUXING.get(suffix, {}))
    container.metadata.update(to_tags(metadata))
    return container
