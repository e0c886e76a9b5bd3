"""A training, built and ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mmldm.data import DataModule
from mmldm.interfaces import Media
from mmldm.training.base import Training

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """Everything one training needs: its module and data, and the plain spec that its model folder will carry."""

    cfg: DictConfig
    run: Path
    module: Training
    data: DataModule
    spec: dict[str, Any]
    medias: dict[str, Media]
