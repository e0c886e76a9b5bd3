"""What is asked of a generation: fields, guidance, a text to steer away from, a weaker model -> the branches of guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmldm.diffusion.branches import Branch, Branches, Translated, map_tensors, take_rows
from mmldm.diffusion.guidance import Guidance
from mmldm.diffusion.known import Context
from mmldm.interfaces import Cond
from mmldm.model import Model
from mmldm.targets import did_you_mean

__all__ = ["as_fields", "beside", "branches", "check_fields", "check_guidance", "check_weak", "guides"]


# ---------------------------------------------------------------- checks, before anything is computed


def as_fields(prompts: str | Sequence[str] | Mapping[str, Sequence]) -> dict[str, list]:
    """One text, texts, or fields -> fields of equal length."""
    if isinstance(prompts, str):
        return {"text": [prompts]}
    fields = {k: list(v) for k, v in prompts.items()} if isinstance(prompts, Mapping) else {"text": list(prompts)}
    lengths = {len(values) for values in fields.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"wanted at least one prompt and fields of equal length, got { {k: len(v) for k, v in fields.items()} }"
        )
    return fields


def check_fields(model: Model, fields: Mapping[str, Sequence]) -> None:
    """Raise ValueError for fields that no condition reads."""
    keys = {key for key, _ in model.conditions.readers.values()} | {"text"}
    if odd := sorted(set(fields) - keys):
        raise ValueError(f"wanted fields that the model reads, got {', '.join(odd)}; choose from {', '.join(sorted(keys))}")


def guides(model: Model, absent: Sequence[str] = ()) -> list[str]:
    """What `without:NAME` may leave out: the conditions, and the streams beside which another one is made."""
    there = [s for s in model.codecs if s not in absent]
    return [*model.conditions.readers, *(s for s in there if len(there) > 1 and s not in model.conditions.readers)]


def beside(model: Model, guidance: Guidance, own: Guidance, absent: Sequence[str]) -> Guidance:
    """The guidance without what a model's `own` has of streams that mean nothing where some are absent."""
    streams = set(model.codecs) - set(guides(model, absent)) if absent else set()
    left_out = {f"without:{stream}" for stream in streams} & set(own.scales)
    if not left_out & set(guidance.scales):
        return guidance
    return guidance.changed({branch: scale for branch, scale in guidance.scales.items() if branch not in left_out})


def check_guidance(
    model: Model,
    guidance: Guidance,
    negative: str | None = None,
    weak: Model | None = None,
    absent: Sequence[str] = (),
) -> None:
    """Raise ValueError for branches and streams that the model has not, a weak model or a negative text that nothing uses."""
    names = guides(model, absent)
    for branch, scale in guidance.scales.items():
        kind, _, name = branch.partition(":")
        if branch not in ("null", "weak") and (kind != "without" or name not in names):
            choices = ["null", "weak", *(f"without:{n}" for n in names)]
            near = did_you_mean(branch, choices)
            raise ValueError(f"wanted a guidance of this model, got {branch}{near}; choose from {', '.join(choices)}")
        if isinstance(scale, Mapping) and (odd := sorted(set(scale) - set(model.codecs))):
            streams = ", ".join(model.codecs)
            raise ValueError(f"wanted scales of {branch} for streams of the model, got {', '.join(odd)}; choose from {streams}")
    if ("weak" in guidance.scales) != (weak is not None):
        got = "a scale but no model" if weak is None else "a model but no scale"
        raise ValueError(f"wanted a weak model and a scale of its guidance together, got {got}")
    if negative is not None and "null" not in guidance.scales:
        raise ValueError("wanted a guidance away from null for a negative text, got one without; choose a scale of null")
    if negative is not None and "text" not in {key for key, _ in model.conditions.readers.values()}:
        raise ValueError("wanted a model that reads a text to steer away from one, got one that does not")


def check_weak(model: Model, weak: Model) -> None:
    """Raise ValueError unless the weak model works on the same latents, in the same place; path and prediction are its own."""
    if set(weak.codecs) != set(model.codecs):
        raise ValueError(f"wanted a weak model of the streams {', '.join(model.codecs)}, got one of {', '.join(weak.codecs)}")
    for stream, codec in model.codecs.items():
        other = weak.codecs[stream]
        same = type(other) is type(codec) and other.geometry == codec.geometry
        for what, a, b in (("codec", codec, other), ("whitening", model.whitenings[stream], weak.whitenings[stream])):
            if not (same and _equal(a.state_dict(), b.state_dict())):
                raise ValueError(
                    f"wanted a weak model on the same latents, got another {what} of {stream}; choose an earlier or a smaller "
                    f"model that was trained on the same codec.{stream}"
                )
    (place, kind), (there, wide) = ((p.device, p.dtype) for p in (next(m.denoiser.parameters()) for m in (model, weak)))
    if (place, kind) != (there, wide):
        raise ValueError(f"wanted a weak model on {place} in {kind}, got one on {there} in {wide}")


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and bool((a[k].cpu() == b[k].cpu()).all()) for k in a)


# ---------------------------------------------------------------- branches


def branches(
    model: Model,
    fields: Mapping[str, Sequence],
    count: int,
    context: Mapping[str, Context],
    names: Sequence[str],
    negative: str | None = None,
    weak: Model | None = None,
    noise: Mapping[str, Tensor] | None = None,
) -> Branches:
    """The guidance branches of these names for `count` rows, their conditions computed once.

    `weak` answers the branch of that name, with its own conditions; `noise` (B, D, *L) stands for a stream that is left out.
    """
    own = [name for name in names if name != "weak"]
    conds = [conditions(model, fields, count, name, negative) for name in own]
    joined = {name: Cond.cat([cond[name] for cond in conds]) for name in conds[0]}
    prepared, found = model.prepare(joined), {}
    for i, name in enumerate(own):
        seen, absent = without_stream(model, name, context, noise or {})
        found[name] = Branch(model.denoise, take_rows(prepared, i * count, (i + 1) * count), seen, absent)
    if weak is not None:
        asks = weak.denoise if weak.path == model.path else Translated(weak.denoise, weak.path, model.path)
        found["weak"] = Branch(asks, weak.prepare(conditions(weak, fields, count, "cond")), context)
    return Branches(found)


def conditions(
    model: Model, fields: Mapping[str, Sequence], count: int, branch: str, negative: str | None = None
) -> dict[str, Cond]:
    """The conditions of one branch: as asked (`cond`), none or the negative text (`null`), all but one (`without:NAME`)."""
    kind, _, left_out = branch.partition(":")
    if kind not in ("cond", "null", "without"):
        raise ValueError(f"wanted a guidance over cond, null, weak or without:NAME, got {branch!r}")
    if kind == "null":
        if negative is None:
            return model.conditions.null(count)
        fields = {"text": [negative] * count}
    keys = {key for key, _ in model.conditions.readers.values()}
    device = next(model.denoiser.parameters()).device
    read, present = model.conditions.read({key: list(fields.get(key, [None] * count)) for key in keys})
    keep = {name: (rows & (name != left_out)).to(device) for name, rows in present.items()}
    return model.conditions(model.conditions.encode(map_tensors(lambda tensor: tensor.to(device), read)), keep)


def without_stream(
    model: Model, branch: str, context: Mapping[str, Context], noise: Mapping[str, Tensor]
) -> tuple[dict[str, Context], dict[str, Tensor]]:
    """What a branch is given of the streams, and z_t at t = 1 of the one that `without:STREAM` leaves out."""
    stream = branch.partition(":")[2]
    if stream not in model.codecs or stream in model.conditions.readers:
        return dict(context), {}
    given = context[stream]
    nothing = None if given.known is None else torch.zeros_like(given.known)
    z_t = noise[stream] * float(model.path.sigma(torch.ones((), dtype=torch.float64)))
    return {**context, stream: replace(given, known=nothing, references=())}, {stream: z_t}
