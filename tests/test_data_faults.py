"""What goes wrong beside the data is told, and costs neither items nor what is stored: disks, networks, overlapping sets."""

import errno
import logging
import os
import pickle
import random
import tarfile

import fsspec
import numpy as np
import pytest

from mmldm import config
from mmldm.commands import sources
from mmldm.data import DataModule, FileSource, MediaDataset, Member, cache_shard, write_cache
from mmldm.data import files as data_files
from mmldm.data.cache_shard import Shard, intact, write_shard
from mmldm.data.dataset import row_fields
from mmldm.data.files import Files
from mmldm.data.packed import Packed
from mmldm.interfaces import MediaError
from tests.data_fakes import Raw, Signal, encode, write_signals

MEDIA = {"left": Signal()}
PARTS = {"left": {"codec": "abc", "media": repr(MEDIA["left"])}}


def read(folder):
    return lambda media: FileSource.read(folder, media)


def files_of(data, mixture):
    """The files that the parts of a mixture read."""
    return {
        part.dataset.row(position)["file"]
        for part, end in zip(mixture.parts, mixture.ends, strict=True)
        for position in range(end - len(part.dataset), end)
    }


# ---------------------------------------------------------------- what is held out, and what a row says


@pytest.mark.parametrize("cached", [False, True])
def test_a_file_in_two_sources_is_never_in_training_and_validation(tmp_path, caplog, cached):
    write_signals(tmp_path / "all", [10] * 20)
    write_signals(tmp_path / "all/best", [12] * 10, start=30)
    best = Member(read(tmp_path / "all/best"), weight=2)
    if cached:
        write_cache(tmp_path / "kept", FileSource.read(tmp_path / "all/best", MEDIA), MEDIA, encode, PARTS, progress=False)
        best = Member(cache=tmp_path / "kept")
    data = DataModule(
        {"all": Member(read(tmp_path / "all")), "best": best}, MEDIA, batch_size=4, validation=0.3, progress=False
    )
    data.setup()
    held = files_of(data, data.val)
    seen = {item for part in data.train.parts for item in trained_files(part.dataset)}
    assert held and seen and not held & seen
    assert "items are left out of training, since another source holds out their files" in caplog.text


def trained_files(dataset):
    if hasattr(dataset, "cache"):
        return {dataset.cache.rows[dataset.cache.clips.index[entry]]["file"] for entry in dataset.entries}
    return {dataset.source.row(int(row))["file"] for row in dataset.rows}


def test_what_is_measured_counts_and_not_what_a_row_claims(tmp_path):
    (path,) = write_signals(tmp_path, [40])
    source = FileSource([{"file": str(path), "seconds": 9000, "start": 7}], MEDIA)
    dataset = MediaDataset(source, MEDIA, {"length": ("seconds", Raw()), "start": ("start", Raw())}, crop="first")
    assert dataset[0].values == {"length": 4.0, "start": 0.0} and dataset.row(0)["seconds"] == 4.0
    assert row_fields({"seconds": 3.0}, None, 0.0)["seconds"] == 3.0  # where nothing can be measured it is all there is


def test_data_is_the_same_wherever_its_files_are(tmp_path):
    def found(folder):
        paths = write_signals(tmp_path / folder, [10, 20, 30])
        rows = [{"file": str(p), "left_file": str(p), "mask_file_name": str(p)} for p in paths]
        return DataModule(FileSource(rows, MEDIA), MEDIA, validation=1, progress=False).fingerprint()

    assert found("here") == found("there")


# ---------------------------------------------------------------- disks and networks


def test_a_full_folder_of_temporary_files_is_no_fault_of_the_data(tmp_path, monkeypatch):
    (path,) = write_signals(tmp_path, [10])
    system = fsspec.filesystem("memory")
    system.pipe("/full/a.npy", path.read_bytes())

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data_files, "WAITS", ())
    monkeypatch.setattr(type(system), "get_file", full)
    source = FileSource([{"file": "memory://full/a.npy"}], MEDIA)
    with pytest.raises(ValueError, match="wanted room for temporary files in .*, got none; make room, or set TMPDIR=FOLDER"):
        source.check(progress=False)


def test_what_could_not_be_read_is_tried_again_by_the_next_run(tmp_path):
    write_signals(tmp_path / "set", [10, 10, 10, 25])
    source, failing = FileSource.read(tmp_path / "set", MEDIA).checked(progress=False), {1, 3}
    load = source.load

    def sometimes(index, *rest):
        if index in failing:
            raise MediaError(f"item {index}", "cannot be fetched: the line is down")
        return load(index, *rest)

    source.load = sometimes
    make = lambda: write_cache(tmp_path / "cache", source, MEDIA, encode, PARTS, progress=False, batch_size=2)  # noqa: E731
    assert make().unreadable.tolist() == [False, True, False, True, True, True]
    failing.discard(1)
    assert make().unreadable.tolist() == [False, False, False, True, True, True]
    failing.clear()
    cache = make()
    assert not cache.unreadable.any() and cache.unused == 0
    there = load(3, "left", MEDIA["left"], 1.0).x
    assert (cache.batch([4])[0]["left"].mean[0] == encode("left", there[None]).mean[0]).all()


def test_any_flip_in_a_shard_is_damage_and_a_file_that_may_not_be_read_is_none(tmp_path, monkeypatch):
    addresses = np.arange(96, dtype=np.uint8).reshape(3, 32)
    latents = {
        f"left/{name}": part
        for name, part in vars(encode("left", Signal().load(*write_signals(tmp_path, [10])).x[None])).items()
    }
    path = write_shard(tmp_path, "latents", addresses, latents, {"2": "is broken"})
    whole, draw = path.read_bytes(), random.Random(0)
    assert intact([path]) == [True] and Shard(path).unreadable.tolist() == [False, False, True]
    for place in [*range(8, 8 + int.from_bytes(whole[:8], "little")), *draw.sample(range(len(whole)), 50)]:
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        assert intact([path]) == [False] or Shard(path).addresses.tolist() == addresses.tolist()
    path.write_bytes(whole)

    def refused(*args):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(cache_shard, "safe_open", refused)
    with pytest.raises(PermissionError):
        intact([path])  # and so is not made anew


def test_what_is_kept_beside_a_shard_may_be_broken(tmp_path, caplog):
    paths = write_signals(tmp_path / "files", [10, 20, 30])
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for path in paths:
                archive.add(path, f"{name}{path.name}")
    lengths = FileSource.read(tmp_path, MEDIA).checked(progress=False)
    with open(tmp_path / "a.tar.facts.jsonl", "ab") as facts:
        facts.write(b'\xff\xfe\n12\n[1, 2]\nnull\n[[1, 2], "a'[:-1])
    again = FileSource.read(tmp_path, MEDIA).checked(progress=False)
    assert [again.seconds(i) for i in range(6)] == [lengths.seconds(i) for i in range(6)] == [1.0, 2.0, 3.0] * 2
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:700])
    FileSource.read(tmp_path, MEDIA).checked(0.5, progress=False)
    assert "b.tar: is damaged" in caplog.text


def test_names_that_are_no_unicode_are_names(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)  # no report of a test may hold such names
    write_signals(tmp_path / "set", [10, 10])
    for i, odd in enumerate((b"odd\xff.npy", b"broken\xff.npy")):
        content = (tmp_path / "set/s000.npy").read_bytes() if i == 0 else b"nothing"
        with open(os.path.join(os.fsencode(tmp_path / "set"), odd), "wb") as file:
            file.write(content)
    source = FileSource.read(tmp_path / "set", MEDIA).checked(0.5, progress=False)
    assert len(source) == 3 and source.report.write(tmp_path / "check.json").is_file()
    cache = write_cache(tmp_path / "cache", source, MEDIA, encode, PARTS, progress=False)
    assert cache.rows == source.rows and not cache.unreadable.any()


# ---------------------------------------------------------------- many items


def test_packed_values_are_the_values():
    values = [{"file": "a\udcff.wav", "text": "zwölf 十二", "n": 3, "x": 0.5, "none": None}, [1, [2]], "three", {}]
    packed = Packed.of(iter(values))
    assert packed == values and list(packed) == values and packed[-1] == {} and packed[1:3] == values[1:3]
    assert Packed.of([]) == [] and packed != values[:3] and Packed.of([{"n": np.float32(0.5)}]) == [{"n": 0.5}]
    with pytest.raises(IndexError):
        packed[4]


def test_a_source_goes_to_another_process_as_arrays(tmp_path):
    write_signals(tmp_path, [10, 20, 30])
    source = FileSource.read(tmp_path, MEDIA).checked(progress=False)
    there = pickle.loads(pickle.dumps(source))
    assert there.report is None and there.rows == source.rows and there.infos(2) == source.infos(2)
    read = []

    class Counting(Files):
        def probe(self, file, media):
            read.append(file)

    there.files = Counting()
    assert [there.seconds(i) for i in range(3)] == [1.0, 2.0, 3.0] and not read  # the headers go with it


# ---------------------------------------------------------------- the command line


def test_a_mixture_is_encoded_source_by_source():
    cfg = config.compose(["models=[codec]", "out=cache", "data=mixture", "+data.sources.a.path=x"], "encode")
    with pytest.raises(ValueError, match="wanted one source of media, got a mixture or a cache; choose data=folder"):
        sources.build_source(cfg.data, MEDIA)


def test_encodings_beside_the_caches_of_a_mixture_are_told_to_be_unread(tmp_path, caplog):
    from mmldm.conditioner import ConditionSet

    (tmp_path / "encodings-0.safetensors").touch()
    cfg = config.compose(["experiment=world_image_diffusion", "data=mixture", f"+data.sources.a.cache={tmp_path}"])
    sources.condition_readers(cfg.data, ConditionSet({}))
    assert "read with data.cache alone" in caplog.text
