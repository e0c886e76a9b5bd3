"""mmldm train: a codec or a diffusion model from conf/ and overrides; the same command resumes it."""

from __future__ import annotations

import sys
from pathlib import Path

USAGE = """usage: mmldm train experiment=NAME [key=value …] [--multirun] [--config-dir DIR] [--dry-run]

Trains a codec or a diffusion model on your files; the same command with the same run= continues a run that was stopped.

  mmldm train experiment=image_codec data.path=DIR run=runs/codec
  mmldm train experiment=image_diffusion data.path=DIR codec.image=runs/codec run=runs/image
  mmldm train experiment=world_image_codec minutes=2 run=runs/world-codec

Any key of conf/ can be overridden: denoiser=dit_s trainer.max_steps=10000 optimizer.lr=3e-4 data.batch_size=32
  --config-dir DIR   a folder of your own yaml files, laid out like conf/
  --multirun         one run, RUN/0, RUN/1 …, for each combination of comma-separated values
  --dry-run          build everything, print sizes, draw the loss weight over the noise levels, train nothing
"""

OPTIONS = (
    "config-dir", "config-name", "config-path", "multirun", "cfg", "resolve", "package", "info", "run", "hydra-help",
    "experimental-rerun", "shell-completion", "version",
)  # fmt: skip


def main(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    from mmldm import config
    from mmldm.commands import training

    dry = "--dry-run" in argv
    overrides = [a for a in argv if a != "--dry-run"]
    check_options(overrides)
    config.launch(training.dry_run if dry else training.train, Path(__file__).resolve(), overrides)
    return 0


def check_options(words: list[str]) -> None:
    """Raise ValueError for a setting written as an option."""
    for word in words:
        name, _, value = word[2:].partition("=")
        if word.startswith("--") and name not in OPTIONS:
            raise ValueError(f"there is no option --{name}; settings have no dashes: {name}={value or 'VALUE'}")


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
