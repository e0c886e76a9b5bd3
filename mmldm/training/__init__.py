"""The LightningModules and their callbacks; they receive built parts and do not know any modality."""

from mmldm.training.codec import CodecTraining
from mmldm.training.diffusion import DiffusionTraining
from mmldm.training.ema import EMA
from mmldm.training.resume import Resume
from mmldm.training.schedule import Schedule
from mmldm.training.watch import Curves, Progress, Samples, Speed

__all__ = ["EMA", "CodecTraining", "Curves", "DiffusionTraining", "Progress", "Resume", "Samples", "Schedule", "Speed"]
