"""Autoencoder classes of diffusers for moving pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.codec.pretrained_family import Family, Moments, decode_reach, encode_reach, total_stride

__all__ = ["LTX", "CogVideoX", "Moving", "Pieced", "Wan"]


class Moving(Family):
    """AutoencoderKLHunyuanVideo: group norms over the whole clip, attention over all frames before."""

    names = ("time", "height", "width")
    lone_first = True

    def prepare(self, body: Any) -> None:
        body.use_framewise_encoding = body.use_framewise_decoding = False

    def strides(self, body: Any) -> tuple[int, ...]:
        space = body.config.spatial_compression_ratio
        return body.config.temporal_compression_ratio, space, space


class LTX(Moving):
    """AutoencoderKLLTXVideo: convolutions only, a causal encoder and (by default) a decoder that looks ahead."""

    def prepare(self, body: Any) -> None:
        for layer in body.decoder.modules():
            if hasattr(layer, "per_channel_scale1"):  # of noise that it would draw: its mean is none
                layer.per_channel_scale1 = layer.per_channel_scale2 = None

    def strides(self, body: Any) -> tuple[int, ...]:
        return tuple(self._patch(body, axis) * total_stride(_ltx(body.encoder, axis)) for axis in range(3))

    def lookahead(self, body: Any) -> int | None:
        return 0 if body.config.encoder_causal else self.reach(body)["time"]

    def reach(self, body: Any) -> dict[str, int]:
        return {n: encode_reach(_ltx(body.encoder, a), self._patch(body, a)) for a, n in enumerate(self.names)}

    def decode_reach(self, body: Any) -> dict[str, int]:
        return {name: decode_reach(_ltx(body.decoder, axis)) for axis, name in enumerate(self.names)}

    def whitening(self, body: Any) -> tuple[Tensor, Tensor]:
        mean, std = body.latents_mean.float().cpu(), body.latents_std.float().cpu()
        return mean, std / body.config.scaling_factor

    def decode(self, body: Any, z: Tensor) -> Tensor:
        level = z.new_zeros(len(z)) if body.config.timestep_conditioning else None  # the latent is clean
        return body.decode(z, level).sample

    def _patch(self, body: Any, axis: int) -> int:
        return body.config.patch_size if axis else body.config.patch_size_t


class Pieced(Moving):
    """A causal class that is always run in the same pieces of a clip, with a cache between them: any chunks are exact."""

    def encode_piece(self, body: Any, x: Tensor, cache: Any) -> tuple[Moments, Any]:
        """The next piece of media and what the one before left -> moments of its cells, and what this one leaves."""
        raise NotImplementedError

    def decode_piece(self, body: Any, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """The next piece of latents and what the one before left -> media, and what this one leaves."""
        raise NotImplementedError


class Wan(Pieced):
    """AutoencoderKLWan: norms of a position, attention within a frame, one cell at a time."""

    pieces = (1, 1)

    def channels(self, body: Any) -> int:
        return body.config.z_dim

    def media_channels(self, body: Any) -> int:
        return body.config.in_channels // (body.config.patch_size or 1) ** 2

    def strides(self, body: Any) -> tuple[int, ...]:
        space = (body.config.patch_size or 1) * 2 ** (len(body.config.dim_mult) - 1)
        return 2 ** sum(body.config.temperal_downsample), space, space

    def lookahead(self, body: Any) -> int | None:
        return 0

    def reach(self, body: Any) -> dict[str, int]:
        return {"time": encode_reach(_wan(body.encoder))}

    def decode_reach(self, body: Any) -> dict[str, int]:
        return {"time": decode_reach(_wan(body.decoder))}

    def encode_piece(self, body: Any, x: Tensor, cache: Any) -> tuple[Moments, Any]:
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        size = body.config.patch_size
        cache = _wan_cache(body.encoder) if cache is None else list(cache)
        y = body.encoder(x if size is None else patchify(x, size), feat_cache=cache, feat_idx=[0])
        return _moments(body.quant_conv(y)), cache

    def decode_piece(self, body: Any, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        first, size = cache is None, body.config.patch_size
        cache = _wan_cache(body.decoder) if first else ["Rep" if isinstance(kept, int) else kept for kept in cache]
        x = body.decoder(body.post_quant_conv(z), feat_cache=cache, feat_idx=[0], first_chunk=first)
        x = (x if size is None else unpatchify(x, size)).clamp(-1, 1)
        return x, [0 if isinstance(kept, str) else kept for kept in cache]


class CogVideoX(Pieced):
    """AutoencoderKLCogVideoX: group norms over each piece of two cells, three at the beginning."""

    pieces = (3, 2)

    def strides(self, body: Any) -> tuple[int, ...]:
        space = 2 ** (len(body.config.block_out_channels) - 1)
        return int(body.config.temporal_compression_ratio), space, space

    def lookahead(self, body: Any) -> int | None:
        return (self.pieces[0] - 1) * self.strides(body)[0]

    def encode_piece(self, body: Any, x: Tensor, cache: Any) -> tuple[Moments, Any]:
        y, cache = body.encoder(x, conv_cache=cache)
        return _moments(y if body.quant_conv is None else body.quant_conv(y)), cache

    def decode_piece(self, body: Any, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        stride, cells = self.strides(body)[0], z.shape[2]
        frames = cells * stride - (stride - 1) * (cache is None)
        if cells > 1 and cache is None or cache is not None:  # an even beginning or a lone end would be taken for another
            z = F.pad(z, (0, 0, 0, 0, 0, self.pieces[cache is not None] - cells), mode="replicate")
        y, cache = body.decoder(z if body.post_quant_conv is None else body.post_quant_conv(z), conv_cache=cache)
        return y[:, :, :frames], cache


def _ltx(part: nn.Module, axis: int) -> Iterator[tuple[int, int]]:
    step = None
    for layer in part.modules():
        kind = type(layer).__name__
        if kind in ("LTXVideoDownsampler3d", "LTXVideoUpsampler3d"):
            step = layer.stride[axis]
        elif kind == "LTXVideoCausalConv3d":
            size = layer.kernel_size[axis]
            yield size - 1 if axis == 0 and layer.is_causal else size // 2, step or layer.conv.stride[axis]
            step = None


def _wan(part: nn.Module) -> Iterator[tuple[int, int]]:
    step = None
    for layer in part.modules():
        kind = type(layer).__name__
        if kind == "WanResample" and layer.mode == "upsample3d":
            step = 2
        elif kind == "WanCausalConv3d":
            yield layer.kernel_size[0] - 1, step or layer.stride[0]
            step = None


def _wan_cache(part: nn.Module) -> list[None]:
    return [None] * sum(type(layer).__name__ == "WanCausalConv3d" for layer in part.modules())


def _moments(head: Tensor) -> Moments:
    mean, log_variance = head.chunk(2, 1)
    return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
