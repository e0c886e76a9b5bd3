"""Guidance: how the clean latents of several branches become one; everything is combined in z_hat, over all channels."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["APG", "AutoGuidance", "CFG", "ConditionCFG", "Guidance"]

Scale = float | Mapping[str, float]
Latents = dict[str, Tensor]
Interval = tuple[float, float]
Direction = tuple[Tensor, Tensor | None]
EVERYWHERE = (-math.inf, math.inf)


class Guidance:
    """z_hat = cond + sum_b (scale_b - 1) (cond - z_hat_b) over the branches b of `scales`; without any, no guidance.

    Branches: "cond" (what is asked), "null" (nothing, or a negative prompt), "without:<name>" (one condition is null, or one
    stream is not there), "weak" (a weaker model). A branch without a stream says nothing of that one. A scale is a number or
    one per stream (streams not named: 1). Outside `interval` in log_snr
    (Kynkaanniemi et al. 2024, arXiv 2404.07724, section 3; there in sigma = e^-log_snr) only "cond" is asked for. `rescale` in
    [0, 1] pulls the standard deviation back to cond's (Lin et al. 2024, arXiv 2305.08891, section 3.4, here in z_hat).
    """

    def __init__(
        self,
        scales: Mapping[str, Scale] | None = None,
        interval: Interval = EVERYWHERE,
        rescale: float = 0.0,
    ):
        if len(interval) != 2 or not interval[0] <= interval[1]:
            raise ValueError(f"wanted an interval (low, high) of log_snr, got {interval}")
        if not 0 <= rescale <= 1:
            raise ValueError(f"wanted rescale in [0, 1], got {rescale}")
        if "cond" in (scales or {}):
            raise ValueError("wanted scales of branches beside cond, got one for cond; choose from null, weak, without:<name>")
        self.scales, self.interval, self.rescale = dict(scales or {}), tuple(interval), rescale

    def changed(
        self, scales: Mapping[str, Scale] | None = None, interval: Interval | None = None, rescale: float | None = None
    ) -> Self:
        """A guidance of the same kind with other numbers; None leaves what is."""
        new = copy.copy(self)
        Guidance.__init__(
            new,
            self.scales if scales is None else scales,
            self.interval if interval is None else interval,
            self.rescale if rescale is None else rescale,
        )
        return new

    def scale(self, branch: str, stream: str, log_snr: float) -> float:
        """The scale of a branch on a stream at this level: 1 outside the interval."""
        if not self.interval[0] <= log_snr <= self.interval[1]:
            return 1.0
        scale = self.scales[branch]
        return float(scale.get(stream, 1.0)) if isinstance(scale, Mapping) else float(scale)

    def branches(self, log_snr: Mapping[str, float]) -> tuple[str, ...]:
        """The branches that are needed at these levels (Python floats: the device is not asked), "cond" first."""
        asked = {b: [s for s, value in log_snr.items() if self.scale(b, s, value) != 1] for b in self.scales}
        return ("cond", *(b for b, streams in asked.items() if any(b != f"without:{s}" for s in streams)))

    def init(self) -> Any:
        """The state before the first step."""
        return {}

    def combine(
        self,
        z_hats: Mapping[str, Latents],
        log_snr: Mapping[str, float],
        state: Any,
        free: Mapping[str, Tensor | None] | None = None,
    ) -> tuple[Latents, Any]:
        """z_hats[branch][stream] (B, D, *L) -> (z_hat[stream], state); statistics per sample over `free` cells (B, *L)."""
        out, state = {}, dict(state)
        for stream, cond in z_hats["cond"].items():
            mask, guided = (free or {}).get(stream), cond
            for branch in z_hats:
                silent = branch == "cond" or stream not in z_hats[branch]
                scale = 1.0 if silent else self.scale(branch, stream, log_snr[stream])
                if scale != 1:
                    key = branch, stream
                    delta, state[key] = self.direction(cond, z_hats[branch][stream], state.get(key), mask)
                    guided = guided + (scale - 1) * delta
            if self.rescale and guided is not cond:
                guided = guided * (1 + self.rescale * (_std(cond, mask) / _std(guided, mask) - 1))
            out[stream] = guided
        return out, state

    def direction(self, cond: Tensor, other: Tensor, momentum: Tensor | None, mask: Tensor | None) -> Direction:
        """What a scale above 1 adds, and the momentum to keep."""
        return cond - other, None


class CFG(Guidance):
    """Classifier-free guidance, null + scale (cond - null) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6: scale = 1 + w)."""

    def __init__(self, scale: Scale = 3.0, interval: Interval = EVERYWHERE, rescale: float = 0.0):
        super().__init__({"null": scale}, interval, rescale)


class ConditionCFG(Guidance):
    """One scale per condition, cond + sum_c (scale_c - 1) (cond - without c); text and given media apart, for example.

    After Liu et al. 2022, arXiv 2206.01714, section 4, measured from cond, so that scales of 1 change nothing.
    """

    def __init__(self, scales: Mapping[str, Scale], interval: Interval = EVERYWHERE, rescale: float = 0.0):
        super().__init__({f"without:{name}": scale for name, scale in scales.items()}, interval, rescale)


class AutoGuidance(Guidance):
    """Guidance by a weaker version of the model, with the same condition (Karras et al. 2024, arXiv 2406.02507, eq. 3)."""

    def __init__(self, scale: Scale = 2.0, interval: Interval = EVERYWHERE, rescale: float = 0.0):
        super().__init__({"weak": scale}, interval, rescale)


class APG(Guidance):
    """Adaptive projected guidance: of cond - null, keep the part orthogonal to cond and `eta` of the parallel one.

    Before that `momentum` (negative: away from the last directions) is added, and the root mean square per value is limited to
    `limit` (the paper's radius over sqrt(number of values), so that it means the same for every size). Sadat et al. 2024, arXiv
    2410.02416, algorithm 1. With eta = 1, momentum 0 and no limit it is CFG.
    """

    def __init__(
        self,
        scale: Scale = 3.0,
        eta: float = 0.0,
        momentum: float = -0.5,
        limit: float | None = None,
        interval: Interval = EVERYWHERE,
    ):
        super().__init__({"null": scale}, interval)
        if limit is not None and not limit > 0:
            raise ValueError(f"wanted limit > 0 or None, got {limit}")
        if not -1 < momentum < 1:
            raise ValueError(f"wanted momentum in (-1, 1), got {momentum}")
        self.eta, self.momentum, self.limit = eta, momentum, limit

    def direction(self, cond: Tensor, other: Tensor, momentum: Tensor | None, mask: Tensor | None) -> Direction:
        delta = cond - other
        if self.momentum and momentum is not None:
            delta = delta + self.momentum * momentum
        keep = delta
        if self.limit is not None:
            delta = delta * (self.limit / _mean(delta**2, mask).sqrt().clamp(min=1e-12)).clamp(max=1)
        parallel = _mean(delta * cond, mask) / _mean(cond**2, mask).clamp(min=1e-12) * cond
        return delta - (1 - self.eta) * parallel, keep


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean per sample over channels and the cells of mask (B, *L), keeping the axes; 0 where there is no cell."""
    axes = tuple(range(1, values.dim()))
    if mask is None:
        return values.mean(axes, keepdim=True)
    weight = mask[:, None].to(values)
    count = weight.sum(axes, keepdim=True) * values.shape[1]
    return torch.where(mask[:, None], values, 0).sum(axes, keepdim=True) / count.clamp(min=1)


def _std(values: Tensor, mask: Tensor | None) -> Tensor:
    return _mean((values - _mean(values, mask)) ** 2, mask).sqrt().clamp(min=1e-12)
