"""Reconstruction terms that compare waveforms by their short-time spectra: `term(x_hat, x) -> weighted scalar`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.codec.mel import slaney_bank

__all__ = ["MultiScaleMel", "MultiScaleSTFT", "magnitudes", "stft_distance"]


def magnitudes(x: Tensor, size: int) -> Tensor:
    """Waveform (B, C, T) -> magnitudes (B, C, size/2 + 1, frames): Hann windows of `size`, hops of a quarter of it."""
    flat = F.pad(x.flatten(0, 1), (0, max(0, size - x.shape[-1])))
    window = torch.hann_window(size, dtype=x.dtype, device=x.device)
    spectrum = torch.stft(flat, size, size // 4, window=window, center=True, pad_mode="constant", return_complex=True)
    return spectrum.abs().unflatten(0, x.shape[:2])


def stft_distance(x: Tensor, y: Tensor, sizes: Sequence[int] = (256, 512, 1024, 2048)) -> Tensor:
    """Multi-resolution STFT distance of waveforms (B, C, T): spectral convergence plus L1 of log magnitudes, y true: (B,).

    Mean over the window sizes (Yamamoto et al., 2020, Parallel WaveGAN, eq. 3-5); blind to phase. Float32 or wider.
    """
    if x.shape != y.shape or x.ndim != 3:
        raise ValueError(f"wanted two waveforms (B, C, T) of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (x, y))
    distances = []
    for size in sizes:
        a, b = (magnitudes(z, size).flatten(1) for z in (x, y))
        least = 1e-5 * size / 4
        convergence = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(least * math.sqrt(b.shape[1]))
        distances.append(convergence + (a.clamp_min(least).log() - b.clamp_min(least).log()).abs().mean(1))
    return torch.stack(distances).mean(0)


class MultiScaleSTFT(nn.Module):
    """weight · mean over the batch of `stft_distance` at windows of `sizes`, of both sides and of their sum and difference.

    Waveforms (B, C, T); sum and difference where C = 2 (Steinmetz et al., 2020, arXiv 2010.10291, section 3).
    """

    def __init__(self, weight: float = 1.0, sizes: Sequence[int] = (512, 1024, 2048)):
        super().__init__()
        self.weight, self.sizes = weight, _windows(sizes)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.weight * stft_distance(_heard(x_hat), _heard(x), self.sizes).mean()


class MultiScaleMel(nn.Module):
    """weight · sum over scales of the mean L1 error of log10 mel magnitudes of a waveform (B, C, T) at `rate` hertz.

    One scale per window length in `sizes`, with as many mel bins as `bins` says, hops of a quarter window, magnitudes clamped
    at 1e-5; also of sum and difference where C = 2. The weight of 15 belongs to these seven scales (DAC, arXiv 2306.06546,
    section 3.4; BigVGAN-v2).
    """

    def __init__(
        self,
        rate: int,
        weight: float = 15.0,
        sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
        bins: Sequence[int] = (5, 10, 20, 40, 80, 160, 320),
    ):
        super().__init__()
        if len(sizes) != len(bins) or min(bins, default=0) < 1:
            raise ValueError(f"wanted one number of bins per window length, got {list(bins)} for {list(sizes)}")
        self.weight, self.sizes = weight, _windows(sizes)
        for size, count in zip(sizes, bins, strict=True):
            self.register_buffer(f"bank{size}", slaney_bank(rate, size, count, 0.0, rate / 2), persistent=False)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        x_hat, x = _heard(x_hat), _heard(x)
        errors = [(self._log_mel(x_hat, size) - self._log_mel(x, size)).abs().mean() for size in self.sizes]
        return self.weight * torch.stack(errors).sum()

    def _log_mel(self, x: Tensor, size: int) -> Tensor:
        bank = getattr(self, f"bank{size}").to(x)
        return (magnitudes(x, size).transpose(2, 3) @ bank).clamp_min(1e-5).log10()


def _windows(sizes: Sequence[int]) -> tuple[int, ...]:
    if not sizes or min(sizes) < 16 or len(set(sizes)) < len(sizes):
        raise ValueError(f"wanted different window lengths of at least 16 samples, got {list(sizes)}")
    return tuple(sizes)


def _heard(x: Tensor) -> Tensor:
    """A stereo waveform with the sum and the difference of its sides, each of equal power for unrelated sides."""
    if x.ndim != 3:
        raise ValueError(f"wanted a waveform (B, C, T), got {tuple(x.shape)}")
    if x.shape[1] != 2:
        return x
    left, right = x.unbind(1)
    return torch.cat([x, torch.stack([left + right, left - right], 1) / math.sqrt(2)], 1)
