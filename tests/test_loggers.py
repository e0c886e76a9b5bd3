"""A run's loggers: they go on where the run goes on, tell every number of a step once, and show what the page shows."""

from __future__ import annotations

import csv
import sys
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmldm import config
from mmldm.media import AudioMedia, ImageMedia, MediaLogger, Page, VideoMedia
from mmldm.media.loggers import CSV, TensorBoard, Trackio, WandB

KINDS = {"Pictures": ImageMedia(16, 16), "Sound": AudioMedia(8000, 2, 0.1), "Video": VideoMedia(3, 8.0, 16, 16)}


def train(logger, start, end, every=2):
    """What a training tells: a number per step, one of a validation at each `every` steps, media at the same time."""
    logger.resume(start)
    if start and start % every == 0:  # the validation that the checkpoint was written before comes again
        logger.log_metrics({"val/loss": 1 / start}, start - 1)
    for step in range(start, end):
        logger.log_metrics({"train/loss": 1 / (step + 1)}, step)
        if (step + 1) % every == 0:
            logger.log_metrics({"val/loss": 1 / (step + 1)}, step)


def table(path):
    with open(path, newline="") as file:
        return [(int(r["step"]), {k: float(v) for k, v in r.items() if v and k != "step"}) for r in csv.DictReader(file)]


def test_the_table_of_a_run_that_continues_is_that_of_one_that_did_not_stop(tmp_path):
    train(CSV(tmp_path / "whole"), 0, 8)
    train(CSV(tmp_path / "parts"), 0, 6)  # killed here; the last checkpoint is of step 4
    with open(tmp_path / "parts" / "metrics.csv", "a") as file:
        file.write("6,0.14")  # a row cut off
    train(CSV(tmp_path / "parts"), 4, 8)
    whole = table(tmp_path / "whole" / "metrics.csv")
    assert table(tmp_path / "parts" / "metrics.csv") == whole
    assert [step for step, row in whole if "train/loss" in row] == list(range(8))
    assert [step for step, row in whole if "val/loss" in row] == [1, 3, 5, 7]


def test_a_new_run_in_an_old_folder_begins_a_new_table_and_new_columns_keep_old_rows(tmp_path):
    train(CSV(tmp_path), 0, 6)
    logger = CSV(tmp_path)
    logger.resume(0)
    logger.log_metrics({"a": torch.tensor(1.0)}, 0)
    logger.log_metrics({"b": 2.0}, 1)
    assert table(tmp_path / "metrics.csv") == [(0, {"a": 1.0}), (1, {"b": 2.0})]


def board(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "audio": 0}).Reload()


def test_tensorboard_shows_every_step_once_and_all_media(tmp_path):
    first = TensorBoard(tmp_path / "logs")
    train(first, 0, 6)
    first.experiment.close()
    second = TensorBoard(tmp_path / "logs")
    train(second, 4, 8)
    logger = MediaLogger(Page(tmp_path), [second])
    for section, media in KINDS.items():
        for _ in range(2):  # the same step again
            logger.media(section, 8, media, torch.zeros(2, *media.shape), ["one", "two"])
    second.experiment.close()
    seen = board(tmp_path / "logs")
    assert [e.step for e in seen.Scalars("train/loss")] == list(range(8))
    assert [e.step for e in seen.Scalars("val/loss")] == [1, 3, 5, 7]
    assert {f"Pictures/{i}/picture" for i in (0, 1)} | {"Sound/0/picture", "Video/1/picture"} <= set(seen.Tags()["images"])
    (sound,) = seen.Audio("Sound/1/audio")
    assert sound.sample_rate == 8000 and sound.length_frames == 800
    assert "Video/0/video/text_summary" in seen.Tags()["tensors"]


class Service:
    """A stand-in for wandb and trackio: runs by name, each a list of (step, what was told)."""

    def __init__(self):
        self.runs, self.named = {}, []
        self.Image = self.Audio = self.Video = lambda path, caption=None: (path.rsplit(".", 1)[-1], caption)

    def init(self, project, name, resume, **options):
        assert resume == "allow"
        self.named.append((project, name))
        told = self.runs.setdefault(name, [])
        return types.SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: None)


@pytest.fixture
def trackio(monkeypatch):
    service = Service()
    module = types.ModuleType("trackio")
    module.__spec__ = types.SimpleNamespace()
    module.__dict__.update(init=service.init, Image=service.Image, Audio=service.Audio, Video=service.Video)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return service


def test_trackio_goes_on_with_the_same_run_and_tells_no_step_twice(trackio, tmp_path):
    first = Trackio(tmp_path / "birds" / "logs")
    train(first, 0, 6)
    train(Trackio(tmp_path / "birds" / "logs"), 4, 8)
    ((name, told),) = trackio.runs.items()
    assert name.startswith("birds-") and trackio.named == [("mmldm", name)] * 2
    assert [step for step, row in told if "train/loss" in row] == list(range(8))
    assert [step for step, row in told if "val/loss" in row] == [1, 3, 5, 7]
    other = Trackio(tmp_path / "fish" / "logs")
    train(other, 0, 1)
    assert len(trackio.runs) == 2


def test_trackio_shows_all_media(trackio, tmp_path):
    logger = Trackio(tmp_path / "logs")
    for section, media in KINDS.items():
        MediaLogger(Page(tmp_path), [logger]).media(section, 8, media, torch.zeros(1, *media.shape), ["one"])
    (told,) = trackio.runs.values()
    shown = {k: v for _, row in told for k, v in row.items()}
    assert shown == {
        "Pictures/0/picture": ("png", "one"), "Sound/0/audio": ("wav", None), "Sound/0/picture": ("png", "one"),
        "Video/0/video": ("mp4", None), "Video/0/picture": ("png", "one"),
    }  # fmt: skip


@pytest.fixture
def wandb(monkeypatch):
    """The part of wandb that Lightning's logger and ours use."""
    service, module = Service(), types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()

    class Error(Exception):
        pass

    class Run:
        def __init__(self, told):
            self.told = told

        def log(self, values):
            values = dict(values)
            self.told.append((values.pop("trainer/global_step"), values))

        def define_metric(self, *args, **kwargs):
            pass

    def init(id, resume, project, **options):
        assert resume == "allow" and "anonymous" not in options
        if service.runs is None:
            raise Error("no API key configured")
        service.named.append((project, options["name"], options["dir"]))
        return Run(service.runs.setdefault(id, []))

    parts = {"wandb.sdk.lib": {"RunDisabled": int}, "wandb.wandb_run": {"Run": Run}, "wandb.sdk": {}}
    module.__dict__.update(init=init, run=None, Error=Error, Image=service.Image, Audio=service.Audio, Video=service.Video)
    for name, things in {"wandb": {}, **parts}.items():
        made = module if name == "wandb" else types.ModuleType(name)
        made.__dict__.update(things)
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return service


def test_wandb_goes_on_under_its_id_and_tells_no_step_twice(wandb, tmp_path):
    logs = tmp_path / "birds" / "logs"
    train(WandB(logs, offline=True), 0, 6)
    second = WandB(logs, offline=True)
    train(second, 4, 8)
    MediaLogger(Page(tmp_path), [second]).media("Sound", 8, KINDS["Sound"], torch.zeros(1, 2, 800), ["one"])
    (told,) = wandb.runs.values()
    assert wandb.named == [("mmldm", "birds", str(logs))] * 2
    assert [step for step, row in told if "train/loss" in row] == list(range(8))
    assert [step for step, row in told if "val/loss" in row] == [1, 3, 5, 7]
    assert told[-1] == (8, {"Sound/0/audio": ("wav", None), "Sound/0/picture": ("png", "one")})


def test_wandb_without_an_account_is_a_users_error(wandb, tmp_path):
    wandb.runs = None
    with pytest.raises(ValueError, match="logger.wandb.offline=true"):
        WandB(tmp_path / "logs").resume(0)


@pytest.mark.parametrize(("name", "kind"), [("wandb", WandB), ("trackio", Trackio)])
def test_a_missing_extra_is_named(name, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf"pip install 'mmldm\[{name}\]'"):
        kind(tmp_path)


def test_a_logger_that_fails_does_not_end_the_training(tmp_path, caplog):
    class Broken:
        def media(self, section, step, items):
            raise RuntimeError("no network")

    shown = MediaLogger(Page(tmp_path), [Broken()]).media("P", 3, ImageMedia(4, 4), torch.zeros(1, 3, 4, 4))
    assert len(shown) == 1 and "Broken did not take P of step 3: no network" in caplog.text


@pytest.mark.parametrize("name", ["csv", "default", "wandb", "trackio"])
def test_every_group_of_loggers_composes_and_keeps_the_table(name):
    cfg = config.compose(["experiment=image_codec", "data.path=photos", f"logger={name}"])
    config.check(cfg)
    assert "csv" in cfg.logger and all(node._partial_ for node in cfg.logger.values())
