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
    media = pipeline.medias()["signal"]
    known = {"signal": Known.spans(x, media, (0.0, 1.1))}  # 8 samples a second: two cells of four samples, and one sample
    with pytest.warns(UserWarning, match="11% of what is kept lies in no known cell"):
        out = made(pipeline, known=known)
    assert torch.equal(out[:, :, :9], x[None, :, :9].expand(5, -1, -1))
    free = made(pipeline)
    assert (out[:, :, 9:] - free[:, :, 9:]).abs().max() > 1e-4
    held = pipeline.hold(Given(known), {"signal": media})
    latents = pipeline.sample_latents({"scale": [0.0]}, torch.arange(1), {"signal": media}, 3, pipeline.sampler(), None, held)
    z = latents["signal"]
    assert torch.equal(z[..., :2], pipeline.model.whiten("signal", pipeline.model.encode("signal", x[None]))[..., :2])


def test_what_no_cell_can_hold_is_refused(pipeline):
    media, x = pipeline.medias()["signal"], torch.zeros(2, 16)
    with pytest.raises(
        ValueError, match=r"fills a cell of the model \(0.5 time\), got 0:0.25 s; choose a larger part, or a model"
    ):
        pipeline.spec["references"] = False
        made(pipeline, known={"signal": Known.spans(x, media, (0.0, 0.2))})
    with pytest.raises(ValueError, match="of shape"):
        made(pipeline, known={"signal": Known(torch.zeros(2, 12))})


def test_an_end_is_held_by_references_or_by_relaxed_cells(pipeline):
    media, x = pipeline.medias()["signal"], torch.linspace(-1, 1, 32).reshape(2, 16)
    known, free = {"signal": Known.spans(x, media, (1.0, 2.0))}, made(pipeline)
    beside = made(pipeline, known=known)
    assert torch.equal(beside[..., 8:], x[:, 8:].expand(5, -1, -1)) and (beside - free)[..., :7].abs().max() > 1e-3
    placed = made(pipeline, references={"signal": [Placed(x[:, 8:], 1.0)]})
    assert torch.equal(placed[..., :7], beside[..., :7])
    pipeline.spec["references"] = False
    with pytest.warns(UserWarning, match="2 of 2 known cells are relaxed"):
        relaxed = made(pipeline, known=known)
    assert torch.equal(relaxed[..., 8:], beside[..., 8:]) and (relaxed - beside)[..., :7].abs().max() > 1e-3
    pipeline.spec["knows"] = False
    with pytest.warns(UserWarning, match="relaxed"):
        replaced = made(pipeline, known=known)
    assert torch.equal(replaced[..., 8:], beside[..., 8:]) and (replaced - relaxed)[..., :7].abs().max() > 1e-3


def test_a_variation_begins_at_its_strength(pipeline):
    model, x = pipeline.model, torch.linspace(-1, 1, 32).reshape(2, 16)
    options = {"solver": DDIM(), "grid": UniformGrid(), "steps": 5, "guidance": 1.0}
    steps = []
    out = made(pipeline, init={"signal": x}, strength=0.5, progress=lambda *at: steps.append(at), batch_size=2, **options)
    assert steps[-1] == (15, 15) and len(steps) == 9  # five samples of the steps from 0.5, 0.4 and 0.2
    assert torch.allclose(out, made(pipeline, init={"signal": x}, strength=0.5, **options), atol=1e-5)
    weak, strong = (made(pipeline, init={"signal": x}, strength=s, **options) for s in (0.01, 1.0))
    rebuilt = model.decode("signal", model.whiten("signal", model.encode("signal", x[None])))
    assert (weak - rebuilt).abs().max() < 0.1 < (strong - rebuilt).abs().max()
    assert torch.allclose(strong, made(pipeline, **options), atol=1e-6)
    media = pipeline.medias()["signal"]
    both = made(pipeline, init={"signal": x}, strength=0.5, known={"signal": Known.spans(x, media, (0, 1))}, **options)
    assert torch.equal(both[..., :8], x[:, :8].expand(5, -1, -1)) and (both - out)[..., 9:].abs().max() > 1e-4


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


@pytest.fixture
def joint():
    """Two streams of one length, the second of twice the rate in time."""
    torch.manual_seed(2)
    codecs, conditions = (
        {"one": Blocks(), "two": Blocks(length=32, latent_channels=4, rate=16.0)},
        ConditionSet({"scale": Scale()}),
    )
    denoiser = Mixer({s: c.geometry for s, c in codecs.items()}, conditions.widths)
    model = Model(codecs, conditions, denoiser, Linear(), Flow()).eval().requires_grad_(False)
    return Pipeline(model, SPEC, trust=FAKES)


X = {"one": torch.linspace(-1, 1, 32).reshape(2, 16), "two": torch.linspace(1, -1, 64).reshape(2, 32)}
EDITS = {
    "continue both": ([(0, 1)], [(0, 1)], {}),
    "continue one": ([(0, 1)], None, {}),
    "interpolate one": ([(0, 0.5), (1.5, 2)], None, {}),
    "one for the other": ([(0, 2)], None, {}),
    "the other for one, of which an end is kept": ([(1, 2)], [(0, 2)], {}),
    "vary both": (None, None, {"init": X, "strength": 0.6}),
    "vary one": (None, None, {"init": {"two": X["two"]}, "strength": 0.6}),
    "vary one for the other": ([(0, 2)], None, {"init": {"two": X["two"]}, "strength": 0.6}),
    "vary one without the other": (None, None, {"init": {"two": X["two"]}, "absent": ("one",)}),
    "continue one without the other": ([(0, 1)], None, {"absent": ("two",)}),
}


@pytest.mark.filterwarnings("ignore:.*relaxed")
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, False)], ids=["references", "masks", "nothing"])
@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_on_two_streams(joint, edit, trained):
    *spans, options = EDITS[edit]
    joint.spec["knows"], joint.spec["references"] = trained
    medias, fields = joint.medias(), {"scale": [0.2, 0.7, 0.9]}
    known = {s: Known.spans(X[s], medias[s], *each) for s, each in zip(X, spans, strict=True) if each}
    free = joint.generate(fields, seed=3)
    made = joint.generate(fields, seed=3, known=known, batch_size=2, **options)
    assert set(made[0].streams) == set(X) - set(options.get("absent", ()))
    for a, b in zip(made, free, strict=True):
        for stream, x in a.streams.items():
            mask = known[stream].kept if stream in known else torch.zeros(x.shape[1:], dtype=torch.bool)
            assert torch.isfinite(x).all() and torch.equal(x[:, mask], X[stream][:, mask])
            assert bool(mask.all()) or (x - b.streams[stream])[:, ~mask].abs().max() > 1e-4
    again = joint.generate(fields, seed=3, known=known, batch_size=3, **options)
    assert all(
        torch.allclose(a.streams[s], b.streams[s], atol=1e-5) for a, b in zip(made, again, strict=True) for s in a.streams
    )


def test_an_absent_stream_stands_at_level_one_and_is_not_made(joint):
    model, fields, items = joint.model, {"scale": [0.2, 0.7]}, torch.arange(2)
    codecs = model.codecs
    samples = joint.generate(fields, seed=3, absent=("two",), guidance=1.0)
    assert set(samples[0].streams) == set(samples[0].medias) == {"one"}
    noise = {s: model.noise(s, (3, "noise"), items, model.latent_shape(s, c.media.shape)) for s, c in codecs.items()}
    context = {s: model.context(s, z.shape[2:]) for s, z in noise.items()}
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
        joint.generate(fields, absent=("two",), known={"two": Known(torch.zeros(2, 32))})


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
