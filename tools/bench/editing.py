"""What trained models of the built-in world make of what is given: `python tools/bench/editing.py RUN [RUN …] --out DIR`.

For each model and each edit: how often the sample shows what its prompt says, and the seam: the mean step between neighbours of
which one is given and the other made, over that of the original (1: the seam cannot be seen). Writes a table and a sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from mmldm.commands.measuring import agreement
from mmldm.data.world import VOCABULARY, World
from mmldm.media import sheet
from mmldm.pipeline import Known, Pipeline, box


def edits(kind: str, media, attributes: dict[str, str]) -> dict[str, Tensor]:
    """The mask (*S) of what each edit keeps of a clip of the world."""
    seconds = media.seconds or 0.0
    if kind == "image":
        x, y = VOCABULARY["place"][attributes["place"]]
        side = min(media.shape[-2:])
        left, top = (round((0.5 + place - 0.27) * side) for place in (x, y))
        inside = box(media, height=(top, top + 0.54 * side), width=(left, left + 0.54 * side))
        return {"object made, surroundings given": ~inside, "object given, surroundings made": inside}
    if kind == "video":
        return {
            "first frame given": box(media, time=(0, 1 / media.rate)),
            "first half given": box(media, time=(0, seconds / 2)),
        }
    return {"first half given": box(media, time=(0, seconds / 2))}


def step(x: Tensor, mask: Tensor) -> float:
    """Mean |difference| of neighbouring samples of x (C, *S) across the edge of a mask (*S)."""
    total, count = 0.0, 0
    for dim in range(mask.ndim):
        length = mask.shape[dim] - 1
        edge = mask.narrow(dim, 0, length) != mask.narrow(dim, 1, length)
        jump = (x.narrow(dim + 1, 1, length) - x.narrow(dim + 1, 0, length)).abs().mean(0)
        total, count = total + float(jump[edge].sum()), count + int(edge.sum())
    return total / count


def measure(pipeline: Pipeline, count: int) -> tuple[dict[str, dict[str, float]], dict[str, list]]:
    """By edit: the shares that are right and the seam; and (original, sample) pairs to look at."""
    ((kind, media),) = pipeline.medias().items()
    world, numbers, shown = World(kind, count, "heldout", seed=1), {}, {}
    truth = [world.load(i, kind, media).x for i in range(count)]
    for edit in edits(kind, media, world.attributes(0)):
        made, seams, wanted = [], [], []
        for i, x in enumerate(truth):
            mask = edits(kind, media, world.attributes(i))[edit]
            (sample,) = pipeline.generate(world.row(i)["text"], seed=i, known={kind: Known(x, mask)})
            made.append(sample)
            wanted.append(world.attributes(i))
            seams.append((step(sample.streams[kind], mask), step(x, mask)))
        numbers[edit] = agreement(kind, made, wanted) | {"seam": sum(m for m, _ in seams) / sum(t for _, t in seams)}
        shown[edit] = [
            pair for x, s in list(zip(truth, made, strict=True))[:8] for pair in ((x, ""), (s.streams[kind], s.prompt))
        ]
    return numbers, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("editing"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    for path in args.models:
        pipeline = Pipeline.load(path)
        ((_, media),) = pipeline.medias().items()
        numbers, shown = measure(pipeline, args.count)
        for edit, scores in numbers.items():
            rows += [] if rows else ["| model | edit | " + " | ".join(scores) + " |", "|---" * (2 + len(scores)) + "|"]
            rows.append(f"| {path.name} | {edit} | " + " | ".join(f"{value:.2f}" for value in scores.values()) + " |")
            sheet(shown[edit], media, args.out / f"{path.name}-{edit.replace(', ', '-').replace(' ', '-')}.png")
    table = "\n".join(rows)
    (args.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
