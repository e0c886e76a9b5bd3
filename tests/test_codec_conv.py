"""Convolutions of any rank: causal along one axis, resampled without a phase error, chunk by chunk as in one piece."""

import pytest
import torch

from mmldm.codec.conv_vae import ConvVAE
from mmldm.nn.conv import Conv, Downsample, Past, PixelNorm, ResBlock, Upsample, fold, per_axis, unfold


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_keeps_the_grid_and_a_causal_one_sees_the_past(rank):
    x = rand(2, 3, *(5, 4, 6)[:rank])
    plain, causal = Conv(rank, 3, 7).double(), Conv(rank, 3, 7, causal_axis=0).double()
    assert plain(x).shape == causal(x).shape == (2, 7, *x.shape[2:])
    later = x.clone()
    later[:, :, 3:] += 1
    assert torch.equal(causal(later)[:, :, :3], causal(x)[:, :, :3])
    assert not torch.equal(plain(later)[:, :, :3], plain(x)[:, :, :3])


@pytest.mark.parametrize("axis", [0, 1])
def test_conv_by_chunks_that_carry_their_past_is_the_whole(axis):
    conv, x = Conv(2, 3, 4, 3, causal_axis=axis).double(), rand(2, 3, 9, 9)
    whole, parts, past = conv(x), [], Past()
    for chunk in x.split([1, 2, 5, 1], 2 + axis):
        parts.append(conv(chunk, past))
        past = Past(past.kept)
    torch.testing.assert_close(torch.cat(parts, 2 + axis), whole, rtol=0, atol=1e-12)


def test_a_constant_stays_constant_in_time():
    conv, x = Conv(3, 2, 4, 3, causal_axis=0).double(), rand(1, 2, 1, 4, 4).expand(-1, -1, 6, -1, -1)
    torch.testing.assert_close(conv(x), conv(x)[:, :, :1].expand(-1, -1, 6, -1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("strides", "grid"), [((3,), (6,)), ((2, 4), (4, 8)), ((4, 2, 1), (8, 4, 3))])
def test_unfold_is_the_inverse_of_fold(strides, grid):
    x = rand(2, 3, *grid)
    folded = fold(x, strides)
    assert folded.numel() == x.numel() and folded.shape[2:] == tuple(n // r for n, r in zip(grid, strides, strict=True))
    assert torch.equal(unfold(folded, strides), x)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
@pytest.mark.parametrize("r", [2, 4])
def test_a_lone_first_sample_gives_one_plus_n_cells(n, r):
    x = rand(1, 2, 1 + r * n, 4)
    folded = fold(x, (r, 2), lone_axis=0)
    assert folded.shape[2:] == (1 + n, 2)
    assert torch.equal(folded[:, :, :1], fold(x[:, :, :1], (r, 2), lone_axis=0))
    assert torch.equal(unfold(folded, (r, 2), lone_axis=0), x)


@pytest.mark.parametrize(("narrow", "wide"), [(4, 4), (4, 8), (4, 16)])
def test_resampling_shortcuts_alone_invert_each_other(narrow, wide):
    down, up = Downsample(2, narrow, wide, (2, 2)).double(), Upsample(2, wide, narrow, (2, 2)).double()
    for layer in (down, up):
        torch.nn.init.zeros_(layer.conv.conv.weight)
    constant = rand(2, narrow, 1, 1).expand(-1, -1, 4, 6)  # the average of equal values is the value
    torch.testing.assert_close(up(down(constant)), constant)
    coarse = rand(2, wide, 2, 3)
    torch.testing.assert_close(down(up(coarse)), coarse)


def test_normalisation_and_blocks_do_not_mix_positions():
    x = rand(2, 8, 4, 4)
    y = PixelNorm()(x)
    torch.testing.assert_close(PixelNorm()(x[:, :, 1:2, 2:3]), y[:, :, 1:2, 2:3])
    assert torch.equal(ResBlock(2, 8).double()(x), x)  # the identity at initialisation


@pytest.mark.parametrize(("strides", "lone"), [(((4, 2),), False), (((4, 2),), True), (((2, 2), (2, 1)), True)])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 9])
def test_body_covers_every_length(strides, lone, length):
    body = ConvVAE(2, 3, 4, 8, (1,) * len(strides), strides, causal_axis=0, lone_first=lone).double()
    x = rand(1, 3, length, 5)
    z = body.encode(x)
    assert z.shape[2:] == body.cells((length, 5)) == (1 + -(-(length - 1) // 4) if lone else -(-length // 4), 3)
    assert all(have >= want for have, want in zip(body.decode(z).shape[2:], (length, 5), strict=True))


def test_decoder_is_causal_and_its_width_is_its_own():
    body = ConvVAE(
        2, 3, 4, 8, (1, 2), ((2, 2), (2, 1)), decoder_width=16, decoder_blocks=2, causal_axis=0, lone_first=True
    ).double()
    for parameter in body.parameters():
        parameter.data += 0.05 * rand(*parameter.shape)
    z = rand(1, 4, 4, 3)
    torch.testing.assert_close(body.decode(z[:, :, :2]), body.decode(z)[:, :, :5], rtol=0, atol=1e-12)
    count = lambda part: sum(p.numel() for p in part.parameters())  # noqa: E731
    assert count(body.decoder) > 2 * count(body.encoder)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvVAE(2, 3, 4, strides=(2, 2), multipliers=(1,)),
        lambda: ConvVAE(2, 3, 4, lone_first=True),
        lambda: Conv(4, 3, 3),
        lambda: Conv(2, 3, 3, kernel=2),
        lambda: per_axis((2, 2), 3),
        lambda: ConvVAE(2, 3, 4).encode(torch.zeros(1, 3, 8)),
    ],
)
def test_impossible_shapes_are_refused(build):
    with pytest.raises(ValueError, match="wanted"):
        build()
