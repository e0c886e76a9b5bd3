"""What a run says of itself while it lasts and afterwards: state.json, from which other programs tell how it fares."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from mmldm.media.files import replacing

__all__ = ["State"]


class State(Callback):
    """Keeps `path` true: `state` is running, stopped, finished or failed, and since when, how far, on what, with what error.

    A context manager around the whole training: what leaves it decides the last state. While it runs the file is renewed every
    `every` seconds, so that an old one tells of a process that died; `facts` stand in it too; `tell(facts)` hears each.
    """

    def __init__(
        self,
        path: str | Path,
        facts: Mapping[str, Any] | None = None,
        tell: Callable[[Mapping[str, Any]], None] | None = None,
        every: float = 30.0,
    ):
        self.path, self.tell, self.every = Path(path), tell, every
        self.facts = dict(facts or {})
        self.written, self.began = -every, (0.0, 0.0)

    def __enter__(self) -> State:
        self._write(state="running", pid=os.getpid(), host=socket.gethostname(), every=self.every)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._write(state="finished", left=0.0)
            return
        with suppress(Exception):  # the error is told, not that it could not be written down
            if isinstance(error, SystemExit | KeyboardInterrupt):
                self._write(state="stopped")
            else:
                told = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
                self._write(state="failed", error=f"{type(error).__name__}: {told}".removesuffix(": "))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.monotonic(), pl_module.share()
        self._progress(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if time.monotonic() - self.written >= self.every:
            self._progress(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if time.monotonic() - self.written >= self.every:
            self._progress(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(Exception):
            self._progress(trainer, pl_module)

    def _progress(self, trainer: Trainer, module: LightningModule) -> None:
        done, spent = module.share(), time.monotonic() - self.began[0]
        gained = done - self.began[1]
        self._write(
            step=trainer.global_step,
            steps=trainer.max_steps,
            share=done,
            seconds=module.elapsed(),
            left=spent / gained * (1 - done) if gained > 0 else None,
            device=str(module.device),
            processes=trainer.world_size,
            numbers={k: float(v) for k, v in trainer.callback_metrics.items()},
        )

    @rank_zero_only
    def _write(self, **facts: Any) -> None:
        self.facts |= {**facts, "time": time.time()}
        self.written = time.monotonic()
        with suppress(OSError), replacing(self.path) as aside:  # a full disk ends the training at a checkpoint, not here
            aside.write_text(json.dumps(self.facts), encoding="utf-8")
        if self.tell is not None:
            self.tell(self.facts)
