"""Vocoders: pieces make the whole, channels stay apart, and one is trained as the decoder of a codec."""

from dataclasses import dataclass

import pytest
import torch

from mmldm import keyed, windows
from mmldm.codec import AudioCodec, GriffinLim, LogMel, MelCodec, Vocos
from mmldm.codec.vocoder import Vocoder, inverse_stft
from mmldm.records import Axis
from mmldm.testing import check_codec

MEL = LogMel(8000, 256, 64, 30)


@dataclass(frozen=True)
class Shaped:
    """As much of a media as a codec asks for."""

    shape: tuple[int, ...]
    time_axis: int | None = 0
    rate: float | None = 8000


MONO, STEREO = Shaped((1, 1300)), Shaped((2, 1024))
VOCODERS = {
    "griffin-lim": lambda: GriffinLim(MEL, iterations=3),
    "vocos": lambda: Vocos(MEL, width=16, blocks=2),
    "vocos, other kernel": lambda: Vocos(MEL, width=16, blocks=1, hidden=20, kernel=3),
    "vocos, odd overlap": lambda: Vocos(LogMel(8000, 200, 80, 30), width=16, blocks=1),
}


def awake(vocoder: Vocoder) -> Vocoder:
    """Every parameter away from its initial value, in float64."""
    for name, parameter in vocoder.named_parameters():
        parameter.data += keyed.normal(("awake", name), [0], parameter.shape)[0] * 0.05
    return vocoder.double().eval()


def features(frames: int = 60, channels: int = 1) -> torch.Tensor:
    return keyed.normal(("mel",), range(2), (channels, frames, 30)).double() * 0.3 - 0.2


@pytest.mark.parametrize("kind", VOCODERS)
@torch.no_grad()
def test_frames_become_hops_and_channels_do_not_meet(kind):
    vocoder, x = awake(VOCODERS[kind]()), features(channels=2)
    y = vocoder(x)
    assert y.shape == (2, 2, 60 * vocoder.mel.hop) and bool(y.isfinite().all())
    torch.testing.assert_close(y[:, 1:], vocoder(x[:, 1:]), rtol=0, atol=1e-10)
    assert vocoder(x[:, :, :1]).shape == (2, 2, vocoder.mel.hop)


@pytest.mark.parametrize("kind", VOCODERS)
@torch.no_grad()
def test_windows_of_the_declared_reach_are_the_whole(kind):
    vocoder, x = awake(VOCODERS[kind]()), features(90)
    hop = vocoder.mel.hop
    context = windows.Context.of(windows.GRID, Axis("time", hop, hop, 1 / 8000), vocoder.reach, vocoder.reach, 10)
    pieces, state = [], None
    for begin in range(0, 90, 15):
        y, state = windows.advance(vocoder, x[:, :, begin : begin + 15], state, begin == 75, 2, context)
        pieces += [] if y is None else [y]
    assert len(pieces) > 3
    torch.testing.assert_close(torch.cat(pieces, -1), vocoder(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [k for k in VOCODERS if k != "griffin-lim"])
def test_the_declared_reach_is_the_least(kind):
    vocoder = awake(VOCODERS[kind]())
    x, middle, hop = features(2 * vocoder.reach + 5)[:1].requires_grad_(), vocoder.reach + 2, vocoder.mel.hop
    vocoder(x)[..., hop * middle : hop * (middle + 1)].square().sum().backward()
    seen = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(max(middle - seen.min(), seen.max() - middle)) == vocoder.reach


def test_the_inverse_transform_inverts():
    x = keyed.normal(("signal",), range(2), (16 * 64,)).double()
    window = torch.hann_window(256, dtype=torch.float64)
    spectrum = torch.stft(x, 256, 64, window=window, center=False, return_complex=True).transpose(1, 2)
    y = inverse_stft(spectrum, window, 64)
    torch.testing.assert_close(y[:, 64:-64], x[:, 64:-64], rtol=0, atol=1e-12)


def test_vocos_computes_its_transform_in_float32():
    vocoder, x = Vocos(MEL, width=16, blocks=2), features().float()
    with torch.autocast("cpu", torch.bfloat16):
        y = vocoder(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, vocoder(x), rtol=0, atol=0.05)
    loud = torch.full((1, 3, 258), 50.0)
    assert bool(vocoder.waveform(loud).isfinite().all())


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"blocks": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted an odd kernel and blocks >= 1"):
        Vocos(MEL, **wrong)


# ---------------------------------------------------------------- as the decoder of a codec


def codec() -> AudioCodec:
    return AudioCodec(MONO, MEL, width=8, strides=((2, 2), (2, 1)))


CODECS = {
    "vocos": lambda: MelCodec(MONO, Vocos(MEL, 16, 2)),
    "stereo": lambda: MelCodec(STEREO, Vocos(MEL, 16, 1)),
    "through a codec": lambda: MelCodec(MONO, Vocos(MEL, 16, 1), codec()),
    "griffin-lim": lambda: MelCodec(MONO, GriffinLim(MEL, 2)),
}


@pytest.mark.parametrize("name", CODECS)
def test_a_vocoder_as_a_codec_keeps_the_contract(name):
    torch.manual_seed(0)
    made = CODECS[name]()
    made.chunk = made.chunk and 8
    check_codec(made)


def test_the_latent_is_the_log_mel():
    stereo = CODECS["stereo"]()
    x = keyed.normal(("x",), range(1), STEREO.shape)
    torch.testing.assert_close(stereo.encode(x).mean.unflatten(1, (2, 30)).transpose(2, 3), MEL(x))
    assert stereo.axes[0].size == 64 and not stereo.blended


def test_only_the_vocoder_is_trained_and_it_hears_what_the_codec_gives_back():
    torch.manual_seed(0)
    frozen = codec()
    made = MelCodec(MONO, Vocos(MEL, 16, 1), frozen).requires_grad_(False).requires_grad_(True).train()
    assert all(name.startswith("vocoder.") for name, p in made.named_parameters() if p.requires_grad)
    assert all(p.requires_grad for p in made.vocoder.parameters()) and not made.through.training
    x = keyed.normal(("x",), range(1), MONO.shape)
    heard = frozen.decode_features(frozen.encode_features(MEL(x)).mean)[:, :, :21, :30]
    torch.testing.assert_close(made.encode(x).mean.unflatten(1, (1, 30)).transpose(2, 3), heard)


def test_parts_that_do_not_fit_are_refused_with_both_told():
    other = LogMel(8000, 256, 64, 30, high=2.0)
    for make in (lambda: AudioCodec(MONO, MEL, Vocos(other, 16, 1)), lambda: MelCodec(MONO, Vocos(other, 16, 1), codec())):
        with pytest.raises(ValueError, match=r"ln=-11\.5129\.\.[23].*ln=-11\.5129\.\.[23]"):
            make()
    with pytest.raises(ValueError, match="16000 Hz, got 8000"):
        MelCodec(Shaped((1, 100), 0, 16000), Vocos(MEL, 16, 1))
    with pytest.raises(ValueError, match="2 channels"):
        MelCodec(STEREO, Vocos(MEL, 16, 1), codec())


def test_a_vocoder_learns_tones_in_noise():
    torch.manual_seed(0)
    made = MelCodec(MONO, Vocos(MEL, 32, 2))
    time = torch.arange(2048) / 8000
    x = torch.stack([0.5 * torch.sin(2 * torch.pi * f * time)[None] for f in (300, 440)])
    x = x + 0.03 * keyed.normal(("hiss",), range(2), (1, 2048))
    z = made.encode_features(x).mean
    optimizer = torch.optim.AdamW(made.vocoder.parameters(), 2e-3)

    def error() -> torch.Tensor:
        return (MEL(made.decode_features(z)) - MEL(x)).abs().mean()

    before = error().item()
    for _ in range(40):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < 0.4 * before
