"""The whole way on real files, for each modality, by the README's own commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from mmldm.commands import cli
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, read_metadata, save_audio, save_image
from tests import real_files

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
QUICK = [
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
    "data.workers=0",
    "previews=2",
    "data.batch_size=4",
    "whitening_batches=2",
]
TINY = ["denoiser.width=32", "denoiser.depth=1", "denoiser.heads=2"]
BAD = ["data.max_bad_fraction=0.5"]


def small(words: list[str]) -> list[str]:
    """A training command made small enough for a test."""
    experiment = next((w.partition("=")[2] for w in words if w.startswith("experiment=")), "")
    stream, _, kind = experiment.replace("waveform", "audio").partition("_")
    extra = [*QUICK, *BAD]
    if kind in ("codec", "vocoder"):
        extra += ["data.seconds=1.0"] if stream == "audio" else ["data.size=[32,32]"]
        extra += ["data.seconds=1.125"] if stream == "video" else []
    if kind == "codec" and not any(w.startswith(f"codec.{stream}=") for w in words):
        extra += [f"codec.{stream}.width={4 if 'waveform' in experiment else 16}"]
        extra += [] if "waveform" in experiment else [f"codec.{stream}.blocks=1"]
    if kind == "vocoder":
        extra += ["adversary.discriminators.periods.width=1", "adversary.discriminators.resolutions.width=2"]
        extra += [] if any(w.startswith("vocoder=") for w in words) else ["codec.audio.vocoder.width=16"]
    if "adversary=patch" in words:
        extra += ["adversary.discriminators.patch.width=4"]
    elif kind == "diffusion" or "codec=eeg" in words and "task=codec" not in words:
        extra += [*TINY, *(["data.validation=2"] if "eeg" not in str(words) else [])]
    return words + [e for e in extra if not any(w.startswith(e.partition("=")[0] + "=") for w in words if "max_steps" not in w)]


def mmldm(line: str) -> None:
    """Run one command line as the README has it, training made small."""
    words = shlex.split(line, comments=True)[1:]
    words = small(words) if words[0] == "train" else words
    if words[0] in ("encode", "evaluate"):
        words += ["data.workers=0", *BAD]
    assert cli.main(words) == 0, line


def commands(section: str) -> list[str]:
    """The `mmldm` lines of a section's code blocks, in order."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.splitlines()
        if line.startswith("mmldm ")
    ]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with a user's files and the trained models of every modality."""
    root = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        real_files.images(root / "photos")
        real_files.sounds(root / "sounds")
        real_files.videos(root / "clips")
        for line in commands("Train on your own files"):
            mmldm(line)
        for modality, folder in (("audio", "sounds"), ("video", "clips")):
            mmldm(f"mmldm check {folder}")
            mmldm(f"mmldm train experiment={modality}_codec data.path={folder} run=runs/{modality}-codec")
            mmldm(f"mmldm encode runs/{modality}-codec data.path={folder} out=runs/{modality}-latents")
            mmldm(
                f"mmldm train experiment={modality}_diffusion codec.{modality}=runs/{modality}-codec data.path={folder} "
                f"data.cache=runs/{modality}-latents run=runs/{modality}"
            )
        yield root


def test_checking_names_every_broken_file_with_its_reason(house, monkeypatch):
    monkeypatch.chdir(house)
    mmldm("mmldm check photos --report photos.json")
    report = json.loads(Path("photos.json").read_text())
    assert report["usable"] >= 12 and any("broken.png" in entry["file"] for entry in report["dropped"])
    assert all(entry["reason"] for entry in report["dropped"])


def test_a_folder_of_nothing_but_broken_files_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(real_files.BROKEN)
    assert cli.main(["check", "bad"]) == 1


def test_training_leaves_a_model_and_a_page(house):
    for run in ("codec", "image", "audio-codec", "audio", "video-codec", "video"):
        folder = house / "runs" / run
        assert (folder / "model" / "manifest.json").is_file() and (folder / "index.html").is_file()
        assert "media/" in (folder / "index.html").read_text()
    assert (house / "runs" / "image" / "evaluation" / "report.json").is_file()
    assert (house / "runs" / "image" / "model-ema-0.12" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("run", "folder", "section", "extra"),
    [
        ("image/model", "photos", "loss", "out=again"),
        ("audio", "sounds", "loss", ""),
        ("video", "clips", "loss", ""),
        ("codec", "photos", "reconstruction", ""),
        ("audio-codec", "sounds", "reconstruction", ""),
        ("video-codec/model", "clips", "reconstruction", ""),
    ],
)
def test_evaluation_gives_numbers(house, monkeypatch, run, folder, section, extra):
    monkeypatch.chdir(house)
    mmldm(f"mmldm evaluate runs/{run} data.path={folder} count=4 {extra}")
    out = Path("again") if extra else Path("runs") / run.removesuffix("/model") / "evaluation"
    numbers = json.loads((out / "report.json").read_text())[section]
    assert numbers and all(np.isfinite(value) for value in numbers.values()) and (out / "index.html").is_file()


def test_the_card_of_a_codec_tells_the_next_command(house):
    text = (house / "runs" / "codec" / "model" / "README.md").read_text()
    assert "mmldm train experiment=image_diffusion codec.image=runs/codec data.path=DIR" in text


def test_the_readmes_codec_commands(house, monkeypatch):
    monkeypatch.chdir(house)
    Path("film.mp4").write_bytes(sorted(Path("clips").glob("*.mp4"))[1].read_bytes())
    for line in commands("Codecs"):
        mmldm(line)
    assert len(list(Path("spoken").glob("*.wav"))) == 1
    told = json.loads(Path("runs/sharper/evaluation/report.json").read_text())
    assert np.isfinite(told["reconstruction"]["psnr"]) and told["frechet"]["embedder"]
    assert VideoMedia(4, 8.0, 32, 32).probe("film-back.mp4").seconds > 0
    kinds = json.loads(Path("runs/vocoder-fitted/model/manifest.json").read_text())
    assert kinds["files"]


def test_the_readmes_generation_commands(house, monkeypatch):
    monkeypatch.chdir(house)
    save_image(torch.zeros(3, 50, 60), "frame.png")
    save_audio(torch.sin(torch.arange(16000) * 0.3)[None] * 0.4, "start.wav", 16000)
    for line in commands("Generate"):
        mmldm(line)
    files = sorted(Path("samples").glob("*.png"))
    assert len(files) == 8 + 1  # and the sheet
    recipe = json.loads(sorted(Path("samples").glob("*.json"))[0].read_text())
    assert recipe["prompt"] == "a red circle" and recipe["seed"] == 0 and recipe["files"] == [files[0].name]
    assert read_metadata(files[0])["prompt"] == "a red circle"
    video = next(Path("from-a-picture").glob("*.mp4"))
    assert VideoMedia(16, 8.0, 32, 32).load(video).valid[0] == 16
    sound = next(Path("continued").glob("*.wav"))
    known = AudioMedia(16000, 1, 0.5)
    difference = (known.load(sound).x - known.load("start.wav").x).abs().max()
    assert difference < 1e-4  # what is kept is in the file as it was


def test_the_readmes_edits(house, monkeypatch):
    monkeypatch.chdir(house)
    for name, level in (("a", 0.5), ("b", -0.5), ("c", 0.0)):
        save_image(torch.full((3, 32, 32), level), f"{name}.png")
    mask = torch.full((3, 32, 32), -1.0)
    mask[:, 8:24, 8:24] = 1.0
    save_image(mask, "mask.png")
    save_audio(torch.sin(torch.arange(16000) * 0.3)[None] * 0.4, "start.wav", 16000)
    for line in commands("Edit"):
        mmldm(line)
    given, filled = ImageMedia(32, 32).load("a.png").x, ImageMedia(32, 32).load(next(Path("filled").glob("0*.png"))).x
    assert torch.equal(filled[mask < 0], given[mask < 0]) and not torch.equal(filled, given)
    wider = ImageMedia(48, 48).load(next(Path("wider").glob("0*.png"))).x
    assert torch.equal(wider[:, 8:40, 8:40], given)
    sound = AudioMedia(16000, 1, 1.5)
    before, start = sound.load(next(Path("before").glob("*.wav"))).x, sound.load("start.wav").x
    assert torch.equal(before[:, 8000:], start[:, :16000])


def test_the_readmes_picture_and_sound(house, monkeypatch):
    monkeypatch.chdir(house)
    Path("clip.mp4").write_bytes(Path("clips/clip0.mp4").read_bytes())
    for line in commands("Picture and sound together"):
        mmldm(line)
    for out in ("both", "foley", "seen"):
        clip = next(Path(out).glob("*.mp4"))
        assert VideoMedia(8, 8.0, 32, 32).probe(clip).seconds > 0.9 and AudioMedia(16000, 1, 1.0).probe(clip).seconds > 0.9
    assert len(list(Path("silent").glob("*.mp4"))) == 1 and not list(Path("silent").glob("*.wav"))


def test_the_readmes_python(house, monkeypatch, capsys):
    monkeypatch.chdir(house)
    block = re.findall(r"```python\n(.*?)```", README.split("\n## Generate\n")[1].split("\n## ")[0], re.S)[0]
    exec(compile(block, "README", "exec"), {})
    assert "torch.Size([3, 32, 32])" in capsys.readouterr().out


def test_the_same_command_again_continues_nothing_and_changes_nothing(house, monkeypatch):
    monkeypatch.chdir(house)
    part = house / "runs" / "image" / "model" / "denoiser.safetensors"
    before = part.read_bytes()
    mmldm(next(line for line in commands("Train on your own files") if "run=runs/image" in line and "small" not in line))
    assert part.read_bytes() == before


def test_a_latent_as_a_condition(house, monkeypatch):
    monkeypatch.chdir(house)
    condition = "conditions=latent conditions.conditioners.latent.key=file conditions.conditioners.latent.codec=runs/codec"
    mmldm(f"mmldm train experiment=image_diffusion codec.image=runs/codec data.path=photos run=runs/from-latent {condition}")
    save_image(torch.zeros(3, 50, 60), "frame.png")
    mmldm("mmldm generate runs/from-latent --field file=frame.png --steps 2 --out from-latent")
    assert len(list(Path("from-latent").glob("*.png"))) == 2  # one sample and the sheet


def test_a_codec_from_outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = README.split("\n## Bring your own codec\n")[1].split("\n## ")[0]
    Path("my_lab.py").write_text(re.findall(r"```python\n(.*?)```", text, re.S)[0])
    Path("lab/codec").mkdir(parents=True)
    Path("lab/codec/eeg.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    real_files.recordings(tmp_path / "recordings")
    for line in commands("Bring your own codec"):
        mmldm(line)
    signal = np.load(next(Path("eeg").glob("*.npy")))
    assert signal.shape == (32, 256) and np.isfinite(signal).all()
    assert cli.main(["generate", "runs/eeg", "eyes closed", "--out", "refused"]) == 2 and not Path("refused").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "experiment=image_codec", "data.path=x", "optimizer.lrr=1", "run=r"], "optimizer.lr"),
        (["train", "experiment=imag_codec", "data.path=x", "run=r"], "image_codec"),
        (["train", "experiment=image_codec", "run=r"], "data.path"),
        (["train", "experiment=image_codec", "data.path=nowhere", "run=r"], "nowhere"),
        (["train", "experiment=image_diffusion", "codec.image=nothing", "data.path=x", "run=r"], "nothing"),
        (["generate", "nothing", "a prompt"], "nothing"),
        (["generate", "nothing"], "prompt"),
        (["evaluate", "data.path=x"], "trained model"),
        (["demo", "smell"], "image, audio, video"),
        (["trian"], "train"),
        (["train", "experiment=image_diffusion", "data.path=x"], "codec.image=…"),
        (["train", "experiment=image_codec", "data.path=photos", "codec=audio_16k", "+data.batchsize=3"], "data.batch_size"),
        (["encode", "nothing", "data.path=x"], "out=…"),
        (["generate", "."], "prompt"),
        (["generate", ".", "a prompt"], "wanted a trained model"),
        (["generate", ".", "a prompt", "--steps", "0"], "--steps above 0"),
        (["check", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_told_in_a_few_lines(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and len(error.splitlines()) <= 6
    assert "Error executing job" not in error
