"""Branches of guidance evaluated together: those that share a model run in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmldm.diffusion.known import Context
from mmldm.diffusion.path import Path, expand
from mmldm.interfaces import Reference

__all__ = ["Branch", "Branches", "Translated", "cat_rows", "map_tensors", "take_rows"]

Latents = dict[str, Tensor]
Asks = Callable[[Latents, Latents, Mapping[str, Context], Any], Latents]


@dataclass(frozen=True)
class Branch:
    """One way to ask: `model(z_t, t, context, prepared) -> z_hat` with its own conditions and known cells.

    `prepared` is any tree of tensors, batch first; `absent[stream]` is z_t at t = 1 (B, D, *L) of a stream which this branch
    is not to see and of which it then says nothing (guidance by a stream).
    """

    model: Asks
    prepared: Any = None
    context: Mapping[str, Context] = field(default_factory=dict)
    absent: Mapping[str, Tensor] = field(default_factory=dict)

    def see(self, z_t: Latents, t: Latents) -> tuple[Latents, Latents]:
        """The streams as this branch sees them."""
        hidden = {s: self.absent[s] for s in z_t if s in self.absent}
        return {**z_t, **hidden}, {**t, **{s: torch.ones_like(t[s]) for s in hidden}}


@dataclass(frozen=True)
class Translated:
    """A model of the path `own`, asked on another: at the level of equal log_snr, with z_t / sigma_t kept.

    A path is a scaling of one process (Karras et al. 2022, arXiv 2206.00364, eq. 4); beyond the range of its own path the model
    is asked at t = 1.
    """

    model: Asks
    own: Path
    path: Path

    def __call__(self, z_t: Latents, t: Latents, context: Mapping[str, Context], prepared: Any) -> Latents:
        there = {s: self.own.time(self.path.log_snr(level)) for s, level in t.items()}
        seen = {s: z * expand(self._ratio(t[s], there[s]), z) for s, z in z_t.items()}
        return self.model(seen, there, context, prepared)

    def _ratio(self, t: Tensor, there: Tensor) -> Tensor:
        """sigma by sigma, or the same number alpha by alpha where that one is the larger."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        noisy = sigma > alpha
        return torch.where(noisy, self.own.sigma(there), self.own.alpha(there)) / torch.where(noisy, sigma, alpha)


@dataclass(frozen=True)
class _Group:
    """Branches of one model and one shape, stacked along the batch."""

    names: tuple[str, ...]
    model: Asks
    inputs: Any


class Branches:
    """Named branches as one callable `denoise(z_t, t, names) -> {name: z_hat}`, what `sample` asks for.

    Branches with equal models (a bound method is equal to itself) and the same shapes of conditions are stacked once here and
    run as one batch; a subset of them costs only its own rows.
    """

    def __init__(self, branches: Mapping[str, Branch]):
        self.branches = dict(branches)
        groups: dict[Any, list[str]] = {}
        for name, branch in self.branches.items():
            groups.setdefault((branch.model, _signature((branch.context, branch.prepared))), []).append(name)
        self._groups = [
            _Group(tuple(names), self.branches[names[0]].model,
                   cat_rows([(dict(self.branches[n].context), self.branches[n].prepared) for n in names]))
            for names in groups.values()
        ]  # fmt: skip

    def __call__(self, z_t: Latents, t: Latents, names: Sequence[str]) -> dict[str, Latents]:
        """z_t[stream] (B, D, *L) and t[stream] (B,) -> z_hat[name][stream] of the streams that each branch sees."""
        missing = [name for name in names if name not in self.branches]
        if missing:
            raise ValueError(f"wanted the branches {list(names)}, got no {missing}; choose from {sorted(self.branches)}")
        size, out = len(next(iter(z_t.values()))), {}
        for group in self._groups:
            wanted = [name for name in group.names if name in names]
            if not wanted:
                continue
            seen = cat_rows([self.branches[name].see(z_t, t) for name in wanted])
            places = [group.names.index(name) for name in wanted]
            inputs = group.inputs
            if places == list(range(places[0], places[-1] + 1)):
                inputs = take_rows(inputs, places[0] * size, (places[-1] + 1) * size)
            else:
                inputs = cat_rows([take_rows(inputs, i * size, (i + 1) * size) for i in places])
            z_hat = group.model(*seen, *inputs)
            for i, name in enumerate(wanted):
                told = {s: z for s, z in z_hat.items() if s not in self.branches[name].absent}
                out[name] = take_rows(told, i * size, (i + 1) * size)
        return {name: out[name] for name in names}


def cat_rows(trees: Sequence[Any]) -> Any:
    """Concatenate equal trees (dict, list, tuple, dataclass, None) of tensors along the batch; one tree comes back as it is."""
    return trees[0] if len(trees) == 1 else map_tensors(lambda *rows: torch.cat(rows), *trees)


def take_rows(tree: Any, start: int, stop: int) -> Any:
    """Rows start..stop of every tensor of a tree (views)."""
    return map_tensors(lambda rows: rows[start:stop], tree)


def _shared(owner: Any, name: str) -> bool:
    """Whether a field has no batch axis: positions (*L, A, 2) of a Context or a Reference."""
    if name != "positions" or not isinstance(owner, (Context, Reference)):
        return False
    positions = getattr(owner, name)
    return positions is not None and positions.dim() == positions.shape[-2] + 2


def map_tensors(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Equal trees of tensors -> one tree of `function(*tensors)`; whatever else they hold is the first one's."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, Mapping):
        return {k: map_tensors(function, *(tree[k] for tree in trees)) for k in first}
    if isinstance(first, (tuple, list)):
        items = [map_tensors(function, *each) for each in zip(*trees, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    if is_dataclass(first):
        names = [f.name for f in fields(first) if not _shared(first, f.name)]
        return replace(first, **{name: map_tensors(function, *(getattr(tree, name) for tree in trees)) for name in names})
    return first


def _signature(tree: Any) -> Any:
    """What must agree for trees to be stacked: structure, shapes behind the batch, types, and shared positions themselves."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape[1:]), tree.dtype, tree.device
    if isinstance(tree, Mapping):
        return tuple((k, _signature(v)) for k, v in tree.items())
    if isinstance(tree, (tuple, list)):
        return tuple(_signature(v) for v in tree)
    if is_dataclass(tree):
        return type(tree), tuple(
            id(getattr(tree, f.name)) if _shared(tree, f.name) else _signature(getattr(tree, f.name)) for f in fields(tree)
        )
    return tree
