"""The built-in embedder: a small convolutional network that learns, in seconds and offline, from the data it will judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mmldm import keyed
from mmldm.codec.mel import LogMel
from mmldm.codec.perceptual import read_tensors
from mmldm.evaluation.embedders import Embedder, digest_of
from mmldm.interfaces import Media

__all__ = ["Learned"]

_CONVS = (F.conv1d, F.conv2d, F.conv3d)
_WIDTHS = (32, 32, 64)
_CROPS = {1: (256,), 2: (64, 64), 3: (8, 32, 32)}  # what it learns from, at most


class Learned(Embedder):
    """Means over the grid of the activations of three convolutions with stride 2, 128 numbers scaled to unit variance.

    It learns to tell the words of the captions from random crops; where fewer than two words stand in a tenth to nine tenths of
    the captions, to tell items apart (instance discrimination, SimCLR, arXiv 2002.05709, eq. 1). Sound is seen as
    log-mel. Every draw is keyed by `seed`: equal data give equal weights on one machine. `weights` names a file that `save`
    wrote, to judge by the same network elsewhere.
    """

    def __init__(self, steps: int = 200, batch_size: int = 32, seed: int = 0, weights: str | Path | None = None):
        if steps < 1 or batch_size < 2:
            raise ValueError(f"wanted steps >= 1 and batch_size >= 2, got {steps} and {batch_size}")
        self.steps, self.batch_size, self.seed, self.given = steps, batch_size, seed, weights is not None
        self.tensors = {} if weights is None else read_tensors(weights)
        self.name, self._mel = "small network from a file", None

    @property
    def digest(self) -> str:
        return digest_of(self.tensors)

    def save(self, path: str | Path) -> Path:
        """Write the weights as .safetensors."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path)
        return Path(path)

    def fit(self, media: Media, batches: Iterable[Tensor], captions: Sequence[str]) -> None:
        sound = len(media.shape) == 2 and bool(media.rate) and media.rate >= 8000
        self._mel = LogMel(round(media.rate), bins=64) if sound else None
        rank = 2 if sound else len(media.shape) - 1
        if rank not in _CROPS:
            raise ValueError(f"wanted media of rank 1 to 3, got shape {media.shape}")
        if not self.tensors and not self.given:
            items = [self._crop(x, rank, ("crop", i)) for i, x in enumerate(x for b in batches for x in self._front(b).cpu())]
            self._learn(torch.stack(items), _labels(captions[: len(items)]), rank)
        for name, shape in _shapes(media.shape[0], rank).items():
            found = tuple(self.tensors[name].shape) if name in self.tensors else "none"
            if found != shape:
                raise ValueError(f"wanted weights for media of shape {media.shape} with {name} of shape {shape}, got {found}")

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        pooled = _pooled([self.tensors[f"conv{i}"].to(x.device) for i in range(len(_WIDTHS))], self._front(x))
        return (pooled - self.tensors["mean"].to(x.device)) / self.tensors["std"].to(x.device)

    def _front(self, x: Tensor) -> Tensor:
        return x.float() if self._mel is None else self._mel.to(x.device)(x.float())

    def _crop(self, x: Tensor, rank: int, key: tuple[int | str, ...], margin: float = 1.0) -> Tensor:
        """A part (C, *S) at most as large as learning wants, at a keyed place."""
        for axis, most in enumerate(_CROPS[rank]):
            length = max(1, min(int(x.shape[1 + axis] * margin), most))
            start = int(keyed.integers((self.seed, "embedder", *key), [axis], x.shape[1 + axis] - length + 1))
            x = x.narrow(1 + axis, start, length)
        return x

    def _learn(self, items: Tensor, labels: Tensor | None, rank: int) -> None:
        with torch.enable_grad():
            weights, shapes = [], _shapes(items.shape[1], rank)
            for i in range(len(_WIDTHS)):
                shape = shapes[f"conv{i}"]
                start = keyed.normal((self.seed, "embedder"), [i], shape)[0] * (2 / (shape[1] * 3**rank)) ** 0.5
                weights.append(start.requires_grad_())
            outputs = 64 if labels is None else labels.shape[1]
            head = (keyed.normal((self.seed, "embedder head"), [0], (sum(_WIDTHS), outputs))[0] * 0.1).requires_grad_()
            optimizer = torch.optim.Adam([*weights, head], lr=2e-3)
            for step in range(self.steps):
                rows = keyed.integers((self.seed, "embedder rows", step), range(min(self.batch_size, len(items))), len(items))
                views = [self._view(items[rows], rank, step, side) for side in range(2 if labels is None else 1)]
                found = [_pooled(weights, view) @ head for view in views]
                lost = _contrast(*found, rows) if labels is None else F.binary_cross_entropy_with_logits(found[0], labels[rows])
                optimizer.zero_grad()
                lost.backward()
                optimizer.step()
        self.tensors = {f"conv{i}": w.detach() for i, w in enumerate(weights)}
        pooled = torch.cat([_pooled(list(self.tensors.values()), few) for few in items.split(64)])
        self.tensors |= {"mean": pooled.mean(0), "std": pooled.std(0).clamp_min(1e-3)}
        what = "to tell items apart" if labels is None else f"{labels.shape[1]} words of the captions"
        self.name = f"small network that learned {what} from {len(items)} items"

    def _view(self, items: Tensor, rank: int, step: int, side: int) -> Tensor:
        """Smaller crops, one place per batch, each item with a little gain of its own."""
        places = torch.stack([self._crop(item, rank, ("view", step, side), 0.8) for item in items])
        gain = 1 + 0.1 * keyed.normal((self.seed, "embedder gain", step, side), range(len(items)), ())
        return places * gain.reshape(-1, *[1] * (items.ndim - 1))


def _shapes(channels: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Of each tensor by its name, for media of `channels`."""
    convs = {f"conv{i}": (width, (channels, *_WIDTHS)[i], *(3,) * rank) for i, width in enumerate(_WIDTHS)}
    return convs | dict.fromkeys(("mean", "std"), (sum(_WIDTHS),))


def _pooled(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """(B, C, *S) -> the mean activations of every layer, (B, sum of widths)."""
    means = []
    for weight in weights:
        x = F.gelu(_CONVS[x.ndim - 3](x, weight, stride=2, padding=1))
        means.append(x.flatten(2).mean(2))
    return torch.cat(means, 1)


def _labels(captions: Sequence[str]) -> Tensor | None:
    """(items, words) 0 or 1 for the words in a tenth to nine tenths of the captions, 64 at most; None below two of them."""
    said = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    counts = Counter(word for words in said for word in words)
    shared = [word for word, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if 0.1 <= n / len(said) <= 0.9][:64]
    return torch.tensor([[float(word in words) for word in shared] for words in said]) if len(shared) > 1 else None


def _contrast(a: Tensor, b: Tensor, rows: Tensor, temperature: float = 0.2) -> Tensor:
    """Cross-entropy of finding each item's other view among the batch; the same item drawn twice is no negative."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    same = (rows[:, None] == rows) & ~torch.eye(len(rows), dtype=torch.bool)
    logits = logits.masked_fill(same, -1e4)
    wanted = torch.arange(len(rows))
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
