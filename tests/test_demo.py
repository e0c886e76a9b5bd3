"""The demo in miniature: the same stages in seconds, its page, its numbers, and what it must not delete."""

import json
import math
import time
from pathlib import Path

import pytest

from mmldm import config
from mmldm.commands import cli, demonstration

SMALL = {
    "train": [
        "data.items=64",
        "data.validation=16",
        "data.batch_size=8",
        "previews=2",
        "whitening_batches=2",
        "data.workers=0",
    ],
    "encode": ["data.items=64"],
    "evaluate": ["count=8", "data.items=64"],
}
CODEC = ["codec.image.width=16", "codec.image.blocks=1"]
DENOISER = ["denoiser.width=32", "denoiser.depth=1", "denoiser.heads=2", "diffusion.steps=2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder that a demo of images was made in, and its report."""
    out, compose = tmp_path_factory.mktemp("a demo, small") / "demo", config.compose

    def small(overrides=(), config_name="train", config_dirs=()):
        body = [] if config_name != "train" else DENOISER if any("diffusion" in o for o in overrides) else CODEC
        return compose([*overrides, *SMALL[config_name], *body], config_name, config_dirs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "compose", small)
        report = demonstration.demonstrate(["image"], 0.2, out, 0, 1, time.monotonic())
    return out, report


def test_the_demo_leaves_a_page_and_numbers(demo):
    out, report = demo
    assert json.loads((out / "report.json").read_text()) == report and report["minutes"] < 1
    assert all(math.isfinite(value) for value in report["reconstruction"]["image"].values())
    for part in ("adherence", "heldout"):
        assert set(report[part]["image"]) == {"shape", "colour", "size", "place"}
        assert all(0 <= share <= 1 for share in report[part]["image"].values())
    page = (out / "index.html").read_text()
    assert "Summary" in page and "image: samples" in page and (out / "image" / "samples" / "sheet.png").is_file()


def test_prompt_adherence_is_measured_by_the_command_too(demo, tmp_path):
    words = ["data=world", "data.kind=image", "data.items=16", "count=8", "samples=3", "steps=2", f"out={tmp_path / 'told'}"]
    assert cli.main(["evaluate", str(demo[0] / "image" / "model"), *words]) == 0
    report = json.loads((tmp_path / "told" / "report.json").read_text())
    assert set(report["adherence.seen"]) == set(report["adherence.heldout"]) == {"shape", "colour", "size", "place"}
    assert all(math.isfinite(value) for value in report["loss"].values())


def test_only_an_earlier_demo_is_replaced(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine.wav").write_bytes(b"x")
    for report in (None, "[]", '{"model": "x"}', "torn"):
        if report is not None:
            (tmp_path / "report.json").write_text(report)
        with pytest.raises(ValueError, match="wanted a new folder or an earlier demo"):
            demonstration.clear(tmp_path, ["audio"])
        assert (tmp_path / "audio" / "mine.wav").is_file()
    demonstration.clear(tmp_path, ["video"])  # nothing of it is there
    demonstration.clear(tmp_path, ["audio"])  # begun by the line above
    assert not (tmp_path / "audio").exists() and (tmp_path / "report.json").read_text() == "{}"


def test_paths_of_any_kind_are_handed_on():
    path = Path("a, b=c") / "d'e"
    assert config.compose([demonstration.quoted("run", path)]).run == str(path)
