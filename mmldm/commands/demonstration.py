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
from mmldm.commands.encode import listed
from mmldm.commands.encoding import encode
from mmldm.commands.fidelity import fidelity
from mmldm.commands.outputs import write_samples
from mmldm.commands.training import train
from mmldm.media import Page
from mmldm.pipeline import Pipeline

__all__ = ["demonstrate"]

# shares of the time budget: training of the codec, training of the diffusion model
SHARES = {"image": (0.05, 0.11), "audio": (0.07, 0.17), "video": (0.15, 0.45)}
RESERVE = {"image": 11.0, "audio": 16.0, "video": 20.0}  # seconds for encoding, generating and measuring

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
    """Run the whole way for each modality within the budget; returns the report, also written to out/report.json.

    `start` is the time.monotonic() that the budget counts from. An earlier demo in `out` is replaced; raises ValueError where
    `out` holds something else.
    """
    clear(out, modalities)
    shares = [share for m in modalities for share in SHARES[m]]
    clock = Clock(start, minutes, sum(RESERVE[m] for m in modalities), shares)
    page = Page(out, title="mmldm demo")
    page.text("Summary", f"images, audio and video from text within {minutes:g} minutes on this machine", name="minutes")
    report: dict[str, Any] = {"minutes": 0.0, "adherence": {}, "heldout": {}, "reconstruction": {}}
    for modality in modalities:
        one(modality, out / modality, clock, page, report, seed, samples)
        clock.reserve -= RESERVE[modality]
    report["minutes"] = round(clock.spent, 2)
    rows = [[m, name, f"{share:.0%}"] for m, scores in report["adherence"].items() for name, share in scores.items()]
    page.table("Summary", rows, ["modality", "attribute", "right"], title="What its prompt says is in the sample")
    page.text("Summary", f"{report['minutes']} minutes in all; combinations that were not held out", name="minutes")
    page.write()
    (out / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def clear(out: Path, modalities: Sequence[str]) -> None:
    """Remove an earlier demo of these modalities and begin its report."""
    there = [name for name in (*modalities, "index.html", "index.json") if (out / name).exists()]
    if there and not is_demo(out / "report.json"):
        raise ValueError(f"wanted a new folder or an earlier demo, got {out}, which holds {', '.join(there)}; choose --out DIR")
    for name in there:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text("{}", encoding="utf-8")


def is_demo(path: Path) -> bool:
    """Whether a file is the report of a demo, begun or finished."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return report == {} or (isinstance(report, dict) and "adherence" in report)


def one(modality: str, folder: Path, clock: Clock, page: Page, report: dict[str, Any], seed: int, samples: int) -> None:
    """Codec, latents, diffusion model, samples and numbers of one modality."""
    codec, model, cache = folder / "codec", folder / "model", folder / "latents"
    train(compose(f"world_{modality}_codec", codec, clock.next(), seed))
    words = [*listed("models", [str(codec)]), "data=world", f"data.kind={modality}", quoted("out", cache), "batch_size=128"]
    encode(config.compose(words, "encode"), progress=False)
    told = config.compose(["data=world", f"data.kind={modality}", "count=64", "embedder=none"], "evaluate")
    found = fidelity(store.load_model(codec), told, page, (), f"{modality}: reconstructions")
    report["reconstruction"][modality] = found["reconstruction"]
    parts = quoted(f"codec.{modality}", codec), quoted("data.cache", cache)
    train(compose(f"world_{modality}_diffusion", model, clock.next(), seed, *parts))
    pipeline, options = Pipeline.load(model), {"seed": seed, "batch_size": 32}
    report["adherence"][modality], made = measuring.adherence(pipeline, modality, samples, "train", **options)
    report["heldout"][modality], _ = measuring.adherence(pipeline, modality, max(1, samples // 2), "heldout", **options)
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
    words = [
        f"experiment={experiment}",
        quoted("run", run),
        f"minutes={minutes:.3f}",
        f"seed={seed}",
        "ema=0.05",
        "snapshots=0",
    ]
    return config.compose([*words, *overrides])


def quoted(key: str, path: Path) -> str:
    """An override that holds any path, spaces and commas included."""
    text = str(path).replace('"', '\\"')
    return f'{key}="{text}"'


def curve(path: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of a CSV log."""
    if not path.is_file():
        return [], []
    with open(path, encoding="utf-8", newline="") as file:
        points = [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    return [p[0] for p in points], [p[1] for p in points]
