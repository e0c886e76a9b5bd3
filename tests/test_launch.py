"""Starting a training as several processes, by another's launcher: torchrun, SLURM, submitit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmldm import config
from mmldm.commands import cli
from tests.test_init import QUICK, TINY

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ["experiment=world_image_diffusion", *QUICK, *TINY]
SHARDS = ["trainer=fsdp", "trainer.devices=2", "trainer.accelerator=cpu", "previews=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a codec, and what one process trains on it."""
    root = tmp_path_factory.mktemp("launch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        codec = ["codec.image.width=8", "codec.image.blocks=1"]
        assert cli.main(["train", "experiment=world_image_codec", "run=codec", *QUICK, *codec]) == 0
    return root


def environment(**words):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in words.items()}}


def torchrun(folder, *words):
    """What `torchrun --nproc-per-node 2 -m mmldm.commands.train WORDS` starts, with its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    command = [sys.executable, "-m", "mmldm.commands.train", *words]
    return [
        subprocess.Popen(
            command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env=environment(**shared, TORCHELASTIC_RUN_ID="x", RANK=rank, LOCAL_RANK=rank),
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.slow
def test_torchrun_trains_in_shards_what_one_process_trains(folder, monkeypatch):
    started = torchrun(folder, *TRAIN, *SHARDS, "run=two")
    try:
        monkeypatch.chdir(folder)
        assert cli.main(["train", *TRAIN, "run=one"]) == 0
        told = [process.communicate(timeout=300)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    assert told[0].count("trained 3 steps") == 1 and "trained" not in told[1]
    for part in ("denoiser", "conditions", "codec.image"):
        one, two = (load_file(folder / run / "model" / f"{part}.safetensors") for run in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(torch.allclose(x, two[name], atol=1e-5) for name, x in one.items()), part
    assert cli.main(["generate", "two", "a red circle", "--steps", "2", "--out", "made"]) == 0
    assert cli.main(["train", *TRAIN, "run=two", "trainer.max_steps=4"]) == 0  # goes on in one process


def test_processes_started_from_outside_want_a_named_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", *TRAIN]) == 2
    assert "choose run=runs/NAME" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_presets_of_several_processes_compose(kind):
    cfg = config.compose(
        ["experiment=image_diffusion", f"trainer={kind}", "data.path=x", "codec.image=x", "trainer.num_nodes=4"]
    )
    config.check(cfg)
    assert cfg.trainer.devices == -1 and cfg.trainer.num_nodes == 4 and cfg.trainer.max_steps == 100000


def test_a_launcher_for_slurm_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=8"]
    words += ["hydra.launcher.gpus_per_node=8", "trainer=fsdp", "trainer.num_nodes=2", "hydra.launcher.timeout_min=1440"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.CONF_DIR), version_base="1.3"):
        cfg = compose("train", words, return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and launcher.nodes * launcher.tasks_per_node == 16
    assert launcher.nodes == cfg.trainer.num_nodes


@pytest.mark.slow
def test_submitit_queues_a_job_again_that_it_preempts(folder):
    """The signal writes a checkpoint, the job is queued again, and goes on from there."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ["--multirun", "hydra/launcher=submitit_local", *TRAIN, "run=sweep", f"codec.image={folder / 'codec'}"]
    words += ["trainer.max_steps=300", "trainer.val_check_interval=300", "optimizer.lr=1e-3"]
    command = [sys.executable, "-m", "mmldm.commands.train", *words]
    process = subprocess.Popen(command, cwd=folder, env=environment(SUBMITIT_PREEMPT_SIGNAL="USR1"))
    try:
        state, until = folder / "sweep" / "0" / "state.json", time.monotonic() + 120
        while time.monotonic() < until and not (state.is_file() and json.loads(state.read_text()).get("steps")):
            time.sleep(0.1)
        os.kill(json.loads(state.read_text())["pid"], signal.SIGUSR1)
        assert process.wait(300) == 0
    finally:
        process.kill()
    told = "".join(path.read_text() for path in (folder / "sweep" / ".submitit").glob("*/*.err"))
    assert "stopped by SIGUSR1 at step" in told and "continuing" in told and "trained 300 steps" in told
