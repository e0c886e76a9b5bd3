"""Muon for the hidden matrices, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mmldm.training.processes import full, placed

__all__ = ["Muon", "orthogonalised"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for matrices whose sides differ at most fourfold, AdamW for all other parameters.

    One learning rate serves both: a Muon step is scaled by 0.2 sqrt(longer side), the size of AdamW's (Jordan et al.
    2024, Muon; Liu et al. 2025, arXiv 2502.16982, eq. 4). Matrices of one shape are made orthogonal together, sharded ones by
    every process in whole.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        eps: float = 1e-8,
    ):
        params = list(params)
        matrices = [p for p in params if is_hidden(p)]
        others = [p for p in params if not is_hidden(p)]
        groups = [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}]
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "momentum": momentum, "eps": eps}
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
                (self._orthogonal if group["orthogonal"] else self._adam)(group, params)
        return loss

    def _orthogonal(self, group: dict, params: list[Tensor]) -> None:
        grads, factor = [p.grad for p in params], group["momentum"]
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(momenta, grads, 1.0 - factor)
        ahead = torch._foreach_lerp(grads, momenta, factor)  # Nesterov
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(params):
            shapes.setdefault(tuple(p.shape), []).append(i)
        for shape, members in shapes.items():
            updates = orthogonalised(torch.stack([full(ahead[i]) for i in members]))
            scale = group["lr"] * 0.2 * max(shape) ** 0.5
            for i, update in zip(members, updates, strict=True):
                params[i].add_(placed(update.to(params[i].dtype), params[i]), alpha=-scale)

    def _adam(self, group: dict, params: list[Tensor]) -> None:
        (low, high), grads = group["betas"], [p.grad for p in params]
        first = [self.state[p].setdefault("first", torch.zeros_like(p)) for p in params]
        second = [self.state[p].setdefault("second", torch.zeros_like(p)) for p in params]
        group["steps"] = steps = group.get("steps", 0) + 1
        torch._foreach_lerp_(first, grads, 1.0 - low)
        torch._foreach_mul_(second, high)
        torch._foreach_addcmul_(second, grads, grads, 1.0 - high)
        sizes = torch._foreach_sqrt(second)
        torch._foreach_div_(sizes, (1.0 - high**steps) ** 0.5)
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_addcdiv_(params, first, sizes, value=-group["lr"] / (1.0 - low**steps))


def is_hidden(p: Tensor) -> bool:
    """A matrix between hidden layers: neither a table nor a thin projection."""
    return p.ndim == 2 and max(p.shape) <= 4 * min(p.shape)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, rows, columns) -> about the nearest semi-orthogonal matrices, by quintic Newton-Schulz iterations in bfloat16."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
