"""Scale equivariance of a latent: half the size of a latent decodes to half the size of the media."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmldm import keyed
from mmldm.interfaces import Codec

__all__ = ["ScaleEquivariance", "halved"]

Loss = Callable[[Tensor, Tensor], dict[str, Tensor]]


class ScaleEquivariance:
    """With `probability` per step (keyed) adds the loss of the halved latent's decoding against the features halved alike.

    EQ-VAE (arXiv 2502.09509, section 3.2, the implicit form) with the scale 1/2: its latents are smoother, and easier to
    generate. `axes` names what is halved; `weight` is on all terms together. Along an axis whose first cell stands alone that
    cell is kept and those after it are paired: a clip at half its rate.
    """

    def __init__(self, probability: float = 0.25, weight: float = 1.0, axes: Sequence[str] = ("height", "width")):
        if not 0 <= probability <= 1 or weight < 0 or not axes:
            raise ValueError(f"wanted probability in [0, 1], weight >= 0 and axes, got {probability}, {weight}, {list(axes)}")
        self.probability, self.weight, self.axes = probability, weight, tuple(axes)

    def __call__(self, codec: Codec, z: Tensor, features: Tensor, loss: Loss, key: Sequence[int | str]) -> dict[str, Tensor]:
        """Latents (B, D, *L) and features (B, F, *G) -> {"equivariance": scalar}, or nothing in the other steps."""
        names = {axis.name: a for a, axis in enumerate(codec.axes)}
        if missing := [name for name in self.axes if name not in names]:
            raise ValueError(f"wanted axes of the codec, got {', '.join(missing)}; choose from {', '.join(names)}")
        if float(torch.rand((), generator=keyed.generator(*key))) >= self.probability:
            return {}
        for name in self.axes:
            axis = codec.axes[names[name]]
            lone = int(axis.first != axis.size)
            if lone and axis.first != 1:
                raise ValueError(f"wanted an axis whose first cell is one sample or like the others, got {axis}")
            if lone or z.shape[2 + names[name]] > 1:
                z, features = (halved(grid, 2 + names[name], lone) for grid in (z, features))
        hat = codec.decode_features(z)
        shared = tuple(slice(0, min(a, b)) for a, b in zip(hat.shape, features.shape, strict=True))
        return {"equivariance": self.weight * sum(loss(hat[shared], features[shared]).values())}


def halved(grid: Tensor, dim: int, lone: int = 0) -> Tensor:
    """Means of neighbouring pairs along `dim` after the first `lone` entries, which are kept; a last one without a partner is
    left out."""
    pairs = (grid.shape[dim] - lone) // 2
    first, rest = grid.narrow(dim, 0, lone), grid.narrow(dim, lone, 2 * pairs)
    return torch.cat([first, rest.unflatten(dim, (pairs, 2)).mean(dim + 1)], dim)
