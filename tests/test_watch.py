"""What a person sees of a training: speed where the logger writes, losses by level and bucket, progress, the run's state."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace

import lightning
import pytest
import torch
from rich.console import Console

from mmldm.diffusion import EDM, Cosine, EDMPrediction, Flow, Linear, LogitNormal, UnitF, V
from mmldm.training import Curves, DiffusionTraining, Progress, Speed, State
from mmldm.training.diffusion import LEVELS
from mmldm.training.tally import Tally, bins
from tests.test_training import Endless, adamw, make_batch, make_model, make_training


class Watched(Endless):
    """Training batches of two buckets in turn, and a validation of two batches of unequal size."""

    def __init__(self, streams=("signal",), buckets=("short", "long")):
        super().__init__(4, streams)
        self.buckets = buckets

    def train_dataloader(self):
        loader = super().train_dataloader()
        return (replace(batch, bucket=self.buckets[i % len(self.buckets)]) for i, batch in enumerate(loader))

    def val_dataloader(self):
        parts = ((0, 1, 2), (3,)) if len(self.buckets) > 1 else ((0, 1, 2, 3),)
        made = [replace(make_batch(part, self.streams), bucket=self.buckets[i]) for i, part in enumerate(parts)]
        return torch.utils.data.DataLoader(made, batch_size=None)


def watched(callbacks, folder, steps, every, training=None, data=None, **options):
    """A training of `steps` steps under callbacks, with a logger that keeps (step, numbers) at each `every`."""
    written = []

    class Kept(lightning.pytorch.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            written.append((step + 1, metrics))

        def save(self):
            pass

    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=Kept(folder), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, use_distributed_sampler=False, log_every_n_steps=every,
        default_root_dir=folder, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(training or make_training("codec"), data or Endless(4))
    return written


def test_speed_is_logged_whenever_the_logger_writes(tmp_path):
    written = watched([Speed()], tmp_path, 7, 3)
    assert [step for step, numbers in written if "speed/steps_per_s" in numbers] == [3, 6]
    assert all(numbers["speed/samples_per_s"] == pytest.approx(4 * numbers["speed/steps_per_s"]) for _, numbers in written)


def test_the_share_of_waiting_is_that_of_the_time_between_steps(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mmldm.training.watch.time.monotonic", lambda: now[0])

    class Slow(Endless):
        def train_dataloader(self):
            for batch in super().train_dataloader():
                now[0] += 3.0  # to load it
                yield batch

    training = make_training("codec")
    step = training.training_step

    def training_step(batch, batch_idx):
        now[0] += 1.0
        return step(batch, batch_idx)

    training.training_step = training_step
    written = watched([Speed()], tmp_path, 9, 3, training, Slow(4))
    assert [numbers["speed/waiting_for_data"] for _, numbers in written][1:] == pytest.approx([0.75] * 2)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_how_far_a_training_is(terminal, tmp_path):
    text = io.StringIO()
    progress = Progress(every=0.0, console=Console(file=text, force_terminal=terminal, width=120))
    progress.every = 0.0
    watched([progress], tmp_path, 4, 50)
    said = text.getvalue()
    assert "step 4, loss 1." in said and "steps/s" in said and "100 %" in said
    if not terminal:
        lines = said.splitlines()
        assert len(lines) == 5 and lines[1].startswith(" 50 %  step 2") and "0:00:00 left" in lines[1] and "\x1b" not in said


# ---------------------------------------------------------------- losses by level and bucket


def test_a_tally_gives_means_and_begins_anew():
    tally = Tally()
    tally.add(["a", "b"], torch.tensor([1.0, 5.0]), torch.tensor([2, 0]))
    tally.add(["a", "b"], torch.tensor([3.0, 0.0]), torch.tensor([2, 0]))
    tally.add(["c"], torch.tensor(6.0), 3)
    assert tally.means() == {"a": 1.0, "c": 2.0} and tally.means() == {}


def test_bins_take_the_nearest_centre_and_leave_out_what_is_outside():
    sums, counts = bins(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0.05, 0.19, 0.95, -1.0]), LEVELS)
    assert sums.tolist() == [3.0, 0, 0, 0, 4.0] and counts.tolist() == [2, 0, 0, 0, 1]


@pytest.mark.parametrize(("path", "prediction"), [(Linear(), Flow()), (Cosine(), V()), (EDM(), EDMPrediction(0.5))])
def test_the_levels_are_the_same_share_of_noise_on_every_path(path, prediction):
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    t = prediction.unheard(path, levels)
    assert torch.allclose(prediction.heard(path, t), levels, atol=1e-9) and bool((t.diff() > 0).all())


def test_the_loss_of_a_validation_is_a_mean_over_its_samples_however_they_are_cut(tmp_path):
    names = ("one", "two")

    def validated(buckets):
        torch.manual_seed(0)
        training = DiffusionTraining(make_model(streams=names), LogitNormal(), UnitF(), adamw, batch_size=4)
        data = Watched(names, buckets)
        written = watched([], tmp_path, 1, 1, training, data, val_check_interval=1, check_val_every_n_epoch=None)
        return {k: v for _, numbers in written for k, v in numbers.items() if k.startswith("val/")}

    whole, cut = validated(("all",)), validated(("short", "long"))
    assert {f"val/level/{level}" for level in LEVELS} | {"val/loss", "val/loss/one", "val/loss/two"} <= set(whole)
    for name in whole.keys() - {"val/bucket/all"}:
        assert cut[name] == pytest.approx(whole[name], rel=1e-5), name
    assert whole["val/bucket/all"] == pytest.approx(whole["val/loss"], rel=1e-6)
    assert (3 * cut["val/bucket/short"] + cut["val/bucket/long"]) / 4 == pytest.approx(whole["val/loss"], rel=1e-5)
    assert whole["val/loss"] == pytest.approx((whole["val/loss/one"] + whole["val/loss/two"]) / 2, rel=1e-6)


def test_absent_streams_do_not_enter_the_loss_by_level():
    names = ("one", "two")
    training = DiffusionTraining(make_model(streams=names), LogitNormal(), UnitF(), adamw, batch_size=4)
    for _, sums, counts in training.losses_by_level(make_batch(range(4), names, absent=("two",))):
        assert counts.tolist() == [4, 0] and sums[0] > 0 and sums[1] == 0


@pytest.mark.parametrize("kind", ["codec", "diffusion"])
def test_training_losses_by_level_and_bucket_are_means_over_the_window(kind, tmp_path):
    seen, training = [], make_training(kind)
    log = training.log_terms

    def log_terms(prefix, terms, batch):
        if prefix == "train":
            seen.append((batch.bucket, float(terms["loss"])))
        log(prefix, terms, batch)

    training.log_terms = log_terms
    written = watched([], tmp_path, 4, 2, training, Watched())
    shown = [numbers for _, numbers in written]
    assert [step for step, _ in written] == [2, 4]
    for window, numbers in zip((seen[:2], seen[2:]), shown, strict=True):
        for bucket, loss in window:
            assert float(numbers[f"train/bucket/{bucket}"]) == pytest.approx(loss, rel=1e-5)
    levels = {k for numbers in shown for k in numbers if k.startswith("train/level/")}
    assert (not levels) if kind == "codec" else levels <= {f"train/level/{level}" for level in LEVELS} and len(levels) > 2


def test_curves_have_every_window_and_every_validation(tmp_path):
    told = []
    curves = Curves(lambda step, numbers: told.append((step, numbers)), every=2)
    data = Watched()
    watched([curves], tmp_path, 5, 2, make_training("diffusion"), data, val_check_interval=2, check_val_every_n_epoch=None)
    assert [step for step, numbers in told if "train/loss" in numbers] == [2, 4]
    assert [step for step, numbers in told if "val/level/0.5" in numbers] == [2, 4]
    assert all(any(k.startswith("train/level/") for k in numbers) for _, numbers in told if "train/loss" in numbers)


# ---------------------------------------------------------------- the run's state


def state_of(folder):
    return json.loads((folder / "state.json").read_text())


def test_a_state_says_how_far_a_run_is_and_how_it_ended(tmp_path):
    told = []
    with State(tmp_path / "state.json", {"kind": "codec"}, lambda facts: told.append(dict(facts)), every=0.0) as state:
        assert state_of(tmp_path)["state"] == "running" and state_of(tmp_path)["pid"] == os.getpid()
        watched([state], tmp_path, 4, 1)
    last = state_of(tmp_path)
    assert (last["state"], last["step"], last["steps"], last["kind"], last["device"]) == ("finished", 4, 4, "codec", "cpu")
    assert [facts["step"] for facts in told if facts["state"] == "running" and "step" in facts] == [0, 1, 2, 3, 4, 4]
    assert [facts["left"] is None for facts in told if "left" in facts][:3] == [True, False, False]
    assert [p.name for p in tmp_path.iterdir() if "state" in p.name] == ["state.json"]


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (SystemExit(0), "stopped", None), (SystemExit(143), "stopped", None), (KeyboardInterrupt(), "stopped", None),
        (OSError(28, "No space left on device"), "failed", "OSError: [Errno 28] No space left on device"),
        (ValueError("\n first line\nsecond"), "failed", "ValueError: first line"), (MemoryError(), "failed", "MemoryError"),
    ],
)  # fmt: skip
def test_a_state_tells_what_ended_a_run(error, state, told, tmp_path):
    with pytest.raises(type(error)), State(tmp_path / "state.json"):
        raise error
    assert (state_of(tmp_path)["state"], state_of(tmp_path).get("error")) == (state, told)


def test_a_state_says_where_a_run_failed_and_its_own_failure_does_not_hide_why(tmp_path):
    def tell(facts):
        if facts["state"] != "running":
            raise OSError(28, "No space left on device")

    class Breaks(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"), State(tmp_path / "state.json", tell=tell) as state:
        watched([Breaks(), state], tmp_path, 4, 1)
    assert (state_of(tmp_path)["state"], state_of(tmp_path)["step"]) == ("failed", 3)


def test_a_state_that_cannot_be_written_does_not_end_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    with State(tmp_path / "file" / "state.json"):
        pass
