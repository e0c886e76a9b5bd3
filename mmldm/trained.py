"""Trained models as specs and tensors: build a Model from plain data, write it to a model folder, read it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmldm import config, store
from mmldm.codec.vocoder import Vocoder
from mmldm.interfaces import Codec, Media
from mmldm.media.sizes import sized
from mmldm.model import Model, Whitening

__all__ = [
    "TrainedCodec",
    "build_model",
    "diffusion_state",
    "load_codecs",
    "load_diffusion",
    "save_codec",
    "save_diffusion",
    "share_seconds",
    "shared_seconds",
    "sized",
    "with_vocoder",
    "with_vocoders",
]

Clip = dict[str, Any]  # {"seconds": …, "size": (height, width)}: what differs from the media of the codec's own yaml


@dataclass(frozen=True)
class TrainedCodec:
    """A codec of one stream with its whitening, its resolved yaml node and the clip size that it was last trained at."""

    codec: Codec
    whitening: Whitening
    spec: Mapping[str, Any]
    clip: Clip


def shared_seconds(medias: Iterable[Media]) -> float | None:
    """The shortest duration of media that run in time, where they differ by a sample of the slowest or more; else None."""
    timed = [media for media in medias if media.seconds is not None]
    lengths = [media.seconds for media in timed]
    differ = len(timed) > 1 and max(lengths) - min(lengths) >= max(1 / media.rate for media in timed)
    return min(lengths) if differ else None


def share_seconds(codecs: Mapping[str, Codec]) -> float | None:
    """Give the media of codecs of one clip the shortest of their durations; returns it where they differed."""
    seconds = shared_seconds(codec.media for codec in codecs.values())
    for codec in codecs.values() if seconds else ():
        codec.media = sized(codec.media, seconds)
    return seconds


def build_model(
    spec: Mapping[str, Any],
    codecs: Mapping[str, Codec],
    whitenings: Mapping[str, Whitening] | None = None,
    trust: Sequence[str] | None = (),
) -> Model:
    """The Model that `spec` (conditions, denoiser, path, prediction, shift) describes, around built codecs."""
    conditions = config.build(spec["conditions"], trust=trust)
    geometries = {stream: codec.geometry for stream, codec in codecs.items()}
    denoiser = config.build(spec["denoiser"], trust=trust, streams=geometries, conditions=conditions.widths)
    path, prediction = (config.build(spec[name], trust=trust) for name in ("path", "prediction"))
    shift = config.build(spec.get("shift") or None, trust=trust)
    return Model(codecs, conditions, denoiser, path, prediction, shift, whitenings)


# ---------------------------------------------------------------- saving


def save_codec(folder: Path, spec: Mapping[str, Any], codec: Codec, whitening: Whitening, facts: dict, card: str) -> None:
    """Write a codec's model folder; `spec` holds its `codecs` (one stream) and `clips`."""
    (stream,) = spec["codecs"]
    store.save_model(folder, {"kind": "codec", **spec}, {f"codec.{stream}": codec_state(codec, whitening)}, facts, card)


def save_diffusion(
    folder: Path, spec: Mapping[str, Any], model: Model, facts: dict, card: str, parts: Mapping[str, dict] | None = None
) -> None:
    """Write a diffusion model's folder, its codecs included; `parts` are its tensors where they had to be gathered first."""
    store.save_model(folder, {"kind": "diffusion", **spec}, diffusion_state(model) if parts is None else parts, facts, card)


def diffusion_state(model: Model) -> dict[str, dict[str, Tensor]]:
    """The tensors of a diffusion model by part: each codec with its whitening, the denoiser, the conditions where there are."""
    parts = {f"codec.{s}": codec_state(model.codecs[s], model.whitenings[s]) for s in model.codecs}
    parts |= {"denoiser": model.denoiser.state_dict(), "conditions": model.conditions.state_dict()}
    return {part: tensors for part, tensors in parts.items() if tensors}


def codec_state(codec: Codec, whitening: Whitening) -> dict[str, Tensor]:
    """The tensors of a codec and of its whitening, as one part."""
    return {**codec.state_dict(), **{f"whitening.{k}": v for k, v in whitening.state_dict().items()}}


# ---------------------------------------------------------------- loading


def load_codecs(stored: store.StoredModel, trust: Sequence[str] = ()) -> dict[str, TrainedCodec]:
    """Every codec of a stored model, frozen, its media at the trained clip size."""
    clips = stored.spec.get("clips") or {}
    return {s: _load_codec(s, spec, clips.get(s) or {}, stored, trust) for s, spec in stored.spec["codecs"].items()}


def _load_codec(stream: str, spec: Mapping, clip: Clip, stored: store.StoredModel, trust: Sequence[str]) -> TrainedCodec:
    codec = config.build(spec, trust=trust)
    codec.media = sized(codec.media, clip.get("seconds"), clip.get("size"))
    whitening, state = Whitening(codec.latent_channels), stored.parts[f"codec.{stream}"]
    prefix = "whitening."
    whitening.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    _fill("the codec", codec, {k: v for k, v in state.items() if not k.startswith(prefix)})
    return TrainedCodec(codec.eval().requires_grad_(False), whitening, spec, clip)


def load_diffusion(stored: store.StoredModel, trust: Sequence[str] = (), vocoder: str | Path | None = None) -> Model:
    """The model of a stored diffusion model, on the CPU, ready to sample, its `vocoder` from another folder where given.

    Raises ValueError for a codec's folder.
    """
    if stored.spec.get("kind") != "diffusion":
        raise ValueError(f"wanted a diffusion model, got a {stored.spec.get('kind')}; choose the run of a diffusion training")
    loaded = with_vocoders(load_codecs(stored, trust), vocoder, trust)
    codecs, whitenings = {s: c.codec for s, c in loaded.items()}, {s: c.whitening for s, c in loaded.items()}
    model = build_model(stored.spec, codecs, whitenings, trust)
    _fill("denoiser", model.denoiser, stored.parts["denoiser"])
    if "conditions" in stored.parts:
        _fill("conditions", model.conditions, stored.parts["conditions"])
    return model.eval().requires_grad_(False)


def _fill(name: str, part: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a part; ValueError where they are those of another version of it."""
    try:
        part.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).splitlines()[1].split()) if "\n" in str(error) else str(error)
        raise ValueError(
            f"wanted the weights of {name} as this mmldm has them, got others: {told[:160]}; "
            "choose the version that wrote them (manifest.json), or train again"
        ) from error


# ---------------------------------------------------------------- another vocoder


def with_vocoders(
    parts: Mapping[str, TrainedCodec], folder: str | Path | None, trust: Sequence[str] = ()
) -> dict[str, TrainedCodec]:
    """The codecs of streams, those with a vocoder given the trained one of `folder`; None changes nothing.

    Raises ValueError where no codec has one.
    """
    voiced = [s for s, part in parts.items() if isinstance(getattr(part.codec, "vocoder", None), Vocoder)]
    if folder is not None and not voiced:
        raise ValueError(f"wanted a codec with a vocoder for the one of {folder}, got {', '.join(parts)} without one")
    return {s: with_vocoder(p, folder, trust) if folder is not None and s in voiced else p for s, p in parts.items()}


def with_vocoder(part: TrainedCodec, folder: str | Path, trust: Sequence[str] = ()) -> TrainedCodec:
    """The codec with the trained vocoder of a model's folder in place of its own, frozen.

    Raises ValueError where the folder holds no vocoder, or one of another mel front end.
    """
    found = [p for p in load_codecs(store.load_model(folder), trust).values() if p.spec.get("vocoder")]
    if len(found) != 1:
        raise ValueError(f"wanted a trained vocoder in {folder} (mmldm train experiment=audio_vocoder), got {len(found)}")
    vocoder, spec = found[0].codec.vocoder, {**part.spec, "vocoder": found[0].spec["vocoder"]}
    codec = config.build(spec)
    codec.media = part.codec.media
    kept = {name: tensor for name, tensor in part.codec.state_dict().items() if not name.startswith("vocoder.")}
    codec.load_state_dict(kept | {f"vocoder.{name}": tensor for name, tensor in vocoder.state_dict().items()})
    return TrainedCodec(codec.eval().requires_grad_(False), part.whitening, spec, part.clip)
