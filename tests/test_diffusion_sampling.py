"""Laws of the sampling loop: known cells, streams, guidance, starts, batches."""

import pytest
import torch

from mmldm import keyed
from mmldm.diffusion import (
    APG,
    CFG,
    DDIM,
    EDM,
    Consistency,
    Context,
    Cosine,
    DPMpp2M,
    DPMpp2MSDE,
    Heun,
    KarrasGrid,
    Linear,
    Shift,
    UniformGrid,
    UniPC,
    sample,
    start_at,
)
from tests.test_diffusion_toy import PATHS, exact

SOLVERS = (DDIM(), DDIM(1.0), DPMpp2M(), DPMpp2MSDE(), Heun(), UniPC(2), UniPC(3), Consistency())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixing(z_t, t, names):
    """A denoiser whose streams, cells and branches all depend on each other."""
    out = {}
    for k, name in enumerate(names):
        total = sum(z.flatten(1).mean(1) for z in z_t.values())
        out[name] = {
            s: torch.tanh(z * 0.5 + (total * 0.1 * (k + 1) + t[s])[(...,) + (None,) * (z.dim() - 1)]) for s, z in z_t.items()
        }
    return out


def step_noise(shapes, positions):
    return lambda i, s: keyed.normal((5, "step", i, s), positions, shapes[s]).double()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("guidance", (None, CFG(3.0, rescale=0.5), APG(3.0, limit=0.5)), ids=("none", "cfg", "apg"))
def test_known_cells_come_out_equal_to_the_bit(solver, guidance):
    noise = {"a": normal(2, 3, 5, 4), "b": normal(2, 2, 7)}
    z, known = normal(2, 3, 5, 4, seed=1), normal(2, 5, 4, seed=2) > 0
    seen = []

    def denoise(z_t, t, names):
        seen.append(z_t["a"])
        return mixing(z_t, t, names)

    for path in (Linear(), EDM()):
        grids = {"a": UniformGrid()(5, path), "b": UniformGrid()(5, path, Shift(3.0))}
        out = sample(denoise, noise, grids, solver, path, guidance, {"a": Context(z=z, known=known)},
                     step_noise({"a": (3, 5, 4), "b": (2, 7)}, range(2)))  # fmt: skip
        mask = known[:, None].expand_as(z)
        assert torch.equal(out["a"][mask], z[mask]) and all(torch.equal(value[mask], z[mask]) for value in seen)
        assert not torch.equal(out["a"][~mask], z[~mask]) and bool(torch.isfinite(out["b"]).all())


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_batches_are_rows(solver):
    shapes, size = {"a": (3, 5, 4), "b": (2, 7)}, 4
    noise = {s: keyed.normal((1, s), range(size), shape).double() for s, shape in shapes.items()}
    grids = {"a": UniformGrid()(4, Cosine()), "b": KarrasGrid()(4, Linear())}
    paths, context = {"a": Cosine(), "b": Linear()}, Context(z=normal(4, 2, 7), known=normal(4, 7, seed=3) > 0)
    whole = sample(mixing, noise, grids, solver, paths, APG(2.0, limit=0.2), {"b": context}, step_noise(shapes, range(size)))
    for i in range(size):
        part = {"b": Context(z=context.z[i : i + 1], known=context.known[i : i + 1])}
        row = {s: value[i : i + 1] for s, value in noise.items()}
        out = sample(mixing, row, grids, solver, paths, APG(2.0, limit=0.2), part, step_noise(shapes, [i]))
        assert all(torch.allclose(out[s][0], whole[s][i], rtol=0, atol=1e-9) for s in shapes)


def test_branches_are_asked_for_by_level():
    asked = []

    def denoise(z_t, t, names):
        asked.append((float(t["a"][0]), tuple(names)))
        return mixing(z_t, t, names)

    sample(
        denoise, {"a": normal(1, 2, 3)}, {"a": UniformGrid()(10, Linear())}, DDIM(), Linear(), CFG(2.0, interval=(-1.0, 1.0))
    )
    for t, names in asked:
        assert names == (("cond", "null") if 0.27 < t < 0.73 else ("cond",))
    plain = sample(mixing, {"a": normal(1, 2, 3)}, {"a": UniformGrid()(6, Linear())}, DPMpp2M(), Linear())
    one = sample(mixing, {"a": normal(1, 2, 3)}, {"a": UniformGrid()(6, Linear())}, DPMpp2M(), Linear(), CFG(1.0))
    assert torch.equal(plain["a"], one["a"])


def test_streams_keep_their_own_levels_and_may_stand_still():
    levels = []

    def denoise(z_t, t, names):
        levels.append({s: float(v[0]) for s, v in t.items()})
        return exact(Linear())(z_t, t, names)

    z = normal(2, 1, 9, seed=4)
    noise = {"a": normal(2, 1, 9), "gone": normal(2, 1, 5), "given": normal(2, 1, 9)}
    grids = {"a": UniformGrid()(4, Linear(), Shift(2.0)), "gone": torch.ones(5), "given": torch.zeros(5)}
    context = {"given": Context(z=z, known=torch.ones(2, 9, dtype=torch.bool))}
    out = sample(denoise, noise, grids, UniPC(2), Linear(), context=context)
    assert torch.equal(out["given"], z) and torch.equal(out["gone"], noise["gone"])
    assert [v["gone"] for v in levels] == [1.0] * 4 and [v["given"] for v in levels] == [0.0] * 4
    assert [v["a"] for v in levels] == grids["a"][:-1].tolist()
    alone = sample(exact(Linear()), {"a": noise["a"]}, {"a": grids["a"]}, UniPC(2), Linear())
    assert torch.equal(alone["a"], out["a"])


def test_a_later_start_is_a_variation():
    path, z, eps = Linear(), normal(1, 1, 64).clamp(-1, 1), normal(1, 1, 64, seed=1)
    distances = []
    for strength in (0.1, 0.5, 0.9):
        grid = start_at(UniformGrid()(20, path), strength)
        start = path.mix(z, eps, grid[:1])
        out = sample(exact(path), {"a": eps}, {"a": grid}, DPMpp2M(), path, start={"a": start})["a"]
        distances.append(float((out - z).square().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_renoise_hands_known_cells_over_at_the_level_of_the_rest():
    path, z, noise, known = (
        Linear(),
        normal(1, 1, 6, seed=2),
        normal(1, 1, 6),
        torch.tensor([[True, True, False, False, False, True]]),
    )
    seen = []

    def denoise(z_t, t, names):
        seen.append((t["a"], z_t["a"]))
        return exact(path)(z_t, t, names)

    out = sample(
        denoise,
        {"a": noise},
        {"a": UniformGrid()(4, path)},
        DDIM(),
        path,
        context={"a": Context(z=z, known=known)},
        renoise=True,
    )
    mask = known[:, None]
    for t, z_t in seen:
        assert torch.equal(z_t[mask], path.mix(z, noise, t)[mask])
    assert torch.equal(out["a"][mask], z[mask])


@pytest.mark.parametrize("name", PATHS)
def test_precision_of_float32(name):
    path, noise = PATHS[name], normal(2, 1, 16)
    out = [
        sample(exact(path), {"a": noise.to(kind)}, {"a": KarrasGrid()(12, path)}, UniPC(2), path, CFG(1.0))["a"]
        for kind in (torch.float64, torch.float32)
    ]
    assert out[1].dtype == torch.float32
    torch.testing.assert_close(out[1].double(), out[0], rtol=0, atol=1e-3)


def test_the_distribution_comes_out():
    """The mixture itself, by moments, from 4000 samples: deterministic and stochastic solvers on unlike paths."""
    noise, steps = normal(1, 1, 4000), lambda i, s: normal(1, 1, 4000, seed=50 + i)
    mean, second = -1.2 * 0.3 + 0.3 * 0.3 + 1.4 * 0.4, 0.3 * (1.44 + 0.25) + 0.3 * (0.09 + 0.16) + 0.4 * (1.96 + 0.36)
    for path in (Linear(), PATHS["zero"], EDM()):
        for solver in (DPMpp2M(), DDIM(1.0), DPMpp2MSDE()):
            out = sample(exact(path), {"a": noise}, {"a": KarrasGrid()(40, path)}, solver, path, step_noise=steps)["a"]
            assert abs(float(out.mean()) - mean) < 0.07
            assert abs(float(out.square().mean()) - second) < (0.3 if isinstance(solver, DDIM) else 0.12)  # order 1, 40 steps


@pytest.mark.parametrize("name", ("linear", "scaled", "edm"))
def test_the_loop_never_waits_for_the_device(name):
    """On the meta device every question to the host (a number, a truth value) is an error."""
    path, meta = PATHS[name], torch.device("meta")
    noise = {"a": torch.empty(2, 3, 8, device=meta), "b": torch.empty(2, 4, device=meta)[:, None]}
    known = Context(z=noise["a"], known=torch.empty(2, 8, dtype=torch.bool, device=meta))
    for solver in (*SOLVERS, Heun(edm=True)):
        for guidance in (CFG(2.0, (-1.0, 2.0), rescale=0.5), APG(2.0, limit=0.1)):
            grids = dict.fromkeys(noise, UniformGrid()(4, path))
            out = sample(mixing, noise, grids, solver, path, guidance, {"a": known}, lambda i, s: noise[s], renoise=True)
            assert all(out[s].shape == noise[s].shape and out[s].device == meta for s in noise)
    with pytest.raises(RuntimeError):
        bool(noise["a"].sum() > 0)


def test_the_callback_sees_every_step_and_nothing_is_changed_in_place():
    noise, seen = normal(1, 1, 4), []
    before = noise.clone()
    out = sample(exact(Linear()), {"a": noise}, {"a": UniformGrid()(3, Linear())}, UniPC(2), Linear(),
                 callback=lambda i, n, z, z_hat: seen.append((i, n, z["a"], z_hat["a"])))  # fmt: skip
    assert [(i, n) for i, n, _, _ in seen] == [(0, 3), (1, 3), (2, 3)] and torch.equal(seen[-1][2], out["a"])
    torch.testing.assert_close(seen[-1][3], out["a"])
    assert torch.equal(noise, before)


def test_wrong_calls_say_what_was_wanted():
    noise, grid = {"a": normal(1, 1, 4)}, UniformGrid()(3, Linear())
    other = {"a": normal(1, 1, 4), "b": normal(1, 1, 4)}
    for call in (
        lambda: sample(mixing, noise, {"b": grid}, DDIM(), Linear()),
        lambda: sample(mixing, other, {"a": grid, "b": UniformGrid()(4, Linear())}, DDIM(), Linear()),
        lambda: sample(mixing, noise, {"a": start_at(grid, 0.5)}, DDIM(), Linear()),
        lambda: sample(mixing, noise, {"a": grid}, DDIM(1.0), Linear()),
    ):
        with pytest.raises(ValueError, match="wanted"):
            call()
