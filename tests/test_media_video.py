"""Video: frames are chosen by time stamps, upright, in step with their sound."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmldm.interfaces import MediaError
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, media_for, read_metadata, save_video, sheet, streams_of

H, W, FPS = 48, 64, 12.5


def ramp(frames: int = 50) -> torch.Tensor:
    """Brightness tells the frame: -0.8 … 0.8; the upper left quarter is red."""
    x = torch.linspace(-0.8, 0.8, frames)[None, :, None, None].expand(3, frames, H, W).clone()
    x[:, :, : H // 2, : W // 2] = torch.tensor([0.9, -0.5, -0.7])[:, None, None, None]
    return x


def clicks(seconds: float = 4.0, rate: int = 48000) -> torch.Tensor:
    """A short burst every half second."""
    x = torch.zeros(2, round(seconds * rate))
    for begin in range(0, x.shape[1], rate // 2):
        x[:, begin : begin + 480] = 0.8 * torch.sin(torch.arange(480) * 0.3)
    return x


def shown(x: torch.Tensor, frames: int = 50) -> list[int]:
    """Which frame of the ramp each picture is."""
    return ((x[:, :, H // 2 + 4 :].mean((0, 2, 3)) + 0.8) / 1.6 * (frames - 1)).round().int().tolist()


def write(path, stamps, brightness, base=Fraction(1, 1000), sound_at=None, height=H, width=W, codec="libx264", pad=0):
    """A file with pictures at the given stamps (in units of base), and a sound beginning at a stamp."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "8", "g": "10"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        sound = container.add_stream("aac", rate=48000, layout="mono") if sound_at is not None else None
        for stamp, level in zip(stamps, brightness, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8), "rgb24")
            frame.pts, frame.time_base = stamp, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            burst = np.zeros((1, 48000), np.float32)
            burst[0, 24000:26000] = 0.8 * np.sin(np.arange(2000) * 0.3)
            frame = av.AudioFrame.from_ndarray(burst, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, round(sound_at * 48000), Fraction(1, 48000)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
def test_round_trip_crops_and_metadata(tmp_path, suffix):
    x, path, metadata = ramp(), tmp_path / f"v{suffix}", {"prompt": 'red, "é"', "seed": "1"}
    save_video(x, path, FPS, None if suffix == ".gif" else clicks(), 48000, metadata)
    whole = VideoMedia(50, FPS, H, W)
    info, full = whole.probe(path), whole.load(path)
    assert info.seconds == pytest.approx(4.0, abs=0.05) and info.shape[1:] == (H, W) and full.valid == (50, H, W)
    assert whole.plan(info) == [] and whole.windows(info) == [0.0]
    assert (full.x - x).abs().mean() < 0.02 and shown(full.x) == list(range(50))
    assert (full.x[:, 25, 5, 5] - x[:, 25, 5, 5]).abs().max() < 0.03  # colours: matrix and range are what the file says
    crop = VideoMedia(10, FPS, H, W).load(path, 1.6)
    assert torch.equal(crop.x, full.x[:, 20:30]) and crop.start == 1.6
    assert shown(VideoMedia(10, 2 * FPS, H, W).load(path, 1.6).x) == [20, 20, 21, 21, 22, 22, 23, 23, 24, 24]
    assert shown(VideoMedia(4, FPS / 3, H, W).load(path, 0.0).x) == [0, 3, 6, 9]
    last = VideoMedia(10, FPS, H, W).load(path, 3.6)
    assert last.valid == (5, H, W) and shown(last.x) == [45, 46, 47, 48, 49, 49, 49, 49, 49, 49]
    with pytest.raises(MediaError, match="before the wanted start"):
        whole.load(path, 4.2)
    assert read_metadata(path) == metadata and media_for(path) == "video"
    assert streams_of(path) == ({"video"} if suffix == ".gif" else {"audio", "video"})


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_picture_and_sound_of_one_start_belong_together(tmp_path, suffix):
    path = save_video(ramp(), tmp_path / f"v{suffix}", FPS, clicks(), 48000)
    for start in (0.0, 0.8, 1.76, 2.4):
        sound = AudioMedia(16000, 1, 1.0).load(path, start).x[0]
        begun = start + int((sound.abs() > 0.3).nonzero()[0]) / 16000
        expected = math.ceil(start * 2) / 2
        assert begun == pytest.approx(expected, abs=0.003)
        assert shown(VideoMedia(1, FPS, H, W).load(path, start).x) == [round(start * FPS)]


def test_variable_frame_rate_goes_by_time_stamps(tmp_path):
    stamps, levels = [0, 100, 150, 700, 720, 1500], [20, 60, 100, 140, 180, 220]
    path = write(tmp_path / "v.mkv", stamps, levels)
    x = VideoMedia(16, 10.0, H, W).load(path).x.mean((0, 2, 3))
    expected = [levels[max(i for i, s in enumerate(stamps) if s <= k * 100)] for k in range(16)]
    assert ((x * 127.5 + 127.5) - torch.tensor(expected)).abs().max() < 4
    late = VideoMedia(3, 10.0, H, W).load(path, 0.65).x.mean((0, 2, 3)) * 127.5 + 127.5
    assert (late - torch.tensor([100.0, 180, 180])).abs().max() < 4  # one picture is held for more than half a second


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4", "v.ts"])
def test_offsets_of_sound_and_file_do_not_matter(tmp_path, name):
    """Pictures begin at 3 s of the container's clock, the sound half a second later with a burst at its own 0.5 s."""
    path = write(tmp_path / name, [3000 + 40 * k for k in range(50)], [k * 5 for k in range(50)], sound_at=3.5)
    picture = VideoMedia(25, 25.0, H, W).load(path).x.mean((0, 2, 3)) * 127.5 + 127.5
    assert (picture - torch.arange(25) * 5).abs().max() < 4
    sound = AudioMedia(48000, 1, 2.0).load(path).x[0]
    assert not sound[:20000].any() and int((sound.abs() > 0.3).nonzero()[0]) / 48000 == pytest.approx(1.0, abs=0.03)
    later = AudioMedia(48000, 1, 0.5).load(path, 0.8).x[0]
    assert int((later.abs() > 0.3).nonzero()[0]) / 48000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("name, hidden", [("v.mkv", 0), ("v.mp4", 10)])
def test_negative_time_stamps(tmp_path, name, hidden):
    """MP4 hides what lies before zero by an edit list; elsewhere the first picture is the beginning."""
    path = write(tmp_path / name, [-400 + 40 * k for k in range(50)], [k * 5 for k in range(50)])
    clip = VideoMedia(40, 25.0, H, W).load(path)
    assert ((clip.x.mean((0, 2, 3)) * 127.5 + 127.5) - torch.arange(hidden, hidden + 40) * 5).abs().max() < 4
    assert clip.valid[0] == 40 and VideoMedia(1, 25.0, H, W).probe(path).seconds == pytest.approx(2 - hidden / 25, abs=0.05)


def test_sound_shorter_than_the_picture_is_silence_with_nothing_valid(tmp_path):
    path = write(tmp_path / "v.mp4", [40 * k for k in range(75)], [100] * 75, sound_at=0.0)
    clip = AudioMedia(48000, 1, 0.5).load(path, 2.0)
    assert clip.valid == (0,) and not clip.x.any()
    assert AudioMedia(48000, 1, 0.5).probe(path).seconds == pytest.approx(1.0, abs=0.05)


def test_rotation_flags_are_applied(tmp_path):
    path = save_video(ramp(4), tmp_path / "v.mp4", FPS)
    upright = VideoMedia(1, FPS, H, W).load(path).x[:, 0]
    one = 0x10000
    matrices = {  # (a, b, c, d) of the display matrix -> what a player shows
        (0, one, -one, 0): torch.rot90(upright, -1, (1, 2)),
        (0, -one, one, 0): torch.rot90(upright, 1, (1, 2)),
        (-one, 0, 0, -one): torch.rot90(upright, 2, (1, 2)),
        (-one, 0, 0, one): upright.flip(2),
    }
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    for (a, b, c, d), expected in matrices.items():
        numbers = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
        turned = tmp_path / "turned.mp4"
        turned.write_bytes(data[:at] + b"".join(n.to_bytes(4, "big", signed=True) for n in numbers) + data[at + 36 :])
        height, width = expected.shape[1:]
        media = VideoMedia(1, FPS, height, width)
        assert (media.load(turned).x[:, 0] - expected).abs().mean() < 0.01, (a, b, c, d)
        assert media.probe(turned).shape[1:] == (height, width)


def test_sizes_are_covered_and_cropped_and_odd_sizes_written(tmp_path):
    path = save_video(ramp(3)[:, :, :47, :63], tmp_path / "v.mp4", FPS)
    assert VideoMedia(3, FPS, 8, 8).probe(path).shape == (3, 48, 64)
    x = VideoMedia(3, FPS, 24, 24).load(path).x
    assert x.shape == (3, 3, 24, 24) and (x[:, 1, 4, 2] - torch.tensor([0.9, -0.5, -0.7])).abs().max() < 0.05
    tall = VideoMedia(3, FPS, 31, 17).load(path).x
    assert tall.shape == (3, 3, 31, 17) and (tall[:, 1, 25, 8]).abs().max() < 0.05
    board = ((torch.arange(128)[:, None] + torch.arange(128)) % 2).float() * 2 - 1
    path = save_video(board.expand(3, 2, -1, -1), tmp_path / "b.mp4", FPS)
    assert VideoMedia(1, FPS, 16, 16).load(path).x.abs().max() < 0.1  # antialiased


@pytest.mark.parametrize(
    "codec, name", [("libx265", "v.mp4"), ("libsvtav1", "v.mp4"), ("mpeg4", "v.avi"), ("libx264", "v.avi")]
)
def test_further_codecs_and_containers(tmp_path, codec, name):
    path = write(tmp_path / name, list(range(30)), [k * 8 for k in range(30)], Fraction(1, 25), codec=codec, height=64)
    media = VideoMedia(10, 25.0, 64, 64)
    assert media.probe(path).seconds == pytest.approx(1.2, abs=0.05)
    for first in (0, 12):
        x = media.load(path, first / 25).x.mean((0, 2, 3)) * 127.5 + 127.5
        assert (x - torch.arange(first, first + 10) * 8).abs().max() < 6


def test_transparent_gif_lies_on_white(tmp_path):
    frames = [Image.new("RGBA", (W, H), (255, 0, 0, 255)), Image.new("RGBA", (W, H), (0, 0, 255, 255))]
    for frame in frames:
        frame.paste((0, 0, 0, 0), (0, 0, W // 2, H))
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    x = VideoMedia(2, 10.0, H, W).load(tmp_path / "v.gif").x
    assert (x[..., : W // 2] == 1).all() and x[0, 0, 5, -5] > 0.95 and x[2, 1, 5, -5] > 0.95 and x[0, 1, 5, -5] < -0.95


def test_seeking_decodes_little(tmp_path, monkeypatch):
    """From the key frame before the start, not from the beginning."""
    path = write(tmp_path / "v.mp4", [40 * k for k in range(400)], [k // 2 for k in range(400)])
    seen = []
    from mmldm.media import video

    original = video.decoded
    monkeypatch.setattr(video, "decoded", lambda *a: (seen.append(f[0]) or f for f in original(*a)))
    clip = VideoMedia(5, 25.0, H, W).load(path, 12.0)
    assert ((clip.x.mean((0, 2, 3)) * 127.5 + 127.5) - torch.arange(300, 305) // 2).abs().max() < 4
    assert len(seen) < 40


def test_resized_plan_and_refusals(tmp_path):
    media = VideoMedia(8, 8.0, 32, 32)
    assert media.seconds == 1.0 and media.resized(2.0, (16, 24)).shape == (3, 16, 16, 24)
    assert pickle.loads(pickle.dumps(media)) == media
    path = save_video(ramp(), tmp_path / "v.mp4", FPS)
    assert media.plan(media.probe(path)) == ["resampled 12.5 -> 8 fps", "scaled and cropped 64x48 -> 32x32",
                                             "cropped 4.00 -> 1.00 s"]  # fmt: skip
    with pytest.raises(ValueError, match="wanted a video"):
        save_video(torch.zeros(3, 8, 8), tmp_path / "a.mp4", 8)
    with pytest.raises(ValueError, match="rate"):
        save_video(ramp(2), tmp_path / "a.mp4", 8, clicks())
    with pytest.raises(ValueError, match="choose from"):
        media.save(ramp(2), tmp_path / "a.avi")
    with pytest.raises(MediaError, match="has no audio stream"):
        AudioMedia(8000, 1, 1.0).load(path)
    assert not list(tmp_path.glob("a.*")) and not list(tmp_path.glob(".*"))


def test_preview_and_sheet(tmp_path):
    media = VideoMedia(5, 8.0, 16, 16)
    x = (torch.rand(1, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8).expand(3, -1, -1, -1)
    previews = media.preview(x, tmp_path, "v", sound=clicks(0.6), sound_rate=48000)
    assert [p.kind for p in previews] == ["video", "picture"] and streams_of(previews[0].path) == {"audio", "video"}
    again = VideoMedia(5, 8.0, 256, 256).load(previews[0].path).x
    hard = x.repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert (again - hard).abs().mean() < 0.05  # enlarged with hard pixels before the codec saw it
    size = ImageMedia(1, 1).probe(sheet([(x, "a"), (x, "b")], media, tmp_path / "s.png")).shape
    assert size[0] > 2 * 96 and size[1] > 5 * 96
