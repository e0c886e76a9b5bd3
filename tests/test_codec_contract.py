"""Every codec keeps the contract, the contract finds what is broken, and every rank learns."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mmldm import keyed
from mmldm.codec import AudioCodec, ConvVAE, GriffinLim, ImageCodec, LogMel, VideoCodec
from mmldm.codec.conv_vae import ConvCodec
from mmldm.codec.losses import KL, L1, BoundedNoise, Gradient, ReconstructionLoss, psnr
from mmldm.interfaces import Posterior
from mmldm.testing import check_codec


@dataclass(frozen=True)
class Shaped:
    """As much of a media as a codec asks for."""

    shape: tuple[int, ...]
    time_axis: int | None = None
    rate: float | None = None


PICTURE, ODD, CLIP = Shaped((3, 16, 16)), Shaped((3, 17, 22)), Shaped((3, 9, 8, 8), 0, 8)
MONO, STEREO = Shaped((1, 2500), 0, 8000), Shaped((2, 2048), 0, 8000)
MEL = LogMel(8000, 256, 64, 30)
VOCODER = GriffinLim(MEL, iterations=2)


def signal() -> ConvCodec:
    """What a researcher writes for a modality of her own: five channels over time."""
    body = ConvVAE(1, 5, 4, 8, (1, 2), (2, 2), causal_axis=0)
    return ConvCodec(Shaped((5, 50), 0, 100), body, ("time",), (0.01,), lookahead=0)


CODECS = {
    "image f4": lambda: ImageCodec(PICTURE, width=8),
    "image f8, odd size, KL": lambda: ImageCodec(ODD, 4, 8, (1, 2, 2), (2, 2, 2), decoder_width=16, regulariser=KL()),
    "video 4x4x4": lambda: VideoCodec(CLIP, width=8),
    "video 2x4x4": lambda: VideoCodec(CLIP, 4, 8, (1,), ((2, 4, 4),)),
    "video 4x8x8": lambda: VideoCodec(
        CLIP, 4, 8, (1, 2, 2), ((1, 2, 2), (2, 2, 2), (2, 2, 2)), blocks=1, kernel=3, second_kernel=3
    ),
    "audio": lambda: AudioCodec(MONO, MEL, VOCODER, width=8),
    "stereo, KL": lambda: AudioCodec(STEREO, MEL, VOCODER, 4, 8, (1, 1), (2, (2, 4)), regulariser=KL()),
    "five channels": signal,
}


@pytest.mark.parametrize("name", CODECS)
def test_codecs_keep_the_contract(name):
    torch.manual_seed(0)
    results = check_codec(CODECS[name]())
    timed = not name.startswith("image")
    assert len(results) == 10 + timed + name.startswith("video") and all("ok" in str(check) for check in results)


# ---------------------------------------------------------------- the contract finds what is broken


class Lying(ImageCodec):
    def latent_shape(self, media_shape):
        return (self.latent_channels, *(n // 4 for n in media_shape[1:]))


class Random(ImageCodec):
    def encode_features(self, features):
        return Posterior(torch.randn(len(features), self.latent_channels, *self.body.cells(features.shape[2:])).to(features))


class Cropped(ImageCodec):
    def decode_features(self, z):
        return super().decode_features(z)[..., :-4]


class BatchNormed(ImageCodec):
    def encode_features(self, features):
        return super().encode_features(features - features.mean(0, keepdim=True))


class Idle(ImageCodec):
    def __init__(self, media, width):
        super().__init__(media, width=width)
        self.spare = nn.Linear(2, 2)


class Overflowing(ImageCodec):
    def encode_features(self, features):
        return Posterior(super().encode_features(features).mean / features.std(dim=(1, 2, 3), keepdim=True).clamp_max(1))


class Averaging(VideoCodec):
    def encode_features(self, features):
        return super().encode_features(features - features.mean(2, keepdim=True))


class Remembering(ImageCodec):
    bias = None

    def encode_features(self, features):
        if self.bias is None:
            self.bias = self.body.to_latent.conv.bias.detach().sum()
        return Posterior(super().encode_features(features).mean + self.bias)


BROKEN = {
    "latent_shape is what encode gives": (Lying, ODD),
    "the same twice": (Random, PICTURE),
    "every length comes back": (Cropped, PICTURE),
    "independent of the batch": (BatchNormed, PICTURE),
    "gradient reaches every parameter": (Idle, PICTURE),
    "constant media stay finite": (Overflowing, PICTURE),
    "one media sample is the first latent": (Averaging, CLIP),
    "a cell sees its field alone": (Averaging, CLIP),
    "a beginning encodes alike alone": (Averaging, CLIP),
    "save and load": (Remembering, PICTURE),
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_codec_is_named_by_the_law_that_it_breaks(law):
    broken, media = BROKEN[law]
    with pytest.raises(AssertionError, match=f"FAIL {law}.*breaks"):
        check_codec(broken(media, width=8))


def test_a_wrong_time_unit_is_found():
    codec = VideoCodec(CLIP, width=8)
    codec.axes = (codec.axes[0].__class__("time", 4, 1, 0.5), *codec.axes[1:])
    with pytest.raises(AssertionError, match="axes agree with the latent"):
        check_codec(codec)


def test_a_front_end_that_does_not_fit_is_refused():
    other = LogMel(8000, 256, 64, 32)
    with pytest.raises(ValueError, match="vocoder"):
        AudioCodec(MONO, MEL, GriffinLim(other))
    with pytest.raises(ValueError, match="Hz"):
        AudioCodec(Shaped((1, 100), 0, 16000), MEL)
    with pytest.raises(ValueError, match="head_channels"):
        ConvCodec(PICTURE, ConvVAE(2, 3, 4), ("height", "width"), (1.0, 1.0), regulariser=KL())


# ---------------------------------------------------------------- geometry


def test_axes_are_in_physical_units():
    video, audio = VideoCodec(CLIP, width=8), AudioCodec(MONO, MEL, VOCODER, width=8)
    time, height, width = video.axes
    assert (time.name, time.size, time.first, time.unit) == ("time", 4, 1, 1 / 8)
    assert (height.size, height.first, height.unit) == (width.size, width.first, width.unit) == (4, 4, 1.0)
    time, freq = audio.axes
    assert (time.name, time.size, time.first, time.unit) == ("time", 8 * 64, 8 * 64, 1 / 8000)
    assert (freq.name, freq.size, freq.unit) == ("freq", 8, 1.0) and audio.lookahead == (256 - 64) // 2
    assert audio.latent_shape((1, 2500)) == (8, 5, 4)


# ---------------------------------------------------------------- every rank learns


@pytest.mark.parametrize("name", ["image f4", "video 4x4x4", "audio", "five channels"])
def test_overfits_a_batch(name):
    torch.manual_seed(0)
    codec = CODECS[name]()
    codec.regulariser = BoundedNoise(0.0)
    x = keyed.normal(("smooth",), range(4), codec.media.shape)
    for dim in range(2, x.ndim):
        for _ in range(3):
            x = x + x.roll(1, dim)
    features = codec.front(x / x.abs().amax()).detach()
    loss = ReconstructionLoss({"l1": L1(), "edges": Gradient(0.5)})
    optimizer = torch.optim.AdamW(codec.parameters(), 5e-3)

    @torch.no_grad()
    def quality() -> float:
        hat = codec.decode_features(codec.encode_features(features).mean)
        return float(psnr(hat[tuple(slice(0, n) for n in features.shape)], features).mean())

    before = quality()
    for _ in range(60):
        optimizer.zero_grad()
        sum(loss(codec.decode_features(codec.encode_features(features).mean), features).values()).backward()
        optimizer.step()
    assert quality() > before + 4  # dB
