"""HiFi-GAN, a vocoder that upsamples mel frames to samples by transposed convolutions; BigVGAN shares its skeleton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from mmldm.codec.mel import LogMel
from mmldm.codec.vocoder import Vocoder

__all__ = ["HiFiGAN", "Upsampling", "UpsamplingBlock"]

Span = tuple[int, int]  # the first and the last sample that a range of samples depends on


class UpsamplingBlock(nn.Module):
    """Residual convolutions of one kernel: for each dilation x + conv(act(dilated conv(act(x)))), or without the second one.

    `activations` holds one of them per convolution, in the order of use.
    """

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int], paired: bool, act: Callable[[int], nn.Module]):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"wanted odd block kernels, got {kernel}")
        self.convs1 = nn.ModuleList(_conv(channels, channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_conv(channels, channels, kernel) for _ in dilations) if paired else None
        self.activations = nn.ModuleList(act(channels) for _ in range(len(dilations) * (1 + paired)))

    def forward(self, x: Tensor) -> Tensor:
        act = iter(self.activations)
        for i, conv in enumerate(self.convs1):
            y = conv(next(act)(x))
            x = x + (y if self.convs2 is None else self.convs2[i](next(act)(y)))
        return x

    @property
    def seen(self) -> int:
        """Samples on either side of its own that an output depends on."""
        convs = [*self.convs1, *(self.convs2 or ())]
        return sum(conv.padding[0] for conv in convs) + sum(_seen(act) for act in self.activations)


class Upsampling(Vocoder):
    """Natural log-mels upsampled by `rates`, each followed by the mean of one residual block per block kernel.

    The skeleton of HiFi-GAN and BigVGAN, which differ in the nonlinearities (made for a number of channels) `before` an
    upsampling, `inside` a block and `after` all, and in what gives the waveform its range, `bounded`. The product of the
    rates is the hop; the channels halve at each upsampling. A nonlinearity that sees neighbours says how many: `seen`.
    """

    def __init__(
        self,
        mel: LogMel,
        rates: Sequence[int],
        kernels: Sequence[int],
        channels: int,
        block_kernels: Sequence[int],
        block_dilations: Sequence[Sequence[int]],
        paired: bool,
        before: Callable[[int], nn.Module],
        inside: Callable[[int], nn.Module],
        after: Callable[[int], nn.Module],
        bounded: Callable[[Tensor], Tensor] = torch.tanh,
        final_bias: bool = True,
    ):
        super().__init__()
        if prod(rates) != mel.hop:
            raise ValueError(f"wanted rates whose product is the hop {mel.hop}, got {list(rates)} with {prod(rates)}")
        if len(kernels) != len(rates) or any(k < r for k, r in zip(kernels, rates, strict=False)):
            raise ValueError(f"wanted one kernel per rate {list(rates)}, none smaller than it, got {list(kernels)}")
        if len(block_kernels) != len(block_dilations) or not block_kernels:
            raise ValueError(f"wanted dilations for each of the block kernels {list(block_kernels)}, got {block_dilations}")
        self.mel, self.bounded, widths = mel, bounded, [channels >> i for i in range(len(rates) + 1)]
        self.conv_pre = _conv(mel.bins, channels, 7)
        self.before = nn.ModuleList(before(wide) for wide in widths[:-1])
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(wide, wide // 2, kernel, rate, padding=(kernel - rate) // 2)
            for wide, rate, kernel in zip(widths, rates, kernels, strict=False)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                UpsamplingBlock(narrow, kernel, dilations, paired, inside)
                for kernel, dilations in zip(block_kernels, block_dilations, strict=True)
            )
            for narrow in widths[1:]
        )
        self.after, self.conv_post = after(widths[-1]), _conv(widths[-1], 1, 7, bias=final_bias)
        self.reach = self._reach()
        for conv in (self.conv_post, *self.ups, *(c for c in self.blocks.modules() if isinstance(c, nn.Conv1d))):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        mel, frames = self.mel, features.shape[2]
        log_mel = (features + 1) * ((mel.high - mel.low) / 2) + mel.low
        x = self.upsampled(log_mel.flatten(0, 1).transpose(1, 2))
        return x[..., : frames * mel.hop].reshape(*features.shape[:2], -1)

    def upsampled(self, log_mel: Tensor) -> Tensor:
        """Natural log-mel (N, bins, frames) -> waveform (N, 1, T), T at least frames·hop."""
        x = self.conv_pre(log_mel)
        for act, up, blocks in zip(self.before, self.ups, self.blocks, strict=True):
            x = up(act(x))
            x = sum(block(x) for block in blocks) / len(blocks)
        return self.bounded(self.conv_post(self.after(x)))

    def _reach(self) -> int:
        low, high = _wider((0, self.mel.hop - 1), self.conv_post.padding[0] + _seen(self.after))
        for act, up, blocks in reversed(list(zip(self.before, self.ups, self.blocks, strict=True))):
            low, high = _wider((low, high), max(block.seen for block in blocks))
            (size,), (rate,), (pad,) = up.kernel_size, up.stride, up.padding
            low, high = -((size - 1 - pad - low) // rate), (high + pad) // rate
            low, high = _wider((low, high), _seen(act))
        return max(-low, high) + self.conv_pre.padding[0]


class HiFiGAN(Upsampling):
    """The HiFi-GAN generator (arXiv 2010.05646, section 2.2): features (B, C, frames, bins) -> waveform (B, C, frames·hop).

    The defaults are V1 at 22.05 kHz; `paired` blocks are its ResBlock1, others its ResBlock2.
    """

    def __init__(
        self,
        mel: LogMel,
        rates: Sequence[int] = (8, 8, 2, 2),
        kernels: Sequence[int] = (16, 16, 4, 4),
        channels: int = 512,
        block_kernels: Sequence[int] = (3, 7, 11),
        block_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        paired: bool = True,
    ):
        super().__init__(
            mel,
            rates,
            kernels,
            channels,
            block_kernels,
            block_dilations,
            paired,
            before=lambda width: nn.LeakyReLU(0.1),
            inside=lambda width: nn.LeakyReLU(0.1),
            after=lambda width: nn.LeakyReLU(0.01),
        )


def _conv(before: int, after: int, kernel: int, dilation: int = 1, bias: bool = True) -> nn.Conv1d:
    return nn.Conv1d(before, after, kernel, dilation=dilation, padding=dilation * (kernel // 2), bias=bias)


def _wider(span: Span, seen: int) -> Span:
    return span[0] - seen, span[1] + seen


def _seen(act: nn.Module) -> int:
    return getattr(act, "seen", 0)
