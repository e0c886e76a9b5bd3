"""UNet: the laws of a denoiser for grids of rank 1, 2 and 3 of any size, in float64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmldm import config, targets
from mmldm.denoiser import UNet
from mmldm.denoiser.unet_blocks import kernels_of, strides_of
from mmldm.interfaces import Axis, Cond, CondWidths, Geometry, Noisy, Reference, grid_positions
from mmldm.testing import check_denoiser
from mmldm.testing.parts import _awake, _noisy, _rows

TIME, HEIGHT, WIDTH = Axis("time", 4, 1, 0.125), Axis("height", 8, 8, 1.0), Axis("width", 8, 8, 1.0)
CLIP, PLANE = Geometry(4, (TIME, HEIGHT, WIDTH)), Geometry(2, (HEIGHT, WIDTH))
SOUND = Geometry(3, (Axis("time", 640, 640, 1 / 16000), Axis("freq", 4, 4, 1.0)))
LINE = Geometry(2, (Axis("time", 16, 16, 0.01),))
TEXT = CondWidths(tokens=6, vector=5)
SMALL = {"widths": [12, 24], "depth": 1, "attention": [False, True], "head_width": 12}
EXPERIMENTS = sorted(p.stem for p in Path(__file__).parent.parent.glob("conf/experiment/*diffusion.yaml"))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def line(cells=7, **changes):
    return {"s": replace(_noisy({"s": LINE}, {"s": (cells,)}, 3)["s"], **changes)}


def alone(**sizes):
    return _awake(UNet({"s": LINE}, {}, **{**SMALL, **sizes}))


def run(model, noisy, conds=None):
    with torch.no_grad():
        return model(noisy, model.prepare(conds or {}))


def text(rows=3, mask=None):
    return {"text": Cond(torch.randn(rows, 4, 6).double(), mask, vector=torch.randn(rows, 5).double())}


@pytest.mark.parametrize(
    "geometry, cells, sizes",
    [
        (LINE, (7,), {}),
        (LINE, (1,), {}),
        (LINE, (9,), {"patch": 2, "widths": [12, 12, 24], "attention": [True, False, True]}),
        (PLANE, (5, 3), {}),
        (PLANE, (5, 7), {"patch": [2, 2], "strides": [{"width": 3}], "depth": 2}),
        (SOUND, (7, 5), {"patch": {"freq": 2}}),
        (CLIP, (3, 5, 3), {}),
        (CLIP, (2, 4, 5), {"patch": [1, 2, 2], "strides": [2]}),
    ],
    ids=["line", "one cell", "three levels", "plane", "plane of patches", "time and freq", "clip", "clip of patches"],
)
def test_contract(geometry, cells, sizes):
    streams, sizes = {"s": geometry}, {**SMALL, **sizes}
    conditions = {"text": TEXT, "label": CondWidths(vector=3), "beside": CondWidths(aligned={"s": 2})}
    check_denoiser(UNet(streams, conditions, **sizes), streams, conditions, {"s": cells})


def test_contract_without_conditions():
    check_denoiser(UNet({"s": LINE}, {}, **SMALL), {"s": LINE}, {}, {"s": (5,)})


def test_output_is_zero_at_the_start():
    model = UNet({"s": LINE}, {}, **SMALL).double()
    assert run(model, line())["s"].abs().max() == 0


def test_a_batch_of_eight_equals_eight_batches_of_one():
    model = _awake(UNet({"s": PLANE}, {"text": TEXT}, **SMALL))
    noisy, conds = _noisy({"s": PLANE}, {"s": (5, 6)}, 8), text(8, torch.arange(4)[None] <= torch.arange(8)[:, None] % 4)
    each = [run(model, _rows(noisy, i), _rows(conds, i))["s"] for i in range(8)]
    torch.testing.assert_close(run(model, noisy, conds)["s"], torch.cat(each), rtol=1e-9, atol=1e-9)


def test_a_padded_grid_equals_the_grid_without_its_padding():
    model, small = _awake(UNet({"s": PLANE}, {}, **{**SMALL, "depth": 2})), _noisy({"s": PLANE}, {"s": (6, 4)}, 2)["s"]
    z, valid = torch.randn(2, 2, 9, 7).double(), torch.zeros(2, 9, 7, dtype=torch.bool)
    z[..., :6, :4], valid[:, :6, :4] = small.z, True
    large = Noisy(z, small.level, grid_positions(PLANE.axes, (9, 7)).double(), valid=valid)
    one, two = run(model, {"s": large})["s"][..., :6, :4], run(model, {"s": small})["s"]
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_a_coarse_cell_is_clean_where_all_of_it_is_known_or_padding():
    model, cells = alone(), torch.arange(7).expand(3, 7)
    given = line(known=cells < 5, valid=cells < 5)["s"]
    fine, coarse = model._scales(given, model.tokens.segments(given, None), torch.float64)
    assert fine.chosen[0, :, 1].tolist() == [1] * 7 and coarse.chosen[0, :, 1].tolist() == [1] * 4
    assert fine.hidden[0, :, 0].tolist() == [False] * 5 + [True] * 2
    assert coarse.hidden[0, :, 0].tolist() == [False] * 3 + [True]
    given = line(known=cells < 5)["s"]
    fine, coarse = model._scales(given, model.tokens.segments(given, None), torch.float64)
    assert fine.chosen[0, :, 1].tolist() == [1] * 5 + [0] * 2 and coarse.chosen[0, :, 1].tolist() == [1, 1, 0, 0]
    assert fine.hidden is None


def test_known_cells_reach_the_others():
    model, known = alone(), torch.arange(7).expand(3, 7) < 3
    noisy = line(known=known)
    told = run(model, noisy)["s"]
    assert (told - run(model, line())["s"])[..., 5:].abs().max() > 1e-6
    moved = replace(noisy["s"], z=torch.where(known[:, None], noisy["s"].z + 1, noisy["s"].z))
    assert (told - run(model, {"s": moved})["s"])[..., 5:].abs().max() > 1e-6


def test_no_mask_equals_a_mask_of_nothing():
    model, no = alone(), torch.zeros(3, 7, dtype=torch.bool)
    torch.testing.assert_close(run(model, line(known=no, valid=~no))["s"], run(model, line())["s"], rtol=1e-9, atol=1e-9)


def test_a_reference_of_one_frame_reaches_every_frame():
    model, noisy = _awake(UNet({"s": CLIP}, {}, **SMALL)), _noisy({"s": CLIP}, {"s": (3, 4, 3)}, 2)["s"]
    last = Reference(noisy.z[:, :, -1:] + 1, noisy.positions[-1:], torch.tensor([True, False]))
    change = (run(model, {"s": replace(noisy, references=(last,))})["s"] - run(model, {"s": noisy})["s"]).abs()
    assert change[0].amax((0, 2, 3)).min() > 1e-6 and change[1].max() < 1e-12


def test_residuals_are_added_behind_the_blocks():
    model, noisy = alone(), line()
    assert [block.residual.conv_out.conv.out_channels for block in model.blocks] == [12, 24, 24, 24, 12]
    none, plain = [None] * 5, run(model, noisy)["s"]
    with torch.no_grad():
        same = model(noisy, model.prepare({}), [torch.zeros(3, 7, 12).double(), *none[1:]])["s"]
        other = model(noisy, model.prepare({}), [*none[:2], torch.randn(3, 4, 24).double(), *none[3:]])["s"]
    assert torch.equal(plain, same) and (plain - other).abs().max() > 1e-6


def test_it_learns():
    model, noisy = UNet({"s": LINE}, {}, **SMALL), line()["s"]
    noisy = {"s": replace(noisy, z=noisy.z.float(), level=noisy.level.float())}
    optimizer, target = torch.optim.AdamW(model.parameters(), 1e-2), noisy["s"].z.flip(-1)
    for _ in range(40):
        loss = (model(noisy, model.prepare({}))["s"] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * target.square().mean()


# ---------------------------------------------------------------- geometry


def test_strides_are_two_but_for_the_time_of_a_clip():
    assert strides_of(None, CLIP.axes, 3) == [(1, 2, 2), (1, 2, 2)]
    assert strides_of(None, SOUND.axes, 2) == [(2, 2)] and strides_of(None, LINE.axes, 1) == []
    assert strides_of([2, [1, 2, 2], {"time": 3}], CLIP.axes, 4) == [(2, 2, 2), (1, 2, 2), (3, 1, 1)]


def test_kernels_of_a_clip_take_time_by_itself():
    assert kernels_of(CLIP.axes) == ((1, 3, 3), (3, 1, 1))
    assert kernels_of(SOUND.axes) == ((3, 3), (3, 3))


# ---------------------------------------------------------------- conf/


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_takes_the_place_of_the_transformer_in_every_experiment(experiment):
    cfg = config.compose([f"experiment={experiment}", "denoiser=unet_tiny", "run=a-run"])
    found = [f for f in targets.faults(config.resolved(cfg, missing=True)) if "a value is required" not in f]
    assert not found and cfg.denoiser._target_.endswith("UNet"), "\n" + "\n".join(found)
    nodes = {s: config.resolved(config.compose([f"experiment=world_{s}_codec"]).codec)[s] for s in cfg.codec}
    codecs = {stream: config.build(node) for stream, node in nodes.items()}
    streams, spec = {s: codec.geometry for s, codec in codecs.items()}, config.resolved(cfg.denoiser)
    if len(streams) > 1:
        with pytest.raises(ValueError, match="choose denoiser=dit_s"):
            config.build(spec, streams=streams, conditions={"text": TEXT})
        return
    net, ((stream, codec),) = config.build(spec, streams=streams, conditions={"text": TEXT}), codecs.items()
    shape = codec.latent_shape(codec.media.shape)
    noisy = Noisy(torch.randn(1, *shape), torch.rand(1), grid_positions(codec.axes, shape[1:]))
    conds = {"text": Cond(torch.randn(1, 3, 6), vector=torch.randn(1, 5))}
    assert run(net, {stream: noisy}, conds)[stream].shape == (1, *shape)


def test_weights_in_half_precision_take_and_give_what_is_asked():
    spec = config.resolved(config.compose(["experiment=image_diffusion", "denoiser=unet_tiny", "run=a-run"]).denoiser)
    net = config.build(spec, streams={"s": PLANE}, conditions={"text": TEXT}).to(torch.bfloat16)
    noisy = Noisy(torch.randn(2, 2, 6, 5), torch.rand(2), grid_positions(PLANE.axes, (6, 5)))
    conds = {"text": Cond(torch.randn(2, 3, 6), vector=torch.randn(2, 5))}
    assert torch.isfinite(run(net, {"s": noisy}, conds)["s"]).all()


def test_what_is_saved_is_what_is_loaded(tmp_path):
    spec = config.resolved(config.compose(["experiment=image_diffusion", "denoiser=unet_tiny", "run=a-run"]).denoiser)
    built = [config.build(spec, streams={"s": PLANE}, conditions={"text": TEXT}) for _ in range(2)]
    with torch.no_grad():
        for p in built[0].parameters():
            p.add_(torch.randn(p.shape) * 0.02)
    save_file(built[0].state_dict(), tmp_path / "denoiser.safetensors")
    built[1].load_state_dict(load_file(tmp_path / "denoiser.safetensors"))
    noisy = Noisy(torch.randn(2, 2, 6, 5), torch.rand(2), grid_positions(PLANE.axes, (6, 5)))
    conds = {"text": Cond(torch.randn(2, 3, 6), vector=torch.randn(2, 5))}
    one, two = (run(model, {"s": noisy}, conds)["s"] for model in built)
    assert torch.equal(one, two) and one.abs().max() > 0


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "streams, conditions, sizes, message",
    [
        ({}, {}, {}, "one stream"),
        ({"clip": CLIP, "sound": SOUND}, {}, {}, "choose denoiser=dit_s"),
        ({"s": LINE}, {"c": CondWidths(aligned={"t": 1})}, {}, "choose from"),
        ({"s": LINE}, {}, {"widths": [12, 25]}, "head_width"),
        ({"s": LINE}, {}, {"attention": [True, False]}, "true for the last"),
        ({"s": LINE}, {}, {"attention": [True]}, "per width"),
        ({"s": LINE}, {}, {"depth": 0}, "depth"),
        ({"s": LINE}, {}, {"strides": [2, 2]}, "descents"),
        ({"s": LINE}, {}, {"strides": [{"tme": 2}]}, "choose from"),
        ({"s": LINE}, {}, {"strides": [0]}, "positive"),
        ({"s": LINE}, {}, {"widths": [], "attention": []}, "true for the last"),
    ],
)
def test_faults_are_told(streams, conditions, sizes, message):
    with pytest.raises(ValueError, match=message):
        UNet(streams, conditions, **{**SMALL, **sizes})


def test_missing_parts_are_told():
    model = UNet({"s": LINE}, {"text": TEXT}, **SMALL).double()
    with pytest.raises(ValueError, match="conditions"):
        model.prepare({})
    with pytest.raises(ValueError, match="wanted the stream 's'"):
        model({"t": line()["s"]}, model.prepare(text()))


def test_where_cells_lie_is_worked_out_once_per_sample(monkeypatch):
    spec = config.resolved(config.compose(["experiment=image_diffusion", "denoiser=unet_tiny", "run=a-run"]).denoiser)
    net, calls = config.build(spec, streams={"s": PLANE}, conditions={"text": TEXT}).eval(), []
    real = type(net)._scales
    monkeypatch.setattr(type(net), "_scales", lambda *args: calls.append(1) or real(*args))
    conds, positions = {"text": Cond(torch.randn(2, 3, 6), vector=torch.randn(2, 5))}, grid_positions(PLANE.axes, (6, 5))
    with torch.no_grad():
        prepared = net.prepare(conds)
        for level in (0.9, 0.5, 0.1):
            net({"s": Noisy(torch.randn(2, 2, 6, 5), torch.full((2,), level), positions)}, prepared)
    assert len(calls) == 1
