"""`mmldm evaluate` of a codec: the numbers by what the media is, the page, and what it says when it cannot compare sets."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from mmldm import config, store, trained
from mmldm.commands import cli, measuring
from mmldm.commands.fidelity import metrics_of, pictures, saved, sounds
from mmldm.media import ArrayMedia, AudioMedia, ImageMedia, VideoMedia
from mmldm.model import Whitening

NODES = {
    "image": {
        "_target_": "mmldm.codec.image.ImageCodec",
        "media": {"_target_": "mmldm.media.image.ImageMedia", "height": 32, "width": 32},
        "width": 8,
    },
    "video": {
        "_target_": "mmldm.codec.video.VideoCodec",
        "media": {"_target_": "mmldm.media.video.VideoMedia", "frames": 5, "fps": 8, "height": 32, "width": 32},
        "latent_channels": 3,
        "width": 8,
        "multipliers": [1],
        "strides": [[4, 4, 4]],
    },
    "audio": {
        "_target_": "mmldm.codec.audio.AudioCodec",
        "media": {"_target_": "mmldm.media.audio.AudioMedia", "rate": 8000, "channels": 1, "seconds": 0.256},
        "mel": {"_target_": "mmldm.codec.mel.LogMel", "rate": 8000, "n_fft": 256, "hop": 64, "bins": 16},
        "width": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The run folder of an untrained codec of each kind."""
    folders = {}
    for stream, node in NODES.items():
        folders[stream] = tmp_path_factory.mktemp(stream)
        with torch.random.fork_rng():
            codec = config.build(node)
        spec = {"codecs": {stream: node}, "clips": {stream: {}}}
        trained.save_codec(folders[stream] / "model", spec, codec, Whitening(codec.latent_channels), {}, "a codec")
    return folders


def evaluate(folder, kind, *words):
    cfg = config.compose(["data=world", f"data.kind={kind}", "data.items=12", "count=8", "batch_size=5", *words], "evaluate")
    config.check(cfg, "evaluate")
    return measuring.evaluate(folder, cfg)


def everything(report):
    for value in report.values():
        if isinstance(value, dict):
            yield from everything(value)
        elif isinstance(value, list):
            yield from value
        elif not isinstance(value, str):
            yield value


@pytest.mark.parametrize("kind, told", [
    ("image", {"l1", "psnr", "ssim"}),
    ("video", {"l1", "psnr", "ssim", "flicker", "motion_energy", "psnr (first frame)", "ssim (later frames)"}),
    ("audio", {"l1", "si_sdr", "stft_distance", "log_spectral_distance", "feature_l1"}),
])  # fmt: skip
def test_a_codec_is_measured_by_what_its_media_is(models, tmp_path, kind, told):
    count = 2 if kind == "audio" else 4  # a spectrogram takes its time
    report, out = evaluate(models[kind], kind, "embedder.steps=2", f"count={count}", f"out={tmp_path}")
    assert report == json.loads((out / "report.json").read_text()) and (out / "index.html").is_file()
    assert told <= set(report["reconstruction"]) and all(math.isfinite(value) for value in everything(report))
    assert report["latent"]["channels"] == store.load_model(models[kind]).parts[f"codec.{kind}"]["whitening.mean"].numel()
    assert report["frechet"]["items"] == count and report["frechet"]["distance"] >= 0
    page = (out / "index.html").read_text()
    assert "density of the whitened latent" in page and report["frechet"]["digest"] in page
    assert load_file(out / "embedder.safetensors").keys() >= {"conv0", "mean", "std"}


def test_frame_positions_have_their_own_numbers(models, tmp_path):
    report, out = evaluate(models["video"], "video", "embedder=none", f"out={tmp_path}")
    frames, numbers = report["by frame"]["psnr"], report["reconstruction"]
    assert len(frames) == 5 and "frechet" not in report
    assert numbers["psnr"] == pytest.approx(sum(frames) / 5)
    assert numbers["psnr (first frame)"] == frames[0]
    assert numbers["psnr (later frames)"] == pytest.approx(sum(frames[1:]) / 4)
    assert "psnr by frame position" in (out / "index.html").read_text()


def test_numbers_do_not_depend_on_the_batches_and_repeat(models, tmp_path):
    words = ("embedder.steps=2", f"out={tmp_path}")
    one, two = (evaluate(models["image"], "image", *words, f"batch_size={n}")[0] for n in (3, 8))
    assert one["reconstruction"] == pytest.approx(two["reconstruction"], rel=1e-4)
    assert one["latent"] == pytest.approx(two["latent"], rel=1e-4, abs=1e-5)
    assert one["frechet"]["digest"] == two["frechet"]["digest"]


def test_an_earlier_embedder_judges_again(models, tmp_path):
    first, out = evaluate(models["image"], "image", "embedder.steps=2", f"out={tmp_path / 'one'}")
    words = (f"embedder.weights={out / 'embedder.safetensors'}", f"out={tmp_path / 'two'}")
    again, _ = evaluate(models["image"], "image", *words)
    assert again["frechet"]["digest"] == first["frechet"]["digest"]
    assert again["frechet"]["distance"] == pytest.approx(first["frechet"]["distance"], rel=1e-6)


def test_an_embedder_of_other_media_is_refused(models, tmp_path):
    first = evaluate(models["image"], "image", "embedder.steps=2", f"out={tmp_path / 'one'}")[1]
    words = (f"embedder.weights={first / 'embedder.safetensors'}", f"out={tmp_path / 'two'}")
    with pytest.raises(ValueError, match="with conv0 of shape"):
        evaluate(models["audio"], "audio", *words, "count=2")


def test_too_few_items_to_learn_from_are_said_on_the_page(models, tmp_path):
    report, out = evaluate(models["image"], "image", "count=1", f"out={tmp_path}")
    assert report["frechet"] == {"missing": "wanted at least 2 items, got 1"}
    assert "wanted at least 2 items" in (out / "index.html").read_text()


@pytest.mark.parametrize("word", ["count=0", "count=null", "samples=-1", "batch_size=0"])
def test_numbers_of_nothing_are_refused(models, tmp_path, word):
    with pytest.raises(ValueError, match=f"wanted {word.split('=')[0]} to be a whole number of at least"):
        evaluate(models["image"], "image", "embedder=none", word, f"out={tmp_path}")


def test_the_command_prints_it(models, tmp_path, capsys):
    words = ["data=world", "data.kind=video", "data.items=12", "count=4", "embedder=none", f"out={tmp_path}"]
    assert cli.main(["evaluate", str(models["video"]), *words]) == 0
    told = capsys.readouterr().out
    assert "psnr (first frame)" in told and "effective dimension" in told and "report.json" in told
    assert cli.main(["evaluate", str(models["video"]), *words, "embedder=inception", "embedder.weights=nowhere"]) != 0


def test_medias_are_told_by_channels_and_axes():
    picture, clip, sound = ImageMedia(8, 8), VideoMedia(3, 8, 8, 8), AudioMedia(rate=8000, channels=2, seconds=0.1)
    field, signal = ArrayMedia(5, (8, 8)), ArrayMedia(2, 100, rate=100.0)
    assert [pictures(m) for m in (picture, clip, sound, field, signal)] == [True, True, False, False, False]
    assert [sounds(m) for m in (picture, clip, sound, field, signal)] == [False, False, True, False, False]
    assert set(metrics_of(field, torch.nn.Identity())) == set(metrics_of(signal, torch.nn.Identity())) == {"l1"}
    loud = torch.full((1, 2, 100), 3.0)
    assert float(saved(loud, sound).max()) == 1 and float(saved(loud, signal).max()) == 3
