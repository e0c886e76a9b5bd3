"""One shift per stream: in the levels of a training, in the grids of a generation, and in the saved model."""

import pytest
import torch

from mmldm import config, trained
from mmldm.diffusion import Linear, Shift, TokenShift, UniformGrid
from mmldm.interfaces import Batch
from mmldm.model import Model
from mmldm.pipeline import Pipeline
from mmldm.training import DiffusionTraining
from tests.test_asked import made, make
from tests.test_pipeline import FAKES, SPEC

NODE = {
    "one": {"_target_": "mmldm.diffusion.Shift", "factor": 4.0},
    "two": {"_target_": "mmldm.diffusion.TokenShift", "base": 1},
}


def shifted(shift):
    parts = make().model
    return Model(dict(parts.codecs), parts.conditions, parts.denoiser, parts.path, parts.prediction, shift)


def test_a_stream_has_its_own_shift_or_that_of_all_or_none():
    model = shifted({"one": Shift(4.0), "two": TokenShift(1)})
    assert model.shift_of("one", (4,)) == Shift(4.0) and model.shift_of("two", (4,)) == Shift(2.0)
    model = shifted({"two": Shift(3.0)})
    assert model.shift_of("one", (4,)) is None and model.shift_of("two", (4,)) == Shift(3.0)
    assert [shifted(Shift(3.0)).shift_of(s, (4,)) for s in ("one", "two")] == [Shift(3.0)] * 2
    for wrong in ({"three": Shift()}, {"one": 2.0}):
        with pytest.raises(ValueError, match="choose from one, two"):
            shifted(wrong)


def test_training_draws_the_levels_of_each_stream_by_its_shift():
    from mmldm.diffusion import Uniform, UnitF

    z = {"one": torch.zeros(8, 3, 4), "two": torch.zeros(8, 4, 4)}
    batch = Batch(position=torch.arange(8), index=torch.arange(8))
    levels = {}
    for name, shift in (("none", None), ("own", {"one": Shift(4.0)})):
        training = DiffusionTraining(shifted(shift), Uniform(), UnitF(), torch.optim.AdamW, batch_size=8)
        training.step_of = lambda batch: 0
        levels[name] = training.levels(batch, z, {"one": None, "two": None})
    plain = levels["none"]["one"].double()
    torch.testing.assert_close(levels["own"]["one"].double(), 4 * plain / (1 + 3 * plain), rtol=1e-6, atol=0)
    assert torch.equal(levels["own"]["two"], levels["none"]["two"])


def test_a_saved_model_keeps_its_shifts(tmp_path):
    streams = {s: {"_target_": "tests.fakes.Blocks", "latent_channels": 3 + i} for i, s in enumerate(("one", "two"))}
    scale = {key: {"_target_": "tests.fakes.Scale", "key": key} for key in ("text", "tone")}
    conditions = {"_target_": SPEC["conditions"]["_target_"], "conditioners": scale}
    spec = {**SPEC, "codecs": streams, "clips": {}, "conditions": conditions, "shift": NODE}
    model = shifted(config.build(NODE, trust=())).float()
    trained.save_diffusion(tmp_path / "model", spec, model, {}, "")
    loaded = Pipeline.load(tmp_path, trust=FAKES, device="cpu")
    assert [loaded.model.shift_of(s, (4,)) for s in ("one", "two")] == [Shift(4.0), Shift(2.0)]
    x = made(Pipeline(model, spec, trust=FAKES))
    assert torch.equal(made(loaded), x)
    assert float((x - made(Pipeline(shifted(None).float(), spec, trust=FAKES))).abs().max()) > 1e-4


def test_streams_take_their_steps_at_levels_of_their_own():
    grids = [UniformGrid()(4, Linear(), shift) for shift in (None, Shift(4.0))]
    assert torch.equal(grids[0][[0, -1]], grids[1][[0, -1]]) and bool((grids[1][1:-1] > grids[0][1:-1]).all())


def test_shifts_by_stream_pass_the_check_of_a_training():
    words = ["experiment=av_diffusion", "codec.video=a", "codec.audio=b", "diffusion/shift=per_stream", "run=x", "data.path=y"]
    own = "+diffusion.shift.eeg={_target_: mmldm.diffusion.Shift, factor: 2.0}"
    cfg = config.compose([*words, "diffusion.shift.audio.factor=3", own])
    config.check(cfg)
    built = config.build(config.resolved(cfg)["diffusion"]["shift"])
    assert built == {"video": TokenShift(256), "audio": Shift(3), "eeg": Shift(2.0)}
    with pytest.raises(config.ConfigError, match="did you mean 'factor'"):
        config.check(config.compose([*words, "+diffusion.shift.audio.facter=3"]))
