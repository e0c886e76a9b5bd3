"""Numbered checkpoints in a folder: each is there whole with its digests, or not at all, and the newest whole one is found."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["Checkpoints", "HashedIO", "flush_folder"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


class Checkpoints:
    """Files (or folders, of a sharded save) `step-00001000.ckpt` in a folder, each beside a manifest of sizes and sha256.

    One is written under the name `begin` gives; `commit` flushes it, writes its manifest and renames it: a process killed at
    any moment leaves the checkpoints before, whole. The newest `keep` stay.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f"wanted to keep 1 checkpoint or more, got {keep}")
        self.folder, self.keep = Path(folder), keep
        self._seen: dict[Path, tuple[tuple, str | None]] = {}  # what was read, as it was then, and its fault
        self._told: set[str] = set()  # damages that were said

    def path(self, step: int) -> Path:
        """Where the checkpoint of an optimiser step is."""
        return self.folder / f"step-{step:08d}.ckpt"

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, whole or not, in order."""
        return sorted(int(match[1]) for p in self.folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(p.name)))

    # -- reading

    def newest(self) -> Path | None:
        """The newest whole checkpoint, None where there are none; raises ValueError where all are damaged.

        A damaged one is passed over, and said.
        """
        faults = []
        for step in reversed(self.steps()):
            fault = self.fault(step)
            if fault is None:
                for told in faults:
                    if told not in self._told:
                        logging.getLogger(__name__).warning("%s; continuing from step %d", told, step)
                self._told.update(faults)
                return self.path(step)
            faults.append(f"{self.path(step)} is damaged ({fault})")
        if faults:
            raise ValueError("\n".join(["wanted a whole checkpoint, got none:", *faults[:2],
                             "choose: put a copy of one and its .json back, or remove the folder to begin again"]))  # fmt: skip
        return None

    def fault(self, step: int) -> str | None:
        """Why the checkpoint of a step is not what was written, None where it is; read once as long as it does not change."""
        path = self.path(step)
        found = _stats(path, self._manifest(step))
        if path not in self._seen or self._seen[path][0] != found:
            self._seen[path] = (found, self._fault(step))
        return self._seen[path][1]

    def _fault(self, step: int) -> str | None:
        path = self.path(step)
        try:
            manifest = json.loads(self._manifest(step).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return "its manifest is missing or unreadable"
        for name, (size, digest) in manifest.items():
            file = path / name if name else path
            if not file.is_file() or file.stat().st_size != size:
                there = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
                return f"{file.name} has {there} instead of {size} bytes"
            try:
                if _digest(file) != digest:
                    return f"the bytes of {file.name} are not those that were written"
            except OSError as error:
                return f"{file.name} cannot be read: {error.strerror}"
        return None

    # -- writing

    def begin(self, step: int) -> Path:
        """The name to write the checkpoint of a step under; what a save that was killed has left is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clear()
        return self.path(step).with_suffix(".ckpt.part")

    def commit(self, step: int, digests: Mapping[Path, tuple[int, str]] | None = None) -> None:
        """Give what was written its name; `digests` (size, sha256) of files that were taken while they were written."""
        part, path = self.path(step).with_suffix(".ckpt.part"), self.path(step)
        files = [p for p in sorted(part.rglob("*")) if p.is_file()] if part.is_dir() else [part]
        found = {}
        for file in files:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            name = file.relative_to(part).as_posix() if part.is_dir() else ""
            found[name] = (digests or {}).get(file) or (file.stat().st_size, _digest(file))
        _remove(path)
        aside = self._manifest(step).with_suffix(".json.part")
        with open(aside, "w", encoding="utf-8") as file:
            json.dump({"step": step, "files": found}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._manifest(step))
        os.replace(part, path)
        flush_folder(self.folder)
        self._seen[path] = (_stats(path, self._manifest(step)), None)
        self._prune(step)

    def clear(self) -> None:
        """Remove what saves that did not come to their end have left."""
        for left in self.folder.glob("step-*.part"):
            _remove(left)

    def _prune(self, newest: int) -> None:
        """Remove what is older than the newest `keep`, and what is later than the step just written: it was damaged."""
        steps = self.steps()
        kept = [step for step in steps if step <= newest][-self.keep :]
        for step in set(steps) - set(kept):
            _remove(self.path(step))
        for manifest in self.folder.glob("step-*.json"):
            if not manifest.with_suffix(".ckpt").exists():
                _remove(manifest)

    def _manifest(self, step: int) -> Path:
        return self.path(step).with_suffix(".json")


class HashedIO(TorchCheckpointIO):
    """Writes checkpoints straight to their files, taking the sha256 of the bytes as they pass: `digests[path]` (size, sha256).

    A file that cannot be written is removed, and OSError says how many bytes were wanted and are free.
    """

    def __init__(self):
        self.digests: dict[Path, tuple[int, str]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        hashed: _Hashed | None = None
        try:
            with open(path, "wb") as file:
                hashed = _Hashed(file)
                torch.save(checkpoint, hashed)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else hashed and hashed.error
            if cause is None:
                raise
            path.unlink(missing_ok=True)
            wanted = sum(x.nbytes for x in tree_leaves(checkpoint) if isinstance(x, Tensor))
            raise _unwritten(cause, path, wanted) from error
        self.digests = {path: (hashed.size, hashed.sha.hexdigest())}


class _Hashed:
    """A file to write to that takes the digest of what passes and remembers what went wrong."""

    def __init__(self, file: Any):
        self.file, self.sha, self.size, self.error = file, hashlib.sha256(), 0, None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.sha.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _unwritten(error: OSError, path: Path, wanted: int) -> OSError:
    """The error of a checkpoint of about `wanted` bytes that could not be written."""
    free = shutil.disk_usage(path.parent).free
    room = f": about {wanted / 1e9:.2f} GB wanted, {free / 1e9:.2f} GB free" if error.errno in FULL else ""
    return OSError(error.errno, f"{os.strerror(error.errno or 0)}{room}", str(path))


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens a folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stats(path: Path, manifest: Path) -> tuple:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files += [manifest] if manifest.is_file() else []
    return tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in map(os.stat, files))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
