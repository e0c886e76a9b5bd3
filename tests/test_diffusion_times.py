"""Laws of the training times and of the sampling grids."""

import math

import pytest
import torch

from mmldm.diffusion import (
    DDPM,
    EDM,
    Cosine,
    KarrasGrid,
    Linear,
    ListGrid,
    LogitNormal,
    LogNormalSigma,
    LogSNRGrid,
    Mode,
    Shift,
    TokenShift,
    Uniform,
    UniformGrid,
    UniformLogSNR,
    permutation,
    start_at,
    stratified,
)
from tests.test_diffusion_toy import PATHS

LAWS = (Uniform(), UniformLogSNR(-7, 9), LogitNormal(0.3, 0.8), LogNormalSigma(-1.2, 1.2), Mode(1.29), Mode(-0.7))
GRIDS = (UniformGrid(), LogSNRGrid(), KarrasGrid(), KarrasGrid(3.0, 0.01, 40.0))
U = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


@pytest.mark.parametrize("factor", (1.0, 3.0, 0.4))
@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("name", PATHS)
def test_times_follow_their_cdf_without_atoms(name, law, factor):
    path, shift = PATHS[name], None if factor == 1 else Shift(factor)
    t = law(U, path, shift)
    assert bool((t[1:] > t[:-1]).all()) and float(t[0]) >= 0 and float(t[-1]) <= 1
    torch.testing.assert_close(law.cdf(path.log_snr(t), path, shift), U, rtol=0, atol=1e-9)
    bottom = torch.tensor([path.bounds[0], math.inf], dtype=torch.float64)
    assert law.cdf(bottom, path, shift).tolist() == pytest.approx([1, 0], abs=1e-12)


def test_laws_are_what_they_are_called():
    torch.testing.assert_close(Uniform()(U, Cosine()), U, rtol=0, atol=1e-12)
    torch.testing.assert_close(Cosine().log_snr(UniformLogSNR(-3, 5)(U, Cosine())), 5 - 8 * U, rtol=0, atol=1e-9)
    normal = torch.special.ndtri(U)
    torch.testing.assert_close(torch.logit(LogitNormal(0.3, 0.8)(U, Cosine())), 0.3 + 0.8 * normal)
    sigma = EDM(1e4).sigma(LogNormalSigma(-1.2, 1.2)(U, EDM(1e4)))
    torch.testing.assert_close(torch.log(sigma), -1.2 + 1.2 * normal)
    mode = 1 - U - 1.29 * (torch.cos(math.pi / 2 * U) ** 2 - 1 + U)  # of the paper: decreasing in u
    torch.testing.assert_close(Mode(1.29)(U, Linear()), mode.flip(0), rtol=0, atol=1e-12)


def test_a_shift_is_a_move_of_log_snr_and_truncates_like_a_conditional_law():
    t = LogitNormal()(U, Linear(), Shift(3.0))
    plain = LogitNormal()(U, Linear())
    torch.testing.assert_close(t, 3 * plain / (1 + 2 * plain))
    path = DDPM(8.5e-4, 0.012, scaled=True)
    log_snr = Uniform()(U, path).double()
    moved = path.log_snr(log_snr) - math.log(2)
    inside = moved[moved >= path.bounds[0]]  # the shifted law, given that it is within the path
    shifted = path.log_snr(Uniform()(U, path, Shift(2.0)))
    for share in (0.1, 0.5, 0.9):
        assert float(shifted.quantile(share)) == pytest.approx(float(inside.quantile(share)), abs=0.01)


def test_one_shift_per_item_and_by_tokens():
    tokens = torch.tensor([64, 256, 1024])
    shift = TokenShift(256, 1.5).for_tokens(tokens)
    torch.testing.assert_close(shift.factor, torch.tensor([0.75, 1.5, 3.0], dtype=torch.float64))
    t = Uniform()(torch.full((3,), 0.5), PATHS["ddpm"], shift)
    each = [Uniform()(torch.tensor([0.5]), PATHS["ddpm"], TokenShift(256, 1.5).for_tokens(int(n)))[0] for n in tokens]
    assert t.dtype == torch.float32 and torch.equal(t, torch.stack(each))
    assert Shift(2.0).for_tokens(99) == Shift(2.0)


def test_stratified_times_are_one_per_stratum_and_do_not_know_the_local_batch():
    size, u = 64, torch.rand(64, generator=torch.Generator().manual_seed(0))
    order, place = permutation((7, "strata", 3), size), torch.arange(64)
    out = stratified(u, place, size, order)
    assert out.dtype == torch.float32 and sorted((out * size).long().tolist()) == list(range(size))
    assert torch.equal(torch.cat([stratified(u[i : i + 8], place[i : i + 8], size, order) for i in range(0, 64, 8)]), out)
    assert torch.equal(order, permutation((7, "strata", 3), size)) and not torch.equal(
        order, permutation((7, "strata", 4), size)
    )
    top = stratified(torch.tensor([1 - 2.0**-24]), torch.tensor([255]), 256)
    assert float(top) < 1


@pytest.mark.parametrize("steps", (1, 2, 5, 40))
@pytest.mark.parametrize("factor", (1.0, 3.0, 0.4))
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("name", PATHS)
def test_grids_fall_from_one_to_zero(name, grid, factor, steps):
    t = grid(steps, PATHS[name], Shift(factor))
    assert t.dtype == torch.float64 and t.shape == (steps + 1,) and t[0] == 1 and t[-1] == 0
    assert bool((t[1:] < t[:-1]).all())


@pytest.mark.parametrize("name", PATHS)
def test_a_shifted_grid_is_the_grid_of_shifted_times(name):
    path, shift = PATHS[name], Shift(2.5)
    u = torch.linspace(1, 0, 11, dtype=torch.float64)[1:-1]
    torch.testing.assert_close(UniformGrid()(10, path, shift)[1:-1], Uniform()(u, path, shift), rtol=0, atol=1e-12)
    if name == "linear":
        torch.testing.assert_close(UniformGrid()(10, path, shift)[1:-1], 2.5 * u / (1 + 1.5 * u))


def test_grids_are_their_formulas():
    t = KarrasGrid(7.0, 0.002, 80.0)(18, EDM(80.0))
    ramp = torch.arange(18, dtype=torch.float64) / 17
    torch.testing.assert_close(80 * t[:-1], (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rtol=1e-9, atol=0)
    inner = Linear().log_snr(LogSNRGrid(-3, 4)(9, Linear(), Shift(2.0))[1:-1])
    torch.testing.assert_close(inner, torch.linspace(-3, 4, 8, dtype=torch.float64) - math.log(2))
    assert UniformGrid()(4, Cosine()).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert ListGrid([1, 0.9, 0.2, 0])(3, Linear(), Shift(3.0)).tolist() == [1, 0.9, 0.2, 0]


def test_start_at():
    grid = UniformGrid()(4, Linear())
    assert start_at(grid, 0.6).tolist() == pytest.approx([0.6, 0.5, 0.25, 0])
    assert start_at(grid, 0.5).tolist() == [0.5, 0.25, 0] and torch.equal(start_at(grid, 1.0), grid)


def test_wrong_numbers_say_what_was_wanted():
    for build in (
        lambda: Shift(0.0),
        lambda: TokenShift(0),
        lambda: LogitNormal(0, 0),
        lambda: Mode(2.0),
        lambda: UniformLogSNR(3, 2),
        lambda: LogSNRGrid(1, 1),
        lambda: KarrasGrid(sigma_min=2, sigma_max=1),
        lambda: ListGrid([0.9, 0]),
        lambda: ListGrid([1, 0.5, 0.5, 0])(3, Linear()),
        lambda: ListGrid([1, 0.5, 0])(3, Linear()),
        lambda: UniformGrid()(0, Linear()),
        lambda: start_at(UniformGrid()(4, Linear()), 0.0),
    ):
        with pytest.raises(ValueError, match="wanted"):
            build()
