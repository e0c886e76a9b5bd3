"""A convolutional body begins as a transform coder: its own cosines there and back, and nothing of its layers."""

import pytest
import torch

from mmldm.codec import ImageCodec
from mmldm.codec.conv_vae import ConvVAE
from mmldm.codec.cosine import cosine_basis
from mmldm.codec.regularisers import KL
from mmldm.media import ImageMedia


@pytest.mark.parametrize(("channels", "strides"), [(3, (4, 4)), (1, (8,)), (2, (4, 2, 2))])
def test_all_cosines_of_a_cell_give_it_back(channels, strides):
    n = channels * torch.tensor(strides).prod().item()
    analysis, synthesis = (basis.double() for basis in cosine_basis(channels, strides, n))
    torch.testing.assert_close(synthesis @ analysis, torch.eye(n, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_few_of_them_are_an_orthogonal_projection_that_keeps_constants():
    analysis, synthesis = cosine_basis(3, (4, 4), 5)
    projection = synthesis @ analysis
    torch.testing.assert_close(projection @ projection, projection, atol=1e-5, rtol=0)
    torch.testing.assert_close(projection, projection.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(projection @ torch.ones(48), torch.ones(48), atol=1e-5, rtol=0)


def test_numbers_beyond_the_cell_are_zero():
    analysis, synthesis = cosine_basis(1, (2,), 4)
    assert analysis.shape == (4, 2) and not analysis[2:].any() and not synthesis[:, 2:].any()


@pytest.mark.parametrize(("rank", "lone", "size"), [(2, False, (8, 12)), (3, True, (9, 8, 8))])
def test_an_untrained_body_is_its_cosines(rank, lone, size):
    causal = 0 if rank == 3 else None
    body = ConvVAE(rank, 3, 6, 8, (1, 2), (2, 2), causal_axis=causal, lone_first=lone).double()
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = x.mean((2, 3) if rank == 2 else (2, 3, 4), keepdim=True).mean(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(body.decode(body.encode(smooth)), smooth, atol=1e-5, rtol=0)
    again = body.decode(body.encode(body.decode(body.encode(x))))
    torch.testing.assert_close(again, body.decode(body.encode(x)), atol=1e-5, rtol=0)


def test_a_learned_std_begins_apart_from_the_cosines():
    codec = ImageCodec(ImageMedia(8, 8), 4, 8, regulariser=KL())
    posterior = codec.encode(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert float(posterior.std.amin()) == float(posterior.std.amax()) < 0.1 and bool(posterior.mean.any())
