"""What a run shows and says of itself: previews on its page, training facts, the model card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import lightning
import torch

from mmldm import config, pipeline
from mmldm.codec import MelCodec
from mmldm.commands.job import Job
from mmldm.media import Page
from mmldm.training import CodecTraining, Resume
from mmldm.training.watch import Shown

__all__ = ["card", "facts", "kind", "previews", "status"]


def previews(job: Job, count: int) -> Callable[[lightning.LightningModule], Iterable[Shown]]:
    """A function that shows `count` reconstructions of a codec, or samples of a diffusion model, of fixed validation items."""

    def draw(module: lightning.LightningModule) -> Iterable[Shown]:
        if not count:
            return
        rows = job.data.validation_rows(count)
        captions = [str(row.get("text") or "") for row in rows]
        if isinstance(module, CodecTraining):
            x = job.data.validation_batch(count).media[module.stream]
            y = module.reconstruct(x.to(module.device)).float().cpu()
            pairs = [tensor for pair in zip(x, y, strict=True) for tensor in pair]
            names = [name for i in range(len(x)) for name in (f"original: {captions[i]}", "reconstruction")]
            yield "reconstructions", job.medias[module.stream], pairs, names
        else:
            made = pipeline.Pipeline(module.model, job.spec, trust=None).generate(
                fields_of(module, rows), seed=job.cfg.seed, batch_size=count
            )
            for stream, media in job.medias.items():
                yield (
                    "samples" if len(job.medias) == 1 else f"samples: {stream}",
                    media,
                    [s.streams[stream].float().cpu() for s in made],
                    captions,
                )

    return draw


def fields_of(module: Any, rows: list[dict]) -> dict[str, list]:
    """The rows' values of the fields that the model's conditions read; a `text` field names the samples in any case."""
    keys = {key for key, _ in module.model.conditions.readers.values()} | {"text"}
    return {key: [row.get(key) for row in rows] for key in sorted(keys)}


def kind(job: Job) -> dict[str, Any]:
    """What is trained: a codec or a diffusion model, of which streams."""
    return {"kind": "codec" if isinstance(job.module, CodecTraining) else "diffusion", "streams": sorted(job.medias)}


def status(page: Page, resume: Resume) -> Callable[[Mapping[str, Any]], None]:
    """A function that writes the page, at its head how the run fares by the facts of its state."""

    def tell(facts: Mapping[str, Any]) -> None:
        words = [f"**{facts['state']}**"]
        if "step" in facts:
            of = f" of {facts['steps']:,}" if facts["steps"] > 0 else ""
            words += [f"step {facts['step']:,}{of}, {100 * facts['share']:.0f} %"]
        if facts["state"] == "running" and facts.get("left"):
            words += [f"{timedelta(seconds=round(facts['left']))} left"]
        if resume.saved >= 0:
            words += [f"last checkpoint at step {resume.saved:,}"]
        words += [f"`{facts['error']}`"] if "error" in facts else []
        words += [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["time"]))]
        page.text("Status", " · ".join(words), name="state")
        page.write()

    return tell


def facts(job: Job, trainer: lightning.Trainer) -> dict[str, Any]:
    """How the model came to be: steps, time, data, numbers, versions."""
    numbers = {k: round(float(v), 6) for k, v in trainer.callback_metrics.items()}
    return {
        "steps": trainer.global_step,
        "minutes": round(job.module.elapsed() / 60, 3),
        "batch_size": job.cfg.data.batch_size,
        "seed": job.cfg.seed,
        "data": job.data.fingerprint(),
        "numbers": numbers,
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
        "device": str(job.module.device),
    }


def card(job: Job, facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    what = "codec" if kind(job)["kind"] == "codec" else "latent diffusion model"
    streams = ", ".join(f"{name} {media.shape}" for name, media in job.medias.items())
    lines = [
        f"# {job.run.name}: a {what}",
        "",
        f"- streams: {streams}",
        f"- trained: {facts['steps']} steps of {facts['batch_size']}, {facts['minutes']} minutes on {facts['device']}",
        f"- data: {facts['data']}",
        f"- weights: {facts['weights']}",
        *[f"- {name}: {value}" for name, value in facts["numbers"].items() if name.startswith("val/")],
        "",
        "## Use",
        "",
        "```",
        f'mmldm generate {job.run} "a prompt"' if what != "codec" else training_with(job),
        "```",
        "",
        "## Limits",
        "",
        "What it makes follows its training data, faults and biases included; mark what is made as made.",
        "",
    ]
    return "\n".join(lines)


def training_with(job: Job) -> str:
    """The command that trains a diffusion model on the latents of this run's codec, or lets one use this run's vocoder."""
    ((stream, codec),) = ((stream, job.module.codec) for stream in job.medias)
    if isinstance(codec, MelCodec):
        return f'mmldm generate MODEL "a prompt" --vocoder {job.run}'
    name = f"{stream}_diffusion"
    known = (config.CONF_DIR / "experiment" / f"{name}.yaml").is_file()
    chosen = f"experiment={name} codec.{stream}={job.run}" if known else f"+codec.{stream}={job.run}"
    outside = f"{type(codec).__module__}.{type(codec).__qualname__}"
    trust = "" if config.is_target(outside, ()) else f" trust=[{outside}]"
    return f"mmldm train {chosen}{trust} data.path=DIR run=runs/{stream}"
