"""What a codec is trained for: reconstruction terms on grids of any rank, `term(features_hat, features) -> weighted scalar`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["L1", "Charbonnier", "Gradient", "Huber", "Pyramid", "ReconstructionLoss", "Wavelet"]


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


class Huber(nn.Module):
    """weight · mean of the error's square over 2·delta where it is below `delta`, |x_hat - x| - delta/2 elsewhere.

    Huber's function (1964) divided by delta: large errors count as in L1.
    """

    def __init__(self, weight: float = 1.0, delta: float = 0.1):
        super().__init__()
        if delta <= 0:
            raise ValueError(f"wanted delta > 0, got {delta}")
        self.weight, self.delta = weight, delta

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.weight * F.smooth_l1_loss(x_hat, x, beta=self.delta)


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


class Wavelet(nn.Module):
    """weight · mean over subbands of the L1 error of the orthonormal Haar transform along all grid axes, `levels` times.

    2^rank - 1 detail bands per level and the last average (as LTX-Video, arXiv 2501.00103, section 2.1.5, does for clips). An
    axis of odd length repeats its last sample, one of a single sample is left as it is.
    """

    def __init__(self, weight: float = 1.0, levels: int = 2):
        super().__init__()
        if levels < 1:
            raise ValueError(f"wanted levels >= 1, got {levels}")
        self.weight, self.levels = weight, levels

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        low, details = x_hat - x, []
        for _ in range(self.levels):
            low, *bands = _haar(low)
            details += bands
        return self.weight * _mean([band.abs().mean() for band in (*details, low)], low)


class ReconstructionLoss(nn.Module):
    """Named terms `term(features_hat, features) -> weighted scalar`; every term is a mean, so weights do not depend on size.

    `features_hat` may be longer than `features` (whole cells): it is cropped. Computed in float32 or wider.
    """

    def __init__(self, terms: Mapping[str, nn.Module]):
        super().__init__()
        if not terms:
            raise ValueError(
                "wanted at least one term, got none; choose from L1, Charbonnier, Huber, Pyramid, Gradient, Wavelet"
            )
        self.terms = nn.ModuleDict(dict(terms))

    def forward(self, features_hat: Tensor, features: Tensor) -> dict[str, Tensor]:
        hat = features_hat[tuple(slice(0, n) for n in features.shape)]
        if hat.shape != features.shape:
            raise ValueError(f"wanted a reconstruction of at least {tuple(features.shape)}, got {tuple(features_hat.shape)}")
        wide = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return {name: term(hat.to(wide), features.to(wide)) for name, term in self.terms.items()}


def _planes(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B', 1, rows, columns); a grid of rank 1 is one column."""
    return x.reshape(-1, 1, *((x.shape[-2:]) if x.ndim > 3 else (x.shape[-1], 1)))


def _haar(x: Tensor) -> list[Tensor]:
    """The bands of one Haar step along every grid axis that has two samples or more, the average first."""
    bands = [x]
    for dim in (d for d in range(2, x.ndim) if x.shape[d] > 1):
        if x.shape[dim] % 2:
            bands = [torch.cat([band, band.narrow(dim, -1, 1)], dim) for band in bands]
        pairs = [band.unflatten(dim, (-1, 2)).unbind(dim + 1) for band in bands]
        bands = [(a + b) * 2**-0.5 for a, b in pairs] + [(a - b) * 2**-0.5 for a, b in pairs]
    return bands


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
