"""The codec of waveforms: its nonlinearity, its arithmetic, and what it promises along time."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmldm import config
from mmldm.codec import WaveformCodec
from mmldm.codec.regularisers import KL
from mmldm.codec.waveform import SnakeBlock, WaveVAE
from mmldm.nn import snake
from mmldm.nn.conv import Conv, Downsample, Upsample, channels_last, fold, unfold
from mmldm.nn.snake import Snake
from mmldm.testing import check_codec

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shaped:
    """As much of a media as a codec asks for."""

    shape: tuple[int, ...]
    time_axis: int | None = None
    rate: float | None = None


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """In float64 and away from the zeros of its initialisation."""
    for i, parameter in enumerate(module.double().parameters()):
        parameter.data += 0.05 * rand(*parameter.shape, seed=i)
    return module


def small(channels: int = 1, **changes) -> WaveformCodec:
    sizes = {"latent_channels": 4, "width": 4, "multipliers": (1, 2), "strides": (2, 3), **changes}
    return WaveformCodec(Shaped((channels, 120), 0, 100), **sizes)


# ---------------------------------------------------------------- snake


@pytest.mark.parametrize("own_beta", [False, True])
@pytest.mark.parametrize("grid", [(50,), (7, 5)])
def test_snake_is_its_formula_in_pieces_as_whole_and_so_is_its_gradient(own_beta, grid, monkeypatch):
    act, x = shaken(Snake(3, own_beta)), rand(2, 3, *grid).requires_grad_()
    alpha, beta = (p.exp().reshape(-1, *(1 for _ in grid)) for p in (act.alpha, act.beta if own_beta else act.alpha))
    formula = x + torch.sin(alpha * x) ** 2 / (beta + 1e-9)
    wanted = torch.autograd.grad(formula.pow(3).sum(), (x, *act.parameters()))
    for numbers in (1, 40, 1 << 16):
        monkeypatch.setattr(snake, "_PIECE", numbers)
        torch.testing.assert_close(act(x), formula, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(act(x).pow(3).sum(), (x, *act.parameters())), wanted)


def test_snake_begins_with_alpha_one_and_takes_alphas_that_are_no_logarithms():
    x = rand(1, 2, 9)
    torch.testing.assert_close(Snake(2).double()(x), x + torch.sin(x) ** 2, rtol=0, atol=1e-8)
    torch.testing.assert_close(Snake(2, logarithmic=False).double()(x), x + torch.sin(x) ** 2, rtol=0, atol=1e-8)


def test_snake_of_bfloat16_is_the_rounded_one_of_float32():
    act, x = Snake(2), (30 * rand(1, 2, 1000)).bfloat16().requires_grad_()
    act.alpha.data += 1
    y = act(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, act(x.float()).bfloat16())
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and act.alpha.grad.dtype == torch.float32


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(("kernel", "dilation", "causal_axis"), [(1, 1, 0), (7, 1, 0), (7, 9, 0), (2, 1, 0), (3, 2, None)])
def test_a_convolution_of_a_line_is_that_of_torch(kernel, dilation, causal_axis):
    conv, x = shaken(Conv(1, 3, 5, kernel, causal_axis, dilation)), rand(2, 3, 40)
    history = (kernel - 1) * dilation
    sides = (history, 0) if causal_axis == 0 else (0, 0)
    padded = F.pad(x, sides, mode="replicate") if history else x
    wanted = F.conv1d(padded, conv.conv.weight, conv.conv.bias, padding=conv.conv.padding, dilation=dilation)
    for given in (x, channels_last(x)):
        torch.testing.assert_close(conv(given), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 5])
def test_two_cells_down_are_a_strided_convolution_of_twice_the_stride(stride):
    down, x = shaken(Downsample(1, 3, 7, stride, 2, 0)), rand(2, 3, 6 * stride)
    assert not down.groups
    taps = down.conv.conv.weight.unflatten(1, (stride, 3)).permute(0, 2, 3, 1).flatten(2)  # previous cell, then this one
    wanted = F.conv1d(torch.cat([x[..., :stride], x], 2), taps, down.conv.conv.bias, stride)
    torch.testing.assert_close(down(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 5])
def test_two_cells_up_are_a_transposed_convolution_of_twice_the_stride(stride):
    up, x = shaken(Upsample(1, 7, 3, stride, 2, 0, bias=False)), rand(2, 7, 6)
    assert not up.groups
    taps = up.conv.conv.weight.unflatten(0, (stride, 3)).permute(2, 1, 3, 0).flip(2).flatten(2)  # this cell, then the next
    whole = F.conv_transpose1d(torch.cat([x[..., :1], x], 2), taps, None, stride)
    torch.testing.assert_close(up(x), whole[..., stride:-stride], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("layer", "channels"), [(Downsample, (4, 8)), (Upsample, (8, 4))])
@pytest.mark.parametrize(
    ("rank", "stride", "kernel", "axis"), [(1, 4, 2, 0), (1, 4, 3, None), (2, (2, 2), 3, None), (2, (2, 2), 1, 0)]
)
def test_an_absorbed_shortcut_is_the_same_function(layer, channels, rank, stride, kernel, axis):
    layers = []
    for absorbed in (False, True):
        torch.manual_seed(0)
        layers.append(layer(rank, *channels, stride, kernel, axis, absorbed=absorbed).double())
    assert layers[0].groups and not layers[1].groups
    x = rand(2, channels[0], *(8, 12)[:rank])
    torch.testing.assert_close(layers[1](x), layers[0](x), rtol=0, atol=1e-6)


def test_a_block_is_the_identity_at_first_and_then_as_written():
    block, x = SnakeBlock(4, 3).double(), rand(2, 4, 30)
    assert torch.equal(block(x), x)
    y = shaken(block).conv_in(block.snake_in(x))
    torch.testing.assert_close(block(x), x + block.conv_out(block.snake_out(y)))


def test_layouts_of_lines_have_channels_innermost():
    x = rand(2, 3, 8)
    for y in (channels_last(x), fold(x, (2,)), Conv(1, 3, 4, 7, 0).double()(channels_last(x)), unfold(fold(x, (2,)), (2,))):
        assert y.stride(1) == 1
    assert Conv(1, 3, 4, 7).conv.weight.stride(1) == 1


# ---------------------------------------------------------------- promises


@pytest.mark.parametrize(
    "codec",
    [small(), small(2, regulariser=KL()), small(patch=4, strides=(2, 2), decoder_width=6), small(multipliers=(2, 3))],
    ids=["mono", "stereo, KL", "patches, wide decoder", "no shortcut fits"],
)
def test_waveform_codecs_keep_the_contract(codec):
    assert all(str(check)[:2] in ("ok", "— ") for check in check_codec(codec)) and codec.blended == () and codec.lookahead == 0


@pytest.mark.parametrize("pieces", [(1,) * 30 + (70,), (33, 1, 66), (100,), (6, 60, 34)])
def test_ragged_pieces_make_the_whole(pieces):
    codec = shaken(small(2)).eval()
    x, state, out = rand(1, 2, sum(pieces)), None, []
    for i, piece in enumerate(x.split(pieces, 2)):
        posterior, state = codec.encode_chunk(piece, state, last=i == len(pieces) - 1)
        out += [] if posterior is None else [posterior.mean]
    z = torch.cat(out, 2)
    torch.testing.assert_close(z, codec.encode_features(x).mean, rtol=0, atol=1e-10)
    state, out = None, []
    for i, cell in enumerate(z.split(1, 2)):
        y, state = codec.decode_chunk(cell, state, last=i == z.shape[2] - 1)
        out.append(y)
    torch.testing.assert_close(torch.cat(out, 2), codec.decode_features(z), rtol=0, atol=1e-10)


def test_the_future_changes_no_cell_and_no_sample_of_the_past():
    codec, x = shaken(small()).eval(), rand(1, 1, 96)
    later = x.clone()
    later[..., 60:] += 1
    z, other = codec.encode(x).mean, codec.encode(later).mean
    torch.testing.assert_close(other[..., :10], z[..., :10], rtol=0, atol=1e-12)
    assert not torch.allclose(other[..., 10], z[..., 10])
    torch.testing.assert_close(codec.decode(other)[..., :60], codec.decode(z)[..., :60], rtol=0, atol=1e-12)


def test_chunks_are_about_one_and_a_half_seconds():
    codec = small()
    assert codec.chunk * codec.axes[0].size / codec.media.rate == pytest.approx(1.5, abs=codec.axes[0].size / codec.media.rate)
    assert WaveformCodec(Shaped((1, 50), 0, 2), 4, 4, (1,), (8,)).chunk == 1


def test_what_is_no_waveform_is_refused():
    with pytest.raises(ValueError, match="samples along time alone"):
        WaveformCodec(Shaped((3, 16, 16)))
    with pytest.raises(ValueError, match="one multiplier per level"):
        WaveVAE(1, 4, multipliers=(1, 2), strides=(2,))


def test_it_learns_a_tone():
    torch.manual_seed(0)
    codec = small(width=8, dilations=(1,))
    x = torch.sin(torch.arange(180) * 0.2 + torch.arange(4)[:, None])[:, None] * torch.linspace(0.2, 0.8, 4)[:, None, None]
    optimizer = torch.optim.AdamW(codec.parameters(), 3e-3, (0.8, 0.99))
    for _ in range(40):
        optimizer.zero_grad()
        error = (codec.decode_features(codec.encode_features(x).mean) - x).square().mean()
        error.backward()
        optimizer.step()
    assert error < 0.05 * x.square().mean()


@pytest.mark.parametrize(("name", "cell", "cells"), [("16k", 320, 200), ("44k", 2048, 32), ("world", 128, 128)])
def test_presets_are_built_with_the_cells_they_say(name, cell, cells):
    node = config.compose([f"codec=waveform_{name}", "task=codec"]).codec.audio
    with torch.device("meta"):
        codec = config.build(node)
    assert codec.axes[0].size == cell and codec.latent_shape(codec.media.shape) == (codec.latent_channels, cells)
    assert 1 <= codec.chunk * cell / codec.media.rate <= 2
