"""ScalarConditioner: a number (a duration, a rate, any numeric column) as a vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmldm.interfaces import Cond, Conditioner, CondWidths, Reader
from mmldm.nn.positions import Fourier
from mmldm.nn.transformer import init_linear

__all__ = ["ScalarConditioner", "Scalars"]


class Scalars(Reader):
    """A number, or the text of one -> its place in [0, 1] between `low` and `high` (clamped), linear or logarithmic."""

    def __init__(self, low: float, high: float, log: bool = False):
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
            raise ValueError(f"wanted finite low < high{', both positive,' if log else ''} got {low} and {high}")
        self.low, self.high, self.log = float(low), float(high), log

    def __call__(self, value: float | str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"wanted a number between {self.low} and {self.high}, got {value!r}")
        number = min(max(number, self.low), self.high)
        scale = math.log if self.log else float
        return (scale(number) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def collate(self, items: list[float | None]) -> Tensor:
        """Places (B,) float32, 0 where missing."""
        return torch.tensor([0.0 if item is None else item for item in items], dtype=torch.float32)


class ScalarConditioner(Conditioner):
    """A number between `low` and `high` -> a vector (B, width), by Fourier features."""

    def __init__(self, key: str, low: float, high: float, log: bool = False, width: int = 128):
        super().__init__()
        self.key, self.reader, self.widths = key, Scalars(low, high, log), CondWidths(vector=width)
        fourier = Fourier(32)
        self.project = nn.Sequential(fourier, nn.Linear(fourier.width, width), nn.SiLU(), nn.Linear(width, width))
        init_linear(self)
        self.null_vector = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.null_vector)

    def forward(self, encoded: Tensor) -> Cond:
        return Cond(vector=self.project(encoded))

    def null(self, batch_size: int) -> Cond:
        return Cond(vector=self.null_vector.expand(batch_size, -1))
