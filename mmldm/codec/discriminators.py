"""Discriminators for adversarial codec training: of patches on grids of rank 1 to 3, of periods and spectra of waveforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from mmldm.codec.spectral_losses import magnitudes

__all__ = ["PatchDiscriminator", "PeriodDiscriminator", "ResolutionDiscriminator"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Judged = tuple[list[Tensor], list[Tensor]]


class PatchDiscriminator(nn.Module):
    """Judges patches of a grid (B, C, *S) of any size: `layers` convolutions of stride 2, two of stride 1.

    Width `width`, doubled by layer up to 8 times. PatchGAN (arXiv 1611.07004, section 3.2.2) with weight norm in place of batch
    norm: no item depends on another. Gives one map of scores (B, 1, *S') and the activations before it.
    """

    def __init__(self, rank: int, channels: int, width: int = 64, layers: int = 3):
        super().__init__()
        if rank not in (1, 2, 3) or min(channels, width, layers) < 1:
            raise ValueError(f"wanted rank 1, 2 or 3 and channels, width, layers >= 1, got {rank}, {channels, width, layers}")
        self.rank, self.channels = rank, channels
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        conv = _CONVS[rank - 1]
        halving = zip([channels, *widths], widths[:-1], strict=False)
        self.convs = nn.ModuleList(weight_norm(conv(before, after, 4, 2, 1)) for before, after in halving)
        self.convs.append(weight_norm(conv(widths[-2], widths[-1], 3, 1, 1)))
        self.score = weight_norm(conv(widths[-1], 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Judged:
        _checked(x, self.rank, self.channels)
        features = []
        for conv in self.convs:
            if conv.stride[0] == 2:
                x = F.pad(x, [e for n in reversed(x.shape[2:]) for e in (0, n % 2)])
            x = F.leaky_relu(conv(x), 0.2)
            features.append(x)
        return [self.score(x)], features


class PeriodDiscriminator(nn.Module):
    """Judges a waveform (B, C, T) folded at each of `periods`, completed by silence to whole periods.

    HiFi-GAN's multi-period discriminator (arXiv 2010.05646, section 2.3): per period, convolutions of 5 samples with stride 3
    along the fold, width `width` times 1, 4, 16, 32, 32. Gives one score map per period.
    """

    def __init__(self, periods: Sequence[int] = (2, 3, 5, 7, 11), channels: int = 1, width: int = 32):
        super().__init__()
        if not periods or min(periods) < 1 or min(channels, width) < 1:
            raise ValueError(f"wanted periods, channels and width >= 1, got {list(periods)}, {channels}, {width}")
        self.periods, self.channels = tuple(periods), channels
        self.parts = nn.ModuleList(
            _Stack([channels, width, 4 * width, 16 * width, 32 * width, 32 * width], [(5, 1)] * 5, [(3, 1)] * 4 + [(1, 1)])
            for _ in self.periods
        )

    def forward(self, x: Tensor) -> Judged:
        _checked(x, 1, self.channels)
        folded = [F.pad(x, (0, -x.shape[-1] % p)).unflatten(-1, (-1, p)) for p in self.periods]
        return _all(self.parts, folded)


class ResolutionDiscriminator(nn.Module):
    """Judges the magnitudes of short-time spectra of a waveform (B, C, T), one per window length in `sizes`.

    UnivNet's multi-resolution discriminator (arXiv 2106.07889, section 2.2), hops of a quarter window: five convolutions over
    (frames, bins), three of them with stride 2 along the bins. The spectra are computed in float32, white noise of
    variance 1 giving magnitudes about 1.
    """

    def __init__(self, sizes: Sequence[int] = (2048, 1024, 512), channels: int = 1, width: int = 32):
        super().__init__()
        if not sizes or min(sizes) < 16 or min(channels, width) < 1:
            raise ValueError(f"wanted sizes >= 16, channels and width >= 1, got {list(sizes)}, {channels}, {width}")
        self.sizes, self.channels = tuple(sizes), channels
        kernels, strides = [(3, 9)] * 4 + [(3, 3)], [(1, 1)] + [(1, 2)] * 3 + [(1, 1)]
        self.parts = nn.ModuleList(_Stack([channels, *[width] * 5], kernels, strides) for _ in self.sizes)

    def forward(self, x: Tensor) -> Judged:
        _checked(x, 1, self.channels)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            spectra = [magnitudes(wide, n).transpose(2, 3) * (8 / (3 * n)) ** 0.5 for n in self.sizes]
        return _all(self.parts, spectra)


class _Stack(nn.Module):
    """Convolutions over a plane (B, C, rows, columns) with leaky rectifiers, then a map of scores."""

    def __init__(self, widths: Sequence[int], kernels: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]):
        super().__init__()
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, kernel, stride, [k // 2 for k in kernel]))
            for before, after, kernel, stride in zip(widths, widths[1:], kernels, strides, strict=False)
        )
        last = (3, kernels[-1][1])
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, last, 1, [k // 2 for k in last]))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.score(x), features


def _all(parts: nn.ModuleList, inputs: Sequence[Tensor]) -> Judged:
    judged = [part(x) for part, x in zip(parts, inputs, strict=True)]
    return [score for score, _ in judged], [feature for _, features in judged for feature in features]


def _checked(x: Tensor, rank: int, channels: int) -> None:
    if x.ndim != rank + 2 or x.shape[1] != channels or min(x.shape[2:]) < 1:
        raise ValueError(f"wanted (B, {channels}, *S) with {rank} grid axes, got {tuple(x.shape)}")
