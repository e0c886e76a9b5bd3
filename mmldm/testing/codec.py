"""The contract of a codec as runnable assertions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm import keyed
from mmldm.interfaces import Codec, grid_positions

__all__ = ["Check", "check_codec"]


@dataclass(frozen=True)
class Check:
    """The outcome of one law: `name`, whether it `passed`, in which `detail`, and what `breaks` downstream without it."""

    name: str
    passed: bool
    detail: str
    breaks: str

    def __str__(self) -> str:
        end = "" if self.passed else f"; without it {self.breaks} breaks"
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.detail}{end}"


def check_codec(codec: Codec, media_shape: Sequence[int] | None = None, tolerance: float = 1e-9) -> list[Check]:
    """Run the whole contract on a copy of `codec` with media of `media_shape` (C, *S; default: its media's own shape).

    Returns every check; raises AssertionError that lists all that failed. Algebra is checked in float64 to `tolerance`.
    """
    shape = tuple(codec.media.shape if media_shape is None else media_shape)
    lab = _Lab(codec, copy.deepcopy(codec).eval(), copy.deepcopy(codec).eval().double(), shape, tolerance)
    results = [_outcome(law, lab) for law in _LAWS if law.applies(lab)]
    failed = [str(check) for check in results if not check.passed]
    if failed:
        raise AssertionError(f"{type(codec).__name__}: {len(failed)} of {len(results)} checks failed\n" + "\n".join(failed))
    return results


@dataclass(frozen=True)
class _Lab:
    source: Codec  # as it came, never run
    codec: Codec
    exact: Codec  # the same in float64
    shape: tuple[int, ...]
    tolerance: float

    def media(self, shape: Sequence[int], batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
        """Smooth noise in [-1, 1]: neither constant nor white."""
        noise = keyed.normal(("check codec", *shape), range(batch), shape)
        for dim in range(2, noise.ndim):
            noise = noise + noise.roll(1, dim)
        return (noise / noise.abs().amax() * 0.9).to(dtype)

    @property
    def time(self) -> int | None:
        """The latent grid's axis named time, if the media has one too."""
        names = [axis.name for axis in self.codec.axes]
        return names.index("time") if "time" in names and self.codec.media.time_axis is not None else None

    @property
    def dim(self) -> int:
        """Dimension of (B, C, *S) that runs in time."""
        return 2 + self.codec.media.time_axis

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

    def near(self, a: Tensor, b: Tensor, tolerance: float | None = None) -> str | None:
        """None where a and b agree relative to b's scale, else how far apart they are."""
        if a.shape != b.shape:
            return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
        error = ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
        return None if error <= (self.tolerance if tolerance is None else tolerance) else f"relative difference {error:.2g}"


@dataclass(frozen=True)
class _Law:
    name: str
    breaks: str
    run: Callable[[_Lab], str | None]  # None: holds; else what was found
    applies: Callable[[_Lab], bool] = lambda lab: True


def _outcome(law: _Law, lab: _Lab) -> Check:
    try:
        found = law.run(lab)
    except Exception as error:  # a codec from outside may raise anything: that is a finding
        found = f"{type(error).__name__}: {error}"
    return Check(law.name, found is None, found or "holds", law.breaks)


# ---------------------------------------------------------------- the laws


@torch.no_grad()
def _latent_shape(lab: _Lab) -> str | None:
    for shape in lab.lengths():
        posterior = lab.exact.encode(lab.media(shape))
        told, got = tuple(lab.exact.latent_shape(shape)), tuple(posterior.mean.shape[1:])
        if told != got:
            return f"media {shape}: latent_shape says {told}, encode gives {got}"
        if posterior.std is not None and posterior.std.shape != posterior.mean.shape:
            return f"media {shape}: std {tuple(posterior.std.shape)} for mean {tuple(posterior.mean.shape)}"
        if told[0] != lab.exact.latent_channels:
            return f"latent_channels {lab.exact.latent_channels}, encode gives {got[0]}"
    return None


@torch.no_grad()
def _round_trip(lab: _Lab) -> str | None:
    for shape in lab.lengths():
        x = lab.media(shape, dtype=torch.float32)
        y = lab.codec.decode(lab.codec.encode(x).mean, shape)
        if tuple(y.shape[1:]) != shape or len(y) != len(x):
            return f"media {shape} came back as {tuple(y.shape[1:])}"
        if not bool(y.isfinite().all()):
            return f"media {shape} came back with values that are not finite"
    return None


@torch.no_grad()
def _extremes(lab: _Lab) -> str | None:
    for value in (-1.0, 0.0, 1.0):
        x = torch.full((1, *lab.shape), value)
        posterior = lab.codec.encode(x)
        parts = {"mean": posterior.mean, "std": posterior.std, "decoded": lab.codec.decode(posterior.mean, lab.shape)}
        for name, part in parts.items():
            if part is not None and not bool(part.isfinite().all()):
                return f"constant media of {value:g}: {name} is not finite"
        if posterior.std is not None and bool((posterior.std < 0).any()):
            return f"constant media of {value:g}: negative std"
    return None


@torch.no_grad()
def _positions(lab: _Lab) -> str | None:
    cells = lab.exact.latent_shape(lab.shape)[1:]
    if len(cells) != len(lab.exact.axes):
        return f"{len(lab.exact.axes)} axes for latents of {len(cells)} grid dimensions"
    grid = grid_positions(lab.exact.axes, cells)
    if not bool((grid[..., 1] > grid[..., 0]).all()):
        return "cells of no extent"
    if lab.time is None:
        return None
    axis, rate = lab.exact.axes[lab.time], lab.exact.media.rate
    if abs(axis.unit * rate - 1) > 1e-6:
        return f"the time axis has {axis.unit} s per media sample at {rate} samples per second"
    for length in range(1, min(3 * axis.size + axis.first, lab.shape[lab.dim - 1]) + 1):
        got = lab.exact.latent_shape(lab.timed(length))[1 + lab.time]
        if got != axis.cells(length):
            return f"{length} media samples: axis.cells says {axis.cells(length)}, the latent has {got}"
    return None


@torch.no_grad()
def _field(lab: _Lab) -> str | None:
    x = lab.media(lab.shape)
    whole = lab.exact.encode(x).mean
    for dim, axis in enumerate(lab.exact.axes[: x.ndim - 2], start=2):
        (before, after), cells, total = lab.exact.field(axis), whole.shape[dim], x.shape[dim]
        for cell in sorted({0, 1, cells // 2, cells - 1} & set(range(cells))):
            begin, end = axis.length(cell) * (cell > 0), axis.length(cell + 1)
            place = torch.arange(total).reshape([-1 if d == dim else 1 for d in range(x.ndim)])
            changed = torch.where((place >= begin - before) & (place < end + after), x, -x.flip(dim))
            seen = lab.exact.encode(changed).mean.narrow(dim, cell, 1)
            if found := lab.near(seen, whole.narrow(dim, cell, 1)):
                return f"media beyond the field {before, after} of cell {cell} along {axis.name} change it: {found}"
    return None


@torch.no_grad()
def _prefix(lab: _Lab) -> str | None:
    x = lab.media(lab.shape)
    whole, axis = lab.exact.encode(x).mean, lab.exact.axes[lab.time]
    for cells in range(1, whole.shape[2 + lab.time]):
        length = axis.length(cells) + 3 * lab.exact.lookahead  # what touches the end of a shorter clip may differ
        if length >= x.shape[lab.dim]:
            break
        begin = lab.exact.encode(x.narrow(lab.dim, 0, length)).mean
        if found := lab.near(begin.narrow(2 + lab.time, 0, cells), whole.narrow(2 + lab.time, 0, cells)):
            return f"the first {length} media samples alone give other first {cells} latents: {found}"
    return None


@torch.no_grad()
def _first_alone(lab: _Lab) -> str | None:
    x = lab.media(lab.shape)
    one = lab.exact.encode(x.narrow(lab.dim, 0, 1)).mean
    return lab.near(one, lab.exact.encode(x).mean.narrow(2 + lab.time, 0, 1))


@torch.no_grad()
def _deterministic(lab: _Lab) -> str | None:
    x = lab.media(lab.shape, dtype=torch.float32)
    first, second = lab.codec.encode(x).mean, lab.codec.encode(x).mean
    if not torch.equal(first, second):
        return "encoding twice gives two means"
    once, again = lab.codec.decode(first, lab.shape), lab.codec.decode(first, lab.shape)
    return None if torch.equal(once, again) else "decoding twice gives two results"


@torch.no_grad()
def _batch_independent(lab: _Lab) -> str | None:
    x = lab.media(lab.shape, batch=3)
    together = lab.exact.encode(x).mean
    if found := lab.near(torch.cat([lab.exact.encode(row[None]).mean for row in x]), together):
        return f"encode: {found}"
    decoded = torch.cat([lab.exact.decode_features(row[None]) for row in together])
    return (found := lab.near(decoded, lab.exact.decode_features(together))) and f"decode_features: {found}"


@torch.no_grad()
def _low_precision(lab: _Lab) -> str | None:
    x = lab.media(lab.shape, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = lab.codec.encode(x).mean
        y = lab.codec.decode(z, lab.shape)
    if not bool(z.isfinite().all() and y.isfinite().all()):
        return "not finite under bfloat16 autocast"
    return (found := lab.near(z.float(), lab.codec.encode(x).mean, 0.1)) and f"latents under bfloat16 autocast: {found}"


@torch.no_grad()
def _saved(lab: _Lab) -> str | None:
    loaded, x = copy.deepcopy(lab.source).eval(), lab.media(lab.shape, dtype=torch.float32)
    for tensor in loaded.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(1)
    loaded.decode(loaded.encode(x).mean)  # whatever it derives from its weights, it has derived from the wrong ones
    state = {name: tensor.detach().clone().contiguous() for name, tensor in lab.codec.state_dict().items()}
    loaded.load_state_dict(state, strict=True)
    if not torch.equal(lab.codec.encode(x).mean, loaded.encode(x).mean):
        return "the loaded codec encodes otherwise"
    z = loaded.encode(x).mean
    return None if torch.equal(lab.codec.decode(z), loaded.decode(z)) else "the loaded codec decodes otherwise"


@torch.enable_grad()
def _trainable(lab: _Lab) -> str | None:
    codec = copy.deepcopy(lab.exact).train()
    trained = [(name, p) for name, p in codec.named_parameters() if p.requires_grad]
    for _, parameter in trained:  # away from zero initialisations, which hide what is behind them
        noise = torch.randn(parameter.shape, generator=keyed.generator("check codec", parameter.numel()), dtype=parameter.dtype)
        parameter.data.add_(noise, alpha=0.05)
    posterior = codec.encode_features(codec.front(lab.media(lab.shape)))
    spread = 0 if posterior.std is None else posterior.std.square().sum()
    (codec.decode_features(posterior.mean).square().sum() + spread).backward()
    dead = [name for name, p in trained if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    return f"no gradient reaches {', '.join(dead[:5])}" if dead else None


def _is_timed(lab: _Lab) -> bool:
    return lab.time is not None and lab.codec.lookahead is not None


def _is_lone(lab: _Lab) -> bool:
    return _is_timed(lab) and lab.codec.axes[lab.time].first == 1


def _is_bounded(lab: _Lab) -> bool:
    return any(math.isfinite(far) for axis in lab.codec.axes for far in lab.codec.field(axis))


def _is_trained(lab: _Lab) -> bool:
    return any(p.requires_grad for p in lab.codec.parameters())


_LAWS = (
    _Law("latent_shape is what encode gives", "sampling (noise of a wrong shape)", _latent_shape),
    _Law("every length comes back", "generation and reconstruction of other sizes", _round_trip),
    _Law("constant media stay finite", "training on silence and on blank pictures", _extremes),
    _Law("axes agree with the latent", "positions, alignment of streams, known cells", _positions),
    _Law("a cell sees its field alone", "extension, inpainting, known cells", _field, _is_bounded),
    _Law("a beginning encodes alike alone", "known prefixes and streaming", _prefix, _is_timed),
    _Law("one media sample is the first latent", "a picture as a clip's known beginning", _first_alone, _is_lone),
    _Law("the same twice", "reproducible samples and caches", _deterministic),
    _Law("independent of the batch", "equal results for any batch size", _batch_independent),
    _Law("bfloat16 autocast", "training on devices that use it", _low_precision),
    _Law("save and load", "trained-model folders", _saved),
    _Law("gradient reaches every parameter", "codec training (and several processes)", _trainable, _is_trained),
)
