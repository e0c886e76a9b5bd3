"""What will be used, cropped, padded, resampled or dropped, and why: `mmldm check`, and what training itself drops."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmldm.data.files import Files, file_of, suffix_of
from mmldm.interfaces import Info, Media, MediaError
from mmldm.media import SUFFIXES

__all__ = ["Report", "Verdict", "check", "examine"]

VERB = re.compile(r"\b[a-z]+ed\b")  # what a plan says it does: resampled, scaled and cropped, …
ABSENT = re.compile(r"\bhas no (\w+)( stream)?$")
TAIL = ("absent", "dropped", "seconds")  # the last columns of the table
AHEAD = 4096  # files whose headers are waited for together
LISTED = 20  # dropped files named in an error message


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a row's header says: per stream its Info and plan, or the reason why the stream is absent."""

    row: Mapping[str, Any]
    infos: dict[str, Info]
    plans: dict[str, list[str]]
    reasons: dict[str, str]

    @property
    def usable(self) -> bool:
        """True where at least one stream can be read."""
        return bool(self.infos)

    @property
    def foreign(self) -> bool:
        """True where a file that promises no such stream has none (a silent video among sounds): no part of the set."""
        return not self.infos and all(self._lacks(reason) for reason in self.reasons.values())

    @property
    def reason(self) -> str:
        """Why nothing can be read."""
        reasons = dict.fromkeys(self.reasons.values())
        return "; ".join([r for r in reasons if not self._lacks(r)] or reasons)

    def _lacks(self, reason: str) -> bool:
        named = ABSENT.search(reason)
        return bool(named) and suffix_of(self.row["file"]) not in SUFFIXES.get(named[1], ())


def examine(row: Mapping[str, Any], media: Mapping[str, Media], files: Files) -> Verdict:
    """Read the header of a row's file for every stream."""
    infos, plans, reasons = {}, {}, {}
    for stream, kind in media.items():
        file = file_of(row, stream)
        suffix = suffix_of(file)
        if suffix not in kind.suffixes:
            reasons[stream] = f"{suffix or 'no suffix'} has no {stream}"
            continue
        try:
            infos[stream] = files.probe(file, kind)
            plans[stream] = kind.plan(infos[stream])
        except MediaError as error:
            reasons[stream] = error.reason
        except OSError as error:
            reasons[stream] = error.strerror or str(error)
    return Verdict(row, {s: i for s, i in infos.items() if s in plans}, plans, reasons)


@dataclass(frozen=True)
class Report:
    """The verdicts of all rows in order, and what the manifest could not offer (`missing`) or left aside (`unlisted`)."""

    verdicts: list[Verdict]
    streams: tuple[str, ...]
    missing: list[tuple[str, str]] = field(default_factory=list)
    unlisted: list[tuple[str, str]] = field(default_factory=list)

    @property
    def accepted(self) -> list[Verdict]:
        """The verdicts of the rows that can be used."""
        return [v for v in self.verdicts if v.usable]

    @property
    def usable(self) -> list[Mapping[str, Any]]:
        """The rows that can be used."""
        return [v.row for v in self.accepted]

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """(file, reason) of everything wanted that cannot be used."""
        return sorted(self.missing + [(v.row["file"], v.reason) for v in self.verdicts if not v.usable and not v.foreign])

    @property
    def ignored(self) -> list[tuple[str, str]]:
        """(file, reason) of what is no part of the data set: not listed, or without any of the streams."""
        return sorted(self.unlisted + [(v.row["file"], v.reason) for v in self.verdicts if v.foreign])

    @property
    def wanted(self) -> int:
        """Usable and dropped files."""
        return len(self.accepted) + len(self.dropped)

    def counts(self) -> dict[str, dict[str, float]]:
        """Per stream: used, absent, dropped, seconds, and one count per verb of the plans (cropped, padded, resampled, …)."""
        table = {}
        for stream in self.streams:
            used = [v for v in self.accepted if stream in v.infos]
            verbs = Counter(verb for v in used for verb in set(VERB.findall(" ".join(v.plans[stream]))))
            table[stream] = {"used": len(used), **{verb: verbs[verb] for verb in ("cropped", "padded", "resampled")}, **verbs,
                             "absent": len(self.accepted) - len(used), "dropped": len(self.dropped),
                             "seconds": round(sum(v.infos[stream].seconds or 0.0 for v in used), 3)}  # fmt: skip
        return table

    def table(self) -> Table:
        """One column per stream, for a terminal."""
        counts = self.counts()
        names = list(dict.fromkeys(name for column in counts.values() for name in column))
        names.sort(key=lambda name: TAIL.index(name) if name in TAIL else -1)
        table = Table(title=f"{len(self.usable)} of {self.wanted} files usable")
        for header in ["", *counts]:
            table.add_column(header, justify="right" if header else "left")
        for name in names:
            cells = [_clock(c[name]) if name == "seconds" else str(c.get(name, 0)) for c in counts.values()]
            table.add_row("duration" if name == "seconds" else name, *cells)
        return table

    def write(self, path: str | Path, buckets: Sequence[Mapping[str, Any]] = ()) -> Path:
        """Every count and every dropped, absent or ignored file with its reason, as JSON (.json) or text.

        `buckets`: lines of a table with the names of their files.
        """
        path = Path(path)
        absent = [(v.row["file"], s, v.reasons[s]) for v in self.accepted for s in self.streams if s in v.reasons]
        if path.suffix == ".json":
            facts = {"wanted": self.wanted, "usable": len(self.usable), "streams": self.counts(),
                     "dropped": [{"file": f, "reason": r} for f, r in self.dropped],
                     "absent": [{"file": f, "stream": s, "reason": r} for f, s, r in absent],
                     "ignored": [{"file": f, "reason": r} for f, r in self.ignored],
                     **({"buckets": list(buckets)} if buckets else {})}  # fmt: skip
            text = json.dumps(facts, indent=1, ensure_ascii=False)
        else:
            lines = [
                f"{stream}: " + ", ".join(f"{n} {name}" for name, n in row.items()) for stream, row in self.counts().items()
            ]
            lines += [f"dropped\t{f}\t{r}" for f, r in self.dropped] + [f"absent\t{f}\t{s}: {r}" for f, s, r in absent]
            lines += [f"ignored\t{f}\t{r}" for f, r in self.ignored]
            text = "\n".join(lines + [f"{line['bucket']}\t{file}" for line in buckets for file in line["files"]])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")  # of file names that are no Unicode
        return path

    def require(self, max_bad_fraction: float) -> None:
        """Raise ValueError with the list where nothing is usable or more than `max_bad_fraction` of the files are dropped."""
        dropped = self.dropped
        if self.usable and len(dropped) <= max_bad_fraction * self.wanted:
            return
        files = dropped or self.ignored
        names = "\n".join(f"  {file}: {reason}" for file, reason in files[:LISTED])
        more = f"\n  … and {len(files) - LISTED} more" if len(files) > LISTED else ""
        share = f"{max_bad_fraction:.2%} unusable files (max_bad_fraction)"
        wanted = (
            f"wanted at most {share}, got {len(dropped) / self.wanted:.2%}" if self.usable else "wanted usable files, got none"
        )
        told = f"{len(dropped)} of {self.wanted} dropped; mend or remove them, see `mmldm check`"
        raise ValueError(f"{wanted}: {told}:\n{names}{more}")


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{seconds % 60:04.1f}" if seconds else "-"


def check(
    rows: Sequence[Mapping[str, Any]],
    media: Mapping[str, Media],
    max_workers: int | None = None,
    progress: bool = True,
    missing: Sequence[tuple[str, str]] = (),
    unlisted: Sequence[tuple[str, str]] = (),
    files: Files | None = None,
) -> Report:
    """Read the headers of all rows in parallel threads; the order of the rows is kept."""
    files = files or Files()
    max_workers = max_workers or min(16, 4 * (os.cpu_count() or 1))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with ThreadPoolExecutor(max_workers) as pool, Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        parts = (rows[first : first + AHEAD] for first in range(0, len(rows), AHEAD))
        found = (verdict for part in parts for verdict in pool.map(lambda row: examine(row, media, files), part))
        verdicts = list(bar.track(found, total=len(rows), description="reading headers"))
    return Report(verdicts, tuple(media), list(missing), list(unlisted))
