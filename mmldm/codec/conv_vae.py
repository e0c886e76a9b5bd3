"""One convolutional autoencoder body for grids of rank 1, 2 and 3, and the codec around it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from mmldm.codec.losses import BoundedNoise, Regulariser
from mmldm.interfaces import Axis, Codec, Media, Posterior
from mmldm.nn.conv import Conv, Downsample, ResBlock, Upsample, channels_last, per_axis

__all__ = ["ConvCodec", "ConvVAE"]


class ConvVAE(nn.Module):
    """Encoder and decoder of a grid: at each level a resampling by `strides[level]`, then `blocks` residual blocks.

    The first level folds its stride out of the raw channels, so no convolution runs at a resolution that it skips. Level i has
    `width * multipliers[i]` channels (`decoder_width` in the decoder). Along `causal_axis` a cell sees the past only; with
    `lone_first` the first sample there is a cell of its own and 1 + r·n <-> 1 + n (LTX-Video, arXiv 2501.00103, section 2.1).
    No layer mixes positions but the convolutions: nothing depends on the length of the clip.
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
        super().__init__()
        if not strides or len(multipliers) != len(strides):
            raise ValueError(f"wanted one multiplier per level of strides, got {multipliers} for {strides}")
        if lone_first and causal_axis is None:
            raise ValueError("wanted a causal_axis with lone_first=True, got None")
        steps = [per_axis(stride, rank, "stride") for stride in strides]
        self.rank, self.causal_axis, self.latent_channels = rank, causal_axis, latent_channels
        self.head_channels = head_channels or latent_channels
        self.lone_axis = causal_axis if lone_first else None
        self.strides = tuple(prod(step[a] for step in steps) for a in range(rank))
        along = {"causal_axis": causal_axis}
        kernels = (kernel, kernel if second_kernel is None else second_kernel)
        resampled = {**along, "lone_axis": self.lone_axis}

        widths = [width * m for m in multipliers]
        layers: list[nn.Module] = []
        for level, (before, after, step) in enumerate(zip([in_channels, *widths], widths, steps, strict=False)):
            layers.append(Downsample(rank, before, after, step, kernel if level == 0 else 1, **resampled))
            layers += [ResBlock(rank, after, *kernels, **along) for _ in range(blocks)]
        self.encoder = nn.Sequential(*layers)
        self.to_latent = Conv(rank, widths[-1], self.head_channels, 1)

        widths = [(decoder_width or width) * m for m in multipliers]
        self.from_latent = Conv(rank, latent_channels, widths[-1], kernel, **along)
        layers = []
        for level in reversed(range(len(steps))):
            layers += [ResBlock(rank, widths[level], *kernels, **along) for _ in range(decoder_blocks or blocks)]
            if level > 0:
                layers.append(Upsample(rank, widths[level], widths[level - 1], steps[level], 1, **resampled))
        layers.append(Upsample(rank, widths[0], in_channels, steps[0], kernel, **resampled))
        self.decoder = nn.Sequential(*layers)

    def first(self, axis: int) -> int:
        """Samples that cell 0 covers along an axis."""
        return 1 if axis == self.lone_axis else self.strides[axis]

    def reach(self, axis: int) -> int:
        """Samples before a cell's own, and after them unless the axis is causal, that its encoding sees."""
        far, scale = 0, 1
        for layer in self.encoder:
            scale *= layer.stride[axis] if isinstance(layer, Downsample) else 1
            kernels = [conv.conv.kernel_size[axis] for conv in layer.modules() if isinstance(conv, Conv)]
            far += scale * sum(k - 1 if axis == self.causal_axis else k // 2 for k in kernels)
        return far

    def cells(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Cells that cover `lengths` samples per axis, the last of each possibly in part."""
        return tuple(1 + max(0, -(-(n - self.first(a)) // self.strides[a])) for a, n in enumerate(lengths))

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, head channels, *L); a length that ends within a cell is completed by its last sample repeated."""
        return self.to_latent(self.encoder(channels_last(self.padded(x))))

    def decode(self, z: Tensor) -> Tensor:
        """(B, D, *L) -> (B, C, *S) of whole cells."""
        return self.decoder(self.from_latent(channels_last(z)))

    def padded(self, x: Tensor) -> Tensor:
        """`x` with the last sample of each axis repeated up to whole cells."""
        if x.ndim != 2 + self.rank or min(x.shape[2:]) < 1:
            raise ValueError(f"wanted (B, C, *S) with {self.rank} grid axes of at least one sample, got {tuple(x.shape)}")
        for axis, (length, cells) in enumerate(zip(x.shape[2:], self.cells(x.shape[2:]), strict=True)):
            missing = self.first(axis) + (cells - 1) * self.strides[axis] - length
            if missing:
                last = x.narrow(2 + axis, length - 1, 1)
                x = torch.cat([x, last.expand(*(missing if d == 2 + axis else n for d, n in enumerate(x.shape)))], 2 + axis)
        return x


class ConvCodec(Codec):
    """A codec whose body is a ConvVAE and whose latent is what `regulariser` makes of the encoder's output.

    `names` and `units` describe the axes of the feature grid; `samples` is how many media samples one feature position spans
    along each (a mel frame spans a hop), `overlap` how many more it sees on either side along the first axis.
    """

    def __init__(
        self,
        media: Media,
        body: ConvVAE,
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

    def encode_features(self, features: Tensor) -> Posterior:
        return self.regulariser.posterior(_wide(self.body.encode(features)))

    def decode_features(self, z: Tensor) -> Tensor:
        return _wide(self.body.decode(z)).contiguous()

    def latent_shape(self, media_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.latent_channels, *(axis.cells(n) for axis, n in zip(self.axes, media_shape[1:], strict=True)))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
