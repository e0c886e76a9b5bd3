"""Averages of a module sharded by FSDP2, as one of two processes: `python -m tests.two_shards PORT FOLDER` is the second."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn

from mmldm.training import EMA


class Told:
    """What a callback asks of a trainer."""

    def __init__(self, rank):
        self.is_global_zero, self.global_step = rank == 0, 0


class Net(nn.Module):
    """Two layers, of which one is a shard of its own; 5 rows do not divide by two."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(3, 5), nn.Linear(5, 1)
        self.step = 0

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x))).square().mean()

    def exported(self):
        return dict(self.named_parameters())

    def progress(self):
        return self.step / 8


def restored(state, folder, rank, mesh):
    """The averages as a later start reads them from the checkpoint that the first process wrote."""
    if rank == 0:
        torch.save(state, folder.with_suffix(".pt"))
    if mesh is not None:
        distributed.barrier()
    ema = EMA((0.05, 0.10), folder / "ema", 4)
    ema.load_state_dict(torch.load(folder.with_suffix(".pt"), weights_only=True))
    return ema


def train(folder, rank=0, mesh=None):
    """Eight steps with a checkpoint and a validation in between; raw and averaged parameters, gathered."""
    folder, net, trainer = Path(folder), Net(), Told(rank)
    if mesh is not None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(net.inner, mesh=mesh)
        fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    ema = EMA((0.05, 0.10), folder / "ema", 4)
    ema.on_train_start(trainer, net)
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    for step in range(1, 9):
        optimizer.zero_grad()
        net(x).backward()
        optimizer.step()
        net.step = trainer.global_step = step
        ema.on_train_batch_end(trainer, net, None, None, step)
        if step == 4:
            ema, validated = restored(ema.state_dict(), folder, rank, mesh), {}
            for name in ("nothing left to train", "loss"):
                if name == "loss":
                    ema.on_train_start(trainer, net)
                ema.on_validation_start(trainer, net)
                with torch.no_grad():
                    validated[name] = net(x)
                ema.on_validation_end(trainer, net)
    whole = lambda p: p.full_tensor() if hasattr(p, "full_tensor") else p  # noqa: E731
    raw = {name: whole(p.detach()) for name, p in net.named_parameters()}
    return {"raw": raw, "validated": validated, **ema.state_dict()["averages"]}


def sharded(port, rank, folder):
    """The same training, this process holding the shards of one rank of two."""
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        return train(folder, rank, distributed.init_device_mesh("cpu", (2,)))
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sharded(sys.argv[1], 1, sys.argv[2])
