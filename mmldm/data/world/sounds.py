"""Tones of a timbre at a pitch: held, gliding or pulsing; struck timbres decay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mmldm.data.world.attributes import VOCABULARY
from mmldm.data.world.draw import Draw

__all__ = ["sound", "voice"]


def voice(timbre: str, cycles: np.ndarray, top: float, age: np.ndarray, rate: float, draw: Draw) -> np.ndarray:
    """The bare wave of a timbre, about 1 in amplitude, not yet shaped in loudness.

    cycles (N,) is the phase of the pitch in cycles, `top` its highest frequency in Hz, age (N,) how much a struck sound has
    decayed (1: by e). Partials above 0.45 of the sampling rate are left out.
    """
    entry = VOCABULARY["timbre"][timbre]
    partials = [(ratio, amplitude) for ratio, amplitude in entry["partials"] if ratio * top < 0.45 * rate or ratio == 1]
    if not partials:
        return _band(entry, cycles, top, rate, draw)
    if any(ratio != int(ratio) for ratio, _ in partials):
        wave = np.zeros(len(cycles), np.float32)
        for ratio, amplitude in partials:
            phase = np.float32(2 * math.pi) * np.mod(ratio * cycles, 1.0).astype(np.float32)
            wave += np.float32(amplitude) * np.sin(phase) * np.exp(age * np.float32(-0.25 * (ratio - 1)))
        return wave
    theta = np.float32(2 * math.pi) * np.mod(cycles, 1.0).astype(np.float32)
    turn = np.cos(theta) + np.complex64(1j) * np.sin(theta)
    if entry.get("decay"):
        turn = turn * np.exp(np.float32(-0.25) * age)
    amplitudes = dict(partials)
    count = int(max(amplitudes))
    step = turn * turn if count > 1 and not any(n % 2 == 0 for n in amplitudes) else turn  # odd harmonics alone: half the work
    stride = 2 if step is not turn else 1
    total = np.full(len(theta), amplitudes.get(count, 0.0), np.complex64)
    for n in range(count - stride, 0, -stride):  # Horner's rule for sum of a_n turn^n
        total = total * step + np.complex64(amplitudes.get(n, 0.0))
    return (total * turn).imag


def _band(entry: Mapping, cycles: np.ndarray, top: float, rate: float, draw: Draw) -> np.ndarray:
    """Noise in a Gaussian band around the pitch over a broad, weaker floor."""
    n = len(cycles)
    pitch = (cycles[-1] - cycles[0]) * rate / max(1, n - 1)
    width = pitch * (2 ** entry["spread"] - 1)
    offsets = np.fft.fftfreq(n, 1 / rate)
    near = np.abs(offsets) < 4 * width
    real, imaginary = draw.normal(2, n)
    spectrum = np.where(near, (real + 1j * imaginary) * np.exp(-0.5 * (offsets / width) ** 2), 0)
    slow = np.fft.ifft(spectrum)
    slow = (slow / np.sqrt(np.mean(np.abs(slow) ** 2))).astype(np.complex64)
    theta = np.float32(2 * math.pi) * np.mod(cycles, 1.0).astype(np.float32)
    band = slow.real * np.cos(theta) - slow.imag * np.sin(theta)
    return np.float32(0.7) * band + np.float32(entry["floor"]) * real


def _shaped(attributes: Mapping[str, str], draw: Draw, seconds: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Loudness (N,) and decay (N,) of a tone over a clip of `length` seconds."""
    struck = VOCABULARY["timbre"][attributes["timbre"]].get("decay", False)
    contour = VOCABULARY["contour"][attributes["contour"]]
    ends = np.clip(np.minimum(seconds / 0.01, (length - seconds) / 0.03), 0, 1).astype(np.float32)
    speed, phase = draw.between(0.9, 1.1), draw.between(0.0, 0.25)
    beat = np.mod(seconds * contour.get("rate", 0.0) * speed + phase, 1.0).astype(np.float32)
    if struck:
        age = np.float32(2.6) * beat if "rate" in contour else (seconds / (0.42 * length)).astype(np.float32)
        attack = np.clip(beat / np.float32(0.02), 0, 1) if "rate" in contour else np.float32(1)
        return ends * attack * np.exp(-age), age
    swell = np.float32(0.5) - np.float32(0.5) * np.cos(np.float32(2 * math.pi) * beat) if "rate" in contour else np.float32(1)
    return ends * swell, np.zeros_like(ends)


def sound(attributes: Mapping[str, str], draw: Draw, samples: int, rate: float, start: float = 0.0) -> np.ndarray:
    """A tone of a timbre, pitch and contour over a clip that begins at `start`: (N,) float32 in [-1, 1]."""
    length = samples / rate
    seconds = start + np.arange(samples) / rate
    glide = VOCABULARY["contour"][attributes["contour"]].get("glide", 0.0) * draw.between(0.95, 1.05) / 12 * math.log(2)
    pitch = VOCABULARY["pitch"][attributes["pitch"]] * 2 ** (draw.between(-0.3, 0.3) / 12)
    loud, lead = draw.between(0.5, 0.85), draw.between(0, 1)
    if glide:
        bend = glide * (seconds / length - 0.5)
        cycles = lead + pitch * length / glide * (np.exp(bend) - math.exp(-glide / 2))
    else:
        cycles = lead + pitch * seconds
    loudness, age = _shaped(attributes, draw, seconds, length + start)
    wave = voice(attributes["timbre"], cycles, pitch * math.exp(abs(glide) / 2), age, rate, draw) * loudness
    return (wave * np.float32(loud / max(float(np.abs(wave).max()), 1e-6))).astype(np.float32)
