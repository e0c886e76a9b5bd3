"""How fast training is: python tools/bench/training.py [--quick] [--dtype both] [--rounds 5] [--out docs]

Our training (Lightning, keyed randomness, averages, logs, checkpoints) beside a bare PyTorch loop on the same network, data and
optimiser; our transformer beside diffusers' PixArt of the same shape in that bare loop; training from files beside training
from the cache of their latents. Contestants take turns; medians of steps. Writes OUT/training.md below its marker.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import lightning
import torch
from contestants import Cells, Shape, theirs
from torch import Tensor, nn

from mmldm import config
from mmldm.commands.encode import main as encode
from mmldm.commands.training import train
from mmldm.conditioner import ConditionSet
from mmldm.data.world import World
from mmldm.denoiser import DiT
from mmldm.diffusion import Flow, Linear, LogitNormal, UnitF
from mmldm.diffusion.known import Context
from mmldm.interfaces import Batch, Cond, Conditioner, CondWidths, Posterior
from mmldm.media import ImageMedia, save_image
from mmldm.model import Model
from mmldm.training import EMA, Curves, DiffusionTraining, Resume, Schedule, Speed

MARKER = "<!-- below: written by tools/bench/training.py -->"
STD = (0.05, 0.10)  # widths of the averages
adamw = functools.partial(torch.optim.AdamW, lr=1e-4)
now = time.perf_counter


# ---------------------------------------------------------------- the same network, data and optimiser


class Captions(Conditioner):
    """Tokens that a text encoder would give, and their mask, from the batch."""

    key = "text"

    def __init__(self, width: int):
        super().__init__()
        self.widths = CondWidths(tokens=width)
        self.nothing = nn.Parameter(torch.zeros(width))

    def forward(self, encoded: tuple[Tensor, Tensor]) -> Cond:
        return Cond(tokens=encoded[0], mask=encoded[1])

    def null(self, batch_size: int) -> Cond:
        mask = torch.ones(batch_size, 1, dtype=torch.bool)
        return Cond(tokens=self.nothing.expand(batch_size, 1, -1), mask=mask)


def network(shape: Shape) -> Model:
    """Our model, gates and outputs moved off the zero that they start from."""
    torch.manual_seed(0)
    conditions = ConditionSet({"text": Captions(shape.caption)})
    denoiser = DiT({"z": Cells().geometry}, conditions.widths, shape.width, shape.depth, shape.heads, patch=2)
    with torch.no_grad():
        for p in denoiser.parameters():
            if not bool(p.any()):
                p.copy_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return Model({"z": Cells()}, conditions, denoiser, Linear(), Flow())


class Latents(lightning.LightningDataModule):
    """The same few batches of latents and captions over and over, each in its place of an endless order."""

    def __init__(self, shape: Shape, count: int = 4):
        super().__init__()
        random, rows = torch.Generator().manual_seed(1), shape.batch * count
        self.z = torch.randn(rows, 4, shape.side, shape.side, generator=random)
        self.text = torch.randn(rows, shape.tokens, shape.caption, generator=random)
        lengths = torch.randint(shape.tokens // 4, shape.tokens + 1, (rows, 1), generator=random)
        self.mask = torch.arange(shape.tokens)[None] < lengths
        self.batch_size = shape.batch

    def batch(self, step: int) -> Batch:
        position = torch.arange(self.batch_size) + step * self.batch_size
        rows = position % len(self.z)
        there = torch.ones(len(rows), dtype=torch.bool)
        fields, latents = {"text": (self.text[rows], self.mask[rows])}, {"z": Posterior(self.z[rows])}
        return Batch(position, rows, latents=latents, fields=fields, present={"text": there})

    def train_dataloader(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1


# ---------------------------------------------------------------- contestants: seconds per step


class Clock(lightning.Callback):
    """The time at the end of each step."""

    def __init__(self):
        self.times: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.times.append(now())


def ours(shape: Shape, half: bool, steps: int) -> list[float]:
    """Seconds of each step of a training as `mmldm train` runs it."""
    module = DiffusionTraining(network(shape), LogitNormal(), UnitF(), adamw, None, Schedule(1, 0.0), shape.batch)
    with tempfile.TemporaryDirectory() as folder:
        logger, clock = lightning.pytorch.loggers.CSVLogger(folder), Clock()
        callbacks = [Curves(lambda step, numbers: None), EMA(STD), Resume(Path(folder, "resume"), 10**6), Speed(50), clock]
        trainer = lightning.Trainer(
            max_steps=steps + 1, accelerator="cpu", precision="bf16-mixed" if half else "32-true", callbacks=callbacks,
            logger=logger, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, gradient_clip_val=1.0, log_every_n_steps=50,
        )  # fmt: skip
        trainer.fit(module, Latents(shape))
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)][1:]


def bare(shape: Shape, half: bool, steps: int, peer: bool = False) -> list[float]:
    """Seconds of each step of the plainest loop: noise, forward, backward, clip, step, the same averages."""
    if peer:
        net = theirs(shape).train().requires_grad_(True)
        forward = functools.partial(their_prediction, net)
    else:
        net = network(shape)
        forward = functools.partial(our_prediction, net)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer, data, times = adamw(parameters), Latents(shape), [now()]
    averages = [[p.detach().clone() for p in parameters] for _ in STD]
    for step in range(steps):
        batch = data.batch(step)
        z = batch.latents["z"].mean
        eps, t = torch.randn_like(z), torch.sigmoid(torch.randn(len(z)))
        level = t[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            out = forward((1 - level) * z + level * eps, t, *batch.fields["text"])
        loss = (out.float() - (eps - z)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for average in averages:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.01)
        times.append(now())
    return [after - before for before, after in zip(times, times[1:], strict=False)][1:]


def our_prediction(model: Model, z_t: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    context = {"z": Context(positions=model.context("z", z_t.shape[2:]).positions)}
    return model.predict({"z": z_t}, {"z": t}, context, model.prepare({"text": Cond(tokens=text, mask=mask)}))["z"]


def their_prediction(net: nn.Module, z_t: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    size = {"resolution": None, "aspect_ratio": None}
    return net(z_t, text, timestep=1000 * t, encoder_attention_mask=mask.to(z_t.dtype), added_cond_kwargs=size).sample


def race(runs: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[float]]:
    """The median step of every contestant in each of the rounds, in which they take turns, each round from another one on."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(statistics.median(runs[name]()))
    return found


# ---------------------------------------------------------------- from files and from the cache of their latents


def feeds(args: argparse.Namespace) -> Iterator[str]:
    """Seconds per step of one training from files and from the cache: pictures of 256 x 256, an f8 codec, dit_s, batch 16."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(64):
            picture = World("image", 64).load(i, "image", ImageMedia(256, 256)).x
            save_image(picture, folder / "pictures" / f"{i}.jpg")
        files = [
            f"data.path={folder / 'pictures'}",
            "data.batch_size=16",
            "previews=0",
            "logger=csv",
            "checkpoint_every=100000",
        ]
        short = [
            "trainer.max_steps=1",
            "trainer.limit_val_batches=1",
            "whitening_batches=2",
            "trainer.val_check_interval=100000",
        ]
        train(config.compose(["experiment=image_codec", *files, *short, f"run={folder / 'codec'}"]))
        encode([str(folder / "codec"), files[0], f"out={folder / 'latents'}", "data.workers=0"])
        model = ["experiment=image_diffusion", f"codec.image={folder / 'codec'}", *files, *short[1:]]
        model += [f"trainer.max_steps={args.steps}", "trainer.log_every_n_steps=1", "snapshots=0"]
        kinds = {
            "files, no worker": ["data.workers=0"],
            "files, a worker": ["data.workers=1"],
            "cache": [f"data.cache={folder / 'latents'}"],
        }
        spent = {}
        for number, (kind, options) in enumerate(kinds.items()):
            train(config.compose([*model, *options, f"run={folder / str(number)}"]))
            spent[kind] = seconds_per_step(folder / str(number))
        yield from head("read from", "seconds per step", "beside the cache")
        for kind, seconds in spent.items():
            yield row(kind, f"{seconds:.3f}", f"{seconds / spent['cache']:.2f}")


def seconds_per_step(folder: Path) -> float:
    """The median that a training has logged of itself."""
    with open(folder / "logs" / "metrics.csv", encoding="utf-8") as file:
        speeds = [float(line["speed/steps_per_s"]) for line in csv.DictReader(file) if line.get("speed/steps_per_s")]
    return 1 / statistics.median(speeds[2:])


# ---------------------------------------------------------------- the tables


def row(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def head(*cells: str) -> list[str]:
    return [row(*cells), row(*["---"] * len(cells))]


def ratio(a: list[float], b: list[float]) -> str:
    """Median and range over the rounds of a / b."""
    each = sorted(x / y for x, y in zip(a, b, strict=True))
    return f"{statistics.median(each):.3f} ({each[0]:.3f} to {each[-1]:.3f})"


def table(shape: Shape, args: argparse.Namespace) -> Iterator[str]:
    """Every contestant in each type."""
    sizes = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (network(shape).denoiser, theirs(shape))]
    yield f"Width {shape.width}, {shape.depth} blocks, {(shape.side // 2) ** 2} tokens, {shape.tokens} caption tokens, batch"
    yield f"{shape.batch}; parameters: ours {sizes[0]:.2f} million, theirs {sizes[1]:.2f} million. {args.threads} threads,"
    yield f"{args.rounds} rounds of {args.steps} steps."
    yield from ("", *head("", "seconds per step", "beside the bare loop", "beside diffusers' transformer"))
    for kind in {"float32": ("float32",), "bfloat16": ("bfloat16",), "both": ("float32", "bfloat16")}[args.dtype]:
        half = kind == "bfloat16"
        found = race(
            {
                "our training": lambda half=half: ours(shape, half, args.steps),
                "bare loop, our transformer": lambda half=half: bare(shape, half, args.steps),
                "bare loop, diffusers' transformer": lambda half=half: bare(shape, half, args.steps, peer=True),
            },
            args.rounds,
        )
        plain, peer = found["bare loop, our transformer"], found["bare loop, diffusers' transformer"]
        for name, times in found.items():
            beside = "" if times is peer else ratio(times, plain)
            yield row(f"{kind}, {name}", f"{statistics.median(times):.3f}", beside, ratio(times, peer))


def main(args: argparse.Namespace) -> None:
    global now
    now = time.process_time if args.processor else now
    args.threads = args.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(args.threads)
    small = Shape(192, 6, 3, 16, 24, 192, 64)
    shapes = [Shape(96, 4, 3, 16, 24, 64, 4)] if args.quick else [Shape(batch=args.batch), small]
    text = [line for shape in shapes for line in (*table(shape, args), "")] if not args.feeds_only else []
    if not args.quick:
        text += [*feeds(args), ""]
    print("\n".join(text))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        page = args.out / "training.md"
        above = page.read_text(encoding="utf-8").split(MARKER)[0] if page.is_file() else ""
        page.write_text("\n".join([above + MARKER, "", *text]), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "both"), default="both")
    parser.add_argument("--threads", type=int, help="threads; all there are unless told")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--processor", action="store_true", help="processor time, where other work shares the machine")
    parser.add_argument("--feeds-only", action="store_true", help="only files beside the cache")
    parser.add_argument("--quick", action="store_true", help="a tiny network: does it run")
    parser.add_argument("--out", type=Path, help="folder of training.md")
    main(parser.parse_args())
