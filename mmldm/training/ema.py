"""Exponential moving average of the trained parameters, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

__all__ = ["EMA", "power_exponent"]


def power_exponent(std: float) -> float:
    """The gamma of a power-function average of relative standard deviation `std` (EDM2, arXiv 2312.02696, eq. 123)."""
    if not 0.0 < std < 0.289:
        raise ValueError(f"wanted a relative standard deviation in (0, 0.289), got {std}; choose for example 0.05 or 0.10")
    low, high = 0.0, 1e4
    for _ in range(100):
        gamma = (low + high) / 2
        if (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 > std:
            low = gamma
        else:
            high = gamma
    return (low + high) / 2


class EMA(Callback):
    """Averages the parameters that train, with the power-function profile of EDM2 (arXiv 2312.02696, eq. 122); float32."""

    def __init__(self, std: float = 0.05):
        self.std = std
        self.exponent = power_exponent(std)
        self.step = 0
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        current = trained(pl_module)
        if not self.average:
            self.average = {name: p.detach().float().clone() for name, p in current.items()}
        self.average = {name: self.average[name].to(p.device) for name, p in current.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.update(trained(pl_module), self.step)

    @torch.no_grad()
    def update(self, parameters: dict[str, Tensor], step: int) -> None:
        """Move the average towards the parameters after optimiser step `step` (from 1)."""
        weight = 1.0 - (1.0 - 1.0 / step) ** (self.exponent + 1.0)
        torch._foreach_lerp_(list(self.average.values()), [parameters[n].detach().float() for n in self.average], weight)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_out(pl_module)

    def swap_in(self, module: nn.Module) -> None:
        """Put the averaged parameters into the module, keeping the raw ones aside; nothing before the first update."""
        if self.step > 0 and self._raw is None:
            self._raw = {name: p.detach().clone() for name, p in trained(module).items()}
            _copy(trained(module), self.average)

    def swap_out(self, module: nn.Module) -> None:
        """Put the raw parameters back."""
        if self._raw is not None:
            _copy(trained(module), self._raw)
            self._raw = None

    @contextmanager
    def averaged(self, module: nn.Module) -> Iterator[None]:
        """Inside this context the module carries the averaged parameters."""
        self.swap_in(module)
        try:
            yield
        finally:
            self.swap_out(module)

    def state_dict(self) -> dict:
        return {"step": self.step, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.average = state["step"], dict(state["average"])


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, p in target.items():
        p.copy_(source[name])
