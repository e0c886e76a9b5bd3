"""Sound: what is written comes back; crops are placed by time; rates and channels change without harm."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mmldm.interfaces import MediaError
from mmldm.media import AudioMedia, read_metadata, save_audio

RATE = 44100


def tones(seconds: float = 3.0, rate: int = RATE) -> torch.Tensor:
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    left = 0.5 * torch.sin(2 * math.pi * (300 + 150 * t) * t)
    return torch.stack([left, 0.4 * torch.sin(2 * math.pi * 700 * t) * (t / seconds)]).float()


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lossless_formats_keep_sixteen_bits_exactly(tmp_path, suffix):
    x = (torch.randint(-32768, 32768, (2, 5000), generator=torch.Generator().manual_seed(0)) / 32768).float()
    media = AudioMedia(22050, 2, 5000 / 22050)
    clip = media.load(media.save(x, tmp_path / f"a{suffix}"))
    assert torch.equal(clip.x, x) and clip.valid == (5000,)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a"])
def test_round_trip_is_in_time_and_crops_are_slices(tmp_path, suffix):
    x, path = tones(), tmp_path / f"a{suffix}"
    metadata = {"prompt": 'a "bell", é', "seed": "3"}
    save_audio(x, path, RATE, metadata)
    whole = AudioMedia(RATE, 2, 3.0)
    info, full = whole.probe(path), whole.load(path).x
    assert info.seconds == pytest.approx(3.0, abs=0.03) and info.channels == 2
    assert (full - x)[:, 3000:-3000].abs().max() < 0.05  # also false for a shift by a tenth of a millisecond
    for start in (0.25, 1.2345, 1.9):
        first = round(start * RATE)
        crop = AudioMedia(RATE, 2, 1.0).load(path, start)
        assert (crop.x - full[:, first : first + RATE]).abs().max() < 2e-3 and crop.valid == (RATE,)
    assert read_metadata(path) == metadata


def test_raw_aac_has_its_duration_by_its_packets(tmp_path):
    path = save_audio(tones(), tmp_path / "a.aac", RATE)
    assert AudioMedia(RATE, 2, 1.0).probe(path).seconds == pytest.approx(3.0, abs=0.06)


@pytest.mark.parametrize("rate", [8000, 16000, 48000, 16001])
def test_a_sine_survives_resampling_and_stays_in_phase(tmp_path, rate):
    t = torch.arange(2 * RATE, dtype=torch.float64) / RATE
    path = save_audio((0.9 * torch.sin(2 * math.pi * 1000 * t))[None], tmp_path / "s.wav", RATE)
    for start in (0.2, 0.777):
        clip = AudioMedia(rate, 1, 0.5).load(path, start)
        n = round(start * rate) + torch.arange(clip.x.shape[1], dtype=torch.float64)
        assert (clip.x[0] - 0.9 * torch.sin(2 * math.pi * 1000 * n / rate)).abs().max() < 1e-3


def test_resampling_down_removes_what_cannot_be_represented(tmp_path):
    t = torch.arange(RATE, dtype=torch.float64) / RATE
    path = save_audio((0.9 * torch.sin(2 * math.pi * 10000 * t))[None], tmp_path / "s.wav", RATE)
    assert AudioMedia(16000, 1, 0.5).load(path, 0.2).x.abs().max() < 0.01


def test_mono_is_copied_and_stereo_averaged(tmp_path):
    x = tones(0.5)
    mono = save_audio(x[:1], tmp_path / "m.wav", RATE)
    stereo = save_audio(x, tmp_path / "s.wav", RATE)
    both = AudioMedia(RATE, 2, 0.5).load(mono).x
    assert torch.equal(both[0], both[1]) and (both[0] - x[0]).abs().max() < 1e-4
    assert (AudioMedia(RATE, 1, 0.5).load(stereo).x[0] - x.mean(0)).abs().max() < 1e-4


def test_surround_is_folded_to_stereo(tmp_path):
    path = tmp_path / "six.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="5.1")
        data = (np.random.default_rng(0).uniform(-0.2, 0.2, (1, 6 * 8000)) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout="5.1")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = AudioMedia(8000, 2, 1.0).load(path)
    assert clip.valid == (8000,) and clip.x.abs().mean() > 0.02
    with pytest.raises(MediaError, match="wanted 4 channels, got 6"):
        AudioMedia(8000, 4, 1.0).load(path)


@pytest.mark.parametrize("codec, form", [("pcm_u8", "u8"), ("pcm_s24le", "s32"), ("pcm_f32le", "flt"), ("pcm_f64le", "dbl")])
def test_every_sample_format_has_the_same_scale(tmp_path, codec, form):
    path, wave = tmp_path / "a.wav", 0.5 * np.sin(np.arange(4000) * 0.05)
    kinds = {"u8": lambda w: (w * 128 + 128).astype(np.uint8), "s32": lambda w: (w * 2**31).astype(np.int32),
             "flt": lambda w: w.astype(np.float32), "dbl": lambda w: w.astype(np.float64)}  # fmt: skip
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(kinds[form](wave)[None], format=form, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    x = AudioMedia(8000, 1, 0.5).load(path).x[0].numpy()
    assert np.abs(x - wave).max() < (0.01 if form == "u8" else 1e-4)


def test_the_end_is_padded_with_zeros_and_counted(tmp_path):
    path, media = save_audio(tones(1.2), tmp_path / "a.wav", RATE), AudioMedia(RATE, 2, 2.0)
    clip = media.load(path, 0.7)
    assert clip.valid == (round(0.5 * RATE),) and clip.start == 0.7
    assert not clip.x[:, clip.valid[0] :].any() and clip.x[:, : clip.valid[0]].abs().max() > 0.1
    with pytest.raises(MediaError, match="ends at 1.20 s"):
        media.load(path, 1.3)


def test_plan_windows_and_resized(tmp_path):
    path, media = save_audio(tones(1.2), tmp_path / "a.wav", RATE), AudioMedia(16000, 1, 2.0)
    info = media.probe(path)
    assert media.plan(info) == ["resampled 44100 -> 16000 Hz", "mixed 2 -> 1 channels", "padded 1.20 -> 2.00 s"]
    assert AudioMedia(RATE, 2, 1.2).plan(info) == []
    short = media.resized(seconds=0.5)
    assert short.shape == (1, 8000) and short.seconds == 0.5 and short.windows(info) == [0.0, 0.5]
    with pytest.raises(ValueError, match="height"):
        media.resized(size=(8, 8))
    assert pickle.loads(pickle.dumps(media)) == media


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose from"):
        save_audio(tones(0.1), tmp_path / "a.xyz", RATE)
    with pytest.raises(ValueError, match="wanted sound"):
        save_audio(tones(0.1)[0], tmp_path / "a.wav", RATE)
    with pytest.raises(ValueError, match="rate"):
        AudioMedia(0, 1, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_preview_is_a_player_and_a_picture(tmp_path):
    previews = AudioMedia(8000, 2, 0.5).preview(tones(0.5, 8000), tmp_path, "x")
    assert [p.kind for p in previews] == ["audio", "picture"] and all(p.path.stat().st_size > 1000 for p in previews)
