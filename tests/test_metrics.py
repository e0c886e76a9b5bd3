"""Reconstruction metrics against closed forms."""

import math

import pytest
import torch

from mmldm.evaluation import log_spectral_distance, mean_absolute_error, psnr, ssim, stft_distance


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
                                           (stft_distance, (3, 2, 500))])  # fmt: skip
def test_one_number_per_sample_whatever_the_batch(metric, shape):
    x, y = draw(*shape), draw(*shape, seed=1)
    whole = metric(x, y)
    assert whole.shape == (3,) and whole.isfinite().all()
    assert torch.allclose(whole, torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(3)]), rtol=1e-4)
    with pytest.raises(ValueError, match="one shape"):
        metric(x, y[:, :1, ...].repeat(2, *[1] * (len(shape) - 1)))
