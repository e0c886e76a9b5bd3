"""When a run writes checkpoints for itself: every so many steps, on a signal, at a fault; always of a step that has ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from mmldm.training.base import Training
from mmldm.training.checkpoints import Checkpoints, HashedIO
from mmldm.training.faults import NonFinite

__all__ = ["Resume", "Stopped"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """A stop that was asked for where nothing of the training changes: outside of its steps."""


class Resume(Callback):
    """Keeps checkpoints in `folder` every `every` optimiser steps, at the end, at a stop, and at a fault that left the weights
    as the last step made them.

    Put it after callbacks that have a state of their own: what it writes is the state in which they end a step.
    """

    def __init__(self, folder: str | Path, every: int = 1000, keep: int = 2):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"wanted a checkpoint every 1 step or more, got {every}")
        self.checkpoints, self.every = Checkpoints(folder, keep), every
        self.saved = self.validated = -1
        self.signal: int | None = None  # the first that asked for the end
        self.stopped = False  # the end was asked for and is made, in all processes
        self._handlers: dict[int, Any] = {}
        self._idle = self._alone = True  # nothing of the training changes now; no other process takes part
        self._ended: tuple[int, dict] | None = None  # the last step that ended, and the loops' counts then
        self._stepping = False  # weights change
        self._restored = False  # a checkpoint is written of a step that has ended before
        self._io = HashedIO()

    @property
    def latest(self) -> Path | None:
        """The checkpoint to continue from, if there is one; raises ValueError where all that are there are damaged."""
        return self.checkpoints.newest()

    # -- signals

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside this context SIGINT, SIGTERM and SIGUSR1 end the training with a checkpoint; a second SIGINT at once.

        A step is made to its end; a wait for data, a validation, previews are left. The context ends then: see `stopped`.
        """
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._handlers = dict.fromkeys(SIGNALS, self._handle)
        try:
            yield
        except Stopped:
            pass
        finally:
            self._handlers = {}
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.signal and number == signal.SIGINT:
            raise SystemExit(128 + number)
        self.signal = self.signal or number
        if not self.stopped and (self._idle or (self._alone and _waiting(frame))):
            self.stopped = True
            raise Stopped

    def _asked(self, trainer: Trainer) -> bool:
        """Whether the end was asked for in any process: every process must ask, at the same place."""
        asked = self.stopped or self.signal is not None  # once: it may come while others are told
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    # -- steps

    def on_fit_start(self, trainer: Trainer, pl_module: Training) -> None:
        trainer.strategy.checkpoint_io = self._io

    def on_train_start(self, trainer: Trainer, pl_module: Training) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # Lightning puts its own before them: for SIGTERM, and to requeue under SLURM
        step = trainer.global_step
        self.saved = step if step in self.checkpoints.steps() and not self.checkpoints.fault(step) else -1
        self._idle, self._alone = False, trainer.world_size == 1  # several processes must leave together

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Training, optimizer: Any) -> None:
        self._stepping = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._end_step(trainer)

    def _end_step(self, trainer: Trainer) -> None:
        self.stopped = self._asked(trainer)
        step = trainer.global_step
        self._ended, self._stepping = (step, trainer.fit_loop.state_dict()), False
        if step != self.saved and (self.stopped or step % self.every == 0):
            self.save(trainer)
        if not self.stopped:
            return
        if not trainer._logger_connector.should_update_logs:
            raise Stopped
        trainer.should_stop = trainer.fit_loop.epoch_loop._skip_next_val = True  # the numbers of this step are still to be told

    def on_train_end(self, trainer: Trainer, pl_module: Training) -> None:
        if trainer.global_step != self.saved:
            self.save(trainer)
        self._idle = self._alone

    # -- validation

    def on_validation_start(self, trainer: Trainer, pl_module: Training) -> None:
        self._idle = self._alone
        self._leave(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Training, *args: Any) -> None:
        self._leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Training) -> None:
        self.validated, self._idle = trainer.global_step, self._alone and trainer.state.fn != TrainerFn.FITTING

    def _leave(self, trainer: Trainer) -> None:
        self.stopped = self._asked(trainer)
        if self.stopped:
            raise Stopped

    # -- writing

    def on_exception(self, trainer: Trainer, pl_module: Training, exception: BaseException) -> None:
        """Write the step that ended last where nothing has changed since: not after a kill, or in the middle of a step."""
        self._idle = False
        together = trainer.world_size == 1 or isinstance(exception, Stopped | NonFinite)
        whole = not self._stepping or isinstance(exception, NonFinite)
        if not (together and whole and isinstance(exception, Stopped | Exception)):
            return
        step = trainer.global_step
        try:
            pl_module.guard.restore(step)
            if self._ended is not None and self._ended[0] == step != self.saved:
                self._restored = True
                self.save(trainer)
        except Exception as second:
            exception.add_note(f"and the checkpoint of step {step} could not be written: {second}")
        finally:
            self._restored = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Training, checkpoint: dict) -> None:
        if self._restored:
            checkpoint["loops"]["fit_loop"] = self._ended[1]

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of the step that ended last."""
        step = trainer.global_step
        part = self.checkpoints.path(step).with_suffix(".ckpt.part")
        if trainer.is_global_zero:
            part = self.checkpoints.begin(step)
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            self.checkpoints.commit(step, self._io.digests)
        trainer.strategy.barrier("checkpoint")  # no process goes on before it has its name
        self.saved = step


def _waiting(frame: Any) -> bool:
    """Whether a frame is of the wait for the next batch."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "lightning.pytorch.loops.fetchers":
            return True
        frame = frame.f_back
    return False
