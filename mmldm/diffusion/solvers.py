"""Solvers: pure steps from level t to a cleaner level s, in the clean latent and log_snr, with explicit state.

Every solver is one kernel, z_s = alpha_s D + sqrt(sigma_s^2 - nu^2) (z_t - alpha_t D) / sigma_t + nu noise, in which
multi-step methods replace D = z_hat by a combination. Nothing here knows the path or the prediction; levels are Python floats,
so that a step never waits for the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmldm.diffusion.path import Path

__all__ = ["Consistency", "DDIM", "DPMpp2M", "DPMpp2MSDE", "Euler", "Heun", "Solver", "Step", "UniPC", "plan"]


@dataclass(frozen=True)
class Step:
    """One step of one stream from t down to s: the coefficients at both ends, as Python floats."""

    t: float
    s: float
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float
    log_snr_t: float
    log_snr_s: float

    @property
    def h(self) -> float:
        """log_snr_s - log_snr_t >= 0; inf where alpha_t = 0 or sigma_s = 0."""
        return self.log_snr_s - self.log_snr_t if self.moves else 0.0

    @property
    def moves(self) -> bool:
        """False for a stream that stands still (absent, or wholly given)."""
        return self.s < self.t

    @property
    def finite(self) -> bool:
        """Whether orders above 1 mean anything: h is neither 0 nor inf."""
        return self.moves and math.isfinite(self.h)

    def move(self, z_t: Tensor, z_hat: Tensor, nu: float = 0.0, noise: Tensor | None = None) -> Tensor:
        """The kernel: to level s with the share nu <= sigma_s of its noise drawn anew."""
        keep = math.sqrt(max(self.sigma_s**2 - nu**2, 0.0)) / self.sigma_t
        z_s = keep * z_t + (self.alpha_s - keep * self.alpha_t) * z_hat
        if nu == 0:
            return z_s
        if noise is None:
            raise ValueError("wanted noise for every step of a stochastic solver, got None: give step_noise, or eta = 0")
        return z_s + nu * noise


def plan(path: Path, grid: Tensor) -> list[Step]:
    """The steps of a grid (n + 1,) of t that never rises."""
    t = grid.detach().double().cpu()
    rows = list(zip(*(v.tolist() for v in (t, path.alpha(t), path.sigma(t), path.log_snr(t))), strict=True))
    if len(rows) < 2 or any(b[0] > a[0] for a, b in zip(rows, rows[1:], strict=False)) or rows[0][0] > 1 or rows[-1][0] < 0:
        raise ValueError(f"wanted at least two t in [0, 1] that never rise, got {t.tolist()}")
    return [Step(a[0], b[0], a[1], a[2], b[1], b[2], a[3], b[3]) for a, b in zip(rows, rows[1:], strict=False)]


def _share(step: Step, eta: float) -> float:
    """sqrt(1 - e^(-2 eta h)), by expm1; 0 where eta = 0 even if h is inf."""
    return 0.0 if eta == 0 else math.sqrt(-math.expm1(-2 * eta * step.h))


class Solver(ABC):
    """A pure step with explicit state; `order` of convergence in log_snr, network calls per step, whether it draws noise."""

    order: int = 1
    calls_per_step: int = 1
    stochastic: bool = False

    def init(self) -> Any:
        """The state before the first step."""
        return None

    @abstractmethod
    def step(self, step: Step, z_t: Tensor, z_hat: Tensor, state: Any, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        """z_t and its z_hat -> (z_s, state); `noise` (as z_t) is used by stochastic solvers only."""

    def correct(self, step: Step, z_t: Tensor, z_hat: Tensor, z_s: Tensor, z_hat_s: Tensor) -> Tensor:
        """The better z_s that a second call at (z_s, s) allows; only where calls_per_step = 2 and `step.finite`."""
        return z_s


class DDIM(Solver):
    """First order: DDIM, and so Euler on flow and on VE at once; eta = 1 is DDPM's ancestral sampling.

    nu = eta sigma_s sqrt(1 - e^(-2h)) (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).
    """

    def __init__(self, eta: float = 0.0):
        if not 0 <= eta <= 1:
            raise ValueError(f"wanted eta in [0, 1], got {eta}")
        self.eta = eta
        self.stochastic = eta > 0

    def step(self, step: Step, z_t: Tensor, z_hat: Tensor, state: Any, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        return step.move(z_t, z_hat, self.eta * step.sigma_s * _share(step, 1.0), noise), None


Euler = DDIM


class Consistency(Solver):
    """Multistep consistency sampling: each step lands on z_hat and noises it anew, nu = sigma_s.

    Song et al. 2023 (arXiv 2303.01469, algorithm 1); for latents Luo et al. 2023 (arXiv 2310.04378, algorithm 3).
    """

    stochastic = True

    def step(self, step: Step, z_t: Tensor, z_hat: Tensor, state: Any, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        return step.move(z_t, z_hat, step.sigma_s, noise), None


class DPMpp2MSDE(Solver):
    """Second-order multistep with noise, nu^2 = sigma_s^2 (1 - e^(-2 eta h)); eta = 0 is DPM-Solver++ 2M.

    D + h / (2 h_last) (D - D_last): Lu et al. 2022, arXiv 2211.01095, algorithm 2 and appendix E.3 (midpoint form).
    """

    order = 2

    def __init__(self, eta: float = 1.0):
        if not eta >= 0:
            raise ValueError(f"wanted eta >= 0, got {eta}")
        self.eta = eta
        self.stochastic = eta > 0

    def step(self, step: Step, z_t: Tensor, z_hat: Tensor, state: Any, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        combined = z_hat
        if state is not None and step.finite:
            last, h_last = state
            combined = z_hat + step.h / (2 * h_last) * (z_hat - last)  # h_last = inf: no history, order 1
        return step.move(z_t, combined, step.sigma_s * _share(step, self.eta), noise), (z_hat, step.h)


class DPMpp2M(DPMpp2MSDE):
    """DPM-Solver++ 2M, deterministic second order, one call per step (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""

    def __init__(self):
        super().__init__(eta=0.0)


class Heun(Solver):
    """Second order with two calls per step: z_hat is averaged over both ends, the far one with weight 1/2.

    `edm` gives it the weight e^h / 2, which is Heun's rule in sigma/alpha (Karras et al. 2022, arXiv 2206.00364, algorithm 1);
    it is that paper's method, and grows without bound for large h, where the weight 1/2 stays safe.
    """

    order = 2
    calls_per_step = 2

    def __init__(self, edm: bool = False):
        self.edm = edm

    def step(self, step: Step, z_t: Tensor, z_hat: Tensor, state: Any, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        return step.move(z_t, z_hat), None

    def correct(self, step: Step, z_t: Tensor, z_hat: Tensor, z_s: Tensor, z_hat_s: Tensor) -> Tensor:
        weight = math.exp(step.h) / 2 if self.edm else 0.5
        return step.move(z_t, z_hat + weight * (z_hat_s - z_hat))


@dataclass(frozen=True)
class _History:
    """UniPC's state: the last step from (corrected) z_t with its z_hat, and older (log_snr, z_hat), newest first."""

    step: Step
    z_t: Tensor
    order: int
    known: tuple[tuple[float, Tensor], ...]


class UniPC(Solver):
    """Unified predictor-corrector of order 2 or 3, one call per step: each new z_hat first corrects the step that led to it.

    Zhao et al. 2023, arXiv 2302.04867, algorithms 1-2 and eq. 9, data prediction, B(h) = e^h - 1 ("bh2"). The measured order
    is one more than `order` where the steps are even.
    """

    def __init__(self, order: int = 2):
        if order not in (2, 3):
            raise ValueError(f"wanted order 2 or 3, got {order}")
        self.order = order

    def step(self, step: Step, z_t: Tensor, z_hat: Tensor, state: Any, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        known: tuple[tuple[float, Tensor], ...] = ()
        if state is not None:
            known = state.known
            if state.step.finite:
                combined = _combine(state.step, state.known[: state.order], z_hat)
                z_t = state.step.move(state.z_t, combined)
            else:
                known = ()  # what came before an infinite h says nothing
        known = ((step.log_snr_t, z_hat), *known)[: self.order]
        order = len(known) if step.finite else 1
        return step.move(z_t, _combine(step, known[:order], None)), _History(step, z_t, order, known)


def _combine(step: Step, known: tuple[tuple[float, Tensor], ...], new: Tensor | None) -> Tensor:
    """D + sum_k rho_k (D_k - D) / r_k over older z_hats and, in the corrector, the `new` one at s (r = 1)."""
    (here, z_hat), older = known[0], known[1:]
    ratios = [(log_snr - here) / step.h for log_snr, _ in older] + ([] if new is None else [1.0])
    others = [d for _, d in older] + ([] if new is None else [new])
    for rho, ratio, other in zip(_unipc_weights(ratios, step.h), ratios, others, strict=True):
        z_hat = z_hat + rho / ratio * (other - known[0][1])
    return z_hat


def _unipc_weights(ratios: list[float], h: float) -> list[float]:
    """The rho that solve sum_k rho_k r_k^(i-1) = i! phi_(i+1)(-h) h.../B(h), i = 1.. (eq. 9); with one unknown, 1/2."""
    if len(ratios) <= 1:
        return [0.5] * len(ratios)
    rows, right, phi, factorial = [], [], math.expm1(-h) / -h - 1, 1
    for i in range(1, len(ratios) + 1):
        rows.append([r ** (i - 1) for r in ratios])
        right.append(phi * factorial / math.expm1(-h))
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    return torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)).tolist()
