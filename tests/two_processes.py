"""Twenty float64 steps of one training, as one of two processes: `python -m tests.two_processes OUT`, rank in LOCAL_RANK."""

import sys

import lightning
import torch

from mmldm.diffusion import First, KeyCell, KnownMixture, LogitNormal, UnitF
from mmldm.training import DiffusionTraining, Schedule
from tests.test_training import adamw, make_batch, make_model

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


def train(devices=1):
    """The module after 20 steps at one global batch, over `devices` processes."""
    known = KnownMixture([(0.3, First()), (0.3, KeyCell())])
    module = DiffusionTraining(make_model().double(), LogitNormal(), UnitF(), adamw, known, Schedule(2, 0.5), GLOBAL)
    options = {"strategy": "ddp", "devices": devices} if devices > 1 else {"devices": 1}
    trainer = lightning.Trainer(
        max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0, use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(module, Share())
    return module


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained = train(2)
    if trained.global_rank == 0:
        torch.save(trained.state_dict(), sys.argv[1])
