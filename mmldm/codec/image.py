"""The codec of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from mmldm.codec.conv_vae import ConvCodec, ConvVAE
from mmldm.codec.regularisers import BoundedNoise, Regulariser
from mmldm.interfaces import Media

__all__ = ["ImageCodec"]


class ImageCodec(ConvCodec):
    """Pictures (B, C, H, W) <-> latents (B, D, H/r, W/r), r the product of `strides` (4: f4, 8: f8)."""

    def __init__(
        self,
        media: Media,
        latent_channels: int = 4,
        width: int = 96,
        multipliers: Sequence[int] = (1,),
        strides: Sequence[int | Sequence[int]] = (4,),
        blocks: int = 2,
        decoder_width: int | None = None,
        decoder_blocks: int | None = None,
        regulariser: Regulariser | None = None,
    ):
        regulariser = regulariser or BoundedNoise()
        body = ConvVAE(
            rank=2,
            in_channels=media.shape[0],
            latent_channels=latent_channels,
            width=width,
            multipliers=multipliers,
            strides=strides,
            blocks=blocks,
            decoder_width=decoder_width,
            decoder_blocks=decoder_blocks,
            head_channels=regulariser.heads * latent_channels,
        )
        super().__init__(media, body, ("height", "width"), (1.0, 1.0), regulariser=regulariser)
