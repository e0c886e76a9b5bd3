"""mmldm runs: every run below a folder, with its state and its best number."""

from __future__ import annotations

import csv
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from mmldm.commands.arguments import Parser

HELP = "list runs with their state and best numbers"
LOST = 10  # renewals of a state that were missed when its process counts as gone


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(prog="mmldm runs", description=HELP)
    p.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where the runs are (default: runs)")
    p.add_argument("--metric", default="val/loss", help="the logged number of which the least is shown (default: val/loss)")
    p.add_argument("--json", action="store_true", help="one JSON object per run")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if not args.folder.is_dir():
        raise ValueError(f"wanted a folder of runs, got {args.folder}, which is no folder; for example: mmldm runs runs")
    found = [describe(run, args.folder, args.metric) for run in runs(args.folder)]
    if args.json:
        for run in found:
            print(json.dumps(run))
        return 0
    if not found:
        print(f"no runs in {args.folder}")
        return 0
    from rich.console import Console
    from rich.table import Table

    head = ("run", "kind", "state", "steps", "minutes", f"best {args.metric}", "on", "changed")
    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for run in sorted(found, key=lambda run: run["changed"]):
        table.add_row(*cells(run))
    Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False)
    return 0


def runs(folder: Path) -> Iterator[Path]:
    """The run folders below, the folder itself included, in order of their names; what lies in a run is not searched."""
    for place, names, files in os.walk(folder):
        there = Path(place)
        if "state.json" in files or (there / "model" / "manifest.json").is_file() or (there / "resume").is_dir():
            names.clear()
            yield there
        names.sort()


def describe(run: Path, folder: Path, metric: str = "val/loss") -> dict[str, Any]:
    """What the files of a run say: its state, how far it came, its best number."""
    kept, manifest = read(run / "state.json"), read(run / "model" / "manifest.json")
    facts = manifest.get("facts", {})
    step, numbers = kept.get("step", facts.get("steps")), facts.get("numbers", {})
    return {
        "run": run.relative_to(folder).as_posix() if run != folder else run.name,
        **what(run, kept),
        **state(kept, bool(manifest)),
        "step": step,
        "steps": kept.get("steps", facts.get("steps")),
        "minutes": round(kept["seconds"] / 60, 1) if "seconds" in kept else facts.get("minutes"),
        "left": kept.get("left"),
        "best": best(run / "logs" / "metrics.csv", metric, step) or numbered(numbers, metric, facts.get("steps")),
        "device": kept.get("device", facts.get("device")),
        "changed": kept.get("time", run.stat().st_mtime),
    }


def read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def what(run: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """The kind of model and its streams, as the state or the model says."""
    if "kind" in kept:
        return {"kind": kept["kind"], "streams": kept.get("streams", [])}
    try:
        model = yaml.safe_load((run / "model" / "model.yaml").read_text(encoding="utf-8"))
        return {"kind": model["kind"], "streams": sorted(model["codecs"])}
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return {"kind": None, "streams": []}


def state(kept: dict[str, Any], exported: bool) -> dict[str, Any]:
    """running, stopped, finished, failed (with its error), or lost: a process that ended without a word."""
    said = kept.get("state", "finished" if exported else "stopped")
    if said == "running":
        here = os.name == "posix" and kept.get("host") == socket.gethostname()
        silent = time.time() - kept.get("time", 0.0) > LOST * kept.get("every", 30.0)
        said = "lost" if (not alive(kept.get("pid", -1)) if here else silent) else said
    return {"state": said, "error": kept.get("error") if said == "failed" else None}


def alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def best(table: Path, metric: str, reached: int | None = None) -> dict[str, Any] | None:
    """The least value of a column of the logged numbers, and its step: a log counts from 0, but for a validation at the end."""
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = [(float(row[metric]), int(row["step"]) + 1) for row in csv.DictReader(file) if row.get(metric)]
    except (OSError, ValueError):
        return None
    rows = [row for row in rows if math.isfinite(row[0])]
    if not rows:
        return None
    value, step = min(rows)
    return numbered({metric: value}, metric, min(step, reached or step))


def numbered(numbers: dict[str, float], metric: str, step: int | None) -> dict[str, Any] | None:
    """A number with its name and step."""
    return {"name": metric, "value": numbers[metric], "step": step} if metric in numbers else None


def cells(run: dict[str, Any]) -> list[str]:
    """A run as a row of the table."""
    told = {"lost": "lost; the same command continues", "stopped": "stopped; the same command continues"}
    words = told.get(run["state"], run["state"]) + (f": {run['error'][:80]}" if run["error"] else "")
    if run["state"] == "running" and run["left"]:
        words += f", {timedelta(seconds=round(run['left']))} left"
    steps = "" if run["step"] is None else f"{run['step']:,}"
    steps += f" of {run['steps']:,}" if steps and (run["steps"] or 0) > 0 and run["steps"] != run["step"] else ""
    least = f"{run['best']['value']:.4g} at {run['best']['step'] or '?'}" if run["best"] else ""
    kind = " ".join([run["kind"] or "?", *run["streams"]])
    minutes = "" if run["minutes"] is None else f"{run['minutes']:g}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["changed"]))
    return [run["run"], kind, words, steps, minutes, least, run["device"] or "", when]


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
