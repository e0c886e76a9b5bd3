"""ConditionSet and the small conditioners: nulls, dropout by key, faults that are told."""

import pytest
import torch
from torch import nn

from mmldm.conditioner import ConditionSet, LabelConditioner, LatentConditioner, ScalarConditioner, TextConditioner
from mmldm.interfaces import Axis, Codec, Cond, Media, Posterior
from mmldm.testing import check_conditioner


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Signal(Media):
    """Two channels of eight samples; a path is the number that fills them."""

    suffixes, shape, time_axis, rate = (".sig",), (2, 8), 0, 4.0

    def resized(self, seconds=None, size=None):
        return self

    def probe(self, path):
        raise NotImplementedError

    def plan(self, info):
        return []

    def load(self, path, start=0.0):
        from mmldm.interfaces import Clip

        return Clip(torch.full((2, 8), float(path)), (8,))

    def save(self, x, path, metadata=None):
        raise NotImplementedError

    def preview(self, x, folder, name):
        return []


class Pairs(Codec):
    """Cells of two samples through one frozen linear layer."""

    def __init__(self):
        super().__init__()
        self.media, self.latent_channels, self.axes = Signal(), 3, (Axis("time", 2, 2, 0.25),)
        self.body = nn.Linear(4, 3)

    def encode_features(self, features):
        cells = features.unflatten(-1, (-1, 2)).permute(0, 2, 1, 3).flatten(2)
        return Posterior(self.body(cells).transpose(1, 2))

    def decode_features(self, z):
        raise NotImplementedError

    def latent_shape(self, media_shape):
        return (3, media_shape[1] // 2)


def small_set(**options):
    parts = {
        "text": TextConditioner(width=8, depth=1, heads=2, words=32, pieces=64),
        "kind": LabelConditioner("label", ["a", "b"], 4),
    }
    return ConditionSet(parts, **options)


@pytest.mark.parametrize(
    "build, values",
    [
        (lambda: LabelConditioner("label", ["cat", "dog", "cow"], 8), ["dog", "cat", "cow"]),
        (lambda: ScalarConditioner("seconds", 0.5, 8.0, log=True, width=8), [1.0, "2.5", 7]),
        (lambda: LatentConditioner("sketch", Pairs(), width=12), [torch.ones(2, 8), "0.5"]),
        (lambda: LatentConditioner("sketch", Pairs(), stream="clip"), [torch.ones(2, 8), "0.5"]),
        (lambda: TextConditioner(width=8, depth=1, heads=2, words=32, pieces=64), ["a red circle", "", "红色圆圈 🙂"]),
    ],
    ids=["label", "scalar", "latent tokens", "latent aligned", "text"],
)
def test_contract(build, values):
    check_conditioner(build(), values)


def same(one: Cond, two: Cond, row: int, other: int = 0):
    """Row `row` of one says what row `other` of two says: valid tokens and vector."""
    pairs = [(one.vector[row], two.vector[other])]
    if one.tokens is not None:
        pairs.append((one.tokens[row][one.mask[row]], two.tokens[other][two.mask[other]]))
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_dropped_condition_is_its_null_and_a_kept_one_itself():
    conditions = small_set().double()
    read, present = conditions.read({"text": ["a red circle", "blue", None], "label": ["a", None, "b"]})
    assert present["text"].tolist() == [True, True, False] and present["kind"].tolist() == [True, False, True]
    encoded = conditions.encode(read)
    whole, null = conditions(encoded), conditions.null(3)
    keep = {"text": torch.tensor([True, False, False]), "kind": present["kind"]}
    conds = conditions(encoded, keep)
    for name in conds:
        for i, kept in enumerate(keep[name].tolist()):
            assert same(conds[name], whole[name] if kept else null[name], i, i)
            assert not same(conds[name], null[name] if kept else whole[name], i, i)


def test_the_draw_of_a_row_is_its_own_for_any_batch():
    conditions = small_set(dropout={"text": 0.5}, drop_all=0.2)
    whole = conditions.keep((7, 3), torch.arange(64))
    parts = [conditions.keep((7, 3), torch.arange(i, i + 4)) for i in range(0, 64, 4)]
    for name in whole:
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    assert not torch.equal(whole["text"], conditions.keep((7, 4), torch.arange(64))["text"])


def test_dropout_is_independent_and_all_at_once():
    def shares(**options):
        keep = small_set(**options).keep((1,), range(2000))
        text, kind = (~keep[name] for name in ("text", "kind"))
        return text.double().mean(), kind.double().mean(), (text & kind).double().mean()

    text, kind, both = shares(dropout={"text": 0.5, "kind": 0.2}, drop_all=0.0)
    assert abs(text - 0.5) < 0.05 and abs(kind - 0.2) < 0.04 and abs(both - 0.1) < 0.03
    text, kind, both = shares(dropout=0.0, drop_all=0.3)
    assert text == kind == both and abs(both - 0.3) < 0.05
    assert shares(dropout=0.0, drop_all=0.0) == (0, 0, 0)
    assert shares(dropout=1.0, drop_all=0.0) == (1, 1, 1)


def test_widths_and_readers_come_from_the_parts():
    conditions = small_set()
    assert conditions.widths["text"].tokens == 8 and conditions.widths["kind"].vector == 4
    assert {name: key for name, (key, _) in conditions.readers.items()} == {"text": "text", "kind": "label"}


def test_two_conditions_may_read_one_field():
    conditions = ConditionSet({"a": LabelConditioner("label", ["x"], 2), "b": LabelConditioner("label", ["x", "y"], 3)})
    read, _ = conditions.read({"label": ["x", None]})
    assert set(conditions(conditions.encode(read))) == {"a", "b"}


def test_the_empty_set_is_unconditional():
    conditions = ConditionSet()
    read, present = conditions.read({})
    assert (read, present, conditions.widths, conditions.readers) == ({}, {}, {}, {})
    assert conditions(conditions.encode(read), conditions.keep((1,), range(3))) == conditions.null(3) == {}


def test_a_field_that_is_missing_is_nowhere_present():
    read, present = small_set().read({"text": ["red", "blue"]})
    assert not present["kind"].any() and len(read["kind"]) == 2
    _, present = small_set().read({}, batch_size=3)
    assert len(present["text"]) == 3


def test_faults_are_told():
    with pytest.raises(ValueError, match="choose from"):
        small_set(dropout={"txt": 0.1})
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        small_set(drop_all=1.5)
    with pytest.raises(ValueError, match="plain name"):
        ConditionSet({"type": LabelConditioner("label", ["a"])})
    with pytest.raises(ValueError, match="choose from"):
        small_set().read({"txt": ["red"]})
    with pytest.raises(ValueError, match="one value per sample"):
        small_set().read({"text": ["red"], "label": ["a", "b"]})
    with pytest.raises(ValueError, match="one value per sample"):
        small_set().read({})
    with pytest.raises(ValueError, match="did you mean 'circle'"):
        LabelConditioner("label", ["circle", "square"]).reader("circl")
    with pytest.raises(ValueError, match="different classes"):
        LabelConditioner("label", ["a", "a"])
    for low, high, log in ((2, 1, False), (0, 1, True), (0, float("inf"), False)):
        with pytest.raises(ValueError, match="low < high"):
            ScalarConditioner("x", low, high, log)
    for value in ("fast", float("nan")):
        with pytest.raises(ValueError, match="wanted a number"):
            ScalarConditioner("x", 0, 1).reader(value)
    with pytest.raises(ValueError, match="shape"):
        LatentConditioner("x", Pairs()).reader(torch.zeros(2, 9))


def test_scalars_are_placed_between_their_ends():
    reader = ScalarConditioner("x", 1, 100, log=True).reader
    assert [round(reader(v), 6) for v in (1, 10, 100, 1000, 0)] == [0.0, 0.5, 1.0, 1.0, 0.0]
    assert ScalarConditioner("x", 2, 4).reader(3) == 0.5


def test_the_codec_of_a_latent_condition_is_frozen():
    conditioner = LatentConditioner("x", Pairs(), width=4).train()
    assert not any(p.requires_grad for p in conditioner.codec.parameters()) and not conditioner.codec.training
    x = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(conditioner.encode(x), conditioner.codec.encode(x).mean)


def test_tokens_of_a_latent_know_their_place():
    tokens = LatentConditioner("x", Pairs(), width=4)(torch.ones(1, 3, 4)).tokens[0]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_the_contract_catches_a_conditioner_with_untrue_widths():
    class Untrue(LabelConditioner):
        def null(self, batch_size):
            return Cond(vector=self.null_vector.expand(batch_size, -1)[:, :-1])

    with pytest.raises(AssertionError, match="null: vector"):
        check_conditioner(Untrue("label", ["a", "b"], 4), ["a", "b"])
