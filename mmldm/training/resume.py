"""Checkpoints that a run writes and reads for itself, always on an optimiser-step boundary and never half written."""

from __future__ import annotations

import os
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

__all__ = ["Resume"]


class Resume(Callback):
    """Writes `folder/last.ckpt` every `every` optimiser steps and at the end: beside, flushed, then renamed into place."""

    def __init__(self, folder: str | Path, every: int = 1000):
        self.folder, self.every, self.saved = Path(folder), every, -1

    @property
    def latest(self) -> Path | None:
        """The checkpoint to continue from, if there is one."""
        path = self.folder / "last.ckpt"
        return path if path.is_file() else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        step = trainer.global_step
        if step != self.saved and step % self.every == 0 and not trainer.fit_loop._should_accumulate():
            self.save(trainer)

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
