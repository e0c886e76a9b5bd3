"""Turn the captions of a published data set and your copies of its media into a manifest that mmldm reads.

    python tools/prepare/captions.py FORMAT TABLE MEDIA [--out manifest.jsonl] [--split train]
    mmldm check manifest.jsonl

FORMAT is audiocaps, clotho, musiccaps, vggsound, webvid, panda or coco; TABLE its file of captions (.csv, .json); MEDIA the
folder of your files, sub-folders included. What has no file is listed beside the manifest. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IMAGE = (".jpg", ".jpeg", ".png", ".webp")
AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
VIDEO = (".mp4", ".mkv", ".webm", ".mov", ".avi")
Row = tuple[list[str], dict[str, Any]]  # the names its file may have, best first, without suffix; what is said of it


def records(table: Path, columns: tuple[str, ...], header: bool = True) -> Iterator[dict[str, str]]:
    """The rows of a CSV with these columns; without a header the columns are in this order."""
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, fieldnames=None if header else columns, strict=True)
        lacking = [name for name in columns if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"{table}: wanted the columns {', '.join(columns)}, got {', '.join(reader.fieldnames or ())}")
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise ValueError(f"{table}, line {reader.line_num}: wanted {len(reader.fieldnames)} columns")
                yield record
        except csv.Error as error:
            raise ValueError(f"{table}, line {reader.line_num}: wanted a well-formed table, got {error}") from None


def clip_names(name: str, start: str, end: str | None = None) -> list[str]:
    """How downloaders call the part of a YouTube video that begins (and ends) at a second."""
    first = round(float(start))
    times = [f"{first}", f"{first:06d}", f"{first * 1000}"]
    if end is not None:
        last = round(float(end))
        times = [f"{first}_{last}", f"{first * 1000}_{last * 1000}", f"{first}-{last}", *times]
        bracketed = [f"[{name}]-[{first}-{last}]"]
    else:
        bracketed = []
    return [*(f"{y}{name}_{time}" for time in times for y in ("", "Y")), *bracketed, name, f"Y{name}"]


def audiocaps(table: Path) -> Iterator[Row]:
    """audiocap_id, youtube_id, start_time, caption."""
    for r in records(table, ("audiocap_id", "youtube_id", "start_time", "caption")):
        yield clip_names(r["youtube_id"], r["start_time"]), {"text": r["caption"]}


def clotho(table: Path) -> Iterator[Row]:
    """file_name, caption_1 … caption_5: five rows of a file."""
    columns = tuple(f"caption_{i}" for i in range(1, 6))
    for r in records(table, ("file_name", *columns)):
        for column in columns:
            yield [r["file_name"]], {"text": r[column]}


def musiccaps(table: Path) -> Iterator[Row]:
    """ytid, start_s, end_s, audioset_positive_labels, aspect_list, caption, …"""
    for r in records(table, ("ytid", "start_s", "end_s", "caption")):
        yield clip_names(r["ytid"], r["start_s"], r["end_s"]), {"text": r["caption"]}


def vggsound(table: Path) -> Iterator[Row]:
    """No header: YouTube id, start second, label, split. The label is the caption, too."""
    for r in records(table, ("id", "start", "label", "split"), header=False):
        yield clip_names(r["id"], r["start"]), {"text": r["label"], "label": r["label"], "split": r["split"].strip()}


def webvid(table: Path) -> Iterator[Row]:
    """videoid, name, page_dir, …: files called page_dir/videoid, or videoid."""
    for r in records(table, ("videoid", "name")):
        page = [f"{r['page_dir']}/{r['videoid']}"] if r.get("page_dir") else []
        yield [*page, r["videoid"]], {"text": r["name"]}


def panda(table: Path) -> Iterator[Row]:
    """videoID, url, timestamp, caption, matching_score: the last three list an entry per clip; files called videoID_0 …"""
    for line, r in enumerate(records(table, ("videoID", "timestamp", "caption")), 2):
        try:
            spans, captions = ast.literal_eval(r["timestamp"]), ast.literal_eval(r["caption"])
            scores = ast.literal_eval(r.get("matching_score") or "None") or [None] * len(captions)
            clips = list(zip(spans, captions, scores, strict=True))
        except (ValueError, SyntaxError, TypeError) as error:
            raise ValueError(f"{table}, row {line}: wanted lists of one length in timestamp and caption, got {error}") from None
        for i, (_, caption, score) in enumerate(clips):
            names = [f"{r['videoID']}{mark}{i:0{width}d}" for mark in "_-." for width in range(1, 7)]
            yield names, {"text": caption} | ({} if score is None else {"matching_score": score})


def coco(table: Path) -> Iterator[Row]:
    """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}: a row per caption."""
    with open(table, encoding="utf-8-sig") as file:
        try:
            found = json.load(file)
            names = {image["id"]: image["file_name"] for image in found["images"]}
            rows = [(names[a["image_id"]], a["caption"]) for a in found["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{table}: wanted images and annotations with captions, got {error!r}") from None
    for name, caption in rows:
        yield [name], {"text": caption}


FORMATS: dict[str, tuple[Callable[[Path], Iterator[Row]], tuple[str, ...]]] = {
    "audiocaps": (audiocaps, AUDIO + VIDEO), "clotho": (clotho, AUDIO), "musiccaps": (musiccaps, AUDIO + VIDEO),
    "vggsound": (vggsound, VIDEO + AUDIO), "webvid": (webvid, VIDEO), "panda": (panda, VIDEO), "coco": (coco, IMAGE),
}  # fmt: skip


def found_media(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by name, with suffix and without, and by these behind their folder's; of several the first suffix counts."""
    files: dict[str, Path] = {}
    every = (Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    media = [file for file in every if file.suffix.lower() in suffixes]
    for file in sorted(media, key=lambda f: (suffixes.index(f.suffix.lower()), f)):
        for name in (file.name, file.stem):
            files.setdefault(name, file)
            files.setdefault(f"{file.parent.name}/{name}", file)
    return files


def write(manifest: Path, rows: Iterator[Row], files: dict[str, Path], split: str | None) -> tuple[int, int]:
    """Write the rows that have a file, and list the others; returns how many of each."""
    there, missing = 0, 0
    manifest.parent.mkdir(parents=True, exist_ok=True)
    part = manifest.with_name(manifest.name + ".part")
    try:
        with open(part, "w", encoding="utf-8") as out, open(missing_of(manifest), "w", encoding="utf-8") as lacking:
            for names, said in rows:
                if split is not None and said.get("split") != split:
                    continue
                said["text"] = " ".join(said["text"].split())
                file = next((files[name] for name in names if name in files), None)
                if file is None or not said["text"]:
                    missing += 1
                    lacking.write(f"{names[-1]}\t{'no caption' if file else 'no file'}\t{said['text']}\n")
                    continue
                there += 1
                row = {"file": os.path.relpath(file, manifest.parent).replace(os.sep, "/"), **said}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(part, manifest)
    finally:
        part.unlink(missing_ok=True)
    return there, missing


def missing_of(manifest: Path) -> Path:
    """Where the rows without a file are listed."""
    return manifest.with_name(manifest.stem + ".missing.txt")


def main(argv: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("format", choices=FORMATS)
    p.add_argument("table", type=Path)
    p.add_argument("media", type=Path)
    p.add_argument("--out", type=Path, default=Path("manifest.jsonl"))
    p.add_argument("--split", help="only the rows of this split, where the table says it (vggsound: train, test)")
    args = p.parse_args(argv)
    csv.field_size_limit(2**31 - 1)
    read, suffixes = FORMATS[args.format]
    try:
        if not args.media.is_dir():
            raise ValueError(f"wanted a folder of media, got {args.media}")
        there, missing = write(args.out, read(args.table), found_media(args.media, suffixes), args.split)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{there} of {there + missing} captions have a file: {args.out}; the others are in {missing_of(args.out)}")
    return 0 if there else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
