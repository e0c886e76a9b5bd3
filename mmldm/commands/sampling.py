"""How a generation is sampled: the flags of solver, grid, steps and guidance, and what they mean for a model."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["FLAGS", "add_arguments", "chosen"]

FLAGS = ("steps", "solver", "eta", "grid", "guidance", "guidance_kind", "guidance_interval", "rescale", "negative", "weak")
GUIDANCE = """a scale; 1 is none, repeat it for several. 3: away from no condition at all (null, or --negative). text=3: the
condition text alone. audio=2: what is given, or made, of the stream audio. weak=2: away from --weak. text@video=3: for the
stream video alone; @video=3 is null@video=3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that choose how to sample; what is not chosen is the model's own."""
    add = parser.add_argument_group("sampling", "what is not chosen is the model's own").add_argument
    add("--steps", type=int, help="number of steps")
    add("--solver", metavar="NAME", help="a file of conf/diffusion/solver, e.g. dpmpp_2m")
    add("--eta", type=float, help="how much noise the solver draws anew, 0 none: ddim, dpmpp_2m_sde")
    add("--grid", metavar="NAME|LIST", help="a file of conf/diffusion/grid, e.g. karras, or noise levels: 1,0.8,0.5,0.2,0")
    add("--guidance", action="append", default=[], metavar="[WHAT[@STREAM]=]SCALE", help=GUIDANCE)
    add("--guidance-kind", metavar="NAME", help="a file of conf/diffusion/guidance, e.g. apg")
    add("--guidance-interval", metavar="LOW:HIGH", help="guide at these log(alpha/sigma) only: --guidance-interval=-3:3")
    add("--rescale", type=float, help="pull the contrast back to that without guidance, 0 (not) to 1 (wholly)")
    add("--negative", metavar="TEXT", help="what to steer away from, instead of the learned null")
    add("--weak", type=Path, metavar="MODEL", help="a weaker model of the same latents, for --guidance weak=2 (autoguidance)")


def chosen(args: argparse.Namespace, pipeline) -> dict[str, Any]:
    """What the flags choose for a model, as options of `Pipeline.sampler`: solver, grid, guidance, steps.

    Raises ValueError for names that there are not, for combinations that mean nothing, and for a grid the path cannot have.
    """
    options = {
        "steps": args.steps,
        "solver": _solver(args.solver, args.eta, pipeline),
        "grid": _grid(args.grid),
        "guidance": _guidance(args, pipeline),
    }
    sampler = pipeline.sampler(**options)
    sampler.grid(sampler.steps, pipeline.model.path)
    return options


def _solver(name: str | None, eta: float | None, pipeline):
    from mmldm import config

    node = config.member("diffusion/solver", name)
    if eta is None:
        return node
    own = node is None
    node = pipeline.spec["sampler"]["solver"] if own else node
    solver = config.build(node, trust=pipeline.trust if own else None)
    if _has_eta(node):
        return config.build({**node, "eta": eta}, trust=pipeline.trust if own else None)
    if eta == 0 and not solver.stochastic:
        return solver
    have = [f.stem for f in sorted((config.CONF_DIR / "diffusion" / "solver").glob("*.yaml"))]
    have = [n for n in have if _has_eta(config.member("diffusion/solver", n))]
    draws = "draws all its noise anew" if solver.stochastic else "draws none"
    got = name or f"the model's own {type(solver).__name__}"
    raise ValueError(f"wanted a solver with eta for --eta {eta:g}, got {got}, which {draws}; choose from {', '.join(have)}")


def _has_eta(node: dict) -> bool:
    from mmldm import config

    return "eta" in inspect.signature(config.resolve(node["_target_"])).parameters


def _grid(text: str | None):
    """A node of conf/diffusion/grid, or the list that is written out."""
    from mmldm import config

    if text is None or "," not in text:
        return config.member("diffusion/grid", text)
    from mmldm.diffusion.grids import ListGrid

    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"wanted noise levels from 1 to 0 for --grid, got {text}; for example 1,0.8,0.5,0.2,0") from None
    return ListGrid(values)


# ---------------------------------------------------------------- guidance


def _guidance(args: argparse.Namespace, pipeline):
    """The model's own guidance, or that of --guidance-kind, with the scales and numbers of the other flags."""
    from mmldm import config
    from mmldm.diffusion.guidance import Guidance

    if args.guidance_kind is None:
        base = pipeline.sampler().guidance
    else:
        base = config.build(config.member("diffusion/guidance", args.guidance_kind)) or Guidance()
    scales = _scales(args.guidance, pipeline.model) if args.guidance else None
    interval = None if args.guidance_interval is None else _interval(args.guidance_interval)
    guidance = base.changed(scales, interval, args.rescale)
    active = {b for b, s in guidance.scales.items() if any(v != 1 for v in (s.values() if isinstance(s, dict) else [s]))}
    for flag, needed in (("--guidance-interval", interval), ("--rescale", args.rescale)):
        if needed is not None and not active:
            raise ValueError(f"wanted a guidance for {flag}, got none; add for example --guidance 3")
    if args.negative is not None and "null" not in active:
        raise ValueError("wanted a guidance away from --negative, got none; add for example --guidance 3")
    if args.weak is not None and "weak" not in guidance.scales:
        raise ValueError("wanted a scale for --weak, got none; add for example --guidance weak=2")
    if args.weak is None and "weak" in guidance.scales:
        raise ValueError("wanted --weak MODEL for a guidance of weak, got none")
    return guidance


def _scales(words: Sequence[str], model) -> dict[str, float | dict[str, float]]:
    """`3`, `text=3`, `text@video=3` … -> the scale of each branch, one for all streams or one per stream."""
    found: dict[str, dict[str, float]] = {}
    for word in words:
        what, _, number = word.rpartition("=")
        name, _, stream = what.partition("@")
        each = found.setdefault(_branch(name or "null", model), {})
        if stream and stream not in model.codecs:
            raise ValueError(f"wanted a stream of this model, got {stream!r}{_near(stream, model.codecs)}")
        if stream in each:
            raise ValueError(f"wanted one --guidance {what or 'SCALE'}, got two: {' and '.join(words)}")
        each[stream] = _number(number, word)
    return {branch: _of_streams(each, model.codecs) for branch, each in found.items()}


def _branch(name: str, model) -> str:
    from mmldm.asked import guides

    if name in ("null", "weak"):
        return name
    names = guides(model)
    if name not in names:
        raise ValueError(f"wanted a guidance of this model, got {name!r}{_near(name, ['null', 'weak', *names])}")
    return f"without:{name}"


def _of_streams(each: dict[str, float], streams) -> float | dict[str, float]:
    """{"": 3} -> 3; {"": 3, "video": 5} -> 3 for every stream and 5 for that one."""
    if set(each) == {""}:
        return each[""]
    everywhere = dict.fromkeys(streams, each[""]) if "" in each else {}
    return everywhere | {stream: scale for stream, scale in each.items() if stream}


def _number(text: str, word: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"wanted --guidance [WHAT[@STREAM]=]SCALE, got {word}; for example 3, text=3, weak=2, text@video=3")
    return value


def _interval(text: str) -> tuple[float, float]:
    """`-3:3` -> (-3.0, 3.0); an empty side is without end."""
    low, found, high = text.partition(":")
    try:
        span = float(low or "-inf"), float(high or "inf")
    except ValueError:
        found = ""
    if not found or not span[0] <= span[1]:
        raise ValueError(
            f"wanted --guidance-interval=LOW:HIGH, the lower first, got {text}; for example --guidance-interval=-3:3"
        )
    return span


def _near(word: str, choices) -> str:
    from mmldm.targets import did_you_mean

    return f"{did_you_mean(word, choices)}; choose from {', '.join(choices)}"
