"""LatentConditioner: another codec's latent as tokens, or as channels aligned with a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmldm.interfaces import Codec, Cond, Conditioner, CondWidths, Media, Reader, grid_positions
from mmldm.nn.attention import normalise
from mmldm.nn.positions import AxialAngles
from mmldm.nn.transformer import init_linear

__all__ = ["LatentConditioner", "MediaReader"]

PAIRS = 32


class MediaReader(Reader):
    """A file's path, or a media tensor (C, *S) -> a media tensor of `media.shape`; raises MediaError for unusable files."""

    def __init__(self, media: Media):
        self.media = media

    def __call__(self, value: str | Path | Tensor) -> Tensor:
        x = value.float() if isinstance(value, Tensor) else self.media.load(value).x
        if tuple(x.shape) != tuple(self.media.shape):
            raise ValueError(f"wanted media of shape {tuple(self.media.shape)}, got {tuple(x.shape)}")
        return x

    def collate(self, items: list[Tensor | None]) -> Tensor:
        """Media (B, C, *S), zero where missing."""
        return torch.stack([torch.zeros(self.media.shape) if item is None else item for item in items])


class LatentConditioner(Conditioner):
    """The latent of a file under a frozen `codec`: tokens with places or, with `stream`, channels on that stream's grid."""

    def __init__(self, key: str, codec: Codec, stream: str | None = None, width: int = 256):
        super().__init__()
        self.key, self.reader, self.stream = key, MediaReader(codec.media), stream
        self.codec = codec.eval().requires_grad_(False)
        channels, axes = codec.latent_channels, codec.axes
        if stream is not None:
            self.widths = CondWidths(aligned={stream: channels})
            self.scale = nn.Parameter(torch.ones(channels))
            self.null_cell = nn.Parameter(torch.zeros(channels))
            return
        self.widths = CondWidths(tokens=width)
        self.project = nn.Linear(channels, width)
        self.angles = AxialAngles(2 * PAIRS, {axis.name: axis.size * axis.unit for axis in axes})
        self.place = nn.Linear(2 * PAIRS, width, bias=False)
        init_linear(self.project), init_linear(self.place)
        self.null_token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.null_token)

    def train(self, mode: bool = True) -> LatentConditioner:
        super().train(mode)
        self.codec.eval()
        return self

    @torch.no_grad()
    def encode(self, read: Any) -> Tensor:
        """Media (B, C, *S) -> the mean of its latent (B, D, *L)."""
        return self.codec.encode(read).mean

    def forward(self, encoded: Tensor) -> Cond:
        shape = (-1, *[1] * (encoded.ndim - 2))
        if self.stream is not None:
            return Cond(aligned={self.stream: encoded * self.scale.view(shape)})
        edges = grid_positions(self.codec.axes, encoded.shape[2:]).to(encoded.device)
        angles = self.angles(edges.mean(-1).flatten(0, -2), tuple(axis.name for axis in self.codec.axes))
        tokens = normalise(self.project(encoded.flatten(2).transpose(1, 2)))
        tokens = tokens + self.place(torch.cat([angles.cos(), angles.sin()], -1))
        return Cond(tokens=tokens, mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def null(self, batch_size: int) -> Cond:
        if self.stream is None:
            token = self.null_token.expand(batch_size, 1, -1)
            return Cond(tokens=token, mask=torch.ones(batch_size, 1, dtype=torch.bool, device=token.device))
        cells = self.codec.latent_shape(self.codec.media.shape)[1:]
        cell = self.null_cell.view(-1, *[1] * len(cells))
        return Cond(aligned={self.stream: cell.expand(batch_size, -1, *cells)})
