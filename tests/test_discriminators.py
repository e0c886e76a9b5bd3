"""Discriminators judge grids of any size, item by item, and every weight of theirs learns."""

import copy

import pytest
import torch

from mmldm.codec.discriminators import PatchDiscriminator, PeriodDiscriminator, ResolutionDiscriminator

KINDS = {
    "patches of lines": (lambda: PatchDiscriminator(1, 2, width=4, layers=2), (2, 40)),
    "patches of planes": (lambda: PatchDiscriminator(2, 3, width=4), (3, 17, 24)),
    "patches of clips": (lambda: PatchDiscriminator(3, 3, width=4), (3, 5, 16, 16)),
    "periods": (lambda: PeriodDiscriminator((2, 3, 5), channels=2, width=2), (2, 203)),
    "resolutions": (lambda: ResolutionDiscriminator((64, 256), channels=2, width=3), (2, 500)),
}
EVERY = pytest.mark.parametrize("make, shape", KINDS.values(), ids=KINDS)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@EVERY
def test_gradient_reaches_every_weight_and_the_input(make, shape):
    judge, x = make(), draw(2, *shape).requires_grad_()
    scores, features = judge(x)
    assert all(s.ndim >= 3 and s.shape[:2] == (2, 1) for s in scores) and len(features) >= 3 * len(scores)
    sum(s.square().mean() for s in scores).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in judge.parameters())
    assert float(x.grad.abs().sum()) > 0


@EVERY
def test_no_item_depends_on_its_batch_nor_on_training_mode(make, shape):
    judge, x = make().double(), draw(3, *shape).double()
    before = copy.deepcopy(judge.state_dict())
    whole = judge(x)
    for i in range(3):
        one = judge.eval()(x[i : i + 1])
        for a, b in zip([*whole[0], *whole[1]], [*one[0], *one[1]], strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())  # nothing is remembered


@EVERY
def test_copies_and_saved_ones_judge_alike(make, shape, tmp_path):
    judge, other, x = make(), make(), draw(1, *shape)
    torch.save(judge.state_dict(), tmp_path / "judge.pt")
    other.load_state_dict(torch.load(tmp_path / "judge.pt", weights_only=True))
    for twin in (copy.deepcopy(judge), other):
        assert all(torch.equal(a, b) for a, b in zip(judge(x)[0], twin(x)[0], strict=True))


@EVERY
@pytest.mark.parametrize("length", [1, 2, 7])
def test_short_inputs_are_judged(make, shape, length):
    scores, features = make()(draw(1, shape[0], *[length] * (len(shape) - 1)))
    assert all(t.numel() and bool(t.isfinite().all()) for t in (*scores, *features))


@EVERY
def test_wrong_shapes_are_refused(make, shape):
    for wrong in ((1, shape[0] + 1, *shape[1:]), (1, *shape, 4), (1, *shape[:-1], 0)):
        with pytest.raises(ValueError, match="grid axes"):
            make()(torch.zeros(wrong))


def test_patches_have_their_strides():
    score = PatchDiscriminator(2, 3, width=2, layers=3)(draw(1, 3, 64, 40))[0][0]
    assert score.shape == (1, 1, 8, 5)
    judge, x = PatchDiscriminator(2, 1, width=2, layers=1).double(), draw(1, 1, 64, 64).double()
    y = x.clone()
    y[..., 0, 0] += 1
    moved = (judge(x)[0][0] != judge(y)[0][0])[0, 0]
    assert bool(moved[0, 0]) and not bool(moved[8:].any()) and not bool(moved[:, 8:].any())  # a patch, not the whole


def test_periods_are_completed_by_silence():
    judge, x, seen = PeriodDiscriminator((3, 31), width=2), draw(1, 1, 31), []
    for part in judge.parts:
        part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    judge(x)
    assert torch.equal(seen[0], torch.nn.functional.pad(x, (0, 2)).reshape(1, 1, 11, 3))
    assert torch.equal(seen[1], x.reshape(1, 1, 1, 31))


def test_a_period_sees_columns_of_its_own():
    """A change at one sample moves the scores of its own phase of the period only."""
    judge, x = PeriodDiscriminator((5,), width=2).double(), draw(1, 1, 200).double()
    y = x.clone()
    y[0, 0, 100 + 3] += 1
    moved = (judge(x)[0][0] != judge(y)[0][0])[0, 0].any(0)
    assert moved.tolist() == [False, False, False, True, False]


def test_spectra_of_white_noise_are_about_one():
    seen = []
    judge = ResolutionDiscriminator((256,), width=2)
    judge.parts[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    judge(draw(1, 1, 20000))
    assert 0.9 < float(seen[0].square().mean()) < 1.1


def test_nonsense_is_refused():
    for make in (lambda: PatchDiscriminator(4, 3), lambda: PatchDiscriminator(2, 0), lambda: PeriodDiscriminator(()),
                 lambda: PeriodDiscriminator((0, 2)), lambda: ResolutionDiscriminator((8,))):  # fmt: skip
        with pytest.raises(ValueError, match="wanted"):
            make()
