"""The cache: what was encoded comes back, interrupted work continues, other parts are refused, training sees the same clips."""

import errno
import itertools
import json
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mmldm.data.buckets import Buckets
from mmldm.data.cache import LatentCache, clip_addresses, write_items, write_places
from mmldm.data.cache_shard import Shard, write_shard
from mmldm.data.cache_writer import CacheWriter, Together, begin, write_cache
from mmldm.data.cached import CachedDataset
from mmldm.data.dataset import Clips, MediaDataset
from mmldm.data.order import Order
from mmldm.data.source import FileSource, split
from mmldm.interfaces import Posterior
from tests.data_fakes import Computed, Raw, Signal, encode, write_signals

MEDIA = {"left": Signal(), "right": Signal(channels=(1,))}
READERS = {"caption": ("text", Raw()), "start": ("start", Raw()), "seconds": ("seconds", Raw())}
PARTS = {s: {"codec": "abc", "media": repr(m)} for s, m in MEDIA.items()}


def make(folder, source, counted=None, **options):
    def counting(stream, x):
        if counted is not None:
            counted.append(len(x))
        return encode(stream, x)

    return write_cache(folder, source, MEDIA, counting, PARTS, progress=False, **options)


def same(a, b):
    assert a.position.tolist() == b.position.tolist() and a.index.tolist() == b.index.tolist()
    assert torch.equal(a.start, b.start) and a.fields == b.fields and len(a.faults) == len(b.faults)
    assert all(torch.equal(a.present[name], b.present[name]) for name in READERS)
    assert all(torch.equal(a.valid[s], b.valid[s]) for s in MEDIA)
    for s in MEDIA:
        wanted, there = encode(s, a.media[s]), a.valid[s].any(1)
        assert torch.equal(b.latents[s].mean[there], wanted.mean[there]) and torch.equal(
            b.latents[s].std[there], wanted.std[there]
        )
        assert (b.latents[s].mean[~there] == 0).all() and (b.latents[s].std[~there] == 0).all()


@pytest.fixture
def source(tmp_path):
    write_signals(tmp_path / "set", [10, 34, 26, 7])
    write_signals(tmp_path / "set", [20], channels=1, start=4)
    paths = write_signals(tmp_path / "set", [10], start=5)
    np.save(paths[0], np.full((2, 10), np.nan, np.float32))
    return FileSource.read(tmp_path / "set", MEDIA)


@pytest.mark.parametrize("block", [1, 6, 1000])
def test_training_from_the_cache_sees_the_same_clips_latents_and_texts(tmp_path, source, block):
    make(tmp_path / "cache", source, batch_size=3, block=block)
    cache = pickle.loads(pickle.dumps(LatentCache(tmp_path / "cache", PARTS)))
    assert cache.streams == ("left", "right") and len(cache) == 11 and cache.unreadable.sum() == 1
    train, val = split(source, 2, 7)
    assert all((a == b).all() for a, b in zip(split(source, 2, 7), split(cache, 2, 7), strict=True))
    for rows in (None, train, val):
        order = Order(len(cache.clips.of(val)), None) if rows is val else None
        online = MediaDataset(source, MEDIA, READERS, 7, order, "windows", rows)
        cached = CachedDataset(cache, READERS, 7, order, None if rows is None else cache.clips.of(rows))
        positions = list(range(2 * len(online) + 3))
        assert len(online) == len(cached) and [online.locate(p) for p in positions] == [cached.locate(p) for p in positions]
        same(online.collate(online.__getitems__(positions)), cached.collate(cached.__getitems__(positions)))
        assert online.row(1) == cached.row(1)


def test_a_second_run_encodes_nothing_and_a_new_file_alone_is_added(tmp_path, source):
    counted = []
    first = make(tmp_path / "cache", source, counted)
    assert sum(counted) == 2 * 10
    counted.clear()
    again = make(tmp_path / "cache", source, counted)
    assert not counted and again.rows == first.rows and len(again) == len(first)
    write_signals(tmp_path / "set", [20], start=100)
    (tmp_path / "set/s000.txt").write_text("another caption")
    (tmp_path / "set/copy.npy").write_bytes((tmp_path / "set/s001.npy").read_bytes())
    grown = make(tmp_path / "cache", FileSource.read(tmp_path / "set", MEDIA), counted)
    assert sum(counted) == 2 * 2 and len(grown) == 11 + 2 + 3 and grown.unused == 0
    assert {row["text"] for row in grown.rows} >= {"another caption", "signal 100 of 20 samples"}
    by_file = {row["file"].rsplit("/")[-1]: i for i, row in enumerate(grown.rows)}
    clips = [np.flatnonzero(grown.clips.index == by_file[name]) for name in ("copy.npy", "s001.npy")]
    assert torch.equal(*(grown.batch(c)[0]["left"].mean for c in clips))
    counted.clear()
    (tmp_path / "set/s002.npy").unlink()
    shrunk = make(tmp_path / "cache", FileSource.read(tmp_path / "set", MEDIA), counted)
    assert not counted and len(shrunk) == len(grown) - 3 and shrunk.unused == 3


class Stop(Exception):
    pass


def stopping(after):
    """An encoder that fails at its call number `after`."""
    calls = itertools.count()

    def failing(stream, x):
        if next(calls) == after:
            raise Stop
        return encode(stream, x)

    return failing


def test_interrupted_work_continues_where_the_last_whole_block_ends(tmp_path, source):
    with pytest.raises(Stop):
        write_cache(tmp_path / "cache", source, MEDIA, stopping(5), PARTS, batch_size=2, block=1, progress=False)
    with pytest.raises(ValueError, match="wanted 11 clips, 7 are missing; run `mmldm encode` again: it continues"):
        LatentCache(tmp_path / "cache")
    (tmp_path / "cache/latents-0000.safetensors.123.part").write_bytes(b"half")
    counted = []
    cache = make(tmp_path / "cache", source, counted, batch_size=2, block=1)
    assert sum(counted) == 2 * (10 - 4) and not list((tmp_path / "cache").glob("*.part"))
    whole = make(tmp_path / "whole", source, batch_size=2, block=1)
    assert files_of(cache) == files_of(whole)
    for a, b in zip(cache.batch(range(10))[0].values(), whole.batch(range(10))[0].values(), strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)


def files_of(cache):
    return {file.name: file.read_bytes() for file in cache.folder.glob("latents-*")}


def test_a_kill_after_the_last_block_loses_nothing(tmp_path, source):
    cache = make(tmp_path / "cache", source)
    (tmp_path / "cache/places.safetensors").unlink()
    again = LatentCache(tmp_path / "cache", PARTS)
    for a, b in zip(cache.batch(range(11))[0].values(), again.batch(range(11))[0].values(), strict=True):
        assert torch.equal(a.mean, b.mean)
    assert (again.unreadable == cache.unreadable).all() and again.reason(10) == cache.reason(10) == "is broken inside"


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_writes_the_same_entries(tmp_path, source, world):
    alone = make(tmp_path / "alone", source, batch_size=2)
    folder, told = begin(tmp_path / "shared", PARTS), [[] for _ in range(world)]
    barrier = threading.Barrier(world)
    kept = {}

    def process(rank):
        def exchange(value, origin):
            if rank == origin:
                kept["value"] = value
            barrier.wait(20)
            value = kept["value"]
            barrier.wait(20)
            return value

        writer = CacheWriter(folder, source, MEDIA, batch_size=2, together=Together(rank, world, exchange))
        for loaded in writer.loader():
            writer.add(loaded, encode)
        told[rank].extend(np.concatenate(writer.blocks or [[]]).tolist())

    with ThreadPoolExecutor(world) as pool:
        list(pool.map(process, range(world)))
    assert sorted(sum(told, [])) == list(range(11)) and all(told[:2])
    writer = CacheWriter(folder, source, MEDIA)
    assert len(writer) == 1  # what could not be read is tried again
    shared = writer.finish()
    for a, b in zip(shared.batch(range(11))[0].values(), alone.batch(range(11))[0].values(), strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)


def test_the_same_entries_are_the_same_bytes(tmp_path, source):
    a, b = make(tmp_path / "a", source, batch_size=2, block=4), make(tmp_path / "b", source, batch_size=2, block=4)
    assert files_of(a) == files_of(b) and len(files_of(a)) == 3


def test_other_parts_are_refused_loudly(tmp_path, source):
    make(tmp_path / "cache", source)
    codec = {**PARTS, "left": {**PARTS["left"], "codec": "xyz"}}
    media = {**PARTS, "right": {**PARTS["right"], "media": repr(Signal(20, (1,)))}}
    for open_it in (LatentCache, begin):
        with pytest.raises(ValueError, match=r"made by other parts \(left: another codec\); encode into another folder"):
            open_it(tmp_path / "cache", codec)
        with pytest.raises(ValueError, match=r"right: wanted media length=20, got length=10\)"):
            open_it(tmp_path / "cache", media)
        with pytest.raises(ValueError, match="right: another media"):
            open_it(tmp_path / "cache", {**PARTS, "right": {**PARTS["right"], "media": "Another()"}})
        with pytest.raises(ValueError, match="right: only in the cache"):
            open_it(tmp_path / "cache", {"left": PARTS["left"]})
    with pytest.raises(ValueError, match="wanted a cache of float16, got one of float32"):
        begin(tmp_path / "cache", PARTS, "float16")
    with pytest.raises(ValueError, match="wanted a dtype to store, got 'half'; choose from float32"):
        begin(tmp_path / "other", PARTS, "half")
    assert len(LatentCache(tmp_path / "cache", PARTS)) == 11
    with pytest.raises(ValueError, match="make one with `mmldm encode`"):
        LatentCache(tmp_path)
    index = json.loads((tmp_path / "cache/index.json").read_text())
    (tmp_path / "cache/index.json").write_text(json.dumps({**index, "format": 1}))
    with pytest.raises(ValueError, match="wanted a cache of format 2, got 1; encode again into another folder"):
        LatentCache(tmp_path / "cache")
    (tmp_path / "cache/index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged; run `mmldm encode` again"):
        LatentCache(tmp_path / "cache")
    counted = []
    assert len(make(tmp_path / "cache", source, counted)) == 11 and not counted
    (tmp_path / "cache/index.json").write_text("{")
    write_cache(tmp_path / "cache", source, MEDIA, encode, codec, progress=False)  # their entries are not taken for its own
    assert LatentCache(tmp_path / "cache", codec).unused == 11


def test_a_source_without_files_is_cached_and_limited(tmp_path):
    cache = make(tmp_path / "cache", Computed(1000), limit=6)
    assert len(cache) == 6 and cache.rows[2] == {"text": "number 2", "label": "2"} and cache.seconds(2) is None
    assert cache.rows[-1] == cache.rows[4:][1] == {"text": "number 5", "label": "2"} and cache.key(3) == "ramp/3"
    data = CachedDataset(cache, READERS, seed=1)
    batch = data[7]
    assert len(batch) == 1 and batch.fields["caption"] == [f"number {batch.index[0]}"]
    assert batch.latents["left"].mean[0, 0, 0] == batch.index[0] + torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).mean()


# ---------------------------------------------------------------- random crops


def test_random_crops_are_keyed_by_content(tmp_path, source):
    counted = []
    cache = make(tmp_path / "cache", source, counted, crops=3)
    of = {row["file"].rsplit("/")[-1]: np.flatnonzero(cache.clips.index == i) for i, row in enumerate(cache.rows)}
    assert {name: len(clips) for name, clips in of.items()} == {
        "s000.npy": 1, "s001.npy": 3, "s002.npy": 3, "s003.npy": 1, "s004.npy": 3, "s005.npy": 1}  # fmt: skip
    starts = cache.clips.start[of["s001.npy"]]
    assert len(set(starts)) == 3 and (starts >= 0).all() and (starts <= 2.4).all() and sum(counted) == 2 * 11
    (tmp_path / "set/first.npy").write_bytes((tmp_path / "set/s001.npy").read_bytes())
    counted.clear()
    more = make(tmp_path / "cache", FileSource.read(tmp_path / "set", MEDIA), counted, crops=4)
    copied = next(i for i, row in enumerate(more.rows) if row["file"].endswith("first.npy"))
    assert (more.clips.start[more.clips.index == copied][:3] == starts).all() and sum(counted) == 2 * 3
    for entry in more.clips.of([copied]):
        x = MEDIA["left"].load(tmp_path / "set/first.npy", float(more.clips.start[entry])).x[None]
        assert torch.equal(more.batch([entry])[0]["left"].mean, encode("left", x).mean)
    assert make(tmp_path / "seeded", source, crops=3, seed=1).clips.start[1] != starts[0]
    with pytest.raises(ValueError, match="wanted crops of at least 1, or null"):
        make(tmp_path / "none", source, crops=0)


def test_items_are_encoded_in_the_length_of_their_bucket(tmp_path, source):
    counted, buckets = [], Buckets(seconds=(1.0, 2.0))
    cache = make(tmp_path / "cache", source, counted, batch_size=2, buckets=buckets)
    lengths = {shape["left"][1] * 5 for shape in cache.shapes}
    assert lengths == {10, 20} and not len(set(cache.shape_of)) == 1
    for entry in np.flatnonzero(~cache.unreadable):
        row, start = cache.rows[cache.clips.index[entry]], float(cache.clips.start[entry])
        length = cache.shapes[cache.shape_of[entry]]["left"][1] * 5
        seconds = cache.seconds(cache.clips.index[entry])
        assert length == (20 if seconds >= 2 else 10)
        x = Signal(length).load(row["file"], start).x[None]
        assert torch.equal(cache.batch([entry])[0]["left"].mean, encode("left", x).mean)
    counted.clear()
    assert len(make(tmp_path / "cache", source, counted, buckets=buckets)) == len(cache) and not counted


# ---------------------------------------------------------------- what is stored


def stored(folder, latents, valid=None, dtype="float32", parts=PARTS):
    """A cache of one clip per item whose latents are given."""
    size = len(next(iter(latents.values())).mean)
    media = {s: Signal() for s in latents}

    class Given(Computed):
        def load(self, index, stream, media, start):
            return None if valid is not None and not valid[stream][index] else super().load(index, stream, media, start)

    def pick(stream, x):
        index, z = x[:, 0, 0].round().long(), latents[stream]
        return Posterior(z.mean[index], None if z.std is None else z.std[index])

    return write_cache(folder, Given(size), media, pick, parts, dtype=dtype, progress=False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_latents_are_stored_as_wide_as_asked(tmp_path, dtype):
    z = Posterior(torch.randn(4, 3, 8), torch.rand(4, 3, 8))
    latents, _ = stored(tmp_path, {"z": z}, dtype=dtype).batch([3, 1])
    wanted = z.mean[[3, 1]].to(getattr(torch, dtype)).float()
    assert torch.equal(latents["z"].mean, wanted) and latents["z"].std.dtype == torch.float32
    assert torch.equal(latents["z"].std, z.std[[3, 1]].to(getattr(torch, dtype)).float())


def test_what_cannot_be_stored_is_refused(tmp_path):
    z = Posterior(torch.full((2, 3, 4), 1e6))
    assert torch.equal(stored(tmp_path / "a", {"z": z}).batch([0])[0]["z"].mean, z.mean[:1])
    with pytest.raises(ValueError, match="got a mean that is not in float16; choose cache.dtype=bfloat16 or float32"):
        stored(tmp_path / "b", {"z": z}, dtype="float16")


def test_no_std_and_a_constant_one(tmp_path):
    mean = torch.randn(3, 2, 8)
    assert stored(tmp_path / "a", {"z": Posterior(mean)}).batch([1, 0])[0]["z"].std is None
    constant = stored(tmp_path / "b", {"z": Posterior(mean, torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(3, 2, 8))})
    assert torch.equal(constant.batch([2, 0])[0]["z"].std[:, 1, 3], torch.tensor([0.3, 0.1]))
    (file,) = tmp_path.glob("b/latents-*")
    assert Shard(file).shape("z/std") == (3, 1, 1)


def test_latents_of_several_shapes(tmp_path):
    small, large = torch.randn(2, 3, 4), torch.randn(1, 3, 8)
    folder = stored(tmp_path, {"z": Posterior(small)}).folder
    facts = json.loads((folder / "index.json").read_text())["parts"]
    clips = Clips(np.arange(3), np.zeros(3))
    addresses = clip_addresses(facts, [f"ramp/{i}" for i in range(3)], clips)
    row, valid = torch.zeros(1, dtype=torch.int32), torch.full((1, 1), 8, dtype=torch.int32)
    write_shard(folder, "latents", addresses[2:], {"z/mean": large, "z/row": row, "z/valid": valid})
    write_items(folder, [f"ramp/{i}" for i in range(3)], [{}] * 3, [None] * 3, clips, addresses)
    write_places(folder)
    cache = LatentCache(folder)
    shapes = [cache.shapes[n]["z"] for n in cache.shape_of]
    assert shapes == [(3, 4), (3, 4), (3, 8)]
    latents, valid = cache.batch([1, 0])
    assert torch.equal(latents["z"].mean, small.flip(0)) and valid["z"].tolist() == [[10], [10]]
    assert torch.equal(cache.batch([2])[0]["z"].mean, large) and cache.batch([2])[1]["z"].tolist() == [[8]]
    with pytest.raises(ValueError, match="wanted clips of one shape of latents"):
        cache.batch([0, 2])


def test_a_stream_that_no_item_has(tmp_path):
    latents = {s: Posterior(torch.ones(2, 3, 4), torch.rand(2, 3, 4)) for s in ("here", "absent")}
    cache = stored(tmp_path, latents, {"here": [True, True], "absent": [False, False]})
    latents, valid = cache.batch([0, 1, 0])
    assert latents["absent"].mean.shape == (3, 3, 4) and not latents["absent"].mean.any() and not valid["absent"].any()
    assert latents["here"].mean.all() and not latents["absent"].std.any() and not cache.unreadable.any()


# ---------------------------------------------------------------- damage


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "header":
        data[20] ^= 1
    elif how == "garbage":
        data = bytearray(b"\xff" * len(data))
    else:
        data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "header", "garbage", "missing", "data"])
def test_a_damaged_shard_is_named_and_made_anew_alone(tmp_path, source, how):
    whole = make(tmp_path / "cache", source, batch_size=2, block=2)
    wanted, file = files_of(whole), sorted((tmp_path / "cache").glob("latents-*"))[1]
    held = whole.batch(range(10))[0]["left"].mean
    damage(file, how)
    if how != "data":  # which only a whole reading can tell
        with pytest.raises(ValueError, match=f"{file.name} is damaged .*; run `mmldm encode` again: it makes this part anew"):
            LatentCache(tmp_path / "cache")
    counted = []
    again = make(tmp_path / "cache", source, counted, batch_size=2, block=2)
    assert files_of(again) == wanted and 0 < sum(counted) <= 2 * 2
    assert torch.equal(again.batch(range(10))[0]["left"].mean, held)


def test_a_full_disk_is_told_and_what_is_written_stays(tmp_path, source, monkeypatch):
    real, calls = os.fsync, itertools.count()

    def full(descriptor):
        if next(calls) == 3:  # the items, then two shards
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write the cache: no space is left; make room and run the same command again"):
        make(tmp_path / "cache", source, batch_size=2, block=2)
    assert not list((tmp_path / "cache").glob("*.part"))
    counted = []
    assert len(make(tmp_path / "cache", source, counted, batch_size=2, block=2)) == 11 and sum(counted) == 2 * (10 - 4)
