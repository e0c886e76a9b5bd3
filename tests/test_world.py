"""The built-in world: deterministic, the same at every size, compositional with a fixed fifth held out, captioned in words."""

import pickle
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mmldm.data.world import KINDS, TEMPLATES, VOCABULARY, World, combinations, split_combinations


def media(shape, rate=None):
    return SimpleNamespace(shape=shape, rate=rate, time_axis=None if rate is None else 0)


IMAGE, VIDEO, AUDIO = media((3, 32, 32)), media((3, 9, 32, 32), 8.0), media((1, 18000), 16000)
STREAMS = {
    "image": {"image": IMAGE},
    "video": {"video": VIDEO},
    "audio": {"audio": AUDIO},
    "av": {"video": VIDEO, "audio": AUDIO},
}


@pytest.mark.parametrize("kind", KINDS)
def test_clips_have_the_shape_of_the_media_and_lie_in_range(kind):
    world = World(kind, size=40)
    for index in range(40):
        for stream, wanted in STREAMS[kind].items():
            clip = world.load(index, stream, wanted)
            assert clip.x.shape == wanted.shape and clip.x.dtype == torch.float32
            assert clip.valid == wanted.shape[1:] and clip.start == 0
            assert clip.x.isfinite().all() and clip.x.abs().max() <= 1 and clip.x.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_a_function_of_seed_split_and_index(kind):
    world, longer, copy = (
        World(kind, 50, seed=3),
        World(kind, 5000, seed=3),
        pickle.loads(pickle.dumps(World(kind, 50, seed=3))),
    )
    other = World(kind, 50, seed=4)
    for stream, wanted in STREAMS[kind].items():
        x = world.load(17, stream, wanted).x
        world.load(3, stream, wanted)
        assert all(torch.equal(x, w.load(17, stream, wanted).x) for w in (world, longer, copy))
        assert not torch.equal(x, other.load(17, stream, wanted).x)
    assert world.row(17) == longer.row(17) == copy.row(17)
    assert world.key(17) == longer.key(17) and re.fullmatch("[0-9a-f]{64}", world.key(17))
    keys = {w.key(i) for w in (world, other, World(kind, 50, "heldout", 3)) for i in range(50)}
    assert len(keys) == 150


def test_equal_attributes_still_vary():
    world = World("image", 4000)
    same = [i for i in range(4000) if world.attributes(i) == world.attributes(0)]
    pictures = [world.load(i, "image", IMAGE).x for i in same]
    assert len(same) > 5 and all(not torch.equal(pictures[0], x) for x in pictures[1:])


def test_a_picture_looks_the_same_at_every_size():
    world = World("image", 20)
    for index in range(20):
        small, large = (world.load(index, "image", media((3, n, n))).x for n in (32, 128))
        shrunk = torch.nn.functional.avg_pool2d(large[None], 4)[0]
        assert (small - shrunk).abs().mean() < 0.004


def test_a_sound_is_the_same_at_every_rate():
    world = World("audio", 60)
    tones = [i for i in range(60) if world.attributes(i)["timbre"] in ("sine", "string")]  # all partials fit
    for index in tones:
        low, high = (world.load(index, "audio", media((1, rate), rate)).x[0] for rate in (32000, 64000))
        assert torch.nn.functional.cosine_similarity(low, high[::2], 0) > 0.999


def test_a_start_moves_along_the_row():
    ball = World("av", 8)
    for index in range(8):
        whole = ball.load(index, "video", media((3, 17, 32, 32), 8.0)).x
        part = ball.load(index, "video", VIDEO, start=1.0)
        assert part.start == 1.0 and torch.allclose(part.x, whole[:, 8:], atol=1e-5)


def test_stereo_and_wide_pictures_and_stills_of_videos():
    assert World("audio", 1).load(0, "audio", media((2, 4000), 8000)).x.shape == (2, 4000)
    assert World("image", 1).load(0, "image", media((3, 32, 64))).x.shape == (3, 32, 64)
    assert World("video", 1).load(0, "video", IMAGE).x.shape == (3, 32, 32)
    assert World("image", 1).load(0, "image", VIDEO).x.shape == (3, 9, 32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fifth_of_the_combinations_is_held_out(kind):
    freeze = lambda rows: {tuple(sorted(row.items())) for row in rows}  # noqa: E731
    every, train, held = (freeze(split_combinations(kind, split)) for split in ("all", "train", "heldout"))
    assert not train & held and train | held == every == freeze(combinations(kind))
    assert len(held) == len(every) // 5
    for part in (train, held):
        counts = Counter(item for row in part for item in row)
        for name in KINDS[kind]:
            shares = [counts[name, value] * len(VOCABULARY[name]) / len(part) for value in VOCABULARY[name]]
            assert min(shares) > (0.85 if part is train else 0.5)
    world = World(kind, len(train), "train", seed=9)
    assert freeze(world.attributes(i) for i in range(len(train))) == train  # each once before any comes again
    assert freeze(a for _, a in world.prompts(len(held), "heldout", 0)) == held


@pytest.mark.parametrize("kind", KINDS)
def test_captions_name_every_attribute_in_several_phrasings(kind):
    world = World(kind, 600, "all")
    used = Counter()
    for index in range(600):
        row = world.row(index)
        words = re.findall(r"\w+", row["text"])
        assert all(row[name] in words for name in KINDS[kind]), row
        for name in KINDS[kind]:  # and no other value of it
            assert not (set(VOCABULARY[name]) - {row[name]}) & set(words), row
        assert row["label"] and "a orange" not in row["text"]
        skeleton = [w for w in words if not any(w in VOCABULARY[name] for name in KINDS[kind])]
        used[" ".join(skeleton)] += 1
    assert len(TEMPLATES[kind]) >= 6 and len(used) >= 6


def test_prompts_are_reproducible_and_of_their_split():
    world = World("video", 10)
    assert world.prompts(8, "heldout", 1) == world.prompts(8, "heldout", 1) != world.prompts(8, "heldout", 2)
    held = split_combinations("video", "heldout")
    assert all(attributes in held and attributes["motion"] in text for text, attributes in world.prompts(20, "heldout", 0))


def test_a_ball_is_on_the_floor_when_it_sounds():
    world = World("av", 30)
    for index in range(30):
        sound = world.load(index, "audio", AUDIO).x[0]
        first = float((sound.abs() > 0.02).nonzero()[0, 0]) / 16000
        frames = world.load(index, "video", media((3, 121, 64, 64), 100.0)).x
        ball = (frames - frames.median(1, keepdim=True).values).abs().sum(0)[:, :54] > 0.6  # above the floor's edge
        low = torch.stack([rows.any(1).nonzero().max() for rows in ball])
        at = round(first * 100)
        assert low[max(0, at - 3) : at + 4].max() >= low.max() - 1 and low[at + 10] < low.max() - 3


@pytest.mark.parametrize("call, said", [
    (lambda: World("film"), "image, video, audio, av"),
    (lambda: World("image", split="test"), "heldout"),
    (lambda: World("image", size=0), "at least 1"),
    (lambda: World("av").load(0, "image", IMAGE), "video, audio"),
    (lambda: World("image").load(0, "image", media((1, 32, 32))), "(3, H, W)"),
    (lambda: World("audio").load(0, "audio", media((1, 4, 4), 8)), "(C, T)"),
])  # fmt: skip
def test_what_is_wrong_is_said(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_a_row_outside_is_refused():
    with pytest.raises(IndexError):
        World("image", 5).row(5)
    assert World("image", 5).seconds(4) is None
