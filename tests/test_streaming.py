"""Streams of every own codec: pieces of any length, constant memory, several at once, tiles; exact where reach allows."""

import pytest
import torch
from torch import nn

from mmldm.codec import AudioCodec, GriffinLim, ImageCodec, LogMel, VideoCodec
from mmldm.interfaces import Axis, Codec, Posterior
from mmldm.media import ArrayMedia, AudioMedia, ImageMedia, VideoMedia
from mmldm.testing.lab import Lab, tensors
from tests.fakes import Blocks

MEL = LogMel(8000, 256, 64, 30)


class Centred(Codec):
    """A trained map of signals (B, C, T) that sees a few cells on both sides; only that is declared."""

    def __init__(self, channels: int = 2, size: int = 4, reach: int = 2, chunk: int | None = 3):
        super().__init__()
        self.media, self.latent_channels, self.size, self.chunk = ArrayMedia(channels, 60, 8.0), 3, size, chunk
        self.axes = (Axis("time", size, size, 1 / 8.0),)
        self.reach, self.decode_reach = {"time": reach * size}, {"time": reach}
        self.down, self.up = (
            nn.Conv1d(channels * size, 3, 2 * reach + 1, padding=reach),
            nn.Conv1d(3, channels * size, 5, padding=2),
        )

    def encode_features(self, features):
        x = nn.functional.pad(features, (0, -features.shape[-1] % self.size))
        return Posterior(self.down(x.unflatten(-1, (-1, self.size)).transpose(2, 3).flatten(1, 2)))

    def decode_features(self, z):
        return self.up(z).unflatten(1, (-1, self.size)).transpose(2, 3).flatten(2)

    def latent_shape(self, media_shape):
        return (self.latent_channels, self.axes[0].cells(media_shape[1]))


def sound(iterations: int, mel: LogMel = MEL) -> AudioCodec:
    vocoder = GriffinLim(mel, iterations, inversion=2)
    return AudioCodec(AudioMedia(8000, 1, 0.5), mel, vocoder, 3, 8, (1, 1), ((2, 2), (1, 2)), blocks=1)


CODECS = {
    "causal convolutions, lone first": lambda: VideoCodec(VideoMedia(21, 8, 8, 8), 3, 8, blocks=1),
    "a mel front end and Griffin-Lim": lambda: sound(1),
    "windows, both sides": Centred,
    "windows, no reach declared in time": Blocks,
    "blocks that see themselves": lambda: seeing_themselves(),
}


def seeing_themselves() -> Blocks:
    codec = Blocks(length=60)
    codec.reach, codec.decode_reach, codec.chunk = {"time": 0}, {"time": 0}, 2
    return codec


def lab(name: str) -> Lab:
    torch.manual_seed(0)
    codec = CODECS[name]()
    return Lab(codec, tuple(codec.media.shape), 1e-10)


def run(step, x, dim, sizes):
    """What the pieces of `sizes` give, None where they gave nothing."""
    state, made = None, []
    for number, piece in enumerate(x.split(sizes, dim)):
        y, state = step(piece, state, number == len(sizes) - 1)
        made.append(y.mean if isinstance(y, Posterior) else y)
    return made


def cat(made, dim):
    return torch.cat([y for y in made if y is not None], dim)


EXACT = [name for name in CODECS if "no reach" not in name]


@torch.no_grad()
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_any_pieces_are_the_whole(name, seed):
    at = lab(name)
    generator = torch.Generator().manual_seed(seed)
    for way, (given, whole) in {"encode": (at.x, at.posterior.mean), "decode": at.wholes["decode"]}.items():
        length = given.shape[at.dim]
        marks = torch.randint(0, length + 1, (5,), generator=generator).sort().values.tolist()
        sizes = [b - a for a, b in zip([0, *marks], [*marks, length], strict=True)]
        made = cat(run(getattr(at.exact, f"{way}_chunk"), given, at.dim, sizes), at.dim)
        torch.testing.assert_close(made, whole, rtol=0, atol=1e-10 * float(whole.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_the_normal_path_does_not_depend_on_its_chunk(name, chunk):
    at = lab(name)
    codec, scale = at.cut(chunk=chunk), float(at.wholes["decode"][1].abs().max())
    assert codec.blended == ()
    torch.testing.assert_close(codec.encode(at.x).mean, at.posterior.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(codec.decode(at.posterior.mean), at.wholes["decode"][1], rtol=0, atol=1e-10 * scale)


@torch.no_grad()
def test_without_a_reach_pieces_are_blended_and_it_is_said():
    at = lab("windows, no reach declared in time")
    codec = at.cut(chunk=8)
    assert at.exact.blended == () and codec.blended == ("time",)
    x = at.media((2, 200))
    z = codec.encode(x).mean
    assert z.shape[1:] == codec.latent_shape((2, 200)) and codec.decode(z, (2, 199)).shape == (1, 2, 199)
    torch.testing.assert_close(z, codec.encode_features(x).mean)  # its cells see themselves alone, only it is not said


@torch.no_grad()
def test_a_vocoder_without_a_reach_is_blended_and_the_latents_are_not():
    codec = sound(1)
    codec.decode_reach = {"freq": codec.decode_reach["freq"]}
    codec.vocoder.reach = None
    codec.chunk = 8
    assert codec.blended == ("time",)
    x = torch.linspace(0, 3000, 8192).sin()[None, None]
    z = codec.encode(x).mean
    assert torch.allclose(z, codec.encode_features(codec.front(x)).mean, atol=1e-5)
    y = codec.decode(z, (1, 8000))
    assert y.shape == (1, 1, 8000) and y.isfinite().all()


# ---------------------------------------------------------------- memory


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("way", ["encode", "decode"])
def test_what_a_stream_keeps_does_not_depend_on_its_length(name, way):
    at = lab(name)
    axis, step = at.exact.axes[at.time], getattr(at.exact, f"{way}_chunk")
    given = at.x if way == "encode" else at.posterior.mean
    piece = given.narrow(at.dim, 0, 2 * axis.size if way == "encode" else 2)
    state, kept, early = None, [], 0
    for _ in range(40):
        own = piece.clone()
        y, state = step(own, state, False)
        early += y is not None
        held = [t for t in tensors(state) if t.numel()]
        assert all(t.untyped_storage().data_ptr() != own.untyped_storage().data_ptr() for t in held)
        kept.append(sum(t.untyped_storage().nbytes() for t in held))
    assert early >= 20 and len(set(kept[20:])) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", EXACT)
def test_results_come_as_soon_as_they_can(name):
    """A cell that is complete, and whatever lies behind it that it sees, is given at once."""
    at = lab(name)
    made = run(at.exact.encode_chunk, at.x, at.dim, [1] * at.x.shape[at.dim])
    axis, lookahead = at.exact.axes[at.time], at.exact.field(at.exact.axes[at.time])[1]
    behind = -(-int(lookahead) // axis.size) * axis.size
    counts = torch.tensor([0 if y is None else y.shape[at.dim] for y in made[:-1]]).cumsum(0)
    for seen in range(1, len(made)):
        complete = sum(axis.length(n + 1) + behind <= seen for n in range(at.posterior.mean.shape[at.dim]))
        assert counts[seen - 1] >= complete


# ---------------------------------------------------------------- several streams, empty pieces


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
def test_streams_that_alternate_do_not_meet(name):
    at, sizes = lab(name), [3, 5, 2, 6]
    clips = [at.media(at.shape, 3)[i : i + 1] for i in range(3)]
    parts = [clip.split([*sizes, clip.shape[at.dim] - sum(sizes)], at.dim) for clip in clips]
    alone = [cat(run(at.exact.encode_chunk, clip, at.dim, [p.shape[at.dim] for p in own]), at.dim)
             for clip, own in zip(clips, parts, strict=True)]  # fmt: skip
    states, made = [None] * 3, [[], [], []]
    for number in range(len(parts[0])):
        for stream in (2, 0, 1):
            y, states[stream] = at.exact.encode_chunk(parts[stream][number], states[stream], number == len(sizes))
            made[stream] += [] if y is None else [y.mean]
    for one, together in zip(alone, made, strict=True):
        torch.testing.assert_close(torch.cat(together, at.dim), one, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_empty_pieces_give_nothing_and_change_nothing(name, empty):
    at = lab(name)
    for way, given in (("encode", at.x), ("decode", at.posterior.mean)):
        step, n = getattr(at.exact, f"{way}_chunk"), given.shape[at.dim]
        with_empty = [0] * empty + [n // 2] + [0] * empty + [n - n // 2] + [0] * empty
        made, plain = run(step, given, at.dim, with_empty), run(step, given, at.dim, [n // 2, n - n // 2])
        assert all(y is None for y in made[:empty])
        torch.testing.assert_close(cat(made, at.dim), cat(plain, at.dim), rtol=0, atol=1e-9)


# ---------------------------------------------------------------- tiles


@torch.no_grad()
@pytest.mark.parametrize("tile", [3, 5, 8])
@pytest.mark.parametrize("size", [(40, 56), (39, 17), (4, 61)])
def test_tiles_of_pictures_are_the_whole(tile, size):
    codec = Lab(ImageCodec(ImageMedia(16, 16), 3, 8, (1, 1), (2, 2), blocks=1), (3, *size), 1e-10)
    cut, (z, y) = codec.cut(tile=tile), codec.wholes["decode"]
    torch.testing.assert_close(cut.encode(codec.x).mean, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(cut.decode(z), y, rtol=0, atol=1e-10)
    assert cut.blended == ()


@torch.no_grad()
def test_tiles_and_chunks_together_are_the_whole():
    clip = Lab(VideoCodec(VideoMedia(9, 8, 8, 8), 3, 8, blocks=1), (3, 18, 36, 20), 1e-10)
    cut, (z, y) = clip.cut(tile=3, chunk=2), clip.wholes["decode"]
    torch.testing.assert_close(cut.encode(clip.x).mean, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(cut.decode(z, clip.shape), y[:, :, :18], rtol=0, atol=1e-10)
    made = run(cut.encode_chunk, clip.x, 2, [1, 9, 3, 5])
    torch.testing.assert_close(cat(made, 2), z, rtol=0, atol=1e-10)
    assert made[0].shape[2] == 1


@torch.no_grad()
def test_where_planes_are_seen_from_anywhere_tiles_are_blended_and_it_is_said():
    codec = ImageCodec(ImageMedia(16, 16), 3, 8)
    codec.reach, codec.decode_reach, codec.tile = None, {"height": 1}, 8
    x = torch.full((1, 3, 70, 100), 0.25)
    z = codec.encode(x).mean
    assert codec.blended == ("height", "width") and z.shape[1:] == codec.latent_shape((3, 70, 100))
    assert codec.decode(z, (3, 70, 100)).shape == x.shape
    inner = z[:, :, 8:10, 8:-8]  # far from the edges a constant stays constant, however tiles are faded into each other
    torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner), rtol=0, atol=1e-4)
