"""Where items come from: the protocol of a source, and the source of files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mmldm.data.check import Report, check, examine
from mmldm.data.files import Files, file_of
from mmldm.data.hub import is_saved, read_hub
from mmldm.data.manifest import read_manifest
from mmldm.data.order import Order
from mmldm.data.packed import Packed
from mmldm.data.shards import find_shards, read_shards
from mmldm.interfaces import Clip, Info, Media, MediaError

__all__ = ["FileSource", "Source", "split"]


@runtime_checkable
class Source(Protocol):
    """Numbered items, each a dict of streams with fields; deterministic and picklable. Indices run from 0 to len - 1."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]:
        """The fields of an item: "text", "label", …; plain JSON values."""
        ...

    def seconds(self, index: int) -> float | None:
        """Duration as the header says; None for a still."""
        ...

    def key(self, index: int) -> str:
        """What identifies the item's content: a digest of its bytes, or what they are computed from."""
        ...

    def load(self, index: int, stream: str, media: Media, start: float) -> Clip | None:
        """The clip that begins `start` seconds into the item; None where the item has no such stream; raises MediaError."""
        ...


class FileSource:
    """The rows of a manifest: every stream of an item is read from the one file of its row, or from its field STREAM_file.

    `files` gets at what the rows name: paths and URLs here, members of shards, rows of other people's data sets.
    A stream whose header cannot be read is absent; an item without any stream is bad. Headers are read when first
    needed, or all at once, in parallel, by `checked`.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], media: Mapping[str, Media],
                 skipped: Sequence[tuple[str, str]] = (), ignored: Sequence[tuple[str, str]] = (),
                 files: Files | None = None):  # fmt: skip
        if not rows:
            raise ValueError("wanted at least one row, got none")
        self.rows, self.media = Packed.of(rows), dict(media)
        self.skipped, self.ignored = list(skipped), list(ignored)
        self.files = files or Files()
        self.report: Report | None = None
        self._infos: dict[int, dict[str, Info]] = {}
        self._checked: Packed | None = None  # the headers as `checked` has read them

    @classmethod
    def read(cls, path: str | Path | Sequence[str], media: Mapping[str, Media]) -> FileSource:
        """What any of the streams can read in a folder, a manifest, tar shards (a folder, pattern, list or URL of them) or a
        folder that the library `datasets` has saved."""
        suffixes = {suffix for kind in media.values() for suffix in kind.suffixes}
        files = None
        if shards := find_shards(path, suffixes):
            manifest, files = read_shards(shards, media)
        elif is_saved(path):
            return cls.from_hub(path, media)
        else:
            manifest = read_manifest(path, suffixes)
        return cls(manifest.rows, media, manifest.skipped, manifest.ignored, files)

    @classmethod
    def from_hub(
        cls, path: str | Path, media: Mapping[str, Media], split: str | None = None, caption: str | None = None,
        config: str | None = None,
    ) -> FileSource:  # fmt: skip
        """A split of a data set of the library `datasets`: a saved folder, or a name on the hub."""
        manifest, files = read_hub(path, media, split, caption, config)
        return cls(manifest.rows, media, manifest.skipped, manifest.ignored, files)

    def check(self, max_workers: int | None = None, progress: bool = True) -> Report:
        """Read all headers."""
        return check(self.rows, self.media, max_workers, progress, self.skipped, self.ignored, self.files)

    def checked(self, max_bad_fraction: float = 0.01, max_workers: int | None = None, progress: bool = True) -> FileSource:
        """The same source without unusable files; raises ValueError with the list where there are more than allowed."""
        if self.report is not None:
            return self
        report = self.check(max_workers, progress)
        report.require(max_bad_fraction)
        if dropped := report.dropped:
            told = len(dropped), report.wanted, *(self.skipped or dropped)[0]  # a shard before a file
            logging.getLogger(__name__).warning("dropped %d of %d files, the first: %s: %s", *told)
        source = FileSource(report.usable, self.media, self.skipped, self.ignored, self.files)
        source.report = report
        source._checked = Packed.of({s: vars(info) for s, info in v.infos.items()} for v in report.accepted)
        return source

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"report": None}  # long, and read where it was made alone

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def infos(self, index: int) -> dict[str, Info]:
        """The headers of the streams that are there; raises MediaError where none can be read."""
        if self._checked is not None:
            return {s: Info(**told | {"shape": tuple(told["shape"])}) for s, told in self._checked[index].items()}
        if index not in self._infos:
            verdict = examine(self.rows[index], self.media, self.files)
            if not verdict.usable:
                raise MediaError(self.rows[index]["file"], verdict.reason)
            self._infos[index] = verdict.infos
        return self._infos[index]

    def seconds(self, index: int) -> float | None:
        """Duration of the first of the streams that runs in time and is there: it leads, the others follow."""
        infos = self.infos(index)
        return next((infos[s].seconds for s, m in self.media.items() if s in infos and m.time_axis is not None), None)

    def key(self, index: int) -> str:
        row = self.rows[index]
        digests = [self.files.digest(file) for file in dict.fromkeys(file_of(row, stream) for stream in self.media)]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def load(self, index: int, stream: str, media: Media, start: float) -> Clip | None:
        if stream not in self.infos(index):
            return None
        return self.files.load(file_of(self.rows[index], stream), media, start)


def split(source: Source, validation: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation: a count (int) or a fraction (float) of the items, chosen by the seed.

    Rows of one file stay together; at least one item is on each side.
    """
    names: dict[str, int] = {}
    rows, group = getattr(source, "rows", None), getattr(source, "groups", None)
    if group is not None:
        pass
    elif rows is None:
        group = np.arange(len(source))
    else:
        group = np.array([names.setdefault(row.get("file", str(i)), len(names)) for i, row in enumerate(rows)])
    groups = int(group.max()) + 1
    count = validation if isinstance(validation, int) or validation < 0 else max(1, round(validation * groups))
    if not 1 <= count < groups:
        raise ValueError(f"wanted a validation part of at least 1 and at most {groups - 1} of {groups} files, got {validation}")
    held = np.zeros(groups, dtype=bool)
    held[Order(groups, seed, "validation").index(np.arange(count))] = True
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])
