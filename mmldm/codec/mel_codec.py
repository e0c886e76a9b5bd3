"""A vocoder as a codec: the latent is the log-mel itself, and what is trained is the way back to a waveform."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmldm.codec.vocoder import Vocoder
from mmldm.interfaces import Axis, Codec, Media, Posterior

__all__ = ["MelCodec"]


class MelCodec(Codec):
    """Sound (B, C, T) <-> its log-mel frames (B, C·bins, frames); only the vocoder has weights to train.

    Features are the waveform, so the losses hear what a listener hears. With `through`, a trained codec that stays as it
    is, the latent is the log-mel as that codec gives it back, whole clips at once: so a vocoder learns the faults it will
    meet.
    """

    chunk = 256

    def __init__(self, media: Media, vocoder: Vocoder, through: Codec | None = None):
        super().__init__()
        mel = vocoder.mel
        if media.rate != mel.rate:
            raise ValueError(f"wanted a vocoder at the media's {media.rate} Hz, got {mel.rate} Hz")
        if through is not None:
            if not hasattr(through, "mel"):
                raise ValueError(f"wanted a codec of log-mels to go through, got {type(through).__name__}")
            vocoder.check(through.mel)
            if through.media.shape[0] != media.shape[0]:
                raise ValueError(f"wanted a codec of {media.shape[0]} channels to go through, got {through.media.shape[0]}")
            through = through.eval().requires_grad_(False)
        self.media, self.vocoder, self.through = media, vocoder, through
        self.channels, self.latent_channels = media.shape[0], media.shape[0] * mel.bins
        self.axes = (Axis("time", mel.hop, mel.hop, 1.0 / mel.rate),)
        if through is None:
            self.lookahead = (mel.n_fft - mel.hop) // 2
            self.reach = {"time": self.lookahead}
        else:
            self.chunk = None
        self.decode_reach = {} if vocoder.reach is None else {"time": vocoder.reach}

    @property
    def decoding(self) -> tuple[str, ...]:
        return tuple(f"vocoder.{name}" for name, _ in self.vocoder.named_children() if name != "mel")

    def requires_grad_(self, requires_grad: bool = True) -> MelCodec:
        self.vocoder.requires_grad_(requires_grad)
        return self

    def train(self, mode: bool = True) -> MelCodec:
        super().train(mode)
        if self.through is not None:
            self.through.eval()
        return self

    @torch.no_grad()
    def encode_features(self, features: Tensor) -> Posterior:
        mel = self.vocoder.mel(features)
        if self.through is not None:
            again = self.through.decode_features(self.through.encode_features(mel).mean)
            mel = again[:, :, : mel.shape[2], : mel.shape[3]]
        return Posterior(mel.transpose(2, 3).flatten(1, 2))

    def decode_features(self, z: Tensor) -> Tensor:
        return self.vocoder(z.unflatten(1, (self.channels, -1)).transpose(2, 3))

    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.latent_channels, self.vocoder.mel.frames(media_shape[1]))
