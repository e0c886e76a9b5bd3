"""The codec of moving pictures; a picture is a clip of one frame."""

from __future__ import annotations

from collections.abc import Sequence

from mmldm.codec.conv_vae import ConvCodec, ConvVAE
from mmldm.codec.regularisers import BoundedNoise, Regulariser
from mmldm.interfaces import Media

__all__ = ["VideoCodec"]


class VideoCodec(ConvCodec):
    """Clips (B, C, 1 + r·n, H, W) <-> latents (B, D, 1 + n, H/s, W/s), causal in time.

    `strides` are (time, height, width) by level. The first frame is the first latent by itself, whatever follows: one picture
    is encoded exactly as the beginning of a clip. Other lengths are completed by repeating the last frame. The default
    kernels are the factorised (1, 3, 3) and (3, 1, 1): a quarter of the arithmetic of (3, 3, 3), and stable at twice its
    learning rate.
    """

    chunk = 1

    def __init__(
        self,
        media: Media,
        latent_channels: int = 8,
        width: int = 96,
        multipliers: Sequence[int] = (1,),
        strides: Sequence[int | Sequence[int]] = ((4, 4, 4),),
        blocks: int = 2,
        kernel: int | Sequence[int] = (1, 3, 3),
        second_kernel: int | Sequence[int] = (3, 1, 1),
        decoder_width: int | None = None,
        decoder_blocks: int | None = None,
        regulariser: Regulariser | None = None,
    ):
        if media.rate is None:
            raise ValueError(f"wanted a media with frames per second, got {type(media).__name__} without a rate")
        regulariser = regulariser or BoundedNoise()
        body = ConvVAE(
            rank=3,
            in_channels=media.shape[0],
            latent_channels=latent_channels,
            width=width,
            multipliers=multipliers,
            strides=strides,
            blocks=blocks,
            decoder_width=decoder_width,
            decoder_blocks=decoder_blocks,
            kernel=kernel,
            second_kernel=second_kernel,
            causal_axis=0,
            lone_first=True,
            head_channels=regulariser.heads * latent_channels,
        )
        names, units = ("time", "height", "width"), (1.0 / media.rate, 1.0, 1.0)
        super().__init__(media, body, names, units, regulariser=regulariser, lookahead=0)
