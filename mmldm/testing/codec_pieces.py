"""The laws of a codec in pieces: what a cell and a sample see, beginnings, pieces in time with their state, tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmldm import keyed
from mmldm.interfaces import Codec
from mmldm.testing.lab import SMALL, Lab, Moot, Note, law, tensors

__all__ = ["beginning", "decoded_beginning", "decoded_field", "field", "first_alone", "pieces", "small_state", "state", "tiles"]

UNTIMED = Moot("the media does not run in time")


# ---------------------------------------------------------------- what is seen


@law("a cell sees its field alone", breaks="extension, inpainting, known cells")
def field(lab: Lab) -> str | None:
    """Media beyond `field(axis)` (`reach`, `lookahead`) of a cell do not change it."""
    if not any(math.isfinite(far) for axis in lab.source.axes for far in lab.source.field(axis)):
        return Moot("neither reach nor lookahead is declared")
    tried = 0
    for a, axis in enumerate(lab.exact.axes[: len(lab.shape) - 1]):
        long, dim, (before, after) = lab.along(a), 2 + a, lab.exact.field(axis)
        if math.inf == before == after:
            continue
        x, whole = long.x, long.encoded
        for cell in _some(whole.shape[dim]):
            begin, end = axis.length(cell) * (cell > 0), axis.length(cell + 1)
            seen = _within(x, dim, begin - before, end + after)
            if bool(seen.all()):
                continue
            tried += 1
            found = lab.exact.encode(torch.where(seen, x, -x.flip(dim))).mean.narrow(dim, cell, 1)
            if found := lab.near(found, whole.narrow(dim, cell, 1)):
                return f"media beyond the field {before, after} of cell {cell} along {axis.name} change it: {found}"
    return None if tried else Note("a clip is within every cell's field: nothing could be seen")


@law("a decoded sample sees its decode_reach alone", breaks="streaming and tiles that are exact, the seam of an edit")
def decoded_field(lab: Lab) -> str | None:
    """Latents more than `decode_reach[axis]` cells away from a sample's own cell do not change it."""
    if not lab.source.decode_reach:
        return Moot("no decode_reach is declared")
    tried = 0
    for a, axis in enumerate(lab.exact.axes[: len(lab.shape) - 1]):
        if not lab.bounded(a, decoding=True):
            continue
        (z, whole), reach, dim = lab.along(a).wholes["decode"], lab.source.decode_reach[axis.name], 2 + a
        other = z + keyed.normal(("check codec",), range(len(z)), z.shape[1:]).to(z) * z.std()
        for cell in _some(z.shape[dim]):
            seen = _within(z, dim, cell - reach, cell + reach + 1)
            if bool(seen.all()):
                continue
            tried += 1
            begin, end = axis.length(cell) * (cell > 0), axis.length(cell + 1)
            changed = lab.decoded(torch.where(seen, z, other)).narrow(dim, begin, end - begin)
            if found := lab.near(changed, whole.narrow(dim, begin, end - begin)):
                return f"latents beyond {reach} cells along {axis.name} change the samples of cell {cell}: {found}"
    return None if tried else Note("a clip is within every sample's reach: nothing could be seen")


def _some(cells: int) -> list[int]:
    return sorted({0, 1, cells // 2, cells - 1} & set(range(cells)))


def _within(x: Tensor, dim: int, begin: float, end: float) -> Tensor:
    place = torch.arange(x.shape[dim]).reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    return (place >= begin) & (place < end)


# ---------------------------------------------------------------- beginnings


@law("a beginning encodes alike alone", breaks="known prefixes and streaming")
def beginning(lab: Lab) -> str | None:
    """With a declared `lookahead` the first cells of a clip are those of its beginning alone."""
    if lab.time is None or lab.source.lookahead is None:
        return UNTIMED if lab.time is None else Moot("no lookahead is declared")
    long, axis, dim, tried = lab.along(lab.time), lab.source.axes[lab.time], 2 + lab.time, 0
    for cells in _some(long.encoded.shape[dim])[1:]:
        length = axis.length(cells) + 3 * lab.source.lookahead  # what touches the end of a shorter clip may differ
        if length >= long.x.shape[lab.dim]:
            break
        begin, tried = lab.exact.encode(long.x.narrow(lab.dim, 0, length)).mean, tried + 1
        if found := lab.near(begin.narrow(dim, 0, cells), long.encoded.narrow(dim, 0, cells)):
            return f"the first {length} media samples alone give other first {cells} latents: {found}"
    return None if tried else Note("a clip has no shorter beginning")


@law("a beginning decodes alike alone", breaks="streaming to a file, previews of a beginning")
def decoded_beginning(lab: Lab) -> str | None:
    """With a `decode_reach` in time the first samples are those of the first cells and of their reach alone."""
    if lab.time is None or not lab.bounded(lab.time, decoding=True):
        return UNTIMED if lab.time is None else Moot("decode_reach does not name time")
    (z, whole), axis, dim = lab.along(lab.time).wholes["decode"], lab.source.axes[lab.time], 2 + lab.time
    reach, tried = lab.source.decode_reach["time"], 0
    for cells in range(1, min(4, z.shape[dim] - reach)):
        begin, tried = lab.decoded(z.narrow(dim, 0, cells + reach)), tried + 1
        if found := lab.near(begin.narrow(dim, 0, axis.length(cells)), whole.narrow(dim, 0, axis.length(cells))):
            return f"the first {cells} cells and their reach alone give other samples: {found}"
    return None if tried else Note("a clip is shorter than the reach")


@law("one media sample is the first latent", breaks="a picture as a clip's known beginning")
def first_alone(lab: Lab) -> str | None:
    """Where cell 0 is one sample (1 + r·n), a clip of that sample alone has the same first latent."""
    axis = None if lab.time is None else lab.source.axes[lab.time]
    if axis is None or axis.first != 1 or (axis.size == 1 and lab.source.lookahead is None):
        return UNTIMED if axis is None else Moot("cell 0 is not a sample of its own")
    one = lab.exact.encode(lab.x.narrow(lab.dim, 0, 1)).mean
    return lab.near(one, lab.encoded.narrow(2 + lab.time, 0, 1))


# ---------------------------------------------------------------- pieces in time

Step = Callable[[Tensor, Any, bool], tuple[Tensor | None, Any]]


@law("pieces make the whole", breaks="streaming of long files, results that do not depend on length")
def pieces(lab: Lab) -> str | None:
    """Any pieces, empty ones and single samples too, give what the whole gives; cross-faded where `blended` says so."""
    if lab.time is None:
        return UNTIMED
    codec, notes, time = lab.cut(tile=None), [], 2 + lab.time
    for way, (given, whole) in lab.along(lab.time).wholes.items():
        exact = lab.bounded(lab.time, way == "decode") or (codec.chunk is not None and "time" not in codec.blended)
        made = {f"pieces of {sizes}": _streamed(_step(codec, way), given, time, sizes) for sizes in _cuts(lab, given, way)}
        if codec.chunk is not None:
            made["chunk=2"] = _at_once(lab.cut(tile=None, chunk=2), way, given)
        for name, y in made.items():
            if found := _apart(lab, y, whole, exact):
                return f"{way}, {name}: {found}"
        notes += [] if exact else [_faded(way, "time")]
    return Note("; ".join(notes)) if notes else None


def _apart(lab: Lab, y: Tensor, whole: Tensor, exact: bool) -> str | None:
    """How a result in parts differs from the whole; where it is cross-faded in shape and in being finite only."""
    if exact or y.shape != whole.shape:
        return lab.near(y, whole)
    return None if bool(y.isfinite().all()) else "not finite"


def _faded(way: str, where: str) -> str:
    return f"{way} is cross-faded: {'reach' if way == 'encode' else 'decode_reach'} does not bound {where}"


def _step(codec: Codec, way: str) -> Step:
    if way == "decode":
        return codec.decode_chunk

    def step(x: Tensor, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        posterior, state = codec.encode_chunk(x, state, last)
        return (None if posterior is None else posterior.joined()), state

    return step


def _at_once(codec: Codec, way: str, given: Tensor) -> Tensor:
    return codec.decode(given.clone()) if way == "decode" else codec.encode(given.clone()).joined()


def _cuts(lab: Lab, given: Tensor, way: str) -> list[list[int]]:
    """Three ways to cut a clip: single samples first, whole cells, random with an empty end."""
    n, axis = given.shape[2 + lab.time], lab.source.axes[lab.time]
    first, size = (1, 1) if way == "decode" else (axis.first, axis.size)
    ends = [*range(first, n, size * max(1, n // (8 * size))), n]
    cells = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    marks = sorted(keyed.integers(("check codec", n), range(3), n + 1).tolist())
    odd = [b - a for a, b in zip([0, *marks], [*marks, n], strict=True)]
    return [[0, 1, *([1, 0] if n > 1 else []), n - 1 - (n > 1)], cells, [*odd, 0]]


def _streamed(step: Step, x: Tensor, dim: int, sizes: Sequence[int], states: Any = None) -> Tensor:
    made, state = [], states
    for number, piece in enumerate(x.split(list(sizes), dim)):
        y, state = step(piece.clone(), state, number == len(sizes) - 1)
        made += [] if y is None else [y]
    return torch.cat(made, dim)


@law("state is a value", breaks="several streams at once, going back to a kept state")
def state(lab: Lab) -> str | None:
    """A state used twice gives the same twice; streams that alternate do not meet; it shares no memory with what was given."""
    if lab.time is None:
        return UNTIMED
    for way, given in (("encode", lab.x), ("decode", lab.posterior.mean)):
        step, dim = _step(lab.exact, way), 2 + lab.time
        third = given.shape[dim] // 3
        parts = given.tensor_split([third + 1, 2 * third + 1], dim)  # no whole cells
        others = [part * -0.5 for part in parts]
        begin = parts[0].clone()
        _, kept = step(begin, None, False)
        if any(t.untyped_storage().data_ptr() == begin.untyped_storage().data_ptr() for t in tensors(kept) if t.numel()):
            return f"{way}: the state keeps the memory of the piece that was given"
        once, again = (_streamed(step, torch.cat(parts[1:], dim), dim, [p.shape[dim] for p in parts[1:]], kept) for _ in "ab")
        if not torch.equal(once, again):
            return f"{way}: one state used twice gives two results"
        states, made = [None, None], []
        for number in range(3):
            for stream, pieces in enumerate((parts, others)):
                y, states[stream] = step(pieces[number].clone(), states[stream], number == 2)
                made += [y] if stream == 0 and number and y is not None else []
        if found := lab.near(torch.cat(made, dim), once):
            return f"{way}: a second stream disturbs the first: {found}"
    return None


@law("state does not grow", breaks="files of any length in constant memory")
def small_state(lab: Lab) -> str | None:
    """Where what is seen in time is bounded, the state holds as much after many pieces as after those that fill it."""
    if lab.time is None:
        return UNTIMED
    axis, notes, dim = lab.source.axes[lab.time], [], 2 + lab.time
    for way, (given, _) in lab.along(lab.time).wholes.items():
        if not lab.bounded(lab.time, way == "decode"):
            notes.append(f"{way} not tried: unbounded in time")
            continue
        cells = given.shape[dim] // (axis.size if way == "encode" else 1)
        if cells < SMALL + (lab.seen(lab.time) if way == "decode" else 0):
            notes.append(f"{way} not tried: a sample sees {lab.seen(lab.time)} cells")
            continue
        piece, kept, sizes = given.narrow(dim, 0, cells * (axis.size if way == "encode" else 1)), None, []
        for _ in range(4):  # three of them fill what is kept
            _, kept = _step(lab.exact, way)(piece, kept, False)
            sizes.append(sum(t.untyped_storage().nbytes() for t in tensors(kept)))
        if sizes[-1] > sizes[-2]:
            return f"{way}: {sizes[-2]} bytes after 3 pieces, {sizes[-1]} after 4"
    return Note("; ".join(notes)) if notes else None


# ---------------------------------------------------------------- tiles


@law("tiles make the whole", breaks="large pictures")
def tiles(lab: Lab) -> str | None:
    """With a `tile` that cuts the clip's planes the result is the same; cross-faded where `blended` says so."""
    if lab.source.tile is None or not lab.planes:
        return Moot("tile is None: planes are taken whole" if lab.planes else "the media has no planes")
    notes = []
    for clip, tile in ((lab, 2), (lab.along(lab.planes[-1]), 3)):
        for way, (given, _) in clip.wholes.items():
            exact = all(lab.bounded(a, way == "decode") for a in lab.planes)
            whole = _at_once(lab.cut(chunk=None, tile=max(clip.shape)), way, given)
            if found := _apart(lab, _at_once(lab.cut(chunk=None, tile=tile), way, given), whole, exact):
                return f"{way} of {clip.shape}, tile={tile}: {found}"
            notes += [] if exact else [_faded(way, "the plane")]
    return Note("; ".join(dict.fromkeys(notes))) if notes else None
