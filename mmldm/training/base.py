"""What every training shares: keyed randomness, the learning rate, the clock, what goes into a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from lightning import LightningModule
from torch import Tensor, nn

from mmldm.interfaces import Batch
from mmldm.training.schedule import Schedule

__all__ = ["Training"]


class Training(LightningModule):
    """Base of the trainings: `optimizer` maps parameters to a torch optimiser, `minutes` ends the schedule by the clock.

    Randomness is a function of (seed, optimiser step, position in the global order); nothing else is drawn anywhere.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        schedule: Schedule | None = None,
        batch_size: int = 1,
        seed: int = 0,
        minutes: float | None = None,
    ):
        super().__init__()
        self.optimizer_of = optimizer
        self.schedule = schedule or Schedule()
        self.batch_size, self.seed, self.minutes = batch_size, seed, minutes
        self.base_lr: list[float] = []
        self._begun_with: list[str] | None = None  # names of the optimisers before a resume
        self.spent, self._clock = 0.0, None  # seconds of training, before and since the last start
        self.reached = 0.0  # progress at the beginning of the optimiser step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optimizer_of([p for p in self.parameters() if p.requires_grad])
        return self.begin([optimizer])[0]

    def begin(self, optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
        """Take note of the optimisers' rates; raises ValueError where a run that continues had other ones."""
        names = [type(optimizer).__name__ for optimizer in optimizers]
        if self._begun_with not in (None, names):
            before = ", ".join(self._begun_with)
            raise ValueError(f"wanted the optimizers of this run so far, {before}, got {', '.join(names)}; choose another run=")
        self.base_lr = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        return optimizers

    def exported(self) -> dict[str, nn.Parameter]:
        """The parameters that train and belong to the exported model, by name: what an average is taken of."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    # -- progress

    def elapsed(self) -> float:
        """Seconds spent training so far, over all starts of this run."""
        return self.spent + (0.0 if self._clock is None else time.monotonic() - self._clock)

    def share(self) -> float:
        """Share of the training that is done as this process sees it: by steps, or by the clock with `minutes`."""
        steps = self.trainer.max_steps
        done = self.global_step / steps if steps and steps > 0 else 0.0
        return min(1.0, done if self.minutes is None else max(done, self.elapsed() / (60.0 * self.minutes)))

    def progress(self) -> float:
        """The share that is done by one clock for all processes: every process must ask."""
        share = self.share()
        return self.trainer.strategy.broadcast(share) if self.minutes is not None and self.trainer.world_size > 1 else share

    def on_fit_start(self) -> None:
        self._clock = time.monotonic()

    def on_fit_end(self) -> None:
        self.spent, self._clock = self.elapsed(), None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        progress = self.progress()
        begins = batch_idx % self.trainer.accumulate_grad_batches == 0
        self.reached = progress if begins else self.reached
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        for group, lr in zip(groups, self.base_lr, strict=True):
            group["lr"] = lr * self.schedule(self.global_step, progress)
        if self.minutes is not None and progress >= 1.0 and begins:
            self.trainer.should_stop = True
            return -1
        return None

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        found = self.optimizers(use_pl_optimizer=False)
        return found if isinstance(found, list) else [found]

    # -- randomness

    def step_of(self, batch: Batch) -> int:
        """The optimiser step a training batch belongs to, read off its positions."""
        return int(batch.position[0]) // self.batch_size

    def key(self, purpose: str, batch: Batch) -> tuple[int | str, ...]:
        """Key of the random numbers of one purpose in one step."""
        return (self.seed, purpose, self.step_of(batch))

    # -- logging and checkpoints

    def log_terms(self, prefix: str, terms: dict[str, Tensor], batch: Batch) -> None:
        """Log scalars of a batch under `prefix/name`."""
        values = {f"{prefix}/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(values, batch_size=len(batch), sync_dist=prefix == "val")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["seconds"], checkpoint["optimizers"] = self.elapsed(), [type(o).__name__ for o in self._optimizers()]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.spent = checkpoint["seconds"]
        kept = checkpoint["state_dict"]
        for name, p in self.named_parameters():
            if not p.requires_grad:
                kept[name] = p.detach()
        own, self._begun_with = self.state_dict(), checkpoint["optimizers"]
        odd = sorted(n for n in own.keys() | kept.keys() if n not in own or n not in kept or own[n].shape != kept[n].shape)
        if odd:
            raise ValueError(
                f"wanted the sizes and parts that this run began with, got another {odd[0]} ({len(odd)} differ); "
                "choose another run="
            )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return move(batch, device)


def move(value, device: torch.device):
    """Move every tensor of nested dicts, lists and records to a device; `position` and `index` stay on the CPU."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: move(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(move(v, device) for v in value)
    if hasattr(value, "__dataclass_fields__"):
        kept = ("position", "index")
        names = value.__dataclass_fields__
        return type(value)(**{n: getattr(value, n) if n in kept else move(getattr(value, n), device) for n in names})
    return value


def finite(value: Tensor, step: int, name: str = "loss") -> Tensor:
    """The scalar itself; raises ValueError where it is not finite, before any weight is touched."""
    if not math.isfinite(float(value.detach())):
        raise ValueError(f"wanted a finite {name}, got {float(value.detach())} at step {step}; lower optimizer.lr or clip more")
    return value
