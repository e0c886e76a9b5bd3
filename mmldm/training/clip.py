"""Clipping of gradients by their norm: at a fixed limit, or at one that follows the norms seen so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["AdaptiveClip", "Clip"]


class Clip(nn.Module):
    """Scales the gradients of parameters, in place, so that their joint norm is at most `norm`; gives the norm before."""

    def __init__(self, norm: float):
        super().__init__()
        if norm <= 0:
            raise ValueError(f"wanted a norm > 0 to clip at, got {norm}")
        self.norm = norm

    def limit(self) -> float | Tensor:
        """The norm that the next gradients are clipped at."""
        return self.norm

    @torch.no_grad()
    def forward(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self.limit() / (norm + 1e-6)).clamp(max=1.0).to(norm))
        self.learn(norm)
        return norm

    def learn(self, norm: Tensor) -> None:
        """Take note of a norm that was met; a fixed limit has no need to."""


class AdaptiveClip(Clip):
    """Clips at the mean of the norms met plus `sigmas` of their standard deviations: rare spikes, and nothing else.

    Both are exponential averages with `decay` of the norms as they were clipped (after Open-Sora Plan, arXiv 2412.00131);
    the first `warmup` gradients are clipped at `norm`. The averages are buffers: they belong to the checkpoint.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, sigmas: float = 3.0, decay: float = 0.99, warmup: int = 50, norm: float = 1.0):
        super().__init__(norm)
        if sigmas <= 0 or not 0 < decay < 1 or warmup < 2:
            raise ValueError(f"wanted sigmas > 0, decay in (0, 1), warmup >= 2, got {sigmas}, {decay}, {warmup}")
        self.sigmas, self.decay, self.warmup = sigmas, decay, warmup
        for name in ("mean", "square", "count"):
            self.register_buffer(name, torch.zeros(()))

    def limit(self) -> Tensor:
        seen = 1 - self.decay**self.count
        mean, square = self.mean / seen, self.square / seen
        adaptive = mean + self.sigmas * (square - mean.square()).clamp_min(0).sqrt()
        return torch.where(self.count < self.warmup, self.norm, adaptive)

    def learn(self, norm: Tensor) -> None:
        if torch.isfinite(norm):
            met = torch.minimum(norm, self.limit()).to(self.mean)
            self.mean.lerp_(met, 1 - self.decay)
            self.square.lerp_(met.square(), 1 - self.decay)
            self.count += 1
