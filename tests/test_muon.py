"""Laws of the optimiser: orthogonal steps for hidden matrices, AdamW for the rest, exact continuation."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mmldm import keyed
from mmldm.training.muon import Muon, is_hidden, orthogonalised


def test_orthogonalised_matrices_keep_their_singular_vectors_and_lose_their_singular_values():
    x = keyed.normal((1,), range(3), (24, 16))
    y = orthogonalised(x).float()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.6 and values.max() < 1.3
    inner = u.mT @ y @ v.mT  # diagonal where the singular vectors are the same
    assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 0.1


def test_tables_vectors_and_thin_projections_are_left_to_adamw():
    wanted = {(16, 64): True, (64, 16): True, (16, 65): False, (4096, 64): False, (16,): False, (4, 4, 3): False}
    assert {shape: is_hidden(torch.zeros(shape)) for shape in wanted} == wanted


def test_the_rest_is_adamw():
    start = keyed.normal((2,), range(1), (4, 40))[0]
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([a], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    theirs = torch.optim.AdamW([b], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(5):
        grad = keyed.normal((3,), [step], (4, 40))[0]
        a.grad, b.grad = grad.clone(), grad.clone()
        ours.step(), theirs.step()
    assert torch.allclose(a, b, atol=1e-6)


def test_a_state_dict_continues_exactly():
    def run(net, optimiser, steps):
        for step in steps:
            optimiser.zero_grad()
            net(keyed.normal((4,), [step], (8,))).square().mean().backward()
            optimiser.step()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2))
    twin = copy.deepcopy(net)
    whole = Muon(net.parameters())
    run(net, whole, range(6))
    first = Muon(twin.parameters())
    run(twin, first, range(3))
    second = Muon(twin.parameters())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(twin, second, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
