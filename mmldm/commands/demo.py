"""mmldm demo: train codecs and diffusion models on the built-in data within minutes, generate, measure, write one page."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mmldm.commands.arguments import Parser

HELP = "train and generate images, audio and video on the built-in data, and write a page"
MODALITIES = ("image", "audio", "video")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(prog="mmldm demo", description=HELP)
    p.add_argument("modalities", nargs="*", help=f"of {', '.join(MODALITIES)} (default: all)")
    p.add_argument("--minutes", type=float, default=10.0, help="time budget, all included (default 10)")
    p.add_argument("--out", type=Path, default=Path("runs/demo"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--samples", type=int, default=64, help="samples measured per modality")
    return p


def main(argv: list[str]) -> int:
    start = time.monotonic()  # the budget holds what follows, imports included
    args = parser().parse_args(argv)
    chosen = args.modalities or list(MODALITIES)
    for name in chosen:
        if name not in MODALITIES:
            raise ValueError(f"wanted a modality, got {name!r}; choose from {', '.join(MODALITIES)}")
    if args.minutes <= 0.5 * len(chosen):
        raise ValueError(f"wanted --minutes above {0.5 * len(chosen):g} for {len(chosen)} modalities, got {args.minutes:g}")
    if args.samples < 1:
        raise ValueError(f"wanted --samples of at least 1, got {args.samples}")
    from mmldm.commands.demonstration import demonstrate

    report = demonstrate(list(dict.fromkeys(chosen)), args.minutes, args.out, args.seed, args.samples, start)
    for modality, scores in report["adherence"].items():
        print(f"{modality:>6}: " + ", ".join(f"{name} {share:.0%}" for name, share in scores.items()))
    print(f"{report['minutes']:.1f} minutes; open {args.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
