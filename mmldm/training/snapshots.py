"""Power-function averages kept as files while a run trains, and the average of any width from them afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["Average", "Snapshot", "combination", "find", "load", "power_exponent", "reconstruct", "save"]

WIDEST = 12**-0.5  # relative standard deviation of the uniform average, gamma = 0
MOST = 0.2  # largest relative residual of a profile that is still called the asked one
_NAME = re.compile(r"std([0-9.]+)-step(\d+)\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """A file with the average of relative width `std` at optimiser step `step`."""

    std: float
    step: int
    path: Path


@dataclass(frozen=True)
class Average:
    """Averaged parameters by name (float32), at which step, from how many snapshots of which widths, and the relative residual
    of their profile."""

    tensors: dict[str, Tensor]
    step: int
    count: int
    stds: tuple[float, ...]
    residual: float


# ---------------------------------------------------------------- files


def save(folder: Path, std: float, step: int, tensors: Mapping[str, Tensor], half: bool = False) -> None:
    """Write one snapshot, aside, then renamed; `half` rounds to float16 what is within its range."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"std{std:g}-step{step:07d}.safetensors"
    part = path.with_name(path.name + ".part")
    save_file({name: _halved(x) if half else x for name, x in tensors.items()}, part)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def load(snapshot: Snapshot) -> dict[str, Tensor]:
    """The averaged parameters of a snapshot by name; raises ValueError for a damaged file."""
    try:
        return load_file(snapshot.path)
    except SafetensorError as error:
        raise ValueError(f"wanted a whole snapshot, got {snapshot.path}: {error}; remove it and ask again") from None


def _halved(x: Tensor) -> Tensor:
    return x.half() if bool((x.abs() < torch.finfo(torch.float16).max).all()) else x


def find(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder by step and width; none where there is no such folder."""
    named = [(_NAME.fullmatch(path.name), path) for path in Path(folder).glob("*.safetensors")]
    found = [Snapshot(float(match[1]), int(match[2]), path) for match, path in named if match]
    return sorted(found, key=lambda s: (s.step, s.std))


# ---------------------------------------------------------------- profiles


def power_exponent(std: float) -> float:
    """The gamma of a power-function average of relative standard deviation `std` (EDM2, arXiv 2312.02696, eq. 123)."""
    if not 0.0 < std < WIDEST - 1e-9:
        raise ValueError(f"wanted a relative standard deviation in (0, 0.2886], got {std}; choose for example 0.05 or 0.10")
    low, high = 0.0, 1e5
    for _ in range(100):
        gamma = (low + high) / 2
        if (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 > std:
            low = gamma
        else:
            high = gamma
    return (low + high) / 2


def products(exponents: Tensor, steps: Tensor, others: Tensor, other_steps: Tensor) -> Tensor:
    """Inner products (N, M) of the profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], of (N,) and (M,)
    exponents and times (EDM2, arXiv 2312.02696, appendix C.3)."""
    a, s, b, t = exponents[:, None], steps[:, None], others[None], other_steps[None]
    both = torch.minimum(s, t)
    return (a + 1) * (b + 1) / (a + b + 1) / torch.maximum(s, t) * (both / s) ** a * (both / t) ** b


def combination(stds: Sequence[float], steps: Sequence[int], std: float, step: int) -> tuple[Tensor, float]:
    """The weights (N,) of averages of widths `stds` at `steps` whose sum is nearest to the average of width `std` at `step`.

    Least squares between profiles under weights that sum to 1 (a constant parameter stays itself), in float64 between profiles
    of unit norm; with the relative residual |p - sum w_i p_i| / |p|. An average that is among them is itself.
    """
    for i, (width, when) in enumerate(zip(stds, steps, strict=True)):
        if when == step and abs(width - std) < 1e-9:
            return torch.eye(len(stds), dtype=torch.float64)[i], 0.0
    gammas = torch.tensor([power_exponent(s) for s in stds], dtype=torch.float64)
    times = torch.tensor(steps, dtype=torch.float64)
    gamma, time = (torch.tensor([x], dtype=torch.float64) for x in (power_exponent(std), float(step)))
    size = products(gamma, time, gamma, time).sqrt()[0, 0]
    gram, wanted = products(gammas, times, gammas, times), products(gammas, times, gamma, time)[:, 0]
    norms = gram.diagonal().sqrt()
    gram, wanted, mass = gram / norms / norms[:, None], wanted / norms / size, size / norms
    inverse = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True)
    weights, spread = inverse @ wanted, inverse @ mass
    weights = weights + spread * (1 - mass @ weights) / (mass @ spread)
    squared = 1 - 2 * weights @ wanted + weights @ gram @ weights
    return weights * mass, float(squared.clamp_min(0).sqrt())


def reconstruct(folder: Path, std: float, step: int | None = None) -> Average:
    """The average of relative width `std` at the newest snapshot up to `step` (None: of all), from the snapshots in a folder.

    Raises ValueError where there are none, or where their profiles do not span the asked one.
    """
    power_exponent(std)
    every = find(folder)
    if not every:
        raise ValueError(f"wanted snapshots of the averages in {folder}, got none; train with snapshots=16")
    found = [s for s in every if step is None or s.step <= step]
    if not found:
        raise ValueError(f"wanted a step from {every[0].step} to {every[-1].step}, where snapshots are, got {step}")
    stds, step = tuple(sorted({s.std for s in found})), found[-1].step
    weights, residual = combination([s.std for s in found], [s.step for s in found], std, step)
    if residual > MOST:
        raise ValueError(
            f"wanted a width that the {len(found)} snapshots of widths {', '.join(f'{s:g}' for s in stds)} span, got {std:g} "
            f"with a relative residual of {residual:.0%} (at most {MOST:.0%}); choose one nearer to them, or train with more "
            "snapshots= and two widths ema=[0.05,0.10]"
        )
    total: dict[str, Tensor] = {}
    for snapshot, weight in zip(found, weights.tolist(), strict=True):
        if weight == 0:
            continue
        for name, tensor in load(snapshot).items():
            total[name] = total[name].add_(tensor, alpha=weight) if name in total else tensor.double() * weight
    return Average({name: x.float() for name, x in total.items()}, step, int((weights != 0).sum()), stds, residual)
