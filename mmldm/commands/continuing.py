"""Whether a run that continues is still the run that began: its configuration, its data, its codecs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mmldm import config
from mmldm.commands.digests import digest
from mmldm.commands.job import Job
from mmldm.media.files import replacing
from mmldm.training import DiffusionTraining

__all__ = ["begin", "changes"]

FILE = "run.yaml"  # beside the checkpoints
FREE = (
    "run", "minutes", "trainer", "schedule", "optimizer.lr", "adversary.optimizer.lr", "logger", "previews", "snapshots",
    "checkpoint_every", "whitening_batches", "trust", "vocoder", "init", "compile", "denoiser.checkpoint", "data.workers",
    "data.memory", "data.max_bad_fraction", "diffusion.steps", "diffusion.solver", "diffusion.grid", "diffusion.guidance",
)  # fmt: skip
PLACES = ("path", "cache")  # of data, which may move: what is there is compared by its content
CHANGED = {"data": "other items than before: some were added, removed or described anew", "codec": "other weights than before"}
SHOWN = 3


def begin(job: Job, continues: bool) -> list[str]:
    """Note what a run is, beside its checkpoints; returns what is new since its last start, in words.

    Raises ValueError where it `continues` with a change that would make another training of it.
    """
    file, now = job.run / "resume" / FILE, facts(job)
    before = yaml.safe_load(file.read_text(encoding="utf-8")) if continues and file.is_file() else now
    free, other = changes(before, now)
    if other:
        more = [f"… and {len(other) - SHOWN} more"] if len(other) > SHOWN else []
        told = [f"{job.run} began with another configuration:", *other[:SHOWN], *more]
        raise ValueError("\n".join([*told, "choose what it began with, or another run="]))
    with replacing(file) as part:
        part.write_text(yaml.safe_dump(now, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return free


def facts(job: Job) -> dict[str, Any]:
    """The resolved configuration, and digests of what it only names: the data, and the codecs that latents come from."""
    codecs = job.module.model.codecs if isinstance(job.module, DiffusionTraining) else {}
    content = {"data": job.data.fingerprint()} | {f"codec.{s}": digest(codec, codec.decoding) for s, codec in codecs.items()}
    return {"content": content, "config": config.resolved(job.cfg, missing=True)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two `facts`, in words: what a run may change, and what makes another training of it."""
    one, two = before["content"], now["content"]
    free, other = [], [f"{name}: {CHANGED[name[:5]]}" for name in one.keys() & two.keys() if one[name] != two[name]]
    one, two = (flat(facts["config"]) for facts in (before, now))
    for key in sorted(one.keys() | two.keys()):
        a, b = one.get(key), two.get(key)
        if a == b or (not a and not b) or moved(key, a, b):
            continue
        kept = free if key.startswith(tuple(f"{name}." for name in FREE)) or key in FREE else other
        kept.append(f"{key}: {a} -> {b}")
    return free, other


def moved(key: str, a: Any, b: Any) -> bool:
    """Whether a key names where something is, and it is somewhere else now."""
    place = key.startswith("codec.") and key.count(".") == 1 or key.startswith("data.") and key.endswith(PLACES)
    return place and isinstance(a, str) and isinstance(b, str)


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    if not isinstance(node, Mapping):
        return {name: node}
    return {k: v for key, part in node.items() for k, v in flat(part, f"{name}.{key}" if name else str(key)).items()}
