"""Fine-tuning: what a training takes over from a trained model, says of it, keeps still, and what does not fit."""

from __future__ import annotations

import types

import pytest
import torch

from mmldm import keyed
from mmldm.commands import cli, starting
from mmldm.conditioner import ConditionSet, LatentConditioner, ScalarConditioner, TextConditioner
from mmldm.denoiser import DiT, UNet
from mmldm.diffusion import Flow, Linear, LogitNormal, UnitF
from mmldm.model import Model
from mmldm.pipeline import Pipeline
from mmldm.store import load_model
from mmldm.training import DiffusionTraining
from tests.fakes import Blocks
from tests.test_training import adamw

SCALAR = {"scale": lambda: ScalarConditioner("scale", 0, 1, width=6)}
TEXT = {"text": lambda: TextConditioner(width=16, depth=1, heads=2, words=7, pieces=8)}
MORE = {"more": lambda: TextConditioner("more", width=8, depth=1, heads=2, words=7, pieces=8)}
BESIDE = {"guide": lambda: LatentConditioner("guide", Blocks(), "one")}
READ = {
    "scale": torch.tensor([0.2, 0.9]),
    "text": {"ids": torch.arange(1, 9).reshape(2, 2, 2), "mask": torch.ones(2, 2, dtype=torch.bool)},
    "guide": keyed.normal((5,), range(2), (3, 4)),
}
READ["more"] = READ["text"]


def make(conditions=(), streams=("one",), seed=0, kind=DiT, **sizes):
    """A model with random weights everywhere: none of its parts is silent."""
    torch.manual_seed(0)
    codecs = {s: Blocks() for s in sorted(streams)}
    codecs = {s: codecs[s] for s in streams}
    torch.manual_seed(seed)
    conditions = ConditionSet({name: build() for name, build in dict(conditions).items()})
    denoiser = kind({s: c.geometry for s, c in codecs.items()}, conditions.widths, **sizes)
    model = Model(codecs, conditions, denoiser, Linear(), Flow())
    with torch.no_grad():
        for p in [*model.denoiser.parameters(), *model.conditions.parameters()]:
            p.add_(torch.randn(p.shape), alpha=0.1)
    return model.eval()


def dit(conditions=(), streams=("one",), seed=0, width=24, depth=2):
    return make(conditions, streams, seed, width=width, depth=depth, heads=2, patch=2)


def unet(conditions=(), seed=0):
    return make(conditions, ("one",), seed, UNet, widths=(8, 16), depth=1, attention=(False, True), head_width=8)


@torch.no_grad()
def answer(model, given=None):
    """What a model says of fixed latents, the conditions `given` or null."""
    z = {s: keyed.normal((3, s), range(2), (3, 4)) for s in model.codecs}
    t = {s: torch.tensor([0.3, 0.8]) for s in z}
    context = {s: model.context(s, (4,)) for s in z}
    conds = model.conditions({n: READ[n] for n in model.conditions.conditioners}) if given else model.conditions.null(2)
    return model.predict(z, t, context, model.prepare(conds))


# ---------------------------------------------------------------- what is taken over


PAIRS = [({}, SCALAR), ({}, TEXT), ({}, BESIDE), (SCALAR, TEXT), (SCALAR, BESIDE), (TEXT, SCALAR), (TEXT, BESIDE)]


@pytest.mark.parametrize("build", [dit, unet])
@pytest.mark.parametrize(("before", "added"), PAIRS, ids=["+".join([*b, "new", *a]) for b, a in PAIRS])
def test_a_condition_that_is_added_says_nothing_at_first(build, before, added):
    old, new = build(before), build({**before, **added}, seed=1)
    for block in new.denoiser.blocks:  # as a new layer begins; `make` has moved it
        part = getattr(block, "attention", None) if build is unet else block
        if getattr(part, "cross", None) is not None:
            torch.nn.init.zeros_(part.cross.out.weight)
    parts, notes = starting.adopt_model(new, old)
    assert not notes and not parts[0].unlike and not parts[0].left
    for given in (False, True):
        one, two = answer(old, given)["one"], answer(new, given)["one"]
        assert float((one - two).abs().max()) < 1e-6 and float(one.abs().max()) > 0.1
    widened = [name.split(" ")[0] for name in parts[0].widened]
    assert bool(widened) == (added is BESIDE) and all("embed" in name for name in widened)
    assert all("scale" in n or "text" in n or "cross" in n or "guide" in n or "contexts" in n for p in parts for n in p.new)


def test_tokens_beside_other_tokens_are_told_to_change_the_outputs():
    old, new = dit(TEXT), dit({**TEXT, **MORE}, seed=1)
    _, notes = starting.adopt_model(new, old)
    assert len(notes) == 1 and "more gives tokens beside those of text" in notes[0]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_a_stream_is_added_in_any_place(order):
    old, new = dit(TEXT), dit(TEXT, order, seed=1)
    (denoiser, conditions), notes = starting.adopt_model(new, old)
    assert not notes and not denoiser.left and not denoiser.unlike and not denoiser.widened and not conditions.new
    assert all("of_two" in name for name in denoiser.new) and len(denoiser.new) == 5
    assert torch.equal(new.denoiser.kind["of_one"], old.denoiser.kind["of_one"])


def test_other_codecs_and_axes_are_told():
    old, new = dit(), dit(seed=1)
    with torch.no_grad():
        old.whitenings["one"].std.mul_(2)
    _, notes = starting.adopt_model(new, old)
    assert len(notes) == 1 and "codec of one" in notes[0]
    new.denoiser.angles.frequency = new.denoiser.angles.frequency * 2
    assert any("positions" in note for note in starting.adopt_model(new, old)[1])


def test_more_inputs_begin_at_zero_and_other_sizes_are_left_alone():
    small, large = torch.nn.Linear(3, 4), torch.nn.Linear(5, 4)
    found = starting.transfer(large, small.state_dict(), "layer.")
    assert found.loaded == ["layer.bias"] and found.widened == ["layer.weight (4, 3) -> (4, 5)"]
    x = torch.randn(2, 5)
    assert torch.allclose(large(x), small(x[:, :3]))
    wider = torch.nn.Linear(3, 6)
    before = {n: x.clone() for n, x in wider.state_dict().items()}
    found = starting.transfer(wider, {**small.state_dict(), "other": torch.zeros(1)})
    assert len(found.unlike) == 2 and found.left == ["other"] and not found.loaded
    assert all(torch.equal(x, before[n]) for n, x in wider.state_dict().items())
    narrower = starting.transfer(torch.nn.Linear(2, 4), small.state_dict())
    assert narrower.unlike == ["weight (4, 3), here (4, 2)"]


# ---------------------------------------------------------------- what stays as it is


def training():
    return DiffusionTraining(dit({**TEXT, **SCALAR}), LogitNormal(), UnitF(), adamw)


def test_patterns_hold_what_they_name():
    module = training()
    everything = set(module.exported())
    starting.freeze(module, ["denoiser.blocks.0", "conditions.text", "*.bias"])
    held = everything - set(module.exported())
    assert held == module.held and {n for n in everything if n.startswith("model.denoiser.blocks.0.")} <= held
    assert {n for n in everything if ".conditioners.text." in n} <= held
    assert all(n.endswith("bias") or "blocks.0" in n or ".text." in n for n in held)
    optimizer = module.configure_optimizers()
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(everything - held)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("denoser.*", "did you mean 'denoiser'"), ("*", "left to train"), ("codec", "choose from"), ("model.path", "choose from")],
)
def test_patterns_that_name_nothing_or_everything_are_refused(pattern, told):
    with pytest.raises(ValueError, match="freeze") as error:
        starting.freeze(training(), [pattern])
    assert told in str(error.value)


# ---------------------------------------------------------------- the whole way

QUICK = ["trainer.max_steps=3", "trainer.val_check_interval=3", "data.items=48", "data.validation=8", "data.batch_size=4"]
QUICK += ["previews=0", "whitening_batches=2", "trainer.precision=32-true"]
TINY = ["codec.image=codec", "denoiser.width=32", "denoiser.depth=2", "denoiser.heads=2", "diffusion.steps=2"]
EXTRA = ["ScalarConditioner", "index", "0", "64"]
ADDED = [f"+conditions.conditioners.place.{k}={v}" for k, v in zip(("_target_", "key", "low", "high"), EXTRA, strict=True)]
ADDED[0] = ADDED[0].replace("=", "=mmldm.conditioner.scalar.")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A codec, a model on its latents, and a second model that began with the first, held still in part, and was stopped."""
    root = tmp_path_factory.mktemp("init")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        codec = ["codec.image.width=8", "codec.image.blocks=1"]
        assert cli.main(["train", "experiment=world_image_codec", "run=codec", *QUICK, *codec]) == 0
        assert cli.main(["train", "experiment=world_image_diffusion", "run=first", *QUICK, *TINY]) == 0
    return root


def train(*words):
    return cli.main(["train", "experiment=world_image_diffusion", *QUICK, *TINY, *words])


def test_a_run_begins_with_a_trained_model_keeps_parts_still_and_continues(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    words = ["init=first", "freeze=[denoiser.blocks.0,conditions.text]", *ADDED]
    assert train("run=second", *words) == 0
    told = capsys.readouterr().err
    assert "tensors of first are loaded" in told and "new: 7" in told and "parameters are kept as they are" in told
    first, second = load_model("first"), load_model("second")
    assert second.facts["init"] == "first" and second.facts["freeze"] == ["denoiser.blocks.0", "conditions.text"]
    still = lambda name: name.startswith(("blocks.0.", "conditioners.text."))  # noqa: E731
    for part in ("denoiser", "conditions"):
        for name, tensor in first.parts[part].items():
            same = torch.equal(tensor, second.parts[part][name])
            assert same if still(name) else not same or not tensor.any() or tensor.numel() < 9, name
    monkeypatch.setattr(starting, "adopt", lambda *_: pytest.fail("a run that continues began already"))
    assert train("run=second", *words, "trainer.max_steps=5") == 0
    assert torch.equal(load_model("second").parts["denoiser"]["blocks.0.attention.out.weight"],
                       first.parts["denoiser"]["blocks.0.attention.out.weight"])  # fmt: skip
    assert Pipeline.load("second").facts["steps"] == 5


def test_what_is_held_is_in_the_checkpoint(runs):
    checkpoint = max((runs / "second" / "resume").glob("step-*.ckpt"))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any(name.startswith("model.denoiser.blocks.0.") for name in state)
    assert not any(name.startswith("model.codecs.") and "weight" in name for name in state)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["init=codec"], ["choose codec.image=codec"]),
        (["init=first", "denoiser.width=64"], ["width=32", "choose its sizes"]),
        (["init=nowhere"], ["there is no trained model nowhere"]),
        (["freeze=[denoiser.blok.*]"], ["freeze", "choose from"]),
    ],
)
def test_what_does_not_fit_is_told_in_a_few_lines(words, told, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert train("run=odd", *words) == 2
    lines = capsys.readouterr().err
    assert all(part in lines for part in told) and len(lines.strip().splitlines()) <= 6


def test_a_codec_begins_with_another(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    words = ["experiment=world_image_codec", "codec.image.width=8", "codec.image.blocks=1", *QUICK]
    assert cli.main(["train", *words, "run=finer", "init=codec", "freeze=[codec.body.encoder]"]) == 0
    assert "of codec/model are loaded" in capsys.readouterr().err.replace(str(runs) + "/", "")
    one, two = (load_model(name).parts["codec.image"] for name in ("codec", "finer"))
    same = {name: torch.equal(x, two[name]) for name, x in one.items() if not name.startswith("whitening")}
    assert all(kept for name, kept in same.items() if name.startswith("body.encoder")) and not all(same.values())
    wider = ["codec.image.width=16", "run=wider", "init=codec"]
    assert cli.main(["train", "experiment=world_image_codec", "codec.image.blocks=1", *QUICK, *wider]) == 2
    assert "choose its sizes" in capsys.readouterr().err


def test_compile_wants_layers():
    with pytest.raises(ValueError, match="compile=false"):
        starting.compiled(types.SimpleNamespace(), True)
