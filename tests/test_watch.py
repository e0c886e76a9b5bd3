"""What a person sees of a training: speed where the logger writes, progress on a terminal and in a log."""

from __future__ import annotations

import io

import lightning
import pytest
from rich.console import Console

from mmldm.training import Progress, Speed
from tests.test_training import Endless, make_training


def watched(callback, folder, steps, every):
    """A training of `steps` steps under `callback`, with a logger that keeps (step, numbers) at each `every`."""
    written = []

    class Kept(lightning.pytorch.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            written.append((step + 1, metrics))

        def save(self):
            pass

    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=Kept(folder), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], use_distributed_sampler=False, log_every_n_steps=every,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(make_training("codec"), Endless(4))
    return written


def test_speed_is_logged_whenever_the_logger_writes(tmp_path):
    written = watched(Speed(), tmp_path, 7, 3)
    assert [step for step, numbers in written if "speed/steps_per_s" in numbers] == [3, 6]
    assert all(numbers["speed/samples_per_s"] == pytest.approx(4 * numbers["speed/steps_per_s"]) for _, numbers in written)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_how_far_a_training_is(terminal, tmp_path):
    text = io.StringIO()
    progress = Progress(every=0.0, console=Console(file=text, force_terminal=terminal, width=120))
    progress.every = 0.0
    watched(progress, tmp_path, 4, 50)
    said = text.getvalue()
    assert "step 4, loss 1." in said and "steps/s" in said and "100 %" in said
    if not terminal:
        lines = said.splitlines()
        assert len(lines) == 5 and lines[1].startswith(" 50 %  step 2") and "0:00:00 left" in lines[1] and "\x1b" not in said
