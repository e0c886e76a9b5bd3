"""Snake, a periodic nonlinearity for waveforms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Snake"]

_PIECE = 1 << 16  # numbers
_TINY = 1e-9  # added to beta, as in the public weights


class Snake(nn.Module):
    """x + sin²(alpha·x)/beta with learned numbers per channel (arXiv 2006.08195, eq. 3); without `own_beta` beta is alpha.

    (B, C, *S) -> the same; parameters are logarithms where `logarithmic`. Computed in float32 or wider; once differentiable.
    """

    def __init__(self, channels: int, own_beta: bool = False, logarithmic: bool = True):
        super().__init__()
        start = torch.zeros(channels) if logarithmic else torch.ones(channels)
        self.alpha, self.logarithmic = nn.Parameter(start), logarithmic
        self.beta = nn.Parameter(start.clone()) if own_beta else None

    def forward(self, x: Tensor) -> Tensor:
        alpha = self._number(self.alpha, x)
        beta = alpha if self.beta is None else self._number(self.beta, x)
        return _Snake.apply(x, alpha, beta + _TINY)

    def _number(self, parameter: Tensor, x: Tensor) -> Tensor:
        number = parameter.exp() if self.logarithmic else parameter
        return number.reshape(-1, *(1 for _ in x.shape[2:]))


class _Snake(torch.autograd.Function):
    """Keeps x alone for the way back; on a CPU piece by piece, so that the passes over a piece stay in its cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, beta)
        y, inverse = torch.empty_like(x), 1 / beta
        for out, piece in _pieces(y, x):
            out.copy_(torch.addcmul(piece, (piece * alpha).sin_().square_(), inverse))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, alpha, beta = ctx.saved_tensors
        grad_x, ratio = torch.empty_like(x), alpha / beta
        wide = torch.promote_types(alpha.dtype, torch.float32)
        grad_alpha, grad_beta = torch.zeros_like(alpha, dtype=wide), torch.zeros_like(beta, dtype=wide)
        for out, piece, change in _pieces(grad_x, x, grad):
            angle = piece * (2 * alpha)
            slope = angle.sin().mul_(change)
            out.copy_(torch.addcmul(change, slope, ratio))
            grad_alpha += slope.mul_(piece).sum_to_size(alpha.shape)
            grad_beta += angle.cos_().sub_(1).mul_(change).sum_to_size(beta.shape)
        return grad_x, (grad_alpha / beta).to(alpha.dtype), (grad_beta / (2 * beta.square())).to(beta.dtype)


def _pieces(out: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`out` and tensors of its shape, these in float32 or wider, cut alike along their first grid axis."""
    wide = torch.promote_types(out.dtype, torch.float32)
    length = out.shape[2] if out.device.type != "cpu" else max(1, _PIECE * out.shape[2] // max(1, out.numel()))
    for piece, *others in zip(*(tensor.split(length, 2) for tensor in (out, *tensors)), strict=True):
        yield piece, *(other.to(wide) for other in others)
