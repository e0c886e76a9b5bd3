"""Buckets: clips of several lengths and sizes in one training, and which item belongs to which, by its header."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mmldm.data.check import Report
from mmldm.data.source import Source
from mmldm.interfaces import Info, Media, MediaError
from mmldm.media.sizes import planar, sized

__all__ = ["Bucket", "Buckets", "Headers", "bucket_line", "bucket_table", "cells_of", "survey"]

LIKE = 0.05  # aspect ratios that differ by less, in log, count as the same

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """Clips of one shape: the media of each stream at one length and one size."""

    name: str
    medias: dict[str, Media]

    def usage(self, headers: Headers) -> dict[str, float]:
        """What is done to items: padded, enlarged, seconds used and cropped away, share of the area that is cropped."""
        clip, slack = _seconds(self.medias), _slack(self.medias)
        size = next((m.shape[-2:] for m in self.medias.values() if planar(m)), (np.nan, np.nan))
        scale = np.maximum(size[0] / headers.height, size[1] / headers.width)
        kept = size[0] * size[1] / (headers.height * headers.width * scale**2)
        kept = kept[~np.isnan(kept)]
        clip = np.nan if clip is None else clip
        return {
            "padded": int((headers.seconds < clip - slack).sum()),
            "enlarged": int((scale > 1 + 1e-6).sum()),
            "used_seconds": round(float(np.nansum(np.minimum(headers.seconds, clip))) if clip == clip else 0.0, 3),
            "cropped_seconds": round(float(np.nansum((headers.seconds - clip).clip(0))), 3),
            "cropped_area": round(float(1 - kept.mean()), 4) if len(kept) else 0.0,
        }


@dataclass(frozen=True)
class Headers:
    """What the headers of items say, NaN where they do not: `seconds`, `height` and `width` (n,), `known` (n,) has a header."""

    seconds: np.ndarray
    height: np.ndarray
    width: np.ndarray
    known: np.ndarray

    @classmethod
    def read(cls, source: Source, rows: Sequence[int] | np.ndarray, medias: Mapping[str, Media]) -> Headers:
        """The headers of these rows, of a source that has them (`infos`); what cannot be read is known of no item."""
        return cls.of((_infos(source, row) for row in np.asarray(rows).tolist()), len(rows), medias)

    @classmethod
    def of(cls, infos: Iterable[Mapping[str, Info] | None], count: int, medias: Mapping[str, Media]) -> Headers:
        """The same from `count` headers by stream, None where there is none."""
        table = np.full((count, 4), np.nan)
        table[:, 3] = 0
        for line, found in zip(table, infos, strict=True):
            if found is not None:
                lead = next((found[s].seconds for s, m in medias.items() if s in found and m.time_axis is not None), None)
                size = next((found[s].shape[-2:] for s, m in medias.items() if s in found and planar(m)), (np.nan, np.nan))
                line[:] = (np.nan if lead is None else lead, *size, 1)
        return cls(table[:, 0], table[:, 1], table[:, 2], table[:, 3] == 1)

    def __getitem__(self, chosen: np.ndarray) -> Headers:
        return Headers(*(getattr(self, f.name)[chosen] for f in fields(self)))


@dataclass(frozen=True)
class Buckets:
    """Clip lengths (`seconds`) and picture `sizes` (height, width) of one training; without either all clips are alike.

    An item belongs to the longest clip that it fills (the shortest is padded) and to the size of the nearest aspect ratio, the
    largest that does not enlarge it. `stills`: pictures beside moving ones are clips of one frame. A batch is of one
    bucket: of the global batch as many items as `tokens` latent cells allow (None: all), a multiple of `multiple`,
    which processes × accumulated batches must divide.
    """

    seconds: Sequence[float] = ()
    sizes: Sequence[Sequence[int]] = ()
    tokens: int | None = None
    multiple: int = 8
    stills: bool = False

    def __post_init__(self) -> None:
        if any(not s > 0 for s in self.seconds) or len(set(self.seconds)) < len(self.seconds):
            raise ValueError(f"wanted different seconds > 0 for the buckets, got {list(self.seconds)}")
        sizes = [tuple(size) for size in self.sizes]
        if any(len(size) != 2 or min(size) < 1 for size in sizes) or len(set(sizes)) < len(sizes):
            raise ValueError(f"wanted different sizes [height, width] for the buckets, got {list(self.sizes)}")
        if self.multiple < 1 or (self.tokens is not None and self.tokens < 1):
            raise ValueError(f"wanted tokens and multiple >= 1, got {self.tokens} and {self.multiple}")

    @property
    def several(self) -> bool:
        """Whether there is more than the clips of the media as they are."""
        return bool(self.seconds or self.sizes or self.stills)

    def reading(self, medias: Mapping[str, Media]) -> dict[str, Media]:
        """The media that a source is opened with: those that move read stills too where they are wanted."""
        if not self.stills:
            return dict(medias)
        return {s: replace(m, stills=True) if hasattr(m, "stills") else m for s, m in medias.items()}

    def of(self, medias: Mapping[str, Media]) -> list[Bucket]:
        """All buckets, those of stills first, then by length; raises ValueError where the media have no time or no size."""
        medias = self.reading(medias)
        moving = [m for m in medias.values() if m.time_axis is not None]
        if self.seconds and not moving:
            raise ValueError(f"wanted a stream that runs in time for data.buckets.seconds, got {', '.join(medias)}")
        if self.sizes and not any(planar(m) for m in medias.values()):
            raise ValueError(f"wanted a stream of pictures for data.buckets.sizes, got {', '.join(medias)}")
        if self.stills and not any(hasattr(m, "stills") for m in medias.values()):
            raise ValueError(f"wanted a stream of moving pictures for data.buckets.stills, got {', '.join(medias)}")
        times = [(f"{s:g}s", s) for s in sorted(self.seconds)] or [("", None)]
        if self.stills:
            times = [("still", 1 / next(m.rate for m in moving if hasattr(m, "stills"))), *times]
        found = []
        for label, seconds in times:
            for size in self.sizes or [None]:
                name = "_".join(filter(None, [label, size and f"{size[0]}x{size[1]}"])) or "whole"
                found.append(Bucket(name, {s: sized(m, seconds, size) for s, m in medias.items()}))
        return found

    def assign(self, headers: Headers, medias: Mapping[str, Media]) -> np.ndarray:
        """The number in `of` of each item's bucket (n,); items without a header are spread evenly over all."""
        times, sizes = int(self.stills) + max(1, len(self.seconds)), max(1, len(self.sizes))
        bucket = self._time(headers, medias) * sizes + self._size(headers)
        unknown = ~headers.known
        bucket[unknown] = np.arange(unknown.sum()) % (times * sizes)
        return bucket

    def _time(self, headers: Headers, medias: Mapping[str, Media]) -> np.ndarray:
        lengths = np.sort(np.array(self.seconds or [0.0], dtype=np.float64))
        seconds = np.nan_to_num(headers.seconds, nan=0.0) + _slack(medias)
        time = (np.searchsorted(lengths, seconds, side="right") - 1).clip(0)
        return np.where(np.isnan(headers.seconds), 0, time + 1) if self.stills else time

    def _size(self, headers: Headers) -> np.ndarray:
        if not self.sizes:
            return np.zeros(len(headers.known), dtype=np.int64)
        height, width = np.array(self.sizes, dtype=np.float64).T[:, None]
        away = np.abs(np.log(headers.width / headers.height)[:, None] - np.log(width / height))
        scale = np.maximum(height / headers.height[:, None], width / headers.width[:, None])
        away, scale = np.nan_to_num(away, nan=0.0), np.nan_to_num(scale, nan=np.inf)
        # of those of the nearest shape the largest that is not enlarged; else the one that is enlarged least
        cost = np.where(scale <= 1 + 1e-6, -height * width, scale)
        cost = np.where(np.isinf(scale), height * width, cost)
        return np.where(away <= away.min(1, keepdims=True) + LIKE, cost, np.inf).argmin(1)

    def batch_size(self, cells: int | None, most: int) -> int:
        """Samples of a step in a bucket whose items have this many latent cells, of a global batch of `most`."""
        if self.tokens is None or cells is None or cells * most <= self.tokens:
            return most
        return min(most, max(self.multiple, self.tokens // cells // self.multiple * self.multiple))


def bucket_line(name: str, items: int, used: int, cells: int | None, usage: Mapping[str, float]) -> dict[str, Any]:
    """One bucket as a line of `bucket_table`: `used` items of `cells` latent cells are in a batch."""
    tokens = None if cells is None else cells * used
    return {"bucket": name, "items": items, "batch": used, "tokens": tokens, "steps": -(-items // used), **usage}


def survey(report: Report, buckets: Buckets, medias: Mapping[str, Media], batch_size: int,
           latent_shape: Callable[[str, Shape], Shape] | None) -> tuple[Report, list[dict[str, Any]]]:  # fmt: skip
    """What would be done to checked files: (the report with the plans of each bucket, a line per bucket with its files)."""
    accepted = report.accepted
    headers = Headers.of((v.infos for v in accepted), len(accepted), medias)
    where, lines, verdicts = buckets.assign(headers, medias), [], {}
    for number, bucket in enumerate(buckets.of(medias)):
        chosen, cells = np.flatnonzero(where == number), cells_of(bucket.medias, latent_shape)
        for i in chosen:
            plans = {s: bucket.medias[s].plan(info) for s, info in accepted[i].infos.items()}
            verdicts[id(accepted[i])] = replace(accepted[i], plans=plans)
        used = buckets.batch_size(cells, batch_size)
        line = bucket_line(bucket.name, len(chosen), used, cells, bucket.usage(headers[chosen]))
        lines.append({**line, "files": [accepted[i].row["file"] for i in chosen]})
    return replace(report, verdicts=[verdicts.get(id(v), v) for v in report.verdicts]), lines


def cells_of(medias: Mapping[str, Media], latent_shape: Callable[[str, Shape], Shape] | None) -> int | None:
    """Latent cells of one item over all streams; None without codecs to ask."""
    if latent_shape is None:
        return None
    return sum(math.prod(latent_shape(stream, media.shape)[1:]) for stream, media in medias.items())


def _infos(source: Source, row: int) -> Mapping[str, Info] | None:
    try:
        return source.infos(row) if hasattr(source, "infos") else None
    except MediaError:
        return None


def _seconds(medias: Mapping[str, Media]) -> float | None:
    return max((m.seconds for m in medias.values() if m.seconds is not None), default=None)


def _slack(medias: Mapping[str, Media]) -> float:
    """Half a media sample: what a clip may lack of its length."""
    return 0.5 / min((m.rate for m in medias.values() if m.rate), default=np.inf)


COLUMNS = {"items": "items", "batch": "batch", "tokens": "tokens", "steps": "steps/\nepoch",
           "used_seconds": "used\ns", "cropped_seconds": "cut\ns", "cropped_area": "cut\narea",
           "padded": "padded", "enlarged": "enlarged"}  # fmt: skip


def bucket_table(lines: Sequence[Mapping[str, Any]], tokens: int | None = None) -> Table:
    """What lands in which bucket, for a terminal: {"bucket": its name, "items", "batch", …} a line."""
    caption = f"* more than {tokens} tokens: a batch has no fewer than data.buckets.multiple items"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption if _over(lines, tokens) else None)
    shown = [key for key in COLUMNS if any(line.get(key) is not None for line in lines)]
    for header in ["bucket", *(COLUMNS[key] for key in shown)]:
        table.add_column(header, justify="left" if header == "bucket" else "right", no_wrap=header == "bucket")
    for line in lines:
        cells = [_cell(key, line.get(key)) + ("*" if key == "tokens" and _over([line], tokens) else "") for key in shown]
        table.add_row(line["bucket"], *cells)
    return table


def _over(lines: Sequence[Mapping[str, Any]], tokens: int | None) -> bool:
    return tokens is not None and any((line.get("tokens") or 0) > tokens for line in lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if key == "cropped_area" else f"{value:.1f}" if isinstance(value, float) else str(value)
