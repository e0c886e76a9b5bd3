"""What can be measured of one coloured object on a soft background, without any learned network.

The background is a plane per channel fitted robustly from the border inwards; a pixel's coverage is its difference from the
background projected on that of the object's core, mostly in chroma. All else are moments and templates of the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

__all__ = ["PictureProbe", "Track"]

# R-G, yellow-blue and lightness: a codec may blur the first two more, shadows and lamps change the last one alone
OPPONENT = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0], [1.0, 1.0, 1.0]])
SIGHT = 1.8  # half width of the templates, in radii of the circle of equal area
CELLS = 31


@dataclass(frozen=True)
class Track:
    """The object in each of T frames: coverage (T, H, W); centre x, y and `radius` of the circle of equal area (T,) in parts of
    the shorter side, from the middle; RGB (3,) in [0, 1]; how much of it is seen, `weight` (T,)."""

    coverage: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    rgb: Tensor
    weight: Tensor


def _coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    side = min(height, width)
    y, x = (torch.arange(n) + 0.5 - n / 2 for n in (height, width))
    return (y / side)[:, None].expand(height, width), (x / side)[None, :].expand(height, width)


def _difference(x: Tensor) -> Tensor:
    """Frames (T, 3, H, W) in [0, 1] -> opponent colours minus the background's plane, (T, 3, H, W)."""
    frames, _, height, width = x.shape
    colours = torch.einsum("ij,tjhw->tihw", OPPONENT, x)
    y, u = _coordinates(height, width)
    basis = torch.stack([torch.ones_like(y), u, y]).flatten(1)  # (3, P)
    border = (
        (torch.maximum(y.abs() * min(height, width) / height, u.abs() * min(height, width) / width) > 0.42).float().flatten()
    )
    weight = border.expand(frames, -1)
    flat = colours.flatten(2)  # (T, 3, P)
    for _ in range(5):
        normal = torch.einsum("ip,tp,jp->tij", basis, weight, basis) + 1e-6 * torch.eye(3)
        right = torch.einsum("ip,tp,tcp->tic", basis, weight, flat)
        residual = flat - torch.einsum("tic,ip->tcp", torch.linalg.solve(normal, right), basis)
        weight = 1 / (1 + residual.square().sum(1) / 0.08**2) ** 2 * (0.3 + 0.7 * border)
    return residual.unflatten(2, (height, width))


def _coverage(difference: Tensor) -> Tensor:
    """How much of each pixel the object covers, from its difference to the background: (T, H, W) in [0, 1]."""
    flat = difference.transpose(0, 1).flatten(1)  # (3, T * P)
    weight = flat.square().sum(0) ** 2
    for power in (4, 6, 6):
        core = (flat * weight).sum(1) / weight.sum().clamp_min(1e-12)
        alpha = (core @ flat / core.square().sum().clamp_min(1e-8)).clamp(0, 1)
        weight = alpha**power
    level = alpha[alpha > 0.8].mean() if (alpha > 0.8).any() else alpha.new_ones(())
    alpha = (alpha / level).clamp(0, 1).reshape(difference[:, 0].shape)
    around = conv2d(pad(alpha[:, None], (1, 1, 1, 1), mode="replicate"), torch.full((1, 1, 3, 3), 1 / 9))[:, 0]
    return alpha * (around > 0.15)


def _oklab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3) in [0, 1] -> OKLab (B. Ottosson, 2020)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ torch.tensor([[0.4122214708, 0.2119034982, 0.0883024619],
                                   [0.5363325363, 0.6806995451, 0.2817188376],
                                   [0.0514459929, 0.1073969566, 0.6299787005]])  # fmt: skip
    return cones.clamp_min(0) ** (1 / 3) @ torch.tensor([[0.2104542553, 1.9779984951, 0.0259040371],
                                                         [0.7936177850, -2.4285922050, 0.7827717662],
                                                         [-0.0040720468, 0.4505937099, -0.8086757660]])  # fmt: skip


class PictureProbe:
    """Colour, shape, size, place and motion of one object, by the vocabulary's numbers.

    `vocabulary` holds `colour` (RGB), `shape` (outline: radius by angle, clockwise from straight up), `size` (radius), `place`
    (x, y) and `motion` (`travel`, `growth`, `orbit` per clip); lengths in parts of the shorter side.
    """

    def __init__(self, vocabulary: Mapping[str, Mapping]):
        self.vocabulary = vocabulary
        self._shapes, self._templates = self._rendered()

    def track(self, x: Tensor) -> Track:
        """Find the object in frames (3, T, H, W) in [-1, 1]."""
        frames = (x.detach().float().cpu().transpose(0, 1).nan_to_num().clamp(-1, 1) + 1) / 2
        alpha = _coverage(_difference(frames))
        y, u = _coordinates(*alpha.shape[1:])
        side, near = min(alpha.shape[1:]), alpha
        for _ in range(3):  # the second and third time without what is far away from the rest
            mass = near.sum((1, 2)).clamp_min(1e-6)
            cx, cy = (near * u).sum((1, 2)) / mass, (near * y).sum((1, 2)) / mass
            radius = (mass / math.pi).sqrt() / side
            reach = 2.2 * radius + 1.5 / side
            distance = ((u - cx[:, None, None]) ** 2 + (y - cy[:, None, None]) ** 2).sqrt()
            near = alpha * (1 - (distance - reach[:, None, None]) * side / 2).clamp(0, 1)
        weight = near**6 + 1e-12
        rgb = (frames * weight[:, None]).sum((0, 2, 3)) / weight.sum()
        return Track(near, cx, cy, radius.clamp_min(0.5 / side), rgb, near.sum((1, 2)) + 1e-6)

    def colour(self, track: Track) -> str:
        """The nearest colour of the palette in OKLab, lightness counting half."""
        palette = self.vocabulary["colour"]
        weight = torch.tensor([0.5, 1.0, 1.0])
        gaps = (_oklab(torch.tensor(list(palette.values()))) - _oklab(track.rgb)) * weight
        return list(palette)[int(gaps.square().sum(-1).argmin())]

    def shape(self, track: Track) -> str:
        """The shape whose template, turned a little and more or less blurred, is most like the mean of the centred frames."""
        scores = self._templates @ self._centred(track)
        return self._shapes[int(scores.argmax())]

    def size(self, track: Track, shape: str | None = None) -> str:
        """The nearest size, for the area that the shape has at radius 1."""
        area = self._area(shape or self.shape(track))
        radius = float(track.radius.median()) / math.sqrt(area / math.pi)
        return min(self.vocabulary["size"], key=lambda name: abs(math.log(self.vocabulary["size"][name] / radius)))

    def place(self, track: Track) -> str:
        """The place nearest to the object's mean centre."""
        x, y = float(track.x.mean()), float(track.y.mean())
        return min(self.vocabulary["place"], key=lambda name: math.dist((x, y), self.vocabulary["place"][name]))

    def motion(self, track: Track) -> str:
        """The motion that is strongest relative to its nominal amount over the clip; none of half that amount: `still`."""
        motions = self.vocabulary["motion"]
        frames = len(track.x)
        rest = next(name for name, amount in motions.items() if not amount)
        if frames < 3:
            return rest
        u = torch.linspace(-0.5, 0.5, frames, dtype=torch.float64)
        path = torch.complex(track.x.double(), track.y.double())
        velocity, miss = _fit(path, torch.complex(u, torch.zeros_like(u)))
        turns = [_fit(path, torch.polar(torch.ones_like(u), 2 * math.pi * k * u)) for k in (-1.2, -1.0, -0.8, 0.8, 1.0, 1.2)]
        orbit, miss_orbit = min(turns, key=lambda turn: turn[1])
        growth = float(_fit(torch.complex(track.radius.double().log(), torch.zeros_like(u)), u + 0j)[0].real)
        strength = {rest: 0.5}
        for name, amount in motions.items():
            if "travel" in amount:
                dx, dy = amount["travel"]
                along = (float(velocity.real) * dx + float(velocity.imag) * dy) / (dx * dx + dy * dy)
                strength[name] = along if miss <= miss_orbit else 0.0
            elif "growth" in amount:
                strength[name] = growth / amount["growth"]
            elif "orbit" in amount:
                strength[name] = float(orbit.abs()) / amount["orbit"] if miss_orbit < miss else 0.0
        return max(strength, key=strength.__getitem__)

    def _area(self, shape: str) -> float:
        outline = self.vocabulary["shape"][shape]
        return sum(r * r for r in outline) * math.pi / len(outline)

    def _centred(self, track: Track) -> Tensor:
        """The mean over frames of the coverage around its centre, scaled to equal area: unit vector of CELLS * CELLS."""
        height, width = track.coverage.shape[1:]
        side = min(height, width)
        steps = torch.linspace(-SIGHT, SIGHT, CELLS)
        x = (track.x[:, None] + track.radius[:, None] * steps) * 2 * side / width
        y = (track.y[:, None] + track.radius[:, None] * steps) * 2 * side / height
        grid = torch.stack([x[:, None, :].expand(-1, CELLS, -1), y[:, :, None].expand(-1, -1, CELLS)], -1)
        seen = grid_sample(track.coverage[:, None], grid, align_corners=False)[:, 0]
        return _unit((seen * track.weight[:, None, None]).sum(0).flatten()[None])[0]

    def _rendered(self) -> tuple[list[str], Tensor]:
        """The templates, unit vectors (N, CELLS * CELLS), and the name of each."""
        steps = torch.linspace(-SIGHT, SIGHT, CELLS)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        distance, angle = (x * x + y * y).sqrt(), torch.atan2(x, -y)
        names, pictures = [], []
        for name, values in self.vocabulary["shape"].items():
            outline = torch.tensor(values) / math.sqrt(self._area(name) / math.pi)
            for tilt in (torch.arange(-3, 4) * 0.09).tolist():
                at = torch.remainder(angle - tilt, 2 * math.pi) / (2 * math.pi) * len(outline)
                low = at.floor()
                edge = outline[low.long() % len(outline)] * (1 - at + low) + outline[(low.long() + 1) % len(outline)] * (
                    at - low
                )
                sharp = (0.5 + (edge - distance) / (2 * SIGHT / CELLS)).clamp(0, 1)
                for blur in (0.12, 0.25, 0.4, 0.55):
                    names.append(name)
                    pictures.append(_blurred(sharp, blur * CELLS / (2 * SIGHT)))
        return names, _unit(torch.stack(pictures).flatten(1))


def _fit(path: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """Least squares of a complex path on one complex basis and a constant: coefficient and squared residual."""
    basis, path = basis - basis.mean(), path - path.mean()
    coefficient = (basis.conj() * path).sum() / basis.abs().square().sum()
    return coefficient, float((path - coefficient * basis).abs().square().sum())


def _unit(vectors: Tensor) -> Tensor:
    centred = vectors - vectors.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = pad(picture[None, None], (reach,) * 4)
    return conv2d(conv2d(padded, kernel[None, None, None, :]), kernel[None, None, :, None])[0, 0]
