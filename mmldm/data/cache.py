"""Posteriors on disk: shards of safetensors with an index, addressed by content, written atomically, read by memory map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmldm.data.dataset import Clips
from mmldm.interfaces import Posterior

__all__ = ["CacheWriter", "LatentCache"]

FORMAT = 1
INDEX, ROWS = "index.json", "rows.jsonl"


def _plain(value: Any) -> Any:
    """What json cannot write (numpy scalars, arrays, tensors) as plain values."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _address(key: str, start: float) -> tuple[str, float]:
    """What a shard calls a clip."""
    return hashlib.sha256(key.encode()).hexdigest(), float(start)


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _read_index(folder: Path, fingerprint: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"wanted a folder of cached latents, got {folder}: it has no {INDEX}; make one with `mmldm encode`"
        ) from None
    if index.get("format") != FORMAT:
        raise ValueError(f"{folder}: wanted a cache of format {FORMAT}, got {index.get('format')}")
    if fingerprint is not None:
        wanted, found = json.loads(json.dumps(fingerprint, default=_plain)), index["fingerprint"]
        names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        if names:
            told = "; ".join(f"{name}: wanted {wanted.get(name)}, the cache has {found.get(name)}" for name in names)
            raise ValueError(f"{folder}: these latents were made by other parts ({told}); encode into another folder")
    return index


class CacheWriter:
    """Adds posteriors to a cache folder; re-opening it continues, and refuses another `fingerprint` (codec digests, media).

    A clip is addressed by (`key` of its item's content, `start` in seconds). A batch becomes durable when the shard it is
    in is written, all its streams at once: on `shard_bytes`, `flush` or `close`.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, Any], shard_bytes: int = 256 << 20):
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / INDEX).exists():
            self._index = _read_index(self.folder, fingerprint)
        else:
            plain = json.loads(json.dumps(fingerprint, default=_plain))
            self._index = {"format": FORMAT, "fingerprint": plain, "shards": [], "faults": []}
            self._commit()
        self._there = {clip for shard in self._index["shards"] for clip in _clips(load_file(self.folder / shard["file"]))}
        self._faults = {(key, start) for key, start, _ in self._index["faults"]}
        self._clear()

    def _clear(self) -> None:
        self._clips: list[tuple[str, float]] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._bytes = 0

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write what the items are, in the source's order: {"key", "seconds", "starts": their windows, "row": their fields}."""
        _write(self.folder / ROWS, "".join(json.dumps(r, ensure_ascii=False, default=_plain) + "\n" for r in rows))

    def has(self, key: str, start: float) -> bool:
        """True where the clip is stored, waits to be, or is known to be unreadable."""
        clip = _address(key, start)
        return clip in self._there or clip in self._faults

    def fault(self, key: str, start: float, reason: str) -> None:
        """Remember a clip that cannot be read."""
        clip = _address(key, start)
        self._index["faults"].append([*clip, reason])
        self._faults.add(clip)

    def add(self, keys: Sequence[str], starts: Sequence[float] | Tensor, latents: Mapping[str, Posterior],
            valid: Mapping[str, Tensor]) -> None:  # fmt: skip
        """Store a batch of clips: latents[stream] of (B, D, *L), valid[stream] (B, axes), all 0 where the stream is absent."""
        shapes = {s: tuple(p.mean.shape[1:]) for s, p in latents.items()}
        if any(f"{s}/mean" in self._parts and self._parts[f"{s}/mean"][0].shape[1:] != shape for s, shape in shapes.items()):
            self.flush()
        for stream, posterior in latents.items():
            rows = valid[stream].cpu().reshape(len(keys), -1).ne(0).any(1).nonzero()[:, 0]
            parts = {"mean": posterior.mean, "std": posterior.std, "valid": valid[stream]}
            parts = {name: part.detach().cpu()[rows].contiguous() for name, part in parts.items() if part is not None}
            parts["clip"] = rows + len(self._clips)
            for name, part in parts.items():
                self._parts.setdefault(f"{stream}/{name}", []).append(part)
                self._bytes += part.nbytes
        new = [_address(key, start) for key, start in zip(keys, starts, strict=True)]
        self._clips += new
        self._there.update(new)
        if self._bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one shard."""
        if self._clips:
            tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
            tensors["key"] = torch.tensor([list(bytes.fromhex(key)) for key, _ in self._clips], dtype=torch.uint8)
            tensors["start"] = torch.tensor([start for _, start in self._clips], dtype=torch.float64)
            name = f"{len(self._index['shards']):05d}.safetensors"
            save_file(tensors, self.folder / (name + ".part"))
            os.replace(self.folder / (name + ".part"), self.folder / name)
            self._index["shards"].append({"file": name, "clips": len(self._clips)})
        self._commit()
        self._clear()

    def _commit(self) -> None:
        _write(self.folder / INDEX, json.dumps(self._index, indent=1))

    def close(self) -> None:
        """Write what waits."""
        self.flush()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _clips(tensors: Mapping[str, Tensor]) -> list[tuple[str, float]]:
    keys = tensors["key"].numpy()
    return [(key.tobytes().hex(), start) for key, start in zip(keys, tensors["start"].tolist(), strict=True)]


class _Stream:
    """The stored rows of one stream over all shards: in memory as one tensor where they fit and agree in shape, else mapped."""

    def __init__(self, shards: list[dict[str, Tensor]], stream: str, in_memory: bool):
        self.mean, self.std = ([s[f"{stream}/{part}"] for s in shards if f"{stream}/{part}" in s] for part in ("mean", "std"))
        self.ends = np.cumsum([len(m) for m in self.mean])
        self.shapes = {tuple(m.shape[1:]) for m in self.mean}
        if in_memory and len(self.shapes) == 1:
            self.mean = [torch.cat(self.mean)]
            self.std = [torch.cat(self.std)] if self.std else []
            self.ends = self.ends[-1:]

    def rows(self, rows: np.ndarray) -> Posterior:
        """Posterior (B, D, *L) of these rows; row -1 (absent) is zeros."""
        absent = rows < 0
        if not self.ends[-1]:
            nothing = torch.zeros(len(rows), *self.mean[0].shape[1:])
            return Posterior(nothing, nothing.clone() if self.std else None)
        rows = np.where(absent, 0, rows)
        mean, std = self._gather(self.mean, rows), self._gather(self.std, rows) if self.std else None
        if absent.any():
            mean[absent] = 0
            std = None if std is None else std.index_fill(0, torch.from_numpy(np.flatnonzero(absent)), 0)
        return Posterior(mean, std)

    def _gather(self, parts: list[Tensor], rows: np.ndarray) -> Tensor:
        if len(parts) == 1:
            return parts[0].index_select(0, torch.from_numpy(rows))
        part = np.searchsorted(self.ends, rows, side="right")
        begins = self.ends - np.array([len(p) for p in parts])
        return torch.stack([parts[p][r - begins[p]] for p, r in zip(part.tolist(), rows.tolist(), strict=True)])


class LatentCache:
    """A cache folder, open for reading: `items` (what the source's items were) and `clips`, the windows of all items in order.

    `items[i]` is {"key", "seconds", "starts", "row"}; `unreadable` (clips,) is True where a clip could not be decoded.
    Loaded into memory where it is smaller than `memory_bytes`. Raises ValueError where the fingerprint differs or clips
    are missing.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, Any] | None = None, memory_bytes: int = 8 << 30):
        self.folder = Path(folder)
        index = _read_index(self.folder, fingerprint)
        self.fingerprint: dict[str, Any] = index["fingerprint"]
        if not (self.folder / ROWS).exists():
            raise ValueError(f"{self.folder}: wanted a finished cache, got one without {ROWS}; run `mmldm encode` again")
        with open(self.folder / ROWS, encoding="utf-8") as lines:
            self.items: list[dict[str, Any]] = [json.loads(line) for line in lines]
        shards = [load_file(self.folder / shard["file"]) for shard in index["shards"]]
        bad = {(key, start) for key, start, _ in index["faults"]}
        wanted = [_address(item["key"], start) for item in self.items for start in item["starts"]]
        place = {clip: i for i, clip in enumerate(clip for shard in shards for clip in _clips(shard))}
        missing = [clip for clip in wanted if clip not in place and clip not in bad]
        if missing or not place:
            raise ValueError(f"{self.folder}: wanted {len(wanted)} clips, {len(missing)} are missing; run `mmldm encode` again")
        self.clips = Clips(np.repeat(np.arange(len(self.items)), [len(item["starts"]) for item in self.items]),
                           np.array([start for item in self.items for start in item["starts"]], dtype=np.float64))  # fmt: skip
        self.unreadable = np.array([clip not in place for clip in wanted])
        self.bytes = sum(t.nbytes for shard in shards for t in shard.values())
        self._open(shards, np.array([place.get(clip, -1) for clip in wanted]), self.bytes <= memory_bytes)

    def _open(self, shards: list[dict[str, Tensor]], place: np.ndarray, in_memory: bool) -> None:
        names = sorted({name.split("/")[0] for shard in shards for name in shard if name.endswith("/mean")})
        sizes = [len(shard["start"]) for shard in shards]
        self._streams, self._row, self._valid = {}, {}, {}
        for name in names:
            self._streams[name] = _Stream(shards, name, in_memory)
            first = np.cumsum([0, *sizes[:-1]])
            there = np.concatenate(
                [s[f"{name}/clip"].numpy() + f for s, f in zip(shards, first, strict=True) if f"{name}/clip" in s]
            )
            row = np.full(sum(sizes) + 1, -1)
            row[there] = np.arange(len(there))
            self._row[name] = row[place]  # place -1 reads the last, which is -1
            stored = torch.cat([s[f"{name}/valid"] for s in shards if f"{name}/valid" in s])
            stored = torch.cat([stored, stored.new_zeros(1, *stored.shape[1:])])
            self._valid[name] = stored[torch.from_numpy(self._row[name])]

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the cached streams."""
        return tuple(self._streams)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The fields of the items."""
        return [item["row"] for item in self.items]

    def __len__(self) -> int:
        """Clips."""
        return len(self.clips)

    def batch(self, entries: Sequence[int] | np.ndarray) -> tuple[dict[str, Posterior], dict[str, Tensor]]:
        """Clip numbers -> (latents, valid) by stream; an absent stream is zeros with valid 0."""
        entries = np.asarray(entries, dtype=np.int64)
        picked = torch.from_numpy(entries)
        return ({s: stream.rows(self._row[s][entries]) for s, stream in self._streams.items()},
                {s: valid[picked] for s, valid in self._valid.items()})  # fmt: skip
