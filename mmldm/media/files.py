"""Reading and writing files safely: one typed error, no half-written files, metadata in the file's own tags."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmldm.interfaces import MediaError

__all__ = ["checked_suffix", "from_tags", "reading", "replacing", "to_tags"]


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Whatever a decoder raises on a broken file becomes a MediaError that names the file; wrap decoding alone."""
    try:
        yield
    except (MediaError, NameError, ImportError):
        raise
    except Exception as error:  # decoders leak every kind: OSError, SyntaxError, IndexError, struct.error, FFmpegError …
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise MediaError(path, f"cannot be decoded: {reason}") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name of the same suffix in the same folder, renamed to `path` at the end, removed after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checked_suffix(path: str | Path, choices: tuple[str, ...]) -> str:
    """The lower-case suffix of `path`; ValueError unless it is one of `choices`."""
    suffix = Path(path).suffix.lower()
    if suffix not in choices:
        raise ValueError(f"wanted a file name with a known suffix, got {str(path)!r}; choose from {', '.join(choices)}")
    return suffix


def to_tags(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Tags for a container: each entry under its own name, all of them as JSON under `comment` (the tag every format keeps)."""
    if not metadata:
        return {}
    own = {str(key): str(value) for key, value in metadata.items()}
    return {**own, "comment": json.dumps(own)}


def from_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """What `to_tags` was given where the tags hold it, else the tags as they are."""
    for key, value in tags.items():
        if key.lower() in ("comment", "description"):
            try:
                own = json.loads(value)
            except ValueError:
                continue
            if isinstance(own, dict):
                return {str(k): str(v) for k, v in own.items()}
    return dict(tags)
