"""From log-mel features back to a waveform."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.codec.mel import LogMel

__all__ = ["GriffinLim"]


class GriffinLim(nn.Module):
    """Features (B, C, frames, bins) -> waveform (B, C, frames·hop) without training: fast Griffin-Lim on inverted mels.

    Linear magnitudes are the non-negative least-squares solution of `inversion` multiplicative updates (Lee and Seung 2001)
    from the filters' pseudo-inverse; phases by Perraudin et al. 2013 with `momentum`. Every item starts from the same
    phases, keyed by `seed`: the result is a function of its features alone. It needs the whole signal: no chunk equals a
    part of the whole.
    """

    def __init__(self, mel: LogMel, iterations: int = 32, momentum: float = 0.99, inversion: int = 30, seed: int = 0):
        super().__init__()
        if iterations < 0 or not 0 <= momentum < 1:
            raise ValueError(f"wanted iterations >= 0 and 0 <= momentum < 1, got {iterations} and {momentum}")
        self.mel, self.iterations, self.momentum, self.inversion, self.seed = mel, iterations, momentum, inversion, seed
        self.register_buffer("inverse", torch.linalg.pinv(mel.bank.double()).float(), persistent=False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            magnitudes = self.linear(
                self.mel.unscaled(features.to(torch.promote_types(features.dtype, torch.float32)))
            ).flatten(0, 1)
            return self._phases(magnitudes).unflatten(0, features.shape[:2])

    def linear(self, mel: Tensor) -> Tensor:
        """Mel magnitudes (..., frames, bins) -> linear magnitudes (..., frames, n_fft/2 + 1)."""
        bank, eps = self.mel.bank.to(mel), 1e-8
        x = (mel @ self.inverse.to(mel)).clamp_min(eps)
        target = mel @ bank.T
        for _ in range(self.inversion):
            x = x * target / (x @ bank @ bank.T).clamp_min(eps)
        return x

    def _phases(self, magnitudes: Tensor) -> Tensor:
        n, frames, size = magnitudes.shape
        start = torch.rand(frames, size, generator=keyed.generator("griffin-lim", self.seed)) * (2 * pi)
        spectrum = torch.polar(magnitudes, start.to(magnitudes).expand(n, -1, -1))
        waveform, previous = self._inverse(spectrum), torch.zeros_like(spectrum)
        for _ in range(self.iterations):
            rebuilt = self._forward(waveform)
            ahead = rebuilt + self.momentum * (rebuilt - previous)
            previous = rebuilt
            waveform = self._inverse(magnitudes * ahead / ahead.abs().clamp_min(1e-9))
        edge = (self.mel.n_fft - self.mel.hop) // 2
        return waveform[:, edge : edge + frames * self.mel.hop]

    def _forward(self, waveform: Tensor) -> Tensor:
        mel = self.mel
        return torch.stft(
            waveform, mel.n_fft, mel.hop, window=mel.window.to(waveform), center=False, return_complex=True
        ).transpose(1, 2)

    def _inverse(self, spectrum: Tensor) -> Tensor:
        """Overlap-add divided by the window's envelope: the least-squares inverse, defined at the edges too."""
        mel, frames = self.mel, spectrum.shape[1]
        window = mel.window.to(spectrum.real)
        pieces = torch.fft.irfft(spectrum, n=mel.n_fft) * window
        length = (frames - 1) * mel.hop + mel.n_fft
        energy = window.square().expand(1, frames, -1)
        return _overlap_add(pieces, length, mel.hop) / _overlap_add(energy, length, mel.hop).clamp_min(1e-4)


def _overlap_add(pieces: Tensor, length: int, hop: int) -> Tensor:
    """(N, frames, n) -> (N, length)."""
    columns, n = pieces.transpose(1, 2), pieces.shape[-1]
    return nn.functional.fold(columns, (1, length), (1, n), stride=(1, hop)).flatten(1)
