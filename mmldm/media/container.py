"""Timed media in containers through PyAV: open, find a stream, know its time, decode from the key frame before a moment.

Time zero of a file is its first picture, or its first sound where it has no picture, so that picture and sound of one
file agree on what `start` means.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.frame import Frame
from av.stream import Discard, Disposition, Stream

from mmldm.interfaces import MediaError
from mmldm.media.files import reading
from mmldm.media.limits import Limits

__all__ = ["GAP", "decoded", "end_of", "format_of", "length_of", "opened", "origin", "pick", "streams_of", "too_short"]

DEMUXERS = "mov,matroska,avi,gif,wav,w64,aiff,flac,mp3,ogg,aac,mpegts,mpeg,flv,asf"  # no playlists, no text, no network
UNDECLARED = ("mp3", "aac")  # their duration is a guess from the bit rate, unless a header says it
GAP = 3600.0  # seconds without data that are filled while a file is streamed; more is a broken time stamp
BACK_OFF = (0.25, 2.0, 10.0, 60.0, None)  # seconds before the wanted moment at which decoding begins; None: at the beginning


@contextmanager
def opened(path: str | Path, limits: Limits) -> Iterator[InputContainer]:
    """An open container; everything that goes wrong inside becomes a MediaError."""
    limits.check_file(path)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", "max_pixels": str(limits.max_pixels), "threads": "1"}
    with reading(path):
        try:
            container = av.open(os.path.abspath(path), options=options, metadata_errors="replace")
        except (ValueError, OSError) as error:
            raise MediaError(path, f"is not a sound or video file that can be opened ({_reason(error)})") from error
        with container:
            if container.format.name == "wav":
                _check_riff(path, (container.bit_rate or 0) / 8)
            yield container


def _check_riff(path: str | Path, per_second: float) -> None:
    """MediaError where a WAV file has much less data than its header declares: the demuxer quietly believes the file's size."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        place = 12
        while place + 8 <= size:
            file.seek(place)
            chunk = file.read(8)
            length = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                held = size - place - 8
                if length < 0xFFFFFFFF and per_second and too_short(held / per_second, length / per_second):
                    raise MediaError(path, f"is cut short: declares {length} bytes of sound, holds {held}")
                return
            place += 8 + length + length % 2


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _usable(stream: Stream, kind: str) -> bool:
    return stream.type == kind and stream.codec_context is not None and not stream.disposition & Disposition.attached_pic


def pick(container: InputContainer, kind: str, path: str | Path, limits: Limits) -> Stream:
    """The first `audio` or `video` stream (cover pictures are none), set to decode on one thread within the limits."""
    stream = next((s for s in container.streams if _usable(s, kind)), None)
    if stream is None:
        known = any(s.type == kind and s.codec_context is None for s in container.streams)
        raise MediaError(path, f"its {kind} stream has no decoder" if known else f"has no {kind} stream")
    context = stream.codec_context
    context.thread_count = 1
    context.options = {"max_pixels": str(limits.max_pixels)}
    if kind == "audio" and context.name == "flac":
        context.options = {"err_detect": "crccheck+explode"}  # a bit error is an error, not a crackle
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    return stream


def streams_of(path: str | Path, limits: Limits | None = None) -> frozenset[str]:
    """Which of `audio` and `video` a container holds; raises MediaError."""
    with opened(path, limits or Limits()) as container:
        return frozenset(kind for kind in ("audio", "video") if any(_usable(s, kind) for s in container.streams))


def format_of(container: InputContainer, stream: Stream) -> str:
    """Container and codec in words: `mov/h264`."""
    return f"{container.format.name.split(',')[0]}/{stream.codec_context.name}"


def origin(container: InputContainer) -> float:
    """Time stamp in seconds that counts as the file's zero."""
    for kind in ("video", "audio"):
        for stream in container.streams:
            if _usable(stream, kind):
                return float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
    return 0.0


# ---------------------------------------------------------------- how long it really is


def length_of(container: InputContainer) -> float:
    """End in seconds since the file's zero by its header alone (0 where it does not say): a first guess, see `end_of`."""
    if not container.duration:
        return 0.0
    begin = 0 if container.format.name.startswith("matroska") else container.start_time or 0  # there the clock's zero counts
    return (begin + container.duration) / av.time_base - origin(container)


def _guessed(container: InputContainer) -> bool:
    """Whether the duration is an extrapolation: raw AAC, and MP3 without a Xing, Info or VBRI header."""
    name = container.format.name
    if name not in UNDECLARED:
        return not container.duration
    with open(container.name, "rb") as file:
        head = file.read(10)
        tag = sum((byte & 127) << 7 * i for i, byte in enumerate(reversed(head[6:10]))) + 10 if head[:3] == b"ID3" else 0
        file.seek(tag)
        head = file.read(4096)
    return name == "aac" or not any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))


def _packet_ends(container: InputContainer, begin: float | None) -> dict[int, float]:
    """End in seconds of each stream on the container's clock, by its packets from `begin` on, without decoding."""
    container.seek(int(begin * av.time_base) if begin else min(container.start_time or 0, 0), backward=True)
    ends: dict[int, float] = {}
    try:
        for packet in container.demux():
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and packet.size and packet.time_base:
                end = float((time + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(ends.get(packet.stream_index, end), end)
    except (OSError, ValueError):
        pass  # a damaged tail: what was read before counts
    return ends


def end_of(container: InputContainer, stream: Stream, path: str | Path) -> float:
    """End of a stream in seconds since the file's zero, by the packets at its tail; MediaError where the file is cut short."""
    for other in container.streams:
        other.discard = Discard.default
    guessed = _guessed(container)
    zero, ends = origin(container), {}
    total = None if guessed else length_of(container)
    if total is not None and total > 4.0 and container.format.name not in UNDECLARED:
        try:
            ends = _packet_ends(container, zero + total - 1.0)
        except OSError:
            ends = {}
    if stream.index not in ends:
        try:
            ends = _packet_ends(container, None)
        except PermissionError:  # a file of a single packet cannot be rewound
            return length_of(container)
    if stream.index not in ends:
        raise MediaError(path, f"holds no {stream.type} data")
    last = max(ends.values()) - zero
    if total is not None and too_short(last, total):
        raise MediaError(path, f"is cut short: declares {total:.2f} s, holds {max(last, 0):.2f} s")
    end = ends[stream.index]
    if not guessed and stream.duration and stream.start_time is not None:  # edit lists and padding end before the packets do
        end = min(end, float((stream.start_time + stream.duration) * stream.time_base))
    return end - zero


def too_short(seconds: float, declared: float) -> bool:
    """Whether `seconds` is much less than was declared: by more than a quarter of a second and 1 %."""
    return seconds < declared - 0.25 - 0.01 * declared


# ---------------------------------------------------------------- decoding


def decoded(container: InputContainer, stream: Stream, start: float) -> Iterator[tuple[float, Frame]]:
    """Frames with their time since the file's zero, beginning at or before `start` wherever the file reaches back so far."""
    zero = origin(container)
    for back in BACK_OFF if start > 0 else (None,):
        begin = None if back is None or start - back <= 0 else start - back
        frames = _frames(container, stream, zero, begin, start)  # the last try rewinds to the beginning
        first = next(frames, None)
        if begin is None or (first is not None and first[0] <= start + 1e-6):
            break
    if first is not None:
        yield first
        yield from frames


def _frames(
    container: InputContainer, stream: Stream, zero: float, begin: float | None, start: float
) -> Iterator[tuple[float, Frame]]:
    """Decode from the key frame before `begin`; an undecodable packet is an error unless before `start` or at the very end."""
    if begin is not None:
        try:
            container.seek(int((begin + zero) / stream.time_base), stream=stream, backward=True)
        except OSError:
            return
    elif start > 0:
        container.seek(min(container.start_time or 0, 0), backward=True)
    error, now, first = None, None, None
    counted = container.format.name == "avi" and stream.type == "video" and stream.codec_context.has_b_frames
    for packet in container.demux(stream):
        first = packet.dts if first is None else first
        try:
            frames = packet.decode()
        except (OSError, ValueError) as failure:
            error = None if begin is not None and (now is None or now < start) else failure
            continue
        for frame in frames:
            if error is not None:
                raise error
            if counted:  # AVI keeps no presentation times: frames come in order from the key frame's place on
                frame.pts, first = first, (first or 0) + 1
            now = _time(frame, now, zero, stream)
            yield now, frame


def _time(frame: Frame, before: float | None, zero: float, stream: Stream) -> float:
    """Presentation time since the file's zero; where the container has none, one frame after the one before."""
    if frame.time is not None:
        time = frame.time - zero
        return time if before is None else max(time, before)
    if before is None:
        return 0.0
    rate = stream.average_rate if stream.type == "video" else None
    return before + (1.0 / float(rate) if rate else getattr(frame, "samples", 0) / max(getattr(frame, "sample_rate", 0), 1))
