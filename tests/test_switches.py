"""Switches that must not change what is trained: layers compiled, recomputed, in bfloat16."""

from __future__ import annotations

import pytest
import torch

from mmldm.commands import starting
from mmldm.diffusion import LogitNormal, UnitF
from mmldm.training import DiffusionTraining
from tests import many_processes as many
from tests.test_init import SCALAR, TEXT, dit, unet


def gradients(module, batch):
    module.zero_grad()
    module.log_terms = lambda *_: None
    loss = module.training_step(batch, 0)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in module.named_parameters() if p.grad is not None}}


def batch():
    made = many.make_batch(0, 4, torch.float32)
    made.media = {"one": made.media["one"]}
    made.valid = {"one": made.valid["one"]}
    return made


slow = pytest.mark.slow


@pytest.mark.parametrize("build", [dit, pytest.param(unet, marks=slow)])
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=slow)])
def test_compiled_layers_give_the_same_gradients(build, backend):
    module = DiffusionTraining(build({**TEXT, **SCALAR}), LogitNormal(), UnitF(), many.adamw, batch_size=4)
    names = list(module.state_dict())
    plain = gradients(module, batch())
    starting.compiled(module, backend)
    torch.compiler.reset()
    fast = gradients(module, batch())
    assert list(module.state_dict()) == names and plain.keys() == fast.keys()
    for name, tensor in plain.items():
        scale = float(tensor.abs().max()) + 1e-6
        assert float((tensor - fast[name]).abs().max()) <= 1e-5 * scale, name
    assert all(layer._compiled_call_impl is not None for layer in module.model.denoiser.layers())


def test_recomputed_layers_give_the_same_gradients_to_the_bit():
    module = DiffusionTraining(dit({**TEXT, **SCALAR}), LogitNormal(), UnitF(), many.adamw, batch_size=4)
    plain = gradients(module, batch())
    module.model.denoiser.checkpoint = True
    again = gradients(module, batch())
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items())


def test_a_training_in_bfloat16_follows_one_in_float32():
    """Losses within 2 % at every step, of weights that moved apart by less than a tenth of what they moved."""
    runs = {}
    for precision in ("32-true", "bf16-mixed"):
        module, losses = many.half(), []
        step = module.training_step

        def noted(batch, batch_idx, step=step, losses=losses):
            loss = step(batch, batch_idx)
            losses.append(float(loss.detach()))
            return loss

        module.training_step = noted
        before = {name: x.clone() for name, x in module.exported().items()}
        many.fit(module, 12, precision=precision)
        runs[precision] = losses, before, {name: x.detach() for name, x in module.exported().items()}
    (one, before, first), (two, _, second) = runs.values()
    assert len(one) == 12 and all(abs(a - b) <= 0.02 * abs(a) for a, b in zip(one, two, strict=True))
    moved, apart = (sum(float((x - other[n]).square().sum()) for n, x in first.items()) ** 0.5 for other in (before, second))
    assert 0 < apart < 0.1 * moved
