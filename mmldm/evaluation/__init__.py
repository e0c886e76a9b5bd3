"""How good media are: distances to a reference and between sets, what latents are like, and probes of what is in media."""

from mmldm.evaluation.embedders import Clap, Embedder, Inception
from mmldm.evaluation.frechet import Moments, frechet_distance
from mmldm.evaluation.latents import LatentStatistics
from mmldm.evaluation.learned import Learned
from mmldm.evaluation.metrics import (
    by_frame,
    flicker,
    log_spectral_distance,
    mean_absolute_error,
    motion_energy,
    psnr,
    si_sdr,
    ssim,
    stft_distance,
)
from mmldm.evaluation.probes import Probes

__all__ = [
    "Clap", "Embedder", "Inception", "LatentStatistics", "Learned", "Moments", "Probes", "by_frame", "flicker",
    "frechet_distance", "log_spectral_distance", "mean_absolute_error", "motion_energy", "psnr", "si_sdr", "ssim",
    "stft_distance",
]  # fmt: skip
