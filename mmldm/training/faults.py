"""Steps whose loss or gradient is not finite: stopped before a weight is touched, and written down to be made again."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from mmldm.interfaces import Batch, Posterior

__all__ = ["Faults", "Guard", "NonFinite", "read", "unpacked"]

RUNNING = 4096  # largest number of values of a buffer that a step may change: statistics, not tables


class NonFinite(ValueError):
    """A loss or gradient that is not finite; the weights are as the step before made them."""


class Guard:
    """What belongs to the optimiser step that is being made: its batches, what must be finite, what it may change early.

    `batches` and `told` are lists over the accumulated batches; `told` are the numbers by which a step can be recognised.
    """

    def __init__(self):
        self.step = -1
        self.batches: list[Batch] = []
        self.told: list[dict[str, Tensor]] = []
        self.numbers: list[tuple[str, Tensor]] = []
        self._running: list[Tensor] | None = None
        self._before: list[Tensor] = []

    def begin(self, module: nn.Module, step: int) -> None:
        """A step begins, after `step` others: keep the running statistics of the module."""
        if self._running is None:
            kept = set(module.state_dict())
            found = [x for name, x in module.named_buffers() if name in kept and x.numel() <= RUNNING]
            self._running, self._before = found, [torch.empty_like(x) for x in found]
        self.step, self.batches, self.told, self.numbers = step, [], [], []
        if self._running:
            torch._foreach_copy_(self._before, self._running)

    def add(self, batch: Batch) -> None:
        """One more batch of the step."""
        self.batches.append(batch)
        self.told.append({})

    def watch(self, name: str, value: Tensor, told: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """The scalar itself, to be found finite before the weights change; `told` are other numbers of the same batch."""
        self.numbers.append((name, value.detach()))
        if self.told:
            self.told[-1] |= {name: value.detach(), **{k: v.detach() for k, v in told.items()}}
        return value

    def check(self, trainer: Trainer) -> None:
        """Raise NonFinite in every process where a watched number is not finite in one: the step's one wait for the device."""
        numbers, self.numbers = self.numbers, []
        if not numbers:
            return
        values = torch.stack([value.to(torch.promote_types(value.dtype, torch.float32)) for _, value in numbers]).tolist()
        wrong = [f"{name} is {value}" for (name, _), value in zip(numbers, values, strict=True) if not math.isfinite(value)]
        if trainer.strategy.reduce_boolean_decision(bool(wrong), all=False) if trainer.world_size > 1 else wrong:
            told = wrong[0] if wrong else "a loss is not finite in another process,"
            raise NonFinite(f"{told} in step {trainer.global_step + 1}")

    def restore(self, step: int) -> None:
        """Put the running statistics back that a step begun after `step` others has changed before it came to its end."""
        if step == self.step and self.batches and self._running:
            torch._foreach_copy_(self._running, self._before)


class Faults(Callback):
    """Writes a step that is not finite to `folder/step-N.pt`: its batches, numbers and configuration; beside it the checkpoint.

    `checkpoint(step)` is the checkpoint of the step before, kept by a callback that comes earlier; `named(position)` the file
    of an item.
    """

    def __init__(self, folder: str | Path, config: str, checkpoint: Callable[[int], Path], named: Callable[[int], str]):
        self.folder, self.config, self.checkpoint, self.named = Path(folder), config, checkpoint, named

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFinite):
            return
        guard, step = pl_module.guard, trainer.global_step
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.folder / f"step-{step + 1:08d}{rank}.pt"
        positions = torch.cat([batch.position for batch in guard.batches])
        files = [self.named(position) for position in positions.tolist()]
        state = {
            "step": step + 1,
            "fault": str(exception),
            "config": self.config,
            "reached": pl_module.reached,
            "device": str(pl_module.device),
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
            "files": files,
            "batches": [packed(batch) for batch in guard.batches],
            "told": [{k: v.cpu() for k, v in told.items()} for told in guard.told],
        }
        where = f"positions {int(positions.min())} to {int(positions.max())}"
        where += f": {', '.join(files[:3])}{' …' * (len(files) > 3)}" if any(files) else ""
        saved = ", saved: the same command continues from there" if self.checkpoint(step).exists() else ""
        told = [f"{exception} ({where})", f"the weights are as after step {step}{saved}"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
            self._beside(step, path.with_suffix(".ckpt"))
            told += [f"to make the step again and see where it comes from: mmldm replay {path}"]
        except (OSError, RuntimeError) as error:
            told += [f"the step could not be written to {path}: {error}"]
        told += [f"choose a lower optimizer.lr{' or leave such files out' * any(files)}"]
        exception.args = ("\n".join(told),)

    def _beside(self, step: int, path: Path) -> None:
        """Keep the checkpoint of the step before beside the dump, without its bytes where the disk can."""
        kept = self.checkpoint(step)
        path.unlink(missing_ok=True)
        if kept.is_file():
            try:
                os.link(kept, path)
            except OSError:
                shutil.copyfile(kept, path)


def packed(batch: Batch) -> dict[str, Any]:
    """A batch as plain dicts of tensors on the CPU."""
    return _plain({field.name: getattr(batch, field.name) for field in fields(Batch)})


def unpacked(state: dict[str, Any]) -> Batch:
    """The batch that was packed."""
    latents = {stream: Posterior(**pair) for stream, pair in state["latents"].items()}
    return Batch(**{**state, "latents": latents})


def read(path: str | Path) -> dict[str, Any]:
    """What `Faults` wrote; raises ValueError for another file."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state.keys() >= {"step", "fault", "config", "batches", "told"}:
            return state
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"wanted a step that was dumped, RUN/faults/step-….pt, got {path}: {error}") from None
    raise ValueError(f"wanted a step that was dumped, RUN/faults/step-….pt, got {path}")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, Posterior):
        return {"mean": _plain(value.mean), "std": _plain(value.std)}
    return value
