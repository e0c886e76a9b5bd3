"""Vocos: a vocoder whose layers all run at the frame rate; an inverse Fourier transform makes the samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.codec.mel import LogMel
from mmldm.codec.vocoder import Vocoder, inverse_stft

__all__ = ["ConvNeXtBlock", "Vocos"]


class ConvNeXtBlock(nn.Module):
    """x + scale · linear(gelu(linear(norm(depthwise convolution of x)))), frame by frame but for the convolution.

    The one-dimensional ConvNeXt block (arXiv 2201.03545) with a learned scale per channel that starts at `scale`.
    """

    def __init__(self, width: int, hidden: int, kernel: int = 7, scale: float = 1.0):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, frames) -> the same."""
        y = self.norm(self.depthwise(x).transpose(1, 2))
        return x + (self.scale * self.narrow(F.gelu(self.widen(y)))).transpose(1, 2)


class Vocos(Vocoder):
    """Features (B, C, frames, bins) -> waveform (B, C, frames·hop) by ConvNeXt blocks and an inverse STFT (arXiv 2306.00814).

    The network gives log-magnitude and phase of each frame's spectrum; the phase is not constrained, it wraps by itself. A
    magnitude is at most the window's sum, what a signal within ±1 can have. Window and hop are those of `mel`; the transform
    runs in float32 or wider. Beyond the ends lie zeros.
    """

    def __init__(self, mel: LogMel, width: int = 512, blocks: int = 8, hidden: int | None = None, kernel: int = 7):
        super().__init__()
        if kernel % 2 == 0 or blocks < 1:
            raise ValueError(f"wanted an odd kernel and blocks >= 1, got kernel {kernel} and blocks {blocks}")
        self.mel, self.edge = mel, (mel.n_fft - mel.hop) // 2
        self.reach = kernel // 2 * (blocks + 1) + -(-self.edge // mel.hop)
        self.embed = nn.Conv1d(mel.bins, width, kernel, padding=kernel // 2)
        self.norm_in, self.norm_out = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, hidden or 3 * width, kernel, 1 / blocks) for _ in range(blocks)))
        self.head = nn.Linear(width, mel.n_fft + 2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        x = self.embed(features.flatten(0, 1).transpose(1, 2))
        x = self.blocks(self.norm_in(x.transpose(1, 2)).transpose(1, 2))
        x = self.norm_out(x.transpose(1, 2))
        with torch.autocast(x.device.type, enabled=False):
            head = self.head(x.to(self.head.weight.dtype))
            return self.waveform(head.to(torch.promote_types(head.dtype, torch.float32))).unflatten(0, features.shape[:2])

    def waveform(self, head: Tensor) -> Tensor:
        """Log-magnitudes and phases (N, frames, n_fft + 2) -> waveform (N, frames·hop)."""
        log_magnitude, phase = head.chunk(2, -1)
        window = self.mel.window.to(head)
        magnitude = torch.exp(log_magnitude).clamp_max(self.mel.n_fft / 2)
        waveform = inverse_stft(torch.polar(magnitude, phase), window, self.mel.hop)
        return waveform[:, self.edge : self.edge + head.shape[1] * self.mel.hop]
