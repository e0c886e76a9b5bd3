"""What an autoencoder class of diffusers is to us: its geometry, its whitening, what it sees, how it is called."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

import torch
from torch import Tensor

__all__ = ["Family", "decode_reach", "encode_reach", "total_stride"]

Layers = Iterable[tuple[int, int]]  # of one axis, in order: positions seen on a side, and the resampling that follows
Moments = tuple[Tensor, Tensor | None]  # mean and std of latents


class Family:
    """An autoencoder class with group norms or attention: it sees everything, and has no time. Families hold no state."""

    names: tuple[str, ...] = ("height", "width")
    lone_first = False  # the first sample in time is a cell of its own
    pieces: tuple[int, int] | None = None  # cells of the first and of the other pieces that a clip is always cut into

    def prepare(self, body: Any) -> None:
        """Settle once, on a loaded body, what it must always do."""

    def channels(self, body: Any) -> int:
        """Latent channels."""
        return body.config.latent_channels

    def media_channels(self, body: Any) -> int:
        """Media channels."""
        return body.config.in_channels

    def rate(self, body: Any) -> int | None:
        """The only samples per second that the body is for; None: any."""
        return None

    def strides(self, body: Any) -> tuple[int, ...]:
        """Media samples of a cell along each axis."""
        return (2 ** (len(body.config.block_out_channels) - 1),) * 2

    def lookahead(self, body: Any) -> int | None:
        """As of a Codec."""
        return None

    def reach(self, body: Any) -> dict[str, int]:
        """As of a Codec."""
        return {}

    def decode_reach(self, body: Any) -> dict[str, int]:
        """As of a Codec."""
        return {}

    def whitening(self, body: Any) -> tuple[Tensor, Tensor] | None:
        """Mean and std of each latent channel, from the config; None where it says nothing."""
        config, ones = body.config, torch.ones(self.channels(body))
        shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        mean = ones * shift if mean is None else torch.tensor(mean)
        return mean.float(), (ones if std is None else torch.tensor(std)).float() / scale

    def encode(self, body: Any, x: Tensor) -> Moments:
        """Whole cells of media (B, C, *S) -> mean and std of latents (B, D, *L)."""
        latent = body.encode(x).latent_dist
        return latent.mean, latent.std

    def decode(self, body: Any, z: Tensor) -> Tensor:
        """Latents (B, D, *L) -> media (B, C, *S)."""
        return body.decode(z).sample


# ---------------------------------------------------------------- what convolutions see


def encode_reach(layers: Layers, scale: int = 1) -> int:
    """Samples on either side of a cell's own that an encoder sees, its first layer at `scale` samples per position."""
    far = 0
    for seen, step in layers:
        far, scale = far + seen * scale, scale * step
    return far


def decode_reach(layers: Layers) -> int:
    """Cells on either side of a sample's own that a decoder sees."""
    far, scale = 0.0, 1
    for seen, step in layers:
        far, scale = far + seen / scale, scale * step
    return ceil(far)


def total_stride(layers: Layers) -> int:
    """All resampling of the layers together."""
    total = 1
    for _, step in layers:
        total *= step
    return total
