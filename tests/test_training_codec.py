"""Laws of codec training in stages: exact resume with an adversary, whose weights move when, clips, lengths, equivariance."""

from __future__ import annotations

import functools
import types

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from mmldm import keyed
from mmldm.codec.discriminators import PatchDiscriminator
from mmldm.commands import cli
from mmldm.interfaces import Axis
from mmldm.training import AdaptiveClip, Adversary, Balance, Clip, CodecTraining, Lengths, Resume, ScaleEquivariance
from mmldm.training.adversarial import Hinge
from mmldm.training.equivariance import halved
from tests.fakes import Blocks
from tests.test_training import Endless, adamw, fit, make_batch, make_training

adam = functools.partial(torch.optim.Adam, lr=1e-2)


def make_adversary(start=3, ramp=2, balance=True, **options):
    torch.manual_seed(1)
    shares = Balance({"adversarial": 0.5, "matching": 0.5}) if balance else None
    options = {"start": start, "ramp": ramp, "balance": shares, "optimizer": adam, **options}
    return Adversary({"patch": PatchDiscriminator(1, 2, 4, 2)}, **options)


def make_whole(accumulate=1, size=4):
    """Everything at once: an adversary from step 3 on, its balance, adaptive clipping, lengths and equivariance."""
    options = {
        "clip": AdaptiveClip(1.0, 0.8, 2),
        "lengths": Lengths(0.2, 0.2),
        "equivariance": ScaleEquivariance(0.5, axes=("time",)),
    }
    return make_training("codec", size * accumulate, accumulate, adversary=make_adversary(), **options)


def states(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def moved(module, before, prefix):
    """Whether any parameter below a prefix has changed."""
    return any(not torch.equal(p, before[n]) for n, p in module.named_parameters() if n.startswith(prefix))


# ---------------------------------------------------------------- resume


@functools.cache
def unbroken(accumulate):
    module = make_whole(accumulate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmldm.training.Resume.save", lambda self, trainer: None)
        average = fit(module, Endless(4), "nowhere", 6, 6, accumulate)
    return states(module), average.average


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_training_on_is_exact_when_stopped_before_at_and_after_the_second_stage_begins(accumulate, stop, tmp_path):
    wanted, average = unbroken(accumulate)
    fit(make_whole(accumulate), Endless(4), tmp_path, stop, 6, accumulate)
    saved = torch.load(Resume(tmp_path).latest, weights_only=True)
    assert saved["global_step"] == stop and len(saved["optimizer_states"]) == 2
    assert bool(saved["optimizer_states"][1]["state"]) == (stop > 3)
    second, data = make_whole(accumulate), Endless(4)
    torch.manual_seed(123)
    with torch.no_grad():
        for p in second.adversary.parameters():
            p.add_(1.0)  # all that matters comes from the checkpoint
    resumed = fit(second, data, tmp_path, 6, 6, accumulate)
    assert data.seen[0] == stop * 4 * accumulate
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    for name, tensor in average.items():
        assert torch.equal(tensor, resumed.average[name]), name
    assert float(wanted["adversary.balance.norms"].min()) > 0 and float(wanted["clip.count"]) == 6


class Validated(Endless):
    def val_dataloader(self):
        return torch.utils.data.DataLoader([make_batch(range(900, 904))], batch_size=None)


class Stopped(lightning.Callback):
    """Asks for the end in the middle of a window of accumulated batches."""

    def __init__(self, resume_at):
        self.at = resume_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.at:
            next(c for c in trainer.callbacks if hasattr(c, "stopped")).stopped = True


def test_a_validation_or_a_stop_within_a_window_of_accumulated_batches_changes_nothing(tmp_path):
    plain, checked = make_whole(3), make_whole(3)
    fit(plain, Endless(4), tmp_path / "plain", 4, 6, 3)
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    fit(checked, Validated(4), tmp_path / "checked", 4, 6, 3, **options)
    assert all(torch.equal(v, checked.state_dict()[k]) for k, v in plain.state_dict().items())
    module, resume = make_whole(3), Resume(tmp_path / "stopped")
    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Stopped(4), resume], use_distributed_sampler=False, log_every_n_steps=1,
    )  # fmt: skip
    data = Endless(4)
    trainer.fit(module, data)
    assert trainer.global_step == 2 and torch.load(resume.latest, weights_only=True)["global_step"] == 2
    assert trainer.accumulate_grad_batches == 1  # what the trainer was made with


def test_three_accumulated_batches_are_one_of_three_times_the_size(tmp_path):
    options = {"adversary": make_adversary(1, 1, balance=False, weight=0.1), "clip": 0.5}
    once = make_training("codec", 12, 1, **options).double()
    options["adversary"] = make_adversary(1, 1, balance=False, weight=0.1)
    thrice = make_training("codec", 12, 3, **options).double()

    class Doubled(Endless):
        def train_dataloader(self):
            for batch in super().train_dataloader():
                batch.media = {s: x.double() for s, x in batch.media.items()}
                yield batch

    fit(once, Doubled(12), tmp_path / "once", 5, 5)
    fit(thrice, Doubled(4), tmp_path / "thrice", 5, 5, 3)
    for name, tensor in once.state_dict().items():
        assert torch.allclose(tensor, thrice.state_dict()[name], atol=1e-10, rtol=0), name


# ---------------------------------------------------------------- who moves, and when


@pytest.mark.parametrize(("options", "switch"), [({"start": 3}, 3), ({"start": 0.5, "ramp": 0.1}, 3)])
def test_the_second_stage_begins_at_its_step_or_share(options, switch, tmp_path):
    for until, playing in ((switch, False), (switch + 1, True)):
        module = make_training("codec", adversary=make_adversary(**options))
        before = states(module)
        fit(module, Endless(4), tmp_path / str(until), until, 6)
        assert moved(module, before, "adversary.") == playing and moved(module, before, "codec.")


def test_the_codecs_weight_on_the_game_does_not_move_the_discriminators_nor_their_loss_the_codec(tmp_path):
    class Loud(Hinge):
        def judge(self, real, fake):
            return 100 * super().judge(real, fake)

    def trained(name, **options):
        module = make_training("codec", adversary=make_adversary(0.0, 0.0, balance=False, **options), clip=None)
        fit(module, Endless(4), tmp_path / name, 1, 1)
        return module

    plain, heavy, loud = trained("plain"), trained("heavy", weight=50.0, matching=9.0), trained("loud", game=Loud())
    for name, p in plain.adversary.named_parameters():
        assert torch.equal(p, dict(heavy.adversary.named_parameters())[name])
    for name, p in plain.codec.named_parameters():
        assert torch.equal(p, dict(loud.codec.named_parameters())[name])
    assert moved(plain, states(heavy), "codec.") and moved(plain, states(loud), "adversary.")


def test_discriminators_are_neither_averaged_nor_exported(tmp_path):
    module = make_whole()
    average = fit(module, Endless(4), tmp_path, 4, 4)
    assert set(module.exported()) == set(average.average) == {f"codec.{n}" for n, _ in module.codec.named_parameters()}
    assert not [m for m in module.codec.modules() if isinstance(m, PatchDiscriminator)]


def test_a_run_goes_on_with_the_adversary_it_began_with(tmp_path):
    fit(make_training("codec"), Endless(4), tmp_path, 2, 4)
    with pytest.raises(ValueError, match="wanted no adversary, as this run began; .* codec.signal=RUN"):
        fit(make_whole(), Endless(4), tmp_path, 4, 4)


def test_both_optimisers_follow_the_schedule_each_from_its_own_rate(tmp_path):
    module = make_training("codec", adversary=make_adversary(0.0, 0.0, optimizer=functools.partial(adam, lr=3e-2)))
    fit(module, Endless(4), tmp_path, 5, 6)
    first, second = module._optimizers()
    assert module.base_lr == [1e-2, 3e-2]
    assert (
        second.param_groups[0]["lr"] == pytest.approx(3 * first.param_groups[0]["lr"])
        and 0 < first.param_groups[0]["lr"] < 1e-2
    )


def test_bfloat16_trains_with_an_adversary_and_float16_is_refused(tmp_path):
    module = make_whole()
    before = states(module)
    fit(module, Endless(4), tmp_path, 5, 5, precision="bf16-mixed")
    assert moved(module, before, "codec.") and moved(module, before, "adversary.")
    with pytest.raises(ValueError, match="16-mixed with an adversary; choose from bf16-mixed"):
        fit(make_whole(), Endless(4), tmp_path, 5, 5, plugins=[half_precision()])


def half_precision():
    """Lightning's 16-mixed on this processor, where it does not offer it by name."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


def test_float16_without_an_adversary_clips_what_is_not_scaled(tmp_path):
    whole, half = (make_training("codec", 12, 3, clip=0.5) for _ in range(2))
    fit(whole, Endless(4), tmp_path / "whole", 4, 4, 3)
    fit(half, Endless(4), tmp_path / "half", 4, 4, 3, plugins=[half_precision()])
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, half.state_dict()[name], atol=1e-3), name
    assert float(half.trainer.callback_metrics["train/norm"]) == pytest.approx(
        float(whole.trainer.callback_metrics["train/norm"]), rel=0.01
    )


def test_a_discriminator_whose_loss_is_not_finite_stops_before_any_weight_changes(tmp_path):
    module = make_training("codec", adversary=make_adversary(0.0, 0.0))
    module.adversary.game.judge = lambda real, fake: real.mean() * float("inf")
    before = states(module)
    with pytest.raises(ValueError, match="loss of the discriminators is -?inf in step 1"):
        fit(module, Endless(4), tmp_path, 1, 1)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


# ---------------------------------------------------------------- clipping


def gradient(norm):
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([0.6, 0.8]) * norm
    return p


def test_a_fixed_clip_scales_to_its_norm_and_tells_the_norm_before():
    p, q = gradient(10.0), gradient(0.1)
    assert float(Clip(2.0)([p])) == pytest.approx(10.0) and float(p.grad.norm()) == pytest.approx(2.0)
    assert float(Clip(2.0)([q])) == pytest.approx(0.1) and float(q.grad.norm()) == pytest.approx(0.1)


def test_an_adaptive_clip_holds_spikes_to_three_deviations_and_follows_a_new_level():
    clip, norms = AdaptiveClip(3.0, 0.9, 10, norm=100.0), 5 + keyed.normal((1,), range(60), ()).clamp(-2, 2) * 0.5
    for norm in norms.tolist():
        clip([gradient(norm)])
    spike = gradient(1000.0)
    limit = float(clip.limit())
    clip([spike])
    assert 5.5 < limit < 8 and float(spike.grad.norm()) == pytest.approx(limit, rel=1e-4)
    assert float(clip.limit()) < 1.5 * limit  # a spike does not raise it to its own height
    for _ in range(200):
        after = gradient(50.0)
        clip([after])
    assert float(after.grad.norm()) == pytest.approx(50.0, rel=0.05)


def test_an_adaptive_clip_begins_at_its_fixed_norm_and_forgets_what_is_not_finite():
    clip, p = AdaptiveClip(warmup=3, norm=2.0), gradient(10.0)
    clip([p])
    assert float(p.grad.norm()) == pytest.approx(2.0) and float(clip.count) == 1
    clip([gradient(float("inf"))])
    assert float(clip.count) == 1 and torch.isfinite(clip.mean)


# ---------------------------------------------------------------- lengths


def causal(length=17):
    codec = Blocks(length=length)
    codec.axes = (Axis("time", 4, 1, 0.125),)
    return codec


def test_lengths_are_stills_whole_clips_or_whole_cells_as_often_as_asked():
    codec, x = causal(), torch.arange(17.0).expand(2, 2, 17)
    found = [lengths_of(Lengths(0.2, 0.3), codec, x, step) for step in range(2000)]
    sizes = [n for n, _ in found]
    assert set(sizes) == {1, 5, 9, 13, 17}
    assert sizes.count(1) / 2000 == pytest.approx(0.2, abs=0.03)
    assert sizes.count(17) / 2000 == pytest.approx(0.3 + 0.5 / 4, abs=0.03)
    assert {start for n, start in found if n == 1} == set(range(17)) and {s for n, s in found if n == 13} == set(range(5))


def lengths_of(lengths, codec, x, step):
    cut = lengths(x, codec, (0, "length", step))
    assert torch.equal(cut, x[..., int(cut[0, 0, 0]) :][..., : cut.shape[-1]])
    return cut.shape[-1], int(cut[0, 0, 0])


def test_lengths_depend_on_seed_and_step_alone_and_leave_media_without_time():
    codec, x, lengths = causal(), torch.arange(17.0).expand(4, 2, 17), Lengths()
    for step in range(20):
        key = (3, "length", step)
        assert torch.equal(lengths(x, codec, key)[1:], lengths(x[1:], codec, key))
    codec.media = types.SimpleNamespace(time_axis=None)
    assert lengths(x, codec, (0,)) is x
    with pytest.raises(ValueError, match="wanted stills"):
        Lengths(0.7, 0.5)


def test_the_batches_of_one_step_have_one_length_and_the_next_step_another():
    module, seen = make_whole(3), []
    module.lengths = Lengths(0.3, 0.0, 1)
    loss = module.loss
    module.loss = lambda hat, x: seen.append(x.shape[-1]) or loss(hat, x)
    module.adversary = module.equivariance = None
    for step in range(8):
        for part in range(3):
            with pytest.raises(RuntimeError, match="Trainer"):  # all but the optimiser's step
                module.training_step(make_batch(range(12 * step + 4 * part, 12 * step + 4 * part + 4)), part)
    assert all(len(set(seen[i : i + 3])) == 1 for i in range(0, 24, 3)) and len(set(seen)) > 1


# ---------------------------------------------------------------- equivariance


def test_halving_keeps_what_stands_alone_and_averages_pairs():
    x = torch.arange(6.0)[None, None]
    assert halved(x, 2).tolist() == [[[0.5, 2.5, 4.5]]]
    assert halved(x, 2, 1).tolist() == [[[0.0, 1.5, 3.5]]]


class Resampling(Blocks):
    """Nearest-neighbour down and up: equivariant to halving by construction."""

    def decode_features(self, z):
        z = z if self.axes[0].first == self.axes[0].size else torch.cat([z[..., :1], z[..., 1:].repeat_interleave(4, -1)], -1)
        return z if self.axes[0].first == 1 else z.repeat_interleave(4, -1)


@pytest.mark.parametrize("first", [1, 4])
def test_equivariance_costs_an_equivariant_codec_nothing_and_another_something(first):
    codec = Resampling(latent_channels=2)
    codec.axes = (Axis("time", 4, first, 1.0),)
    z = keyed.normal((1,), range(3), (2, 5 if first == 1 else 4))
    loss, term = (lambda hat, x: {"l1": (hat - x).abs().mean()}), ScaleEquivariance(1.0, 2.0, ("time",))
    smooth = z.clone()
    smooth[..., first == 1 :: 2] = smooth[..., 1 + (first == 1) :: 2]  # constant over pairs of cells
    features = codec.decode_features(smooth)
    assert float(term(codec, smooth, features, loss, (0,))["equivariance"]) == pytest.approx(0, abs=1e-6)
    assert float(term(codec, -smooth, features, loss, (0,))["equivariance"]) > 0.1
    assert term(codec, z[..., :1], codec.decode_features(z[..., :1]), loss, (0,))["equivariance"] == 0  # nothing to halve


def test_equivariance_comes_as_often_as_asked_by_the_key_and_names_axes_that_are_not_there():
    codec, z = Blocks(), torch.zeros(1, 3, 4)
    loss, term = (lambda hat, x: {"l1": hat.sum() * 0}), ScaleEquivariance(0.25, axes=("time",))
    drawn = [bool(term(codec, z, torch.zeros(1, 2, 16), loss, (0, step))) for step in range(1000)]
    assert drawn == [bool(term(codec, z, torch.zeros(1, 2, 16), loss, (0, step))) for step in range(1000)]
    assert sum(drawn) / 1000 == pytest.approx(0.25, abs=0.04)
    with pytest.raises(ValueError, match="wanted axes of the codec, got height; choose from time"):
        ScaleEquivariance(axes=("height",))(codec, z, z, loss, (0,))


def test_a_codec_training_needs_neither_adversary_nor_clip():
    module = CodecTraining(Blocks(), "signal", lambda hat, x: {"l2": (hat - x).square().mean()}, adamw)
    assert module.adversary is None and module.clip.norm == float("inf")


# ---------------------------------------------------------------- processes


def test_two_processes_are_one_at_the_same_global_batch_with_an_adversary(tmp_path):
    from tests import two_processes

    two, one = two_processes.pair(tmp_path / "two.pt", "codec"), two_processes.train(kind="codec").state_dict()
    untrained = two_processes.build("codec").state_dict()
    for name, tensor in one.items():
        assert float((tensor - two[name]).abs().max()) < 1e-9, name
    for part in ("codec.", "adversary.discriminators."):
        assert max(float((t - untrained[n]).abs().max()) for n, t in one.items() if n.startswith(part)) > 1e-2


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["codec.image.width=24"], "codec.image.width: 16 -> 24"),
        (["optimizer=muon"], "optimizer._target_: torch.optim.AdamW -> mmldm.training.muon.Muon"),
        (["trainer.precision=bf16-true"], "wanted a precision that trains a codec"),
    ],
)
def test_a_run_that_continues_with_other_parts_is_refused_in_one_line(changed, told, tmp_path, capsys):
    words = [
        "train",
        "experiment=world_image_codec",
        "codec.image.width=16",
        "data.items=16",
        "data.batch_size=4",
        "data.workers=0",
    ]
    words += ["trainer.val_check_interval=1", f"run={tmp_path}/run", "snapshots=0", "data.validation=4"]
    assert cli.main([*words, "trainer.max_steps=1"]) == 0
    kept = [word for word in words if word.partition("=")[0] != changed[0].partition("=")[0]]
    assert cli.main([*kept, *changed, "trainer.max_steps=2"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_is_refused_by_a_training_of_other_parts(tmp_path):
    fit(make_training("codec"), Endless(4), tmp_path, 1, 2)
    other = make_training("codec")
    other.optimizer_of = adam
    with pytest.raises(ValueError, match="wanted the optimizers of this run so far, AdamW, got Adam"):
        fit(other, Endless(4), tmp_path, 2, 2)
    other = make_training("codec")
    other.codec = Blocks(latent_channels=4)
    with pytest.raises(ValueError, match="wanted the sizes and parts that this run began with, got another codec"):
        fit(other, Endless(4), tmp_path, 2, 2)
