"""What the width of the average does to a trained model: python tools/bench/ema.py RUN --stds 0.02 0.05 0.1 --out docs/ema.png

Reconstructs each width of a run on the built-in data, generates from prompts, and measures the share of the samples that have
what their prompt says and the validation loss; writes a picture and, beside it, a table in Markdown.
"""

import argparse
import tempfile
from pathlib import Path

from mmldm import config, store
from mmldm.commands import measuring
from mmldm.commands.ema import average
from mmldm.pipeline import Pipeline
from mmldm.training import snapshots

UNSEEN = 1  # seed of data of the same law that no training saw
COLOURS = ("#2f6fb0", "#c8553d", "#4c9a6a", "#8a63a8", "#b08a2f", "#555555")


def measure(args: argparse.Namespace, std: float) -> dict[str, float]:
    """Residual of the profile, shares by attribute, their mean over attributes, and the mean loss over levels, of one width."""
    with tempfile.TemporaryDirectory() as folder:
        model, residual = average(args.run, std, Path(folder) / "model")
        pipeline = Pipeline.load(model, args.trust)
    medias = pipeline.medias()
    kind = args.kind or ("av" if len(medias) > 1 else next(iter(medias)))
    unseen = ["data=world", f"data.kind={kind}", f"data.items={args.items}", f"+data.source.seed={UNSEEN}"]
    cfg = config.compose(unseen, "evaluate")
    losses = measuring.losses(pipeline.model, measuring.sized_source(cfg, medias), medias, args.items, args.batch)
    sampled = {"batch_size": args.batch, "seed": args.seed, "guidance": args.guidance, "steps": args.steps}
    shares, _ = measuring.adherence(pipeline, kind, args.samples, args.split, **sampled)
    mean = sum(shares.values()) / len(shares)
    return {"residual": residual, "loss": sum(losses.values()) / len(losses), "mean": mean, **shares}


def table(found: dict[float, dict[str, float]], tracked: set[float], args: argparse.Namespace) -> str:
    """The measurements as Markdown."""
    names = [name for name in next(iter(found.values())) if name not in ("residual", "loss")]
    facts = store.load_model(args.run).facts
    guidance = "the model's guidance" if args.guidance is None else f"guidance {args.guidance:g}"
    lines = [
        "# The width of the average",
        "",
        f"A model of the built-in world after {facts.get('steps')} steps; {args.samples} prompts ({args.split}), {guidance}; "
        f"loss over {args.items} items. A share of 0.9 of {args.samples} samples has a standard error of "
        f"{(0.09 / args.samples) ** 0.5:.3f}. Tracked widths are in bold; the others are reconstructed from snapshots.",
        "",
        "| width | residual | loss | " + " | ".join(names) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for std, row in found.items():
        width = f"**{std:g}**" if std in tracked else f"{std:g}"
        shares = " | ".join(f"{row[name]:.3f}" for name in names)
        lines.append(f"| {width} | {row['residual']:.4f} | {row['loss']:.5f} | {shares} |")
    return "\n".join([*lines, "", f"`python tools/bench/ema.py RUN --stds {' '.join(f'{s:g}' for s in found)}`", ""])


def picture(found: dict[float, dict[str, float]], tracked: set[float], out: Path) -> None:
    """Loss, and shares by attribute, over the width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 3.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    stds = list(found)
    left.plot(stds, [row["loss"] for row in found.values()], "o-", color=COLOURS[0], markersize=4)
    left.set_title("loss, mean over levels (lower is better)", fontsize=9)
    names = [name for name in found[stds[0]] if name not in ("residual", "loss", "mean")]
    for name, colour in zip(names, COLOURS[1:] * len(names), strict=False):
        right.plot(stds, [row[name] for row in found.values()], "o-", color=colour, markersize=3, linewidth=1, label=name)
    right.plot(stds, [row["mean"] for row in found.values()], "o-", color=COLOURS[0], markersize=4, linewidth=2, label="mean")
    right.set_title("share of samples that have what is asked", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        for std in tracked:
            axes.axvline(std, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.set_xlabel("relative width of the average (dotted: tracked in training)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(color="#e6e6e6", linewidth=0.6)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="the run of a diffusion training on the built-in world")
    p.add_argument("--stds", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.15, 0.2])
    p.add_argument("--kind", help="of the built-in world (default: by the model's streams)")
    p.add_argument("--split", default="train", choices=("train", "heldout"))
    p.add_argument("--samples", type=int, default=128)
    p.add_argument("--items", type=int, default=256, help="data items that the loss is measured over")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--guidance", type=float)
    p.add_argument("--steps", type=int)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--trust", action="append", default=[], metavar="CLASS")
    p.add_argument("--out", type=Path, default=Path("docs/ema.png"))
    args = p.parse_args()
    found = {}
    for std in sorted(args.stds):
        try:
            found[std] = measure(args, std)
        except ValueError as error:
            print(f"{std:g}: {error}", flush=True)
            continue
        print(f"{std:g}: " + ", ".join(f"{name} {value:.4g}" for name, value in found[std].items()), flush=True)
    tracked = {s.std for s in snapshots.find(store.find_model(args.run).parent / "ema")}
    picture(found, tracked, args.out)
    args.out.with_suffix(".md").write_text(table(found, tracked, args), encoding="utf-8")
    print(f"{args.out}  {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
