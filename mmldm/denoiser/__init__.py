"""Denoisers: networks from noisy latent grids to a prediction."""

from mmldm.denoiser.dit import DiT
from mmldm.denoiser.unet import UNet

__all__ = ["DiT", "UNet"]
