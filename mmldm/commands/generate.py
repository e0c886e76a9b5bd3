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
    args = parser().parse_intermixed_args(argv)
    for name in ("n", "steps", "batch", "seconds"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"wanted {'-n' if name == 'n' else '--' + name} above 0, got {value:g}")
    fields = fields_of(args)
    from mmldm.pipeline import Pipeline

    pipeline = Pipeline.load(args.model, args.trust, args.device)
    return run(pipeline, fields, args)


def fields_of(args: argparse.Namespace) -> dict[str, list]:
    """The prompts and the --field values, one of each per prompt."""
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
    return fields


def run(pipeline, fields: dict[str, list], args: argparse.Namespace) -> int:
    """Generate with a progress bar and write files, one JSON beside each, and a sheet of all."""
    from mmldm import config
    from mmldm.commands.arguments import parse_size
    from mmldm.commands.outputs import check_suffix, write_samples
    from mmldm.commands.progress import progress

    size = parse_size(args.size)
    medias = pipeline.medias(args.seconds, size)
    check_suffix(medias, args.format)
    chosen = {
        "steps": args.steps,
        "guidance": args.guidance,
        "solver": config.member("diffusion/solver", args.solver),
        "grid": config.member("diffusion/grid", args.grid),
    }
    sampler = pipeline.sampler(**chosen)
    fields = completed(pipeline, fields, args.seconds)
    known = known_media(medias, args)
    with progress("generating") as tell:
        samples = pipeline.generate(
            fields,
            args.n,
            args.seed,
            **chosen,
            negative=args.negative,
            seconds=args.seconds,
            size=size,
            known=known,
            batch_size=args.batch,
            progress=tell,
        )
    written = write_samples(samples, args.out, recipe(fields, sampler, known, args), args.format)
    print(f"{len(samples)} samples in {args.out}")
    for path in written:
        print(f"  {path}")
    return 0


def completed(pipeline, fields: dict[str, list], seconds: float | None) -> dict[str, list]:
    """The fields, with the asked duration where the model reads one; raises ValueError for a field it does not read."""
    keys = {key for key, _ in pipeline.model.conditions.readers.values()}
    strange = sorted(set(fields) - keys - {"text"})
    if strange:
        raise ValueError(
            f"wanted a field of this model, got {', '.join(strange)}; choose from {', '.join(sorted(keys | {'text'}))}"
        )
    if seconds is not None and "seconds" in keys - set(fields):
        fields = {**fields, "seconds": [seconds] * len(next(iter(fields.values())))}
    return fields


def recipe(fields: dict[str, list], sampler, known: dict, args: argparse.Namespace) -> dict:
    """What decides what comes out, as plain values: the arguments, and the steps and guidance really used."""
    names = ("negative", "solver", "grid", "seconds", "size", "known", "keep", "first")
    given = {n: str(v) if isinstance(v, Path) else v for n in names if (v := getattr(args, n)) is not None}
    scales = dict(sampler.guidance.scales)
    return {
        "model": str(args.model),
        "fields": {key: values[0] for key, values in fields.items() if key != "text"},  # the same for all prompts
        "n": args.n,
        "steps": sampler.steps,
        "guidance": scales["null"] if set(scales) == {"null"} else scales or 1.0,
        **given,
        **({"stream": next(iter(known))} if known else {}),
    }


# ---------------------------------------------------------------- what is given


def known_media(medias: dict, args: argparse.Namespace) -> dict:
    """What --known or --first gives, as one Known of one stream."""
    if args.known is not None and args.first is not None:
        raise ValueError("wanted --known or --first, got both; --first is --known of one frame")
    if args.known is None and args.keep:
        raise ValueError("wanted --known FILE with --keep, got --keep alone")
    if args.known is None and args.first is None:
        if args.stream:
            raise ValueError("wanted --known FILE or --first IMAGE with --stream, got --stream alone")
        return {}
    if args.stream and args.stream not in medias:
        raise ValueError(f"wanted a stream of this model, got {args.stream!r}; choose from {', '.join(medias)}")
    if args.first is not None:
        return first_frame(medias, args.first, args.stream)
    return kept(medias, args.known, args.keep, args.stream)


def first_frame(medias: dict, path: Path, stream: str | None) -> dict:
    """A picture as the first frame of the moving pictures."""
    from mmldm.media import ImageMedia
    from mmldm.pipeline import Known

    fit = [s for s, m in medias.items() if m.time_axis is not None and len(m.shape) == 4 and stream in (None, s)]
    if not fit:
        raise ValueError(f"wanted a stream of moving pictures for --first, got {stream or ', '.join(medias)}")
    media = medias[fit[0]]
    still = ImageMedia(*media.shape[-2:]).load(path).x
    return {fit[0]: Known(still[:, None].expand(media.shape), 0.0, 1 / media.rate)}


def kept(medias: dict, path: Path, keep: str | None, stream: str | None) -> dict:
    """The seconds of a file that are to be kept: of what the file really holds, all where `keep` says nothing."""
    from mmldm.commands.arguments import parse_span
    from mmldm.pipeline import Known

    moving = [s for s, m in medias.items() if m.time_axis is not None and stream in (None, s)]
    if not moving:
        raise ValueError(f"wanted a stream that runs in time to continue {path}, got {stream or ', '.join(medias)}: a still")
    fit = [s for s in moving if path.suffix.lower() in medias[s].suffixes]
    if not fit:
        choices = sorted({suffix for s in moving for suffix in medias[s].suffixes})
        raise ValueError(f"wanted --known FILE of {', '.join(moving)}, got {path}; choose from {', '.join(choices)}")
    media = medias[fit[0]]
    clip, (start, end) = media.load(path), parse_span(keep)
    held = clip.valid[media.time_axis] / media.rate
    end = min(end, held)
    if start >= end:
        raise ValueError(f"wanted --keep within the {held:.3g} s that {path} holds, got {keep}")
    if start <= 0 and end >= media.seconds - 0.5 / media.rate:
        raise ValueError(
            f"wanted something left to generate, got all of the {media.seconds:.3g} s kept of {path}; "
            f"keep less, for example --keep 0:{media.seconds / 2:.3g}s, or ask for more --seconds"
        )
    return {fit[0]: Known(clip.x, start, end)}


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
