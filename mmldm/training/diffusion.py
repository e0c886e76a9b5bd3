"""Training of the diffusion model: noise the whitened latents of every stream, predict, weigh, reduce over unknown cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.diffusion.draws import KnownMixture
from mmldm.diffusion.known import Context, reference_cells, snap
from mmldm.diffusion.prediction import expand
from mmldm.diffusion.times import Times, permutation, stratified
from mmldm.diffusion.weighting import LearnedUncertainty, Weighting
from mmldm.interfaces import Batch
from mmldm.model import Model
from mmldm.training.base import Training
from mmldm.training.schedule import Schedule
from mmldm.training.sharding import shard
from mmldm.training.tally import bins

__all__ = ["DiffusionTraining"]

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # as the network is told them: the same share of noise on every path


class DiffusionTraining(Training):
    """Trains the denoiser and the conditions of `model`; its codecs are frozen.

    `times` draws the noise levels, `weighting` weighs them, `known` draws what is given. The loss of a step is the sum
    over samples and streams of the mean over that sample's unknown valid cells, divided by the global batch size.
    """

    def __init__(
        self,
        model: Model,
        times: Times,
        weighting: Weighting | LearnedUncertainty,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        known: KnownMixture | None = None,
        schedule: Schedule | None = None,
        batch_size: int = 1,
        seed: int = 0,
        minutes: float | None = None,
    ):
        super().__init__(optimizer, schedule, batch_size, seed, minutes)
        self.model, self.times, self.weighting, self.known = model, times, weighting, known

    def exported(self) -> dict[str, nn.Parameter]:
        """The parameters that train of the model alone: a learned weighting belongs to the loss."""
        return {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            kept = {p for name, p in self.named_parameters() if not p.requires_grad and name not in self.held}
            steps, half = ("training_step", "validation_step"), self.trainer.precision == "bf16-mixed"
            shard(self, self.model.denoiser.layers(), self.device_mesh["data_parallel"], steps, kept, half)

    # -- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        z, valid = self.latents(batch)
        t = self.levels(batch, z, valid)
        keep = self._present(batch, self.model.conditions.keep(self.key("dropout", batch), batch.position))
        context, t = self.contexts(batch, z, valid, t)
        errors = self.errors(batch, z, t, context, keep, self.key("noise", batch))
        losses = self.weighed(errors, t, context)
        told = {f"{name} of {s}": item for name, of in (("t", t), ("loss", losses)) for s, item in of.items()}
        loss = self.guard.watch("loss", sum(item.sum() for item in losses.values()) / len(batch), told)
        terms = {"loss": loss, **{f"loss/{s}": item.mean() for s, item in losses.items() if len(losses) > 1}}
        self.log_terms("train", terms, batch)
        self._by_level(errors, t, context)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for places, sums, counts in self.losses_by_level(batch):
            for bucket in ("", batch.bucket)[: 1 + bool(batch.bucket)]:
                self.tallies["val"].add([(bucket, *place) for place in places], sums, counts)

    def summary(self, means: dict) -> dict[str, float]:
        """The loss in whole, by level, by stream where there are several, and by bucket: of a validation all levels and streams
        weigh the same, however many samples have them."""
        kinds: dict[str, list[float]] = {}
        for name, value in means.items():
            if isinstance(name, str):
                kinds.setdefault(name, []).append(value)
                continue
            bucket, level, stream = name
            places = [f"bucket/{bucket}"] if bucket else ["loss", f"level/{level}"]
            places += [f"loss/{stream}"] if len(self.model.codecs) > 1 and not bucket else []
            for place in places:
                kinds.setdefault(place, []).append(value)
        return {place: sum(values) / len(values) for place, values in sorted(kinds.items())}

    def losses_by_level(self, batch: Batch) -> Iterable[tuple[list[tuple[float, str]], Tensor, Tensor]]:
        """For each of `LEVELS` the places (level, stream), and there the sums and counts of the unweighted loss of the samples,
        all conditions given."""
        z, valid = self.latents(batch, sample=False)
        there = {s: self._there(batch, s).to(x.device) for s, x in z.items()}
        cells = {s: unpadded(v, there[s]) for s, v in valid.items()}
        context = {s: self.model.context(s, x.shape[2:], x.device, valid=cells[s]) for s, x in z.items()}
        keep, counts = self._present(batch, {}), torch.stack([there[s].sum() for s in z])
        for level in LEVELS:
            at = self.model.prediction.unheard(self.model.path, torch.tensor(level, dtype=torch.float64)).item()
            t = {s: torch.where(there[s], at, 1.0) for s in z}
            errors = self.errors(batch, z, t, context, keep, (self.seed, "validation", round(1000 * level)))
            yield [(level, s) for s in z], torch.stack([errors[s].sum() for s in z]), counts

    def _by_level(self, errors: Mapping[str, Tensor], t: Mapping[str, Tensor], context: Mapping[str, Context]) -> None:
        """Note the unweighted loss of a training step by level, each sample at the nearest of `LEVELS`."""
        for stream, error in errors.items():
            heard = self.model.prediction.heard(self.model.path, t[stream])
            heard = torch.where(counted(context[stream], t[stream]), heard, -1.0)
            self.tallies["train"].add([f"level/{level}" for level in LEVELS], *bins(error.float(), heard, LEVELS))

    # -- parts of a step

    def latents(self, batch: Batch, sample: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """Whitened latents (B, D, *L) of every stream and which of their cells are media (None: all)."""
        z, valid = {}, {}
        for stream in self.model.codecs:
            posterior = batch.latents.get(stream) or self.model.encode(stream, batch.media[stream])
            noise = None
            if sample and posterior.std is not None:
                noise = keyed.normal((*self.key("latent", batch), stream), batch.position, posterior.mean.shape[1:])
                noise = noise.to(posterior.mean)
            z[stream] = self.model.whiten(stream, posterior, noise)
            valid[stream] = self.model.valid_cells(stream, batch.valid.get(stream), z[stream])
        return z, valid

    def levels(self, batch: Batch, z: Mapping[str, Tensor], valid: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Noise levels t (B,) of every stream: stratified over the global batch, independent between streams."""
        t, total = {}, batch.total or self.batch_size
        for stream, x in z.items():
            key = (*self.key("level", batch), stream)
            order = permutation(key, total)
            u = keyed.uniform(key, batch.position).double()
            u = stratified(u, batch.position % self.batch_size, total, order)
            shift = self.model.shift_of(stream, x.shape[2:], valid[stream])
            t[stream] = self.times(u, self.model.path, shift).float().to(x.device)
        return t

    def contexts(
        self, batch: Batch, z: Mapping[str, Tensor], valid: Mapping[str, Tensor | None], t: dict[str, Tensor]
    ) -> tuple[dict[str, Context], dict[str, Tensor]]:
        """Positions, padding, drawn known cells and references of every stream; absent streams get t = 1 and no padding, as in
        sampling."""
        drawn, t, context = None, dict(t), {}
        if self.known is not None:
            axes = {s: self.model.codecs[s].axes for s in z}
            drawn = self.known(self.key("known", batch), batch.position, {s: tuple(x.shape[2:]) for s, x in z.items()}, axes)
        for stream, x in z.items():
            cells, mask, there = valid[stream], None, self._there(batch, stream)
            if drawn is not None:
                there = there & ~drawn.absent[stream]
            cells = unpadded(cells, there)
            if drawn is not None:
                if bool(drawn.known[stream].any()):
                    mask = drawn.known[stream].to(x.device) & expand(there, x)[:, 0].to(x.device)
                    mask = snap(mask if cells is None else mask & cells, self.model.denoiser.patches[stream])
            t[stream] = t[stream].masked_fill(~there.to(x.device), 1.0)
            given = None if mask is None else x
            context[stream] = self.model.context(stream, x.shape[2:], x.device, z=given, known=mask, valid=cells)
            if drawn is not None and drawn.places[stream]:
                places = {axis: torch.where(there, cell, -1) for axis, cell in drawn.places[stream].items()}
                beside = reference_cells(x, context[stream].positions, places, cells)
                context[stream] = replace(context[stream], references=beside)
        return context, t

    def losses(
        self,
        batch: Batch,
        z: Mapping[str, Tensor],
        t: Mapping[str, Tensor],
        context: Mapping[str, Context],
        keep: dict[str, Tensor],
        key: tuple[int | str, ...],
    ) -> dict[str, Tensor]:
        """The loss of every sample (B,) per stream."""
        return self.weighed(self.errors(batch, z, t, context, keep, key), t, context)

    def weighed(
        self, errors: Mapping[str, Tensor], t: Mapping[str, Tensor], context: Mapping[str, Context]
    ) -> dict[str, Tensor]:
        """The losses (B,) that the weighting makes of the errors per stream; 0 where nothing is to be predicted."""
        path, prediction = self.model.path, self.model.prediction
        return {
            s: self.weighting.loss(error, path, prediction, t[s]) * counted(context[s], t[s]) for s, error in errors.items()
        }

    def errors(
        self,
        batch: Batch,
        z: Mapping[str, Tensor],
        t: Mapping[str, Tensor],
        context: Mapping[str, Context],
        keep: dict[str, Tensor],
        key: tuple[int | str, ...],
    ) -> dict[str, Tensor]:
        """The mean squared error of the prediction, unweighted, of every sample (B,) per stream."""
        path, prediction = self.model.path, self.model.prediction
        eps = {s: self.model.noise(s, key, batch.position, x.shape[1:]).to(x) for s, x in z.items()}
        there = {s: x * expand((t[s] < 1).to(x), x) for s, x in z.items()}  # an absent stream is pure noise on every path
        z_t = {s: path.mix(x, eps[s], t[s]) for s, x in there.items()}
        prepared = self.model.prepare(self.model.conditions(self.model.encode_fields(batch.fields), keep))
        output = self.model.predict(z_t, t, context, prepared)
        result = {}
        for stream, x in z.items():
            target = prediction.target(path, x, eps[stream], expand(t[stream], x))
            error = (output[stream].float() - target.float()).square().mean(1)
            result[stream] = masked_mean(error, context[stream]) * counted(context[stream], t[stream])
        return result

    def _there(self, batch: Batch, stream: str) -> Tensor:
        """Which samples (B,) have the stream."""
        extent = batch.valid.get(stream)
        return torch.ones(len(batch), dtype=torch.bool) if extent is None else (extent > 0).all(1).cpu()

    def _present(self, batch: Batch, keep: dict[str, Tensor]) -> dict[str, Tensor]:
        names = set(batch.present) | set(keep)
        both = {n: (batch.present.get(n), keep.get(n)) for n in names}
        return {n: torch.stack([m.to(self.device) for m in pair if m is not None]).all(0) for n, pair in both.items()}


def unpadded(valid: Tensor | None, there: Tensor) -> Tensor | None:
    """Valid cells (B, *L), all of them in the rows of a stream that is not `there` (B,)."""
    return None if valid is None else valid | ~there.to(valid.device).reshape(-1, *[1] * (valid.ndim - 1))


def masked_mean(error: Tensor, context: Context) -> Tensor:
    """Mean of (B, *L) over each sample's unknown valid cells: (B,); 0 where there are none."""
    use = torch.ones_like(error) if context.free is None else context.free.to(error)
    return (error * use).flatten(1).sum(1) / use.flatten(1).sum(1).clamp_min(1)


def counted(context: Context, t: Tensor) -> Tensor:
    """Samples (B,) of which something is to be predicted: not absent (t = 1), not wholly known."""
    return t < 1 if context.free is None else (t < 1) & context.free.flatten(1).any(1)
