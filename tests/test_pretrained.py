"""Other people's codecs: geometry, whitening and results of each class, the laws it breaks, and life without its source."""

import json
import shutil
import sys

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from mmldm import config, store, trained
from mmldm.codec.mel import LogMel
from mmldm.codec.pretrained import PretrainedCodec
from mmldm.codec.pretrained_families import FAMILIES
from mmldm.codec.pretrained_files import folder_of
from mmldm.codec.pretrained_mel import PretrainedMelCodec
from mmldm.commands import codec_import, training
from mmldm.commands.digests import digest, fingerprint
from mmldm.media import AudioMedia, ImageMedia, VideoMedia
from mmldm.model import Whitening
from mmldm.pipeline import Pipeline
from mmldm.testing import codec_checks

CAUSAL = {"norm_num_groups": 2, "layers_per_block": 1, "latent_channels": 4}
KL = {
    "block_out_channels": (4, 4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    **CAUSAL,
}
LTX = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "spatio_temporal_scaling": (True, False),
    "decoder_spatio_temporal_scaling": (True, False),
    "decoder_inject_noise": (True, False, False),
    "downsample_type": ("conv",) * 2,
    "upsample_residual": (False,) * 2,
    "upsample_factor": (1,) * 2,
    "patch_size": 2,
    "timestep_conditioning": True,
    "scaling_factor": 0.25,
}
DC = {
    "latent_channels": 8,
    "attention_head_dim": 4,
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
    "scaling_factor": 0.5,
}
TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
OOBLECK = {
    "encoder_hidden_size": 16,
    "downsampling_ratios": [2, 4],
    "channel_multiples": [1, 2],
    "decoder_channels": 16,
    "decoder_input_channels": 8,
    "sampling_rate": 8000,
}
WAN = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "latents_mean": [0.5, -1.0, 2.0, 0.0],
    "latents_std": [1.0, 2.0, 4.0, 0.5],
}
COG = {
    "block_out_channels": (4, 4, 4),
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "scaling_factor": 0.7,
    **CAUSAL,
}
HUNYUAN = {"block_out_channels": (4, 4, 4, 4), **CAUSAL}

# class: its numbers, its media, options of the wrapper
CLASSES = {
    "AutoencoderKL": (KL | {"scaling_factor": 0.5, "shift_factor": 0.25}, ImageMedia(17, 26), {"tile": 4}),
    "AutoencoderDC": (DC, ImageMedia(9, 14), {"tile": 4}),
    "AutoencoderTiny": (TINY, ImageMedia(16, 53), {"tile": 4}),
    "AutoencoderOobleck": (OOBLECK, AudioMedia(8000, 2, 0.02), {"chunk": 4}),
    "AutoencoderKLWan": (WAN, VideoMedia(9, 8, 6, 7), {"chunk": 2}),
    "AutoencoderKLLTXVideo": (LTX, VideoMedia(9, 8, 9, 8), {"chunk": 4}),
    "AutoencoderKLCogVideoX": (COG, VideoMedia(17, 8, 5, 8), {"chunk": 4}),
    "AutoencoderKLHunyuanVideo": (HUNYUAN, VideoMedia(9, 8, 9, 16), {"chunk": 16}),
}
FIRST_ALONE = "one media sample is the first latent"
BROKEN = {  # group norms over a clip's frames make a picture other than its beginning
    "AutoencoderKLCogVideoX": {FIRST_ALONE},
    "AutoencoderKLHunyuanVideo": {FIRST_ALONE},
}
UNTRIED = {"AutoencoderDC": ["bfloat16 weights"]}  # random linear attention divides by sums near zero
GEOMETRY = {  # class: latent channels, (size, first) by axis, blended with pieces in every way
    "AutoencoderKL": (4, [(4, 4), (4, 4)], {"height", "width"}),
    "AutoencoderDC": (8, [(2, 2), (2, 2)], {"height", "width"}),
    "AutoencoderTiny": (4, [(2, 2), (2, 2)], set()),
    "AutoencoderOobleck": (8, [(8, 8)], set()),
    "AutoencoderKLWan": (4, [(2, 1), (2, 2), (2, 2)], {"height", "width"}),
    "AutoencoderKLLTXVideo": (4, [(2, 1), (4, 4), (4, 4)], set()),
    "AutoencoderKLCogVideoX": (4, [(4, 1), (4, 4), (4, 4)], {"height", "width"}),
    "AutoencoderKLHunyuanVideo": (4, [(4, 1), (8, 8), (8, 8)], {"time", "height", "width"}),
}
IMAGE = {"_target_": "mmldm.media.image.ImageMedia", "height": 16, "width": 16}
MEL = {"rate": 4000, "n_fft": 32, "hop": 8, "bins": 16}
VOCODER = {
    "model_in_dim": 16,
    "sampling_rate": 4000,
    "upsample_initial_channel": 8,
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "normalize_before": False,
}


def body_of(kind, **changes):
    """A random model of a class of diffusers."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = getattr(diffusers, kind)(**CLASSES[kind][0] | changes)
        for name, tensor in body.named_buffers():
            if name.startswith("latents_"):
                tensor.uniform_(0.5, 2.0)
    return body.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(kind)` is a saved random model of a class; `AudioLDM` is a pipeline with a vae and a vocoder."""
    root, saved = tmp_path_factory.mktemp("pretrained"), {}

    def find(kind):
        if kind not in saved and kind == "AudioLDM":
            body_of("AutoencoderKL", in_channels=1, out_channels=1, shift_factor=None).save_pretrained(root / kind / "vae")
            vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER))
            for number, parameter in enumerate(vocoder.parameters()):
                torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
            vocoder.save_pretrained(root / kind / "vocoder")
        elif kind not in saved:
            body_of(kind).save_pretrained(root / kind)
        saved[kind] = str(root / kind)
        return saved[kind]

    return find


def codec_of(kind, folder, **options):
    return PretrainedCodec(CLASSES[kind][1], folder(kind), **options)


def mel_codec(folder, **options):
    return PretrainedMelCodec(AudioMedia(4000, 1, 0.1), LogMel(**MEL), folder("AudioLDM"), **options)


def media_of(codec, batch=2):
    x = torch.randn(batch, *codec.media.shape, generator=torch.Generator().manual_seed(1))
    return (0.4 * x).clamp(-1, 1)


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize("kind", CLASSES)
def test_the_laws_that_each_class_breaks(kind, folder):
    _, media, options = CLASSES[kind]
    tolerance = 1e-5 if kind == "AutoencoderKLLTXVideo" else 1e-9  # its norms compute in float32
    checks = codec_checks(codec_of(kind, folder, **options), media.shape, tolerance, UNTRIED.get(kind, ()))
    failed = {check.name: check.detail for check in checks if not check.passed}
    assert set(failed) == BROKEN.get(kind, set()), failed


def test_the_laws_of_a_codec_over_log_mels(folder):
    checks = codec_checks(mel_codec(folder, chunk=8))
    assert not [str(check) for check in checks if not check.passed]


@pytest.mark.parametrize("kind", CLASSES)
def test_geometry_comes_from_the_config(kind, folder):
    channels, cells, blended = GEOMETRY[kind]
    codec = codec_of(kind, folder, chunk=4, tile=4)
    assert codec.latent_channels == channels and [(a.size, a.first) for a in codec.axes] == cells
    assert set(codec.blended) == blended
    assert all(a.unit == (1 / codec.media.rate if a.name == "time" else 1) for a in codec.axes)
    assert codec.latent_shape(codec.media.shape) == tuple(codec.encode(media_of(codec)).mean.shape[1:])


LATER = {  # the same classes as later weights have them: LTX-Video 0.9.5 and Wan 2.2
    "AutoencoderKLLTXVideo": (
        {
            "block_out_channels": [4, 8, 8, 8, 8],
            "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
            "layers_per_block": [1] * 5,
            "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
            "spatio_temporal_scaling": [True] * 4,
            "decoder_block_out_channels": [16, 32, 64],
            "decoder_layers_per_block": [1] * 4,
            "decoder_spatio_temporal_scaling": [True] * 3,
            "decoder_inject_noise": [False] * 4,
            "upsample_residual": [True] * 3,
            "upsample_factor": [2] * 3,
            "latent_channels": 4,
            "timestep_conditioning": True,
        },
        [(8, 1), (32, 32), (32, 32)],
    ),
    "AutoencoderKLWan": (
        {
            **WAN,
            "dim_mult": [1, 2, 2],
            "temperal_downsample": [False, True],
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
        },
        [(2, 1), (8, 8), (8, 8)],
    ),
}


@pytest.mark.parametrize("kind", LATER)
def test_later_weights_of_a_class_have_their_own_geometry(kind):
    numbers, cells = LATER[kind]
    codec = PretrainedCodec(VideoMedia(9, 8, 32, 24), numbers={"class_name": kind, **numbers}, chunk=1)
    x = media_of(codec)
    assert [(a.size, a.first) for a in codec.axes] == cells
    posterior, whole = codec.encode(x), codec.encode_features(x)
    torch.testing.assert_close(posterior.mean, whole.mean, atol=1e-5, rtol=1e-4)
    assert codec.decode(posterior.mean, x.shape[1:]).shape == x.shape


# ---------------------------------------------------------------- the class called by hand


@pytest.mark.parametrize("kind", CLASSES)
def test_results_are_those_of_the_class_called_by_hand(kind, folder):
    codec, body = codec_of(kind, folder), body_of(kind)
    x = media_of(codec)
    whole = [axis.length(axis.cells(n)) for axis, n in zip(codec.axes, x.shape[2:], strict=True)]
    x = x.repeat(1, 1, *(2,) * len(whole))[(..., *(slice(n) for n in whole))]
    with torch.no_grad():
        FAMILIES[kind].prepare(body)  # only what makes its results depend on chance or on the length
        told = body.encode(x)
        mean = next(getattr(told, name) for name in ("latents", "latent", "latent_dist") if hasattr(told, name))
        mean, std = (mean, None) if isinstance(mean, torch.Tensor) else (mean.mean, mean.std)
        steps = {"temb": torch.zeros(len(x))} if kind == "AutoencoderKLLTXVideo" else {}
        again = body.decode(mean, **steps).sample
    got = codec.encode(x)
    torch.testing.assert_close(got.mean, mean)
    assert (got.std is None) == (std is None)
    if std is not None:
        torch.testing.assert_close(got.std, std)
    torch.testing.assert_close(codec.decode(mean, x.shape[1:]), again)


def test_a_length_within_a_cell_is_completed_by_the_edge_of_a_picture(folder):
    codec = codec_of("AutoencoderKL", folder)
    x = media_of(codec)[..., :15, :16]
    assert torch.equal(codec.encode(x).mean, codec.encode(torch.cat([x, x[..., -1:, :]], -2)).mean)


def test_log_mels_and_vocoder_are_those_of_the_classes_called_by_hand(folder):
    codec = mel_codec(folder)
    body, vocoder = (
        AutoencoderKL.from_pretrained(f"{folder('AudioLDM')}/vae"),
        SpeechT5HifiGan.from_pretrained(f"{folder('AudioLDM')}/vocoder"),
    )
    x = media_of(codec)[..., :384]
    with torch.no_grad():
        log_mel = torch.log(codec.mel.magnitudes(x).clamp_min(1e-5))
        mean = body.encode(log_mel).latent_dist.mean
        waveform = vocoder(body.decode(mean).sample[:, 0])
    torch.testing.assert_close(codec.encode(x).mean, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(codec.decode(mean, x.shape[1:])[:, 0], waveform, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [*CLASSES, "AudioLDM"])
def test_cached_latents_outlive_what_decodes_them_and_nothing_else(kind, folder):
    codec = mel_codec(folder) if kind == "AudioLDM" else codec_of(kind, folder)
    x, known = media_of(codec, 1), fingerprint({"x": codec})
    before = codec.encode(x).mean
    tensors = [(name, t) for name, t in codec.state_dict().items() if t.is_floating_point()]
    decoding = [t for name, t in tensors if name.startswith(codec.decoding)]
    for tensor in decoding:
        tensor.mul_(1.5).add_(0.1)
    assert torch.equal(codec.encode(x).mean, before) and fingerprint({"x": codec}) == known and decoding
    for part in {name.split(".")[1] for name, _ in tensors if not name.startswith(codec.decoding)}:
        kept = {name: t.clone() for name, t in tensors}
        for name, tensor in tensors:
            if name.startswith(f"body.{part}."):
                tensor.mul_(1.5).add_(0.1)
        assert not torch.equal(codec.encode(x).mean, before) and fingerprint({"x": codec}) != known, part
        for name, tensor in tensors:
            tensor.copy_(kept[name])


# ---------------------------------------------------------------- whitening


def test_whitening_is_the_configs(folder):
    told = {kind: Whitening.of(codec_of(kind, folder)) for kind in CLASSES}
    ones = torch.ones(4)
    buffers = dict(body_of("AutoencoderKLLTXVideo").named_buffers())
    wanted = {
        "AutoencoderKL": (0.25 * ones, 2 * ones),
        "AutoencoderDC": (torch.zeros(8), 2 * torch.ones(8)),
        "AutoencoderTiny": (0 * ones, ones),
        "AutoencoderOobleck": (torch.zeros(8), torch.ones(8)),
        "AutoencoderKLWan": (torch.tensor(WAN["latents_mean"]), torch.tensor(WAN["latents_std"])),
        "AutoencoderKLLTXVideo": (buffers["latents_mean"], 4 * buffers["latents_std"]),
        "AutoencoderKLCogVideoX": (0 * ones, ones / 0.7),
        "AutoencoderKLHunyuanVideo": (0 * ones, ones / 0.476986),
    }
    for kind, (mean, std) in wanted.items():
        torch.testing.assert_close(told[kind].mean, mean), torch.testing.assert_close(told[kind].std, std)


# ---------------------------------------------------------------- without the source


def test_a_diffusion_model_keeps_the_codec_and_needs_no_source(folder, tmp_path):
    source = tmp_path / "sd"
    shutil.copytree(folder("AutoencoderKL"), source)
    words = ["experiment=image_diffusion", "codec=sd", f"codec.image.source={source}", "data=world", "data.kind=image"]
    cfg = config.compose([*words, "data.size=[16,16]", "denoiser=dit_tiny", f"run={tmp_path / 'run'}"])
    job = training.prepare(cfg)
    model = job.module.model
    trained.save_diffusion(tmp_path / "model", job.spec, model, {}, "")
    shutil.rmtree(source)
    loaded = Pipeline.load(tmp_path / "model").model
    x = media_of(model.codecs["image"])
    want, got = (m.whiten("image", m.encode("image", x)) for m in (model.cpu(), loaded.cpu()))
    assert torch.equal(want, got) and want.shape == (2, 4, 4, 4)
    assert torch.equal(model.decode("image", want, x.shape[1:]), loaded.decode("image", got, x.shape[1:]))
    assert float(loaded.whitenings["image"].std[0]) == 2.0


SMALL = {
    "AudioLDM": ["codec.audio.media.rate=4000", "codec.audio.mel.f_max=2000"]
    + [f"codec.audio.mel.{key}={value}" for key, value in MEL.items()]
}


@pytest.mark.parametrize("kind", ["AutoencoderOobleck", "AutoencoderKLLTXVideo", "AutoencoderKLWan", "AudioLDM"])
def test_an_imported_codec_needs_no_source(kind, folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder(kind), source)
    codec_import.import_codec(source, tmp_path / "run", SMALL.get(kind, ()))
    ((stream, part),) = trained.load_codecs(store.load_model(tmp_path / "run")).items()
    named = {"source": str(source), "numbers": None} | ({"vocoder": None} if kind == "AudioLDM" else {})
    codec = config.build(part.spec | named)
    shutil.rmtree(source)
    loaded = trained.load_codecs(store.load_model(tmp_path / "run"))[stream]
    codec.media = codec.media.resized(seconds=400 / 44100 if len(codec.axes) < 3 else 9 / codec.media.rate)
    x = media_of(codec)[(..., *(slice(16),) * (len(codec.media.shape) - 2))]
    z = codec.encode(x).mean
    assert torch.equal(loaded.codec.encode(x).mean, z) and torch.equal(loaded.codec.decode(z), codec.decode(z))
    assert torch.equal(loaded.whitening.std, Whitening.of(codec).std)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights_stay_half(dtype, folder, tmp_path):
    body = AutoencoderKL.from_pretrained(folder("AutoencoderKL"), torch_dtype=getattr(torch, dtype))
    body.save_pretrained(tmp_path / "half", variant="fp16")
    codec, wide = (PretrainedCodec(ImageMedia(16, 16), str(tmp_path / "half"), dtype=d) for d in (dtype, "float32"))
    x = media_of(codec)
    assert codec.encode(x).mean.dtype == wide.encode(x).mean.dtype == torch.float32
    torch.testing.assert_close(codec.encode(x).mean, wide.encode(x).mean, atol=0.05, rtol=0.05)
    node = {"_target_": "mmldm.codec.pretrained.PretrainedCodec", "media": IMAGE, "dtype": dtype} | codec.embedded
    trained.save_codec(tmp_path / "m", {"codecs": {"image": node}, "clips": {}}, codec, Whitening.of(codec), {}, "")
    loaded = trained.load_codecs(store.load_model(tmp_path / "m"))["image"].codec
    assert next(loaded.body.parameters()).dtype == getattr(torch, dtype) and digest(loaded) == digest(codec)
    assert torch.equal(loaded.encode(x).mean, codec.encode(x).mean)


# ---------------------------------------------------------------- sources


def refusal(*arguments, **options):
    with pytest.raises(ValueError) as caught:
        PretrainedCodec(*arguments, **options)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_used_is_told_in_a_line(folder, tmp_path):
    kl, image = folder("AutoencoderKL"), ImageMedia(16, 16)
    assert "a folder with config.json, or a hub name" in refusal(image, str(tmp_path / "none"))
    assert "config.json of an autoencoder" in refusal(image, str(tmp_path))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert "wanted one of AutoencoderKL" in refusal(image, str(tmp_path)) and "UNet2DModel" in refusal(image, str(tmp_path))
    assert "3 channels and 2 axes" in refusal(VideoMedia(9, 8, 16, 16), kl)
    assert "8000 samples per second" in refusal(AudioMedia(16000, 2, 0.1), folder("AutoencoderOobleck"))
    assert "a source" in refusal(image) and "a source" in refusal(image, kl, {"class_name": "AutoencoderKL"})
    assert "class_name" in refusal(image, numbers={"class_name": "os.system"})
    assert "dtype" in refusal(image, kl, dtype="float8")
    shutil.copytree(kl, tmp_path / "hollow")
    next((tmp_path / "hollow").glob("*.safetensors")).unlink()
    assert "wanted weights diffusion_pytorch_model.safetensors" in refusal(image, str(tmp_path / "hollow"))
    assert "diffusion_pytorch_model.fp16.safetensors" in refusal(image, kl, variant="fp16")
    (tmp_path / "hollow" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    assert "weights of AutoencoderKL cannot be read" in refusal(image, str(tmp_path / "hollow"))
    odd = json.loads((tmp_path / "hollow" / "config.json").read_text()) | {"block_out_channels": "x"}
    (tmp_path / "hollow" / "config.json").write_text(json.dumps(odd))
    assert "config and weights of AutoencoderKL cannot be read (TypeError" in refusal(image, str(tmp_path / "hollow"))
    numbers = {"class_name": "AutoencoderKL", "block_out_channels": "x"}
    assert "AutoencoderKL cannot be built from these numbers" in refusal(image, numbers=numbers)


def test_an_import_replaces_imports_alone(folder, tmp_path, monkeypatch):
    kl, run = folder("AutoencoderKL"), tmp_path / "run"
    for _ in range(2):
        codec_import.import_codec(kl, run)
    monkeypatch.setattr(codec_import, "is_generator", lambda source: source == "vocoder")
    monkeypatch.setattr(codec_import, "import_vocoder", lambda *_: pytest.fail("a trained run was replaced"))
    (run / "resume").mkdir()
    trained_model = store.load_model(run)
    spec = {key: trained_model.spec[key] for key in ("kind", "codecs", "clips")}
    for facts in ({"imported": {}}, {"steps": 3}):  # a training in that folder, and its model elsewhere
        store.save_model(run / "model", spec, dict(trained_model.parts), facts)
        before = store.load_model(run).digest
        for source in (kl, "vocoder"):
            with pytest.raises(ValueError, match="holds a trained model.*choose another --out"):
                codec_import.main([source, "--out", str(run)])
        assert store.load_model(run).digest == before
        shutil.rmtree(run / "resume", ignore_errors=True)


@pytest.mark.parametrize("preset", ["image_f4", "none"])
def test_an_import_wants_a_preset_with_a_source(preset, folder, tmp_path):
    with pytest.raises(ValueError, match=f"pretrained presets, got codec={preset}; choose from audioldm, .*sd, ") as caught:
        codec_import.import_codec(folder("AutoencoderKL"), tmp_path / "run", [f"codec={preset}"])
    assert "image_f4" not in str(caught.value).split(";")[1]


def test_a_hub_name_is_downloaded_and_a_pipeline_has_its_vae(folder, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    body_of("AutoencoderKL").save_pretrained(tmp_path / "pipeline" / "vae", variant="fp16")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **kw: asked.append((name, kw)) or str(tmp_path / "pipeline")
    )
    codec = PretrainedCodec(ImageMedia(16, 16), "lab/model", variant="fp16")
    assert codec.latent_channels == 4 and asked[0][0] == "lab/model"
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in asked[0][1]["allow_patterns"]

    def offline(*_, **__):
        raise OSError("no route\nto the host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="lab/model: neither a folder here nor to be had from the hub .no route."):
        folder_of("lab/model")


def test_weights_in_the_old_format_are_read_without_executing_anything(folder, tmp_path):
    body_of("AutoencoderKL").save_pretrained(tmp_path / "old", safe_serialization=False)
    assert not list((tmp_path / "old").glob("*.safetensors"))
    codecs = [codec_of("AutoencoderKL", folder), PretrainedCodec(ImageMedia(16, 16), str(tmp_path / "old"))]
    x = media_of(codecs[1])
    assert torch.equal(*(codec.encode(x).mean for codec in codecs))


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install mmldm\[pretrained\]"):
        codec_of("AutoencoderKL", folder)


def test_a_vocoder_of_another_front_end_is_refused(folder):
    with pytest.raises(ValueError, match="wanted a vocoder of 20 bins at 4000 Hz, got 16 bins at 4000 Hz"):
        PretrainedMelCodec(AudioMedia(4000, 1, 0.1), LogMel(**MEL | {"bins": 20}), folder("AudioLDM"))


@pytest.mark.parametrize(
    "name", ["sd", "sdxl", "sd3", "flux", "dc", "taesd", "wan", "ltx", "cogvideox", "hunyuan", "oobleck", "audioldm"]
)
def test_each_preset_names_a_source(name):
    cfg = config.compose([f"codec={name}"])
    ((stream, node),) = cfg.codec.items()
    assert stream in ("image", "audio", "video") and node.source.count("/") == 1
    config.check({"codec": config.resolved(cfg.codec)})


def test_a_file_that_lacks_a_weight_is_refused(folder, tmp_path):
    shutil.copytree(folder("AutoencoderKL"), tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("decoder.conv_out.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match="1 are not there: decoder.conv_out.weight"):
        PretrainedCodec(ImageMedia(16, 16), tmp_path / "vae")
