"""Video through PyAV: files <-> (3, T, H, W) in [-1, 1], by time stamps."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import ceil, inf
from pathlib import Path

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image
from torch import Tensor

from mmldm.interfaces import Clip, Info, Media, MediaError, Preview
from mmldm.media import encode
from mmldm.media.container import GAP, decoded, end_of, format_of, length_of, opened, pick, too_short
from mmldm.media.image import ImageMedia
from mmldm.media.limits import Limits, unlimited

__all__ = ["VideoMedia"]

SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT  # filters grow when reducing
UPRIGHT = (1, 0, 0, 1)
UNSPECIFIED = 2  # FFmpeg's number for a colour space that the file does not name


@dataclass(frozen=True)
class VideoMedia(Media):
    """Video (3, T, H, W) in [-1, 1] at a constant fps: picture k is the last one shown at or before start + k / fps, scaled to
    cover height x width, cropped at the centre; rotation flags and pixel aspect applied. MP4, MOV, MKV, WebM, AVI, GIF.

    With `stills` the files of ImageMedia are clips of one picture.
    """

    frames: int
    fps: float
    height: int
    width: int
    limits: Limits = field(default_factory=Limits)
    stills: bool = field(default=False, repr=False)

    suffixes = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
    time_axis = 0

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1 or self.fps <= 0:
            raise ValueError(f"wanted frames, fps, height, width > 0, got {self.frames, self.fps, self.height, self.width}")
        if self.stills:
            object.__setattr__(self, "suffixes", tuple(dict.fromkeys((*type(self).suffixes, *ImageMedia.suffixes))))

    def _still(self, path: str | Path) -> ImageMedia | None:
        """What reads a file that is a single picture."""
        moves = not self.stills or Path(path).suffix.lower() in type(self).suffixes
        return None if moves else ImageMedia(self.height, self.width, self.limits)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.frames, self.height, self.width)

    @property
    def rate(self) -> float:
        return self.fps

    def resized(self, seconds: float | None = None, size: tuple[int, int] | None = None) -> VideoMedia:
        frames = self.frames if seconds is None else max(1, round(seconds * self.fps))
        height, width = (self.height, self.width) if size is None else size
        return replace(self, frames=frames, height=int(height), width=int(width))

    def probe(self, path: str | Path) -> Info:
        if still := self._still(path):
            info = still.probe(path)
            return replace(info, shape=(1, *info.shape))
        with opened(path, self.limits) as container:
            stream = pick(container, "video", path, self.limits)
            name, rate = format_of(container, stream), float(stream.average_rate or stream.guessed_rate or 0)
            self._check(container, stream, path)
            _, frame = next(decoded(container, stream, 0.0), (None, None))
            if frame is None:
                raise MediaError(path, "decodes to no picture")
            height, width = _displayed(frame, stream)[:2]
            seconds = end_of(container, stream, path)
        self.limits.check(path, pixels=height * width, seconds=seconds, frames=seconds * rate)
        return Info(seconds, (max(1, round(seconds * rate)), height, width), rate or None, 3, name)

    def _check(self, container, stream, path: str | Path) -> None:
        seconds = length_of(container)
        frames = max(stream.frames or 0, seconds * float(stream.average_rate or 0))
        context = stream.codec_context
        self.limits.check(path, pixels=context.width * context.height, frames=frames, seconds=seconds)

    def plan(self, info: Info) -> list[str]:
        _, height, width = info.shape
        done = []
        if info.seconds is None:
            return ImageMedia(self.height, self.width).plan(replace(info, shape=info.shape[1:]))
        if info.rate is None or abs(info.rate - self.fps) > 1e-3:
            done.append(f"resampled {info.rate or 0:.4g} -> {self.fps:.4g} fps")
        if (height, width) != (self.height, self.width):
            done.append(f"scaled and cropped {width}x{height} -> {self.width}x{self.height}")
        if info.seconds < self.seconds - 0.5 / self.fps:
            done.append(f"padded {info.seconds:.2f} -> {self.seconds:.2f} s")
        elif info.seconds > self.seconds + 0.5 / self.fps:
            done.append(f"cropped {info.seconds:.2f} -> {self.seconds:.2f} s")
        return done

    def load(self, path: str | Path, start: float = 0.0) -> Clip:
        if start < 0:
            raise ValueError(f"wanted start >= 0 seconds, got {start}")
        if still := self._still(path):
            x = still.load(path).x[:, None].expand(self.shape)
            return Clip(x.contiguous(), (1, self.height, self.width))
        with opened(path, self.limits) as container:
            stream = pick(container, "video", path, self.limits)
            self._check(container, stream, path)
            pictures, end = [], 0.0
            for picture, end in self._pictures(container, stream, path, start):  # noqa: B007
                pictures.append(picture)
                if len(pictures) == self.frames:
                    break
            self._check_end(container, stream, path, end, start + self.seconds)
        valid = len(pictures)
        return Clip(_clip(pictures + pictures[-1:] * (self.frames - valid)), (valid, self.height, self.width), start)

    def stream(self, path: str | Path, samples: int, start: float = 0.0) -> Iterator[Tensor]:
        if start < 0 or samples < 1:
            raise ValueError(f"wanted start >= 0 seconds and samples >= 1, got {start} and {samples}")
        if self._still(path):
            return iter([self.load(path).x[:, :1]])
        return unlimited(self)._whole(path, samples, start)

    def _whole(self, path: str | Path, samples: int, start: float) -> Iterator[Tensor]:
        """Everything from `start` on, `samples` pictures at once."""
        with opened(path, self.limits) as container:
            stream = pick(container, "video", path, self.limits)
            self._check(container, stream, path)
            pictures, before, held, end = [], None, 0, 0.0
            for picture, end in self._pictures(container, stream, path, start):  # noqa: B007
                held, before = held + 1 if picture is before else 0, picture
                if held > GAP * self.fps:
                    raise MediaError(path, f"shows one picture for more than {GAP:g} s before {end:.2f} s")
                pictures.append(picture)
                if len(pictures) == samples:
                    yield _clip(pictures)
                    pictures = []
            self._check_end(container, stream, path, end)
            if pictures:
                yield _clip(pictures)

    def _check_end(self, container, stream, path: str | Path, end: float, wanted: float = inf) -> None:
        """Raise MediaError where the pictures end before what the header declares of what is wanted."""
        declared = length_of(container)
        if too_short(end, min(wanted, declared)) and too_short(end, min(wanted, end_of(container, stream, path))):
            raise MediaError(path, f"declares {declared:.2f} s, decodes to {max(end, 0):.2f} s")

    def _pictures(self, container, stream, path: str | Path, start: float) -> Iterator[tuple[np.ndarray, float]]:
        """Picture k is what is shown at start + k / fps, up to the end of the file; with each the end of what was decoded."""
        tick = float(stream.time_base or 0) / 2
        slack = 1e-6 + min(tick, 0.2 / float(stream.average_rate or self.fps))  # stamps are rounded to the container's clock
        count, before, shown, end = 0, None, None, 0.0
        for time, frame in decoded(container, stream, start):
            if frame.is_corrupt and time >= start:
                raise MediaError(path, f"has a damaged picture at {time:.2f} s")
            end = time + _duration(frame, stream)
            while before is not None and time > start + count / self.fps + slack:
                shown = self._fitted(before, stream, path) if shown is None else shown
                yield shown, end
                count += 1
            before, shown = frame, None
        if before is None:
            raise MediaError(path, f"decodes to no picture at {start:.2f} s")
        if end <= start + 1e-6:
            raise MediaError(path, f"ends at {end:.2f} s, before the wanted start {start:.2f} s")
        shown = self._fitted(before, stream, path)
        for _ in range(max(1, ceil((end - start) * self.fps - 1e-3)) - count):
            yield shown, end

    def _fitted(self, frame: VideoFrame, stream, path: str | Path) -> np.ndarray:
        """A decoded frame -> (height, width, 3) uint8, upright, covering and cropped."""
        height, width, (a, b, c, d) = _displayed(frame, stream)
        self.limits.check(path, pixels=max(frame.width * frame.height, width * height))
        scale = max(self.height / height, self.width / width)
        size = max(self.height, round(height * scale)), max(self.width, round(width * scale))
        self.limits.check(path, pixels=size[0] * size[1])
        picture = _rgb(frame, *(size if a else size[::-1]))
        if not a:
            picture, a, d = picture.transpose(1, 0, 2), c, b
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
        top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
        return picture[top : top + self.height, left : left + self.width]

    def save(
        self,
        x: Tensor,
        path: str | Path,
        metadata: Mapping[str, str] | None = None,
        sound: Tensor | None = None,
        sound_rate: float | None = None,
    ) -> Path:
        """Write (3, T, H, W) as MP4, MOV, MKV, WebM or GIF, with its sound (C, samples) in [-1, 1] where given."""
        return encode.save_video(x, path, self.fps, sound, sound_rate, metadata)

    def writer(
        self, path: str | Path, metadata: Mapping[str, str] | None = None, sound: str | Path | None = None
    ) -> AbstractContextManager[encode.Write]:
        """Gives `write(x)`; `sound` is a file whose sound is copied beside the pictures."""
        return encode.video_writer(path, self.fps, metadata, sound)

    def preview(
        self,
        x: Tensor,
        folder: str | Path,
        name: str,
        sound: Tensor | None = None,
        sound_rate: float | None = None,
    ) -> list[Preview]:
        """A player (small pictures enlarged so that the codec does not blur them) and a strip of frames."""
        from mmldm.media import draw

        player = encode.save_video(draw.enlarged(x, 256), Path(folder) / f"{name}.mp4", self.fps, sound, sound_rate)
        strip = Path(folder) / f"{name}.strip.png"
        draw.save(draw.strip(x, self.fps), strip)
        return [Preview(player, "video"), Preview(strip, "picture", "frames")]

    def picture(self, x: Tensor) -> Image.Image:
        """What a contact sheet shows of `x`: a strip of frames."""
        from mmldm.media import draw

        return draw.strip(x)


def _clip(pictures: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) each -> (3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).contiguous().float().div_(127.5).sub_(1)


def _duration(frame: VideoFrame, stream) -> float:
    if frame.duration and frame.time_base:
        return float(frame.duration * frame.time_base)
    return 1.0 / float(stream.average_rate or stream.guessed_rate or 25)


def _displayed(frame: VideoFrame, stream) -> tuple[int, int, tuple[int, int, int, int]]:
    """Height and width as shown, and the signs (a, b, c, d) of the display matrix: x' = a x + c y, y' = b x + d y."""
    height, width = frame.height, frame.width
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    if 0.1 < aspect < 10:
        width = max(1, round(width * aspect))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return height, width, UPRIGHT
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return height, width, (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return width, height, (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _rgb(frame: VideoFrame, height: int, width: int) -> np.ndarray:
    """Scaled RGB (height, width, 3) uint8; transparency on white; BT.709 where 720 lines or more name no colour space."""
    guess = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    options = {"interpolation": SCALING, "threads": 1, "src_colorspace": guess if frame.colorspace == UNSPECIFIED else None}
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        layers = frame.reformat(format="rgba", threads=1).to_ndarray()
        colour, alpha = layers[..., :3], layers[..., 3:]
        if alpha.min() < 255:
            colour = ((colour * alpha.astype(np.uint16) + (255 - alpha.astype(np.uint16)) * 255 + 127) // 255).astype(np.uint8)
        frame, options["src_colorspace"] = VideoFrame.from_ndarray(np.ascontiguousarray(colour), "rgb24"), None
    return frame.reformat(width=width, height=height, format="rgb24", **options).to_ndarray()
