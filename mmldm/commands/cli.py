"""`mmldm <command> …`: finds the command, runs it, and tells a user's error in a few lines."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["COMMANDS", "main", "run_command"]

COMMANDS = {
    "check": "what will be used of a folder of media, and why the rest will not",
    "train": "train a codec or a diffusion model: mmldm train experiment=NAME data.path=DIR",
    "runs": "list runs with their state and best numbers: mmldm runs FOLDER",
    "encode": "cache the latents of a data set",
    "generate": "make media from prompts: mmldm generate MODEL 'a red circle'",
    "reconstruct": "send files of any length through a codec and back: mmldm reconstruct MODEL FILE --out FILE",
    "evaluate": "measure a trained model",
    "codec": "test a codec of your own, import other people's: mmldm codec test my_lab.MyCodec",
    "ema": "a trained run's weights averaged over another width: mmldm ema RUN --std 0.12",
    "replay": "make a training step again that was not finite: mmldm replay RUN/faults/step-N.pt",
    "demo": "train and generate images, audio and video on the built-in data, and write a page",
}
_LINES = 6  # of a user's error


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for a user's error, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv in (["--version"], ["-V"]):
        from mmldm import __version__

        print(f"mmldm {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(COMMANDS)}"
        print(f"mmldm: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return run_command(lambda words: importlib.import_module(f"mmldm.commands.{name}").main(words), rest, name)


def run_command(command: Callable[[list[str]], int | None], argv: list[str], name: str = "") -> int:
    """Call `command(argv)` and turn a user's error into a few lines on stderr and status 2.

    `--traceback` among the arguments or MMLDM_TRACEBACK=1 shows where it happened. Errors of the program itself pass.
    """
    loud = "--traceback" in argv or os.environ.get("MMLDM_TRACEBACK", "0") not in ("", "0")
    try:
        return int(command([word for word in argv if word != "--traceback"]) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if loud or not _is_users(error):
            raise
        print(_told(error, f"mmldm {name}".strip()), file=sys.stderr)
        return 2


def _is_users(error: Exception) -> bool:
    """Whether the message is for the user: wrong values, files, overrides, a package that an extra brings."""
    foreign: list[Any] = []
    if "hydra" in sys.modules:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        foreign = [HydraException, OmegaConfBaseException]
    if "lightning" in sys.modules:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        foreign.append(MisconfigurationException)
    return isinstance(error, (ValueError, OSError, ImportError, *foreign))


def _told(error: Exception, who: str) -> str:
    text = _of_file(error) if isinstance(error, OSError) else str(error)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    room = max(_LINES - 1, len(getattr(error, "faults", ())))  # a list of faults is told whole
    if len(lines) > room:
        lines = [*lines[: room - 2], f"… and {len(lines) - room + 1} more lines", lines[-1]]  # what to choose stands last
    return "\n".join([f"{who}: {lines[0]}", *(f"  {line}" for line in lines[1:]), "(--traceback shows where)"])


def _of_file(error: OSError) -> str:
    """What the system said of a file, and what to do."""
    fixes = {
        errno.ENOENT: "check the path; it is read from the folder that the command is started in",
        errno.EACCES: "choose a place that you may read and write",
        errno.EPERM: "choose a place that you may read and write",
        errno.EROFS: "choose a place that can be written",
        errno.ENOSPC: "free some space, or choose a place on another disk; the same command continues",
        errno.EDQUOT: "free some space, or choose a place on another disk; the same command continues",
    }
    if error.filename is None or error.errno not in fixes:
        return str(error)
    return f"{error.filename}: {(error.strerror or '').lower()}; {fixes[error.errno]}"


def _usage() -> str:
    width = max(map(len, COMMANDS))
    table = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: mmldm <command> …", "", *table, "", "mmldm <command> --help tells more."])


if __name__ == "__main__":
    raise SystemExit(main())
