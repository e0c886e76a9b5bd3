"""Writing generated samples: media files with their recipe in the metadata, a JSON beside each, and a sheet of all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmldm.interfaces import Media
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, sheet
from mmldm.media.encode import SOUND, VIDEO
from mmldm.media.image import SAVED
from mmldm.pipeline import Sample

__all__ = ["check_suffix", "write_samples"]


def write_samples(samples: Sequence[Sample], folder: Path, recipe: Mapping[str, Any], suffix: str | None = None) -> list[Path]:
    """Write every sample into `folder`; a joint sample of moving pictures and sound becomes one file. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for sample in samples:
        facts = {"prompt": sample.prompt, "seed": sample.seed, "index": sample.index, **recipe}
        stem = f"{sample.index:04d}-{slug(sample.prompt)}"
        files = write_one(sample, folder, stem, {k: str(v) for k, v in facts.items()}, suffix)
        record = {**facts, "files": [f.name for f in files]}
        (folder / f"{stem}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
        written += files
    for stream, media in (samples[0].medias if samples else {}).items():
        name = "sheet.png" if len(samples[0].medias) == 1 else f"sheet-{stream}.png"
        sheet([(s.streams[stream], s.prompt) for s in samples[:64]], media, folder / name)
    return written


def write_one(sample: Sample, folder: Path, stem: str, metadata: Mapping[str, str], suffix: str | None) -> list[Path]:
    """Write the streams of one sample: a file each, or one file of picture and sound."""
    moving = [s for s, m in sample.medias.items() if isinstance(m, VideoMedia)]
    sounds = [s for s, m in sample.medias.items() if isinstance(m, AudioMedia)]
    if len(sample.medias) == 2 and moving and sounds:
        media, sound = sample.medias[moving[0]], sample.medias[sounds[0]]
        path = folder / f"{stem}{dotted(suffix) or '.mp4'}"
        x, y = sample.streams[moving[0]], sample.streams[sounds[0]]
        return [media.save(x, path, metadata, sound=y, sound_rate=int(sound.rate))]
    alone = len(sample.medias) == 1
    return [
        media.save(
            sample.streams[s], folder / f"{stem}{'' if alone else '-' + s}{dotted(suffix) or default_suffix(media)}", metadata
        )
        for s, media in sample.medias.items()
    ]


def check_suffix(medias: Mapping[str, Media], suffix: str | None) -> None:
    """Raise ValueError where a sample of these streams cannot be written with the suffix."""
    if suffix is None:
        return
    joint = len(medias) == 2 and {VideoMedia, AudioMedia} == {type(m) for m in medias.values()}
    for media in medias.values():
        choices = tuple(s for s in VIDEO if s != ".gif") if joint else writable(media)
        if dotted(suffix) not in choices:
            raise ValueError(f"wanted a --format this model can be written in, got {suffix}; choose from {', '.join(choices)}")


def writable(media: Media) -> tuple[str, ...]:
    """The suffixes that a media can be written with."""
    if isinstance(media, ImageMedia):
        return SAVED
    return tuple(SOUND if isinstance(media, AudioMedia) else VIDEO if isinstance(media, VideoMedia) else media.suffixes)


def default_suffix(media: Media) -> str:
    """The suffix a modality is written with when none is asked for: lossless for stills, else the first its media names."""
    return ".png" if isinstance(media, ImageMedia) else media.suffixes[0]


def dotted(suffix: str | None) -> str | None:
    """`flac` and `.flac` -> `.flac`."""
    return None if suffix is None else "." + suffix.lstrip(".")


def slug(text: str, length: int = 40) -> str:
    """A prompt as the part of a file name."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:length].strip("-") or "sample"
