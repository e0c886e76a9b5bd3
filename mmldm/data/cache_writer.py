"""Encoding into a cache: what it lacks of a data set, in blocks that any process may write, each one shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmldm.data.batch import FieldReaders, Item, collate
from mmldm.data.buckets import Buckets
from mmldm.data.cache import LATENTS, LatentCache, clip_addresses, write_items, write_places
from mmldm.data.cache_clips import Wanted, seconds_of, wanted_clips
from mmldm.data.cache_index import open_index, read_index, write_index
from mmldm.data.cache_shard import DTYPES, Shard, flat, intact, shards_of, write_shard
from mmldm.data.dataset import load_clips, worker_context
from mmldm.data.source import Source
from mmldm.interfaces import Media, MediaError, Posterior

__all__ = ["CacheWriter", "Together", "begin", "blocks_of", "missing_of", "progress_bar", "write_cache"]

Encode = Callable[[str, Tensor], Posterior]
Loaded = list[tuple[int, Item | str]]


class Together:
    """Processes that write one cache: which of `world` this is, and `exchange(value, rank)`, by which all get that rank's."""

    def __init__(self, rank: int = 0, world: int = 1, exchange: Callable[[Any, int], Any] | None = None):
        self.rank, self.world = rank, world
        self._exchange = exchange or (lambda value, rank: value)

    def map(self, function: Callable[[Sequence], list], values: Sequence) -> list:
        """`function(values)`, a list of one result per value, each process computing its share."""
        mine, results = function(values[self.rank :: self.world]), [None] * len(values)
        for rank in range(self.world):
            results[rank :: self.world] = self._exchange(mine, rank)
        return results

    def first(self, value: Any) -> Any:
        """The first process's value."""
        return self._exchange(value, 0)


def begin(folder: str | Path, parts: Mapping[str, Any], dtype: str = "float32") -> Path:
    """Make the folder of a cache, or see that it is one of the same parts and dtype; raises ValueError."""
    folder = Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"wanted a dtype to store, got {dtype!r}; choose from {', '.join(DTYPES)}")
    if read_index(folder) is not None:
        open_index(folder, parts, dtype)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_index(folder, parts, dtype)
    return folder


def blocks_of(missing: np.ndarray, batch_size: int, block: int, together: Together) -> list[np.ndarray]:
    """This process's blocks of what is missing: whole batches, about `block` entries, none so large that processes idle."""
    batches = min(-(-block // batch_size), -(-len(missing) // (4 * together.world * batch_size)))
    size = batch_size * max(1, batches)
    return [missing[i : i + size] for i in range(0, len(missing), size)][together.rank :: together.world]


def missing_of(folder: Path, kind: str, addresses: np.ndarray, together: Together) -> tuple[np.ndarray, list[str]]:
    """Which of the addresses (N, 32) no shard holds, each once, and the damaged shards, which are removed.

    What a shard says it could not read is not held: it is tried again.
    """
    files = together.first(shards_of(folder, kind))
    good = together.map(lambda names: intact(folder / name for name in names), files)
    shards = [Shard(folder / name) for name, fine in zip(files, good, strict=True) if fine]
    there = [shard.addresses[~shard.unreadable] for shard in shards]
    damaged = [name for name, fine in zip(files, good, strict=True) if not fine]
    for name in damaged if together.rank == 0 else ():
        (folder / name).unlink()
    strings = flat(addresses)
    _, first = np.unique(strings, return_index=True)
    first.sort()
    known = flat(np.concatenate(there)) if there else np.zeros(0, dtype="S32")
    return first[~np.isin(strings[first], known)], damaged


class _Loads(Dataset):
    """Clips, each an Item or the reason why it cannot be read."""

    def __init__(self, source: Source, wanted: Wanted):
        self.source, self.wanted = source, wanted

    def __len__(self) -> int:
        return len(self.wanted.clips)

    def __getitem__(self, clip: int) -> tuple[int, Item | str]:
        index, start = int(self.wanted.clips.index[clip]), float(self.wanted.clips.start[clip])
        try:
            return clip, Item(
                clip, index, start, load_clips(self.source, index, start, self.wanted.medias[self.wanted.kind[clip]])
            )
        except MediaError as error:
            return clip, error.reason


class CacheWriter:
    """One process's part of encoding a source into a cache folder that `begin` made.

    `loader` yields the clips that are missing; `add` encodes what it yields and writes each block as a shard when it is
    whole; `finish`, in one process when all are done, writes where the clips are. `limit`: the first items only; `crops`:
    so many keyed random clips of each item instead of consecutive windows; `block`: clips in a shard, about; `buckets`: the
    lengths and sizes that items are read in.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        media: Mapping[str, Media],
        batch_size: int = 16,
        limit: int | None = None,
        crops: int | None = None,
        seed: int = 0,
        block: int = 1024,
        together: Together | None = None,
        buckets: Buckets | None = None,
    ):
        if crops is not None and crops < 1:
            raise ValueError(f"wanted crops of at least 1, or null for consecutive windows, got {crops}")
        together, index = together or Together(), open_index(folder, None)
        for part in folder.glob("*.part") if together.rank == 0 else ():  # of runs that were killed
            part.unlink(missing_ok=True)
        self.folder, self.dtype, self.batch_size = folder, DTYPES[index["dtype"]], batch_size
        count = min(len(source), limit or len(source))
        with ThreadPoolExecutor(8) as pool:
            keys = together.map(lambda numbers: list(pool.map(source.key, numbers)), range(count))
        self.rows = [source.row(i) for i in range(count)]
        self.wanted = wanted_clips(source, media, keys, crops, seed, buckets)
        self.addresses = clip_addresses(index["parts"], self.wanted.keys, self.wanted.clips)
        missing, self.damaged = missing_of(folder, LATENTS, self.addresses, together)
        alike = [missing[self.wanted.kind[missing] == kind] for kind in range(len(self.wanted.medias))]
        self.blocks = [part for clips in alike for part in blocks_of(clips, batch_size, block, together)]
        if together.rank == 0:
            seconds = [seconds_of(source, i) for i in range(count)]
            write_items(folder, keys, self.rows, seconds, self.wanted.clips, self.addresses)
        self._source, self._queue = source, list(self.blocks)
        self._clear()

    def __len__(self) -> int:
        """Clips that this process has to encode."""
        return sum(map(len, self.blocks))

    def loader(self, workers: int = 0) -> DataLoader:
        """The clips of this process's blocks in batches."""
        size = self.batch_size
        batches = [block[i : i + size].tolist() for block in self.blocks for i in range(0, len(block), size)]
        context = worker_context() if workers and batches else None
        return DataLoader(_Loads(self._source, self.wanted), batch_sampler=batches, collate_fn=list,
                          num_workers=workers if batches else 0, multiprocessing_context=context)  # fmt: skip

    def _clear(self) -> None:
        self._done, self._bad = 0, {}
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, loaded: Loaded, encode: Encode) -> None:
        """Encode the next batch of the loader; `encode(stream, x)` maps media (B, C, *S) on the CPU to a Posterior."""
        place = {clip: self._done + i for i, (clip, _) in enumerate(loaded)}
        self._bad |= {str(place[clip]): reason for clip, reason in loaded if isinstance(reason, str)}
        good = [item for _, item in loaded if isinstance(item, Item)]
        if good:
            batch = collate(good, self.wanted.medias[self.wanted.kind[good[0].position]], FieldReaders())
            for stream, x in batch.media.items():
                with torch.no_grad():
                    self._keep(stream, encode(stream, x), batch.valid[stream], [place[item.position] for item in good])
        self._done += len(loaded)
        if self._done == len(self._queue[0]):
            self._write(self._queue.pop(0))

    def _keep(self, stream: str, posterior: Posterior, valid: Tensor, places: list[int]) -> None:
        there = valid.reshape(len(valid), -1).ne(0).any(1).nonzero()[:, 0]
        parts = {"mean": posterior.mean, "std": posterior.std}
        parts = {name: part.detach().cpu()[there].to(self.dtype) for name, part in parts.items() if part is not None}
        if odd := [name for name, part in parts.items() if not part.isfinite().all()]:
            narrow = " in float16; choose cache.dtype=bfloat16 or float32" if self.dtype is torch.float16 else ""
            raise ValueError(f"{stream}: wanted finite latents, got a {odd[0]} that is not{narrow}")
        parts |= {"valid": valid, "place": torch.tensor(places), "there": torch.tensor(places)[there]}
        for name, part in parts.items():
            self._parts.setdefault(f"{stream}/{name}", []).append(part)

    def _write(self, block: np.ndarray) -> None:
        tensors, parts = {}, {name: torch.cat(part) for name, part in self._parts.items()}
        for stream in {name.rpartition("/")[0] for name in parts}:
            valid, place, there = (parts.pop(f"{stream}/{name}") for name in ("valid", "place", "there"))
            row = torch.full((len(block),), -1, dtype=torch.int32)
            row[there] = torch.arange(len(there), dtype=torch.int32)
            tensors[f"{stream}/row"] = row
            tensors[f"{stream}/valid"] = torch.zeros(len(block), valid.shape[1], dtype=torch.int32)
            tensors[f"{stream}/valid"][place] = valid.int()
            if f"{stream}/std" in parts:
                parts[f"{stream}/std"] = _compact(parts[f"{stream}/std"])
        write_shard(self.folder, LATENTS, self.addresses[block], {**tensors, **parts}, self._bad)
        self._clear()

    def finish(self) -> LatentCache:
        """Write where the clips are, once every process has written its blocks, and open the cache."""
        write_places(self.folder)
        return LatentCache(self.folder)


def _compact(std: Tensor) -> Tensor:
    """A std that is one number per entry as that number, (N, 1, …)."""
    one = std[(slice(None), *[slice(0, 1)] * (std.ndim - 1))]
    return one if torch.equal(std, one.expand_as(std)) else std


def progress_bar(shown: bool) -> Progress:
    """A bar on stderr, or an invisible one."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def write_cache(
    folder: str | Path,
    source: Source,
    media: Mapping[str, Media],
    encode: Encode,
    parts: Mapping[str, Any],
    batch_size: int = 16,
    workers: int = 0,
    limit: int | None = None,
    crops: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    block: int = 1024,
    progress: bool = True,
    buckets: Buckets | None = None,
) -> LatentCache:
    """Encode a source into a cache folder in this process, what is there already excepted; see CacheWriter.

    `parts` is what the latents depend on besides the files. Raises ValueError where other parts made the folder.
    """
    writer = CacheWriter(begin(folder, parts, dtype), source, media, batch_size, limit, crops, seed, block, None, buckets)
    with progress_bar(progress) as bar:
        task = bar.add_task("encoding", total=len(writer))
        for loaded in writer.loader(workers):
            writer.add(loaded, encode)
            bar.advance(task, len(loaded))
    return writer.finish()
