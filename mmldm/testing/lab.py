"""What the laws of a codec are tried on: copies of it, a clip of media, and the comparison of two results."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.interfaces import Codec, Posterior

__all__ = ["Lab", "Law", "Moot", "Note", "attributes", "law", "same", "small_shape", "tensors"]

SMALL, LONG = 3, 24  # cells along an axis of a clip; at most, of one longer than what is seen


class Note(str):
    """What a law that holds has to tell."""


class Moot(str):
    """Why a law does not apply to a codec."""


@dataclass(frozen=True)
class Law:
    """`name`, what it `says`, what `breaks` downstream without it, and what finds out.

    `run(lab)` returns None where it holds, a Note or a Moot, or in words what was found instead.
    """

    name: str
    says: str
    breaks: str
    run: Callable[[Lab], str | None]


def law(name: str, breaks: str) -> Callable[[Callable[[Lab], str | None]], Law]:
    """Make a Law of a function; its docstring says what the law says."""
    return lambda run: Law(name, run.__doc__, breaks, run)


@dataclass(frozen=True)
class Lab:
    """A codec as it came (`source`, never run), copies that are run, and the shape (C, *S) of a clip."""

    source: Codec
    shape: tuple[int, ...]
    tolerance: float
    _longer: dict[int, Lab] = field(default_factory=dict)

    @cached_property
    def codec(self) -> Codec:
        """A copy in evaluation mode."""
        return self.fresh()

    @cached_property
    def exact(self) -> Codec:
        """A copy in float64 in which no parameter is constant: zero initialisations would hide what is behind them."""
        return _awake(self.fresh().double())

    def fresh(self) -> Codec:
        """A copy that was not run yet."""
        return copy.deepcopy(self.source).cpu().float().eval()

    def cut(self, **sizes: int) -> Codec:
        """The exact copy with another `chunk` or `tile`."""
        codec = copy.deepcopy(self.exact)
        for name, size in sizes.items():
            setattr(codec, name, size)
        return codec

    def along(self, axis: int) -> Lab:
        """The same with a clip that is longer along one axis than what a cell or a sample is declared to see there."""
        if axis not in self._longer:
            length = max(self.shape[1 + axis], self.source.axes[axis].length(min(LONG, self.seen(axis) + SMALL)))
            longer = replace(self, shape=(*self.shape[: 1 + axis], length, *self.shape[2 + axis :]))
            vars(longer).update(codec=self.codec, exact=self.exact)
            self._longer[axis] = self if longer.shape == self.shape else longer
        return self._longer[axis]

    def seen(self, axis: int) -> int:
        """Cells on a side that a cell or a decoded sample is declared to see at most along an axis, where that is finite."""
        spec = self.source.axes[axis]
        far = max((far for far in self.source.field(spec) if math.isfinite(far)), default=0)
        return max(math.ceil(far / spec.size), (self.source.decode_reach or {}).get(spec.name, 0))

    # -- media and latents

    def media(self, shape: Sequence[int], batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
        """Smooth noise in [-1, 1]: neither constant nor white."""
        noise = keyed.normal(("check codec", *shape), range(batch), shape)
        for dim in range(2, noise.ndim):
            noise = noise + noise.roll(1, dim)
        return (noise / noise.abs().amax() * 0.9).to(dtype)

    @property
    def x(self) -> Tensor:
        """The clip in float64, its own memory."""
        return self._clip.clone()

    @cached_property
    def _clip(self) -> Tensor:
        return self.media(self.shape)

    @cached_property
    @torch.no_grad()
    def posterior(self) -> Posterior:
        """What the exact copy makes of the clip at once."""
        return self.exact.encode_features(self.exact.front(self.x))

    @cached_property
    @torch.no_grad()
    def encoded(self) -> Tensor:
        """The mean that the exact copy's `encode` gives of the clip."""
        return self.exact.encode(self.x).mean

    @torch.no_grad()
    def decoded(self, z: Tensor) -> Tensor:
        """What the exact copy makes of latents at once, whole cells."""
        return self.exact.unfront(self.exact.decode_features(z))

    @cached_property
    def wholes(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What is given and what is made of it at once, both ways."""
        z = self.posterior.mean
        return {"encode": (self.x, self.posterior.joined()), "decode": (z, self.decoded(z))}

    @cached_property
    @torch.no_grad()
    def extremes(self) -> list[tuple[str, Posterior, Tensor]]:
        """Constant clips and one that is not, by name, with their latents and how they come back, in float32."""
        clips = [(f"constant media of {value:g}", torch.full((1, *self.shape), value)) for value in (-1.0, 0.0, 1.0)]
        made = []
        for name, x in [*clips, ("media in [-1, 1]", self.media(self.shape, dtype=torch.float32))]:
            posterior = self.codec.encode(x)
            made.append((name, posterior, self.codec.decode(posterior.mean, self.shape)))
        return made

    # -- time

    @property
    def time(self) -> int | None:
        """The latent grid's axis named time, if the media has one too."""
        names = [axis.name for axis in self.source.axes]
        return names.index("time") if "time" in names and self.source.media.time_axis is not None else None

    @property
    def dim(self) -> int:
        """Dimension of (B, C, *S) that runs in time."""
        return 2 + self.source.media.time_axis

    @property
    def planes(self) -> list[int]:
        """The media's grid axes that do not run in time."""
        return [a for a in range(len(self.shape) - 1) if a != self.time]

    def bounded(self, axis: int, decoding: bool) -> bool:
        """Whether what a cell (or a decoded sample) sees along an axis is declared to be finite."""
        if decoding:
            return self.source.axes[axis].name in (self.source.decode_reach or {})
        return all(math.isfinite(far) for far in self.source.field(self.source.axes[axis]))

    # -- shapes

    def lengths(self) -> list[tuple[int, ...]]:
        """Media shapes with every grid axis whole, one less, odd and minimal; and minimal alone along each axis."""
        shapes = {self.shape}
        for change in (lambda n: n - 1, lambda n: n // 2 + 1, lambda n: 1):
            shapes.add((self.shape[0], *(max(1, change(n)) for n in self.shape[1:])))
        for axis in range(1, len(self.shape)):
            shapes.add((*self.shape[:axis], 1, *self.shape[axis + 1 :]))
        return sorted(shapes)

    def timed(self, length: int) -> tuple[int, ...]:
        """The media shape with another length in time."""
        return (*self.shape[: self.dim - 1], length, *self.shape[self.dim :])

    # -- comparison

    def near(self, a: Tensor, b: Tensor, tolerance: float | None = None) -> str | None:
        """None where a and b agree relative to b's scale, else how far apart they are."""
        if a.shape != b.shape:
            return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
        error = ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
        return None if error <= (self.tolerance if tolerance is None else tolerance) else f"relative difference {error:.2g}"


def small_shape(codec: Codec) -> tuple[int, ...]:
    """The shape (C, *S) of a clip of a few cells, where the codec's media have such."""
    media = codec.media
    sizes = [min(n, axis.length(SMALL)) for n, axis in zip(media.shape[1:], codec.axes, strict=False)]
    seconds = None if media.time_axis is None else sizes[media.time_axis] / media.rate
    planes = tuple(n for a, n in enumerate(sizes) if a != media.time_axis)
    try:
        return tuple(media.resized(seconds=seconds, size=planes if len(planes) == 2 else None).shape)
    except (AttributeError, ValueError):  # media of one size
        return tuple(media.shape)


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a tree of tuples, lists, dicts and dataclasses; raises ValueError for anything but them and numbers."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        yield from tensors(list(state.values()))
    elif isinstance(state, list | tuple):
        for part in state:
            yield from tensors(part)
    elif is_dataclass(state):
        yield from tensors([getattr(state, part.name) for part in fields(state)])
    elif not (state is None or isinstance(state, int | float | str)):
        raise ValueError(f"wanted a tree of tensors and numbers, got a {type(state).__name__} in it")


def _awake(codec: Codec) -> Codec:
    with torch.no_grad():
        for p in codec.parameters():
            if p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all()):
                fan = 100 if p.ndim < 2 else 4 * p[0].numel()
                p.add_(keyed.normal(("check codec",), [p.numel()], p.shape)[0].to(p), alpha=fan**-0.5)
    return codec


def attributes(module: nn.Module) -> dict[str, Any]:
    """Every tensor and plain attribute of a module and its parts by name, as they are now."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        for table in (part._parameters, part._buffers, vars(part)):
            hidden = ("_parameters", "_buffers", "_modules")
            found.update({f"{name}.{key}".strip("."): _still(v) for key, v in table.items() if key not in hidden})
    return found


def _still(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _still(v) for key, v in value.items()}
    return [_still(v) for v in value] if isinstance(value, list | tuple) else value


def same(a: Any, b: Any) -> bool:
    """Whether two values of `attributes` are equal: tensors to the bit, other objects the same or equal."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and bool(((a == b) | (a != a)).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (type(a) is type(b) and a == b)
