"""A dumped training step made again: by the same trainer and module, on the batches that were dumped, watched from outside."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from omegaconf import OmegaConf
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from mmldm import config
from mmldm.commands import training
from mmldm.training import CodecTraining, NonFinite
from mmldm.training.faults import read, unpacked

__all__ = ["Replay", "replay"]

SHOWN = 32  # samples, and modules or parameters of one kind


def replay(path: str | Path) -> tuple[list[str], bool]:
    """What is found when a dumped step is made again, in lines, and whether its numbers are equal to the bit.

    Raises ValueError where `path` is no dump, or the checkpoint of the step before is not beside it.
    """
    state, checkpoint = read(path), Path(path).with_suffix(".ckpt")
    if state["step"] > 1 and not checkpoint.is_file():
        raise ValueError(f"wanted the checkpoint of the step before beside the dump, got no {checkpoint}; copy it there too")
    again = Replay(state, Path(path).parent, checkpoint if state["step"] > 1 else None)
    lines = [f"then: {state['fault']}", f"now:  {again.fault}", *again.samples(), *again.places()]
    if state["processes"] > 1:
        lines.append(f"of {state['processes']} processes this is one: its gradients are not the average of all")
    differs = again.differences()
    verdict = f"not reproduced: other are {', '.join(differs[:4])}" if differs else "reproduced to the bit"
    return [*lines, f"{verdict}, on {again.module.device} (the training ran on {state['device']})"], not differs


class Replay(lightning.Callback):
    """Makes the step of a dump in `folder` again from a checkpoint (None: from the seed); `fault` is what it ends with."""

    def __init__(self, state: dict[str, Any], folder: Path, checkpoint: Path | None):
        cfg = OmegaConf.create({**yaml.safe_load(state["config"]), "run": str(folder)})
        cfg.init = cfg.init if checkpoint is None else None  # the checkpoint has the weights that came of it
        job = training.prepare(cfg, reads=False)
        self.state, self.module, self.first, self.fault = state, job.module, "", "all is finite"
        self.module.progress = lambda: state["reached"]
        for name, part in self.module.named_modules():
            part.register_forward_hook(lambda part, given, made, name=name: self._look(name, given, made))
        options = {"precision": training.precision(cfg.trainer.precision), "limit_val_batches": 0, "logger": False}
        if isinstance(job.module, CodecTraining):
            options |= {"gradient_clip_val": None, "accumulate_grad_batches": 1}
        alone = {"strategy": "auto", "devices": 1, "num_nodes": 1, "callbacks": [self]}
        trainer = config.build(cfg.trainer, **training.PLAIN, **options, **alone)
        loader = DataLoader([unpacked(batch) for batch in state["batches"]], batch_size=None)
        threads = torch.get_num_threads()
        torch.set_num_threads(state["threads"])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.fit(self.module, loader, ckpt_path=checkpoint, weights_only=True)
        except NonFinite as error:
            self.fault = str(error)
        finally:
            torch.set_num_threads(threads)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.state["step"]

    def _look(self, name: str, given: Any, made: Any) -> None:
        if not self.first and not finite(made):
            what = "is given what is not finite" if not finite(given) else "makes it"
            self.first = f"first not finite: {name or 'the whole'} ({what})"

    def samples(self) -> list[str]:
        """A line for each sample: its position and file, and the numbers it gave."""
        lines, files = [], iter(self.state["files"])
        for batch, told in zip(self.state["batches"], self.module.guard.told, strict=False):
            columns = {k: v for k, v in told.items() if v.shape == batch["position"].shape}
            for row, position in enumerate(batch["position"].tolist()):
                numbers = [f"{name} {float(column[row]):.6g}" for name, column in columns.items()]
                lines.append("  ".join([f"  position {position}", *numbers, next(files)]))
            scalars = [f"{k} {float(v):.6g}" for k, v in told.items() if v.ndim == 0]
            lines.append("  " + ", ".join(scalars))
        return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  … and {len(lines) - SHOWN} more lines"]

    def places(self) -> list[str]:
        """Where what is not finite begins: in the batch, in the weights before the step, in a module, in gradients."""
        found = []
        for batch in self.state["batches"]:
            for name, x in (batch["media"] | batch["latents"] | batch["fields"]).items():
                wrong = [
                    p for row, p in enumerate(batch["position"].tolist()) if not finite(tree_map(lambda y, row=row: y[row], x))
                ]
                found += [f"not finite in the batch: {name} of position {', '.join(map(str, wrong))}"] if wrong else []
        found += named("weights before the step", {n: p for n, p in self.module.named_parameters() if not finite(p)})
        found += [self.first] if self.first else []
        gradients = {n: p.grad for n, p in self.module.named_parameters() if p.grad is not None}
        return found + named(f"gradients, of {len(gradients)}", {n: g for n, g in gradients.items() if not finite(g)})

    def differences(self) -> list[str]:
        """The numbers of the step that are not, to the bit, what they were."""
        then, now = self.state["told"], self.module.guard.told
        if len(then) != len(now):
            return ["the number of batches"]
        return sorted({k for a, b in zip(then, now, strict=True) for k in a.keys() | b.keys() if not same(a.get(k), b.get(k))})


def named(what: str, tensors: dict[str, torch.Tensor]) -> list[str]:
    """One line of what is not finite among named tensors, or none."""
    more = " …" if len(tensors) > 3 else ""
    return [f"not finite in {len(tensors)} {what}: {', '.join(list(tensors)[:3])}{more}"] if tensors else []


def finite(tree: Any) -> bool:
    """Whether all numbers of nested records are finite."""
    tensors = [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
    return all(bool(x.isfinite().all()) for x in tensors)


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether two tensors are equal to the bit, not-a-number to not-a-number."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.cpu(), b.detach().cpu()
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
