"""The codec of sound: a log-mel front end, a convolutional body over (time, frequency), and a vocoder back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmldm.codec.conv_vae import ConvCodec, ConvVAE
from mmldm.codec.losses import BoundedNoise, Regulariser
from mmldm.codec.mel import LogMel
from mmldm.codec.vocoder import GriffinLim
from mmldm.interfaces import Media

__all__ = ["AudioCodec"]


class AudioCodec(ConvCodec):
    """Sound (B, C, T) <-> latents (B, D, time, freq), causal over mel frames; `strides` are (frames, bins) by level.

    Features are log-mels (B, C, frames, bins) of about [-1, 1]. A mel frame sees (n_fft - hop)/2 samples past its own end: the
    look-ahead. The way back to a waveform is the vocoder's, and no inverse of the front.
    """

    def __init__(
        self,
        media: Media,
        mel: LogMel,
        vocoder: GriffinLim | None = None,
        latent_channels: int = 8,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        strides: Sequence[int | Sequence[int]] = (4, 2),
        blocks: int = 2,
        decoder_width: int | None = None,
        decoder_blocks: int | None = None,
        regulariser: Regulariser | None = None,
    ):
        if media.rate != mel.rate:
            raise ValueError(f"wanted a mel front end at the media's {media.rate} Hz, got {mel.rate} Hz")
        vocoder = GriffinLim(mel) if vocoder is None else vocoder
        if vocoder.mel.digest() != mel.digest():
            raise ValueError(f"wanted a vocoder of the codec's own mel front end {mel}, got one of {vocoder.mel}")
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
            causal_axis=0,
            head_channels=regulariser.heads * latent_channels,
        )
        super().__init__(
            media,
            body,
            ("time", "freq"),
            (1.0 / mel.rate, 1.0),
            (mel.hop, 1),
            regulariser,
            lookahead=(mel.n_fft - mel.hop) // 2,
            overlap=(mel.n_fft - mel.hop) // 2,
        )
        self.mel, self.vocoder = mel, vocoder

    def front(self, x: Tensor) -> Tensor:
        return self.mel(x)

    def unfront(self, features: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        return self.vocoder(features[..., : self.mel.bins])

    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        return super().latent_shape((*media_shape[:2], self.mel.bins))
