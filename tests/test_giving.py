"""What is given on the command line: which samples it keeps, what is refused, and every form of it on small models."""

import argparse

import pytest
import torch

from mmldm import config, trained
from mmldm.commands import cli, giving
from mmldm.conditioner import ConditionSet
from mmldm.denoiser import DiT
from mmldm.diffusion import Flow, Linear
from mmldm.given import box
from mmldm.held import spans
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, save_audio, save_image, save_video
from mmldm.model import Model

SOUND, STILL, CLIP = {"audio": AudioMedia(8000, 1, 1.0)}, {"image": ImageMedia(8, 8)}, {"video": VideoMedia(8, 8.0, 8, 8)}


def parsed(*words):
    parser = argparse.ArgumentParser()
    giving.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def half(tmp_path):
    """Half a second of sound."""
    return save_audio(torch.sin(torch.arange(4000) * 0.3)[None] * 0.4, tmp_path / "half.wav", 8000)


def known_of(medias, *words):
    return giving.given(medias, parsed(*words))["known"]


def test_without_keep_what_the_file_holds_is_kept(half):
    def held(*words):
        return spans(known_of(SOUND, "--known", half, *words)["audio"].kept, SOUND["audio"])

    assert held() == [(0, 4000)] and held("--keep", "0.1:0.2") == [(800, 1600)] and held("--keep", "0:5") == [(0, 4000)]
    assert held("--keep", "0:0.1s,0.3s:") == [(0, 800), (2400, 4000)]
    assert held("--place", "0.5s") == [(4000, 8000)] and held("--place", "0.75") == [(6000, 8000)]
    assert known_of(SOUND) == {}


def test_pictures_are_kept_by_regions_masks_and_places(tmp_path):
    x = torch.rand(3, 8, 8) * 2 - 1
    picture, small = save_image(x, tmp_path / "a.png"), save_image(x[:, :4, :6], tmp_path / "small.png")
    white = save_image((~box(STILL["image"], height=(2, 4))).float().expand(3, -1, -1) * 2 - 1, tmp_path / "mask.png")

    def rows(*words, media=STILL):
        return known_of(media, *words)

    region = rows("--known", picture, "--keep", "0:2x4:,6:x:8")["image"].kept
    assert torch.equal(region, box(STILL["image"], height=(0, 2), width=(4, 8)) | box(STILL["image"], height=(6, 8)))
    assert torch.equal(rows("--known", picture, "--mask", white)["image"].kept, box(STILL["image"], height=(2, 4)))
    for where, top, left in (("centre", 2, 1), ("1,2", 1, 2)):
        known = rows("--known", small, "--place", where)["image"]
        assert torch.equal(known.kept, box(STILL["image"], height=(top, top + 4), width=(left, left + 6)))
        assert (known.x[:, top : top + 4, left : left + 6] - x[:, :4, :6]).abs().max() < 0.01
    clip = save_video(x[:, None].expand(3, 8, 8, 8), tmp_path / "clip.mp4", 8.0)
    for words, kept in ((["--mask", white], {"height": (2, 4)}), (["--keep", "0:2x0:8"], {"height": (0, 2)})):
        assert torch.equal(rows("--known", clip, *words, media=CLIP)["video"].kept, box(CLIP["video"], **kept))


def test_pictures_stand_at_their_time(tmp_path):
    stills = [save_image(torch.full((3, 8, 8), v), tmp_path / f"{v}.png") for v in (-1.0, 0.0, 0.6, 1.0)]
    words = ["--first", stills[0], "--last", stills[3], "--at", "0.5s", stills[1], "--at", 0.3, stills[2]]
    known = known_of({**CLIP, **SOUND}, *words)
    assert set(known) == {"video"} and known["video"].kept.flatten(1).all(1).nonzero().flatten().tolist() == [0, 2, 4, 7]
    assert known["video"].x[0, [0, 2, 4, 7], 0, 0].tolist() == pytest.approx([-1, 0.6, 0, 1], abs=0.01)
    clip = save_video(torch.zeros(3, 4, 8, 8), tmp_path / "clip.mp4", 8.0)
    both = known_of(CLIP, "--known", clip, "--last", stills[3])["video"]
    assert both.kept.flatten(1).all(1).nonzero().flatten().tolist() == [0, 1, 2, 3, 7]


def test_a_file_gives_the_streams_that_it_has(tmp_path):
    joint, x, y = {**CLIP, **SOUND}, torch.zeros(3, 8, 8, 8), torch.zeros(1, 8000)
    full = save_video(x, tmp_path / "full.mkv", 8.0, y, 8000)
    silent, sound = save_video(x, tmp_path / "silent.mp4", 8.0), save_audio(y, tmp_path / "a.wav", 8000)
    assert set(known_of(joint, "--known", full, "--keep", "0:0.5s")) == {"audio", "video"}
    assert set(known_of(joint, "--known", full, "--keep", "0:4x0:4")) == {"video"}
    for file, stream in ((full, "video"), (silent, "video"), (sound, "audio")):
        known = known_of(joint, "--known", file, "--stream", stream)
        assert set(known) == {stream} and known[stream].whole
    assert set(known_of(joint, "--known", silent)) == {"video"}
    assert set(giving.given(joint, parsed("--init", full, "--without", "audio"))["init"]) == {"video"}


def test_what_cannot_be_kept_is_refused(half, tmp_path):
    whole = save_audio(torch.zeros(1, 12000), tmp_path / "whole.wav", 8000)
    picture, joint = save_image(torch.zeros(3, 8, 8), tmp_path / "a.png"), {**CLIP, **SOUND}
    full = save_video(torch.zeros(3, 8, 8, 8), tmp_path / "full.mkv", 8.0, torch.zeros(1, 8000), 8000)
    silent = save_video(torch.zeros(3, 8, 8, 8), tmp_path / "silent.mp4", 8.0)
    for medias, words, told in [
        (SOUND, ["--known", whole], "wanted something left to generate, got all of audio kept"),
        (joint, ["--known", full], "or one --stream alone"),
        (SOUND, ["--known", half, "--keep", "0.6:0.9"], "within what .* holds of audio, got 0.6:0.9"),
        (SOUND, ["--known", half, "--keep", "0:4x0:4"], "wanted a part that audio has, got --keep 0:4x0:4"),
        (SOUND, ["--known", half, "--keep", "soon"], "wanted START:END in seconds, got soon"),
        (SOUND, ["--known", half, "--keep", "0:1", "--mask", picture], "--keep or --mask, got both"),
        (SOUND, ["--known", half, "--place", "1,1"], "wanted a --place that audio has, got 1,1"),
        (SOUND, ["--known", half, "--place", "3s"], "within the 1 s that are made, got 3s"),
        (SOUND, ["--known", half, "--place", "left"], "centre or a time, got left"),
        (SOUND, ["--known", half, "--first", picture], "moving pictures"),
        (SOUND, ["--known", silent], "no audio stream"),
        (SOUND, ["--keep", "0:1"], "--keep alone"),
        (SOUND, ["--mask", picture], "--mask alone"),
        (SOUND, ["--place", "1s"], "--place alone"),
        (SOUND, ["--strength", 0.5], "--init FILE with --strength"),
        (SOUND, ["--stream", "audio"], "--stream alone"),
        (SOUND, ["--known", half, "--stream", "vidio"], "'vidio'; choose from audio"),
        (joint, ["--without", "vidio"], "'vidio'; choose from video, audio"),
        (joint, ["--known", half, "--stream", "audio", "--without", "audio"], "which --without leaves out"),
        (SOUND, ["--known", picture], "choose from .aac"),
        (SOUND, ["--first", picture], "moving pictures"),
        (CLIP, ["--at", "2s", picture], "within the 1 s that are made, got 2s"),
        (CLIP, ["--at", "soon", picture], "wanted --at TIME IMAGE, got soon"),
        (STILL, ["--known", picture], "something left"),
        (STILL, ["--known", picture, "--keep", "0:1s"], "a part that image has"),
        (STILL, ["--known", picture, "--keep", "4:2x0:8"], "TOP:BOTTOMxLEFT:RIGHT in pixels, got 4:2x0:8"),
        (STILL, ["--known", picture, "--place", "1,0"], "within 8 of height, got 8 from 1 on"),
    ]:
        with pytest.raises(ValueError, match=told):
            giving.given(medias, parsed(*words))


# ---------------------------------------------------------------- the whole command

SPEC = {
    "conditions": {"_target_": "mmldm.conditioner.set.ConditionSet", "conditioners": {}},
    "denoiser": {"_target_": "mmldm.denoiser.dit.DiT", "width": 16, "depth": 1, "heads": 2, "_partial_": True},
    "path": {"_target_": "mmldm.diffusion.path.Linear"},
    "prediction": {"_target_": "mmldm.diffusion.prediction.Flow"},
    "shift": None,
    "sampler": {
        "solver": {"_target_": "mmldm.diffusion.solvers.DDIM"},
        "grid": {"_target_": "mmldm.diffusion.grids.UniformGrid"},
        "guidance": None,
        "steps": 3,
    },
}
SIZES = {
    "image": {"height": 32, "width": 32},
    "video": {"frames": 9, "fps": 8.0, "height": 16, "width": 16},
    "audio": {"rate": 8000, "channels": 1, "seconds": 1.125},
}
NODES = {
    name: {
        "_target_": f"mmldm.codec.{name}.{name.title()}Codec",
        "media": {"_target_": f"mmldm.media.{name}.{name.title()}Media", **size},
        "width": 8,
        "blocks": 1,
    }
    for name, size in SIZES.items()
}
NODES["audio"]["mel"] = {"_target_": "mmldm.codec.mel.LogMel", "rate": 8000, "n_fft": 256, "hop": 64, "bins": 16}
MEDIAS = {"image": ImageMedia(32, 32), "video": VideoMedia(9, 8.0, 16, 16), "audio": AudioMedia(8000, 1, 1.125)}


def write_model(folder, streams, knows=True, references=True):
    """A diffusion model of these streams with weights that hide nothing."""
    torch.manual_seed(0)
    codecs = {s: config.build(NODES[s]) for s in streams}
    model = Model(codecs, ConditionSet({}), DiT({s: c.geometry for s, c in codecs.items()}, {}, 16, 1, 2), Linear(), Flow())
    for p in model.denoiser.parameters():
        p.data = torch.randn_like(p) * max(1, p[0].numel()) ** -0.5
    spec = {**SPEC, "codecs": {s: NODES[s] for s in streams}, "clips": {s: {} for s in streams}}
    trained.save_diffusion(folder / "model", {**spec, "knows": knows, "references": references}, model, {}, "")
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Models of every modality, trained with masks (and of pictures and video, without), and files to give."""
    root = tmp_path_factory.mktemp("house")
    for name, streams in {"image": ["image"], "video": ["video"], "audio": ["audio"], "joint": ["video", "audio"]}.items():
        write_model(root / name, streams)
    for name in ("image", "video", "audio"):
        write_model(root / f"plain-{name}", [name], False, False)
    random = torch.Generator().manual_seed(1)
    picture = torch.rand(3, 32, 32, generator=random) * 2 - 1
    sound = torch.sin(torch.arange(9000) * 0.3)[None] * 0.4
    save_image(picture, root / "a.png")
    save_image(picture[:, :16, :24], root / "small.png")
    save_image(box(MEDIAS["image"], height=(8, 24), width=(8, 24)).float().expand(3, -1, -1) * 2 - 1, root / "mask.png")
    for suffix in ("wav", "flac"):
        save_audio(sound, root / f"a.{suffix}", 8000)
    save_audio(sound[:, :4000], root / "short.wav", 8000)
    save_video(picture[:, None, :16, :16].expand(3, 9, -1, -1), root / "clip.mkv", 8.0, sound, 8000)
    save_video(picture[:, None, :8, :8].expand(3, 9, -1, -1), root / "tiny.mp4", 8.0)
    return root


def generated(house, out, model, *words, status=0):
    line = ["generate", house / model, "a", "--out", out, "--steps", 3, *words]
    assert cli.main([str(word) for word in line]) == status
    return sorted(path for path in out.glob("0000-*") if path.suffix != ".json")


EXACT = [
    ("image", "a.png", ["--mask", "mask.png"], {"height": (0, 8)}, "png"),
    ("plain-image", "a.png", ["--mask", "mask.png"], {"width": (24, 32)}, "png"),
    ("image", "a.png", ["--keep", "0:32x16:32"], {"width": (16, 32)}, "png"),
    ("audio", "a.wav", ["--keep", "0:0.6s"], {"time": (0, 0.6)}, "flac"),
    ("audio", "a.flac", ["--keep", "0.6s:"], {"time": (0.6, 2)}, "wav"),
    ("plain-audio", "a.flac", ["--keep", "0.6s:"], {"time": (0.6, 2)}, "flac"),
    ("audio", "a.wav", ["--keep", "0:0.4s,0.8s:"], {"time": (0.8, 2)}, "flac"),
    ("plain-audio", "a.wav", ["--keep", "0:0.4s,0.8s:"], {"time": (0, 0.4)}, "flac"),
]


@pytest.mark.parametrize(
    ("model", "file", "words", "part", "suffix"), EXACT, ids=lambda v: str(v) if isinstance(v, (str, list)) else ""
)
def test_what_is_kept_is_identical_in_a_lossless_file(house, tmp_path, monkeypatch, model, file, words, part, suffix):
    monkeypatch.chdir(house)
    media = MEDIAS[model.split("-")[-1]]
    (path,) = generated(house, tmp_path, model, "--known", file, *words, "--format", suffix)
    again = media.save(media.load(file).x, tmp_path / f"again.{suffix}")
    mask, x, y = box(media, **part), media.load(path).x, media.load(again).x
    assert torch.equal(x[:, mask], y[:, mask]) and not torch.equal(x, y)


FORMS = [
    ("image", ["--init", "a.png", "--strength", 0.5], ".png"),
    ("image", ["--init", "a.png", "--known", "a.png", "--mask", "mask.png"], ".png"),
    ("image", ["--known", "small.png", "--place", "centre", "--size", "32x40"], ".png"),
    ("plain-image", ["--known", "small.png", "--place", "16,8"], ".png"),
    ("audio", ["--init", "clip.mkv"], ".wav"),
    ("audio", ["--known", "short.wav"], ".wav"),
    ("audio", ["--known", "short.wav", "--place", "0.6s"], ".wav"),
    ("audio", ["--known", "a.wav", "--seconds", 2], ".wav"),
    ("video", ["--init", "clip.mkv"], ".mp4"),
    ("video", ["--known", "clip.mkv", "--keep", "0:0.7s"], ".mp4"),
    ("plain-video", ["--known", "clip.mkv", "--keep", "0.5s:"], ".mp4"),
    ("video", ["--known", "clip.mkv", "--keep", "0:0.2s,1s:"], ".mp4"),
    ("video", ["--known", "clip.mkv", "--mask", "mask.png"], ".mp4"),
    ("plain-video", ["--known", "clip.mkv", "--keep", "0:16x0:8"], ".mp4"),
    ("video", ["--known", "tiny.mp4", "--place", "centre"], ".mp4"),
    ("video", ["--first", "a.png", "--last", "small.png", "--at", "0.5s", "a.png"], ".mp4"),
    ("plain-video", ["--first", "a.png"], ".mp4"),
    ("joint", ["--known", "clip.mkv", "--stream", "video"], ".mp4"),
    ("joint", ["--known", "clip.mkv", "--stream", "audio"], ".mp4"),
    ("joint", ["--known", "a.wav"], ".mp4"),
    ("joint", ["--known", "clip.mkv", "--keep", "0:0.5s"], ".mp4"),
    ("joint", ["--known", "clip.mkv", "--keep", "0.5s:"], ".mp4"),
    ("joint", ["--known", "clip.mkv", "--mask", "mask.png"], ".mp4"),
    ("joint", ["--init", "clip.mkv"], ".mp4"),
    ("joint", ["--init", "clip.mkv", "--stream", "audio", "--first", "a.png", "--last", "a.png"], ".mp4"),
    ("joint", ["--without", "audio", "--first", "a.png"], ".mp4"),
    ("joint", ["--without", "video", "--known", "short.wav", "--format", "flac"], ".flac"),
]


@pytest.mark.parametrize(("model", "words", "suffix"), FORMS, ids=lambda v: " ".join(map(str, v)) if isinstance(v, list) else v)
def test_every_form_of_giving_makes_a_file(house, tmp_path, monkeypatch, model, words, suffix):
    monkeypatch.chdir(house)
    (path,) = generated(house, tmp_path, model, *words)
    assert path.suffix == suffix and path.stat().st_size > 0


def test_what_is_held_loosely_is_told_and_what_is_not_held_is_an_error_of_a_line(house, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(house)
    generated(house, tmp_path, "image", "--known", "a.png", "--mask", "mask.png")
    assert "note: image: 48 of 48 known cells are relaxed" in capsys.readouterr().err
    generated(house, tmp_path, "plain-video", "--last", "a.png", status=2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "choose a larger part, or a model trained with references" in said[0]
