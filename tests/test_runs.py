"""`mmldm runs`: every run below a folder with its state and best number, from files alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mmldm.commands import cli, runs


def write(folder, **facts):
    """A run that said this of itself."""
    folder.mkdir(parents=True)
    base = {"kind": "diffusion", "streams": ["image"], "step": 120, "steps": 1000, "seconds": 90.0, "device": "cpu",
            "time": time.time(), "every": 30.0, "pid": os.getpid(), "host": socket.gethostname()}  # fmt: skip
    (folder / "state.json").write_text(json.dumps({**base, **facts}))
    return folder


def listed(folder, capsys, *words):
    assert cli.main(["runs", str(folder), "--json", *words]) == 0
    return {run["run"]: run for run in map(json.loads, capsys.readouterr().out.splitlines())}


@pytest.fixture
def dead():
    """The number of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_states(tmp_path, capsys, dead):
    write(tmp_path / "now", state="running", left=60.0)
    write(tmp_path / "killed", state="running", pid=dead)
    write(tmp_path / "elsewhere", state="running", host="another", pid=dead)
    write(tmp_path / "silent", state="running", host="another", time=time.time() - 3600)
    write(tmp_path / "sweep" / "0", state="stopped")
    write(tmp_path / "sweep" / "1", state="failed", error="OSError: No space left on device")
    write(tmp_path / "done", state="finished", step=1000)
    (tmp_path / "begun" / "resume").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    found = listed(tmp_path, capsys)
    assert {name: run["state"] for name, run in found.items()} == {
        "now": "running", "killed": "lost", "elsewhere": "running", "silent": "lost", "sweep/0": "stopped",
        "sweep/1": "failed", "done": "finished", "begun": "stopped",
    }  # fmt: skip
    assert found["sweep/1"]["error"] == "OSError: No space left on device" and found["now"]["error"] is None
    assert listed(tmp_path / "now", capsys).keys() == {"now"}
    assert cli.main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "running, 0:01:00 left" in out and "failed: OSError: No space left" in out and "120 of 1,000" in out
    assert out.count("the same command continues") == 4


def test_the_best_number_is_the_least_with_its_step(tmp_path, capsys):
    run = write(tmp_path / "a", state="finished")
    (run / "logs").mkdir()
    (run / "logs" / "metrics.csv").write_text("step,val/loss,val/psnr\n9,0.5,\n9,,20\n19,0.25,\n29,nan,\n39,0.3,\n")
    assert listed(tmp_path, capsys)["a"]["best"] == {"name": "val/loss", "value": 0.25, "step": 20}
    assert listed(tmp_path, capsys, "--metric", "val/psnr")["a"]["best"]["value"] == 20
    assert listed(tmp_path, capsys, "--metric", "val/other")["a"]["best"] is None
    (run / "logs" / "metrics.csv").write_text("step,val/loss\n119,0.5\n120,0.2\n")  # the last of a validation after step 120
    assert listed(tmp_path, capsys)["a"]["best"]["step"] == 120


def test_a_model_without_a_state_says_what_its_manifest_knows(tmp_path, capsys):
    model = tmp_path / "old" / "model"
    model.mkdir(parents=True)
    facts = {"steps": 60, "minutes": 2.5, "device": "cuda:0", "numbers": {"val/loss": 0.1}}
    (model / "manifest.json").write_text(json.dumps({"facts": facts}))
    (model / "model.yaml").write_text("kind: codec\ncodecs: {audio: {}}\n")
    old = listed(tmp_path, capsys)["old"]
    assert (old["kind"], old["streams"], old["state"], old["step"], old["minutes"]) == ("codec", ["audio"], "finished", 60, 2.5)
    assert old["best"] == {"name": "val/loss", "value": 0.1, "step": 60}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "running"}'])
def test_a_damaged_state_does_not_hide_the_others(text, tmp_path, capsys):
    write(tmp_path / "good", state="stopped")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "state.json").write_text(text)
    assert listed(tmp_path, capsys).keys() == {"good", "bad"}


def test_no_runs_and_no_folder(tmp_path, capsys):
    assert cli.main(["runs", str(tmp_path)]) == 0 and "no runs in" in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path / "nowhere")]) == 2


def test_a_process_is_there_or_not(dead):
    assert not runs.alive(-1) and runs.alive(os.getpid()) and not runs.alive(dead)
