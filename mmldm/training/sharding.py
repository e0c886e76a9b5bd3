"""Training in shards: FSDP2 through Lightning, with checkpoints that any number of processes can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils._pytree import tree_map

from mmldm.training.processes import is_sharded, placed, whole

__all__ = ["Sharded", "shard"]


class Sharded(ModelParallelStrategy):
    """Each process holds a share of every trained parameter, its gradient, optimiser state and average (arXiv 2304.11277).

    A checkpoint is gathered into the one file that an unsharded training writes: a run may go on with another number of
    processes, or with none of this.
    """

    def __init__(self, process_group_backend: str | None = None, minutes: float = 30.0):
        timeout = timedelta(minutes=minutes)
        super().__init__(
            "auto", 1, save_distributed_checkpoint=False, process_group_backend=process_group_backend, timeout=timeout
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.cluster_environment.world_size()
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: whole(tensor) for name, tensor in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return tree_map(lambda x: whole(x) if isinstance(x, Tensor) else x, optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own = self.lightning_module.state_dict()
        state = {name: placed(value, own[name]) for name, value in checkpoint["state_dict"].items() if name in own}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
            kept = {
                i: {
                    k: placed(v, params[i]) if isinstance(v, Tensor) and v.shape == params[i].shape else v
                    for k, v in of.items()
                }
                for i, of in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": kept})


def shard(
    module: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, steps: Sequence[str], kept: set[nn.Parameter], half: bool
) -> None:
    """Shard a module in place over `mesh`: each of its `layers` on its own, then all that is left; twice changes nothing.

    `steps` are the methods of the module that are called from outside, `kept` the parameters that stay whole everywhere. A
    part of a layer names the methods beside forward that read its parameters in `entries`. With `half` the layers are
    gathered in bfloat16; gradients are summed in float32 in any case.
    """
    if is_sharded(module):
        return
    policy = MixedPrecisionPolicy(torch.bfloat16 if half else None, torch.float32 if half else None, cast_forward_inputs=False)
    for layer in layers:
        for part in reversed(list(layer.modules())):
            entries = getattr(part, "entries", ())
            if entries or part is layer:
                _unit(part, entries, mesh=mesh, mp_policy=policy)
    _unit(module, steps, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), ignored_params=kept)


def _unit(module: nn.Module, entries: Sequence[str], **options: Any) -> None:
    fully_shard(module, **options)
    for name in entries:
        register_fsdp_forward_method(module, name)
