"""Denoisers: networks from noisy latent grids to a prediction."""

from mmldm.denoiser.dit import DiT

__all__ = ["DiT"]
