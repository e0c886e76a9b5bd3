"""Embedders for Fréchet distances: a small one that learns from the data at hand, and known networks from local weights."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mmldm.codec.perceptual import read_tensors
from mmldm.interfaces import Media

__all__ = ["Clap", "Embedder", "Inception", "digest_of"]


class Embedder(ABC):
    """Media (B, C, *S) in [-1, 1] -> embeddings (B, E), one row per item whatever the batch; `name` says what it is."""

    name: str

    @abstractmethod
    def fit(self, media: Media, batches: Iterable[Tensor], captions: Sequence[str]) -> None:
        """Prepare for clips of `media`; those that learn read `batches` (B, C, *S) once, one caption per item.

        Raises ValueError for media that it cannot embed.
        """

    @property
    @abstractmethod
    def digest(self) -> str:
        """sha256 of the weights: distances are comparable where it is equal."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Embeddings (B, E) in float32, without gradients."""


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and values, in the order of the names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class Inception(Embedder):
    """The 2048 pooled features of torchvision's inception_v3, from its state dict on disk; of a clip, their mean over frames.

    Pictures are resized to 299 x 299 (bilinear, antialiased) and stay in [-1, 1]. The published FID uses other weights and
    another resizing: its numbers are near, not equal.
    """

    name = "torchvision inception_v3, 2048 pooled features"

    def __init__(self, weights: str | Path):
        from torchvision.models import inception_v3

        state = read_tensors(weights)
        auxiliary = any(name.startswith("AuxLogits.") for name in state)
        classes = len(state["fc.bias"]) if "fc.bias" in state else 1000
        with torch.random.fork_rng(devices=[]):
            network = inception_v3(
                weights=None, num_classes=classes, aux_logits=auxiliary, transform_input=False, init_weights=False
            )
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"wanted a state dict of torchvision's inception_v3, got {weights}") from error
        network.fc = torch.nn.Identity()
        self.network = network.eval().requires_grad_(False)
        self._digest = digest_of(state)

    @property
    def digest(self) -> str:
        return self._digest

    def fit(self, media: Media, batches: Iterable[Tensor], captions: Sequence[str]) -> None:
        if len(media.shape) not in (3, 4) or media.shape[0] not in (1, 3):
            raise ValueError(f"wanted pictures or clips of 1 or 3 channels for Inception, got media of shape {media.shape}")

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.network.to(x.device)
        frames = x.float() if x.ndim == 4 else x.float().transpose(1, 2).flatten(0, 1)
        frames = frames.clamp(-1, 1).expand(-1, 3, -1, -1)
        rows = [
            self.network(F.interpolate(few, (299, 299), mode="bilinear", align_corners=False, antialias=True))
            for few in frames.split(16)
        ]
        return torch.cat(rows).unflatten(0, (len(x), -1)).mean(1)


class Clap(Embedder):
    """The projected audio embedding of transformers' ClapModel, from a folder that its save_pretrained and processor wrote.

    Sound is averaged over channels, resampled by its spectrum to the extractor's rate, cut at its longest clip and repeated up
    to it. Needs transformers: `pip install mmldm[text]`.
    """

    name = "transformers ClapModel, audio"

    def __init__(self, folder: str | Path):
        if not Path(folder).is_dir():
            raise ValueError(f"wanted a folder with a ClapModel, got {folder}, which is not there")
        try:
            from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor
        except ImportError as error:
            raise ValueError("Clap needs transformers: pip install mmldm[text]") from error
        try:
            options = {"local_files_only": True, "output_loading_info": True}
            self.network, told = ClapAudioModelWithProjection.from_pretrained(folder, **options)
            self.extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of many kinds, by what else the folder holds
            kind = type(error).__name__
            raise ValueError(f"wanted a folder with a ClapModel and its processor, got {folder}: {kind}") from error
        if missing := sorted(told["missing_keys"]):
            raise ValueError(f"wanted the weights of a ClapModel, got {folder} without {len(missing)}, {missing[0]} among them")
        self.network.eval().requires_grad_(False)
        self._digest, self._rate = digest_of(self.network.state_dict()), float(self.extractor.sampling_rate)

    @property
    def digest(self) -> str:
        return self._digest

    def fit(self, media: Media, batches: Iterable[Tensor], captions: Sequence[str]) -> None:
        if len(media.shape) != 2 or not media.rate:
            raise ValueError(f"wanted sound (C, T) for Clap, got media of shape {media.shape}")
        self._rate = float(media.rate)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.network.to(x.device)
        wanted = int(self.extractor.sampling_rate)
        waves = _resampled(x.float().mean(1), self._rate, wanted)[:, : self.extractor.nb_max_samples]
        read = self.extractor(
            [wave.cpu().numpy() for wave in waves], sampling_rate=wanted, return_tensors="pt", truncation="rand_trunc"
        )
        features, longer = read["input_features"].to(x.device), read["is_longer"].to(x.device)
        return self.network(input_features=features, is_longer=longer).audio_embeds.float()


def _resampled(x: Tensor, rate: float, wanted: float) -> Tensor:
    """(B, T) at another rate, band-limited, by cutting or lengthening its spectrum."""
    length = max(1, round(x.shape[-1] * wanted / rate))
    return x if length == x.shape[-1] else torch.fft.irfft(torch.fft.rfft(x), n=length) * (length / x.shape[-1])
