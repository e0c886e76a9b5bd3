"""mmldm encode: from a codec's folder to a cache that training reads, on one process or two, with captions encoded too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmldm import config, trained
from mmldm.commands import cli, encoding, sources
from mmldm.conditioner import HubTextConditioner
from mmldm.data import LatentCache, StoredEncodings
from mmldm.interfaces import Encoded, MediaError
from mmldm.media import ImageMedia
from mmldm.model import Whitening
from tests.test_conditioner_hub import save_t5

SMALL = {"width": 8, "blocks": 1, "media": {"_target_": "mmldm.media.image.ImageMedia", "height": 16, "width": 16}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures with captions, an untrained codec's folder, and a tiny language model."""
    root = tmp_path_factory.mktemp("encode")
    (root / "pictures").mkdir()
    for i in range(14):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"pictures/{i:02d}.png")
        (root / f"pictures/{i:02d}.txt").write_text(("a red dot", "blue", "a dot")[i % 3])
    spec = {"_target_": "mmldm.codec.image.ImageCodec", **SMALL}
    torch.manual_seed(0)
    codec = config.build(spec)
    whole = {"codecs": {"image": spec}, "clips": {"image": {}}}
    trained.save_codec(root / "codec/model", whole, codec, Whitening.of(codec), {}, "a card")
    (root / "words").mkdir()
    save_t5(root / "words")
    return root


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


def words(*more):
    return ["encode", "codec", "data.path=pictures", "data.workers=0", "batch_size=2", *more]


def same(a, b):
    assert len(a) == len(b) and a.rows == b.rows and (a.unreadable == b.unreadable).all()
    entries = np.flatnonzero(~a.unreadable)
    assert torch.equal(a.batch(entries)[0]["image"].mean, b.batch(entries)[0]["image"].mean)


@pytest.fixture(scope="module")
def alone(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.main(words("out=alone")) == 0
    return LatentCache(root / "alone")


def test_a_folder_becomes_a_cache_and_nothing_else(alone, capsys):
    assert cli.main(words("out=alone")) == 0
    assert capsys.readouterr().out == "14 clips in alone\n" and len(alone) == 14 and not alone.unreadable.any()
    assert {path.name for path in Path().iterdir()} <= {"pictures", "codec", "words", "alone", "two ranks", "captioned", "run"}


def test_files_that_break_while_they_are_encoded_are_counted_and_told(alone, root, monkeypatch, capsys):
    broken = ImageMedia.load

    def load(self, path, start=0.0):
        if str(path).endswith(("03.png", "05.png")):
            raise MediaError(path, "is broken inside")
        return broken(self, path, start)

    monkeypatch.setattr(ImageMedia, "load", load)
    assert cli.main(words("out=faulty")) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == ["14 clips in faulty", f"2 of them could not be read, the first: {root}/pictures/03.png: is broken inside"]
    shutil.rmtree("faulty")


def test_entries_of_files_that_are_gone_are_counted(alone, root, capsys):
    assert cli.main([*words("out=alone")[:2], f"data.path={root}/few.csv", *words("out=alone")[3:]]) == 2
    (root / "few.csv").write_text("file\n" + "".join(f"pictures/{i:02d}.png\n" for i in range(4)))
    assert cli.main([*words("out=alone")[:2], f"data.path={root}/few.csv", *words("out=alone")[3:]]) == 0
    assert capsys.readouterr().out == "4 clips in alone\n10 further entries belong to none of these files and are not used\n"
    assert cli.main(words("out=alone")) == 0


def test_two_processes_write_what_one_writes(alone, root):
    command = [
        sys.executable,
        "-m",
        "mmldm.commands.cli",
        *words("out=two ranks", "trainer.devices=2", "trainer.accelerator=cpu"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "14 clips in two ranks\n" and "MEMBER: 2/2" in done.stderr
    same(alone, LatentCache(root / "two ranks"))
    assert sorted(p.suffix for p in root.glob("*.log")) == []


def test_another_preset_or_model_is_refused_in_a_line(alone, capsys):
    assert cli.main(words("out=alone", "data.size=[32,32]")) == 2
    told = capsys.readouterr().err
    assert "image: wanted media height=32, width=32, got height=16, width=16" in told and "out=" in told
    assert cli.main(["encode", "data.path=pictures", "out=x"]) == 2
    assert "wanted a trained model first" in capsys.readouterr().err
    assert cli.main(words("codec", "out=x")[:2] + words("out=x")[1:]) == 2
    assert "wanted one codec per stream, got a second one of image" in capsys.readouterr().err


def test_captions_are_encoded_once_and_read_in_training(root):
    name = f"conditions.conditioners.text.name_or_path={root / 'words'}"
    assert cli.main(words("out=captioned", "conditions=text_hub", name, "cache.dtype=float32")) == 0
    cfg = config.compose(["data=cache", "data.cache=captioned", "conditions=text_hub", name])
    conditions = config.build(cfg.conditions)
    key, reader = sources.condition_readers(cfg.data, conditions)["text"]
    assert key == "text" and isinstance(reader, StoredEncodings)
    texts = ["blue", None, "a red dot"]
    stored = reader.collate([None if text is None else reader(text) for text in texts])
    conditioner = conditions.conditioners["text"]
    wanted = conditioner.encode(conditioner.reader.collate([None if t is None else conditioner.reader(t) for t in texts]))
    assert isinstance(stored, Encoded) and torch.equal(stored.value["mask"], wanted["mask"])
    assert all(torch.allclose(stored.value[k], wanted[k], atol=1e-5) for k in ("tokens", "pooled"))
    other = HubTextConditioner("text", str(root / "words"), max_tokens=5)
    conditions.conditioners["text"] = other
    assert sources.condition_readers(cfg.data, conditions)["text"][1] is other.reader


def test_a_diffusion_model_trains_from_a_cache_of_latents_and_captions(root, monkeypatch):
    name = f"conditions.conditioners.text.name_or_path={root / 'words'}"
    assert cli.main(words("out=captioned", "conditions=text_hub", name)) == 0
    runs = []
    monkeypatch.setattr(HubTextConditioner, "encode", counted(HubTextConditioner.encode, runs))
    tiny = ["denoiser=dit_tiny", "denoiser.width=16", "denoiser.depth=1", "denoiser.heads=2", "diffusion.steps=2"]
    quick = [
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "previews=0",
        "data.batch_size=4",
        "ema=[0.1]",
        "snapshots=0",
    ]
    data = ["codec.image=codec", "data=cache", "data.cache=captioned", "conditions=text_hub", name, "run=run"]
    assert cli.main(["train", "experiment=image_diffusion", *data, *tiny, *quick]) == 0
    assert all(batch == 1 for batch in runs)  # the empty text at the construction of a conditioner, nothing else


def counted(encode, runs):
    def wrapped(self, read):
        runs.append(len(read["ids"]))
        return encode(self, read)

    return wrapped


def test_words_of_any_kind_become_a_list():
    from mmldm.commands.encode import listed

    paths = ["a b", 'c"d', "e,f", "g=h", "$i", "j\\k"]
    assert list(config.compose(listed("models", paths), "encode").models) == paths
    assert listed("trust", []) == []


def test_a_configuration_of_the_program_itself_encodes_too(alone):
    words = ["models=[codec]", "data.path=pictures", "data.workers=0", "out=alone", "batch_size=2"]
    same(alone, encoding.encode(config.compose(words, "encode"), progress=False))
