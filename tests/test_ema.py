"""Laws of the averages: the power-function profile, any width from snapshots, exact resume, sharded parameters, `mmldm ema`."""

from __future__ import annotations

import functools
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmldm import keyed, store, trained
from mmldm.commands import cli
from mmldm.diffusion import LearnedUncertainty, LogitNormal
from mmldm.pipeline import Pipeline
from mmldm.training import EMA, DiffusionTraining, Resume, Schedule, snapshots
from mmldm.training.snapshots import combination, power_exponent, products
from tests import two_shards
from tests.test_laws import sampling_training
from tests.test_pipeline import FAKES, SPEC
from tests.test_training import Endless, Stop, adamw, make_model, make_training

WIDTHS = (0.05, 0.10)


class Weights(nn.Module):
    """A module of bare parameters, all of them exported."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value))

    def exported(self):
        return dict(self.named_parameters())

    def progress(self):
        return self.step / self.steps


def walk(steps, size=64):
    """A random walk that slows down, as weights under a falling learning rate: (steps, size), near 1."""
    moves = keyed.normal((5, "walk"), range(steps), (size,)) * torch.linspace(1, 0.1, steps)[:, None]
    return 1 + 0.05 * moves.cumsum(0)


class Told:
    """What a callback asks of a trainer."""

    is_global_zero, global_step = True, 0


def record(ema, values):
    """Run the callback over recorded parameters (steps, size) of one module."""
    module, trainer = Weights(weight=values[0].clone()), Told()
    module.steps = len(values)
    ema.on_train_start(trainer, module)
    for step, value in enumerate(values, 1):
        module.step = trainer.global_step = step
        with torch.no_grad():
            module.weight.copy_(value)
        ema.on_train_batch_end(trainer, module, None, None, step)
    ema.on_train_end(trainer, module)
    return module


# ---------------------------------------------------------------- profiles


@pytest.mark.parametrize("std", [0.02, 0.05, 0.15, 0.25])
def test_the_average_has_the_power_function_profile_of_its_width(std):
    steps, gamma = 4000, power_exponent(std)
    edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    share = (edges ** (gamma + 1)).diff()
    middle = (edges[1:] + edges[:-1]) / 2
    mean = float(share @ middle)
    assert float((share @ (middle - mean) ** 2).sqrt()) == pytest.approx(std, abs=1e-4)
    ema, values = EMA(std), walk(400, 2)
    record(ema, values)
    share = (torch.linspace(0, 1, 401, dtype=torch.float64) ** (gamma + 1)).diff()
    torch.testing.assert_close(ema.average["weight"].double(), share @ values.double(), rtol=1e-5, atol=0)


def test_inner_products_of_profiles_are_their_sums():
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 1000  # up to the longest, 200
    stds, steps = (0.05, 0.10, 0.2, 0.10), (200, 120, 57, 200)
    gammas = [power_exponent(s) for s in stds]
    rows = torch.stack([(g + 1) * grid**g / t ** (g + 1) * (grid <= t) for g, t in zip(gammas, steps, strict=True)])
    one = torch.tensor(gammas, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64)
    torch.testing.assert_close(products(*one, *one), rows @ rows.T / 1000, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("std", [0.01, 0.287])
def test_a_combination_is_the_nearest_and_keeps_constants(std):
    steps = [n * 50 for n in range(1, 17)] * 2
    stds = [0.05] * 16 + [0.10] * 16
    weights, residual = combination(stds, steps, std, 800)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-10) and residual > 0.1
    gammas = torch.tensor([power_exponent(s) for s in stds]).double()
    profile = lambda g, t: (torch.linspace(0, 1, 80_001).double() ** (g + 1) * (800 / t) ** (g + 1)).clamp(max=1).diff()  # noqa: E731
    basis = torch.stack([profile(g, t) for g, t in zip(gammas, steps, strict=True)], 1)
    wanted = profile(power_exponent(std), 800)
    error = lambda w: float((basis @ w - wanted).norm() / wanted.norm())  # noqa: E731
    assert error(weights) == pytest.approx(residual, rel=2e-3)
    for i in range(5):
        nudge = keyed.normal((i,), [0], (32,))[0].double()
        assert error(weights + 1e-3 * (nudge - nudge.mean())) > error(weights)


@pytest.mark.parametrize("std, bound", [(0.02, 0.12), (0.03, 0.04), (0.07, 0.005), (0.12, 0.005), (0.15, 0.012), (0.2, 0.03)])
def test_a_width_from_snapshots_is_the_tracked_one(std, bound, tmp_path):
    values = walk(1600)
    record(EMA(WIDTHS, tmp_path), values)
    tracked, other = EMA(std), EMA(0.05)
    record(tracked, values), record(other, values)
    made = snapshots.reconstruct(tmp_path, std)
    assert len(snapshots.find(tmp_path)) == 32 and made.step == 1600 and made.stds == WIDTHS and made.residual < bound
    wanted, near = tracked.average["weight"], other.average["weight"]
    error = (made.tensors["weight"] - wanted).norm() / (near - wanted).norm()
    assert float(error) < bound
    kinds = {s.step: load_file(s.path)["weight"].dtype for s in snapshots.find(tmp_path)}
    assert [step for step, kind in kinds.items() if kind == torch.float32] == [1600]


def test_a_tracked_width_comes_back_to_the_bit_and_more_snapshots_are_nearer(tmp_path):
    values, residuals = walk(400, 8), []
    for count in (4, 8, 32):
        ema = EMA(WIDTHS, tmp_path / str(count), count)
        record(ema, values)
        for std in WIDTHS:
            made = snapshots.reconstruct(tmp_path / str(count), std)
            assert torch.equal(made.tensors["weight"], ema.averages[std]["weight"]) and (made.count, made.residual) == (1, 0)
        found = snapshots.find(tmp_path / str(count))
        residuals.append(combination([s.std for s in found], [s.step for s in found], 0.07, 400)[1])
    assert residuals[0] > 2 * residuals[1] > 10 * residuals[2]


def test_what_does_not_fit_into_float16_is_kept_whole(tmp_path):
    large, small = torch.tensor([1e5, 1.0]), torch.tensor([0.1, 3e-5])
    snapshots.save(tmp_path, 0.1, 7, {"large": large, "small": small}, half=True)
    made = snapshots.reconstruct(tmp_path, 0.1).tensors
    assert torch.equal(made["large"], large) and torch.allclose(made["small"], small, rtol=1e-3, atol=1e-7)
    assert not torch.equal(made["small"], small)


def test_what_cannot_be_made_says_why(tmp_path):
    with pytest.raises(ValueError, match="got none"):
        snapshots.reconstruct(tmp_path, 0.1)
    record(EMA(0.05, tmp_path, 8), walk(80, 2))
    with pytest.raises(ValueError, match=r"got 0.15 with a relative residual of \d\d%"):
        snapshots.reconstruct(tmp_path, 0.15)
    for wrong in (0.0, -1.0, 0.3):
        with pytest.raises(ValueError, match="wanted a relative standard deviation"):
            snapshots.reconstruct(tmp_path, wrong)
    for wrong in ([], [0.1, 0.1]):
        with pytest.raises(ValueError, match="different widths"):
            EMA(wrong)


# ---------------------------------------------------------------- training


def fit(module, folder, until, total, count=4, std=WIDTHS):
    """Train to step `until` of `total`, keeping snapshots in folder/ema; continues what is in folder/resume."""
    ema, resume, data = EMA(std, folder / "ema", count), Resume(folder / "resume", every=until), Endless(4)
    trainer = lightning.Trainer(
        max_steps=total, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ema, resume, Stop(until)], use_distributed_sampler=False,
        default_root_dir=folder,
    )  # fmt: skip
    if resume.latest:
        data.start = torch.load(resume.latest, weights_only=True)["global_step"]
    trainer.fit(module, data, ckpt_path=resume.latest, weights_only=True)
    return ema


def learned_training():
    weighting = LearnedUncertainty(16)
    return DiffusionTraining(make_model(), LogitNormal(), weighting, adamw, schedule=Schedule(2, 0.5), batch_size=4)


@pytest.mark.parametrize("make", [learned_training, functools.partial(make_training, "codec")])
def test_resuming_gives_the_same_averages_and_snapshots(make, tmp_path):
    whole = make()
    once = fit(whole, tmp_path / "whole", 10, 10)
    fit(make(), tmp_path / "parts", 4, 10)
    assert {s.step for s in snapshots.find(tmp_path / "parts" / "ema")} == {3}
    shutil.copytree(tmp_path / "parts" / "resume", tmp_path / "before")
    fit(make(), tmp_path / "parts", 8, 8)  # another future: ends at 8
    assert {s.step for s in snapshots.find(tmp_path / "parts" / "ema")} == {3, 5, 7, 8}
    shutil.rmtree(tmp_path / "parts" / "resume")
    shutil.copytree(tmp_path / "before", tmp_path / "parts" / "resume")
    second = make()
    twice = fit(second, tmp_path / "parts", 10, 10)
    files = [sorted(p.name for p in (tmp_path / f / "ema").iterdir()) for f in ("whole", "parts")]
    assert files[0] == files[1] and [s.step for s in snapshots.find(tmp_path / "whole" / "ema")] == [3, 3, 6, 6, 9, 9, 10, 10]
    for name in files[0]:
        one, two = (load_file(tmp_path / f / "ema" / name) for f in ("whole", "parts"))
        assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    for std in WIDTHS:
        assert all(torch.equal(x, twice.averages[std][n]) for n, x in once.averages[std].items())
    assert all(torch.equal(x, second.state_dict()[n]) for n, x in whole.state_dict().items())


def test_only_exported_parameters_are_averaged_and_the_first_width_is_carried(tmp_path):
    module = learned_training()
    ema = fit(module, tmp_path, 6, 6)
    names = {n for n, p in module.named_parameters() if p.requires_grad}
    assert names - set(ema.average) == {"weighting.weight"} and all(n.startswith("model.") for n in ema.average)
    state = torch.load(Resume(tmp_path / "resume").latest, weights_only=True)["state_dict"]
    assert bool((state["weighting.weight"] != 0).any())  # trained, and kept for the resume
    raw = {n: p.detach().clone() for n, p in module.named_parameters()}
    with ema.averaged(module):
        assert all(torch.equal(p, ema.averages[0.05].get(n, raw[n])) for n, p in module.named_parameters())
    assert all(torch.equal(p, raw[n]) for n, p in module.named_parameters())
    with pytest.raises(ValueError, match=r"ema=\[0.05,0.1\]"):
        fit(learned_training(), tmp_path, 8, 8, std=0.07)


def test_a_clock_gives_snapshots_too(tmp_path):
    module, started = make_training("diffusion"), []
    module.minutes, module.elapsed = 1.0, lambda: 7.5 * len(started)  # over as the eighth step begins
    start = module.on_train_batch_start
    module.on_train_batch_start = lambda batch, batch_idx: started.append(0) or start(batch, batch_idx)
    fit(module, tmp_path, 100, 100)
    assert [s.step for s in snapshots.find(tmp_path / "ema") if s.std == 0.05] == [2, 4, 6, 7]


# ---------------------------------------------------------------- sharded


def test_shards_are_averaged_in_place_and_gathered_when_written(tmp_path):
    one = two_shards.train(tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "tests.two_shards", port, str(tmp_path / "two")]
    other = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE)
    try:
        two = two_shards.sharded(port, 0, tmp_path / "two")
        told = other.communicate(timeout=100)[1].decode()
    finally:
        other.kill()
    assert other.returncode == 0, told
    for key, state in one.items():
        assert all(float((two[key][n] - x).abs().max()) < 1e-6 for n, x in state.items()), key
    files = [sorted(p.name for p in (tmp_path / f / "ema").iterdir()) for f in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 8
    for name in files[0]:
        a, b = (load_file(tmp_path / f / "ema" / name) for f in ("one", "two"))
        assert all(float((a[n] - b[n]).abs().max()) < (1e-6 if "step0000008" in name else 1e-3) for n in a)


# ---------------------------------------------------------------- mmldm ema


def exported(folder):
    """A run with snapshots and its model, of the fakes."""
    module = sampling_training()
    ema = fit(module, folder, 8, 8, 8)
    facts = {"weights": "the first", "steps": 8, "numbers": {"val/loss": 1.0}}
    card = '- weights: the first\n- val/loss: 1.0\n```\nmmldm generate run "a prompt"\n```\n'
    with ema.averaged(module):
        trained.save_diffusion(folder / "model", SPEC, module.model, facts, card)
    return ema


def test_the_command_writes_a_model_of_any_width(tmp_path, capsys):
    ema = exported(tmp_path)
    assert cli.main(["ema", str(tmp_path), "--std", "0.1"]) == 0
    out = tmp_path / "model-ema-0.1"
    assert str(out) in capsys.readouterr().out
    before, after = store.load_model(tmp_path), store.load_model(out)
    assert after.spec == before.spec and set(after.parts) == set(before.parts) and "numbers" not in after.facts
    assert "width 0.1" in after.facts["weights"] and after.facts["steps"] == 8
    text = (out / "README.md").read_text()
    assert "width 0.1" in text and "val/loss" not in text and f"mmldm generate {out}" in text
    for part in ("denoiser", "conditions"):
        for name, tensor in after.parts[part].items():
            assert torch.equal(tensor, ema.averages[0.1][f"model.{part}.{name}"])
            assert not torch.equal(tensor, before.parts[part][name])
    assert all(torch.equal(x, before.parts["codec.signal"][n]) for n, x in after.parts["codec.signal"].items())
    (sample,) = Pipeline.load(out, FAKES, "cpu").generate({"scale": [0.5]}, seed=1)
    assert bool(torch.isfinite(sample.streams["signal"]).all())
    assert cli.main(["ema", str(tmp_path / "model"), "--std", "0.05", "--out", str(tmp_path / "same")]) == 0
    same = store.load_model(tmp_path / "same")
    assert all(torch.equal(x, before.parts[p][n]) for p in same.parts for n, x in same.parts[p].items())


def test_the_command_averages_a_codec_and_tells_what_it_cannot(tmp_path, capsys):
    module = make_training("codec")
    ema = fit(module, tmp_path, 8, 8, 8)
    spec = {"codecs": {"signal": SPEC["codecs"]["signal"]}, "clips": {"signal": {}}}
    with ema.averaged(module):
        trained.save_codec(tmp_path / "model", spec, module.codec, module.whitening, {}, "")
    assert cli.main(["ema", str(tmp_path), "--std", "0.1"]) == 0
    part = store.load_model(tmp_path / "model-ema-0.1").parts["codec.signal"]
    assert torch.equal(part["down.weight"], ema.averages[0.1]["codec.down.weight"]) and "whitening.mean" in part
    assert cli.main(["ema", str(tmp_path), "--std", "0.004"]) == 2
    assert "relative residual" in capsys.readouterr().err and not (tmp_path / "model-ema-0.004").exists()
    snapshots.save(tmp_path / "ema", 0.1, 8, {"codec.other": torch.zeros(1)})
    assert cli.main(["ema", str(tmp_path), "--std", "0.1"]) == 2
    assert "codec.other" in capsys.readouterr().err


def test_an_earlier_moment_uses_no_later_snapshot(tmp_path):
    for step in (10, 20, 30):
        for std in (0.05, 0.1):
            snapshots.save(tmp_path, std, step, {"w": torch.full((2,), float(step))})
    assert snapshots.reconstruct(tmp_path, 0.05, 25).step == 20
    assert torch.equal(snapshots.reconstruct(tmp_path, 0.05, 25).tensors["w"], torch.full((2,), 20.0))
    with pytest.raises(ValueError, match="from 10 to 30, .* got 5"):
        snapshots.reconstruct(tmp_path, 0.05, 5)
    snapshots.find(tmp_path)[0].path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="a whole snapshot"):
        snapshots.reconstruct(tmp_path, 0.06, 30)
