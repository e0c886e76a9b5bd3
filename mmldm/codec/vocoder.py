"""From log-mel features back to a waveform: the interface, the inverse transform that vocoders share, and Griffin-Lim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm import keyed
from mmldm.codec.mel import LogMel

__all__ = ["GriffinLim", "Vocoder", "inverse_stft"]


class Vocoder(nn.Module, ABC):
    """Log-mel features -> waveform, for the front end `mel`.

    `reach`: frames on either side of a frame that the samples of its hop depend on; None is the whole signal.
    """

    mel: LogMel
    reach: int | None = None

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, frames, bins) of `mel` -> waveform (B, C, frames·hop); channels do not see each other."""

    def check(self, mel: LogMel) -> None:
        """Raise ValueError unless `mel` is this vocoder's own front end."""
        if mel.digest() != self.mel.digest():
            raise ValueError(f"wanted a vocoder of the codec's own mel front end {mel}, got one of {self.mel}")


class GriffinLim(Vocoder):
    """Features (B, C, frames, bins) -> waveform (B, C, frames·hop) without training: fast Griffin-Lim on inverted mels.

    Linear magnitudes are the non-negative least-squares solution of `inversion` multiplicative updates (Lee and Seung 2001)
    from the filters' pseudo-inverse; phases by Perraudin et al. 2013 with `momentum`. Every frame of every item starts from
    the same phases, keyed by `seed`: the result is a function of the features alone, wherever they stand, and as each
    iteration reaches only the frames that overlap, windows of `reach` are exact. (Features that never change at all thus
    become sound of the hop's period.)
    """

    def __init__(self, mel: LogMel, iterations: int = 32, momentum: float = 0.99, inversion: int = 30, seed: int = 0):
        super().__init__()
        if iterations < 0 or not 0 <= momentum < 1:
            raise ValueError(f"wanted iterations >= 0 and 0 <= momentum < 1, got {iterations} and {momentum}")
        self.mel, self.iterations, self.momentum, self.inversion, self.seed = mel, iterations, momentum, inversion, seed
        self.reach = iterations * (-(-mel.n_fft // mel.hop) - 1) + -(-(mel.n_fft - mel.hop) // (2 * mel.hop))
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
        frames, size = magnitudes.shape[1:]
        start = torch.rand(size, generator=keyed.generator("griffin-lim", self.seed)) * (2 * pi)
        spectrum = torch.polar(magnitudes, start.to(magnitudes).expand_as(magnitudes))
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
        return inverse_stft(spectrum, self.mel.window.to(spectrum.real), self.mel.hop)


def inverse_stft(spectrum: Tensor, window: Tensor, hop: int) -> Tensor:
    """Spectra (N, frames, n/2 + 1) -> waveform (N, (frames - 1)·hop + n): overlap-add divided by the window's energy.

    The least-squares inverse of Griffin and Lim 1984, eq. 6, defined at the edges too; differentiable.
    """
    n, frames = len(window), spectrum.shape[1]
    length = (frames - 1) * hop + n
    pieces = torch.fft.irfft(spectrum, n=n) * window
    energy = window.square().expand(1, frames, n)
    return _overlap_add(pieces, length, hop) / _overlap_add(energy, length, hop).clamp_min(1e-4)


def _overlap_add(pieces: Tensor, length: int, hop: int) -> Tensor:
    """(N, frames, n) -> (N, length)."""
    columns, n = pieces.transpose(1, 2), pieces.shape[-1]
    return F.fold(columns, (1, length), (1, n), stride=(1, hop)).flatten(1)
