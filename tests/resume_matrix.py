"""One training by `mmldm train`'s own way, whole or stopped and continued, and what it leaves: tensors, ids, losses.

`python -m tests.resume_matrix STOP WHERE HOW WORD…` is one start of it in a process of its own, or in one of several.
"""

from __future__ import annotations

import copy
import csv
import functools
import hashlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from unittest import mock

import lightning
import numpy as np
import torch

from mmldm import config
from mmldm.commands import cli, training
from mmldm.training import Resume
from tests import real_files

ROOT = Path(__file__).resolve().parent.parent
STEPS = 6
AXES = {
    "kind": ("diffusion", "codec"),
    "modality": ("image", "audio", "video"),
    "accumulate": (1, 3),
    "workers": (0, 2),
    "where": ("boundary", "window", "validation"),
}
BESIDE = {
    "source": ("world", "files", "cache"),
    "how": ("killed", "asked"),
    "stops": ((4,), (3, 5)),
    "precision": ("32-true", "bf16-mixed"),
    "buckets": (False, True),
}


@dataclass(frozen=True)
class Case:
    """One cell of the matrix: `stops` are the steps in which the training is stopped, one after the other."""

    kind: str = "diffusion"
    modality: str = "image"
    accumulate: int = 1
    workers: int = 0
    where: str = "boundary"
    source: str = "world"
    how: str = "killed"
    stops: tuple[int, ...] = (4,)
    precision: str = "32-true"
    buckets: bool = False
    adversary: bool = True  # of a codec: a second optimiser
    batch: int = 6

    @property
    def whole(self) -> Case:
        """The uninterrupted training that this one must equal: loaded by no other processes."""
        return replace(self, workers=0, where="boundary", how="killed", stops=())

    @property
    def possible(self) -> bool:
        """Latents cannot train what makes them, and the built-in world has no sizes to choose by."""
        return (self.kind, self.source) != ("codec", "cache") and (self.source == "files" or not self.buckets)

    def pairs(self) -> set[tuple]:
        """Every two of its values with their axes."""
        return set(itertools.combinations([(f.name, getattr(self, f.name)) for f in fields(self)], 2))

    def __str__(self) -> str:
        stops = "+".join(map(str, self.stops)) or "whole"
        words = [self.kind, self.modality, f"by{self.accumulate}", f"workers{self.workers}", self.source, self.precision]
        words += ["buckets"] * self.buckets + ["alone"] * (not self.adversary) + [f"batch{self.batch}"] * (self.batch != 6)
        return "-".join([*words, self.how, self.where, stops])


def product(axes: dict) -> list[Case]:
    """Every combination of the axes that is possible, the others of their first values."""
    found = [Case(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    return [case for case in found if case.possible]


@functools.cache
def pairwise() -> list[Case]:
    """Few cases in which every possible pair of values occurs: a greedy cover, in an order that needs few."""
    cases, chosen = product(AXES | BESIDE), []
    random.Random(13).shuffle(cases)
    pairs = {case: case.pairs() for case in cases}
    missing = set().union(*pairs.values())
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def full() -> list[Case]:
    """Every combination of the axes that are promised; the values of the others take turns."""
    turns = itertools.cycle(dict(zip(BESIDE, values, strict=True)) for values in itertools.product(*BESIDE.values()))
    return [next(found for turn in turns if (found := replace(case, **turn)).possible) for case in product(AXES)]


# ---------------------------------------------------------------- stopping and writing down


class Killed(BaseException):
    """The end of a process without a goodbye: nothing may catch it to save something."""


class Journal(lightning.Callback):
    """Notes in RUN/journal.jsonl what each batch was and gave; ends in step `stop`: after it, within it or in a validation."""

    def __init__(self, run: Path, stop: int | None = None, where: str = "boundary", how: str = "killed"):
        self.path, self.stop, self.where, self.how = run / "journal.jsonl", stop, where, how

    def on_fit_start(self, trainer, pl_module):
        if self.path.is_file():  # a training goes on: nothing of this process may matter, all is in the checkpoint
            disturb()

    def on_after_backward(self, trainer, pl_module):
        place = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches
        if self._now("window", trainer.global_step + 1) and place == max(0, trainer.accumulate_grad_batches - 2):
            self._end()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for position, index in zip(batch.position.tolist(), batch.index.tolist(), strict=True):
            self._append({"what": f"position {position}", "index": index})
        self._append({"what": f"batch {batch.position.tolist()}", "loss": float(loss), "rates": rates})
        if self._now("boundary", trainer.global_step) and not trainer.fit_loop._should_accumulate():
            self._end()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if self._now("validation", trainer.global_step + 1):
            self._end()

    def on_validation_end(self, trainer, pl_module):
        numbers = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self._append({"what": f"validation after {trainer.fit_loop.epoch_loop.total_batch_idx}", **numbers})

    def _now(self, where: str, step: int) -> bool:
        return self.where == where and self.stop is not None and step >= self.stop

    def _end(self) -> None:
        if self.how == "killed":
            raise Killed
        self.stop = None
        os.kill(os.getpid(), signal.SIGKILL if self.how == "SIGKILL" else signal.SIGTERM)

    def _append(self, line: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def disturb() -> None:
    """Seed every global generator otherwise."""
    seed = 1 + int.from_bytes(os.urandom(2), "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def moved(module: torch.nn.Module) -> None:
    """Move every weight that trains: all that matters comes from the checkpoint."""
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(1.0)


composed = functools.cache(config.compose)


def leg(words: list[str], stop: int | None = None, where: str = "boundary", how: str = "killed") -> bool:
    """One start of the command, to the end or to its stop; whether it came to the end."""
    build = training.build_trainer

    def watched(job, *parts):
        trainer = build(job, *parts)
        if latest(job.run):
            moved(job.module)
        trainer.callbacks.insert(0 if how == "asked" else len(trainer.callbacks), Journal(job.run, stop, where, how))
        return trainer

    cfg = copy.deepcopy(composed(tuple(words)))
    with mock.patch.object(training, "build_trainer", watched):
        try:
            training.train(cfg)
        except (Killed, SystemExit):
            return False
    return True


# ---------------------------------------------------------------- what is left


def tensors(value, name: str = "") -> dict[str, object]:
    """Nested state as {path: sha256 of a tensor, or a plain value}."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {name: (hashlib.sha256(raw).hexdigest(), tuple(value.shape), str(value.dtype))}
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in tensors(part, f"{name}/{key}").items()}
    return {name: value}


TIMES = ("/seconds", "/loops", "/callbacks/Progress", "/callbacks/Speed")  # wall clock, and Lightning's own counts


def left(run: Path) -> dict[str, object]:
    """All that a finished run has: its newest checkpoint, averages, model and log, what each position read and gave."""
    saved = torch.load(latest(run), weights_only=True, map_location="cpu")
    found = {k: v for k, v in tensors(saved).items() if not k.startswith(TIMES)}
    for file in sorted([*run.glob("ema/*.safetensors"), *run.glob("model/*.safetensors")]):
        found[file.relative_to(run).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found | journal(run) | logged(run)


def logged(run: Path) -> dict[str, str]:
    """The losses of RUN/logs/metrics.csv by step; raises AssertionError where a step has two."""
    found: dict[str, str] = {}
    with open(run / "logs" / "metrics.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in ("train/loss", "val/loss"):
                if row[name] and found.setdefault(f"log of {name} {row['step']}", row[name]) != row[name]:
                    raise AssertionError(f"{name} of step {row['step']} is logged twice")
    return found


def journal(run: Path, prefix: str = "") -> dict[str, object]:
    """{what: numbers} of every line that begins so; raises AssertionError where a step that was replayed gave other ones."""
    found: dict[str, object] = {}
    for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines():
        numbers = json.loads(line)
        what = numbers.pop("what")
        if what.startswith(prefix) and found.setdefault(what, numbers) != numbers:
            raise AssertionError(f"{what}: first {found[what]}, replayed {numbers}")
    return found


def differences(one: dict, other: dict) -> list[str]:
    """What two runs do not share, in words."""
    return [f"{k}: {one.get(k)} != {other.get(k)}" for k in sorted(one.keys() | other.keys()) if one.get(k) != other.get(k)]


# ---------------------------------------------------------------- the trainings


class Trainings:
    """Makes and remembers, below one folder, the data, codecs, caches and uninterrupted trainings that the cases share."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: dict[object, object] = {}

    def words(self, case: Case, run: Path) -> list[str]:
        """The command line of a case."""
        m, codec = case.modality, case.kind == "codec"
        words = [
            f"experiment=world_{m}_{case.kind}",
            f"run={run}",
            f"data.batch_size={case.batch}",
            f"data.workers={case.workers}",
        ]
        words += [f"trainer.max_steps={STEPS}", f"trainer.accumulate_grad_batches={case.accumulate}"]
        words += [f"trainer.precision={case.precision}", "trainer.accelerator=cpu", "trainer.limit_val_batches=2"]
        words += [f"trainer.val_check_interval={2 if case.accumulate == 1 else 4}", "checkpoint_every=2", "schedule.warmup=2"]
        words += ["trainer.log_every_n_steps=1"]
        words += ["snapshots=3", "whitening_batches=1", "previews=0", "data.memory=false", "data.validation=8"]
        words += CLIPS[m] + self.data(case)
        if codec:
            return words + small_codec(m, case.adversary)
        words += [f"codec.{m}={self.codec(m)}", "denoiser.width=16", "denoiser.depth=1", "denoiser.heads=2"]
        words += [f"+conditions.conditioners.text.{size}" for size in ("width=16", "depth=1", "words=64", "pieces=64")]
        return words + ["diffusion/known=edit", "diffusion.steps=2"]

    def data(self, case: Case) -> list[str]:
        if case.source == "world":
            return ["data.items=40"]
        words = ["data=folder", f"data.path={self.files(case.modality)}", "data.max_bad_fraction=0.5", "data.validation=3"]
        words += [f"data.cache={self.cache(case.modality)}"] if case.source == "cache" else []
        return words + (["data.buckets.multiple=3", *BUCKETS[case.modality]] if case.buckets else [])

    def once(self, name: str, make) -> Path:
        path = self.folder / name
        if name not in self.made:
            make(path)
            self.made[name] = path
        return path

    def files(self, modality: str) -> Path:
        make = {"image": real_files.images, "audio": real_files.sounds, "video": real_files.videos}[modality]
        return self.once(f"{modality}-files", make)

    def codec(self, modality: str) -> Path:
        words = [f"experiment=world_{modality}_codec", *small_codec(modality), *CLIPS[modality], "data.items=8", "previews=0"]
        words += ["data.batch_size=4", "data.validation=2", "trainer.max_steps=1", "whitening_batches=1", "snapshots=0"]
        words += ["trainer.accelerator=cpu", "trainer.precision=32-true"]
        return self.once(f"{modality}-codec", lambda run: training.train(config.compose([*words, f"run={run}"])))

    def cache(self, modality: str) -> Path:
        words = [f"data.path={self.files(modality)}", "data.workers=0", "data.max_bad_fraction=0.5", *CLIPS[modality]]
        return self.once(f"{modality}-cache", lambda out: cli.main(["encode", str(self.codec(modality)), *words, f"out={out}"]))

    def whole(self, case: Case) -> dict[str, object]:
        """What the uninterrupted training of a case leaves; trained once."""
        if case.whole not in self.made:
            self.made[case.whole] = self.parts(case.whole, self.folder / f"{case.whole}")
        return self.made[case.whole]

    def parts(self, case: Case, run: Path) -> dict[str, object]:
        """What a case leaves: stopped in each of its steps, and continued to the end."""
        words = self.words(case, run)
        for stop in case.stops:
            assert not leg(words, stop, case.where, case.how), f"{case} was not stopped in step {stop}"
            saved = saved_step(run)
            assert saved >= stop - (1 if case.how == "asked" else 2), f"stopped in step {stop}, continues from {saved}"
        assert leg(words), f"{case} did not come to its end"
        return left(run)


def latest(run: Path) -> Path | None:
    """The checkpoint that a run would continue from."""
    return Resume(run / "resume").latest


def saved_step(run: Path) -> int:
    """The step that a run would continue from."""
    path = latest(run)
    return torch.load(path, weights_only=True, map_location="cpu")["global_step"] if path else 0


CLIPS = {
    "image": ["data.size=[16,16]"],
    "audio": ["data.seconds=0.256"],
    "video": ["data.size=[16,16]", "data.seconds=0.625"],
}
BUCKETS = {  # batches of 6 of the smaller, of 3 of the larger
    "image": ["data.buckets.sizes=[[16,16],[16,24]]", "data.buckets.tokens=100"],
    "audio": ["data.buckets.seconds=[0.512,1.024]", "data.buckets.tokens=270"],
    "video": ["data.buckets.sizes=[[16,16],[16,20]]", "data.buckets.tokens=200"],
}


def small_codec(modality: str, adversary: bool = False) -> list[str]:
    """A codec of few weights; with an adversary from step 3 on: two optimisers."""
    words = [f"codec.{modality}.width=8", f"codec.{modality}.blocks=1"]
    if adversary:
        words += ["adversary=patch", "adversary.discriminators.patch.width=4", "adversary.discriminators.patch.layers=1"]
        words += ["adversary.start=2", "adversary.ramp=2"]
    return words


def processes(words: list[str], count: int = 1, stop: int = 0, where: str = "boundary", how: str = "asked") -> list[int]:
    """One start of the command in `count` processes of their own; their exit statuses."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = [*words, f"trainer.devices={count}", "trainer.strategy=ddp"]
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    command = [sys.executable, "-m", "tests.resume_matrix", str(stop), where, how, *words]
    ranks = [{"LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    started = [subprocess.Popen(command, cwd=ROOT, env=shared | rank, stderr=subprocess.PIPE) for rank in ranks]
    try:
        told = [process.communicate(timeout=200)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode not in (0, -signal.SIGKILL, 128 + signal.SIGTERM) for process in started):
        raise RuntimeError("\n".join(told))
    return [process.returncode for process in started]


if __name__ == "__main__":
    torch.set_num_threads(1)
    leg(sys.argv[4:], int(sys.argv[1]) or None, *sys.argv[2:4])
