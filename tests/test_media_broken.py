"""Whatever a file holds: a clip or a MediaError that names it and says why; never a crash, a leak of another error or a lie."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmldm.interfaces import Clip, MediaError
from mmldm.media import ArrayMedia, AudioMedia, ImageMedia, Limits, VideoMedia, media_for, save_audio, save_image, save_video

SOUND, VIDEO, STILL = (AudioMedia(16000, 1, 1.0), VideoMedia(8, 8.0, 32, 32), ImageMedia(32, 32))
CASES = {
    **dict.fromkeys((".mp4", ".mkv", ".webm", ".gif", ".avi"), VIDEO),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac"), SOUND),
    **dict.fromkeys((".png", ".jpg", ".webp", ".bmp", ".tiff"), STILL),
    ".npy": ArrayMedia(2, 100, 50.0),
}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> dict[str, bytes]:
    """Two seconds or one picture in every format."""
    folder, generator = tmp_path_factory.mktemp("encoded"), torch.Generator().manual_seed(0)
    video = torch.linspace(-1, 1, 16)[None, :, None, None] * torch.ones(3, 1, 40, 48)
    video = video + 0.2 * torch.randn(3, 16, 40, 48, generator=generator)
    sound = 0.3 * torch.randn(2, 32000, generator=generator)
    for suffix, media in CASES.items():
        path = folder / f"a{suffix}"
        if suffix == ".avi":
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=8)
                stream.height, stream.width, stream.pix_fmt = 40, 48, "yuv420p"
                for k in range(16):
                    level = (video[:, k].permute(1, 2, 0).clamp(-1, 1) * 127 + 127).byte().contiguous().numpy()
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(level, "rgb24")))
                container.mux(stream.encode(None))
        elif media is VIDEO:
            save_video(video, path, 8.0, None if suffix == ".gif" else sound, 16000)
        elif media is SOUND:
            save_audio(sound, path, 16000)
        elif suffix in (".bmp", ".tiff"):
            Image.open(save_image(video[:, 8], folder / "still.png")).save(path)
        elif media is STILL:
            save_image(video[:, 8], path)
        else:
            np.save(path, torch.randn(2, 150, generator=generator).numpy())
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in CASES}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, with flipped bytes, with a hole of zeros, or with a piece missing."""
    kind, at = rng.randrange(5), rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    out = bytearray(data)
    if kind == 1:
        del out[at : at + rng.randrange(1, 400)]
    elif kind == 2:
        out[at : at + 200] = bytes(len(out[at : at + 200]))
    else:
        limit = len(data) if kind == 3 else min(len(data), 600)  # headers matter most
        for _ in range(rng.randrange(1, 12)):
            out[rng.randrange(limit)] = rng.randrange(256)
    return bytes(out)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the TIFF reader warns before it refuses
@pytest.mark.parametrize("suffix", list(CASES))
def test_only_a_clip_or_a_media_error_comes_out(tmp_path, encoded, suffix):
    media, path, rng, refused = CASES[suffix], tmp_path / f"x{suffix}", random.Random(suffix), 0
    path.write_bytes(encoded[suffix])
    assert isinstance(media.load(path), Clip) and media.probe(path).format
    for _ in range(24):
        path.write_bytes(damaged(encoded[suffix], rng))
        for read in (media.probe, media.load, lambda p, m=media: m.load(p, 0.5)):
            try:
                got = read(path)
                assert not isinstance(got, Clip) or (got.x.shape == media.shape and bool(got.x.isfinite().all()))
            except MediaError as error:
                assert error.path == str(path) and error.reason and "\n" not in error.reason
                refused += 1
        assert media_for(path) in ("image", "audio", "video", "array")
    assert refused > 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".wav", ".flac", ".m4a", ".mp3", ".png", ".jpg", ".npy"])
def test_a_truncated_file_is_an_error_not_a_short_clip(tmp_path, encoded, suffix):
    media, path = CASES[suffix], tmp_path / f"x{suffix}"
    if media.seconds:
        media = media.resized(seconds=2.0)
    path.write_bytes(encoded[suffix][: len(encoded[suffix]) // 2])
    with pytest.raises(MediaError):
        media.load(path)
    if suffix not in (".png", ".jpg"):  # a header says nothing of the pixels after it
        with pytest.raises(MediaError, match="short|decoded|holds|opened|declares"):
            media.probe(path)


@pytest.mark.parametrize("suffix", list(CASES))
def test_empty_text_missing_and_folder(tmp_path, suffix):
    media, path = CASES[suffix], tmp_path / f"x{suffix}"
    cases = {"empty": lambda: path.write_bytes(b""), "text": lambda: path.write_text("just words, no media\n" * 300),
             "zeros": lambda: path.write_bytes(bytes(5000)), "missing": path.unlink, "folder": path.mkdir}  # fmt: skip
    for name, make in cases.items():
        make()
        for read in (media.probe, media.load):
            with pytest.raises(MediaError) as caught:
                read(path)
            assert path.name in str(caught.value), name
        assert name not in ("empty", "folder") or name in caught.value.reason


def test_mislabelled_files(tmp_path, encoded):
    def wrong(media, suffix, content, reason):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(encoded[content])
        for read in (media.probe, media.load):
            with pytest.raises(MediaError, match=reason):
                read(path)

    wrong(SOUND, ".wav", ".jpg", "not a sound or video file")
    wrong(VIDEO, ".mp4", ".png", "not a sound or video file")
    wrong(VIDEO, ".mp4", ".wav", "no video stream")
    wrong(SOUND, ".wav", ".gif", "no audio stream")
    wrong(STILL, ".png", ".mp4", "not a picture")
    wrong(ArrayMedia(2, 10), ".npy", ".wav", "decoded")
    (tmp_path / "x.jpg").write_bytes(encoded[".png"])  # the right kind under another name is fine
    assert isinstance(STILL.load(tmp_path / "x.jpg"), Clip)
    (tmp_path / "x.mp3").write_bytes(encoded[".webm"])
    assert isinstance(SOUND.load(tmp_path / "x.mp3"), Clip)


def test_playlists_are_not_followed(tmp_path, encoded):
    (tmp_path / "real.mp4").write_bytes(encoded[".mp4"])
    for text in ("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nreal.mp4\n", "ffconcat version 1.0\nfile real.mp4\n"):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(MediaError):
            VIDEO.load(tmp_path / "list.mp4")


def test_cover_pictures_are_no_video(tmp_path):
    with av.open(str(tmp_path / "cover.mp3"), "w") as container:
        sound = container.add_stream("libmp3lame", rate=16000)
        cover = container.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 64, 64, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.start_encoding()
        container.mux(cover.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64)))))
        frame = av.AudioFrame.from_ndarray(
            (np.random.default_rng(0).normal(size=(1, 32000)) * 3000).astype(np.int16), layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    path = tmp_path / "cover.mp3"
    assert SOUND.load(path).x.abs().mean() > 0.02
    with pytest.raises(MediaError, match="no video stream"):
        VIDEO.load(path)


def test_limits_are_checked_before_decoding(tmp_path, encoded):
    for suffix, limits, reason in (
        (".mp4", Limits(max_pixels=1000), "1920 pixels, the limit is 1000|pixels|decoded|opened"),
        (".mp4", Limits(max_frames=10), "16 frames, the limit is 10"),
        (".mp4", Limits(max_seconds=1.5), "2 seconds, the limit is 1.5"),
        (".wav", Limits(max_seconds=1.5), "seconds, the limit is 1.5"),
        (".wav", Limits(max_rate=8000), "16000 samples per second, the limit is 8000"),
        (".flac", Limits(max_bytes=10), "bytes, the limit is 10"),
    ):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(encoded[suffix])
        media = VideoMedia(8, 8.0, 32, 32, limits) if suffix == ".mp4" else AudioMedia(16000, 1, 1.0, limits)
        for read in (media.probe, media.load):
            with pytest.raises(MediaError, match=reason):
                read(path)


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = save_video(torch.zeros(3, 4, 16, 16), tmp_path / "a.mp4", 8.0)
    before = path.read_bytes()
    from mmldm.media import encode

    monkeypatch.setattr(encode, "_yuv", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_video(torch.ones(3, 4, 16, 16), path, 8.0)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is empty", "a.mp4: is empty")


def test_reading_does_not_import_drawing():
    """Loading a clip in a worker costs no matplotlib."""
    code = "import sys, mmldm.media; sys.exit(any(name in sys.modules for name in ('matplotlib', 'torchaudio', 'lightning')))"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0
