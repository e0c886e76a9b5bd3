"""mmldm generate: what its arguments mean, and which of them are refused before anything is generated."""

from types import SimpleNamespace

import pytest
import torch

from mmldm.commands import generate, giving
from mmldm.commands.outputs import check_suffix
from mmldm.diffusion.guidance import CFG, Guidance
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, save_audio

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
    given = giving.given(SOUND, args)
    told = generate.recipe({"text": ["a"], "label": ["x"]}, SimpleNamespace(guidance=CFG(2.5), steps=7), given, args)
    assert told["guidance"] == 2.5 and told["steps"] == 7 and told["n"] == 2 and told["fields"] == {"label": "x"}
    assert told["stream"] == "audio" and told["known"] == str(half)
    plain = generate.recipe({"text": ["a"]}, SimpleNamespace(guidance=Guidance(), steps=7), {"known": {}, "init": {}}, args)
    assert plain["guidance"] == 1.0 and "stream" not in plain
