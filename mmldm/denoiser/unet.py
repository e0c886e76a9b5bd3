"""UNet: a convolutional U-Net with attention for one stream, its grid of any rank and size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from mmldm.denoiser.dit import Prepared
from mmldm.denoiser.memory import Memory, layout_inputs
from mmldm.denoiser.patches import Size, midpoints, patchify, resolve_patches
from mmldm.denoiser.stream import Segment, StreamTokens, token_extents
from mmldm.denoiser.unet_blocks import Down, Scale, Stride, UNetBlock, Up, kernels_of, strides_of
from mmldm.interfaces import Cond, CondWidths, Denoiser, Geometry, Noisy, Reference
from mmldm.nn.attention import normalise
from mmldm.nn.positions import AxialAngles, LevelEmbedding, rotary_tables
from mmldm.nn.transformer import init_linear, select

__all__ = ["UNet"]


class UNet(Denoiser):
    """A U-Net of residual blocks with self- and cross-attention at chosen levels (latent diffusion, arXiv 2112.10752, fig. 3).

    One level per entry of `widths`, `depth` blocks down and as many up in each, one between; `attention` says which levels
    attend, the last always does. Between levels the grid shrinks by `strides` (None: `strides_of`). References pass through
    the same weights as grids of their own and meet the stream in attention. `patch` and `checkpoint` as in DiT.
    """

    def __init__(
        self,
        streams: Mapping[str, Geometry],
        conditions: Mapping[str, CondWidths],
        widths: Sequence[int] = (128, 256, 384),
        depth: int = 2,
        attention: Sequence[bool] = (False, True, True),
        head_width: int = 64,
        patch: Size | Mapping[str, Size] = 1,
        strides: Sequence[Stride] | None = None,
        mlp_ratio: float = 4.0,
        checkpoint: bool = False,
    ):
        super().__init__()
        self._check(streams, conditions, list(widths), depth, list(attention), head_width)
        self.streams, self.conditions = dict(streams), dict(conditions)
        ((self.stream, geometry),) = streams.items()
        self.widths, self.attention, self.head_width = tuple(widths), tuple(attention), head_width
        self.patches, self.checkpoint = resolve_patches(patch, streams), checkpoint
        self.axes, rank = tuple(axis.name for axis in geometry.axes), len(geometry.axes)
        steps = strides_of(strides, geometry.axes, len(widths))
        self.sizes = list(accumulate(steps, _times, initial=self.patches[self.stream]))
        aligned = sum(c.aligned.get(self.stream, 0) for c in conditions.values())
        self.tokens = StreamTokens(geometry, self.patches[self.stream], widths[0], aligned)
        self.angles = nn.ModuleList(AxialAngles(head_width, token_extents(streams, {self.stream: n})) for n in self.sizes)
        heard = 4 * widths[0]
        self.level = LevelEmbedding(heard)
        self.vectors = nn.ModuleDict({_slot(n): nn.Linear(c.vector, heard) for n, c in conditions.items() if c.vector})
        spoken = {_slot(n): c.tokens for n, c in conditions.items() if c.tokens}
        self.contexts = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(tokens, width) for n, tokens in spoken.items() if attends})
            for width, attends in zip(widths, attention, strict=True)
        )
        down = [level for level in range(len(widths)) for _ in range(depth)]
        self.plan, self.depth = [*down, down[-1], *reversed(down)], len(down)
        bases = [6 * width if attends else 0 for width, attends in zip(widths, attention, strict=True)]
        self.shares = [*(2 * widths[level] for level in self.plan), *bases, 2 * widths[0]]
        self.modulation = nn.Linear(heard, sum(self.shares))
        init_linear(self)
        kernels, cross = kernels_of(geometry.axes), bool(spoken)
        self.blocks = nn.ModuleList()
        for place, level in enumerate(self.plan):
            width, heads = widths[level], widths[level] // head_width if attention[level] else 0
            entering = 2 * width if place > self.depth else width
            self.blocks.append(UNetBlock(rank, entering, width, kernels, heads, mlp_ratio, cross))
        pairs = list(zip(widths, widths[1:], steps, strict=False))
        self.down = nn.ModuleList(Down(rank, wide, deep, stride) for wide, deep, stride in pairs)
        self.up = nn.ModuleList(Up(rank, deep, wide, stride) for wide, deep, stride in pairs)
        self._init_silent()

    def layers(self) -> tuple[nn.Module, ...]:
        return tuple(self.blocks)

    def silence(self, conditions: Iterable[str]) -> None:
        for name in conditions:
            if _slot(name) in self.vectors:
                nn.init.zeros_(self.vectors[_slot(name)].weight)
                nn.init.zeros_(self.vectors[_slot(name)].bias)

    def prepare(self, conds: dict[str, Cond]) -> Prepared:
        """Everything of the conditions that all noise levels share: projected vectors, keys and values of every attention."""
        if set(conds) != set(self.conditions):
            raise ValueError(f"wanted the conditions {sorted(self.conditions)}, got {sorted(conds)}")
        kind = self.modulation.weight.dtype
        vectors = [self.vectors[_slot(n)](conds[n].vector.to(kind)) for n, c in self.conditions.items() if c.vector]
        spoken = {n: conds[n] for n, c in self.conditions.items() if c.tokens}
        context, mask = [], None
        if spoken:
            tokens = [
                normalise(torch.cat([of[_slot(n)](c.tokens.to(kind)) for n, c in spoken.items()], 1)) if attends else None
                for of, attends in zip(self.contexts, self.attention, strict=True)
            ]
            context = [
                None if block.attention is None else block.attention.cross.project(tokens[level])
                for block, level in zip(self.blocks, self.plan, strict=True)
            ]
        if any(c.mask is not None for c in spoken.values()):
            full = [torch.ones_like(c.tokens[..., 0], dtype=torch.bool) if c.mask is None else c.mask for c in spoken.values()]
            mask = torch.cat(full, 1)
        aligned = [conds[n].aligned[self.stream] for n, c in self.conditions.items() if self.stream in c.aligned]
        beside = {self.stream: torch.cat(aligned, 1)} if aligned else {}
        return Prepared(torch.stack(vectors).sum(0) if vectors else None, context, mask, beside, Memory())

    def forward(
        self, noisy: dict[str, Noisy], prepared: Prepared, residuals: Sequence[Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        """The prediction (B, D, *L); `residuals`, (B, N, width of its level) or None per block, are added behind it."""
        if set(noisy) != {self.stream}:
            raise ValueError(f"wanted the stream {self.stream!r}, got {sorted(noisy)}")
        given = noisy[self.stream]
        runs = self.tokens.segments(given, prepared.aligned.get(self.stream))
        x = torch.cat([run.tokens for run in runs], 1) if len(runs) > 1 else runs[0].tokens
        partly_known = any(run.known is not None for run in runs)
        modulation = self._modulation(given, partly_known, prepared.vector).to(x.dtype).split(self.shares, -1)
        memory, fixed = prepared.memory or Memory(), layout_inputs(noisy)
        scales = memory.recall(("scales", x.shape, x.dtype), fixed, lambda: self._scales(given, runs, x.dtype))
        context_mask = None if prepared.mask is None else prepared.mask[:, None, None]
        level, kept = 0, []
        for place, (block, at) in enumerate(zip(self.blocks, self.plan, strict=True)):
            if at != level:
                layer = self.down[level] if at > level else self.up[at]
                x, level = scales[level].grid_wise(layer, x, onto=scales[at]), at
            if place > self.depth:
                x = torch.cat([x, kept.pop()], -1)
            base, context = modulation[len(self.plan) + at], prepared.context[place] if prepared.context else None
            inputs = (x, modulation[place], base, scales[at], context, context_mask)
            if self.checkpoint and torch.is_grad_enabled():
                x = recompute(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*inputs)
            if residuals is not None and residuals[place] is not None:
                x = x + residuals[place].to(x.dtype)
            if place < self.depth:
                kept.append(x)
        shift, gain = select(modulation[-1], scales[0].chosen).chunk(2, -1)
        x = (normalise(x) * (1 + gain) + shift)[:, : runs[0].tokens.shape[1]]
        return {self.stream: self.tokens.grid(x, tuple(given.z.shape[2:]))}

    def _modulation(self, given: Noisy, partly_known: bool, vector: Tensor | None) -> Tensor:
        """Shifts, scales and gates of all blocks (B, K, sum(shares)): of the stream's level and, where cells are known, 0."""
        levels = torch.stack([given.level, torch.zeros_like(given.level)][: 1 + partly_known], 1)
        heard = self.level(levels)
        return self.modulation(F.silu(heard if vector is None else heard + vector[:, None]))

    def _scales(self, given: Noisy, runs: Sequence[Segment], dtype: torch.dtype) -> list[Scale]:
        """What each level knows of the stream's grid and of its references."""
        parts, patch = (given, *given.references), self.patches[self.stream]
        fine = [_cells(part, patch) for part in parts]
        valid, known = _full([run.valid for run in runs], runs, True), _full([run.known for run in runs], runs, False)
        scales = []
        for level, size in enumerate(self.sizes):
            stride = [n // p for n, p in zip(size, patch, strict=True)]
            seen = None if valid is None else _pooled(valid, fine, stride, False).any(-1)
            tables = mask = chosen = None
            if known is not None:
                clean = _pooled(known, fine, stride, True).all(-1)
                chosen = torch.stack([~clean, clean], -1).to(dtype)
            if self.attention[level]:
                points = [midpoints(part.positions, size) for part in parts]
                batch = max(len(each) for each in points)
                angles = self.angles[level](torch.cat([each.expand(batch, -1, -1) for each in points], 1), self.axes)
                tables = tuple(table.to(dtype) for table in rotary_tables(angles, self.widths[level] // self.head_width))
                mask = None if seen is None else (seen | ~seen.any(1, keepdim=True))[:, None, None]
            hidden = None if seen is None else ~seen[..., None]
            scales.append(Scale(tuple(_cells(part, size) for part in parts), hidden, chosen, tables, mask))
        return scales

    def _check(
        self,
        streams: Mapping[str, Geometry],
        conditions: Mapping[str, CondWidths],
        widths: Sequence[int],
        depth: int,
        attention: Sequence[bool],
        head_width: int,
    ) -> None:
        if len(streams) != 1:
            raise ValueError(
                f"wanted one stream, got {sorted(streams)}: a U-Net has one grid; choose denoiser=dit_s for several"
            )
        foreign = {s for c in conditions.values() for s in c.aligned} - set(streams)
        if foreign:
            raise ValueError(f"wanted conditions aligned with streams, got {sorted(foreign)}; choose from {sorted(streams)}")
        if depth < 1:
            raise ValueError(f"wanted a depth of 1 or more blocks per level, got {depth}")
        if len(attention) != len(widths) or not attention[-1:] == [True]:
            raise ValueError(f"wanted true or false per width in attention, true for the last, got {attention} for {widths}")
        odd = [w for w, attends in zip(widths, attention, strict=True) if attends and w % head_width]
        if odd or head_width % 2:
            raise ValueError(
                f"wanted an even head_width that divides the widths that attend, got {head_width} for {odd or widths}"
            )

    def _init_silent(self) -> None:
        """Output and modulation zero: the prediction is 0; cells differ in size, not only in direction, for the norms."""
        for layer in (self.modulation, self.tokens.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.tokens.embed.bias, std=0.5)


def _slot(name: str) -> str:
    """A name that torch accepts for a sub-module, whatever the condition is called."""
    return "of_" + name.replace(".", "_")


def _times(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(n * m for n, m in zip(one, other, strict=True))


def _cells(part: Noisy | Reference, size: Sequence[int]) -> tuple[int, ...]:
    """How many tokens of `size` cells cover a grid along each axis."""
    return tuple(-(-n // p) for n, p in zip(part.z.shape[2:], size, strict=True))


def _full(masks: Sequence[Tensor | None], runs: Sequence[Segment], fill: bool) -> list[Tensor] | None:
    """The masks (B, N) of all runs, `fill` where one has none; None where no run has any."""
    if all(mask is None for mask in masks):
        return None
    return [
        torch.full(run.tokens.shape[:2], fill, device=run.tokens.device) if mask is None else mask
        for mask, run in zip(masks, runs, strict=True)
    ]


def _pooled(masks: Sequence[Tensor], cells: Sequence[Sequence[int]], stride: Sequence[int], fill: bool) -> Tensor:
    """Masks (B, N) of grids of `cells` -> (B, M, prod(stride)): each coarse cell's own cells, `fill` beyond the edge."""
    return torch.cat([patchify(m[:, None].unflatten(2, n), stride, fill) for m, n in zip(masks, cells, strict=True)], 1)
