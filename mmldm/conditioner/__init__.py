"""Conditioners: one field of a batch -> what the denoiser is told."""

from mmldm.conditioner.hub import HubTextConditioner
from mmldm.conditioner.label import LabelConditioner
from mmldm.conditioner.latent import LatentConditioner
from mmldm.conditioner.scalar import ScalarConditioner
from mmldm.conditioner.set import ConditionSet
from mmldm.conditioner.text import TextConditioner

__all__ = [
    "ConditionSet",
    "HubTextConditioner",
    "LabelConditioner",
    "LatentConditioner",
    "ScalarConditioner",
    "TextConditioner",
]
