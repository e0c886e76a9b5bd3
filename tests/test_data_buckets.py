"""Buckets and mixtures: what belongs where, each item as often as any other, the same order for any processes and workers."""

import json
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from mmldm import config, keyed
from mmldm.codec import VideoCodec
from mmldm.commands import check, sources
from mmldm.conditioner import ConditionSet
from mmldm.data import Buckets, DataModule, FileSource, Headers, Member, Order, bucket_table, write_cache
from mmldm.data.joined import Joined
from mmldm.denoiser import DiT
from mmldm.diffusion import Flow, Linear, LogitNormal, UnitF
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, save_image, save_video
from mmldm.model import Model
from mmldm.training import DiffusionTraining, Schedule, diffusion
from tests.data_fakes import Computed, Process, Signal, Words, encode, write_signals
from tests.test_training import adamw

MEDIA = {"left": Signal(), "right": Signal(channels=(1,))}
READERS = {"caption": ("text", Words())}
LENGTHS = [7, 10, 12, 18, 20, 25, 30, 40, 45, 90, 11, 22, 44, 41, 10, 33]
THREE = Buckets(seconds=[1, 2, 4], tokens=80, multiple=4)


def module(source, **options):
    options = {"batch_size": 8, "validation": 2, "seed": 3, "progress": False, "buckets": THREE, **options}
    return DataModule(source, MEDIA, READERS, latent_shape=lambda stream, shape: (1, shape[1] // 2), **options)


def take(data, n):
    return list(islice(iter(data.train_dataloader()), n))


def mixed(tmp_path, **options):
    """Two folders, one of them heard three times as often, in buckets."""
    if not (tmp_path / "a").exists():
        write_signals(tmp_path / "a", LENGTHS)
        write_signals(tmp_path / "b", LENGTHS[:9], start=40)
    members = {"a": Member(partial(FileSource.read, tmp_path / "a")), "b": Member(partial(FileSource.read, tmp_path / "b"), 3)}
    return module(members, **options)


# ---------------------------------------------------------------- what belongs where


def headers(*items):
    table = np.array([(np.nan if s is None else s, h, w) for s, h, w in items], dtype=float)
    return Headers(*table.T, np.ones(len(table), dtype=bool))


def test_an_item_belongs_to_the_longest_clip_it_fills_and_the_nearest_shape_that_does_not_enlarge_it():
    medias = {"video": VideoMedia(16, 8.0, 64, 64)}
    rule = Buckets(seconds=[4, 2], sizes=[(64, 64), (48, 96), (128, 128)], stills=True)
    names = [bucket.name for bucket in rule.of(medias)]
    assert names[:3] == ["still_64x64", "still_48x96", "still_128x128"] and names[-1] == "4s_128x128" and len(names) == 9
    items = [(1, 64, 64), (3.9, 70, 70), (9, 720, 1280), (2, 500, 400), (None, 128, 128), (1.99, 200, 100), (4, 20, 30)]
    wanted = ["2s_64x64", "2s_64x64", "4s_48x96", "2s_128x128", "still_128x128", "2s_64x64", "4s_48x96"]
    assert [names[b] for b in rule.assign(headers(*items), medias)] == wanted
    usage = rule.of(medias)[names.index("2s_64x64")].usage(headers((1, 32, 64), (3, 128, 128)))
    assert usage == {"padded": 1, "enlarged": 1, "used_seconds": 3, "cropped_seconds": 1, "cropped_area": 0.25}
    shapes = [bucket.medias["video"].shape for bucket in rule.of(medias)]
    assert shapes[1] == (3, 1, 48, 96) and shapes[3] == (3, 16, 64, 64)
    assert len(rule.assign(headers(*items[:1] * 1000), medias)) == 1000


def test_the_budget_of_tokens_makes_the_batch():
    rule = Buckets(tokens=100, multiple=4)
    assert [rule.batch_size(cells, 32) for cells in (1, 3, 10, 16, 24, 26, 1000, None)] == [32, 32, 8, 4, 4, 4, 4, 32]
    assert rule.batch_size(1000, 2) == 2 and Buckets().batch_size(10**9, 32) == 32


@pytest.mark.parametrize(("rule", "medias", "said"), [
    ({"seconds": [2, 2]}, MEDIA, "different seconds"), ({"sizes": [[2, 2, 2]]}, MEDIA, "different sizes"),
    ({"tokens": 0}, MEDIA, "tokens and multiple"), ({"sizes": [[8, 8]]}, MEDIA, "a stream of pictures"),
    ({"seconds": [1]}, {"image": ImageMedia(8, 8)}, "runs in time"), ({"stills": True}, MEDIA, "moving pictures"),
])  # fmt: skip
def test_buckets_that_cannot_be_are_refused(rule, medias, said):
    with pytest.raises(ValueError, match=said):
        Buckets(**rule).of(medias)


def test_nothing_is_dropped_and_the_table_says_what_lands_where(tmp_path):
    write_signals(tmp_path, LENGTHS)
    data = module(partial(FileSource.read, tmp_path))
    lines = data.table()
    assert [line["bucket"] for line in lines] == ["1s", "2s", "4s"] and [line["batch"] for line in lines] == [8, 4, 4]
    assert sum(line["items"] for line in lines) == len(LENGTHS) - 2 and [line["tokens"] for line in lines] == [80, 80, 160]
    for part in data.train.parts:
        seconds = [data.items.seconds(int(row)) for row in part.dataset.rows]
        low, high = {"1s": (0, 2), "2s": (2, 4), "4s": (4, 99)}[part.name]
        assert all(low <= s < high for s in seconds)
    table = bucket_table(lines, 80)
    assert table.row_count == 3 and "160*" in list(table.columns[3].cells)[2]


def test_pictures_among_clips_are_clips_of_one_frame(tmp_path):
    x = keyed.uniform((0,), range(1), (3, 12, 16, 24))[0] * 2 - 1
    save_video(x, tmp_path / "clip.mp4", 8.0)
    save_image(x[:, 0], tmp_path / "still.png")
    media, still = VideoMedia(4, 8.0, 16, 24), VideoMedia(4, 8.0, 16, 24, stills=True)
    assert ".png" not in media.suffixes and {".png", ".mp4"} <= set(still.resized(1.0).suffixes) and repr(still) == repr(media)
    clip = still.load(tmp_path / "still.png")
    assert clip.valid == (1, 16, 24) and clip.x.shape == (3, 4, 16, 24)
    assert clip.x[:, 3].equal(ImageMedia(16, 24).load(tmp_path / "still.png").x)
    assert still.probe(tmp_path / "still.png").shape == (1, 16, 24) and still.probe(tmp_path / "still.png").seconds is None
    assert [p.shape for p in still.stream(tmp_path / "still.png", 2)] == [(3, 1, 16, 24)]
    data = DataModule(partial(FileSource.read, tmp_path), {"video": media, "audio": AudioMedia(800, 1, 0.5)}, batch_size=2,
                      validation=1, progress=False, buckets=Buckets(stills=True))  # fmt: skip
    data.setup()
    found = {part.name: part.dataset.media["video"].shape for part in data.train.parts + data.val.parts}
    assert found == {"still": (3, 1, 16, 24), "whole": (3, 4, 16, 24)}


# ---------------------------------------------------------------- the order


def ids(batch):
    return list(zip(batch.index.tolist(), batch.start.tolist(), batch.position.tolist(), strict=True))


SLOW = pytest.param(2, 2, 1, marks=pytest.mark.slow)


@pytest.mark.parametrize(("world", "workers", "accumulate"), [(1, 2, 1), (2, 0, 1), (2, 0, 2), (4, 0, 1), SLOW])
def test_the_global_batches_are_the_same_for_any_processes_workers_and_accumulation(tmp_path, world, workers, accumulate):
    whole = take(mixed(tmp_path), 9)
    parts = []
    for rank in range(world):
        data = mixed(tmp_path, workers=workers, accumulate=accumulate)
        data.trainer = Process(rank, world)
        parts.append(take(data, 9 * accumulate))
    for step, batch in enumerate(whole):
        own = [part[step * accumulate + turn] for turn in range(accumulate) for part in parts]
        assert sum([ids(b) for b in own], []) == ids(batch)
        assert {b.bucket for b in own} == {batch.bucket} and {b.total for b in own} == {len(batch)} != {None}
        assert torch.cat([b.media["left"] for b in own]).equal(batch.media["left"])
        assert set((batch.position // 8).tolist()) == {step}
    assert {b.bucket for b in whole} == {"1s", "2s", "4s"} and {len(b) for b in whole} == {4, 8}


def test_any_step_is_reached_at_once_and_with_other_processes(tmp_path, monkeypatch):
    whole = [ids(b) for b in take(mixed(tmp_path), 12)]
    for rank in range(2):
        data = mixed(tmp_path, accumulate=2)
        data.trainer = Process(rank, 2)
        data.set_start(7 * 2)
        for step, (first, second) in enumerate(zip(*[iter(take(data, 10))] * 2, strict=True), 7):
            share = len(whole[step]) // 4
            found = ids(first) + ids(second)
            assert found == [*whole[step][rank * share :][:share], *whole[step][(2 + rank) * share :][:share]]
    calls = []
    feistel = Order._feistel
    monkeypatch.setattr(Order, "_feistel", lambda self, x, keys: calls.append(x.size) or feistel(self, x, keys))
    far = mixed(tmp_path)
    far.setup()
    calls.clear()
    far.set_start(10**6)
    (batch,) = take(far, 1)
    assert batch.position[0] == 8 * 10**6 and sum(calls) < 100 * len(batch)


@pytest.mark.parametrize("crop", ["first", "windows"])
def test_every_item_comes_once_in_each_epoch_of_its_bucket_over_any_interruptions(tmp_path, crop):
    write_signals(tmp_path, LENGTHS)
    seen = {}
    steps = np.sort(np.random.default_rng(0).choice(np.arange(1, 60), 7, replace=False)).tolist()
    for begin, end in zip([0, *steps], [*steps, 60], strict=True):
        data = module(partial(FileSource.read, tmp_path), crop=crop)
        data.set_start(begin)
        for batch in take(data, end - begin):
            seen.setdefault(batch.bucket, []).extend(zip(batch.index.tolist(), batch.start.tolist(), strict=True))
    rate = []
    for part in data.train.parts:
        size = len(part.dataset)
        epochs = [seen[part.name][i : i + size] for i in range(0, len(seen[part.name]) - size + 1, size)]
        assert epochs and all(len(set(epoch)) == size for epoch in epochs)
        rate.append(len(seen[part.name]) / size)
    assert max(rate) - min(rate) < 2  # every item is as frequent as any other, whatever its bucket


def test_sources_are_mixed_by_their_weights_in_every_bucket(tmp_path):
    data = mixed(tmp_path, validation=1)
    batches = take(data, 200)
    index = torch.cat([b.index for b in batches])
    assert abs(float((index >= len(LENGTHS)).float().mean()) - 0.75) < 0.03
    assert all(((b.index >= len(LENGTHS)).any() and (b.index < len(LENGTHS)).any()) for b in batches[:20] if len(b) == 8)
    assert [ids(b) for b in data.sample_batches(6)] == [ids(b) for b in batches[:6]]
    held = torch.cat([b.index for b in data.val_dataloader()])
    assert len(held) == 2 and set(held.tolist()).isdisjoint(index.tolist())


def test_validation_has_every_item_once_all_buckets_from_the_beginning(tmp_path):
    data = mixed(tmp_path, validation=6)
    batches = list(data.val_dataloader())
    positions = torch.cat([b.position for b in batches])
    assert len(batches) == len(data.val_dataloader()) and sorted(positions.tolist()) == list(range(12))
    assert len({(b, i) for batch in batches for b, i in zip([batch.bucket] * 99, batch.index.tolist(), strict=False)}) == 12
    assert all(b.total is None for b in batches) and {b.bucket for b in batches[:3]} == {"1s", "2s", "4s"}
    shown = data.validation_batch(3)
    assert [row["text"] for row in data.validation_rows(3)] == [data.val.row(p)["text"] for p in shown.position.tolist()]


def test_a_bad_item_is_replaced_out_of_its_bucket_by_seed_and_position(tmp_path):
    paths = write_signals(tmp_path, LENGTHS)
    for path in (paths[4], paths[7]):
        np.save(path, np.full_like(np.load(path), np.nan))
    batches, again = (take(module(partial(FileSource.read, tmp_path)), 14) for _ in range(2))
    faults = [b for b in batches if b.faults]
    assert faults and [ids(b) for b in batches] == [ids(b) for b in again]
    data = module(partial(FileSource.read, tmp_path))
    data.setup()
    rows = {part.name: set(part.dataset.rows.tolist()) - {4, 7} for part in data.train.parts}
    assert all(set(b.index.tolist()) <= rows[b.bucket] for b in batches)


def test_a_cache_and_files_are_mixed_each_batch_of_one_kind(tmp_path):
    write_signals(tmp_path / "a", [10, 35, 60, 22, 10, 30])
    source = FileSource.read(tmp_path / "a", MEDIA)
    write_cache(tmp_path / "cache", source, MEDIA, encode, {"codec": {"codec": "a"}}, progress=False)
    members = {"kept": Member(cache=tmp_path / "cache"), "computed": Member(Computed(12))}
    data = module(members, buckets=None, validation=1)
    batches = take(data, 60)
    kinds = {b.bucket: (bool(b.latents), bool(b.media)) for b in batches}
    assert kinds == {"": (False, True), "kept/latents_2+2": (True, False)}
    assert abs(sum(len(b) for b in batches if b.latents) / sum(map(len, batches)) - 0.5) < 0.05


def test_the_command_line_names_sources_and_buckets():
    words = ["data=mixture", "+data.sources.a.path=A", "+data.sources.b={cache: B, weight: 2}", "data.buckets.seconds=[2,4]"]
    cfg = config.compose([*words, "codec=image_f4"])
    config.check(cfg)
    members = sources.build_members(cfg.data)
    assert [(m.weight, m.cache) for m in members.values()] == [(1.0, None), (2.0, "B")] and list(members) == ["a", "b"]
    assert members["a"].source.args == ("A",) and config.build(cfg.data.buckets).seconds == [2, 4]
    for wrong, said in (([], "none"), (["+data.sources.a.pth=A"], "pth"), (["+data.sources.a.weight=2"], "got weight"),
                        (["+data.sources.a={path: A, weight: -1}"], "weight > 0")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            sources.build_members(config.compose(["data=mixture", *wrong]).data)


def test_check_tells_what_lands_in_which_bucket(tmp_path, monkeypatch, capsys):
    pictures_and_clips(tmp_path / "set")
    (tmp_path / "set" / "broken.mp4").write_bytes(b"no")
    monkeypatch.chdir(tmp_path)
    assert check.main(["set", "--buckets", "seconds=1,2", "sizes=16x16,16x24", "stills", "--batch-size", "4"]) == 0
    told = capsys.readouterr().out
    facts = json.loads((tmp_path / "check.json").read_text())
    lands = {line["bucket"]: (line["items"], len(line["files"])) for line in facts["buckets"]}
    assert {k: v for k, v in lands.items() if v[0]} == {"still_16x16": (3, 3), "1s_16x24": (3, 3)} and len(lands) == 6
    assert "1s_16x24" in told and facts["dropped"][0]["file"].endswith("broken.mp4")
    assert facts["buckets"][3]["cropped_seconds"] == pytest.approx(1.5, abs=0.1) and facts["streams"]["video"]["cropped"] == 3
    for words in (["tokens=9"], ["second=1"], ["sizes=3"]):
        with pytest.raises(ValueError, match="wanted"):
            check.main(["set", "--buckets", *words])


@pytest.mark.parametrize("crops", [None, 2])
def test_a_cache_made_in_buckets_is_read_in_buckets(tmp_path, crops):
    write_signals(tmp_path / "set", LENGTHS)
    source = FileSource.read(tmp_path / "set", MEDIA)
    options = {"progress": False, "buckets": THREE, "crops": crops, "batch_size": 4}
    cache = write_cache(tmp_path / "cache", source, MEDIA, encode, {"codec": {"codec": "a"}}, **options)
    medias = {bucket.medias["left"].length: bucket.medias["left"] for bucket in THREE.of(MEDIA)}
    rule = Buckets(tokens=48, multiple=2)
    data = module(None, cache=tmp_path / "cache", buckets=rule)
    lengths = {}
    for batch in take(data, 40):
        length = 5 * batch.latents["left"].mean.shape[2]
        lengths[length] = len(batch)
        for i, (index, start) in enumerate(zip(batch.index.tolist(), batch.start.tolist(), strict=True)):
            x = source.load(index, "left", medias[length], start).x[None]
            assert encode("left", x).mean[0].equal(batch.latents["left"].mean[i])
            assert length == {1: 10, 2: 20, 3: 20}.get(LENGTHS[index] // 10 or 1, 40)
    assert lengths == {10: 8, 20: 6, 40: 2} and len(cache.shapes) == 3
    again = write_cache(tmp_path / "cache", source, MEDIA, None, {"codec": {"codec": "a"}}, **options)
    assert len(again) == len(cache)  # nothing is encoded twice


def test_sources_laid_end_to_end_are_one():
    joined = Joined([Computed(3), Computed(5)])
    assert len(joined) == 8 and [joined.row(i)["text"] for i in (2, 3, 7)] == ["number 2", "number 0", "number 4"]
    assert joined.key(4) == "ramp/1" and joined.seconds(0) is None
    assert joined.load(6, "left", MEDIA["left"], 0.0).x[0, 0] == 3
    with pytest.raises(IndexError, match="8"):
        joined.row(8)


# ---------------------------------------------------------------- training on it


def pictures_and_clips(folder):
    folder.mkdir(exist_ok=True)
    for i in range(6):
        x = keyed.uniform((i,), range(1), (3, 12, 16, 24))[0] * 2 - 1
        if i % 2:
            save_video(x, folder / f"{i}.mp4", 8.0)
        else:
            save_image(x[:, 0, :, :16], folder / f"{i}.png")
    return partial(FileSource.read, folder)


def make_training(batch_size):
    torch.manual_seed(0)
    codec = VideoCodec(VideoMedia(9, 8.0, 16, 16), 2, width=4, strides=((4, 4, 4),), blocks=1)
    denoiser = DiT({"video": codec.geometry}, {}, width=16, depth=1, heads=2)
    model = Model({"video": codec}, ConditionSet({}), denoiser, Linear(), Flow())
    for p in model.parameters():
        if not p.any():
            p.data.normal_(0, 0.1)
    return DiffusionTraining(model, LogitNormal(), UnitF(), adamw, None, Schedule(2, 0.5), batch_size).double()


def gradients(module, batches):
    module.zero_grad()
    for batch in batches:
        batch = batch.map(lambda x: x.double() if x.is_floating_point() else x)
        (module.training_step(batch, 0) / len(batches)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_pictures_and_clips_train_together_and_a_step_is_the_same_for_two_processes(tmp_path, monkeypatch):
    read, module = pictures_and_clips(tmp_path), make_training(4)
    monkeypatch.setattr(module, "log_terms", lambda *_: None)
    codec, sizes = module.model.codecs["video"], []
    spread = diffusion.stratified
    monkeypatch.setattr(
        diffusion, "stratified", lambda u, place, size, order: sizes.append(size) or spread(u, place, size, order)
    )

    def data(rank=0, world=1):
        rule = Buckets(seconds=[0.625, 1.125], sizes=[[16, 16], [16, 24]], tokens=160, multiple=2, stills=True)
        data = DataModule(read, {"video": codec.media}, None, 4, 1, buckets=rule, progress=False,
                          latent_shape=lambda stream, shape: codec.latent_shape(shape))  # fmt: skip
        data.trainer = Process(rank, world)
        return data

    shapes = {}
    for whole, *parts in zip(*(islice(iter(d.train_dataloader()), 8) for d in (data(), data(0, 2), data(1, 2))), strict=True):
        shapes[whole.bucket] = whole.media["video"].shape
        assert torch.allclose(gradients(module, [whole]), gradients(module, parts), rtol=1e-9, atol=1e-12)
        z, valid = module.latents(whole.map(lambda x: x.double() if x.is_floating_point() else x))
        sizes.clear()
        module.levels(whole, z, valid)
        assert sizes == [len(whole)] == [whole.total]  # the levels are spread over the samples that there are
    assert shapes == {"still_16x16": (4, 3, 1, 16, 16), "1.125s_16x24": (2, 3, 9, 16, 24)}
