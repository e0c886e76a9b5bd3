"""What a latent space is like, from the latents of many media: scale, shape, dead channels, redundancy, smoothness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmldm.evaluation.frechet import Moments
from mmldm.interfaces import Axis

__all__ = ["LatentStatistics"]

SPAN, BINS = 6.0, 60  # of the histogram, in the whitening's standard deviations


class LatentStatistics:
    """Gathers latents (B, D, *L) of a grid with these axes, whatever the batches, in float64.

    `whiten` maps them to what a diffusion model sees: smoothness and histogram are of that.
    """

    def __init__(self, axes: Sequence[Axis], whiten: Callable[[Tensor], Tensor] | None = None):
        self._whiten = whiten or (lambda z: z)
        self._names = [axis.name for axis in axes]
        self._cells, self._powers = Moments(), torch.zeros(0)
        self._smooth = {name: torch.zeros(4, dtype=torch.float64) for name in self._names}
        self._counts = torch.zeros(BINS, dtype=torch.float64)

    def update(self, z: Tensor) -> None:
        """Add a batch of latents."""
        z, seen = (y.detach().double().cpu() for y in (z, self._whiten(z)))
        rows = z.movedim(1, -1).flatten(0, -2)
        self._cells.update(rows)
        powers = torch.stack([rows.pow(k).sum(0) for k in (1, 2, 3, 4)])
        self._powers = self._powers + powers if len(self._powers) else powers
        for axis, name in enumerate(self._names):
            self._smooth[name] += _smoothness(seen, 2 + axis)
        self._counts += torch.histc(seen.clamp(-SPAN, SPAN), BINS, -SPAN, SPAN)

    def channels(self) -> dict[str, list[float]]:
        """Per channel: mean, std, excess kurtosis (0 for a Gaussian; heavy tails are above)."""
        n, (m1, m2, m3, m4) = self._cells.n, self._powers / self._cells.n
        variance = (m2 - m1.square()).clamp_min(1e-30)
        fourth = m4 - 4 * m1 * m3 + 6 * m1.square() * m2 - 3 * m1.pow(4)
        kurtosis = torch.where(variance > 1e-12, fourth / variance.square() - 3, torch.zeros_like(variance))
        return {"mean": m1.tolist(), "std": (variance * n / max(1, n - 1)).sqrt().tolist(), "kurtosis": kurtosis.tolist()}

    def summary(self) -> dict[str, float]:
        """Numbers of the whole latent.

        `dead channels` have a std below 1 % of the root mean square; `effective dimension` is (Σλ)²/Σλ² over the eigenvalues of
        the channels' covariance; per axis, `neighbours` is the correlation of neighbouring cells and `low half` the share of
        spectral energy in the lower half of the frequencies (about 0 and 0.5 for white noise, 1 and 1 for the smoothest).
        """
        found = self.channels()
        std = torch.tensor(found["std"], dtype=torch.float64)
        scale = std.square().mean().sqrt()
        values = torch.linalg.eigvalsh(self._cells.covariance).clamp_min(0)
        numbers = {
            "channels": float(len(std)),
            "std": float(scale),
            "least std": float(std.min()),
            "largest std": float(std.max()),
            "kurtosis": float(torch.tensor(found["kurtosis"]).mean()),
            "dead channels": float((std < 0.01 * scale).sum()),
            "effective dimension": float(values.sum().square() / values.square().sum().clamp_min(1e-30)),
        }
        for name, (products, energy, low, total) in self._smooth.items():
            if energy > 0:
                numbers |= {f"neighbours {name}": float(products / energy), f"low half {name}": float(low / total)}
        return numbers

    def histogram(self) -> tuple[list[float], list[float]]:
        """Middles of the bins and density, in whitened units; the ends hold what lies beyond."""
        width = 2 * SPAN / BINS
        middles = [-SPAN + width * (i + 0.5) for i in range(BINS)]
        return middles, (self._counts / self._counts.sum().clamp_min(1) / width).tolist()

    def table(self) -> list[list[Any]]:
        """Rows of channel, mean, std, kurtosis."""
        found = self.channels()
        columns = zip(found["mean"], found["std"], found["kurtosis"], strict=True)
        return [[i, *(f"{value:.3f}" for value in row)] for i, row in enumerate(columns)]


def _smoothness(z: Tensor, dim: int) -> Tensor:
    """Sums over a batch: products of neighbours, their energy, spectral energy in the lower half, in all; zeros for one cell.

    The frequency in the middle counts half.
    """
    n = z.shape[dim]
    if n < 2:
        return torch.zeros(4, dtype=torch.float64)
    a, b = z.narrow(dim, 0, n - 1), z.narrow(dim, 1, n - 1)
    power = (a.square() + b.square()).sum() / 2
    energy = torch.fft.fft(z, dim=dim).abs().square()
    position = torch.fft.fftfreq(n).abs()
    share = torch.where(position < 0.2499, 1.0, torch.where(position > 0.2501, 0.0, 0.5)).double()
    shape = [n if d == dim else 1 for d in range(z.ndim)]
    return torch.stack([(a * b).sum(), power, (energy * share.reshape(shape)).sum(), energy.sum()])
