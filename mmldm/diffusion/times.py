"""Laws of the training time: uniform numbers -> t by the inverse of the distribution function; and the shift of log_snr."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm import keyed
from mmldm.diffusion.path import Path

__all__ = [
    "LogNormalSigma", "LogitNormal", "Mode", "Shift", "Times", "TokenShift", "Uniform", "UniformLogSNR", "permutation",
    "stratified",
]  # fmt: skip


@dataclass(frozen=True)
class Shift:
    """log_snr -> log_snr - log(factor): more noise for factor > 1; factor is a number, or (B,) for one per item.

    On the linear path it is t -> f t / (1 + (f - 1) t) (Esser et al. 2024, arXiv 2403.03206, eq. 23).
    """

    factor: float | Tensor = 1.0

    def __post_init__(self):
        if not isinstance(self.factor, Tensor) and not self.factor > 0:
            raise ValueError(f"wanted factor > 0, got {self.factor}")

    @property
    def log_factor(self) -> float | Tensor:
        """log(factor), float64."""
        return self.factor.double().log() if isinstance(self.factor, Tensor) else math.log(self.factor)

    def for_tokens(self, tokens: int | Tensor) -> Shift:
        """Itself: the number of tokens does not matter."""
        return self

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The shifted log_snr."""
        return log_snr - self.log_factor


@dataclass(frozen=True)
class TokenShift:
    """A shift that grows with the number of valid tokens: factor (tokens / base) ** exponent.

    The exponent 1/2 keeps the uncertainty of a constant grid (Esser et al. 2024, arXiv 2403.03206, section 5.3.2).
    """

    base: int
    factor: float = 1.0
    exponent: float = 0.5

    def __post_init__(self):
        if not (self.base > 0 and self.factor > 0):
            raise ValueError(f"wanted base > 0 and factor > 0, got {self.base} and {self.factor}")

    def for_tokens(self, tokens: int | Tensor) -> Shift:
        """The shift of an int, or of (B,) numbers of valid tokens (at least 1 is counted)."""
        tokens = tokens.double().clamp(min=1) if isinstance(tokens, Tensor) else max(tokens, 1)
        return Shift(self.factor * (tokens / self.base) ** self.exponent)


def stratified(u: Tensor, place: Tensor, size: int, order: Tensor | None = None) -> Tensor:
    """(order[place] + u) / size in [0, 1): item `place` (B,) of the GLOBAL batch of `size` falls into a stratum of its own.

    u (B,) uniform; `order` is a permutation of range(size), the same for the whole batch (see `permutation`); None: identity.
    """
    stratum = place if order is None else order.to(place.device)[place]
    out = ((stratum.to(u.device) + u.double()) / size).to(u.dtype)
    return out.clamp(0, 1 - torch.finfo(u.dtype).eps)


def permutation(key: tuple[int | str, ...], size: int) -> Tensor:
    """The permutation of range(size) of a key, for example (seed, "strata", step)."""
    return torch.randperm(size, generator=keyed.generator(*key))


class Times(ABC):
    """A law of t, as a law of log_snr: shifted, then truncated to the path's range by its distribution function (no atoms)."""

    @abstractmethod
    def _quantile(self, u: Tensor, path: Path) -> Tensor:
        """u (0 clean ... 1 noise) -> log_snr before the shift."""

    @abstractmethod
    def _cdf(self, log_snr: Tensor, path: Path) -> Tensor:
        """The inverse of _quantile: the probability of a larger log_snr, before the shift."""

    def __call__(self, u: Tensor, path: Path, shift: Shift | None = None) -> Tensor:
        """u in [0, 1) -> t in [0, 1], increasing, in the dtype of u; evaluated in float64."""
        move = 0.0 if shift is None else shift.log_factor
        log_snr = self._quantile(u.double() * self._reach(path, move, u), path) - move
        return path.time(log_snr).to(u.dtype)

    def cdf(self, log_snr: Tensor, path: Path, shift: Shift | None = None) -> Tensor:
        """The probability that t <= path.time(log_snr): decreasing from 1 to 0, float64."""
        move = 0.0 if shift is None else shift.log_factor
        value = self._cdf(log_snr.double() + move, path) / self._reach(path, move, log_snr)
        return torch.where(log_snr <= path.bounds[0], torch.ones_like(value), value)

    def _reach(self, path: Path, move: float | Tensor, like: Tensor) -> Tensor:
        """The share of the shifted law that lies within the path's range."""
        low = torch.as_tensor(path.bounds[0] + move, dtype=torch.float64, device=like.device)
        return torch.where(torch.isinf(low), torch.ones_like(low), self._cdf(low, path))


@dataclass(frozen=True)
class Uniform(Times):
    """t uniform in [0, 1)."""

    def _quantile(self, u: Tensor, path: Path) -> Tensor:
        return path.log_snr(u)

    def _cdf(self, log_snr: Tensor, path: Path) -> Tensor:
        return path.time(log_snr)


@dataclass(frozen=True)
class UniformLogSNR(Times):
    """log_snr uniform between `low` and `high` (Kingma & Gao 2023, arXiv 2303.00848, section 4)."""

    low: float = -8.0
    high: float = 8.0

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"wanted low < high, got {self.low} and {self.high}")

    def _quantile(self, u: Tensor, path: Path) -> Tensor:
        return self.high - u * (self.high - self.low)

    def _cdf(self, log_snr: Tensor, path: Path) -> Tensor:
        return ((self.high - log_snr) / (self.high - self.low)).clamp(0, 1)


@dataclass(frozen=True)
class LogitNormal(Times):
    """logit(t) normal with this mean and std (Esser et al. 2024, arXiv 2403.03206, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _spread(self.std)

    def _quantile(self, u: Tensor, path: Path) -> Tensor:
        return path.log_snr(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)))

    def _cdf(self, log_snr: Tensor, path: Path) -> Tensor:
        return torch.special.ndtr((torch.logit(path.time(log_snr)) - self.mean) / self.std)


@dataclass(frozen=True)
class LogNormalSigma(Times):
    """log(sigma/alpha) normal with this mean and std (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        _spread(self.std)

    def _quantile(self, u: Tensor, path: Path) -> Tensor:
        return -(self.mean + self.std * torch.special.ndtri(u))

    def _cdf(self, log_snr: Tensor, path: Path) -> Tensor:
        return torch.special.ndtr((-log_snr - self.mean) / self.std)


@dataclass(frozen=True)
class Mode(Times):
    """t = u - scale (sin^2(pi u / 2) - u): heavy middle for scale > 0 (Esser et al. 2024, arXiv 2403.03206, eq. 20)."""

    scale: float = 1.29

    def __post_init__(self):
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"wanted scale in [-1, {2 / (math.pi - 2):.4f}], where the law is monotone, got {self.scale}")

    def _time(self, u: Tensor) -> Tensor:
        return u - self.scale * (torch.sin(math.pi / 2 * u) ** 2 - u)

    def _quantile(self, u: Tensor, path: Path) -> Tensor:
        return path.log_snr(self._time(u).clamp(0, 1))

    def _cdf(self, log_snr: Tensor, path: Path) -> Tensor:
        t = path.time(log_snr)
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(54):  # bisection to the last bit of float64
            middle = (low + high) / 2
            below = self._time(middle) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


def _spread(std: float) -> None:
    if not std > 0:
        raise ValueError(f"wanted std > 0, got {std}")
