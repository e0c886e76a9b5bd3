"""A vocoder is trained, fine-tuned on a codec's mels, carried by a diffusion model, swapped at generation, imported."""

import json
from pathlib import Path

import pytest
import torch

from mmldm import config, store, trained
from mmldm.codec import AudioCodec, GriffinLim, HiFiGAN, Vocos
from mmldm.commands import cli, training
from mmldm.pipeline import Pipeline

QUICK = [
    "data=world", "data.kind=audio", "data.items=12", "data.validation=4", "data.batch_size=4", "data.workers=0", "logger=csv",
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.limit_val_batches=1", "previews=0", "whitening_batches=1",
]  # fmt: skip
VOCODER = ["codec.audio.vocoder.width=16", "codec.audio.vocoder.blocks=1", "adversary=none"]
CODEC = ["codec=audio_world", "codec.audio.width=8", "codec.audio.blocks=1"]
TINY = ["denoiser=dit_tiny", "denoiser.width=32", "denoiser.depth=1", "denoiser.heads=2", "diffusion/known=none"]


def train(*words: str) -> None:
    training.train(config.compose([*QUICK, *words]))


def tensors(run: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a run's audio codec whose names begin with `prefix`."""
    part = store.load_model(run).parts["codec.audio"]
    return {name.removeprefix(prefix): tensor for name, tensor in part.items() if name.startswith(prefix)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a vocoder, a codec, the vocoder fine-tuned through the codec, and a diffusion model that carries it."""
    root = tmp_path_factory.mktemp("runs")
    train("experiment=audio_vocoder", *VOCODER, f"run={root}/vocoder")
    train("experiment=audio_codec", *CODEC, f"run={root}/codec")
    tuned = [f"vocoder={root}/vocoder", f"codec.audio.through={root}/codec", "adversary=none", "optimizer.lr=1e-9"]
    train("experiment=audio_vocoder", *tuned, f"run={root}/tuned")
    diffusion = [*TINY, f"codec.audio={root}/codec", f"vocoder={root}/tuned"]
    train("experiment=audio_diffusion", *diffusion, f"run={root}/sound")
    return root


def test_only_the_vocoder_is_in_a_trained_vocoder(runs):
    part = trained.load_codecs(store.load_model(runs / "vocoder"))["audio"]
    assert isinstance(part.codec.vocoder, Vocos) and len(part.codec.vocoder.blocks) == 1
    assert all(name.startswith(("vocoder.", "whitening.")) for name in store.load_model(runs / "vocoder").parts["codec.audio"])


def test_fine_tuning_goes_on_from_the_vocoder_and_through_the_frozen_codec(runs):
    before, after = tensors(runs / "vocoder", "vocoder."), tensors(runs / "tuned", "vocoder.")
    assert not same(before, after)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert same(tensors(runs / "tuned", "through.body."), tensors(runs / "codec", "body."))
    tuned = trained.load_codecs(store.load_model(runs / "tuned"))["audio"].codec
    assert isinstance(tuned.through, AudioCodec) and tuned.chunk is None


def test_a_diffusion_model_carries_the_vocoder_it_was_given(runs):
    assert same(tensors(runs / "sound", "vocoder."), tensors(runs / "tuned", "vocoder."))
    assert same(tensors(runs / "sound", "body."), tensors(runs / "codec", "body."))
    assert isinstance(Pipeline.load(runs / "sound").model.codecs["audio"].vocoder, Vocos)


def test_the_vocoder_is_swapped_at_generation_alone(runs, tmp_path):
    words = [str(runs / "sound"), "a low tone", "--steps", "1"]
    assert cli.main(["generate", *words, "--out", str(tmp_path / "own")]) == 0
    assert cli.main(["generate", *words, "--vocoder", str(runs / "vocoder"), "--out", str(tmp_path / "other")]) == 0
    own, other = (sorted((tmp_path / name).glob("*.wav"))[0].read_bytes() for name in ("own", "other"))
    assert own != other
    recipe = json.loads(next((tmp_path / "other").glob("*.json")).read_text())
    assert str(runs / "vocoder") in json.dumps(recipe)


def test_a_codec_is_the_same_but_for_its_vocoder(runs):
    part = trained.load_codecs(store.load_model(runs / "codec"))["audio"]
    voiced = trained.with_vocoder(part, runs / "vocoder")
    assert isinstance(part.codec.vocoder, GriffinLim) and isinstance(voiced.codec.vocoder, Vocos)
    x = torch.zeros(1, *part.codec.media.shape)
    assert torch.equal(part.codec.encode(x).mean, voiced.codec.encode(x).mean) and voiced.whitening is part.whitening
    assert voiced.codec.media == part.codec.media and not any(p.requires_grad for p in voiced.codec.parameters())
    features = torch.zeros(1, 1, 20, 80)
    assert torch.equal(voiced.codec.vocoder(features), trained.with_vocoder(voiced, runs / "vocoder").codec.vocoder(features))


def test_latents_do_not_depend_on_the_vocoder(runs):
    from mmldm.commands.digests import fingerprint

    part = trained.load_codecs(store.load_model(runs / "codec"))["audio"]
    assert fingerprint({"audio": part.codec}) == fingerprint({"audio": trained.with_vocoder(part, runs / "vocoder").codec})


def test_what_does_not_fit_is_told_in_one_line(runs, capsys):
    part = trained.load_codecs(store.load_model(runs / "codec"))["audio"]
    with pytest.raises(ValueError, match="wanted a trained vocoder in .*codec"):
        trained.with_vocoder(part, runs / "codec")
    other = [*QUICK, *CODEC, "experiment=audio_codec", "codec.audio.mel.f_max=7000.0", f"vocoder={runs}/vocoder"]
    with pytest.raises(ValueError, match=r"mel front end .*7000 Hz.* got one of .*8000 Hz") as caught:
        training.prepare(config.compose(other))
    assert len(str(caught.value).splitlines()) == 1
    picture = [*QUICK, "experiment=image_codec", "data.kind=image", f"vocoder={runs}/vocoder"]
    with pytest.raises(ValueError, match="wanted a codec with a vocoder"):
        training.prepare(config.compose(picture))
    assert cli.main(["generate", str(runs / "sound"), "x", "--vocoder", str(runs / "nowhere")]) == 2
    assert "there is no trained model" in capsys.readouterr().err


def test_an_imported_generator_serves_as_a_vocoder(runs, tmp_path, capsys):
    part = trained.load_codecs(store.load_model(runs / "codec"))["audio"]
    generator = HiFiGAN(part.codec.mel, (16, 16), (32, 32), 8, (3,), ((1,),))
    numbers = {
        "resblock": "1", "upsample_rates": [16, 16], "upsample_kernel_sizes": [32, 32], "upsample_initial_channel": 8,
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]],
        "sampling_rate": 16000, "n_fft": 1024, "win_size": 1024, "hop_size": 256, "num_mels": 80, "fmin": 0, "fmax": 8000,
    }  # fmt: skip
    state = generator.state_dict()
    state = {k.replace("blocks.0.0", "resblocks.0").replace("blocks.1.0", "resblocks.1"): v for k, v in state.items()}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    torch.save({"generator": state}, tmp_path / "generator_v1")
    assert cli.main(["codec", "import", str(tmp_path), "--out", str(tmp_path / "run")]) == 0
    assert "HiFiGAN" in capsys.readouterr().out
    voiced = trained.with_vocoder(part, tmp_path / "run").codec
    features = torch.zeros(1, 1, 8, 80)
    torch.testing.assert_close(voiced.vocoder(features), generator(features))
    assert voiced.decode_reach["time"] >= generator.reach / 4
