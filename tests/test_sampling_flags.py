"""What the flags of a generation choose for a model, and which combinations are told to mean nothing."""

import argparse
import math

import pytest
import torch

from mmldm import config, trained
from mmldm.commands import generate, sampling
from mmldm.diffusion import APG, CFG, DDIM, DPMpp2M, DPMpp2MSDE, Guidance, KarrasGrid, ListGrid, UniformGrid, UniPC
from tests.fakes import Blocks
from tests.test_asked import made, make
from tests.test_pipeline import FAKES, SAMPLER, SPEC

PIPELINE = make()


def chosen(*words, pipeline=PIPELINE):
    parser = argparse.ArgumentParser()
    sampling.add_arguments(parser)
    return pipeline.sampler(**sampling.chosen(parser.parse_args([str(w) for w in words]), pipeline))


def test_nothing_chosen_is_the_models_own():
    own = chosen()
    assert isinstance(own.solver, UniPC) and isinstance(own.grid, UniformGrid) and own.steps == SAMPLER["steps"]
    assert own.guidance.scales == {"null": 2.0} and own.guidance.interval == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("words", "scales"),
    [
        (["3"], {"null": 3.0}),
        (["null=3"], {"null": 3.0}),
        (["text=3", "tone=1.5"], {"without:text": 3.0, "without:tone": 1.5}),
        (["3", "two=2"], {"null": 3.0, "without:two": 2.0}),
        (["@one=3"], {"null": {"one": 3.0}}),
        (["text@two=3", "text@one=2"], {"without:text": {"two": 3.0, "one": 2.0}}),
        (["text=3", "text@two=5"], {"without:text": {"one": 3.0, "two": 5.0}}),
        (["-1"], {"null": -1.0}),
    ],
    ids=" ".join,
)
def test_the_grammar_of_guidance(words, scales):
    assert chosen(*[f"--guidance={word}" for word in words]).guidance.scales == scales


def test_kinds_of_guidance_take_every_scale_and_number():
    apg = chosen(
        "--guidance-kind", "apg", "--guidance", "text=4", "--guidance", 2, "--guidance-interval=-2:3", "--rescale", 0.5
    )
    assert isinstance(apg.guidance, APG) and apg.guidance.scales == {"without:text": 4.0, "null": 2.0}
    assert apg.guidance.interval == (-2.0, 3.0) and apg.guidance.rescale == 0.5 and apg.guidance.momentum == APG().momentum
    assert chosen("--guidance-interval", ":3").guidance.interval == (-math.inf, 3.0)
    assert chosen("--guidance-kind", "none").guidance.scales == {}
    assert chosen("--rescale", 0.7).guidance.scales == {"null": 2.0}
    assert chosen("--weak", "w", "--guidance", "weak=2").guidance.scales == {"weak": 2.0}
    for name in sorted(p.stem for p in (config.CONF_DIR / "diffusion" / "guidance").glob("*.yaml")):
        assert isinstance(chosen("--guidance-kind", name).guidance, Guidance)


def test_solver_grid_and_steps():
    sampler = chosen("--solver", "dpmpp_2m", "--grid", "karras", "--steps", 12, "--eta", 0)
    assert type(sampler.solver) is DPMpp2M and sampler.grid == KarrasGrid() and sampler.steps == 12
    assert chosen("--solver", "ddim", "--eta", 0.5).solver.eta == 0.5
    sde = chosen("--solver", "dpmpp_2m_sde", "--eta", 0).solver
    assert type(sde) is DPMpp2MSDE and sde.eta == 0 and not sde.stochastic
    listed = chosen("--grid", "1,0.8,0.5,0.2,0")
    assert listed.grid == ListGrid([1.0, 0.8, 0.5, 0.2, 0.0]) and listed.steps == 4
    assert chosen("--grid", "1, 0.5, 0", "--steps", 2).steps == 2
    for solver in sorted(p.stem for p in (config.CONF_DIR / "diffusion" / "solver").glob("*.yaml")):
        for grid in sorted(p.stem for p in (config.CONF_DIR / "diffusion" / "grid").glob("*.yaml")):
            if grid != "list":
                chosen("--solver", solver, "--grid", grid, "--steps", 6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--solver", "dpmp_2m"], "did you mean 'dpmpp_2m'"),
        (["--grid", "kerras"], "did you mean 'karras'"),
        (["--guidance-kind", "agp"], "did you mean 'apg'"),
        (["--solver", "dpmpp_2m", "--eta", "0.5"], "got dpmpp_2m, which draws none; choose from ddim, ddpm, dpmpp_2m_sde"),
        (["--eta", "0.5"], "the model's own UniPC, which draws none"),
        (["--solver", "lcm", "--eta", "0"], "got lcm, which draws all its noise anew"),
        (["--solver", "ddim", "--eta", "2"], "wanted eta in"),
        (["--grid", "1,0.5,0", "--steps", "12"], "wanted 2 steps, as the list has, got 12"),
        (["--grid", "0.9,0.5,0"], "from 1 to 0, got"),
        (["--grid", "1,0.2,0.5,0"], "from 1 to 0, got"),
        (["--grid", "1,half,0"], "for example 1,0.8,0.5,0.2,0"),
        (["--guidance", "much"], "for example 3, text=3"),
        (["--guidance", "text=nan"], "for example 3, text=3"),
        (["--guidance", "txt=3"], "did you mean 'text'.*choose from null, weak, text, tone, one, two"),
        (["--guidance", "text@on=3"], "did you mean 'one'"),
        (["--guidance", "3", "--guidance", "null=2"], "got two: 3 and null=2"),
        (["--guidance", "1", "--rescale", "0.5"], "a guidance for --rescale, got none"),
        (["--guidance-kind", "none", "--guidance-interval", "0:1"], "a guidance for --guidance-interval, got none"),
        (["--rescale", "2"], "wanted rescale in"),
        (["--guidance-interval", "3"], "LOW:HIGH"),
        (["--guidance-interval", "3:1"], "the lower first"),
        (["--guidance", "text=3", "--negative", "x"], "away from --negative, got none"),
        (["--weak", "w"], "wanted a scale for --weak"),
        (["--guidance", "weak=2"], "wanted --weak MODEL"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)  # fmt: skip
def test_what_means_nothing_says_why(words, told):
    with pytest.raises(ValueError, match=told):
        chosen(*words)


def test_a_model_of_one_stream_is_not_guided_by_it():
    with pytest.raises(ValueError, match="choose from null, weak, text, tone$"):
        chosen("--guidance", "one=2", pipeline=make(streams=("one",)))


def test_a_number_replaces_the_scale_of_any_kind():
    pipeline = make()
    for node, kind in (({"_target_": "mmldm.diffusion.APG", "momentum": 0.0}, APG), ({}, Guidance), (None, Guidance)):
        pipeline.spec = {**SPEC, "sampler": {**SAMPLER, "guidance": node}}
        guidance = pipeline.sampler(guidance=4).guidance
        assert isinstance(guidance, kind) and guidance.scales == {"null": 4.0}
    assert guidance.changed(rescale=0.5).rescale == 0.5 and guidance.rescale == 0.0
    pipeline.spec = {**SPEC, "sampler": {**SAMPLER, "guidance": {"_target_": "mmldm.diffusion.AutoGuidance"}}}
    with pytest.raises(ValueError, match="choose a weak model at generation"):
        pipeline.sampler()
    with pytest.raises(ValueError, match="rescale in"):
        CFG(2.0).changed(rescale=1.5)


def test_a_grid_that_is_a_list_brings_its_steps():
    pipeline = make()
    x = made(pipeline, grid=ListGrid([1.0, 0.7, 0.2, 0.0]), steps=None, solver=DDIM())
    assert torch.equal(x, made(pipeline, grid=ListGrid([1.0, 0.7, 0.2, 0.0]), steps=3, solver=DDIM()))
    assert float((x - made(pipeline, steps=3, solver=DDIM())).abs().max()) > 1e-4


def test_from_the_command_line_to_files(tmp_path, capsys):
    """A tiny model and an earlier one of the same run, as folders."""
    streams = {s: {"_target_": "tests.fakes.Blocks", "latent_channels": 3 + i} for i, s in enumerate(("one", "two"))}
    scale = {key: {"_target_": "tests.fakes.Scale", "key": key} for key in ("text", "tone")}
    conditions = {"_target_": SPEC["conditions"]["_target_"], "conditioners": scale}
    spec = {**SPEC, "codecs": streams, "clips": {}, "conditions": conditions}
    for name, seed in (("model", 1), ("early", 2)):
        trained.save_diffusion(tmp_path / name, spec, make(seed=seed).model.float(), {}, "")
    assert isinstance(make().model.codecs["one"], Blocks)
    words = [tmp_path / "model", "0.5", "--field", "tone=1", "--seed", 3, *(w for f in FAKES for w in ("--trust", f)), "--out"]

    def run(name, *flags):
        assert generate.main([str(w) for w in (*words, tmp_path / name, *flags)]) == 0
        return [p.read_bytes() for p in sorted((tmp_path / name).iterdir()) if p.suffix not in (".json", ".png")]

    plain = run("plain", "--guidance", 1)
    assert (
        run("weak", "--weak", tmp_path / "early", "--guidance", "weak=2", "--solver", "ddim", "--grid", "1,0.6,0.3,0") != plain
    )
    assert run("same", "--weak", tmp_path / "early", "--guidance", "weak=1") == plain
    assert run("negative", "--negative", "0.1", "--guidance", 3, "--guidance-interval=-2:2", "--guidance-kind", "apg") != plain
    record = (tmp_path / "weak" / "0000-0-5.json").read_text()
    assert '"weak": 2.0' in record and '"steps": 3' in record and '"grid": "1,0.6,0.3,0"' in record
    capsys.readouterr()
