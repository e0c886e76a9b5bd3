"""What a cache of latents costs at 10^4, 10^5 and 10^6 entries: opening, memory, random reading.

    python tools/bench/cache.py --folder DIR [--entries 10000 100000 1000000] [--dtype float16]

Writes synthetic entries (latents of 4 x 8 x 8 with a mean and a std, a caption each) into DIR and measures in a process of its
own each: seconds to open and to split, private memory that this adds, samples per second in random order.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

BLOCK, BATCH, SHAPE, PARTS = 4096, 64, (4, 8, 8), {"image": {"codec": "synthetic", "media": "synthetic"}}


def write(folder: Path, entries: int, dtype: str) -> None:
    """A cache of `entries` items of one clip each."""
    from mmldm.data.cache import LATENTS, clip_addresses, write_items, write_places
    from mmldm.data.cache_shard import DTYPES, write_shard
    from mmldm.data.cache_writer import begin
    from mmldm.data.dataset import Clips

    begin(folder, PARTS, dtype)
    keys, clips = [f"item {i}" for i in range(entries)], Clips(np.arange(entries), np.zeros(entries))
    addresses = clip_addresses(PARTS, keys, clips)
    rows = [
        {"file": f"folder/file{i:07d}.png", "text": f"a synthetic caption of some length, number {i}"} for i in range(entries)
    ]
    write_items(folder, keys, rows, [None] * entries, clips, addresses)
    for first in range(0, entries, BLOCK):
        n = min(BLOCK, entries - first)
        z = torch.randn(2, n, *SHAPE, generator=torch.Generator().manual_seed(first)).to(DTYPES[dtype])
        row, valid = torch.arange(n, dtype=torch.int32), torch.full((n, 2), 64, dtype=torch.int32)
        tensors = {"image/mean": z[0], "image/std": z[1].abs(), "image/row": row, "image/valid": valid}
        write_shard(folder, LATENTS, addresses[first : first + n], tensors)
    write_places(folder)


def memory() -> tuple[float, float]:
    """Megabytes of this process: private, and mapped from files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(status[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile"))


def measure(folder: Path) -> str:
    """Seconds to open, seconds to split, private and mapped MB, samples per second from the disk and again."""
    from mmldm.data.cache import LatentCache
    from mmldm.data.cached import CachedDataset
    from mmldm.data.source import split

    before, start = memory(), time.perf_counter()
    cache = LatentCache(folder, PARTS)
    opened, after = time.perf_counter() - start, memory()
    start = time.perf_counter()
    train, _ = split(cache, 100, 0)
    parted, data, rates = time.perf_counter() - start, CachedDataset(cache, entries=cache.clips.of(train)), []
    for first in (0, 0):
        start = time.perf_counter()
        for position in range(first, first + 40 * BATCH, BATCH):
            data.__getitems__(range(position, position + BATCH))
        rates.append(40 * BATCH / (time.perf_counter() - start))
    start = time.perf_counter()
    for position in range(0, 200):
        cache.batch(data.entries[data.order.index(np.arange(position * BATCH, (position + 1) * BATCH))])
    rates.append(200 * BATCH / (time.perf_counter() - start))
    return " ".join(f"{value:.3f}" for value in (opened, parted, after[0] - before[0], after[1] - before[1], *rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--entries", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.folder))
        return
    table = Table("entries", "size MB", "open s", "split s", "private MB", "mapped MB", "samples/s", "again", "latents/s")
    for entries in args.entries:
        folder = args.folder / f"{entries}-{args.dtype}"
        if not (folder / "places.safetensors").is_file():
            write(folder, entries, args.dtype)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        command = [sys.executable, __file__, "--folder", str(folder), "--measure"]
        opened, parted, private, mapped, *rates = map(
            float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        )
        table.add_row(f"{entries}", f"{size:.0f}", f"{opened:.2f}", f"{parted:.2f}", f"{private:.0f}", f"{mapped:.0f}",
                      *(f"{rate:.0f}" for rate in rates))  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
