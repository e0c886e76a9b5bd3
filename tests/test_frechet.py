"""Fréchet distance against closed forms; moments in any batches; embedders that are functions of their weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import inception_v3
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

from mmldm.data.world import World
from mmldm.evaluation import Clap, Inception, Learned, Moments, frechet_distance
from mmldm.evaluation.embedders import digest_of
from mmldm.evaluation.learned import _labels
from mmldm.media import ArrayMedia, AudioMedia, ImageMedia, VideoMedia


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(rows, size=1000):
    found = Moments()
    for part in rows.split(size):
        found.update(part)
    return found


# ---------------------------------------------------------------- moments and distance


def test_moments_do_not_depend_on_the_batches():
    rows = 1e4 + draw(100, 5)  # far from 0: sums of squares would cancel
    for size in (1, 7, 100):
        found = moments(rows, size)
        torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.covariance, rows.T.cov(), rtol=1e-8, atol=1e-10)
        assert found.n == 100


def test_moments_refuse_other_shapes_and_too_few_rows():
    found = moments(draw(1, 3))
    with pytest.raises(ValueError, match="two rows"):
        found.covariance  # noqa: B018
    for wrong in (draw(2, 4), draw(3)):
        with pytest.raises(ValueError, match="wanted a batch"):
            found.update(wrong)
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(moments(draw(5, 3)), moments(draw(5, 4)))


def test_a_shift_costs_its_square_and_nothing_costs_nothing():
    rows = draw(200, 6) @ draw(6, 6, seed=1)
    shift = torch.tensor([0.5, 0, -1, 0, 2, 0], dtype=torch.float64)
    assert frechet_distance(moments(rows), moments(rows)) < 1e-6
    assert frechet_distance(moments(rows), moments(rows + shift)) == pytest.approx(5.25, abs=1e-6)


def test_a_scale_costs_the_square_of_the_difference_of_roots():
    rows = draw(200, 4)
    found = frechet_distance(moments(rows), moments(3 * rows - 2 * rows.mean(0)))
    assert found == pytest.approx(4 * float(rows.T.cov().trace()), rel=1e-9)


def test_it_is_symmetric_and_the_root_of_the_product():
    a, b = draw(60, 5) @ draw(5, 5, seed=1), draw(60, 5, seed=2) @ draw(5, 5, seed=3) + 1
    found = frechet_distance(moments(a), moments(b))
    assert found == pytest.approx(frechet_distance(moments(b), moments(a)), rel=1e-10)
    cross = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.sqrt().sum()  # of the unsymmetric product, as published
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * cross
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_fewer_rows_than_dimensions_are_finite():
    assert 0 <= frechet_distance(moments(draw(3, 20)), moments(draw(4, 20, seed=1))) < 1000


# ---------------------------------------------------------------- the one that learns


def world(kind, media, count=24):
    source = World(kind, count)
    xs = torch.stack([source.load(i, kind, media).x for i in range(count)])
    return xs, [source.row(i)["text"] for i in range(count)]


MEDIA = {
    "image": ImageMedia(height=16, width=16),
    "video": VideoMedia(frames=3, fps=8, height=16, width=16),
    "audio": AudioMedia(rate=8000, channels=1, seconds=0.25),
}


def fitted(media, xs, captions, **options):
    embedder = Learned(steps=4, **options)
    embedder.fit(media, xs.split(7), captions)
    return embedder


@pytest.mark.parametrize("kind", MEDIA)
def test_equal_data_give_equal_networks_and_rows_stand_alone(kind):
    xs, captions = world(kind, MEDIA[kind])
    one, two = fitted(MEDIA[kind], xs, captions), fitted(MEDIA[kind], xs, captions)
    assert one.digest == two.digest and len(one.digest) == 64 and "words" in one.name
    assert one.digest != fitted(MEDIA[kind], xs, captions, seed=1).digest
    rows = one(xs)
    assert rows.shape == (24, 128) and not rows.requires_grad
    torch.testing.assert_close(rows, torch.cat([one(x[None]) for x in xs]), rtol=1e-4, atol=1e-4)


def test_learning_leaves_the_global_randomness_alone():
    xs, captions = world("image", MEDIA["image"])
    before = torch.get_rng_state()
    fitted(MEDIA["image"], xs, captions)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_captions_it_tells_items_apart():
    xs, _ = world("image", MEDIA["image"])
    embedder = fitted(MEDIA["image"], xs, [""] * len(xs))
    assert "items apart" in embedder.name and bool(embedder(xs).isfinite().all())


def test_worse_reconstructions_are_farther():
    xs, captions = world("image", MEDIA["image"], 64)
    embedder = fitted(MEDIA["image"], xs, captions)
    near, far = (
        frechet_distance(moments(embedder(xs + s * draw(*xs.shape).float())), moments(embedder(xs))) for s in (0.05, 0.5)
    )
    assert frechet_distance(moments(embedder(xs)), moments(embedder(xs))) < 1e-3 < near < far


def test_a_saved_one_judges_alike(tmp_path):
    xs, captions = world("image", MEDIA["image"])
    embedder = fitted(MEDIA["image"], xs, captions)
    again = Learned(weights=embedder.save(tmp_path / "embedder.safetensors"))
    again.fit(MEDIA["image"], [], [])
    assert again.digest == embedder.digest and torch.equal(again(xs), embedder(xs))
    with pytest.raises(ValueError, match="conv0 of shape"):
        again.fit(MEDIA["video"], [], [])
    for lost in ("conv2", "std"):
        partly = {name: tensor for name, tensor in embedder.tensors.items() if name != lost}
        torch.save(partly, tmp_path / "partly.pth")
        with pytest.raises(ValueError, match=f"with {lost} of shape .* got none"):
            Learned(weights=tmp_path / "partly.pth").fit(MEDIA["image"], [], [])


def test_words_in_some_of_the_captions_are_the_labels():
    found = _labels(["a red ball", "a blue ball", "a red cube", "a ball", "a blue thing"])
    assert found.shape == (5, 5)  # ball, red, blue, cube, thing; `a` is in all
    assert _labels(["", ""]) is None and _labels(["one", "one"]) is None


def test_what_it_cannot_see_is_refused():
    with pytest.raises(ValueError, match="rank 1 to 3"):
        Learned().fit(ArrayMedia(1, (2, 2, 2, 2)), [], [])
    with pytest.raises(ValueError, match="steps"):
        Learned(steps=0)


# ---------------------------------------------------------------- known networks from local files


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    with torch.random.fork_rng():
        torch.save(inception_v3(weights=None, aux_logits=False, init_weights=False).state_dict(), file)
    return file


def test_inception_embeds_pictures_and_clips(inception):
    embedder, clips = Inception(inception), draw(2, 3, 20, 20, 24).float()
    embedder.fit(MEDIA["image"], [], [])
    rows = embedder(clips[:1, :, 0])
    assert rows.shape == (1, 2048) and bool(rows.isfinite().all())
    assert embedder.digest == digest_of(torch.load(inception, weights_only=True))
    embedder.network, seen = torch.nn.Flatten(), torch.nn.functional.interpolate(clips.clamp(-1, 1).mean(2), (299, 299),
                                                                                 mode="bilinear", antialias=True)  # fmt: skip
    torch.testing.assert_close(embedder(clips), seen.flatten(1), rtol=1e-4, atol=1e-4)  # the mean over frames
    with pytest.raises(ValueError, match="pictures or clips"):
        embedder.fit(MEDIA["audio"], [], [])


def test_inception_refuses_other_files(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="inception_v3"):
        Inception(tmp_path / "other.pth")


def test_clap_embeds_sound(tmp_path):
    config = ClapAudioConfig(
        window_size=2, spec_size=64, num_mel_bins=16, patch_size=4, patch_stride=[4, 4], patch_embeds_hidden_size=8,
        depths=[1, 1], num_attention_heads=[1, 2], hidden_size=16, projection_dim=12, num_hidden_layers=2, enable_fusion=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        ClapAudioModelWithProjection(config).save_pretrained(tmp_path)
    ClapFeatureExtractor(feature_size=16, sampling_rate=8000, max_length_s=1, hop_length=125).save_pretrained(tmp_path)
    embedder, sound = Clap(tmp_path), 0.1 * draw(2, 2, 12000).float()
    embedder.fit(AudioMedia(rate=16000, channels=2, seconds=0.75), [], [])
    rows = embedder(sound)
    assert rows.shape == (2, 12) and rows.dtype == torch.float32 and len(embedder.digest) == 64
    torch.testing.assert_close(rows, torch.cat([embedder(x[None]) for x in sound]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="sound"):
        embedder.fit(MEDIA["image"], [], [])
    with pytest.raises(ValueError, match="not there"):
        Clap(tmp_path / "nowhere")
    weights = load_file(tmp_path / "model.safetensors")
    save_file(dict(sorted(weights.items())[1:]), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"without 1, {min(weights)} among them"):
        Clap(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": "wide"}')
    with pytest.raises(ValueError, match="wanted a folder with a ClapModel and its processor"):
        Clap(tmp_path)
