"""Twenty float64 steps of a training in one of two processes: `python -m tests.two_processes OUT [KIND]`, rank LOCAL_RANK."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import torch

from mmldm.diffusion import First, KeyCell, KnownMixture, LogitNormal, UnitF
from mmldm.training import DiffusionTraining, Schedule
from tests.test_training import adamw, make_batch, make_model
from tests.test_training_codec import make_whole

GLOBAL = 8


class Share(lightning.LightningDataModule):
    """This rank's slice of every global batch, in float64."""

    def train_dataloader(self):
        rank, size = self.trainer.global_rank, GLOBAL // self.trainer.world_size

        def batches(step=0):
            while True:
                first = step * GLOBAL + rank * size
                batch = make_batch(range(first, first + size))
                batch.media = {s: x.double() for s, x in batch.media.items()}
                yield batch
                step += 1

        return batches()


def build(kind):
    if kind == "codec":
        return make_whole(size=GLOBAL).double()
    known = KnownMixture([(0.3, First()), (0.3, KeyCell())])
    return DiffusionTraining(make_model().double(), LogitNormal(), UnitF(), adamw, known, Schedule(2, 0.5), GLOBAL)


def train(devices=1, kind="diffusion"):
    """The module after 20 steps at one global batch, over `devices` processes."""
    module = build(kind)
    options = {"strategy": "ddp", "devices": devices} if devices > 1 else {"devices": 1}
    if module.automatic_optimization:
        options["gradient_clip_val"] = 1.0
    trainer = lightning.Trainer(
        max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(module, Share())
    return module


def two(module, *words):
    """Start `python -m module *words` as two processes of one training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    command, root = [sys.executable, "-m", module, *map(str, words)], Path(__file__).resolve().parent.parent
    return [
        subprocess.Popen(command, cwd=root, env={**os.environ, **shared, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]


def finished(started):
    """Wait for such processes; raises RuntimeError with what they told where one failed."""
    try:
        told = [process.communicate(timeout=200)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(told))


def pair(out, kind):
    """The weights after the same training in two processes, written to `out` by the first."""
    finished(two("tests.two_processes", out, kind))
    return torch.load(out, weights_only=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained = train(2, *sys.argv[2:])
    if trained.global_rank == 0:
        torch.save(trained.state_dict(), sys.argv[1])
