"""LPIPS, the perceptual distance of pictures, from weights on disk; and the reconstruction term that uses it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.codec.losses import Gradient

__all__ = ["LPIPS", "Perceptual", "read_tensors"]

# torchvision's `features`: index of each convolution -> (stride, padding); indices of poolings; indices that LPIPS compares
_VGG16 = ({i: (1, 1) for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}, {4: 2, 9: 2, 16: 2, 23: 2}, (3, 8, 15, 22, 29))
_ALEXNET = ({0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}, {2: 3, 5: 3}, (1, 4, 7, 9, 11))
Files = str | Path | Sequence[str | Path]


class LPIPS(nn.Module):
    """Distance of pictures in [-1, 1]: activations of VGG16 or AlexNet, weighted by learned heads (arXiv 1801.03924, eq. 1).

    `weights` names files of the torchvision network (`features.N.weight`) and of the heads (`linK.model.1.weight`), or one file
    with both as the lpips package saves it; which network it is shows in its first kernel. Clips are compared frame by frame.
    The tensors are frozen and no part of a checkpoint. Raises ValueError for missing ones and for pictures below 32 pixels.
    """

    def __init__(self, weights: Files):
        super().__init__()
        files = [weights] if isinstance(weights, str | Path) else list(weights)
        found = _canonical({name: tensor for file in files for name, tensor in read_tensors(file).items()})
        first = found.get("features.0.weight")
        self._convs, self._pools, self._taps = _ALEXNET if first is not None and first.shape[-1] == 11 else _VGG16
        wanted = [f"features.{i}.{kind}" for i in self._convs for kind in ("weight", "bias")]
        wanted += [f"head.{k}" for k in range(len(self._taps))]
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(
                f"wanted the weights of VGG16 or AlexNet and of LPIPS's heads, got no {missing[0]} ({len(missing)} missing); "
                "choose the files of torchvision and of the lpips package"
            )
        for name in wanted:
            self.register_buffer(name.replace(".", "_"), found[name].float(), persistent=False)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Distances of two batches (B, C, *S), C = 1 or 3, of rank 2, or 3 with frames first: (B,)."""
        if x_hat.shape != x.shape or x.ndim not in (4, 5) or x.shape[1] not in (1, 3) or min(x.shape[-2:]) < 32:
            raise ValueError(
                "wanted two batches (B, 1 or 3, [T,] H, W) of one shape with pictures of at least 32 x 32, "
                f"got {tuple(x_hat.shape)} and {tuple(x.shape)}"
            )
        distance = x.new_zeros(())
        for k, (a, b) in enumerate(zip(self._activations(x_hat), self._activations(x), strict=True)):
            error = (_unit(a) - _unit(b)).square()
            distance = distance + (error * getattr(self, f"head_{k}").to(x)).sum(1).mean((1, 2))
        return distance.reshape(len(x), -1).mean(1)

    def _activations(self, x: Tensor) -> list[Tensor]:
        frames = x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)
        z, taken = (frames - self.shift.to(x)) / self.scale.to(x), []
        for i in range(self._taps[-1] + 1):
            if i in self._convs:
                stride, padding = self._convs[i]
                weight, bias = (getattr(self, f"features_{i}_{kind}").to(x) for kind in ("weight", "bias"))
                z = F.conv2d(z, weight, bias, stride, padding)
            elif i in self._pools:
                z = F.max_pool2d(z, self._pools[i], 2)
            else:
                z = z.relu()
            if i in self._taps:
                taken.append(z)
        return taken


class Perceptual(nn.Module):
    """weight · mean LPIPS of pictures or of all frames of clips; `weights` names its files as for `LPIPS`.

    Without `weights` it warns in one line and compares gradients at scales 1, 2 and 4 instead.
    """

    def __init__(self, weight: float = 1.0, weights: Files | None = None):
        super().__init__()
        self.weight = weight
        if weights is None:
            warnings.warn("no LPIPS weights given: Perceptual compares multi-scale gradients instead", stacklevel=2)
        self.distance = Gradient(scales=(1, 2, 4)) if weights is None else LPIPS(weights)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.weight * self.distance(x_hat, x).mean()


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a state dict saved by torch; raises ValueError where there are none."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"wanted a file of weights, got {path}, which is not there")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, by format and by what is broken
        raise ValueError(f"wanted .safetensors or a state dict saved by torch, got {path}: {type(error).__name__}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"wanted a state dict of tensors, got another object in {path}")
    return dict(state)


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """features.N.weight and head.K, from the names of torchvision and of the lpips package."""
    names = {}
    for name, tensor in state.items():
        slice_ = re.fullmatch(r"net\.slice\d+\.(\d+)\.(weight|bias)", name)
        head = re.fullmatch(r"lin(?:s\.)?(\d+)\.model\.\d+\.weight", name)
        names[f"features.{slice_[1]}.{slice_[2]}" if slice_ else f"head.{head[1]}" if head else name] = tensor
    return names


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt()
