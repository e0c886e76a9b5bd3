"""Codecs that others have trained: the autoencoders of diffusers behind our interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.codec.pretrained_families import FAMILIES
from mmldm.codec.pretrained_files import body_of, numbers_of
from mmldm.interfaces import Axis, Codec, Media, Posterior
from mmldm.windows import GRID

__all__ = ["DiffusersCodec", "PretrainedCodec"]


class DiffusersCodec(Codec):
    """What every codec around an autoencoder `body` of diffusers shares; `grid` are the axes of the features that it takes.

    Frozen, until a codec training asks otherwise.
    """

    decoding = ("body.decoder", "body.post_quant_conv", "body.latents_mean", "body.latents_std", "vocoder")

    def __init__(self, media: Media, body: nn.Module, grid: Sequence[Axis], chunk: int | None, tile: int | None = None):
        super().__init__()
        self.media, self.body, self.grid, self.axes = media, body, tuple(grid), tuple(grid)
        self.family = FAMILIES[type(body).__name__]
        self.latent_channels, self.chunk, self.tile = self.family.channels(body), chunk, tile

    @property
    def whitening(self) -> tuple[Tensor, Tensor] | None:
        return self.family.whitening(self.body)

    @property
    def embedded(self) -> dict[str, Any]:
        return {"source": None, "variant": None, "numbers": numbers_of(self.body)}

    @property
    def blended(self) -> tuple[str, ...]:
        return tuple(name for name in super().blended if name != "time" or self.family.pieces is None)

    # -- whole clips

    def encode_features(self, features: Tensor) -> Posterior:
        if self.family.pieces is not None:
            return self.encode_step(features, None, True)[0]
        with _without_autocast(features):
            return self._posterior(self.family.encode(self.body, self._ready(features)))

    def decode_features(self, z: Tensor) -> Tensor:
        if self.family.pieces is not None:
            return self.decode_step(z, None, True)[0]
        with _without_autocast(z):
            return _wide(self.family.decode(self.body, z.to(self._dtype)))

    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.latent_channels, *(axis.cells(n) for axis, n in zip(self.axes, media_shape[1:], strict=True)))

    def _posterior(self, moments: tuple[Tensor, Tensor | None]) -> Posterior:
        mean, std = moments
        return Posterior(_wide(mean), None if std is None else _wide(std))

    def _ready(self, x: Tensor, first: bool = True) -> Tensor:
        """Whole cells in the body's dtype; `first`: x begins the clip."""
        if x.ndim != 2 + len(self.grid) or min(x.shape[2:]) < 1:
            raise ValueError(f"wanted (B, C, *S) with {len(self.grid)} grid axes of at least one sample, got {tuple(x.shape)}")
        pads = []
        for axis, length in zip(reversed(self.grid), reversed(x.shape[2:]), strict=True):
            begins = axis.first if first else axis.size
            pads += [0, (begins - length) % axis.size]
        if any(pads):
            x = F.pad(x, pads) if len(self.grid) == 1 else F.pad(x, pads, mode="replicate")
        return x.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.body.parameters()).dtype

    # -- pieces along time, where the class itself runs in pieces

    def encode_step(self, x: Tensor, state: Any, last: bool) -> tuple[Posterior | None, Any]:
        if self.family.pieces is None:
            return super().encode_step(x, state, last)

        def run(piece: Tensor, cache: Any) -> tuple[Tensor, Any]:
            moments, cache = self.family.encode_piece(self.body, self._ready(piece, cache is None), cache)
            return self._posterior(moments).joined(), cache

        with _without_autocast(x):
            y, state = _advance(run, x, state, last, self.axes[0], self.family.pieces)
        return (None if y is None else Posterior.parted(y, self.latent_channels)), state

    def decode_step(self, z: Tensor, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        if self.family.pieces is None:
            return super().decode_step(z, state, last)

        def run(piece: Tensor, cache: Any) -> tuple[Tensor, Any]:
            y, cache = self.family.decode_piece(self.body, piece.to(self._dtype), cache)
            return _wide(y), cache

        with _without_autocast(z):
            return _advance(run, z, state, last, GRID, self.family.pieces)


class PretrainedCodec(DiffusersCodec):
    """An autoencoder of diffusers for pictures, clips or waveforms, its geometry and whitening read from its config.

    `source` is a folder (config.json and weights, or a pipeline with a `vae`) or a hub name; `variant` the file variant, such
    as fp16. `numbers` describes instead a body whose weights are loaded later: so a trained model needs no source. The body
    computes in `dtype`, under autocast too; `chunk` and `tile` as of a Codec. Any length is completed to whole cells
    (pictures by their edge, waveforms by silence) and cropped back.
    """

    def __init__(
        self,
        media: Media,
        source: str | None = None,
        numbers: Mapping[str, Any] | None = None,
        variant: str | None = None,
        dtype: str = "float32",
        chunk: int | None = None,
        tile: int | None = None,
    ):
        body = body_of(source, numbers, variant, dtype)
        super().__init__(media, body, _axes(body, media), chunk, tile)
        self.lookahead = self.family.lookahead(body)
        self.reach, self.decode_reach = self.family.reach(body), self.family.decode_reach(body)


def _axes(body: nn.Module, media: Media) -> tuple[Axis, ...]:
    kind, family = type(body).__name__, FAMILIES[type(body).__name__]
    wanted = family.media_channels(body), len(family.names)
    if (media.shape[0], len(media.shape) - 1) != wanted:
        raise ValueError(f"{kind}: wanted media of {wanted[0]} channels and {wanted[1]} axes, got shape {media.shape}")
    if family.rate(body) not in (None, media.rate):
        raise ValueError(f"{kind}: wanted media at {family.rate(body)} samples per second, got {media.rate}")
    axes = []
    for name, stride in zip(family.names, family.strides(body), strict=True):
        first = 1 if name == "time" and family.lone_first else stride
        axes.append(Axis(name, stride, first, 1.0 / media.rate if name == "time" else 1.0))
    return tuple(axes)


def _advance(
    run: Callable[[Tensor, Any], tuple[Tensor, Any]],
    x: Tensor,
    state: tuple[Tensor, Any] | None,
    last: bool,
    axis: Axis,
    pieces: tuple[int, int],
) -> tuple[Tensor | None, tuple[Tensor, Any] | None]:
    """What can be told of all that came so far, taken along dimension 2 in `pieces` (cells of the first and of the others).

    `run(piece, cache)` gives its result and the next cache, None before the first piece; an incomplete piece waits for `last`.
    """
    kept, cache = state or (x[:, :, :0], None)
    x, out = torch.cat([kept, x], 2), []
    while x.shape[2]:
        size = axis.length(pieces[0]) if cache is None else pieces[1] * axis.size
        if x.shape[2] < size and not last:
            break
        y, cache = run(x[:, :, :size], cache)
        out.append(y)
        x = x[:, :, size:]
    if last and cache is None:
        raise ValueError("wanted at least one sample before the end, got none")
    return (torch.cat(out, 2) if out else None), (None if last else (x.clone(), cache))


def _without_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
