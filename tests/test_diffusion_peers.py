"""Parity: the same network, grid and noise give the trajectory of diffusers' schedulers and of k-diffusion's formulas."""

import math

import diffusers
import numpy as np
import pytest
import torch

from mmldm.diffusion import (
    DDIM,
    DDPM,
    EDM,
    Consistency,
    DPMpp2M,
    DPMpp2MSDE,
    EDMPrediction,
    Eps,
    Euler,
    Flow,
    Heun,
    KarrasGrid,
    Linear,
    Shift,
    UniformGrid,
    UniPC,
    V,
    Z,
    sample,
)
from tests.test_diffusion_toy import PATHS, denoise, exact

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS, SHAPE = 10, (1, 1, 32)
MOST = 2e-5  # their tables, and in part their steps, are float32
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
}
PATHS_OF = {
    ("linear", False): DDPM(1e-4, 0.02),
    ("linear", True): DDPM(1e-4, 0.02, zero_terminal=True),
    ("scaled", False): DDPM(8.5e-4, 0.012, scaled=True),
    ("scaled", True): DDPM(8.5e-4, 0.012, scaled=True, zero_terminal=True),
}
PREDICTIONS = {"epsilon": Eps(), "v_prediction": V(), "sample": Z()}
TRAILING = {"timestep_spacing": "trailing"}  # whole knots, from the last one, t = 1, on
UNCLIPPED = {**TRAILING, "clip_sample": False}
SDE = {**TRAILING, "algorithm_type": "sde-dpmsolver++"}
LCM = {"original_inference_steps": STEPS, "timestep_scaling": 1e9}  # the scalings c_skip, c_out, its network's part: 0 and 1
WIDE, NARROW = torch.float64, torch.float32
CASES = {  # our solver, their scheduler and its options, what type of noise it draws
    "ddim": (DDIM(), "DDIMScheduler", UNCLIPPED, None),
    "ddim eta 1": (DDIM(1.0), "DDIMScheduler", UNCLIPPED, WIDE),
    "ddpm": (DDIM(1.0), "DDPMScheduler", UNCLIPPED, WIDE),
    "euler": (Euler(), "EulerDiscreteScheduler", TRAILING, None),
    "2m": (DPMpp2M(), "DPMSolverMultistepScheduler", TRAILING, None),
    "2m sde": (DPMpp2MSDE(1.0), "DPMSolverMultistepScheduler", SDE, NARROW),
    "unipc": (UniPC(2), "UniPCMultistepScheduler", TRAILING, None),
    "lcm": (Consistency(), "LCMScheduler", LCM, WIDE),
}


def generator():
    return torch.Generator().manual_seed(7)


def begin():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=WIDE)


def peer(name, options, **more):
    """One of diffusers' schedulers with its timesteps set."""
    scheduler = getattr(diffusers, name)(**{**options, **more})
    scheduler.set_timesteps(STEPS)
    return scheduler


def knots(scheduler, *last):
    """Their timesteps tau as our t = (tau + 1) / N, and where they end."""
    return torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.tensor(last, dtype=WIDE)])


def imported(scheduler, *more):
    """The knots that they visit (and `more`) of their table as a path of its own, and the grid of all its knots."""
    table = scheduler.alphas_cumprod.double()[[*more, *scheduler.timesteps.long().flip(0).tolist()]]
    path = DDPM.from_betas(1 - table / torch.cat([torch.ones(1, dtype=WIDE), table[:-1]]))
    return path, torch.linspace(1, 0, path.steps + 1, dtype=WIDE)[: None if not more else -1]


def network(path, prediction, scaled=True):
    """The mixture's exact denoiser as a network: (z_t, of unit variance if `scaled`; t) -> F."""

    def call(x, t):
        t = torch.as_tensor(t, dtype=WIDE).reshape(-1)[0]
        alpha, sigma, z_t = path.alpha(t), path.sigma(t), x / prediction.input_scale(path, t) if scaled else x
        z = denoise(z_t, alpha, sigma)
        return prediction.target(path, z, (z_t - alpha * z) / sigma, t)

    return call


def ours(solver, path, prediction, t, z, draws=None, scaled=True):
    """What the network is given, call by call, and the end; noise of type `draws` comes from `generator()`."""
    asked, seen, random = network(path, prediction, scaled), [], generator()

    def call(z_t, levels, names):
        x, level = z_t["s"], levels["s"]
        seen.append(x * prediction.input_scale(path, level) if scaled else x)
        return {name: {"s": prediction.decode(path, asked(seen[-1], level), x, level)} for name in names}

    def fresh(i, stream):
        return torch.randn(SHAPE, generator=random, dtype=draws).double()

    end = sample(call, {"s": z}, {"s": t}, solver, path, step_noise=fresh, start={"s": z})["s"]
    return torch.cat([*seen, end])


def theirs(scheduler, asked, z, times, draws=None, **options):
    """The same of their loop; `times` tell the network its t."""
    seen, options = [], options if draws is None else {**options, "generator": generator()}
    for tau, t in zip(scheduler.timesteps, times, strict=False):
        seen.append(scheduler.scale_model_input(z, tau) if hasattr(scheduler, "scale_model_input") else z)
        z = scheduler.step(asked(seen[-1], t), tau, z, **options).prev_sample.double()
    return torch.cat([*seen, z])


def compare(scheduler, solver, path, prediction, t, z, times=None, draws=None, scaled=True, ve=False, **options):
    """`ve`: they step in z_t / alpha; `times`: the t of each call where it is not t."""
    asked, their_z = network(path, prediction, scaled), z / path.alpha(t[0]) if ve else z
    a = theirs(scheduler, asked, their_z, t if times is None else times, draws, **options)
    torch.testing.assert_close(ours(solver, path, prediction, t, z, draws, scaled), a, rtol=0, atol=MOST)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("case", CASES)
def test_the_schedulers_of_a_table_of_betas(case, betas, kind):
    solver, name, options, draws = CASES[case]
    scheduler, path, z = peer(name, options, prediction_type=kind, **BETAS[betas]), PATHS_OF[betas, False], begin()
    more = {"eta": 1.0} if case == "ddim eta 1" else {}
    compare(scheduler, solver, path, PREDICTIONS[kind], knots(scheduler, 0.0), z, draws=draws, ve=case == "euler", **more)


@pytest.mark.parametrize("kind", ("v_prediction", "sample"))
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("case", CASES)
def test_zero_terminal_snr(case, betas, kind):
    """DDIM, DDPM and LCM begin at alpha = 0 as we do; the others put alpha^2 = 2^-24 there (with linear betas less noisy than
    the knot before it), so that they are compared on the knots that they visit, imported."""
    solver, name, options, draws = CASES[case]
    scheduler = peer(name, options, prediction_type=kind, rescale_betas_zero_snr=True, **BETAS[betas])
    scheduler.alphas_cumprod, z = scheduler.alphas_cumprod.double(), begin()  # float32 cannot take 1 - alpha^2 - nu^2 = 0
    path, t = PATHS_OF[betas, True], knots(scheduler, 0.0)
    if scheduler.alphas_cumprod[-1] > 0:
        path, t = imported(scheduler)
    more = {"eta": 1.0} if case == "ddim eta 1" else {}
    compare(scheduler, solver, path, PREDICTIONS[kind], t, z, draws=draws, ve=case == "euler", **more)


@pytest.mark.parametrize(("betas", "zero"), PATHS_OF)
def test_the_table_itself(betas, zero):
    table = diffusers.DDIMScheduler(rescale_betas_zero_snr=zero, **BETAS[betas]).alphas_cumprod.double()
    alpha = PATHS_OF[betas, zero].alpha(torch.arange(1, 1001, dtype=WIDE) / 1000)
    torch.testing.assert_close(alpha**2, table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("betas", BETAS)
def test_heun_of_edm(betas, kind):
    scheduler, path = peer("HeunDiscreteScheduler", TRAILING, prediction_type=kind, **BETAS[betas]), PATHS_OF[betas, False]
    times = knots(scheduler)  # every level but the first comes twice: the end of a step and the beginning of the next
    t = torch.cat([times[:1], times[1::2], torch.zeros(1, dtype=WIDE)])
    compare(scheduler, Heun(edm=True), path, PREDICTIONS[kind], t, begin(), times, ve=True)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("solver", (UniPC(2), UniPC(3), DPMpp2M()), ids=("unipc 2", "unipc 3", "2m"))
def test_full_order_to_the_last_finite_step(solver, kind):
    """On the way to t = 0 they lower the order before the last step, of UniPC-3 for two; to sigma_min both keep it."""
    options = {**TRAILING, "lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": solver.order}
    name = "DPMSolverMultistepScheduler" if isinstance(solver, DPMpp2M) else "UniPCMultistepScheduler"
    scheduler = peer(name, options, prediction_type=kind, **BETAS["linear"])
    path, t = imported(scheduler, 0)
    compare(scheduler, solver, path, PREDICTIONS[kind], t, begin())


def test_the_settings_that_stable_diffusion_came_with():
    """Leading timesteps with an offset of 1 that end on the first knot instead of 0 (set_alpha_to_one: false)."""
    options = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    scheduler = peer("DDIMScheduler", options, **BETAS["scaled"])
    compare(scheduler, DDIM(), PATHS_OF["scaled", False], Eps(), knots(scheduler, 1 / 1000), begin())


def test_karras_sigmas_between_the_ends_of_a_table():
    scheduler = peer("EulerDiscreteScheduler", {"use_karras_sigmas": True}, **BETAS["scaled"])
    path, sigmas = PATHS_OF["scaled", False], scheduler.sigmas.double()
    t = KarrasGrid(7.0, float(sigmas[-2]), float(sigmas[0]))(STEPS, path)
    torch.testing.assert_close(t, knots(scheduler, 0.0), rtol=0, atol=1e-6)
    compare(scheduler, Euler(), path, Eps(), t, begin(), ve=True)


EDMS = {
    "euler": (Euler(), "EDMEulerScheduler", {}, None),
    "2m": (DPMpp2M(), "EDMDPMSolverMultistepScheduler", {}, None),
    "2m sde": (DPMpp2MSDE(1.0), "EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, WIDE),
}


@pytest.mark.parametrize("case", EDMS)
def test_the_edm_path_with_its_preconditioning_and_grid(case):
    solver, name, options, draws = EDMS[case]
    path = EDM(80.0)
    compare(peer(name, options), solver, path, EDMPrediction(0.5), KarrasGrid()(STEPS, path), 80 * begin(), draws=draws)


@pytest.mark.parametrize("stochastic", (False, True))
def test_flow_matching_with_its_shift(stochastic):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
    t, solver = UniformGrid()(STEPS, Linear(), Shift(3.0)), Consistency() if stochastic else Euler()
    torch.testing.assert_close(t, scheduler.sigmas.double(), rtol=0, atol=1e-6)
    compare(scheduler, solver, Linear(), Flow(), t, begin(), draws=NARROW if stochastic else None, scaled=False)


@pytest.mark.parametrize("case", ("2m", "2m sde", "unipc"))
def test_multistep_solvers_of_flow(case):
    solver, name, options, draws = CASES[case]
    scheduler = peer(name, options, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    compare(scheduler, solver, Linear(), Flow(), scheduler.sigmas.double(), begin(), draws=draws, scaled=False)


# ---------------------------------------------------------------- k-diffusion: x = z_t / alpha, s = sigma / alpha, D = z_hat


def k_ancestral(d, x, now, then, last, noise, eta):
    """Euler to sigma_down, then sigma_up of new noise (sample_euler_ancestral)."""
    up = min(then, eta * math.sqrt(then**2 * (now**2 - then**2) / now**2))
    down = math.sqrt(then**2 - up**2)
    return x + (x - d(x, now)) / now * (down - now) + up * noise, None


def k_heun(d, x, now, then, last, noise, eta):
    """The trapezoid of dx/ds; Euler to s = 0 (sample_heun without churn)."""
    slope = (x - d(x, now)) / now
    guess = x + slope * (then - now)
    return (guess if then == 0 else x + (slope + (guess - d(guess, then)) / then) / 2 * (then - now)), None


def k_2m(d, x, now, then, last, noise, eta):
    """x' = s'/s x - (e^-h - 1) ((1 + 1/2r) D - 1/2r D_last) with r = h_last / h (sample_dpmpp_2m)."""
    hat = d(x, now)
    if then == 0:
        return hat, None
    h = math.log(now / then)
    mixed = hat if last is None else (1 + h / (2 * last[1])) * hat - h / (2 * last[1]) * last[0]
    return then / now * x - math.expm1(-h) * mixed, (hat, h)


def k_2m_sde(d, x, now, then, last, noise, eta):
    """x' = s'/s e^(-eta h) x + (1 - e^(-h - eta h)) (D + (D - D_last) / 2r) + s' sqrt(1 - e^(-2 eta h)) noise, midpoint
    (sample_dpmpp_2m_sde)."""
    hat = d(x, now)
    if then == 0:
        return hat, None
    h = math.log(now / then)
    out = then / now * math.exp(-eta * h) * x - math.expm1(-h - eta * h) * hat
    if last is not None:
        out = out - 0.5 * math.expm1(-h - eta * h) * h / last[1] * (hat - last[0])
    return out + then * math.sqrt(-math.expm1(-2 * eta * h)) * noise, (hat, h)


FORMULAS = {
    "ancestral": (k_ancestral, lambda eta: DDIM(eta), (0.0, 0.4, 1.0)),
    "heun": (k_heun, lambda eta: Heun(edm=True), (0.0,)),
    "2m": (k_2m, lambda eta: DPMpp2M(), (0.0,)),
    "2m sde": (k_2m_sde, DPMpp2MSDE, (0.0, 0.4, 1.0, 1.7)),
}


@pytest.mark.parametrize("name", ("edm", "linear", "scaled", "zero"))
@pytest.mark.parametrize(("case", "eta"), [(case, eta) for case, (*_, etas) in FORMULAS.items() for eta in etas])
def test_the_formulas_of_k_diffusion(case, eta, name):
    """On a Karras grid (sigma^(1/7) even between the ends, then 0), on VE as it stands and elsewhere by z_t = alpha x."""
    formula, solver, _ = FORMULAS[case]
    ramp, path, noise = np.linspace(0, 1, STEPS), PATHS[name], begin()
    sigmas = [*((10 ** (1 / 7) + ramp * (0.01 ** (1 / 7) - 10 ** (1 / 7))) ** 7).tolist(), 0.0]
    x, last, xs = sigmas[0] * begin().flip(-1), None, []
    t = path.time(-torch.tensor(sigmas, dtype=WIDE).log())
    zs, start = [], {"s": path.alpha(t[0]) * x}
    sample(exact(path), start, {"s": t}, solver(eta), path, step_noise=lambda i, s: (-1) ** i * noise, start=start,
           callback=lambda i, n, z, z_hat: zs.append(z["s"] / path.alpha(t[i + 1])))  # fmt: skip
    for i in range(STEPS):
        x, last = formula(lambda x, s: denoise(x, 1.0, s), x, sigmas[i], sigmas[i + 1], last, (-1) ** i * noise, eta)
        xs.append(x)
    torch.testing.assert_close(torch.cat(zs), torch.cat(xs), rtol=0, atol=1e-9)
