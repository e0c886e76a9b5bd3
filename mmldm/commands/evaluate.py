"""mmldm evaluate: reconstruction of a codec; loss by noise level and prompt adherence of a diffusion model."""

from __future__ import annotations

import sys

USAGE = """usage: mmldm evaluate MODEL data.path=DIR [out=DIR] [key=value …] [--trust CLASS]

A codec: reconstruction metrics, by frame position for clips, what its latents are like, and the Fréchet distance between
originals and reconstructions. A diffusion model: loss by noise level and, on the built-in data, how much of each prompt is in
the sample, for combinations seen in training and held out. Writes report.json and index.html.

  mmldm evaluate runs/codec data.path=DIR
  mmldm evaluate runs/codec data.path=DIR embedder=inception embedder.weights=FILE   (or learned, clap, none)
  mmldm evaluate runs/codec data.path=DIR lpips=[vgg16.pth,vgg.pth]
  mmldm evaluate runs/image data=world data.kind=image samples=128
"""


def main(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    from rich.console import Console

    from mmldm import config
    from mmldm.commands import measuring
    from mmldm.commands.arguments import split_trust

    words, trust = split_trust(argv)
    if not words or "=" in words[0]:
        raise ValueError("wanted a trained model first, got none; mmldm evaluate MODEL data.path=DIR")
    cfg = config.compose(words[1:], "evaluate")
    config.check(cfg, "evaluate")
    report, out = measuring.evaluate(words[0], cfg, trust)
    console = Console()
    for section, numbers in report.items():
        if isinstance(numbers, dict):
            console.print(section, style="bold")
            for name, value in numbers.items():
                console.print(f"  {name:<32} {shown(value)}", soft_wrap=True, highlight=False)
    print(f"{out / 'report.json'}  {out / 'index.html'}")
    return 0


def shown(value: object) -> str:
    """A number of the report in four digits, a list of them by its first and last ones."""
    if isinstance(value, list):
        words = [shown(v) for v in value]
        return " ".join(words if len(words) <= 12 else [*words[:6], "…", *words[-5:]])
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
