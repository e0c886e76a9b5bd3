"""Laws of guidance and of branches in one batch."""

import math

import pytest
import torch

from mmldm.diffusion import APG, CFG, AutoGuidance, Branch, Branches, ConditionCFG, Context, Guidance, cat_rows, take_rows
from mmldm.interfaces import Cond, Reference


def hats(*names, streams=("a", "b"), size=3):
    random = torch.Generator().manual_seed(1)
    return {n: {s: torch.randn(size, 4, 6, generator=random, dtype=torch.float64) for s in streams} for n in names}


LEVEL = {"a": 0.5, "b": -1.0}


@pytest.mark.parametrize(
    "guidance", (Guidance(), CFG(1.0), APG(1.0), AutoGuidance(1.0), ConditionCFG({"text": 1.0}), CFG(1.0, rescale=0.7))
)
def test_scale_one_is_no_guidance(guidance):
    assert guidance.branches(LEVEL) == ("cond",)
    z = hats("cond")
    out, _ = guidance.combine(z, LEVEL, guidance.init())
    assert all(torch.equal(out[s], z["cond"][s]) for s in LEVEL)


def test_formulas():
    z = hats("cond", "null", "weak", "without:text", "without:melody")
    out, _ = CFG(3.0).combine({n: z[n] for n in ("cond", "null")}, LEVEL, {})
    torch.testing.assert_close(out["a"], z["null"]["a"] + 3 * (z["cond"]["a"] - z["null"]["a"]))
    out, _ = AutoGuidance(1.5).combine({n: z[n] for n in ("cond", "weak")}, LEVEL, {})
    torch.testing.assert_close(out["a"], z["weak"]["a"] + 1.5 * (z["cond"]["a"] - z["weak"]["a"]))
    guidance = ConditionCFG({"text": 4.0, "melody": {"b": 2.0}})
    assert guidance.branches(LEVEL) == ("cond", "without:text", "without:melody")
    out, _ = guidance.combine({n: z[n] for n in guidance.branches(LEVEL)}, LEVEL, {})
    text, melody = ({s: z["cond"][s] - z[f"without:{n}"][s] for s in LEVEL} for n in ("text", "melody"))
    torch.testing.assert_close(out["a"], z["cond"]["a"] + 3 * text["a"])
    torch.testing.assert_close(out["b"], z["cond"]["b"] + 3 * text["b"] + melody["b"])


def test_interval_and_scale_per_stream():
    guidance = CFG({"a": 3.0}, interval=(-2.0, 1.0))
    assert guidance.branches({"a": 0.0, "b": 5.0}) == ("cond", "null")
    assert guidance.branches({"a": 1.5, "b": 0.0}) == ("cond",)
    assert guidance.branches({"a": -math.inf, "b": 0.0}) == ("cond",) and CFG(3.0).branches({"a": -math.inf}) == (
        "cond",
        "null",
    )
    z = hats("cond", "null")
    out, _ = guidance.combine(z, {"a": 0.0, "b": 0.0}, {})
    assert torch.equal(out["b"], z["cond"]["b"]) and not torch.equal(out["a"], z["cond"]["a"])
    out, _ = guidance.combine(z, {"a": 2.0, "b": 0.0}, {})
    assert torch.equal(out["a"], z["cond"]["a"])


def test_rescale_restores_the_spread_per_sample_over_free_cells():
    z, free = hats("cond", "null"), {"a": torch.ones(3, 6, dtype=torch.bool)}
    free["a"][1, 2:] = False
    out, _ = CFG(5.0, rescale=1.0).combine(z, LEVEL, {}, free)
    torch.testing.assert_close(out["a"][0].std(unbiased=False), z["cond"]["a"][0].std(unbiased=False))
    torch.testing.assert_close(out["a"][1, :, :2].std(unbiased=False), z["cond"]["a"][1, :, :2].std(unbiased=False))
    half, _ = CFG(5.0, rescale=0.5).combine(z, LEVEL, {}, free)
    plain, _ = CFG(5.0).combine(z, LEVEL, {}, free)
    torch.testing.assert_close(half["a"], (out["a"] + plain["a"]) / 2)


def test_apg():
    z = hats("cond", "null")
    same, _ = APG(4.0, eta=1.0, momentum=0.0).combine(z, LEVEL, {})
    torch.testing.assert_close(same["a"], CFG(4.0).combine(z, LEVEL, {})[0]["a"])
    out, _ = APG(4.0, eta=0.0, momentum=0.0).combine(z, LEVEL, {})
    added = out["a"] - z["cond"]["a"]
    torch.testing.assert_close((added * z["cond"]["a"]).sum((1, 2)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)
    out, _ = APG(2.0, eta=1.0, momentum=0.0, limit=0.1).combine(z, LEVEL, {})
    torch.testing.assert_close(
        (out["a"] - z["cond"]["a"]).square().mean((1, 2)).sqrt(), torch.full((3,), 0.1, dtype=torch.float64)
    )
    guidance, state = APG(2.0, eta=1.0, momentum=-0.5), {}
    delta = z["cond"]["a"] - z["null"]["a"]
    for factor in (1.0, 0.5, 0.75):  # 1, 1 - 1/2, 1 - 1/2 * 1/2
        before = dict(state)
        out, new = guidance.combine(z, LEVEL, state)
        torch.testing.assert_close(out["a"], z["cond"]["a"] + factor * delta)
        assert state.keys() == before.keys()
        state = new


@pytest.mark.parametrize("guidance", (APG(4.0, limit=0.3), CFG(4.0, rescale=0.7)))
def test_statistics_are_per_sample_and_blind_to_other_cells(guidance):
    z, mask = hats("cond", "null"), torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[2] = False
    free = {"a": mask, "b": None}
    out, _ = guidance.combine(z, LEVEL, guidance.init(), free)
    rows = [guidance.combine(take_rows(z, i, i + 1), LEVEL, guidance.init(), take_rows(free, i, i + 1))[0] for i in range(3)]
    torch.testing.assert_close(torch.cat([row["a"] for row in rows]), out["a"], rtol=0, atol=1e-12)
    noisy = {n: {**z[n], "a": torch.where(mask[:, None], z[n]["a"], 1e3 * z[n]["a"] + 7)} for n in z}
    again, _ = guidance.combine(noisy, LEVEL, guidance.init(), free)
    where = mask[:, None].expand_as(out["a"])
    torch.testing.assert_close(again["a"][where], out["a"][where], rtol=0, atol=1e-12)
    assert bool(torch.isfinite(again["a"]).all())


class Model:
    """A model that shows what it was given: z + t + its conditions + what is known."""

    def __init__(self):
        self.rows = []

    def __call__(self, z_t, t, context, prepared):
        self.rows.append(len(z_t["a"]))
        vector = prepared["text"].vector[:, :1, None]
        known = context["a"].known[:, None] if "a" in context and context["a"].known is not None else 0
        extra = sum(r.z.mean((1, 2))[:, None, None] for r in context["a"].references) if "a" in context else 0
        return {s: z + 10 * t[s][:, None, None] + vector + known + extra for s, z in z_t.items()}


def branch(model, value, context=None, size=3, **more):
    return Branch(model, {"text": Cond(vector=torch.full((size, 2), value, dtype=torch.float64))}, context or {}, **more)


def test_branches_of_one_model_are_one_batch():
    model, weak = Model(), Model()
    positions = torch.zeros(6, 1, 2)
    context = {
        "a": Context(
            positions, torch.zeros(3, 4, 6), torch.rand(3, 6) < 0.5, None, (Reference(torch.randn(3, 4, 2), positions[:2]),)
        )
    }
    parts = {"cond": branch(model, 1.0, context), "null": branch(model, 2.0, context), "weak": branch(weak, 1.0, context),
             "without:x": branch(model, 5.0, context)}  # fmt: skip
    denoise = Branches(parts)
    z_t, t = hats("cond")["cond"], {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([0.4, 0.5, 0.6])}
    for names, rows in ((("cond", "null", "weak", "without:x"), [9]), (("cond",), [3]), (("cond", "without:x"), [6])):
        model.rows.clear(), weak.rows.clear()
        out = denoise(z_t, t, names)
        assert model.rows == rows and tuple(out) == names and weak.rows == ([3] if "weak" in names else [])
        for name in names:
            alone = parts[name].model(z_t, t, context, parts[name].prepared)
            assert all(torch.equal(out[name][s], alone[s]) for s in z_t)
    with pytest.raises(ValueError, match="choose from"):
        denoise(z_t, t, ("cond", "other"))


def test_branches_of_other_shapes_run_apart_and_streams_can_be_hidden():
    model = Model()
    known = {"a": Context(None, torch.zeros(3, 4, 6), torch.ones(3, 6, dtype=torch.bool))}
    noise = torch.full((3, 4, 6), 7.0, dtype=torch.float64)
    denoise = Branches({"cond": branch(model, 1.0, known), "null": branch(model, 1.0, absent={"b": noise})})
    z_t, t = hats("cond")["cond"], {"a": torch.full((3,), 0.5), "b": torch.full((3,), 0.25)}
    out = denoise(z_t, t, ("cond", "null"))
    assert model.rows == [3, 3]
    assert set(out["null"]) == {"a"}  # nothing is said of what is not seen
    torch.testing.assert_close(out["cond"]["b"], z_t["b"] + 2.5 + 1 + 1)


def test_rows_of_trees():
    tree = {"x": (torch.arange(3), [None, torch.ones(3, 2)]), "c": Cond(vector=torch.rand(3, 2))}
    both = cat_rows([tree, tree])
    assert torch.equal(both["x"][0], torch.tensor([0, 1, 2, 0, 1, 2])) and both["x"][1][0] is None
    assert torch.equal(take_rows(both, 3, 6)["c"].vector, tree["c"].vector) and cat_rows([tree]) is tree


def test_wrong_numbers_say_what_was_wanted():
    for build in (
        lambda: CFG(3.0, (1.0, -1.0)),
        lambda: CFG(3.0, rescale=1.5),
        lambda: APG(limit=0.0),
        lambda: APG(momentum=1.0),
        lambda: Guidance({"cond": 2.0}),
    ):
        with pytest.raises(ValueError, match="wanted"):
            build()
