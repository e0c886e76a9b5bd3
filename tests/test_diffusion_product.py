"""Any with any: every path x prediction x solver x grid, and what a wrong combination is told."""

import functools
import itertools
import math

import pytest
import torch

from mmldm import config
from mmldm.conditioner import ConditionSet
from mmldm.diffusion import (
    DDIM,
    DDPM,
    EDM,
    Cosine,
    Eps,
    Flow,
    KarrasGrid,
    Linear,
    ListGrid,
    LogSNRGrid,
    Shift,
    UniformGrid,
    UniPC,
    V,
    Z,
    plan,
    sample,
)
from mmldm.model import Model
from tests.fakes import Blocks, Mixer
from tests.test_diffusion_solvers import PLAIN, SOLVERS, noises, normal, run, truth
from tests.test_diffusion_toy import PATHS, PREDICTIONS, denoise, legal


def bend(steps):
    """A list of t that is dense near 0: cos^2."""
    return ListGrid([*(math.cos(math.pi / 2 * k / steps) ** 2 for k in range(steps)), 0.0])


GRIDS = {
    "uniform": lambda n, path: UniformGrid()(n, path),
    "shifted": lambda n, path: UniformGrid()(n, path, Shift(2.0)),
    "log snr": lambda n, path: LogSNRGrid()(n, path),
    "karras": lambda n, path: KarrasGrid()(n, path),
    "list": lambda n, path: bend(n)(n, path),
}
CELLS = [(n, g) for n, g in itertools.product(PATHS, GRIDS) if n in ("cosine", "ddpm") or g in ("shifted", "list")]
PAIRS = [(name, prediction) for name, prediction in itertools.product(PATHS, PREDICTIONS) if legal(PATHS[name], prediction)]


@functools.cache
def of_z_hat(name, solver, grid):
    """What the exact denoiser gives, asked directly."""
    return run(PATHS[name], SOLVERS[solver], GRIDS[grid](5, PATHS[name]), normal())


def of_network(path, prediction, solver, t, dtype=torch.float64):
    """What it gives behind a network of this prediction: its z_hat told as F, and decoded."""

    def call(z_t, levels, names):
        x, level = z_t["s"], levels["s"].double()
        alpha, sigma = path.alpha(level)[:, None, None], path.sigma(level)[:, None, None]
        z = denoise(x, alpha, sigma)
        said = prediction.target(path, z, (x.double() - alpha * z) / sigma, level).to(dtype)
        return {name: {"s": prediction.decode(path, said, x, levels["s"])} for name in names}

    fresh = lambda i, s: noises(i, s).to(dtype)  # noqa: E731
    return sample(call, {"s": normal().to(dtype)}, {"s": t}, solver, path, step_noise=fresh)["s"]


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_what_was_predicted_never_reaches_a_solver(name, prediction):
    for (key, solver), grid in itertools.product(SOLVERS.items(), GRIDS):
        t, right = GRIDS[grid](5, PATHS[name]), of_z_hat(name, key, grid)
        torch.testing.assert_close(
            of_network(PATHS[name], prediction, solver, t), right, rtol=1e-9, atol=1e-9, msg=f"{key} {grid}"
        )
        if key in ("ancestral", "unipc 2"):
            narrow = of_network(PATHS[name], prediction, solver, t, torch.float32)
            assert narrow.dtype == torch.float32
            torch.testing.assert_close(narrow.double(), right, rtol=0, atol=1e-4, msg=f"{key} {grid} float32")


def bound(path, grid, solver):
    """The largest error that 40 steps may leave."""
    if isinstance(path, EDM) and grid in ("uniform", "shifted"):
        return 0.6  # even in sigma: from sigma = 2 it is one step to 0
    if isinstance(path, EDM) and grid == "list":
        return 0.3
    return 0.1 if solver == "ddim" else 0.05


@pytest.mark.parametrize(("name", "grid"), CELLS)
def test_error_of_forty_steps(name, grid):
    path = PATHS[name]
    right = truth(5, max(path.bounds[0], -9.0), 9.0, 600)
    for solver in PLAIN:
        out = run(path, SOLVERS[solver], GRIDS[grid](40, path), normal(5))
        assert float((out[0, 0] - right).square().mean().sqrt()) < bound(path, grid, solver), solver


def variance(path, solver, t, spread):
    """That of the sample for data N(0, spread^2): every step is linear, so each unit noise is followed by itself, exactly."""
    steps, state = plan(path, t), solver.init()
    z = torch.zeros(len(steps) + 1, dtype=torch.float64)
    z[-1] = steps[0].sigma_t
    for i, step in enumerate(steps):
        z_hat = step.alpha_t * spread**2 / ((step.alpha_t * spread) ** 2 + step.sigma_t**2) * z
        noise = torch.zeros_like(z)
        noise[i] = 1
        z, state = solver.step(step, z, z_hat, state, noise)
    return float(z.square().sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", PATHS)
def test_variance_after_forty_noisy_steps(name, grid):
    path, spread = PATHS[name], 0.7
    even_in_sigma = isinstance(path, EDM) and grid in ("uniform", "shifted", "list")
    for key, (low, high) in {"ancestral": (0.68, 1.0), "ddim half": (0.75, 1.0), "2m sde": (0.84, 1.1),
                             "2m sde half": (0.84, 1.1), "consistency": (0.4, 0.5)}.items():  # fmt: skip
        ratio = variance(path, SOLVERS[key], GRIDS[grid](40, path), spread) / spread**2
        assert (0 < ratio < 1.2) if even_in_sigma else (low < ratio < high), (key, ratio)


# ---------------------------------------------------------------- a table that another trained with


TRAINED = 1e-4 + 0.03 * torch.sin(torch.linspace(0, 2.5, 200, dtype=torch.float64)) ** 2  # rises and falls


GIVEN = {"list": TRAINED.tolist(), "tuple": tuple(TRAINED.tolist()), "float32": TRAINED.float(), "numpy": TRAINED.numpy()}


@pytest.mark.parametrize("values", GIVEN.values(), ids=GIVEN)
def test_trained_betas_are_a_path(values):
    path, knots = DDPM.from_betas(values), torch.arange(1, 201, dtype=torch.float64) / 200
    torch.testing.assert_close(path.alpha(knots) ** 2, torch.cumprod(1 - TRAINED, 0), rtol=1e-6, atol=0)
    torch.testing.assert_close(path.time(path.log_snr(knots)), knots, rtol=0, atol=1e-9)
    t = path.time(torch.linspace(-0.9, 3, 9, dtype=torch.float64))  # the range of this table, short of its end
    other = Cosine().time(path.log_snr(t))
    outs = [
        run(p, UniPC(2), at, normal(), p.sigma(at[0]) * normal()) / p.sigma(at[-1]) for p, at in ((path, t), (Cosine(), other))
    ]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-9)


def test_trained_betas_come_from_a_config_and_may_end_at_zero_snr():
    path = config.build({"_target_": "mmldm.diffusion.DDPM", "betas": TRAINED.tolist(), "zero_terminal": True})
    assert path.bounds[0] == -math.inf and path.steps == 200
    assert bool(torch.isfinite(run(path, UniPC(3), KarrasGrid()(8, path), normal())).all())
    V().check(path)


# ---------------------------------------------------------------- what cannot be, cannot be said, or says why


def test_a_model_refuses_what_does_not_determine_z():
    def build(path, prediction):
        codec, conditions = Blocks(), ConditionSet({})
        return Model({"signal": codec}, conditions, Mixer({"signal": codec.geometry}, conditions.widths), path, prediction)

    for path, prediction, words in (
        (Linear(), Eps(), "determines z at t = 1, got Eps on Linear.*choose from V, EDMPrediction, Z"),
        (DDPM(zero_terminal=True), Eps(), "determines z at t = 1, got Eps on DDPM.*zero_terminal=True"),
        (Cosine(), Flow(), "wanted the Linear path for Flow, got Cosine.*choose from V"),
        (EDM(), V(), r"sigma\(1\) <= 1 for V, got EDM.*choose from EDMPrediction, Eps, Z"),
    ):
        with pytest.raises(ValueError, match=words):
            build(path, prediction)
    assert isinstance(build(Linear(), Z()), Model)


def test_options_that_a_solver_has_not_cannot_be_given():
    for solver, has in (("UniPC", "order"), ("Heun", "edm"), ("DPMpp2M", "none"), ("Consistency", "none")):
        with pytest.raises(ValueError, match=rf"diffusion.solver.eta: {solver} has no parameter 'eta' \(it has {has}\)"):
            config.check({"diffusion": {"solver": {"_target_": f"mmldm.diffusion.{solver}", "eta": 0.5}}})
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"wanted eta in \[0, 1\], got"):
            DDIM(eta)


def test_grids_that_do_not_fall_say_so():
    for values in ([1, 0.4, 0.5, 0], [1, 0.5, 0.5, 0], [0, 0.5, 1], [1, 0.5], [0.9, 0], [1]):
        with pytest.raises(ValueError, match="falls from 1 to 0"):
            ListGrid(values)
    with pytest.raises(ValueError, match="wanted 2 steps, as the list has, got 3"):
        ListGrid([1, 0.5, 0])(3, Linear())
    with pytest.raises(ValueError, match="never rise"):
        plan(Linear(), torch.tensor([1.0, 0.2, 0.4, 0.0]))
    with pytest.raises(ValueError, match="wanted the clean end of KarrasGrid"):  # all of it is noisier than the path can be
        KarrasGrid(7.0, 100.0, 200.0)(8, PATHS["scaled"])
