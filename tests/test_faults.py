"""What happens to a training from outside and from within: stops, lost data, full disks, numbers that are not finite."""

import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import time
from contextlib import nullcontext
from types import SimpleNamespace

import lightning
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch.distributed import DistNetworkError

from mmldm.commands import faults as outside
from mmldm.commands import training
from mmldm.commands.waiting import Waiting
from mmldm.data.workers import leave_signals
from mmldm.media.loggers import CSV
from mmldm.training import EMA, Faults, NonFinite, Resume, Samples, Stopped
from mmldm.training.faults import Guard, read, unpacked
from tests.test_training import Endless, make_batch, make_training
from tests.test_training_codec import make_whole

TOTAL = 6


class Feed(Endless):
    """The endless data with two validation batches, and with `at(position)` called before each training batch is given."""

    def __init__(self, at=lambda position: None, spoilt=None):
        super().__init__(4)
        self.at, self.spoilt = at, spoilt

    def train_dataloader(self):
        feed = self

        class Steps(torch.utils.data.IterableDataset):
            def __iter__(self):
                first = feed.start * 4
                while True:
                    feed.at(first)
                    batch = make_batch(range(first, first + 4))
                    if feed.spoilt in range(first, first + 4):
                        batch.media["signal"][feed.spoilt - first, 0, 3] = float("nan")
                    feed.seen += batch.position.tolist()
                    yield batch
                    first += 4

        return torch.utils.data.DataLoader(Steps(), batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader([make_batch(range(900, 904)), make_batch(range(904, 908))], batch_size=None)


def make(kind, accumulate):
    return make_whole(accumulate) if kind == "codec" else make_training("diffusion", 4 * accumulate)


def fit(module, data, folder, accumulate=1, *callbacks, every=100, validate=10**6, logger=False):
    """Train to step TOTAL, continuing what is in the folder; the trainer, the average and the checkpoints."""
    ema, resume = EMA(0.1), Resume(folder / "resume", every)
    dump = Faults(folder / "faults", "", resume.checkpoints.path, lambda position: f"{position}.x")
    options = {"gradient_clip_val": 1.0, "accumulate_grad_batches": accumulate} if module.automatic_optimization else {}
    trainer = lightning.Trainer(
        max_steps=TOTAL, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks, ema, resume, dump], use_distributed_sampler=False,
        default_root_dir=folder, log_every_n_steps=2, val_check_interval=validate, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    if resume.latest:
        data.start = torch.load(resume.latest, weights_only=True)["global_step"] * accumulate
    with resume.signals():
        trainer.fit(module, data, ckpt_path=resume.latest, weights_only=True)
    return trainer, ema, resume


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Weights and averages of trainings that nothing happens to, made once."""
    made = {}

    def get(kind, accumulate):
        if (kind, accumulate) not in made:
            module = make(kind, accumulate)
            _, ema, _ = fit(module, Feed(), tmp_path_factory.mktemp("unbroken"), accumulate)
            made[kind, accumulate] = module.state_dict(), ema.average
        return made[kind, accumulate]

    return get


def goes_on(kind, accumulate, folder, unbroken, callbacks=(), **options):
    """Continue what stopped, and compare the end with that of a training that did not."""
    module, data = make(kind, accumulate), Feed()
    torch.manual_seed(123)
    _, ema, _ = fit(module, data, folder, accumulate, *callbacks, **options)
    weights, average = unbroken(kind, accumulate)
    assert equal(weights, module.state_dict()) and equal(average, ema.average)
    return data.seen[0] // (4 * accumulate)


# ---------------------------------------------------------------- not finite


@pytest.mark.parametrize(("kind", "accumulate"), [("codec", 1), ("codec", 3), ("diffusion", 1), ("diffusion", 3)])
def test_a_loss_that_is_not_finite_keeps_the_step_before_and_the_batches(kind, accumulate, tmp_path, unbroken):
    spoilt = 4 * 4 * accumulate + 4 * (accumulate // 2) + 1  # in step 5
    with pytest.raises(NonFinite, match="loss(| of the discriminators) is nan in step 5") as error:
        fit(make(kind, accumulate), Feed(spoilt=spoilt), tmp_path, accumulate)
    told = str(error.value)
    assert len(told.splitlines()) <= 4 and "after step 4, saved" in told and f"mmldm replay {tmp_path}" in told
    assert f"{4 * 4 * accumulate}.x" in told
    state = read(tmp_path / "faults" / "step-00000005.pt")
    batches = [unpacked(batch) for batch in state["batches"]]
    assert [int(b.position[0]) for b in batches] == [16 * accumulate + 4 * i for i in range(accumulate)]
    clean = make_batch(batches[0].position)
    assert torch.equal(batches[0].fields["scale"], clean.fields["scale"]) and batches[0].media.keys() == clean.media.keys()
    assert len(state["told"]) == accumulate and not state["told"][accumulate // 2]["loss"].isfinite()
    if kind == "diffusion":
        lost = state["told"][accumulate // 2]["loss of signal"]
        assert lost.shape == (4,) and not bool(lost.isfinite().all())
    beside = torch.load(tmp_path / "faults" / "step-00000005.ckpt", weights_only=True)
    assert beside["global_step"] == 4 and os.stat(tmp_path / "faults" / "step-00000005.ckpt").st_nlink == 2
    assert goes_on(kind, accumulate, tmp_path, unbroken) == 4  # running statistics included


@pytest.mark.parametrize("kind", ["codec", "diffusion"])
def test_a_gradient_that_is_not_finite_is_found_before_the_weights_change(kind, tmp_path, unbroken):
    module = make(kind, 1)
    weight = next(p for p in module.exported().values())
    handle = weight.register_hook(lambda g: g * float("inf") if module.global_step == 2 else g)
    with pytest.raises(NonFinite, match="the gradients' norm is (nan|inf) in step 3"):
        fit(module, Feed(), tmp_path)
    handle.remove()
    assert goes_on(kind, 1, tmp_path, unbroken) == 2


def test_what_cannot_be_put_back_does_not_hide_the_fault(tmp_path, monkeypatch):
    def fails(self, step):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(Guard, "restore", fails)
    with pytest.raises(NonFinite, match="loss is nan in step 2") as error:
        fit(make("codec", 1), Feed(spoilt=5), tmp_path)
    assert "could not be written: CUDA error" in error.value.__notes__[0] and Resume(tmp_path / "resume").latest is None


def test_a_dump_that_cannot_be_written_does_not_hide_the_fault(tmp_path):
    (tmp_path / "faults").write_text("in the way")
    with pytest.raises(NonFinite, match=r"loss is nan in step 2(.|\n)*could not be written"):
        fit(make("codec", 1), Feed(spoilt=5), tmp_path)


def test_what_is_no_dump_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"nothing")
    torch.save({"step": 1}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match="wanted a step that was dumped"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "c.pt")


# ---------------------------------------------------------------- faults of the data, and in the middle of a step


@pytest.mark.parametrize(("accumulate", "kept"), [(1, 2), (3, 3)])  # batches are read one ahead
def test_an_error_between_steps_keeps_the_last_step_and_one_within_replays_its_window(accumulate, kept, tmp_path, unbroken):
    def lost(position):
        if position >= 4 * 4 * accumulate - 4:
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fit(make("codec", accumulate), Feed(lost), tmp_path, accumulate)
    assert goes_on("codec", accumulate, tmp_path, unbroken) == kept


def test_an_error_while_weights_change_keeps_the_checkpoint_before(tmp_path, unbroken):
    module = make("diffusion", 1)

    class Breaks(torch.optim.AdamW):
        def step(self, closure=None):
            closure()
            if module.global_step == 4:
                raise RuntimeError("half way")
            return super().step()

    module.optimizer_of = lambda parameters: Breaks(parameters, lr=1e-2)
    with pytest.raises(RuntimeError, match="half way"):
        fit(module, Feed(), tmp_path, every=3)
    assert Resume(tmp_path / "resume").latest.name == "step-00000003.ckpt"


def test_a_full_disk_under_a_preview_keeps_the_step_and_not_the_average(tmp_path, unbroken):
    def full(module):
        raise OSError(errno.ENOSPC, "No space left on device", "page.html")

    with pytest.raises(OSError, match="No space"):
        fit(make("diffusion", 1), Feed(), tmp_path, 1, Samples(full, None), validate=3)
    assert goes_on("diffusion", 1, tmp_path, unbroken) == 3


def test_a_checkpoint_that_cannot_be_written_ends_the_training_and_leaves_the_one_before(tmp_path, monkeypatch, unbroken):
    write = torch.save

    def full(state, file):
        if state["global_step"] >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="GB wanted") as error:
        fit(make("diffusion", 1), Feed(), tmp_path, every=2)
    assert any("could not be written" in note for note in error.value.__notes__)
    cfg = OmegaConf.create({"data": {"workers": 1, "batch_size": 4}})
    told = str(outside.explained(error.value, cfg, tmp_path)).splitlines()
    assert len(told) <= 5 and "step-00000004.ckpt.part: No space left on device" in told[0] and "run= on a larger" in told[1]
    assert "step-00000002.ckpt stays" in told[-1]
    monkeypatch.undo()
    assert goes_on("diffusion", 1, tmp_path, unbroken) == 2


# ---------------------------------------------------------------- stops


class Signals(lightning.Callback):
    """Sends this process a signal in one of the hooks, in a step."""

    def __init__(self, hook, step, number=signal.SIGTERM):
        def send(trainer, module, *args):
            if trainer.global_step >= step and not self.sent:
                self.sent = True
                os.kill(os.getpid(), number)
                time.sleep(0.01)

        self.sent = False
        setattr(self, hook, send)


HOOKS = [
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
]


OTHERS = [(hook, number) for hook in HOOKS[:2] for number in (signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.parametrize(("hook", "number"), [*((hook, signal.SIGTERM) for hook in HOOKS), *OTHERS])
def test_a_signal_leaves_a_checkpoint_within_a_step_and_the_run_goes_on(hook, number, tmp_path, unbroken, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)  # where Lightning saves by itself and puts the job in the queue again
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    seen = []
    shown = Samples(lambda module: seen.append(module.global_step) or [], None)
    trainer, _, resume = fit(make("diffusion", 1), Feed(), tmp_path, 1, shown, Signals(hook, 2, number), validate=3)
    assert resume.stopped and resume.signal == number and resume.saved in (2, 3, 4)
    assert [p.name for p in (tmp_path / "resume").glob("*.ckpt")] == [f"step-{resume.saved:08d}.ckpt"] and not seen
    assert not list(tmp_path.glob("hpc*"))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert goes_on("diffusion", 1, tmp_path, unbroken, callbacks=[shown], validate=3) == resume.saved
    assert seen == [3, 6][resume.saved > 3 :]  # a validation that was left, or not begun, is held


def test_a_signal_ends_a_wait_for_data_and_previews_at_once(tmp_path, unbroken):
    def waits(position):
        if position == 5 * 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    began = time.monotonic()
    *_, resume = fit(make("codec", 1), Feed(waits), tmp_path)
    assert resume.saved == 4 and time.monotonic() - began < 20

    def draws(module):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(30)

    *_, resume = fit(make("codec", 1), Feed(), tmp_path, 1, Samples(draws, None), validate=5)
    assert resume.saved == 5 and time.monotonic() - began < 25
    assert goes_on("codec", 1, tmp_path, unbroken) == 5


def test_a_second_signal_on_the_way_out_does_not_lose_the_checkpoint(tmp_path, unbroken):
    module = make("diffusion", 1)
    twice = Signals("on_exception", 0)
    *_, resume = fit(module, Feed(), tmp_path, 1, twice, Signals("on_validation_batch_end", 3, signal.SIGUSR1), validate=3)
    assert twice.sent and resume.signal == signal.SIGUSR1
    assert goes_on("diffusion", 1, tmp_path, unbroken) == 3


def test_several_processes_end_together_after_the_last_step_too(tmp_path):
    resume = Resume(tmp_path)
    resume._alone, resume.saved = False, 5
    resume.on_train_end(SimpleNamespace(global_step=5), None)
    resume._handle(signal.SIGTERM, None)
    assert resume.signal == signal.SIGTERM and not resume.stopped


@pytest.mark.parametrize("step", [2, 3])  # a row is due at every second
def test_the_table_of_a_stopped_run_is_that_of_one_that_did_not_stop(step, tmp_path):
    def table(folder):
        with open(folder / "metrics.csv", newline="") as file:
            return [{k: row[k] for k in ("step", "train/loss", "train/norm")} for row in csv.DictReader(file)]

    fit(make("codec", 1), Feed(), tmp_path / "whole", validate=2, logger=CSV(tmp_path / "whole"))
    *_, resume = fit(
        make("codec", 1), Feed(), tmp_path / "parts", 1, Signals("on_train_batch_start", step - 1), validate=2,
        logger=CSV(tmp_path / "parts"),
    )  # fmt: skip
    assert resume.saved == step
    logger = CSV(tmp_path / "parts")
    logger.resume(step)
    fit(make("codec", 1), Feed(), tmp_path / "parts", validate=2, logger=logger)
    whole, parts = table(tmp_path / "whole"), table(tmp_path / "parts")
    assert sum(row["train/loss"] != "" for row in whole) == 3 and parts == whole


def test_a_stop_before_anything_has_begun_and_a_second_interrupt(tmp_path):
    resume = Resume(tmp_path)
    with resume.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        raise AssertionError("was to leave")
    assert resume.stopped and resume.latest is None and not issubclass(Stopped, Exception)
    resume = Resume(tmp_path)
    with pytest.raises(SystemExit, match="130"), resume.signals():
        resume._idle = False
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def sleeping(ready):
    leave_signals()
    ready.send(None)
    time.sleep(60)


def test_a_loader_process_is_ended_by_its_trainer_alone():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=sleeping, args=(there,), daemon=True)
    process.start()
    here.recv()
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGUSR1)
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    process.join(0.3)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 128 + signal.SIGTERM


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("kept", "exported", "steps", "minutes", "over"),
    [(8, 8, 8, None, True), (8, 4, 8, None, False), (8, None, 8, None, False), (8, 8, 9, None, False), (8, 8, -1, 2, True)],
)
def test_a_run_has_ended_where_the_model_of_its_last_step_is_there(kept, exported, steps, minutes, over, tmp_path):
    torch.save({"global_step": kept, "seconds": 120.0}, tmp_path / "kept.ckpt")
    if exported is not None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "manifest.json").write_text(json.dumps({"facts": {"steps": exported}}))
    job = SimpleNamespace(run=tmp_path, cfg=OmegaConf.create({"trainer": {"max_steps": steps}, "minutes": minutes}))
    assert ("has ended at step 8" in training.finished(job, tmp_path / "kept.ckpt")) == over


# ---------------------------------------------------------------- in words

KILLED = "DataLoader worker (pid 7) is killed by signal: "
CFG = OmegaConf.create({"data": {"workers": 8, "batch_size": 64}, "trainer": {"accumulate_grad_batches": 1}})


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/index.html"), "x/index.html: No space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "make room on that disk"),
        (RuntimeError(KILLED + "Killed. "), "choose fewer data.workers (now 8) or a smaller data.batch_size (now 64)"),
        (RuntimeError(KILLED + "Bus error. It is possible that dataloader's workers are out of shared memory."), "--shm-size"),
        (RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"), "data.workers (now 8)"),
        (ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: wanted a"), "wanted a"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "smaller data.batch_size (now 64)"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), "on this machine"),
        (MemoryError(), "trainer.accumulate_grad_batches (now 1)"),
        (DistNetworkError("The server socket has failed to listen. port: 5, name: EADDRINUSE"), "choose another: MASTER_PORT="),
        (RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:7042."), "another process of this training"),
    ],
    ids=range(11),
)
def test_what_comes_from_outside_is_told_in_few_lines_with_what_to_do(error, told, tmp_path):
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "step-00000007.ckpt").touch()
    found = outside.explained(error, CFG, tmp_path)
    assert told in str(found) and len(str(found).splitlines()) <= 5 and "step-00000007.ckpt stays" in str(found)


@pytest.mark.parametrize(("error", "killed"), [(OSError("full"), [signal.SIGKILL]), (NonFinite("of all"), []), (None, [])])
def test_an_error_ends_the_processes_that_were_started(error, killed):
    sent = []
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[], kill=sent.append)))
    with pytest.raises(type(error)) if error else nullcontext(), outside.ending_together(trainer):
        if error:
            raise error
    assert sent == killed


def test_what_is_a_fault_of_the_program_is_left_alone(tmp_path):
    for error in (
        TypeError("Caught TypeError in DataLoader worker process 0.\nbug"),
        RuntimeError("bug"),
        ValueError("wanted a"),
    ):
        assert outside.explained(error, CFG, tmp_path) is None


def test_a_long_start_says_what_it_waits_for_until_the_first_step(tmp_path):
    console = Console(file=open(tmp_path / "told", "w"), force_terminal=False)
    with Waiting(0.05, 0.05, console) as waiting:
        waiting.begin("reading the data")
        time.sleep(0.3)
        fit(make("codec", 1), Feed(lambda position: time.sleep(0.3 if position == 0 else 0)), tmp_path, 1, waiting)
        console.file.flush()
        told = (tmp_path / "told").read_text()
        time.sleep(0.2)
    lines = (tmp_path / "told").read_text().splitlines()
    assert "still reading the data (0 s)" in lines and "still waiting for the first batch (0 s)" in lines
    assert told.splitlines() == lines or len(lines) - len(told.splitlines()) <= 1
