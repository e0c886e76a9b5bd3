"""The codec of waveforms: an autoencoder along time alone, from samples to samples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmldm.codec.conv_vae import Autoencoder, ConvCodec
from mmldm.codec.regularisers import BoundedNoise, Regulariser
from mmldm.interfaces import Media
from mmldm.nn.conv import Conv, Downsample, Past, Upsample
from mmldm.nn.snake import Snake

__all__ = ["SnakeBlock", "WaveVAE", "WaveformCodec"]

_SECONDS = 1.5  # of a chunk: short enough for a live stream, long enough that weights are not all that is read


class SnakeBlock(nn.Module):
    """x + conv(snake(conv(snake(x)))) along time, causal: a dilated kernel of 7 samples, then 1; zero at initialisation."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.snake_in, self.snake_out = Snake(channels), Snake(channels)
        self.conv_in = Conv(1, channels, channels, 7, 0, dilation)
        self.conv_out = Conv(1, channels, channels, 1, 0)
        nn.init.zeros_(self.conv_out.conv.weight)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        return x + self.conv_out(self.snake_out(self.conv_in(self.snake_in(x), past)))


class WaveVAE(Autoencoder):
    """Encoder and decoder of signals over time, after Oobleck (Stable Audio, arXiv 2402.04825, section 3.1), but causal.

    At each level `dilations` residual blocks, then a convolution over two cells of `strides[level]` samples, which is one of
    twice its stride (the decoder mirrors it). Widths are `width`, then `width * multipliers[level]`. The trunk stays linear.
    With `patch` > 1 the first convolution folds as many samples into one position: no layer runs at the rate of the signal.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 8, 16),
        strides: Sequence[int] = (2, 4, 4, 8, 8),
        dilations: Sequence[int] = (1, 3, 9),
        decoder_width: int | None = None,
        patch: int = 1,
        head_channels: int | None = None,
    ):
        if not strides or len(multipliers) != len(strides):
            raise ValueError(f"wanted one multiplier per level of strides, got {multipliers} for {strides}")
        super().__init__([(patch,), *((stride,) for stride in strides)], latent_channels, head_channels, causal_axis=0)

        widths = [width * m for m in (1, *multipliers)]
        layers: list[nn.Module] = [Downsample(1, in_channels, width, patch, 7, 0)]
        for before, after, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [*(SnakeBlock(before, d) for d in dilations), Downsample(1, before, after, stride, 2, 0, absorbed=True)]
        self.encoder = nn.ModuleList(layers)
        self.to_latent = Conv(1, widths[-1], self.head_channels, 1, 0)

        widths = [(decoder_width or width) * m for m in (1, *multipliers)]
        self.from_latent = Conv(1, latent_channels, widths[-1], 7, 0)
        layers = []
        for level in reversed(range(len(strides))):
            layers.append(Upsample(1, widths[level + 1], widths[level], strides[level], 2, 0, absorbed=True, bias=False))
            layers += [SnakeBlock(widths[level], d) for d in dilations]
        self.decoder = nn.ModuleList([*layers, Upsample(1, widths[0], in_channels, patch, 7, 0, bias=False)])


class WaveformCodec(ConvCodec):
    """Sound (B, C, T) <-> latents (B, D, time), causal and exact in pieces of about 1.5 seconds; features are the waveform.

    A cell spans `patch` times the product of `strides` samples. The default sizes are those of Stable Audio's autoencoder.
    """

    def __init__(
        self,
        media: Media,
        latent_channels: int = 64,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 8, 16),
        strides: Sequence[int] = (2, 4, 4, 8, 8),
        dilations: Sequence[int] = (1, 3, 9),
        decoder_width: int | None = None,
        patch: int = 1,
        regulariser: Regulariser | None = None,
    ):
        if media.rate is None or len(media.shape) != 2:
            raise ValueError(f"wanted a media of samples along time alone, got {type(media).__name__} of {media.shape}")
        regulariser = regulariser or BoundedNoise()
        body = WaveVAE(
            in_channels=media.shape[0],
            latent_channels=latent_channels,
            width=width,
            multipliers=multipliers,
            strides=strides,
            dilations=dilations,
            decoder_width=decoder_width,
            patch=patch,
            head_channels=regulariser.heads * latent_channels,
        )
        super().__init__(media, body, ("time",), (1.0 / media.rate,), regulariser=regulariser, lookahead=0)
        self.chunk = max(1, round(_SECONDS * media.rate / body.strides[0]))
