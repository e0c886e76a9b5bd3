"""A one-dimensional Gaussian mixture whose denoiser is known exactly; the other tests of the diffusion core stand on it."""

import math

import torch

from mmldm.diffusion import DDPM, EDM, Cosine, EDMPrediction, Eps, Flow, Linear, V, Z

MEANS, STDS, WEIGHTS = (-1.2, 0.3, 1.4), (0.5, 0.4, 0.6), (0.3, 0.3, 0.4)
PATHS = {
    "linear": Linear(),
    "cosine": Cosine(),
    "ddpm": DDPM(),
    "scaled": DDPM(8.5e-4, 0.012, 1000, scaled=True),
    "zero": DDPM(8.5e-4, 0.012, 1000, scaled=True, zero_terminal=True),
    "edm": EDM(),
}
PREDICTIONS = (Z(), Eps(), V(), Flow(), EDMPrediction(), EDMPrediction(0.5))


def legal(path, prediction):
    """Whether a path and a prediction go together."""
    try:
        prediction.check(path)
    except ValueError:
        return False
    return True


def denoise(z_t, alpha, sigma):
    """E[z | z_t], element by element."""
    mean, var, weight = (torch.tensor(v, dtype=torch.float64) for v in (MEANS, [s * s for s in STDS], WEIGHTS))
    z = z_t.double()[..., None]
    spread = alpha**2 * var + sigma**2
    share = torch.softmax(torch.log(weight) - 0.5 * torch.log(spread) - (z - alpha * mean) ** 2 / (2 * spread), -1)
    return (share * (mean + alpha * var / spread * (z - alpha * mean))).sum(-1)


def exact(path):
    """The mixture's denoiser as `sample` wants it, for one path or one per stream; the conditions make no difference."""

    def call(z_t, t, names):
        out = {}
        for s, z in z_t.items():
            p, level = path[s] if isinstance(path, dict) else path, t[s].double()
            shape = (-1,) + (1,) * z.dim()
            out[s] = denoise(z, p.alpha(level).reshape(shape), p.sigma(level).reshape(shape)).to(z)
        return {name: out for name in names}

    return call


def reference(y, low, high, steps=3000):
    """z/sigma carried from log_snr `low` to `high` by a classical Runge-Kutta method of the probability flow."""

    def slope(y, log_snr):  # d(z_t/sigma)/d log_snr = e^log_snr D, on the path alpha = 1
        sigma = math.exp(-log_snr)
        return denoise(y * sigma, 1.0, sigma) / sigma

    h = (high - low) / steps
    for i in range(steps):
        x = low + i * h
        a = slope(y, x)
        b = slope(y + h / 2 * a, x + h / 2)
        c = slope(y + h / 2 * b, x + h / 2)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, x + h))
    return y


def test_denoiser_is_the_score():
    z_t = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    alpha, sigma = 0.8, 0.6
    mean, var, weight = (torch.tensor(v, dtype=torch.float64) for v in (MEANS, [s * s for s in STDS], WEIGHTS))
    spread = alpha**2 * var + sigma**2
    density = (weight / spread.sqrt() * torch.exp(-((z_t[:, None] - alpha * mean) ** 2) / (2 * spread))).sum(-1)
    (score,) = torch.autograd.grad(density.log().sum(), z_t)
    torch.testing.assert_close(denoise(z_t, alpha, sigma), (z_t + sigma**2 * score) / alpha, rtol=0, atol=1e-12)
