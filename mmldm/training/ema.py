"""Exponential moving averages of the parameters that train and are exported, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mmldm.training import snapshots
from mmldm.training.base import Training
from mmldm.training.processes import local, placed, whole

__all__ = ["EMA"]

Tensors = dict[str, Tensor]


class EMA(Callback):
    """Averages with the power-function profile of EDM2 (arXiv 2312.02696, eq. 122), float32, one per relative width in `std`.

    The first width is validated, sampled and exported. Every width is kept in `folder` at about `count` moments of the
    training (by progress), the last in float32 and those before it in float16; `snapshots.reconstruct` makes any other width
    of them. A sharded parameter is averaged shard by shard, and gathered when it is written.
    """

    def __init__(self, std: float | Sequence[float] = 0.05, folder: str | Path | None = None, count: int = 16):
        self.stds = (float(std),) if isinstance(std, int | float) else tuple(map(float, std or ()))
        if not self.stds or len(set(self.stds)) < len(self.stds):
            raise ValueError(f"wanted one or more different widths, got {list(self.stds)}; choose for example [0.05, 0.10]")
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"wanted 0 snapshots (none) or more, got {count}")
        self.exponents = {s: snapshots.power_exponent(s) for s in self.stds}
        self.folder, self.count = None if folder is None or not count else Path(folder), count
        self.step, self.kept = 0, 0  # optimiser step of the averages, and of the newest snapshot
        self.averages: dict[float, Tensors] = {}
        self._trained: Tensors = {}  # the parameters that are averaged, the same objects throughout a training
        self._raw: Tensors | None = None

    @property
    def average(self) -> Tensors:
        """The average of the first width, by parameter name."""
        return self.averages[self.stds[0]]

    # -- training

    def on_train_start(self, trainer: Trainer, pl_module: Training) -> None:
        self._trained = current = parameters(pl_module)
        for std in self.stds:
            loaded = self.averages.get(std, {})
            self.averages[std] = {name: _beside(loaded.get(name, p), p) for name, p in current.items()}
        if self.folder is not None and trainer.is_global_zero:
            for snapshot in snapshots.find(self.folder):
                if snapshot.step > self.step:  # of a future that this run has left
                    snapshot.path.unlink()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Training, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.update(self._trained, self.step)
            self._keep(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Training) -> None:
        if self.kept < self.step:
            self._keep(trainer, pl_module)  # the clock may end a training between two steps

    @torch.no_grad()
    def update(self, current: Tensors, step: int) -> None:
        """Move the averages towards the parameters after optimiser step `step` (from 1)."""
        values = {name: local(p.detach()).float() for name, p in current.items()}
        for std, average in self.averages.items():
            weight = 1.0 - (1.0 - 1.0 / step) ** (self.exponents[std] + 1.0)
            torch._foreach_lerp_([local(tensor) for tensor in average.values()], [values[name] for name in average], weight)

    def _keep(self, trainer: Trainer, module: Training) -> None:
        """Write the averages where another 1/count of the training is done, or all of it."""
        if self.folder is None:
            return
        progress = module.progress()
        if progress < 1.0 and (1.0 - self.kept / self.step) * progress * self.count < 1.0 - 1e-9:
            return
        self.kept = self.step
        for std, average in self.averages.items():
            gathered = {name: whole(tensor).cpu().contiguous() for name, tensor in average.items()}
            if trainer.is_global_zero:
                snapshots.save(self.folder, std, self.step, gathered, half=progress < 1.0)

    # -- the averaged module

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.swap_out(pl_module)

    def swap_in(self, module: Training) -> None:
        """Put the averages of the first width into the module, keeping the raw ones aside; nothing before the first update."""
        if self.step > 0 and self._raw is None:
            current = parameters(module)
            self._raw = {name: p.detach().clone() for name, p in current.items()}
            _copy(current, self.average)

    def swap_out(self, module: Training) -> None:
        """Put the raw parameters back."""
        if self._raw is not None:
            _copy(parameters(module), self._raw)
            self._raw = None

    @contextmanager
    def averaged(self, module: Training) -> Iterator[None]:
        """Inside this context the module carries the averages of the first width."""
        self.swap_in(module)
        try:
            yield
        finally:
            self.swap_out(module)

    # -- checkpoints

    def state_dict(self) -> dict:
        averages = {f"{std:g}": {n: whole(x) for n, x in average.items()} for std, average in self.averages.items()}
        return {"step": self.step, "kept": self.kept, "averages": averages}

    def load_state_dict(self, state: dict) -> None:
        names, kept = [f"{std:g}" for std in self.stds], state.get("averages", {})
        if sorted(names) != sorted(kept):
            before = ",".join(kept)
            raise ValueError(f"wanted the widths that this run averages, ema=[{before}], got {', '.join(names)}")
        self.step, self.kept = state["step"], state["kept"]
        self.averages = {std: dict(state["averages"][name]) for std, name in zip(self.stds, names, strict=True)}


def parameters(module: Training) -> Tensors:
    """What is averaged of a module, by name; of a module sharded by FSDP2 the shards."""
    for part in module.modules():
        if hasattr(part, "reshard"):  # a forward without a backward leaves the outermost parameters gathered
            part.reshard()
    return module.exported()


def _beside(tensor: Tensor, p: Tensor) -> Tensor:
    """A float32 copy on the device, and with the sharding, of a parameter."""
    return placed(tensor, p).to(torch.float32, copy=True)


@torch.no_grad()
def _copy(target: Tensors, source: Tensors) -> None:
    for name, p in target.items():
        local(p).copy_(local(placed(source[name], p)))  # whole, as it was loaded, where nothing was left to train
