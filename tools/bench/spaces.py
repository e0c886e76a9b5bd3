"""What it costs to diffuse pixels instead of latents: python tools/bench/spaces.py LATENT PIXELS … --out docs/spaces.png

Each RUN is a training of the same network on the built-in pictures, on the latents of a codec or on the pictures themselves
(pixels.py). Measures the seconds of a training step and of a sample alone, one thread, and from the snapshots of each run the
share of samples that have what their prompt says; writes the curve over step times cost, and beside it the table in Markdown.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from mmldm.commands.measuring import adherence
from mmldm.pipeline import Pipeline
from mmldm.training import snapshots

COLOURS = ("#2f6fb0", "#c8553d", "#4c9a6a", "#8a63a8")
SHARES = (0.5, 0.7, 0.8, 0.9)  # of which the cost is told


def step_seconds(pipeline: Pipeline, batch: int, rounds: int) -> float:
    """Median seconds of processor time of forward, backward and AdamW on a batch of random latents, in bfloat16."""
    model = pipeline.model
    ((stream, media),) = pipeline.medias().items()
    shape = (batch, *model.latent_shape(stream, media.shape))
    parameters = [*model.denoiser.parameters(), *model.conditions.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    random, spent = torch.Generator().manual_seed(0), []
    read, _ = model.conditions.read({"text": ["a large red circle at the top left"] * batch})
    for _ in range(rounds + 1):
        z, t = torch.randn(shape, generator=random), torch.rand(batch, generator=random)
        clock = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            prepared = model.prepare(model.conditions(model.encode_fields(read)))
            context = {stream: model.context(stream, shape[2:])}
            out = model.predict({stream: z}, {stream: t}, context, prepared)[stream]
        (out - z).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(time.process_time() - clock)
    for p in parameters:
        p.requires_grad_(False)
    return statistics.median(spent[1:])


def sample_seconds(pipeline: Pipeline, count: int) -> float:
    """Seconds of processor time per sample of the model's own sampler, decoding included."""
    clock = time.process_time()
    pipeline.generate({"text": ["a large red circle at the top left"] * count}, batch_size=count)
    return (time.process_time() - clock) / count


def load(pipeline: Pipeline, weights: dict[str, Tensor]) -> None:
    own = dict(pipeline.model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name.removeprefix("model.")].copy_(tensor)


def curve(pipeline: Pipeline, run: Path, count: int, points: int) -> list[tuple[int, dict[str, float]]]:
    """(step, shares by attribute) at some snapshots of the narrowest average."""
    every = snapshots.find(run / "ema")
    every = [s for s in every if s.std == min(x.std for x in every)]
    found = []
    for i in range(points):
        snapshot = every[round((i + 1) * len(every) / points) - 1]
        load(pipeline, snapshots.load(snapshot))
        shares, _ = adherence(pipeline, "image", count, "train", batch_size=count)
        found.append((snapshot.step, shares))
        print(run.name, snapshot.step, {k: round(v, 2) for k, v in shares.items()}, flush=True)
    return found


def mean(shares: dict[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def steps_to(points: list[tuple[int, dict[str, float]]], share: float) -> float | None:
    """The step at which the mean share is reached, between snapshots linearly; None where it is not."""
    before = (0, 0.25)
    for step, shares in points:
        now = mean(shares)
        if now >= share:
            return before[0] + (step - before[0]) * max(0.0, share - before[1]) / max(now - before[1], 1e-9)
        before = (step, now)
    return None


def told(value: float | None, base: float | None) -> str:
    """A cost, and how many times the first run's it is."""
    if value is None:
        return "not reached"
    return f"{value:.3g}" if base is None or value == base else f"{value:.3g} ({value / base:.1f} x)"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", type=Path, nargs="+", help="the first is on latents; the others are compared with it")
    p.add_argument("--count", type=int, default=96)
    p.add_argument("--points", type=int, default=8, help="snapshots that are measured")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--rounds", type=int, default=6)
    p.add_argument("--trust", nargs="*", default=["pixels.Pixels"])
    p.add_argument("--out", type=Path, default=Path("docs/spaces.png"))
    args = p.parse_args()
    torch.set_num_threads(1)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    names = [f"{share:.0%}" for share in SHARES]
    lines = [
        "| run | tokens | seconds per step | per sample | seconds of training to a mean share of " + " | ".join(names) + " |"
    ]
    lines.append("|---" * (4 + len(SHARES)) + "|")
    first: list[float | None] = []
    for run, colour in zip(args.runs, COLOURS, strict=False):
        pipeline = Pipeline.load(run, args.trust)
        ((stream, media),) = pipeline.medias().items()
        cells = pipeline.model.latent_shape(stream, media.shape)[1:]
        patch = pipeline.model.denoiser.patches[stream]
        tokens = functools.reduce(lambda n, pair: n * pair[0] // pair[1], zip(cells, patch, strict=True), 1)
        cost, sampling = step_seconds(pipeline, args.batch, args.rounds), sample_seconds(pipeline, 16)
        points = curve(pipeline, run, args.count, args.points)
        spent = [None if (s := steps_to(points, share)) is None else s * cost for share in SHARES]
        first = first or [cost, sampling, *spent]
        beside = [told(value, base) for value, base in zip([cost, sampling, *spent], first, strict=True)]
        lines.append(f"| {run.name} | {tokens} | " + " | ".join(beside) + " |")
        axes.plot([step * cost / 60 for step, _ in points], [mean(s) for _, s in points], "o-", color=colour, markersize=3,
                  label=f"{run.name} ({tokens} tokens)")  # fmt: skip
    axes.set(xscale="log", ylim=(0, 1), xlabel="minutes of one core", ylabel="mean share of attributes")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.legend(fontsize=7, frameon=False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    text = "\n".join([*lines, ""])
    print(text)
    args.out.with_suffix(".txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
