"""Training of a codec: reconstruct the features of its front end through a regularised latent, then against discriminators."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.interfaces import Batch, Codec, Posterior
from mmldm.model import Whitening
from mmldm.training.adversarial import Adversary
from mmldm.training.base import Training
from mmldm.training.clip import Clip
from mmldm.training.equivariance import ScaleEquivariance
from mmldm.training.lengths import Lengths
from mmldm.training.processes import average_
from mmldm.training.schedule import Schedule

__all__ = ["CodecTraining"]

Metric = Callable[[Tensor, Tensor], Tensor]


class CodecTraining(Training):
    """Trains the codec of one stream with `loss(features_hat, features) -> terms` and `regulariser(posterior) -> terms`.

    `adversary` plays from its start on; its discriminators are stepped beside the codec, from the same batch and weights, by an
    optimiser of their own. `clip` limits the norm of the gradients (a number, or a Clip), `accumulate` batches make one step:
    the trainer must be given neither. `lengths` crops the clips of a step, `equivariance` adds a term. `metrics[name](
    features_hat, features) -> (B,)` are logged in validation. `whitening` is fitted by `fit_whitening`.
    """

    def __init__(
        self,
        codec: Codec,
        stream: str,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        regulariser: nn.Module | None = None,
        metrics: dict[str, Metric] | None = None,
        schedule: Schedule | None = None,
        batch_size: int = 1,
        seed: int = 0,
        minutes: float | None = None,
        adversary: Adversary | None = None,
        clip: float | Clip | None = None,
        accumulate: int = 1,
        lengths: Lengths | None = None,
        equivariance: ScaleEquivariance | None = None,
    ):
        super().__init__(optimizer, schedule, batch_size, seed, minutes)
        self.automatic_optimization = False
        self.codec, self.stream, self.loss, self.regulariser = codec, stream, loss, regulariser
        self.adversary, self.lengths, self.equivariance = adversary, lengths, equivariance
        self.metrics = metrics or {}
        self.whitening = Whitening(codec.latent_channels)
        self.accumulate = accumulate
        self.clip = clip if isinstance(clip, Clip) else Clip(math.inf if clip is None else clip)
        self.adversary_clip = copy.deepcopy(self.clip) if adversary else None

    def exported(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in super().exported().items() if name.startswith("codec.")}

    # -- optimisers: the first is Lightning's, and counts the steps; the second is the adversary's

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        against = {id(p) for p in self.adversary.parameters()} if self.adversary else set()
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizers = [self.optimizer_of([p for p in trained if id(p) not in against])]
        if self.adversary:
            optimizers.append((self.adversary.optimizer_of or self.optimizer_of)(list(self.adversary.parameters())))
        return self.begin(optimizers)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if (len(checkpoint["optimizer_states"]) == 2) != (self.adversary is not None):
            wanted = "no adversary" if self.adversary else "an adversary"
            raise ValueError(
                f"wanted {wanted}, as this run began; to change that begin another run= with codec.{self.stream}=RUN"
            )
        super().on_load_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        choices = ["bf16-mixed", "32-true", "64-true", *([] if self.adversary else ["16-mixed"])]
        if self.trainer.precision not in choices:
            told = f"trainer.precision={self.trainer.precision}{' with an adversary' if self.adversary else ''}"
            raise ValueError(f"wanted a precision that trains a codec, got {told}; choose from {', '.join(choices)}")
        self.trainer.accumulate_grad_batches = self.accumulate  # Lightning keeps its counts by it

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self.trainer.accumulate_grad_batches = 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._clipped(self.clip, optimizer, "norm")
        self.guard.check(self.trainer)

    # -- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        features, features_hat, others = self._reconstructed(batch)
        end = features_hat.detach().to(features.dtype).requires_grad_()
        terms, game, judged = dict(self.loss(end, features)), {}, None
        strength = None if self.adversary is None else self.adversary.strength(self.step_of(batch), self.reached)
        if strength is not None:
            judged, game = self.adversary(end, features)
            self.guard.watch("loss of the discriminators", judged)
        total = self.guard.watch("loss", sum((terms | others | game).values()), terms | others | game)
        with self._alone():
            if judged is None:
                slope = torch.autograd.grad(sum(terms.values()), end)[0]
            else:
                weights = list(self.adversary.parameters())
                torch.autograd.backward(judged / self.accumulate, inputs=weights, retain_graph=True)
                slope = self.adversary.gradient(terms, game, end, strength)
            self.manual_backward(((features_hat * slope).sum() + sum(others.values())) / self.accumulate)
        if (batch_idx + 1) % self.accumulate == 0:
            self._step(judged is not None)
        shown = {} if judged is None else {"discriminators": judged}
        self.log_terms("train", {"loss": total, **terms, **others, **game, **shown}, batch)
        return total.detach()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        features = self.codec.front(batch.media[self.stream])
        features_hat = self._crop(self.codec.decode_features(self.codec.encode_features(features).mean), features)
        terms = {"loss": sum(self.loss(features_hat, features).values())}
        terms |= {name: metric(features_hat.float(), features.float()).mean() for name, metric in self.metrics.items()}
        self.log_terms("val", terms, batch)

    @torch.no_grad()
    def fit_whitening(self, batches: Iterable[Batch]) -> None:
        """Fit the per-channel mean and std of the latents, the posterior's own variance included."""
        self.whitening.fit(self.codec.encode(batch.media[self.stream].to(self.device, self.dtype)) for batch in batches)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Media (B, C, *S) through encoder and decoder."""
        return self.codec.decode(self.codec.encode(x.to(self.dtype)).mean, x.shape[1:])

    def _reconstructed(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Features of a batch, their reconstruction, and the terms that do not depend on it."""
        x = batch.media[self.stream]
        if self.lengths is not None:
            x = self.lengths(x, self.codec, self.key("length", batch))
        with torch.no_grad():
            features = self.codec.front(x)
        posterior = self.codec.encode_features(features)
        z = posterior.sample(self._noise(posterior, batch))
        others = {} if self.regulariser is None else dict(self.regulariser(posterior))
        if self.equivariance is not None:
            others |= self.equivariance(self.codec, z, features, self.loss, self.key("equivariance", batch))
        return features, self._crop(self.codec.decode_features(z), features), others

    def _step(self, both: bool) -> None:
        """Step the codec, and the discriminators where they played, by the gradients of all batches and processes."""
        first, *second = self._optimizers()
        for optimizer in (first, *second) if both else (first,):
            average_(p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        if both:
            self._clipped(self.adversary_clip, second[0], "discriminators_norm")
        counted = self.optimizers()
        (counted[0] if isinstance(counted, list) else counted).step()
        if both:
            second[0].step()
        for optimizer in (first, *second):
            optimizer.zero_grad()

    def _clipped(self, clip: Clip, optimizer: torch.optim.Optimizer, name: str) -> None:
        norm = clip([p for group in optimizer.param_groups for p in group["params"]])
        self.watch_norm(name, norm)

    def _alone(self):
        """A context in which gradients stay in this process: they are averaged once, when all batches are in."""
        return getattr(self.trainer.strategy.model, "no_sync", nullcontext)()

    def _noise(self, posterior: Posterior, batch: Batch) -> Tensor:
        if posterior.std is None:
            return posterior.mean
        noise = keyed.normal(self.key("latent", batch), batch.position, posterior.mean.shape[1:])
        return noise.to(posterior.mean)

    @staticmethod
    def _crop(features_hat: Tensor, features: Tensor) -> Tensor:
        return features_hat[tuple(slice(0, n) for n in features.shape)]
