"""One convolutional autoencoder body for grids of rank 1, 2 and 3, and the codec around it."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from mmldm import windows
from mmldm.codec.cosine import cosine_basis
from mmldm.codec.regularisers import BoundedNoise, Regulariser
from mmldm.interfaces import Axis, Codec, Media, Posterior
from mmldm.nn.conv import Conv, Downsample, Past, ResBlock, Upsample, channels_last, fold, per_axis, unfold

__all__ = ["Autoencoder", "ConvCodec", "ConvVAE"]


class Autoencoder(nn.Module):
    """A convolutional encoder and decoder of a grid, layer by layer, and what a codec asks of its body.

    Subclasses give the layers: `encoder`, `to_latent` (of kernel 1), `from_latent` and `decoder`. `steps` are their strides per
    level and axis; along `causal_axis` a cell sees the past only; along `lone_axis` the first sample is a cell of its own.
    """

    encoder: nn.ModuleList
    to_latent: Conv
    from_latent: Conv
    decoder: nn.ModuleList

    def __init__(
        self,
        steps: Sequence[Sequence[int]],
        latent_channels: int,
        head_channels: int | None = None,
        causal_axis: int | None = None,
        lone_axis: int | None = None,
    ):
        super().__init__()
        self.rank, self.causal_axis, self.lone_axis = len(steps[0]), causal_axis, lone_axis
        self.strides = tuple(prod(along) for along in zip(*steps, strict=True))
        self.latent_channels, self.head_channels = latent_channels, head_channels or latent_channels

    def first(self, axis: int) -> int:
        """Samples that cell 0 covers along an axis."""
        return 1 if axis == self.lone_axis else self.strides[axis]

    def reach(self, axis: int) -> int:
        """Samples before a cell's own, and after them unless the axis is causal, that its encoding sees."""
        far, scale = 0, 1
        for layer in self.encoder:
            scale *= layer.stride[axis] if isinstance(layer, Downsample) else 1
            far += scale * sum(conv.sees(axis) for conv in layer.modules() if isinstance(conv, Conv))
        return far

    def decode_reach(self, axis: int) -> int:
        """Cells before a sample's own, and after it unless the axis is causal, that its decoding sees."""
        far, scale = float(self.from_latent.sees(axis)), 1
        for layer in self.decoder:
            far += sum(conv.sees(axis) for conv in layer.modules() if isinstance(conv, Conv)) / scale
            scale *= layer.stride[axis] if isinstance(layer, Upsample) else 1
        return ceil(far)

    def cells(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Cells that cover `lengths` samples per axis, the last of each possibly in part."""
        return tuple(1 + max(0, -(-(n - self.first(a)) // self.strides[a])) for a, n in enumerate(lengths))

    def encode(self, x: Tensor, past: Past | None = None) -> Tensor:
        """(B, C, *S) -> (B, head channels, *L); a length that ends within a cell is completed by its last sample repeated.

        `past` is for the pieces of a clip: all but the last end at whole cells.
        """
        x = channels_last(self.padded(x, past is None or past.first))
        for layer in self.encoder:
            x = layer(x, past)
        return self.to_latent(x, past)

    def decode(self, z: Tensor, past: Past | None = None) -> Tensor:
        """(B, D, *L) -> (B, C, *S) of whole cells."""
        x = self.from_latent(channels_last(z), past)
        for layer in self.decoder:
            x = layer(x, past)
        return x

    def padded(self, x: Tensor, begins: bool = True) -> Tensor:
        """`x`, which `begins` a clip or continues one, with the last sample of each axis repeated up to whole cells."""
        if x.ndim != 2 + self.rank or min(x.shape[2:]) < 1:
            raise ValueError(f"wanted (B, C, *S) with {self.rank} grid axes of at least one sample, got {tuple(x.shape)}")
        for axis, length in enumerate(x.shape[2:]):
            first = self.first(axis) if begins else self.strides[axis]
            missing = (first - length) % self.strides[axis]
            if missing:
                last = x.narrow(2 + axis, length - 1, 1)
                x = torch.cat([x, last.expand(*(missing if d == 2 + axis else n for d, n in enumerate(x.shape)))], 2 + axis)
        return x


class ConvVAE(Autoencoder):
    """Encoder and decoder of a grid: at each level a resampling by `strides[level]`, then `blocks` residual blocks.

    The first level folds its stride out of the raw channels, so no convolution runs at a resolution that it skips. Level i has
    `width * multipliers[i]` channels (`decoder_width` in the decoder). Along `causal_axis` a cell sees the past only; with
    `lone_first` the first sample there is a cell of its own and 1 + r·n <-> 1 + n (LTX-Video, arXiv 2501.00103, section 2.1).
    No layer mixes positions but the convolutions: nothing depends on the length of the clip.

    Beside the layers runs a linear transform of each cell, there and back. It begins as its lowest cosines and the layers as
    nothing, so that training starts from a transform coder instead of from noise.
    """

    def __init__(
        self,
        rank: int,
        in_channels: int,
        latent_channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        strides: Sequence[int | Sequence[int]] = (2, 2),
        blocks: int = 1,
        decoder_width: int | None = None,
        decoder_blocks: int | None = None,
        kernel: int | Sequence[int] = 3,
        second_kernel: int | Sequence[int] | None = None,
        causal_axis: int | None = None,
        lone_first: bool = False,
        head_channels: int | None = None,
    ):
        if not strides or len(multipliers) != len(strides):
            raise ValueError(f"wanted one multiplier per level of strides, got {multipliers} for {strides}")
        if lone_first and causal_axis is None:
            raise ValueError("wanted a causal_axis with lone_first=True, got None")
        steps = [per_axis(stride, rank, "stride") for stride in strides]
        super().__init__(steps, latent_channels, head_channels, causal_axis, causal_axis if lone_first else None)
        along = {"causal_axis": causal_axis}
        kernels = (kernel, kernel if second_kernel is None else second_kernel)
        resampled = {**along, "lone_axis": self.lone_axis}

        widths = [width * m for m in multipliers]
        layers: list[nn.Module] = []
        for level, (before, after, step) in enumerate(zip([in_channels, *widths], widths, steps, strict=False)):
            layers.append(Downsample(rank, before, after, step, kernel if level == 0 else 1, **resampled))
            layers += [ResBlock(rank, after, *kernels, **along) for _ in range(blocks)]
        self.encoder = nn.ModuleList(layers)
        self.to_latent = Conv(rank, widths[-1], self.head_channels, 1)

        widths = [(decoder_width or width) * m for m in multipliers]
        self.from_latent = Conv(rank, latent_channels, widths[-1], kernel, **along)
        layers = []
        for level in reversed(range(len(steps))):
            layers += [ResBlock(rank, widths[level], *kernels, **along) for _ in range(decoder_blocks or blocks)]
            if level > 0:
                layers.append(Upsample(rank, widths[level], widths[level - 1], steps[level], 1, **resampled))
        layers.append(Upsample(rank, widths[0], in_channels, steps[0], kernel, **resampled))
        self.decoder = nn.ModuleList(layers)

        samples = in_channels * prod(self.strides)
        self.analysis = Conv(rank, samples, self.head_channels, 1)
        self.synthesis = Conv(rank, latent_channels, samples, 1)
        for conv, basis in zip(
            (self.analysis, self.synthesis), cosine_basis(in_channels, self.strides, latent_channels), strict=True
        ):
            nn.init.zeros_(conv.conv.weight)
            conv.conv.weight.data[: len(basis)] = basis.reshape(*basis.shape, *(1,) * rank)
        for conv in (self.to_latent, self.decoder[-1].conv):
            nn.init.zeros_(conv.conv.weight)

    def encode(self, x: Tensor, past: Past | None = None) -> Tensor:
        begins = past is None or past.first
        cells = fold(self.padded(x, begins), self.strides, self.lone_axis if begins else None)
        return super().encode(x, past) + self.analysis(cells)

    def decode(self, z: Tensor, past: Past | None = None) -> Tensor:
        begins = past is None or past.first
        return super().decode(z, past) + unfold(self.synthesis(z), self.strides, self.lone_axis if begins else None)


class ConvCodec(Codec):
    """A codec whose body is an Autoencoder and whose latent is what `regulariser` makes of the head.

    Pieces along a causal time axis carry the state of its layers and are exact; planes are cut into tiles with halos.

    `names` and `units` describe the axes of the feature grid; `samples` is how many media samples one feature position spans
    along each (a mel frame spans a hop), `overlap` how many more it sees on either side along the first axis.
    """

    tile = 128
    decoding = ("body.from_latent", "body.decoder", "body.synthesis", "vocoder")

    def __init__(
        self,
        media: Media,
        body: Autoencoder,
        names: Sequence[str],
        units: Sequence[float],
        samples: Sequence[int] | None = None,
        regulariser: Regulariser | None = None,
        lookahead: int | None = None,
        overlap: int = 0,
    ):
        super().__init__()
        self.media, self.body, self.lookahead = media, body, lookahead
        self.regulariser = regulariser or BoundedNoise()
        self.latent_channels = body.latent_channels
        if body.head_channels != self.regulariser.heads * body.latent_channels:
            raise ValueError(
                f"wanted a body with head_channels={self.regulariser.heads * body.latent_channels} for "
                f"{type(self.regulariser).__name__}, got {body.head_channels}"
            )
        spans = tuple(samples or (1,) * body.rank)
        self.axes = tuple(
            Axis(name, body.strides[a] * span, body.first(a) * span, unit)
            for a, (name, unit, span) in enumerate(zip(names, units, spans, strict=True))
        )
        self.reach = {axis.name: body.reach(a) * spans[a] + overlap * (a == 0) for a, axis in enumerate(self.axes)}
        self.decode_reach = {axis.name: body.decode_reach(a) for a, axis in enumerate(self.axes)}

    def encode_features(self, features: Tensor) -> Posterior:
        return self.regulariser.posterior(_wide(self.body.encode(features)))

    def decode_features(self, z: Tensor) -> Tensor:
        return _wide(self.body.decode(z)).contiguous()

    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.latent_channels, *(axis.cells(n) for axis, n in zip(self.axes, media_shape[1:], strict=True)))

    # -- pieces along time

    def front_step(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        """The features of the next media samples that can be told now."""
        return self.front(x), None

    def unfront_step(self, features: Tensor | None, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        """The media samples of the next features (None: no more) that can be told now."""
        return (None if features is None else self.unfront(features)), None

    def encode_step(self, x: Tensor, state: Any, last: bool) -> tuple[Posterior | None, Any]:
        if self._time is None or self.body.causal_axis != self._time:
            return super().encode_step(x, state, last)
        dim, (front, rest, before) = 2 + self._time, state or (None, None, None)
        features, front = self.front_step(x, front, last)
        parts = [part for part in (rest, features) if part is not None]
        if not parts:
            return None, (front, None, None)
        features, past, stride = torch.cat(parts, dim), Past(before), self.body.strides[self._time]
        cell = Axis("cell", stride, self.body.first(self._time) if past.first else stride, 1.0)
        length = features.shape[dim]
        ready = length if last else cell.length(cells) if (cells := windows.complete(cell, length)) else 0
        rest = features.narrow(dim, ready, length - ready).clone()
        if not ready and not (last and past.first):
            return None, (front, rest, before)
        head = self.body.encode(features.narrow(dim, 0, ready), past)
        return self.regulariser.posterior(_wide(head)), (front, rest, past.kept)

    def decode_step(self, z: Tensor, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        if self._time is None or self.body.causal_axis != self._time:
            return super().decode_step(z, state, last)
        front, before = state or (None, None)
        if not z.shape[2 + self._time]:
            x, front = self.unfront_step(None, front, last)
            return x, (front, before)
        past = Past(before)
        x, front = self.unfront_step(_wide(self.body.decode(z, past)).contiguous(), front, last)
        return x, (front, past.kept)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
