"""Pictures and sound of one model: trained on clips with and without sound, made together, one for the other, or alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from mmldm import config, trained
from mmldm.commands import cli, measuring, training
from mmldm.data.world import World
from mmldm.evaluation.probes import _apart
from mmldm.media import AudioMedia, VideoMedia
from mmldm.pipeline import Known, Pipeline
from mmldm.training.diffusion import unpadded
from tests import real_files

QUICK = ["trainer.max_steps=3", "trainer.val_check_interval=3", "data.workers=0", "previews=2", "data.batch_size=4", "seed=1"]
QUICK += ["data.max_bad_fraction=0.5", "whitening_batches=2"]
TINY = ["denoiser.width=32", "denoiser.depth=1", "denoiser.heads=2", "diffusion.steps=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with clips, a codec of their pictures (1.125 s), one of their sound (1 s), and a joint model."""
    root = tmp_path_factory.mktemp("joint")
    real_files.videos(root / "clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = ["data.path=clips", *QUICK]
        video = ["codec.video.width=16", "codec.video.blocks=1", "data.size=[32,32]", "data.seconds=1.125"]
        audio = ["codec.audio.width=16", "codec.audio.blocks=1", "data.seconds=1.0"]
        assert cli.main(["train", "experiment=video_codec", "run=video", *data, *video]) == 0
        assert cli.main(["train", "experiment=audio_codec", "run=audio", *data, *audio]) == 0
        assert cli.main(["encode", "video", "audio", "data.path=clips", "out=latents", "data.workers=0",
                         "data.max_bad_fraction=0.5"]) == 0  # fmt: skip
        words = ["codec.video=video", "codec.audio=audio", "data.cache=latents", "run=av"]
        assert cli.main(["train", "experiment=av_diffusion", *words, *data, *TINY]) == 0
    return root


def test_streams_share_the_duration_of_the_shortest(runs):
    medias = Pipeline.load(runs / "av").medias()
    assert {stream: media.seconds for stream, media in medias.items()} == {"video": 1.0, "audio": 1.0}
    same = VideoMedia(9, 8, 32, 32), AudioMedia(16000, 1, 1.1)
    assert trained.shared_seconds(same) is None  # less than a frame apart
    assert trained.shared_seconds([VideoMedia(17, 8, 32, 32), AudioMedia(16000, 1, 1.0)]) == 1.0


def test_clips_without_sound_are_cached_and_train_too(runs):
    from mmldm.data import LatentCache

    cache = LatentCache(runs / "latents")
    _, valid = cache.batch(range(len(cache)))
    assert (valid["video"] > 0).all() and 0 < int((valid["audio"] > 0).sum()) < len(cache)


def test_a_joint_sample_is_one_file_with_sound(runs, tmp_path):
    assert cli.main(["generate", str(runs / "av"), "a red ball", "--out", str(tmp_path), "--steps", "2"]) == 0
    (path,) = tmp_path.glob("*.mp4")
    assert VideoMedia(8, 8, 32, 32).probe(path).seconds == pytest.approx(1.0, abs=0.05)
    assert AudioMedia(16000, 1, 1.0).probe(path).seconds == pytest.approx(1.0, abs=0.1)
    assert not list(tmp_path.glob("*.wav"))


@pytest.mark.parametrize("given, made", [("video", "audio"), ("audio", "video")])
def test_one_stream_is_made_for_the_other_and_without_it(runs, given, made):
    pipeline = Pipeline.load(runs / "av")
    x = torch.rand(pipeline.medias()[given].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (sample,) = pipeline.generate("a", known={given: Known(x)}, steps=2)
    assert torch.equal(sample.streams[given], x) and torch.isfinite(sample.streams[made]).all()
    (other,) = pipeline.generate("a", known={given: Known(-x)}, steps=2)
    (alone,) = pipeline.generate("a", absent=[given], steps=2)
    assert set(alone.streams) == {made} and other.streams[made].shape == alone.streams[made].shape


def test_all_directions_are_measured(tmp_path):
    run = tmp_path / "untrained"
    words = ["experiment=world_av_diffusion", f"run={run}", "trainer.max_steps=1", "data.items=16", "data.validation=4"]
    words += ["data.batch_size=2", "previews=0", *TINY, "codec.video.width=16", "codec.audio.width=16"]
    nodes = {s: config.resolved(config.compose([f"experiment=world_av_{s}_codec"]).codec)[s] for s in ("video", "audio")}
    cfg = config.compose([w for w in words if "codec." not in w])
    for stream, node in nodes.items():
        cfg.codec[stream] = {**node, "width": 16, "blocks": 1}
    training.train(cfg)
    told = config.compose(["data=world", "data.kind=av", "samples=1", "count=2", "steps=1", "data.items=4"], "evaluate")
    report, out = measuring.evaluate(run, told)
    assert json.loads((out / "report.json").read_text()) == report
    assert set(report["adherence.heldout"]) == {"colour", "timbre", "tempo", "synchrony"}
    assert set(report["made for video"]) == set(report["made for audio"]) == set(report["adherence.seen"])
    assert set(report["without video"]) == {"timbre"} and set(report["without audio"]) == {"colour", "tempo"}
    assert report["made for video"]["colour"] == report["made for audio"]["timbre"] == 1.0  # the given stream is the world's


def test_synchrony_counts_what_is_within_a_frame():
    world, video, audio = World("av", 8), VideoMedia(17, 16, 32, 32), AudioMedia(16000, 1, 1.0625)
    from mmldm.pipeline import Sample

    clips = [(world.load(i, "video", video).x, world.load(i, "audio", audio).x) for i in range(8)]
    medias, wanted = {"video": video, "audio": audio}, [world.attributes(i) for i in range(8)]
    true = [Sample({"video": v, "audio": a}, medias, "", 0, i) for i, (v, a) in enumerate(clips)]
    late = [Sample({"video": v, "audio": a.roll(2500, -1)}, medias, "", 0, i) for i, (v, a) in enumerate(clips)]
    assert measuring.agreement("av", true, wanted) == {"colour": 1.0, "tempo": 1.0, "timbre": 1.0, "synchrony": 1.0}
    assert measuring.agreement("av", late, wanted)["synchrony"] <= 0.25


def test_a_model_can_be_loaded_to_run_faster(runs):
    plain = Pipeline.load(runs / "av").generate("a", steps=2)[0].streams["video"]
    half = Pipeline.load(runs / "av", dtype=torch.bfloat16).generate("a", steps=2)[0].streams["video"]
    assert half.dtype == torch.float32 and 0 < (half - plain).abs().mean() < 0.1
    reused = Pipeline.load(runs / "av", reuse=2)
    assert reused.model.denoiser.reuse.every == 2 and reused.generate("a", steps=2)[0].streams["video"].shape == plain.shape
    with pytest.raises(ValueError, match="not compiled"):
        Pipeline.load(runs / "av", reuse=2, compile=True)


def test_codecs_of_one_clip_are_given_one_duration():
    medias = {"video": VideoMedia(17, 8, 32, 32), "audio": AudioMedia(16000, 1, 1.0)}
    codecs = {stream: SimpleNamespace(media=media) for stream, media in medias.items()}
    assert trained.share_seconds(codecs) == 1.0 and [codec.media.seconds for codec in codecs.values()] == [1.0, 1.0]
    assert trained.share_seconds(codecs) is None


def test_a_stream_that_is_not_there_has_no_padding():
    valid = torch.tensor([[True, False], [True, False]])
    assert unpadded(valid, torch.tensor([True, False])).tolist() == [[True, False], [True, True]]
    assert unpadded(None, torch.tensor([True, False])) is None


def test_an_impact_that_is_not_heard_is_out_of_synchrony():
    onsets = 0.2 + 0.35 * torch.arange(3)
    assert _apart(onsets, 0.35, 0.2, 1.06) < 1e-6 and _apart(onsets[:1], 0.35, 0.2, 1.06) > 0.1
    assert _apart(onsets[:0], 0.35, 0.2, 1.06) == 0.175
