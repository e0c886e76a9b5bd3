"""Checkpoints are whole or not there: whatever file operation a save is killed at, whatever is damaged or full afterwards."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmldm.training import Resume
from mmldm.training.checkpoints import Checkpoints, HashedIO

ROOT = Path(__file__).resolve().parent.parent


def write(kept, step, size=1000):
    part = kept.begin(step)
    part.write_bytes(bytes([step]) * size)
    kept.commit(step)


def test_the_newest_stay_and_are_found_by_their_step(tmp_path):
    kept = Checkpoints(tmp_path / "resume", keep=2)
    assert kept.newest() is None
    for step in (5, 10, 15):
        write(kept, step)
    assert kept.steps() == [10, 15] and kept.newest() == tmp_path / "resume" / "step-00000015.ckpt"
    names = sorted(p.name for p in (tmp_path / "resume").iterdir())
    assert names == ["step-00000010.ckpt", "step-00000010.json", "step-00000015.ckpt", "step-00000015.json"]
    with pytest.raises(ValueError, match="wanted to keep 1"):
        Checkpoints(tmp_path, keep=0)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


def forget(path):
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize(
    ("damage", "told"), [(cut, "999 bytes instead of 1000"), (flip, "not those that were written"), (forget, "manifest")]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(damage, told, tmp_path, caplog):
    kept = Checkpoints(tmp_path)
    write(kept, 5), write(kept, 10)
    damage(kept.newest())
    assert Checkpoints(tmp_path).newest() == kept.newest() == kept.path(5)  # one that knew it whole looks again
    assert re.search(rf"step-00000010.ckpt is damaged \(.*{told}.*\); continuing from step 5", caplog.text)
    damage(kept.path(5))
    with pytest.raises(ValueError, match="wanted a whole checkpoint, got none") as error:
        Checkpoints(tmp_path).newest()  # never silently from the beginning
    assert len(str(error.value).splitlines()) <= 5
    write(kept, 7)
    assert kept.steps() == [5, 7] and kept.newest() == kept.path(7)  # what was damaged goes when something better is there


def test_a_whole_checkpoint_is_read_once(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    write(kept, 5)
    again, read = Checkpoints(tmp_path), []
    digest = sys.modules[Checkpoints.__module__]._digest
    monkeypatch.setattr(f"{Checkpoints.__module__}._digest", lambda path: read.append(path) or digest(path))
    assert kept.newest() == again.newest() == again.newest() and len(read) == 1


def test_a_checkpoint_may_be_a_folder(tmp_path):
    kept = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        part = kept.begin(step)
        (part / "inner").mkdir(parents=True)
        (part / "a.bin").write_bytes(b"a" * 1000), (part / "inner" / "b.bin").write_bytes(b"b")
        kept.commit(step)
    assert Checkpoints(tmp_path).newest() == kept.path(2) and kept.steps() == [2]
    flip(kept.path(2) / "a.bin")
    with pytest.raises(ValueError, match=r"a.bin are not those"):
        Checkpoints(tmp_path).newest()


OPERATIONS = ("fsync", "replace", "unlink", "rename")


@pytest.mark.parametrize("dies", range(1, 12))
def test_a_save_killed_at_any_file_operation_leaves_a_whole_checkpoint(dies, tmp_path):
    kept = Checkpoints(tmp_path)
    write(kept, 5), write(kept, 10)
    child = os.fork()
    if child == 0:  # file operations alone, and no way back
        count = 0
        for name in OPERATIONS:
            real = getattr(os, name)

            def counted(*args, real=real, **options):
                nonlocal count
                count += 1
                if count == dies:
                    os._exit(9)
                return real(*args, **options)

            setattr(os, name, counted)
        try:
            write(kept, 15)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    found = Checkpoints(tmp_path)
    assert found.newest() in (found.path(10), found.path(15)) and not any(map(found.fault, found.steps()))
    write(found, 20)
    assert found.newest() == found.path(20) and found.steps()[-1] == 20
    assert not list(tmp_path.glob("*.part")) and len(list(tmp_path.iterdir())) == 4


def test_the_digest_is_taken_while_writing(tmp_path):
    kept, io = Checkpoints(tmp_path), HashedIO()
    state = {"a": torch.arange(10.0), "b": {"c": [1, "two"]}}
    io.save_checkpoint(state, kept.begin(3))
    kept.commit(3, io.digests)
    assert Checkpoints(tmp_path).newest() == kept.path(3)
    back = io.load_checkpoint(kept.path(3), weights_only=True)
    assert torch.equal(back["a"], state["a"]) and back["b"] == state["b"]


@pytest.fixture
def full():
    """Files of this process may not grow beyond 100 kB: what the system answers is that of a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_what_was_wanted_and_free_and_leaves_nothing(tmp_path, full):
    path = tmp_path / "step-00000001.ckpt.part"
    with pytest.raises(OSError, match=r"File too large: about 0.04 GB wanted, \d+\.\d\d GB free") as error:
        HashedIO().save_checkpoint({"a": torch.zeros(10**7)}, path)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(path) and not path.exists()


# ---------------------------------------------------------------- SIGKILL


def killed(folder, times, seed):
    """Kill trainings that do little but save at `times` random moments; what was there after each kill: (told, newest)."""
    command = [sys.executable, "-m", "tests.saving", str(folder), str(times), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines() if re.fullmatch(r"-?\d+ -?\d+", line)]


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_training_killed_at_any_moment_leaves_its_last_checkpoint(times, tmp_path):
    found = killed(tmp_path, times, seed=times)
    assert len(found) == times and all(newest in (told, told + 1) for told, newest in found)
    assert found[-1][1] > found[0][1] > 0  # each went on from the one before
    assert Resume(tmp_path).latest is not None
