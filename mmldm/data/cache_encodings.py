"""The frozen encodings of conditions in a cache: written once for each value, read in place of running the encoder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmldm.data.cache_index import open_index
from mmldm.data.cache_shard import DTYPES, Shard, address, flat, shards_of, write_shard
from mmldm.data.cache_writer import Together, blocks_of, missing_of
from mmldm.interfaces import Conditioner, Encoded, Reader

__all__ = ["EncodingWriter", "StoredEncodings"]

BY_TOKEN = ("tokens", "mask", "positions")  # of an encoding with a mask: what has one row per token


def _kind(digest: str) -> str:
    return f"encodings-{digest[:16]}"


def _addresses(values: Sequence[Any]) -> np.ndarray:
    return np.frombuffer(bytearray(b"".join(address("value", v) for v in values)), dtype=np.uint8).reshape(-1, 32)


def _by_token(encoded: Collection[str]) -> list[str]:
    return [name for name in BY_TOKEN if name in encoded] if "mask" in encoded else []


class EncodingWriter:
    """One process's part of storing `conditioner.encode` of every value of its field in `rows`, and of a missing one.

    `digest` says what the encoding depends on besides the value. Tokens are stored without padding.
    """

    def __init__(self, conditioner: Conditioner, digest: str, folder: Path, rows: Sequence[Mapping[str, Any]],
                 batch_size: int = 16, together: Together | None = None, block: int = 1024):  # fmt: skip
        together = together or Together()
        self.folder, self.conditioner, self.digest, self.batch_size = folder, conditioner, digest, batch_size
        self.dtype = DTYPES[open_index(folder, None)["dtype"]]
        self.values = list(dict.fromkeys([None, *(row.get(conditioner.key) for row in rows)]))
        self.addresses = _addresses(self.values)
        missing, self.damaged = missing_of(folder, _kind(digest), self.addresses, together)
        self.blocks = blocks_of(missing, batch_size, block, together)

    def __len__(self) -> int:
        """Values that this process has to encode."""
        return sum(map(len, self.blocks))

    def write(self, block: np.ndarray, device: torch.device | str = "cpu") -> None:
        """Encode the values of a block and write them as one shard."""
        parts: dict[str, list[Tensor]] = {}
        for first in range(0, len(block), self.batch_size):
            values = [self.values[i] for i in block[first : first + self.batch_size]]
            for name, part in self._encode(values, device).items():
                parts.setdefault(name, []).append(part)
        tensors = {name: torch.cat(part) for name, part in parts.items()}
        write_shard(self.folder, _kind(self.digest), self.addresses[block], tensors)

    @torch.no_grad()
    def _encode(self, values: list[Any], device: torch.device | str) -> dict[str, Tensor]:
        reader = self.conditioner.reader
        read = reader.collate([None if value is None else reader(value) for value in values])
        encoded = self.conditioner.encode({name: tensor.to(device) for name, tensor in read.items()})
        tensors = encoded.values() if isinstance(encoded, Mapping) else [None]
        if not all(isinstance(tensor, Tensor) and len(tensor) == len(values) for tensor in tensors):
            raise ValueError(f"wanted an encoding as a dict of tensors (B, …), got {type(encoded).__name__}")
        encoded = {name: t.cpu().to(self.dtype) if t.is_floating_point() else t.cpu() for name, t in encoded.items()}
        lengths = torch.ones(len(values), dtype=torch.int64)
        if tokenwise := _by_token(encoded):
            count = torch.arange(1, encoded["mask"].shape[1] + 1)
            lengths = (encoded["mask"] * count).amax(1)
            within = count[None] <= lengths[:, None]
            encoded |= {name: encoded[name][within] for name in tokenwise}
        return {**encoded, "length": lengths}


class StoredEncodings(Reader):
    """Reads a value of a field as the number of its stored encoding, and collates such numbers to the encodings themselves.

    `digest` chooses the conditioner; raises ValueError for a value that is not stored.
    """

    def __init__(self, folder: str | Path, digest: str):
        self.folder, self.digest = Path(folder), digest
        self._shards = [Shard(self.folder / file) for file in shards_of(self.folder, _kind(digest))]
        if not self._shards:
            raise ValueError(f"{folder}: wanted encodings of this conditioner, got none; run `mmldm encode` with conditions=…")
        there = flat(np.concatenate([shard.addresses for shard in self._shards]))
        self._order = np.argsort(there, kind="stable")
        self._sorted = there[self._order]
        self._begins = np.cumsum([0, *(len(shard.addresses) for shard in self._shards)])
        self._ends = [torch.cumsum(shard["length"], 0) for shard in self._shards]

    @staticmethod
    def there(folder: str | Path, digest: str) -> bool:
        """Whether a folder holds encodings of this conditioner."""
        return bool(shards_of(Path(folder), _kind(digest)))

    def __reduce__(self):
        return StoredEncodings, (self.folder, self.digest)

    def __call__(self, value: Any) -> int:
        return self._number(value)

    def _number(self, value: Any) -> int:
        wanted = flat(_addresses([value]))
        place = int(np.searchsorted(self._sorted, wanted)[0])
        if place == len(self._sorted) or self._sorted[place] != wanted[0]:
            raise ValueError(
                f"{self.folder}: has no encoding of {str(value)[:80]!r}; run `mmldm encode` again with conditions=…"
            )
        return int(self._order[place])

    def collate(self, items: list[int | None]) -> Encoded:
        """Numbers -> the encodings of a batch, tokens padded to the longest; a missing value is the encoding of none."""
        columns: dict[str, list[Tensor]] = {}
        for number in [self._number(None) if item is None else item for item in items]:
            for name, tensor in self._entry(number):
                columns.setdefault(name, []).append(tensor)
        joined = {}
        for name, column in columns.items():
            if name in _by_token(columns):
                joined[name] = torch.nn.utils.rnn.pad_sequence(column, batch_first=True)
            else:
                joined[name] = torch.stack(column)
        return Encoded(joined)

    def _entry(self, number: int) -> Iterator[tuple[str, Tensor]]:
        which = int(np.searchsorted(self._begins, number, side="right")) - 1
        shard, row, ends = self._shards[which], number - int(self._begins[which]), self._ends[which]
        tokenwise = _by_token(shard.names)
        for name in shard.names:
            if name not in ("address", "length"):
                here = slice(int(ends[row - 1]) if row else 0, int(ends[row])) if name in tokenwise else row
                part = shard[name][here]
                yield name, part.float() if part.is_floating_point() else part.clone()
