"""Trainings that save every step, started in forks of this process and killed at random moments: folder, times, seed."""

import os
import random
import signal
import sys
import time

import lightning
import torch

from mmldm.training import EMA, Resume
from tests.test_training import Endless, make_training


class Padded(torch.nn.Module):
    """Enough bytes that most of the time goes into saving."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bytes", torch.zeros(1_000_000))


def train(folder, pipe):
    """Train on from the newest checkpoint, telling each step that is saved."""
    module = make_training("codec")
    module.padded = Padded()
    resume, data = Told(folder, 1), Endless(4)
    resume.pipe = pipe
    trainer = lightning.Trainer(
        max_steps=10**6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[EMA(0.1), resume], use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    if resume.latest:
        data.start = torch.load(resume.latest, weights_only=True)["global_step"]
    trainer.fit(module, data, ckpt_path=resume.latest, weights_only=True)


class Told(Resume):
    """Tells each step that is saved through a pipe."""

    def save(self, trainer):
        super().save(trainer)
        os.write(self.pipe, f"{trainer.global_step}\n".encode())


def main(folder, times, seed):
    draw = random.Random(seed)
    for _ in range(times):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                train(folder, writing)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as lines:
            told = int(lines.readline())
            time.sleep(draw.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
            for line in lines:
                told = int(line)
        os.waitpid(child, 0)
        latest = Resume(folder).latest
        state = torch.load(latest, weights_only=True)
        print(told, state["global_step"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
