"""The trained-model folder: model.yaml, one .safetensors per part, manifest.json with the sha256 of each file, README.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load, save_file
from torch import Tensor

from mmldm import __version__
from mmldm.targets import did_you_mean

__all__ = ["FORMAT", "StoredModel", "find_model", "load_model", "save_model"]

FORMAT = 1  # of the folder; a reader refuses what is newer than itself
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SPEC_LIMIT = 1 << 20  # bytes of model.yaml


class Parts(Mapping[str, dict[str, Tensor]]):
    """Name -> the tensors of one part on the CPU, read and checked against its sha256 when they are asked for."""

    def __init__(self, folder: Path, digests: Mapping[str, str]):
        self._folder, self._digests = folder, dict(digests)

    def __getitem__(self, part: str) -> dict[str, Tensor]:
        if part not in self._digests:
            raise KeyError(f"the model in {self._folder} has no part {part!r}; it has {', '.join(self._digests)}")
        return load(_verified(self._folder, f"{part}.safetensors", self._digests[part]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


@dataclass(frozen=True)
class StoredModel:
    """A verified trained-model folder: `spec` (model.yaml), `parts`, training `facts`; `digest` names its content."""

    folder: Path
    spec: dict[str, Any]
    parts: Parts
    facts: dict[str, Any]
    digest: str


# ---------------------------------------------------------------- write


def save_model(
    folder: str | Path,
    spec: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any] | None = None,
    card: str = "",
) -> Path:
    """Write a trained-model folder: aside, flushed to disk, then renamed, so that a reader never sees half a model.

    An older model in the same place is replaced; other files found in it are kept. Raises ValueError where `folder` holds
    something else, or `spec` is not plain data.
    """
    folder = Path(folder).absolute()
    new, old = _beside(folder, "new"), _beside(folder, "old")
    _recover(folder)
    if folder.exists() and not (folder / "manifest.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"wanted a new folder or a trained model to replace, got {folder}, which holds other things")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        _write(new, spec, parts, facts or {}, card)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _sync(folder.parent)
    _recover(folder)
    return folder


def _write(folder: Path, spec: Mapping, parts: Mapping, facts: Mapping, card: str) -> None:
    (folder / "model.yaml").write_text(_yaml(spec), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    for part, tensors in parts.items():
        if not _PART.fullmatch(part):
            raise ValueError(f"wanted a part name of letters, digits, dots and dashes, got {part!r}")
        odd = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
        if odd:
            raise ValueError(f"part {part!r}: wanted tensors only, got something else in {', '.join(odd)}")
        own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}  # no shared memory
        save_file(own, str(folder / f"{part}.safetensors"))
    files = {file.name: _digest(file.read_bytes()) for file in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "mmldm": __version__, "files": files, "facts": dict(facts)}
    try:
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"wanted plain facts (text, numbers, lists, dicts): {error}") from error
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    for file in [*folder.iterdir(), folder]:
        _sync(file)


def _yaml(spec: Mapping) -> str:
    try:
        return yaml.dump(dict(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    except yaml.YAMLError as error:
        raise ValueError(f"wanted a plain spec (text, numbers, lists, dicts): {' '.join(str(error).split())}") from error


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _beside(folder: Path, word: str) -> Path:
    return folder.with_name(f".{folder.name}.{word}")


def _recover(folder: Path) -> None:
    """Finish or undo a replacement that was interrupted; keep files that people put beside the old model."""
    old = _beside(folder, "old")
    if not old.is_dir():
        return
    if not folder.exists():
        old.rename(folder)
        return
    try:
        listed = {"manifest.json", *json.loads((old / "manifest.json").read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError):
        listed = {"manifest.json"}
    for entry in old.iterdir():
        if entry.name not in listed and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- read


def find_model(path: str | Path) -> Path:
    """The trained-model folder that `path` means: itself, or `path`/model of a run; raises ValueError."""
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "manifest.json").is_file():
            return folder
        spare = _beside(folder.absolute(), "old")  # a replacement was interrupted between its two renames
        if not folder.exists() and (spare / "manifest.json").is_file():
            return spare
    if (path / "resume").is_dir():
        raise ValueError(f"{path} is a run without a trained model yet; train it further with the same command")
    if path.is_dir():
        raise ValueError(
            f"wanted a trained model (a folder with manifest.json) or its run, got {path}; `mmldm runs` lists runs"
        )
    near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    raise ValueError(
        f"there is no trained model {path}{did_you_mean(path.name, near)}; choose the folder of a run: `mmldm runs` lists them"
    )


def load_model(path: str | Path) -> StoredModel:
    """A trained-model folder or its run, every file compared with its sha256 first; raises ValueError for what does not fit."""
    folder = find_model(path)
    raw = (folder / "manifest.json").read_bytes()
    try:
        manifest = json.loads(raw)
        number, files, facts = int(manifest["format"]), dict(manifest["files"]), dict(manifest.get("facts", {}))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / 'manifest.json'}: not a manifest of a trained model") from error
    if number > FORMAT:
        raise ValueError(
            f"{folder} was written by mmldm {manifest.get('mmldm')}, this is {__version__}: update mmldm to read it"
        )
    strange = [
        n for n in files if not _PART.fullmatch(n) or not (n in ("model.yaml", "README.md") or n.endswith(".safetensors"))
    ]
    if strange or "model.yaml" not in files:
        raise ValueError(f"{folder / 'manifest.json'}: wanted model.yaml and .safetensors files, got {', '.join(files)}")
    text = _verified(folder, "model.yaml", files["model.yaml"])
    weights = {n.removesuffix(".safetensors"): d for n, d in files.items() if n.endswith(".safetensors")}
    for name, digest in files.items():
        _verified(folder, name, digest, keep=False)
    return StoredModel(folder, _spec(folder, text), Parts(folder, weights), facts, _digest(raw))


def _verified(folder: Path, name: str, digest: str, keep: bool = True) -> bytes:
    """The bytes of a file (or none of them), compared as they are read: what was checked is what is used."""
    try:
        with (folder / name).open("rb") as file:
            data = file.read() if keep else b""
            found = _digest(data) if keep else hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{folder / name}: listed in manifest.json but not readable ({error.strerror})") from error
    if found != digest:
        raise ValueError(f"{folder / name}: changed since the model was saved (sha256 differs); get the model again")
    return data


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not used in model.yaml")
        return super().compose_node(parent, index)


def _spec(folder: Path, text: bytes) -> dict[str, Any]:
    try:
        if len(text) > _SPEC_LIMIT:
            raise yaml.YAMLError(f"wanted at most {_SPEC_LIMIT} bytes, got {len(text)}")
        spec = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / 'model.yaml'}: {' '.join(str(error).split())}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{folder / 'model.yaml'}: wanted a mapping, got {type(spec).__name__}")
    return spec
