"""What is where in a tar shard: samples as WebDataset groups them, read from the headers alone and kept beside the shard."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mmldm.data.files import filesystem, is_remote, reason
from mmldm.media.files import replacing

__all__ = ["ShardIndex", "identity", "index_shard", "open_shard"]

FORMAT = 1
TEXTS = ("txt", "json", "cls")  # members that describe a sample
LARGEST = 1 << 20  # bytes of a header or of a description
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
BLOCK = 512
SPECIAL = "no regular file (a link, a device, a sparse file)"
BROKEN = (tarfile.TarError, RecursionError, ValueError, LookupError, ArithmeticError, struct.error)  # what bad headers raise


class ShardIndex(dict):
    """{"identity", "samples": [[key, {extension: [offset, size]}, fields]], "ignored": [[member, reason]], "damage"}.

    `damage` says where the archive breaks off (None: it is whole); the samples before that are there.
    """

    place: Path | None = None  # the file that holds it


@contextmanager
def open_shard(shard: str) -> Iterator[BinaryIO]:
    """The shard, open for reading; of a remote one little more is fetched than is read."""
    if not is_remote(shard):
        with open(shard, "rb") as file:
            yield file
        return
    system, path = filesystem(shard)
    with system.open(path, "rb", block_size=1 << 18) as file:
        yield file


def identity(shard: str) -> list[Any]:
    """What changes when a shard does: its size and time of change, or what its file system keeps instead."""
    if not is_remote(shard):
        status = os.stat(shard)
        return [FORMAT, status.st_size, status.st_mtime_ns]
    system, path = filesystem(shard)
    info = system.info(path)
    known = sorted(f"{name}={value}" for name, value in info.items() if name not in ("name", "url", "Key"))
    return [FORMAT, info["size"], hashlib.sha256(" ".join(known).encode()).hexdigest()]


def index_shard(shard: str) -> ShardIndex:
    """The kept index of a shard, built anew where there is none or the shard has changed.

    It lies beside the shard as NAME.index.json, else in the user's cache folder.
    """
    now = identity(shard)
    for place in _places(shard):
        try:
            index = ShardIndex(json.loads(place.read_text(encoding="utf-8")))
            if index["identity"] == now:
                index.place = place
                return index
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not there, or not ours
    index = ShardIndex(identity=now, **_read(shard, now[1]))
    for place in _places(shard):
        try:
            with replacing(place) as part:
                part.write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")
            index.place = place
            break
        except OSError:
            continue  # not writable
    return index


def _places(shard: str) -> list[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = home / "mmldm" / "shards" / f"{hashlib.sha256(shard.encode()).hexdigest()}.index.json"
    return [cached] if is_remote(shard) else [Path(f"{shard}.index.json"), cached]


# ---------------------------------------------------------------- reading an archive


class _Bounded:
    """A file that refuses to read much at once: a header that asks for it is none. What fails below is an OSError."""

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST:
            raise tarfile.ReadError(f"a header of {size} bytes")
        try:
            return self.file.read(size)
        except Exception as error:  # every file system has its own; none of them is damage
            raise OSError(reason(error)) from error


def _read(shard: str, size: int) -> dict[str, Any]:
    samples: dict[str, tuple[dict, dict]] = {}
    ignored: list[tuple[str, str]] = []
    damage = None
    with open_shard(shard) as opened:
        file = _Bounded(opened)
        first, place, cut = file.read(8), 0, None
        if packed := next((name for magic, name in COMPRESSED.items() if first.startswith(magic)), None):
            told = f"compressed by {packed}, it can only be read from its beginning; unpack it first"
            raise ValueError(f"wanted a plain tar, got {shard}: {told}")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    plain = member.isreg() and not member.issparse()  # another one's size is not that of its data
                    end = member.offset_data + member.size if plain else archive.offset
                    if not place <= member.offset < member.offset_data <= end:
                        raise tarfile.ReadError("a header that points backwards")
                    place = member.offset_data
                    if end > size:
                        cut = _key(PurePosixPath(member.name))[0]
                        raise tarfile.ReadError(f"{member.name!r} declares {end - place} bytes, {size - place} are left")
                    if why := _add(samples, member, file) if plain or member.isdir() else SPECIAL:
                        ignored.append((ascii(member.name)[1:-1], why))
                    place = end
                place = archive.offset
            if not _ended(file, place):
                ignored.append(("", f"ends at byte {size} without an end mark: it may be cut off"))
        except BROKEN as error:
            damage = f"is damaged after byte {place}: {error}"
            if samples and cut in (None, next(reversed(samples))):
                samples.popitem()  # its other members may be behind the damage
    return {"samples": [[key, *samples[key]] for key in sorted(samples)], "ignored": ignored, "damage": damage}


def _ended(file: _Bounded, end: int) -> bool:
    """Whether the headers end as they should, with a block of zeros; False where the file ends there."""
    file.seek(end)
    block = file.read(BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError("no header")
    return len(block) == BLOCK


def _key(path: PurePosixPath) -> tuple[str, str]:
    """(sample, extension) of a member: its name up to the first dot of its last part, and the rest."""
    name, _, extension = path.name.partition(".")
    return str(path.with_name(name)) if name else str(path), extension


def _add(samples: dict[str, tuple[dict, dict]], member: tarfile.TarInfo, file: _Bounded) -> str | None:
    """Put a member into its sample; returns why it is left out. Members that a folder would not show either are passed over."""
    path = PurePosixPath(member.name)
    if member.isdir():
        return None
    if path.is_absolute() or ".." in path.parts or not member.name.isprintable() or not path.parts:
        return "a name that leads out of the archive or cannot be shown"
    if any(part.startswith(".") for part in path.parts):
        return None
    key, extension = _key(path)
    files, fields = samples.setdefault(key, ({}, {}))
    if extension.lower() not in TEXTS:
        twice = extension in files
        files[extension] = [member.offset_data, member.size]
        return "a second member of this name; the last one counts" if twice else None
    return _describe(fields, extension.lower(), member, file)


def _describe(fields: dict[str, Any], extension: str, member: tarfile.TarInfo, file: _Bounded) -> str | None:
    if member.size > LARGEST:
        return f"a description of {member.size} bytes, the limit is {LARGEST}"
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8-sig")
        described = json.loads(text) if extension == "json" else None
    except ValueError as error:
        return f"wanted {'JSON' if extension == 'json' else 'text'} in UTF-8: {error}"
    if extension != "json":
        fields["\0text" if extension == "txt" else "label"] = text.strip() or None
        return None
    if not isinstance(described, dict):
        return f"wanted an object, got {type(described).__name__}"
    paths = sorted(name for name in described if name == "file" or name.endswith(("_file", "_file_name")))
    fields.update({name: value for name, value in described.items() if name not in paths and not name.startswith("\0")})
    return f"its fields {', '.join(paths)} would name files outside the archive" if paths else None
