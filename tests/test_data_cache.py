"""The cache: what was encoded comes back, interrupted work continues, other parts are refused, training sees the same clips."""

import json

import numpy as np
import pytest
import torch

from mmldm.data.cache import CacheWriter, LatentCache
from mmldm.data.cached import CachedDataset, write_cache
from mmldm.data.dataset import MediaDataset
from mmldm.data.order import Order
from mmldm.data.source import FileSource, split
from mmldm.interfaces import Posterior
from tests.data_fakes import Computed, Raw, Signal, encode, write_signals

MEDIA = {"left": Signal(), "right": Signal(channels=(1,))}
READERS = {"caption": ("text", Raw()), "start": ("start", Raw()), "seconds": ("seconds", Raw())}
PARTS = {"codec": "abc", "shape": (1, 10)}


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


@pytest.mark.parametrize("memory_bytes", [0, 8 << 30])
@pytest.mark.parametrize("shard_bytes", [1, 200, 1 << 20])
def test_training_from_the_cache_sees_the_same_clips_latents_and_texts(tmp_path, source, shard_bytes, memory_bytes):
    make(tmp_path / "cache", source, batch_size=3, shard_bytes=shard_bytes)
    cache = LatentCache(tmp_path / "cache", PARTS, memory_bytes)
    assert cache.streams == ("left", "right") and len(cache) == 11 and cache.unreadable.sum() == 1
    train, val = split(source, 2, 7)
    assert all((a == b).all() for a, b in zip(split(source, 2, 7), split(cache, 2, 7), strict=True))
    for rows in (None, train, val):
        order = Order(len(cache.clips.of(val)), None) if rows is val else None
        online = MediaDataset(source, MEDIA, READERS, 7, order, "windows", rows)
        cached = CachedDataset(cache, READERS, 7, order, rows)
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
    assert not counted and again.items == first.items
    write_signals(tmp_path / "set", [20], start=100)
    (tmp_path / "set/s000.txt").write_text("another caption")
    (tmp_path / "set/copy.npy").write_bytes((tmp_path / "set/s001.npy").read_bytes())
    grown = make(tmp_path / "cache", FileSource.read(tmp_path / "set", MEDIA), counted)
    assert sum(counted) == 2 * 2 and len(grown) == 11 + 2 + 3
    assert {row["text"] for row in grown.rows} >= {"another caption", "signal 100 of 20 samples"}
    by_file = {row["file"].rsplit("/")[-1]: i for i, row in enumerate(grown.rows)}
    clips = [np.flatnonzero(grown.clips.index == by_file[name]) for name in ("copy.npy", "s001.npy")]
    assert torch.equal(*(grown.batch(c)[0]["left"].mean for c in clips))


def test_interrupted_work_continues_where_the_last_whole_shard_ends(tmp_path, source):
    class Stop(Exception):
        pass

    def failing(stream, x, calls=[]):  # noqa: B006
        calls.append(stream)
        if len(calls) > 5:
            raise Stop
        return encode(stream, x)

    with pytest.raises(Stop):
        write_cache(tmp_path / "cache", source, MEDIA, failing, PARTS, batch_size=2, shard_bytes=1, progress=False)
    with pytest.raises(ValueError, match="wanted 11 clips, .* missing; run `mmldm encode` again"):
        LatentCache(tmp_path / "cache")
    (tmp_path / "cache/00002.safetensors").write_bytes(b"a shard that the index does not name")
    (tmp_path / "cache/00003.safetensors.part").write_bytes(b"half")
    counted = []
    cache = make(tmp_path / "cache", source, counted, batch_size=2, shard_bytes=1)
    assert sum(counted) == 2 * (10 - 4)
    whole = make(tmp_path / "whole", source)
    for a, b in zip(cache.batch(range(10))[0].values(), whole.batch(range(10))[0].values(), strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)


def test_another_codec_is_refused_loudly(tmp_path, source):
    make(tmp_path / "cache", source)
    for open_it in (LatentCache, CacheWriter):
        with pytest.raises(ValueError, match="made by other parts .codec: wanted xyz, the cache has abc"):
            open_it(tmp_path / "cache", {**PARTS, "codec": "xyz"})
    assert len(LatentCache(tmp_path / "cache", PARTS)) == 11
    with pytest.raises(ValueError, match="make one with `mmldm encode`"):
        LatentCache(tmp_path)
    index = json.loads((tmp_path / "cache/index.json").read_text())
    (tmp_path / "cache/index.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(ValueError, match="wanted a cache of format 1, got 99"):
        LatentCache(tmp_path / "cache")


def test_a_source_without_files_is_cached_and_limited(tmp_path):
    cache = make(tmp_path / "cache", Computed(1000), limit=6)
    assert len(cache) == 6 and cache.rows[2] == {"text": "number 2", "label": "2"}
    data = CachedDataset(cache, READERS, seed=1)
    batch = data[7]
    assert len(batch) == 1 and batch.fields["caption"] == [f"number {batch.index[0]}"]
    assert batch.latents["left"].mean[0, 0, 0] == batch.index[0] + torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).mean()


def test_a_codec_without_std_and_latents_of_several_shapes(tmp_path):
    writer = CacheWriter(tmp_path, {})
    small, large = torch.randn(2, 3, 4), torch.randn(1, 3, 8)
    writer.rows([{"key": k, "seconds": None, "starts": [0.0], "row": {}} for k in "abc"])
    writer.add("ab", [0.0, 0.0], {"z": Posterior(small)}, {"z": torch.full((2, 1), 4)})
    writer.add("c", torch.zeros(1), {"z": Posterior(large)}, {"z": torch.full((1, 1), 8)})
    writer.close()
    cache = LatentCache(tmp_path)
    latents, valid = cache.batch([1, 0])
    assert latents["z"].std is None and torch.equal(latents["z"].mean, small.flip(0)) and valid["z"].tolist() == [[4], [4]]
    assert torch.equal(cache.batch([2])[0]["z"].mean, large)


def test_a_stream_that_no_item_has(tmp_path):
    writer = CacheWriter(tmp_path, {})
    writer.rows([{"key": k, "seconds": None, "starts": [0.0], "row": {}} for k in "ab"])
    latents = {s: Posterior(torch.ones(2, 3, 4), torch.ones(2, 3, 4)) for s in ("here", "absent")}
    writer.add("ab", [0.0, 0.0], latents, {"here": torch.full((2, 1), 4), "absent": torch.zeros(2, 1, dtype=torch.long)})
    writer.close()
    latents, valid = LatentCache(tmp_path).batch([0, 1, 0])
    assert latents["absent"].mean.shape == (3, 3, 4) and not latents["absent"].mean.any() and not valid["absent"].any()
    assert latents["here"].mean.all() and not latents["absent"].std.any()
