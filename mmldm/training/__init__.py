"""The LightningModules and their callbacks; they receive built parts and do not know any modality."""

from mmldm.training.adversarial import Adversary, Balance
from mmldm.training.clip import AdaptiveClip, Clip
from mmldm.training.codec import CodecTraining
from mmldm.training.diffusion import DiffusionTraining
from mmldm.training.ema import EMA
from mmldm.training.equivariance import ScaleEquivariance
from mmldm.training.faults import Faults, NonFinite
from mmldm.training.lengths import Lengths
from mmldm.training.resume import Resume, Stopped
from mmldm.training.schedule import Schedule
from mmldm.training.state import State
from mmldm.training.watch import Curves, Progress, Samples, Speed

__all__ = [
    "EMA", "AdaptiveClip", "Adversary", "Balance", "Clip", "CodecTraining", "Curves", "DiffusionTraining", "Faults",
    "Lengths", "NonFinite", "Progress", "Resume", "Samples", "ScaleEquivariance", "Schedule", "Speed", "State", "Stopped",
]  # fmt: skip
