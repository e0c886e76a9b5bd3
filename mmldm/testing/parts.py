"""The contracts of conditioners and denoisers as runnable assertions; each raises AssertionError with the broken promise."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor, nn

from mmldm import keyed
from mmldm.interfaces import Cond, Conditioner, CondWidths, Denoiser, Geometry, Noisy, Reference, grid_positions

__all__ = ["check_conditioner", "check_denoiser"]


def check_conditioner(conditioner: Conditioner, values: Sequence[Any]) -> None:
    """The contract of a Conditioner on two or more plain values of its field (computed in float64 on a copy).

    The reader travels to a worker and collates missing values; the widths are true; every row has a valid token; a row does not
    depend on its batch; the null has the same fields; a dropped row is the null; nothing draws random numbers.
    """
    assert len(values) >= 2, "wanted two or more values"
    body = _double(conditioner).train()
    _no_random_layers(body)
    reader = ForkingPickler.loads(ForkingPickler.dumps(conditioner.reader))
    items = [reader(value) for value in values]
    read = reader.collate([*items, None])
    count = len(values) + 1
    with torch.no_grad():
        cond, null = body(body.encode(_widen(read))), body.null(count)
        _check_cond(cond, body.widths, count, "forward")
        _check_cond(null, body.widths, count, "null")
        for i, item in enumerate(items):
            alone = body(body.encode(_widen(reader.collate([item]))))
            _check_equal_rows(alone, cond, i, f"value {values[i]!r} alone and in a batch")
        keep = torch.arange(count) % 2 == 0
        dropped = cond.where(keep, null)
        for i in range(count):
            _check_equal_rows(dropped, cond if keep[i] else null, i, "a kept row, or a dropped one and the null", row=i)
    trained = [name for name, p in body.named_parameters() if p.requires_grad]
    _total(body(body.encode(_widen(read)))).add(_total(body.null(count))).backward()
    silent = [name for name, p in body.named_parameters() if name in trained and p.grad is None]
    assert not silent, f"no gradient reaches {silent}: a frozen part must not require one"


def check_denoiser(
    denoiser: Denoiser,
    streams: Mapping[str, Geometry],
    conditions: Mapping[str, CondWidths],
    cells: Mapping[str, tuple[int, ...]],
    batch_size: int = 3,
) -> None:
    """The contract of a Denoiser on grids of `cells[stream]` (computed in float64 on a copy with no weight at zero).

    Shapes are kept; finite at both ends; a row does not depend on its batch; where everything is known the level has no say;
    padding has no influence; nor have masked tokens and references that are not present; every parameter gets a gradient.
    """
    for name, geometry in streams.items():
        patch = denoiser.patches.get(name)
        assert patch is not None and len(patch) == len(geometry.axes), f"patches[{name!r}] is {patch}: one number per axis"
    body = _awake(denoiser)
    _no_random_layers(body)
    noisy, conds = _noisy(streams, cells, batch_size), _conds(conditions, cells, batch_size)
    with torch.no_grad():
        out = _run(body, noisy, conds)
        for name in streams:
            assert out[name].shape == noisy[name].z.shape, f"{name!r}: wanted {noisy[name].z.shape}, got {out[name].shape}"
        for level in (0.0, 1.0):
            ends = _run(body, {s: replace(n, level=torch.full_like(n.level, level)) for s, n in noisy.items()}, conds)
            assert all(f.isfinite().all() for f in ends.values()), f"not finite at level {level}"
        halves = [_run(body, _rows(noisy, i), _rows(conds, i)) for i in range(batch_size)]
        _close(out, {s: torch.cat([h[s] for h in halves]) for s in streams}, "a row depends on its batch")
        _check_levels(body, noisy, conds)
        _check_padding(body, noisy, conds)
        _check_references(body, noisy, conds)
    sum(f.square().sum() for f in _run(body, noisy, conds).values()).backward()
    silent = [name for name, p in body.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"no gradient reaches {silent}"


# ---------------------------------------------------------------- what the denoiser's checks share


def _check_levels(body: Denoiser, noisy: dict[str, Noisy], conds: dict[str, Cond]) -> None:
    everything = {s: replace(n, known=torch.ones_like(n.z[:, 0], dtype=torch.bool)) for s, n in noisy.items()}
    other = {s: replace(n, level=1 - n.level) for s, n in everything.items()}
    _close(_run(body, everything, conds), _run(body, other, conds), "a level is heard where everything is known")
    changed = _run(body, {s: replace(n, level=1 - n.level) for s, n in noisy.items()}, conds)
    assert any((f - g).abs().max() > 1e-6 for f, g in zip(changed.values(), _run(body, noisy, conds).values(), strict=True)), (
        "the level of unknown cells is not heard"
    )


def _check_padding(body: Denoiser, noisy: dict[str, Noisy], conds: dict[str, Cond]) -> None:
    padded, other = {}, {}
    for s, n in noisy.items():
        valid = torch.ones_like(n.z[:, 0], dtype=torch.bool)
        valid[:, -1] = n.z.shape[2] == 1
        padded[s] = replace(n, valid=valid)
        other[s] = replace(padded[s], z=torch.where(valid[:, None], n.z, n.z + 3))
    one, two = _run(body, padded, conds), _run(body, other, conds)
    _close({s: f * padded[s].valid[:, None] for s, f in one.items()}, {s: f * padded[s].valid[:, None] for s, f in two.items()},
           "padding has an influence")  # fmt: skip
    longer = {name: _with_masked_token(cond) for name, cond in conds.items()}
    _close(_run(body, noisy, conds), _run(body, noisy, longer), "a masked condition token has an influence")


def _check_references(body: Denoiser, noisy: dict[str, Noisy], conds: dict[str, Cond]) -> None:
    plain = _run(body, noisy, conds)
    for s, n in noisy.items():
        size = len(n.z)
        here = torch.arange(size) == 0
        reference = Reference(n.z.flip(0) + 1, n.positions, here)
        out = _run(body, {**noisy, s: replace(n, references=(reference,))}, conds)
        absent = {stream: f[1:] for stream, f in out.items()}
        _close(absent, {stream: f[1:] for stream, f in plain.items()}, "a reference that is not present has an influence")
        assert any((f[0] - plain[stream][0]).abs().max() > 1e-9 for stream, f in out.items()), "a reference is not heard"


def _run(body: Denoiser, noisy: dict[str, Noisy], conds: dict[str, Cond]) -> dict[str, Tensor]:
    return body(noisy, body.prepare(conds))


def _noisy(streams: Mapping[str, Geometry], cells: Mapping[str, tuple[int, ...]], size: int) -> dict[str, Noisy]:
    rows = range(size)
    return {
        s: Noisy(
            keyed.normal(("check", s), rows, (g.channels, *cells[s])).double(),
            keyed.uniform(("check", s, "level"), rows).double() * 0.8 + 0.05,
            grid_positions(g.axes, cells[s]).double(),
        )
        for s, g in streams.items()
    }


def _conds(widths: Mapping[str, CondWidths], cells: Mapping[str, tuple[int, ...]], size: int) -> dict[str, Cond]:
    def draw(name: str, *shape: int) -> Tensor:
        return keyed.normal(("check", name), range(size), shape).double()

    return {
        name: Cond(
            tokens=None if w.tokens is None else draw(name, 4, w.tokens),
            mask=None if w.tokens is None else torch.arange(4)[None] <= torch.arange(size)[:, None] % 4,
            vector=None if w.vector is None else draw(name, w.vector),
            aligned={s: draw(name + s, channels, *cells[s]) for s, channels in w.aligned.items()},
        )
        for name, w in widths.items()
    }


def _with_masked_token(cond: Cond) -> Cond:
    if cond.tokens is None:
        return cond
    tokens = torch.cat([cond.tokens, cond.tokens.new_full((len(cond.tokens), 1, cond.tokens.shape[2]), 5.0)], 1)
    return replace(cond, tokens=tokens, mask=torch.cat([cond.mask, torch.zeros_like(cond.mask[:, :1])], 1))


def _rows(parts: dict[str, Any], i: int) -> dict[str, Any]:
    def row(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[i : i + 1]

    return {
        name: replace(p, z=row(p.z), level=row(p.level)) if isinstance(p, Noisy) else
        Cond(row(p.tokens), row(p.mask), row(p.positions), row(p.vector), {s: row(a) for s, a in p.aligned.items()})
        for name, p in parts.items()
    }  # fmt: skip


def _close(one: dict[str, Tensor], two: dict[str, Tensor], fault: str) -> None:
    for s in one:
        torch.testing.assert_close(one[s], two[s], rtol=1e-9, atol=1e-9, msg=lambda m, s=s: f"{fault} (stream {s!r}): {m}")


# ---------------------------------------------------------------- what the conditioner's checks share


def _check_cond(cond: Cond, widths: CondWidths, size: int, where: str) -> None:
    tokens, mask = cond.tokens, cond.mask
    assert (tokens is None) == (widths.tokens is None), f"{where}: tokens are given and not declared in widths, or the reverse"
    assert (cond.vector is None) == (widths.vector is None), f"{where}: a vector is given and not declared, or the reverse"
    if tokens is not None:
        assert tokens.ndim == 3 and (len(tokens), tokens.shape[2]) == (size, widths.tokens), (
            f"{where}: tokens {tuple(tokens.shape)} are not ({size}, N, {widths.tokens})"
        )
        assert mask is None or (mask.shape == tokens.shape[:2] and mask.dtype == torch.bool and mask.any(1).all()), (
            f"{where}: the mask is not a bool (B, N) with a valid token in each row"
        )
    if cond.vector is not None:
        assert tuple(cond.vector.shape) == (size, widths.vector), f"{where}: vector {tuple(cond.vector.shape)}"
    assert {s: a.shape[1] for s, a in cond.aligned.items()} == widths.aligned, (
        f"{where}: aligned channels are not {widths.aligned}"
    )
    given = [t for t in (tokens, cond.vector, *cond.aligned.values()) if t is not None]
    assert given and all(t.isfinite().all() for t in given), f"{where}: nothing is given, or a number is not finite"


def _check_equal_rows(one: Cond, many: Cond, i: int, what: str, row: int = 0) -> None:
    def valid(cond: Cond, r: int) -> Tensor | None:
        if cond.tokens is None:
            return None
        return cond.tokens[r] if cond.mask is None else cond.tokens[r][cond.mask[r]]

    pairs = [(valid(one, row), valid(many, i))]
    pairs.append((None, None) if one.vector is None else (one.vector[row], many.vector[i]))
    pairs += [(one.aligned[s][row], many.aligned[s][i]) for s in one.aligned]
    for left, right in pairs:
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9, msg=lambda m: f"{what} differ: {m}")


def _total(cond: Cond) -> Tensor:
    return sum(t.square().sum() for t in (cond.tokens, cond.vector, *cond.aligned.values()) if t is not None)


def _widen(read: Any) -> Any:
    if isinstance(read, Tensor):
        return read.double() if read.is_floating_point() else read
    if isinstance(read, Mapping):
        return {k: _widen(v) for k, v in read.items()}
    return type(read)(_widen(v) for v in read) if isinstance(read, (list, tuple)) else read


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def _awake(module: nn.Module) -> Any:
    """A float64 copy in which no weight stands at the zero it starts from."""
    body = _double(module)
    with torch.no_grad():
        for i, p in enumerate(body.parameters()):
            p.add_(keyed.normal(("awake",), [i], p.shape)[0].double() * 0.05)
    return body


def _no_random_layers(body: nn.Module) -> None:
    found = [
        n for n, m in body.named_modules() if m.training and type(m).__name__.endswith("Dropout") and getattr(m, "p", 1) > 0
    ]
    assert not found, f"random layers in training: {found}; dropping conditions belongs to ConditionSet"
