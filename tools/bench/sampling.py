"""How long sampling takes beside diffusers' loop: python tools/bench/sampling.py [--quick] [--model RUN] [--out docs]

A PixArt-S/2 of 30 million parameters (256 tokens, 120 caption tokens) and our DiT of the same shape, random weights, with
guidance: (a) the same arithmetic, in float32 and bfloat16; (b) our default sampler at the calls that it needs for the error of
theirs; and blocks reused between steps. Contestants take turns; medians. Writes the tables of OUT/sampling.md below its marker.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as File

import torch
from contestants import SCALE, Inputs, Run, Shape, our_loop, ours, their_grid, their_loop, theirs
from diffusers import DPMSolverMultistepScheduler
from solvers import Mixture
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmldm.denoiser.memory import Reuse
from mmldm.diffusion import CFG, DDPM, DPMpp2M, Eps, Flow, Grid, Linear, LogSNRGrid, Path, Solver, UniformGrid, UniPC, sample
from mmldm.pipeline import Pipeline

MARKER = "<!-- below: written by tools/bench/sampling.py -->"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear")
HALF, FULL = torch.bfloat16, torch.float32
SHORT = 2  # calls in what is profiled
Loop = Callable[[int], Run]


# ---------------------------------------------------------------- equal error


def mixture(path: Path) -> Callable:
    """The exact denoiser of the mixture of solvers.py on a path, as `sample` asks: guided to even or odd Gaussians by row."""
    toy = Mixture()

    def denoise(z_t, t, names):
        alpha, sigma, rows = path.alpha(t["z"][0].double()), path.sigma(t["z"][0].double()), len(z_t["z"])
        among = {"cond": torch.arange(8)[None] % 2 == torch.arange(rows)[:, None] % 2, "null": None}
        return {name: {"z": toy.denoise(z_t["z"], alpha, sigma, among[name])} for name in names}

    return denoise


def our_error(noise: Tensor, path: Path, solver: Solver, grid: Grid, steps: int) -> float:
    """Root mean square distance per value to the exact end of the same noise on this path, with guidance."""
    ends = [
        sample(mixture(path), {"z": noise}, {"z": g(n, path)}, s, path, CFG(SCALE))["z"]
        for s, g, n in ((solver, grid, steps), (UniPC(3), LogSNRGrid(-9.0, 9.0), 400))
    ]
    return float((ends[0] - ends[1]).square().mean().sqrt())


def their_error(noise: Tensor, steps: int) -> float:
    """The same of their scheduler, on its own path."""
    path, scheduler, z = DDPM(), DPMSolverMultistepScheduler(), noise
    denoise, finest = mixture(path), LogSNRGrid(-9.0, 9.0)(400, path)
    scheduler.set_timesteps(steps)
    for k in scheduler.timesteps:
        t = torch.full((len(z),), (int(k) + 1) / 1000, dtype=torch.float64)
        hats = denoise({"z": z}, {"z": t}, ("cond", "null"))
        z_hat = hats["null"]["z"] + SCALE * (hats["cond"]["z"] - hats["null"]["z"])
        eps = (z - path.alpha(t[0]) * z_hat) / path.sigma(t[0])
        z = scheduler.step(eps, k, z, return_dict=False)[0].double()
    exact = sample(denoise, {"z": noise}, {"z": finest}, UniPC(3), path, CFG(SCALE))["z"]
    return float((z - exact).square().mean().sqrt())


def equal_error(steps: int, rows: int = 2048) -> tuple[int, float, float]:
    """The least calls of our default sampler with no more error than theirs at `steps`, our error then, theirs."""
    noise = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    limit = their_error(noise, steps)
    for calls in range(2, 4 * steps):
        if (error := our_error(noise, Linear(), UniPC(2), UniformGrid(), calls)) <= limit:
            return calls, error, limit
    raise ValueError(f"wanted a number of calls below {4 * steps} with an error of {limit:.3g}, got none")


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Time:
    """Medians of wall and of processor seconds."""

    wall: float
    busy: float


def race(runs: dict[str, Run], rounds: int) -> dict[str, Time]:
    """Every contestant once to warm up, then all of them in turn, `rounds` times."""
    found = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            wall, busy = time.perf_counter(), time.process_time()
            run()
            if i:
                found[name].append((time.perf_counter() - wall, time.process_time() - busy))
    return {name: Time(*(statistics.median(each) for each in zip(*values, strict=True))) for name, values in found.items()}


def shares(run: Run) -> dict[str, float]:
    """Processor time by kind of operation, as shares of the whole: products, attention, and the five largest of the rest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in profile.key_averages()}
    total, parts = sum(events.values()), {"products": 0.0, "attention": 0.0}
    rest = {}
    for name, spent in events.items():
        if name in PRODUCTS:
            parts["products"] += spent / total
        elif "attention" in name:
            parts["attention"] += spent / total
        else:
            rest[name] = spent / total
    return parts | dict(sorted(rest.items(), key=lambda item: -item[1])[:5])


def gflop(run: Run) -> float:
    """Products and attention of a run, in GFLOP."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


# ---------------------------------------------------------------- the tables


def row(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def head(*cells: str) -> list[str]:
    return [row(*cells), row(*["---"] * len(cells))]


def loops(shape: Shape, kind: torch.dtype, calls: int, steps: int, compiled: bool) -> dict[str, tuple[int, Loop]]:
    """The contestants in one type, each with its number of calls; theirs as people run it, ours with weights in that type."""
    inputs, same, default = Inputs.draw(shape), ours(shape, kind, DDPM(), Eps()), ours(shape, kind, Linear(), Flow())
    if compiled:
        same.denoiser.compile()
        default.denoiser.compile()
    peer, low = theirs(shape), theirs(shape).to(HALF)
    mixed: dict[str, tuple[int, Loop]] = {
        "theirs, autocast": (steps, lambda n: their_loop(peer, inputs, n, autocast=True)),
        "theirs, weights too": (steps, lambda n: their_loop(low, inputs, n)),
    }
    return (mixed if kind == HALF else {"theirs": (steps, lambda n: their_loop(peer, inputs, n))}) | {
        "ours (a)": (steps, lambda n: our_loop(same, inputs, DPMpp2M(), their_grid(n), n)),
        "ours (b)": (calls, lambda n: our_loop(default, inputs, UniPC(2), UniformGrid(), n)),
    }


def compared(shape: Shape, args: argparse.Namespace) -> Iterator[str]:
    """(a) and (b) in each type, and where the time of a few calls goes."""
    calls, error, limit = equal_error(args.steps)
    parts, kinds = [], {"float32": (FULL,), "bfloat16": (HALF,), "both": (FULL, HALF)}[args.dtype]
    counts = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (ours(shape, FULL, DDPM(), Eps()).denoiser, theirs(shape))]
    yield f"Parameters: ours {counts[0]:.2f} million, theirs {counts[1]:.2f} million. Batch {shape.batch}, guidance {SCALE:g},"
    yield f"{(shape.side // 2) ** 2} tokens, {shape.tokens} caption tokens. {args.threads} threads, {args.rounds} rounds."
    yield f"Error on the mixture: theirs {limit:.3g} at {args.steps} calls, ours (UniPC, uniform grid) {error:.3g} at {calls}."
    yield from ("", *head("run", "calls", "wall s", "processor s", "GFLOP a call", "wall / theirs", "processor / theirs"))
    for kind in kinds:
        found = loops(shape, kind, calls, args.steps, args.compile)
        times = race({name: loop(count) for name, (count, loop) in found.items()}, args.rounds)
        peers = [name for name in found if name.startswith("theirs")]
        best, name = min((times[n] for n in peers), key=lambda t: t.wall), str(kind).removeprefix("torch.")
        for who, (count, loop) in found.items():
            t = times[who]
            ratios = f"{t.wall / best.wall:.2f}", f"{t.busy / best.busy:.2f}"
            yield row(f"{name}, {who}", count, f"{t.wall:.2f}", f"{t.busy:.2f}", f"{gflop(loop(SHORT)) / SHORT:.0f}", *ratios)
        for who in (peers[-1], "ours (a)"):
            spent = shares(found[who][1](SHORT))
            rest = ", ".join(f"{n} {v:.0%}" for n, v in list(spent.items())[2:])
            parts.append(row(f"{name}, {who}", f"{spent['products']:.0%}", f"{spent['attention']:.0%}", rest))
    yield from ("", "## Where the time goes", "", *head("run", "matrix products", "attention", "most of the rest"), *parts)


def trained(pipeline: Pipeline, prompts: list[str], steps: int, reuse: Reuse | None) -> Run:
    """The latents of a trained model's own sampler, one row per prompt."""

    def run() -> Tensor:
        pipeline.model.denoiser.reuse = reuse
        items, sampler = torch.arange(len(prompts)), pipeline.sampler(steps)
        z = pipeline.sample_latents({"text": prompts}, items, pipeline.medias(), 0, sampler)
        return torch.cat([x.flatten(1) for x in z.values()], 1)

    return run


def reused(shape: Shape, args: argparse.Namespace) -> Iterator[str]:
    """What reusing blocks saves, and its error: of a trained model where one is given, else of random weights."""
    choices = {"call": None} | {f"{n} calls": Reuse(n, *args.keep) for n in args.every}
    if args.model:
        pipeline = Pipeline.load(args.model, args.trust)
        runs = {name: trained(pipeline, args.prompts, args.steps, reuse) for name, reuse in choices.items()}
    else:
        model, inputs = ours(shape, FULL, Linear(), Flow()), Inputs.draw(shape)
        runs = {name: our_loop(model, inputs, UniPC(2), UniformGrid(), args.steps, r) for name, r in choices.items()}
    times, plain = race(runs, args.rounds), runs["call"]().double()
    yield f"{args.name if args.model else 'Random weights'}, {args.steps} steps; the first {args.keep[0]} and the last"
    yield f"{args.keep[1]} blocks always run. Root mean square of the latents: {plain.square().mean().sqrt():.3g}."
    yield from ("", *head("the others run every", "wall", "processor", "root mean square of the difference"))
    for name, run in runs.items():
        far, t, whole = (run().double() - plain).square().mean().sqrt(), times[name], times["call"]
        yield row(name, f"{t.wall / whole.wall:.2f}", f"{t.busy / whole.busy:.2f}", f"{far:.3g}")


def main(args: argparse.Namespace) -> None:
    torch.set_grad_enabled(False)
    args.threads = args.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(args.threads)
    shape = Shape(batch=args.batch)
    if args.quick:
        shape = Shape(96, 4, 3, 16, 24, 64, min(args.batch, 2))
    text = [*compared(shape, args), "", "## Blocks reused between steps", "", *reused(shape, args)]
    print("\n".join(text))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        page = args.out / "sampling.md"
        above = page.read_text(encoding="utf-8").split(MARKER)[0] if page.is_file() else ""
        page.write_text("\n".join([above + MARKER, "", *text, ""]), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "both"), default="both")
    parser.add_argument("--threads", type=int, help="threads; all there are unless told")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--quick", action="store_true", help="a tiny network: does it run")
    parser.add_argument("--compile", action="store_true", help="compile our networks")
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3, 4], help="reuse: the others at every so many calls")
    parser.add_argument("--keep", type=int, nargs=2, default=[1, 1], help="reuse: first and last blocks that always run")
    parser.add_argument("--model", help="a run or model folder whose error of reuse to measure")
    parser.add_argument("--name", default="Trained model", help="what to call it")
    parser.add_argument("--prompts", nargs="+", default=[""] * 4, help="texts to generate from")
    parser.add_argument("--trust", nargs="*", default=(), help="classes from outside mmldm that the model may use")
    parser.add_argument("--out", type=File, help="folder of sampling.md")
    main(parser.parse_args())
