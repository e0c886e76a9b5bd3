"""Laws of what is given: samples become cells exactly, what no cell holds stands beside the grid, known samples stay."""

import pytest
import torch

from mmldm.codec import AudioCodec, ImageCodec, VideoCodec
from mmldm.codec.conv_vae import ConvCodec, ConvVAE
from mmldm.codec.mel import LogMel
from mmldm.conditioner import ConditionSet
from mmldm.denoiser import DiT
from mmldm.diffusion import Flow, Linear, UniformGrid, start_at
from mmldm.given import Given, Known, Placed, axes_of, box
from mmldm.held import covered, hold, parts, samples_held, spans
from mmldm.media import ArrayMedia, AudioMedia, ImageMedia, VideoMedia
from mmldm.model import Model
from mmldm.paste import continued, paste
from tests.fakes import Blocks

MEL = LogMel(8000, 256, 64, 16)
STILL, CLIP, SOUND = ImageMedia(96, 64), VideoMedia(25, 8.0, 32, 32), AudioMedia(8000, 1, 1.0)


def shaken(codec):
    """The codec in float64 with weights that hide nothing."""
    for i, p in enumerate(codec.parameters()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * max(1, p[0].numel()) ** -0.5
    return codec.eval().double()


def codecs():
    body = ConvVAE(1, 2, 3, 8, (1, 1), (2, 3), blocks=1, head_channels=3)
    return {
        "image": shaken(ImageCodec(STILL, width=8, multipliers=(1, 1), strides=(2, 2), blocks=1)),
        "video": shaken(VideoCodec(CLIP, latent_channels=4, width=8, blocks=1)),
        "audio": shaken(AudioCodec(SOUND, MEL, latent_channels=4, width=8, strides=((2, 2), (1, 2)), blocks=1)),
        "line": shaken(ConvCodec(ArrayMedia(2, 120, 10.0), body, ("time",), (0.1,))),
    }


CODECS = codecs()


def clip(media, seed=0):
    return torch.rand(media.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.8 - 0.9


def model(**streams):
    """A diffusion model of these codecs, one cell per token."""
    denoiser = DiT({s: c.geometry for s, c in streams.items()}, {}, 16, 1, 2)
    return Model(streams, ConditionSet({}), denoiser, Linear(), Flow()).eval().double()


# ---------------------------------------------------------------- from samples to cells


@torch.no_grad()
@pytest.mark.parametrize("name", ["image", "video", "line"])
def test_the_reach_of_a_convolutional_codec_is_exact(name):
    codec = CODECS[name]
    x = clip(codec.media)[None]
    whole = codec.encode(x).mean
    for dim, axis in enumerate(codec.axes, start=2):
        (before, after), cells = codec.field(axis), whole.shape[dim]
        for cell in (cells // 2, cells - 1):
            ends = {axis.length(cell) - before - 1: False, axis.length(cell) - before: True}
            ends |= {axis.length(cell + 1) + after - 1: True, axis.length(cell + 1) + after: False}
            for sample, seen in ends.items():
                if 0 <= sample < x.shape[dim]:
                    other = x.clone()
                    other.select(dim, sample).neg_()
                    moved = (codec.encode(other).mean - whole).select(dim, cell).abs().max()
                    assert bool(moved > 1e-12) == seen, (axis.name, cell, sample)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("image", {"height": (0, 70)}),
        ("image", {"height": (20, 96), "width": (0, 50)}),
        ("video", {"time": (0, 1.5)}),
        ("video", {"time": (1.4, 9)}),
        ("video", {"time": (0, 2), "height": (0, 28)}),
        ("audio", {"time": (0, 0.55)}),
        ("audio", {"time": (0.2, 9)}),
        ("line", {"time": (2.5, 9)}),
    ],
)
def test_known_samples_determine_their_cells(name, wanted):
    codec, x = CODECS[name], clip(CODECS[name].media)
    mask, cells = box(codec.media, **wanted), codec.latent_shape(codec.media.shape)[1:]
    strict = covered(mask, codec, cells, [codec.field(axis) for axis in codec.axes])
    assert bool(strict.any()) and not bool(strict.all()) and not bool((strict & ~covered(mask, codec, cells)).any())
    z, other = (codec.encode(torch.where(mask, x, y)[None]).mean[0] for y in (x, -clip(codec.media, 1)))
    assert float(((z - other).abs().amax(0) * strict).max()) < 1e-9 < float(((z - other).abs().amax(0) * ~strict).max())
    assert not bool((samples_held(strict, codec, codec.media) & ~mask).any())


def test_boxes_are_seconds_and_pixels():
    assert axes_of(STILL) == {"height": 0, "width": 1} and axes_of(CLIP) == {"time": 0, "height": 1, "width": 2}
    assert axes_of(SOUND) == {"time": 0} and axes_of(ArrayMedia(2, (4, 5, 6))) == {}
    assert box(CLIP, time=(0, 0.3)).flatten(1).all(1).nonzero().flatten().tolist() == [0, 1]
    corner = box(STILL, height=(0, 32), width=(48, float("inf")))
    assert int(corner.sum()) == 32 * 16 and bool(corner[:32, 48:].all())
    known = Known.spans(clip(SOUND), SOUND, (0, 0.25), (0.5, 9))
    assert spans(known.kept, SOUND) == [(0, 2000), (4000, 8000)] and not known.whole and Known(known.x).whole
    assert spans(box(CLIP, height=(0, 8)), CLIP) == [] and spans(box(STILL), STILL) == []
    with pytest.raises(ValueError, match="wanted spans of height, width, got time"):
        box(STILL, time=(0, 1))


# ---------------------------------------------------------------- what a model holds


def test_a_beginning_is_held_strictly_and_an_end_stands_beside_the_grid():
    video = model(video=CODECS["video"])
    x = clip(CLIP)
    first = parts(video, "video", CLIP, Known.spans(x, CLIP, (0, 1 / 8)), False)
    assert first.cells.flatten(1).all(1).tolist() == [True] + [False] * 6 and first.notices == first.beside == ()
    known = Known.spans(x, CLIP, (0, 0.625), (3, 9))
    both = parts(video, "video", CLIP, known, True)
    assert both.cells.flatten(1).all(1).tolist() == [True, True] + [False] * 5 and both.notices == ()
    assert len(both.beside) == 1 and both.beside[0].at == 3 and torch.equal(both.beside[0].x, x[:, 24:])
    held = hold(Given({"video": known}), video, {"video": CLIP}, dtype=torch.float64)
    context, (reference,) = held.context["video"], held.context["video"].references
    assert torch.equal(context.z[:, :, :2], video.whiten("video", video.encode("video", known.x[None]))[:, :, :2])
    assert torch.equal(reference.positions[0, 0, 0, 0], torch.tensor([3.0, 3.125]))
    assert torch.equal(reference.z, video.whiten("video", video.encode("video", x[None, :, 24:])))


def test_without_references_an_end_is_relaxed_or_says_what_to_choose():
    video = model(video=CODECS["video"])
    late = parts(video, "video", CLIP, Known.spans(clip(CLIP), CLIP, (1.7, 9)), False)
    assert late.cells.flatten(1).all(1).tolist() == [False] * 5 + [True] * 2 and len(late.notices) == 2
    assert "128 of 128 known cells are relaxed" in late.notices[0] and "only pasted" in late.notices[1]
    with pytest.raises(ValueError, match=r"got 3:3.125 s; choose a larger part, or a model trained with references"):
        parts(video, "video", CLIP, Known.spans(clip(CLIP), CLIP, (0, 1), (3, 9)), False)
    with pytest.raises(ValueError, match=r"fills a cell of the model \(4 height x 4 width\), got 9 scattered samples"):
        parts(model(image=CODECS["image"]), "image", STILL, Known(clip(STILL), box(STILL, height=(1, 4), width=(1, 4))), False)


def test_the_strict_rule_is_relaxed_only_where_it_leaves_more_than_a_cell_blind():
    image, x = model(image=CODECS["image"]), clip(STILL)
    hole = parts(image, "image", STILL, Known(x, ~box(STILL, height=(40, 56), width=(24, 40))), False)
    assert int((~hole.cells).sum()) == 16 and "relaxed" in hole.notices[0]
    blocks = model(signal=Blocks(length=40).double())
    media = blocks.codecs["signal"].media
    blocks.codecs["signal"].reach = {"time": 4}
    end = Known.spans(torch.zeros(2, 40), media, (1.5, 9))  # samples from 12 on: cells from 3 on, strictly from 4 on
    assert parts(blocks, "signal", media, end, False).cells.tolist() == [False] * 4 + [True] * 6
    blocks.codecs["signal"].reach = None
    unbounded = parts(blocks, "signal", media, end, False)
    assert unbounded.cells.tolist() == [False] * 3 + [True] * 7 and "7 of 7" in unbounded.notices[0]


def test_masks_are_snapped_inward_to_patches():
    image = model(image=CODECS["image"])
    image.denoiser.patches["image"] = (2, 2)
    part = parts(image, "image", STILL, Known(clip(STILL), box(STILL, height=(0, 44))), False)
    assert part.cells[:10].all() and not part.cells[10:].any() and "9% of what is kept" in part.notices[1]


@pytest.mark.parametrize("name", ["image", "video", "audio"])
def test_of_unknown_media_nothing_is_heard(name):
    codec = CODECS[name]
    one, media = model(**{name: codec}), codec.media
    mask = box(media, **({"time": (0, 0.6)} if media.time_axis is not None else {"height": (0, 48)}))
    a, b = (Known(torch.where(mask, clip(media), clip(media, seed)), mask) for seed in (1, 2))
    held = [hold(Given({name: k}), one, {name: media}, dtype=torch.float64, references=False).context[name] for k in (a, b)]
    assert torch.equal(held[0].known, held[1].known) and torch.equal(held[0].z, held[1].z) and bool(held[0].known.any())


# ---------------------------------------------------------------- where streams begin


def test_grids_begin_at_the_strength_and_stand_where_nothing_is_made():
    two, medias = model(image=CODECS["image"], line=CODECS["line"]), {s: CODECS[s].media for s in ("image", "line")}
    x, full = {s: clip(m) for s, m in medias.items()}, {s: UniformGrid()(5, Linear(), None) for s in medias}

    def grids(**given):
        return hold(Given(**given), two, medias, dtype=torch.float64).grids(full)

    both = grids(init=x, strength=0.5)
    assert all(torch.equal(t, start_at(full["image"], 0.5)) for t in both.values()) and len(both["line"]) == 4
    one = grids(init={"line": x["line"]}, strength=0.5)
    assert torch.equal(one["image"], full["image"]) and one["line"].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.4, 0.2, 0])
    foley = grids(known={"image": Known(x["image"])}, init={"line": x["line"]}, strength=0.5)
    assert foley["image"].tolist() == [0.0] * 4 and len(foley["line"]) == 4
    assert grids(absent=("line",))["line"].tolist() == [1.0] * 6
    held, noise = (
        hold(Given(init=x, strength=0.5), two, medias, dtype=torch.float64),
        torch.randn(3, *held_shape(two), dtype=x["line"].dtype),
    )
    z = two.whiten("line", two.encode("line", x["line"][None]))
    assert torch.equal(held.start(two, {"image": torch.zeros(3, 4, 24, 16), "line": noise})["line"], 0.5 * z + 0.5 * noise)


def held_shape(two):
    return two.latent_shape("line", CODECS["line"].media.shape)


# ---------------------------------------------------------------- pasting


@pytest.mark.parametrize(
    ("media", "wanted", "seam"),
    [
        (SOUND, [{"time": (0.25, 0.5)}], 80),
        (CLIP, [{"time": (0, 1)}, {"time": (2, 2.125)}], 1),
        (STILL, [{"height": (0, 50), "width": (10, 30)}], 3),
        (ArrayMedia(2, (6, 5, 4)), None, 3),
    ],
)
def test_known_samples_are_pasted_to_the_bit_and_the_seam_lies_outside(media, wanted, seam):
    x = clip(media)
    mask = torch.rand(media.shape[1:]) < 0.3 if wanted is None else torch.stack([box(media, **w) for w in wanted]).any(0)
    made = torch.stack([clip(media, 1), clip(media, 2)])
    out = paste(made, Known(x, mask), media)
    assert torch.equal(out[..., mask], x[:, mask].expand(2, -1, -1))
    changed = (out != made).any(1).any(0) & ~mask
    assert bool(changed.any())
    for name, dim in axes_of(media).items():
        far = seam if name in (wanted or [{}])[0] else 0
        lines, known = (m.movedim(dim, 0).reshape(m.shape[dim], -1).any(1).nonzero().flatten() for m in (changed, mask))
        assert int((lines[:, None] - known).abs().amin(1).max()) <= far
    assert torch.equal(paste(made, None, media), made) and torch.equal(paste(made, Known(x), media)[1], x)


def test_a_seam_has_no_step():
    slope = torch.linspace(-0.5, 0.5, 64).expand(3, 96, 64)
    out = paste(slope[None] + 0.4, Known(slope, box(STILL, width=(0, 20))), STILL)[0]
    assert float(torch.diff(out, dim=2).abs().max()) < 0.15  # 0.4 in four steps, and the slope
    tone = torch.sin(torch.arange(8000) * 0.05)[None]
    heard = paste(-tone[None], Known(tone, box(SOUND, time=(0, 0.5))), SOUND)[0]
    assert float(torch.diff(heard[:, 3990:4200]).abs().max()) < 0.12  # the tone itself moves by 0.05 per sample


def test_what_is_continued_is_made_of_the_nearest_known():
    x = torch.arange(8.0)[None]
    mask = torch.tensor([True, True, True, True, False, False, False, False])
    assert continued(x, mask).tolist() == [[0, 1, 2, 3, 2, 1, 0, 0]]
    assert torch.equal(continued(x, mask & False), torch.zeros(1, 8)) and torch.equal(continued(x, mask | True), x)
    assert continued(x[None], mask[None]).tolist() == [[[0, 1, 2, 3, 3, 3, 3, 3]]]
    plane = torch.full((2, 3, 9, 7), 0.25)
    for hole in (box(ImageMedia(9, 7), height=(3, 6), width=(2, 5)), ~box(ImageMedia(9, 7), height=(3, 6), width=(2, 5))):
        assert torch.allclose(continued(plane, hole), plane)


def test_given_media_that_do_not_fit_are_refused():
    medias, x = {"image": STILL, "line": CODECS["line"].media}, {s: clip(CODECS[s].media) for s in ("image", "line")}
    for given, told in [
        (Given({"sound": Known(x["line"])}), "choose from image, line"),
        (Given({s: Known(x[s]) for s in x}), "something left to make, got all of image, line"),
        (Given({"line": Known(x["line"])}, absent=("image",)), "something left to make"),
        (Given({"image": Known(x["image"], box(STILL)[:5])}), "wanted a bool mask"),
        (Given({"image": Known(x["image"], ~box(STILL))}), "0 kept"),
        (Given({"image": Known(x["image"][:, :5])}), "of shape .* to keep"),
        (Given(init={"image": x["image"][:, :5]}), "of shape .* to vary"),
        (Given(init={"image": x["image"]}, strength=0.0), "strength in"),
        (Given(init={"image": x["image"]}, absent=("image",)), "nothing is given"),
        (Given(references={"line": [Placed(x["line"][:1])]}), "as a reference"),
    ]:
        with pytest.raises(ValueError, match=told):
            given.check(medias)
