"""Codecs of one size side by side, for codecs.py: ours, with the peer's arithmetic and as designed, and diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, AutoencoderOobleck
from torch import Tensor, nn

from mmldm.codec import ImageCodec, VideoCodec, WaveformCodec
from mmldm.interfaces import Codec
from mmldm.media import AudioMedia, ImageMedia, VideoMedia


@dataclass(frozen=True)
class Contestant:
    """A codec with the three calls that are compared: encode to the mean, decode, and both with gradients for training."""

    name: str
    build: Callable[[], nn.Module]

    def encode(self, codec: nn.Module, x: Tensor) -> Tensor:
        return codec.encode(x).mean if isinstance(codec, Codec) else codec.encode(x).latent_dist.mode()

    def decode(self, codec: nn.Module, z: Tensor) -> Tensor:
        return codec.decode(z) if isinstance(codec, Codec) else codec.decode(z).sample

    def reconstruct(self, codec: nn.Module, x: Tensor) -> Tensor:
        """With gradients, through the mean."""
        if isinstance(codec, Codec):
            return codec.decode_features(codec.encode_features(codec.front(x)).mean)
        return codec.decode(codec.encode(x).latent_dist.mean).sample


@dataclass(frozen=True)
class Family:
    """Contestants for one kind of media of shape (C, *S); the first is the peer. `long` is for peak memory."""

    shape: tuple[int, ...]
    long: tuple[int, ...]
    contestants: tuple[Contestant, ...]


def kl(widths: Sequence[int] = (64, 128, 256, 256)) -> nn.Module:
    kinds = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * kinds,
        up_block_types=("UpDecoderBlock2D",) * kinds,
        block_out_channels=tuple(widths),
        layers_per_block=2,
        latent_channels=4,
    )


def image(width: int, multipliers: Sequence[int], strides: Sequence[int], blocks: int, decoder_blocks: int) -> Codec:
    return ImageCodec(
        ImageMedia(256, 256),
        latent_channels=4,
        width=width,
        multipliers=multipliers,
        strides=strides,
        blocks=blocks,
        decoder_blocks=decoder_blocks,
    )


def video(
    width: int, multipliers: Sequence[int], strides: Sequence[Sequence[int]], kernels: Sequence, decoder_blocks: int
) -> Codec:
    return VideoCodec(
        VideoMedia(frames=33, fps=24, height=128, width=128),
        latent_channels=16,
        width=width,
        multipliers=multipliers,
        strides=strides,
        kernel=kernels[0],
        second_kernel=kernels[1],
        decoder_blocks=decoder_blocks,
    )


def waveform(width: int) -> Codec:
    return WaveformCodec(AudioMedia(rate=44100, channels=2, seconds=4.0), width=width, latent_channels=width // 2)


def oobleck(width: int) -> nn.Module:
    return AutoencoderOobleck(
        encoder_hidden_size=width,
        decoder_channels=width,
        downsampling_ratios=[2, 4, 4, 8, 8],
        channel_multiples=[1, 2, 4, 8, 16],
        decoder_input_channels=width // 2,
        audio_channels=2,
    )


FULL, FACTORISED = (3, 3), ((1, 3, 3), (3, 1, 1))
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
FAMILIES = {
    "image": Family(
        (3, 256, 256),
        (3, 1024, 1024),
        (
            Contestant("AutoencoderKL", kl),
            Contestant("ours, their arithmetic", lambda: image(64, (1, 2, 4, 4), (1, 2, 2, 2), 2, 5)),
            Contestant("ours, as designed", lambda: image(128, (1, 2, 3), (2, 2, 2), 2, 3)),
        ),
    ),
    "video": Family(
        (3, 33, 128, 128),
        (3, 241, 128, 128),
        (
            Contestant("AutoencoderKLWan", lambda: AutoencoderKLWan(base_dim=32, z_dim=16)),
            Contestant("ours, their arithmetic", lambda: video(32, (1, 2, 4, 4), ((1, 1, 1), *STRIDES), FULL, 3)),
            Contestant("ours, as designed", lambda: video(112, (1, 2, 4), STRIDES, FACTORISED, 2)),
        ),
    ),
    "waveform": Family(
        (2, 4 * 44100),
        (2, 40 * 44100),
        (
            Contestant("AutoencoderOobleck", lambda: oobleck(64)),
            Contestant("ours, their arithmetic", lambda: waveform(64)),
        ),
    ),
}


def built(contestant: Contestant, seed: int = 0) -> nn.Module:
    """The codec with its own random weights, for inference."""
    torch.manual_seed(seed)
    return contestant.build().eval()
