"""What made a cache: the parts that its latents depend on, and the dtype that they are stored in."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["open_index", "read_index", "write_index"]

FORMAT, INDEX = 2, "index.json"


def open_index(folder: Path, parts: Mapping[str, Any] | None, dtype: str | None = None) -> dict[str, Any]:
    """The facts of a cache folder; raises ValueError where it is none, or was made by other parts or in another dtype."""
    if not (folder / INDEX).is_file():
        raise ValueError(f"wanted a folder of cached latents, got {folder}: it has no {INDEX}; make one with `mmldm encode`")
    index = read_index(folder)
    if index is None:
        raise ValueError(f"{folder / INDEX} is damaged; run `mmldm encode` again: it writes it anew")
    if index["format"] != FORMAT:
        raise ValueError(
            f"{folder}: wanted a cache of format {FORMAT}, got {index['format']}; encode again into another folder (out=)"
        )
    odd = list(_differences(json.loads(json.dumps(parts)), index["parts"])) if parts is not None else []
    if odd:
        raise ValueError(
            f"{folder}: these latents were made by other parts ({'; '.join(odd)}); "
            "encode into another folder (out=), or choose the parts that made them"
        )
    if dtype is not None and dtype != index["dtype"]:
        raise ValueError(f"{folder}: wanted a cache of {dtype}, got one of {index['dtype']}; encode into another folder (out=)")
    return index


def read_index(folder: Path) -> dict[str, Any] | None:
    """What index.json says, None where it is not there or damaged."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return index if "format" in index else None
    except (OSError, ValueError, TypeError):
        return None


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*wanted, *found}):
        ours, theirs = wanted.get(name), found.get(name)
        if ours is None or theirs is None:
            yield f"{name}: {'not in the cache' if theirs is None else 'only in the cache'}"
        elif isinstance(ours, dict) and isinstance(theirs, dict):
            yield from (_difference(name, what, ours.get(what), theirs.get(what))
                        for what in sorted({*ours, *theirs}) if ours.get(what) != theirs.get(what))  # fmt: skip
        elif ours != theirs:
            yield f"{name}: another one"


def _difference(stream: str, what: str, ours: Any, theirs: Any) -> str:
    ours, theirs = (re.findall(r"\w+=[^,()]+", str(told)) for told in (ours, theirs))
    odd = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
    if not odd or len(ours) != len(theirs):
        return f"{stream}: another {what}"
    return "{}: wanted {} {}, got {}".format(stream, what, *(", ".join(side) for side in zip(*odd, strict=True)))


def write_index(folder: Path, parts: Mapping[str, Any], dtype: str) -> None:
    """Begin a cache folder."""
    path = folder / f"{INDEX}.{platform.node()}.{os.getpid()}.part"  # machines that share the folder begin together
    path.write_text(json.dumps({"format": FORMAT, "parts": parts, "dtype": dtype}, indent=1), encoding="utf-8")
    os.replace(path, folder / INDEX)
