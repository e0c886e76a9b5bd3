"""Laws of generation, on small fakes: seeds and batch sizes, guidance, what is known, save -> load."""

from __future__ import annotations

import pytest
import torch

from mmldm import config, store, trained
from mmldm.asked import as_fields
from mmldm.conditioner import ConditionSet
from mmldm.diffusion import CFG, DDIM, DPMpp2M, Flow, Guidance, Heun, Linear, UniformGrid, UniPC
from mmldm.diffusion.sampling import sample
from mmldm.model import Model, Whitening
from mmldm.pipeline import Given, Known, Pipeline, Placed
from tests.fakes import Blocks, Mixer, Scale

FAKES = ("tests.fakes.Blocks", "tests.fakes.Mixer", "tests.fakes.Scale")
SAMPLER = {
    "solver": {"_target_": "mmldm.diffusion.solvers.UniPC", "order": 2},
    "grid": {"_target_": "mmldm.diffusion.grids.UniformGrid"},
    "guidance": {"_target_": "mmldm.diffusion.guidance.CFG", "scale": 2.0},
    "steps": 5,
}
SPEC = {
    "codecs": {"signal": {"_target_": "tests.fakes.Blocks"}},
    "clips": {"signal": {}},
    "conditions": {
        "_target_": "mmldm.conditioner.set.ConditionSet",
        "conditioners": {"scale": {"_target_": "tests.fakes.Scale"}},
    },
    "denoiser": {"_target_": "tests.fakes.Mixer", "_partial_": True},
    "path": {"_target_": "mmldm.diffusion.path.Linear"},
    "prediction": {"_target_": "mmldm.diffusion.prediction.Flow"},
    "shift": None,
    "sampler": SAMPLER,
    "knows": True,
}


@pytest.fixture
def pipeline():
    torch.manual_seed(1)
    codec, conditions = Blocks(), ConditionSet({"scale": Scale()})
    whitening = Whitening(3)
    whitening.mean += 0.2
    whitening.std *= 1.7
    denoiser = Mixer({"signal": codec.geometry}, conditions.widths)
    model = Model({"signal": codec}, conditions, denoiser, Linear(), Flow(), None, {"signal": whitening})
    return Pipeline(model.eval().requires_grad_(False), SPEC, trust=FAKES)


def made(pipeline, count=5, **options):
    values = [i / 3 for i in range(count)]
    return torch.stack([s.streams["signal"] for s in pipeline.generate({"scale": values}, seed=3, **options)])


def test_a_sample_depends_on_its_seed_and_place_alone(pipeline):
    whole = made(pipeline, batch_size=5)
    assert torch.allclose(whole, made(pipeline, batch_size=1), atol=1e-5)
    assert torch.allclose(whole, made(pipeline, batch_size=2), atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-2
    other = torch.stack([s.streams["signal"] for s in pipeline.generate({"scale": [0.0]}, seed=4)])
    assert (other[0] - whole[0]).abs().max() > 1e-2


@pytest.mark.parametrize("solver", [DDIM(1.0), DPMpp2M(), Heun(), UniPC(3)])
def test_every_solver_runs_on_a_trained_model(pipeline, solver):
    x = made(pipeline, solver=solver, grid=UniformGrid(), steps=7)
    assert torch.isfinite(x).all() and torch.allclose(x, made(pipeline, solver=solver, steps=7, batch_size=2), atol=1e-4)


def test_guidance_of_scale_one_is_no_guidance(pipeline):
    plain = made(pipeline, guidance=Guidance())
    assert torch.equal(plain, made(pipeline, guidance=1.0))
    assert (plain - made(pipeline, guidance=3.0)).abs().max() > 1e-3
    assert torch.equal(made(pipeline, guidance=CFG(2.0)), made(pipeline))  # the model's own


def test_a_missing_field_is_the_null(pipeline):
    missing = pipeline.generate({"scale": [None]}, seed=3, guidance=1.0)[0].streams["signal"]
    pipeline.model.conditions.conditioners["scale"].nothing += 1.0
    moved = pipeline.generate({"scale": [None]}, seed=3, guidance=1.0)[0].streams["signal"]
    assert (missing - moved).abs().max() > 1e-3


def test_what_is_kept_comes_out_as_it_was_given(pipeline):
    x = torch.linspace(-1, 1, 32).reshape(2, 16)
    known = {"signal": Known(x, 0.0, 1.1)}  # 8 samples a second: 8 whole samples and 0.1 s, two cells of four samples
    out = made(pipeline, known=known)
    assert torch.equal(out[:, :, :8], x[None, :, :8].expand(5, -1, -1))
    free = made(pipeline)
    assert (out[:, :, 9:] - free[:, :, 9:]).abs().max() > 1e-4
    given = Given(known)
    z = pipeline.sample_latents({"scale": [0.0]}, torch.arange(1), pipeline.medias(), 3, pipeline.sampler(), None, given)[
        "signal"
    ]
    assert torch.equal(z[..., :2], pipeline.model.whiten("signal", pipeline.model.encode("signal", x[None]))[..., :2])


def test_what_no_cell_can_hold_is_refused(pipeline):
    with pytest.raises(ValueError, match="wanted at least 0.5 s"):
        made(pipeline, known={"signal": Known(torch.zeros(2, 16), 0.0, 0.2)})
    with pytest.raises(ValueError, match="a part from the start .* got 1:2"):
        made(pipeline, known={"signal": Known(torch.zeros(2, 16), 1.0, 2.0)})
    with pytest.raises(ValueError, match="of shape"):
        made(pipeline, known={"signal": Known(torch.zeros(2, 12))})


def test_what_can_be_kept_follows_the_codec_and_the_patches(pipeline):
    codec = pipeline.model.codecs["signal"]
    pipeline.model.denoiser.patches["signal"] = (2,)
    with pytest.raises(ValueError, match="wanted at least 1 s"):
        made(pipeline, known={"signal": Known(torch.zeros(2, 16), 0.0, 0.9)})
    codec.lookahead = 2
    with pytest.raises(ValueError, match=r"wanted at least 1.25 s"):
        made(pipeline, known={"signal": Known(torch.zeros(2, 16), 0.0, 1.1)})
    codec.lookahead = None
    for start, end in ((0.0, 1.5), (0.5, float("inf"))):
        with pytest.raises(ValueError, match="causal in time to keep a part"):
            made(pipeline, known={"signal": Known(torch.zeros(2, 16), start, end)})
    x = torch.linspace(-1, 1, 32).reshape(2, 16)
    for end in (2.0, float("inf")):
        assert torch.equal(made(pipeline, known={"signal": Known(x, 0.0, end)})[3], x)


def test_references_are_heard_where_they_stand(pipeline):
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    free = made(pipeline)
    assert torch.equal(made(pipeline, references={"signal": []}), free)
    end = made(pipeline, references={"signal": [Placed(x, 1.5)]})
    assert (end - free).abs().max() > 1e-3
    assert (end - made(pipeline, references={"signal": [Placed(x, 0.5)]})).abs().max() > 1e-4
    assert torch.allclose(end, made(pipeline, references={"signal": [Placed(x, 1.5)]}, batch_size=2), atol=1e-5)
    for wrong, said in (({"other": [Placed(x)]}, "choose from signal"), ({"signal": [Placed(x[:1])]}, "as a reference")):
        with pytest.raises(ValueError, match=said):
            made(pipeline, references=wrong)
    pipeline.spec["knows"] = False
    with pytest.raises(ValueError, match="trained with references"):
        made(pipeline, references={"signal": [Placed(x)]})


def test_an_absent_stream_stands_at_level_one_and_is_not_made(pipeline):
    torch.manual_seed(2)
    codecs, conditions = {"one": Blocks(), "two": Blocks(latent_channels=4)}, ConditionSet({"scale": Scale()})
    denoiser = Mixer({s: c.geometry for s, c in codecs.items()}, conditions.widths)
    model = Model(codecs, conditions, denoiser, Linear(), Flow()).eval().requires_grad_(False)
    joint, fields, items = Pipeline(model, SPEC, trust=FAKES), {"scale": [0.2, 0.7]}, torch.arange(2)
    samples = joint.generate(fields, seed=3, absent=("two",), guidance=1.0)
    assert set(samples[0].streams) == set(samples[0].medias) == {"one"}
    noise = {s: model.noise(s, (3, "noise"), items, (c.latent_channels, 4)) for s, c in codecs.items()}
    context = {s: model.context(s, (4,)) for s in codecs}
    read, present = model.conditions.read(fields)
    prepared = model.prepare(model.conditions(model.conditions.encode(read), present))

    def alone(z_t, t, names):
        t = {**t, "two": torch.ones_like(t["one"])}
        return {n: {"one": model.denoise({**z_t, "two": noise["two"]}, t, context, prepared)["one"]} for n in names}

    z = sample(alone, {"one": noise["one"]}, {"one": UniformGrid()(5, model.path, None)}, UniPC(2), model.path)["one"]
    wanted = model.decode("one", z, codecs["one"].media.shape)
    assert torch.equal(torch.stack([s.streams["one"] for s in samples]), wanted)
    both = torch.stack([s.streams["one"] for s in joint.generate(fields, seed=3, guidance=1.0)])
    assert (both - wanted).abs().max() > 1e-3
    for absent, said in ((("three",), "choose from one, two"), (("one", "two"), "beside one that is made")):
        with pytest.raises(ValueError, match=said):
            joint.generate(fields, absent=absent)
    with pytest.raises(ValueError, match="nothing is given"):
        joint.generate(fields, absent=("two",), known={"two": Known(torch.zeros(2, 16))})


def test_a_field_that_no_condition_reads_is_refused(pipeline):
    with pytest.raises(ValueError, match="got scales; choose from scale, text"):
        pipeline.generate({"scales": [1.0]})
    assert len(pipeline.generate({"scale": [1.0], "text": ["named"]})) == 1


def test_a_model_of_ones_own_may_sample_with_any_class(pipeline):
    spec = {**SPEC, "sampler": {**SAMPLER, "solver": {"_target_": "tests.test_pipeline.Own"}}}
    with pytest.raises(config.ConfigError, match="--trust"):
        Pipeline(pipeline.model, spec, trust=FAKES).sampler()
    assert isinstance(Pipeline(pipeline.model, spec, trust=None).sampler().solver, DDIM)


class Own(DDIM):
    """A solver from outside."""


def test_saving_and_loading_gives_the_same_sample_to_the_bit(pipeline, tmp_path):
    before = made(pipeline)
    trained.save_diffusion(tmp_path / "model", SPEC, pipeline.model, {"steps": 1}, "# card")
    again = Pipeline.load(tmp_path, trust=FAKES)
    assert torch.equal(made(again), before) and again.facts["steps"] == 1


def test_a_model_of_foreign_classes_needs_trust(pipeline, tmp_path):
    trained.save_diffusion(tmp_path / "model", SPEC, pipeline.model, {}, "")
    with pytest.raises(config.ConfigError, match="--trust tests.fakes.Blocks"):
        Pipeline.load(tmp_path)


def test_a_codec_is_no_diffusion_model(tmp_path):
    codec = Blocks()
    spec = {"codecs": {"signal": SPEC["codecs"]["signal"]}, "clips": {}}
    trained.save_codec(tmp_path / "model", spec, codec, Whitening(3), {}, "")
    loaded = trained.load_codecs(store.load_model(tmp_path), FAKES)["signal"]
    assert all(torch.equal(a, b) for a, b in zip(codec.state_dict().values(), loaded.codec.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="wanted a diffusion model, got a codec"):
        Pipeline.load(tmp_path, trust=FAKES)


def test_prompts_in_every_form():
    assert as_fields("a") == {"text": ["a"]} and as_fields(["a", "b"]) == {"text": ["a", "b"]}
    with pytest.raises(ValueError, match="equal length"):
        as_fields({"text": ["a"], "label": ["b", "c"]})
