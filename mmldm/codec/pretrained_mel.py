"""Codecs of sound that others have trained on log-mels: an AutoencoderKL of diffusers and a vocoder (AudioLDM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmldm.codec.mel import LogMel
from mmldm.codec.pretrained import DiffusersCodec
from mmldm.codec.pretrained_files import body_of, folder_of, load_vocoder
from mmldm.codec.vocoder import GriffinLim, Vocoder
from mmldm.interfaces import Axis, Media, Posterior

__all__ = ["PretrainedMelCodec"]


class PretrainedMelCodec(DiffusersCodec):
    """Sound (B, 1, T) <-> latents (B, D, time, freq) by an AutoencoderKL over the natural log-mels of `mel`.

    Without a `vocoder` it is the SpeechT5HifiGan of the source's folder `vocoder`, else Griffin-Lim. Features are scaled
    log-mels (B, 1, frames, bins); AudioLDM's own frames stand half a hop earlier than ours. Other arguments as of
    PretrainedCodec.
    """

    def __init__(
        self,
        media: Media,
        mel: LogMel,
        source: str | None = None,
        numbers: Mapping[str, Any] | None = None,
        vocoder: Vocoder | None = None,
        variant: str | None = None,
        dtype: str = "float32",
        chunk: int | None = None,
    ):
        if media.shape[0] != 1 or media.rate != mel.rate:
            raise ValueError(f"wanted one channel at {mel.rate} Hz, as of the mel front end, got {media}")
        body = body_of(source, numbers, variant, dtype)
        if type(body).__name__ != "AutoencoderKL" or body.config.in_channels != 1:
            raise ValueError(f"wanted an AutoencoderKL of one channel, got a {type(body).__name__}")
        stride = 2 ** (len(body.config.block_out_channels) - 1)
        super().__init__(media, body, [Axis(name, stride, stride, 1.0) for name in ("time", "freq")], chunk)
        span = stride * mel.hop
        self.axes = Axis("time", span, span, 1.0 / mel.rate), self.grid[1]
        found = load_vocoder(folder_of(source, variant), mel) if source is not None and vocoder is None else None
        own, self._found = found or (vocoder or GriffinLim(mel), None)
        own.check(mel)
        self.mel, self.vocoder = mel, own.requires_grad_(False)

    @property
    def embedded(self) -> dict[str, Any]:
        if self._found is None:
            return super().embedded
        keys = ("rate", "n_fft", "hop", "bins", "f_min", "f_max", "low", "high")
        mel = {"_target_": "mmldm.codec.mel.LogMel", **{key: getattr(self.mel, key) for key in keys}}
        return {**super().embedded, "vocoder": {"_target_": "mmldm.codec.hifigan.HiFiGAN", "mel": mel, **self._found}}

    def front(self, x: Tensor) -> Tensor:
        return self.mel(x)

    def unfront(self, features: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        return self.vocoder(features[..., : self.mel.bins])

    def encode_features(self, features: Tensor) -> Posterior:
        mel = self.mel
        return super().encode_features((features + 1) * ((mel.high - mel.low) / 2) + mel.low)

    def decode_features(self, z: Tensor) -> Tensor:
        return self.mel.scaled(super().decode_features(z))

    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        return super().latent_shape((*media_shape[:2], self.mel.bins))
