"""The data module: the same positions for any number of processes and workers, exact resume, faults reported."""

import os
from functools import partial
from itertools import islice

import lightning
import numpy as np
import pytest
import torch

from mmldm.data import DataModule, FileSource, write_cache
from mmldm.data.batch import LoadedBatch
from mmldm.interfaces import Batch
from tests.data_fakes import Computed, Process, Raw, Signal, Words, encode, write_signals

MEDIA = {"left": Signal(), "right": Signal(channels=(1,))}
READERS = {"caption": ("text", Words())}


def module(source, **options):
    options = {"batch_size": 4, "validation": 2, "seed": 3, "progress": False, **options}
    return DataModule(source, MEDIA, READERS, **options)


def take(data, n):
    return list(islice(iter(data.train_dataloader()), n))


def equal(a: Batch, b: Batch):
    return (torch.equal(a.position, b.position) and torch.equal(a.index, b.index) and torch.equal(a.start, b.start)
            and all(torch.equal(a.media[s], b.media[s]) for s in MEDIA)
            and torch.equal(a.fields["caption"], b.fields["caption"]))  # fmt: skip


def test_workers_and_a_later_start_give_the_same_batches(tmp_path):
    write_signals(tmp_path, [10, 35, 60, 22, 10, 10, 47, 9])
    read = partial(FileSource.read, tmp_path)
    state = torch.get_rng_state()
    batches = take(module(read), 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.cat([b.position for b in batches]).tolist() == list(range(32))
    resumed = module(read)
    resumed.set_start(5)
    assert all(equal(a, b) for a, b in zip(take(resumed, 3), batches[5:], strict=True))
    working = module(read, workers=2)
    assert all(equal(a, b) for a, b in zip(take(working, 4), batches[:4], strict=True))


def test_processes_share_the_global_batches(tmp_path):
    write_signals(tmp_path, [10, 35, 60, 22, 10])

    whole = take(module(partial(FileSource.read, tmp_path)), 3)
    parts = []
    for rank in range(2):
        data = module(partial(FileSource.read, tmp_path))
        data.trainer = Process(rank, 2)
        parts.append(take(data, 3))
        assert len(data.val_dataloader()) == 1
    for a, b, both in zip(*parts, whole, strict=True):
        assert torch.cat([a.position, b.position]).equal(both.position)
        assert torch.cat([a.media["left"], b.media["left"]]).equal(both.media["left"])


def test_processes_that_found_other_items_stop(tmp_path):
    paths = write_signals(tmp_path, [10, 35, 60, 22, 10])
    found = module(partial(FileSource.read, tmp_path)).fingerprint()
    paths[3].unlink()  # one that the second process cannot see
    other = module(partial(FileSource.read, tmp_path))
    other.trainer = Process(1, 2, found)
    with pytest.raises(ValueError, match="wanted the same items in every process"):
        other.train_dataloader()


def test_validation_is_finite_fixed_and_never_trained_on(tmp_path):
    write_signals(tmp_path, [10, 35, 60, 22, 10, 10, 47, 9])
    data = module(partial(FileSource.read, tmp_path), validation=3, batch_size=2)
    val = list(data.val_dataloader())
    index = torch.cat([b.index for b in val]).tolist()
    assert len(index) == 3 and [len(b) for b in val] == [2, 1] and all((b.start == 0).all() for b in val)
    assert set(index).isdisjoint(torch.cat([b.index for b in take(data, 20)]).tolist())
    assert all(equal(a, b) for a, b in zip(val, data.val_dataloader(), strict=True))
    assert [row["file"] for row in data.validation_rows(2)] == [data.items.rows[i]["file"] for i in index[:2]]
    assert equal(data.validation_batch(2), val[0])
    own = module(Computed(30), validation=Computed(4))
    assert len(own.validation_rows(9)) == 4 and len({*torch.cat([b.index for b in take(own, 8)]).tolist()}) == 30


def test_training_from_a_cache_is_training_on_windows(tmp_path):
    write_signals(tmp_path / "set", [10, 35, 60, 22, 10, 30])
    source = FileSource.read(tmp_path / "set", MEDIA)
    write_cache(tmp_path / "cache", source, MEDIA, encode, {"codec": "a"}, progress=False)
    online = module(source, crop="windows")
    cached = module(None, cache=tmp_path / "cache", cache_fingerprint={"codec": "a"}, workers=2)
    assert cached.fingerprint() == online.fingerprint() and cached.labels() == online.labels() == []
    for a, b in zip(
        take(online, 9) + list(online.val_dataloader()), take(cached, 9) + list(cached.val_dataloader()), strict=True
    ):
        assert a.index.equal(b.index) and a.start.equal(b.start) and a.fields["caption"].equal(b.fields["caption"])
        assert all(encode(s, a.media[s]).mean.equal(b.latents[s].mean) for s in MEDIA)
    with pytest.raises(ValueError, match="made by other parts"):
        module(None, cache=tmp_path / "cache", cache_fingerprint={"codec": "b"}).setup()


class Fit(lightning.LightningModule):
    """One weight, trained to follow the data; remembers the positions it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, _):
        self.seen += batch.position.tolist()
        return (self.weight - batch.media["left"].mean()).square()

    def validation_step(self, batch, _):
        self.validated += batch.position.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_runs_on_it_and_bad_items_are_reported_once(tmp_path, caplog):
    paths = write_signals(tmp_path, [10] * 8)
    np.save(paths[3], np.full((2, 10), np.nan, np.float32))
    data, fit = module(partial(FileSource.read, tmp_path)), Fit()
    trainer = lightning.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                                num_sanity_val_steps=0, val_check_interval=3, check_val_every_n_epoch=None)  # fmt: skip
    trainer.fit(fit, data)
    assert fit.seen == list(range(24)) and fit.validated == [0, 1] * 2
    assert 3 in data.train.parts[0].dataset.rows
    assert len(data.faults) == 1 and "s003.npy: is broken inside" in data.faults[0] and caplog.text.count("s003.npy") == 1


def test_dropped_files_are_one_warning_and_too_many_an_error(tmp_path, caplog):
    write_signals(tmp_path, [10] * 7)
    (tmp_path / "bad.npy").write_bytes(b"x")
    data = module(partial(FileSource.read, tmp_path), max_bad_fraction=0.2)
    assert len(take(data, 1)[0]) == 4 and len(data.reports[""].dropped) == 1
    assert len(caplog.records) == 1 and "dropped 1 of 8 files" in caplog.text
    with pytest.raises(ValueError, match="bad.npy: is no array"):
        module(partial(FileSource.read, tmp_path)).setup()


def test_a_batch_moves_as_a_whole():
    data = module(Computed(8))
    batch = next(data.sample_batches(1))
    moved = batch.map(lambda tensor: tensor.double())
    assert isinstance(moved, LoadedBatch) and moved.media["left"].dtype == moved.start.dtype == torch.float64
    assert moved.fields["caption"].dtype == torch.float64 and moved.faults == [] and batch.start.dtype == torch.float32
    assert batch.to("cpu").media["left"].equal(batch.media["left"]) and batch.to("meta").valid["left"].is_meta


def test_labels_and_fingerprint_say_what_the_data_is(tmp_path):
    assert module(Computed(8)).labels() == ["0", "1", "2"]
    assert module(Computed(8)).fingerprint() != module(Computed(9)).fingerprint()
    for folder in ("a", "b"):
        write_signals(tmp_path / folder / "hum", [10, 20])
        write_signals(tmp_path / folder / "beep", [10], start=5)
    a, b = (module(partial(FileSource.read, tmp_path / f)) for f in ("a", "b"))
    assert a.labels() == ["beep", "hum"] and a.fingerprint() == b.fingerprint()
    os.remove(tmp_path / "b/hum/s001.txt")
    assert module(partial(FileSource.read, tmp_path / "b")).fingerprint() != a.fingerprint()


def test_nothing_to_read_is_refused():
    with pytest.raises(ValueError, match="a source or a cache"):
        DataModule(None, MEDIA)
    with pytest.raises(ValueError, match="choose from random"):
        module(Computed(8), crop="centre")
    with pytest.raises(ValueError, match="divide evenly"):
        data = module(Computed(8), batch_size=0)
        data.train_dataloader()


def test_reading_through_memory_needs_no_workers():
    data = DataModule(Computed(12), MEDIA, {"text": ("text", Raw())}, 4, 2, memory=True, workers=2)
    loader = data.train_dataloader()
    assert loader.num_workers == 0
    epochs = list(islice(iter(loader), 5))
    assert (
        torch.cat([b.position for b in epochs]).tolist() == list(range(20)) and len(data.train.parts[0].dataset._memory) == 10
    )
