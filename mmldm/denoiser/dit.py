"""DiT: a diffusion transformer for grids of any rank and any number of streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from mmldm.denoiser.memory import Memory, Reuse, layout_inputs
from mmldm.denoiser.patches import Size, resolve_patches
from mmldm.denoiser.stream import Segment, StreamTokens, token_extents
from mmldm.interfaces import Cond, CondWidths, Denoiser, Geometry, Noisy
from mmldm.nn.attention import normalise
from mmldm.nn.positions import AxialAngles, LevelEmbedding, rotary_tables
from mmldm.nn.transformer import ModulatedBlock, init_linear, select

__all__ = ["DiT", "Prepared"]

WHOLE = 32


class Prepared(NamedTuple):
    """What does not depend on the noise level: vector (B, W); keys and values (B, heads, M, dim) of each block, their mask
    (B, M) or None; aligned[stream] (B, channels, *L); what the calls for this sample hand on to each other."""

    vector: Tensor | None
    context: list[tuple[Tensor, Tensor]]
    mask: Tensor | None
    aligned: dict[str, Tensor]
    memory: Memory | None = None


@dataclass(frozen=True)
class Layout:
    """What the tokens of all streams are at every noise level: the embedding of their `place` (1 or B, N, W), rotary `tables`,
    which level each has (`chosen`, None: all the first), which may be attended to (`mask`, None: all)."""

    place: Tensor
    tables: tuple[Tensor, Tensor]
    chosen: Tensor | None
    mask: Tensor | None


class DiT(Denoiser):
    """A diffusion transformer (DiT, arXiv 2212.09748) over the tokens of all streams in one sequence.

    `streams` and `conditions` say what it maps and what it is told; `patch` is the number of cells per token: one number, one
    per axis, or a mapping by stream or axis name. Positions are rotary in physical units; modulation is computed for a
    stream's level and for level 0 and selected per token by the known mask; `checkpoint` recomputes blocks in backward.
    The attribute `reuse` lets sampling skip blocks. Weights of any type: levels and positions stay in float32 or wider.
    """

    reuse: Reuse | None = None

    def __init__(
        self,
        streams: Mapping[str, Geometry],
        conditions: Mapping[str, CondWidths],
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: Size | Mapping[str, Size] = 1,
        mlp_ratio: float = 4.0,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.streams, self.conditions = dict(streams), dict(conditions)
        self.width, self.heads, self.checkpoint = width, heads, checkpoint
        self.patches = resolve_patches(patch, streams)
        self._check(width, heads)
        self.tokens = nn.ModuleDict(
            {_slot(s): StreamTokens(g, self.patches[s], width, self._aligned_channels(s)) for s, g in streams.items()}
        )
        self.angles = AxialAngles(width // heads, token_extents(streams, self.patches))
        self.place = nn.Linear(width // heads, width, bias=False)
        self.level = LevelEmbedding(width)
        self.kind = nn.ParameterDict({_slot(s): nn.Parameter(torch.zeros(width)) for s in streams})
        self.modulation = nn.Linear(width, 8 * width)
        self.vectors = nn.ModuleDict({_slot(n): nn.Linear(c.vector, width) for n, c in conditions.items() if c.vector})
        self.contexts = nn.ModuleDict({_slot(n): nn.Linear(c.tokens, width) for n, c in conditions.items() if c.tokens})
        init_linear(self)
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads, mlp_ratio, bool(self.contexts)) for _ in range(depth))
        self.last = nn.Parameter(torch.zeros(2 * width))
        self._init_silent()

    def layers(self) -> tuple[nn.Module, ...]:
        return tuple(self.blocks)

    def silence(self, conditions: Iterable[str]) -> None:
        for name in conditions:
            if _slot(name) in self.vectors:
                nn.init.zeros_(self.vectors[_slot(name)].weight)
                nn.init.zeros_(self.vectors[_slot(name)].bias)

    def prepare(self, conds: dict[str, Cond]) -> Prepared:
        """Everything of the conditions that all noise levels share: projected vectors, keys and values of every block."""
        if set(conds) != set(self.conditions):
            raise ValueError(f"wanted the conditions {sorted(self.conditions)}, got {sorted(conds)}")
        kind = self.last.dtype
        vectors = [self.vectors[_slot(n)](conds[n].vector.to(kind)) for n, c in self.conditions.items() if c.vector]
        vector = torch.stack(vectors).sum(0) if vectors else None
        spoken = {n: conds[n] for n, c in self.conditions.items() if c.tokens}
        context, mask = [], None
        if spoken:
            tokens = normalise(torch.cat([self.contexts[_slot(n)](c.tokens.to(kind)) for n, c in spoken.items()], 1))
            if any(c.mask is not None for c in spoken.values()):
                full = [c.tokens.new_ones(c.tokens.shape[:2], dtype=torch.bool) if c.mask is None else c.mask
                        for c in spoken.values()]  # fmt: skip
                mask = torch.cat(full, 1)
                if not torch.is_grad_enabled():
                    missing = -mask.shape[1] % WHOLE
                    tokens, mask = F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing))
            context = [block.cross.project(tokens) for block in self.blocks]
        aligned = {s: [conds[n].aligned[s] for n, c in self.conditions.items() if s in c.aligned] for s in self.streams}
        return Prepared(vector, context, mask, {s: torch.cat(each, 1) for s, each in aligned.items() if each}, Memory())

    def forward(
        self, noisy: dict[str, Noisy], prepared: Prepared, residuals: Sequence[Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        """The prediction of each stream (B, D, *L); `residuals`, (B, N, W) or None per block, are added behind it."""
        if set(noisy) != set(self.streams):
            raise ValueError(f"wanted the streams {sorted(self.streams)}, got {sorted(noisy)}; an absent stream has level 1")
        segments = {s: self.tokens[_slot(s)].segments(noisy[s], prepared.aligned.get(s)) for s in self.streams}
        runs = [segment for each in segments.values() for segment in each]
        x = torch.cat([run.tokens for run in runs], 1) if len(runs) > 1 else runs[0].tokens
        memory, fixed = prepared.memory or Memory(), layout_inputs(noisy)
        layout = memory.recall(("layout", x.shape, x.dtype), fixed, lambda: self._layout(segments, x.dtype))
        base = self._modulation(noisy, runs, prepared.vector).to(x.dtype)
        shared, last = base.split([6 * self.width, 2 * self.width], -1)
        inputs = (shared, layout, prepared, residuals)
        x = x + layout.place
        if self.reuse is None:
            x = self._through(range(len(self.blocks)), x, *inputs)
        else:
            first, middle, end = _parts(len(self.blocks), self.reuse)
            x = self._through(first, x, *inputs)
            same = [x.shape, *fixed, prepared.vector, *(c[0] for c in prepared.context[:1]), *prepared.aligned.values()]
            x = x + memory.recall("middle", same, lambda: self._through(middle, x, *inputs) - x, self.reuse.every - 1)
            x = self._through(end, x, *inputs)
        shift, scale = select(last + self.last.to(x.dtype), layout.chosen).chunk(2, -1)
        return self._outputs(torch.addcmul(shift, normalise(x), 1 + scale), noisy, segments)

    def _through(self, blocks: range, x: Tensor, base: Tensor, layout: Layout, prepared: Prepared, residuals: Any) -> Tensor:
        """Tokens x (B, N, W) through these blocks."""
        context_mask = None if prepared.mask is None else prepared.mask[:, None, None]
        for i in blocks:
            context = prepared.context[i] if prepared.context else None
            inputs = (x, base, layout.chosen, layout.tables, layout.mask, context, context_mask)
            if self.checkpoint and torch.is_grad_enabled():
                x = recompute(self.blocks[i], *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self.blocks[i](*inputs)
            if residuals is not None and residuals[i] is not None:
                x = x + residuals[i].to(x.dtype)
        return x

    def _layout(self, segments: dict[str, list[Segment]], dtype: torch.dtype) -> Layout:
        runs = [segment for each in segments.values() for segment in each]
        angles = self._angles(segments)
        place = self.place(torch.cat([angles.cos(), angles.sin()], -1).to(self.place.weight.dtype)).to(dtype)
        cos, sin = (table.to(dtype) for table in rotary_tables(angles, self.heads))
        levels = len(segments) * (1 if all(run.known is None for run in runs) else 2)
        return Layout(place, (cos, sin), _levels(segments, levels, dtype), _seen(runs))

    def _modulation(self, noisy: dict[str, Noisy], runs: Sequence[Segment], vector: Tensor | None) -> Tensor:
        """Shifts, scales and gates (B, K, 8·W): of each stream's level and, where cells are known, of level 0."""
        levels = torch.stack([noisy[s].level for s in self.streams], 1)
        kind = torch.stack([self.kind[_slot(s)] for s in self.streams])
        if any(run.known is not None for run in runs):
            levels, kind = torch.cat([levels, torch.zeros_like(levels)], 1), torch.cat([kind, kind])
        heard = self.level(levels) + kind
        return self.modulation(F.silu(heard if vector is None else heard + vector[:, None]))

    def _angles(self, segments: dict[str, list[Segment]]) -> Tensor:
        each = [
            self.angles(run.points, tuple(axis.name for axis in self.streams[s].axes))
            for s, runs in segments.items()
            for run in runs
        ]
        batch = max(len(a) for a in each)
        return torch.cat([a.expand(batch, -1, -1) for a in each], 1)

    def _outputs(self, x: Tensor, noisy: dict[str, Noisy], segments: dict[str, list[Segment]]) -> dict[str, Tensor]:
        out, start = {}, 0
        for stream, runs in segments.items():
            tokens = x[:, start : start + runs[0].tokens.shape[1]]
            out[stream] = self.tokens[_slot(stream)].grid(tokens, tuple(noisy[stream].z.shape[2:]))
            start += sum(run.tokens.shape[1] for run in runs)
        return out

    def _aligned_channels(self, stream: str) -> int:
        return sum(c.aligned.get(stream, 0) for c in self.conditions.values())

    def _check(self, width: int, heads: int) -> None:
        if not self.streams:
            raise ValueError("wanted at least one stream, got none")
        if width % heads or width // heads % 2:
            raise ValueError(f"wanted heads of an even width, got width {width} and {heads} heads")
        foreign = {s for c in self.conditions.values() for s in c.aligned} - set(self.streams)
        if foreign:
            raise ValueError(
                f"wanted conditions aligned with streams, got {sorted(foreign)}; choose from {sorted(self.streams)}"
            )

    def _init_silent(self) -> None:
        """Output and gates zero: every block is the identity and the prediction is 0."""
        for layer in (self.modulation, *(tokens.out for tokens in self.tokens.values())):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _slot(name: str) -> str:
    """A name that torch accepts for a sub-module, whatever the stream or condition is called."""
    return "of_" + name.replace(".", "_")


def _parts(depth: int, reuse: Reuse) -> tuple[range, range, range]:
    """The blocks that always run, those that may be skipped, those that always run again."""
    start = min(reuse.first, depth)
    stop = max(start, depth - reuse.last)
    return range(start), range(start, stop), range(stop, depth)


def _levels(segments: Mapping[str, Sequence[Segment]], count: int, dtype: torch.dtype) -> Tensor | None:
    """Which of the `count` levels of `_modulation` each token has, one-hot (1 or B, N, count); None where there is one."""
    if count == 1:
        return None
    rows = []
    for stream, runs in enumerate(segments.values()):
        for run in runs:
            own = torch.full((1, run.tokens.shape[1]), stream, device=run.tokens.device)
            rows.append(own if run.known is None else torch.where(run.known, stream + len(segments), stream))
    batch = max(len(row) for row in rows)
    level = torch.cat([row.expand(batch, -1) for row in rows], 1)
    return (level[..., None] == torch.arange(count, device=level.device)).to(dtype)


def _seen(runs: Sequence[Segment]) -> Tensor | None:
    """Which tokens may be attended to, (B, 1, 1, N), or None for all; a row without any valid token sees every one."""
    if all(run.valid is None for run in runs):
        return None
    full = [
        torch.ones(r.tokens.shape[:2], dtype=torch.bool, device=r.tokens.device) if r.valid is None else r.valid for r in runs
    ]
    valid = torch.cat(full, 1)
    return (valid | ~valid.any(1, keepdim=True))[:, None, None]
