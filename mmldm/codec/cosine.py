"""The transform coder that a convolutional body starts from: a few cosines per cell, there and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["cosine_basis"]


def cosine_basis(channels: int, strides: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """The `count` lowest cosines of a cell of n = `strides` x `channels` numbers: analysis (count, n), synthesis (n, count).

    Orthonormal DCT-II products over the axes and across the channels (three: brightness and two differences of colour), n
    ordered as `nn.conv.fold` orders it; scaled so that each number is about 1 for natural signals in [-1, 1], whose
    amplitudes fall as one over the frequency. Numbers beyond n are zero.
    """
    sizes = (*strides, channels)
    orders = sorted(itertools.product(*map(range, sizes)), key=lambda k: (sum(i * i for i in k), k))[:count]
    n = prod(sizes)
    analysis, synthesis = torch.zeros(count, n), torch.zeros(n, count)
    for row, order in enumerate(orders):
        wave = torch.ones(1, dtype=torch.float64)
        for k, size in zip(order, sizes, strict=True):
            wave = torch.outer(wave, _cosine(k, size)).flatten()
        spread = math.sqrt(n) * (0.15 / math.sqrt(sum(i * i for i in order)) if any(order) else 0.5)
        analysis[row], synthesis[:, row] = wave / spread, wave * spread
    return analysis, synthesis


def _cosine(k: int, size: int) -> Tensor:
    angle = math.pi * k * (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.cos(angle) * math.sqrt((2 if k else 1) / size)
