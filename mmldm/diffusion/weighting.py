"""Loss weights: w(log_snr) on the error of z_hat, carried to the network's own error in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from mmldm import keyed
from mmldm.diffusion.path import Path
from mmldm.diffusion.prediction import Prediction

__all__ = [
    "EDMWeight", "EpsWeight", "LearnedUncertainty", "MinSNR", "Sigmoid", "SoftMinSNR", "UnitF", "Weighting", "loss_weight",
]  # fmt: skip

LIMIT = 10.0  # log_snr is clamped to [-LIMIT, LIMIT]: e^20 is the largest SNR that a weight sees


class Weighting(ABC):
    """A weight w(log_snr) >= 0 of |z_hat - z|^2; log_snr = log(alpha/sigma), so SNR = exp(2 log_snr)."""

    @abstractmethod
    def log_weight(self, log_snr: Tensor) -> Tensor:
        """log w."""

    def __call__(self, log_snr: Tensor) -> Tensor:
        """w in the shape of log_snr."""
        return torch.exp(self.log_weight(log_snr))

    def on_prediction(self, path: Path, prediction: Prediction, t: Tensor) -> Tensor:
        """r(t) = w (sigma / (q alpha - p sigma))^2, the weight of |F - F*|^2; finite for every t in [0, 1]."""
        low, high = path.bounds
        log_snr = path.log_snr(t).clamp(max(low, -LIMIT), min(high, LIMIT))
        return torch.exp(self.log_weight(log_snr) + prediction.log_error_ratio(path, path.time(log_snr), log_snr))

    def loss(self, error: Tensor, path: Path, prediction: Prediction, t: Tensor) -> Tensor:
        """The loss (B,) of the network's squared errors |F - F*|^2 (B,) at levels t (B,)."""
        return error * self.on_prediction(path, prediction, t)


def loss_weight(weighting: Weighting | LearnedUncertainty, path: Path, prediction: Prediction, t: Tensor) -> Tensor:
    """The factor r of |F - F*|^2, in the shape and dtype of t (use float32 or better)."""
    return weighting.on_prediction(path, prediction, t)


@dataclass(frozen=True)
class UnitF(Weighting):
    """The plain squared error of whatever the network predicts, r = 1; its w is the prediction's own."""

    def log_weight(self, log_snr: Tensor) -> Tensor:
        raise ValueError("wanted a path and a prediction too: UnitF is r = 1, and its w depends on them; use loss_weight")

    def on_prediction(self, path: Path, prediction: Prediction, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class EpsWeight(Weighting):
    """The squared error of the noise: w = SNR (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return 2 * log_snr


@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""

    gamma: float = 5.0

    def __post_init__(self):
        _positive("gamma", self.gamma)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return (2 * log_snr).clamp(max=math.log(self.gamma))


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """w = SNR gamma / (SNR + gamma), a smooth min-SNR (Crowson et al. 2024, arXiv 2401.11605, section 4.1)."""

    gamma: float = 5.0

    def __post_init__(self):
        _positive("gamma", self.gamma)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return math.log(self.gamma) + logsigmoid(2 * log_snr - math.log(self.gamma))


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """sigmoid(bias - log SNR) on the noise error, w = e^bias sigmoid(log SNR - bias) on the error of z_hat.

    Kingma & Gao 2023 (arXiv 2303.00848, section 4.3); Hoogeboom et al. 2024 (arXiv 2410.19324, eq. 6). They draw log SNR
    uniformly; another law of times multiplies its own density.
    """

    bias: float = 0.0

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return self.bias + logsigmoid(2 * log_snr - self.bias)


@dataclass(frozen=True)
class EDMWeight(Weighting):
    """w = (s^2 + d^2) / (s d)^2 with s = sigma/alpha and d = sigma_data (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    sigma_data: float = 1.0

    def __post_init__(self):
        _positive("sigma_data", self.sigma_data)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return softplus(2 * (log_snr + math.log(self.sigma_data))) - 2 * math.log(self.sigma_data)


class LearnedUncertainty(nn.Module):
    """Loss of learned scale over a `base` weighting (None: UnitF), e^(-u) L + u, u(log_snr) one layer on Fourier features.

    u = 0 at the start and approaches the logarithm of the expected L: every level then counts alike. Karras et al. 2024,
    arXiv 2312.02696, section 2.2, after the uncertainty weighting of Kendall et al. 2018, arXiv 1705.07115. It trains with the
    model and belongs to the loss: neither averaged by EMA nor exported nor used in sampling.
    """

    def __init__(self, features: int = 128, base: Weighting | None = None):
        super().__init__()
        self.base = base or UnitF()
        random = keyed.generator("learned uncertainty", features)
        self.register_buffer("frequency", 2 * math.pi * torch.randn(features, generator=random))
        self.register_buffer("phase", 2 * math.pi * torch.rand(features, generator=random))
        self.weight = nn.Parameter(torch.zeros(features))

    def u(self, log_snr: Tensor) -> Tensor:
        """The logarithm of the expected loss at this level, in the shape of log_snr."""
        level = log_snr.to(self.frequency.dtype).clamp(-LIMIT, LIMIT) / 4
        waves = torch.cos(level[..., None] * self.frequency + self.phase)
        return math.sqrt(2 / len(self.weight)) * (waves * self.weight).sum(-1)

    def forward(self, loss: Tensor, log_snr: Tensor) -> Tensor:
        """loss and log_snr (B,) -> (B,)."""
        u = self.u(log_snr)
        return torch.exp(-u) * loss + u

    def on_prediction(self, path: Path, prediction: Prediction, t: Tensor) -> Tensor:
        """r(t) e^(-u), the weight of |F - F*|^2 as u is now."""
        return self.base.on_prediction(path, prediction, t) * torch.exp(-self.u(path.log_snr(t))).to(t)

    def loss(self, error: Tensor, path: Path, prediction: Prediction, t: Tensor) -> Tensor:
        """The loss (B,) of the network's squared errors |F - F*|^2 (B,) at levels t (B,)."""
        return self(self.base.loss(error, path, prediction, t), path.log_snr(t))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"wanted {name} > 0, got {value}")
