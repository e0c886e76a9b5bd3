"""What a codec is trained for: reconstruction terms on features, and regularisers that shape the latent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.interfaces import Posterior

__all__ = ["KL", "L1", "BoundedNoise", "Charbonnier", "Gradient", "Pyramid", "ReconstructionLoss", "Regulariser", "psnr"]


# ---------------------------------------------------------------- regularisers


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
    """A Gaussian latent with learned std and `weight` times its divergence from N(0, 1), nats per latent number."""

    heads = 2

    def __init__(self, weight: float = 1e-4):
        super().__init__()
        self.weight = weight

    def posterior(self, head: Tensor) -> Posterior:
        mean, log_std = head.chunk(2, 1)
        return Posterior(mean, torch.exp(log_std.clamp(-12.0, 4.0)))

    def forward(self, posterior: Posterior) -> dict[str, Tensor]:
        variance = posterior.std.square()
        return {"kl": self.weight * 0.5 * (posterior.mean.square() + variance - 1 - variance.log()).mean()}


# ---------------------------------------------------------------- reconstruction terms


class L1(nn.Module):
    """weight · mean |x_hat - x|."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.weight * (x_hat - x).abs().mean()


class Charbonnier(nn.Module):
    """weight · mean (sqrt((x_hat - x)² + eps²) - eps): L1 with a smooth bottom of width `eps` (Charbonnier et al. 1994)."""

    def __init__(self, weight: float = 1.0, eps: float = 0.01):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.weight * (torch.sqrt((x_hat - x).square() + self.eps**2) - self.eps).mean()


class Pyramid(nn.Module):
    """weight · mean over `scales` of the L1 error after averaging over scale x scale blocks of the last two grid axes.

    A scale is an int or a (rows, columns) pair; scales larger than the grid are left out.
    """

    def __init__(self, weight: float = 1.0, scales: Sequence[int | Sequence[int]] = (2, 4)):
        super().__init__()
        self.weight, self.scales = weight, _pairs(scales)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        error = _planes(x_hat - x)
        return self.weight * _mean([level.abs().mean() for level in _levels(error, self.scales)], error)


class Gradient(nn.Module):
    """weight · mean over `scales` of the L1 error of the differences between neighbours along the last two grid axes.

    Edges are what a plain L1 blurs first. A scale is an int or a (rows, columns) pair of averaging; 1 is the grid itself.
    """

    def __init__(self, weight: float = 1.0, scales: Sequence[int | Sequence[int]] = (1, 2)):
        super().__init__()
        self.weight, self.scales = weight, _pairs(scales)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        error = _planes(x_hat - x)
        slopes = [level.diff(dim=d) for level in _levels(error, self.scales) for d in (-2, -1) if level.shape[d] > 1]
        return self.weight * _mean([slope.abs().mean() for slope in slopes], error)


class ReconstructionLoss(nn.Module):
    """Named terms `term(features_hat, features) -> weighted scalar`; every term is a mean, so weights do not depend on size.

    `features_hat` may be longer than `features` (whole cells): it is cropped. Computed in float32 or wider.
    """

    def __init__(self, terms: Mapping[str, nn.Module]):
        super().__init__()
        if not terms:
            raise ValueError(
                "wanted at least one reconstruction term, got none; choose from L1, Charbonnier, Pyramid, Gradient"
            )
        self.terms = nn.ModuleDict(dict(terms))

    def forward(self, features_hat: Tensor, features: Tensor) -> dict[str, Tensor]:
        hat = features_hat[tuple(slice(0, n) for n in features.shape)]
        if hat.shape != features.shape:
            raise ValueError(f"wanted a reconstruction of at least {tuple(features.shape)}, got {tuple(features_hat.shape)}")
        wide = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return {name: term(hat.to(wide), features.to(wide)) for name, term in self.terms.items()}


def psnr(x_hat: Tensor, x: Tensor, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each item in dB, values clamped to ±span/2 (as a saved file is): (B, C, *S) -> (B,)."""
    error = (x_hat.clamp(-span / 2, span / 2) - x).flatten(1).square().mean(1)
    return 10 * torch.log10(span**2 / error.clamp_min(1e-10))


def _planes(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B', 1, rows, columns); a grid of rank 1 is one column."""
    return x.reshape(-1, 1, *((x.shape[-2:]) if x.ndim > 3 else (x.shape[-1], 1)))


def _pairs(scales: Sequence[int | Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((s, s) if isinstance(s, int) else tuple(s) for s in scales)


def _levels(planes: Tensor, scales: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The planes averaged over blocks of each scale that fits; an axis of one sample is left as it is."""
    sizes = planes.shape[-2:]
    blocks = [tuple(1 if n == 1 else s for s, n in zip(scale, sizes, strict=True)) for scale in scales]
    fitting = [block for block in blocks if all(b <= n for b, n in zip(block, sizes, strict=True))]
    return [planes if block == (1, 1) else F.avg_pool2d(planes, block) for block in fitting]


def _mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else like.sum() * 0
