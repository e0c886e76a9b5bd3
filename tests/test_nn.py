"""Attention, positions and transformer blocks: what they promise, in float64."""

import pytest
import torch

from mmldm.nn.attention import CrossAttention, SelfAttention, attend, normalise
from mmldm.nn.positions import AxialAngles, Fourier, rotary_tables, rotate
from mmldm.nn.transformer import EncoderBlock, ModulatedBlock, SwiGLU


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits(points, axes=("time", "height"), extents=None):
    angles = AxialAngles(16, extents or {"time": 0.25, "height": 8.0}).double()
    tables = rotary_tables(angles(points, axes), heads=1)
    x = draw(16).expand(1, points.shape[1], 2, 1, 16)
    q, k = rotate(x, tables).unbind(2)
    return torch.einsum("bnhd,bmhd->bnm", q, k)[0]


def test_equal_relative_positions_give_equal_attention():
    points = draw(1, 5, 2) * torch.tensor([1.0, 30.0])
    moved = points + torch.tensor([7.5, -40.0])
    torch.testing.assert_close(logits(points), logits(moved), rtol=0, atol=1e-9)
    assert (logits(points) - logits(points * 2)).abs().max() > 0.1


def test_rotation_keeps_lengths():
    tables = rotary_tables(draw(1, 5, 8), heads=3)
    x = draw(2, 5, 2, 3, 16, seed=1)
    torch.testing.assert_close(rotate(x, tables).norm(dim=-1), x.norm(dim=-1))


def test_rotation_turns_each_pair_by_its_angle():
    angles, x = draw(1, 5, 8), draw(2, 5, 2, 3, 16, seed=1)
    turned = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angles[:, :, None, None])
    before = x.clone()
    torch.testing.assert_close(rotate(x, rotary_tables(angles, 3)), torch.cat([turned.real, turned.imag], -1))
    assert torch.equal(x, before)


def test_tables_of_a_batch_equal_shared_tables():
    angles, x = draw(1, 5, 8), draw(2, 5, 2, 3, 16, seed=1)
    torch.testing.assert_close(rotate(x, rotary_tables(angles.expand(2, -1, -1), 3)), rotate(x, rotary_tables(angles, 3)))


def test_frequencies_follow_the_extent_of_a_token():
    seconds, cells = AxialAngles(8, {"time": 0.04}).double(), AxialAngles(8, {"time": 1.0}).double()
    torch.testing.assert_close(seconds(draw(3, 1) * 0.04, ("time",)), cells(draw(3, 1), ("time",)), rtol=1e-6, atol=1e-6)


def test_an_axis_a_stream_lacks_is_zero_and_columns_go_by_name():
    angles = AxialAngles(16, {"time": 0.25, "height": 8.0})
    both, alone = angles(torch.tensor([[3.0, 0.0]]), ("time", "height")), angles(torch.tensor([[3.0]]), ("time",))
    assert torch.equal(both, alone)
    assert torch.equal(both, angles(torch.tensor([[0.0, 3.0]]), ("height", "time")))


def test_too_many_axes_for_a_head_are_refused():
    with pytest.raises(ValueError, match="a pair for each axis"):
        AxialAngles(4, {"a": 1.0, "b": 1.0, "c": 1.0})


def test_normalise_centres_and_has_unit_power():
    y = normalise(draw(4, 32) * 7 + 3)
    torch.testing.assert_close(y.mean(-1), torch.zeros(4).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(4).double(), rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert normalise(draw(2, 8, dtype=torch.bfloat16), torch.ones(8)).dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_equal_the_fused_kernel(masked):
    q, k, v = (draw(2, 3, n, 8, seed=n, dtype=torch.bfloat16) for n in (5, 6, 6))
    mask = draw(2, 1, 1, 6) > 0 if masked else None
    mask = mask if mask is None else mask | (torch.arange(6) == 0)
    with torch.no_grad():
        fused = attend(q, k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask), fused, rtol=0, atol=0.05)
    torch.testing.assert_close(
        attend(q, k, v, mask).double(), attend(q.double(), k.double(), v.double(), mask), rtol=0, atol=0.05
    )


def test_masked_tokens_have_no_influence_on_others():
    layer, x = SelfAttention(12, 3).double(), draw(2, 5, 12)
    mask = torch.tensor([True, True, True, False, False])[None, None, None].expand(2, -1, -1, -1)
    other = torch.cat([x[:, :3], draw(2, 2, 12, seed=1)], 1)
    torch.testing.assert_close(layer(x, mask=mask)[:, :3], layer(other, mask=mask)[:, :3])
    torch.testing.assert_close(layer(x, mask=mask)[:, :3], layer(x[:, :3]))


def test_keys_projected_once_serve_every_query():
    layer, x, context = CrossAttention(12, 3).double(), draw(2, 5, 12), draw(2, 4, 12, seed=1)
    projected = layer.project(context)
    torch.testing.assert_close(layer(x, projected)[:, 2:], layer(x[:, 2:], projected))


def test_blocks_keep_shapes_and_a_modulated_block_starts_as_the_identity():
    x = draw(2, 5, 24)
    assert EncoderBlock(24, 3).double()(x).shape == x.shape
    block = ModulatedBlock(24, 3, cross=True).double()
    context = block.cross.project(draw(2, 4, 24, seed=1))
    assert torch.equal(block(x, torch.zeros(2, 1, 6 * 24).double(), context=context), x)


def test_levels_chosen_per_token_equal_levels_of_their_own():
    block, x, levels = ModulatedBlock(24, 3).double(), draw(1, 4, 24), draw(1, 2, 6 * 24, seed=1)
    every = [torch.eye(2).double()[[i] * 4][None] for i in range(2)]
    torch.testing.assert_close(block(x, levels, every[1]), block(x, levels[:, 1:]))
    mixed = torch.eye(2).double()[[0, 1, 0, 1]][None]
    assert (block(x, levels, mixed) - block(x, levels[:, 1:])).abs().max() > 1e-3


def test_feed_forward_has_the_cost_it_says_and_features_are_bounded():
    assert sum(p.numel() for p in SwiGLU(192, 4.0).parameters()) == 8 * 192 * 192
    features = Fourier(8)(torch.tensor([0.0, 0.3, 1.0]))
    assert features.shape == (3, 16) and features.abs().max() <= 1


def test_widths_that_heads_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads divide"):
        SelfAttention(10, 3)
