"""mmldm encode: cache the latents of a data set, so that training does not encode them again."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = """usage: mmldm encode MODEL [MODEL …] data.path=DIR out=CACHE [key=value …] [--trust CLASS]

Encodes every file whole, in consecutive windows, with the codecs of trained models, one per stream; train from it with
data.cache=CACHE. The same command continues what was stopped, adds new files, and makes damaged parts anew.

  mmldm encode runs/codec data.path=DIR out=runs/latents
  mmldm train experiment=image_diffusion codec.image=runs/codec data.path=DIR data.cache=runs/latents run=runs/image

  cache.crops=K           K random clips of each file instead of windows
  conditions=text_hub     store the frozen encodings of the captions too
  trainer.devices=N trainer.num_nodes=M     encode on N processes of each of M machines
  cache.dtype=float16     half the size, the latents rounded
"""


def main(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    from mmldm import config
    from mmldm.commands import encoding
    from mmldm.commands.arguments import split_trust

    words, trust = split_trust(argv)
    models = list(itertools.takewhile(lambda word: "=" not in word and not word.startswith("-"), words))
    overrides = [*listed("models", models), *listed("trust", trust), *words[len(models) :]]
    if not any(word.startswith("models=") for word in overrides):
        raise ValueError("wanted a trained model first, got none; mmldm encode MODEL data.path=DIR out=CACHE")
    config.launch(encoding.main, Path(__file__).resolve(), overrides, "encode")
    return 0


def listed(key: str, values: Sequence[str]) -> list[str]:
    """The override that sets a list to any words; nothing where there are none."""
    quoted = ['"' + value.replace('"', '\\"') + '"' for value in values]
    return [f"{key}=[{','.join(quoted)}]"] if values else []


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
