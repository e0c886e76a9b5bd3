"""BigVGAN: HiFi-GAN's skeleton with periodic nonlinearities that do not alias."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.codec.hifigan import Upsampling
from mmldm.codec.mel import LogMel
from mmldm.nn.snake import Snake

__all__ = ["AliasFree", "BigVGAN", "low_pass"]


class AliasFree(nn.Module):
    """A nonlinearity at twice the rate, between low-pass filters of `taps` (BigVGAN, arXiv 2206.04658, section 3.3).

    Beyond the ends the outermost sample is repeated.
    """

    def __init__(self, act: nn.Module, taps: int = 12):
        super().__init__()
        if taps % 2:
            raise ValueError(f"wanted filter taps in pairs, got {taps}")
        self.act, self.taps, self.seen = act, taps, taps // 2 - 1
        self.register_buffer("filter", low_pass(0.25, 0.3, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, T) -> the same."""
        channels, taps, edge = x.shape[1], self.taps, self.seen
        weight = self.filter.to(x).expand(channels, 1, taps)
        x = 2 * F.conv_transpose1d(F.pad(x, (edge, edge), mode="replicate"), weight, stride=2, groups=channels)
        x = self.act(x[..., 3 * edge : -3 * edge])
        return F.conv1d(F.pad(x, (edge, edge + 1), mode="replicate"), weight, stride=2, groups=channels)


class BigVGAN(Upsampling):
    """The BigVGAN generator (arXiv 2206.04658): features (B, C, frames, bins) -> waveform (B, C, frames·hop).

    The defaults are BigVGAN-v2's at hop 256. `own_beta` and `logarithmic` describe its Snake; without `tanh` the waveform is
    clamped instead.
    """

    def __init__(
        self,
        mel: LogMel,
        rates: Sequence[int] = (4, 4, 2, 2, 2, 2),
        kernels: Sequence[int] = (8, 8, 4, 4, 4, 4),
        channels: int = 1536,
        block_kernels: Sequence[int] = (3, 7, 11),
        block_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        paired: bool = True,
        own_beta: bool = True,
        logarithmic: bool = True,
        tanh: bool = False,
        final_bias: bool = False,
    ):
        def periodic(width: int) -> nn.Module:
            return AliasFree(Snake(width, own_beta, logarithmic))

        super().__init__(
            mel,
            rates,
            kernels,
            channels,
            block_kernels,
            block_dilations,
            paired,
            before=lambda width: nn.Identity(),
            inside=periodic,
            after=periodic,
            bounded=torch.tanh if tanh else nn.Hardtanh(),
            final_bias=final_bias,
        )


def low_pass(cutoff: float, half_width: float, taps: int) -> Tensor:
    """A sinc of `cutoff` under a Kaiser window, of sum 1: (taps,), an even number; all frequencies in cycles per sample.

    The window follows Kaiser's formulas (Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.3) for a
    transition of 4·half_width.
    """
    attenuation = 2.285 * (taps // 2 - 1) * pi * 4 * half_width + 7.95
    soft = max(attenuation - 21, 0)
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else 0.5842 * soft**0.4 + 0.07886 * soft
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    place = torch.arange(taps, dtype=torch.float64) + 0.5 - taps // 2
    response = window * torch.sinc(2 * cutoff * place)
    return (response / response.sum()).float()
