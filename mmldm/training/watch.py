"""What a person sees of a training: samples and reconstructions on the run's page, curves, speed and memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mmldm.interfaces import Media

__all__ = ["Samples", "Speed", "Curves", "Shown"]

Shown = tuple[str, Media, Iterable[Tensor], list[str]]  # section of the page, media, tensors, captions


class Samples(Callback):
    """At the end of each validation shows what `draw(module)` yields, through `show(section, step, media, xs, captions)`."""

    def __init__(self, draw: Callable[[LightningModule], Iterable[Shown]], show: Callable[..., None]):
        self.draw, self.show = draw, show

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for section, media, xs, captions in self.draw(pl_module):
            self.show(section, trainer.global_step, media, xs, captions)


class Curves(Callback):
    """Hands the logged numbers to `scalars(step, numbers)`: training every `every` steps, validation whenever it ran."""

    def __init__(self, scalars: Callable[[int, dict[str, float]], None], every: int = 50):
        self.scalars, self.every, self.last = scalars, every, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step >= self.last + self.every and trainer.is_global_zero:
            self.last = trainer.global_step
            self._hand_on(trainer, "train")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            self._hand_on(trainer, "val")

    def _hand_on(self, trainer: Trainer, prefix: str) -> None:
        numbers = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        self.scalars(trainer.global_step, numbers)


class Speed(Callback):
    """Logs steps and samples per second and the peak memory in GiB, over windows of `every` optimiser steps."""

    def __init__(self, every: int = 50):
        self.every, self.last, self.clock, self.samples = every, 0, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last, self.clock, self.samples = trainer.global_step, time.monotonic(), 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last, self.clock, self.samples = trainer.global_step, time.monotonic(), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        self.samples += len(batch) * trainer.world_size
        steps = trainer.global_step - self.last
        if steps < self.every:
            return
        seconds = time.monotonic() - self.clock
        pl_module.log_dict(
            {"speed/steps_per_s": steps / seconds, "speed/samples_per_s": self.samples / seconds, "speed/memory_gib": memory()}
        )
        self.last, self.clock, self.samples = trainer.global_step, time.monotonic(), 0


def memory() -> float:
    """Peak memory so far in GiB: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
