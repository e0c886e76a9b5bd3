"""How well a joint model of the bouncing balls keeps picture and sound together: python tools/bench/joint.py RUN --out docs

Measures every direction with the final weights, and the curve over the training from the snapshots of its first average; writes
joint.png (curve, and frames with the waveform of some samples) and the tables to joint-numbers.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mmldm import config
from mmldm.commands.measuring import adherence, agreement, translation
from mmldm.data.world import World
from mmldm.pipeline import Pipeline, Sample
from mmldm.training import snapshots


def chance(pipeline: Pipeline, count: int) -> float:
    """Synchrony of true pictures with true sounds of other balls of the same tempo."""
    medias, world, by_tempo = pipeline.medias(), World("av", 4 * count, "all", seed=1), {}
    for i in range(len(world)):
        by_tempo.setdefault(world.attributes(i)["tempo"], []).append(i)
    pairs = sorted((a, b) for rows in by_tempo.values() for a, b in zip(rows, rows[1:], strict=False))[:count]
    made = [
        Sample({s: world.load(i, s, medias[s]).x for s, i in (("video", a), ("audio", b))}, medias, "", 0, a) for a, b in pairs
    ]
    return agreement("av", made, [world.attributes(a) for a, _ in pairs])["synchrony"]


def directions(pipeline: Pipeline, count: int) -> tuple[dict[str, dict[str, float]], list[Sample]]:
    """Shares by direction, and the joint samples."""
    found, (seen, samples) = {}, adherence(pipeline, "av", count, "train", batch_size=16)
    found["text to both, seen combinations"] = seen
    found["text to both, held-out combinations"], _ = adherence(pipeline, "av", count, "heldout", batch_size=16)
    for given, name in (("video", "video to audio"), ("audio", "audio to video")):
        found[name], _ = translation(pipeline, "av", given, count)
    for absent, name in (("audio", "text to video alone"), ("video", "text to audio alone")):
        found[name], _ = adherence(pipeline, "av", count, "heldout", batch_size=16, absent=[absent])
    return found, samples


def curve(pipeline: Pipeline, folder: Path, count: int, points: int) -> list[tuple[int, float, float]]:
    """(step, synchrony of joint samples, of sounds made for pictures) at some snapshots; leaves the newest weights loaded."""
    every = [s for s in snapshots.find(folder) if s.std == min(x.std for x in snapshots.find(folder))]
    steps = [every[round((i + 1) * len(every) / points) - 1] for i in range(points)]
    own, found = dict(pipeline.model.named_parameters()), []
    for snapshot in steps:
        with torch.no_grad():
            for name, tensor in snapshots.load(snapshot).items():
                own[name.removeprefix("model.")].copy_(tensor)
        joint, _ = adherence(pipeline, "av", count, "train", batch_size=16)
        made, _ = translation(pipeline, "av", "video", count)
        found.append((snapshot.step, joint["synchrony"], made["synchrony"]))
        print(*found[-1], flush=True)
    return found


def picture(points: list[tuple[int, float, float]], level: float, samples: list[Sample], out: Path) -> None:
    """The curve, and below it frames and waveform of samples on one time axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 + 1.5 * len(samples)), dpi=100, layout="constrained")
    grid = figure.subplots(1 + 2 * len(samples), 1, height_ratios=[3, *([0.8, 0.6] * len(samples))])
    for column, label in ((1, "both from text"), (2, "sound for a picture")):
        grid[0].plot([p[0] for p in points], [p[column] for p in points], "o-", markersize=4, label=label)
    grid[0].axhline(level, color="#999999", linestyle=":", label="chance")
    grid[0].set(ylim=(0, 1), xlabel="step", title="share of samples with picture and sound within one frame")
    grid[0].legend(fontsize=8, frameon=False)
    for sample, frames, wave in zip(samples, grid[1::2], grid[2::2], strict=True):
        x, y = sample.streams["video"], sample.streams["audio"][0]
        frames.imshow(((x.permute(2, 1, 3, 0).flatten(1, 2) + 1) / 2).clamp(0, 1).numpy(), aspect="auto")
        frames.set_title(sample.prompt, fontsize=8)
        wave.plot(torch.arange(len(y)) / sample.medias["audio"].rate, y, linewidth=0.5)
        wave.set(xlim=(0, len(y) / sample.medias["audio"].rate), ylim=(-1, 1))
        for axes in (frames, wave):
            axes.set_axis_off()
    figure.savefig(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", type=Path)
    p.add_argument("--count", type=int, default=64)
    p.add_argument("--guidance", metavar="NAME", help="a file of conf/diffusion/guidance (default: the model's own)")
    p.add_argument("--points", type=int, default=4, help="of the curve")
    p.add_argument("--out", type=Path, default=Path("docs"))
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.load(args.run)
    if args.guidance:
        pipeline.spec["sampler"] = {**pipeline.spec["sampler"], "guidance": config.member("diffusion/guidance", args.guidance)}
    found, samples = directions(pipeline, args.count)
    level = chance(pipeline, args.count)
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    rows = ["| direction | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for what, scores in found.items():
        rows.append(f"| {what} | " + " | ".join(f"{scores[n]:.2f}" if n in scores else "" for n in names) + " |")
    rows += ["", f"Chance (true sounds of other balls of the same tempo): synchrony {level:.2f}.", ""]
    print("\n".join(rows), flush=True)
    points = curve(pipeline, args.run / "ema", args.count, args.points)
    rows += ["| step | both from text | sound for a picture |", "|---|---|---|"]
    rows += [f"| {step} | {joint:.2f} | {made:.2f} |" for step, joint, made in points]
    (args.out / "joint-numbers.md").write_text("\n".join([*rows, ""]), encoding="utf-8")
    picture(points, level, samples[:4], args.out / "joint.png")


if __name__ == "__main__":
    main()
