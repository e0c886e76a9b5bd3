"""Regularisers: how an encoder's output becomes a latent that a diffusion model can learn, and what that costs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mmldm.interfaces import Posterior

__all__ = ["KL", "BoundedNoise", "Regulariser"]


class Regulariser(nn.Module, ABC):
    """How the encoder's output becomes a latent, and what that costs: `forward(posterior)` gives weighted loss terms.

    `heads` is how many numbers the encoder gives per latent channel.
    """

    heads: int = 1

    @abstractmethod
    def posterior(self, head: Tensor) -> Posterior:
        """Encoder output (B, heads·D, *L) -> Posterior of (B, D, *L)."""

    @abstractmethod
    def forward(self, posterior: Posterior) -> dict[str, Tensor]:
        """The regulariser's weighted terms, means over cells."""


class BoundedNoise(Regulariser):
    """A latent softly bounded to ±bound with noise of one fixed `std`: no learned variance, no weight to tune.

    `head / sqrt(1 + (head/bound)²)` leaves small values as they are and saturates slowly; the bound fixes the scale that `std`
    is measured against. At the reconstruction of a KL it loses less to errors of the latent, which a sampler always makes.
    """

    def __init__(self, std: float = 0.1, bound: float = 3.0):
        super().__init__()
        if std < 0 or bound <= 0:
            raise ValueError(f"wanted std >= 0 and bound > 0, got std {std} and bound {bound}")
        self.std, self.bound = std, bound

    def posterior(self, head: Tensor) -> Posterior:
        mean = head * torch.rsqrt(1 + (head / self.bound).square())
        return Posterior(mean, mean.new_full((), self.std).expand_as(mean) if self.std else None)

    def forward(self, posterior: Posterior) -> dict[str, Tensor]:
        return {}


class KL(Regulariser):
    """A Gaussian latent with learned std and `weight` times its divergence from N(0, 1), nats per latent number.

    A body whose head begins at zero begins with a std of 0.05.
    """

    heads = 2
    start = -3.0  # of log std

    def __init__(self, weight: float = 1e-4):
        super().__init__()
        if weight < 0:
            raise ValueError(f"wanted a weight >= 0, got {weight}")
        self.weight = weight

    def posterior(self, head: Tensor) -> Posterior:
        mean, log_std = head.chunk(2, 1)
        return Posterior(mean, torch.exp((log_std + self.start).clamp(-12.0, 4.0)))

    def forward(self, posterior: Posterior) -> dict[str, Tensor]:
        variance = posterior.std.square()
        return {"kl": self.weight * 0.5 * (posterior.mean.square() + variance - 1 - variance.log()).mean()}
