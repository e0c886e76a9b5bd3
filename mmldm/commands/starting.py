"""How a training begins: from a trained model (init=), with parts kept as they are (freeze=), its layers compiled."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from mmldm import config, store, trained
from mmldm.model import Model
from mmldm.targets import did_you_mean
from mmldm.training import CodecTraining, DiffusionTraining
from mmldm.training.base import Training
from mmldm.training.checkpoints import Checkpoints

__all__ = ["Transfer", "adopt", "adopt_model", "begin", "compiled", "freeze", "transfer"]

SHOWN = 4
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=bool(rank_zero_only.rank))


def begin(cfg: DictConfig, module: Training, run: Path) -> None:
    """Give a built training the weights of `cfg.init`, hold the parts that `cfg.freeze` names, compile: and say so.

    A run that continues has its weights from its own checkpoint: `init` is not read again.
    """
    if cfg.init and not Checkpoints(run / "resume").steps():
        for line in adopt(module, str(cfg.init), tuple(cfg.trust)):
            console.print(line)
    if patterns := list(cfg.freeze or ()):
        freeze(module, patterns)
        left, held = (
            sum(p.numel() for n, p in module.named_parameters() if n in names) for names in (module.exported(), module.held)
        )
        console.print(f"freeze: {held / 1e6:.2f} M parameters are kept as they are, {left / 1e6:.2f} M train")
    if cfg.compile:
        compiled(module, cfg.compile)


# ---------------------------------------------------------------- init


@dataclass
class Transfer:
    """What became of the tensors of a trained part in another: names with their shapes where those differ."""

    loaded: list[str] = field(default_factory=list)
    widened: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)


@torch.no_grad()
def transfer(part: nn.Module, trained_part: Mapping[str, Tensor], prefix: str = "") -> Transfer:
    """Copy the tensors of one part into another of the same kind, by name.

    A layer that has more inputs now keeps its weights for the first of them and begins with zeros for the others; what else
    differs in size stays as it is. Names are told behind `prefix`.
    """
    own, result = part.state_dict(), Transfer()
    for name, old in trained_part.items():
        new, told = own.get(name), prefix + name
        if new is None:
            result.left.append(told)
        elif new.shape == old.shape:
            new.copy_(old)
            result.loaded.append(told)
        elif new.ndim == old.ndim > 1 and all(
            n >= o if d == 1 else n == o for d, (n, o) in enumerate(zip(new.shape, old.shape, strict=True))
        ):
            new.zero_()[:, : old.shape[1]] = old
            result.widened.append(f"{told} {tuple(old.shape)} -> {tuple(new.shape)}")
        else:
            result.unlike.append(f"{told} {tuple(old.shape)}, here {tuple(new.shape)}")
    result.new = [prefix + name for name in own if name not in trained_part]
    return result


def adopt(module: Training, path: str, trust: Sequence[str] = ()) -> list[str]:
    """Load what fits of a trained model into a training; returns what was loaded, is new, was left out, in lines.

    Raises ValueError where the folder holds another kind of model, or one of other sizes.
    """
    stored = store.load_model(path)
    if isinstance(module, CodecTraining):
        return _adopt_codec(module, stored, trust)
    if stored.spec.get("kind") != "diffusion":
        (stream,) = stored.spec["codecs"]
        raise ValueError(f"wanted a trained diffusion model for init, got the codec in {path}; choose codec.{stream}={path}")
    old = trained.load_diffusion(stored, trust)
    parts, notes = adopt_model(module.model, old)
    if len(parts[0].loaded) <= len(parts[0].unlike):
        sizes = ", ".join(f"{k}={v}" for k, v in stored.spec["denoiser"].items() if not k.startswith("_"))
        found = (parts[0].unlike or parts[0].left or ["nothing"])[0]
        raise ValueError(f"wanted a denoiser like that of {path} ({sizes}), got another: {found}; choose its sizes")
    return _told(path, parts) + [f"  note: {note}" for note in notes]


def adopt_model(new: Model, old: Model) -> tuple[list[Transfer], list[str]]:
    """Load what fits of a model's denoiser and conditions into another, conditions that are added beginning silently.

    Gives what became of the tensors, and what of the weights' surroundings is not as they were trained.
    """
    parts = [
        transfer(new.denoiser, old.denoiser.state_dict(), "denoiser."),
        transfer(new.conditions, old.conditions.state_dict(), "conditions."),
    ]
    widths, before, notes = new.conditions.widths, old.conditions.widths, []
    added = [name for name in widths if name not in before]
    new.denoiser.silence(added)
    spoken = ", ".join(name for name in before if before[name].tokens)
    for name in added:
        if widths[name].tokens and spoken:
            notes.append(f"{name} gives tokens beside those of {spoken}: outputs change from the first step")
    for stream in old.codecs:
        if stream in new.codecs and not _equal(
            *(trained.codec_state(m.codecs[stream], m.whitenings[stream]) for m in (old, new))
        ):
            notes.append(f"the codec of {stream} is another than the one its latents were learnt with")
    if not _equal(*(dict(m.denoiser.named_buffers()) for m in (old, new))):
        notes.append("positions are told in other steps than before: the axes of the streams differ")
    return parts, notes


def _adopt_codec(module: CodecTraining, stored: store.StoredModel, trust: Sequence[str]) -> list[str]:
    found = trained.load_codecs(stored, trust)
    if module.stream not in found:
        raise ValueError(f"wanted a codec of {module.stream} for init, got {stored.folder} with one of {', '.join(found)}")
    part = transfer(module.codec, found[module.stream].codec.state_dict(), "codec.")
    if len(part.loaded) <= len(part.unlike):
        found = (part.unlike or part.left or ["nothing"])[0]
        raise ValueError(f"wanted a codec like that in {stored.folder}, got another: {found}; choose its sizes")
    return _told(str(stored.folder), [part])


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def _told(path: str, parts: Sequence[Transfer]) -> list[str]:
    lines = [f"init: {sum(len(p.loaded) for p in parts)} tensors of {path} are loaded"]
    for what, names in (
        ("got more inputs, of which the new begin at zero", [n for p in parts for n in p.widened]),
        ("new", [n for p in parts for n in p.new]),
        ("left out", [n for p in parts for n in p.left]),
        ("not loaded, of another size", [n for p in parts for n in p.unlike]),
    ):
        if names:
            lines.append(f"  {what}: {len(names)} ({', '.join(names[:SHOWN])}{' …' * (len(names) > SHOWN)})")
    return lines


# ---------------------------------------------------------------- freeze, compile


def plain(name: str) -> str:
    """The name of a parameter as it is told: denoiser.…, conditions.NAME.…, codec.…"""
    return name.removeprefix("model.").replace("conditions.conditioners.", "conditions.", 1)


def freeze(module: Training, patterns: Iterable[str]) -> None:
    """Hold the parameters that a pattern matches (`*` and `?` as in a shell; a name stands for all below it).

    Raises ValueError for a pattern that matches nothing, or where nothing is left to train.
    """
    named, chosen = {plain(name): name for name in module.exported()}, set()
    for pattern in patterns:
        found = {raw for name, raw in named.items() if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not found:
            levels = [sorted({".".join(n.split(".")[:depth]) for n in named}) for depth in (1, 2, 3)]
            near = did_you_mean(pattern.rstrip(".*"), {place for level in levels for place in level})
            choices = ", ".join(next((level for level in levels[1:] if len(level) > 2), levels[-1]))
            raise ValueError(f"freeze: wanted a pattern that names parameters, got {pattern!r}{near}; choose from {choices}")
        chosen |= found
    if chosen == set(named.values()):
        raise ValueError(f"freeze: wanted something left to train, got patterns for everything: {', '.join(patterns)}")
    module.hold(chosen)


def compiled(module: Training, backend: bool | str) -> None:
    """Compile each layer of the denoiser on its own; `backend` is true (inductor) or the name of one.

    Raises ValueError where there are no such layers.
    """
    layers = module.model.denoiser.layers() if isinstance(module, DiffusionTraining) else ()
    if not layers:
        raise ValueError("wanted the training of a denoiser with layers to compile, got another; choose compile=false")
    for layer in layers:
        layer.compile(backend="inductor" if backend is True else str(backend))


def facts(cfg: DictConfig) -> dict[str, Any]:
    """What a model card tells of the beginning."""
    return {name: config.resolved(cfg)[name] for name in ("init", "freeze") if cfg[name]}
