"""Files piece by piece: what streams is what loads, what is written in pieces is what is written at once, nothing is held."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mmldm.interfaces import MediaError
from mmldm.media import (
    ArrayMedia,
    AudioMedia,
    ImageMedia,
    Limits,
    VideoMedia,
    can_carry,
    read_metadata,
    regrouped,
    save_audio,
    save_image,
    save_video,
    streams_of,
    unlimited,
    with_last,
)
from tests.data_fakes import Signal

RATE, FPS, H, W = 44100, 12.5, 32, 48


def sound(seconds: float = 2.3, rate: int = RATE) -> torch.Tensor:
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return torch.stack([0.5 * torch.sin(2 * math.pi * (300 + 150 * t) * t), 0.4 * torch.sin(4400 * t) * t / seconds]).float()


def film(frames: int = 33) -> torch.Tensor:
    """Brightness tells the frame."""
    x = torch.linspace(-0.8, 0.8, frames)[None, :, None, None].expand(3, frames, H, W).clone()
    x[0, :, : H // 2] = 0.5
    return x


def joined(media, path, samples: int, start: float = 0.0) -> torch.Tensor:
    pieces = list(media.stream(path, samples, start))
    assert all(p.shape[1] == samples for p in pieces[:-1]) and 0 < pieces[-1].shape[1] <= samples
    return torch.cat(pieces, 1)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus", ".m4a", ".mkv"])
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 2), (16000, 1)])
def test_sound_that_streams_is_sound_that_loads(tmp_path, suffix, rate, channels):
    path = tmp_path / f"a{suffix}"
    save_video(film(29), path, FPS, sound(), RATE) if suffix == ".mkv" else save_audio(sound(), path, RATE)
    media = AudioMedia(rate, channels, 4.0)
    for start in (0.0, 0.7):
        clip = media.load(path, start)
        for samples in (1000, rate):
            x = joined(media, path, samples, start)
            assert x.shape == (channels, clip.valid[0])
            assert torch.equal(x, clip.x[:, : clip.valid[0]])
    assert torch.equal(joined(media, path, 777), joined(media, path, 100_000))
    if suffix != ".mkv":  # its stamps are rounded to 1 ms: a place is known better the more of them are read
        middle = AudioMedia(rate, channels, 0.5).load(path, 1.1)  # decoded from elsewhere: equal but for the filter's rounding
        same = joined(media, path, 4096)[:, round(1.1 * rate) :][:, : rate // 2]
        assert (same - middle.x).abs().max() < 3e-3


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".gif"])
def test_pictures_that_stream_are_pictures_that_load(tmp_path, suffix):
    path = save_video(film(), tmp_path / f"v{suffix}", FPS)
    for fps in (FPS, 8.0, 30.0):
        media = VideoMedia(200, fps, 24, 20)
        for start in (0.0, 1.04):
            clip = media.load(path, start)
            for samples in (1, 7, 500):
                assert torch.equal(joined(media, path, samples, start), clip.x[:, : clip.valid[0]])


def test_held_pictures_and_late_sound(tmp_path):
    """A variable frame rate, and a sound that begins 1.5 s after the picture and ends before it."""
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=25), container.add_stream("flac", rate=8000, layout="mono")
        video.height, video.width, video.pix_fmt = H, W, "yuv420p"
        video.codec_context.time_base = video.time_base = Fraction(1, 1000)
        for stamp, level in ((0, 20), (40, 60), (1700, 120), (1740, 200), (4000, 240)):
            frame = av.VideoFrame.from_ndarray(np.full((H, W, 3), level, np.uint8), "rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 8000, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 12000, Fraction(1, 8000)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    media = VideoMedia(100, 10.0, H, W)
    x, clip = joined(media, path, 6), media.load(path)
    assert torch.equal(x, clip.x[:, : clip.valid[0]]) and x.shape[1] >= 40
    heard = joined(AudioMedia(8000, 1, 1.0), path, 999)
    assert heard.shape[1] == pytest.approx(20000, abs=16)
    assert not heard[:, :11950].any() and (heard[:, 12050:19900] > 0.2).all()


def test_arrays_and_stills_and_media_of_others_stream_too(tmp_path):
    values = torch.randn(2, 103, 5, generator=torch.Generator().manual_seed(0))
    media = ArrayMedia(2, (20, 5), 10.0)
    path = media.save(values, tmp_path / "a.npy")
    assert torch.equal(joined(media, path, 8), values) and torch.equal(joined(media, path, 8, 1.0), values[:, 10:])
    still = ImageMedia(24, 32)
    picture = save_image(film(1)[:, 0], tmp_path / "p.png")
    assert [torch.equal(x, still.load(picture).x) for x in still.stream(picture, 7)] == [True]
    np.save(tmp_path / "s.npy", values[:, :, 0].numpy())
    assert torch.equal(joined(Signal(10, (0, 1)), tmp_path / "s.npy", 7), values[:, :, 0])


def test_limits_of_length_are_for_clips_alone(tmp_path):
    limits = Limits(max_seconds=1.0, max_frames=8, max_bytes=10)
    path, clip = save_audio(sound(), tmp_path / "a.wav", RATE), save_video(film(), tmp_path / "v.mp4", FPS)
    heard, seen = AudioMedia(16000, 1, 0.5, limits), VideoMedia(4, FPS, H, W, limits)
    for media, file, length in ((heard, path, 36800), (seen, clip, 33)):
        with pytest.raises(MediaError, match="the limit is"):
            media.load(file)
        assert joined(media, file, 10_000).shape[1] == length and unlimited(media).probe(file).seconds > 2
        assert media.limits == limits
    with pytest.raises(MediaError, match="pixels"):
        next(VideoMedia(4, FPS, H, W, Limits(max_pixels=100)).stream(clip, 4))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp4", ".mkv"])
def test_a_file_cut_short_is_told_at_the_latest_at_its_end(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    video = suffix in (".mp4", ".mkv")
    noise = torch.randn(2, 40000, generator=torch.Generator().manual_seed(0)) * 0.3
    save_video(film(), path, FPS, noise, 16000) if video else save_audio(noise, path, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    media = VideoMedia(4, FPS, H, W) if video else AudioMedia(16000, 2, 0.5)
    with pytest.raises(MediaError):
        list(media.stream(path, 400))


def test_wrong_places_are_refused(tmp_path):
    path, clip = save_audio(sound(), tmp_path / "a.wav", RATE), save_video(film(), tmp_path / "v.mp4", FPS)
    for media, file in ((AudioMedia(8000, 1, 1.0), path), (VideoMedia(4, FPS, H, W), clip)):
        with pytest.raises(MediaError, match="before the wanted start"):
            list(media.stream(file, 400, 60.0))
        for wrong in ((0, 0.0), (4, -1.0)):
            with pytest.raises(ValueError, match="wanted start"):
                media.stream(file, *wrong)


def test_a_file_is_decoded_as_it_is_asked_for(tmp_path, monkeypatch):
    from mmldm.media import audio, video

    path = save_video(film(200), tmp_path / "v.mkv", FPS, sound(16.0, 8000), 8000)
    for module, media, most in ((video, VideoMedia(4, FPS, H, W), 40), (audio, AudioMedia(8000, 1, 1.0), 90)):
        seen, original = [], module.decoded
        monkeypatch.setattr(module, "decoded", lambda *a, o=original, s=seen: (s.append(f[0]) or f for f in o(*a)))
        pieces = media.stream(path, 8)
        for _ in range(3):
            next(pieces)
        assert len(seen) < most
        pieces.close()


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus", ".m4a", ".aac"])
def test_sound_in_pieces_is_the_same_file(tmp_path, suffix):
    media, x, facts = AudioMedia(RATE, 2, 1.0), sound(), {"prompt": "a bell", "seed": "1"}
    media.save(x, tmp_path / f"once{suffix}", facts)
    with media.writer(tmp_path / f"pieces{suffix}", facts) as write:
        for piece in x.split([1, 5000, 4096, 33333, x.shape[1] - 42430], 1):
            write(piece)
        assert not (tmp_path / f"pieces{suffix}").exists()
    once, pieces = (AudioMedia(RATE, 2, 2.3).load(tmp_path / f"{name}{suffix}").x for name in ("once", "pieces"))
    assert torch.equal(once, pieces)
    assert suffix == ".aac" or read_metadata(tmp_path / f"pieces{suffix}") == facts
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"once{suffix}", f"pieces{suffix}"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
def test_pictures_in_pieces_are_the_same_file(tmp_path, suffix):
    media, x, facts = VideoMedia(33, FPS, H, W), film(), {"prompt": "grey", "long": "x" * 700}
    media.save(x, tmp_path / f"once{suffix}", facts)
    with media.writer(tmp_path / f"pieces{suffix}", facts) as write:
        for piece in x.split([1, 7, 25], 1):
            write(piece)
    once, pieces = (media.load(tmp_path / f"{name}{suffix}") for name in ("once", "pieces"))
    assert torch.equal(once.x, pieces.x) and once.valid == pieces.valid == (33, H, W)
    assert (once.x - x).abs().mean() < 0.02 and read_metadata(tmp_path / f"pieces{suffix}") == facts
    assert suffix != ".gif" or (tmp_path / "once.gif").read_bytes() == (tmp_path / "pieces.gif").read_bytes()


def test_arrays_in_pieces_are_the_same_file(tmp_path):
    x = torch.randn(3, 50, 4, 2, generator=torch.Generator().manual_seed(0))
    media = ArrayMedia(3, (50, 4, 2), 10.0)
    media.save(x, tmp_path / "once.npy")
    with media.writer(tmp_path / "pieces.npy") as write:
        for piece in x.split([20, 1, 29], 1):
            write(piece)
    assert np.array_equal(np.load(tmp_path / "pieces.npy"), x.numpy())
    assert (tmp_path / "once.npy").read_bytes() == (tmp_path / "pieces.npy").read_bytes()
    with pytest.raises(ValueError, match="wanted a piece that follows"), media.writer(tmp_path / "bad.npy") as write:
        write(x)
        write(x[:2])
    still = ArrayMedia(3, (50, 4, 2))
    with pytest.raises(ValueError, match="wanted a piece that follows"), still.writer(tmp_path / "bad.npy") as write:
        write(x)
        write(x)
    assert not (tmp_path / "bad.npy").exists()


def test_a_still_is_one_piece_and_media_of_others_are_kept_until_the_end(tmp_path):
    still, x = ImageMedia(H, W), film(1)[:, 0]
    with still.writer(tmp_path / "a.png", {"prompt": "grey"}) as write:
        write(x)
    assert (still.load(tmp_path / "a.png").x - x).abs().max() < 0.01 and read_metadata(tmp_path / "a.png")["prompt"] == "grey"
    for pieces in ([], [x, x]):
        with (
            pytest.raises(ValueError, match=f"piece to write to .*got {len(pieces)}"),
            still.writer(tmp_path / "b.png") as write,
        ):
            for piece in pieces:
                write(piece)
    y = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    with Signal(10, (0, 1)).writer(tmp_path / "s.npy") as write:
        for piece in y.split(8, 1):
            write(piece)
    assert np.array_equal(np.load(tmp_path / "s.npy"), y.numpy())


@pytest.mark.parametrize("name", ["a.wav", "a.mp4", "a.gif"])
def test_a_piece_of_another_size_is_refused(tmp_path, name):
    media, x = (AudioMedia(8000, 2, 1.0), sound(1.0, 8000)) if name == "a.wav" else (VideoMedia(4, FPS, H, W), film(4))
    with pytest.raises(ValueError, match="wanted"), media.writer(tmp_path / name) as write:
        write(x)
        write(x[:1] if name == "a.wav" else x[:, :, 2:])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "a.mp4", "a.gif", "a.npy"])
def test_what_is_not_finished_leaves_what_was_there(tmp_path, name):
    media, x = {"wav": (AudioMedia(8000, 2, 1.0), sound(1.0, 8000)), "npy": (ArrayMedia(2, 5, 1.0), sound(1.0, 8000))}.get(
        name[2:], (VideoMedia(4, FPS, H, W), film(4))
    )
    media = AudioMedia(8000, 2, 1.0) if name == "a.m4a" else media
    x = sound(1.0, 8000) if name == "a.m4a" else x
    path = media.save(x, tmp_path / name)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), media.writer(path) as write:
        write(x)
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="at least one"), media.writer(path):
        pass
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [name]


def test_a_wav_file_has_room_to_become_a_large_one(tmp_path):
    """A header of 64 bits (RF64) takes the place of the JUNK chunk above 4 GB."""
    head = save_audio(sound(0.1), tmp_path / "a.wav", RATE).read_bytes()[:64]
    assert head[:4] == b"RIFF" and b"JUNK" in head


# ---------------------------------------------------------------- sound beside pictures


def clicks(seconds: float = 4.0, rate: int = 48000) -> torch.Tensor:
    x = torch.zeros(2, round(seconds * rate))
    for begin in range(0, x.shape[1], rate // 2):
        x[:, begin : begin + 480] = 0.8 * torch.sin(torch.arange(480) * 0.3)
    return x


@pytest.mark.parametrize(
    ("source", "target"), [("mp4", "mp4"), ("mp4", "mkv"), ("webm", "mp4"), ("webm", "webm"), ("mkv", "mkv")]
)
def test_the_sound_of_a_file_is_copied_in_step(tmp_path, source, target):
    given = save_video(film(50), tmp_path / f"given.{source}", FPS, clicks(), 48000)
    out = tmp_path / f"out.{target}"
    with VideoMedia(50, FPS, H, W).writer(out, sound=given) as write:
        for piece in film(50)[:, :38].split(9, 1):  # 3.04 s of 4
            write(piece)
    media = AudioMedia(48000, 2, 5.0)
    x, y = media.load(given), media.load(out)
    assert y.valid[0] / 48000 == pytest.approx(3.04, abs=0.13)
    assert (x.x - y.x)[:, 200 : 3 * 48000].abs().max() < 0.02
    assert VideoMedia(50, FPS, H, W).load(out).valid[0] == 38


def test_what_cannot_carry_a_sound_says_so(tmp_path):
    given, silent = (
        save_video(film(9), tmp_path / "g.mp4", FPS, clicks(0.7), 48000),
        save_video(film(9), tmp_path / "s.mp4", FPS),
    )
    assert can_carry("a.mp4", given) and can_carry("a.mkv", given)
    assert not can_carry("a.gif", given) and not can_carry("a.webm", given) and not can_carry("a.mp4", silent)
    with VideoMedia(9, FPS, H, W).writer(tmp_path / "a.mp4", sound=given) as write:
        write(film(9))
    for name, source in (("b.webm", given), ("b.gif", given), ("b.mp4", silent)):
        refused = pytest.raises(ValueError, match="wanted a file whose sound")
        with refused, VideoMedia(9, FPS, H, W).writer(tmp_path / name, sound=source):
            pass
    assert streams_of(tmp_path / "a.mp4") == {"audio", "video"}


# ---------------------------------------------------------------- pieces


def test_pieces_are_regrouped_and_the_last_is_known():
    x = torch.arange(46).reshape(2, 23)
    for sizes in ([23], [1] * 23, [10, 13], [0, 3, 20, 0]):
        pieces = list(regrouped(x.split(sizes, 1), 5, 1, first=2))
        assert [p.shape[1] for p in pieces] == [2, 5, 5, 5, 5, 1] and torch.equal(torch.cat(pieces, 1), x)
    assert list(with_last("abc")) == [("a", False), ("b", False), ("c", True)]
    assert list(with_last([])) == [] and list(with_last([1])) == [(1, True)]
