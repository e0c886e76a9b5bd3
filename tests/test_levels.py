"""What each noise level weighs: the learned uncertainty in a training, and the picture of weight and density."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmldm.commands import levels
from mmldm.diffusion import (
    DDPM,
    EDM,
    Cosine,
    EDMPrediction,
    EDMWeight,
    Eps,
    EpsWeight,
    Flow,
    LearnedUncertainty,
    Linear,
    LogitNormal,
    LogNormalSigma,
    MinSNR,
    Shift,
    TokenShift,
    Uniform,
    UnitF,
    V,
)
from mmldm.training import DiffusionTraining
from tests.test_training import adamw, make_batch, make_model

LOG_SNR = torch.linspace(-3, 3, 25, dtype=torch.float64)
SNR = torch.exp(2 * LOG_SNR)
KINDS = [
    (Linear(), Flow(), UnitF(), LogitNormal(), (1 + SNR.sqrt()) ** 2),
    (Linear(), Flow(), LearnedUncertainty(8), LogitNormal(), (1 + SNR.sqrt()) ** 2),
    (Cosine(), V(), MinSNR(5.0), Uniform(), SNR.clamp(max=5)),
    (EDM(), EDMPrediction(0.5), EDMWeight(0.5), LogNormalSigma(), SNR + 4),
    (DDPM(), Eps(), EpsWeight(), Uniform(), SNR),
]


def training(path, prediction, weighting, times, shift=None):
    """What the picture asks of a training; streams of more cells shift more where `shift` counts them."""
    shift_of = lambda stream, cells: None if shift is None else shift.for_tokens(math.prod(cells))  # noqa: E731
    model = SimpleNamespace(path=path, prediction=prediction, shift_of=shift_of)
    return SimpleNamespace(model=model, weighting=weighting, times=times)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}"[:8])
@pytest.mark.parametrize("shift", [None, Shift(2.0)])
def test_weight_and_density_are_the_trainings(kind, shift):
    *parts, weight = kind
    made = training(*parts, shift)
    torch.testing.assert_close(levels.weight(made, LOG_SNR), weight, rtol=1e-5, atol=0)
    path, _, _, times = parts
    drawn = path.log_snr(times((torch.arange(20_000).double() + 0.5) / 20_000, path, shift))
    edges = torch.linspace(*levels.bounds(made, shift), 31, dtype=torch.float64)
    counts = torch.histc(drawn, 30, float(edges[0]), float(edges[-1])) / 20_000
    torch.testing.assert_close(levels.density(made, edges, shift) * edges.diff(), counts, rtol=0, atol=2e-3)
    assert float(counts.sum()) > 0.999


def test_streams_with_other_shifts_have_lines_of_their_own(tmp_path):
    one = levels.draw(training(*KINDS[0][:4]), {"a": (4, 64)}, tmp_path / "one.png")
    made = training(*KINDS[0][:4], TokenShift(64))
    two = levels.draw(made, {"a": (4, 64), "b": (4, 32, 32), "c": (8, 64)}, tmp_path / "two.png")
    count = [len(Image.open(p).convert("RGB").getcolors(1 << 20)) for p in (one, two)]
    red = [sum(n for n, (r, g, b) in Image.open(p).convert("RGB").getcolors(1 << 20) if r > b + 90) for p in (one, two)]
    assert min(count) > 20 and red[0] == 0 and red[1] > 300


# ---------------------------------------------------------------- learned uncertainty


def test_u_learns_the_log_of_the_expected_loss_of_each_level():
    module, random = LearnedUncertainty(64), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    path, prediction = Linear(), Flow()
    expected = lambda log_snr: 0.1 + torch.exp(-0.3 * (log_snr - 1) ** 2)  # noqa: E731
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / 400)
        log_snr = 6 * torch.rand(256, generator=random) - 3
        noise = torch.randn(256, 4, generator=random).square().mean(1)  # of mean 1
        t = path.time(log_snr)
        loss = module.loss(expected(log_snr) * noise, path, prediction, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    levels = torch.linspace(-2.7, 2.7, 40)
    with torch.no_grad():
        assert float((module.u(levels) - expected(levels).log()).abs().max()) < 0.15
        t = path.time(levels)
        torch.testing.assert_close(module.on_prediction(path, prediction, t), torch.exp(-module.u(levels)), rtol=1e-4, atol=0)


def test_u_is_not_added_where_nothing_is_predicted():
    streams = ("one", "two")
    training = DiffusionTraining(make_model(streams=streams), LogitNormal(), LearnedUncertainty(8), adamw, batch_size=4)
    plain = DiffusionTraining(training.model, LogitNormal(), UnitF(), adamw, batch_size=4)
    batch = make_batch(range(4), streams, absent=("two",))
    z, valid = training.latents(batch)
    context, t = training.contexts(batch, z, valid, training.levels(batch, z, valid))
    known = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4, [True] * 4])
    context["one"] = training.model.context("one", (4,), z=z["one"], known=known)
    key = training.key("noise", batch)
    losses = lambda which: which.losses(batch, z, t, context, {}, key)  # noqa: E731
    assert all(torch.equal(x, losses(plain)[s]) for s, x in losses(training).items())  # u = 0
    with torch.no_grad():
        training.weighting.weight.fill_(0.5)
    u = training.weighting.u(training.model.path.log_snr(t["one"]))
    one, two = losses(training).values()
    wanted = torch.exp(-u) * losses(plain)["one"] + u
    assert float(u.detach().abs().min()) > 0.01 and torch.equal(two, torch.zeros(4))
    torch.testing.assert_close(one, torch.where(torch.tensor([False, True, True, False]), wanted, 0.0))
