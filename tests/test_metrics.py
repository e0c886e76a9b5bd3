"""Reconstruction metrics against closed forms."""

import math

import pytest
import torch

from mmldm.evaluation import (
    by_frame,
    flicker,
    log_spectral_distance,
    mean_absolute_error,
    motion_energy,
    psnr,
    si_sdr,
    ssim,
    stft_distance,
)


def draw(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_and_l1_of_a_constant_error():
    x = draw(3, 3, 8, 8)
    gap = torch.tensor([0.5, 0.1, 0.01])
    y = x + gap[:, None, None, None]
    assert torch.allclose(psnr(x, y), 20 * torch.log10(2 / gap), atol=1e-2)
    assert torch.allclose(mean_absolute_error(x, y), gap, atol=1e-6)
    assert torch.equal(psnr(x, x), torch.full((3,), 100.0))
    assert torch.allclose(psnr(x, y, peak=1.0), 20 * torch.log10(1 / gap), atol=1e-2)


def test_ssim_of_flat_pictures_is_its_luminance_term():
    a, b, c1 = 0.8, 0.2, 0.02**2
    x, y = torch.full((2, 3, 16, 16), a), torch.full((2, 3, 16, 16), b)
    assert torch.allclose(ssim(x, y), torch.full((2,), (2 * a * b + c1) / (a * a + b * b + c1)), atol=1e-3)


def test_ssim_orders_pictures():
    x = draw(2, 3, 24, 24)
    assert torch.allclose(ssim(x, x), torch.ones(2), atol=1e-5)
    slightly, much = ssim(x, x + 0.1 * draw(2, 3, 24, 24, seed=1)), ssim(x, draw(2, 3, 24, 24, seed=1))
    assert (slightly > 0.95).all() and (much < 0.2).all()
    assert torch.allclose(ssim(x, 0.5 * x), ssim(0.5 * x, x))


def test_ssim_of_an_inverted_pattern_is_minus_one():
    board = 0.5 * (1 - 2 * ((torch.arange(20)[:, None] + torch.arange(20)) % 2).float()).expand(1, 3, 20, 20)
    c2 = 0.06**2  # 2 cov + c2 over 2 var + c2, with the means 0
    assert torch.allclose(ssim(board, -board), torch.tensor([(c2 - 0.5) / (c2 + 0.5)]), atol=2e-3)


def test_ssim_of_a_video_is_the_mean_of_its_frames_and_small_pictures_work():
    x, y = draw(2, 3, 5, 16, 16), draw(2, 3, 5, 16, 16, seed=1)
    frames = torch.stack([ssim(x[:, :, t], y[:, :, t]) for t in range(5)])
    assert torch.allclose(ssim(x, y), frames.mean(0), atol=1e-6)
    assert torch.allclose(ssim(x[..., :4, :7], x[..., :4, :7]), torch.ones(2), atol=1e-5)


def test_log_spectral_distance_of_a_gain_is_its_decibels():
    x = draw(2, 1, 8000)
    assert torch.allclose(log_spectral_distance(x, 2 * x), torch.full((2,), 20 * math.log10(2)), atol=1e-3)
    assert torch.equal(log_spectral_distance(x, x), torch.zeros(2))


def test_stft_distance_of_a_gain_and_blind_to_sign():
    x = draw(2, 2, 8000)
    assert torch.allclose(stft_distance(0.5 * x, x), torch.full((2,), 0.5 + math.log(2)), atol=1e-3)
    assert stft_distance(-x, x).max() < 1e-6
    assert stft_distance(torch.zeros_like(x), torch.zeros_like(x)).max() == 0


@pytest.mark.parametrize("metric, shape", [(psnr, (3, 8)), (mean_absolute_error, (3, 8)), (ssim, (3, 3, 12, 12)),
                                           (ssim, (3, 3, 4, 12, 12)), (log_spectral_distance, (3, 2, 500)),
                                           (stft_distance, (3, 2, 500)), (si_sdr, (3, 2, 500)),
                                           (flicker, (3, 3, 4, 12, 12)), (motion_energy, (3, 3, 4, 12, 12))])  # fmt: skip
def test_one_number_per_sample_whatever_the_batch(metric, shape):
    x, y = draw(*shape), draw(*shape, seed=1)
    whole = metric(x, y)
    assert whole.shape == (3,) and whole.isfinite().all()
    assert torch.allclose(whole, torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(3)]), rtol=1e-4)
    with pytest.raises(ValueError, match="one shape"):
        metric(x, y[:, :1, ...].repeat(2, *[1] * (len(shape) - 1)))


def test_si_sdr_is_blind_to_scale_and_has_its_closed_form():
    y = draw(2, 1, 4000)
    noise = draw(2, 1, 4000, seed=1)
    noise = noise - (noise * y).sum(-1, keepdim=True) / y.square().sum(-1, keepdim=True) * y  # orthogonal to y
    noise = noise * (y.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
    x = y + 0.1 * noise
    assert torch.allclose(si_sdr(x, y), torch.full((2,), 20.0), atol=1e-3)
    assert torch.allclose(si_sdr(7 * x, y), si_sdr(x, y), atol=1e-4) and torch.allclose(si_sdr(-x, y), si_sdr(x, y), atol=1e-4)
    assert torch.equal(si_sdr(y, y), torch.full((2,), 100.0)) and torch.equal(si_sdr(noise, y).lt(-50), torch.ones(2) > 0)
    still = torch.zeros(1, 2, 100)
    assert float(si_sdr(still, still)) == 100 and float(si_sdr(still, draw(1, 2, 100))) == -100


def test_frame_positions_are_measured_one_by_one():
    x = draw(2, 3, 4, 16, 16)
    y = x.clone()
    y[:, :, 2] += 0.1
    found = by_frame(psnr, y, x)
    assert found.shape == (2, 4) and torch.allclose(found[:, 2], torch.full((2,), 26.02), atol=1e-2)
    assert torch.equal(found[:, [0, 1, 3]], torch.full((2, 3), 100.0))
    assert torch.allclose(by_frame(ssim, y, x).mean(1), ssim(y, x), atol=1e-6)


def test_flicker_is_an_error_of_change():
    x = draw(2, 3, 6, 8, 8)
    assert float(flicker(x + 0.5, x).max()) < 1e-6  # a constant error does not flicker
    shaken = x + 0.1 * (torch.arange(6) % 2)[:, None, None]
    assert torch.allclose(flicker(shaken, x), torch.full((2,), 0.1), atol=1e-6)
    assert torch.equal(flicker(x[:, :, :1], x[:, :, :1]), torch.zeros(2))


def test_motion_energy_tells_smear_from_flicker():
    x = draw(2, 3, 6, 8, 8)
    assert torch.equal(motion_energy(x, x), torch.zeros(2))
    assert torch.allclose(motion_energy(x / 2, x), torch.full((2,), -6.02), atol=0.02)
    assert bool((motion_energy(x + draw(2, 3, 6, 8, 8, seed=1), x) > 1).all())
    still = x[:, :, :1].expand(-1, -1, 6, -1, -1)
    assert torch.equal(motion_energy(still, still), torch.zeros(2)) and bool((motion_energy(x, still) < 45).all())
    assert torch.equal(motion_energy(x[:, :, :1], x[:, :, :1]), torch.zeros(2))
