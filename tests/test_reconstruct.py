"""mmldm reconstruct: what streams through a codec is what the codec makes of the whole, in files of their own kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmldm import config, trained
from mmldm.codec import AudioCodec, GriffinLim, ImageCodec, LogMel, VideoCodec
from mmldm.commands import reconstruct
from mmldm.commands.streaming import Distances, read, reconstructed, usual_chunk
from mmldm.interfaces import Axis, Codec, Posterior
from mmldm.media import (
    ArrayMedia,
    AudioMedia,
    ImageMedia,
    VideoMedia,
    read_metadata,
    save_audio,
    save_image,
    save_video,
    streams_of,
)
from mmldm.model import Whitening
from tests.fakes import Blocks

TRUST = ("--trust", "tests.test_reconstruct.Fold", "--trust", "tests.test_reconstruct.Seen")


class Fold(Codec):
    """Cells of `size` samples along each axis become channels: nothing is lost."""

    lookahead = 0

    def __init__(self, media, size: int = 4):
        super().__init__()
        self.media, self.size, rank = media, size, len(media.shape) - 1
        self.latent_channels = media.shape[0] * size**rank
        names = (["time"] if media.time_axis is not None else []) + ["height", "width"]
        units = [1 / media.rate if name == "time" else 1.0 for name in names]
        self.axes = tuple(Axis(name, size, size, unit) for name, unit in zip(names[:rank], units, strict=False))
        self.reach = self.decode_reach = {axis.name: 0 for axis in self.axes}

    def encode_features(self, features):
        pads = [n for length in reversed(features.shape[2:]) for n in (0, -length % self.size)]
        x = torch.nn.functional.pad(features, pads)
        for axis in range(x.ndim - 2):
            x = x.unflatten(2 + axis, (-1, self.size)).movedim(3 + axis, 2).flatten(1, 2)
        return Posterior(x)

    def decode_features(self, z):
        for axis in reversed(range(z.ndim - 2)):
            z = z.unflatten(1, (-1, self.size)).movedim(2, 3 + axis).flatten(2 + axis, 3 + axis)
        return z

    def latent_shape(self, media_shape):
        return (self.latent_channels, *(axis.cells(n) for axis, n in zip(self.axes, media_shape[1:], strict=True)))


class Seen(Fold):
    """Says that it sees everything."""

    def __init__(self, media, size: int = 4):
        super().__init__(media, size)
        self.lookahead = self.reach = self.decode_reach = None


CLIP = {"_target_": "mmldm.media.video.VideoMedia", "frames": 8, "fps": 8.0, "height": 16, "width": 16}
SOUND = {"_target_": "mmldm.media.audio.AudioMedia", "rate": 16000, "channels": 2, "seconds": 0.5}
STILL = {"_target_": "mmldm.media.image.ImageMedia", "height": 16, "width": 16}
SIGNAL = {"_target_": "mmldm.media.array.ArrayMedia", "channels": 3, "length": 20, "rate": 10.0}


def saved(folder, name: str = "Fold", **medias) -> str:
    """A model folder with a codec of each stream."""
    nodes = {stream: {"_target_": f"tests.test_reconstruct.{name}", "media": media} for stream, media in medias.items()}
    codecs = {stream: config.build(node, trust=None) for stream, node in nodes.items()}
    parts = {f"codec.{s}": trained.codec_state(c, Whitening(c.latent_channels)) for s, c in codecs.items()}
    trained.store.save_model(folder, {"kind": "codec", "codecs": nodes, "clips": {}}, parts)
    return str(folder)


def run(*words) -> int:
    return reconstruct.main([*map(str, words), *TRUST])


def wave(seconds: float, rate: int = 16000, channels: int = 2) -> torch.Tensor:
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return torch.stack([0.4 * torch.sin(2 * math.pi * (300 + 90 * c + 60 * t) * t) for c in range(channels)]).float()


def film(frames: int, height: int = 16, width: int = 16) -> torch.Tensor:
    """A slope of brightness that moves."""
    place = torch.arange(frames)[:, None, None] / 9 + torch.arange(height)[:, None] / 20 + torch.arange(width) / 30
    return torch.stack([torch.sin(place + phase) * 0.8 for phase in (0.0, 1.0, 2.0)])


# ---------------------------------------------------------------- pieces and the whole


def codecs() -> dict[str, Codec]:
    torch.manual_seed(0)
    mel = LogMel(8000, 128, 32, 16)
    small = {"width": 4, "blocks": 1, "multipliers": (1,)}
    return {
        "clip": VideoCodec(VideoMedia(9, 8.0, 12, 16), **small),
        "sound": AudioCodec(AudioMedia(8000, 2, 0.1), mel, GriffinLim(mel, iterations=2), **{**small, "strides": (2,)}),
        "still": ImageCodec(ImageMedia(16, 16), **small),
        "signal": Blocks(),
        "fold": Fold(ArrayMedia(2, 9, 8.0)),
    }


@pytest.mark.parametrize("name", ["clip", "sound", "still", "signal", "fold"])
def test_pieces_make_what_the_codec_makes_of_the_whole(name):
    codec = codecs()[name].double().eval()
    codec.tile = 3 if name in ("clip", "still") else None
    time, shape = codec.media.time_axis, list(codec.media.shape)
    generator = torch.Generator().manual_seed(1)
    for chunk, length in ((1, 1), (2, 33), (3, 57), (5, 58)) if time is not None else ((None, 23),):
        codec.chunk = chunk
        shape[1] = length * (60 if name == "sound" else 1)
        x = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        with torch.no_grad():
            whole = codec.decode(codec.encode(x[None]).mean, x.shape)[0]
            for sizes in (1, 7, 1000) if time is not None else (1000,):
                pairs = list(reconstructed(codec, x.split(sizes * (60 if name == "sound" else 1), 1)))
                assert all(a.shape == b.shape for a, b in pairs)
                assert torch.equal(torch.cat([a for a, _ in pairs], 1), x)
                assert (torch.cat([b for _, b in pairs], 1) - whole).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["clip", "sound", "signal"])
def test_no_more_is_held_than_a_few_pieces(name):
    codec = codecs()[name].eval()
    codec.chunk = 2
    size = codec.axes[0].size * 2
    piece, given, back, held = torch.zeros(codec.media.shape[0], size, *codec.media.shape[2:]), 0, 0, []

    def pieces():
        nonlocal given
        for _ in range(60):
            given += size
            yield piece

    with torch.no_grad():
        for x, _ in reconstructed(codec, pieces()):
            back += x.shape[1]
            held.append(given - back)
    assert back == 60 * size and max(held[10:]) == max(held[10:40]) < 24 * size


def test_a_file_is_read_in_the_pieces_that_the_codec_takes(tmp_path):
    media, codec, count = VideoMedia(9, 8.0, 12, 16), codecs()["clip"], 0
    save_video(film(60, 12, 16), tmp_path / "v.mkv", 8.0)

    class Counted(VideoMedia):
        def stream(self, path, samples, start=0.0):
            nonlocal count
            for piece in super().stream(path, samples, start):
                count += piece.shape[1]
                yield piece

    codec.chunk = 4
    pieces = read(codec, Counted(9, 8.0, 12, 16), tmp_path / "v.mkv", 50)
    first = next(pieces)
    assert first.shape[1] == 13 and count <= 16  # chunks of 4 cells: 1 + 3·4 frames, then 4·4
    rest = list(pieces)
    assert [p.shape[1] for p in rest] == [16, 16, 5] and count <= 64
    assert torch.equal(torch.cat([first, *rest], 1), media.resized(seconds=50 / 8).load(tmp_path / "v.mkv").x)


def test_a_codec_that_says_no_chunk_is_given_about_two_seconds():
    assert usual_chunk(Fold(VideoMedia(8, 8.0, 16, 16))) == 4 and usual_chunk(Fold(AudioMedia(16000, 1, 1.0))) == 8000
    assert usual_chunk(Fold(ImageMedia(8, 8))) is None


def test_distances_are_those_of_the_whole():
    x, y = film(20), film(20).flip(3)
    told = Distances(VideoMedia(8, 8.0, 16, 16))
    for a, b in zip(x.split([1, 12, 7], 1), y.split([1, 12, 7], 1), strict=True):
        told.add(a, b)
    wanted = 10 * math.log10(4 / float((x - y).double().square().mean()))
    assert str(told).startswith(f"PSNR {wanted:.2f} dB  SSIM ")
    heard = Distances(AudioMedia(16000, 2, 1.0))
    heard.add(wave(1.0), wave(1.0) * 0.9)
    assert str(heard).startswith("SNR 20.00 dB  log-spectral distance ")


# ---------------------------------------------------------------- from file to file


def test_sounds_keep_their_kind_and_length(tmp_path, capsys):
    model = saved(tmp_path / "model", audio=SOUND)
    for name, rate, channels in (("a.wav", 16000, 2), ("b.flac", 44100, 1), ("c.mp3", 44100, 2), ("d.opus", 48000, 2)):
        save_audio(wave(2.3, rate, channels), tmp_path / name, rate)
    save_video(film(16), tmp_path / "e.mkv", 8.0, wave(2.0, 48000), 48000)
    files = [tmp_path / name for name in ("a.wav", "b.flac", "c.mp3", "d.opus", "e.mkv")]
    assert run(model, *files, "--out", tmp_path / "out") == 0
    told = capsys.readouterr()
    assert told.err == "" and len(told.out.splitlines()) == 5 and "2.30 s  SNR 100.00 dB" in told.out
    media = AudioMedia(16000, 2, 3.0)
    for path in files:
        out = tmp_path / "out" / (path.name if path.suffix != ".mkv" else "e.wav")
        x, y = media.load(path), media.load(out)
        assert y.valid[0] == pytest.approx(x.valid[0], abs=1200 if path.suffix in (".mp3", ".opus") else 1)
        assert (x.x - y.x)[:, :31000].abs().max() < (0.05 if path.suffix in (".mp3", ".opus") else 1e-4)
        assert read_metadata(out) == {"file": path.name, "codec": model}


def test_clips_keep_their_sound_and_are_cropped_or_not(tmp_path, capsys):
    model = saved(tmp_path / "model", video=CLIP)
    save_video(film(50, 34, 50), tmp_path / "v.mp4", 12.5, wave(4.0), 16000)
    assert run(model, tmp_path / "v.mp4", "--out", tmp_path / "o.mp4") == 0
    assert run(model, tmp_path / "v.mp4", "--out", tmp_path / "own.mkv", "--size", "own", "--seconds", "2.5") == 0
    assert (
        run(model, tmp_path / "v.mp4", "--out", tmp_path / "sized.gif", "--size", "20x30", "--chunk", "1", "--tile", "2") == 0
    )
    told = capsys.readouterr()
    assert told.err == "note: v.mp4 loses its sound: .gif cannot carry it as it is\n" and "2.50 s  PSNR 100.00" in told.out
    for name, size, seconds in (("o.mp4", (16, 16), 4.0), ("own.mkv", (34, 50), 2.5), ("sized.gif", (20, 30), 4.0)):
        media = VideoMedia(40, 8.0, *size)
        x, y = media.load(tmp_path / "v.mp4"), media.load(tmp_path / name)
        assert media.probe(tmp_path / name).shape[1:] == size and y.valid[0] == 8 * seconds
        assert (x.x - y.x)[:, : y.valid[0]].abs().mean() < 0.03
    for name, seconds in (("o.mp4", 4.0), ("own.mkv", 2.5)):
        heard = AudioMedia(16000, 2, 4.0)
        x, y = heard.load(tmp_path / "v.mp4"), heard.load(tmp_path / name)
        assert y.valid[0] / 16000 == pytest.approx(seconds, abs=0.1)
        assert (x.x - y.x)[:, : round(16000 * (seconds - 0.1))].abs().max() < 0.05
    assert streams_of(tmp_path / "sized.gif") == {"video"}


def test_stills_keep_their_size_and_go_through_tiles(tmp_path, monkeypatch):
    model = saved(tmp_path / "model", image=STILL)
    x = film(1, 133, 207)[:, 0]
    save_image(x, tmp_path / "p.png")
    seen, original = [], Fold.encode_features
    monkeypatch.setattr(Fold, "encode_features", lambda self, f: seen.append(max(f.shape[2:])) or original(self, f))
    assert run(model, tmp_path / "p.png", "--out", tmp_path / "o", "--tile", "8") == 0
    assert len(seen) == 5 * 7 and max(seen) <= 36
    again = ImageMedia(133, 207).load(tmp_path / "o" / "p.png").x
    assert torch.equal(again, ImageMedia(133, 207).load(tmp_path / "p.png").x)
    assert run(model, tmp_path / "p.png", "--out", tmp_path / "s.webp", "--size", "30x40") == 0
    assert ImageMedia(1, 1).probe(tmp_path / "s.webp").shape == (30, 40)


def test_signals_come_back_to_the_bit(tmp_path):
    model = saved(tmp_path / "model", signal=SIGNAL)
    values = np.random.default_rng(0).normal(size=(3, 251)).astype(np.float32) * 40
    np.save(tmp_path / "s.npy", values)
    assert run(model, tmp_path / "s.npy", "--out", tmp_path / "o.npy", "--chunk", "3") == 0
    assert np.array_equal(np.load(tmp_path / "o.npy"), values)


# ---------------------------------------------------------------- what goes wrong


def test_what_cannot_be_used_is_a_line_and_the_others_go_on(tmp_path, capsys):
    model, sound = saved(tmp_path / "model", audio=SOUND), save_audio(wave(2.0), tmp_path / "good.wav", 16000)
    (tmp_path / "broken.mp3").write_bytes(b"no sound at all" * 50)
    (tmp_path / "words.txt").write_text("hello")
    (tmp_path / "cut.flac").write_bytes(save_audio(wave(9.0), tmp_path / "w.flac", 16000).read_bytes()[:60000])
    names = ["broken.mp3", "words.txt", "cut.flac", "missing.wav", "good.wav"]
    assert run(model, *(tmp_path / name for name in names), "--out", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 1 and len(told.err.splitlines()) == 4
    assert all(any(name in line for line in told.err.splitlines()) for name in names[:4])
    assert [p.name for p in (tmp_path / "out").iterdir()] == [sound.name]


def test_an_interrupted_reconstruction_leaves_no_file(tmp_path, monkeypatch):
    model, sound = saved(tmp_path / "model", audio=SOUND), save_audio(wave(9.0), tmp_path / "a.wav", 16000)
    original, calls = Fold.decode_features, []

    def failing(self, z):
        calls.append(z)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return original(self, z)

    monkeypatch.setattr(Fold, "decode_features", failing)
    with pytest.raises(KeyboardInterrupt):
        run(model, sound, "--out", tmp_path / "out")
    assert len(calls) == 3 and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--chunk", "0"], "wanted --chunk above 0, got 0"),
        (["--seconds", "-1"], "wanted --seconds above 0, got -1"),
        (["--stream", "smell"], "got 'smell'; choose from audio, video"),
        (["--stream", "audio", "--out", "o.mp4"], "got --out o.mp4; choose from .wav"),
        (["--stream", "audio", "--out", "a.wav"], "wanted --out beside the file itself"),
        (["--stream", "audio", "b/a.wav", "--out", "o"], "two that would become o/a.wav"),
        (["b/a.wav", "--out", "o.wav"], "wanted --out FOLDER for 2 files"),
        (["--vocoder", "v"], "wanted a codec with a vocoder"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_read(tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "model", audio=SOUND, video=CLIP)
    with pytest.raises(ValueError, match=reason):
        run("model", "a.wav", *words)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_one_of_several_streams_is_named_where_a_file_could_be_both(tmp_path, capsys):
    model = saved(tmp_path / "model", audio=SOUND, video=CLIP)
    path = save_video(film(16), tmp_path / "v.mkv", 8.0, wave(2.0), 16000)
    assert run(model, path, "--out", tmp_path / "o") == 2
    assert "wanted --stream for" in capsys.readouterr().err
    assert run(model, path, "--out", tmp_path / "o", "--stream", "audio") == 0
    assert run(model, path, "--out", tmp_path / "o", "--stream", "video") == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["v.mkv", "v.wav"]
    assert run(model, path, "--out", tmp_path / "o", "--stream", "audio", "--size", "own") == 2
    assert "wanted no --size" in capsys.readouterr().err


def test_what_is_not_exact_is_told_once(tmp_path, capsys):
    model = saved(tmp_path / "model", "Seen", audio=SOUND)
    for name in ("a.wav", "b.wav"):
        save_audio(wave(5.0), tmp_path / name, 16000)
    assert run(model, tmp_path / "a.wav", tmp_path / "b.wav", "--out", tmp_path / "o") == 0
    told = capsys.readouterr()
    assert told.err == "note: pieces of audio are cross-faded along time: this codec sees further than they reach\n"
    assert told.out.count("SNR 100.00 dB") == 2
