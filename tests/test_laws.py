"""Laws across parts: batch sizes in generation, a sample in training = the exported model's, resume, the clock, processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch

from mmldm import trained
from mmldm.conditioner import ConditionSet, TextConditioner
from mmldm.denoiser import DiT
from mmldm.diffusion import First, Flow, KeyCell, KnownMixture, Linear, LogitNormal, UnitF
from mmldm.model import Model
from mmldm.pipeline import Given, Known, Pipeline, Placed
from mmldm.training import EMA, DiffusionTraining, Resume, Samples, Schedule
from tests import two_processes
from tests.fakes import Blocks, Mixer, Scale
from tests.test_pipeline import FAKES, SPEC
from tests.test_training import Endless, Stop, adamw, fit, make_batch, make_training

PROMPTS = {"text": ["a red circle", "rain", None, "a low hum, rising", "stars", "a", "bells in the rain", "two words"]}


def transformer():
    """A real denoiser and text encoder on the fake codec, nothing in them zero."""
    torch.manual_seed(0)
    codec, conditions = Blocks(), ConditionSet({"text": TextConditioner(width=16, words=64, pieces=64)})
    denoiser = DiT({"signal": codec.geometry}, conditions.widths, width=32, depth=2, heads=2)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model({"signal": codec}, conditions, denoiser, Linear(), Flow()).eval().requires_grad_(False)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("given", [Given(), Given({"signal": Known(torch.full((2, 16), 0.3), torch.arange(16) < 4)}),
                                   Given(references={"signal": [Placed(torch.full((2, 4), 0.7), 1.5)]})])  # fmt: skip
def test_a_batch_of_eight_is_eight_batches_of_one(dtype, bound, given):
    pipeline = Pipeline(transformer().to(dtype), SPEC)
    options = {"seed": 5, "guidance": 2.0, "known": given.known, "references": given.references}
    eight, one = ([s.streams["signal"] for s in pipeline.generate(PROMPTS, batch_size=b, **options)] for b in (8, 1))
    assert eight[0].dtype == dtype
    for a, b in zip(eight, one, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < bound
    assert float((eight[0] - eight[1]).abs().max()) > 1e-3


# ---------------------------------------------------------------- training


class Validated(Endless):
    """The endless data with two validation batches."""

    def val_dataloader(self):
        batches = [make_batch(range(900, 904)), make_batch(range(904, 908))]
        return torch.utils.data.DataLoader(batches, batch_size=None)


def sampling_training():
    """A training whose model a pipeline can sample."""
    torch.manual_seed(0)
    codec, conditions = Blocks(), ConditionSet({"scale": Scale()})
    model = Model({"signal": codec}, conditions, Mixer({"signal": codec.geometry}, conditions.widths), Linear(), Flow())
    known = KnownMixture([(0.3, First()), (0.3, KeyCell())])
    return DiffusionTraining(model, LogitNormal(), UnitF(), adamw, known, Schedule(2, 0.5), batch_size=4)


def run(module, data, folder, until, total, validate, *callbacks, accumulate=1):
    """Train to step `until` of `total`, validating every `validate` batches with the average swapped in; continues."""
    ema, resume = EMA(0.1), Resume(folder, every=until)
    trainer = lightning.Trainer(
        max_steps=total, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks, ema, resume, Stop(until)], gradient_clip_val=1.0,
        use_distributed_sampler=False, accumulate_grad_batches=accumulate, default_root_dir=folder,
        val_check_interval=validate, check_val_every_n_epoch=None, num_sanity_val_steps=0,
    )  # fmt: skip
    if resume.latest:
        data.start = torch.load(resume.latest, weights_only=True)["global_step"] * accumulate
    trainer.fit(module, data, ckpt_path=resume.latest, weights_only=True)
    return trainer, ema


def test_resume_is_exact_across_a_validation_of_the_average(tmp_path):
    plain = make_training("diffusion")
    average = fit(plain, Endless(4), tmp_path / "plain", 6, 6)
    seen = []
    shown = Samples(lambda module: seen.append(module.state_dict()) or [], None)
    first = make_training("diffusion")
    run(first, Validated(4), tmp_path / "parts", 4, 6, 2, shown)
    second = make_training("diffusion")
    trainer, resumed = run(second, Validated(4), tmp_path / "parts", 6, 6, 2, shown)
    assert len(seen) >= 2 and trainer.global_step == 6
    for (name, a), b in zip(plain.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for name, tensor in average.average.items():
        assert torch.equal(tensor, resumed.average[name]), name
        assert not torch.equal(tensor, plain.state_dict()[name])


def test_a_sample_in_training_is_the_exported_models_sample_to_the_bit(tmp_path):
    fields, shown = {"scale": [0.1, 0.5, None]}, []

    def draw(module):
        samples = Pipeline(module.model, SPEC, trust=None).generate(fields, seed=3, batch_size=3)
        shown.append(torch.stack([s.streams["signal"] for s in samples]))
        return []

    module = sampling_training()
    _, ema = run(module, Validated(4), tmp_path / "resume", 6, 6, 3, Samples(draw, None))
    with ema.averaged(module):
        trained.save_diffusion(tmp_path / "model", SPEC, module.model, {}, "")
    loaded = Pipeline.load(tmp_path, trust=FAKES, device="cpu").generate(fields, seed=3)
    assert len(shown) == 2 and not torch.equal(*shown)
    assert torch.equal(torch.stack([s.streams["signal"] for s in loaded]), shown[-1])


def test_the_clock_ends_a_training_on_a_step_boundary(tmp_path):
    module, data, calls = make_training("diffusion", size=12), Endless(4), []
    module.minutes, module.elapsed = 1.0, lambda: 9.0 * len(calls)  # over after the seventh micro-batch
    step = module.training_step
    module.training_step = lambda batch, batch_idx: calls.append(batch.position) or step(batch, batch_idx)
    trainer, _ = run(module, data, tmp_path, 100, 100, 1000, accumulate=3)
    assert len(calls) == 9 and trainer.global_step == 3
    assert torch.load(Resume(tmp_path).latest, weights_only=True)["global_step"] == 3


def test_two_processes_are_one_at_the_same_global_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).resolve().parent.parent
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.two_processes", str(tmp_path / "two.pt")]
    pair = [
        subprocess.Popen(command, cwd=root, env={**os.environ, **shared, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        one = two_processes.train().state_dict()
        told = [process.communicate(timeout=100)[1].decode() for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], told
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    untrained = two_processes.make_model().double().state_dict()
    for name, tensor in one.items():
        assert float((tensor - two[name]).abs().max()) < 1e-9, name
    assert max(float((one[f"model.{n}"] - t).abs().max()) for n, t in untrained.items()) > 1e-2
