"""The codec of sound: a log-mel front end, a convolutional body over (time, frequency), and a vocoder back."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import Any

from torch import Tensor

from mmldm import windows
from mmldm.codec.conv_vae import ConvCodec, ConvVAE
from mmldm.codec.mel import LogMel
from mmldm.codec.regularisers import BoundedNoise, Regulariser
from mmldm.codec.vocoder import GriffinLim, Vocoder
from mmldm.interfaces import Axis, Media

__all__ = ["AudioCodec"]


class AudioCodec(ConvCodec):
    """Sound (B, C, T) <-> latents (B, D, time, freq), causal over mel frames; `strides` are (frames, bins) by level.

    Features are log-mels (B, C, frames, bins) of about [-1, 1]. A mel frame sees (n_fft - hop)/2 samples past its own end: the
    look-ahead. The way back to a waveform is the vocoder's, and no inverse of the front; a vocoder of unbounded reach is
    cross-faded between pieces.
    """

    chunk = 128

    def __init__(
        self,
        media: Media,
        mel: LogMel,
        vocoder: Vocoder | None = None,
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
        vocoder.check(mel)
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
        self._frames = Axis("frame", mel.hop, mel.hop, 1.0 / mel.rate)
        if vocoder.reach is None:
            del self.decode_reach["time"]
        else:
            self.decode_reach["time"] += ceil(vocoder.reach / body.strides[0])

    def front(self, x: Tensor) -> Tensor:
        return self.mel(x)

    def unfront(self, features: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        return self.vocoder(features[..., : self.mel.bins])

    def front_step(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        seen = self.lookahead / self.mel.hop
        return windows.advance(self.front, x, state, last, 2, windows.Context.of(self._frames, windows.GRID, seen, seen, None))

    def unfront_step(self, features: Tensor | None, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        reach = inf if self.vocoder.reach is None else self.vocoder.reach
        context = windows.Context.of(windows.GRID, self._frames, reach, reach, self.chunk and self.chunk * self.body.strides[0])
        return windows.advance(self.unfront, features, state, last, 2, context)

    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        return super().latent_shape((*media_shape[:2], self.mel.bins))
