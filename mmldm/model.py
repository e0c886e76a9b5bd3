"""Model: codecs, conditions, denoiser and path put together; training and pipeline share it, so they cannot differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.diffusion.known import Context, merge
from mmldm.diffusion.path import Path
from mmldm.diffusion.prediction import Prediction, expand
from mmldm.diffusion.times import Shift, TokenShift
from mmldm.interfaces import Codec, Cond, Denoiser, Noisy, Posterior, grid_positions

__all__ = ["Model", "Whitening"]


class Whitening(nn.Module):
    """Per-channel mean and standard deviation of a codec's latents (B, D, *L); identity until fitted."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @classmethod
    def of(cls, codec: Codec) -> Whitening:
        """The whitening that a codec brings, else the identity."""
        whitening = cls(codec.latent_channels)
        if codec.whitening is not None:
            whitening.load_state_dict(dict(zip(("mean", "std"), codec.whitening, strict=True)))
        return whitening

    @torch.no_grad()
    def fit(self, posteriors: Iterable[Posterior]) -> None:
        """Moments over every cell of the posteriors (their own variance included), summed in float64."""
        count, total, square = 0, 0.0, 0.0
        for posterior in posteriors:
            mean = posterior.mean.double().transpose(0, 1).flatten(1)
            spread = 0.0 if posterior.std is None else posterior.std.double().transpose(0, 1).flatten(1).square().sum(1)
            count, total, square = count + mean.shape[1], total + mean.sum(1), square + mean.square().sum(1) + spread
        if count == 0:
            raise ValueError("wanted at least one latent to fit the whitening, got none")
        self.mean.copy_(total / count)
        self.std.copy_((square / count - (total / count) ** 2).clamp_min(1e-8).sqrt())

    def forward(self, z: Tensor) -> Tensor:
        """Raw -> whitened latent."""
        return (z - _per_channel(self.mean, z)) / _per_channel(self.std, z)

    def inverse(self, z: Tensor) -> Tensor:
        """Whitened -> raw latent."""
        return z * _per_channel(self.std, z) + _per_channel(self.mean, z)


def _per_channel(values: Tensor, z: Tensor) -> Tensor:
    return values.to(z.dtype).reshape(-1, *[1] * (z.ndim - 2))


class Model(nn.Module):
    """A latent diffusion model over named streams.

    `codecs` and their whitenings are frozen; `conditions` maps name -> encoded condition -> Cond; `denoiser` predicts what
    `prediction` says along `path`; `shift` (one for all streams, one per stream, or none) moves the noise levels of training
    and sampling alike.
    """

    def __init__(
        self,
        codecs: Mapping[str, Codec],
        conditions: nn.Module,
        denoiser: Denoiser,
        path: Path,
        prediction: Prediction,
        shift: Shift | TokenShift | Mapping[str, Shift | TokenShift | None] | None = None,
        whitenings: Mapping[str, Whitening] | None = None,
    ):
        super().__init__()
        prediction.check(path)
        shifts = dict(shift) if isinstance(shift, Mapping) else dict.fromkeys(codecs, shift)
        if odd := [s for s, x in shifts.items() if s not in codecs or not (x is None or hasattr(x, "for_tokens"))]:
            got = ", ".join(f"{s}: {shifts[s]}" for s in odd)
            raise ValueError(f"wanted a shift for each stream of the model, got {got}; choose from {', '.join(codecs)}")
        self.codecs = nn.ModuleDict(codecs)
        self.whitenings = nn.ModuleDict(whitenings or {s: Whitening.of(c) for s, c in codecs.items()})
        for frozen in (self.codecs, self.whitenings):
            frozen.requires_grad_(False).eval()
        self.conditions, self.denoiser = conditions, denoiser
        self.path, self.prediction, self.shifts = path, prediction, shifts

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        self.codecs.eval()
        return self

    # -- latents

    def encode(self, stream: str, x: Tensor) -> Posterior:
        """Media (B, C, *S) -> raw posterior of (B, D, *L), in full precision: the same inside a training and outside."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.codecs[stream].encode(x)

    def encode_fields(self, fields: Mapping[str, object]) -> dict[str, object]:
        """The frozen part of every condition, in full precision."""
        with torch.autocast(next(self.denoiser.parameters()).device.type, enabled=False):
            return self.conditions.encode(fields)

    def whiten(self, stream: str, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """The whitened latent of a raw posterior: a sample with `noise`, else its mean."""
        raw = posterior.mean if noise is None else posterior.sample(noise)
        return self.whitenings[stream](raw.to(torch.promote_types(raw.dtype, torch.float32)))

    def decode(self, stream: str, z: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Whitened latent (B, D, *L) -> media (B, C, *S), cropped to `shape`."""
        with torch.no_grad():
            return self.codecs[stream].decode(self.whitenings[stream].inverse(z), shape)

    def latent_shape(self, stream: str, media_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, *S) -> (D, *L) of a stream."""
        return self.codecs[stream].latent_shape(media_shape)

    def valid_cells(self, stream: str, extent: Tensor | None, z: Tensor) -> Tensor | None:
        """Cells (B, *L) of z that hold media, from the real media samples per axis (B, axes of S); None if all do."""
        if extent is None:
            return None
        codec, cells = self.codecs[stream], z.shape[2:]
        extents, rows = extent.cpu().unique(dim=0, return_inverse=True)
        mask = torch.zeros(len(extents), *cells, dtype=torch.bool)
        for row, sizes in zip(mask, extents.tolist(), strict=True):
            if min(sizes) > 0:
                row[tuple(slice(0, n) for n in codec.latent_shape((codec.media.shape[0], *sizes))[1:])] = True
        return None if bool(mask.all()) else mask[rows].to(z.device)

    def shift_of(self, stream: str, cells: Sequence[int], valid: Tensor | None = None) -> Shift | None:
        """The shift of the noise levels for a grid of this size: one factor, or one per item where some cells are padding."""
        shift = self.shifts.get(stream)
        if shift is None:
            return None
        per_token = math.prod(self.denoiser.patches[stream])
        count = math.prod(cells) if valid is None else valid.flatten(1).sum(1).cpu()
        return shift.for_tokens(count / per_token)

    def context(self, stream: str, cells: Sequence[int], device: torch.device | str = "cpu", **known) -> Context:
        """The fixed surroundings of a grid of `cells`: its positions, and what is known of it."""
        return Context(positions=grid_positions(self.codecs[stream].axes, cells).to(device), **known)

    def noise(self, stream: str, key: Sequence[int | str], positions: Tensor, shape: Sequence[int]) -> Tensor:
        """Standard normal (B, D, *L) keyed per item: the same for any batch size and device."""
        return keyed.normal((*key, stream), positions, shape)

    # -- prediction

    def predict(
        self, z_t: Mapping[str, Tensor], t: Mapping[str, Tensor], context: Mapping[str, Context], prepared
    ) -> dict[str, Tensor]:
        """The network's prediction F of each stream at levels t (B,), in float32 or wider."""
        noisy = {stream: self._noisy(z, t[stream], context[stream]) for stream, z in z_t.items()}
        prediction = self.denoiser(noisy, prepared)
        return {stream: f.to(z_t[stream].dtype) for stream, f in prediction.items()}

    def denoise(
        self, z_t: Mapping[str, Tensor], t: Mapping[str, Tensor], context: Mapping[str, Context], prepared
    ) -> dict[str, Tensor]:
        """The predicted clean latents z_hat of each stream; known cells are returned as they are given."""
        prediction = self.predict(z_t, t, context, prepared)
        decoded = {s: self.prediction.decode(self.path, f, z_t[s], expand(t[s], z_t[s])) for s, f in prediction.items()}
        return {stream: merge(z_hat, context[stream]) for stream, z_hat in decoded.items()}

    def _noisy(self, z_t: Tensor, t: Tensor, context: Context) -> Noisy:
        z = z_t * expand(self.prediction.input_scale(self.path, t), z_t)
        clean = self.prediction.input_scale(self.path, torch.zeros_like(t))
        if context.known is not None:
            z = torch.where(context.known[:, None], context.z.to(z) * expand(clean, z), z)
        references = tuple(replace(r, z=r.z.to(z) * expand(clean, r.z)) for r in context.references)
        level = self.prediction.heard(self.path, t)
        return Noisy(z, level, context.positions, context.known, context.valid, references)

    def prepare(self, conds: Mapping[str, Cond]):
        """What the denoiser needs of the conditions, once per sample."""
        return self.denoiser.prepare(dict(conds))
