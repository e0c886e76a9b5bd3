"""What a person sees of a training: samples and reconstructions on the run's page, curves, speed and memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from torch import Tensor

from mmldm.interfaces import Media
from mmldm.training.processes import gathered, is_sharded

__all__ = ["Curves", "Progress", "Samples", "Shown", "Speed"]

Shown = tuple[str, Media, Iterable[Tensor], list[str]]  # section of the page, media, tensors, captions


class Samples(Callback):
    """At the end of each validation shows what `draw(module)` yields, through `show(section, step, media, xs, captions)`."""

    def __init__(self, draw: Callable[[LightningModule], Iterable[Shown]], show: Callable[..., None]):
        self.draw, self.show = draw, show

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not (trainer.is_global_zero or is_sharded(pl_module)):
            return
        with gathered(pl_module):
            for section, media, xs, captions in self.draw(pl_module):
                if trainer.is_global_zero:
                    self.show(section, trainer.global_step, media, xs, captions)


class Curves(Callback):
    """Hands the logged numbers to `scalars(step, numbers)`: training every `every` steps, validation whenever it ran."""

    def __init__(self, scalars: Callable[[int, dict[str, float]], None], every: int = 50):
        self.scalars, self.every, self.last = scalars, every, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        self._windows(trainer)  # of the steps before, when all of it is logged

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._windows(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            self._hand_on(trainer, ("val/",))

    def _windows(self, trainer: Trainer) -> None:
        if trainer.global_step // self.every > self.last // self.every and trainer.is_global_zero:
            self.last = trainer.global_step
            self._hand_on(trainer, ("train/", "speed/"))

    def _hand_on(self, trainer: Trainer, prefixes: tuple[str, ...]) -> None:
        numbers = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefixes)}
        self.scalars(trainer.global_step, numbers)


class Speed(Callback):
    """Logs steps and samples per second, the share of the time that the training waited for data, and the peak memory in GiB,
    over windows of `every` optimiser steps (None: as often as the loggers write)."""

    def __init__(self, every: int | None = None):
        self.every, self.last, self.samples = every, 0, 0
        self.clock = self.ended = self.waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        self.waited += time.monotonic() - self.ended

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        self.ended = time.monotonic()
        self.samples += len(batch) * trainer.world_size
        step, every = trainer.global_step, self.every or trainer.log_every_n_steps
        if step == self.last or not every or step % every:
            return
        seconds = max(self.ended - self.clock, 1e-9)
        speeds = {
            "speed/steps_per_s": (step - self.last) / seconds,
            "speed/samples_per_s": self.samples / seconds,
            "speed/waiting_for_data": self.waited / seconds,
            "speed/memory_gib": memory(),
        }
        pl_module.log_dict(speeds, batch_size=len(batch))
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self.last, self.samples, self.waited = trainer.global_step, 0, 0.0
        self.clock = self.ended = time.monotonic()


class Progress(Callback):
    """How far a training is, at what loss and speed, and when it will end: a bar on a terminal, elsewhere a line every `every`
    seconds."""

    def __init__(self, every: float = 30.0, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.every = 0.5 if self.console.is_terminal else every
        self.bar: Bar | None = None
        self.began, self.shown, self.first = (0.0, 0.0), 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.began, self.first = (time.monotonic(), pl_module.share()), trainer.global_step
        self.shown = self.began[0]
        if self.console.is_terminal:
            columns = (TextColumn("{task.percentage:3.0f} %"), BarColumn(None), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=self.console, expand=True)
            self.bar.add_task("starting", total=1.0, completed=self.began[1])
            self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.is_global_zero and time.monotonic() - self.shown >= self.every:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._show(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        now, done, step = time.monotonic(), module.share(), trainer.global_step
        spent, gained = now - self.began[0], done - self.began[1]
        words = [f"step {step}", f"{(step - self.first) / max(spent, 1e-9):.2f} steps/s"]
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            words.insert(1, f"loss {float(loss):.4f}")
        if gained > 0 and done < 1:
            words.append(f"{timedelta(seconds=round(spent / gained * (1 - done)))} left")
        self.shown, line = now, ", ".join(words)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, description=line)
        else:
            self.console.print(f"{100 * done:3.0f} %  {line}", highlight=False, soft_wrap=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def memory() -> float:
    """Peak memory so far in GiB: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
