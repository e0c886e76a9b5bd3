"""LabelConditioner: one of a fixed list of classes as a learned vector."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmldm.interfaces import Cond, Conditioner, CondWidths, Reader

__all__ = ["LabelConditioner", "Labels"]


class Labels(Reader):
    """A class name -> its place in the list; raises ValueError for a name that is not in it."""

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(str(name) for name in classes)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"wanted a list of different classes, got {list(self.classes)}")
        self._places = {name: i for i, name in enumerate(self.classes)}

    def __call__(self, value: str) -> int:
        if str(value) not in self._places:
            near = difflib.get_close_matches(str(value), self.classes, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            shown = ", ".join(self.classes[:20]) + (" …" if len(self.classes) > 20 else "")
            raise ValueError(f"wanted a known class, got {str(value)!r}; {hint}choose from {shown}")
        return self._places[str(value)]

    def collate(self, items: list[int | None]) -> Tensor:
        """Places (B,) int64, 0 where missing."""
        return torch.tensor([0 if item is None else item for item in items], dtype=torch.int64)


class LabelConditioner(Conditioner):
    """A class -> a learned vector (B, width)."""

    def __init__(self, key: str, classes: Sequence[str], width: int = 128):
        super().__init__()
        self.key, self.reader, self.widths = key, Labels(classes), CondWidths(vector=width)
        self.table = nn.Parameter(torch.empty(len(self.reader.classes), width))
        self.null_vector = nn.Parameter(torch.empty(width))
        for values in (self.table, self.null_vector):
            nn.init.normal_(values)

    def forward(self, encoded: Tensor) -> Cond:
        return Cond(vector=self.table[encoded])

    def null(self, batch_size: int) -> Cond:
        return Cond(vector=self.null_vector.expand(batch_size, -1))
