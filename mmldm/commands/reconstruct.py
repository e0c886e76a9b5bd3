"""mmldm reconstruct: files of any length through a codec and back, piece by piece."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmldm.commands.arguments import Parser, chosen_device

if TYPE_CHECKING:
    from mmldm.interfaces import Codec, Info, Media

HELP = "send files through a trained codec and back: mmldm reconstruct MODEL FILE --out FILE"


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(prog="mmldm reconstruct", description=HELP)
    p.add_argument("model", help="a codec's run or model folder, or those of a diffusion model")
    p.add_argument("files", nargs="+", type=Path, metavar="file", help="files of any length")
    p.add_argument("--out", type=Path, default=Path("reconstructed"), help="a file, or a folder (default: %(default)s)")
    p.add_argument("--size", help="HEIGHTxWIDTH, or own: that of the file; default: own for stills, the codec's for clips")
    p.add_argument("--seconds", type=float, help="only so much of each file")
    p.add_argument("--chunk", type=int, metavar="N", help="latent cells along time at once")
    p.add_argument("--tile", type=int, metavar="N", help="latent cells per side of a picture at once")
    p.add_argument("--stream", help="which codec of a model that has several")
    p.add_argument("--vocoder", type=Path, metavar="RUN", help="a trained vocoder, used instead of the codec's own")
    p.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a class outside mmldm that the model may use")
    p.add_argument("--device", help="cpu, cuda … (default: cuda where there is one)")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_intermixed_args(argv)
    for name in ("seconds", "chunk", "tile"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"wanted --{name} above 0, got {value:g}")
    codecs = loaded(args)
    jobs, faults = planned(args, codecs)
    told: set[str] = set()
    for path, (stream, out) in jobs.items():
        codec = codecs[stream]
        told = tell({blending(codec, stream), muting(codec.media, path, out)}, told)
        try:
            print(f"{out}  {reconstruct(codec, path, out, args)}", flush=True)
        except (ValueError, OSError) as error:
            faults.append(line(path, error))
            print(faults[-1], file=sys.stderr)
    return 2 if faults else 0


def line(path: Path, error: Exception) -> str:
    """A file and what is wrong with it, in one line."""
    text = " ".join(str(error).split())
    return text if str(path) in text else f"{path}: {text}"


def tell(notes: Iterable[str], told: set[str]) -> set[str]:
    """Tell each note once on stderr."""
    fresh = {note for note in notes if note} - told
    for note in sorted(fresh):
        print(f"note: {note}", file=sys.stderr)
    return told | fresh


# ---------------------------------------------------------------- what is asked for


def loaded(args: argparse.Namespace) -> dict[str, Codec]:
    """The model's codecs by stream, with the vocoder and the sizes of pieces that are asked for."""

    from mmldm import store, trained
    from mmldm.commands.streaming import usual_chunk

    parts = trained.load_codecs(store.load_model(args.model), args.trust)
    if args.stream is not None and args.stream not in parts:
        raise ValueError(f"wanted a stream of this model, got {args.stream!r}; choose from {', '.join(parts)}")
    parts = {stream: part for stream, part in parts.items() if args.stream in (None, stream)}
    parts = trained.with_vocoders(parts, args.vocoder, args.trust)
    device = chosen_device(args.device)
    codecs = {stream: part.codec.to(device).eval() for stream, part in parts.items()}
    for codec in codecs.values():
        codec.chunk, codec.tile = args.chunk or codec.chunk or usual_chunk(codec), args.tile or codec.tile
        asked = [size for size in (args.chunk, args.tile) if size is not None]
        if codec.blended and asked and min(asked) < 8:
            raise ValueError(f"wanted at least 8 cells in a piece, which this codec cross-fades, got {min(asked)}")
    return codecs


def planned(args: argparse.Namespace, codecs: Mapping[str, Codec]) -> tuple[dict[Path, tuple[str, Path]], list[str]]:
    """The stream and the output of each file, and what is wrong with the others; raises ValueError where outputs clash."""
    from mmldm.commands.outputs import default_suffix, writable

    single, jobs, faults = bool(args.out.suffix) and not args.out.is_dir(), {}, []
    if single and len(args.files) > 1:
        raise ValueError(f"wanted --out FOLDER for {len(args.files)} files, got the file {args.out}")
    for path in args.files:
        try:
            stream = stream_of(path, codecs)
        except ValueError as error:
            faults.append(line(path, error))
            print(faults[-1], file=sys.stderr)
            continue
        media = codecs[stream].media
        choices = writable(media)
        if single and args.out.suffix.lower() not in choices:
            raise ValueError(f"wanted a known suffix of {stream}, got --out {args.out}; choose from {', '.join(choices)}")
        suffix = path.suffix.lower() if path.suffix.lower() in choices else default_suffix(media)
        jobs[path] = stream, args.out if single else args.out / f"{path.stem}{suffix}"
    names = [out for _, out in jobs.values()]
    if twice := [str(out) for out in names if names.count(out) > 1]:
        raise ValueError(f"wanted files of different names, got two that would become {twice[0]}; choose another --out for one")
    if own := [str(path) for path, (_, out) in jobs.items() if out.resolve() == path.resolve()]:
        raise ValueError(f"wanted --out beside the file itself, got {own[0]}; choose another name or folder")
    return jobs, faults


def stream_of(path: Path, codecs: Mapping[str, Codec]) -> str:
    """The one stream whose media has files of this kind."""
    fit = [stream for stream, codec in codecs.items() if path.suffix.lower() in codec.media.suffixes]
    if len(fit) > 1:
        raise ValueError(f"wanted --stream for {path}, which could be {' or '.join(fit)}")
    if not fit:
        known = sorted({suffix for codec in codecs.values() for suffix in codec.media.suffixes})
        raise ValueError(f"wanted a file of {', '.join(codecs)}, got {path}; choose from {', '.join(known)}")
    return fit[0]


def blending(codec: Codec, stream: str) -> str | None:
    """A note where pieces are not exactly the whole."""
    axes = " and ".join(codec.blended)
    return f"pieces of {stream} are cross-faded along {axes}: this codec sees further than they reach" if axes else None


def muting(media: Media, path: Path, out: Path) -> str | None:
    """A note where a clip's sound is left out."""
    from mmldm.interfaces import MediaError
    from mmldm.media import VideoMedia, can_carry, streams_of, unlimited

    try:
        lost = (
            isinstance(media, VideoMedia) and "audio" in streams_of(path, unlimited(media).limits) and not can_carry(out, path)
        )
    except MediaError:  # told when the file is read
        return None
    return f"{path.name} loses its sound: {out.suffix} cannot carry it as it is" if lost else None


# ---------------------------------------------------------------- one file


def reconstruct(codec: Codec, path: Path, out: Path, args: argparse.Namespace) -> str:
    """Stream a file through the codec to `out`; says how much and how well."""
    import torch

    from mmldm.commands.progress import progress
    from mmldm.commands.streaming import Distances, read, reconstructed
    from mmldm.media import unlimited

    media = unlimited(codec.media)
    info = media.probe(path)
    media = at_size(media, info, args.size)
    seconds = None if info.seconds is None else min(info.seconds, args.seconds or info.seconds)
    count = 1 if seconds is None else max(1, round(seconds * media.rate))
    facts, distances, done = {"file": path.name, "codec": str(args.model)}, Distances(media), 0
    with torch.no_grad(), progress(path.name) as bar, writer(media, path, out, facts) as write:
        pieces = read(codec, media, path, count if args.seconds else None)
        for x, y in reconstructed(codec, pieces):
            write(y)
            distances.add(x, y)
            done += 1 if seconds is None else x.shape[1 + media.time_axis]
            bar(done, max(done, count))
    length = "x".join(map(str, media.shape[-2:])) if seconds is None else f"{done / media.rate:.2f} s"
    return f"{length}  {distances}"


def at_size(media: Media, info: Info, size: str | None) -> Media:
    """The media at an asked height and width, or a file's own; stills have their own where nothing is asked."""
    from mmldm.commands.arguments import parse_size
    from mmldm.given import axes_of

    planar = "height" in axes_of(media)
    if size is not None and not planar:
        raise ValueError(f"wanted no --size for what has no height and width, got {size}")
    if size == "own" or (size is None and planar and media.time_axis is None):
        return media.resized(size=info.shape[-2:])
    return media if size is None else media.resized(size=parse_size(size))


def writer(media: Media, path: Path, out: Path, facts: Mapping[str, str]):
    """The media's writer; a clip keeps the sound of its file where that can be copied."""
    from mmldm.media import VideoMedia, can_carry

    if isinstance(media, VideoMedia) and can_carry(out, path):
        return media.writer(out, facts, sound=path)
    return media.writer(out, facts)


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
