"""Distances between media and their reconstructions: a batch in, one number per sample out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from mmldm.codec.spectral_losses import magnitudes, stft_distance

__all__ = [
    "by_frame", "flicker", "log_spectral_distance", "mean_absolute_error", "motion_energy", "psnr", "si_sdr", "ssim",
    "stft_distance",
]  # fmt: skip


def _same(x: Tensor, y: Tensor, least: int) -> None:
    if x.shape != y.shape or x.ndim < least:
        raise ValueError(
            f"wanted two batches of one shape with at least {least} axes, got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def mean_absolute_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of (B, …): (B,)."""
    _same(x, y, 2)
    return (x.float() - y.float()).abs().flatten(1).mean(1)


# ---------------------------------------------------------------- pictures


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


# ---------------------------------------------------------------- waveforms


def log_spectral_distance(x: Tensor, y: Tensor, n_fft: int = 1024, floor: float = 1e-4) -> Tensor:
    """Log-spectral distance in dB of waveforms (B, C, T): (B,).

    Root mean square over frequency of the difference of log power spectra, mean over frames and channels (Gray and Markel,
    1976); magnitudes below `floor` times those of a full-scale sine count as `floor`.
    """
    _same(x, y, 3)
    least = floor * n_fft / 4
    a, b = (20 * torch.log10(magnitudes(z.float(), n_fft).clamp_min(least)) for z in (x, y))
    return (a - b).square().mean(2).sqrt().flatten(1).mean(1)


def si_sdr(x: Tensor, y: Tensor, most: float = 100.0) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB of waveforms (B, C, T), y true, mean over channels: (B,).

    Le Roux et al., 2019 (arXiv 1811.02508, eq. 5), within ±`most`; means are left in. Silence for silence gives `most`.
    """
    _same(x, y, 3)
    x, y = x.double(), y.double()
    target = (x * y).sum(-1, keepdim=True) / y.square().sum(-1, keepdim=True).clamp_min(1e-12) * y
    floor = 10 ** (-most / 10)
    signal, noise = target.square().sum(-1), (x - target).square().sum(-1)
    silent = (x.square().sum(-1) < 1e-12) & (y.square().sum(-1) < 1e-12)
    ratio = torch.where(silent, noise.new_tensor(1 / floor), signal / noise.clamp_min(1e-30))
    return (10 * torch.log10(ratio.clamp(floor, 1 / floor))).mean(1).float()


# ---------------------------------------------------------------- clips


def by_frame(metric: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """`metric` of each frame position of clips (B, C, T, H, W): (B, T)."""
    _same(x, y, 5)
    frames = [z.transpose(1, 2).flatten(0, 1) for z in (x, y)]
    return metric(*frames).reshape(len(x), x.shape[2])


def flicker(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring frames of (B, C, T, …), y true; 0 for one frame: (B,)."""
    _same(x, y, 3)
    if x.shape[2] < 2:
        return x.new_zeros(len(x), dtype=torch.float32)
    return mean_absolute_error(x.float().diff(dim=2), y.float().diff(dim=2))


def motion_energy(x: Tensor, y: Tensor, floor: float = 1e-4) -> Tensor:
    """Energy of the differences between neighbouring frames of (B, C, T, …) over that of y, in dB: (B,).

    Below 0 where motion is smeared, above where there is flicker; `floor`, a mean square that is hardly seen, is added to both.
    """
    _same(x, y, 3)
    if x.shape[2] < 2:
        return x.new_zeros(len(x), dtype=torch.float32)
    moved, wanted = (z.float().diff(dim=2).square().flatten(1).mean(1) + floor for z in (x, y))
    return 10 * torch.log10(moved / wanted)
