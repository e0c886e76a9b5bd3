"""Every codec keeps the contract, the contract finds what is broken, and every rank learns."""

from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from torch import nn

from mmldm import config, keyed
from mmldm.codec import AudioCodec, ConvVAE, GriffinLim, ImageCodec, LogMel, VideoCodec
from mmldm.codec.conv_vae import ConvCodec
from mmldm.codec.losses import L1, Gradient, ReconstructionLoss
from mmldm.codec.regularisers import KL, BoundedNoise
from mmldm.evaluation import psnr
from mmldm.interfaces import Posterior
from mmldm.testing import check_codec, codec_checks, report
from mmldm.testing.codec import CODEC_LAWS
from tests.fakes import Blocks


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


UNTIMED = {
    "a beginning encodes alike alone", "a beginning decodes alike alone", "one media sample is the first latent",
    "pieces make the whole", "state is a value", "state does not grow",
}  # fmt: skip


@pytest.mark.parametrize("name", CODECS)
def test_codecs_keep_the_contract(name):
    torch.manual_seed(0)
    checks = check_codec(CODECS[name]())
    assert [check.name for check in checks] == [law.name for law in CODEC_LAWS]
    moot = {check.name for check in checks if not check.applies}
    if name.startswith("image"):
        assert moot == UNTIMED
    else:
        expected = set() if name.startswith("video") else {"one media sample is the first latent", "tiles make the whole"}
        assert moot == expected
    assert not [str(check) for check in checks if "cross-faded" in check.detail or "nothing could be seen" in check.detail]


# ---------------------------------------------------------------- the shipped ones


def shipped():
    """Every codec of conf/codec that is built without other people's weights."""
    for file in sorted((config.CONF_DIR / "codec").glob("*.yaml")):
        for stream, node in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).items():
            if "pretrained" not in node["_target_"]:
                yield pytest.param(node, id=f"{file.stem}.{stream}")


def narrow(node):
    """The same with few channels, a quick vocoder."""
    node = {k: narrow(v) if isinstance(v, dict) else v for k, v in node.items()}
    node |= {k: 8 for k in ("width", "decoder_width") if k in node} | {k: 1 for k in ("blocks", "decoder_blocks") if k in node}
    if "mel" in node and node["_target_"].endswith("AudioCodec"):
        node["vocoder"] = {"_target_": "mmldm.codec.GriffinLim", "mel": node["mel"], "iterations": 1, "inversion": 1}
    return node


SLOW = ("follows its device", "gradient reaches every parameter", "save and load", "state does not grow")  # seen above


@pytest.mark.parametrize("node", list(shipped()))
def test_shipped_codecs_keep_the_contract(node):
    codec = config.build(narrow(node))
    failed = [str(check) for check in codec_checks(codec, without=SLOW) if not check.passed]
    assert not failed, "\n".join(failed)


# ---------------------------------------------------------------- the contract finds what is broken


class Lying(ImageCodec):
    def latent_shape(self, media_shape):
        return (self.latent_channels, *(n // 4 for n in media_shape[1:]))


class Cropped(ImageCodec):
    def decode_features(self, z):
        return super().decode_features(z)[..., :-4]


class BatchNormed(ImageCodec):
    def encode_features(self, features):
        return super().encode_features(features - 0.5 * features.mean(0, keepdim=True))


class Idle(ImageCodec):
    def __init__(self, media, **sizes):
        super().__init__(media, **sizes)
        self.spare = nn.Linear(2, 2)


class Overflowing(ImageCodec):
    reach = None

    def encode_features(self, features):
        return Posterior(super().encode_features(features).mean / features.square().sum((1, 2, 3), keepdim=True).clamp_max(1))


class Averaging(VideoCodec):
    """Group norm over time, which looks ahead; and says that it does not."""

    chunk = 2

    def front(self, x):
        return x - x.mean(2, keepdim=True)


class AveragingBack(VideoCodec):
    def unfront(self, features, shape=None):
        return features - features.mean(2, keepdim=True)


class Remembering(ImageCodec):
    bias = None

    def encode_features(self, features):
        if self.bias is None:
            self.bias = self.body.to_latent.conv.bias.detach().sum()
        return Posterior(super().encode_features(features).mean + self.bias)


class ShortSighted(ImageCodec):
    """Says that a cell sees less than it does."""

    def __init__(self, media, **sizes):
        super().__init__(media, **sizes)
        self.reach = {**self.reach, "height": 2}


class ShortSightedBack(VideoCodec):
    def __init__(self, media, **sizes):
        super().__init__(media, **sizes)
        self.decode_reach = {**self.decode_reach, "time": 0}


class Declared(Blocks):
    """A codec that says how far it sees: not at all."""

    reach, decode_reach = {"time": 0}, {"time": 0}


class Random(Declared):
    def encode_features(self, features):
        mean = super().encode_features(features).mean
        return Posterior(mean + torch.finfo(mean.dtype).eps * torch.randn_like(mean))


class Negative(Declared):
    def encode_features(self, features):
        posterior = super().encode_features(features)
        return Posterior(posterior.mean, -posterior.std)


class Delicate(Declared):
    def encode_features(self, features):
        if features.shape[-1] == 1:
            raise RuntimeError("kernel size is larger than the input")
        return super().encode_features(features)


class Overwriting(Declared):
    def encode_features(self, features):
        posterior = super().encode_features(features)
        features.zero_()
        return posterior


class Stateful(Declared):
    """Keeps its state on itself, as a cache."""

    past = None

    def encode_step(self, x, state, last):
        state, self.past = self.past, None
        posterior, state = super().encode_step(x, state, last)
        if not last:
            self.past = state
        return posterior, state


class Aliasing(Declared):
    def encode_step(self, x, state, last):
        posterior, state = super().encode_step(x, state and state[0], last)
        return posterior, (state, x[..., -1:])


class Consuming(Declared):
    """Writes into the state that it was given."""

    def encode_step(self, x, state, last):
        if state is not None:
            kept = state.kept.clone()
            state.kept.fill_(3.0)
            state = replace(state, kept=kept)
        return super().encode_step(x, state, last)


class Hoarding(Declared):
    def decode_step(self, z, state, last):
        past = [] if state is None else state[1]
        y, state = super().decode_step(z, None if state is None else state[0], last)
        return y, (state, [*past, z.clone()])


class Tailless(Declared):
    """Forgets the last cell of a stream."""

    def encode_step(self, x, state, last):
        posterior, state = super().encode_step(x, state, last)
        return (Posterior(posterior.mean[..., :-1], posterior.std[..., :-1]) if last and posterior else posterior), state


class Loud(Declared):
    def decode_features(self, z):
        return super().decode_features(z) * 1e7


class Faint(Declared):
    """Latents that float32 cannot tell apart."""

    def encode_features(self, features):
        posterior = super().encode_features(features)
        return Posterior(posterior.mean + 1e7, posterior.std)

    def decode_features(self, z):
        return super().decode_features(z - 1e7)


class Coarse(Declared):
    """A difference of large numbers, which bfloat16 does not have."""

    def encode_features(self, features):
        mean = super().encode_features(features).mean
        return Posterior((mean + 4096) @ torch.eye(mean.shape[-1]).to(mean) - 4096)


class AtHome(Declared):
    """Makes a tensor on the processor, wherever its input is."""

    def decode_features(self, z):
        return super().decode_features(z) * torch.full((1,), 0.5, dtype=z.dtype)


class Settled(Declared):
    """A media that cannot leave the process."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self.media, "opened", lambda: None)


IMAGE, VIDEO = {"media": PICTURE, "width": 8}, {"media": CLIP, "width": 8}
BROKEN = {
    Lying: ({"media": ODD, "width": 8}, "latent_shape is what encode gives"),
    Delicate: ({}, "every length comes back", "latent_shape is what encode gives"),
    Cropped: (IMAGE, "every length comes back", "a decoded sample sees its decode_reach alone", "tiles make the whole"),
    BatchNormed: (IMAGE, "independent of the batch"),
    Idle: (IMAGE, "gradient reaches every parameter"),
    Overflowing: (IMAGE, "values stay finite"),
    Negative: ({}, "std is a standard deviation"),
    Loud: ({}, "decoded media keep their range"),
    Faint: ({}, "latents can be whitened"),
    Coarse: ({}, "bfloat16 autocast", "bfloat16 weights"),
    Random: ({}, "the same twice", "state is a value", "save and load"),
    Remembering: (IMAGE, "save and load", "nothing is kept or changed"),
    Overwriting: ({}, "nothing is kept or changed", "pieces make the whole"),
    Settled: ({}, "its media travel"),
    AtHome: ({}, "follows its device"),
    ShortSighted: (IMAGE, "a cell sees its field alone", "tiles make the whole"),
    ShortSightedBack: (VIDEO, "a decoded sample sees its decode_reach alone"),
    Averaging: (
        VIDEO, "a beginning encodes alike alone", "one media sample is the first latent", "a cell sees its field alone",
        "pieces make the whole",
    ),
    AveragingBack: (
        VIDEO, "a beginning decodes alike alone", "a decoded sample sees its decode_reach alone", "pieces make the whole",
    ),
    Tailless: ({}, "pieces make the whole"),
    Stateful: ({}, "state is a value", "nothing is kept or changed"),
    Aliasing: ({}, "state is a value"),
    Consuming: ({}, "state is a value"),
    Hoarding: ({}, "state does not grow"),
}  # fmt: skip
"""Each with the law that is there to find it first, and the others that it breaks too."""


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_codec_is_named_by_the_law_that_it_breaks(broken):
    torch.manual_seed(0)
    sizes, *laws = BROKEN[broken]
    checks = codec_checks(broken(**sizes))
    assert {check.name for check in checks if not check.passed} == set(laws), report(checks)


def test_every_law_can_fail():
    named = {law for _, *laws in BROKEN.values() for law in laws}
    assert named | {"axes agree with the latent"} == {law.name for law in CODEC_LAWS}


def test_a_failure_says_what_breaks_and_is_raised():
    with pytest.raises(AssertionError, match="FAIL its media travel.*without it data loaders with workers breaks"):
        check_codec(Settled())
    checks = codec_checks(Settled())
    told = report(checks)
    assert "FAIL  its media travel" in told and "without it breaks: data loaders" in told and "1 fail" in told
    assert len(told.splitlines()) == len(checks) + 2
    with pytest.raises(ValueError, match="choose from latent_shape"):
        codec_checks(Settled(), without=["no such law"])


def test_what_cannot_be_tried_is_told():
    checks = {check.name: check for check in codec_checks(Blocks())}
    told = checks["pieces make the whole"]
    assert told.passed and "encode is cross-faded: reach does not bound time" in told.detail
    moot = checks["a beginning decodes alike alone"]
    assert moot.passed and not moot.applies and str(moot).startswith("—")


def test_the_page_of_the_contract_is_the_list_of_its_laws():
    page = (config.CONF_DIR.parent / "docs" / "codec_contract.md").read_text(encoding="utf-8")
    rows = [f"| {law.name} | {law.says} | {law.breaks} |" for law in CODEC_LAWS]
    assert [line for line in page.splitlines() if line.startswith("| ")][1:] == rows, "\n".join(rows)


def test_a_wrong_time_unit_is_found():
    codec = VideoCodec(CLIP, width=8)
    codec.axes = (replace(codec.axes[0], unit=0.5), *codec.axes[1:])
    assert [check.name for check in codec_checks(codec) if not check.passed] == ["axes agree with the latent"]


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
