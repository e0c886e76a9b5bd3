"""A ball that bounces, and the sound of each impact at the same instant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmldm.data.world.attributes import VOCABULARY
from mmldm.data.world.draw import Draw
from mmldm.data.world.pictures import background, gradient, grid, jittered_colour
from mmldm.data.world.sounds import voice

__all__ = ["Bounce", "bounce"]

FLOOR = 0.36  # below the middle, in parts of the shorter side


@dataclass(frozen=True)
class Bounce:
    """A ball hits the floor at `first` + k * `period` seconds; lengths in parts of the shorter side of the picture."""

    timbre: str
    rgb: np.ndarray
    period: float
    first: float
    height: float
    radius: float
    x: float
    pitch: float
    loud: float
    background: tuple[np.ndarray, np.ndarray]
    rest: Draw

    def since(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seconds since the last impact (below 0 before the first one) and phase of the flight in [0, 1)."""
        flights = (seconds - self.first) / self.period
        phase = np.mod(flights, 1.0)
        return np.where(flights >= 0, phase * self.period, -1.0), phase

    def picture(self, seconds: np.ndarray, height: int, width: int) -> np.ndarray:
        """The frames at these times: (3, F, H, W) float32 in [-1, 1]."""
        side = np.float32(min(height, width))
        y, x = grid(height, width)
        phase = self.since(seconds)[1].astype(np.float32)
        lift = 4 * phase * (1 - phase)
        press = np.exp(-((np.minimum(phase, 1 - phase) * np.float32(self.period) / np.float32(0.05)) ** 2)) * np.float32(0.22)
        wide, tall = (self.radius * (1 + press * 0.6))[:, None, None], (self.radius * (1 - press))[:, None, None]
        centre = (FLOOR - lift * self.height)[:, None, None] - tall
        dx, dy = (x - np.float32(self.x)) / wide, (y - centre) / tall
        inside = np.clip(np.float32(0.5) - (np.sqrt(dx * dx + dy * dy) - 1) * tall * side, 0, 1).astype(np.float32)
        back = gradient(self.background, math.pi / 2, height, width)
        ground = np.clip((y - np.float32(FLOOR)) * side + np.float32(0.5), 0, 1)
        back = back + (np.float32(0.5) - back) * np.float32(0.22) * ground  # the floor: a paler or darker band
        near = np.float32(0.55) * np.exp(-lift * np.float32(2.5))[:, None, None]
        spread = wide * (1 + lift[:, None, None] * np.float32(0.5))
        shadow = near * np.exp(-(((x - np.float32(self.x)) / spread) ** 2) - ((y - np.float32(FLOOR + 0.025)) / 0.03) ** 2)
        back = back[:, None] * (1 - shadow)
        light = 1 - np.float32(0.12) * np.clip(dy + dx * np.float32(0.5), -1, 1)
        front = np.minimum(self.rgb[:, None, None, None] * light, 1)
        return ((back + (front - back) * inside) * 2 - 1).astype(np.float32)

    def sound(self, seconds: np.ndarray, rate: float) -> np.ndarray:
        """What is heard at these times: (N,) float32 in [-1, 1]."""
        age, _ = self.since(seconds)
        age = age.astype(np.float32)
        struck = VOCABULARY["timbre"][self.timbre].get("decay", False)
        length = np.float32(min(0.12 if struck else 0.16, 0.4 * self.period))
        loudness = np.exp(-age / length) if struck else np.clip(np.float32(1.6) * (1 - age / (2 * length)), 0, 1)
        tail = np.clip((np.float32(self.period) - age) / np.float32(0.02), 0, 1)  # silent before the next impact
        loudness = np.where(age >= 0, np.clip(age / np.float32(0.003), 0, 1) * loudness * tail, 0)
        cycles = self.pitch * np.where(age >= 0, age, seconds).astype(np.float64)
        if not VOCABULARY["timbre"][self.timbre]["partials"]:
            cycles = self.pitch * seconds
        wave = voice(self.timbre, cycles, self.pitch, np.maximum(age / length, 0), rate, self.rest) * loudness
        return (wave * np.float32(self.loud / max(float(np.abs(wave).max()), 1e-6))).astype(np.float32)


def bounce(attributes: Mapping[str, str], draw: Draw, rest: Draw) -> Bounce:
    """A ball of a colour with a sound of a timbre at a tempo, that hits the floor within the first 0.85 seconds."""
    period = 1 / (VOCABULARY["tempo"][attributes["tempo"]] * draw.between(0.95, 1.05))
    first = draw.between(0.1, min(period, 0.85))
    height = 0.30 + 0.22 * min(1.0, period)
    radius, x, pitch = draw.between(0.115, 0.135), draw.between(-0.2, 0.2), 440.0 * 2 ** (draw.between(-3, 3) / 12)
    rgb, loud, ends = jittered_colour(attributes["colour"], draw), draw.between(0.55, 0.85), background(draw)[0]
    return Bounce(attributes["timbre"], rgb, period, first, height, radius, x, pitch, loud, ends, rest)
