"""Crops, fields, absent streams, faults and the check of the headers."""

import json
import pickle

import numpy as np
import pytest
import torch
from rich.console import Console

from mmldm.data.check import check
from mmldm.data.dataset import MediaDataset, windows
from mmldm.data.order import Order
from mmldm.data.source import FileSource, Source, split
from mmldm.interfaces import MediaError
from tests.data_fakes import Computed, Raw, Signal, Words, write_signals

MEDIA = {"left": Signal(), "right": Signal(channels=(1,))}
READERS = {"caption": ("text", Words()), "kind": ("kind", Words()), "start": ("start", Raw()), "seconds": ("seconds", Raw())}


def dataset(folder, media=MEDIA, **options):
    return MediaDataset(FileSource.read(folder, media), media, READERS, **options)


def test_a_position_gives_the_same_item_whatever_is_around_it(tmp_path):
    write_signals(tmp_path, [10, 25, 40, 7])
    data = dataset(tmp_path, seed=1)
    whole = data.collate(data.__getitems__(list(range(12))))
    again = pickle.loads(pickle.dumps(data))
    for p in (11, 3, 0):
        alone = again.collate([again[p]])
        assert torch.equal(alone.media["left"][0], whole.media["left"][p]) and alone.start == whole.start[p]
        assert alone.position.tolist() == [p] and alone.index[0] == whole.index[p]
    assert sorted(whole.index[:4].tolist()) == sorted(whole.index[4:8].tolist()) == [0, 1, 2, 3]


def test_one_crop_time_for_all_streams_inside_the_file_and_another_each_epoch(tmp_path):
    (path,) = write_signals(tmp_path, [100])
    batch = (data := dataset(tmp_path, seed=5)).collate(data.__getitems__(list(range(40))))
    x = np.load(path)
    for i in range(40):
        first = round(float(batch.start[i]) * 10)
        assert (batch.media["left"][i, 0].numpy() == x[0, first : first + 10]).all()
        assert (batch.media["right"][i, 0].numpy() == x[1, first : first + 10]).all()
    assert 0 <= batch.start.min() < 2 and 7 < batch.start.max() <= 9 and len(set(batch.start.tolist())) == 40
    other = dataset(tmp_path, seed=6).__getitems__(list(range(40)))
    assert {i.start for i in other}.isdisjoint(batch.start.tolist())
    assert all(item.start == 0 for item in dataset(tmp_path, crop="first").__getitems__([0, 1, 2]))


def test_fields_missing_fields_and_padding(tmp_path):
    write_signals(tmp_path, [6, 30])
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "s000.npy", "kind": "short"}\n{"file_name": "s001.npy", "text": "abc"}\n'
    )
    batch = (data := dataset(tmp_path, order=Order(2, None), crop="first")).collate(data.__getitems__([0, 1]))
    assert batch.fields["kind"].tolist() == [5, -1] and batch.present["kind"].tolist() == [True, False]
    assert batch.fields["caption"].tolist() == [len("signal 0 of 6 samples"), 3]
    assert batch.valid["left"].tolist() == [[6], [10]] and (batch.media["left"][0, :, 6:] == 0).all()
    assert batch.fields["seconds"] == [0.6, 3.0] and batch.fields["start"] == [0.0, 0.0]


def test_an_absent_stream_is_zeros_with_nothing_valid(tmp_path):
    write_signals(tmp_path, [10, 10])
    write_signals(tmp_path, [10], channels=1, start=2)
    data = dataset(tmp_path, order=Order(3, None))
    batch = data.collate(data.__getitems__([0, 1, 2]))
    assert batch.valid["right"].tolist() == [[10], [10], [0]] and batch.valid["left"].tolist() == [[10]] * 3
    assert (batch.media["right"][2] == 0).all() and batch.media["right"][1].abs().sum() > 0


def test_windows_cover_the_files_in_order(tmp_path):
    write_signals(tmp_path, [10, 34, 26, 3])
    source = FileSource.read(tmp_path, MEDIA)
    clips = windows(source, MEDIA)
    assert clips.index.tolist() == [0, 1, 1, 1, 2, 2, 2, 3] and clips.start.tolist() == [0, 0, 1, 2, 0, 1, 2, 0]
    data = MediaDataset(source, MEDIA, crop="windows", seed=3)
    assert len(data) == 8 and {data.locate(p) for p in range(8)} == set(
        zip(clips.index.tolist(), clips.start.tolist(), strict=True)
    )
    assert windows(Computed(3), MEDIA).start.tolist() == [0, 0, 0]


def test_a_bad_item_is_replaced_by_a_function_of_the_position_and_named(tmp_path):
    paths = write_signals(tmp_path, [10] * 8)
    np.save(paths[2], np.full((2, 10), np.nan, np.float32))
    data, again = dataset(tmp_path, seed=2), dataset(tmp_path, seed=2)
    batch = data.collate(data.__getitems__(list(range(32))))
    assert batch.position.tolist() == list(range(32)) and 2 not in batch.index.tolist()
    assert len(batch.faults) >= 4 and all("s002.npy: is broken inside" in f for f in batch.faults)
    assert [again[p].index for p in range(31, -1, -1)] == batch.index.tolist()[::-1]
    for path in paths:
        np.save(path, np.full((2, 10), np.nan, np.float32))
    with pytest.raises(ValueError, match="10 items in a row cannot be read at position 0"):
        data[0]


def test_memory_gives_the_same_numbers_without_reading_twice(tmp_path):
    paths = write_signals(tmp_path, [10, 10, 30])
    np.save(paths[0], (np.random.default_rng(0).integers(0, 256, (2, 10)).astype(np.float32) / np.float32(127.5) - 1))
    plain, kept = dataset(tmp_path, crop="windows"), dataset(tmp_path, crop="windows", memory=True)
    first = kept.__getitems__(list(range(5)))
    sizes = {packed[0].dtype for clips in kept._memory.values() for packed in clips.values()}
    assert sizes == {torch.uint8, torch.float32}
    wanted = plain.__getitems__(list(range(10)))
    for path in paths:
        path.unlink()
    for i, item in enumerate(first + kept.__getitems__(list(range(5, 10)))):
        assert torch.equal(item.clips["left"].x, wanted[i].clips["left"].x) and item.clips["left"].valid == (10,)
    with pytest.raises(ValueError, match="in a row"):
        plain[0]


def test_a_source_of_another_kind_needs_the_protocol_alone():
    assert isinstance(Computed(), Source)
    data = MediaDataset(Computed(5), {"left": Signal()}, {"caption": ("text", Raw())}, memory=True)
    batch = data.collate(data.__getitems__([0, 1, 2, 3, 4, 5]))
    assert sorted(batch.index[:5].tolist()) == list(range(5))
    assert (
        batch.media["left"][:, 0, 0].tolist() == batch.index.tolist()
        and batch.fields["caption"][0] == f"number {batch.index[0]}"
    )


def test_the_validation_part_is_a_function_of_the_seed_and_keeps_files_together(tmp_path):
    write_signals(tmp_path, [10] * 6)
    lines = [{"file_name": f"s{i:03d}.npy", "text": t} for i in range(6) for t in ("a", "b")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = FileSource.read(tmp_path, MEDIA)
    for validation, files in ((2, 2), (0.5, 3), (0.0001, 1)):
        train, val = split(source, validation, 4)
        assert len(val) == 2 * files and sorted([*train, *val]) == list(range(12))
        assert {source.rows[i]["file"] for i in train}.isdisjoint(source.rows[i]["file"] for i in val)
    assert len({tuple(split(Computed(100), 5, seed)[1]) for seed in range(5)}) == 5
    assert (split(Computed(100), 5, 1)[1] == split(Computed(100), 5, 1)[1]).all()
    for wrong in (0, 6, 1.0, -0.1):
        with pytest.raises(ValueError, match="at least 1 and at most 5 of 6 files"):
            split(source, wrong, 0)


# ---------------------------------------------------------------- check


def mixed(folder):
    write_signals(folder, [10, 30, 5])
    write_signals(folder, [10], channels=1, start=3)
    (folder / "broken.npy").write_bytes(b"no array")
    (folder / "empty.npy").write_bytes(b"")


def test_the_check_counts_what_will_happen_and_training_drops_the_same_files(tmp_path):
    mixed(tmp_path / "set")
    source = FileSource.read(tmp_path / "set", MEDIA)
    report = source.check(progress=False)
    counts = report.counts()
    assert counts["left"] == {"used": 4, "cropped": 1, "padded": 1, "resampled": 0, "absent": 0, "dropped": 2, "seconds": 5.5}
    assert counts["right"]["used"] == 3 and counts["right"]["absent"] == 1
    assert [f.rsplit("/")[-1] for f, _ in report.dropped] == ["broken.npy", "empty.npy"]
    assert report.wanted == 6
    with Console(record=True, width=120) as console:
        console.print(report.table())
    text = console.export_text()
    assert "4 of 6 files usable" in text and "0:00:05.5" in text
    facts = json.loads(report.write(tmp_path / "out/report.json").read_text())
    assert facts["usable"] == 4 and len(facts["dropped"]) == 2 and facts["dropped"][0]["reason"].startswith("is no array")
    assert facts["absent"] == [{"file": str(tmp_path / "set/s003.npy"), "stream": "right", "reason": "has no channel 1"}]
    assert "broken.npy\tis no array" in report.write(tmp_path / "report.txt").read_text()
    checked = source.checked(0.5, progress=False)
    assert checked.rows == report.usable and checked.seconds(1) == 3.0 and checked.checked(0.0) is checked


def test_too_many_bad_files_stop_with_the_list_and_missing_files_count(tmp_path):
    mixed(tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)wanted at most 1\.00% unusable files.*got 33\.33%: 2 of 6 dropped.*broken\.npy: is no array"
    ):
        FileSource.read(tmp_path, MEDIA).checked(progress=False)
    (tmp_path / "metadata.csv").write_text("file_name,text\ns000.npy,a\ngone.npy,b\n")
    for name in ("broken.npy", "empty.npy"):
        (tmp_path / name).unlink()
    source = FileSource.read(tmp_path, MEDIA)
    assert len(source.check(progress=False).dropped) == 1
    with pytest.raises(ValueError, match="gone.npy: no such file"):
        source.checked(0.1, progress=False)
    with pytest.raises(ValueError, match=r"(?s)wanted usable files, got none.*a\.wav: \.wav has no left; \.wav has no right"):
        check([{"file": str(tmp_path / "a.wav")}], MEDIA, progress=False).require(1.0)


def test_a_bad_header_is_found_without_a_check_too(tmp_path):
    mixed(tmp_path)
    data = dataset(tmp_path)
    batch = data.collate(data.__getitems__(list(range(12))))
    bad = {i for i, row in enumerate(data.source.rows) if "s00" not in row["file"]}
    assert len(bad) == 2 and bad.isdisjoint(batch.index.tolist()) and batch.faults
    with pytest.raises(MediaError, match="broken.npy"):
        data.source.seconds(min(bad))


def test_a_reading_is_remembered_and_a_missing_reader_field_is_not_read():
    calls = []

    class Counting(Words):
        def __call__(self, value):
            calls.append(value)
            return super().__call__(value)

    data = MediaDataset(Computed(4), {"left": Signal()}, {"a": ("text", Counting()), "b": ("nothing", Counting())})
    for _ in range(3):
        batch = data.collate(data.__getitems__(list(range(8))))
    assert len(calls) == 4 and not batch.present["b"].any() and batch.present["a"].all()


def test_wrong_options_and_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose from random, first, windows"):
        MediaDataset(Computed(), MEDIA, crop="middle")
    with pytest.raises(ValueError, match="wanted an order of 20 items, got one of 3"):
        MediaDataset(Computed(), MEDIA, order=Order(3))
    with pytest.raises(ValueError, match="at least one row"):
        FileSource([], MEDIA)
    source = Computed()
    source.load = lambda i, s, m, t: Computed().load(i, s, Signal(length=5), t)
    with pytest.raises(ValueError, match=r"left: wanted clips of shape \(1, 10\), got \(1, 5\)"):
        MediaDataset(source, {"left": Signal()})[0]
