"""The log-mel front end against torchaudio's transform, and the way back to a waveform."""

import math

import pytest
import torch
from torchaudio import transforms

from mmldm.codec import GriffinLim, LogMel

PRESETS = {"16k": (16000, 1024, 256, 80), "24k": (24000, 1024, 256, 100), "44.1k": (44100, 2048, 512, 128)}


def tone(frequency: float, rate: int = 16000, seconds: float = 1.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(int(rate * seconds)) / rate)[None, None]


@pytest.mark.parametrize("preset", PRESETS)
def test_magnitudes_equal_torchaudio(preset):
    rate, n_fft, hop, bins = PRESETS[preset]
    mel = LogMel(rate, n_fft, hop, bins)
    x = torch.randn(2, 1, 20 * hop, generator=torch.Generator().manual_seed(0))
    theirs = transforms.MelSpectrogram(
        rate, n_fft, n_fft, hop, 0.0, rate / 2, n_mels=bins, power=1.0, center=False, norm="slaney", mel_scale="slaney"
    )(mel.padded(x))
    ours = mel.magnitudes(x)
    assert ours.shape == (2, 1, 20, bins)
    torch.testing.assert_close(ours.transpose(-1, -2), theirs, rtol=1e-4, atol=1e-4 * float(theirs.max()))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 96, 97, 200, 1000])
def test_frames_are_whole_hops_for_every_length(length):
    mel = LogMel(8000, 256, 64, 32)
    features = mel(torch.full((1, 2, length), 0.1))
    assert features.shape == (1, 2, math.ceil(length / 64), 32) and mel.frames(length) == features.shape[2]
    assert bool(features.isfinite().all())


def test_features_lie_in_about_one_and_the_affine_inverts():
    mel = LogMel()
    silence, loud = mel(torch.zeros(1, 1, 4096)), mel(tone(440).clamp(-1, 1) * 2)
    assert silence.min() >= -1.0 - 1e-5 and loud.max() < 1.2 and loud.max() > 0.3
    magnitudes = mel.magnitudes(tone(440)).clamp_min(1e-5)
    torch.testing.assert_close(mel.unscaled(mel(tone(440))), magnitudes, rtol=1e-4, atol=1e-6)


def test_digest_is_of_every_number():
    base = {"rate": 16000, "n_fft": 1024, "hop": 256, "bins": 80, "f_min": 0.0, "f_max": 8000.0}
    changes = (
        {},
        {"rate": 22050},
        {"n_fft": 512},
        {"hop": 128},
        {"bins": 64},
        {"f_min": 20.0},
        {"f_max": 7000.0},
        {"high": 2.0},
    )
    assert len({LogMel(**base | change).digest() for change in changes}) == len(changes)
    assert LogMel(**base).digest() == LogMel().digest()


@pytest.mark.parametrize("wrong", [{"f_max": 9000.0}, {"hop": 255}, {"hop": 2048}, {"f_min": 8000.0}])
def test_impossible_front_ends_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted"):
        LogMel(**wrong)


@pytest.mark.parametrize("frequency", [110.0, 440.0, 1760.0])
def test_griffin_lim_keeps_the_pitch(frequency):
    mel = LogMel()
    y = GriffinLim(mel)(mel(tone(frequency)))
    assert y.shape == (1, 1, 16128)  # 63 hops
    spectrum = torch.fft.rfft(y[0, 0] * torch.hann_window(y.shape[-1]), n=1 << 17).abs()
    heard = float(spectrum.argmax()) * 16000 / (1 << 17)
    assert abs(12 * math.log2(heard / frequency)) < 0.3  # semitones
    assert 0.3 < float(y.abs().quantile(0.99)) < 0.8


def test_griffin_lim_converges():
    mel = LogMel()
    x = tone(300) + 0.5 * tone(700)
    target = mel.magnitudes(x)
    errors = [
        float((mel.magnitudes(GriffinLim(mel, iterations=n)(mel(x))) - target).norm() / target.norm()) for n in (0, 4, 32)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.15


def test_griffin_lim_is_a_function_of_each_item_alone():
    mel = LogMel(8000, 256, 64, 32)
    features = mel(torch.randn(3, 2, 1280, generator=torch.Generator().manual_seed(0)))
    vocoder = GriffinLim(mel, iterations=4)
    together = vocoder(features)
    torch.testing.assert_close(together, torch.cat([vocoder(row[None]) for row in features]), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vocoder(features), together)
    assert not torch.equal(GriffinLim(mel, iterations=4, seed=1)(features), together)


def test_silence_stays_silent():
    mel = LogMel()
    assert float(GriffinLim(mel, iterations=4)(mel(torch.zeros(1, 1, 4096))).abs().max()) < 1e-2
