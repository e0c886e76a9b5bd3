"""What the calls of a denoiser for one sample hand on to each other: things that stay, and block outputs that nearly do."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmldm.interfaces import Noisy

__all__ = ["Memory", "Reuse", "layout_inputs"]


@dataclass(frozen=True)
class Reuse:
    """Which blocks a denoiser skips while it samples: all but the `first` and the `last` run at every `every`-th call only, in
    between what they last added is added again (after Ma et al. 2024, arXiv 2312.00858, section 3.2)."""

    every: int = 2
    first: int = 1
    last: int = 1

    def __post_init__(self):
        if self.every < 1 or self.first < 0 or self.last < 0:
            raise ValueError(f"wanted every >= 1 and counts of blocks of 0 or more, got {self}")


class Memory:
    """Results by name, each kept for as long as its inputs are the same tensors; born in `prepare`, gone with the sample.

    Nothing is kept where gradients are computed or inside `torch.compile`. All memories are equal: they say nothing about the
    sample, so that branches of guidance prepared apart can still run as one batch.
    """

    def __init__(self):
        self._kept: dict[Hashable, tuple[tuple[Any, ...], Any, float]] = {}

    def recall(self, name: Hashable, inputs: Sequence[Any], compute: Callable[[], Any], times: float = math.inf) -> Any:
        """`compute()`, or what it gave last: for up to `times` calls with the same inputs."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        known, value, left = self._kept.get(name, ((), None, 0))
        if left > 0 and len(known) == len(inputs) and all(map(_same, known, inputs)):
            self._kept[name] = known, value, left - 1
        else:
            value = compute()
            self._kept[name] = tuple(inputs), value, times
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory)

    def __hash__(self) -> int:
        return hash(Memory)


def _same(one: Any, two: Any) -> bool:
    """Whether two tensors are the same numbers in the same place, without looking at them, or other things are equal."""
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        return one is two or (type(one) is type(two) and one == two)
    return (one.data_ptr(), one.shape, one.stride(), one.dtype) == (two.data_ptr(), two.shape, two.stride(), two.dtype)


def layout_inputs(noisy: dict[str, Noisy]) -> list[Tensor | None]:
    """What decides where the tokens of all streams lie and which are seen: positions and masks, of their references too."""
    own = [part for n in noisy.values() for part in (n.positions, n.known, n.valid)]
    return own + [part for n in noisy.values() for r in n.references for part in (r.positions, r.present)]
