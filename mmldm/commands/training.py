"""From a composed configuration to a trained-model folder: what `mmldm train` and `mmldm demo` run."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig
from rich.console import Console

from mmldm import config, pipeline, trained
from mmldm.asked import check_guidance
from mmldm.commands import cards, levels
from mmldm.commands.codecs import build_codecs, codec_task, embed_codecs
from mmldm.commands.job import Job
from mmldm.commands.sources import build_data
from mmldm.diffusion.draws import KeyCell, KnownMixture
from mmldm.media import MediaLogger, Page
from mmldm.training import EMA, CodecTraining, Curves, DiffusionTraining, Progress, Resume, Samples, Speed

__all__ = ["dry_run", "prepare", "train"]

console = Console(stderr=True)


def train(cfg: DictConfig) -> Path:
    """Train what the configuration describes and write RUN/model; returns the run folder. The same call continues a run."""
    job = prepare(cfg)
    resume, ema = Resume(job.run / "resume", cfg.checkpoint_every), EMA(cfg.ema, job.run / "ema", cfg.snapshots)
    if resume.latest and (done := finished(job, resume.latest)):
        console.print(done)
        return job.run
    page = Page(job.run, title=job.run.name)
    trainer = build_trainer(job, page, resume, ema)
    if resume.latest:
        step = torch.load(resume.latest, weights_only=True, map_location="cpu")["global_step"]
        job.data.set_start(step * cfg.trainer.accumulate_grad_batches)
        keep_log(job.run / "logs" / "metrics.csv", step)
        console.print(f"continuing {job.run} from step {step}")
    with resume.signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(job.module, job.data, ckpt_path=resume.latest, weights_only=True)
        if resume.stopped:
            console.print(f"stopped at step {trainer.global_step}, saved; the same command continues")
            raise SystemExit(0)
        if resume.validated != trainer.global_step:
            trainer.validate(job.module, job.data, verbose=False)
        ema.on_train_end(trainer, job.module)  # where nothing was left to train
    if trainer.is_global_zero:
        job.module.to(trainer.strategy.root_device)
        with ema.averaged(job.module):
            export(job, trainer, ema)
        page.write()
        console.print(f"trained {trainer.global_step} steps; model in {job.run / 'model'}, page in {job.run / 'index.html'}")
    return job.run


def finished(job: Job, checkpoint: Path) -> str:
    """A sentence where this run has ended already and left its model; else nothing."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    steps, minutes = job.cfg.trainer.max_steps, job.cfg.minutes
    over = 0 < steps <= state["global_step"] or (minutes is not None and state["seconds"] >= 60 * minutes)
    if not (over and (job.run / "model" / "manifest.json").is_file()):
        return ""
    return f"{job.run} has ended at step {state['global_step']}; raise trainer.max_steps or minutes, or choose another run="


def keep_log(path: Path, step: int) -> None:
    """Put the numbers logged before a resume aside: the CSV logger begins a new file."""
    if path.is_file():
        path.rename(path.with_name(f"metrics-before-{step}.csv"))


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
    if isinstance(job.module, DiffusionTraining):
        shapes = {s: job.module.model.latent_shape(s, media.shape) for s, media in job.medias.items()}
        picture = levels.draw(job.module, shapes, job.run / "weights.png")
        console.print(f"  weight of the loss and density of the levels over lambda: {picture}", soft_wrap=True)


# ---------------------------------------------------------------- building


def prepare(cfg: DictConfig) -> Job:
    """Check the whole configuration, then build model, data and training module."""
    named = embed_codecs(cfg)
    config.check(cfg)
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
        module, readers = task(model=model, **drawn, **common), model.conditions.readers
        check_guidance(
            model, pipeline.Pipeline(model, spec, trust=None).sampler().guidance
        )  # what cannot be sampled is told now
    data = build_data(cfg, medias, readers, codecs, cfg.trainer.accumulate_grad_batches)
    run = config.run_folder(cfg)
    run.mkdir(parents=True, exist_ok=True)
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


def build_trainer(job: Job, page: Page, resume: Resume, ema: EMA) -> lightning.Trainer:
    """The Lightning trainer with every callback, in the order that validation needs."""
    cfg, log = job.cfg, MediaLogger(page)
    loggers = [config.build(node, save_dir=str(job.run / "logs")) for node in cfg.logger.values() if node]
    shown = cards.previews(job, cfg.previews)
    callbacks = [Curves(log.scalars), Samples(shown, log.media), ema, resume, Speed(cfg.trainer.log_every_n_steps), Progress()]
    options = {
        "precision": precision(cfg.trainer.precision),
        "check_val_every_n_epoch": None,
        "logger": loggers or False,
        "callbacks": callbacks,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(job.run),
    }
    if isinstance(job.module, CodecTraining):  # which does both by itself
        options |= {"gradient_clip_val": None, "accumulate_grad_batches": 1}
    return config.build(cfg.trainer, **options)


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
    facts["weights"] = f"power-function average, relative width {ema.stds[0]:g}"
    module.eval()
    if isinstance(module, CodecTraining):
        module.fit_whitening(job.data.sample_batches(job.cfg.whitening_batches))
        trained.save_codec(job.run / "model", job.spec, module.codec, module.whitening, facts, cards.card(job, facts))
    else:
        trained.save_diffusion(job.run / "model", job.spec, module.model, facts, cards.card(job, facts))
