"""Sampling grids: a number of steps -> decreasing t (steps + 1,) in float64 on the CPU, from 1 to exactly 0."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm.diffusion.path import Path
from mmldm.diffusion.times import Shift, Uniform

__all__ = ["Grid", "KarrasGrid", "ListGrid", "LogSNRGrid", "UniformGrid", "start_at"]


class Grid(ABC):
    """Where a solver evaluates; the end points t = 1 and t = 0 are pinned, a shift moves what lies between."""

    @abstractmethod
    def points(self, steps: int, path: Path, shift: Shift) -> Tensor:
        """Decreasing t (steps + 1,) float64; the first and last are overwritten."""

    def __call__(self, steps: int, path: Path, shift: Shift | None = None) -> Tensor:
        """Decreasing t (steps + 1,) float64 from 1 to 0; raises ValueError where two points fall together."""
        if steps < 1:
            raise ValueError(f"wanted steps >= 1, got {steps}")
        t = self.points(steps, path, Shift() if shift is None else shift).double().clone()
        t[0], t[-1] = 1.0, 0.0
        if not bool((t[1:] < t[:-1]).all()):
            raise ValueError(f"wanted a strictly decreasing grid, got {self} with {steps} steps and {shift} on {path}")
        return t


@dataclass(frozen=True)
class UniformGrid(Grid):
    """t uniform, then shifted; where a shift leaves the path's range the grid is squeezed, as the training times are."""

    def points(self, steps: int, path: Path, shift: Shift) -> Tensor:
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return u if shift.factor == 1 else Uniform()(u, path, shift)


class _Ended(Grid):
    """A grid with finite ends in log_snr, preceded by t = 1 (unless the path begins there) and followed by t = 0."""

    @abstractmethod
    def between(self, low: float, high: float, ramp: Tensor) -> Tensor:
        """log_snr from `low` (ramp 0) to `high` (ramp 1)."""

    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """The log_snr of the noisiest and of the cleanest finite point."""

    def points(self, steps: int, path: Path, shift: Shift) -> Tensor:
        low, high = (end - float(shift.log_factor) for end in self.ends())
        begins = low <= path.bounds[0] + 1e-9  # t = 1 itself is the noisiest point
        low = max(low, path.bounds[0])
        if not low < high:
            raise ValueError(f"wanted the clean end of {self} within the range {path.bounds} of {path}, got log_snr {high:g}")
        count = steps if begins else steps - 1
        ramp = torch.linspace(0, 1, count, dtype=torch.float64)
        if count == 1 and not begins:
            ramp = ramp + 0.5  # a single point between: the middle
        inner = path.time(self.between(low, high, ramp))
        ends = torch.zeros(1, dtype=torch.float64)
        return torch.cat([inner, ends] if begins else [ends + 1, inner, ends])


@dataclass(frozen=True)
class LogSNRGrid(_Ended):
    """log_snr uniform from `low` to `high` (Lu et al. 2022, arXiv 2206.00927, section 3.4)."""

    low: float = -4.4
    high: float = 6.2

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"wanted low < high, got {self.low} and {self.high}")

    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def between(self, low: float, high: float, ramp: Tensor) -> Tensor:
        return low + ramp * (high - low)


@dataclass(frozen=True)
class KarrasGrid(_Ended):
    """(sigma/alpha)^(1/rho) uniform between `sigma_max` and `sigma_min` (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        if not (0 < self.sigma_min < self.sigma_max and self.rho > 0):
            raise ValueError(f"wanted 0 < sigma_min < sigma_max and rho > 0, got {self}")

    def ends(self) -> tuple[float, float]:
        return -math.log(self.sigma_max), -math.log(self.sigma_min)

    def between(self, low: float, high: float, ramp: Tensor) -> Tensor:
        first, last = math.exp(-low / self.rho), math.exp(-high / self.rho)
        return -self.rho * torch.log(first + ramp * (last - first))


@dataclass(frozen=True)
class ListGrid(Grid):
    """An explicit list of t from 1 to 0, taken as it is: no shift moves it, and `steps` must be its number of steps."""

    values: Sequence[float]

    def __post_init__(self):
        values = list(self.values)
        falls = all(a > b for a, b in itertools.pairwise(values))
        if len(values) < 2 or values[0] != 1 or values[-1] != 0 or not falls:
            raise ValueError(f"wanted a list of t that falls from 1 to 0, got {values}")

    def points(self, steps: int, path: Path, shift: Shift) -> Tensor:
        if steps != len(self.values) - 1:
            raise ValueError(f"wanted {len(self.values) - 1} steps, as the list has, got {steps}")
        return torch.tensor(list(self.values), dtype=torch.float64)


def start_at(grid: Tensor, start: float) -> Tensor:
    """The part of a grid below t = `start` in (0, 1], preceded by `start` itself: variation of what is given.

    Meng et al. 2022 (SDEdit), arXiv 2108.01073, algorithm 1.
    """
    if not 0 < start <= 1:
        raise ValueError(f"wanted a start in (0, 1], got {start}")
    return torch.cat([grid.new_tensor([start]), grid[grid < start]])
