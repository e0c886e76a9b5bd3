"""One file of a cache: the entries of some addresses as safetensors, written at once, named after what it holds, verifiable."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

__all__ = ["DTYPES", "Shard", "address", "flat", "head", "save", "shards_of", "write_shard"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SUFFIX = ".safetensors"


def address(*facts: Any) -> bytes:
    """What an entry is stored under: sha256 of all that it depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def flat(addresses: np.ndarray) -> np.ndarray:
    """Addresses (N, 32) uint8 as N strings of bytes, to sort and to compare."""
    return np.ascontiguousarray(addresses).reshape(-1, 32).view("S32")[:, 0]


def shards_of(folder: Path, kind: str) -> list[str]:
    """The names of the shards of one kind, sorted."""
    return sorted(path.name for path in folder.glob(f"{kind}-*{SUFFIX}"))


def write_shard(folder: Path, kind: str, addresses: np.ndarray, tensors: Mapping[str, Tensor], facts: Any = None) -> Path:
    """Write the entries of `addresses` (N, 32) as one file; the same entries give the same name and the same bytes."""
    tensors = {"address": torch.from_numpy(addresses), **tensors}
    path = folder / f"{kind}-{hashlib.sha256(addresses.tobytes()).hexdigest()[:32]}{SUFFIX}"
    save(path, tensors, {"facts": facts, "sha256": _digest(tensors, facts)})
    return path


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file of safetensors aside and give it its name when it is on the disk; raises OSError with what to do."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    metadata = {"facts": json.dumps(facts, sort_keys=True)}  # one key: the order of several is not defined
    data = serialise({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = "no space is left; make room" if error.errno == errno.ENOSPC else f"{error.strerror}; put it right"
        raise OSError(f"{path.parent}: cannot write the cache: {reason} and run the same command again") from error


def head(path: Path) -> str:
    """The size of a file and a digest of its header, in one word; raises ValueError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if 0 < size < 1 << 28 else b""
            return f"{os.fstat(file.fileno()).st_size}-{hashlib.sha256(header).hexdigest()[:16]}"
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None


def _digest(tensors: Mapping[str, Tensor], facts: Any) -> str:
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} is damaged ({reason}); run `mmldm encode` again: it makes this part anew")


class Shard:
    """A file of safetensors, its tensors mapped into memory, and `facts`, what was written with them.

    Raises ValueError where it is damaged, PermissionError where it may not be read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = safe_open(path, "pt")
            self.names = tuple(self._file.keys())
            told = json.loads(self._file.metadata()["facts"])
            self.facts, self._digest = told["facts"], told.get("sha256")
        except PermissionError:
            raise
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, str(error).splitlines()[0][:100] if str(error) else type(error).__name__) from None
        self._tensors: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = self._file.get_tensor(name)
        return self._tensors[name]

    @property
    def addresses(self) -> np.ndarray:
        """(N, 32) uint8."""
        return self["address"].numpy()

    @property
    def unreadable(self) -> np.ndarray:
        """(N,) True for the entries that could not be read, whose numbers and reasons are the facts of a shard of latents."""
        return np.isin(np.arange(len(self.addresses)), [int(entry) for entry in self.facts or ()])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return tuple(self._file.get_slice(name).get_shape())

    def verify(self) -> None:
        """Read everything; raises ValueError unless it is what was written."""
        if _digest({name: self._file.get_tensor(name) for name in self.names}, self.facts) != self._digest:
            raise _damaged(self.path, "its digest differs")


def intact(paths: Iterable[Path]) -> list[bool]:
    """Which of the files hold what was written."""
    found = []
    for path in paths:
        try:
            Shard(path).verify()
            found.append(True)
        except ValueError:
            found.append(False)
    return found
