"""A coloured shape on a soft background, at rest or moving, drawn by its distance field for all frames at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmldm.data.world.attributes import SHAPES, VOCABULARY
from mmldm.data.world.draw import Draw

__all__ = ["Scene", "image_scene", "render", "video_scene"]

# two ends of a gradient, RGB in [0, 1]: dark ones and pale ones, none of them vivid
BACKGROUNDS = (
    ((0.03, 0.03, 0.04), (0.10, 0.10, 0.12)),  # night
    ((0.13, 0.13, 0.14), (0.25, 0.25, 0.27)),  # charcoal
    ((0.15, 0.18, 0.22), (0.28, 0.32, 0.37)),  # slate
    ((0.05, 0.06, 0.12), (0.12, 0.14, 0.23)),  # navy
    ((0.10, 0.07, 0.12), (0.20, 0.15, 0.22)),  # plum
    ((0.05, 0.09, 0.08), (0.12, 0.18, 0.15)),  # forest
    ((0.90, 0.87, 0.82), (0.97, 0.95, 0.91)),  # cream
    ((0.80, 0.84, 0.87), (0.92, 0.94, 0.95)),  # mist
)


@dataclass(frozen=True)
class Scene:
    """One object over F frames: centre `x`, `y` (from the middle) and `radius` (F,) in parts of the shorter side; `tilt` in
    radians; `rgb` and the ends of the `background`'s gradient in [0, 1]; `direction` of the gradient in radians."""

    shape: str
    rgb: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    tilt: float
    background: tuple[np.ndarray, np.ndarray]
    direction: float


def jittered_colour(name: str, draw: Draw) -> np.ndarray:
    """The colour a little lighter or darker, warmer or colder: RGB in [0, 1]."""
    rgb = np.array(VOCABULARY["colour"][name], np.float32) * draw.between(0.93, 1.04)
    return np.clip(rgb + np.float32([draw.between(-0.03, 0.03) for _ in range(3)]), 0, 1)


def background(draw: Draw) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """The ends of a gradient and its direction."""
    ends = draw.pick(BACKGROUNDS)
    shift = np.float32(draw.between(-0.02, 0.02))
    return (np.array(ends[0], np.float32) + shift, np.array(ends[1], np.float32) + shift), draw.between(0, 2 * math.pi)


def _object(attributes: Mapping[str, str], draw: Draw, x, y, radius, frames: int) -> Scene:
    rgb = jittered_colour(attributes["colour"], draw)
    ends, direction = background(draw)
    full = lambda value: np.broadcast_to(np.asarray(value, np.float32), (frames,))  # noqa: E731
    return Scene(attributes["shape"], rgb, full(x), full(y), full(radius), draw.between(-0.14, 0.14), ends, direction)


def _radius(attributes: Mapping[str, str], draw: Draw) -> tuple[float, float]:
    """The nominal radius and how far the object reaches from its centre."""
    radius = VOCABULARY["size"][attributes["size"]] * draw.between(0.95, 1.05)
    return radius, radius * SHAPES[attributes["shape"]][1]


def image_scene(attributes: Mapping[str, str], draw: Draw) -> Scene:
    """A shape of a colour, size and place, wholly inside the picture."""
    radius, reach = _radius(attributes, draw)
    room = min(0.24, 0.49 - reach)
    dx, dy = (
        0.0 if c == 0 else math.copysign(room - draw.between(0, 0.02), c) for c in VOCABULARY["place"][attributes["place"]]
    )
    x, y = dx + draw.between(-0.02, 0.02) * (dx == 0), dy + draw.between(-0.02, 0.02) * (dy == 0)
    return _object(attributes, draw, x, y, radius, 1)


def video_scene(attributes: Mapping[str, str], draw: Draw, progress: np.ndarray) -> Scene:
    """A shape that moves: `progress` (F,) is 0 at the beginning and 1 at the end of a clip."""
    radius, reach = _radius(attributes, draw)
    motion = VOCABULARY["motion"][attributes["motion"]]
    middle = progress - 0.5
    room = max(0.0, min(0.13, 0.46 - reach))
    x, y = draw.between(-room, room), draw.between(-room, room)
    pace = draw.between(0.92, 1.08)
    if "travel" in motion:
        dx, dy = motion["travel"]
        x, y = (pace * dx * middle if dx else x), (pace * dy * middle if dy else y)
    elif "growth" in motion:
        x, y = x * 0.2, y * 0.2
        radius = radius * (1 + math.tanh(pace * motion["growth"] / 2) * 2 * middle)
    elif "orbit" in motion:
        angle = 2 * math.pi * (draw.pick((-1, 1)) * progress + draw.between(0, 1))
        orbit = pace * min(motion["orbit"], 0.52 - reach)
        x, y = 0.2 * x + orbit * np.cos(angle), 0.2 * y + orbit * np.sin(angle)
    return _object(attributes, draw, x, y, radius, len(progress))


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels from the middle, y (H, 1) and x (1, W), in parts of the shorter side."""
    side = min(height, width)
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5 - height / 2)) / np.float32(side)
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)) / np.float32(side)
    return y[:, None], x[None, :]


def gradient(ends: tuple[np.ndarray, np.ndarray], direction: float, height: int, width: int) -> np.ndarray:
    """A straight gradient between two colours: (3, H, W) in [0, 1]."""
    y, x = grid(height, width)
    ramp = np.clip(0.5 + (x * np.float32(math.cos(direction)) + y * np.float32(math.sin(direction))) * np.float32(0.8), 0, 1)
    return ends[0][:, None, None] + (ends[1] - ends[0])[:, None, None] * ramp


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, tilt: float) -> np.ndarray:
    """Signed distance to the edge of a shape at the origin, negative inside; broadcasts."""
    tips, outer, inner = SHAPES[shape]
    length = np.sqrt(x * x + y * y)
    if tips == 0:
        return length - radius
    half = math.pi / tips
    angle = np.arctan2(x, -y) + np.float32((half if shape == "square" else 0.0) - tilt + half)
    fold = np.abs(np.mod(angle, np.float32(2 * half)) - np.float32(half))
    # the edge from the tip (0, R) to the notch at angle pi / tips: normal (ny, nx) of the line through both
    nx, ny = 1 - inner * math.cos(half), inner * math.sin(half)
    norm = math.hypot(nx, ny)
    edge = np.cos(fold) * np.float32(ny / norm) + np.sin(fold) * np.float32(nx / norm)
    return length * edge - radius * np.float32(outer * ny / norm)


def render(scene: Scene, height: int, width: int) -> np.ndarray:
    """Draw a scene with antialiased edges: (3, F, H, W) float32 in [-1, 1]."""
    side = np.float32(min(height, width))
    gy, gx = grid(height, width)
    x, y = gx - scene.x[:, None, None], gy - scene.y[:, None, None]
    radius = scene.radius[:, None, None]
    inside = np.clip(np.float32(0.5) - distance(scene.shape, x, y, radius, scene.tilt) * side, 0, 1)
    light = 1 - np.float32(0.09) * np.clip((y + x * np.float32(0.5)) / radius, -1, 1)  # lit from above
    back = gradient(scene.background, scene.direction, height, width)[:, None]
    front = np.minimum(scene.rgb[:, None, None, None] * light, 1)
    return (back + (front - back) * inside) * np.float32(2) - np.float32(1)
