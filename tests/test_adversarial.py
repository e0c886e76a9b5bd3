"""Laws of the adversarial stage's parts: games, feature matching, whose gradient goes where, balance, start and ramp."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmldm import keyed
from mmldm.codec.discriminators import PatchDiscriminator
from mmldm.training import Adversary, Balance
from mmldm.training.adversarial import Hinge, LeastSquares


class Judge(nn.Module):
    """A score per item and one activation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x):
        return [x.mean((1, 2)) * self.weight], [(x * self.weight).tanh()]


def media(key, count=4):
    return keyed.normal((key,), range(count), (2, 8)).double()


def test_games_at_scores_whose_values_are_known():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert float(Hinge().judge(real, fake)) == pytest.approx(0.25 + 0.75) and float(Hinge().play(fake)) == pytest.approx(1.25)
    assert float(LeastSquares().judge(real, fake)) == pytest.approx((1 + 0.25) / 2 + (9 + 0.25) / 2)
    assert float(LeastSquares().play(fake)) == pytest.approx((16 + 0.25) / 2)
    assert float(Hinge().judge(torch.ones(3), -torch.ones(3))) == 0


def test_a_perfect_reconstruction_matches_and_matching_is_relative_to_the_real_activations():
    adversary, x = Adversary({"one": Judge()}), media(1)
    assert adversary(x, x)[1]["matching"] == 0
    known, made = Judge()(x)[1][0], Judge()(0.5 * x)[1][0]
    wanted = ((made - known).abs().mean((1, 2)) / known.abs().mean((1, 2))).mean()
    assert float(adversary(0.5 * x, x)[1]["matching"].detach()) == pytest.approx(float(wanted.detach()))


def test_terms_are_means_over_discriminators_and_their_scores():
    one, two = Adversary({"a": Judge()}), Adversary({"a": Judge(), "b": Judge()})
    judged, game = one(media(2), media(3))
    twice, same = two(media(2), media(3))
    assert float(twice) == pytest.approx(2 * float(judged))  # each discriminator learns at its own pace
    assert {k: float(v) for k, v in same.items()} == pytest.approx({k: float(v) for k, v in game.items()})


@pytest.mark.parametrize("balance", [None, {"adversarial": 0.5, "matching": 0.5}])
def test_the_codecs_gradient_leaves_the_discriminators_alone(balance):
    adversary = Adversary({"one": Judge()}, balance=Balance(balance) if balance else None)
    x, x_hat = media(4), media(5).requires_grad_()
    _, game = adversary(x_hat, x)
    slope = adversary.gradient({"l1": (x_hat - x).abs().mean()}, game, x_hat, 1.0)
    assert all(p.grad is None for p in adversary.parameters()) and x_hat.grad is None
    assert slope.shape == x.shape and float(slope.abs().max()) > 0


def test_without_balance_the_gradient_is_that_of_the_weighted_sum():
    adversary = Adversary({"one": Judge()}, weight=0.3, matching=2.0)
    x, x_hat = media(6), media(7).requires_grad_()
    terms = {"l1": (x_hat - x).abs().mean()}
    slope = adversary.gradient(terms, adversary(x_hat, x)[1], x_hat, 0.5)
    game = adversary(x_hat, x)[1]
    whole = (x_hat - x).abs().mean() + 0.5 * (0.3 * game["adversarial"] + 2.0 * game["matching"])
    assert torch.allclose(slope, torch.autograd.grad(whole, x_hat)[0], atol=1e-14)


def directions():
    """Three terms whose gradients are orthogonal and of very different norms, by the channel of x they depend on."""
    x = media(8).repeat_interleave(2, 1)[:, :3].clone().requires_grad_()
    return x, {"l1": 3 * x[:, 0].mean(), "adversarial": 1e-4 * x[:, 1].mean(), "matching": 1e3 * x[:, 2].mean()}


def test_shares_of_the_gradient_are_what_was_asked_whatever_the_scale_of_the_terms():
    x, terms = directions()
    slope = Balance({"adversarial": 0.5, "matching": 0.25}, decay=0.0).double()(terms, x)
    norms = slope.flatten(2).norm(dim=2)[0]
    assert torch.allclose(norms / norms[0], torch.tensor([1.0, 0.5, 0.25]).double(), atol=1e-9)
    alone = torch.autograd.grad(terms["l1"], x)[0].flatten(1).norm(dim=1)[0]
    assert float(norms.sum()) == pytest.approx(float(alone))  # the whole has the norm of the reconstruction alone


def test_reconstruction_terms_without_a_share_keep_their_weights_among_themselves():
    x, terms = directions()
    terms = {"l1": terms["l1"], "coarse": 0.5 * x[:, 1].mean(), "matching": terms["matching"]}
    norms = Balance({"matching": 1.0}, decay=0.0).double()(terms, x).flatten(2).norm(dim=2)[0]
    assert float(norms[0] / norms[1]) == pytest.approx(6.0)
    assert float(norms[2]) == pytest.approx(float(norms[:2].norm()))


def test_balance_averages_norms_over_steps_from_the_first():
    x, terms = directions()
    balance = Balance({"adversarial": 1.0}, decay=0.5).double()
    first = balance({name: terms[name] for name in ("l1", "adversarial")}, x)
    again = balance({"l1": terms["l1"], "adversarial": 3 * terms["adversarial"]}, x)
    ratio = again[:, 1].norm() / first[:, 1].norm()  # three times the gradient over the mean (1·¼ + 3·½)/(¾) of norms
    assert torch.allclose(first[:, 1].norm(), first[:, 0].norm())
    assert float(ratio) == pytest.approx(3 / ((0.25 + 1.5) / 0.75))


def test_balance_does_not_depend_on_how_many_items_a_mean_is_over():
    x, terms = directions()
    whole, half = Balance({"matching": 1.0}).double(), Balance({"matching": 1.0}).double()
    whole({name: terms[name] for name in ("l1", "matching")}, x)
    part = x[:2].detach().clone().requires_grad_()
    half({"l1": 3 * part[:, 0].mean(), "matching": 1e3 * part[:, 2].mean()}, part)
    assert torch.allclose(whole.norms, half.norms, atol=1e-12)


@pytest.mark.parametrize("shares", [{"l1": 1.0, "adversarial": 1.0, "matching": 1.0}, {"l2": 1.0}])
def test_shares_are_of_terms_that_are_there_and_leave_one_to_measure_by(shares):
    x, terms = directions()
    with pytest.raises(ValueError, match="wanted shares of terms.* in l1, adversarial, matching"):
        Balance(shares)(terms, x)


def test_the_game_starts_at_a_share_or_at_a_step_and_rises():
    share, step = Adversary({"one": Judge()}, 0.3, 0.1), Adversary({"one": Judge()}, 40, 10)
    assert [share.strength(10**6, p) for p in (0.0, 0.29, 0.3, 0.35, 1.0)] == [None, None, 0.0, pytest.approx(0.5), 1.0]
    assert [step.strength(s, 1.0) for s in (39, 40, 45, 50, 60)] == [None, 0.0, 0.5, 1.0, 1.0]
    assert Adversary({"one": Judge()}, 0.0, 0.0).strength(0, 0.0) == 1.0
    for start, ramp in ((1.5, 0.0), (40, 0.1), (-0.1, 0.0)):
        with pytest.raises(ValueError, match="wanted start"):
            Adversary({"one": Judge()}, start, ramp)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_patch_discriminators_fit_and_tell_real_from_made(rank):
    torch.manual_seed(0)
    adversary = Adversary({"patch": PatchDiscriminator(rank, 2, 4, 2)})
    x = keyed.normal((9, rank), range(8), (2, *[8] * rank))
    optimizer = torch.optim.Adam(adversary.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        judged, _ = adversary(0.2 * x, x)
        optimizer.zero_grad()
        judged.backward()
        optimizer.step()
        losses.append(float(judged.detach()))
    assert losses[-1] < 0.7 * losses[0]
