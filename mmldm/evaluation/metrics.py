"""Distances between media and their reconstructions: a batch in, one number per sample out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

__all__ = ["log_spectral_distance", "mean_absolute_error", "psnr", "ssim", "stft_distance"]


def _same(x: Tensor, y: Tensor, least: int) -> None:
    if x.shape != y.shape or x.ndim < least:
        raise ValueError(
            f"wanted two batches of one shape with at least {least} axes, got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def mean_absolute_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of (B, …): (B,)."""
    _same(x, y, 2)
    return (x.float() - y.float()).abs().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of (B, …), `peak` being the width of the range: 2 for [-1, 1]; at most 100: (B,)."""
    _same(x, y, 2)
    error = (x.float() - y.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error.clamp_min(peak**2 * 1e-10))


def ssim(x: Tensor, y: Tensor, peak: float = 2.0, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of (B, C, H, W), or of (B, C, T, H, W) frame by frame, in [-1, 1]: (B,).

    Gaussian windows wholly inside the picture, K1 = 0.01, K2 = 0.03 (Wang et al., 2004, eq. 13). A picture smaller than the
    window gets the largest odd window that fits.
    """
    _same(x, y, 4)
    size = min(window, *x.shape[-2:])
    size -= 1 - size % 2
    grid = torch.arange(size, dtype=torch.float32, device=x.device) - size // 2
    kernel = torch.exp(-0.5 * (grid / sigma) ** 2)
    kernel = kernel / kernel.sum()

    def smooth(z: Tensor) -> Tensor:
        return conv2d(conv2d(z, kernel[None, None, None, :]), kernel[None, None, :, None])

    a, b = (z.float().reshape(-1, 1, *z.shape[-2:]) for z in (x, y))
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.reshape(len(x), -1).mean(1)


def _magnitudes(x: Tensor, n_fft: int) -> Tensor:
    """(B, C, T) -> (B * C, bins, frames)."""
    flat = x.float().reshape(-1, x.shape[-1])
    flat = torch.nn.functional.pad(flat, (0, max(0, n_fft - flat.shape[-1])))
    window = torch.hann_window(n_fft, device=x.device)
    return torch.stft(flat, n_fft, n_fft // 4, window=window, center=True, pad_mode="constant", return_complex=True).abs()


def log_spectral_distance(x: Tensor, y: Tensor, n_fft: int = 1024, floor: float = 1e-4) -> Tensor:
    """Log-spectral distance in dB of waveforms (B, C, T): (B,).

    Root mean square over frequency of the difference of log power spectra, mean over frames and channels (Gray and Markel,
    1976); magnitudes below `floor` times those of a full-scale sine count as `floor`.
    """
    _same(x, y, 3)
    least = floor * n_fft / 4
    a, b = (20 * torch.log10(_magnitudes(z, n_fft).clamp_min(least)) for z in (x, y))
    return (a - b).square().mean(1).sqrt().reshape(len(x), -1).mean(1)


def stft_distance(x: Tensor, y: Tensor, sizes: Sequence[int] = (256, 512, 1024, 2048)) -> Tensor:
    """Multi-resolution STFT distance of waveforms (B, C, T): spectral convergence plus L1 of log magnitudes, y true: (B,).

    Mean over the window sizes (Yamamoto et al., 2020, Parallel WaveGAN, eq. 3-5); blind to phase.
    """
    _same(x, y, 3)
    total = torch.zeros(len(x), device=x.device)
    for n_fft in sizes:
        a, b = (_magnitudes(z, n_fft).reshape(len(x), -1) for z in (x, y))
        least = 1e-5 * n_fft / 4
        convergence = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(least * math.sqrt(b.shape[1]))
        total = total + convergence + (a.clamp_min(least).log() - b.clamp_min(least).log()).abs().mean(1)
    return total / len(sizes)
