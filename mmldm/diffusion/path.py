"""Noise paths: z_t = alpha(t) z + sigma(t) eps with t = 0 clean and t = 1 noise; lambda = log(alpha / sigma) is `log_snr`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DDPM", "EDM", "Cosine", "Linear", "Path", "expand"]


def expand(t: Tensor, z: Tensor) -> Tensor:
    """Give t (B,) trailing axes of size 1, so that it multiplies z (B, ...); a scalar stays a scalar."""
    return t.reshape(t.shape + (1,) * (z.dim() - t.dim())) if t.dim() else t


class Path(ABC):
    """How data becomes noise: alpha(0) = 1, sigma(0) = 0, log_snr strictly decreasing in t.

    Every method takes a tensor of any shape and keeps its shape and dtype. `bounds` is (log_snr(1), log_snr(0)): the first is
    -inf where alpha(1) = 0, the second is always inf.
    """

    @property
    def bounds(self) -> tuple[float, float]:
        """The log_snr at t = 1 and at t = 0."""
        return float(self.log_snr(torch.ones((), dtype=torch.float64))), math.inf

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha by t."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of sigma by t."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda = log(alpha / sigma), half of the logarithm of the signal-to-noise ratio; +-inf at the ends is meant."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] of a log_snr; values outside of `bounds` give the nearer end."""

    def mix(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha(t) z + sigma(t) eps for z, eps (B, ...) and t (B,) or a scalar."""
        return expand(self.alpha(t), z) * z + expand(self.sigma(t), z) * eps


@dataclass(frozen=True)
class Linear(Path):
    """The straight path of rectified flow, alpha = 1 - t and sigma = t (Liu et al. 2023, arXiv 2209.03003, eq. 1)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - torch.log(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)


@dataclass(frozen=True)
class Cosine(Path):
    """The variance-preserving quarter circle, alpha = cos(pi t / 2) (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # exactly 0 at t = 1

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return (2 / math.pi * torch.atan(torch.exp(-log_snr))).clamp(0, 1)


@dataclass(frozen=True)
class EDM(Path):
    """The variance-exploding path, alpha = 1 and sigma = sigma_max t (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    sigma_max: float = 80.0

    def __post_init__(self):
        if not self.sigma_max > 0:
            raise ValueError(f"wanted sigma_max > 0, got {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(self.sigma_max * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(-log_snr) / self.sigma_max).clamp(0, 1)


class DDPM(Path):
    """The variance-preserving path of a table of betas, made continuous: knot k of N lies at t = (k + 1) / N.

    Between knots log_snr is linear in t; below the first knot sigma/alpha is linear in t (0 at t = 0); with a zero terminal
    SNR alpha/sigma is linear above the last knot but one. betas: linear from `beta_start` to `beta_end`, or linear in their
    square roots (`scaled`, as latent diffusion has it); `betas` is a table instead. `zero_terminal` rescales to alpha(1) = 0.
    Sources: Ho et al. 2020 (arXiv 2006.11239, section 4); Rombach et al. 2022; Lin et al. 2024 (arXiv 2305.08891, algorithm 1).
    """

    def __init__(
        self,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        steps: int = 1000,
        scaled: bool = False,
        zero_terminal: bool = False,
        betas: Sequence[float] | Tensor | None = None,
    ):
        if betas is not None:
            betas = torch.as_tensor(betas, dtype=torch.float64).detach().cpu().clone()
        elif scaled:
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
        else:
            betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        if betas.dim() != 1 or len(betas) < 3 or not bool(((betas > 0) & (betas <= 1)).all()) or bool((betas[:-1] == 1).any()):
            raise ValueError(f"wanted at least 3 betas in (0, 1), got {tuple(betas.shape)} from {betas.min()} to {betas.max()}")
        log_bar = torch.log1p(-betas).cumsum(0)
        root, noise = torch.exp(log_bar / 2), torch.sqrt(-torch.expm1(log_bar))  # sqrt(alpha_bar), sqrt(1 - alpha_bar)
        if zero_terminal:
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            noise = torch.sqrt((1 - root) * (1 + root))
        self.steps, self.betas, self.zero_terminal = len(betas), betas, zero_terminal
        self._knots = torch.log(root) - torch.log(noise)  # decreasing; -inf at the end where the SNR ends at 0
        self._open = bool(root[-1] == 0)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor, zero_terminal: bool = False) -> DDPM:
        """The path of a given table, for example the `betas` of a trained model."""
        return cls(betas=betas, zero_terminal=zero_terminal)

    def __repr__(self) -> str:
        ends = f"{float(self.betas[0]):.4g}..{float(self.betas[-1]):.4g}"
        return f"DDPM(steps={self.steps}, betas={ends}, zero_terminal={self.zero_terminal})"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_copies": {}}

    def _table(self, like: Tensor) -> Tensor:
        """The knots on the device of `like`, copied there once: a copy per call would make the host wait."""
        key = like.device, like.dtype
        if key not in self._copies:
            self._copies[key] = self._knots.to(like)
        return self._copies[key]

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t in knots, log_snr at the knot below and the rise to the next one, and that knot's number (from 1)."""
        x, knots = t * self.steps, self._table(t)
        k = x.detach().floor().clamp(1, self.steps - (2 if self._open else 1)).long()
        return x, knots[k - 1], knots[k] - knots[k - 1], k

    def log_snr(self, t: Tensor) -> Tensor:
        x, below, rise, k = self._piece(t)
        inner = below + (x - k) * rise
        head = self._table(t)[0] - torch.log(torch.where(x < 1, x, torch.ones_like(x)))
        out = torch.where(x < 1, head, inner)
        if self._open:
            left = self.steps - x
            tail = self._table(t)[-2] + torch.log(torch.where(left < 1, left, torch.ones_like(left)))
            out = torch.where(left < 1, tail, out)
        return out

    def time(self, log_snr: Tensor) -> Tensor:
        knots = self._table(log_snr)[: -1 if self._open else None]
        k = torch.searchsorted(-knots, (-log_snr).contiguous()).clamp(1, len(knots) - 1)
        x = k + (log_snr - knots[k - 1]) / (knots[k] - knots[k - 1])
        x = torch.where(log_snr >= knots[0], torch.exp(knots[0] - log_snr), x)
        if self._open:
            x = torch.where(log_snr < knots[-1], self.steps - torch.exp(log_snr - knots[-1]), x)
        return (x / self.steps).clamp(0, 1)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(2 * self.log_snr(t)))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(-2 * self.log_snr(t)))

    def _slope(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and the number m with d_alpha = -sigma m, d_sigma = alpha m (the speed on the circle)."""
        x, _, rise, _ = self._piece(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        speed = -alpha * sigma * rise * self.steps
        speed = torch.where(x < 1, alpha**2 * torch.exp(-self._table(t)[0]) * self.steps, speed)
        if self._open:
            speed = torch.where(self.steps - x < 1, sigma**2 * torch.exp(self._table(t)[-2]) * self.steps, speed)
        return alpha, sigma, speed

    def d_alpha(self, t: Tensor) -> Tensor:
        _, sigma, speed = self._slope(t)
        return -sigma * speed

    def d_sigma(self, t: Tensor) -> Tensor:
        alpha, _, speed = self._slope(t)
        return alpha * speed
