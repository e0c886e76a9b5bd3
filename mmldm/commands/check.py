"""mmldm check: what of a folder will be used, cropped, padded, resampled or dropped, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmldm.commands.arguments import Parser

HELP = "what will be used of a folder of media, and why the rest will not"


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(prog="mmldm check", description=HELP)
    p.add_argument("path", help="a folder, a manifest file (csv, tsv, jsonl, json), or tar shards")
    p.add_argument("--model", help="check against the sizes and rates of this trained model (default: common ones)")
    p.add_argument("--seconds", type=float, help="length of a clip")
    p.add_argument("--size", help="HEIGHTxWIDTH of pictures")
    p.add_argument("--buckets", nargs="+", metavar="KEY=VALUE",
                   help="what lands in which bucket: seconds=2,4 sizes=64x64,48x96 tokens=4096 multiple=8 stills")  # fmt: skip
    p.add_argument("--batch-size", type=int, default=16, help="samples of an optimiser step, for the buckets")
    p.add_argument("--report", type=Path, default=Path("check.json"), help="every dropped file with its reason (.json or .txt)")
    p.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a class outside mmldm that the model may use")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from rich.console import Console

    from mmldm.commands.arguments import parse_size
    from mmldm.data import Buckets, FileSource, bucket_table, survey
    from mmldm.trained import sized

    size, rule = parse_size(args.size), Buckets(**parse_buckets(args.buckets or ()))
    medias, latent_shape = wanted_media(args)
    medias = rule.reading({s: sized(m, args.seconds, size) for s, m in medias.items() if s != "image" or not rule.stills})
    if rule.tokens and latent_shape is None:
        raise ValueError(
            "wanted a trained model to count the tokens of its latents, got none; add --model RUN, or leave tokens"
        )
    source = FileSource.read(args.path, medias)
    report, lines = source.check(progress=sys.stderr.isatty()), []
    if args.buckets:
        report, lines = survey(report, rule, medias, args.batch_size, latent_shape)
    console = Console()
    console.print(report.table())
    if lines:
        console.print(bucket_table(lines, rule.tokens))
    for file, reason in report.dropped[:10]:
        console.print(f"  dropped {file}: {reason}", style="yellow", highlight=False, markup=False)
    if len(report.dropped) > 10:
        console.print(f"  … and {len(report.dropped) - 10} more")
    if report.ignored:
        console.print(
            f"  {len(report.ignored)} files ignored, the first {report.ignored[0][0]}: {report.ignored[0][1]}", soft_wrap=True
        )
    print(f"every file and reason: {report.write(args.report, lines)}")
    return 0 if report.usable else 1


def parse_buckets(words: Sequence[str]) -> dict[str, Any]:
    """`seconds=2,4 sizes=64x64,48x96 tokens=4096 stills` -> the arguments of Buckets."""
    from mmldm.commands.arguments import parse_size

    readers = {
        "seconds": lambda text: [float(part) for part in text.split(",")],
        "sizes": lambda text: [parse_size(part) for part in text.split(",")],
        "tokens": int,
        "multiple": int,
        "stills": lambda text: {"": True, "true": True, "false": False}[text.lower()],
    }
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            found[key] = readers[key](value)
        except (KeyError, ValueError):
            raise ValueError(
                f"wanted --buckets of seconds, sizes, tokens, multiple or stills, got {word!r}; "
                "for example --buckets seconds=2,4 sizes=64x64,48x96 tokens=4096 stills"
            ) from None
    return found


def wanted_media(args: argparse.Namespace) -> tuple[dict, Callable | None]:
    """The media of a trained model's streams and its `latent_shape(stream, shape)`, or common media of every modality that the
    folder has files of."""
    if args.model:
        from mmldm import store, trained

        codecs = trained.load_codecs(store.load_model(args.model), args.trust)
        shapes = lambda stream, shape: codecs[stream].codec.latent_shape(shape)  # noqa: E731
        return {stream: part.codec.media for stream, part in codecs.items()}, shapes
    from mmldm.data import FileSource
    from mmldm.data.files import file_of
    from mmldm.media import AudioMedia, ImageMedia, VideoMedia, media_for

    common = {"image": ImageMedia(256, 256), "audio": AudioMedia(16000, 1, 2.0), "video": VideoMedia(17, 8.0, 128, 128)}
    rows = FileSource.read(args.path, common).rows
    kinds = {media_for(file_of(row, stream)) for row in rows for stream in common}
    found = {stream: media for stream, media in common.items() if stream in kinds}
    return found or common, None


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
