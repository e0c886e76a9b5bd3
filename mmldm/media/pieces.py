"""A signal in pieces along one dimension: cut to equal sizes, the last one known as such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["regrouped", "with_last"]

T = TypeVar("T")


def regrouped(parts: Iterable[Tensor], size: int, dim: int, first: int | None = None) -> Iterator[Tensor]:
    """The same signal in pieces of `size` along `dim`, `first` of them in the first piece, what is left in the last one."""
    waiting, held, wanted = [], 0, first or size
    for part in parts:
        waiting.append(part)
        held += part.shape[dim]
        while held >= wanted:
            whole = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim)
            yield whole.narrow(dim, 0, wanted)
            rest = whole.narrow(dim, wanted, held - wanted)
            waiting, held, wanted = [rest] if held > wanted else [], held - wanted, size
    if held:
        yield waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim)


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item and whether it is the last one."""
    items = iter(items)
    for item in items:
        for following in items:
            yield item, False
            item = following
        yield item, True
