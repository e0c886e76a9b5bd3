"""Laws of several processes: weights in shards or whole copies of them train what one process trains, and go on anywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from mmldm.training import snapshots
from tests import many_processes as many
from tests.test_training import make_training as small_training
from tests.two_processes import finished


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder in which two processes trained, and what came out of them and of one process."""
    folder = tmp_path_factory.mktemp("processes")
    started = many.launched(folder, "ddp", "sharded")
    one = outcome(*many.train(folder / "one"))
    finished(started)
    return folder, {"one": one, **torch.load(folder / "found.pt", weights_only=True)}


def outcome(shown, module, ema, trainer):
    state = {name: x.clone() for name, x in module.state_dict().items()}
    return {"state": state, "shown": shown, "ema": copy.deepcopy(ema.state_dict()["averages"])}


def apart(one, two):
    """The largest difference of tensors by name."""
    assert one.keys() == two.keys()
    return max(float((x.double() - two[name].double()).abs().max()) for name, x in one.items())


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_two_processes_train_a_joint_model_with_conditions_as_one_does(kind, runs):
    one, two = runs[1]["one"], runs[1][kind]
    assert apart(one["state"], two["state"]) < 1e-12
    assert all(apart(average, two["ema"][std]) < 1e-6 for std, average in one["ema"].items())
    untrained = many.make_training().state_dict()
    assert apart(untrained, one["state"]) > 1e-2  # and each did train


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_previews_of_two_processes_are_those_of_one(kind, runs):
    one, two = (run["shown"][-1] for run in (runs[1]["one"], runs[1][kind]))
    assert len(one) == len(two) == 2 and all(torch.allclose(a, b, atol=1e-7) for a, b in zip(one, two, strict=True))


def test_a_sharded_run_goes_on_in_one_process_and_in_two(runs):
    folder, found = runs
    assert (folder / "parted" / "resume" / "step-00000004.ckpt").is_file()
    alone = outcome(*many.train(folder / "parted"))
    assert apart(alone["state"], found["one"]["state"]) < 1e-12  # and "sharded" itself went on in two
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(alone["shown"][-1], found["one"]["shown"][-1], strict=True))


def test_checkpoints_in_shards_hold_what_those_of_one_process_hold(runs):
    one, two = (torch.load(runs[0] / name / "resume" / "step-00000006.ckpt", weights_only=True) for name in ("one", "sharded"))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    (first,), (second,) = one["optimizer_states"], two["optimizer_states"]
    assert first["state"].keys() == second["state"].keys() and len(first["state"]) > 30
    for number, state in first["state"].items():
        assert apart(state, second["state"][number]) < 1e-12


def test_snapshots_of_a_sharded_run_make_any_width(runs):
    files = [sorted(p.name for p in (runs[0] / name / "ema").iterdir()) for name in ("one", "sharded")]
    assert files[0] == files[1] and len(files[0]) >= 4
    last = [load_file(runs[0] / name / "ema" / "std0.05-step0000006.safetensors") for name in ("one", "sharded")]
    assert apart(*last) < 1e-6
    one, two = (snapshots.reconstruct(runs[0] / name / "ema", 0.07).tensors for name in ("one", "sharded"))
    assert apart(one, two) < 1e-3


def test_what_cannot_be_sharded_says_so():
    codec = small_training("codec")
    codec.configure_model()
    codec._device_mesh = object()  # as the strategy sets it
    with pytest.raises(ValueError, match="trainer=ddp"):
        codec.configure_model()


@pytest.mark.slow
def test_muon_and_bfloat16_train_in_shards_too(tmp_path):
    started = many.launched(tmp_path, "half", "muon")
    whole = outcome(*many.train(tmp_path / "muon1", module=many.muon()))
    half = outcome(*many.train(tmp_path / "half1", module=many.half(), precision="bf16-mixed"))
    finished(started)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert apart(whole["state"], found["muon"]["state"]) < 1e-12
    for one, two in zip(half["shown"][-1], found["half"]["shown"][-1], strict=True):
        assert torch.allclose(one, two, atol=0.02)
