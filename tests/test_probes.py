"""The probes read the world's attributes back from media tensors, survive blur and lost phases, and know nothing of noise."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import conv2d, pad

from mmldm.data.world import KINDS, VOCABULARY, World
from mmldm.evaluation import Probes


def media(shape, rate=None):
    return SimpleNamespace(shape=shape, rate=rate, time_axis=None if rate is None else 0)


def image(side=32):
    return {"image": media((3, side, side))}


def video(frames=9, side=32):
    return {"video": media((3, frames, side, side), 8.0)}


def audio(seconds=1.0, rate=16000):
    return {"audio": media((1, int(seconds * rate)), rate)}


@pytest.fixture(scope="module")
def probes():
    return Probes(VOCABULARY)


def agreement(probes, kind, streams, samples, change=lambda stream, x, index: x):
    """The share of right answers by attribute, and the mean offset where there is one."""
    world, right, offsets = World(kind, samples, "all", seed=11), Counter(), []
    for index in range(samples):
        x = {name: change(name, world.load(index, name, wanted).x, index) for name, wanted in streams.items()}
        found = probes.measure(kind, x, {name: wanted.rate for name, wanted in streams.items()})
        for name, value in world.attributes(index).items():
            right[name] += found[name] == value
        offsets.append(found.get("offset", 0.0))
    return {name: right[name] / samples for name in KINDS[kind]}, sum(offsets) / samples


def blurred(x, sigma=1.0):
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    kernel, flat = kernel / kernel.sum(), pad(x.reshape(-1, 1, *x.shape[-2:]), (3, 3, 3, 3), mode="replicate")
    return conv2d(conv2d(flat, kernel[None, None, None, :]), kernel[None, None, :, None]).reshape(x.shape)


def noise(stream, x, index):
    return 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(index))


def revoiced(x, rate=16000, size=1024, hop=256, bins=80, rounds=16):
    """Mel magnitudes of 80 bins, and back by Griffin-Lim from random phases."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, 1, bins + 2) * top / 2595) - 1)
    hertz = torch.arange(size // 2 + 1) * rate / size
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    bank = torch.minimum(rise, (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]).clamp_min(0)
    bank = bank / bank.sum(1, keepdim=True).clamp_min(1e-8)
    window = torch.hann_window(size)
    spectrum = lambda y: torch.stft(y, size, hop, window=window, return_complex=True)  # noqa: E731
    magnitudes = (torch.linalg.pinv(bank) @ (bank @ spectrum(x[0]).abs())).clamp_min(1e-7)
    phase = torch.exp(2j * torch.pi * torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(0)))
    for _ in range(rounds):
        again = spectrum(torch.istft(magnitudes * phase, size, hop, window=window, length=x.shape[1]))
        phase = again / again.abs().clamp_min(1e-8)
    return torch.istft(magnitudes * phase, size, hop, window=window, length=x.shape[1])[None]


@pytest.mark.parametrize("kind, streams, samples", [
    ("image", image(), 480), ("image", image(64), 240),
    ("video", video(), 240), ("video", video(17, 64), 200),
    ("audio", audio(), 200), ("audio", audio(2.0), 200), ("audio", audio(1.0, 24000), 60),
    ("av", video() | audio(1.125), 144), ("av", video(17) | audio(2.125), 144),
])  # fmt: skip
def test_real_samples_are_read_right(probes, kind, streams, samples):
    shares, offset = agreement(probes, kind, streams, samples)
    assert min(shares.values()) >= 0.99, shares
    assert offset < 0.15  # frames


@pytest.mark.parametrize("kind, streams", [("image", image()), ("video", video())])
def test_blur_and_a_colour_cast_do_no_harm(probes, kind, streams):
    def cast(stream, x, index):
        return blurred(x) * torch.tensor([1.0, 0.9, 0.85]).reshape(3, *[1] * (x.ndim - 1)) + 0.04

    shares, _ = agreement(probes, kind, streams, 120, cast)
    assert min(shares.values()) >= 0.97, shares


def test_ghosts_do_no_harm(probes):
    shares, _ = agreement(probes, "video", video(), 100, lambda stream, x, index: 0.75 * x + 0.25 * x.roll(1, 1))
    assert min(shares.values()) >= 0.97, shares


def test_lost_phases_and_fine_structure_do_little_harm(probes):
    shares, _ = agreement(probes, "audio", audio(), 48, lambda stream, x, index: revoiced(x))
    assert shares["pitch"] >= 0.98 and shares["contour"] >= 0.98 and shares["timbre"] >= 0.95, shares


def test_a_bounce_survives_both(probes):
    shares, offset = agreement(probes, "av", video() | audio(1.125), 40,
                               lambda stream, x, index: blurred(x) if stream == "video" else revoiced(x))  # fmt: skip
    assert min(shares.values()) >= 0.95 and offset < 0.3, (shares, offset)


@pytest.mark.parametrize("kind, streams", [("image", image()), ("video", video()), ("audio", audio()),
                                           ("av", video() | audio(1.125))])  # fmt: skip
def test_noise_is_near_chance(probes, kind, streams):
    shares, offset = agreement(probes, kind, streams, 144, noise)
    for name, share in shares.items():
        assert share < 1 / len(VOCABULARY[name]) + 0.15, shares
    assert kind != "av" or offset > 0.5


def test_the_sound_of_another_bounce_is_not_in_time(probes):
    world, wanted = World("av", 60, "all", seed=2), video() | audio(1.125)
    slow = [i for i in range(60) if world.attributes(i)["tempo"] == "slow"]
    offsets = [probes.probe_bounce(world.load(a, "video", wanted["video"]).x, world.load(b, "audio", wanted["audio"]).x,
                                   8.0, 16000)["offset"] for a, b in zip(slow, slow[1:], strict=False)]  # fmt: skip
    assert sum(offsets) / len(offsets) > 1.0


def test_impacts_and_onsets_are_times_in_seconds(probes):
    world, wanted = World("av", 40, "all"), video(17) | audio(2.125)
    for index in range(20):
        seen = probes.impacts(world.load(index, "video", wanted["video"]).x, 8.0)
        heard = probes.sounds.onsets(world.load(index, "audio", wanted["audio"]).x, 16000)
        assert abs(len(seen) - len(heard)) <= 1 and (seen[:, None] - heard).abs().min(0).values.max() < 0.08


@pytest.mark.parametrize("make", [torch.zeros, torch.ones, lambda *shape: torch.full(shape, float("nan"))])
def test_anything_gets_a_class(probes, make):
    found = [("image", probes.probe_image(make(3, 16, 16))), ("video", probes.probe_video(make(3, 1, 16, 16), 8.0)),
             ("audio", probes.probe_audio(make(2, 8000), 16000)),
             ("av", probes.probe_bounce(make(3, 9, 16, 16), make(1, 16000), 8.0, 16000))]  # fmt: skip
    for kind, values in found:
        assert all(values[name] in VOCABULARY[name] for name in KINDS[kind])


def test_the_same_tensor_gives_the_same_answer_and_stays_as_it_was(probes):
    x = World("video", 1).load(0, "video", video()["video"]).x
    before = x.clone()
    assert probes.probe_video(x, 8.0) == Probes(VOCABULARY).probe_video(x, 8.0) and torch.equal(x, before)


def test_wrong_shapes_and_kinds_are_refused(probes):
    with pytest.raises(ValueError, match="image"):
        probes.probe_image(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="video"):
        probes.probe_video(torch.zeros(3, 8, 8), 8.0)
    with pytest.raises(ValueError, match="sound"):
        probes.probe_audio(torch.zeros(100), 8000)
    with pytest.raises(ValueError, match="image, video, audio, av"):
        probes.measure("film", {}, {})
