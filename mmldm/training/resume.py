"""Checkpoints that a run writes and reads for itself, always on an optimiser-step boundary and never half written."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

__all__ = ["Resume"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Resume(Callback):
    """Writes `folder/last.ckpt` every `every` optimiser steps and at the end or stop: aside, flushed, then renamed."""

    def __init__(self, folder: str | Path, every: int = 1000):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"wanted a checkpoint every 1 step or more, got {every}")
        self.folder, self.every = Path(folder), every
        self.saved = self.validated = -1
        self.stopped = False

    @property
    def latest(self) -> Path | None:
        """The checkpoint to continue from, if there is one."""
        path = self.folder / "last.ckpt"
        return path if path.is_file() else None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside this context SIGINT, SIGTERM and SIGUSR1 end the training at a step boundary; a second SIGINT at once."""

        def stop(number: int, frame: object) -> None:
            if self.stopped and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopped = True

        before = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.world_size > 1:  # a signal reaches the processes at different steps
            self.stopped = trainer.strategy.reduce_boolean_decision(self.stopped, all=False)
        if self.stopped:
            trainer.should_stop = True
        step = trainer.global_step
        if step != self.saved and step % self.every == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self.saved:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of the step that just ended."""
        aside = self.folder / "writing.ckpt"
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(aside)
        if trainer.is_global_zero:
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, self.folder / "last.ckpt")
        self.saved = trainer.global_step
