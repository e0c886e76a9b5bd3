"""mmldm generate: text -> media files, with a trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmldm.commands import giving, sampling
from mmldm.commands.arguments import Parser, chosen_device

HELP = "generate media from text with a trained model"


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(prog="mmldm generate", description=HELP)
    p.add_argument("model", help="a run folder or its model folder")
    p.add_argument("prompts", nargs="*", help="one or more prompts, as plain text")
    p.add_argument("--prompts-file", type=Path, help="a text file with one prompt per line")
    p.add_argument(
        "--field", action="append", default=[], metavar="KEY=VALUE", help="value of another condition, for all prompts"
    )
    p.add_argument("-n", type=int, default=1, help="samples per prompt")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--seconds", type=float, help="duration of the clips")
    p.add_argument("--size", help="HEIGHTxWIDTH of the pictures")
    p.add_argument("--batch", type=int, default=8, help="samples computed together; never changes what comes out")
    p.add_argument("--format", help="suffix of the files, e.g. flac, webm (default: the modality's)")
    p.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a class outside mmldm that the model may use")
    p.add_argument("--vocoder", type=Path, metavar="RUN", help="a trained vocoder, used instead of the model's own")
    p.add_argument("--device", help="cpu, cuda … (default: cuda where there is one)")
    p.add_argument("--out", type=Path, default=Path("samples"), help="folder for the files")
    giving.add_arguments(p)
    sampling.add_arguments(p)
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_intermixed_args(argv)
    for name in ("n", "steps", "batch", "seconds"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"wanted {'-n' if name == 'n' else '--' + name} above 0, got {value:g}")
    fields = fields_of(args)
    from mmldm.pipeline import Pipeline

    pipeline = Pipeline.load(args.model, args.trust, chosen_device(args.device), vocoder=args.vocoder)
    return run(pipeline, fields, args)


def fields_of(args: argparse.Namespace) -> dict[str, list]:
    """The prompts and the --field values, one of each per prompt."""
    prompts = [*args.prompts]
    if args.prompts_file:
        prompts += [line.strip() for line in args.prompts_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    for prompt in prompts:
        if prompt.startswith(("prompt=", "text=")):
            raise ValueError(f'wanted the prompt as plain text, got {prompt}; write "{prompt.partition("=")[2]}"')
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
    from mmldm.commands.arguments import parse_size
    from mmldm.commands.outputs import check_suffix, write_samples
    from mmldm.commands.progress import progress

    size = parse_size(args.size)
    medias = pipeline.medias(args.seconds, size)
    check_suffix({s: media for s, media in medias.items() if s not in args.without}, args.format)
    chosen = sampling.chosen(args, pipeline)
    sampler = pipeline.sampler(**chosen, absent=args.without)
    fields = completed(pipeline, fields, args.seconds)
    given = giving.given(medias, args)
    with giving.notes(), progress("generating") as tell:
        samples = pipeline.generate(
            fields,
            args.n,
            args.seed,
            **chosen,
            negative=args.negative,
            weak=args.weak,
            seconds=args.seconds,
            size=size,
            **given,
            batch_size=args.batch,
            progress=tell,
        )
    written = write_samples(samples, args.out, recipe(fields, sampler, given, args), args.format)
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


def recipe(fields: dict[str, list], sampler, given: dict, args: argparse.Namespace) -> dict:
    """What decides what comes out, as plain values: the arguments, and the steps and guidance really used."""
    names = (*sampling.FLAGS, *giving.FLAGS, "seconds", "size", "vocoder")
    asked = {n: str(v) if isinstance(v, Path) else v for n in names if (v := getattr(args, n)) not in (None, [])}
    scales = dict(sampler.guidance.scales)
    return {
        "model": str(args.model),
        "fields": {key: values[0] for key, values in fields.items() if key != "text"},  # the same for all prompts
        "n": args.n,
        **asked,
        "steps": sampler.steps,
        "guidance": scales["null"] if set(scales) == {"null"} else scales or 1.0,
        **({"stream": ", ".join(given["known"] or given["init"])} if given["known"] or given["init"] else {}),
    }


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
