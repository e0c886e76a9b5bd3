"""Laws of training, on small fakes: exact resume, keyed randomness, the loss's reduction, EMA, whitening, save -> load."""

from __future__ import annotations

import functools

import lightning
import pytest
import torch
from torch import nn

from mmldm import keyed
from mmldm.diffusion import Cosine, Eps, First, Flow, KeyCell, KnownMixture, Linear, LogitNormal, UnitF, V
from mmldm.interfaces import Batch, Posterior
from mmldm.model import Model, Whitening
from mmldm.training import EMA, CodecTraining, DiffusionTraining, Resume, Schedule
from mmldm.training.diffusion import masked_mean
from tests.fakes import Blocks, Mixer, Scale


class Conditions(nn.Module):
    """One number; its dropout is keyed."""

    def __init__(self):
        super().__init__()
        self.scale = Scale()

    @property
    def widths(self):
        return {"scale": self.scale.widths}

    def encode(self, read):
        return read

    def keep(self, key, positions):
        return {"scale": keyed.uniform((*key, "scale"), positions) > 0.2}

    def forward(self, encoded, keep=None):
        cond = self.scale(encoded["scale"])
        return {"scale": cond if not keep else cond.where(keep["scale"], self.scale.null(len(keep["scale"])))}

    def null(self, count):
        return {"scale": self.scale.null(count)}


def make_model(path=None, prediction=None, streams=("signal",)):
    torch.manual_seed(0)
    codecs = {s: Blocks(latent_channels=3 + i) for i, s in enumerate(streams)}
    conditions = Conditions()
    denoiser = Mixer({s: c.geometry for s, c in codecs.items()}, conditions.widths)
    return Model(codecs, conditions, denoiser, path or Linear(), prediction or Flow())


def make_batch(positions, streams=("signal",), absent=()):
    positions = torch.as_tensor(positions)
    media = {s: keyed.normal((7, s), positions, (2, 16)) for s in streams}
    valid = {s: torch.full((len(positions), 1), 0 if s in absent else 16) for s in streams}
    fields = {"scale": keyed.uniform((7, "scale"), positions)}
    return Batch(positions, positions, media, {}, valid, None, fields, {"scale": torch.ones(len(positions), dtype=torch.bool)})


class Endless(lightning.LightningDataModule):
    """Batches as a function of the step, from any step on."""

    def __init__(self, size, streams=("signal",)):
        super().__init__()
        self.size, self.streams, self.start, self.seen = size, streams, 0, []

    def train_dataloader(self):
        class Steps(torch.utils.data.IterableDataset):
            def __iter__(inner):
                step = self.start
                while True:
                    positions = list(range(step * self.size, (step + 1) * self.size))
                    self.seen += positions
                    yield make_batch(positions, self.streams)
                    step += 1

        return torch.utils.data.DataLoader(Steps(), batch_size=None)


adamw = functools.partial(torch.optim.AdamW, lr=1e-2)


def make_training(kind, size=4, accumulate=1, **options):
    if kind == "codec":
        torch.manual_seed(0)
        loss = lambda hat, x: {"l2": (hat - x).square().mean()}  # noqa: E731
        options = {"clip": 1.0, "accumulate": accumulate, "schedule": Schedule(2, 0.5), "batch_size": size, **options}
        return CodecTraining(Blocks(), "signal", loss, adamw, **options)
    known = KnownMixture([(0.3, First()), (0.4, KeyCell())])
    return DiffusionTraining(make_model(), LogitNormal(), UnitF(), adamw, known, Schedule(2, 0.5), batch_size=size)


def fit(module, data, folder, until, total, accumulate=1, **options):
    ema, resume = EMA(0.1), Resume(folder, every=until)
    if module.automatic_optimization:
        options = {"gradient_clip_val": 1.0, "accumulate_grad_batches": accumulate, **options}
    trainer = lightning.Trainer(
        max_steps=total, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ema, resume, Stop(until)], use_distributed_sampler=False,
        default_root_dir=folder, barebones=False, **options,
    )  # fmt: skip
    latest = resume.latest
    if latest:
        data.start = torch.load(latest, weights_only=True)["global_step"] * accumulate
    trainer.fit(module, data, ckpt_path=latest, weights_only=True)
    return ema


class Stop(lightning.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.parametrize("kind", ["codec", "diffusion"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_2n_steps_is_training_n_and_resuming(kind, accumulate, tmp_path):
    size = 4 * accumulate
    whole = make_training(kind, size, accumulate)
    average = fit(whole, Endless(4), tmp_path / "whole", 6, 6, accumulate)
    first = make_training(kind, size, accumulate)
    fit(first, Endless(4), tmp_path / "parts", 3, 6, accumulate)
    second, data = make_training(kind, size, accumulate), Endless(4)
    torch.manual_seed(123)  # nothing may depend on it
    resumed = fit(second, data, tmp_path / "parts", 6, 6, accumulate)
    assert data.seen[0] == 3 * size
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for name, tensor in average.average.items():
        assert torch.equal(tensor, resumed.average[name]), name


def test_a_step_does_not_depend_on_how_the_batch_is_cut():
    training = make_training("diffusion", size=8).double()
    training.model.double()

    def gradient(parts):
        training.zero_grad()
        for part in parts:
            batch = make_batch(part)
            batch.media = {s: x.double() for s, x in batch.media.items()}
            z, valid = training.latents(batch)
            t = training.levels(batch, z, valid)
            context, t = training.contexts(batch, z, valid, t)
            keep = training.model.conditions.keep(training.key("dropout", batch), batch.position)
            losses = training.losses(batch, z, t, context, keep, training.key("noise", batch))
            (sum(item.sum() for item in losses.values()) / 8).backward()
        return torch.cat([p.grad.flatten() for p in training.model.denoiser.parameters()])

    whole = gradient([range(8)])
    assert torch.allclose(whole, gradient([range(0, 3), range(3, 8)]), atol=1e-12)
    assert whole.abs().max() > 1e-4


def test_levels_are_stratified_over_the_global_batch():
    training = make_training("diffusion", size=16)
    z = {"signal": torch.zeros(16, 3, 4)}
    training.times = type("Identity", (), {"__call__": lambda self, u, path, shift: u})()
    t = training.levels(make_batch(range(16)), z, {"signal": None})["signal"]
    assert sorted((t * 16).floor().int().tolist()) == list(range(16))
    again = training.levels(make_batch(range(5, 9)), {"signal": z["signal"][:4]}, {"signal": None})["signal"]
    assert torch.equal(again, t[5:9])


def test_absent_streams_get_level_one_and_no_loss():
    streams = ("one", "two")
    training = DiffusionTraining(make_model(streams=streams), LogitNormal(), UnitF(), adamw, batch_size=4)
    batch = make_batch(range(4), streams, absent=("two",))
    z, valid = training.latents(batch)
    context, t = training.contexts(batch, z, valid, training.levels(batch, z, valid))
    losses = training.losses(batch, z, t, context, {}, training.key("noise", batch))
    assert torch.equal(t["two"], torch.ones(4)) and bool((losses["two"] == 0).all()) and bool((losses["one"] > 0).all())


def test_references_are_drawn_cells_of_the_clean_latent_and_change_the_output_only_there():
    training = make_training("diffusion", size=8)
    training.known = KnownMixture([(0.5, KeyCell())])
    batch = make_batch(range(8))
    z, valid = training.latents(batch)
    t = training.levels(batch, z, valid)
    context, t = training.contexts(batch, z, valid, t)
    (reference,) = context["signal"].references
    drawn = training.known(training.key("known", batch), batch.position, {"signal": (4,)}, {"signal": Blocks().axes})
    cells = drawn.places["signal"][0]
    assert torch.equal(reference.present, cells >= 0) and 0 < int(reference.present.sum()) < 8
    for row in reference.present.nonzero()[:, 0].tolist():
        assert torch.equal(reference.z[row, :, 0], z["signal"][row, :, cells[row]])
        assert torch.equal(reference.positions[row, 0], context["signal"].positions[cells[row]])
    with_them = training.losses(batch, z, t, context, {}, (1,))["signal"]
    training.known = None
    without = training.losses(batch, z, t, training.contexts(batch, z, valid, t)[0], {}, (1,))["signal"]
    assert torch.equal(with_them != without, reference.present)
    batch.valid["signal"][:] = 0
    training.known = KnownMixture([(1.0, KeyCell())])
    assert training.contexts(batch, z, training.latents(batch)[1], t)[0]["signal"].references == ()


def test_padding_and_known_cells_do_not_enter_the_loss():
    model = make_model()
    error = torch.arange(8.0).reshape(2, 4)
    valid = model.valid_cells("signal", torch.tensor([[16], [5]]), torch.zeros(2, 3, 4))
    assert valid.tolist() == [[True] * 4, [True, True, False, False]]
    known = torch.tensor([[True, False, False, False]] * 2)
    context = model.context("signal", (4,), z=torch.zeros(2, 3, 4), known=known, valid=valid)
    assert masked_mean(error, context).tolist() == [2.0, 5.0]
    assert model.valid_cells("signal", torch.tensor([[16], [13]]), torch.zeros(2, 3, 4)) is None


def test_whitening_gives_zero_mean_and_unit_variance_with_the_posterior_counted():
    whitening = Whitening(3).double()
    mean = 5 + 2 * keyed.normal((1,), range(200), (3, 10)).double()
    std = torch.full_like(mean, 1.5)
    whitening.fit([Posterior(mean[:50], std[:50]), Posterior(mean[50:], std[50:])])
    noise = keyed.normal((2,), range(200), (3, 10)).double()
    z = whitening(Posterior(mean, std).sample(noise))
    assert z.mean().abs() < 0.03 and (z.std() - 1).abs() < 0.03
    assert torch.allclose(whitening.inverse(whitening(mean)), mean, atol=1e-12)


@pytest.mark.parametrize(("path", "prediction"), [(Linear(), Flow()), (Cosine(), V()), (Cosine(), V()), (Linear(), V())])
def test_denoise_returns_known_cells_to_the_bit(path, prediction):
    model = make_model(path, prediction)
    z = keyed.normal((3,), range(2), (3, 4))
    known = torch.tensor([[True, True, False, False]] * 2)
    context = {"signal": model.context("signal", (4,), z=z, known=known)}
    prepared = model.prepare(model.conditions.null(2))
    out = model.denoise({"signal": torch.randn(2, 3, 4)}, {"signal": torch.tensor([0.3, 0.9])}, context, prepared)["signal"]
    assert torch.equal(out[..., :2], z[..., :2]) and not torch.equal(out[..., 2:], z[..., 2:])


def test_eps_on_a_path_that_ends_in_pure_noise_is_refused():
    with pytest.raises(ValueError, match="choose"):
        make_model(Linear(), Eps())


def test_the_schedule_warms_up_holds_and_decays_to_its_floor():
    schedule = Schedule(warmup=10, decay=0.5, floor=0.1)
    assert schedule(0, 0.0) == pytest.approx(0.1) and schedule(9, 0.1) == 1.0 and schedule(50, 0.5) == 1.0
    assert schedule(75, 0.75) == pytest.approx(0.55) and schedule(100, 1.0) == pytest.approx(0.1)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    training = make_training("codec")
    training.loss = lambda hat, x: {"l2": (hat - x).square().mean() * float("nan")}
    before = {k: v.clone() for k, v in training.state_dict().items()}
    with pytest.raises(ValueError, match="loss is nan in step 1"):
        fit(training, Endless(4), tmp_path, 1, 1)
    assert all(torch.equal(v, training.state_dict()[k]) for k, v in before.items())
