"""mmldm ema: the weights of a trained run averaged over another width, from the snapshots that its training kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mmldm.commands.arguments import Parser

__all__ = ["average"]


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="mmldm ema",
        description="Write the model of a run with its weights averaged over another width, from the snapshots in RUN/ema. It "
        "is used like any other, for example as the weak model of autoguidance. A codec keeps its latent statistics.",
    )
    p.add_argument("run", help="a run folder, or its model folder")
    p.add_argument("--std", type=float, required=True, help="relative width of the average, e.g. 0.05 (long runs) to 0.20")
    p.add_argument("--step", type=int, help="an earlier moment: the last snapshot up to this step (default: of all)")
    p.add_argument("--out", type=Path, metavar="FOLDER", help="where to write the model (default: RUN/model-ema-STD[-STEP])")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    out, residual = average(args.run, args.std, args.out, args.step)
    print(f"{out}: width {args.std:g}, relative residual {residual:.2g}")
    return 0


def average(run: str | Path, std: float, out: Path | None = None, step: int | None = None) -> tuple[Path, float]:
    """Write the model folder of a run averaged over the relative width `std`; returns it and the profile's relative residual.

    With `step`, of the last snapshot up to that step.
    Raises ValueError where the run has no model or no snapshots, or they do not span the width.
    """
    from mmldm import store
    from mmldm.training import snapshots

    stored = store.load_model(run)
    source = stored.folder.parent
    found = snapshots.reconstruct(source / "ema", std, step)
    parts, names = {part: dict(tensors) for part, tensors in stored.parts.items()}, set()
    for part, tensors in parts.items():
        prefix = "codec." if stored.spec["kind"] == "codec" else f"model.{part}."
        for name in [n for n in tensors if prefix + n in found.tensors]:
            tensors[name] = found.tensors[prefix + name].to(tensors[name].dtype)
            names.add(prefix + name)
    strange = sorted(set(found.tensors) - names)
    if strange:
        raise ValueError(f"wanted snapshots of the model in {stored.folder}, got others in {source / 'ema'}: {strange[0]} …")
    widths = ", ".join(f"{s:g}" for s in found.stds)
    told = (
        f"power-function average, relative width {std:g}, from {found.count} snapshots of widths {widths} "
        f"(relative residual {found.residual:.2g})"
    )
    facts = {k: v for k, v in stored.facts.items() if k != "numbers"} | {"weights": told, "steps": found.step}
    out = Path(out or source / (f"model-ema-{std:g}" + (f"-{found.step}" if step else "")))
    return store.save_model(out, stored.spec, parts, facts, card(stored.folder, out, told)), found.residual


def card(model: Path, out: Path, weights: str) -> str:
    """The run's model card with other weights, without the numbers that were measured of the old ones."""
    lines = (model / "README.md").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if not line.startswith("- val/")]
    told = [f"- weights: {weights}" if line.startswith("- weights:") else line for line in told]
    use = re.compile(r"^(mmldm generate |mmldm train .*?codec\.\w+=)\S+")
    return "\n".join(use.sub(lambda match: match[1] + str(out), line) for line in told) + "\n"


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
