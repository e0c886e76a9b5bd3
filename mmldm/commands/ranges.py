"""The numbers of a training that must lie in a range, told before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mmldm import config

__all__ = ["check_ranges"]

LEAST = {  # of whole numbers
    "data.batch_size": 1, "data.workers": 0, "trainer.accumulate_grad_batches": 1, "trainer.num_nodes": 1,
    "trainer.val_check_interval": 1, "trainer.log_every_n_steps": 1, "trainer.limit_val_batches": 1, "checkpoint_every": 1,
    "snapshots": 0, "previews": 0, "whitening_batches": 1, "seed": 0,
}  # fmt: skip
POSITIVE = ("minutes", "optimizer.lr")
GPUS = ("gpu", "cuda")


def check_ranges(cfg: DictConfig) -> None:
    """Raise ConfigError with every number that is out of its range, and for a device that is not there."""
    values = {key: OmegaConf.select(cfg, key) for key in (*LEAST, *POSITIVE)}
    found = [
        f"{key}: wanted a whole number of at least {LEAST[key]}, got {value}"
        for key, value in values.items()
        if key in LEAST and value is not None and not (type(value) is int and value >= LEAST[key])
    ]
    found += [
        f"{key}: wanted a number above 0, got {values[key]}"
        for key in POSITIVE
        if values[key] is not None and not (isinstance(values[key], int | float) and values[key] > 0)
    ]
    found += _devices(cfg.trainer) + _length(cfg)
    if found:
        raise config.ConfigError(*found)


def _length(cfg: DictConfig) -> list[str]:
    steps = cfg.trainer.get("max_steps", -1)
    if steps == -1 and cfg.minutes is None:
        return ["trainer.max_steps: wanted an end, got -1; choose a number of steps, or minutes="]
    return (
        [] if steps == -1 or steps > 0 else [f"trainer.max_steps: wanted at least 1 step (-1: by minutes alone), got {steps}"]
    )


def _devices(trainer: Mapping[str, Any]) -> list[str]:
    kind, count = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    usable = torch.cuda.is_available() or torch.backends.mps.is_available()
    if kind in GPUS and not usable:
        built = torch.version.cuda or "none"
        told = f"wanted a GPU, got none that torch {torch.__version__} (built for CUDA {built}) can use"
        return [f"trainer.accelerator: {told}; choose trainer.accelerator=auto, or mend the driver"]
    there = torch.cuda.device_count() if usable else None  # what -1 means
    if isinstance(count, int) and (count < -1 or count == 0 or (count == -1 and there is None)):
        return [f"trainer.devices: wanted at least 1 device, got {count}; choose a number, or auto"]
    if isinstance(count, str) and count != "auto" and not count.lstrip("-").replace(",", "").isdigit():
        return [f"trainer.devices: wanted a number of devices, got {count!r}; choose for example 1, or auto"]
    if kind in (*GPUS, "auto") and torch.cuda.is_available() and isinstance(count, int) and count > there:
        return [f"trainer.devices: wanted {count} GPUs, got {there}; choose at most {there}"]
    return []
