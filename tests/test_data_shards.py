"""Tar shards are read by range, in the order of a folder; a hostile or broken archive harms nothing and says what it is."""

import io
import json
import os
import pickle
import tarfile
import tempfile

import fsspec
import numpy as np
import pytest
import torch

from mmldm.data import FileSource, MediaDataset
from mmldm.data.shard_index import _read
from mmldm.data.shards import expand, find_shards
from mmldm.interfaces import MediaError
from mmldm.media import AudioMedia, VideoMedia, save_audio, save_image, save_video
from tests.data_fakes import Raw, Signal, write_signals

MEDIA = {"signal": Signal()}


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """Indices that cannot lie beside their shard go here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return tmp_path / "cache-home"


def npy(value=0.0, samples=12):
    held = io.BytesIO()
    np.save(held, np.full((1, samples), value, dtype=np.float32))
    return held.getvalue()


def sized(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info


def write_tar(path, members, **options):
    """A tar of (name or TarInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else sized(member, data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shards_of(folder, into, count):
    """The files of a folder in `count` consecutive shards."""
    files = sorted(folder.iterdir())
    names = sorted({f.stem for f in files})
    into.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(np.array_split(names, count)):
        with tarfile.open(into / f"part-{i:02d}.tar", "w") as archive:
            for file in files:
                if file.stem in part:
                    archive.add(file, file.name)
    return into


def values(source):
    return [float(source.load(i, "signal", MEDIA["signal"], 0.0).x[0, 0]) for i in range(len(source))]


# ---------------------------------------------------------------- the same as a folder


@pytest.mark.parametrize("count", [1, 3])
def test_shards_of_a_folder_give_its_items_at_every_position(tmp_path, count):
    write_signals(tmp_path / "files", [8, 12, 25, 10, 31, 10, 17])
    shards_of(tmp_path / "files", tmp_path / "shards", count)
    folder, shards = (FileSource.read(tmp_path / name, MEDIA).checked(progress=False) for name in ("files", "shards"))
    one, other = (
        MediaDataset(s, MEDIA, {"text": ("text", Raw())}, seed=5) for s in (folder, pickle.loads(pickle.dumps(shards)))
    )
    for a, b in zip(one.__getitems__(range(20)), other.__getitems__(range(20)), strict=True):
        assert (a.position, a.index, a.start, a.values) == (b.position, b.index, b.start, b.values)
        assert torch.equal(a.clips["signal"].x, b.clips["signal"].x)
    assert [shards.key(i) for i in range(7)] == [folder.key(i) for i in range(7)]
    assert [shards.seconds(i) for i in range(7)] == [folder.seconds(i) for i in range(7)]


def test_captions_labels_and_fields_come_from_txt_json_and_cls(tmp_path):
    fields = {"caption": "from json", "fps": 24, "mask_file": "/etc/passwd", "file": "x", "label": 3}
    write_tar(tmp_path / "a.tar", [
        ("sub/b.npy", npy(2)), ("sub/b.json", json.dumps(fields).encode()), ("sub/b.txt", b"from txt"),
        ("./a.npy", npy(1)), ("./a.txt", "\ufeff zwölf\n".encode()), ("./a.cls", b"7"),
        ("c.other.npy", npy(9)), ("c.npy", npy(3)), ("c.json", b"[1]"), ("c.txt", b"\xff"),
        ("d.txt", b"alone"), (".hidden/e.npy", npy()), ("._a.npy", npy()), ("f.exe", b"MZ"),
    ])  # fmt: skip
    source = FileSource.read(tmp_path / "a.tar", MEDIA)
    shard = tmp_path / "a.tar"
    assert source.rows == [
        {"file": f"{shard}::a.npy", "text": "zwölf", "label": "7"}, {"file": f"{shard}::c.npy", "text": None, "label": None},
        {"file": f"{shard}::sub/b.npy", "text": "from json", "label": "3", "fps": 24},
    ]  # fmt: skip
    assert values(source) == [1, 3, 2]
    told = dict(source.ignored)
    assert "file, mask_file would name files outside" in told[f"{shard}::sub/b.json"]
    assert "wanted an object, got list" in told[f"{shard}::c.json"] and "wanted text in UTF-8" in told[f"{shard}::c.txt"]
    assert "a description alone" in told[f"{shard}::d"] and "exe" in told[f"{shard}::f"] and len(told) == 5


def test_long_names_pax_headers_and_scattered_members_are_found(tmp_path):
    long = "x" * 90 + "/" + "ü" * 80 + "/" + "y" * 120
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members = [(f"{long}/a.npy", npy(1)), ("b.npy", npy(2)), (f"{long}/a.txt", b"far apart")]
        source = FileSource.read(write_tar(tmp_path / f"{form}.tar", members, format=form), MEDIA)
        assert values(source) == [2, 1] and source.row(1)["text"] == "far apart" and long in source.row(1)["file"]


def test_each_stream_reads_the_member_that_is_its_own(tmp_path):
    video, audio = VideoMedia(4, 8, 16, 16), AudioMedia(8000, 1, 0.5)
    save_video(torch.zeros(3, 8, 16, 16), tmp_path / "a.mp4", 8, torch.zeros(1, 8000), 8000)
    save_audio(torch.full((1, 8000), 0.5), tmp_path / "a.wav", 8000)
    members = [("a.mp4", (tmp_path / "a.mp4").read_bytes()), ("a.wav", (tmp_path / "a.wav").read_bytes())]
    members.append(("b.mp4", members[0][1]))
    source = FileSource.read(write_tar(tmp_path / "s/x.tar", members), {"video": video, "audio": audio}).checked(progress=False)
    assert source.row(0)["file"].endswith("::a.mp4") and source.row(0)["audio_file"].endswith("::a.wav")
    assert "audio_file" not in source.row(1) and source.key(0) != source.key(1)
    assert source.load(0, "audio", audio, 0.0).x.mean() > 0.4 and source.load(1, "audio", audio, 0.0).x.abs().max() < 0.1
    assert source.load(0, "video", video, 0.0).x.shape == video.shape


# ---------------------------------------------------------------- the index


def test_headers_are_read_once_and_a_changed_shard_again(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "s/x.tar", [("a.npy", npy(1)), ("b.npy", b"broken")])
    first = FileSource.read(shard, MEDIA).check(progress=False)
    keys = FileSource.read(shard, MEDIA).key(0)
    assert {p.name for p in shard.parent.iterdir()} == {"x.tar", "x.tar.index.json", "x.tar.facts.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr("tarfile.open", None)
        patch.setattr("mmldm.data.shards.ShardFiles._range", None)
        again = FileSource.read(shard, MEDIA)
        assert again.check(progress=False) == first and again.key(0) == keys and first.dropped[0][0] == f"{shard}::b.npy"
        with pytest.raises(TypeError):
            FileSource.read(shard, {"signal": Signal(length=20)}).infos(0)  # other media, other facts
    with open(shard.parent / "x.tar.facts.jsonl", "a") as facts:
        facts.write('[[1, 2, 3], "::a.npy", "sha256", "of an older shard"]\n["torn')
    assert FileSource.read(shard, MEDIA).key(0) == keys
    old = FileSource.read(shard, MEDIA)
    write_tar(shard, [("a.npy", npy(5, 30)), ("c.npy", npy(6))])
    with pytest.raises(MediaError, match="a.npy: cannot be read: the shard has changed since it was indexed"):
        old.load(0, "signal", MEDIA["signal"], 0.0)
    source = FileSource.read(shard, MEDIA)
    assert values(source) == [5, 6] and source.seconds(0) == 3.0 and source.key(0) != keys


def test_an_index_that_cannot_lie_beside_its_shard_lies_in_the_cache_folder(tmp_path, monkeypatch, cache_home):
    from mmldm.data import shard_index

    shard = write_tar(tmp_path / "s/x.tar", [("a.npy", npy(1))])
    replacing = shard_index.replacing

    def refusing(path):
        if str(path).startswith(str(shard.parent)):
            raise PermissionError
        return replacing(path)

    monkeypatch.setattr(shard_index, "replacing", refusing)
    FileSource.read(shard, MEDIA).check(progress=False)
    assert [p.name for p in shard.parent.iterdir()] == ["x.tar"] and len(list(cache_home.rglob("*.json*"))) == 2
    cache_home.joinpath("mmldm/shards").rename(cache_home / "gone")
    (cache_home / "mmldm/shards").write_text("no folder")
    assert values(FileSource.read(shard, MEDIA)) == [1]


# ---------------------------------------------------------------- which shards


def test_patterns_lists_folders_and_single_shards(tmp_path):
    assert expand("x{8..10}-{a,b}.tar") == [f"x{i}-{c}.tar" for i in (8, 9, 10) for c in "ab"]
    assert expand("{098..101}") == ["098", "099", "100", "101"] and expand("x{y}.tar") == ["x{y}.tar"]
    shards = [str(write_tar(tmp_path / f"x-{i:03d}.tar", [(f"{i}.npy", npy(i))])) for i in range(3)]
    for path in (tmp_path, f"{tmp_path}/x-{{000..002}}.tar", f"{tmp_path}/*.tar", shards, tmp_path / "x-00?.tar"):
        assert find_shards(path, (".npy",)) == shards and values(FileSource.read(path, MEDIA)) == [0, 1, 2]
    assert find_shards(shards[1], (".npy",)) == shards[1:2]
    with pytest.raises(ValueError, match=r"wanted 4 shards, 1 are missing, the first: .*x-003.tar: no such file"):
        FileSource.read(f"{tmp_path}/x-{{000..003}}.tar", MEDIA)
    (tmp_path / "loose.npy").write_bytes(npy())
    source = FileSource.read(tmp_path, MEDIA)
    assert len(source) == 1 and sum("shard among other files" in why for _, why in source.ignored) == 3


def test_a_compressed_tar_is_refused(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.npy", npy())])
    with tarfile.open(tmp_path / "z" if (tmp_path / "z").mkdir() else tmp_path / "z/y.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "x.tar")
    with pytest.raises(ValueError, match="wanted plain tar shards.*y.tar.gz"):
        FileSource.read(tmp_path / "z", MEDIA)
    (tmp_path / "z/y.tar.gz").rename(tmp_path / "z/y.tar")
    with pytest.raises(ValueError, match="wanted a plain tar, got .*compressed by gzip"):
        FileSource.read(tmp_path / "z", MEDIA)


# ---------------------------------------------------------------- broken and hostile


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def test_a_truncated_shard_gives_its_whole_samples_and_one_line(tmp_path):
    members = [(f"{name}.{kind}", data) for name in "abc" for kind, data in (("npy", npy(ord(name))), ("txt", b"t"))]
    size = write_tar(tmp_path / "s/x.tar", members).stat().st_size
    block = 1024  # header and data of a member
    for kept, expected in ((5 * block + 100, 2), (4 * block + 600, 2), (3 * block + 100, 1)):
        write_tar(tmp_path / "s/x.tar", members)
        cut(tmp_path / "s/x.tar", kept)
        source = FileSource.read(tmp_path / "s", MEDIA)
        ((shard, why),) = source.skipped
        assert len(source) == expected and all(row["text"] == "t" for row in source.rows)
        assert shard.endswith("x.tar") and f"the {expected} samples before are used" in why and "damaged after byte" in why
    write_tar(tmp_path / "s/x.tar", members)
    cut(tmp_path / "s/x.tar", 6 * block)
    source = FileSource.read(tmp_path / "s", MEDIA)
    assert len(source) == 3 and not source.skipped and "without an end mark" in source.ignored[0][1] and size > 6 * block


def test_a_damaged_header_is_not_the_end(tmp_path):
    shard = write_tar(tmp_path / "x.tar", [(f"{i}.npy", npy(i)) for i in range(5)])
    data = bytearray(shard.read_bytes())
    data[3 * 1024 : 3 * 1024 + 512] = os.urandom(512)
    shard.write_bytes(data)
    source = FileSource.read(shard, MEDIA)
    assert values(source) == [0, 1] and "damaged after byte 3072: no header" in source.skipped[0][1]


def test_an_unreadable_shard_is_a_counted_skip_and_nothing_readable_an_error(tmp_path):
    write_tar(tmp_path / "b.tar", [("a.npy", npy(4))])
    for name, data in (("a.tar", b""), ("c.tar", b"no archive" * 200), ("d.tar", bytes(10240))):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "e.tar").mkdir()
    source = FileSource.read(tmp_path, MEDIA)
    assert values(source) == [4] and [os.path.basename(s) for s, _ in source.skipped] == ["a.tar", "c.tar", "e.tar"]
    report = source.check(progress=False)
    assert len(report.dropped) == 3 and report.wanted == 4
    for name in "acde":
        with pytest.raises(
            ValueError, match=rf"wanted samples with a member ending in .npy, got none in 1 shards \(.*{name}.tar"
        ):
            FileSource.read([str(tmp_path / f"{name}.tar")], MEDIA)


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_hostile_archive_writes_nothing_and_reads_only_its_own(tmp_path, audit):
    (tmp_path / "secret.npy").write_bytes(npy(666))
    members = [
        ("../../x.npy", npy()), ("/absolute.npy", npy()), ("ok/../../up.npy", npy()), ("new\nline.npy", npy()),
        (special("soft.npy", tarfile.SYMTYPE, "../secret.npy"), b""), (special("hard.npy", tarfile.LNKTYPE, "a.npy"), b""),
        (special("null.npy", tarfile.CHRTYPE), b""), (special("pipe.npy", tarfile.FIFOTYPE), b""),
        ("a.npy", npy(1)), ("a.npy", npy(2)), ("empty.npy", b""), ("c.exe", b"MZ"), ("d.npy.pyd", b"code"),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "s/x.tar", members)
    with audit.watch() as events:
        source = FileSource.read(shard, MEDIA)
        assert [row["file"].split("::")[1] for row in source.rows] == ["a.npy", "empty.npy"]
        assert source.load(0, "signal", MEDIA["signal"], 0.0).x[0, 0] == 2
        assert source.check(progress=False).dropped[0][0] == f"{shard}::empty.npy"
    assert sorted(os.listdir(tmp_path)) == ["s", "secret.npy"]
    assert not {e for e, _ in events} & {"os.symlink", "os.link", "os.system", "subprocess.Popen", "exec"}
    written = {str(a[0]) for e, a in events if e == "open" and isinstance(a[1], str) and set(a[1]) & set("wax+")}
    assert all("mmldm-" in name or name.startswith(str(shard.parent)) for name in written) and written
    assert not any("secret" in str(a[0]) for e, a in events if e == "open")
    reasons = [why for _, why in source.ignored]
    assert sum("leads out of the archive" in why for why in reasons) == 4
    assert sum("no regular file" in why for why in reasons) == 4
    assert sum("second member" in why for why in reasons) == 1 and sum("another kind" in why for why in reasons) == 2
    assert all(name.isprintable() for name, _ in source.ignored)


def test_no_sparse_member_is_read(tmp_path):
    sparse = tarfile.TarInfo("s.npy")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.npy",
                          "GNU.sparse.realsize": str(1 << 40)}  # fmt: skip
    sparse.size = 1024
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse, io.BytesIO(b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512))
        archive.addfile(sized("a.npy", npy(1)), io.BytesIO(npy(1)))
    source = FileSource.read(tmp_path / "x.tar", MEDIA)
    assert values(source) == [1] and "a sparse file" in source.ignored[0][1]


def test_random_damage_is_never_more_than_a_line(tmp_path):
    members = [("long/" * 30 + "a.npy", npy(1)), ("b.npy", npy(2)), ("b.txt", b"bee"), ("ü.npy", npy(3))]
    good = write_tar(tmp_path / "good.tar", members).read_bytes()
    draw = np.random.default_rng(0)
    for i in range(150):
        data = bytearray(good)
        for place in draw.integers(0, 8 * 512, 1 + i % 8):
            data[place] = draw.integers(256)
        broken = tmp_path / "broken.tar"
        broken.write_bytes(data[: len(data) if i % 3 else draw.integers(1, len(data))])
        assert set(_read(str(broken), broken.stat().st_size)) == {"samples", "ignored", "damage"}


def header(name, size, kind=tarfile.REGTYPE):
    info = special(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([header("big.npy", 3 << 30), b"little" * 200], "declares 3221225472 bytes"),
        ([header("n", 3 << 30, tarfile.GNUTYPE_LONGNAME), b"x" * 512], "a header of"),
        ([header("n", 3 << 30, tarfile.XHDTYPE), b"x" * 512], "a header of"),
        ([header("n", 12, tarfile.GNUTYPE_LONGNAME), b"y".ljust(512, b"\0")] * 3000, "damaged"),
        ([header("back.npy", -2048)], "damaged"),
    ],
    ids=["huge member", "huge name", "huge pax", "endless names", "backwards"],
)
def test_a_header_that_lies_ends_the_archive_there(tmp_path, blocks, why):
    good = write_tar(tmp_path / "good.tar", [("a.npy", npy(1)), ("b.npy", npy(2))]).read_bytes()[:2048]
    (tmp_path / "x.tar").write_bytes(good + b"".join(blocks))
    source = FileSource.read(tmp_path / "x.tar", MEDIA)
    assert values(source) in ([1], [1, 2]) and why in source.skipped[0][1]


# ---------------------------------------------------------------- elsewhere


@pytest.fixture
def memory():
    """An empty file system that lives in this process."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_remote_shards_are_the_local_ones(tmp_path, memory):
    write_signals(tmp_path / "files", [10, 20, 30, 40])
    shards_of(tmp_path / "files", tmp_path / "shards", 2)
    memory.put(str(tmp_path / "shards"), "/bucket/shards", recursive=True)
    local = FileSource.read(tmp_path / "shards", MEDIA)
    for url in ("memory://bucket/shards", "memory://bucket/shards/part-{00..01}.tar", "memory://bucket/shards/*.tar"):
        source = FileSource.read(url, MEDIA).checked(progress=False)
        assert values(source) == values(local) and [source.row(i)["text"] for i in range(4)] == [r["text"] for r in local.rows]
        assert source.row(0)["file"].endswith("bucket/shards/part-00.tar::s000.npy") and source.key(1) == local.key(1)
    assert len(list((tmp_path / "cache-home").rglob("*.index.json"))) == 2
    with pytest.raises(ValueError, match="wanted shards .* in memory://bucket/none, got none"):
        FileSource.read("memory://bucket/none", MEDIA)
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        FileSource.read("nowhere://bucket/*.tar", MEDIA)


def test_only_ranges_of_a_remote_shard_are_fetched(memory, monkeypatch):
    write = [(f"{i}.npy", npy(i, 100_000)) for i in range(4)]
    memory.pipe("/b/x.tar", write_bytes(write))
    source, asked = FileSource.read("memory://b/x.tar", MEDIA), []
    real = type(memory).cat_file
    monkeypatch.setattr(
        type(memory), "cat_file", lambda s, p, start=None, end=None, **k: asked.append(end - start) or real(s, p, start, end)
    )
    assert source.load(2, "signal", MEDIA["signal"], 0.0).x[0, 0] == 2
    assert asked == [len(write[2][1])] * 2  # the header, then the clip


def test_a_fetch_that_fails_once_is_tried_again_and_one_that_fails_is_named(memory, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    memory.pipe("/b/x.tar", write_bytes([("a.npy", npy(3))]))
    source = FileSource.read("memory://b/x.tar", MEDIA)
    real, failures = type(memory).cat_file, [ConnectionError("reset")] * 2
    monkeypatch.setattr(
        type(memory), "cat_file", lambda *a, **k: (_ for _ in ()).throw(failures.pop()) if failures else real(*a, **k)
    )
    assert values(source) == [3]
    failures += [ConnectionError("reset by peer")] * 3
    with pytest.raises(MediaError, match="b/x.tar::a.npy: cannot be read: reset by peer"):
        source.load(0, "signal", MEDIA["signal"], 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", None)
        with pytest.raises(TypeError):  # the header is known by now
            source.load(0, "signal", MEDIA["signal"], 0.0)
    fresh = FileSource.read("memory://b/x.tar", {"signal": Signal(length=11)})
    failures += [ConnectionError("reset by peer")] * 3
    with pytest.raises(MediaError, match="reset by peer"):
        fresh.infos(0)
    assert fresh.infos(0)["signal"].seconds == 1.2  # a failure of the line is no fact about the file


def write_bytes(members):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, data in members:
            archive.addfile(sized(name, data), io.BytesIO(data))
    return held.getvalue()


def test_a_manifest_may_name_urls(tmp_path, memory):
    paths = write_signals(tmp_path / "files", [10, 20])
    memory.pipe("/b/one.npy", paths[0].read_bytes())
    memory.pipe("/b/broken.npy", b"broken")
    rows = [{"file": "memory://b/one.npy", "text": "far"}, {"file": str(paths[1])}, {"file": "memory://b/broken.npy"},
            {"file": "memory://b/gone.npy"}, {"file": paths[0].as_uri(), "text": "near"}]  # fmt: skip
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = FileSource.read(tmp_path / "list.jsonl", MEDIA)
    report = source.check(progress=False)
    assert [row["text"] for row in report.usable] == ["signal 1 of 20 samples", "near", "far"]
    assert {f: why.split(":")[0] for f, why in report.dropped} == {
        "memory://b/broken.npy": "is no array", "memory://b/gone.npy": "cannot be fetched"}  # fmt: skip
    usable = source.checked(1.0, progress=False)
    assert usable.key(2) == usable.key(1) and usable.load(2, "signal", MEDIA["signal"], 0.0).x.equal(
        usable.load(1, "signal", MEDIA["signal"], 0.0).x)  # fmt: skip
    assert not [f for f in os.listdir(tempfile.gettempdir()) if f.startswith("mmldm-") and f.endswith(".npy")]


# ---------------------------------------------------------------- the commands


def test_pictures_in_shards_are_checked_like_those_of_a_folder(tmp_path, capsys):
    from mmldm.commands import check

    (tmp_path / "files").mkdir()
    for i in range(3):
        save_image(torch.zeros(3, 20, 24), tmp_path / f"files/{i}.png")
    (tmp_path / "files/3.png").write_bytes(b"broken")
    shards_of(tmp_path / "files", tmp_path / "shards", 2)
    assert check.main([str(tmp_path / "shards"), "--report", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["usable"] == 3 and report["dropped"][0]["file"].endswith("part-01.tar::3.png")
    assert "not a picture" in report["dropped"][0]["reason"]


def test_no_reason_names_the_temporary_file(tmp_path):
    class Frank(Signal):
        def probe(self, path):
            raise MediaError(path, f"cannot read {path}")

    source = FileSource.read(write_tar(tmp_path / "x.tar", [("a.npy", npy())]), {"signal": Frank()})
    with pytest.raises(MediaError, match=rf"^{tmp_path}/x.tar::a.npy: cannot read {tmp_path}/x.tar::a.npy$"):
        source.infos(0)
