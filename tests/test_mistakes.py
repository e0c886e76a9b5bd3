"""A newcomer's likeliest mistakes: each is answered in at most six lines, without a traceback, with the fix among them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest

from mmldm import store
from mmldm.commands import cli
from mmldm.trained import load_codecs
from tests import real_files

TINY = ("data=world", "data.items=12", "data.validation=4", "data.batch_size=4", "data.workers=0", "logger=csv", "previews=0",
        "trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "snapshots=0")  # fmt: skip
FILES = ("train", "task=codec", "codec=image_world", "logger=csv")
CODEC = ("train", "task=codec", "codec=image_world", "codec.image.width=8", "codec.image.blocks=1", "data.kind=image", *TINY)
DIFFUSION = ("train", "experiment=image_diffusion", "codec.image=codec", "denoiser=dit_tiny", "data.path=images",
             "data.max_bad_fraction=0.5", "trainer.accelerator=cpu")  # fmt: skip


def run(argv, capsys):
    """Status and lines on stderr of a command line; a traceback fails the test."""
    before = list(sys.argv)
    try:
        status = cli.main(list(argv))
    finally:
        sys.argv = before
    return status, capsys.readouterr().err.splitlines()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with real files, a trained codec, and what goes wrong with such things."""
    folder, before = tmp_path_factory.mktemp("home"), os.getcwd()
    os.chdir(folder)
    argv = list(sys.argv)
    try:
        real_files.images(folder / "images", 6)
        real_files.sounds(folder / "sounds", 4)
        (folder / "empty").mkdir()
        (folder / "unfinished" / "resume").mkdir(parents=True)
        (folder / "notes.txt").write_text("words")
        assert cli.main([*CODEC, "run=codec"]) == 0
    finally:
        os.chdir(before)
        sys.argv = argv
    (part,) = (folder / "codec" / "model").glob("*.safetensors")
    for name in ("damaged", "newer", "renamed"):
        shutil.copytree(folder / "codec" / "model", folder / name / "model")
    flipped = bytearray(part.read_bytes())
    flipped[-1] ^= 1
    (folder / "damaged" / "model" / part.name).write_bytes(flipped)
    manifest = json.loads((folder / "newer" / "model" / "manifest.json").read_text())
    (folder / "newer" / "model" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    return folder


SOUND = ("train", "experiment=audio_diffusion", "data.path=sounds")
RECONSTRUCT = ("images/picture 1.png", "--out", "o.png")
MISTAKES = {
    "a command misspelled": (("trian",), "did you mean 'train'"),
    "no such data": ((*FILES, "data.path=photos"), "no such file or folder"),
    "an empty folder": ((*FILES, "data.path=empty"), "wanted files ending in"),
    "a folder of another modality": ((*FILES, "data.path=sounds"), "wanted files ending in"),
    "broken files": (("train", "experiment=image_codec", "data.path=images"), "mend or remove them"),
    "an experiment misspelled": (("train", "experiment=image_codek"), "did you mean 'image_codec'"),
    "a key misspelled": ((*CODEC, "data.batchsize=4"), "did you mean 'data.batch_size'"),
    "a short key": ((*CODEC, "lr=1e-4"), "did you mean 'optimizer.lr'"),
    "a group misspelled": ((*CODEC, "optimizer=adamv"), "did you mean 'adamw'"),
    "a word for a number": ((*CODEC, "optimizer.lr=fast"), "optimizer.lr: wanted float"),
    "an empty batch": ((*CODEC, "data.batch_size=0"), "wanted a whole number of at least 1"),
    "no steps": ((*CODEC, "trainer.max_steps=0"), "wanted at least 1 step"),
    "nothing accumulated": ((*CODEC, "trainer.accumulate_grad_batches=0"), "wanted a whole number of at least 1"),
    "a precision misspelled": ((*CODEC, "trainer.precision=bf61"), "did you mean 'bf16'"),
    "a setting as an option": (("train", "--experiment", "image_codec"), "settings have no dashes"),
    "no data": (("train", "experiment=image_codec"), "add data.path="),
    "no codec": (("train", "experiment=image_diffusion", "data.path=images"), "add codec.image="),
    "no such codec": ((*DIFFUSION, "codec.image=kodec"), "did you mean 'codec'"),
    "a codec of another stream": ((*SOUND, "codec.audio=codec"), "one of image"),
    "a codec that is not trained yet": ((*DIFFUSION, "codec.image=unfinished"), "train it further with the same command"),
    "no such cache": ((*DIFFUSION, "data.cache=latents"), "make one with `mmldm encode`"),
    "a run that was begun otherwise": ((*CODEC, "run=codec", "data.batch_size=2"), "another run="),
    "a codec that generates": (("generate", "codec", "a red circle"), "choose the run of a diffusion training"),
    "a prompt as a setting": (("generate", "codec", "prompt=a red circle"), 'write "a red circle"'),
    "no such model": (("generate", "runs/image", "a red circle"), "`mmldm runs` lists them"),
    "a flag misspelled": (("generate", "codec", "a", "--guidence", "3"), "did you mean '--guidance'"),
    "a damaged model": (("reconstruct", "damaged", *RECONSTRUCT), "get the model again"),
    "a device that is not there": (("reconstruct", "codec", *RECONSTRUCT, "--device", "tpu9"), "choose --device cpu"),
}  # fmt: skip
RARER = {
    "a file that is no manifest": ((*FILES, "data.path=notes.txt"), "choose from .csv"),
    "a group of another task": ((*CODEC, "denoiser=dit_s"), "leave denoiser=… out"),
    "half a sample": ((*CODEC, "data.batch_size=2.5"), "wanted a whole number of at least 1"),
    "no devices": ((*CODEC, "trainer.devices=-3"), "choose a number, or auto"),
    "devices in words": ((*CODEC, "trainer.devices=two"), "choose for example 1"),
    "no end": ((*CODEC, "trainer.max_steps=-1"), "choose a number of steps, or minutes="),
    "a batch that does not divide": ((*CODEC, "trainer.accumulate_grad_batches=3"), "divisible"),
    "a strategy misspelled": ((*CODEC, "trainer.strategy=dpp"), "invalid strategy name"),
    "fewer than no workers": ((*CODEC, "data.workers=-1"), "wanted a whole number of at least 0"),
    "no validation": ((*CODEC, "data.validation=0"), "wanted a validation part of at least 1"),
    "no checkpoints": ((*CODEC, "checkpoint_every=0"), "wanted a whole number of at least 1"),
    "a crop misspelled": ((*CODEC, "data.crop=center"), "choose from random"),
    "a seed below zero": ((*CODEC, "seed=-1"), "wanted a whole number of at least 0"),
    "spaces around the =": (("train", "experiment", "=", "image_codec"), "write KEY=VALUE without spaces"),
    "a comma in a value": ((*CODEC, "run=a,b"), "quote the value"),
    "no codec at all": (("train", "data.path=images"), "choose for example codec=image_f4"),
    "a folder that is no model": ((*DIFFUSION, "codec.image=images"), "`mmldm runs` lists runs"),
    "a logger misspelled": ((*CODEC, "logger=tensorbord"), "choose from csv"),
    "no prompt": (("generate", "codec"), "wanted a prompt"),
    "a number misspelled": (("generate", "codec", "a", "--steps", "ten"), "invalid int value"),
    "a model of another version": (("reconstruct", "newer", *RECONSTRUCT), "update mmldm"),
    "an unknown suffix": (("reconstruct", "codec", "images/picture 1.png", "--out", "o.xyz"), "choose from .png"),
    "prompts that are not there": (("generate", "codec", "--prompts-file", "list.txt"), "check the path"),
    "a cache without a place": (("encode", "codec", "data.path=images"), "add out="),
    "a codec that is not there": (("codec", "test", "my_lab.EEGCodec"), "there is no my_lab"),
    "a modality misspelled": (("demo", "vidoe"), "choose from image"),
    "runs that are not there": (("runs", "nowhere"), "for example: mmldm runs"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*MISTAKES, *(pytest.param(name, marks=pytest.mark.slow) for name in RARER)])
def test_a_mistake_is_answered_with_its_fix(name, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    argv, fix = (MISTAKES | RARER)[name]
    argv = argv if argv[0] != "train" or any(w.startswith("run=") for w in argv) else (*argv, f"run=runs/{len(name)}")
    status, lines = run(argv, capsys)
    said = "\n".join(lines)
    assert status == 2 and "Traceback" not in said, said
    assert len([line for line in lines if not line.startswith("reading headers")]) <= 6 and fix in said, said


def test_a_gpu_that_is_not_there(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    status, lines = run([*CODEC, "trainer.accelerator=gpu", "run=runs/gpu"], capsys)
    assert status == 2 and "choose trainer.accelerator=auto" in "\n".join(lines) and len(lines) <= 6


@pytest.mark.parametrize("extra", ["wandb", "trackio"])
def test_a_missing_extra(extra, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr("mmldm.media.loggers.importlib.util.find_spec", lambda package: None)
    status, lines = run([*CODEC, f"logger={extra}", f"run=runs/{extra}"], capsys)
    assert status == 2 and f"pip install 'mmldm[{extra}]'" in "\n".join(lines) and len(lines) <= 6


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/resume/x"), "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/x"), "that you may read and write"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "that can be written"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), "a.txt: no such file or directory; check"),
        (ValueError("\n".join(["wanted a", *(f"and {i}" for i in range(20)), "choose b"])), "choose b"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_the_system_refuses(error, fix, capsys):
    def command(argv):
        raise error

    assert cli.run_command(command, [], "train") == 2
    lines = capsys.readouterr().err.splitlines()
    assert fix in "\n".join(lines) and len(lines) <= 6


def test_what_lightning_refuses(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    status, lines = run([*CODEC, "run=runs/refused", "+trainer.fast_dev_run=-1"], capsys)
    assert status == 2 and "fast_dev_run" in "\n".join(lines) and len(lines) <= 6


def test_weights_of_another_version_are_told(home):
    stored = store.load_model(home / "codec")
    weights = dict(stored.parts["codec.image"])
    weights["another"] = weights.pop(next(name for name in weights if not name.startswith("whitening")))
    with pytest.raises(ValueError, match="choose the version that wrote them"):
        load_codecs(replace(stored, parts={"codec.image": weights}))
