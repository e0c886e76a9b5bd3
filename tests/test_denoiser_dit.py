"""DiT: the laws of a denoiser for one and two streams of different rank, in float64."""

from dataclasses import replace

import pytest
import torch

from mmldm.denoiser import DiT
from mmldm.denoiser.patches import midpoints, patchify, resolve_patches, unpatchify
from mmldm.interfaces import Axis, Cond, CondWidths, Geometry, Noisy, grid_positions
from mmldm.testing import check_denoiser
from mmldm.testing.parts import _awake, _noisy

TIME, HEIGHT, WIDTH = Axis("time", 4, 1, 0.125), Axis("height", 8, 8, 1.0), Axis("width", 8, 8, 1.0)
SOUND = Geometry(3, (Axis("time", 640, 640, 1 / 16000), Axis("freq", 4, 4, 1.0)))
CLIP = Geometry(4, (TIME, HEIGHT, WIDTH))
LINE = Geometry(2, (Axis("time", 16, 16, 0.01),))
TEXT = CondWidths(tokens=6, vector=5)
SMALL = {"width": 24, "depth": 2, "heads": 2}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def line(**changes):
    return {"s": replace(_noisy({"s": LINE}, {"s": (6,)}, 3)["s"], **changes)}


def alone(**sizes):
    return _awake(DiT({"s": LINE}, {}, **{**SMALL, **sizes}))


def run(model, noisy, conds=None):
    with torch.no_grad():
        return model(noisy, model.prepare(conds or {}))


@pytest.mark.parametrize(
    "streams, cells, patch",
    [
        ({"s": LINE}, {"s": (6,)}, 1),
        ({"s": LINE}, {"s": (7,)}, 2),
        ({"plane": Geometry(2, (HEIGHT, WIDTH))}, {"plane": (4, 3)}, [2, 2]),
        ({"clip": CLIP}, {"clip": (3, 4, 2)}, {"height": 2, "width": 2}),
        ({"clip": CLIP, "sound": SOUND}, {"clip": (2, 4, 3), "sound": (7, 4)}, {"clip": [1, 2, 2], "freq": 4}),
    ],
    ids=["line", "line padded", "plane", "clip", "clip and sound"],
)
def test_contract(streams, cells, patch):
    conditions = {"text": TEXT, "label": CondWidths(vector=3), "beside": CondWidths(aligned={next(iter(streams)): 2})}
    check_denoiser(DiT(streams, conditions, **SMALL, patch=patch), streams, conditions, cells)


def test_contract_without_conditions():
    check_denoiser(DiT({"s": LINE}, {}, **SMALL), {"s": LINE}, {}, {"s": (5,)})


def test_output_is_zero_at_the_start():
    model = DiT({"s": LINE}, {}, **SMALL).double()
    assert run(model, line())["s"].abs().max() == 0


def test_a_stream_hears_the_other_and_its_level():
    streams = {"clip": CLIP, "sound": SOUND}
    model = _awake(DiT(streams, {}, **SMALL))
    noisy = _noisy(streams, {"clip": (2, 2, 2), "sound": (5, 2)}, 2)
    out = run(model, noisy)["clip"]
    for change in ({"z": noisy["sound"].z + 1}, {"level": torch.ones(2).double()}):
        other = run(model, {**noisy, "sound": replace(noisy["sound"], **change)})["clip"]
        assert (out - other).abs().max() > 1e-4


def test_a_known_token_hears_level_zero_and_the_rest_its_level():
    model, known = alone(depth=0), torch.zeros(3, 6, dtype=torch.bool)
    known[:, :2] = True
    one, two = (run(model, line(known=known, level=torch.full((3,), level).double()))["s"] for level in (0.2, 0.9))
    torch.testing.assert_close(one[..., :2], two[..., :2], rtol=0, atol=1e-12)
    assert (one[..., 2:] - two[..., 2:]).abs().min(1).values.max() > 1e-6


def test_a_known_mask_in_a_partly_padded_patch_counts_the_real_cells():
    model, known, valid = alone(patch=4, depth=0), torch.zeros(3, 6, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    valid[:, 5], known[:, 4] = False, True  # of the second patch one cell is known, one padding, two beyond the grid
    one, two = (run(model, line(known=known, valid=valid, level=torch.full((3,), v).double()))["s"] for v in (0.2, 0.9))
    torch.testing.assert_close(one[..., 4], two[..., 4], rtol=0, atol=1e-12)


def test_no_mask_equals_a_mask_of_nothing():
    model, no = alone(), torch.zeros(3, 6, dtype=torch.bool)
    plain = run(model, line())["s"]
    torch.testing.assert_close(run(model, line(known=no, valid=~no))["s"], plain, rtol=1e-9, atol=1e-9)


def test_residuals_are_added_behind_the_blocks():
    model, zero = alone(), torch.zeros(3, 6, 24).double()
    plain = run(model, line())["s"]
    with torch.no_grad():
        same = model(line(), model.prepare({}), [zero, None])["s"]
        other = model(line(), model.prepare({}), [None, zero + torch.randn(24).double()])["s"]
    assert torch.equal(plain, same) and (plain - other).abs().max() > 1e-6


def test_grids_come_back_from_their_patches():
    grid = torch.arange(2 * 3 * 3 * 5 * 4.0).reshape(2, 3, 3, 5, 4)
    for patch in ((1, 1, 1), (2, 2, 4), (1, 3, 2)):
        assert torch.equal(unpatchify(patchify(grid, patch), patch, (3, 5, 4)), grid)
    tokens = patchify(grid, (1, 2, 2))
    assert torch.equal(tokens[0, 0], grid[0, :, 0, :2, :2].flatten())


def test_a_patch_lies_in_the_middle_of_its_real_cells():
    positions = grid_positions((TIME, HEIGHT), (3, 3))
    middle = midpoints(positions, (1, 2))
    assert middle.shape == (1, 6, 2)
    torch.testing.assert_close(middle[0, :, 1], torch.tensor([8.0, 20.0] * 3))
    torch.testing.assert_close(middle[0, ::2, 0], torch.tensor([0.0625, 0.375, 0.875]))


def test_patches_by_number_axis_and_stream():
    streams = {"clip": CLIP, "sound": SOUND}
    assert resolve_patches(2, streams) == {"clip": (2, 2, 2), "sound": (2, 2)}
    assert resolve_patches({"clip": [1, 2, 2], "time": 3}, streams) == {"clip": (1, 2, 2), "sound": (3, 1)}
    for wrong in ({"clop": 2}, [1, 2], 0, {"sound": {"freq": 0}}):
        with pytest.raises(ValueError, match="wanted"):
            resolve_patches(wrong, streams)


@pytest.mark.parametrize(
    "streams, conditions, sizes, message",
    [
        ({}, {}, {}, "at least one stream"),
        ({"s": LINE}, {"c": CondWidths(aligned={"t": 1})}, {}, "choose from"),
        ({"s": LINE}, {}, {"width": 25}, "heads"),
    ],
)
def test_faults_are_told(streams, conditions, sizes, message):
    with pytest.raises(ValueError, match=message):
        DiT(streams, conditions, **{**SMALL, **sizes})


def test_missing_parts_are_told():
    model = DiT({"s": LINE}, {"text": TEXT, "beside": CondWidths(aligned={"s": 1})}, **SMALL)
    with pytest.raises(ValueError, match="conditions"):
        model.prepare({})
    text = Cond(torch.randn(1, 2, 6), vector=torch.randn(1, 5))
    with pytest.raises(ValueError, match="level 1"):
        model({}, model.prepare({"text": text, "beside": Cond(aligned={"s": torch.randn(1, 1, 6)})}))
    wrong = model.prepare({"text": text, "beside": Cond(aligned={"s": torch.randn(1, 1, 5)})})
    with pytest.raises(ValueError, match="grid"):
        model({"s": Noisy(torch.randn(1, 2, 6), torch.rand(1), grid_positions(LINE.axes, (6,)))}, wrong)


def test_the_contract_catches_a_denoiser_that_mixes_its_batch():
    class Mixing(DiT):
        def forward(self, noisy, prepared, residuals=None):
            return {s: f + f.mean(0) for s, f in super().forward(noisy, prepared, residuals).items()}

    with pytest.raises(AssertionError, match="batch"):
        check_denoiser(Mixing({"s": LINE}, {}, **SMALL), {"s": LINE}, {}, {"s": (5,)})
