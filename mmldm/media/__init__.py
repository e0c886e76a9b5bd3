"""Files <-> tensors: four kinds of media, their pictures and players, and the page that shows a run."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mmldm.media.array import ArrayMedia
from mmldm.media.audio import AudioMedia
from mmldm.media.container import opened, streams_of
from mmldm.media.draw import sheet
from mmldm.media.encode import can_carry, save_audio, save_video
from mmldm.media.files import from_tags
from mmldm.media.image import ImageMedia, picture_tags, save_image
from mmldm.media.limits import Limits, unlimited
from mmldm.media.page import MediaLogger, Page
from mmldm.media.pieces import regrouped, with_last
from mmldm.media.video import VideoMedia

__all__ = [
    "ArrayMedia", "AudioMedia", "ImageMedia", "Limits", "MediaLogger", "Page", "SUFFIXES", "VideoMedia", "can_carry",
    "media_for", "read_metadata", "regrouped", "save_audio", "save_image", "save_video", "sheet", "streams_of", "unlimited",
    "with_last",
]  # fmt: skip

SUFFIXES: dict[str, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac"),
    "video": (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"),
    "array": (".npy",),
}


def media_for(path: str | Path) -> str:
    """The kind of a file by its suffix: `image`, `audio`, `video` or `array`; a GIF is a video where it moves."""
    suffix = Path(path).suffix.lower()
    if suffix == ".gif":
        try:
            with Image.open(path) as picture:
                return "video" if getattr(picture, "is_animated", False) else "image"
        except Exception:  # whatever a broken GIF raises: reading it says what is wrong
            return "image"
    for kind, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return kind
    known = ", ".join(sorted({s for suffixes in SUFFIXES.values() for s in suffixes}))
    raise ValueError(f"wanted a file of a known kind, got {str(path)!r}; choose from {known}")


def read_metadata(path: str | Path) -> dict[str, str]:
    """What was saved as metadata with a file; its other tags where nothing was; {} where the format has none."""
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES["array"]:
        return {}
    if suffix in SUFFIXES["image"]:
        return from_tags(picture_tags(path))
    with opened(path, Limits()) as container:
        tags = dict(container.metadata)
        for stream in container.streams:  # Ogg keeps its tags with the stream
            tags = {**stream.metadata, **tags}
        return from_tags(tags)
