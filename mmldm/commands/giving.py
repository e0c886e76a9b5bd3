"""What the command line gives to a generation: files to vary, to keep a part of, to stand at their time; streams left out."""

from __future__ import annotations

import argparse
import functools
import operator
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["FLAGS", "add_arguments", "given", "notes"]

PLACES = "choose seconds of what runs in time, pixels of pictures"
FLAGS = ("init", "strength", "known", "keep", "mask", "place", "first", "last", "at", "stream", "without")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that give media."""
    add = parser.add_argument_group("what is given").add_argument
    add("--init", type=Path, metavar="FILE", help="media to vary")
    add("--strength", type=float, help="how far --init is varied, towards 0 hardly, 1 wholly; default: 0.6")
    add("--known", type=Path, metavar="FILE", help="media to keep, or to keep a part of")
    add("--keep", metavar="SPEC", help="what of --known to keep: 0:1.5s or pixels TOP:BOTTOMxLEFT:RIGHT, joined by commas")
    add("--mask", type=Path, metavar="IMAGE", help="what of --known to make anew: white; the rest is kept")
    add("--place", metavar="WHERE", help="where --known lies in what is made, unscaled: TOP,LEFT in pixels, centre, or 2s")
    add("--first", type=Path, metavar="IMAGE", help="the first frame")
    add("--last", type=Path, metavar="IMAGE", help="the last frame")
    add("--at", nargs=2, action="append", default=[], metavar=("TIME", "IMAGE"), help="a frame, e.g. 1.5s c.png; repeatable")
    add("--stream", help="the stream that --init and --known belong to (default: each that they have)")
    add("--without", action="append", default=[], metavar="STREAM", help="a stream that is not made; repeatable")


def given(medias: Mapping, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Pipeline.generate for what is given: known, init, strength, absent."""
    check(medias, args)
    there = {s: media for s, media in medias.items() if s not in args.without}
    init = {} if args.init is None else {s: m.load(args.init).x for s, m in fitting(there, args.init, args.stream).items()}
    known = with_frames(there, {} if args.known is None else kept(there, args), args)
    if known and all(s in known and known[s].whole for s in there):
        one = ", or one --stream alone" if len(there) > 1 else ""
        raise ValueError(
            f"wanted something left to generate, got all of {', '.join(known)} kept; choose a part (--keep 0:1s, --mask), more "
            f"--seconds, a larger --size with --place{one}"
        )
    return {"known": known, "init": init, "strength": 0.6 if args.strength is None else args.strength, "absent": args.without}


@contextmanager
def notes() -> Iterator[None]:
    """Tell each warning in a line on stderr, once what gives it is over."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        yield
    for message in dict.fromkeys(str(each.message) for each in told):
        print(f"note: {message}", file=sys.stderr)


def check(medias: Mapping, args: argparse.Namespace) -> None:
    """Raise ValueError for arguments that mean nothing without another, or not beside it."""
    for name, needed in (("keep", "known"), ("mask", "known"), ("place", "known"), ("strength", "init")):
        if getattr(args, name) is not None and getattr(args, needed) is None:
            raise ValueError(f"wanted --{needed} FILE with --{name}, got --{name} alone")
    if args.keep is not None and args.mask is not None:
        raise ValueError("wanted --keep or --mask, got both")
    if args.stream is not None and args.known is None and args.init is None:
        raise ValueError("wanted --known FILE or --init FILE with --stream, got --stream alone")
    for stream in (*args.without, *([args.stream] if args.stream else [])):
        if stream not in medias:
            raise ValueError(f"wanted a stream of this model, got {stream!r}; choose from {', '.join(medias)}")
    if args.stream in args.without:
        raise ValueError(f"wanted a --stream that is made, got {args.stream}, which --without leaves out")


def fitting(medias: Mapping, path: Path, stream: str | None) -> dict:
    """The streams, or the one named, that a file has."""
    from mmldm.interfaces import MediaError

    asked = {s: media for s, media in medias.items() if stream in (None, s)}
    fit = {s: media for s, media in asked.items() if path.suffix.lower() in media.suffixes}
    if not fit:
        choices = sorted({suffix for media in asked.values() for suffix in media.suffixes})
        raise ValueError(f"wanted a file of {', '.join(asked)}, got {path}; choose from {', '.join(choices)}")
    found, faults = {}, []
    for name, media in fit.items():
        try:
            media.probe(path)
            found[name] = media
        except MediaError as fault:
            faults.append(fault)
    if not found:
        raise faults[0]
    return found


# ---------------------------------------------------------------- a file of which a part is kept


def kept(medias: Mapping, args: argparse.Namespace) -> dict:
    """--known, or what --keep or --mask leave of it, as a Known of each stream that it has."""
    from mmldm.given import axes_of
    from mmldm.pipeline import Known

    fit, where, known = fitting(medias, args.known, args.stream), place(args.place), {}
    if not any(set(where) <= set(axes_of(media)) for media in fit.values()):
        raise ValueError(f"wanted a --place that {', '.join(fit)} has, got {args.place}; {PLACES}")
    for stream, media in fit.items():
        wanted = left_by(media, args.mask) if args.mask else named(media, args.keep)
        if wanted is not None:
            x, held = placed(media, args.known, where if set(where) <= set(axes_of(media)) else {})
            if not bool((held & wanted).any()):
                got = args.keep or args.mask
                raise ValueError(f"wanted a part to keep within what {args.known} holds of {stream}, got {got}")
            known[stream] = Known(x, held & wanted)
    if not known:
        got = f"--mask {args.mask}" if args.mask else f"--keep {args.keep}"
        raise ValueError(f"wanted a part that {', '.join(fit)} has, got {got}; {PLACES}")
    return known


def named(media, text: str | None):
    """What --keep names, (*S); None where the media has none of its axes."""
    from mmldm.commands.arguments import parse_span
    from mmldm.given import axes_of, box

    boxes = [{}] if text is None else []
    for part in text.split(",") if text else ():
        if "x" in part:
            boxes.append(dict(zip(("height", "width"), (pixels(edges, text) for edges in part.split("x", 1)), strict=True)))
        else:
            boxes.append({"time": parse_span(part)})
    masks = [box(media, **spans) for spans in boxes if set(spans) <= set(axes_of(media))]
    return functools.reduce(operator.or_, masks) if masks else None


def pixels(edges: str, text: str) -> tuple[float, float]:
    """`0:32` -> (0, 32); an empty side is the edge of the picture."""
    first, found, last = edges.partition(":")
    try:
        start, end = int(first or 0), int(last) if last else float("inf")
    except ValueError:
        found, start, end = "", 0, 0
    if not found or not 0 <= start < end:
        raise ValueError(f"wanted --keep TOP:BOTTOMxLEFT:RIGHT in pixels, got {text}; for example 0:32x0:64")
    return start, end


def left_by(media, path: Path):
    """What a --mask keeps, (*S): all that is not white; None where the media has no pictures."""
    from mmldm.given import axes_of
    from mmldm.media import ImageMedia

    if "height" not in axes_of(media):
        return None
    return (ImageMedia(*media.shape[-2:]).load(path).x.mean(0) <= 0).expand(media.shape[1:])


# ---------------------------------------------------------------- where a file lies


def place(text: str | None) -> dict[str, float | None]:
    """`16,32` -> {"height": 16, "width": 32}, `centre` -> the same with None, `2s` -> {"time": 2}."""
    if text is None:
        return {}
    if text == "centre":
        return {"height": None, "width": None}
    try:
        if "," in text:
            top, left = (int(part) for part in text.split(","))
            return {"height": top, "width": left}
        return {"time": float(text.removesuffix("s"))}
    except ValueError:
        raise ValueError(f"wanted --place TOP,LEFT in pixels, centre or a time, got {text}; for example 16,16 or 2s") from None


def placed(media, path: Path, where: Mapping[str, float | None]):
    """A file as a clip (C, *S), and what of the clip it holds (*S): unscaled at a place, or fitted from the corner."""
    import torch

    from mmldm.given import axes_of
    from mmldm.trained import sized

    inner, corner = media, [0] * (len(media.shape) - 1)
    if "time" in where:
        if not 0 <= where["time"] < media.seconds:
            raise ValueError(f"wanted --place within the {media.seconds:g} s that are made, got {where['time']:g}s")
        corner[media.time_axis] = round(where["time"] * media.rate)
        inner = sized(media, seconds=media.seconds - where["time"])
    elif where:
        inner = sized(media, size=media.probe(path).shape[-2:])
        for name in ("height", "width"):
            dim = axes_of(media)[name]
            free = media.shape[1 + dim] - inner.shape[1 + dim]
            corner[dim] = free // 2 if where[name] is None else where[name]
            if not 0 <= corner[dim] <= free:
                got = f"{inner.shape[1 + dim]} from {corner[dim]} on"
                raise ValueError(f"wanted {path} within {media.shape[1 + dim]} of {name}, got {got}; choose a larger --size")
    clip = inner.load(path)
    x, mask = torch.zeros(media.shape), torch.zeros(media.shape[1:], dtype=torch.bool)
    there = [slice(c, c + n) for c, n in zip(corner, clip.x.shape[1:], strict=True)]
    x[(slice(None), *there)] = clip.x[(slice(None), *(slice(0, n) for n in x[(slice(None), *there)].shape[1:]))]
    mask[tuple(slice(c, c + n) for c, n in zip(corner, clip.valid, strict=True))] = True
    return x, mask


# ---------------------------------------------------------------- pictures at their time


def with_frames(medias: Mapping, known: dict, args: argparse.Namespace) -> dict:
    """`known` with --first, --last and --at in the stream of moving pictures."""
    import torch

    from mmldm.given import axes_of
    from mmldm.media import ImageMedia
    from mmldm.pipeline import Known

    if args.first is None and args.last is None and not args.at:
        return known
    fit = [s for s, m in medias.items() if {"time", "height"} <= set(axes_of(m))]
    if not fit:
        raise ValueError(f"wanted a model of moving pictures for --first, --last and --at, got one of {', '.join(medias)}")
    stream, media = fit[0], medias[fit[0]]
    count = media.shape[1 + media.time_axis]
    pictures = {} if args.first is None else {0: args.first}
    pictures |= {frame_at(time, media): Path(path) for time, path in args.at}
    pictures |= {} if args.last is None else {count - 1: args.last}
    base = known.get(stream) or Known(torch.zeros(media.shape), torch.zeros(media.shape[1:], dtype=torch.bool))
    x, mask = base.x.clone(), base.kept.clone()
    for index, path in pictures.items():
        x.select(1 + media.time_axis, index).copy_(ImageMedia(*media.shape[-2:]).load(path).x)
        mask.select(media.time_axis, index).fill_(True)
    return {**known, stream: Known(x, mask)}


def frame_at(text: str, media) -> int:
    """The frame that is shown at `1.5s`."""
    try:
        time = float(text.removesuffix("s"))
    except ValueError:
        raise ValueError(f"wanted --at TIME IMAGE, got {text}; for example --at 1.5s c.png") from None
    if not 0 <= time <= media.seconds:
        raise ValueError(f"wanted --at within the {media.seconds:g} s that are made, got {text}")
    return min(int(time * media.rate + 1e-6), media.shape[1 + media.time_axis] - 1)
