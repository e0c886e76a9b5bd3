"""The world as a source of rows, like a folder of files."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import torch

from mmldm import keyed
from mmldm.data.world.attributes import split_combinations
from mmldm.data.world.bounce import bounce
from mmldm.data.world.captions import caption
from mmldm.data.world.draw import Draw
from mmldm.data.world.pictures import image_scene, render, video_scene
from mmldm.data.world.sounds import sound
from mmldm.interfaces import Clip, Media

__all__ = ["World"]

STREAMS = {"image": ("image",), "video": ("video",), "audio": ("audio",), "av": ("video", "audio")}
SUFFIXES = {"image": ".png", "video": ".mp4", "audio": ".wav", "av": ".mp4"}
LABELS = {"image": "{colour} {shape}", "video": "{shape} {motion}", "audio": "{timbre} {pitch}", "av": "{colour} {timbre}"}


class World:
    """Captioned, compositional media computed from their row number: a data set without files, of content that can be measured.

    kind: `image`, `video`, `audio`, or `av` (a bouncing ball, seen and heard). split: `train`, `heldout` (a fixed fifth of the
    combinations of attributes, for every seed) or `all`. A row is the same whatever the `size`; a clip has the length, the
    resolution and the rate of the media that asks for it.
    """

    def __init__(self, kind: str = "image", size: int = 8192, split: str = "train", seed: int = 0):
        self._combinations = split_combinations(kind, split)
        if size < 1:
            raise ValueError(f"wanted a size of at least 1, got {size}")
        self.kind, self.size, self.split, self.seed = kind, size, split, seed
        self.streams, self.suffix = STREAMS[kind], SUFFIXES[kind]
        self._order: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"World(kind={self.kind!r}, size={self.size}, split={self.split!r}, seed={self.seed})"

    def attributes(self, index: int) -> dict[str, str]:
        """The value of each attribute of a row; every combination of the split once before one comes again."""
        index = self._checked(index)
        turn, place = divmod(index, len(self._combinations))
        if turn not in self._order:
            generator = keyed.generator("world order", self.kind, self.split, self.seed, turn)
            self._order[turn] = torch.randperm(len(self._combinations), generator=generator).tolist()
        return dict(self._combinations[self._order[turn][place]])

    def row(self, index: int) -> dict[str, str]:
        """`text` (the caption), `label` and every attribute of a row."""
        attributes = self.attributes(index)
        text = caption(self.kind, attributes, self._draw(index, "caption"))
        return {"text": text, "label": LABELS[self.kind].format(**attributes), **attributes}

    def seconds(self, index: int) -> float | None:
        """None: a clip is as long as the media that asks for it."""
        self._checked(index)
        return None

    def key(self, index: int) -> str:
        """A digest of what identifies the content of a row: 64 hexadecimal digits."""
        return sha256(f"world 1/{self.kind}/{self.split}/{self.seed}/{self._checked(index)}".encode()).hexdigest()

    def load(self, index: int, stream: str, media: Media, start: float = 0.0) -> Clip:
        """The clip of a stream as the media wants it: `shape` (C, *S), at `rate`, beginning `start` seconds into the row."""
        if stream not in self.streams:
            raise ValueError(
                f"wanted a stream of a world of kind {self.kind}, got {stream!r}; choose from {', '.join(self.streams)}"
            )
        shape = tuple(media.shape)
        x = self._heard(index, shape, media, start) if stream == "audio" else self._seen(index, shape, media, start)
        return Clip(torch.from_numpy(np.array(x, np.float32, order="C")), shape[1:], start)

    def prompts(self, n: int, split: str, seed: int) -> list[tuple[str, dict[str, str]]]:
        """`n` captions with the attributes they name, from a split: other rows than any that `load` gives."""
        asked = World(self.kind, max(1, n), split, seed)
        rows = [asked.attributes(i) for i in range(n)]
        return [(caption(self.kind, a, Draw(self.kind, split, seed, i, "prompt")), a) for i, a in enumerate(rows)]

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"wanted a row in [0, {self.size}), got {index}")
        return int(index)

    def _draw(self, index: int, purpose: str) -> Draw:
        return Draw(self.kind, self.split, self.seed, int(index), purpose)

    def _times(self, media: Media, start: float) -> tuple[np.ndarray, float]:
        """Seconds of each media sample, and the length of a clip."""
        samples = media.shape[1 + media.time_axis]
        return start + np.arange(samples) / media.rate, samples / media.rate

    def _seen(self, index: int, shape: tuple[int, ...], media: Media, start: float) -> np.ndarray:
        still = media.time_axis is None
        if shape[0] != 3 or len(shape) != (3 if still else 4):
            raise ValueError(f"wanted a picture (3, H, W) or (3, T, H, W), got a media of shape {shape}")
        attributes, draw = self.attributes(index), self._draw(index, "picture")
        times, length = (np.array([start]), 1.0) if still else self._times(media, start)
        if self.kind == "av":
            x = bounce(attributes, draw, self._draw(index, "noise")).picture(times, *shape[-2:])
        elif self.kind == "video":
            span = length if still else max(length - 1 / media.rate, 1 / media.rate)
            x = render(video_scene(attributes, draw, times / span), *shape[-2:])
        else:
            x = render(image_scene(attributes, draw), *shape[-2:]).repeat(len(times), 1)
        return x[:, 0] if still else x

    def _heard(self, index: int, shape: tuple[int, ...], media: Media, start: float) -> np.ndarray:
        if len(shape) != 2:
            raise ValueError(f"wanted a sound (C, T), got a media of shape {shape}")
        attributes = self.attributes(index)
        if self.kind == "av":
            ball = bounce(attributes, self._draw(index, "picture"), self._draw(index, "noise"))
            x = ball.sound(self._times(media, start)[0], media.rate)
        else:
            x = sound(attributes, self._draw(index, "sound"), shape[1], media.rate, start)
        return np.broadcast_to(x, shape)
