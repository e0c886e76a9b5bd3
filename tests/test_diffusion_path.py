"""Laws of paths, predictions and loss weights."""

import itertools
import math
import pickle

import pytest
import torch

from mmldm.diffusion import (
    DDPM,
    EDM,
    Cosine,
    EDMPrediction,
    EDMWeight,
    Eps,
    EpsWeight,
    Flow,
    LearnedUncertainty,
    Linear,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    UnitF,
    V,
    Z,
    loss_weight,
)
from tests.test_diffusion_toy import PATHS, PREDICTIONS, legal

INNER = torch.linspace(0.0007, 0.9993, 331, dtype=torch.float64)
PAIRS = [(name, p) for name, p in itertools.product(PATHS, PREDICTIONS) if legal(PATHS[name], p)]
WEIGHTS = (EpsWeight(), MinSNR(5.0), SoftMinSNR(4.0), Sigmoid(-1.0), EDMWeight(0.5))


@pytest.mark.parametrize("name", PATHS)
def test_ends_are_exact(name):
    path, ends = PATHS[name], torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert path.alpha(ends)[0] == 1 and path.sigma(ends)[0] == 0
    low, high = path.bounds
    assert high == math.inf and path.log_snr(ends)[0] == math.inf and path.log_snr(ends)[1] == low
    assert (path.alpha(ends)[1] == 0) == (low == -math.inf) == (name in ("linear", "cosine", "zero"))
    assert torch.isfinite(torch.stack([f(ends) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)])).all()
    assert path.time(torch.tensor([math.inf, -math.inf], dtype=torch.float64)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", PATHS)
def test_log_snr_and_time_are_inverse(name):
    path = PATHS[name]
    log_snr = path.log_snr(INNER)
    assert bool((log_snr[1:] < log_snr[:-1]).all())
    torch.testing.assert_close(log_snr, torch.log(path.alpha(INNER) / path.sigma(INNER)), rtol=0, atol=1e-9)
    torch.testing.assert_close(path.time(log_snr), INNER, rtol=0, atol=1e-12)
    assert path.time(log_snr[7]).shape == () and path.time(log_snr[:6].reshape(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives(name):
    path = PATHS[name]
    for value, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        t = INNER.clone().requires_grad_()
        out = value(t)
        grad = torch.autograd.grad(out.sum(), t)[0] if out.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(derivative(INNER), grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_shapes_dtypes_pickle(name):
    path = pickle.loads(pickle.dumps(PATHS[name]))
    for t in (torch.tensor(0.3), torch.full((2, 1, 3), 0.3), torch.full((2,), 0.3, dtype=torch.float64)):
        for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma, path.log_snr):
            assert f(t).shape == t.shape and f(t).dtype == t.dtype
        torch.testing.assert_close(path.log_snr(t).double(), PATHS[name].log_snr(t.double()), rtol=0, atol=1e-4)


def test_ddpm_has_the_table_at_its_knots():
    betas = torch.linspace(0.001, 0.03, 50, dtype=torch.float64)
    path = DDPM.from_betas(betas.tolist())
    knots = torch.arange(1, 51, dtype=torch.float64) / 50
    torch.testing.assert_close(path.alpha(knots) ** 2, torch.cumprod(1 - betas, 0), rtol=1e-10, atol=0)
    torch.testing.assert_close(path.alpha(INNER) ** 2 + path.sigma(INNER) ** 2, torch.ones_like(INNER), rtol=0, atol=1e-12)
    below = torch.tensor([0.005, 0.01], dtype=torch.float64)  # sigma/alpha is straight under the first knot
    ratio = path.sigma(below) / path.alpha(below)
    torch.testing.assert_close(ratio[1], 2 * ratio[0])
    half = torch.tensor([20.5 / 50], dtype=torch.float64)
    torch.testing.assert_close(path.log_snr(half), path.log_snr(knots[19:21]).mean(0, keepdim=True))


def test_zero_terminal_keeps_the_first_and_ends_without_signal():
    plain, zero = DDPM(), DDPM(zero_terminal=True)
    t = torch.tensor([1 / 1000, 0.5, 0.9999, 1.0], dtype=torch.float64)
    torch.testing.assert_close(zero.alpha(t)[0], plain.alpha(t)[0])
    assert zero.alpha(t)[3] == 0 and zero.sigma(t)[3] == 1 and 0 < zero.alpha(t)[2] < zero.alpha(t)[1]


def test_mix():
    z, eps, t = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5), torch.tensor([0.0, 0.25, 1.0])
    out = Linear().mix(z, eps, t)
    assert torch.equal(out[0], z[0]) and torch.equal(out[2], eps[2])
    torch.testing.assert_close(out[1], 0.75 * z[1] + 0.25 * eps[1])
    assert torch.equal(Linear().mix(z, eps, torch.tensor(1.0)), eps)


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_decode_of_the_target_is_the_latent(name, prediction):
    path, random = PATHS[name], torch.Generator().manual_seed(0)
    t = torch.cat([torch.zeros(1), INNER, torch.ones(1)]).double()
    z, eps = torch.randn(2, len(t), 3, 4, generator=random, dtype=torch.float64)
    z_hat = prediction.decode(path, prediction.target(path, z, eps, t), path.mix(z, eps, t), t)
    torch.testing.assert_close(z_hat, z, rtol=0, atol=1e-11)


def test_wrong_combinations_say_what_to_choose():
    for path, prediction in ((Linear(), Eps()), (Cosine(), Eps()), (PATHS["zero"], Eps()), (Cosine(), Flow()), (EDM(), V())):
        with pytest.raises(ValueError, match="choose from"):
            prediction.check(path)
    assert len(PAIRS) == 6 * 6 - 3 - 5 - 1
    for build in (lambda: EDM(0.0), lambda: Z(0.0), lambda: MinSNR(0.0), lambda: DDPM.from_betas([0.1, 2.0, 0.1])):
        with pytest.raises(ValueError, match="wanted"):
            build()


def test_edm_is_minus_v_and_its_own_preconditioning():
    torch.testing.assert_close(EDMPrediction().coefficients(Cosine(), INNER)[0], -V().coefficients(Cosine(), INNER)[0])
    t, d = torch.tensor([0.02], dtype=torch.float64), 0.5
    s, z_t, f = 80.0 * t, torch.tensor([1.7], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
    skip, out = d**2 / (s**2 + d**2), s * d / torch.sqrt(s**2 + d**2)  # c_skip, c_out of the paper
    torch.testing.assert_close(EDMPrediction(d).decode(EDM(), f, z_t, t), skip * z_t + out * f)


@pytest.mark.parametrize("name", PATHS)
def test_input_scale_and_heard(name):
    path, prediction = PATHS[name], EDMPrediction(0.5)
    variance = (path.alpha(INNER) * 0.5) ** 2 + path.sigma(INNER) ** 2
    torch.testing.assert_close(prediction.input_scale(path, INNER) ** 2 * variance, torch.ones_like(INNER))
    heard = prediction.heard(path, torch.tensor([0.0, *INNER.tolist(), 1.0], dtype=torch.float64))
    assert heard[0] == 0 and bool((heard[1:] > heard[:-1]).all()) and heard[-1] <= 1
    assert (heard[-1] == 1) == (path.bounds[0] == -math.inf)
    torch.testing.assert_close(torch.tan(heard[1:-1] * math.pi / 2), 2 * torch.exp(-path.log_snr(INNER)))


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_loss_weight_is_the_weight_of_the_latent_error(name, prediction):
    path, random = PATHS[name], torch.Generator().manual_seed(1)
    z, eps, error = torch.randn(3, len(INNER), 8, generator=random, dtype=torch.float64)
    z_t, target = path.mix(z, eps, INNER), prediction.target(path, z, eps, INNER)
    z_error = (prediction.decode(path, target + error, z_t, INNER) - z).square().mean(1)
    inside = path.log_snr(INNER).abs() < 10
    for weighting in WEIGHTS:
        ours = loss_weight(weighting, path, prediction, INNER) * error.square().mean(1)
        brute = weighting(path.log_snr(INNER)) * z_error
        torch.testing.assert_close(ours[inside], brute[inside], rtol=1e-6, atol=1e-12)
        for dtype in (torch.float32, torch.float64):
            t = torch.tensor([0.0, 1e-9, 1e-4, 0.5, 1 - 1e-7, 1.0], dtype=dtype)
            r = loss_weight(weighting, path, prediction, t)
            assert r.dtype == dtype and bool(torch.isfinite(r).all()) and bool((r >= 0).all())
    assert torch.equal(loss_weight(UnitF(), path, prediction, INNER), torch.ones_like(INNER))


def test_weights_are_their_formulas():
    log_snr = torch.linspace(-6, 6, 49, dtype=torch.float64)
    snr = torch.exp(2 * log_snr)
    torch.testing.assert_close(EpsWeight()(log_snr), snr)
    torch.testing.assert_close(MinSNR(5.0)(log_snr), snr.clamp(max=5))
    torch.testing.assert_close(SoftMinSNR(5.0)(log_snr), 5 * snr / (snr + 5))
    torch.testing.assert_close(Sigmoid(-1.5)(log_snr), snr * torch.sigmoid(-1.5 - 2 * log_snr))
    torch.testing.assert_close(EDMWeight(0.5)(log_snr), snr + 4)
    t = INNER.float()
    torch.testing.assert_close(loss_weight(EpsWeight(), PATHS["ddpm"], Eps(), t), torch.ones_like(t))
    torch.testing.assert_close(loss_weight(EDMWeight(0.5), EDM(), EDMPrediction(0.5), INNER), torch.ones_like(INNER))
    with pytest.raises(ValueError, match="loss_weight"):
        UnitF()(log_snr)


def _u(module, log_snr, i):
    """u of weight i alone."""
    with torch.no_grad():
        module.weight.zero_()[i] = 1
        return module.u(log_snr)


def test_learned_uncertainty_is_least_at_the_log_of_the_loss():
    module = LearnedUncertainty(32).double()
    log_snr = torch.linspace(-4, 4, 64, dtype=torch.float64)
    loss = torch.exp(0.5 * torch.sin(log_snr))
    assert torch.equal(module(loss, log_snr), loss)
    basis = torch.stack([_u(module, log_snr, i) for i in range(32)], 1)
    with torch.no_grad():
        module.weight.copy_(torch.linalg.lstsq(basis, torch.log(loss)).solution)
    torch.testing.assert_close(module.u(log_snr), torch.log(loss), rtol=0, atol=0.02)
    (gradient,) = torch.autograd.grad(module(loss, log_snr).mean(), module.weight)
    assert float(gradient.abs().max()) < 1e-3 and bool(module(loss, log_snr).mean() < loss.mean())
    assert bool(torch.isfinite(module.u(torch.tensor([math.inf, -math.inf]))).all())
    assert torch.equal(LearnedUncertainty(32).frequency, LearnedUncertainty(32).frequency)
