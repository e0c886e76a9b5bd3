"""Data sets of the library `datasets` are items like files: undecoded until a load, captioned by our names."""

import json
import pickle
import sys

import datasets
import pytest
import torch

from mmldm import config
from mmldm.commands.sources import build_source
from mmldm.data import FileSource
from mmldm.interfaces import MediaError
from mmldm.media import AudioMedia, ImageMedia, save_audio, save_image

datasets.disable_progress_bars()
IMAGE, AUDIO = ImageMedia(8, 8), AudioMedia(8000, 1, 0.5)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four grey pictures, PNG and JPEG, one broken, one a path, as bytes; saved."""
    root = tmp_path_factory.mktemp("pictures")
    held = []
    for i, name in enumerate(("a.png", "b.jpg", "c.png", "d.png")):
        save_image(torch.full((3, 8, 10), i / 2 - 1), root / name)
        held.append({"bytes": (root / name).read_bytes(), "path": (None, name, "c.png", str(root / name))[i]})
    held[2]["bytes"], held[3]["bytes"] = b"broken", None
    features = datasets.Features({
        "picture": datasets.Image(decode=False), "text": datasets.Value("string"), "size": datasets.Value("int64"),
        "label": datasets.ClassLabel(names=["red_fox", "owl"]), "captions": datasets.List(datasets.Value("string")),
        "mask_file": datasets.Value("string"),
    })  # fmt: skip
    columns = {"picture": held, "text": ["one", "two", "three", None], "size": [8, 9, 8, 8], "label": [0, 1, 1, 0],
               "captions": [["x", "y"], ["z"], [], []], "mask_file": ["/etc/passwd"] * 4}  # fmt: skip
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(root / "saved")
    return root


def raw(column, feature, held):
    """A data set of one column as it is stored, without the library's own encoding."""
    stored = datasets.Features({column: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    return datasets.Dataset.from_dict({column: held}, features=stored).cast_column(column, feature)


def test_a_saved_data_set_is_read_like_a_folder(pictures):
    source = FileSource.read(pictures / "saved", {"image": IMAGE})
    assert source.row(0) == {"file": f"{pictures / 'saved'}::00000000/picture.png", "text": "one", "label": "red_fox",
                             "size": 8, "captions": ["x", "y"]}  # fmt: skip
    assert source.row(3)["text"] == "red fox" and source.row(1)["file"].endswith("picture.jpg")
    report = source.check(progress=False)
    assert [f.rsplit("::")[1] for f, _ in report.dropped] == ["00000002/picture.png"]
    usable = pickle.loads(pickle.dumps(source.checked(1.0, progress=False)))
    for i, value in enumerate((-1.0, -0.5, 0.5)):
        assert usable.load(i, "image", IMAGE, 0.0).x.mean() == pytest.approx(value, abs=0.02)
    assert len({usable.key(i) for i in range(3)}) == 3
    with pytest.raises(MediaError, match=r"saved::00000002/picture.png: is not a picture"):
        source.infos(2)


def test_the_columns_of_captions_and_an_order_of_its_own(pictures, tmp_path):
    source = FileSource.from_hub(pictures / "saved", {"image": IMAGE}, caption="captions")
    assert [(row["text"], row["file"][-20:]) for row in source.rows] == [
        ("x", "00000000/picture.png"), ("y", "00000000/picture.png"), ("z", "00000001/picture.jpg"),
        ("owl", "00000002/picture.png"), ("red fox", "00000003/picture.png")]  # fmt: skip
    with pytest.raises(ValueError, match="wanted a column of captions, got 'words'; choose from picture, text"):
        FileSource.from_hub(pictures / "saved", {"image": IMAGE}, caption="words")
    data = datasets.load_from_disk(str(pictures / "saved")).select([1, 0])
    data.save_to_disk(tmp_path / "turned")
    turned = FileSource.read(tmp_path / "turned", {"image": IMAGE})
    assert [row["text"] for row in turned.rows] == ["two", "one"]
    assert turned.load(1, "image", IMAGE, 0.0).x.mean() == pytest.approx(-1, abs=0.01)


def test_splits_sounds_and_what_is_missing(tmp_path):
    held = []
    for i in range(2):
        save_audio(torch.full((1, 8000), 0.25 * i), tmp_path / f"{i}.wav", 8000)
        held.append({"bytes": (tmp_path / f"{i}.wav").read_bytes(), "path": f"{i}.wav"})
    parts = {name: raw("sound", datasets.Audio(decode=False), held[i : i + 1]) for i, name in enumerate("ab")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    source = FileSource.from_hub(tmp_path / "saved", {"audio": AUDIO}, split="b").checked(progress=False)
    assert source.seconds(0) == 1.0 and source.load(0, "audio", AUDIO, 0.0).x.mean() == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ValueError, match="wanted a split, got None; choose from a, b"):
        FileSource.read(tmp_path / "saved", {"audio": AUDIO})
    with pytest.raises(ValueError, match="wanted columns of files ending in .bmp.*, got sound in 1 rows"):
        FileSource.from_hub(tmp_path / "saved", {"image": IMAGE}, split="a")
    datasets.Dataset.from_dict({"n": [1]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(ValueError, match="wanted a column of images, sounds or videos, got n"):
        FileSource.read(tmp_path / "numbers", {"audio": AUDIO})


def test_a_path_to_another_machine_is_not_followed(monkeypatch):
    held = [{"bytes": None, "path": "http://192.0.2.1/a.png"}, {"bytes": None, "path": None}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: raw("image", datasets.Image(), held))
    source = FileSource.from_hub("some/set", {"image": IMAGE})
    for i, why in enumerate(("is kept elsewhere: http", "is empty")):
        with pytest.raises(MediaError, match=why), source.files.local(source.row(i)["file"]):
            pass


def test_a_name_goes_to_the_library_and_its_errors_come_back(tmp_path, monkeypatch):
    lines = [{"text": "a", "image": None}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or (_ for _ in ()).throw(OSError("no such set"))
    )
    cfg = config.compose(["experiment=image_codec", "run=r", "data=hub", "data.path=some/set", "data.split=train"])
    with pytest.raises(ValueError, match="wanted a data set, got some/set: no such set"):
        build_source(cfg.data, {"image": IMAGE})
    assert asked == [(("some/set", None), {"split": "train"})]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install mmldm\[hub\]"):
        FileSource.from_hub("some/set", {"image": IMAGE})
