"""What every training shares: keyed randomness, the learning rate, the clock, what goes into a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmldm.interfaces import Batch
from mmldm.training.faults import Guard
from mmldm.training.schedule import Schedule
from mmldm.training.tally import Tally

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
        self.guard = Guard()
        self.held: frozenset[str] = frozenset()  # names of parameters that would train, but are kept as they are
        self.tallies = {"train": Tally(), "val": Tally()}  # what is told once per window, or once per validation

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise ValueError("wanted a training that can be sharded, got that of a codec; choose trainer=ddp")

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

    def hold(self, names: Iterable[str]) -> None:
        """Keep these of the exported parameters as they are: they do not train, but belong to the checkpoints."""
        self.held |= frozenset(names)
        for name, p in self.named_parameters():
            if name in self.held:
                p.requires_grad_(False)

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

    def on_train_start(self) -> None:
        """Hold the validation that was due when the checkpoint of a run that continues was written: Lightning leaves it out."""
        loop = self.trainer.fit_loop.epoch_loop
        if loop.restarted_on_train_batch_end and loop._should_check_val_fx(self.trainer.fit_loop._data_fetcher):
            self.trainer.validating, loop.val_loop.restarting = True, False
            loop.val_loop.run()
            self.trainer.training = True

    def on_fit_end(self) -> None:
        self.spent, self._clock = self.elapsed(), None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        progress = self.progress()
        begins = batch_idx % self.trainer.accumulate_grad_batches == 0
        self.reached = progress if begins else self.reached
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        for group, lr in zip(groups, self.base_lr, strict=True):
            group["lr"] = lr * self.schedule(self.global_step, progress)
        if begins:
            self.guard.begin(self, self.global_step)
        self.guard.add(batch)
        if self.minutes is not None and progress >= 1.0 and begins:
            self.trainer.should_stop = True
            return -1
        return None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer asks; raises NonFinite for a loss or gradient that is not finite, before a weight is touched."""
        found = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in found])
        self.watch_norm("norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self.guard.check(self.trainer)
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(found, gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def watch_norm(self, name: str, norm: Tensor) -> None:
        """Log a norm of gradients, which must be finite; in half precision the scaler leaves a step out that is not."""
        if self.trainer.precision != "16-mixed":
            self.guard.watch(f"the gradients' {name}", norm)
        self.log(f"train/{name}", norm)

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
        if batch.bucket:
            self.tallies[prefix].add([f"bucket/{batch.bucket}"], terms["loss"].detach() * len(batch), len(batch))

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None:
        window = self.trainer.log_every_n_steps
        if window and self.global_step % window == 0 and not self.trainer.fit_loop._should_accumulate():
            self._tell("train")

    def on_validation_epoch_end(self) -> None:
        self._tell("val")

    def _tell(self, prefix: str) -> None:
        self.log_dict({f"{prefix}/{name}": value for name, value in self.summary(self.tallies[prefix].means()).items()})

    def summary(self, means: dict) -> dict[str, float]:
        """What is logged of the means over a window or a validation, by name."""
        return means

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad} - self.held
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["seconds"], checkpoint["optimizers"] = self.elapsed(), [type(o).__name__ for o in self._optimizers()]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.spent = checkpoint["seconds"]
        recount(checkpoint, getattr(self, "accumulate", self.trainer.accumulate_grad_batches))
        kept = checkpoint["state_dict"]
        for name, p in self.named_parameters():
            if not p.requires_grad and name not in self.held:
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


def recount(checkpoint: dict, accumulate: int) -> None:
    """Count the batches of a checkpoint as if every step so far had accumulated as many as from now on."""
    for count in ("total", "current"):
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][count]
        last = batches["processed"] - batches["completed"]
        done = checkpoint["global_step"] * accumulate
        batches |= {"ready": done, "started": done, "processed": done, "completed": done - last}


def move(value, device: torch.device):
    """Move every tensor of nested dicts, lists and records to a device; `position` and `index` stay on the CPU."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: move(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        moved = [move(v, device) for v in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if hasattr(value, "__dataclass_fields__"):
        kept = ("position", "index")
        names = value.__dataclass_fields__
        return type(value)(**{n: getattr(value, n) if n in kept else move(getattr(value, n), device) for n in names})
    return value
