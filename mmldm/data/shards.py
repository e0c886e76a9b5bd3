"""Tar shards as WebDataset writes them, read by range: any sample at any time, never unpacked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

from mmldm import __version__
from mmldm.data.files import Files, chosen, filesystem, is_remote, patiently, reason, temporary
from mmldm.data.manifest import METADATA, Manifest, described
from mmldm.data.shard_index import ShardIndex, identity, index_shard
from mmldm.interfaces import Info, Media, MediaError

__all__ = ["ShardFiles", "find_shards", "read_shards"]

CHUNK = 64 << 20
SHARD = re.compile(r"\.tar(\.\w+)?$|\.t[gbx]z2?$", re.IGNORECASE)
BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")
SPAN = re.compile(r"(\d+)\.\.(\d+)")


# ---------------------------------------------------------------- which shards


def expand(pattern: str) -> list[str]:
    """x-{00..11}.tar, {a,b}.tar -> every name it means."""
    found = BRACES.search(pattern)
    if not found:
        return [pattern]
    if span := SPAN.fullmatch(found[1]):
        first, last = span.groups()
        width = len(first) if first.startswith("0") else 0
        middles = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    else:
        middles = found[1].split(",")
    return [name for middle in middles for name in expand(pattern[: found.start()] + middle + pattern[found.end() :])]


def find_shards(path: str | Path | Sequence[str], suffixes: Iterable[str]) -> list[str]:
    """The shards that a path means: a .tar, a folder that has them and no other data, a pattern, a URL of these, a list.

    [] where it means something else, files of `suffixes` among them; ValueError where a named shard does not exist or is
    compressed.
    """
    if not isinstance(path, (str, Path)):
        found = [shard for name in path for shard in find_shards(name, suffixes) or [str(name)]]
    elif is_remote(str(path)):
        found = _remote_shards(str(path))
    else:
        found = _local_shards(str(path), {*suffixes})
    found = list(dict.fromkeys(found))
    wrong = [shard for shard in found if not shard.lower().split("?")[0].endswith(".tar")]
    if wrong:
        told = "compressed ones can only be read from their beginning; unpack them (gunzip) first"
        raise ValueError(f"wanted plain tar shards (.tar), got {wrong[0]}: {told}")
    return found


def _local_shards(path: str, suffixes: set[str]) -> list[str]:
    if os.path.isdir(path):
        names = [name for name in sorted(os.listdir(path)) if not name.startswith(".")]
        if any(name in METADATA or os.path.splitext(name)[1].lower() in suffixes for name in names):
            return []
        found = [os.path.join(path, name) for name in names if SHARD.search(name)]
    elif os.path.exists(path) or not SHARD.search(path):
        found = [path] if SHARD.search(path) else []
    else:
        found = [name for pattern in expand(path) for name in sorted(glob(pattern, recursive=True)) or [pattern]]
    missing = [shard for shard in found if not os.path.exists(shard)]
    if missing:
        raise ValueError(f"wanted {len(found)} shards, {len(missing)} are missing, the first: {missing[0]}: no such file")
    return [os.path.abspath(shard) for shard in found]


def _remote_shards(url: str) -> list[str]:
    found = []
    for name in expand(url if SHARD.search(url.split("?")[0]) else url.rstrip("/") + "/*.tar"):
        system, pattern = filesystem(name)
        if "*" not in name:
            found.append(name if "::" in name else system.unstrip_protocol(pattern))  # one spelling, unless it is a chain
            continue
        try:
            found += [system.unstrip_protocol(shard) for shard in sorted(patiently(lambda: system.glob(pattern)))]  # noqa: B023
        except Exception as error:
            raise ValueError(f"wanted a folder of shards, got {url}: it cannot be listed: {reason(error)}") from error
    if not found:
        raise ValueError(
            f"wanted shards (.tar) in {url}, got none; URLs of single files can stand in a manifest on this machine"
        )
    return found


# ---------------------------------------------------------------- their rows and files


def read_shards(shards: Sequence[str], media: Mapping[str, Media]) -> tuple[Manifest, ShardFiles]:
    """The samples of shards as rows whose `file` is SHARD::MEMBER, sorted, and the files that read them."""
    with ThreadPoolExecutor(min(16, len(shards))) as pool:
        indices = list(pool.map(_indexed, shards))
    files, rows, skipped, ignored = ShardFiles(), [], [], []
    for shard, index in zip(shards, indices, strict=True):
        if isinstance(index, str):
            skipped.append((shard, index))
            continue
        if index["damage"]:
            told = f"{index['damage']}; the {len(index['samples'])} samples before are used"
            skipped.append((shard, told))
        ignored += [(f"{shard}::{member}" if member else shard, why) for member, why in index["ignored"]]
        for sample in index["samples"]:
            _add(shard, sample, media, files, rows, ignored)
        files.shards[shard] = index["identity"], index.place
    if not rows:
        first = (skipped or ignored or [(shards[0], "is empty")])[0]
        wanted = ", ".join(sorted({s for kind in media.values() for s in kind.suffixes}))
        raise ValueError(
            f"wanted samples with a member ending in {wanted}, got none in {len(shards)} shards ({': '.join(first)})"
        )
    rows.sort(key=lambda row: row["file"])
    return Manifest(rows, sorted(skipped), sorted(ignored)), files


def _indexed(shard: str) -> ShardIndex | str:
    try:
        return patiently(lambda: index_shard(shard)) if is_remote(shard) else index_shard(shard)
    except ValueError:
        raise
    except Exception as error:  # every file system has its own
        return f"cannot be read: {reason(error)}"


def _add(shard: str, sample: Sequence[Any], media: Mapping[str, Media], files: ShardFiles, rows: list, ignored: list) -> None:
    key, members, fields = sample
    named = {f"{shard}::{key}.{extension}" if extension else f"{shard}::{key}": extension for extension in members}
    which = chosen(list(named), media)
    if not which:
        ignored.append((f"{shard}::{key}", f"another kind of sample: {', '.join(sorted(members)) or 'a description alone'}"))
        return
    for file in which.values():
        files.members[file] = shard, *members[named[file]]
    fields = dict(fields)
    rows.append(described(which["file"], fields, fields.pop("\0text", None)) | which)


class ShardFiles(Files):
    """Reads members of shards: `members` {file: (shard, offset, size)}, `shards` {shard: (identity, its index's place)}.

    What a header or a digest has said once is kept beside the index (NAME.facts.jsonl) and not read again.
    """

    def __init__(self) -> None:
        self.members: dict[str, tuple[str, int, int]] = {}
        self.shards: dict[str, tuple[list[Any], Path | None]] = {}
        self._facts: dict[str, dict[tuple[str, str], Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_facts": {}}

    @contextmanager
    def local(self, file: str) -> Iterator[str]:
        with temporary(file) as path:
            with open(path, "wb") as copy:
                for chunk in self._chunks(file):
                    copy.write(chunk)
            yield path

    def _chunks(self, file: str) -> Iterator[bytes]:
        shard, offset, size = self.members[file]
        for begin in range(offset, offset + size, CHUNK):
            end = min(begin + CHUNK, offset + size)
            try:
                chunk = self._range(shard, begin, end)
            except (TypeError, NameError, ImportError):
                raise
            except Exception as error:  # every file system has its own
                raise MediaError(file, f"cannot be read: {reason(error)}") from error
            if len(chunk) != end - begin:
                raise MediaError(file, f"wanted {size} bytes at {offset}, the shard ends before")
            yield chunk

    def _range(self, shard: str, begin: int, end: int) -> bytes:
        if is_remote(shard):
            system, path = filesystem(shard)
            return patiently(lambda: system.cat_file(path, begin, end))
        if identity(shard) != self.shards[shard][0]:
            raise OSError("the shard has changed since it was indexed")
        with open(shard, "rb") as opened:
            opened.seek(begin)
            return opened.read(end - begin)

    def probe(self, file: str, media: Media) -> Info:
        about = hashlib.sha256(f"{__version__} {media!r}".encode()).hexdigest()[:16]
        known = self._known(file, about)
        if known is None:
            try:
                known = dataclasses.asdict(super().probe(file, media))
            except MediaError as error:
                if not isinstance(error.__cause__, MediaError):  # it could not be had, and may be another time
                    raise
                known = error.reason
            self._remember(file, about, known)
        if isinstance(known, str):
            raise MediaError(file, known)
        return Info(**known | {"shape": tuple(known["shape"])})

    def digest(self, file: str) -> str:
        known = self._known(file, "sha256")
        if known is None:
            total = hashlib.sha256()
            for chunk in self._chunks(file):
                total.update(chunk)
            known = total.hexdigest()
            self._remember(file, "sha256", known)
        return known

    # ------------------------------------------------------------ what was learnt before

    def _place(self, shard: str) -> Path | None:
        index = self.shards[shard][1]
        return index and index.with_name(index.name.replace(".index.json", ".facts.jsonl"))

    def _known(self, file: str, about: str) -> Any:
        shard = self.members[file][0]
        if shard not in self._facts:
            self._facts[shard] = self._learnt(shard)
        return self._facts[shard].get((file[len(shard) :], about))

    def _learnt(self, shard: str) -> dict[tuple[str, str], Any]:
        place, facts = self._place(shard), {}
        try:
            lines = place.read_bytes().split(b"\n") if place else ()
        except OSError:
            lines = ()  # not there yet, or not ours
        for line in lines:
            try:
                whose, member, about, fact = json.loads(line)
                if whose == self.shards[shard][0]:
                    facts[member, about] = fact
            except (ValueError, TypeError):
                continue  # a line that another process was writing
        return facts

    def _remember(self, file: str, about: str, fact: Any) -> None:
        shard = self.members[file][0]
        whose, place = self.shards[shard][0], self._place(shard)
        self._facts[shard][file[len(shard) :], about] = fact
        if place:
            try:
                with open(place, "a", encoding="utf-8") as facts:
                    facts.write(json.dumps([whose, file[len(shard) :], about, fact]) + "\n")
            except OSError:  # a folder that may only be read
                self.shards[shard] = whose, None
