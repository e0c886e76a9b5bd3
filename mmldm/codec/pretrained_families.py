"""The autoencoder classes of diffusers that are known, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from mmldm.codec.pretrained_clips import LTX, CogVideoX, Moving, Wan
from mmldm.codec.pretrained_family import Family, Moments, decode_reach, encode_reach

__all__ = ["FAMILIES", "DeepCompression", "Oobleck", "Tiny"]


class DeepCompression(Family):
    """AutoencoderDC: deterministic, linear attention."""

    def strides(self, body: Any) -> tuple[int, ...]:
        return (body.spatial_compression_ratio,) * 2

    def encode(self, body: Any, x: Tensor) -> Moments:
        return body.encode(x).latent, None


class Tiny(Family):
    """AutoencoderTiny: deterministic, convolutions only."""

    def strides(self, body: Any) -> tuple[int, ...]:
        return (2 ** (len(body.config.encoder_block_out_channels) - 1),) * 2

    def reach(self, body: Any) -> dict[str, int]:
        return dict.fromkeys(self.names, encode_reach(_convolutions(body.encoder)))

    def decode_reach(self, body: Any) -> dict[str, int]:
        return dict.fromkeys(self.names, decode_reach(_convolutions(body.decoder)))

    def encode(self, body: Any, x: Tensor) -> Moments:
        return body.encode(x).latents, None


class Oobleck(Family):
    """AutoencoderOobleck: a waveform, convolutions only."""

    names = ("time",)

    def prepare(self, body: Any) -> None:
        for layer in body.modules():
            if hasattr(layer, "weight_g"):
                nn.utils.remove_weight_norm(layer)  # the same convolution with fewer passes

    def channels(self, body: Any) -> int:
        return body.config.decoder_input_channels

    def media_channels(self, body: Any) -> int:
        return body.config.audio_channels

    def rate(self, body: Any) -> int | None:
        return body.config.sampling_rate

    def strides(self, body: Any) -> tuple[int, ...]:
        if odd := [ratio for ratio in body.config.downsampling_ratios if ratio % 2]:
            raise ValueError(f"wanted even downsampling ratios (others lose samples), got {odd}")
        return (body.hop_length,)

    def lookahead(self, body: Any) -> int | None:
        return self.reach(body)["time"]

    def reach(self, body: Any) -> dict[str, int]:
        return {"time": encode_reach(_convolutions(body.encoder))}

    def decode_reach(self, body: Any) -> dict[str, int]:
        return {"time": decode_reach(_convolutions(body.decoder))}

    def whitening(self, body: Any) -> None:
        return None


def _convolutions(part: nn.Module) -> Iterator[tuple[int, int]]:
    for layer in part.modules():
        if isinstance(layer, nn.Upsample):
            yield 0, int(layer.scale_factor)
        elif isinstance(layer, nn.ConvTranspose1d):
            yield 1, layer.stride[0]
        elif isinstance(layer, nn.Conv1d | nn.Conv2d):
            yield layer.padding[0], layer.stride[0]


FAMILIES: dict[str, Family] = {
    "AutoencoderKL": Family(),
    "AutoencoderDC": DeepCompression(),
    "AutoencoderTiny": Tiny(),
    "AutoencoderOobleck": Oobleck(),
    "AutoencoderKLHunyuanVideo": Moving(),
    "AutoencoderKLLTXVideo": LTX(),
    "AutoencoderKLWan": Wan(),
    "AutoencoderKLCogVideoX": CogVideoX(),
}
