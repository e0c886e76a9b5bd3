"""How good media are: distances to a reference, and probes that measure what is in them."""

from mmldm.evaluation.metrics import log_spectral_distance, mean_absolute_error, psnr, ssim, stft_distance
from mmldm.evaluation.probes import Probes

__all__ = ["Probes", "log_spectral_distance", "mean_absolute_error", "psnr", "ssim", "stft_distance"]
