"""mmldm generate: what its arguments mean, and which of them are refused before anything is generated."""

from types import SimpleNamespace

import pytest
import torch

from mmldm.commands import generate
from mmldm.commands.outputs import check_suffix
from mmldm.diffusion.guidance import CFG, Guidance
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, save_audio, save_image

SOUND, STILL, CLIP = {"audio": AudioMedia(8000, 1, 1.0)}, {"image": ImageMedia(8, 8)}, {"video": VideoMedia(8, 8.0, 8, 8)}


def parsed(*words):
    return generate.parser().parse_intermixed_args(["model", *map(str, words)])


def model(*keys):
    readers = {key: (key, None) for key in keys}
    return SimpleNamespace(model=SimpleNamespace(conditions=SimpleNamespace(readers=readers)))


@pytest.fixture
def half(tmp_path):
    """Half a second of sound."""
    return save_audio(torch.sin(torch.arange(4000) * 0.3)[None] * 0.4, tmp_path / "half.wav", 8000)


def test_prompts_may_stand_after_options():
    args = parsed("-n", 4, "a red circle", "--steps", 3, "b")
    assert args.prompts == ["a red circle", "b"] and args.n == 4 and args.steps == 3


def test_without_keep_what_the_file_holds_is_kept(half):
    known = generate.known_media(SOUND, parsed("a", "--known", half))["audio"]
    assert (known.start, known.end) == (0.0, 0.5)
    assert generate.known_media(SOUND, parsed("a", "--known", half, "--keep", "0.1:0.2"))["audio"].end == 0.2
    assert generate.known_media(SOUND, parsed("a", "--known", half, "--keep", "0:5"))["audio"].end == 0.5
    assert generate.known_media(SOUND, parsed("a")) == {}


def test_what_cannot_be_kept_is_refused(half, tmp_path):
    whole = save_audio(torch.zeros(1, 12000), tmp_path / "whole.wav", 8000)
    picture = save_image(torch.zeros(3, 8, 8), tmp_path / "a.png")
    for medias, words, told in [
        (SOUND, ["--known", whole], "wanted something left to generate"),
        (SOUND, ["--known", half, "--keep", "0.6:0.9"], "within the 0.5 s"),
        (SOUND, ["--known", half, "--first", picture], "got both"),
        (SOUND, ["--keep", "0:1"], "--keep alone"),
        (SOUND, ["--stream", "audio"], "--stream alone"),
        (SOUND, ["--known", half, "--stream", "vidio"], "'vidio'; choose from audio"),
        (SOUND, ["--known", picture], "choose from .aac"),
        (SOUND, ["--first", picture], "moving pictures"),
        (STILL, ["--known", picture], "a still"),
    ]:
        with pytest.raises(ValueError, match=told):
            generate.known_media(medias, parsed("a", *words))
    assert generate.known_media(CLIP, parsed("a", "--first", picture))["video"].end == 0.125


@pytest.mark.parametrize(
    "words", [["--steps", 0], ["-n", 0], ["--batch", 0], ["--seconds", -1], ["--field", "x"]], ids=lambda w: w[0]
)
def test_numbers_that_make_nothing_are_refused(words):
    with pytest.raises(ValueError, match="wanted"):
        generate.main(["model", "a", *map(str, words)])


def test_fields_are_those_that_the_model_reads():
    assert generate.completed(model("label"), {"text": ["a"], "label": ["b"]}, 2.0) == {"text": ["a"], "label": ["b"]}
    assert generate.completed(model("text", "seconds"), {"text": ["a", "b"]}, 2.0)["seconds"] == [2.0, 2.0]
    assert "seconds" not in generate.completed(model("text", "seconds"), {"text": ["a"]}, None)
    assert generate.completed(model("seconds"), {"seconds": ["3"]}, 2.0) == {"seconds": ["3"]}
    with pytest.raises(ValueError, match="got lable; choose from label, text"):
        generate.completed(model("label"), {"lable": ["b"]}, None)


@pytest.mark.parametrize(
    ("medias", "good", "bad"),
    [(SOUND, "flac", "mp4"), (STILL, ".webp", "gif"), (CLIP, "webm", "avi"), ({**CLIP, **SOUND}, "mkv", "wav")],
)
def test_a_format_that_cannot_be_written_is_refused_first(medias, good, bad):
    check_suffix(medias, good)
    check_suffix(medias, None)
    with pytest.raises(ValueError, match=f"got {bad}; choose from"):
        check_suffix(medias, bad)


def test_the_recipe_tells_what_was_really_used(half):
    args = parsed("a", "-n", 2, "--known", half)
    known = generate.known_media(SOUND, args)
    told = generate.recipe({"text": ["a"], "label": ["x"]}, SimpleNamespace(guidance=CFG(2.5), steps=7), known, args)
    assert told["guidance"] == 2.5 and told["steps"] == 7 and told["n"] == 2 and told["fields"] == {"label": "x"}
    assert told["stream"] == "audio" and told["known"] == str(half)
    plain = generate.recipe({"text": ["a"]}, SimpleNamespace(guidance=Guidance(), steps=7), {}, args)
    assert plain["guidance"] == 1.0 and "stream" not in plain
