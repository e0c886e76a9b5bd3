"""The adversarial stage of codec training: a game against discriminators, and the balance of its gradients with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.training.processes import average_

__all__ = ["Adversary", "Balance", "Game", "Hinge", "LeastSquares"]

ADVERSARIAL, MATCHING, RECONSTRUCTION = "adversarial", "matching", "reconstruction"


# ---------------------------------------------------------------- games


class Game(Protocol):
    """What scores are worth: `judge` is what the discriminators lose, `play` what the codec loses, by score maps."""

    def judge(self, real: Tensor, fake: Tensor) -> Tensor: ...

    def play(self, fake: Tensor) -> Tensor: ...


class Hinge:
    """max(0, 1 - real) + max(0, 1 + fake) against -fake (geometric GAN, arXiv 1705.02894)."""

    def judge(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def play(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class LeastSquares:
    """(1 - real)² + fake² against (1 - fake)² (LSGAN, arXiv 1611.04076, eq. 9)."""

    def judge(self, real: Tensor, fake: Tensor) -> Tensor:
        return (1 - real).square().mean() + fake.square().mean()

    def play(self, fake: Tensor) -> Tensor:
        return (1 - fake).square().mean()


# ---------------------------------------------------------------- balance


class Balance(nn.Module):
    """Gives every loss term a share of the gradient at the reconstruction, whatever its scale (EnCodec, arXiv 2210.13438,
    section 3.4, eq. 5).

    `shares[name]` of `adversarial`, `matching` and any reconstruction term; those that are not named are one term of their own
    weights, `reconstruction` (share 1 unless given). Norms are per item, averaged over items, processes and, with `decay`, over
    batches (buffers: in the checkpoint). The whole has the norm that `reconstruction` has by itself: the weights of terms of
    the latent keep their meaning.
    """

    norms: Tensor

    def __init__(self, shares: Mapping[str, float], decay: float = 0.99):
        super().__init__()
        shares = {RECONSTRUCTION: 1.0, **shares}
        if min(shares.values()) < 0 or shares[RECONSTRUCTION] == 0 or not 0 <= decay < 1:
            raise ValueError(f"wanted shares >= 0, that of {RECONSTRUCTION} above 0, decay in [0, 1), got {shares}, {decay}")
        self.shares, self.decay = shares, decay
        self.register_buffer("norms", torch.zeros(len(shares)))

    def forward(self, terms: Mapping[str, Tensor], x: Tensor, strength: float = 1.0) -> Tensor:
        """Scalars that depend on x (B, *S) -> the balanced gradient with respect to x; `strength` is on the game's shares."""
        named = [name for name in self.shares if name != RECONSTRUCTION]
        rest = [value for name, value in terms.items() if name not in named]
        if not rest or (odd := [name for name in named if name not in terms]):
            wrong = f"no term {odd[0]!r}" if rest else "a share for every term"
            raise ValueError(
                f"wanted shares of terms, at least one left to {RECONSTRUCTION}, got {wrong} in {', '.join(terms)}"
            )
        groups = [sum(rest) if name == RECONSTRUCTION else terms[name] for name in self.shares]
        gradients = [torch.autograd.grad(group, x, retain_graph=True)[0] for group in groups]
        norms = dict(zip(self.shares, self.learn(gradients).clamp_min(1e-12), strict=True))
        shares = {n: share * (strength if n in (ADVERSARIAL, MATCHING) else 1.0) for n, share in self.shares.items()}
        whole = norms[RECONSTRUCTION] / sum(shares.values())
        return sum(whole * shares[name] / norms[name] * g for name, g in zip(self.shares, gradients, strict=True))

    @torch.no_grad()
    def learn(self, gradients: Sequence[Tensor]) -> Tensor:
        """Move the averaged norms towards those of gradients (B, *S) of means over items; from 0, as only ratios are used."""
        met = torch.stack([g.flatten(1).norm(dim=1).mean() * len(g) for g in gradients]).to(self.norms)
        average_([met])
        return self.norms.lerp_(met, 1 - self.decay).clone()


# ---------------------------------------------------------------- the adversary


class Adversary(nn.Module):
    """Discriminators that codec training plays against from `start` on: a share of the training (float) or a step (int).

    Each `discriminators[name](x (B, C, *S)) -> (scores, activations)`, lists of tensors. `weight` is on what the game costs the
    codec, `matching` on the L1 distance of activations over the mean magnitude of the real ones (feature matching, as EnCodec
    has it); both rise from 0 over `ramp` (in the unit of `start`), while the discriminators learn. With `balance` its shares
    take the place of the weights. `optimizer` maps their parameters to a torch optimiser (None: the codec's).
    """

    def __init__(
        self,
        discriminators: Mapping[str, nn.Module],
        start: float | int = 0.3,
        ramp: float | int = 0.05,
        weight: float = 0.1,
        matching: float = 0.1,
        game: Game | None = None,
        balance: Balance | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ):
        super().__init__()
        if not discriminators:
            raise ValueError("wanted at least one discriminator, got none")
        start = 0.0 if start == 0 and ramp % 1 else start
        if min(start, ramp) < 0 or (isinstance(start, float) and max(start, ramp) > 1) or (isinstance(start, int) and ramp % 1):
            raise ValueError(f"wanted start and ramp as shares like 0.3 and 0.05, or both as steps, got {start} and {ramp}")
        if min(weight, matching) < 0:
            raise ValueError(f"wanted weights >= 0, got {weight} and {matching}")
        self.discriminators = nn.ModuleDict(dict(discriminators))
        self.start, self.ramp, self.weight, self.matching = start, ramp, weight, matching
        self.game, self.balance, self.optimizer_of = game or Hinge(), balance, optimizer

    def strength(self, step: int, progress: float) -> float | None:
        """The share of its weights that the game has at a step and share of the training; None before it starts."""
        since = (step if isinstance(self.start, int) else progress) - self.start
        if since < 0:
            return None
        return min(1.0, since / self.ramp) if self.ramp else 1.0

    def forward(self, x_hat: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and original (B, C, *S) -> what the discriminators lose, and what the codec does, unweighted.

        Of the first only the gradients of the discriminators' weights are meant, of the second only those of x_hat.
        """
        judged, played, distances = [], [], []
        for discriminator in self.discriminators.values():
            (real, known), (fake, made) = discriminator(x), discriminator(x_hat)
            pairs = [(_wide(a), _wide(b)) for a, b in zip(real, fake, strict=True)]
            judged.append(_mean([self.game.judge(a, b) for a, b in pairs]))
            played.append(_mean([self.game.play(b) for _, b in pairs]))
            distances.append(_mean([_distance(b, a.detach()) for a, b in zip(known, made, strict=True)]))
        return sum(judged), {ADVERSARIAL: _mean(played), MATCHING: _mean(distances)}

    def gradient(self, terms: Mapping[str, Tensor], game: Mapping[str, Tensor], x_hat: Tensor, strength: float) -> Tensor:
        """The gradient with respect to x_hat of the reconstruction's `terms` and of the game's."""
        if self.balance is not None:
            return self.balance({**terms, **game}, x_hat, strength)
        weighted = self.weight * game[ADVERSARIAL] + self.matching * game[MATCHING]
        return torch.autograd.grad(sum(terms.values()) + strength * weighted, x_hat)[0]


def _distance(made: Tensor, known: Tensor) -> Tensor:
    """Mean over items of mean |made - known| / mean |known|: a mean, so that a batch may be cut anywhere."""
    made, known = _wide(made).flatten(1), _wide(known).flatten(1)
    return ((made - known).abs().mean(1) / known.abs().mean(1).clamp_min(1e-8)).mean()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
