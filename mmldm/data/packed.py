"""Many small values in one array: a fraction of the memory of as many objects, and soon in another process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["Packed"]


def _plain(value: Any) -> Any:
    """What json cannot write (numpy scalars, arrays, tensors) as plain values."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


class Packed(Sequence):
    """Values as JSON, parsed when they are asked for: `text` (bytes,) uint8 holds them end to end, `ends` (n,) int64."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, values: Iterable[Any]) -> Packed:
        """The same values; names of files may hold what is no Unicode."""
        text, ends = bytearray(), []
        for value in values:
            text += json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")
            ends.append(len(text))
        return cls(np.frombuffer(text, dtype=np.uint8), np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._value(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._value(int(index) % len(self))

    def _value(self, index: int) -> Any:
        begin = int(self.ends[index - 1]) if index else 0
        return json.loads(self.text[begin : int(self.ends[index])].tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
