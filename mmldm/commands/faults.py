"""What ends a training from outside, in the words of who can do something about it: a full disk, memory, a lost worker."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning import Trainer
from omegaconf import DictConfig
from torch.distributed import DistNetworkError

from mmldm.training import NonFinite
from mmldm.training.checkpoints import FULL

__all__ = ["ending_together", "explained"]

ALLOCATION = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
PEER = ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "ncclSystemError")


@contextmanager
def ending_together(trainer: Trainer) -> Iterator[None]:
    """An error ends the processes that this one has started, which would wait for it; one that all of them have, does not."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, NonFinite) and hasattr(trainer.strategy.launcher, "procs"):
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise


def explained(error: Exception, cfg: DictConfig, run: Path) -> ValueError | None:
    """The error in words with what to do, None where it is not one of those that come from outside."""
    told = _disk(error, run) or _worker(error, cfg) or _memory(error, cfg) or _processes(error)
    if told is None:
        return None
    steps = sorted((run / "resume").glob("step-*.ckpt"))
    kept = f"{steps[-1]} stays: the same command continues from it" if steps else "there is no checkpoint yet"
    return ValueError("\n".join([told, *getattr(error, "__notes__", ()), kept]))


def _disk(error: Exception, run: Path) -> str | None:
    full = getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL)
    if not full:
        return None
    place = Path(getattr(error, "filename", None) or run)
    free = shutil.disk_usage(next(p for p in (place, *place.absolute().parents) if p.exists())).free
    about = getattr(error, "strerror", None) or str(error)
    room = "" if "free" in about else f" ({free / 1e9:.2f} GB free)"
    return f"{place}: {about}{room}\nmake room on that disk or in its quota, or choose a run= on a larger one"


def _worker(error: Exception, cfg: DictConfig) -> str | None:
    text = str(error)
    if "DataLoader worker" not in text:
        return None
    if "Bus error" in text or "shared memory" in text:
        return (
            "a data worker was killed: shared memory is full\n"
            f"choose fewer data.workers (now {cfg.data.workers}; 0 needs none), or a larger /dev/shm (docker run --shm-size=8g)"
        )
    if "killed by signal" in text or "exited unexpectedly" in text:
        return (
            "a data worker was killed, most likely because memory ran out\n"
            f"choose fewer data.workers (now {cfg.data.workers}) or a smaller data.batch_size (now {cfg.data.batch_size})"
        )
    users = isinstance(error, ValueError | OSError | ImportError)  # else a fault of the program, with its traceback
    return f"a data worker: {text.strip().splitlines()[-1]}" if users else None


def _memory(error: Exception, cfg: DictConfig) -> str | None:
    lack = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in ALLOCATION)
    if not lack:
        return None
    where = "the accelerator" if isinstance(error, torch.OutOfMemoryError) else "this machine"
    return (
        f"out of memory on {where}\nchoose a smaller data.batch_size (now {cfg.data.batch_size}), a larger "
        f"trainer.accumulate_grad_batches (now {cfg.trainer.accumulate_grad_batches}), or trainer.precision=bf16-mixed"
    )


def _processes(error: Exception) -> str | None:
    if isinstance(error, DistNetworkError) and "EADDRINUSE" in str(error):
        port = os.environ.get("MASTER_PORT", "of MASTER_PORT")
        return f"the port {port} is in use, by another training perhaps\nchoose another: MASTER_PORT=29517 mmldm train …"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PEER):
        return "another process of this training has ended; its own message says why"
    return None
