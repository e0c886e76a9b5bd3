"""A run that continues is the run that began: what may change is told, what may not is refused before anything is loaded."""

from __future__ import annotations

import pytest

from mmldm.commands import cli
from mmldm.commands.continuing import changes


def facts(content="dc", **config):
    return {"content": dict(zip(("data", "codec.image"), content, strict=True)), "config": config}


def test_what_may_change_is_told_and_what_may_not_is_named():
    before = facts(seed=0, minutes=1, trainer={"max_steps": 3}, optimizer={"lr": 1.0, "weight_decay": 0.1}, adversary=None)
    now = facts(
        seed=1, minutes=2, trainer={"max_steps": 5}, optimizer={"lr": 2.0, "weight_decay": 0.2}, adversary={"start": 0.3}
    )
    free, other = changes(before, now)
    assert free == ["minutes: 1 -> 2", "optimizer.lr: 1.0 -> 2.0", "trainer.max_steps: 3 -> 5"]
    assert other == ["adversary.start: None -> 0.3", "optimizer.weight_decay: 0.1 -> 0.2", "seed: 0 -> 1"]


def test_a_setting_that_was_not_there_before_and_asks_for_nothing_is_no_change():
    assert changes(facts(), facts(freeze=[], compile=False, data={"buckets": {"seconds": [], "tokens": None}})) == ([], [])
    assert changes(facts(freeze=["a"]), facts())[1] == ["freeze: ['a'] -> None"]


def test_data_and_codecs_may_move_but_not_change():
    place = {"codec": {"image": "a"}, "data": {"path": "x", "cache": None, "sources": {"one": {"path": "p"}}}}
    elsewhere = {"codec": {"image": "b"}, "data": {"path": "y", "cache": None, "sources": {"one": {"path": "q"}}}}
    assert changes(facts(**place), facts(**elsewhere)) == ([], [])
    assert changes(facts(**place), facts(**place | {"data": {**place["data"], "cache": "z"}}))[1] == ["data.cache: None -> z"]
    assert len(changes(facts(), facts("ef"))[1]) == 2
    built = {"codec": {"image": {"width": 8}}}
    assert changes(facts(**built), facts(**place))[1]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two steps and the words of its command."""
    run = tmp_path_factory.mktemp("begun") / "run"
    words = ["train", "experiment=world_image_codec", "codec.image.width=8", "codec.image.blocks=1", "data.size=[16,16]"]
    words += ["data.items=16", "data.batch_size=4", "data.validation=4", "previews=0", "snapshots=0", "whitening_batches=1"]
    words += ["trainer.accelerator=cpu", "trainer.val_check_interval=1", f"run={run}"]
    assert cli.main([*words, "trainer.max_steps=2"]) == 0
    return run, words


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["data.batch_size=8"], "data.batch_size: 4 -> 8"),
        (["seed=1"], "seed: 0 -> 1"),
        (["data.items=20"], "data: other items than before"),
        (["optimizer.weight_decay=0.5"], "optimizer.weight_decay: 0.01 -> 0.5"),
        (["adversary=patch"], "… and"),
    ],
)
def test_a_command_that_would_make_another_training_of_a_run_is_refused(changed, told, begun, capsys):
    run, words = begun
    before = sorted(p.name for p in (run / "resume").iterdir())
    kept = [word for word in words if word.partition("=")[0] != changed[0].partition("=")[0]]
    assert cli.main([*kept, *changed, "trainer.max_steps=3"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in "\n".join(lines) and "another run=" in lines[-2] and len(lines) <= 6, lines
    assert sorted(p.name for p in (run / "resume").iterdir()) == before


def test_a_run_goes_on_with_more_steps_another_rate_and_other_previews_and_says_so(begun, capsys):
    run, words = begun
    assert cli.main([*words, "trainer.max_steps=3", "optimizer.lr=1e-4", "previews=1", "data.workers=0"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "from step 2" in told and "optimizer.lr: 0.002 -> 0.0001" in told and "trainer.max_steps: 2 -> 3" in told


def test_a_run_without_a_checkpoint_begins_as_it_is_asked(begun, tmp_path):
    run, words = begun
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "run.yaml").write_bytes((run / "resume" / "run.yaml").read_bytes())
    words = [word for word in words if not word.startswith(("run=", "data.batch_size="))]
    assert cli.main([*words, f"run={tmp_path}", "data.batch_size=2", "trainer.max_steps=1"]) == 0
