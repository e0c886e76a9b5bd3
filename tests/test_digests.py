"""Digests of codecs: latents outlive a change of what decodes them, and nothing else."""

import copy

import pytest
import torch

from mmldm.codec import AudioCodec, ImageCodec, MelCodec
from mmldm.codec.mel import LogMel
from mmldm.codec.regularisers import KL, BoundedNoise
from mmldm.codec.vocos import Vocos
from mmldm.commands.digests import fingerprint
from mmldm.media import AudioMedia, ImageMedia

DECODING = {"encoder": False, "to_latent": False, "analysis": False, "from_latent": True, "decoder": True, "synthesis": True}


def image(**options):
    torch.manual_seed(0)
    return ImageCodec(ImageMedia(16, 16), width=8, blocks=1, **options)


def audio(**options):
    torch.manual_seed(0)
    return AudioCodec(AudioMedia(16000, 1, 0.2), LogMel(**options), width=8, blocks=1)


def changed(codec, prefix):
    """A copy whose tensors under a prefix are others."""
    codec = copy.deepcopy(codec)
    with torch.no_grad():
        for name, tensor in codec.named_parameters():
            if name.startswith(prefix):
                tensor.add_(1.0)
    return codec


def mark(codec):
    return fingerprint({"x": codec})["x"]


@pytest.mark.parametrize("make", [image, audio])
def test_another_decoder_keeps_the_latents_and_another_encoder_does_not(make):
    codec = changed(make(), "body")
    x = torch.rand(1, *codec.media.shape)
    assert {name for name, _ in codec.body.named_children()} == {*DECODING}
    for prefix, same in DECODING.items():
        other = changed(codec, f"body.{prefix}.")
        assert (mark(other) == mark(codec)) == same == torch.equal(other.encode(x).mean, codec.encode(x).mean), prefix


def test_what_is_no_tensor_counts_too():
    assert mark(image()) == mark(image())
    assert mark(image(regulariser=BoundedNoise(0.1))) != mark(image(regulariser=BoundedNoise(0.2)))
    assert mark(image(regulariser=KL())) != mark(image())
    assert mark(audio(f_min=50.0)) != mark(audio())
    codec = image()
    codec.media = codec.media.resized(size=(32, 32))
    assert mark(codec)["codec"] == mark(image())["codec"] and mark(codec)["media"] != mark(image())["media"]
    codec.tile = 7  # how it is computed, not what
    codec.train()
    assert mark(codec)["codec"] == mark(image())["codec"]


def test_the_latents_of_a_vocoder_are_those_of_its_front_end():
    torch.manual_seed(0)
    media = AudioMedia(16000, 1, 0.2)
    codec = MelCodec(media, Vocos(LogMel(), width=16, blocks=1))
    assert mark(changed(codec, "vocoder")) == mark(codec)
    assert mark(MelCodec(media, Vocos(LogMel(f_min=50.0), width=16, blocks=1))) != mark(codec)
