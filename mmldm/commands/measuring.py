"""What `mmldm evaluate` and `mmldm demo` measure of trained models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from mmldm import store
from mmldm.commands.fidelity import fidelity
from mmldm.commands.progress import progress
from mmldm.commands.sources import batches, sized_source
from mmldm.data import Source
from mmldm.data.world import VOCABULARY, World
from mmldm.diffusion.times import LogitNormal
from mmldm.diffusion.weighting import UnitF
from mmldm.evaluation import Probes
from mmldm.interfaces import Media
from mmldm.media import MediaLogger, Page
from mmldm.model import Model
from mmldm.pipeline import Known, Pipeline, Sample
from mmldm.training.base import move
from mmldm.training.diffusion import DiffusionTraining
from mmldm.training.tally import Tally

__all__ = ["adherence", "agreement", "evaluate", "losses", "translation"]


def evaluate(path: str | Path, cfg: DictConfig, trust: tuple[str, ...] = ()) -> tuple[dict[str, Any], Path]:
    """Measure a trained model on cfg.data; returns the report and the folder it was written to; raises ValueError."""
    for name, least in (("count", 1), ("samples", 0), ("batch_size", 1)):
        if not isinstance(cfg[name], int) or cfg[name] < least:
            raise ValueError(f"wanted {name} to be a whole number of at least {least}, got {cfg[name]}")
    stored = store.load_model(path)
    out = Path(cfg.out or run_of(path) / "evaluation")
    (out / "index.json").unlink(missing_ok=True)  # a fresh page
    page = Page(out)
    told = cfg.data.get("path") or (f"world/{cfg.data.kind}" if "kind" in cfg.data else "its own source")
    report: dict[str, Any] = {"model": str(path), "data": str(told)}
    report |= fidelity(stored, cfg, page, trust) if stored.spec["kind"] == "codec" else generation(path, cfg, page, trust)
    page.write()
    (out / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report, out


def generation(path: str | Path, cfg: DictConfig, page: Page, trust: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Measure a diffusion model: its loss by level and, on the built-in world, what its samples show; the report's sections."""
    report: dict[str, dict[str, float]] = {}
    pipeline = Pipeline.load(path, trust, vocoder=cfg.vocoder)
    medias = pipeline.medias(cfg.data.seconds, cfg.data.size)
    source = sized_source(cfg, medias)
    report["loss"] = losses(pipeline.model, source, medias, cfg.count, cfg.batch_size)
    if isinstance(source, World) and cfg.samples:
        sampled = {"steps": cfg.steps, "guidance": cfg.guidance, "seed": cfg.seed, "batch_size": cfg.batch_size}
        for split in ("train", "heldout"):
            scores, samples = adherence(pipeline, source.kind, cfg.samples, split, **sampled)
            report[f"adherence.{'seen' if split == 'train' else split}"] = scores
            show(page, f"samples, {split}", samples[:16])
        sampled.pop("batch_size")
        for stream in medias if len(medias) > 1 else ():
            scores, samples = translation(pipeline, source.kind, stream, cfg.samples, **sampled)
            report[f"made for {stream}"] = scores
            show(page, f"samples made for {stream}", samples[:16])
            rest = {"absent": [stream], "batch_size": cfg.batch_size, **sampled}
            report[f"without {stream}"], _ = adherence(pipeline, source.kind, cfg.samples, "heldout", **rest)
    for section, numbers in report.items():
        page.table(section, [[name, f"{value:.4g}"] for name, value in numbers.items()], ["", section])
    return report


def run_of(path: str | Path) -> Path:
    """The run folder of a trained model, given as the run or as its model folder."""
    path = Path(path)
    return path.absolute().parent if path.absolute().name == "model" and (path / "manifest.json").is_file() else path


@torch.no_grad()
def losses(model: Model, source: Source, medias: Mapping[str, Media], items: int, size: int) -> dict[str, float]:
    """The unweighted loss of the prediction at fixed noise levels, over the first clips of the data."""
    device = next(model.denoiser.parameters()).device
    probe = DiffusionTraining(model, LogitNormal(), UnitF(), optimizer=torch.optim.SGD).to(device)
    tally, count = Tally(), 0
    with progress("loss") as tell:
        for batch in batches(source, medias, model.conditions.readers, items, size):
            for places, sums, counts in probe.losses_by_level(move(batch, device)):
                tally.add([("", *place) for place in places], sums, counts)
            count += len(batch)
            tell(count, min(items, len(source)))
    found = probe.summary(tally.means())
    return {name.replace("/", " "): value for name, value in found.items() if name.startswith("level/")}


def adherence(
    pipeline: Pipeline, kind: str, count: int, split: str = "train", **options: Any
) -> tuple[dict[str, float], list[Sample]]:
    """Share of samples that have what their prompt says, by attribute of the built-in world, and the samples."""
    prompts = World(kind).prompts(count, split, seed=1)
    with progress(f"generating, {split}") as tell:
        samples = pipeline.generate([caption for caption, _ in prompts], progress=tell, **options)
    return agreement(kind, samples, [wanted for _, wanted in prompts]), samples


def translation(
    pipeline: Pipeline, kind: str, given: str, count: int, split: str = "heldout", seed: int = 0, **options: Any
) -> tuple[dict[str, float], list[Sample]]:
    """As `adherence`, of samples in which the stream `given` is the world's own and the others are made for it."""
    medias, samples = pipeline.medias(), []
    world = World(kind, count, split, seed=1)
    with progress(f"generating for {given}") as tell:
        for i in range(count):
            known = {given: Known(world.load(i, given, medias[given]).x)}
            samples += pipeline.generate(world.row(i)["text"], seed=seed + i, known=known, **options)
            tell(i + 1, count)
    return agreement(kind, samples, [world.attributes(i) for i in range(count)]), samples


def agreement(kind: str, samples: Sequence[Sample], wanted: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Share of samples that show the wanted value of each attribute; `synchrony`: picture and sound within one frame."""
    probes, hits = Probes(VOCABULARY), {}
    for sample, values in zip(samples, wanted, strict=True):
        found = probes.measure(kind, sample.streams, {stream: media.rate for stream, media in sample.medias.items()})
        right = {name: found[name] == value for name, value in values.items() if name in found}
        if "offset" in found:
            right["synchrony"] = found["offset"] <= 1
        for name, value in right.items():
            hits[name] = hits.get(name, 0) + value
    return {name: count / len(samples) for name, count in hits.items()}


def show(page: Page, section: str, samples: list[Sample]) -> None:
    """Put samples on a page, with their prompts."""
    for stream, media in samples[0].medias.items():
        xs = torch.stack([s.streams[stream].float().cpu() for s in samples])
        name = section if len(samples[0].medias) == 1 else f"{section}: {stream}"
        MediaLogger(page).media(name, 0, media, xs, [s.prompt for s in samples])
