"""The log-mel front end: one frozen object that codec and vocoder share."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LogMel", "slaney_bank"]

_FLOOR = 1e-5


class LogMel(nn.Module):
    """Waveform (B, C, T) -> log-mel (B, C, frames, bins) of about [-1, 1]; frames = T/hop, the last hop completed by silence.

    Hann window of n_fft, magnitude, Slaney filters, natural logarithm clamped at 1e-5, (n_fft - hop)/2 samples reflected at
    each end instead of centring (HiFi-GAN's front end, arXiv 2010.05646); then the fixed affine that takes [low, high] to
    [-1, 1].
    """

    def __init__(
        self,
        rate: int = 16000,
        n_fft: int = 1024,
        hop: int = 256,
        bins: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        low: float = -11.5129,
        high: float = 3.0,
    ):
        super().__init__()
        f_max = rate / 2 if f_max is None else f_max
        if not 0 <= f_min < f_max <= rate / 2:
            raise ValueError(f"wanted 0 <= f_min < f_max <= {rate / 2}, got f_min {f_min} and f_max {f_max}")
        if (n_fft - hop) % 2 or not 0 < hop <= n_fft:
            raise ValueError(f"wanted 0 < hop <= n_fft with n_fft - hop even, got hop {hop} and n_fft {n_fft}")
        self.rate, self.n_fft, self.hop, self.bins = rate, n_fft, hop, bins
        self.f_min, self.f_max, self.low, self.high = float(f_min), float(f_max), float(low), float(high)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("bank", slaney_bank(rate, n_fft, bins, self.f_min, self.f_max), persistent=False)

    def extra_repr(self) -> str:
        spans = f"f={self.f_min:g}..{self.f_max:g} Hz, ln={self.low:g}..{self.high:g}"
        return f"rate={self.rate}, n_fft={self.n_fft}, hop={self.hop}, bins={self.bins}, {spans}"

    def digest(self) -> str:
        """A hash of every number that defines the features: equal digests are interchangeable."""
        numbers = (self.rate, self.n_fft, self.hop, self.bins, self.f_min, self.f_max, self.low, self.high, _FLOOR)
        return hashlib.blake2b(repr(numbers).encode(), digest_size=8).hexdigest()

    def frames(self, length: int) -> int:
        """Frames of a waveform of `length` samples."""
        return -(-length // self.hop)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(torch.log(self.magnitudes(x).clamp_min(_FLOOR)))

    def magnitudes(self, x: Tensor) -> Tensor:
        """Waveform (B, C, T) -> mel magnitudes (B, C, frames, bins), linear scale; float32 or wider."""
        if x.ndim != 3 or x.shape[-1] < 1:
            raise ValueError(f"wanted a waveform (B, C, T) of at least one sample, got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return self.spectrum(self.padded(x).flatten(0, 1)).unflatten(0, x.shape[:2]) @ self.bank.to(x)

    def spectrum(self, x: Tensor) -> Tensor:
        """Padded waveform (N, T') -> magnitudes (N, frames, n_fft/2 + 1)."""
        s = torch.stft(x, self.n_fft, self.hop, window=self.window.to(x), center=False, return_complex=True)
        return torch.sqrt(s.real.square() + s.imag.square() + 1e-9).transpose(1, 2)

    def padded(self, x: Tensor) -> Tensor:
        """(B, C, T) -> whole hops (silence after the end), reflected (n_fft - hop)/2 samples at both ends."""
        edge, length = (self.n_fft - self.hop) // 2, self.frames(x.shape[-1]) * self.hop
        whole = F.pad(x, (0, max(length, edge + 1) - x.shape[-1]))
        return F.pad(whole, (edge, edge), mode="reflect")[..., : length + 2 * edge]

    def scaled(self, log_mel: Tensor) -> Tensor:
        """Natural logarithm of magnitudes -> features of about [-1, 1]."""
        return (log_mel - self.low) * (2 / (self.high - self.low)) - 1

    def unscaled(self, features: Tensor) -> Tensor:
        """Features -> mel magnitudes, linear scale."""
        return torch.exp((features.clamp(-1, 1.5) + 1) * ((self.high - self.low) / 2) + self.low)


def slaney_bank(rate: int, n_fft: int, bins: int, f_min: float, f_max: float) -> Tensor:
    """Triangular filters of equal area on Slaney's scale (linear below 1 kHz, logarithmic above): (n_fft/2 + 1, bins)."""
    edges = _hertz(torch.linspace(_slaney(f_min), _slaney(f_max), bins + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    left, middle, right = (edges[i : bins + i] for i in range(3))
    rising = (frequencies[:, None] - left) / (middle - left)
    falling = (right - frequencies[:, None]) / (right - middle)
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (right - left)).float()


def _slaney(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp(math.log(6.4) / 27 * (mel - 15)))
