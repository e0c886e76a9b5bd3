"""mmldm generate: text -> media files, with a trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "generate media from text with a trained model"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(prog="mmldm generate", description=HELP)
    p.add_argument("model", help="a run folder or its model folder")
    p.add_argument("prompts", nargs="*", help="one or more prompts, as plain text")
    p.add_argument("--prompts-file", type=Path, help="a text file with one prompt per line")
    p.add_argument(
        "--field", action="append", default=[], metavar="KEY=VALUE", help="value of another condition, for all prompts"
    )
    p.add_argument("-n", type=int, default=1, help="samples per prompt")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--steps", type=int, help="network steps (default: the model's)")
    p.add_argument("--guidance", type=float, help="guidance scale, 1 = none (default: the model's)")
    p.add_argument("--negative", help="what to steer away from, instead of the learned null")
    p.add_argument("--solver", help="a file of conf/diffusion/solver, e.g. dpmpp_2m")
    p.add_argument("--grid", help="a file of conf/diffusion/grid, e.g. karras")
    p.add_argument("--seconds", type=float, help="duration of the clips")
    p.add_argument("--size", help="HEIGHTxWIDTH of the pictures")
    p.add_argument("--known", type=Path, metavar="FILE", help="media to continue")
    p.add_argument("--keep", default=None, metavar="START:END", help="the seconds of --known to keep, e.g. 0:1.5s")
    p.add_argument("--first", type=Path, metavar="IMAGE", help="the first frame")
    p.add_argument("--stream", help="the stream that --known or --first belongs to (default: the one it fits)")
    p.add_argument("--batch", type=int, default=8, help="samples computed together; never changes what comes out")
    p.add_argument("--format", help="suffix of the files, e.g. flac, webm (default: the modality's)")
    p.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a class outside mmldm that the model may use")
    p.add_argument("--device", help="cpu, cuda … (default: cuda where there is one)")
    p.add_argument("--out", type=Path, default=Path("samples"), help="folder for the files")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    prompts = [*args.prompts]
    if args.prompts_file:
        prompts += [line.strip() for line in args.prompts_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    fields = {"text": prompts} if prompts else {}
    for entry in args.field:
        key, found, value = entry.partition("=")
        if not found:
            raise ValueError(f"wanted --field KEY=VALUE, got --field {entry}")
        fields[key] = [value] * max(1, len(prompts))
    if not fields:
        raise ValueError('wanted a prompt, got none; for example: mmldm generate MODEL "a red circle"')
    from mmldm.pipeline import Pipeline

    pipeline = Pipeline.load(args.model, args.trust, args.device)
    return run(pipeline, fields, args)


def run(pipeline, fields: dict[str, list], args: argparse.Namespace) -> int:
    """Generate with a progress bar and write files, one JSON beside each, and a sheet of all."""
    from rich.progress import Progress

    from mmldm import config
    from mmldm.commands.arguments import parse_size
    from mmldm.commands.outputs import write_samples

    size = parse_size(args.size)
    medias = pipeline.medias(args.seconds, size)
    options = {
        "steps": args.steps,
        "guidance": args.guidance,
        "negative": args.negative,
        "solver": config.member("diffusion/solver", args.solver),
        "grid": config.member("diffusion/grid", args.grid),
    }
    known = known_media(pipeline, medias, args)
    with Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("generating", total=None)
        samples = pipeline.generate(
            fields,
            args.n,
            args.seed,
            **options,
            seconds=args.seconds,
            size=size,
            known=known,
            batch_size=args.batch,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    written = write_samples(samples, args.out, {"model": str(args.model), **vars_of(args)}, args.format)
    print(f"{len(samples)} samples in {args.out}")
    for path in written:
        print(f"  {path}")
    return 0


def vars_of(args: argparse.Namespace) -> dict:
    """The arguments that decide what comes out, as plain values."""
    names = ("steps", "guidance", "negative", "solver", "grid", "seconds", "size", "known", "keep", "first")
    return {n: str(v) if isinstance(v, Path) else v for n in names if (v := getattr(args, n)) is not None}


def known_media(pipeline, medias: dict, args: argparse.Namespace) -> dict:
    """What --known and --first give, as one Known per stream."""
    from mmldm.commands.arguments import parse_span
    from mmldm.media import ImageMedia
    from mmldm.pipeline import Known

    if args.known is None and args.first is None:
        if args.keep:
            raise ValueError("wanted --known FILE with --keep, got --keep alone")
        return {}
    moving = [s for s, m in medias.items() if m.time_axis is not None]
    if args.first is not None:
        streams = [s for s in moving if len(medias[s].shape) == 4]
        stream = args.stream or (streams[0] if streams else None)
        if stream is None:
            raise ValueError(f"wanted a model with moving pictures for --first, got streams {', '.join(medias)}")
        media = medias[stream]
        still = ImageMedia(*media.shape[-2:]).load(args.first).x
        return {stream: Known(still[:, None].expand(media.shape), 0.0, 1 / media.rate)}
    stream = args.stream or (moving or list(medias))[0]
    start, end = parse_span(args.keep)
    return {stream: Known(medias[stream].load(args.known).x, start, end)}


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
