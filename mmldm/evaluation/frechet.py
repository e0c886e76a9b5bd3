"""Fréchet distance between two sets of embeddings, from means and covariances that are gathered batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance"]


class Moments:
    """Mean (E,) and covariance (E, E) in float64 of rows that come in batches; `n` counts them."""

    def __init__(self) -> None:
        self.n, self.mean, self._scatter = 0, torch.zeros(0), torch.zeros(0)

    def update(self, rows: Tensor) -> None:
        """Add a batch (B, E)."""
        rows = rows.detach().double().cpu()
        if rows.ndim != 2 or (self.n and rows.shape[1] != len(self.mean)):
            raise ValueError(f"wanted a batch (B, {len(self.mean) if self.n else 'E'}), got {tuple(rows.shape)}")
        if not len(rows):
            return
        n, mean = len(rows), rows.mean(0)
        scatter = (rows - mean).T @ (rows - mean)
        if self.n:  # Chan et al., 1983: no cancellation, whatever the batches
            gap, total = mean - self.mean, self.n + n
            scatter = scatter + self._scatter + torch.outer(gap, gap) * (self.n * n / total)
            mean = self.mean + gap * (n / total)
        self.n, self.mean, self._scatter = self.n + n, mean, scatter

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance; raises ValueError below two rows."""
        if self.n < 2:
            raise ValueError(f"wanted at least two rows, got {self.n}")
        return self._scatter / (self.n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|² + tr(C_a + C_b - 2 (C_a^½ C_b C_a^½)^½): the squared Wasserstein-2 distance of two Gaussians, at least 0.

    Dowson and Landau, 1982; Heusel et al., 2017 (arXiv 1706.08500, eq. 6). The roots are taken by eigenvalues of symmetric
    matrices. Biased upwards where n is not far above the embedding's width: compare at equal n.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"wanted embeddings of one width, got {len(a.mean)} and {len(b.mean)}")
    root = _root(a.covariance)
    inner = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues (rounding aside)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
