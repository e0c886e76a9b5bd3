"""mmldm check: what of a folder will be used, cropped, padded, resampled or dropped, and why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "what will be used of a folder of media, and why the rest will not"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(prog="mmldm check", description=HELP)
    p.add_argument("path", help="a folder, or a manifest file (csv, tsv, jsonl, json)")
    p.add_argument("--model", help="check against the sizes and rates of this trained model (default: common ones)")
    p.add_argument("--seconds", type=float, help="length of a clip")
    p.add_argument("--size", help="HEIGHTxWIDTH of pictures")
    p.add_argument("--report", type=Path, default=Path("check.json"), help="every dropped file with its reason (.json or .txt)")
    p.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a class outside mmldm that the model may use")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from rich.console import Console

    from mmldm.commands.arguments import parse_size
    from mmldm.data import FileSource
    from mmldm.trained import sized

    size = parse_size(args.size)
    medias = {s: sized(m, args.seconds, size) for s, m in wanted_media(args).items()}
    source = FileSource.read(args.path, medias)
    report = source.check(progress=sys.stderr.isatty())
    console = Console()
    console.print(report.table())
    for file, reason in report.dropped[:10]:
        console.print(f"  dropped {file}: {reason}", style="yellow", highlight=False, markup=False)
    if len(report.dropped) > 10:
        console.print(f"  … and {len(report.dropped) - 10} more")
    print(f"every file and reason: {report.write(args.report)}")
    return 0 if report.usable else 1


def wanted_media(args: argparse.Namespace) -> dict:
    """The media of a trained model's streams, or common ones of every modality that the folder has files of."""
    if args.model:
        from mmldm import store, trained

        codecs = trained.load_codecs(store.load_model(args.model), args.trust)
        return {stream: part.codec.media for stream, part in codecs.items()}
    from mmldm.data import read_manifest
    from mmldm.media import AudioMedia, ImageMedia, VideoMedia, media_for

    common = {"image": ImageMedia(256, 256), "audio": AudioMedia(16000, 1, 2.0), "video": VideoMedia(17, 8.0, 128, 128)}
    rows = read_manifest(args.path, {s for m in common.values() for s in m.suffixes}).rows
    kinds = {media_for(row["file"]) for row in rows}
    found = {stream: media for stream, media in common.items() if stream in kinds}
    return found or common


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
