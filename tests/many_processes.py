"""A joint model with two conditions, trained in one process, in two, and in two that share its weights out between them."""

import functools
import os
import shutil
import sys
from pathlib import Path

import lightning
import torch

from mmldm import keyed
from mmldm.conditioner import ConditionSet, ScalarConditioner, TextConditioner
from mmldm.denoiser import DiT
from mmldm.diffusion import First, Flow, KnownMixture, Linear, LogitNormal
from mmldm.diffusion.weighting import LearnedUncertainty
from mmldm.interfaces import Batch
from mmldm.model import Model
from mmldm.training import EMA, DiffusionTraining, Resume, Samples, Schedule
from mmldm.training.muon import Muon
from mmldm.training.sharding import Sharded
from tests.fakes import Blocks
from tests.two_processes import two

GLOBAL, STEPS, STOP = 8, 6, 4
ROOT = Path(__file__).resolve().parent.parent
adamw = functools.partial(torch.optim.AdamW, lr=1e-2)


def make_model():
    """Two streams, a text (tokens and a vector) and a number."""
    torch.manual_seed(0)
    codecs = {"one": Blocks(), "two": Blocks(latent_channels=2)}
    text = TextConditioner(width=16, depth=1, heads=2, words=7, pieces=8)
    conditions = ConditionSet({"text": text, "scale": ScalarConditioner("scale", 0, 1, width=6)}, dropout=0.3)
    denoiser = DiT({s: c.geometry for s, c in codecs.items()}, conditions.widths, width=24, depth=2, heads=2)
    return Model(codecs, conditions, denoiser, Linear(), Flow())


def make_training(optimizer=adamw, dtype=torch.float64, **options):
    """The training of that model, in float64 unless told otherwise."""
    known, weighting = KnownMixture([(0.5, First())]), LearnedUncertainty()
    schedule, model = Schedule(2, 0.5), make_model()
    return DiffusionTraining(model, LogitNormal(), weighting, optimizer, known, schedule, GLOBAL, **options).to(dtype)


def make_batch(first, count, dtype):
    """Rows of the endless data; stream two is absent in every third."""
    places = torch.arange(first, first + count)
    media = {s: keyed.normal((7, s), places, (2, 16)).to(dtype) for s in ("one", "two")}
    there = {"one": torch.full((count, 1), 16), "two": torch.where(places % 3 == 0, 0, 16)[:, None]}
    words = {"ids": 1 + (places[:, None, None] + torch.arange(4)[:, None]) % 14, "mask": torch.ones(count, 4, dtype=torch.bool)}
    fields = {"text": words, "scale": keyed.uniform((7, "scale"), places)}
    present = {"text": places % 4 > 0, "scale": torch.ones(count, dtype=torch.bool)}
    return Batch(places, places, media, {}, there, None, fields, present)


class Data(lightning.LightningDataModule):
    """This process's part of every global batch, from the first step on that a resumed training lacks."""

    def __init__(self, start=0, dtype=torch.float64):
        super().__init__()
        self.start, self.dtype = start, dtype

    def _part(self, step):
        size = GLOBAL // self.trainer.world_size
        return make_batch(step * GLOBAL + self.trainer.global_rank * size, size, self.dtype)

    def train_dataloader(self):
        return (self._part(step) for step in range(self.start, 1000))

    def val_dataloader(self):
        return torch.utils.data.DataLoader([self._part(500)], batch_size=None)


def draw(module):
    """What the denoiser says of one fixed batch, through `prepare` and `forward` as a sampler calls them."""
    batch = make_batch(900, 4, next(module.model.denoiser.parameters()).dtype)
    z, valid = module.latents(batch, sample=False)
    t = {s: torch.full((4,), 0.5, dtype=x.dtype) for s, x in z.items()}
    context = {s: module.model.context(s, x.shape[2:]) for s, x in z.items()}
    prepared = module.model.prepare(module.model.conditions(batch.fields))
    hat = module.model.denoise(z, t, context, prepared)
    yield "samples", None, [hat["one"], hat["two"]], ["one", "two"]


class Until(lightning.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.step


def train(folder, strategy="auto", devices=1, until=STEPS, module=None, **options):
    """Train (on) in `folder` up to step `until` of STEPS; what the run shows, and its module, averages and trainer."""
    folder, shown = Path(folder), []
    module = module or make_training()
    resume, ema = Resume(folder / "resume", every=STOP), EMA((0.05, 0.10), folder / "ema", 4)
    data = Data(dtype=next(module.parameters()).dtype)
    if resume.latest:
        data.start = torch.load(resume.latest, weights_only=True)["global_step"]
    show = lambda section, step, media, xs, captions: shown.append([x.clone() for x in xs])  # noqa: E731
    trainer = lightning.Trainer(
        max_steps=STEPS, strategy=strategy, devices=devices, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        gradient_clip_val=1.0, val_check_interval=STOP, check_val_every_n_epoch=None, default_root_dir=folder,
        callbacks=[Samples(draw, show), ema, resume, Until(until)], **options,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume.latest, weights_only=True)
    return shown, module, ema, trainer


def fit(module, steps, **options):
    """Train a module for some steps and keep nothing."""
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, devices=1,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, gradient_clip_val=1.0, **options,
    )  # fmt: skip
    trainer.fit(module, Data(dtype=next(module.parameters()).dtype))


def launched(folder, *kinds):
    """Start two processes that train each of `kinds` in a folder."""
    return two("tests.many_processes", folder, *kinds)


def half():
    return make_training(dtype=torch.float32)


def muon():
    return make_training(functools.partial(Muon, lr=1e-2))


def main(folder, *kinds):
    """Everything that two processes do for the tests, one after the other; the first writes what came out."""
    torch.set_num_threads(1)
    folder, found, first = Path(folder), {}, int(os.environ["LOCAL_RANK"]) == 0
    for kind in kinds:
        strategy = (lambda: "ddp") if kind == "ddp" else Sharded
        options = {"half": {"module": half(), "precision": "bf16-mixed"}, "muon": {"module": muon()}}.get(kind, {})
        if kind == "sharded":  # in two parts, of which the first is kept for another to go on with
            train(folder / kind, strategy(), 2, until=STOP)
            if first:
                shutil.copytree(folder / kind, folder / "parted")
            torch.distributed.barrier()
        shown, module, ema, trainer = train(folder / kind, strategy(), 2, **options)
        state = dict(trainer.strategy.lightning_module_state_dict())
        found[kind] = {"state": state, "shown": shown, "ema": ema.state_dict()["averages"]}
    if first:
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
