"""What is asked of a generation: fields, a text to steer away from -> the branches of its guidance, conditions encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmldm.diffusion.branches import Branch, Branches, take_rows
from mmldm.diffusion.known import Context
from mmldm.interfaces import Cond
from mmldm.model import Model

__all__ = ["as_fields", "branches", "check_fields"]


def branches(
    model: Model,
    fields: Mapping[str, Sequence],
    count: int,
    context: Mapping[str, Context],
    names: Sequence[str],
    negative: str | None = None,
) -> Branches:
    """The guidance branches of these names for `count` rows, their conditions computed once."""
    conds = [conditions(model, fields, count, name, negative) for name in names]
    joined = {name: Cond.cat([cond[name] for cond in conds]) for name in conds[0]}
    prepared, denoise = model.prepare(joined), model.denoise
    rows = [take_rows(prepared, i * count, (i + 1) * count) for i in range(len(names))]
    return Branches({name: Branch(denoise, rows[i], context) for i, name in enumerate(names)})


def conditions(
    model: Model, fields: Mapping[str, Sequence], count: int, branch: str, negative: str | None = None
) -> dict[str, Cond]:
    """The conditions of one branch: as asked (`cond`), none or the negative text (`null`), all but one (`without:NAME`)."""
    kind, _, left_out = branch.partition(":")
    if kind not in ("cond", "null", "without"):
        raise ValueError(f"wanted a guidance over cond, null or without:NAME, got {branch!r}")
    if kind == "null":
        if negative is None:
            return model.conditions.null(count)
        fields = {"text": [negative] * count}
    keys = {key for key, _ in model.conditions.readers.values()}
    device = next(model.denoiser.parameters()).device
    read, present = model.conditions.read({key: list(fields.get(key, [None] * count)) for key in keys})
    keep = {name: (rows & (name != left_out)).to(device) for name, rows in present.items()}
    return model.conditions(model.conditions.encode(on_device(read, device)), keep)


def check_fields(model: Model, fields: Mapping[str, Sequence]) -> None:
    """Raise ValueError for fields that no condition reads."""
    keys = {key for key, _ in model.conditions.readers.values()} | {"text"}
    if odd := sorted(set(fields) - keys):
        raise ValueError(f"wanted fields that the model reads, got {', '.join(odd)}; choose from {', '.join(sorted(keys))}")


def as_fields(prompts: str | Sequence[str] | Mapping[str, Sequence]) -> dict[str, list]:
    """One text, texts, or fields -> fields of equal length."""
    if isinstance(prompts, str):
        return {"text": [prompts]}
    fields = {k: list(v) for k, v in prompts.items()} if isinstance(prompts, Mapping) else {"text": list(prompts)}
    lengths = {len(values) for values in fields.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"wanted at least one prompt and fields of equal length, got { {k: len(v) for k, v in fields.items()} }"
        )
    return fields


def on_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: on_device(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_device(v, device) for v in value)
    return value
