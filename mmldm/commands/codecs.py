"""The codecs of a training: built from yaml or loaded, and how one of them is trained."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mmldm import config, store, trained
from mmldm.codec import MelCodec
from mmldm.interfaces import Codec
from mmldm.model import Whitening
from mmldm.training import Adversary, CodecTraining

__all__ = ["build_codecs", "codec_task", "embed_codecs"]


def codec_task(cfg: DictConfig, task: Callable[..., CodecTraining], codecs: Mapping[str, Codec], common: dict) -> CodecTraining:
    """The training of the one codec, new or continued from a trained one."""
    if len(codecs) != 1:
        raise ValueError(f"wanted one codec to train, got {', '.join(codecs)}")
    if cfg.data.cache:
        raise ValueError("wanted files to train a codec on, got data.cache: latents cannot train what makes them")
    ((stream, codec),) = codecs.items()
    codec.requires_grad_(True)
    if isinstance(vocoder := getattr(codec, "vocoder", None), torch.nn.Module) and not isinstance(codec, MelCodec):
        vocoder.requires_grad_(False)  # features do not pass through it
    terms = {name: finished(config.build(node), rate=codec.media.rate) for name, node in cfg.loss.terms.terms.items()}
    metrics = {name: config.build(node) for name, node in cfg.loss.metrics.items()}
    return task(
        codec=codec,
        stream=stream,
        loss=config.build(cfg.loss.terms, terms=terms),
        regulariser=getattr(codec, "regulariser", None),
        metrics=metrics,
        adversary=adversary(cfg.get("adversary"), codec),
        clip=task.keywords.get("clip") or cfg.trainer.gradient_clip_val or None,
        accumulate=cfg.trainer.accumulate_grad_batches,
        **common,
    )


def adversary(node: DictConfig | None, codec: Codec) -> Adversary | None:
    """The adversary of a configuration, its discriminators sized by the features of the codec."""
    if not node:
        return None
    with torch.no_grad():
        features = codec.front(torch.zeros(1, *codec.media.shape))
    sizes = {"rank": features.ndim - 2, "channels": features.shape[1]}
    discriminators = {}
    for name, part in node.discriminators.items():
        discriminators[name] = finished(config.build(part), **sizes)
        try:
            discriminators[name](features[(..., *[slice(0, 1)] * sizes["rank"])])
        except ValueError as error:
            raise ValueError(f"adversary.discriminators.{name}: of this codec's features {error}") from None
    return config.build(node, discriminators=discriminators)


def finished(part: Any, **known: Any) -> Any:
    """A part of `_partial_: true` called with what it asks for of what is `known`; any other as it is."""
    if not isinstance(part, functools.partial):
        return part
    return part(**{k: v for k, v in known.items() if k in inspect.signature(part).parameters and k not in part.keywords})


def build_codecs(
    cfg: DictConfig, named: Mapping[str, dict[str, torch.Tensor]]
) -> tuple[dict[str, Codec], dict[str, Whitening], dict[str, Any]]:
    """Codec and whitening of every stream, and their spec: a yaml node is built, a string is a trained model's folder."""
    parts, spec = {}, {"codecs": {}, "clips": {}}
    asked = {k: v for k, v in (("seconds", cfg.data.seconds), ("size", config.resolved(cfg.data)["size"])) if v}
    for stream, node in cfg.codec.items():
        if isinstance(node, str):
            found = trained.load_codecs(store.load_model(node), tuple(cfg.trust))
            if stream not in found:
                raise ValueError(f"wanted a codec of {stream} in {node}, got one of {', '.join(found)}")
            parts[stream] = found[stream]
        else:
            codec = config.build(node)
            if (place := f"codec.{stream}") in named:
                codec.through.load_state_dict(named[place])
            parts[stream] = trained.TrainedCodec(codec, Whitening.of(codec), config.resolved(node) | dict(codec.embedded), {})
    parts = trained.with_vocoders(parts, cfg.vocoder, tuple(cfg.trust))
    codecs, whitenings = ({s: getattr(part, what) for s, part in parts.items()} for what in ("codec", "whitening"))
    for stream, part in parts.items():
        part.codec.media = trained.sized(part.codec.media, asked.get("seconds"), asked.get("size"))
        spec["codecs"][stream], spec["clips"][stream] = part.spec, {**part.clip, **asked}
    if seconds := trained.share_seconds(codecs):
        for clip in spec["clips"].values():
            clip["seconds"] = seconds
    return codecs, whitenings, spec


def embed_codecs(cfg: DictConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Put the yaml of each trained codec that a part names by its folder in its place; its tensors by the part's name.

    Such parts are conditions (`conditions.NAME`, key `codec`) and codecs (`codec.STREAM`, key `through`).
    """
    conditioners = (cfg.get("conditions") or {}).get("conditioners") or {}
    parts = {f"conditions.{name}": (node, "codec") for name, node in conditioners.items()}
    named = [stream for stream in cfg.codec or {} if not OmegaConf.is_missing(cfg.codec, stream)]
    parts |= {f"codec.{stream}": (cfg.codec[stream], "through") for stream in named}
    states = {}
    for name, (node, key) in parts.items():
        if not isinstance(node, DictConfig) or OmegaConf.is_missing(node, key) or not isinstance(node.get(key), str):
            continue
        found = trained.load_codecs(store.load_model(node[key]), tuple(cfg.trust))
        if len(found) != 1:
            raise ValueError(f"{name}.{key}: wanted the folder of one codec, got {node[key]} with {', '.join(found)}")
        (loaded,) = found.values()
        node[key], states[name] = dict(loaded.spec), loaded.codec.state_dict()
    return states
