"""Where the bytes of a row's file are: media read paths, so what is not on this machine becomes a temporary file."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mmldm.interfaces import Clip, Info, Media, MediaError

__all__ = ["Files", "chosen", "file_of", "filesystem", "is_remote", "patiently", "suffix_of", "temporary"]

T = TypeVar("T")
WAITS = (0.5, 4.0)  # seconds before the second and the third try of a fetch that failed


def is_remote(file: str) -> bool:
    """True for a URL: s3://…, https://…, memory://…"""
    return "://" in file


def suffix_of(file: str) -> str:
    """The lower-case suffix of a file's name, without the query of a web address."""
    file = file.rpartition("::")[2]  # the member of a shard
    if file.startswith(("http://", "https://")):
        file = re.split(r"[?#]", file, maxsplit=1)[0]
    return os.path.splitext(file)[1].lower()


def file_of(row: Mapping[str, Any], stream: str) -> str:
    """The file that a stream of a row is read from: its field STREAM_file where there is one, else `file`."""
    return row.get(f"{stream}_file") or row["file"]


def chosen(files: Sequence[str], media: Mapping[str, Media]) -> dict[str, str]:
    """The fields that say which of an item's files each stream reads: `file`, and STREAM_file where it differs; {} if none can.

    Of several files a stream reads the one whose suffix its media names first: a sound file before the sound of a video.
    """
    found: dict[str, str] = {}
    suffixes = {file: suffix_of(file) for file in files}
    for stream, kind in media.items():
        able = [file for file in files if suffixes[file] in kind.suffixes]
        if able:
            dots = {file: file.rpartition("/")[2].rpartition("::")[2].count(".") for file in able}
            file = min(able, key=lambda f: (dots[f], kind.suffixes.index(suffixes[f]), f))  # noqa: B023
            first = found.setdefault("file", file)
            if file != first:
                found[f"{stream}_file"] = file
    return found


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a URL; ValueError where its protocol is unknown or a package for it is missing."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"wanted a URL that fsspec can open, got {url}: {told}") from error


def patiently(read: Callable[[], T]) -> T:
    """What `read` gives, tried three times where it fails for a reason that may pass."""
    for wait in WAITS:
        try:
            return read()
        except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError, TypeError):
            raise
        except Exception:  # every file system has its own
            time.sleep(wait)
    return read()


@contextmanager
def temporary(file: str) -> Iterator[str]:
    """The path of a new, empty file with the suffix of `file` and a name of its own, gone after the block.

    Raises ValueError where the disk is full: the file is not to blame.
    """
    suffix = suffix_of(file)
    try:
        handle, path = tempfile.mkstemp(suffix if re.fullmatch(r"\.\w{1,8}", suffix, re.ASCII) else "", "mmldm-")
        os.close(handle)
        try:
            yield path
        finally:
            os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = tempfile.gettempdir()
        raise ValueError(f"wanted room for temporary files in {where}, got none; make room, or set TMPDIR=FOLDER") from error


class Files:
    """Reads the files that rows name: paths as they are, URLs through fsspec as a temporary file for the time of a read."""

    @contextmanager
    def local(self, file: str) -> Iterator[str]:
        """A path on this machine with the file's bytes, for the time of the block; raises MediaError."""
        if not is_remote(file):
            yield file
            return
        system, source = filesystem(file)
        with temporary(file) as path:
            try:
                patiently(lambda: system.get_file(source, path))
            except Exception as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise
                raise MediaError(file, f"cannot be fetched: {reason(error)}") from error
            yield path

    def probe(self, file: str, media: Media) -> Info:
        """The header of a file; raises MediaError."""
        return self._read(file, media.probe)

    def load(self, file: str, media: Media, start: float) -> Clip:
        """The clip that begins `start` seconds into a file; raises MediaError."""
        return self._read(file, lambda path: media.load(path, start))

    def digest(self, file: str) -> str:
        """sha256 of the file's bytes."""
        with self.local(file) as path, open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    def _read(self, file: str, read: Callable[[str], T]) -> T:
        with self.local(file) as path:
            try:
                return read(path)
            except MediaError as error:
                if path == file:
                    raise
                raise MediaError(file, error.reason.replace(path, file)) from error


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
