"""Latent statistics against latents whose numbers are known."""

import pytest
import torch

from mmldm.evaluation import LatentStatistics
from mmldm.interfaces import Axis

AXES = (Axis("time", 4, 1, 0.1), Axis("height", 8, 8, 1.0))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gathered(z, size=None):
    found = LatentStatistics(AXES)
    for part in z.split(size or len(z)):
        found.update(part)
    return found


def test_white_noise_is_white():
    numbers = gathered(draw(64, 4, 16, 16)).summary()
    assert numbers["channels"] == 4 and numbers["dead channels"] == 0
    assert numbers["std"] == pytest.approx(1, abs=0.02) and numbers["kurtosis"] == pytest.approx(0, abs=0.1)
    assert numbers["effective dimension"] == pytest.approx(4, abs=0.02)
    for axis in ("time", "height"):
        assert numbers[f"neighbours {axis}"] == pytest.approx(0, abs=0.02)
        assert numbers[f"low half {axis}"] == pytest.approx(0.5, abs=0.02)


def test_smooth_latents_are_smooth_along_their_axis_only():
    z = draw(32, 2, 1, 16).expand(-1, -1, 12, -1)
    numbers = gathered(z).summary()
    assert numbers["neighbours time"] == pytest.approx(1) and numbers["low half time"] == pytest.approx(1)
    assert abs(numbers["neighbours height"]) < 0.1 and abs(numbers["low half height"] - 0.5) < 0.05
    alternating = (torch.arange(12) % 2 * 2.0 - 1)[:, None].expand(2, 3, 12, 4)
    numbers = gathered(alternating).summary()
    assert numbers["neighbours time"] == pytest.approx(-1) and numbers["low half time"] == pytest.approx(0, abs=1e-12)


def test_redundant_and_dead_channels_are_seen():
    a, b = draw(40, 1, 8, 8), draw(40, 1, 8, 8, seed=1)
    numbers = gathered(torch.cat([a, a, b * 0 + 3, 1e-4 * b], 1)).summary()
    assert numbers["dead channels"] == 2 and numbers["effective dimension"] == pytest.approx(1, abs=1e-6)
    assert numbers["largest std"] == pytest.approx(1, abs=0.05) and numbers["least std"] < 1e-6


def test_channels_have_their_own_numbers():
    z = draw(50, 2, 8, 8) * torch.tensor([1.0, 3.0])[:, None, None] + torch.tensor([0.0, -2.0])[:, None, None]
    z[:, 0] = z[:, 0].sign()  # two values: kurtosis -2
    found = gathered(z).channels()
    rows = z.transpose(0, 1).flatten(1)
    assert found["mean"] == pytest.approx(rows.mean(1).tolist(), abs=1e-9)
    assert found["std"] == pytest.approx(rows.std(1).tolist(), abs=1e-9)
    assert found["kurtosis"][0] == pytest.approx(-2, abs=0.01) and abs(found["kurtosis"][1]) < 0.2
    assert len(gathered(z).table()) == 2


def test_batches_do_not_matter():
    z = draw(12, 3, 4, 4)
    whole, parts = gathered(z), gathered(z, 5)
    assert whole.summary() == pytest.approx(parts.summary(), rel=1e-9)
    assert whole.histogram() == parts.histogram() and whole.table() == parts.table()


def test_the_histogram_is_a_density_of_what_a_model_sees():
    found = LatentStatistics(AXES, whiten=lambda z: (z - 1) / 5)
    found.update(5 * draw(64, 2, 8, 8) + 1)
    middles, density = found.histogram()
    assert sum(density) * (middles[1] - middles[0]) == pytest.approx(1)
    assert max(zip(density, middles, strict=True))[0] == pytest.approx(0.4, abs=0.03)


def test_one_cell_along_an_axis_has_no_smoothness():
    numbers = gathered(draw(8, 2, 1, 5)).summary()
    assert "neighbours time" not in numbers and "neighbours height" in numbers
