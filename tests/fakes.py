"""Small parts that obey the contracts, for tests of what is around them."""

from __future__ import annotations

import torch
from torch import nn

from mmldm.interfaces import Axis, Codec, Cond, Conditioner, CondWidths, Denoiser, Posterior, Reader
from mmldm.media import ArrayMedia


class Blocks(Codec):
    """A trained linear codec of 1-D signals (B, C, T): `size` samples become one cell; causal."""

    def __init__(self, channels: int = 2, length: int = 16, size: int = 4, latent_channels: int = 3, rate: float = 8.0):
        super().__init__()
        self.media = ArrayMedia(channels, length, rate)
        self.latent_channels, self.size, self.lookahead = latent_channels, size, 0
        self.axes = (Axis("time", size, size, 1 / rate),)
        self.down = nn.Conv1d(channels, latent_channels, size, size)
        self.up = nn.ConvTranspose1d(latent_channels, channels, size, size)

    def encode_features(self, features):
        short = -features.shape[-1] % self.size
        mean = self.down(nn.functional.pad(features, (0, short)))
        return Posterior(mean, torch.full_like(mean, 0.1))

    def decode_features(self, z):
        return self.up(z)

    def latent_shape(self, media_shape):
        return (self.latent_channels, self.axes[0].cells(media_shape[1]))


class Number(Reader):
    def __call__(self, value):
        return float(value)

    def collate(self, items):
        return torch.tensor([0.0 if item is None else item for item in items])


class Scale(Conditioner):
    """A vector from one number."""

    def __init__(self, key: str = "scale", width: int = 4):
        super().__init__()
        self.key, self.reader, self.widths = key, Number(), CondWidths(vector=width)
        self.project, self.nothing = nn.Linear(1, width), nn.Parameter(torch.full((width,), 0.3))

    def forward(self, encoded):
        return Cond(vector=self.project(encoded[:, None].to(self.project.weight)))

    def null(self, batch_size):
        return Cond(vector=self.nothing.expand(batch_size, -1))


class Mixer(Denoiser):
    """Maps each cell of a stream with the means of all streams and references, its level, known mask and the vectors."""

    def __init__(self, streams, conditions, width: int = 16):
        super().__init__()
        self.patches = {s: (1,) * len(g.axes) for s, g in streams.items()}
        extra = 2 + sum(w.vector or 0 for w in conditions.values())
        self.maps = nn.ModuleDict(
            {
                s: nn.Sequential(nn.Linear(g.channels + extra, width), nn.SiLU(), nn.Linear(width, g.channels))
                for s, g in streams.items()
            }
        )

    def prepare(self, conds):
        vectors = [cond.vector for _, cond in sorted(conds.items()) if cond.vector is not None]
        return torch.cat(vectors, -1) if vectors else None

    def forward(self, noisy, prepared, residuals=None):
        out = {}
        everywhere = sum(x.z.mean((1, 2)) * (1 - x.level.to(x.z)) for x in noisy.values()) if len(noisy) > 1 else None
        for stream, x in noisy.items():
            cells = x.z.flatten(2).transpose(1, 2)
            cells = cells + cells.mean(1, keepdim=True)
            if everywhere is not None:
                cells = cells + everywhere[:, None, None]
            for r in x.references:
                mean = (r.z.flatten(2).mean(-1) * (1 + r.positions.flatten(-3).mean(-1).reshape(-1, 1))).to(cells)
                cells = cells + (mean if r.present is None else mean * r.present[:, None])[:, None]
            level = x.level.to(cells)[:, None].expand(cells.shape[:2])
            known = torch.zeros_like(level) if x.known is None else x.known.flatten(1).to(cells)
            parts = [cells, (level * (1 - known))[..., None], known[..., None]]
            if prepared is not None:
                parts.append(prepared.to(cells)[:, None].expand(-1, cells.shape[1], -1))
            out[stream] = self.maps[stream](torch.cat(parts, -1)).transpose(1, 2).reshape(x.z.shape)
        return out
