"""The stages of `mmldm demo`: the same training, encoding, generation and measuring that the other commands run."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mmldm import config, store
from mmldm.commands import measuring
from mmldm.commands.demo import RESERVE, SHARES
from mmldm.commands.encode import encode
from mmldm.commands.outputs import write_samples
from mmldm.commands.training import train
from mmldm.media import Page
from mmldm.pipeline import Pipeline

__all__ = ["demonstrate"]

console = Console(stderr=True)


@dataclass
class Clock:
    """Deals out what is left of the budget by the shares of the stages that are still to come."""

    start: float
    minutes: float
    reserve: float
    shares: list[float] = field(default_factory=list)

    def next(self) -> float:
        """Minutes for the next training."""
        left = self.start + 60 * self.minutes - time.monotonic() - self.reserve
        share = self.shares.pop(0)
        return max(0.05, left / 60 * share / (share + sum(self.shares)))

    @property
    def spent(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.start) / 60


def demonstrate(modalities: Sequence[str], minutes: float, out: Path, seed: int, samples: int, start: float) -> dict[str, Any]:
    """Run the whole way for each modality within the budget; returns the report, also written to out/report.json."""
    for name in (*modalities, "index.html", "page.json"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).unlink(missing_ok=True)
    shares = [share for m in modalities for share in SHARES[m]]
    clock = Clock(start, minutes, sum(RESERVE[m] for m in modalities), shares)
    page = Page(out, title="mmldm demo")
    report: dict[str, Any] = {"minutes": 0.0, "adherence": {}, "heldout": {}, "reconstruction": {}}
    for modality in modalities:
        one(modality, out / modality, clock, page, report, seed, samples)
        clock.reserve -= RESERVE[modality]
    report["minutes"] = round(clock.spent, 2)
    rows = [[m, name, f"{share:.0%}"] for m, scores in report["adherence"].items() for name, share in scores.items()]
    page.table("Summary", rows, ["modality", "attribute", "right"], title=f"{report['minutes']} minutes")
    page.write()
    (out / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def one(modality: str, folder: Path, clock: Clock, page: Page, report: dict[str, Any], seed: int, samples: int) -> None:
    """Codec, latents, diffusion model, samples and numbers of one modality."""
    codec, model, cache = folder / "codec", folder / "model", folder / "latents"
    train(compose(f"world_{modality}_codec", codec, clock.next(), seed))
    cfg = config.compose(["data=world", f"data.kind={modality}", f"out={cache}", "batch_size=128"], "encode")
    encode(codec, cfg, progress=False)
    told = config.compose(["data=world", f"data.kind={modality}", "count=64"], "evaluate")
    report["reconstruction"][modality] = measuring.reconstruction(
        store.load_model(codec), told, page, (), f"{modality}: reconstructions"
    )
    train(compose(f"world_{modality}_diffusion", model, clock.next(), seed, f"codec.{modality}={codec}", f"data.cache={cache}"))
    pipeline = Pipeline.load(model)
    report["adherence"][modality], made = measuring.adherence(pipeline, modality, samples, "train", seed=seed, batch_size=32)
    report["heldout"][modality], _ = measuring.adherence(pipeline, modality, samples // 2, "heldout", seed=seed, batch_size=32)
    write_samples(made[:8], folder / "samples", {"model": str(model)})
    measuring.show(page, f"{modality}: samples", made[:8])
    rows = [
        [name, f"{share:.0%}", f"{report['heldout'][modality][name]:.0%}"]
        for name, share in report["adherence"][modality].items()
    ]
    page.table(f"{modality}: adherence", rows, ["attribute", "seen combinations", "held-out combinations"])
    for name, run in (("codec", codec), ("diffusion", model)):
        steps, values = curve(run / "logs" / "metrics.csv", "train/loss")
        page.curve(f"{modality}: training", f"{name} loss", steps, values)
    page.write()
    console.print(f"{modality}: {report['adherence'][modality]} after {clock.spent:.1f} minutes")


def compose(experiment: str, run: Path, minutes: float, seed: int, *overrides: str) -> Any:
    """The configuration of one training of the demo."""
    words = [f"experiment={experiment}", f"run={run}", f"minutes={minutes:.3f}", f"seed={seed}", *overrides]
    return config.compose(words)


def curve(path: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of a CSV log."""
    if not path.is_file():
        return [], []
    with open(path, encoding="utf-8", newline="") as file:
        points = [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    return [p[0] for p in points], [p[1] for p in points]
