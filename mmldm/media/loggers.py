"""Where a run's numbers and media are told beside its page: a table, TensorBoard, Weights & Biases, trackio.

A run that continues goes on in the same place, and no number of a step is told twice.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import uuid
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from mmldm.interfaces import Preview
from mmldm.media.files import replacing

__all__ = ["CSV", "TensorBoard", "Trackio", "WandB"]


class Told:
    """The last step that each name was told at, kept in `path` (None: not kept) for the run that continues, with its `id`."""

    def __init__(self, path: Path | None = None):
        self.path, self.id, self.steps = path, "", {}
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.id, self.steps = kept["id"], kept["steps"]

    def forget(self, step: int) -> None:
        """What was told of this step and later ones does not count."""
        self.steps = {name: min(last, step - 1) for name, last in self.steps.items()}

    def news(self, names: Iterable[str], step: int) -> list[str]:
        """Those of the names that were not told at this step yet; they count as told from now on."""
        new = [name for name in names if step > self.steps.get(name, -1)]
        self.steps.update(dict.fromkeys(new, step))
        if new and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as aside:
                aside.write_text(json.dumps({"id": self.id, "steps": self.steps}), encoding="utf-8")
        return new


class CSV(Logger):
    """`save_dir`/metrics.csv: a row per step and kind of numbers, a column per name."""

    def __init__(self, save_dir: str | Path):
        super().__init__()
        self.path, self.columns, self.told = Path(save_dir) / "metrics.csv", ["step"], Told()

    @property
    def name(self) -> str:
        """What kind of logger it is."""
        return "csv"

    @property
    def version(self) -> str:
        """A run has one."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is kept elsewhere in the run."""

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Keep the rows before this step; the others come again."""
        rows = [row for row in self._rows() if int(row["step"]) < step]
        for row in rows:
            self.told.news([name for name in row if row[name] not in ("", None)], int(row["step"]))
        self.columns = list(rows[0]) if rows else ["step"]
        if self.path.is_file():
            self._write(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        step = int(metrics.get("step", 0)) if step is None else step
        row = {name: float(metrics[name]) for name in self.told.news(metrics, step)}
        if not row:
            return
        fresh = sorted(set(row) - set(self.columns))
        self.columns += fresh
        if fresh or not self.path.is_file():
            self._write([*self._rows(), {**row, "step": step}])
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({**row, "step": step})

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if (row["step"] or "").isdigit()]  # the last may be cut off

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class TensorBoard(TensorBoardLogger):
    """Event files in `save_dir`: numbers, pictures, sounds; of a clip the strip of its frames, and where its file lies."""

    def __init__(self, save_dir: str | Path):
        super().__init__(str(save_dir), name=None, version="")
        self.told = Told(Path(save_dir) / "tensorboard.json")

    def resume(self, step: int) -> None:
        """TensorBoard leaves out what it was told of this step and later ones before."""
        self.told.forget(step)
        if step:
            self._kwargs["purge_step"] = step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Tell what was not told of this step."""
        new = self.told.news(metrics, step or 0)
        if new:
            super().log_metrics({name: metrics[name] for name in new}, step)
            self.experiment.flush()

    @rank_zero_only
    def media(self, section: str, step: int, items: Sequence[Sequence[Preview]]) -> None:
        """Tell the previews of a step, one series per sample."""
        if not self.told.news([f"media/{section}"], step):
            return
        board = self.experiment
        for tag, preview in _shown(section, items):
            if preview.kind == "picture":
                with Image.open(preview.path) as picture:
                    board.add_image(tag, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            elif preview.kind == "audio":
                with wave.open(str(preview.path)) as file:
                    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
                    board.add_audio(tag, torch.from_numpy(samples.mean(1) / 2**15), step, file.getframerate())
            else:
                board.add_text(tag, f"`{preview.path}`", step)
            if preview.caption:
                board.add_text(f"{tag}/caption", preview.caption, step)
        board.flush()


class WandB(WandbLogger):
    """Weights & Biases, its files in `save_dir`; `offline` keeps everything there until `wandb sync`. A run that continues goes
    on under its id. Raises ImportError without the extra `wandb`, ValueError where W&B knows no account."""

    def __init__(self, save_dir: str | Path, project: str = "mmldm", entity: str | None = None, name: str | None = None,
                 offline: bool = False):  # fmt: skip
        _wanted("wandb")
        self.told = Told(Path(save_dir) / "wandb.json")
        self.told.id = self.told.id or uuid.uuid4().hex[:12]
        name = name or Path(save_dir).resolve().parent.name
        super().__init__(name, str(save_dir), self.told.id, offline, project=project, entity=entity)
        self._wandb_init.pop("anonymous", None)  # which wandb has given up

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Begin or continue the run; what was told of this step and later ones before stays, and is not told again."""
        import wandb

        Path(self.save_dir).mkdir(parents=True, exist_ok=True)
        try:
            _ = self.experiment
        except wandb.Error as error:
            raise ValueError(
                f"wanted an account of Weights & Biases, got: {error}; run `wandb login`, or choose logger.wandb.offline=true"
            ) from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Tell what was not told of this step."""
        if new := self.told.news(metrics, step or 0):
            super().log_metrics({name: metrics[name] for name in new}, step)

    @rank_zero_only
    def media(self, section: str, step: int, items: Sequence[Sequence[Preview]]) -> None:
        """Tell the previews of a step, each under a name of its own."""
        import wandb

        self.log_metrics(_made(wandb.Image, wandb.Audio, wandb.Video, section, items), step)


class Trackio(Logger):
    """trackio, which keeps its data on this machine (TRACKIO_DIR) unless `space_id` names a Space. A run that continues goes on
    under its name. Raises ImportError without the extra `trackio`."""

    def __init__(self, save_dir: str | Path, project: str = "mmldm", name: str | None = None, space_id: str | None = None):
        super().__init__()
        _wanted("trackio")
        self.told = Told(Path(save_dir) / "trackio.json")
        self.told.id = self.told.id or f"{name or Path(save_dir).resolve().parent.name}-{uuid.uuid4().hex[:6]}"
        self.project, self.space_id, self.run = project, space_id, None

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str:
        """The run's name in it."""
        return self.told.id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is kept elsewhere in the run."""

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Begin or continue the run; what was told of this step and later ones before stays, and is not told again."""
        import trackio

        self.run = trackio.init(self.project, name=self.told.id, space_id=self.space_id, resume="allow", embed=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Tell what was not told of this step."""
        if self.run is None:
            self.resume(step or 0)
        if new := self.told.news(metrics, step or 0):
            self.run.log({name: metrics[name] for name in new}, step=step)

    @rank_zero_only
    def media(self, section: str, step: int, items: Sequence[Sequence[Preview]]) -> None:
        """Tell the previews of a step, each under a name of its own."""
        import trackio

        self.log_metrics(_made(trackio.Image, trackio.Audio, trackio.Video, section, items), step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still under way."""
        if self.run is not None:
            self.run.finish()
            self.run = None


def _wanted(package: str) -> None:
    """Raise ImportError where the package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"logger={package} wants the package {package}: pip install 'mmldm[{package}]'")


def _shown(section: str, items: Sequence[Sequence[Preview]]) -> Iterator[tuple[str, Preview]]:
    """Every preview with the name it is told under: section, number of the sample, kind."""
    for i, previews in enumerate(items):
        for preview in previews:
            yield f"{section}/{i}/{preview.kind}", preview


def _made(picture: Any, sound: Any, clip: Any, section: str, items: Sequence[Sequence[Preview]]) -> dict[str, Any]:
    """Every preview as the object of a logger, by the name it is told under."""
    kinds = {"picture": picture, "audio": sound, "video": clip}
    return {tag: kinds[p.kind](str(p.path), caption=p.caption or None) for tag, p in _shown(section, items)}
