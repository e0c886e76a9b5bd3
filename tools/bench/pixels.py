"""A codec that changes nothing, to diffuse the media themselves: `codec.image={_target_: pixels.Pixels, media: …}`."""

from __future__ import annotations

import torch
from torch import Tensor

from mmldm.interfaces import Axis, Codec, Media, Posterior

__all__ = ["Pixels"]


class Pixels(Codec):
    """Pictures (B, C, H, W) are their own latents; `scale` is their standard deviation."""

    def __init__(self, media: Media, scale: float = 0.5):
        super().__init__()
        self.media, self.latent_channels = media, media.shape[0]
        self.axes = (Axis("height", 1, 1, 1.0), Axis("width", 1, 1, 1.0))
        self.whitening = (torch.zeros(self.latent_channels), torch.full((self.latent_channels,), scale))

    def encode_features(self, features: Tensor) -> Posterior:
        return Posterior(features)

    def decode_features(self, z: Tensor) -> Tensor:
        return z.clamp(-1, 1)

    def latent_shape(self, media_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(media_shape)
