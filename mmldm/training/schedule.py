"""The learning rate as a function of progress: no state, so a resumed run continues it exactly."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup` steps, constant, then linear decay to `floor` over the last `decay` of the training."""

    warmup: int = 100
    decay: float = 0.5
    floor: float = 0.0

    def __call__(self, step: int, progress: float) -> float:
        """Factor on the learning rate at optimiser step `step`, `progress` in [0, 1] of the whole training."""
        up = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        down = min(1.0, (1.0 - progress) / self.decay) if self.decay else 1.0
        return up * (self.floor + (1.0 - self.floor) * max(0.0, down))
