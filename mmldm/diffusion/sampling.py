"""The one sampling loop: noise -> clean latents for any solver, grid, guidance and set of streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmldm.diffusion.guidance import Guidance
from mmldm.diffusion.known import Context, merge
from mmldm.diffusion.path import Path
from mmldm.diffusion.solvers import Solver, Step, plan

__all__ = ["Denoise", "sample"]

Latents = dict[str, Tensor]
Denoise = Callable[[Latents, Latents, Sequence[str]], Mapping[str, Latents]]


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Mapping[str, Tensor],
    grids: Mapping[str, Tensor],
    solver: Solver,
    path: Path | Mapping[str, Path],
    guidance: Guidance | None = None,
    context: Mapping[str, Context] | None = None,
    step_noise: Callable[[int, str], Tensor | None] | None = None,
    callback: Callable[[int, int, Latents, Latents], None] | None = None,
    start: Mapping[str, Tensor] | None = None,
    renoise: bool = False,
) -> Latents:
    """Clean latents of every stream: `denoise(z_t, t, branches) -> {branch: z_hat}` along `grids[stream]` (n + 1,) of t.

    noise[stream] (B, D, *L) begins as sigma(1) noise; `start[stream]` is z_t at grid[0] < 1 instead. A grid that stands still
    keeps its stream at that level: all 1 for a stream that is not there, all 0 for one wholly known. Known cells come out equal
    to the bit; `renoise` hands them to the network at the level of the rest instead, for models trained without known cells
    (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8): what `denoise` itself gives the network must then not say that they are
    known. step_noise(step, stream) gives a stochastic solver its noise;
    callback(step, steps, z_s, z_hat) sees each step.
    """
    guidance, context = guidance or Guidance(), context or {}
    paths = dict(path) if isinstance(path, Mapping) else dict.fromkeys(noise, path)
    plans = _plans(noise, grids, paths)
    steps = len(next(iter(plans.values())))
    z = {s: _begin(noise[s], plans[s], (start or {}).get(s), s) for s in noise}
    z = {s: merge(value, context.get(s)) for s, value in z.items()}
    free = {s: context[s].free if s in context else None for s in z}
    states, memory = {s: solver.init() for s in z}, guidance.init()

    def ask(z_t: Latents, levels: Mapping[str, tuple[float, float]], memory: Any) -> tuple[Latents, Any]:
        """z_hat of the guided model at levels[stream] = (t, log_snr)."""
        t = {s: torch.full((len(value),), levels[s][0], dtype=value.dtype, device=value.device) for s, value in z_t.items()}
        if renoise:
            z_t = {s: merge_noised(value, context.get(s), noise[s], paths[s], t[s]) for s, value in z_t.items()}
        log_snr = {s: level[1] for s, level in levels.items() if plans[s][0].moves or plans[s][-1].moves}
        z_hats = denoise(z_t, t, guidance.branches(log_snr))
        z_hat, memory = guidance.combine(z_hats, {s: level[1] for s, level in levels.items()}, memory, free)
        return {s: merge(value, context.get(s)) for s, value in z_hat.items()}, memory

    for i in range(steps):
        now = {s: plans[s][i] for s in z}
        z_hat, memory = ask(z, {s: (step.t, step.log_snr_t) for s, step in now.items()}, memory)
        moved = dict(z)
        for s, step in now.items():
            if step.moves:
                fresh = step_noise(i, s) if solver.stochastic and step_noise is not None else None
                moved[s], states[s] = solver.step(step, z[s], z_hat[s], states[s], fresh)
                moved[s] = merge(moved[s], context.get(s))
        if solver.calls_per_step == 2 and any(step.finite for step in now.values()):
            z_hat_s, memory = ask(moved, {s: (step.s, step.log_snr_s) for s, step in now.items()}, memory)
            for s, step in now.items():
                if step.finite:
                    moved[s] = merge(solver.correct(step, z[s], z_hat[s], moved[s], z_hat_s[s]), context.get(s))
        z = moved
        if callback is not None:
            callback(i, steps, z, z_hat)
    return z


def merge_noised(z_t: Tensor, context: Context | None, noise: Tensor, path: Path, t: Tensor) -> Tensor:
    """z_t with the known cells brought to level t (B,) by the same noise as the rest began with."""
    if context is None or context.known is None:
        return z_t
    return torch.where(context.known[:, None], path.mix(context.z.to(z_t), noise, t), z_t)


def _plans(noise: Mapping[str, Tensor], grids: Mapping[str, Tensor], paths: Mapping[str, Path]) -> dict[str, list[Step]]:
    if not noise or set(noise) != set(grids) or not set(noise) <= set(paths):
        got = f"{sorted(noise)}, {sorted(grids)}, {sorted(paths)}"
        raise ValueError(f"wanted noise, a grid and a path for each stream, got {got}")
    plans = {s: plan(paths[s], grids[s]) for s in noise}
    if len({len(p) for p in plans.values()}) > 1:
        raise ValueError(f"wanted grids of one length, got {[len(p) + 1 for p in plans.values()]} for {list(plans)}")
    return plans


def _begin(noise: Tensor, steps: list[Step], start: Tensor | None, stream: str) -> Tensor:
    """z_t at the first point of the grid."""
    if start is not None:
        return start
    if steps[0].t < 1 and any(step.moves for step in steps):
        raise ValueError(f"wanted start[{stream!r}], z_t at t = {steps[0].t:g}, for a grid that begins below 1, got none")
    return steps[0].sigma_t * noise
