"""mmldm replay: a step that was not finite comes out again to the bit, from its dump alone, and is told by its causes."""

import shutil

import pytest
import torch

from mmldm import config
from mmldm.commands import cli, training
from mmldm.data.mixture import Mixture
from mmldm.training.faults import read

COMMON = [
    "trainer.max_steps=6", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.val_check_interval=100",
    "trainer.limit_val_batches=1", "data.batch_size=4", "data.source.size=40", "data.validation=8", "data.memory=false",
    "checkpoint_every=2", "previews=0", "snapshots=0", "whitening_batches=1", "minutes=null",
    "trainer.accumulate_grad_batches=2",
]  # fmt: skip
CODEC = ["experiment=world_image_codec", "codec.image.width=8"]


def train(words, run):
    training.train(config.compose([*words, *COMMON, f"run={run}"]))


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A codec's run, trained for a few steps."""
    run = tmp_path_factory.mktemp("codec")
    train(CODEC, run)
    return run


def spoil(monkeypatch, position):
    """Make one value of one item's clip infinite as it is read."""
    real = Mixture.__getitems__

    def read_items(self, positions):
        batch = real(self, positions)
        if position in positions and batch.position.tolist() == list(positions):
            batch.media["image"][list(positions).index(position), 0, 3, 3] = float("inf")
        return batch

    monkeypatch.setattr(Mixture, "__getitems__", read_items)


@pytest.mark.parametrize("kind", ["codec", "diffusion"])
def test_a_step_is_made_again_to_the_bit_without_its_run(kind, codec, tmp_path, monkeypatch, capsys):
    words = CODEC if kind == "codec" else ["experiment=world_image_diffusion", f"codec.image={codec}", "denoiser=dit_tiny"]
    spoil(monkeypatch, 4 * 3 + 3)  # the last of step 4
    with pytest.raises(ValueError, match="in step 4"):
        train(words, tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run" / "resume" / "step-00000003.ckpt").is_file()
    (tmp_path / "away").mkdir()
    for name in ("step-00000004.pt", "step-00000004.ckpt"):
        shutil.copy(tmp_path / "run" / "faults" / name, tmp_path / "away")
    shutil.rmtree(tmp_path / "run")
    dump = tmp_path / "away" / "step-00000004.pt"
    capsys.readouterr()
    assert cli.main(["replay", str(dump)]) == 0
    told = capsys.readouterr().out
    assert "reproduced to the bit, on cpu" in told and "not finite in the batch: image of position 15" in told
    assert "first not finite: " in told and "gradients, of" in told
    if kind == "diffusion":
        lines = [line for line in told.splitlines() if line.startswith("  position 1")]
        assert [line.split()[1] for line in lines if "loss of image nan" in line or "loss of image inf" in line] == ["15"]
        assert all("t of image 0." in line for line in lines)
    assert sorted(p.name for p in dump.parent.iterdir()) == ["step-00000004.ckpt", "step-00000004.pt"]
    state = read(dump)
    assert "\ninit: null\n" in state["config"]
    torch.save({**state, "config": state["config"].replace("\ninit: null\n", "\ninit: gone\n")}, dump)
    assert cli.main(["replay", str(dump)]) == 0  # the checkpoint has what the training began with
    state["told"][0]["loss"] += 1e-6
    torch.save(state, dump)
    assert cli.main(["replay", str(dump)]) == 1 and "not reproduced: other are loss" in capsys.readouterr().out
    dump.with_suffix(".ckpt").unlink()
    assert cli.main(["replay", str(dump)]) == 2 and "wanted the checkpoint of the step before" in capsys.readouterr().err


def test_a_first_step_is_made_again_from_the_seed(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 1)
    with pytest.raises(ValueError, match="in step 1"):
        train(CODEC, tmp_path)
    monkeypatch.undo()
    assert cli.main(["replay", str(tmp_path / "faults" / "step-00000001.pt")]) == 0
    assert "reproduced to the bit" in capsys.readouterr().out
