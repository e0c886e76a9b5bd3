"""Data sets of the library `datasets`: saved folders and names on the hub; their media stay undecoded until a load."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

from mmldm.data.files import Files, chosen, is_remote, suffix_of, temporary
from mmldm.data.manifest import CAPTIONS, Manifest, described
from mmldm.interfaces import Media, MediaError

__all__ = ["HubFiles", "is_saved", "read_hub"]

SUFFIXES = {"Image": ".png", "Audio": ".wav", "Video": ".mp4"}  # what a file without a name counts as; decoders look inside
MARKS = ("state.json", "dataset_dict.json")  # what a saved data set, or a saved set of splits, has in its folder


def is_saved(path: Any) -> bool:
    """True for a folder that `save_to_disk` wrote."""
    return isinstance(path, (str, Path)) and any(os.path.isfile(os.path.join(path, mark)) for mark in MARKS)


def _opened(path: str, split: str | None, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"wanted the library `datasets` to read {path}; pip install mmldm[hub]") from error
    try:
        found = datasets.load_from_disk(path) if is_saved(path) else datasets.load_dataset(path, config, split=split)
    except Exception as error:  # of a missing file, the network, a name that needs a configuration, a script …
        raise ValueError(f"wanted a data set, got {path}: {' '.join(str(error).split())[:500]}") from error
    if isinstance(found, Mapping):
        if split not in found and len(found) > 1:
            raise ValueError(f"{path}: wanted a split, got {split}; choose from {', '.join(found)} (data.split=…)")
        found = found[split] if split in found else next(iter(found.values()))
    return found


def read_hub(
    path: str | Path,
    media: Mapping[str, Media],
    split: str | None = None,
    caption: str | None = None,
    config: str | None = None,
) -> tuple[Manifest, HubFiles]:
    """The rows of a split, `file` being PATH::ROW/COLUMN.SUFFIX, and the files that read them; an item with several captions
    is several rows. `caption` is the column of the captions (None: text, caption or prompt)."""
    data = _opened(str(path), split, config)
    kinds = {name: type(feature).__name__ for name, feature in data.features.items() if type(feature).__name__ in SUFFIXES}
    if not kinds:
        raise ValueError(f"{path}: wanted a column of images, sounds or videos, got {', '.join(data.features)}")
    if caption is not None and caption not in data.features:
        raise ValueError(f"{path}: wanted a column of captions, got {caption!r}; choose from {', '.join(data.features)}")
    for name in kinds:
        data = data.cast_column(name, type(data.features[name])(decode=False))
    fields = data.remove_columns(list(kinds))
    names = data.select_columns(list(kinds)).flatten()
    names = names.select_columns([f"{column}.path" for column in kinds])
    rows, ignored = [], []
    for i, (paths, record) in enumerate(zip(names, fields if fields.column_names else repeat({}), strict=False)):
        candidates = [f"{path}::{i:08d}/{c}{_suffix(paths[f'{c}.path'], kind, media)}" for c, kind in kinds.items()]
        which = chosen(candidates, media)
        if not which:
            ignored.append((candidates[0], "another kind of file"))
            continue
        record = _plain(record, fields.features)
        rows += [row | which for row in _captioned(which["file"], record, caption)]
    if not rows:
        wanted = ", ".join(sorted({s for kind in media.values() for s in kind.suffixes}))
        raise ValueError(f"{path}: wanted columns of files ending in {wanted}, got {', '.join(kinds)} in {len(data)} rows")
    return Manifest(rows, [], ignored), HubFiles(f"{path}::", {name: data.select_columns([name]) for name in kinds})


def _suffix(name: str | None, kind: str, media: Mapping[str, Media]) -> str:
    suffix = suffix_of(name or "")
    return suffix if any(suffix in m.suffixes for m in media.values()) else SUFFIXES[kind]


def _plain(record: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row as plain values; a class by its name."""
    plain = dict(record)
    for name, value in record.items():
        if value is not None and hasattr(features[name], "int2str"):
            plain[name] = features[name].int2str(value)
    return {name: value for name, value in plain.items() if not name.endswith("_file")}


def _captioned(file: str, record: dict[str, Any], caption: str | None) -> list[dict[str, Any]]:
    column = caption or next((c for c in CAPTIONS if record.get(c) not in (None, "", [])), None)
    found = record.pop(column, None) if column else None
    texts = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
    captions = {name: value for name, value in record.items() if name in CAPTIONS}
    rest = {name: value for name, value in record.items() if name not in CAPTIONS}
    label = None if record.get("label") is None else str(record["label"]).replace("_", " ")
    return [captions | described(file, rest, label if text is None else str(text)) for text in texts or [None]]


class HubFiles(Files):
    """Reads the bytes that a data set keeps in its tables, or the files that they name; `columns` of {"bytes", "path"}."""

    def __init__(self, prefix: str, columns: Mapping[str, Sequence[Mapping[str, Any]]]):
        self.prefix, self.columns = prefix, dict(columns)

    @contextmanager
    def local(self, file: str) -> Iterator[str]:
        row, _, name = file.removeprefix(self.prefix).partition("/")
        column = name.rpartition(".")[0]
        held = self.columns[column][int(row)][column]
        if held is None or (held["bytes"] is None and not held["path"]):
            raise MediaError(file, "is empty")
        if held["bytes"] is None:
            if is_remote(held["path"]) and not held["path"].startswith("hf://"):
                raise MediaError(file, f"is kept elsewhere: {held['path']}")
            with super().local(held["path"]) as path:
                yield path
            return
        with temporary(file) as path:
            with open(path, "wb") as copy:
                copy.write(held["bytes"])
            yield path
