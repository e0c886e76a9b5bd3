"""A picture of what a diffusion training gives each noise level: the weight of the loss, and how often a level is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmldm.diffusion.weighting import LIMIT, LearnedUncertainty, loss_weight
from mmldm.training import DiffusionTraining

__all__ = ["density", "draw", "weight"]

TAIL = 1e-4  # share of the levels left out on each side
PAPER, INK, PALE, COLOURS = "#ffffff", "#555555", "#e6e6e6", ("#2f6fb0", "#c8553d", "#4c9a6a", "#8a63a8")


def weight(training: DiffusionTraining, log_snr: Tensor) -> Tensor:
    """w(lambda) of |z_hat - z|^2 in the training's loss, whatever the network predicts; float64."""
    path, prediction = training.model.path, training.model.prediction
    t = path.time(log_snr)
    with torch.no_grad():
        return loss_weight(training.weighting, path, prediction, t) * torch.exp(-prediction.log_error_ratio(path, t, log_snr))


def density(training: DiffusionTraining, log_snr: Tensor, shift) -> Tensor:
    """p(lambda) of the drawn levels under path and shift, per unit of lambda, between the points given (N,): (N - 1,)."""
    cdf = training.times.cdf(log_snr, training.model.path, shift)
    return -cdf.diff() / log_snr.diff()


def bounds(training: DiffusionTraining, shift) -> tuple[float, float]:
    """The lambdas between which all but the rarest levels lie."""
    path, u = training.model.path, torch.tensor([1 - TAIL, TAIL], dtype=torch.float64)
    low, high = path.log_snr(training.times(u, path, shift)).clamp(-LIMIT, LIMIT).tolist()
    return low, high


def draw(training: DiffusionTraining, shapes: Mapping[str, tuple[int, ...]], out: Path) -> Path:
    """Write the picture for streams of latent shapes (D, *L): streams with one shift share their lines."""
    from matplotlib.figure import Figure

    shifts, named = {}, {}
    for stream, shape in shapes.items():
        shift = training.model.shift_of(stream, shape[1:])
        key = 0.0 if shift is None else round(float(shift.log_factor), 9)
        shifts[key] = shift
        named.setdefault(key, []).append(stream)
    ends = [bounds(training, shift) for shift in shifts.values()]
    edges = torch.linspace(min(low for low, _ in ends), max(high for _, high in ends), 401, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    figure = Figure(figsize=(8.2, 3.0), dpi=110, layout="constrained", facecolor=PAPER)
    left, right = figure.subplots(1, 2)
    w = weight(training, middle)
    left.semilogy(middle, w, color=INK, linewidth=1.5)
    start = " (learned: as at the start)" if isinstance(training.weighting, LearnedUncertainty) else ""
    left.set_title(f"weight w of the error of z_hat{start}", fontsize=9)
    if float(w.max() / w.min()) < 10:
        left.set_ylim(float(w.min()) / 10, float(w.max()) * 10)
    for (key, streams), colour in zip(named.items(), COLOURS * len(named), strict=False):
        p = density(training, edges, shifts[key])
        effective = w * p / (w * p).sum() / (edges[1] - edges[0])
        name = f"{', '.join(streams)}: " if len(named) > 1 else ""
        right.plot(middle, effective, color=colour, linewidth=1.5, label=f"{name}w p, of area 1")
        right.plot(middle, p, color=colour, linewidth=1.0, linestyle=":", label=f"{name}p, the levels drawn")
    right.set_title("effective weight w p, and density p", fontsize=9)
    right.set_ylim(0, right.get_ylim()[1] * (1.1 + 0.14 * len(named)))  # room for the legend
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        axes.set_xlabel("λ = log(alpha / sigma): noise on the left, data on the right", fontsize=8)
        axes.tick_params(labelsize=7, colors=INK)
        axes.grid(color=PALE, linewidth=0.6)
        axes.margins(x=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out
