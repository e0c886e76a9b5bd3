"""What cached latents and encodings depend on besides the data, as digests: a cache of other parts is told by them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmldm.interfaces import Codec, Conditioner

__all__ = ["conditioner_digest", "digest", "fingerprint"]

LIBRARIES = ("torch", "diffusers", "transformers")  # their modules speak through their tensors alone
PASSING = ("training", "chunk", "tile")  # of a module: how it computes, not what


def fingerprint(codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """What cached latents depend on besides the files: what encodes in each codec, and the media it is given."""
    return {s: {"codec": digest(codec, codec.decoding), "media": repr(codec.media)} for s, codec in codecs.items()}


def conditioner_digest(conditioner: Conditioner) -> str:
    """What the encodings of a condition depend on besides the values: its reader and its frozen parts."""
    parts = [digest(conditioner.get_submodule(name)) for name in conditioner.frozen]
    facts = type(conditioner).__qualname__, type(conditioner.reader).__qualname__, _plain(conditioner.reader), parts
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def digest(module: nn.Module, without: Sequence[str] = ()) -> str:
    """sha256 over the classes, plain values and tensors of a module but for those that `without` names."""
    total = hashlib.sha256()
    for name, part in module.named_modules():
        if not _within(name, without):
            total.update(repr((name, type(part).__qualname__, _plain(part))).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if not _within(name, without):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _plain(part: Any) -> list[tuple[str, Any]]:
    """The attributes that are numbers, words or tuples of them."""
    if type(part).__module__.split(".")[0] in LIBRARIES:
        return []
    kept = {k: v for k, v in vars(part).items() if not k.startswith("_") and k not in PASSING}
    return sorted((k, v) for k, v in kept.items() if _is_plain(v))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
