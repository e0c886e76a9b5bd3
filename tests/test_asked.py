"""Laws of what is asked of a generation: each kind of guidance, weak models, streams that guide, and what a step costs."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmldm import keyed
from mmldm.asked import branches, check_guidance, check_weak
from mmldm.conditioner import ConditionSet, TextConditioner
from mmldm.denoiser import DiT
from mmldm.diffusion import (
    APG,
    CFG,
    DDIM,
    DDPM,
    EDM,
    AutoGuidance,
    ConditionCFG,
    Consistency,
    Cosine,
    DPMpp2M,
    DPMpp2MSDE,
    EDMPrediction,
    Flow,
    Guidance,
    Heun,
    Linear,
    Translated,
    UniformGrid,
    UniPC,
    V,
    expand,
    sample,
)  # fmt: skip
from mmldm.model import Model
from mmldm.pipeline import Known, Pipeline, Placed
from tests.fakes import Blocks, Mixer, Scale
from tests.test_pipeline import FAKES, SPEC

FIELDS = {"text": [0.3, 1.0, -0.7], "tone": [0.9, -0.2, 0.4]}
PATHS = [Linear(), Cosine(), EDM(), DDPM(), DDPM(zero_terminal=True)]
MASKED = {"two": Known(torch.linspace(-1, 1, 32).reshape(2, 16))}


def make(streams=("one", "two"), keys=("text", "tone"), seed=1, width=16, path=None, prediction=None):
    """A joint model of fakes in float64; its codecs are those of every other one made here."""
    torch.manual_seed(0)
    codecs = {s: Blocks(latent_channels=3 + i) for i, s in enumerate(streams)}
    torch.manual_seed(seed)
    conditions = ConditionSet({key: Scale(key) for key in keys})
    denoiser = Mixer({s: c.geometry for s, c in codecs.items()}, conditions.widths, width)
    model = Model(codecs, conditions, denoiser, path or Linear(), prediction or Flow())
    return Pipeline(model.double().eval().requires_grad_(False), SPEC, trust=FAKES)


def made(pipeline, stream="one", fields=FIELDS, **options):
    options = {"seed": 3, "steps": 4, **options}
    return torch.stack([s.streams[stream] for s in pipeline.generate(fields, **options)])


def close(a, b, bound=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=bound)


def noise_of(pipeline, count=3):
    shapes = {s: (c.latent_channels, 4) for s, c in pipeline.model.codecs.items()}
    return {s: keyed.normal((7, s), range(count), shape).double() for s, shape in shapes.items()}


def asked(pipeline, names, level=0.6, fields=FIELDS, context=None, **more):
    """z_hat of the branches of these names at one level, and what they were asked with."""
    model, noise, count = pipeline.model, noise_of(pipeline), 3
    context = context or {s: model.context(s, (4,)) for s in model.codecs}
    t = {s: torch.full((count,), level, dtype=torch.float64) for s in noise}
    return branches(model, fields, count, context, names, noise=noise, **more)(noise, t, names), noise, t, context


# ---------------------------------------------------------------- branches


@pytest.mark.parametrize(
    "guidance",
    [
        CFG(1.0),
        APG(1.0),
        ConditionCFG({"text": 1.0, "tone": 1.0, "two": 1.0}),
        AutoGuidance(1.0),
        CFG({"two": 1.0}, rescale=0.5),
    ],
    ids=lambda g: type(g).__name__,
)
def test_scale_one_is_no_guidance_of_any_kind(guidance):
    pipeline = make()
    weak = make(seed=2) if "weak" in guidance.scales else None
    plain = made(pipeline, guidance=Guidance())
    assert torch.equal(made(pipeline, guidance=guidance, weak=weak), plain)
    more = made(pipeline, guidance=guidance.changed({b: 3.0 for b in guidance.scales}), weak=weak)
    assert float((more - plain).abs().max()) > 1e-3


def test_a_branch_without_a_condition_is_that_condition_nulled():
    pipeline = make()
    found, *_ = asked(pipeline, ("cond", "without:text", "without:tone", "null"))
    nulled, *_ = asked(pipeline, ("cond",), fields={**FIELDS, "text": [None] * 3})
    bare, *_ = asked(pipeline, ("cond",), fields={"text": [None] * 3})
    for stream in ("one", "two"):
        close(found["without:text"][stream], nulled["cond"][stream])
        close(found["null"][stream], bare["cond"][stream])
        assert float((found["without:tone"][stream] - found["without:text"][stream]).abs().max()) > 1e-3


def test_a_negative_text_stands_in_the_place_of_the_null():
    pipeline = make()
    found, *_ = asked(pipeline, ("cond", "null"), negative="0.25")
    other, *_ = asked(pipeline, ("cond",), fields={"text": [0.25] * 3})
    close(found["null"]["one"], other["cond"]["one"])
    away = made(pipeline, guidance=3.0, negative="0.25")
    assert float((away - made(pipeline, guidance=3.0)).abs().max()) > 1e-3
    close(
        made(pipeline, guidance=3.0, negative="0.3", fields={"text": [0.3]}),
        made(pipeline, fields={"text": [0.3]}, guidance=1.0),
    )


def test_guidance_by_a_stream_is_away_from_that_stream_absent():
    pipeline = make()
    model, names = pipeline.model, ("cond", "without:two")
    known = torch.ones(3, 4, dtype=torch.bool)
    z = torch.linspace(0.5, 2, 4, dtype=torch.float64).expand(3, 4, 4)
    context = {"one": model.context("one", (4,)), "two": model.context("two", (4,), z=z, known=known)}
    found, noise, t, context = asked(pipeline, names, context=context)
    gone = {"one": context["one"], "two": model.context("two", (4,))}
    read, present = model.conditions.read(FIELDS)
    prepared = model.prepare(model.conditions(model.conditions.encode(read), present))
    absent = model.denoise(noise, {**t, "two": torch.ones_like(t["two"])}, gone, prepared)
    close(found["without:two"]["one"], absent["one"])
    assert set(found["without:two"]) == {"one"} and torch.equal(found["cond"]["two"], z)
    assert float((found["cond"]["one"] - found["without:two"]["one"]).abs().max()) > 1e-3


@pytest.mark.parametrize(("path", "prediction"), [(Linear(), Flow()), (EDM(), EDMPrediction())], ids=["linear", "edm"])
def test_a_given_stream_guides_the_one_that_is_made(path, prediction):
    pipeline = make(path=path, prediction=prediction)
    guided = Guidance({"without:two": 3.0})
    noise, context = noise_of(pipeline), {s: pipeline.model.context(s, (4,)) for s in ("one", "two")}
    hidden = branches(pipeline.model, FIELDS, 3, context, ("cond", "without:two"), noise=noise).branches["without:two"].absent
    close(hidden["two"], noise["two"] * float(path.sigma(torch.ones(()))), 1e-9)
    plain, more = (made(pipeline, guidance=g, known=MASKED) for g in (Guidance(), guided))
    assert torch.isfinite(more).all() and float((more - plain).abs().max()) > 1e-3
    close(more, made(pipeline, guidance=guided, known=MASKED, batch_size=1), 1e-9)
    second = made(pipeline, "two", guidance=guided, known=MASKED)
    assert torch.equal(second[0], MASKED["two"].x.double())
    both = [made(pipeline, s, guidance=Guidance({"without:two": {"two": 3.0}})) for s in ("one", "two")]
    for stream, x in zip(("one", "two"), both, strict=True):  # a stream is never guided by itself
        assert torch.equal(x, made(pipeline, stream, guidance=Guidance()))


# ---------------------------------------------------------------- autoguidance


@pytest.mark.parametrize("guidance", [AutoGuidance(3.0), Guidance({"null": 2.0, "weak": 1.5})], ids=["weak", "both"])
def test_the_same_model_as_the_weak_one_changes_nothing(guidance):
    pipeline, again = make(), make()
    wanted = made(pipeline, guidance=guidance.changed({b: s for b, s in guidance.scales.items() if b != "weak"}))
    for weak in (pipeline, again):
        close(made(pipeline, guidance=guidance, weak=weak), wanted)
    assert float((made(pipeline, guidance=guidance, weak=make(seed=2)) - wanted).abs().max()) > 1e-3


def test_a_weak_model_brings_its_own_conditions():
    pipeline, weak = make(), make(keys=("tone",), seed=2, width=8)
    found, noise, t, context = asked(pipeline, ("cond", "null", "weak"), weak=weak.model)
    read, present = weak.model.conditions.read({"tone": FIELDS["tone"]})
    prepared = weak.model.prepare(weak.model.conditions(weak.model.conditions.encode(read), present))
    alone = weak.model.denoise(noise, t, context, prepared)
    for stream in ("one", "two"):
        close(found["weak"][stream], alone[stream])


@pytest.mark.parametrize(("own", "path"), list(itertools.permutations(PATHS, 2)), ids=str)
def test_a_model_of_another_path_is_asked_at_the_same_signal_to_noise(own, path):
    def exact(of):
        def denoise(z_t, t, context, prepared):
            gain = {s: 0.25 * of.alpha(t[s]) / (0.25 * of.alpha(t[s]) ** 2 + of.sigma(t[s]) ** 2) for s in z_t}
            return {s: expand(gain[s], z) * z for s, z in z_t.items()}

        return denoise

    log_snr = torch.tensor([-3.0, -1.0, 0.0, 2.0, 5.0], dtype=torch.float64)
    z, t = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(5, 4), path.time(log_snr)
    z_t = {"a": expand(path.sigma(t), z) * z}
    found = Translated(exact(own), own, path)(z_t, {"a": t}, {}, None)
    close(found["a"], exact(path)(z_t, {"a": t}, {}, None)["a"], 1e-9)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = Translated(exact(own), own, path)({"a": z[:2]}, {"a": ends}, {}, None)["a"]
    close(found[0], z[0], 1e-9)
    assert torch.isfinite(found).all()


def test_a_weak_model_may_have_another_path():
    pipeline, weak = make(), make(seed=2, path=Cosine(), prediction=V())
    x = made(pipeline, guidance=AutoGuidance(2.0), weak=weak)
    assert torch.isfinite(x).all() and float((x - made(pipeline, guidance=Guidance())).abs().max()) > 1e-3


def test_weak_models_of_other_latents_are_refused():
    pipeline = make()
    codec, whitening, half = make(seed=2), make(seed=2), make(seed=2)
    codec.model.codecs["two"].up.bias += 0.1
    whitening.model.whitenings["one"].std *= 2
    half.model.denoiser.float()
    for weak, told in (
        (codec, "another codec of two"),
        (whitening, "another whitening of one"),
        (make(streams=("one",)), "of the streams one, two, got one of one"),
        (half, "in torch.float64, got one"),
    ):
        with pytest.raises(ValueError, match=told):
            check_weak(pipeline.model, weak.model)
        with pytest.raises(ValueError, match=told):
            pipeline.generate(FIELDS, guidance=AutoGuidance(2.0), weak=weak)
    weak = make(seed=2)
    weak.spec["knows"] = False
    with pytest.raises(ValueError, match="that knows what is given"):
        pipeline.generate(FIELDS, guidance=AutoGuidance(2.0), weak=weak, known=MASKED)


def test_what_nothing_would_use_is_refused():
    pipeline = make()
    model, single = pipeline.model, make(streams=("one",)).model
    for guidance, options, told in (
        (Guidance({"without:txt": 2.0}), {}, "did you mean 'without:text'"),
        (Guidance({"nul": 2.0}), {}, "choose from null, weak, without:text, without:tone, without:one, without:two"),
        (CFG({"three": 2.0}), {}, "got three; choose from one, two"),
        (AutoGuidance(2.0), {}, "a scale but no model"),
        (CFG(2.0), {"weak": model}, "a model but no scale"),
        (AutoGuidance(2.0), {"weak": model, "negative": "0.5"}, "got one without"),
        (Guidance({"without:two": 2.0}), {"absent": ("two",)}, "got without:two"),
    ):
        with pytest.raises(ValueError, match=told):
            check_guidance(model, guidance, **options)
    with pytest.raises(ValueError, match="got without:one"):
        check_guidance(single, Guidance({"without:one": 2.0}))
    with pytest.raises(ValueError, match="reads a text"):
        check_guidance(make(keys=("tone",)).model, CFG(2.0), "0.5")


# ---------------------------------------------------------------- what a step costs


def test_branches_are_one_batch_and_only_one_is_asked_outside_the_interval(monkeypatch):
    pipeline, rows = make(), []
    forward = Mixer.forward

    def counted(self, noisy, *rest):
        rows.append(len(noisy["one"].z))
        return forward(self, noisy, *rest)

    monkeypatch.setattr(Mixer, "forward", counted)
    options = {"solver": DDIM(), "grid": UniformGrid()}
    made(pipeline, guidance=CFG(3.0), **options)
    assert rows == [6] * 4  # two branches of three samples in each of four steps
    rows.clear()
    made(pipeline, guidance=CFG(3.0, interval=(-1.5, 0.5)), **options)  # t = 1, 3/4, 1/2, 1/4: log_snr -inf, -1.1, 0, 1.1
    assert rows == [3, 6, 6, 3]
    rows.clear()
    made(pipeline, guidance=Guidance({"null": 2.0, "without:text": 3.0, "without:two": 2.0}), **options)
    assert rows == [12] * 4  # a stream that is left out shares the batch
    rows.clear()
    made(pipeline, guidance=Guidance({"null": 2.0, "weak": 3.0}), weak=make(seed=2), **options)
    assert rows == [6, 3] * 4


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for the device: numbers read from tensors, sizes that depend on their values."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "_unique2", "masked_select", "item")

    def __init__(self):
        super().__init__()
        self.armed, self.seen = False, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.armed:
            self.seen += 1
            name, places = function.__name__.partition(".")[0], args[1] if len(args) > 1 else ()
            masked = name == "index" and any(p is not None and p.dtype == torch.bool for p in places)
            if masked or name in self.WAITS:
                raise AssertionError(f"the host waits in {function}")
        return function(*args, **(kwargs or {}))


def transformer(path):
    """A joint transformer with words and a number as conditions."""
    torch.manual_seed(0)
    codecs = {"one": Blocks(), "two": Blocks(latent_channels=4)}
    conditions = ConditionSet({"text": TextConditioner(width=16, words=64, pieces=64), "tone": Scale("tone")})
    denoiser = DiT({s: c.geometry for s, c in codecs.items()}, conditions.widths, width=32, depth=2, heads=2)
    return Pipeline(Model(codecs, conditions, denoiser, path, V()).eval().requires_grad_(False), SPEC)


@pytest.mark.parametrize("path", [Linear(), DDPM(zero_terminal=True)], ids=["linear", "ddpm"])
@pytest.mark.parametrize(
    "solver", [DDIM(1.0), Consistency(), DPMpp2M(), DPMpp2MSDE(), Heun(), UniPC(3)], ids=lambda s: type(s).__name__
)
def test_the_host_never_waits_for_the_device_inside_the_loop(path, solver, monkeypatch):
    pipeline, mode = transformer(path), NoWaiting()

    def watched(denoise, *rest, step_noise, **options):
        def first(*asked):
            mode.armed = True
            return denoise(*asked)

        def drawn(*place):  # on the host, which then need not wait
            mode.armed = False
            fresh = step_noise(*place)
            mode.armed = True
            return fresh

        try:
            return sample(first, *rest, step_noise=drawn, **options)
        finally:
            mode.armed = False

    monkeypatch.setattr("mmldm.pipeline.sample", watched)
    guidance = APG(2.0, limit=1.0, interval=(-2.0, 9.0)).changed(
        {"null": 2.0, "without:text": 1.5, "without:two": 2.0, "weak": 1.5}, rescale=0.5
    )
    given = {
        "known": {"two": Known(torch.full((2, 16), 0.3), torch.arange(16) < 4)},
        "references": {"one": [Placed(torch.full((2, 4), 0.7), 1.5)]},
    }
    with mode:
        x = made(
            pipeline, fields={"text": ["a", "two words"]}, solver=solver, guidance=guidance, weak=transformer(Cosine()), **given
        )
    assert torch.isfinite(x).all() and mode.seen > 1000


def test_reading_a_number_in_the_loop_would_be_caught():
    mode = NoWaiting()
    for read in (float, bool, lambda x: bool((x > 0).any()), lambda x: x[x > 0], lambda x: x.item()):
        mode.armed = True
        with pytest.raises(AssertionError, match="the host waits"), mode:
            read(torch.ones(1))
