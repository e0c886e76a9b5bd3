"""Laws of the solvers: the same on every path, their measured order, their ends, the variance of the stochastic ones."""

import functools
import itertools
import math

import pytest
import torch

from mmldm.diffusion import (
    DDIM,
    EDM,
    Consistency,
    Cosine,
    DPMpp2M,
    DPMpp2MSDE,
    Euler,
    Heun,
    KarrasGrid,
    Linear,
    LogSNRGrid,
    Step,
    UniformGrid,
    UniPC,
    plan,
    sample,
)
from tests.test_diffusion_toy import PATHS, denoise, exact, reference

SOLVERS = {
    "ddim": DDIM(),
    "ancestral": DDIM(1.0),
    "ddim half": DDIM(0.5),
    "2m": DPMpp2M(),
    "2m sde": DPMpp2MSDE(1.0),
    "2m sde half": DPMpp2MSDE(0.5),
    "heun": Heun(),
    "heun edm": Heun(edm=True),
    "unipc 2": UniPC(2),
    "unipc 3": UniPC(3),
    "consistency": Consistency(),
}
PLAIN = [name for name, solver in SOLVERS.items() if not solver.stochastic]


def noises(step, stream):
    return torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)


def normal(seed=0):
    return torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@functools.cache
def truth(seed, low, high, steps):
    """z at log_snr `high` on the path alpha = 1, from z/sigma = normal(seed) at `low`, to Runge-Kutta's precision."""
    return reference(normal(seed)[0, 0], low, high, steps) * math.exp(-high)


def run(path, solver, t, noise, start=None, callback=None):
    start = None if start is None else {"s": start}
    return sample(exact(path), {"s": noise}, {"s": t}, solver, path, step_noise=noises, start=start, callback=callback)["s"]


@pytest.mark.parametrize("name", SOLVERS)
def test_same_trajectory_of_z_hat_on_every_path(name):
    log_snr = torch.linspace(-2.6, 3, 9, dtype=torch.float64) + 0.05 * torch.sin(torch.arange(9, dtype=torch.float64))
    log_snr = log_snr.clamp(min=-2.6)
    trajectories = []
    for path in PATHS.values():
        t, seen = path.time(log_snr), []
        start = path.sigma(t[0]) * 1.1 * normal()
        out = run(path, SOLVERS[name], t, normal(), start, lambda i, n, z, z_hat, seen=seen: seen.append(z_hat["s"]))
        trajectories.append(torch.stack([*seen, out / path.sigma(t[-1]) * math.exp(-3)]))
    for other in trajectories[1:]:
        torch.testing.assert_close(other, trajectories[0], rtol=0, atol=1e-9)


ORDERS = {
    "ddim": (0.9, 1.2),
    "2m": (1.8, 2.4),
    "heun": (1.8, 2.4),
    "heun edm": (1.8, 2.4),
    "unipc 2": (2.7, 3.6),
    "unipc 3": (2.9, 4.5),
}


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    path, y = Linear(), normal(3)
    errors = []
    for n in (64, 128, 256):
        t = path.time(torch.linspace(-3, 3, n + 1, dtype=torch.float64))
        out = run(path, SOLVERS[name], t, y, path.sigma(t[0]) * y)
        errors.append(float((out[0, 0] / path.alpha(t[-1]) - truth(3, -3.0, 3.0, 1500)).square().mean().sqrt()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    low, high = ORDERS[name]
    assert low < orders[-1] < high, (errors, orders)
    assert orders[-1] > SOLVERS[name].order - 0.2


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("path", ("linear", "zero", "scaled", "edm"))
def test_error_on_full_grids(name, path):
    path, noise = PATHS[path], normal(5)
    right = truth(5, max(path.bounds[0], -9.0), 9.0, 600)
    coarse = 0.8 if isinstance(path, EDM) else 0.35  # uniform in sigma from 80: the last step begins at 2
    for grid, bound in ((KarrasGrid(), 0.06), (LogSNRGrid(), 0.06), (UniformGrid(), coarse)):
        if name == "heun edm" and isinstance(grid, UniformGrid):
            continue  # its weight e^h / 2 has no bound on steps of any size
        out = run(path, SOLVERS[name], grid(40, path), noise)
        error = float((out[0, 0] - right).square().mean().sqrt())
        assert error < bound * (3 if name == "ddim" else 1), (grid, error)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grid", (UniformGrid(), LogSNRGrid(), KarrasGrid()), ids=repr)
def test_finite_on_full_grids_of_any_size(name, path, grid):
    path = PATHS[path]
    for steps in (1, 2, 3, 8):
        out = run(path, SOLVERS[name], grid(steps, path), normal())
        assert bool(torch.isfinite(out).all()) and out.shape == (1, 1, 48)
        if name != "heun edm":
            assert float(out.abs().max()) < 8


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.stochastic])
@pytest.mark.parametrize("path", ("linear", "cosine", "scaled", "edm"))
def test_marginal_variance_of_stochastic_solvers(name, path):
    """Data N(0, 0.7^2): every step is linear, so z_t is followed as coefficients on independent unit noises, exactly."""
    path, solver, spread = PATHS[path], SOLVERS[name], 0.7

    def worst(n):
        log_snr = torch.linspace(max(path.bounds[0], -4), 4, n + 1, dtype=torch.float64)
        steps, state, error = plan(path, path.time(log_snr)), solver.init(), 0.0
        z = torch.zeros(n + 1, dtype=torch.float64)
        z[n] = math.hypot(steps[0].alpha_t * spread, steps[0].sigma_t)
        for i, step in enumerate(steps):
            z_hat = step.alpha_t * spread**2 / ((step.alpha_t * spread) ** 2 + step.sigma_t**2) * z
            noise = torch.zeros_like(z)
            noise[i] = 1
            z, state = solver.step(step, z, z_hat, state, noise)
            error = max(error, abs(float(z.square().sum()) / ((step.alpha_s * spread) ** 2 + step.sigma_s**2) - 1))
        return error

    coarse, fine = worst(50), worst(200)
    if name == "consistency":  # lands on z_hat: the variance of E[z | z_t] instead of z, by construction
        steps = plan(path, path.time(torch.tensor([0.0, 1.0], dtype=torch.float64)))
        out, _ = solver.step(steps[0], torch.zeros(3), torch.ones(3), None, torch.ones(3))
        torch.testing.assert_close(out, torch.full((3,), steps[0].alpha_s + steps[0].sigma_s))
    else:
        assert fine < 0.05 and fine < 0.35 * coarse


def test_one_kernel_is_ddim_ancestral_and_euler():
    t, s = 0.7, 0.4
    z_t, eps, noise = normal(1), normal(2), normal(3)
    linear = plan(Linear(), torch.tensor([t, s], dtype=torch.float64))[0]
    z_hat = (z_t - t * eps) / (1 - t)
    velocity = eps - z_hat
    torch.testing.assert_close(Euler().step(linear, z_t, z_hat, None)[0], z_t + (s - t) * velocity)
    edm = plan(EDM(80.0), torch.tensor([t, s], dtype=torch.float64))[0]
    slope = (z_t - z_hat) / (80 * t)
    torch.testing.assert_close(Euler().step(edm, z_t, z_hat, None)[0], z_t + 80 * (s - t) * slope)
    a = plan(Cosine(), torch.tensor([t, s], dtype=torch.float64))[0]
    bar_t, bar_s = a.alpha_t**2, a.alpha_s**2  # the posterior of DDPM: eq. 7 of arXiv 2006.11239
    beta = 1 - bar_t / bar_s
    mean = math.sqrt(bar_s) * beta / (1 - bar_t) * z_hat + math.sqrt(bar_t / bar_s) * (1 - bar_s) / (1 - bar_t) * z_t
    out, _ = DDIM(1.0).step(a, z_t, z_hat, None, noise)
    torch.testing.assert_close(out, mean + math.sqrt((1 - bar_s) / (1 - bar_t) * beta) * noise)


def test_eta_zero_is_the_deterministic_solver():
    t = UniformGrid()(6, Linear())
    assert torch.equal(run(Linear(), DPMpp2MSDE(0.0), t, normal()), run(Linear(), DPMpp2M(), t, normal()))
    assert not DDIM().stochastic and DDIM(0.1).stochastic


def test_heun_is_the_papers_rule_in_sigma():
    path, z_t = EDM(80.0), normal(1)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (2.0, 1.2))
    d = (z_t - denoise(z_t, 1.0, t)) / t
    guess = z_t + (s - t) * d
    expected = z_t + (s - t) * (d + (guess - denoise(guess, 1.0, s)) / s) / 2
    out = run(path, Heun(edm=True), torch.stack([t, s]) / 80, z_t, z_t)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_unipc_is_the_papers_formula():
    """Two steps of UniPC-2 (B2) written out: a first-order start corrected with weight 1/2, then the second-order predictor."""
    path, z0 = Cosine(), normal(1)
    log_snr = torch.tensor([-1.0, -0.2, 0.5], dtype=torch.float64)
    a, b = plan(path, path.time(log_snr))
    d0 = denoise(z0, a.alpha_t, a.sigma_t)
    grow = -math.expm1(-a.h)
    z1 = a.sigma_s / a.sigma_t * z0 + a.alpha_s * grow * d0
    d1 = denoise(z1, b.alpha_t, b.sigma_t)
    z1 = a.sigma_s / a.sigma_t * z0 + a.alpha_s * grow * (d0 + 0.5 * (d1 - d0))
    ratio = -a.h / b.h
    z2 = b.sigma_s / b.sigma_t * z1 - b.alpha_s * math.expm1(-b.h) * (d1 + 0.5 * (d0 - d1) / ratio)
    torch.testing.assert_close(run(path, UniPC(2), path.time(log_snr), z0, z0), z2, rtol=0, atol=1e-12)


def test_calls():
    for name, solver in SOLVERS.items():
        calls = []

        def call(z_t, t, names, calls=calls):
            calls.append(float(t["s"][0]))
            return exact(Linear())(z_t, t, names)

        sample(call, {"s": normal()}, {"s": UniformGrid()(5, Linear())}, solver, Linear(), step_noise=noises)
        # Heun asks no second time where h is infinite: neither in the first step nor in the last
        assert len(calls) == (5 if solver.calls_per_step == 1 else 8), name
        assert 0.0 not in calls


def test_wrong_numbers_say_what_was_wanted():
    step = Step(0.5, 0.4, 0.5, 0.5, 0.6, 0.4, 0.0, 0.4)
    for build in (
        lambda: DDIM(1.1),
        lambda: DPMpp2MSDE(-1.0),
        lambda: UniPC(4),
        lambda: DDIM(1.0).step(step, normal(), normal(), None),
        lambda: plan(Linear(), torch.tensor([0.2, 0.5])),
        lambda: plan(Linear(), torch.tensor([0.2])),
    ):
        with pytest.raises(ValueError, match="wanted"):
            build()
