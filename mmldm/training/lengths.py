"""How long the clips of a step are: whole, single samples, or a random length in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmldm import keyed
from mmldm.interfaces import Codec

__all__ = ["Lengths"]


class Lengths:
    """Crops the clips of one optimiser step along their time axis to one length, at one place, both keyed.

    With probability `stills` to the first cell's extent (one sample where the codec takes stills), with `whole` not at all,
    else to a number of whole cells drawn evenly from `shortest` to all. Media without time are left as they are.
    """

    def __init__(self, stills: float = 0.2, whole: float = 0.4, shortest: int = 2):
        if min(stills, whole) < 0 or stills + whole > 1 or shortest < 1:
            raise ValueError(f"wanted stills + whole <= 1 and shortest >= 1, got {stills} + {whole}, {shortest}")
        self.stills, self.whole, self.shortest = stills, whole, shortest

    def __call__(self, x: Tensor, codec: Codec, key: Sequence[int | str]) -> Tensor:
        time = codec.media.time_axis
        if time is None:
            return x
        axis, length = codec.axes[time], x.shape[2 + time]
        kind, size, place = torch.rand(3, generator=keyed.generator(*key)).tolist()
        if self.stills <= kind < self.stills + self.whole:
            return x
        most = max(1, (length - axis.first) // axis.size + 1)
        least = min(self.shortest, most)
        cells = 1 if kind < self.stills else least + int(size * (most - least + 1))
        samples = min(axis.length(cells), length)
        return x.narrow(2 + time, int(place * (length - samples + 1)), samples)
