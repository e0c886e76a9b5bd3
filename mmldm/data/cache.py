"""The cache of latents: posteriors in shards, addressed by content, and which of them each clip of a data set is.

A folder holds index.json (the parts that made it), items.safetensors (the items and clips that are wanted), shards
(`latents-….safetensors`: entries by address) and places.safetensors (where each clip is: derived from the others).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmldm.data.cache_index import open_index
from mmldm.data.cache_shard import DTYPES, Shard, address, flat, head, save, shards_of
from mmldm.data.dataset import Clips
from mmldm.data.packed import Packed
from mmldm.interfaces import Posterior

__all__ = ["LATENTS", "LatentCache", "clip_addresses", "write_items", "write_places"]

ITEMS, PLACES, LATENTS = "items.safetensors", "places.safetensors", "latents"


def clip_addresses(parts: Mapping[str, Any], keys: Sequence[str], clips: Clips) -> np.ndarray:
    """The addresses (N, 32) of clips: what their latents depend on, the digest of the item's content, and where each begins."""
    made = address(parts).hex()
    told = [address(made, keys[i], start) for i, start in zip(clips.index, clips.start.tolist(), strict=True)]
    return np.frombuffer(bytearray(b"".join(told)), dtype=np.uint8).reshape(-1, 32)


# ---------------------------------------------------------------- what is wanted


def write_items(folder: Path, keys: Sequence[str], rows: Sequence[Mapping[str, Any]], seconds: Sequence[float | None],
                clips: Clips, addresses: np.ndarray) -> None:  # fmt: skip
    """Write what the items are, in the source's order, and the clips (with addresses (N, 32)) that are wanted of them."""
    items = Packed.of({"key": k, "row": row} for k, row in zip(keys, rows, strict=True))
    files: dict[str, int] = {}
    tensors = {
        "group": np.array(
            [files.setdefault(row.get("file", str(i)), len(files)) for i, row in enumerate(rows)], dtype=np.int64
        ),
        "text": items.text,
        "ends": items.ends,
        "seconds": np.array([np.nan if s is None else s for s in seconds], dtype=np.float64),
        "item": clips.index.astype(np.int64),
        "start": clips.start.astype(np.float64),
        "address": addresses,
    }
    digest = hashlib.sha256(b"".join(array.tobytes() for array in tensors.values())).hexdigest()
    (folder / PLACES).unlink(missing_ok=True)
    save(folder / ITEMS, {name: torch.from_numpy(array) for name, array in tensors.items()}, {"facts": digest})


class _Rows(Packed):
    """The fields of the items."""

    def _value(self, index: int) -> dict[str, Any]:
        return super()._value(index)["row"]


# ---------------------------------------------------------------- where it is


def find_clips(folder: Path, addresses: np.ndarray) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where the clips of these addresses (N, 32) are, read from all shards: (arrays of places.safetensors, its facts).

    Raises ValueError where clips are missing or a shard is damaged.
    """
    files = shards_of(folder, LATENTS)
    shards = [Shard(folder / file) for file in files]
    sizes = np.array([len(shard.addresses) for shard in shards], dtype=np.int64)
    there = flat(np.concatenate([s.addresses for s in shards])) if shards else np.zeros(0, dtype="S32")
    bad = np.concatenate([s.unreadable for s in shards]) if shards else np.zeros(0, dtype=bool)
    order, wanted = np.lexsort((bad, there)), flat(addresses)  # of several entries one that could be read
    place = np.searchsorted(there, wanted, sorter=order)
    place = np.append(order, -1)[place]
    found = (place >= 0) & (there[place] == wanted) if len(there) else np.zeros(len(wanted), dtype=bool)
    if not found.all():
        raise ValueError(
            f"{folder}: wanted {len(wanted)} clips, {int((~found).sum())} are missing; run `mmldm encode` again: it continues"
        )
    first = np.cumsum(sizes) - sizes
    shard = np.searchsorted(first + sizes, place, side="right")
    shapes: list[dict[str, list[int]]] = []
    of_shard = [_shape_number(s, shapes) for s in shards]
    told = [{"file": file, "head": head(folder / file), "shape": n} for file, n in zip(files, of_shard, strict=True)]
    streams = sorted({name for shape in shapes for name in shape})
    numbers = {"shard": shard, "entry": place - first[shard], "shape": np.array(of_shard, dtype=np.int64)[shard]}
    arrays = {name: torch.from_numpy(array.astype(np.int32)) for name, array in numbers.items()}
    for stream in streams:
        axes = next(s.shape(f"{stream}/valid")[1] for s in shards if f"{stream}/valid" in s)
        row = [_of(s, f"{stream}/row", lambda n: torch.full((n,), -1, dtype=torch.int32)) for s in shards]
        valid = [_of(s, f"{stream}/valid", lambda n, a=axes: torch.zeros(n, a, dtype=torch.int32)) for s in shards]
        arrays[f"{stream}/row"], arrays[f"{stream}/valid"] = torch.cat(row)[place], torch.cat(valid)[place]
    with_std = sorted({name.removesuffix("/std") for shard in shards for name in shard.names if name.endswith("/std")})
    return arrays, {"shards": told, "shapes": shapes, "with_std": with_std, "unused": len(np.setdiff1d(there, wanted))}


def write_places(folder: Path) -> dict[str, Any]:
    """Write where the clips of items.safetensors are; returns the facts."""
    items = Shard(folder / ITEMS)
    arrays, facts = find_clips(folder, items["address"].numpy())
    save(folder / PLACES, arrays, {"facts": {**facts, "items": items.facts}})
    return facts


def _of(shard: Shard, name: str, otherwise: Any) -> Tensor:
    return shard[name] if name in shard else otherwise(len(shard.addresses))


def _shape_number(shard: Shard, shapes: list[dict[str, list[int]]]) -> int:
    """The number of a shard's latent shapes by stream; 0 where nothing in it could be read."""
    shape = {name.removesuffix("/mean"): list(shard.shape(name)[1:]) for name in shard.names if name.endswith("/mean")}
    if shape and shape not in shapes:
        shapes.append(shape)
    return shapes.index(shape) if shape else 0


def _numbers(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of the same memory, bfloat16 as the integers of its bits."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


class LatentCache:
    """A cache folder, open for reading: its items (`rows`, `key`, `seconds`) and `clips`, the windows of all items in order.

    `unreadable` (clips,) is True where a clip could not be decoded; `shape_of` (clips,) numbers the `shapes`, each {stream:
    (D, *L)}; items of one file have one number in `groups`; `unused` entries of the folder belong to no item. Latents stay on
    the disk, mapped. Raises ValueError where `parts` made other latents, or clips are missing.
    """

    def __init__(self, folder: str | Path, parts: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        index = open_index(self.folder, parts)
        self.parts: dict[str, Any] = index["parts"]
        if not (self.folder / ITEMS).is_file():
            raise ValueError(f"{self.folder}: wanted a finished cache, got one without {ITEMS}; run `mmldm encode` again")
        items = Shard(self.folder / ITEMS)
        arrays, facts = self._places(items)
        packed = items["text"].numpy(), items["ends"].numpy()
        self._items, self._rows, self._seconds = Packed(*packed), _Rows(*packed), items["seconds"].numpy()
        self.clips = Clips(items["item"].numpy(), items["start"].numpy())
        self.unused: int = facts["unused"]
        self.shapes = [{stream: tuple(shape) for stream, shape in shapes.items()} for shapes in facts["shapes"]]
        self.streams: tuple[str, ...] = tuple(sorted({stream for shapes in self.shapes for stream in shapes}))
        self.shape_of, self._shard = arrays["shape"].numpy(), arrays["shard"].numpy()
        self._entry = arrays["entry"].numpy()
        self._row = {stream: arrays[f"{stream}/row"].numpy() for stream in self.streams}
        self._valid = {stream: arrays[f"{stream}/valid"] for stream in self.streams}
        self.unreadable = np.logical_and.reduce([row < 0 for row in self._row.values()])
        if not self.streams:
            raise ValueError(f"{self.folder}: wanted latents, got none: not one of {len(self.clips)} clips could be read")
        self._files = [shard["file"] for shard in facts["shards"]]
        self._with_std, self.groups = set(facts["with_std"]), items["group"].numpy()
        self._dtype = DTYPES[index["dtype"]]
        self._shards: dict[int, Shard] = {}
        self._arrays: dict[tuple[int, str], np.ndarray] = {}

    def _places(self, items: Shard) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Where the clips are: as it was written, or found anew from the shards."""
        if (self.folder / PLACES).is_file():
            places = Shard(self.folder / PLACES)
            if places.facts["items"] == items.facts:
                for shard in places.facts["shards"]:
                    if (found := head(self.folder / shard["file"])) != shard["head"]:
                        what = "size" if found.split("-")[0] != shard["head"].split("-")[0] else "header"
                        raise ValueError(
                            f"{self.folder / shard['file']} is damaged (its {what} differs); "
                            "run `mmldm encode` again: it makes this part anew"
                        )
                return places, places.facts
        return find_clips(self.folder, items["address"].numpy())

    def __reduce__(self):
        return LatentCache, (self.folder,)

    @property
    def rows(self) -> Sequence[dict[str, Any]]:
        """The fields of the items."""
        return self._rows

    def key(self, index: int) -> str:
        """What identifies an item's content."""
        return self._items[index]["key"]

    def seconds(self, index: int) -> float | None:
        """Duration of an item; None for a still."""
        seconds = float(self._seconds[index])
        return None if np.isnan(seconds) else seconds

    def __len__(self) -> int:
        """Clips."""
        return len(self.clips)

    def reason(self, entry: int) -> str:
        """Why a clip could not be read."""
        return self._open(int(self._shard[entry])).facts.get(str(int(self._entry[entry])), "unknown")

    def batch(self, entries: Sequence[int] | np.ndarray) -> tuple[dict[str, Posterior], dict[str, Tensor]]:
        """Clip numbers of one shape -> (latents, valid) by stream, float32; an absent stream is zeros with valid 0."""
        entries = np.asarray(entries, dtype=np.int64)
        numbers = np.unique(self.shape_of[entries])
        if len(numbers) != 1:
            raise ValueError(f"wanted clips of one shape of latents, got {[self.shapes[n] for n in numbers]}")
        shard, shapes = self._shard[entries], self.shapes[numbers[0]]
        picked = torch.from_numpy(entries)
        latents = {s: self._posterior(s, shapes[s], shard, self._row[s][entries]) for s in self.streams}
        return latents, {s: self._valid[s][picked].long() for s in self.streams}

    def _posterior(self, stream: str, shape: tuple[int, ...], shard: np.ndarray, row: np.ndarray) -> Posterior:
        places = [(i, int(shard[i]), int(row[i])) for i in np.flatnonzero(row >= 0)]
        mean, std = (torch.zeros(len(row), *shape, dtype=self._dtype) for _ in range(2))
        for part, into in (("mean", _numbers(mean)), ("std", _numbers(std)))[: 2 if stream in self._with_std else 1]:
            for i, number, r in places:
                into[i] = self._array(number, f"{stream}/{part}")[r]
        return Posterior(mean.float(), std.float() if stream in self._with_std else None)

    def _array(self, number: int, name: str) -> np.ndarray:
        """A tensor of a shard as an array, mapped."""
        if (number, name) not in self._arrays:
            self._arrays[number, name] = _numbers(self._open(number)[name])
        return self._arrays[number, name]

    def _open(self, number: int) -> Shard:
        if number not in self._shards:
            self._shards[number] = Shard(self.folder / self._files[number])
        return self._shards[number]
