"""Other people's vocoder files as trained models: what `mmldm codec import` runs for a HiFi-GAN or BigVGAN generator."""

from __future__ import annotations

from pathlib import Path

from mmldm import config, trained
from mmldm.codec.vocoder_files import read_generator
from mmldm.model import Whitening

__all__ = ["import_vocoder"]

SECONDS = 1.0  # of the clips that a training or an evaluation takes by default


def import_vocoder(source: str | Path, out: str | Path) -> str:
    """Write OUT/model with the generator of `source` as the decoder of a MelCodec; returns what it is in words.

    Raises ValueError for files that are not of the public formats, or whose upsampling is not the hop.
    """
    found = read_generator(source)
    mel = {"_target_": "mmldm.codec.mel.LogMel", **found.mel}
    kind = f"{found.kind.__module__}.{found.kind.__qualname__}"
    media = {"_target_": "mmldm.media.audio.AudioMedia", "rate": found.mel["rate"], "channels": 1, "seconds": SECONDS}
    vocoder = {"_target_": kind, "mel": mel, **found.numbers}
    spec = {"_target_": "mmldm.codec.mel_codec.MelCodec", "media": media, "vocoder": vocoder}
    generator = found.build()
    codec = config.build(spec, trust=())
    codec.vocoder.load_state_dict(generator.state_dict())
    told = (
        f"{found.kind.__name__} of {sum(p.numel() for p in generator.parameters()) / 1e6:.1f} M parameters for {generator.mel}"
    )
    card = f"# {Path(out).name}: a vocoder\n\n- read from {Path(source).name}\n- {told}\n"
    facts = {"source": Path(source).name}
    trained.save_codec(
        Path(out) / "model", {"codecs": {"audio": spec}, "clips": {}}, codec, Whitening(codec.latent_channels), facts, card
    )
    return told
