"""How a model holds what is given: known cells, media beside the grid, where its streams begin; and what it cannot hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmldm.diffusion.grids import start_at
from mmldm.diffusion.known import Context, cells_covered, samples_covered, snap
from mmldm.given import Given, Known, Placed, box
from mmldm.interfaces import Codec, Media, Reference, grid_positions
from mmldm.model import Model
from mmldm.paste import averaged, continued

__all__ = ["Held", "hold"]


@dataclass(frozen=True)
class Held:
    """What is given as a model holds it, in one row: the context of each stream, the latents to vary, and `notices` of what is
    held loosely or not at all."""

    given: Given
    context: Mapping[str, Context]
    init: Mapping[str, Tensor]
    notices: tuple[str, ...] = ()

    def rows(self, count: int) -> dict[str, Context]:
        """The contexts in `count` rows."""
        return {s: _rows(context, count) for s, context in self.context.items()}

    def grids(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where each stream goes of its full grid (n + 1,): from the given strength on where it is varied, nowhere where it is
        known wholly (0) or absent (1); all of one length, a stream that begins later stands until then."""
        given = self.given
        still = {**dict.fromkeys(given.whole, 0.0), **dict.fromkeys(given.absent, 1.0)}
        moving = {s: start_at(t, given.strength) if s in given.init else t for s, t in full.items() if s not in still}
        longest = max(len(t) for t in moving.values())
        grids = {s: torch.cat([t[:1].expand(longest - len(t)), t]) for s, t in moving.items()}
        return grids | {s: full[s].new_full((longest,), t) for s, t in still.items()}

    def start(self, model: Model, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """z_t (B, D, *L) at the given strength of the streams to vary."""
        t = {s: torch.full((len(noise[s]),), self.given.strength, dtype=z.dtype, device=z.device) for s, z in self.init.items()}
        return {s: model.path.mix(z.expand_as(noise[s]), noise[s], t[s]) for s, z in self.init.items()}


def _rows(context: Context, count: int) -> Context:
    wide = lambda tensor: None if tensor is None else tensor.expand(count, *tensor.shape[1:])  # noqa: E731
    references = tuple(replace(r, z=wide(r.z)) for r in context.references)
    return replace(context, z=wide(context.z), known=wide(context.known), references=references)


@torch.no_grad()
def hold(
    given: Given,
    model: Model,
    medias: Mapping[str, Media],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    references: bool = True,
) -> Held:
    """Encode what is given; `references` says whether the model was trained with media beside its grids.

    Raises ValueError for a known part that neither cells nor references can hold.
    """
    context, notices, place = {}, [], {"device": device, "dtype": dtype}
    for stream, media in medias.items():
        cells, known = model.latent_shape(stream, media.shape)[1:], given.known.get(stream)
        beside, kept = [*given.references.get(stream, ())], {}
        if known is not None:
            part = parts(model, stream, media, known, references)
            notices += [f"{stream}: {notice}" for notice in part.notices]
            beside += part.beside
            if bool(part.cells.any()):
                z = latent(model, stream, continued(known.x, known.kept), **place)
                kept = {"z": z, "known": part.cells[None].to(device)}
        placed = tuple(reference(model, stream, each, **place) for each in beside)
        context[stream] = model.context(stream, cells, device, references=placed, **kept)
    return Held(given, context, {s: latent(model, s, x, **place) for s, x in given.init.items()}, tuple(notices))


def reference(model: Model, stream: str, placed: Placed, device: torch.device | str, dtype: torch.dtype) -> Reference:
    """Given media encoded on their own, at their place."""
    z = latent(model, stream, placed.x, device, dtype)
    return Reference(z, grid_positions(model.codecs[stream].axes, z.shape[2:], placed.at).to(device))


def latent(model: Model, stream: str, x: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Media (C, *S) -> its whitened latent (1, D, *L)."""
    return model.whiten(stream, model.encode(stream, x[None].to(device=device, dtype=dtype)))


# ---------------------------------------------------------------- from known samples to cells and references


@dataclass(frozen=True)
class Parts:
    """The cells (*L) that hold known media, the spans that stand beside the grid, and what there is to tell of the rest."""

    cells: Tensor
    beside: tuple[Placed, ...]
    notices: tuple[str, ...]


def parts(model: Model, stream: str, media: Media, known: Known, references: bool) -> Parts:
    """Known samples as known cells, in whole patches, and as references.

    A cell is known when all that its encoding sees is. Where this would leave more than one patch of cells beside the seam
    unknown (a codec that sees far), the cells whose own samples are known hold them instead. With `references`, a span of time
    that has no cell in the strict sense stands beside the grid.
    """
    codec, patch, mask = model.codecs[stream], model.denoiser.patches[stream], known.kept
    cells = model.latent_shape(stream, media.shape)[1:]
    own = covered(mask, codec, cells)
    sure = own & covered(mask, codec, cells, [codec.field(axis) for axis in codec.axes])
    beside, held = [], torch.zeros_like(mask)
    for first, last in spans(mask, media) if references else ():
        span = box(media, time=(first / media.rate, last / media.rate))
        inside = covered(span, codec, cells)
        if not bool(snap(sure & inside, patch).any()):
            beside.append(Placed(known.x.narrow(1 + media.time_axis, first, last - first), first / media.rate))
            own, held = own & ~inside, held | span
    strict, wide = snap(sure & own, patch), snap(own, patch)
    relaxed = bool((wide & (averaged(strict, patch) < 1e-9)).any())
    chosen = wide if relaxed else strict
    held = (held | samples_held(chosen, codec, media)) & mask
    check_held(stream, media, mask, held, codec, patch, references)
    notices = []
    if relaxed:
        loose = int((chosen & ~sure).sum())
        notices.append(
            f"{loose} of {int(chosen.sum())} known cells are relaxed: they also see what is not kept, there continued"
        )
    if pasted := int((mask & ~held).sum()):
        notices.append(f"{pasted / int(mask.sum()):.0%} of what is kept lies in no known cell and is only pasted")
    return Parts(chosen, tuple(beside), tuple(notices))


def check_held(
    stream: str, media: Media, mask: Tensor, held: Tensor, codec: Codec, patch: Sequence[int], references: bool
) -> None:
    """Raise ValueError for a span of time of which nothing is held, or where nothing is at all."""
    lost = [(a / media.rate, b / media.rate) for a, b in spans(mask, media)]
    lost = [f"{a:g}:{b:g} s" for a, b in lost if not bool((held & box(media, time=(a, b))).any())]
    if not lost and bool(held.any()):
        return
    cell = " x ".join(f"{a.size * p * a.unit:g} {a.name}" for a, p in zip(codec.axes, patch, strict=True))
    got = ", ".join(lost) or f"{int(mask.sum())} scattered samples"
    choice = "" if references else ", or a model trained with references (diffusion/known=references)"
    raise ValueError(
        f"wanted {stream} to keep that fills a cell of the model ({cell}), got {got}; choose a larger part{choice}"
    )


def spans(mask: Tensor, media: Media) -> list[tuple[int, int]]:
    """The spans [first, last) of samples in time that are known across all other axes; none of stills."""
    if media.time_axis is None:
        return []
    line = mask.movedim(media.time_axis, 0).reshape(media.shape[1 + media.time_axis], -1).all(1).long()
    change = torch.diff(line, prepend=line.new_zeros(1), append=line.new_zeros(1))
    return list(zip((change > 0).nonzero()[:, 0].tolist(), (change < 0).nonzero()[:, 0].tolist(), strict=True))


def covered(mask: Tensor, codec: Codec, cells: Sequence[int], fields: Sequence[tuple[float, float]] | None = None) -> Tensor:
    """The cells (*L) that known samples (*S) determine; along an axis that only the latent has, each cell sees all samples."""
    if mask.ndim > len(cells):
        return mask.all().expand(tuple(cells))
    own = [axis.length(n) for axis, n in zip(codec.axes[mask.ndim :], cells[mask.ndim :], strict=True)]
    mask = mask.reshape(*mask.shape, *[1] * len(own)).expand(*mask.shape, *own)
    return cells_covered(mask, codec.axes, fields)


def samples_held(cells: Tensor, codec: Codec, media: Media) -> Tensor:
    """The samples (*S) that known cells (*L) hold."""
    shape = media.shape[1:]
    if len(shape) > cells.ndim:
        return cells.all().expand(shape)
    for _ in range(cells.ndim - len(shape)):
        cells = cells.all(-1)
    return samples_covered(cells, codec.axes[: len(shape)], shape)
