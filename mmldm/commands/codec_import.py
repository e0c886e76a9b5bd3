"""Other people's codecs as trained models: what `mmldm codec import` runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmldm import config, trained
from mmldm.codec.pretrained_families import FAMILIES
from mmldm.codec.pretrained_files import folder_of, read_config
from mmldm.codec.vocoder_files import is_generator
from mmldm.commands.vocoder_import import import_vocoder
from mmldm.model import Whitening

__all__ = ["import_codec"]

USAGE = """usage: mmldm codec import SOURCE --out RUN [codec=NAME] [codec.STREAM.key=value …]

Writes an autoencoder of diffusers, a folder or a hub name, as a trained model that needs neither: for encode, evaluate,
reconstruct and as the codec of a training. codec=NAME (sd, wan, oobleck, audioldm …) chooses the settings to start from.
A folder with a HiFi-GAN or BigVGAN generator becomes a vocoder that every vocoder= and --vocoder takes.

  mmldm codec import stabilityai/sd-vae-ft-mse --out runs/sd
  mmldm codec import downloads/wan --out runs/wan codec=wan codec.video.media.fps=24
  mmldm train experiment=image_diffusion codec.image=runs/sd data.path=DIR
"""
PRESETS = {1: "pretrained_audio", 2: "pretrained_image", 3: "pretrained_video"}  # by the number of axes


def main(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    words = list(argv)
    out = words.pop(words.index("--out") + 1) if "--out" in words[:-1] else None
    sources = [word for word in words if "=" not in word and word != "--out"]
    if out is None or len(sources) != 1:
        raise ValueError("wanted SOURCE --out RUN; for example mmldm codec import stabilityai/sd-vae-ft-mse --out runs/sd")
    overrides = [word for word in words if "=" in word]
    if is_generator(sources[0]):
        if overrides:
            raise ValueError(f"wanted no settings for a vocoder, its own are in its config.json; got {', '.join(overrides)}")
        _check_replaceable(out)
        print(f"{import_vocoder(sources[0], out)}; model in {Path(out) / 'model'}")
    else:
        print(f"codec in {import_codec(sources[0], out, overrides)}")
    return 0


def import_codec(source: str | Path, out: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Write the codec of a folder or hub name to `out`/model, whitening included; `overrides` as of `mmldm train`.

    Raises ValueError for what is not a known autoencoder, or does not fit the settings, and where `out` is a trained run.
    """
    _check_replaceable(out)
    place, found = read_config(folder_of(source))
    chosen = [word for word in overrides if word.startswith("codec=")] or [f"codec={_preset(found)}"]
    cfg = config.compose([*chosen, *(word for word in overrides if not word.startswith("codec="))])
    stream, node = _imported_stream(cfg.codec, chosen[-1])
    node.source = str(source)
    if found["_class_name"] == "AutoencoderOobleck":
        node.media.rate, node.media.channels = found["sampling_rate"], found["audio_channels"]
    config.check({"codec": config.resolved(cfg.codec)})
    codec = config.build(node)
    spec = config.resolved(node) | dict(codec.embedded)
    facts = {"imported": {"source": str(source), "class": found["_class_name"]}}
    card = f"# {found['_class_name']} of {source}, a codec of {stream}\n\nNot trained here; the license is its authors'.\n"
    folder, plain = Path(out) / "model", {"codecs": {stream: spec}, "clips": {stream: {}}}
    trained.save_codec(folder, plain, codec, Whitening.of(codec), facts, card)
    return folder


def _check_replaceable(out: str | Path) -> None:
    """Raise ValueError where `out` holds a run or a model that was not imported."""
    manifest, facts = Path(out) / "model" / "manifest.json", {"imported": None}
    if manifest.is_file():
        try:
            facts = dict(json.loads(manifest.read_text(encoding="utf-8"))["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            facts = {}
    if (Path(out) / "resume").exists() or not facts.keys() & {"imported", "source"}:
        raise ValueError(f"{out} holds a trained model, which an import would replace; choose another --out")


def _imported_stream(codec: Any, chosen: str) -> tuple[str, Any]:
    """The one stream of a preset and its node, which has a source."""
    nodes = list((codec or {}).items())
    if len(nodes) == 1 and not isinstance(nodes[0][1], str) and "source" in (nodes[0][1] or {}).keys():  # ??? as well
        return nodes[0]
    names = sorted(file.stem for file in (config.CONF_DIR / "codec").glob("*.yaml"))
    known = [name for name in names if any("source" in node for node in (config.member("codec", name) or {}).values())]
    raise ValueError(f"wanted codec= one of the pretrained presets, got {chosen}; choose from {', '.join(known)}")


def _preset(found: dict) -> str:
    if found["_class_name"] == "AutoencoderKL" and found.get("in_channels") == 1:
        return "audioldm"
    return PRESETS[len(FAMILIES[found["_class_name"]].names)]
