"""What a network regresses: F = p z + q eps, decoded to the clean latent by one formula on every path."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm.diffusion.path import Linear, Path, expand

__all__ = ["EDMPrediction", "Eps", "Flow", "Prediction", "V", "Z", "expand"]


@dataclass(frozen=True)
class Prediction(ABC):
    """A network's target F = p(t) z + q(t) eps; `sigma_data` is the standard deviation of z (1 for whitened latents)."""

    sigma_data: float = 1.0

    def __post_init__(self):
        if not self.sigma_data > 0:
            raise ValueError(f"wanted sigma_data > 0, got {self.sigma_data}")

    @abstractmethod
    def coefficients(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) in the shape of t."""

    def check(self, path: Path) -> None:
        """Raise ValueError, saying what to choose, where this prediction does not determine z on this path."""
        one = torch.ones((), dtype=torch.float64)
        p, q = self.coefficients(path, one)
        if float(torch.abs(q * path.alpha(one) - p * path.sigma(one))) < 1e-6:
            raise ValueError(
                f"wanted a prediction that determines z at t = 1, got {type(self).__name__} on {path}; "
                "choose from V, EDMPrediction, Z (or Flow on the Linear path)"
            )

    def target(self, path: Path, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """F for z, eps (B, ...) and t (B,)."""
        p, q = self.coefficients(path, t)
        return expand(p, z) * z + expand(q, z) * eps

    def decode(self, path: Path, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """z_hat = (q z_t - sigma F) / (q alpha - p sigma) for F, z_t (B, ...) and t (B,)."""
        p, q = self.coefficients(path, t)
        alpha, sigma = path.alpha(t), path.sigma(t)
        scale = q * alpha - p * sigma
        return expand(q / scale, z_t) * z_t - expand(sigma / scale, z_t) * prediction

    def log_error_ratio(self, path: Path, t: Tensor, log_snr: Tensor) -> Tensor:
        """log of |z_hat - z|^2 / |F - F*|^2 = log (sigma / (q alpha - p sigma))^2, for t in (0, 1)."""
        p, q = self.coefficients(path, t)
        alpha, sigma = path.alpha(t), path.sigma(t)
        return 2 * torch.log(sigma) - 2 * torch.log(torch.abs(q * alpha - p * sigma))

    def input_scale(self, path: Path, t: Tensor) -> Tensor:
        """1 / sqrt(alpha^2 sigma_data^2 + sigma^2): z_t to unit variance (c_in of Karras et al. 2022, arXiv 2206.00364)."""
        return torch.rsqrt((path.alpha(t) * self.sigma_data) ** 2 + path.sigma(t) ** 2)

    def heard(self, path: Path, t: Tensor) -> Tensor:
        """The level in [0, 1] that the network is told: (2 / pi) atan2(sigma, alpha sigma_data), the same on every path."""
        return (2 / math.pi * torch.atan2(path.sigma(t), path.alpha(t) * self.sigma_data)).clamp(0, 1)

    def unheard(self, path: Path, level: Tensor) -> Tensor:
        """The t at which the network is told `level`, in (0, 1): the inverse of `heard`; the nearer end beyond the path."""
        return path.time(-torch.log(self.sigma_data * torch.tan(math.pi / 2 * level)))


class Z(Prediction):
    """The clean latent itself, F = z."""

    def coefficients(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def decode(self, path: Path, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        return prediction

    def log_error_ratio(self, path: Path, t: Tensor, log_snr: Tensor) -> Tensor:
        return torch.zeros_like(log_snr)


class Eps(Prediction):
    """The noise, F = eps (Ho et al. 2020, arXiv 2006.11239, eq. 14); only where alpha(1) > 0."""

    def coefficients(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def log_error_ratio(self, path: Path, t: Tensor, log_snr: Tensor) -> Tensor:
        return -2 * log_snr


class V(Prediction):
    """The velocity on the circle, F = alpha eps - sigma z (Salimans & Ho 2022, arXiv 2202.00512, section 4)."""

    def coefficients(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        return -path.sigma(t), path.alpha(t)

    def check(self, path: Path) -> None:
        most = float(path.sigma(torch.ones((), dtype=torch.float64)))
        if most > 1 + 1e-6:
            raise ValueError(
                f"wanted a path with sigma(1) <= 1 for V, got {path} with {most:g}: the target would be as large; "
                "choose from EDMPrediction, Eps, Z"
            )


class Flow(Prediction):
    """The velocity of the straight path, F = d z_t / dt = eps - z (Liu et al. 2023, arXiv 2209.03003, eq. 1)."""

    def coefficients(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        return path.d_alpha(t), path.d_sigma(t)

    def check(self, path: Path) -> None:
        if not isinstance(path, Linear):
            raise ValueError(f"wanted the Linear path for Flow, got {path}; choose from V, EDMPrediction, Eps, Z")


class EDMPrediction(Prediction):
    """The preconditioned network, F = (sigma/d z - alpha d eps) / sqrt(sigma^2 + alpha^2 d^2) with d = sigma_data.

    Karras et al. 2022, arXiv 2206.00364, eq. 7 and table 1 (c_skip, c_out), carried to any path; with d = 1 it is -v.
    """

    def coefficients(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, scale = path.alpha(t), path.sigma(t), self.input_scale(path, t)
        return sigma / self.sigma_data * scale, -alpha * self.sigma_data * scale
