"""What makes sampling fast changes nothing beside: half-precision weights, what is computed once, compiling, reusing blocks."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmldm import keyed
from mmldm.denoiser import DiT
from mmldm.denoiser.memory import Memory, Reuse
from mmldm.diffusion import CFG, DPMpp2M, Flow, Linear, UniformGrid, UniPC, sample
from mmldm.diffusion.branches import Branch, Branches, take_rows
from mmldm.interfaces import Axis, Cond, CondWidths, Geometry, Noisy, Reference, grid_positions
from mmldm.model import Model
from mmldm.testing.parts import _awake
from tests.fakes import Blocks

ROWS, CELLS, SMALL = 3, (4, 6), {"width": 24, "depth": 4, "heads": 2}
PLANE = Geometry(2, (Axis("height", 8, 8, 1.0), Axis("width", 8, 8, 1.0)))
POSITIONS = grid_positions(PLANE.axes, CELLS)
TEXT = {"text": CondWidths(tokens=6, vector=5)}


def network(kind=torch.float64, **sizes):
    torch.manual_seed(0)
    return _awake(DiT({"z": PLANE}, TEXT, **{**SMALL, **sizes}, patch=2)).to(kind).requires_grad_(False)


def drawn(*shape, seed=0, kind=torch.float64):
    return keyed.normal(("speed", seed), range(shape[0]), shape[1:]).to(kind)


def asked(rows=ROWS, seed=1, kind=torch.float64):
    mask = torch.arange(5)[None] <= torch.arange(rows)[:, None] + 1
    return {"text": Cond(drawn(rows, 5, 6, seed=seed, kind=kind), mask, vector=drawn(rows, 5, seed=seed + 1, kind=kind))}


def seen(level=0.5, rows=ROWS, kind=torch.float64, **changes):
    return {"z": Noisy(drawn(rows, 2, *CELLS, kind=kind), torch.full((rows,), level, dtype=kind), POSITIONS, **changes)}


def model_of(denoiser):
    """A Model around a denoiser of a plane; its codec is never asked."""
    codec = Blocks(latent_channels=2)
    codec.axes = PLANE.axes
    return Model({"z": codec}, nn.Module(), denoiser, Linear(), Flow()).requires_grad_(False)


def sampled(model, guidance, steps=6, solver=None, rows=ROWS, kind=torch.float32):
    """All steps with the branches cond and null, from one preparation."""
    conds = {"text": Cond.cat([asked(rows, 1, kind)["text"], asked(rows, 5, kind)["text"]])}
    with torch.no_grad():
        prepared = model.prepare(conds)
    context = {"z": model.context("z", CELLS)}
    parts = {name: take_rows(prepared, i * rows, (i + 1) * rows) for i, name in enumerate(("cond", "null"))}
    branches = Branches({name: Branch(model.denoise, part, context) for name, part in parts.items()})
    noise, grid = {"z": drawn(rows, 2, *CELLS, seed=9, kind=kind)}, {"z": UniformGrid()(steps, model.path)}
    return sample(branches, noise, grid, solver or UniPC(2), model.path, guidance, context)["z"]


def counted(monkeypatch, owner, name):
    """How often a method is called."""
    calls, real = [], getattr(owner, name)

    def count(*args, **given):
        calls.append(1)
        return real(*args, **given)

    monkeypatch.setattr(owner, name, count)
    return calls


# ---------------------------------------------------------------- weights in half precision


def test_a_network_of_half_precision_takes_and_gives_full_precision():
    model = model_of(network(torch.float32))
    z_t, t, context = {"z": drawn(ROWS, 2, *CELLS).float()}, {"z": torch.full((ROWS,), 0.37)}, {"z": model.context("z", CELLS)}
    with torch.no_grad():
        whole = model.predict(z_t, t, context, model.prepare(asked(kind=torch.float32)))["z"]
        model.denoiser.to(torch.bfloat16)
        for kind in (torch.float32, torch.bfloat16):
            half = model.predict(z_t, t, context, model.prepare(asked(kind=kind)))["z"]
            assert half.dtype == torch.float32
            assert 0 < (half - whole).abs().max() < 0.05 * whole.abs().max()
    assert model.prepare(asked(kind=torch.float32)).context[0][0].dtype == torch.bfloat16


def test_levels_and_positions_stay_exact_in_half_precision():
    whole, half = network(torch.float32), network(torch.float32).to(torch.bfloat16)
    exact = {name: b for name, b in whole.named_buffers() if "frequency" in name}
    assert len(exact) == 2
    for name, buffer in half.named_buffers():
        assert name not in exact or (buffer.dtype == torch.float32 and torch.equal(buffer, exact[name]))
    assert all(b.dtype == torch.float64 for b in network().buffers())
    assert all(b.is_meta and b.dtype == torch.float32 for b in half.to("meta").buffers())


# ---------------------------------------------------------------- computed once


def test_what_no_level_changes_is_computed_once_per_sample(monkeypatch):
    model = model_of(network(torch.float32))
    layouts, tokens = counted(monkeypatch, model.denoiser, "_layout"), counted(monkeypatch, model.denoiser, "prepare")
    sampled(model, CFG(3.0), solver=DPMpp2M())
    assert len(layouts) == len(tokens) == 1
    sampled(model, CFG(3.0, (-1.0, 1.0)), solver=DPMpp2M())
    assert len(tokens) == 2 and len(layouts) == 3  # one for both branches, one for cond alone


@pytest.mark.parametrize("change", ["positions", "known", "valid", "reference", "rows"])
def test_what_is_computed_once_follows_what_it_depends_on(change):
    denoiser, known = network(), torch.zeros(ROWS, *CELLS, dtype=torch.bool)
    known[:, :2, :2] = True
    at = grid_positions(PLANE.axes, (2, 2))
    other = {
        "positions": lambda: seen(0.3) | {"z": replace(seen(0.3)["z"], positions=POSITIONS * 2)},
        "known": lambda: seen(0.3, known=known),
        "valid": lambda: seen(0.3, valid=~known),
        "reference": lambda: seen(0.3, references=(Reference(drawn(ROWS, 2, 2, 2, seed=4), at),)),
        "rows": lambda: seen(0.3, rows=1),
    }[change]()
    conds = asked(1 if change == "rows" else ROWS)
    with torch.no_grad():
        fresh, plain = denoiser(other, denoiser.prepare(conds))["z"], denoiser(seen(), denoiser.prepare(asked()))["z"]
        prepared = denoiser.prepare(asked())
        assert torch.equal(denoiser(seen(), prepared)["z"], plain)
        rows = take_rows(prepared, 0, 1) if change == "rows" else prepared
        for _ in range(2):
            torch.testing.assert_close(denoiser(other, rows)["z"], fresh, rtol=1e-9, atol=1e-9)
        assert torch.equal(denoiser(seen(), prepared)["z"], plain)


def test_nothing_is_kept_where_gradients_are_computed():
    denoiser = network().requires_grad_(True)
    noisy, prepared = seen(), denoiser.prepare(asked())
    with torch.no_grad():
        denoiser(noisy, prepared)
    denoiser(noisy, prepared)["z"].square().sum().backward()
    assert denoiser.place.weight.grad is not None and denoiser.place.weight.grad.abs().max() > 0


def test_branches_prepared_apart_run_as_one_batch(monkeypatch):
    model = model_of(network(torch.float32))
    calls = counted(monkeypatch, model.denoiser, "forward")
    context = {"z": model.context("z", CELLS)}
    with torch.no_grad():
        branches = Branches({n: Branch(model.denoise, model.prepare(asked(seed=i, kind=torch.float32)), context)
                             for i, n in enumerate(("cond", "null"))})  # fmt: skip
        out = branches({"z": drawn(ROWS, 2, *CELLS).float()}, {"z": torch.full((ROWS,), 0.5)}, ("cond", "null"))
    assert len(calls) == 1 and not torch.equal(out["cond"]["z"], out["null"]["z"])


def test_sampling_changes_no_argument_and_equals_training_code():
    denoiser, noisy = network(), seen()
    before = noisy["z"].z.clone()
    with torch.no_grad():
        prepared = denoiser.prepare(asked())
        context = [[t.clone() for t in pair] for pair in prepared.context]
        fast = denoiser(noisy, prepared)["z"]
        again = denoiser(noisy, prepared)["z"]
    plain = denoiser(noisy, denoiser.prepare(asked()))["z"]  # with gradients: no padding, nothing in place
    assert torch.equal(fast, again) and torch.equal(noisy["z"].z, before)
    assert all(torch.equal(a, b) for p, q in zip(context, prepared.context, strict=True) for a, b in zip(p, q, strict=True))
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 8])
def test_eight_rows_equal_eight_samples(rows):
    model = model_of(network())
    whole = sampled(model, CFG(3.0, (-1.0, 2.0)), rows=8, kind=torch.float64)
    torch.testing.assert_close(sampled(model, CFG(3.0, (-1.0, 2.0)), rows=rows, kind=torch.float64), whole[:rows],
                               rtol=1e-9, atol=1e-9)  # fmt: skip


def test_the_network_never_waits_for_the_device():
    """On the meta device every question to the host (a number, a truth value) is an error."""
    denoiser, meta = network(torch.float32).to("meta"), torch.device("meta")
    mask = torch.empty(ROWS, *CELLS, dtype=torch.bool, device=meta)
    z, level = torch.empty(ROWS, 2, *CELLS, device=meta), torch.empty(ROWS, device=meta)
    positions = grid_positions(PLANE.axes, CELLS).to(meta)
    beside = Reference(z, positions, torch.empty(ROWS, dtype=torch.bool, device=meta))
    text = Cond(torch.empty(ROWS, 5, 6, device=meta), mask[:, 0, :5], vector=torch.empty(ROWS, 5, device=meta))
    for reuse in (None, Reuse(2)):
        denoiser.reuse = reuse
        with torch.no_grad():
            prepared = denoiser.prepare({"text": text})
            for noisy in (Noisy(z, level, positions), Noisy(z, level, positions, mask, mask, (beside,))):
                for _ in range(3):
                    assert denoiser({"z": noisy}, prepared)["z"].shape == z.shape


# ---------------------------------------------------------------- compiling


@pytest.mark.parametrize("interval, graphs", [((-math.inf, math.inf), 1), ((-1.0, 1.0), 2)], ids=["everywhere", "interval"])
def test_sampling_compiles_once_per_batch_size(interval, graphs):
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    model = model_of(network(torch.float32, depth=1))
    guidance = CFG(3.0, interval)
    plain = sampled(model, guidance, steps=20)
    torch._dynamo.reset()
    try:
        model.denoiser.compile(backend=backend, fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=graphs == 1):
            fast = [sampled(model, guidance, steps=20) for _ in range(2)]
    finally:
        torch._dynamo.reset()
    assert len(found) == graphs
    for out in fast:
        torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- reusing blocks


def test_a_middle_run_at_every_call_changes_nothing():
    model = model_of(network())
    plain = sampled(model, CFG(3.0), kind=torch.float64)
    model.denoiser.reuse = Reuse(1)
    torch.testing.assert_close(sampled(model, CFG(3.0), kind=torch.float64), plain, rtol=1e-9, atol=1e-9)
    model.denoiser.reuse = Reuse(3, first=2, last=2)  # no block is between
    torch.testing.assert_close(sampled(model, CFG(3.0), kind=torch.float64), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("every, runs", [(1, 6), (2, 3), (3, 2), (4, 2)])
def test_the_middle_runs_as_often_as_asked(monkeypatch, every, runs):
    model = model_of(network(torch.float32))
    ends = [counted(monkeypatch, model.denoiser.blocks[i], "forward") for i in (0, 3)]
    middle = [counted(monkeypatch, model.denoiser.blocks[i], "forward") for i in (1, 2)]
    model.denoiser.reuse = Reuse(every)
    sampled(model, CFG(3.0), steps=6, solver=DPMpp2M())
    assert [len(calls) for calls in ends] == [6, 6] and [len(calls) for calls in middle] == [runs, runs]


def test_reuse_errs_a_little_and_less_with_more_blocks():
    model = model_of(network())
    plain = sampled(model, CFG(3.0), steps=20, kind=torch.float64)
    errors = []
    for reuse in (Reuse(2, 2, 1), Reuse(2), Reuse(5)):
        model.denoiser.reuse = reuse
        errors.append(float((sampled(model, CFG(3.0), steps=20, kind=torch.float64) - plain).square().mean().sqrt()))
    assert 0 < errors[0] < errors[1] < errors[2] < 0.2 * float(plain.square().mean().sqrt())


def test_what_is_reused_belongs_to_the_same_rows():
    denoiser = network()
    with torch.no_grad():
        prepared = denoiser.prepare(asked(2))
        one, two = (take_rows(prepared, i, i + 1) for i in range(2))
        noisy = seen(rows=1)
        fresh = denoiser(noisy, two)["z"]
        denoiser.reuse = Reuse(9)
        denoiser(noisy, one)
        torch.testing.assert_close(denoiser(noisy, two)["z"], fresh, rtol=1e-9, atol=1e-9)


def test_reuse_is_off_unless_asked_for_and_in_training():
    denoiser = network()
    assert denoiser.reuse is None
    plain = denoiser(seen(), denoiser.prepare(asked()))["z"]
    denoiser.reuse = Reuse(9)
    prepared = denoiser.prepare(asked())
    with torch.no_grad():
        denoiser(seen(0.1), prepared)
    with torch.enable_grad():
        torch.testing.assert_close(denoiser(seen(), prepared)["z"], plain, rtol=1e-9, atol=1e-9)


def test_numbers_that_mean_nothing_are_refused():
    for wrong in ({"every": 0}, {"first": -1}, {"last": -1}):
        with pytest.raises(ValueError, match="wanted"):
            Reuse(**wrong)


def test_a_memory_keeps_what_its_inputs_keep():
    memory, one, two, calls = Memory(), torch.ones(3), torch.ones(3), []

    def compute():
        calls.append(1)
        return len(calls)

    with torch.no_grad():
        given = [memory.recall("a", [x, None], compute) for x in (one, one[:], one, two, two, one)]
        assert given == [1, 1, 1, 2, 2, 3]
        assert [memory.recall("b", [one], compute, times=1) for _ in range(4)] == [4, 4, 5, 5]
        assert memory.recall("a", [one, one], compute) == 6 and memory.recall("a", [], compute) == 7
    assert [memory.recall("a", [], compute) for _ in range(2)] == [8, 9]
