"""Reconstruction terms and latent regularisers."""

import math

import pytest
import torch

from mmldm.codec.losses import KL, L1, BoundedNoise, Charbonnier, Gradient, Pyramid, ReconstructionLoss, psnr
from mmldm.interfaces import Posterior

TERMS = {"l1": L1(), "charbonnier": Charbonnier(), "pyramid": Pyramid(scales=(2, (1, 4))), "gradient": Gradient(scales=(1, 2))}


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 3, 8, 8), (2, 3, 4, 8, 8)])
def test_terms_are_zero_at_the_target_and_means(name, shape):
    term, x = TERMS[name], rand(*shape)
    assert float(term(x, x)) == 0
    hat = x + rand(*shape, seed=1)
    value = float(term(hat, x))
    assert value > 0
    doubled = float(term(hat.repeat(2, *[1] * (x.ndim - 1)), x.repeat(2, *[1] * (x.ndim - 1))))
    assert math.isclose(doubled, value, rel_tol=1e-12)
    assert math.isclose(float(type(term)(weight=3.0)(hat, x)), 3 * float(type(term)()(hat, x)), rel_tol=1e-12)


def test_terms_have_their_closed_forms():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    assert float(L1()(x + 0.5, x)) == 0.5
    assert math.isclose(float(Charbonnier(eps=0.5)(x + 1, x)), math.sqrt(1.25) - 0.5)
    assert float(Gradient()(x + 0.5, x)) == 0  # an offset has no gradient
    checkers = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1
    assert float(Pyramid(scales=(2,))(x + checkers, x)) == 0  # and a chess-board no coarse level
    assert float(Gradient(scales=(1,))(x + checkers, x)) == 2
    ramp = torch.arange(4.0).expand(1, 1, 4, 4).double()
    assert float(Gradient(scales=(1,))(x + ramp, x)) == 0.5  # mean over the two axes: 1 along one, 0 along the other


def test_terms_survive_grids_smaller_than_their_scales():
    for term in (Pyramid(scales=(4,)), Gradient(scales=(4,)), Gradient()):
        assert float(term(torch.full((1, 1, 2, 3), 0.5), torch.zeros(1, 1, 2, 3))) == 0


def test_reconstruction_loss_crops_whole_cells_and_names_its_terms():
    loss = ReconstructionLoss({"l1": L1(2.0), "edges": Gradient(0.5)})
    x = rand(2, 1, 5, 6)
    hat = torch.cat([x + 1, rand(2, 1, 3, 6)], 2)
    terms = loss(hat, x)
    assert set(terms) == {"l1", "edges"} and math.isclose(float(terms["l1"]), 2.0)
    assert loss(hat.bfloat16(), x.bfloat16())["l1"].dtype == torch.float32
    with pytest.raises(ValueError, match="at least"):
        loss(x[:, :, :4], x)
    with pytest.raises(ValueError, match="choose from"):
        ReconstructionLoss({})


def test_bounded_noise():
    regulariser = BoundedNoise(std=0.2, bound=3.0)
    head = torch.tensor([[-1e6, -0.01, 0.0, 0.01, 1e6]], dtype=torch.float64)
    posterior = regulariser.posterior(head)
    assert float(posterior.mean.abs().max()) <= 3.0
    torch.testing.assert_close(posterior.mean[:, 1:4], head[:, 1:4], rtol=1e-4, atol=0)
    assert posterior.std.shape == head.shape and bool((posterior.std == 0.2).all())
    assert regulariser(posterior) == {} and regulariser.heads == 1
    assert BoundedNoise(std=0.0).posterior(head).std is None


def test_kl_is_the_divergence_from_a_standard_normal():
    mean, std = rand(2, 3, 4), rand(2, 3, 4, seed=1).abs() + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(KL(0.1)(Posterior(mean, std))["kl"], 0.1 * expected)
    posterior = KL().posterior(torch.cat([mean, std.log()], 1))
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.std, std)


def test_psnr():
    x = torch.zeros(2, 3, 4, 4)
    torch.testing.assert_close(psnr(x + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1), x), torch.tensor([20.0, 40.0]))
    assert bool((psnr(x + 5, x + 1) > 100).all())  # clamped as a file is
