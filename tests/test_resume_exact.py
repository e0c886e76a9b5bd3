"""Training 2N steps is training N, being killed and training N more, to the bit; plain Lightning fails the same test."""

from __future__ import annotations

import random
from unittest import mock

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from mmldm import config
from mmldm.commands import training
from mmldm.data import DataModule
from mmldm.training import EMA
from tests import resume_matrix
from tests.resume_matrix import AXES, BESIDE, Case, Trainings, differences, full, leg, pairwise, processes, product, tensors


@pytest.fixture(scope="session")
def trainings(tmp_path_factory):
    return Trainings(tmp_path_factory.mktemp("trainings"))


def check(case, trainings, run):
    whole, parts = trainings.whole(case), trainings.parts(case, run)
    for stop in case.stops if case.how == "killed" else ():
        parts.setdefault(name := f"log of train/loss {stop - 1}", whole[name])  # killed after the save, before the log
    found = differences(whole, parts)
    assert not found, "\n".join([f"{len(found)} differ", *found[:5]])


# ---------------------------------------------------------------- the matrix


@pytest.mark.parametrize("case", pairwise(), ids=str)
def test_a_training_that_was_stopped_equals_one_that_was_not(case, trainings, tmp_path):
    check(case, trainings, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("case", full(), ids=str)
def test_every_promised_combination(case, trainings, tmp_path):
    check(case, trainings, tmp_path / "run")


def test_the_short_matrix_covers_every_pair_and_the_long_one_every_combination():
    possible = set().union(*(case.pairs() for case in product(AXES | BESIDE)))
    assert set().union(*(case.pairs() for case in pairwise())) == possible
    promised = {tuple(getattr(case, name) for name in AXES) for case in full()}
    assert len(full()) == len(promised) == len(product(AXES))


def test_a_process_killed_within_a_step_is_the_same_as_one_that_raised(trainings, tmp_path):
    case = Case()
    words = trainings.words(case, tmp_path / "run")
    assert processes(words, stop=3, where="window", how="SIGKILL") == [-9]
    assert resume_matrix.saved_step(tmp_path / "run") == 2
    assert leg(words)
    assert not differences(trainings.whole(case), resume_matrix.left(tmp_path / "run"))


# ---------------------------------------------------------------- the test can fail


class Plain(lightning.LightningModule):
    """A diffusion training as it is usually written: noise and levels from the global generator."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = torch.nn.Linear(9, 8), []

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)

    def training_step(self, batch, batch_idx):
        z, index = batch
        self.seen += index.tolist()
        t, noise = torch.rand(len(z), 1), torch.randn_like(z)
        return (self.net(torch.cat([(1 - t) * z + t * noise, t], 1)) - (noise - z)).square().mean()

    def train_dataloader(self):
        z = torch.linspace(0, 1, 24 * 8).reshape(24, 8)
        return DataLoader(list(zip(z, torch.arange(24), strict=True)), 4, shuffle=True)


def plainly(folder, until, start=None):
    """A plain training up to a step: (ids seen, its checkpoint)."""
    lightning.seed_everything(0, verbose=False)
    module = Plain()
    trainer = lightning.Trainer(
        max_steps=until, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[EMAWeightAveraging(decay=0.9)], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=start, weights_only=False)
    trainer.save_checkpoint(folder / f"{until}.ckpt")
    return module.seen, torch.load(folder / f"{until}.ckpt", weights_only=False)


def test_plain_lightning_fails_the_same_test(tmp_path):
    seen, whole = plainly(tmp_path, 10)
    (first, _), (second, resumed) = plainly(tmp_path, 4), plainly(tmp_path, 10, tmp_path / "4.ckpt")
    assert seen == plainly(tmp_path, 10)[0] and first == seen[:16]
    assert second != seen[16:] and len(second) == len(seen[16:])
    differ = differences(tensors(whole["state_dict"]), tensors(resumed["state_dict"]))
    assert differ and differences(tensors(whole["optimizer_states"]), tensors(resumed["optimizer_states"]))


MUTANTS = {
    "noise from the global generator": (
        "mmldm.keyed.normal",
        lambda key, positions, shape: torch.randn(len(positions), *shape),
    ),
    "a loader that begins again": (DataModule, "set_start", lambda self, step: None),
    "averages that begin again": (EMA, "load_state_dict", lambda self, state: None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_test_finds(name, trainings, tmp_path):
    *place, wrong = MUTANTS[name]
    words, whole = trainings.words(Case(), tmp_path / "parts"), trainings.whole(Case())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place, wrong)
        if "global" in name:  # which changes an uninterrupted training too
            whole = trainings.parts(Case().whole, tmp_path / "whole")
        assert not leg(words, 3) and leg(words)
    with pytest.raises(AssertionError):  # of a step that was replayed, or of what is left
        assert not differences(whole, resume_matrix.left(tmp_path / "parts"))


# ---------------------------------------------------------------- nothing is drawn from the global generators


def generators():
    """The states of the global generators."""
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


def drawn(words):
    """Whether a training draws from the global generators between the end of building it and the end of the command."""
    build, states = training.build_trainer, []

    def watched(*parts):
        trainer = build(*parts)
        states.append(generators())
        return trainer

    with mock.patch.object(training, "build_trainer", watched):
        training.train(config.compose(words))
    return [a != b for a, b in zip(states[0], generators(), strict=True)]


RANDOM = {
    "diffusion": (Case(modality="audio", source="files"), ["previews=1", "conditions.dropout=0.5"]),
    "stochastic sampler": (Case(source="cache"), ["previews=1", "diffusion/solver=dpmpp_2m_sde", "ema=0.1"]),
    "codec": (
        Case("codec", "video", 3, source="files"),
        [
            "previews=1",
            "task.lengths={_target_: mmldm.training.lengths.Lengths, stills: 0.2}",
            "task.equivariance={_target_: mmldm.training.equivariance.ScaleEquivariance, probability: 0.5}",
        ],
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_training_validation_previews_and_export_draw_nothing_unkeyed(name, trainings, tmp_path):
    case, more = RANDOM[name]
    assert drawn([*trainings.words(case, tmp_path / "run"), *more]) == [False, False, False]


def test_what_is_drawn_unkeyed_is_found(trainings, tmp_path):
    with mock.patch("mmldm.keyed.normal", lambda key, positions, shape: torch.randn(len(positions), *shape)):
        assert drawn(trainings.words(Case(), tmp_path / "run")) == [True, False, False]


# ---------------------------------------------------------------- another number of processes, another accumulation


def close(trainings, case, run):
    """A run read the same items as the whole training, and came to its weights but for the rounding of what is float32 in any
    precision: norms, the loss."""
    trainings.whole(case)
    whole = trainings.folder / f"{case.whole}"
    assert resume_matrix.journal(run, "position") == resume_matrix.journal(whole, "position")
    one, two = (torch.load(resume_matrix.latest(r), weights_only=True) for r in (whole, run))
    assert one["global_step"] == two["global_step"]
    for name, tensor in one["state_dict"].items():
        assert float((tensor - two["state_dict"][name]).abs().max()) < 1e-6, name
    for std, average in one["callbacks"]["EMA"]["averages"].items():  # float32
        for name, tensor in average.items():
            assert float((tensor - two["callbacks"]["EMA"]["averages"][std][name]).abs().max()) < 1e-6, name


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("diffusion", 1, 2),
        pytest.param("diffusion", 2, 1, marks=pytest.mark.slow),
        pytest.param("codec", 1, 2, marks=pytest.mark.slow),
        pytest.param("codec", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(kind, before, after, trainings, tmp_path):
    case = Case(kind, precision="64-true", batch=8)
    words = trainings.words(case, tmp_path / "run")
    for count, stop in ((before, 3), (after, None)):
        if count == 1:
            assert leg(words, stop, how="asked") == (stop is None)
        else:
            processes(words, count, stop or 0)
    close(trainings, case, tmp_path / "run")


@pytest.mark.parametrize(("kind", "before", "after"), [("diffusion", 1, 2), ("codec", 2, 1)])
def test_a_run_goes_on_with_another_accumulation(kind, before, after, trainings, tmp_path):
    case = Case(kind, precision="64-true", adversary=kind != "codec", batch=8)
    words = trainings.words(case, tmp_path / "run")
    assert not leg([*words, f"trainer.accumulate_grad_batches={before}"], 3, how="asked")
    assert leg([*words, f"trainer.accumulate_grad_batches={after}"])
    close(trainings, case, tmp_path / "run")
