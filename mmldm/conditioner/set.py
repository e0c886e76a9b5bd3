"""ConditionSet: the named conditioners of a model, with the one place where conditions are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.interfaces import Cond, Conditioner, CondWidths, Encoded, Reader

__all__ = ["ConditionSet"]


class ConditionSet(nn.Module):
    """Conditioners by name; the empty set is an unconditional model.

    In training each condition is dropped with probability `dropout` (one number, or one per name), and all at once with
    `drop_all` (classifier-free guidance, arXiv 2207.12598). A dropped condition is that conditioner's null.
    """

    def __init__(
        self,
        conditioners: Mapping[str, Conditioner] | None = None,
        dropout: float | Mapping[str, float] = 0.1,
        drop_all: float = 0.05,
    ):
        super().__init__()
        given = dict(conditioners or {})
        for name in given:
            if "." in name or hasattr(nn.ModuleDict, name):
                raise ValueError(f"wanted a plain name for a condition, got {name!r}; choose for example '{name}_condition'")
        self.conditioners = nn.ModuleDict(given)
        rates = dict(dropout) if isinstance(dropout, Mapping) else dict.fromkeys(given, dropout)
        if set(rates) - set(given):
            raise ValueError(
                f"wanted a dropout for conditions, got {sorted(set(rates) - set(given))}; choose from {sorted(given)}"
            )
        self.dropout, self.drop_all = {name: rates.get(name, 0.0) for name in given}, drop_all
        for what, rate in (*self.dropout.items(), ("all", drop_all)):
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"wanted a dropout of {what} in [0, 1], got {rate}")

    @property
    def readers(self) -> dict[str, tuple[str, Reader]]:
        """For the data loader: {name: (the batch field it reads, its reader)}."""
        return {name: (c.key, c.reader) for name, c in self.conditioners.items()}

    @property
    def widths(self) -> dict[str, CondWidths]:
        """For the denoiser: what each condition gives."""
        return {name: c.widths for name, c in self.conditioners.items()}

    def read(
        self, fields: Mapping[str, Sequence[Any]], batch_size: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values by field, None where not given -> (what the loader would give, present (B,))."""
        keys = {c.key for c in self.conditioners.values()}
        if set(fields) - keys:
            raise ValueError(
                f"wanted fields that a condition reads, got {sorted(set(fields) - keys)}; choose from {sorted(keys)}"
            )
        sizes = {len(values) for values in fields.values()} | ({batch_size} if batch_size is not None else set())
        if len(sizes) > 1 or (not sizes and keys):
            raise ValueError(f"wanted one value per sample in every field, got lengths {sorted(sizes)}")
        read, present = {}, {}
        for name, (key, reader) in self.readers.items():
            values = list(fields.get(key, [None] * max(sizes)))
            read[name] = reader.collate([None if v is None else reader(v) for v in values])
            present[name] = torch.tensor([v is not None for v in values])
        return read, present

    def encode(self, read: Mapping[str, Any]) -> dict[str, Any]:
        """What the readers collated -> the frozen encodings (cacheable); what is `Encoded` already is taken as it is."""
        return {
            name: read[name].value if isinstance(read[name], Encoded) else c.encode(read[name])
            for name, c in self.conditioners.items()
        }

    def keep(self, key: Sequence[int | str], positions: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Which rows keep each condition, (B,) bool on CPU; row i is keyed by (*key, positions[i])."""
        if not self.conditioners:
            return {}
        draw = keyed.uniform((*key, "conditions"), positions, (1 + len(self.conditioners),))
        together = draw[:, 0] >= self.drop_all
        return {name: together & (draw[:, 1 + i] >= self.dropout[name]) for i, name in enumerate(self.conditioners)}

    def forward(self, encoded: Mapping[str, Any], keep: Mapping[str, Tensor] | None = None) -> dict[str, Cond]:
        """Frozen encodings -> the conditions; rows whose `keep` (B,) is False become the null, a name without one is kept."""
        conds = {}
        for name, conditioner in self.conditioners.items():
            cond, rows = conditioner(encoded[name]), None if keep is None else keep.get(name)
            if rows is not None:
                cond = cond.where(rows.to(_device(cond)), conditioner.null(len(rows)))
            conds[name] = cond
        return conds

    def null(self, batch_size: int) -> dict[str, Cond]:
        """Nothing given, for `batch_size` rows."""
        return {name: c.null(batch_size) for name, c in self.conditioners.items()}


def _device(cond: Cond) -> torch.device:
    return next(t for t in (cond.tokens, cond.vector, *cond.aligned.values()) if t is not None).device
