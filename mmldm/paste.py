"""Known media samples in what is generated: put back as they are, continued where nothing is known, the seam faded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from mmldm.given import Known
from mmldm.interfaces import Media

__all__ = ["averaged", "continued", "paste"]

SEAM_SECONDS, SEAM_PIXELS = 0.01, 3  # how far a seam is faded: at least one sample in time


def paste(made: Tensor, known: Known | None, media: Media) -> Tensor:
    """`made` (B, C, *S) with what is kept of the known media in its place, equal to the bit.

    Beside the seam, on the unknown side alone, `made` fades in within 10 ms (a frame at least) or 3 pixels: from the known
    continued on a single axis (a waveform's phase is free), else from `made` corrected by its error at the seam.
    """
    if known is None:
        return made
    x, mask = known.x.to(made), known.kept.to(made.device)
    if known.whole:
        return x.expand_as(made)
    base = made if mask.ndim > 1 else torch.zeros_like(made)
    beside = base + continued(x - base, mask)
    return torch.where(mask, x, made + faded(mask, media).to(made) * (beside - made))


def faded(mask: Tensor, media: Media) -> Tensor:
    """1 on a mask (*S), falling off to 0 within the width of a seam outside it."""
    time = max(1, round(SEAM_SECONDS * (media.rate or 0)))
    return (2 * averaged(mask, [time if dim == media.time_axis else SEAM_PIXELS for dim in range(mask.ndim)])).clamp(max=1)


def averaged(mask: Tensor, far: Sequence[int]) -> Tensor:
    """The share of True among the neighbours of each sample of a mask (*S), up to `far[axis]` away on either side."""
    share = mask.double()
    for dim, n in enumerate(far):
        lines = share.movedim(dim, -1)
        mean = avg_pool1d(lines.reshape(1, -1, lines.shape[-1]), 2 * n + 1, 1, n, count_include_pad=False)
        share = mean.reshape(lines.shape).movedim(-1, dim)
    return share


def continued(x: Tensor, mask: Tensor) -> Tensor:
    """x (..., *S) with what the mask (*S) leaves open made up from the known samples; zeros where there are none.

    The nearest known samples along each axis are averaged by inverse square distance; on a single axis (a waveform) they are
    mirrors instead, in which it goes on swinging.
    """
    x = torch.where(mask, x, 0.0)
    while bool(mask.any()) and not bool(mask.all()):
        total, weight = torch.zeros_like(x), torch.zeros(mask.shape, dtype=x.dtype, device=x.device)
        for dim in range(mask.ndim):
            for source, distance in nearest(mask, dim):
                near = torch.where(distance > 0, distance.clamp(min=1).to(x) ** -2, 0.0)
                total = total + near * x.gather(dim - mask.ndim, source.expand_as(x))
                weight = weight + near
        found = weight > 0
        x = torch.where(mask | ~found, x, total / torch.where(found, weight, 1.0))
        mask = mask | found
    return x


def nearest(mask: Tensor, dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For the sides before and after along an axis: the place (*S) of the nearest known sample, or on a single axis of the
    image in it, and how far it is (*S), 0 where there is none."""
    length = mask.shape[dim]
    here = torch.arange(length, device=mask.device).reshape([-1 if d == dim else 1 for d in range(mask.ndim)])
    before = torch.where(mask, here, -1).cummax(dim).values
    after = torch.where(mask, here, length).flip(dim).cummin(dim).values.flip(dim)
    for edge in (before, after):
        found = (edge >= 0) & (edge < length)
        edge = edge.clamp(0, length - 1)
        image = (2 * edge - here).clamp(0, length - 1) if mask.ndim == 1 else edge
        yield torch.where(mask.gather(dim, image), image, edge), (edge - here).abs() * found
