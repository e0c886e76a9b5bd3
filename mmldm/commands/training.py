"""From a composed configuration to a trained-model folder: what `mmldm train` and `mmldm demo` run."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from mmldm import config, pipeline, trained
from mmldm.asked import check_guidance
from mmldm.commands import cards, continuing, faults, levels, starting
from mmldm.commands.codecs import build_codecs, codec_task, embed_codecs
from mmldm.commands.job import Job
from mmldm.commands.ranges import check_ranges
from mmldm.commands.sources import build_data, condition_readers
from mmldm.commands.waiting import Waiting
from mmldm.data import bucket_table
from mmldm.diffusion.draws import KeyCell, KnownMixture
from mmldm.media import MediaLogger, Page
from mmldm.training import EMA, CodecTraining, Curves, DiffusionTraining, Faults, Progress, Resume, Samples, Speed, State
from mmldm.training.processes import is_sharded, whole

__all__ = ["dry_run", "prepare", "train"]

PLAIN = {
    "check_val_every_n_epoch": None,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}  # what Lightning brings of what is here already
console = Console(stderr=True, quiet=bool(rank_zero_only.rank))


def train(cfg: DictConfig) -> Path:
    """Train what the configuration describes and write RUN/model; returns the run folder. The same call continues a run."""
    try:
        with Waiting() as waiting:
            return start(cfg, waiting)
    except Exception as error:
        told = faults.explained(error, cfg, config.run_folder(cfg))
        if told is None:
            raise
        raise told from error


def start(cfg: DictConfig, waiting: Waiting) -> Path:
    """Build what the configuration describes and train it, unless it has ended; returns the run folder."""
    waiting.begin("building the model")
    job = prepare(cfg)
    waiting.begin("reading the data: its headers, or the index of its cache")
    resume, ema = Resume(job.run / "resume", cfg.checkpoint_every), EMA(cfg.ema, job.run / "ema", cfg.snapshots)
    changed = continuing.begin(job, resume.latest is not None)
    if resume.latest and (done := finished(job, resume.latest)):
        console.print(done)
        return job.run
    page = Page(job.run, title=job.run.name)
    with State(job.run / "state.json", cards.kind(job), cards.status(page, resume)) as state:
        run(job, page, resume, ema, state, changed, waiting)
    return job.run


def run(job: Job, page: Page, resume: Resume, ema: EMA, state: State, changed: list[str], waiting: Waiting) -> None:
    """Train, from the newest checkpoint where there is one, and write RUN/model."""
    cfg, step = job.cfg, 0
    trainer = build_trainer(job, page, resume, ema, state, waiting)
    if resume.latest:
        step = opened(resume.latest)["global_step"]
        job.data.set_start(step * cfg.trainer.accumulate_grad_batches)
        console.print(f"continuing {job.run} from step {step}{' with ' * bool(changed)}{', '.join(changed)}")
    for logger in trainer.loggers:
        if hasattr(logger, "resume"):
            logger.resume(step)
    with resume.signals(), faults.ending_together(trainer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(job.module, job.data, ckpt_path=resume.latest, weights_only=True)
        if not resume.stopped:
            finish(job, trainer, page, resume, ema)
    if resume.stopped:
        number = signal.Signals(resume.signal or signal.SIGTERM)
        if trainer.is_global_zero:
            where = f"at step {resume.saved}, saved" if resume.saved >= 0 else "before the first step"
            console.print(f"stopped by {number.name} {where}; the same command continues")
        if number != signal.SIGINT and callable(handler := signal.getsignal(number)):
            handler(number, None)  # of who started this: it may queue the job again
        raise SystemExit(128 + number)


def finish(job: Job, trainer: lightning.Trainer, page: Page, resume: Resume, ema: EMA) -> None:
    """Validate what was not validated yet, and write RUN/model."""
    if resume.validated != trainer.global_step:
        trainer.validate(job.module, job.data, verbose=False)
    ema.on_train_end(trainer, job.module)  # where nothing was left to train
    if trainer.is_global_zero or is_sharded(job.module):
        job.module.to(trainer.strategy.root_device)
        with ema.averaged(job.module):
            export(job, trainer, ema)
    if trainer.is_global_zero:
        page.write()
        console.print(f"trained {trainer.global_step} steps; model in {job.run / 'model'}, page in {job.run / 'index.html'}")


def finished(job: Job, checkpoint: Path) -> str:
    """A sentence where this run has ended already and left the model of its last step; else nothing."""
    state, model = opened(checkpoint), job.run / "model" / "manifest.json"
    step, steps, minutes = state["global_step"], job.cfg.trainer.max_steps, job.cfg.minutes
    over = 0 < steps <= step or (minutes is not None and state["seconds"] >= 60 * minutes)
    if not over or not model.is_file() or json.loads(model.read_text(encoding="utf-8"))["facts"].get("steps") != step:
        return ""
    return f"{job.run} has ended at step {step}; raise trainer.max_steps or minutes, or choose another run="


def opened(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint, of which only what is asked for is read."""
    return torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)


def dry_run(cfg: DictConfig) -> None:
    """Build everything, print what would be trained on what, draw what each noise level weighs, and stop."""
    job = prepare(cfg)
    job.data.setup("fit")
    batch = next(iter(job.data.val_dataloader()))
    trained, all_of_them = (
        sum(p.numel() for p in parameters if p.requires_grad)
        for parameters in (job.module.exported().values(), job.module.parameters())
    )
    beside = f", {(all_of_them - trained) / 1e6:.2f} M beside it that are not exported" if all_of_them > trained else ""
    console.print(f"{type(job.module).__name__}: {trained / 1e6:.2f} M trained parameters{beside}")
    for stream, media in job.medias.items():
        codec = job.module.codec if isinstance(job.module, CodecTraining) else job.module.model.codecs[stream]
        console.print(f"  {stream}: media {media.shape} -> latent {codec.latent_shape(media.shape)}")
    console.print(f"  first validation batch: {len(batch)} items")
    told_data(job)
    if isinstance(job.module, DiffusionTraining):
        shapes = {s: job.module.model.latent_shape(s, media.shape) for s, media in job.medias.items()}
        picture = levels.draw(job.module, shapes, job.run / "weights.png")
        console.print(f"  weight of the loss and density of the levels over lambda: {picture}", soft_wrap=True)


def told_data(job: Job) -> None:
    """Print what lands in which bucket, and which files are dropped and why."""
    if job.data.buckets.several or job.data.buckets.tokens or len(job.data.members) > 1:
        console.print(bucket_table(job.data.table(), job.data.buckets.tokens))
    for name, report in job.data.reports.items():
        for file, reason in report.dropped[:10]:
            console.print(f"  dropped {file}: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        path = report.write(job.run / f"check{'-' * bool(name)}{name}.json")
        console.print(f"  {len(report.dropped)} files dropped; every file and reason: {path}", soft_wrap=True)


# ---------------------------------------------------------------- building


def prepare(cfg: DictConfig, reads: bool = True) -> Job:
    """Check the whole configuration, then build model, data and training module; without the data unless it `reads`."""
    named = embed_codecs(cfg)
    config.check(cfg)
    check_ranges(cfg)
    quiet()
    lightning.seed_everything(cfg.seed, verbose=False)
    if not cfg.codec:
        raise ValueError("wanted a codec, got none; choose for example codec=image_f4, or codec.image=RUN of a trained one")
    task = config.build(cfg.task)
    codecs, whitenings, spec = build_codecs(cfg, named)
    medias = {stream: codec.media for stream, codec in codecs.items()}
    common = {
        "optimizer": config.build(cfg.optimizer),
        "schedule": config.build(cfg.schedule),
        "batch_size": cfg.data.batch_size,
        "seed": cfg.seed,
        "minutes": cfg.minutes,
    }
    if issubclass(task.func, CodecTraining):
        module, readers = codec_task(cfg, task, codecs, common), {}
    else:
        spec |= diffusion_spec(cfg)
        model = trained.build_model(spec, codecs, whitenings, trust=None)
        for name, conditioner in model.conditions.conditioners.items():
            if (place := f"conditions.{name}") in named:
                conditioner.codec.load_state_dict(named[place])
        drawn = {name: config.build(cfg.diffusion[name] or None) for name in ("times", "weighting", "known")}
        module, readers = task(model=model, **drawn, **common), condition_readers(cfg.data, model.conditions)
        check_guidance(
            model, pipeline.Pipeline(model, spec, trust=None).sampler().guidance
        )  # what cannot be sampled is told now
    data = build_data(cfg, medias, readers, codecs, cfg.trainer.accumulate_grad_batches) if reads else None
    run = config.run_folder(cfg)
    run.mkdir(parents=True, exist_ok=True)
    starting.begin(cfg, module, run)
    return Job(cfg, run, module, data, spec, medias)


def diffusion_spec(cfg: DictConfig) -> dict[str, Any]:
    """What of the configuration belongs to the model: its parts, and the sampler it is used with by default."""
    parts = config.resolved(cfg.diffusion)
    sampler = {name: parts[name] for name in ("solver", "grid", "guidance", "steps")}
    named = {name: parts[name] or None for name in ("path", "prediction", "shift")}
    return {
        **named,
        "sampler": sampler,
        "knows": bool(cfg.diffusion.known),
        "references": knows_references(config.build(cfg.diffusion.known or None)),
        "conditions": config.resolved(cfg.conditions),
        "denoiser": config.resolved(cfg.denoiser),
    }


def knows_references(known: KnownMixture | None) -> bool:
    """Whether media beside the grid are given in training."""
    return known is not None and any(isinstance(draw, KeyCell) for _, draw in known.draws)


def build_trainer(job: Job, page: Page, resume: Resume, ema: EMA, state: State, waiting: Waiting) -> lightning.Trainer:
    """The Lightning trainer with every callback, in the order that validation needs."""
    cfg = job.cfg
    loggers = [config.build(node, save_dir=str(job.run / "logs")) for node in cfg.logger.values() if node]
    log = MediaLogger(page, [logger for logger in loggers if hasattr(logger, "media")])
    shown = cards.previews(job, cfg.previews)
    curves, speed = Curves(log.scalars, cfg.trainer.log_every_n_steps or 50), Speed(cfg.trainer.log_every_n_steps)
    callbacks = [curves, Samples(shown, log.media), ema, resume, faulty(job, resume), speed, Progress(), state, waiting]
    options = {
        "precision": precision(cfg.trainer.precision),
        "logger": loggers or False,
        "callbacks": callbacks,
        "default_root_dir": str(job.run),
    }
    if isinstance(job.module, CodecTraining):  # which does both by itself
        options |= {"gradient_clip_val": None, "accumulate_grad_batches": 1}
    return config.build(cfg.trainer, **PLAIN, **options)


def faulty(job: Job, resume: Resume) -> Faults:
    """What writes a step that is not finite, with all that `mmldm replay` needs, to RUN/faults."""

    def named(position: int) -> str:
        return str(job.data.train.row(position).get("file", ""))

    told = {**config.resolved(job.cfg, missing=True), "run": str(job.run)}
    return Faults(job.run / "faults", yaml.safe_dump(told, sort_keys=False), resume.checkpoints.path, named)


def precision(asked: str | None) -> str:
    """What is asked; without it bf16-mixed where the device computes in bfloat16, else 32-true."""
    if asked is not None:
        return asked
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32-true"


def quiet() -> None:
    """Lightning's own announcements say nothing about this training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


# ---------------------------------------------------------------- the end of a run


def export(job: Job, trainer: lightning.Trainer, ema: EMA) -> None:
    """Fit the whitening of a codec, then write the model folder."""
    module, facts = job.module, cards.facts(job, trainer)
    facts |= starting.facts(job.cfg)
    facts["weights"] = f"power-function average, relative width {ema.stds[0]:g}"
    module.eval()
    if isinstance(module, CodecTraining):
        module.fit_whitening(job.data.sample_batches(job.cfg.whitening_batches))
        trained.save_codec(job.run / "model", job.spec, module.codec, module.whitening, facts, cards.card(job, facts))
    else:
        state = trained.diffusion_state(module.model)
        parts = {part: {name: whole(x) for name, x in tensors.items()} for part, tensors in state.items()}
        if trainer.is_global_zero:
            trained.save_diffusion(job.run / "model", job.spec, module.model, facts, cards.card(job, facts), parts)
