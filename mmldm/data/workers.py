"""Loader processes leave the ends of a training to the process that trains: a signal to the whole group must not take them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

__all__ = ["leave_signals"]


def leave_signals(worker: int = 0) -> None:
    """In a loader process, ignore SIGINT, SIGUSR1 and a SIGTERM that does not come from the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # elsewhere SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait, args=(parent.pid,), daemon=True).start()


def _wait(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)
