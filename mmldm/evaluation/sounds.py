"""What can be measured of one tone, or of a row of strikes, without any learned network.

Every frame of the magnitude spectrum, on a logarithmic frequency axis, is compared with what each timbre looks like at each
pitch; the straight line of pitch over time that collects most likeness gives timbre, pitch and glide at once. Phases are
never used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["SoundProbe"]

PER_SEMITONE = 3
WINDOW = 0.096  # seconds
HOP = 0.016  # at least: a long sound gets about FRAMES frames
FRAMES = 100
TOP = 7200.0  # hertz: nothing above is looked at
COMPRESSION = 0.6  # power of the magnitudes


class SoundProbe:
    """Timbre, pitch and contour of a tone, and the times at which sounds begin, by the vocabulary's numbers.

    `vocabulary` holds `pitch` (Hz), `timbre` (`partials` as ratio and amplitude; or `spread` in octaves and `floor` of a
    band of noise) and `contour` (`glide` in semitones per clip, or `rate` of pulses per second).
    """

    def __init__(self, vocabulary: Mapping[str, Mapping]):
        self.vocabulary = vocabulary
        pitches = list(vocabulary["pitch"].values())
        steps = PER_SEMITONE * (12 * math.log2(max(pitches) / min(pitches)) + 12)
        self._candidates = min(pitches) * 2 ** ((torch.arange(int(steps) + 1) / PER_SEMITONE - 6) / 12)  # Hz
        self._prepared: dict[float, tuple[Tensor, Tensor]] = {}

    def tone(self, x: Tensor, rate: float, glides: bool = True) -> dict[str, str]:
        """Timbre, pitch and contour of a sound (C, T): the best of all timbres on all straight lines of pitch over time."""
        wave = _mono(x)
        likeness, loudness = self._likeness(wave, rate)  # (K, P, F), (F,)
        frames, count = likeness.shape[-1], len(self._candidates)
        when = torch.linspace(-0.5, 0.5, frames)
        weight = loudness**0.5 / (loudness**0.5).sum().clamp_min(1e-8)
        best = (-math.inf, 0, 0, 0.0)
        for glide in sorted(range(-10, 11), key=abs) if glides else (0,):
            shift = (glide * PER_SEMITONE * when).round().long()
            index = (torch.arange(count)[:, None] + shift).clamp(0, count - 1)
            score = (likeness.gather(1, index.expand(len(likeness), -1, -1)) * weight).sum(-1)  # (K, P)
            value, place = score.flatten().max(0)
            if float(value) > best[0]:
                best = (float(value), *divmod(int(place), count), float(glide))
        _, timbre, pitch, glide = best
        heard = float(self._candidates[pitch])
        names = self.vocabulary["pitch"]
        return {
            "timbre": list(self.vocabulary["timbre"])[timbre],
            "pitch": min(names, key=lambda name: abs(math.log(names[name] / heard))),
            "contour": self._contour(wave, rate, glide),
        }

    def onsets(self, x: Tensor, rate: float) -> Tensor:
        """The times in seconds at which sounds begin in (C, T), by the rise of the compressed loudness: (N,)."""
        step = max(1, round(0.004 * rate))
        level = _loudness(_mono(x), rate, 0.024, step) ** 0.5
        reach, apart = 4, 30
        padded = torch.cat([level[:1].expand(reach) * 0, level, level[-1:].expand(reach)])
        rise = (padded[2 * reach :] - padded[: -2 * reach]).clamp_min(0)  # at frame i: level[i + reach] - level[i - reach]
        if float(rise.max()) <= 0:
            return torch.zeros(0)
        highest = torch.nn.functional.max_pool1d(rise[None], 2 * apart + 1, 1, apart)[0]
        peaks = (rise == highest) & (rise > 0.4 * rise.max())
        return peaks.nonzero()[:, 0] * step / rate

    def _contour(self, wave: Tensor, rate: float, glide: float) -> str:
        """The contour that is strongest relative to its nominal amount; none of half that amount: the steady one."""
        contours = self.vocabulary["contour"]
        strength = {next(name for name, amount in contours.items() if not amount): 0.5}
        for name, amount in contours.items():
            if "glide" in amount:
                strength[name] = glide / amount["glide"]
            elif "rate" in amount:
                strength[name] = self._pulse(wave, rate, amount["rate"])
        return max(strength, key=strength.__getitem__)

    @staticmethod
    def _pulse(wave: Tensor, rate: float, pulses: float) -> float:
        """How much the logarithm of the loudness swings about that often per second: about 1 where it pulses."""
        step, edge = max(1, round(0.008 * rate)), 5
        level = _loudness(wave, rate, 0.04, step)[edge:-edge]
        if len(level) * step / rate < 1.5 / pulses:
            return 0.0
        level = (level / level.max().clamp_min(1e-8) + 0.03).log().double()
        time = torch.arange(len(level), dtype=torch.float64) * step / rate
        centred = time - time.mean()
        level = level - level.mean()
        level = level - centred * (centred * level).sum() / centred.square().sum()
        taper = torch.hann_window(len(level) + 2, periodic=False, dtype=torch.float64)[1:-1]
        rates = pulses * torch.linspace(0.8, 1.25, 19, dtype=torch.float64)
        swing = (torch.exp(2j * math.pi * rates[:, None] * time) * (level * taper)).sum(-1).abs() * 2 / taper.sum()
        return float(swing.max())

    def _likeness(self, wave: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Cosine of each frame with each timbre (K) at each pitch (P): (K, P, F); and the loudness of each frame (F,)."""
        axis, templates = self._templates(rate)
        spectrum = _spectrum(wave, rate)
        heard = _normal((axis @ spectrum) ** COMPRESSION, 0)  # (Q, F)
        return torch.einsum("kpq,qf->kpf", templates, heard), spectrum.square().sum(0).sqrt()

    def _templates(self, rate: float) -> tuple[Tensor, Tensor]:
        """Weights that put a spectrum on the logarithmic axis (Q, bins), and the templates (K, P, Q)."""
        if rate not in self._prepared:
            size = _size(rate)
            top = min(TOP, 0.45 * rate)
            hertz = torch.arange(_bins(rate)) * rate / size
            low = float(self._candidates[0]) * 0.8
            count = int(12 * PER_SEMITONE * math.log2(top / low))
            centres = low * 2 ** (torch.arange(count) / (12 * PER_SEMITONE))
            width = torch.clamp(centres * (2 ** (1 / (12 * PER_SEMITONE)) - 1), min=rate / size)
            axis = (1 - (hertz - centres[:, None]).abs() / width[:, None]).clamp_min(0)
            axis = axis / axis.sum(1, keepdim=True).clamp_min(1e-8)
            pictures = [torch.stack([_picture(entry, float(p), hertz) for p in self._candidates])
                        for entry in self.vocabulary["timbre"].values()]  # fmt: skip
            logarithmic = torch.einsum("qb,kpb->kpq", axis, torch.stack(pictures))
            self._prepared[rate] = axis, _normal(logarithmic**COMPRESSION, -1)
        return self._prepared[rate]


def _picture(entry: Mapping, pitch: float, hertz: Tensor) -> Tensor:
    """The magnitudes a timbre has at a pitch: a Hann window's main lobe for each partial, a Gaussian band for noise."""
    if not entry["partials"]:
        width = pitch * (2 ** entry["spread"] - 1)
        floor = entry["floor"] / 0.5 * math.sqrt(math.sqrt(math.pi) * width / 8000)
        return torch.exp(-0.5 * ((hertz - pitch) / width) ** 2) + floor
    ratios, amplitudes = torch.tensor(entry["partials"]).T
    apart = (hertz - pitch * ratios[:, None]) * WINDOW  # in bins of the window
    lobe = torch.where(apart.abs() < 2, torch.sinc(apart) / (1 - apart**2 + 1e-6), 0).abs()
    return (lobe * amplitudes[:, None]).square().sum(0).sqrt()


def _mono(x: Tensor) -> Tensor:
    return x.detach().float().cpu().nan_to_num().clamp(-4, 4).mean(0)


def _size(rate: float) -> int:
    return 2 ** math.ceil(math.log2(rate * WINDOW * 2))


def _bins(rate: float) -> int:
    """Number of bins of a spectrum that are looked at."""
    return min(_size(rate) // 2, math.ceil(1.05 * TOP * _size(rate) / rate)) + 1


def _spectrum(wave: Tensor, rate: float) -> Tensor:
    """Magnitudes (bins, F)."""
    window, hop = torch.hann_window(round(rate * WINDOW)), max(round(rate * HOP), len(wave) // FRAMES)
    spectrum = torch.stft(wave, _size(rate), hop, len(window), window, pad_mode="constant", return_complex=True)
    return spectrum[: _bins(rate)].abs()


def _loudness(wave: Tensor, rate: float, window: float, step: int) -> Tensor:
    """Root mean square (F,) in Hann windows centred at multiples of `step` samples."""
    half = round(rate * window / 2)
    kernel = torch.hann_window(2 * half + 3, periodic=False)[1:-1]
    frames = torch.nn.functional.pad(wave.square(), (half, half)).unfold(0, 2 * half + 1, step)
    return (frames @ (kernel / kernel.sum())).clamp_min(0).sqrt()


def _normal(vectors: Tensor, dim: int) -> Tensor:
    centred = vectors - vectors.mean(dim, keepdim=True)
    return centred / centred.norm(dim=dim, keepdim=True).clamp_min(1e-6)
