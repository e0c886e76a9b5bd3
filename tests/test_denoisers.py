"""Laws of every denoiser: what a transformer and a U-Net must both keep, on one line of cells, in float64."""

from dataclasses import replace

import pytest
import torch

from mmldm import keyed
from mmldm.denoiser import DiT, UNet
from mmldm.interfaces import Axis, Cond, CondWidths, Geometry, Reference, grid_positions
from mmldm.testing.parts import _awake, _noisy

LINE = Geometry(2, (Axis("time", 16, 16, 0.01),))
TEXT = CondWidths(tokens=6, vector=5)
DENOISERS = {
    DiT: {"width": 24, "depth": 2, "heads": 2},
    UNet: {"widths": [12, 24], "depth": 1, "attention": [False, True], "head_width": 12},
}


@pytest.fixture(params=DENOISERS, ids=lambda denoiser: denoiser.__name__)
def build(request):
    """Builds the denoiser under test for the conditions that are given to it."""
    torch.manual_seed(0)
    return lambda conditions: _awake(request.param({"s": LINE}, conditions, **DENOISERS[request.param]))


def line(**changes):
    return {"s": replace(_noisy({"s": LINE}, {"s": (7,)}, 3)["s"], **changes)}


def run(model, noisy, conds=None):
    with torch.no_grad():
        return model(noisy, model.prepare(conds or {}))


def test_positions_are_heard_and_may_differ_by_row(build):
    model, positions = build({}), line()["s"].positions
    each = run(model, line(positions=positions.expand(3, *positions.shape)))["s"]
    torch.testing.assert_close(each, run(model, line())["s"], rtol=1e-9, atol=1e-9)
    assert (run(model, line(positions=positions * 1.5))["s"] - each).abs().max() > 1e-6


def test_a_row_of_padding_alone_stays_finite(build):
    assert run(build({}), line(valid=torch.zeros(3, 7, dtype=torch.bool)))["s"].isfinite().all()


def test_a_reference_has_a_grid_and_a_place_of_its_own(build):
    model, z = build({}), keyed.normal(("r",), range(3), (2, 3)).double()
    near, far = (Reference(z, grid_positions(LINE.axes, (3,), start).double()) for start in (0.0, 3.0))
    one, two = (run(model, line(references=(r,)))["s"] for r in (near, far))
    assert one.shape == (3, 2, 7) and (one - two).abs().max() > 1e-6
    both, swapped = run(model, line(references=(near, far)))["s"], run(model, line(references=(far, near)))["s"]
    torch.testing.assert_close(both, swapped, rtol=1e-9, atol=1e-9)


def test_prepared_once_equals_prepared_each_time(build):
    model = build({"text": TEXT})
    conds = {"text": Cond(tokens=torch.randn(3, 4, 6).double(), vector=torch.randn(3, 5).double())}
    prepared = model.prepare(conds)
    for level in (0.1, 0.9):
        noisy = line(level=torch.full((3,), level).double())
        torch.testing.assert_close(model(noisy, prepared)["s"], model(noisy, model.prepare(conds))["s"], rtol=0, atol=0)
    full = {"text": replace(conds["text"], mask=torch.ones(3, 4, dtype=torch.bool))}
    torch.testing.assert_close(run(model, line(), full)["s"], run(model, line(), conds)["s"], rtol=1e-9, atol=1e-9)


def test_checkpointing_changes_no_gradient(build):
    grads, model = [], build({})
    for model.checkpoint in (False, True):
        model.zero_grad()
        model(line(), model.prepare({}))["s"].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_half_precision_is_close_and_trains(build):
    model, given = build({"text": TEXT}).float(), line()["s"]
    noisy = {"s": replace(given, z=given.z.float(), level=given.level.float(), known=given.z[:, 0] > 1)}
    conds = {"text": Cond(torch.randn(3, 4, 6), torch.ones(3, 4, dtype=torch.bool), vector=torch.randn(3, 5))}
    whole = run(model, noisy, conds)["s"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(noisy, model.prepare(conds))["s"]
    out.float().square().sum().backward()
    assert (out - whole).abs().max() < 0.05 * whole.abs().max() + 0.02
    assert all(p.grad.isfinite().all() for p in model.parameters())
