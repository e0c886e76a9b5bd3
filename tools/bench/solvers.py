"""How far from the exact sample each solver ends for its network calls: python tools/bench/solvers.py [--model RUN] --out docs

On a mixture of Gaussians in the plane, whose denoiser is known, on every path; and on a trained model, on its own path. Writes
OUT/solvers.png and the tables of OUT/solvers.md, below its marker; what stands above stays.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import matplotlib
import torch
from torch import Tensor

from mmldm.diffusion import (
    CFG,
    DDIM,
    DDPM,
    EDM,
    Consistency,
    Cosine,
    DPMpp2M,
    DPMpp2MSDE,
    Grid,
    Guidance,
    Heun,
    KarrasGrid,
    Linear,
    LogSNRGrid,
    Path,
    Shift,
    Solver,
    UniformGrid,
    UniPC,
    plan,
    sample,
)
from mmldm.pipeline import Pipeline, Sampler

MARKER = "<!-- below: written by tools/bench/solvers.py -->"
CALLS = (4, 6, 8, 12, 16, 20, 24, 32, 48, 64)
SHOWN = (8, 12, 16, 20, 32, 64)
PATHS = {
    "linear": Linear(),
    "cosine": Cosine(),
    "ddpm": DDPM(),
    "ddpm scaled": DDPM(8.5e-4, 0.012, scaled=True),
    "ddpm scaled, zero SNR": DDPM(8.5e-4, 0.012, scaled=True, zero_terminal=True),
    "edm": EDM(),
}
GRIDS = {"uniform": UniformGrid(), "log_snr": LogSNRGrid(), "karras": KarrasGrid()}
EXACT = {"ddim": DDIM(), "dpmpp_2m": DPMpp2M(), "heun": Heun(), "unipc": UniPC(2), "unipc3": UniPC(3)}
NOISY = {"ddpm": DDIM(1.0), "dpmpp_2m_sde": DPMpp2MSDE(1.0), "lcm": Consistency()}
COLOURS = dict(zip([*EXACT, *NOISY], ("#777777", "#2f6fb0", "#4c9a6a", "#c8553d", "#8a63a8", "#b08a2f", "#30a0a8", "#d080b0"),
                   strict=True))  # fmt: skip
STYLES = {"uniform": "-", "log_snr": "--", "karras": ":"}
REFERENCE = (UniPC(3), LogSNRGrid(-9.0, 9.0), 400)
GUIDED = 3.0
ROWS = 4096

Ask = Callable[[Solver, Grid, int, Guidance], Tensor]  # solver, grid, steps, guidance -> the sample, rows first
Key = tuple[str, str, int]  # solver, grid, calls


@dataclass(frozen=True)
class Mixture:
    """Eight Gaussians on a ring, four to a class, of about unit variance: centres (8, 2)."""

    radius: float = 1.3
    std: float = 0.3

    @property
    def centres(self) -> Tensor:
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        return self.radius * torch.stack([angle.cos(), angle.sin()], -1)

    def denoise(self, z_t: Tensor, alpha: Tensor, sigma: Tensor, among: Tensor | None = None) -> Tensor:
        """E[z | z_t] of z_t (B, 2); `among` (B, 8) bool leaves Gaussians out."""
        spread = alpha**2 * self.std**2 + sigma**2
        far = (z_t[:, None] - alpha * self.centres).square().sum(-1) / (2 * spread)
        share = torch.softmax(-far if among is None else (-far).masked_fill(~among, -math.inf), -1)
        centre = share @ self.centres
        return centre + alpha * self.std**2 / spread * (z_t - alpha * centre)

    def draw(self, count: int) -> Tensor:
        """`count` exact samples."""
        random = torch.Generator().manual_seed(11)
        noise = torch.randn(count, 2, generator=random, dtype=torch.float64)
        return self.centres[torch.randint(8, (count,), generator=random)] + self.std * noise


def toy(path: Path, rows: int = ROWS) -> Ask:
    """The mixture on a path; guided towards the class (even or odd Gaussians) of each row."""
    mixture, random = Mixture(), torch.Generator().manual_seed(1)
    noise = torch.randn(rows, 2, generator=random, dtype=torch.float64)
    asked = torch.arange(8)[None] % 2 == torch.arange(rows)[:, None] % 2

    def ask(solver: Solver, grid: Grid, steps: int, guidance: Guidance) -> Tensor:
        among = {"cond": None if not guidance.scales else asked, "null": None}

        def denoise(z_t, t, names):
            alpha, sigma = path.alpha(t["z"][0]), path.sigma(t["z"][0])
            return {name: {"z": mixture.denoise(z_t["z"], alpha, sigma, among[name])} for name in names}

        fresh = torch.Generator().manual_seed(2)
        new = lambda step, stream: torch.randn(noise.shape, generator=fresh, dtype=noise.dtype)  # noqa: E731
        return sample(denoise, {"z": noise}, {"z": grid(steps, path)}, solver, path, guidance, step_noise=new)["z"]

    return ask


def trained(pipeline: Pipeline, prompts: Sequence[str]) -> Ask:
    """A trained model: whitened latents of all streams, one row per prompt."""
    fields, items, medias = {"text": list(prompts)}, torch.arange(len(prompts)), pipeline.medias()

    def ask(solver: Solver, grid: Grid, steps: int, guidance: Guidance) -> Tensor:
        z = pipeline.sample_latents(fields, items, medias, 0, Sampler(solver, grid, guidance, steps))
        return torch.cat([x.flatten(1).double().cpu() for x in z.values()], 1)

    return ask


def steps_for(calls: int, solver: Solver, grid: Grid, path: Path, shift: Shift | None = None) -> int:
    """The most steps that ask the network at most `calls` times: a second call is made where h is finite."""

    def cost(steps: int) -> int:
        finite = sum(step.finite for step in plan(path, grid(steps, path, shift))) if solver.calls_per_step == 2 else 0
        return steps + finite

    return max(steps for steps in range(1, calls + 1) if cost(steps) <= calls)


def errors(ask: Ask, path: Path, calls: Sequence[int], guidance: Guidance, shift: Shift | None = None) -> dict[Key, float]:
    """Root mean square distance per value to the reference from the same noise, of the solvers that draw none."""
    solver, grid, steps = REFERENCE
    right, found = ask(solver, grid, steps, guidance), {}
    for name, solver in EXACT.items():
        for kind, grid in GRIDS.items():
            for n in calls:
                z = ask(solver, grid, steps_for(n, solver, grid, path, shift), guidance)
                found[name, kind, n] = float((z - right).square().mean().sqrt())
    return found


def distances(path: Path, calls: Sequence[int], rows: int = 8 * ROWS) -> dict[Key, float]:
    """Sliced Wasserstein-2 distance to the mixture itself, of all solvers; as "exact" that of as many exact samples."""
    ask, angle = toy(path, rows), torch.arange(16, dtype=torch.float64) * (math.pi / 16)
    slices = torch.stack([angle.cos(), angle.sin()])
    place = ((torch.arange(rows, dtype=torch.float64) + 0.5) * 16).long()
    truth = (Mixture().draw(16 * rows) @ slices).sort(0).values[place]

    def distance(z: Tensor) -> float:
        return float(((z @ slices).sort(0).values - truth).square().mean().sqrt())

    found = {("exact", "", n): distance(Mixture().draw(rows)) for n in calls}
    for name, solver in (EXACT | NOISY).items():
        for kind, grid in GRIDS.items():
            for n in calls:
                found[name, kind, n] = distance(ask(solver, grid, steps_for(n, solver, grid, path), Guidance()))
    return found


# ---------------------------------------------------------------- what it looks like


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(found: dict[Key, float], calls: Sequence[int], guided: dict[Key, float] | None = None) -> list[str]:
    """Solver and grid over calls; the least of each column in bold, behind a slash what it is with guidance."""
    keys = list(dict.fromkeys((name, kind) for name, kind, _ in found))
    least = [{n: min(part[*key, n] for key in keys if key[1]) for n in calls} for part in (found, guided) if part]

    def cell(key: tuple[str, str], n: int) -> str:
        parts = zip([part for part in (found, guided) if part], least, strict=True)
        values = [(part[*key, n], part[*key, n] <= low[n] * 1.0001) for part, low in parts]
        return " / ".join(f"**{value:.2g}**" if best else f"{value:.2g}" for value, best in values)

    head = [row(["solver, grid", *(f"{n} calls" for n in calls)]), row(["---"] * (len(calls) + 1))]
    return head + [row([" ".join(key).strip(), *(cell(key, n) for n in calls)]) for key in keys]


def over_paths(found: dict[str, dict[Key, float]], calls: int) -> list[str]:
    """Paths by solvers at so many calls, each with its best grid."""
    lines = [row([f"path, {calls} calls", *EXACT]), row(["---"] * (len(EXACT) + 1))]
    for name, part in found.items():
        best = {s: min((part[s, kind, calls], kind) for kind in GRIDS) for s in EXACT}
        least = min(best.values())
        cells = [f"{value:.2g} {kind}" for value, kind in best.values()]
        lines.append(row([name, *(f"**{c}**" if best[s] == least else c for s, c in zip(best, cells, strict=True))]))
    return lines


def picture(panels: dict[str, dict[Key, float]], path: File) -> None:
    """One panel per measurement: error over calls, a colour for each solver, a stroke for each grid."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    across = 3 if len(panels) <= 9 else 4
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.2 * across, 3.4 * down), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, found) in zip(axes.flat, panels.items(), strict=False):
        for name, kind in dict.fromkeys((name, kind) for name, kind, _ in found):
            calls, values = zip(*((n, v) for (a, b, n), v in found.items() if (a, b) == (name, kind)), strict=True)
            axis.plot(calls, values, STYLES.get(kind, "-."), color=COLOURS.get(name, "black"), linewidth=1.3)
        axis.set(xscale="log", yscale="log", title=title)
        axis.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("network calls")
    lines = [plt.Line2D([], [], color=c) for c in COLOURS.values()] + [
        plt.Line2D([], [], color="k", ls=s) for s in STYLES.values()
    ]
    figure.legend(lines, [*COLOURS, *STYLES], loc="lower center", ncols=len(lines), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=90)


def main(args: argparse.Namespace) -> None:
    torch.set_grad_enabled(False)
    calls = sorted(set(args.calls))
    shown = [n for n in SHOWN if n in calls] or calls
    plain = {name: errors(toy(path), path, calls, Guidance()) for name, path in PATHS.items()}
    guided = errors(toy(PATHS["linear"]), PATHS["linear"], calls, CFG(GUIDED))
    apart = distances(PATHS["linear"], shown)
    even = {key: value for key, value in apart.items() if key[1] in ("uniform", "")}
    panels = {**plain, f"linear, guidance {GUIDED:g}": guided, "linear, distance of distributions": even}
    text = ["## Every path", "", *over_paths(plain, min(calls, key=lambda n: abs(n - 16)))]
    few = {key: value for key, value in plain["linear"].items() if key[1] != "karras"}  # behind log_snr: see the picture
    text += ["", f"## The linear path: plain / guidance {GUIDED:g}", "", *table(few, shown, guided)]
    if args.model:
        pipeline = Pipeline.load(args.model, args.trust)
        stream, shape = next((s, pipeline.model.latent_shape(s, m.shape)) for s, m in pipeline.medias().items())
        path, shift = pipeline.model.path, pipeline.model.shift_of(stream, shape[1:])
        prompts = (args.prompts * args.rows)[: args.rows]
        ask = trained(pipeline, prompts)
        real = [errors(ask, path, calls, guidance, shift) for guidance in (Guidance(), CFG(GUIDED))]
        panels |= dict(zip((f"{args.name}", f"{args.name}, guidance {GUIDED:g}"), real, strict=True))
        text += ["", f"## {args.name}: plain / guidance {GUIDED:g}", "", *table(real[0], shown, real[1])]
    noisy = {key: value for key, value in even.items() if key[0] in (*NOISY, "exact", "unipc")}
    text += ["", "## Distance of distributions, linear path", "", *table(noisy, shown)]
    args.out.mkdir(parents=True, exist_ok=True)
    picture(panels, args.out / "solvers.png")
    page = args.out / "solvers.md"
    above = page.read_text(encoding="utf-8").split(MARKER)[0] if page.is_file() else ""
    page.write_text("\n".join([above + MARKER, "", *text, ""]), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run or model folder to measure too")
    parser.add_argument("--name", default="Trained model", help="what to call it")
    parser.add_argument("--prompts", nargs="+", default=[""], help="texts to generate from")
    parser.add_argument("--rows", type=int, default=16, help="samples of the trained model")
    parser.add_argument("--calls", type=int, nargs="+", default=list(CALLS), help="network calls to measure at")
    parser.add_argument("--trust", nargs="*", default=(), help="classes from outside mmldm that the model may use")
    parser.add_argument("--out", type=File, required=True, help="folder of solvers.md and solvers.png")
    main(parser.parse_args())
