"""Reconstruction terms and latent regularisers."""

import math

import pytest
import torch

from mmldm.codec.losses import L1, Charbonnier, Gradient, Huber, Pyramid, ReconstructionLoss, Wavelet, _haar
from mmldm.codec.mel import LogMel
from mmldm.codec.regularisers import KL, BoundedNoise
from mmldm.codec.spectral_losses import MultiScaleMel, MultiScaleSTFT, stft_distance
from mmldm.interfaces import Posterior

TERMS = {"l1": L1(), "charbonnier": Charbonnier(), "huber": Huber(), "pyramid": Pyramid(scales=(2, (1, 4))),
         "gradient": Gradient(scales=(1, 2)), "wavelet": Wavelet()}  # fmt: skip
HEARD = {"mel": lambda **weight: MultiScaleMel(8000, sizes=(64, 256), bins=(10, 40), **weight),
         "stft": lambda **weight: MultiScaleSTFT(sizes=(64, 256), **weight)}  # fmt: skip


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


def test_huber_is_half_a_square_then_a_line():
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    assert math.isclose(float(Huber(delta=0.5)(x + 0.1, x)), 0.5 * 0.1**2 / 0.5)
    assert math.isclose(float(Huber(delta=0.5)(x + 3, x)), 3 - 0.25)
    with pytest.raises(ValueError, match="delta"):
        Huber(delta=0.0)


@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 3, 8, 8), (2, 3, 4, 8, 8)])
def test_wavelet_bands_keep_the_energy_and_see_only_their_own(shape):
    x = rand(*shape)
    bands = _haar(x)
    assert len(bands) == 2 ** (len(shape) - 2)
    torch.testing.assert_close(sum(band.square().sum() for band in bands), x.square().sum())
    flat = torch.full(shape, 0.5, dtype=torch.float64)
    average, *details = _haar(flat)
    assert all(float(band.abs().max()) < 1e-15 for band in details)
    torch.testing.assert_close(average, torch.full_like(average, 0.5 * 2 ** ((len(shape) - 2) / 2)))


def test_wavelet_takes_odd_and_single_axes():
    x = rand(1, 2, 1, 5, 7)
    assert float(Wavelet()(x, x)) == 0
    average, *details = _haar(torch.ones_like(x))
    assert average.shape == (1, 2, 1, 3, 4) and all(float(band.abs().max()) < 1e-15 for band in details)  # no edge
    last = torch.zeros_like(x)
    last[..., -1] = 1.0
    assert float(Wavelet()(x + last, x)) > 0  # the odd column counts


@pytest.mark.parametrize("name", HEARD)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_spectral_terms_are_zero_at_the_target_and_means(name, channels):
    term, x = HEARD[name](), rand(2, channels, 900)
    assert float(term(x, x)) == 0
    hat = x + 0.1 * rand(2, channels, 900, seed=1)
    value = float(term(hat, x))
    assert value > 0 and math.isclose(float(term(-hat, -x)), value, rel_tol=1e-9)
    assert math.isclose(float(term(hat.repeat(2, 1, 1), x.repeat(2, 1, 1))), value, rel_tol=1e-9)
    doubled, single = HEARD[name](weight=2.0), HEARD[name](weight=1.0)
    assert math.isclose(float(doubled(hat, x)), 2 * float(single(hat, x)), rel_tol=1e-9)
    with pytest.raises(ValueError, match="waveform"):
        term(x[:, 0], x[:, 0])


def test_spectral_terms_of_a_gain_have_their_closed_forms():
    x = rand(2, 1, 4000)
    assert math.isclose(float(MultiScaleSTFT(sizes=(256,))(x / 2, x)), 0.5 + math.log(2), rel_tol=1e-3)
    mel = MultiScaleMel(8000, weight=1.0, sizes=(64, 256), bins=(5, 20))
    assert math.isclose(float(mel(x / 10, x)), 2.0, rel_tol=1e-3)  # a decade at each of two scales


def test_stereo_terms_hear_the_sum_and_the_difference():
    """Each side keeps its magnitudes while their sum and difference change: only a term that mixes the sides can see it."""
    x = rand(1, 1, 2000).repeat(1, 2, 1)
    hat = x * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    for make in HEARD.values():
        assert float(make()(hat, x)) > 0.1
        assert float(make()(hat[:, :1], x[:, :1])) == float(make()(hat[:, 1:], x[:, 1:])) == 0
    apart = x + 0.01 * rand(1, 1, 2000, seed=1) * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    for make in HEARD.values():  # little on either side, all of the difference
        assert float(make()(apart, x)) > 10 * float(make()(apart[:, :1], x[:, :1]))


def test_spectral_terms_take_silence_and_clips_shorter_than_a_window():
    for make in HEARD.values():
        hat = torch.zeros(1, 2, 50, requires_grad=True)
        make()(hat, torch.zeros(1, 2, 50)).backward()
        assert bool(hat.grad.isfinite().all())
        hat = (0.01 * rand(1, 1, 50)).requires_grad_()
        make()(hat, rand(1, 1, 50, seed=1)).backward()
        assert bool(hat.grad.isfinite().all()) and float(hat.grad.abs().sum()) > 0


def test_the_mel_term_is_an_l1_of_log_mels():
    x, hat = 0.3 * rand(1, 1, 2048), 0.3 * rand(1, 1, 2048, seed=1)
    size, bins = 256, 20
    term = MultiScaleMel(8000, weight=1.0, sizes=(size,), bins=(bins,))
    bank = LogMel(8000, n_fft=size, hop=size // 4, bins=bins).bank.double()

    def log_mel(y):
        spectrum = torch.stft(y[0], size, size // 4, window=torch.hann_window(size).double(), pad_mode="constant",
                              return_complex=True)  # fmt: skip
        return (spectrum.abs().transpose(1, 2) @ bank).clamp_min(1e-5).log10()

    torch.testing.assert_close(term(hat, x), (log_mel(hat) - log_mel(x)).abs().mean(), rtol=1e-6, atol=0)


def test_spectral_terms_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="bins per window"):
        MultiScaleMel(8000, sizes=(64, 128), bins=(5,))
    for sizes in ((), (8,), (64, 64)):
        with pytest.raises(ValueError, match="window lengths"):
            MultiScaleSTFT(sizes=sizes)
    with pytest.raises(ValueError, match="one shape"):
        stft_distance(rand(1, 1, 100), rand(1, 1, 101))


def test_no_term_has_weights_or_a_state():
    for term in (*TERMS.values(), *(make() for make in HEARD.values())):
        assert not list(term.parameters()) and not term.state_dict()


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
    posterior = KL().posterior(torch.cat([mean, std.log() - KL.start], 1))
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.std, std)
