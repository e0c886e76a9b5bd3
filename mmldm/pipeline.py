"""Inference without Lightning: a trained model, prompts, and what is already known -> media tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmldm import config, store
from mmldm.asked import as_fields, beside, branches, check_fields, check_guidance, check_weak
from mmldm.denoiser.memory import Reuse
from mmldm.diffusion.grids import Grid, ListGrid
from mmldm.diffusion.guidance import Guidance
from mmldm.diffusion.sampling import sample
from mmldm.diffusion.solvers import Solver
from mmldm.given import Given, Known, Placed, box
from mmldm.held import Held, hold
from mmldm.interfaces import Denoiser, Media
from mmldm.media.sizes import planar
from mmldm.model import Model
from mmldm.paste import paste
from mmldm.trained import load_diffusion, sized

__all__ = ["Given", "Known", "Pipeline", "Placed", "Sample", "Sampler", "box"]


@dataclass(frozen=True)
class Sample:
    """One generated sample: its media tensors by stream, how to write them, and what it was asked for."""

    streams: dict[str, Tensor]
    medias: dict[str, Media]
    prompt: str
    seed: int
    index: int


@dataclass(frozen=True)
class Sampler:
    """How a model is sampled: any solver, grid and guidance run on any model."""

    solver: Solver
    grid: Grid
    guidance: Guidance
    steps: int


class Pipeline:
    """A trained model, ready to generate: `Pipeline.load("runs/img").generate("a red circle", seed=0)`."""

    def __init__(
        self,
        model: Model,
        spec: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        trust: Sequence[str] | None = (),
    ):
        """`trust` None is for a spec of the user's own, as inside a training: solvers, grids and guidances of any class."""
        self.model, self.spec, self.facts = model, dict(spec), dict(facts or {})
        self.trust = None if trust is None else tuple(trust)

    @classmethod
    def load(
        cls,
        path: str | Path,
        trust: Sequence[str] = (),
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        reuse: int | None = None,
        vocoder: str | Path | None = None,
    ) -> Pipeline:
        """Load a run or model folder; `trust` names classes from outside mmldm that it may use, exactly.

        `vocoder` is the folder of a trained one, used instead of the model's own.
        The denoiser may have weights of another `dtype` (bfloat16), be compiled, and recompute its middle blocks at every
        `reuse`-th call only.
        """
        stored = store.load_model(path)
        model = load_diffusion(stored, trust, vocoder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        hasten(model.to(device).denoiser, dtype, compile, reuse)
        return cls(model, stored.spec, stored.facts, trust)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What latents are computed in: float32, or wider where the model is."""
        return torch.promote_types(next(self.model.denoiser.parameters()).dtype, torch.float32)

    def medias(self, seconds: float | None = None, size: Sequence[int] | None = None) -> dict[str, Media]:
        """The media of each stream at the trained, or the asked, duration and size; ValueError where no stream has that."""
        own = [codec.media for codec in self.model.codecs.values()]
        if seconds is not None and all(media.time_axis is None for media in own):
            raise ValueError(f"wanted a model of what runs in time for {seconds:g} seconds, got one of stills; leave it out")
        if size and not any(planar(media) for media in own):
            raise ValueError(f"wanted a model of pictures for a size, got one of {', '.join(self.model.codecs)}; leave it out")
        return {stream: sized(codec.media, seconds, size) for stream, codec in self.model.codecs.items()}

    def sampler(
        self,
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        solver: Mapping[str, Any] | Solver | None = None,
        grid: Mapping[str, Any] | Grid | None = None,
        absent: Sequence[str] = (),
    ) -> Sampler:
        """The model's own sampler with what is given replaced: nodes of conf/diffusion, or objects as they are.

        What the model's own guidance has of streams that are `absent` is left out.

        A number as guidance is the scale of null (classifier-free); a grid that is a list has its own number of steps.
        """
        own = self.spec["sampler"]
        kept = config.build(own["guidance"], trust=self.trust) or Guidance()
        if "weak" in kept.scales:
            raise ValueError("wanted a guidance that the model can do alone, got weak; choose a weak model at generation")
        if not isinstance(guidance, Guidance):
            guidance = kept if guidance is None else kept.changed({"null": float(guidance)})
        guidance = beside(self.model, guidance, kept, absent)
        solver, grid = (
            config.build(dict(part), trust=self.trust) if isinstance(part, Mapping) else part
            for part in (solver or own["solver"], grid or own["grid"])
        )
        if steps is None and isinstance(grid, ListGrid):
            steps = len(grid.values) - 1
        return Sampler(solver, grid, guidance, steps or own["steps"])

    def weaker(self, weak: Pipeline | str | Path | None, held: Held | None = None) -> Model | None:
        """The model of another pipeline or folder for autoguidance; raises ValueError unless it works on the same latents."""
        if weak is None:
            return None
        other = (
            weak
            if isinstance(weak, Pipeline)
            else Pipeline.load(weak, self.trust or (), self.device, next(self.model.denoiser.parameters()).dtype)
        )
        check_weak(self.model, other.model)
        context = () if held is None else held.context.values()
        known, beside = any(c.known is not None for c in context), any(c.references for c in context)
        for what, asked in (("knows", known), ("references", beside)):
            has = [bool(p.spec.get(what, p.spec.get("knows", True))) for p in (self, other)]
            if asked and has == [True, False]:
                raise ValueError(f"wanted a weak model that {what} what is given, as this one, got one trained without")
        return other.model

    def hold(self, given: Given, medias: Mapping[str, Media]) -> Held:
        """What is given, encoded; raises ValueError for what the model cannot hold."""
        knows = bool(self.spec.get("knows", True))
        given.check(medias, self.spec.get("references", knows))
        return hold(given, self.model, medias, self.device, self.dtype, self.spec.get("references", knows))

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str] | Mapping[str, Sequence],
        n: int = 1,
        seed: int = 0,
        *,
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        negative: str | None = None,
        weak: Pipeline | str | Path | None = None,
        solver: Mapping[str, Any] | Solver | None = None,
        grid: Mapping[str, Any] | Grid | None = None,
        seconds: float | None = None,
        size: Sequence[int] | None = None,
        known: Mapping[str, Known] | None = None,
        references: Mapping[str, Sequence[Placed]] | None = None,
        absent: Sequence[str] = (),
        init: Mapping[str, Tensor] | None = None,
        strength: float = 0.6,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        """`n` samples per prompt; sample i depends on (seed, i) alone, whatever the batch size.

        `prompts`: one text, several, or a dict of fields (key of a condition -> values) of equal length. `negative` is a
        text to steer away from instead of nothing; `weak` answers the branch of that name (autoguidance). `known` keeps a
        part of a stream as it is; `references` gives media beside it (a last frame, key frames); streams in `absent` are not
        made, and not there for the others; `init` gives whole clips to vary from level `strength` on. What is kept loosely
        is told as a warning. `progress(done, total)` counts network steps of samples.
        """
        fields = {key: [v for v in values for _ in range(n)] for key, values in as_fields(prompts).items()}
        count, medias = len(next(iter(fields.values()))), self.medias(seconds, size)
        given = Given(known or {}, references or {}, tuple(absent), init or {}, strength)
        sampler, result = self.sampler(steps, guidance, solver, grid, given.absent), []
        check_fields(self.model, fields)
        held = self.hold(given, medias)
        weaker = self.weaker(weak, held)
        check_guidance(self.model, sampler.guidance, negative, weaker, given.absent)
        for notice in held.notices:
            warnings.warn(notice, stacklevel=3)
        for start in range(0, count, batch_size):
            items = torch.arange(start, min(start + batch_size, count))
            part = {key: values[start : start + len(items)] for key, values in fields.items()}

            def tick(step: int, steps: int, *_, done: int = start, rows: int = len(items)) -> None:
                if progress is not None:
                    progress(done * steps + (step + 1) * rows, count * steps)

            z = self.sample_latents(part, items, medias, seed, sampler, negative, held, tick, weaker)
            made = {s: self.model.decode(s, x, medias[s].shape).to(self.dtype).cpu() for s, x in z.items()}
            media = {s: paste(x, given.known.get(s), medias[s]) for s, x in made.items()}
            texts, kinds = part.get("text") or [""] * len(items), {s: medias[s] for s in media}
            result += [
                Sample({s: x[row] for s, x in media.items()}, kinds, str(texts[row] or ""), seed, index)
                for row, index in enumerate(items.tolist())
            ]
        return result

    @torch.no_grad()
    def sample_latents(
        self,
        fields: Mapping[str, Sequence],
        items: Tensor,
        medias: Mapping[str, Media],
        seed: int,
        sampler: Sampler,
        negative: str | None = None,
        held: Held | None = None,
        callback: Callable[..., None] | None = None,
        weak: Model | None = None,
    ) -> dict[str, Tensor]:
        """Whitened latents (B, D, *L) of every stream there for one batch of fields, item i keyed by (seed, items[i])."""
        model, held, place = self.model, held or self.hold(Given(), medias), {"device": self.device, "dtype": self.dtype}
        shapes = {s: model.latent_shape(s, media.shape) for s, media in medias.items()}
        noise = {s: model.noise(s, (seed, "noise"), items, shape).to(**place) for s, shape in shapes.items()}
        grids = {s: sampler.grid(sampler.steps, model.path, model.shift_of(s, shape[1:])) for s, shape in shapes.items()}
        context, knows = held.rows(len(items)), bool(self.spec.get("knows", True))
        shown = context if knows else {s: replace(c, z=None, known=None) for s, c in context.items()}
        names = ("cond", *sampler.guidance.scales)
        asked = branches(model, fields, len(items), shown, names, negative, weak, noise)

        def fresh(step: int, stream: str) -> Tensor:
            return model.noise(stream, (seed, "step", step), items, shapes[stream]).to(**place)

        z = sample(
            asked,
            noise,
            held.grids(grids),
            sampler.solver,
            model.path,
            sampler.guidance,
            context,
            step_noise=fresh,
            callback=callback,
            start=held.start(model, noise),
            renoise=not knows,
        )
        return {stream: x for stream, x in z.items() if stream not in held.given.absent}


def hasten(denoiser: Denoiser, dtype: torch.dtype | None = None, compile: bool = False, reuse: int | None = None) -> None:
    """Give a denoiser weights of another type, compile it, or let it skip blocks; raises ValueError for what does not go."""
    if reuse is not None and (compile or not hasattr(denoiser, "reuse")):
        got = "compile too" if compile else type(denoiser).__name__
        raise ValueError(f"wanted a denoiser that can reuse its blocks, not compiled (denoiser=dit_…), got {got}")
    if dtype is not None:
        denoiser.to(dtype)
    if reuse is not None:
        denoiser.reuse = Reuse(reuse)
    if compile:
        denoiser.compile()
