"""Writing sound and video through PyAV."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image
from torch import Tensor

from mmldm.media.files import checked_suffix, replacing, to_tags

__all__ = ["save_audio", "save_video"]

SOUND = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".opus": "libopus", ".ogg": "libopus", ".oga": "libopus",
         ".m4a": "aac", ".aac": "aac"}  # fmt: skip
VIDEO = {".mp4": ("libx264", "aac"), ".m4v": ("libx264", "aac"), ".mov": ("libx264", "aac"), ".mkv": ("libx264", "flac"),
         ".webm": ("libvpx-vp9", "libopus"), ".gif": (None, None)}  # fmt: skip
MUXER = {".m4a": "ipod", ".m4v": "mp4", ".aac": "adts", ".oga": "ogg"}
QUALITY = {"libx264": {"crf": "14", "preset": "medium"},
           "libvpx-vp9": {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0"}}  # fmt: skip
BT709 = 1  # FFmpeg's number of the colour matrix, primaries and curve
CHUNK = 4096  # samples handed to an encoder at once


def save_audio(x: Tensor, path: str | Path, rate: float, metadata: Mapping[str, str] | None = None) -> Path:
    """Write (C, samples) in [-1, 1]: WAV and FLAC keep 16 bits exactly; MP3, Opus (.opus, .ogg), AAC (.m4a, .aac)."""
    suffix = checked_suffix(path, tuple(SOUND))
    samples = _samples(x, rate)
    with replacing(path) as temporary, _writing(temporary, suffix, metadata) as container:
        stream = _sound_stream(container, SOUND[suffix], samples, rate)
        for frame in _sound_frames(samples, stream, rate):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


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
    suffix = checked_suffix(path, tuple(VIDEO))
    if x.ndim != 4 or x.shape[0] not in (1, 3) or not x.shape[1]:
        raise ValueError(f"wanted a video (3, T, H, W), got {tuple(x.shape)}")
    if sound is not None and rate is None:
        raise ValueError("wanted the rate of the sound in samples per second, got None")
    levels = (x.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1) * 127.5 + 127.5).round().byte()
    pictures = levels.expand(3, -1, -1, -1).permute(1, 2, 3, 0).contiguous().numpy()
    samples = None if sound is None else _samples(sound, rate)
    with replacing(path) as temporary:
        if suffix == ".gif":
            _save_gif(pictures, temporary, fps, metadata)
        else:
            _save_container(pictures, temporary, suffix, fps, samples, rate, metadata)
    return Path(path)


def _save_container(pictures, path: Path, suffix: str, fps: float, samples, rate, metadata) -> None:
    video_codec, sound_codec = VIDEO[suffix]
    pictures = np.pad(pictures, ((0, 0), (0, pictures.shape[1] % 2), (0, pictures.shape[2] % 2), (0, 0)), mode="edge")
    with _writing(path, suffix, metadata) as container:
        stream = container.add_stream(video_codec, rate=Fraction(fps).limit_denominator(1001), options=QUALITY[video_codec])
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709  # range 1: limited
        audio = None if samples is None else _sound_stream(container, sound_codec, samples, rate)
        sounds = iter(()) if audio is None else _sound_frames(samples, audio, rate)
        waiting = next(sounds, None)
        for index, picture in enumerate(pictures):
            while waiting is not None and waiting.pts / rate <= index / fps:  # interleaved, so that players can stream
                container.mux(audio.encode(waiting))
                waiting = next(sounds, None)
            container.mux(stream.encode(_yuv(picture, index, stream)))
        while waiting is not None:
            container.mux(audio.encode(waiting))
            waiting = next(sounds, None)
        container.mux(stream.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))


def _yuv(picture: np.ndarray, index: int, stream) -> VideoFrame:
    flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
    frame = VideoFrame.from_ndarray(picture, "rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=flags, threads=1
    )
    frame.pts, frame.time_base = index, 1 / stream.codec_context.framerate
    return frame


def _save_gif(pictures: np.ndarray, path: Path, fps: float, metadata: Mapping[str, str] | None) -> None:
    """Times are rounded to GIF's 1/100 s without adding up errors."""
    marks = np.round(np.arange(len(pictures) + 1) * 100 / fps).astype(int)
    first, *rest = [Image.fromarray(picture).quantize(255, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    options = {"comment": to_tags(metadata)["comment"].encode()} if metadata else {}
    times = [int(d) * 10 for d in np.maximum(np.diff(marks), 1)]
    first.save(path, format="GIF", save_all=True, append_images=rest, loop=0, disposal=1, duration=times, **options)


def _writing(path: Path, suffix: str, metadata: Mapping[str, str] | None) -> OutputContainer:
    options = {"movflags": "use_metadata_tags+faststart"} if suffix in (".mp4", ".m4v", ".mov", ".m4a") else {}
    container = av.open(str(path.resolve()), "w", format=MUXER.get(suffix), options=options)
    container.metadata.update(to_tags(metadata))
    return container


def _samples(x: Tensor, rate: float) -> np.ndarray:
    """(C, n) in [-1, 1] -> int16 (C, n)."""
    if x.ndim != 2 or not x.shape[1] or not rate or rate <= 0:
        raise ValueError(f"wanted sound (C, samples) and a rate > 0, got {tuple(x.shape)} at {rate}")
    return (x.detach().double().cpu().nan_to_num(0.0) * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()


def _sound_stream(container: OutputContainer, codec: str, samples: np.ndarray, rate: float):
    """A stream at the nearest rate the codec has that loses nothing."""
    choices = sorted(av.Codec(codec, "w").audio_rates or [int(rate)])
    chosen = next((r for r in choices if r >= rate), choices[-1])
    channels = len(samples)
    layout = {1: "mono", 2: "stereo"}.get(channels, f"{channels}c")
    stream = container.add_stream(codec, rate=chosen, layout=layout)
    if codec in ("pcm_s16le", "flac"):
        stream.format = "s16"
    else:
        stream.bit_rate = (128_000 if channels == 1 else 192_000) if codec != "libmp3lame" or chosen >= 32000 else 128_000
    return stream


def _sound_frames(samples: np.ndarray, stream, rate: float):
    """Frames of 16 bits at `rate`; the encoder resamples and converts them itself."""
    layout = stream.codec_context.layout.name
    for begin in range(0, samples.shape[1], CHUNK):
        part = np.ascontiguousarray(samples[:, begin : begin + CHUNK].T).reshape(1, -1)
        frame = AudioFrame.from_ndarray(part, format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = round(rate), begin, Fraction(1, round(rate))
        yield frame
