"""Randomness as a function of (seed, purpose, step, position): equal to the bit for any batch size, worker and device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["generator", "integers", "normal", "uniform"]


def _digest(*key: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the key alone; ints and strings."""
    return torch.Generator().manual_seed(_digest(*(k if isinstance(k, str) else int(k) for k in key)))


def normal(key: Sequence[int | str], positions: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 (B, *shape): row i is keyed by (*key, positions[i])."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(*key, int(p))) for p in positions])


def uniform(key: Sequence[int | str], positions: Sequence[int] | Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Uniform float32 in [0, 1) (B, *shape): row i is keyed by (*key, positions[i])."""
    return torch.stack([torch.rand(tuple(shape), generator=generator(*key, int(p))) for p in positions])


def integers(key: Sequence[int | str], positions: Sequence[int] | Tensor, high: int) -> Tensor:
    """Uniform int64 in [0, high) (B,)."""
    return torch.stack([torch.randint(high, (), generator=generator(*key, int(p))) for p in positions])
