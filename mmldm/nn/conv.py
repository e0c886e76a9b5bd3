"""Convolutions of rank 1, 2 and 3 that may be causal along one axis, and the resampling that keeps them so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Conv", "Downsample", "Past", "PixelNorm", "ResBlock", "Upsample", "channels_last", "fold", "per_axis", "unfold"]

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def per_axis(value: int | Sequence[int], rank: int, what: str = "size") -> tuple[int, ...]:
    """One positive number per axis: an int is repeated."""
    sizes = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(sizes) != rank or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"wanted a {what} of one positive int per axis ({rank} of them), got {value}")
    return sizes


def channels_last(x: Tensor) -> Tensor:
    """The same tensor with channels innermost in memory: faster convolutions."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.ndim]) if x.ndim in formats else x.mT.contiguous().mT


class Past:
    """What the causal convolutions of a body saw before this piece of a clip, in the order in which they run.

    `Past()` begins a clip, `Past(past.kept)` continues it: a body that is given one to its forward leaves in `kept` what the
    next piece needs, and keeps nothing itself.
    """

    def __init__(self, before: Sequence[Tensor] | None = None):
        self.first = before is None
        self._before = iter(before or ())
        self.kept: list[Tensor] = []

    def extend(self, x: Tensor, dim: int, length: int) -> Tensor:
        """`x` with the `length` samples before it; its last `length` are kept."""
        x = _preceded(x, dim, length, None if self.first else next(self._before))
        self.kept.append(x.narrow(dim, x.shape[dim] - length, length).clone())
        return x


def _preceded(x: Tensor, dim: int, length: int, left: Tensor | None) -> Tensor:
    if left is None:
        left = x.narrow(dim, 0, 1).expand(*(length if d == dim else n for d, n in enumerate(x.shape)))
    return torch.cat([left.movedim(1, -1), x.movedim(1, -1)], dim - 1).movedim(-1, 1)


class Conv(nn.Module):
    """A convolution that keeps the grid's size: zeros around the plain axes, only the past along `causal_axis`.

    Before the first sample of the causal axis stands that sample repeated, so that a constant signal stays constant; before
    a later piece of a clip what its `past` tells. `dilation` is along the causal axis, or every axis where none is.
    """

    def __init__(
        self,
        rank: int,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int] = 3,
        causal_axis: int | None = None,
        dilation: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        if rank not in _CONVS:
            raise ValueError(f"wanted a rank, got {rank}; choose from {sorted(_CONVS)}")
        kernels = per_axis(kernel, rank, "kernel")
        if any(k % 2 == 0 for a, k in enumerate(kernels) if a != causal_axis):
            raise ValueError(f"wanted odd kernels along axes that are not causal, got {kernels}")
        self.dim = None if causal_axis is None else 2 + range(rank)[causal_axis]
        steps = tuple(dilation if causal_axis is None or a == causal_axis else 1 for a in range(rank))
        self.history = 0 if causal_axis is None else (kernels[causal_axis] - 1) * dilation
        padding = tuple(0 if self.dim == 2 + a else k // 2 * steps[a] for a, k in enumerate(kernels))
        self.conv = _CONVS[rank](in_channels, out_channels, kernels, padding=padding, dilation=steps, bias=bias)
        nn.init.normal_(self.conv.weight, std=(in_channels * prod(kernels)) ** -0.5)
        if bias:
            nn.init.zeros_(self.conv.bias)
        if rank == 1:
            self.conv.weight.data = channels_last(self.conv.weight.data)

    def sees(self, axis: int) -> int:
        """Samples that it sees before each one along an axis; as many after, unless the axis is the causal one."""
        kernel, step = self.conv.kernel_size[axis], self.conv.dilation[axis]
        return (kernel - 1) * step if self.dim == 2 + axis else kernel // 2 * step

    @torch.no_grad()
    def absorb(self, linear: Callable[[Tensor], Tensor]) -> None:
        """Add to the weights a `linear` map of the channels of each position by itself: (B, C, *S) -> (B, out, *S)."""
        weight = self.conv.weight
        here = [k - 1 if self.dim == 2 + a else k // 2 for a, k in enumerate(self.conv.kernel_size)]
        basis = torch.eye(weight.shape[1], dtype=weight.dtype).reshape(-1, weight.shape[1], *(1 for _ in here))
        weight[(slice(None), slice(None), *here)] += linear(basis).flatten(1).T

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        """(B, C, *S) -> (B, out, *S)."""
        if self.history:
            x = _preceded(x, self.dim, self.history, None) if past is None else past.extend(x, self.dim, self.history)
        return self.conv(x) if x.ndim > 3 else self._line(x)

    def _line(self, x: Tensor) -> Tensor:
        """The convolution of a line as that of a plane of height 1: twice as fast on a CPU with channels innermost."""
        conv = self.conv
        if conv.kernel_size == (1,):
            return F.linear(x.mT, conv.weight[:, :, 0], conv.bias).mT
        padding, dilation = (0, *conv.padding), (1, *conv.dilation)
        return F.conv2d(x.unsqueeze(2), conv.weight.unsqueeze(2), conv.bias, 1, padding, dilation).squeeze(2)


class PixelNorm(nn.Module):
    """Normalises the channels of each grid position by itself: positions and time steps never mix.

    No gain and no bias: the convolution that follows has them. Centred (a layer norm), because that kernel takes a third of
    the time of an RMS norm on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class ResBlock(nn.Module):
    """x + conv(silu(conv(norm(x)))): the trunk itself stays linear, so that amplitudes pass; zero at initialisation.

    The two convolutions may have different kernels: (1, 3, 3) and (3, 1, 1) are the factorised form of (3, 3, 3).
    """

    def __init__(
        self,
        rank: int,
        channels: int,
        kernel: int | Sequence[int] = 3,
        second_kernel: int | Sequence[int] = 3,
        causal_axis: int | None = None,
    ):
        super().__init__()
        self.norm = PixelNorm()
        self.conv_in = Conv(rank, channels, channels, kernel, causal_axis)
        self.conv_out = Conv(rank, channels, channels, second_kernel, causal_axis)
        nn.init.zeros_(self.conv_out.conv.weight)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        return x + self.conv_out(F.silu(self.conv_in(self.norm(x), past)), past)


# ---------------------------------------------------------------- resampling


def fold(x: Tensor, strides: Sequence[int], lone_axis: int | None = None) -> Tensor:
    """Space to depth: (B, C, *S) -> (B, prod(strides)·C, *S/strides), channels innermost.

    Along `lone_axis` the first sample is a cell of its own: it is repeated stride - 1 times first, so 1 + r·n -> 1 + n.
    """
    if lone_axis is not None and strides[lone_axis] > 1:
        dim = 2 + lone_axis
        first = x.narrow(dim, 0, 1).expand(*(strides[lone_axis] - 1 if d == dim else n for d, n in enumerate(x.shape)))
        x = torch.cat([first, x], dim)
    cells = [n // r for n, r in zip(x.shape[2:], strides, strict=True)]
    rank = len(cells)
    x = x.reshape(*x.shape[:2], *(n for pair in zip(cells, strides, strict=True) for n in pair))
    inner, outer = range(3, 3 + 2 * rank, 2), range(2, 2 + 2 * rank, 2)
    return x.permute(0, *outer, *inner, 1).reshape(x.shape[0], *cells, -1).movedim(-1, 1)


def unfold(x: Tensor, strides: Sequence[int], lone_axis: int | None = None) -> Tensor:
    """Depth to space, the inverse of `fold`: (B, prod(strides)·C, *L) -> (B, C, *L·strides); along `lone_axis` the
    stride - 1 copies of the first sample are dropped, so 1 + n -> 1 + r·n."""
    rank, cells = len(strides), x.shape[2:]
    x = x.movedim(1, -1).reshape(x.shape[0], *cells, *strides, -1)
    order = [axis for a in range(rank) for axis in (1 + a, 1 + rank + a)]
    x = x.permute(0, *order, 1 + 2 * rank).reshape(x.shape[0], *(n * r for n, r in zip(cells, strides, strict=True)), -1)
    x = x.movedim(-1, 1)
    if lone_axis is not None and strides[lone_axis] > 1:
        dropped = strides[lone_axis] - 1
        x = x.narrow(2 + lone_axis, dropped, x.shape[2 + lone_axis] - dropped)
    return x


class Downsample(nn.Module):
    """Space to depth, a convolution, and the averaged shortcut of DC-AE (arXiv 2410.10733, section 3.1) where widths allow.

    With `absorbed` the shortcut is in the initial weights of the convolution: the same function, less memory read.
    """

    def __init__(
        self,
        rank: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        kernel: int = 1,
        causal_axis: int | None = None,
        lone_axis: int | None = None,
        absorbed: bool = False,
    ):
        super().__init__()
        self.stride, self.lone_axis = per_axis(stride, rank, "stride"), lone_axis
        self.conv = Conv(rank, prod(self.stride) * in_channels, out_channels, kernel, causal_axis)
        self.groups = _groups(out_channels, in_channels, prod(self.stride))
        if absorbed and self.groups:
            self.conv.absorb(self._shortcut)
            self.groups = 0

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = fold(x, self.stride, self.lone_axis if past is None or past.first else None)
        y = self.conv(x, past)
        return y + self._shortcut(x) if self.groups else y

    def _shortcut(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1, self.conv.conv.out_channels // self.groups)).mean(2).flatten(1, 2)


class Upsample(nn.Module):
    """A convolution, depth to space, and the repeated shortcut of DC-AE where widths allow: the mirror of Downsample.

    Its `bias` is of each position within a cell: a pattern that repeats with every cell, which in a waveform is a tone.
    """

    def __init__(
        self,
        rank: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        kernel: int = 1,
        causal_axis: int | None = None,
        lone_axis: int | None = None,
        absorbed: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.stride, self.lone_axis = per_axis(stride, rank, "stride"), lone_axis
        self.conv = Conv(rank, in_channels, prod(self.stride) * out_channels, kernel, causal_axis, bias=bias)
        self.groups = _groups(in_channels, out_channels, prod(self.stride))
        if absorbed and self.groups:
            self.conv.absorb(self._shortcut)
            self.groups = 0

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        y = self.conv(x, past)
        if self.groups:
            y = y + self._shortcut(x)
        return unfold(y, self.stride, self.lone_axis if past is None or past.first else None)

    def _shortcut(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.groups, 1, -1))
        return x.expand(-1, -1, prod(self.stride) // self.groups, *x.shape[3:]).flatten(1, 3)


def _groups(wide: int, narrow: int, factor: int) -> int:
    """Into how many groups the `factor` sub-positions fall when `narrow` channels become `wide`; 0: no shortcut fits."""
    ratio = wide // narrow
    return ratio if wide == ratio * narrow and ratio and factor % ratio == 0 else 0
