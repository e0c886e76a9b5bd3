"""Training of a codec: reconstruct the features of its front end through a regularised latent; then fit the whitening."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.interfaces import Batch, Codec, Posterior
from mmldm.model import Whitening
from mmldm.training.base import Training, finite
from mmldm.training.schedule import Schedule

__all__ = ["CodecTraining"]

Metric = Callable[[Tensor, Tensor], Tensor]


class CodecTraining(Training):
    """Trains the codec of one stream with `loss(features_hat, features) -> terms` and `regulariser(posterior) -> terms`.

    `metrics[name](features_hat, features) -> (B,)` are logged in validation. `whitening` is fitted by `fit_whitening`.
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
    ):
        super().__init__(optimizer, schedule, batch_size, seed, minutes)
        self.codec, self.stream, self.loss, self.regulariser = codec, stream, loss, regulariser
        self.metrics = metrics or {}
        self.whitening = Whitening(codec.latent_channels)

    def exported(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in super().exported().items() if name.startswith("codec.")}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad():
            features = self.codec.front(batch.media[self.stream])
        posterior = self.codec.encode_features(features)
        z = posterior.sample(self._noise(posterior, batch))
        terms = dict(self.loss(self._crop(self.codec.decode_features(z), features), features))
        if self.regulariser is not None:
            terms |= self.regulariser(posterior)
        total = finite(sum(terms.values()), self.step_of(batch))
        self.log_terms("train", {"loss": total, **terms}, batch)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        features = self.codec.front(batch.media[self.stream])
        features_hat = self._crop(self.codec.decode_features(self.codec.encode_features(features).mean), features)
        terms = {"loss": sum(self.loss(features_hat, features).values())}
        terms |= {name: metric(features_hat.float(), features.float()).mean() for name, metric in self.metrics.items()}
        self.log_terms("val", terms, batch)

    @torch.no_grad()
    def fit_whitening(self, batches: Iterable[Batch]) -> None:
        """Fit the per-channel mean and std of the latents, the posterior's own variance included."""
        self.whitening.fit(self.codec.encode(batch.media[self.stream].to(self.device)) for batch in batches)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Media (B, C, *S) through encoder and decoder."""
        return self.codec.decode(self.codec.encode(x).mean, x.shape[1:])

    def _noise(self, posterior: Posterior, batch: Batch) -> Tensor:
        if posterior.std is None:
            return posterior.mean
        noise = keyed.normal(self.key("latent", batch), batch.position, posterior.mean.shape[1:])
        return noise.to(posterior.mean)

    @staticmethod
    def _crop(features_hat: Tensor, features: Tensor) -> Tensor:
        return features_hat[tuple(slice(0, n) for n in features.shape)]
