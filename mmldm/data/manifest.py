"""A folder or a manifest file -> rows {"file", "text", "label", …}, by the conventions people already have."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmldm.data.files import is_remote, suffix_of

__all__ = ["Manifest", "described", "read_manifest"]

CAPTIONS = ("text", "caption", "prompt")
FILES = ("file_name", "file", "path")
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Manifest:
    """The rows of a data set, sorted by file.

    A row is {"file": absolute path, "text": str | None, "label": str | None, further fields}. `skipped` names what is wanted
    but cannot be used (a listed file that does not exist), `ignored` what is no part of the set (a file that no metadata lists,
    a second equal row), each as (path, reason).
    """

    rows: list[dict[str, Any]]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)


def read_manifest(path: str | Path, suffixes: Iterable[str]) -> Manifest:
    """Read a folder (metadata.csv/.jsonl as in Hugging Face's folders, sidecar .txt, or a folder per class) or a manifest file.

    `suffixes` (".png", …) are the files wanted. Raises ValueError where nothing is found or a metadata file is malformed.
    """
    path, suffixes = Path(os.path.abspath(path)), {s.lower() for s in suffixes}
    if path.is_dir():
        rows, skipped, ignored, seen = _read_folder(path, suffixes)
    elif path.is_file():
        rows, skipped, ignored = _read_table(path, suffixes)
        seen = Counter(Path(p).suffix.lower() for p, _ in skipped + ignored)
    else:
        raise ValueError(
            f"wanted a folder of media or a manifest file (.csv, .tsv, .jsonl, .json), got {path}: no such file or folder"
        )
    if not rows:
        found = ", ".join(f"{n} {s or 'without suffix'}" for s, n in seen.most_common(8)) or "none"
        raise ValueError(f"{path}: wanted files ending in {', '.join(sorted(suffixes))}; got {found}{_first(skipped)}")
    rows.sort(key=lambda row: row["file"])
    rows, repeated = _unique(rows)
    return Manifest(rows, sorted(skipped), sorted(ignored + repeated))


def _first(skipped: Sequence[tuple[str, str]]) -> str:
    return f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""


def _unique(rows: list[dict]) -> tuple[list[dict], list[tuple[str, str]]]:
    kept, repeated, seen = [], [], set()
    for row in rows:
        key = json.dumps(row, sort_keys=True, default=str)
        if key in seen:
            repeated.append((row["file"], "the same row twice"))
        else:
            kept.append(row)
        seen.add(key)
    return kept, repeated


# ---------------------------------------------------------------- folders


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, file names) of all that is not hidden, sorted; links are followed, each real folder is visited once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield folder, sorted(f for f in files if not f.startswith("."))


def _read_folder(root: Path, suffixes: set[str]):
    rows, skipped, ignored, seen = [], [], [], Counter()
    covered: dict[str, str] = {}  # folder -> the metadata file that speaks for it
    loose: list[tuple[str, str, set[str]]] = []
    for folder, files in _walk(root):
        tables = [f for f in files if f in METADATA]
        covered[folder] = tables[0] if tables else covered.get(os.path.dirname(folder), "")
        for table in tables:
            for target, new in zip((rows, skipped, ignored), _read_table(Path(folder, table), suffixes), strict=True):
                target.extend(new)
        names = set(files)
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes:
                loose.append((folder, name, names))
            elif name not in METADATA:
                seen[suffix] += 1
                if suffix == ".tar":
                    ignored.append((os.path.join(folder, name), "a shard among other files: read it as data of its own"))
    listed = {row["file"] for row in rows}
    for folder, name, names in loose:
        file = os.path.join(folder, name)
        if file in listed:
            continue
        caption = _sidecar(file) if os.path.splitext(name)[0] + ".txt" in names else None
        if caption is None and covered[folder]:
            ignored.append((file, f"not listed in {covered[folder]}"))
            continue
        parent = os.path.basename(folder)
        label = None if folder == str(root) or parent.lower() in SPLITS else parent
        rows.append({"file": file, "text": caption or (label and re.sub(r"[_\-\s]+", " ", label).strip()), "label": label})
    return rows, skipped, ignored, seen


def _sidecar(file: str) -> str | None:
    path = Path(file).with_suffix(".txt")
    if not path.is_file():
        return None
    return _text(path).strip() or None


# ---------------------------------------------------------------- tables


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: wanted UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}") from None


def _read_table(path: Path, suffixes: set[str]):
    """(rows, skipped, ignored) of one metadata or manifest file; its paths are relative to its folder."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        records = _csv(path, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".jsonl", ".json"):
        records = _json(path, lines=suffix == ".jsonl")
    else:
        raise ValueError(f"{path}: wanted a folder or a manifest file; choose from .csv, .tsv, .jsonl, .json")
    rows, skipped, ignored = [], [], []
    for line, record in records:
        column = next((c for c in FILES if record.get(c)), None)
        if column is None or not isinstance(record[column], str):
            raise ValueError(f"{path}, line {line}: wanted a path in one of the columns {', '.join(FILES)}, got {list(record)}")
        file = record[column] if is_remote(record[column]) else os.path.abspath(path.parent / record[column])
        if suffix_of(file) not in suffixes:
            ignored.append((file, f"{suffix_of(file) or 'no suffix'}: another kind of file ({path.name}, line {line})"))
        elif not is_remote(file) and not os.path.isfile(file):
            skipped.append((file, f"no such file ({path.name}, line {line})"))
        else:
            rows.append(_row(file, {k: v for k, v in record.items() if k != column}, path.parent))
    return rows, skipped, ignored


def described(file: str, record: Mapping[str, Any], text: str | None = None) -> dict[str, Any]:
    """The row of a file from the fields that some table has of it; `text` is its caption where the fields have none."""
    caption = next((c for c in CAPTIONS if record.get(c) not in (None, "")), None)
    label = record.get("label")
    row = {"file": file, "text": text if caption is None else str(record[caption]),
           "label": None if label in (None, "") else str(label)}  # fmt: skip
    return row | {name: value for name, value in record.items() if name not in (caption, "text", "label", "file")}


def _row(file: str, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    captioned = any(record.get(c) not in (None, "") for c in CAPTIONS)
    row = described(file, record, None if captioned or is_remote(file) else _sidecar(file))
    for name, value in row.items():
        if name.endswith(("_file", "_file_name")) and isinstance(value, str) and value and not is_remote(value):
            row[name] = os.path.abspath(folder / value)
    return row


def _csv(path: Path, delimiter: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    records = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if not set(header) & set(FILES):
            raise ValueError(
                f"{path}: wanted a header with one of {', '.join(FILES)}, separated by {delimiter!r}, got {header}"
            )
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: wanted {len(header)} columns ({', '.join(header)}), got {len(cells)};"
                    f" put double quotes around a text that holds the separator {delimiter!r}"
                )
            records.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: wanted a well-formed table, got {error}") from None
    texts = {*FILES, *CAPTIONS, "label"}
    for name in header:
        read = None if name in texts else _numbers([record[name] for _, record in records])
        for _, record in records:
            record[name] = (record[name] or None) if read is None else (read(record[name]) if record[name] else None)
    return records


def _numbers(cells: list[str]) -> type | None:
    """int or float where every cell of a column is such a number or empty, else None."""
    cells = [cell for cell in cells if cell]
    if not cells or not all(NUMBER.fullmatch(cell) and any(c.isdigit() for c in cell) for cell in cells):
        return None
    return int if all(cell.lstrip("+-").isdigit() for cell in cells) else float


def _json(path: Path, lines: bool) -> list[tuple[int, dict[str, Any]]]:
    text = _text(path)
    try:
        if lines:
            number, records = 0, []
            for number, line in enumerate(text.split("\n"), 1):  # noqa: B007
                if line.strip():
                    records.append((number, json.loads(line)))
        else:
            records = list(enumerate(json.loads(text), 1))
    except (json.JSONDecodeError, TypeError) as error:
        where = f"line {number}" if lines else "the whole file"
        raise ValueError(
            f"{path}, {where}: wanted {'one object per line' if lines else 'a list of objects'}, got {error}"
        ) from None
    for number, record in records:
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {number}: wanted an object with one of {', '.join(FILES)}, got {type(record).__name__}"
            )
    return records
