"""The LightningModules and their callbacks; they receive built parts and do not know any modality."""

from mmldm.training.adversarial import Adversary, Balance
from mmldm.training.clip import AdaptiveClip, Clip
from mmldm.training.codec import CodecTraining
from mmldm.training.diffusion import DiffusionTraining
from mmldm.training.ema import EMA
from mmldm.training.equivariance import ScaleEquivariance
from mmldm.training.lengths import Lengths
from mmldm.training.resume import Resume
from mmldm.training.schedule import Schedule
from mmldm.training.watch import Curves, Progress, Samples, Speed

__all__ = [
    "EMA", "AdaptiveClip", "Adversary", "Balance", "Clip", "CodecTraining", "Curves", "DiffusionTraining", "Lengths",
    "Progress", "Resume", "Samples", "ScaleEquivariance", "Schedule", "Speed",
]  # fmt: skip
