"""The jitter of one row of the world: uniform numbers in a fixed order, keyed by what identifies the row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmldm import keyed

__all__ = ["Draw"]


class Draw:
    """Uniform numbers keyed by seed, kind, split, row and purpose, the same wherever and however often they are drawn."""

    def __init__(self, *key: int | str):
        self._generator = keyed.generator("world", *key)
        self._uniform = iter(torch.rand(32, generator=self._generator).tolist())

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * next(self._uniform)

    def pick(self, values: Sequence):
        """One of the values."""
        return values[int(next(self._uniform) * len(values))]

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal float32 numbers."""
        return torch.randn(shape, generator=self._generator).numpy()
