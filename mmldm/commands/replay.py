"""mmldm replay: a training step whose loss or gradient was not finite, made once more from what the training wrote of it."""

from __future__ import annotations

import sys

from mmldm.commands.arguments import Parser

__all__ = ["parser"]


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="mmldm replay",
        description="Make a training step again whose loss or gradient was not finite, from RUN/faults/step-N.pt (its batches "
        "and configuration) and the checkpoint beside it. The data are not needed, and the run is not changed. Says which "
        "samples and which module it comes from. Status 0 where the same numbers came out to the bit, else 1.",
    )
    p.add_argument("dump", help="RUN/faults/step-N.pt")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from mmldm.commands.replaying import replay

    lines, same = replay(args.dump)
    print("\n".join(lines))
    return 0 if same else 1


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
