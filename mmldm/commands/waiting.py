"""What a training waits for before its first step, said where that takes long."""

from __future__ import annotations

import threading
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

__all__ = ["Waiting"]


class Waiting(Callback):
    """Between `with` and the first step, says what is waited for once that takes `after` seconds, then every `every`."""

    def __init__(self, after: float = 10.0, every: float = 30.0, console: Console | None = None):
        self.after, self.every, self.console = after, every, console or Console(stderr=True, quiet=bool(rank_zero_only.rank))
        self._what, self._since, self._next = "", 0.0, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over()

    def begin(self, what: str) -> None:
        """What is waited for from now on."""
        self._what, self._since = what, time.monotonic()
        self._next = self._since + self.after

    def over(self) -> None:
        """Nothing is waited for any more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.after)):
            now = time.monotonic()
            if self._what and now >= self._next:
                self._next = now + self.every
                self.console.print(f"still {self._what} ({now - self._since:.0f} s)", highlight=False, soft_wrap=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.begin("preparing the model and its checkpoint")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        workers = getattr(trainer.datamodule, "workers", 0)
        self.begin(f"waiting for the first batch{f' of {workers} data workers' if workers else ''}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.begin("making the first step, and compiling it where that is asked for")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.over()
