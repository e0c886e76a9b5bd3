"""mmldm codec test: runs the contract of codecs on a codec from anywhere and prints, law by law, what holds and what breaks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmldm.commands.arguments import Parser

if TYPE_CHECKING:
    from mmldm.interfaces import Codec
    from mmldm.testing import Check

HELP = """Run the contract of codecs on a codec and say, law by law, what holds and what would break.

  mmldm codec test my_lab.MyCodec --set latent_channels=8   a class (PYTHONPATH=. lets Python find my_lab.py)
  mmldm codec test codec=eeg --config-dir lab               yaml of conf/codec or of your own folder; any override may follow
  mmldm codec test lab/codec/eeg.yaml                       that file
  mmldm codec test runs/codec --trust my_lab.MyCodec        a trained model's codecs

Exit status: 0 where every law holds, 1 where one fails."""


def parser() -> Parser:
    """The command's arguments."""
    form = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="mmldm codec test", description=HELP, formatter_class=form)
    p.add_argument("what", nargs="+", help="a class, codec=NAME with overrides, a yaml file, or a trained model")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an argument of the class, in yaml")
    p.add_argument("--config-dir", action="append", default=[], metavar="DIR", help="a folder of yaml laid out like conf/")
    p.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a class outside mmldm that the model may use")
    p.add_argument("--seconds", type=float, help="length of the clip that is tried (default: a few cells)")
    p.add_argument("--size", help="HEIGHTxWIDTH of the clip that is tried")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_intermixed_args(argv)
    from mmldm.commands.arguments import parse_size
    from mmldm.testing import codec_checks, report
    from mmldm.testing.lab import small_shape
    from mmldm.trained import sized

    passed, size = True, parse_size(args.size)
    for stream, codec, spec in codecs(args):
        asked = args.seconds is not None or size is not None
        shape = tuple(sized(codec.media, args.seconds, size).shape) if asked else small_shape(codec)
        name = f"{type(codec).__module__}.{type(codec).__qualname__}"
        print(f"{stream + ': ' if stream else ''}{name}, media {shape}, latents {tuple(codec.latent_shape(shape))}")
        checks = [*codec_checks(codec, shape), *([stored(stream or "codec", codec, spec)] if spec else [])]
        print(report(checks))
        print(speed(codec, shape), flush=True)
        passed &= all(check.passed for check in checks)
    return 0 if passed else 1


# ---------------------------------------------------------------- which codecs


def codecs(args: argparse.Namespace) -> Iterator[tuple[str, Codec, dict[str, Any] | None]]:
    """(stream, codec, its yaml node where it has one) of what the arguments name; raises ValueError."""
    from mmldm import config, store, trained

    what = args.what[0]
    overrides = [word for word in args.what if "=" in word]
    if len(overrides) != len(args.what) and len(args.what) > 1:
        raise ValueError(f"wanted one codec, got {' '.join(args.what)}; arguments of a class are given by --set KEY=VALUE")
    if args.set and (overrides or "/" in what):
        raise ValueError(f"wanted --set with a class, got {what}; of yaml write codec.STREAM.KEY=VALUE")
    if overrides:
        given = config.resolved(config.compose(overrides, config_dirs=args.config_dir).codec or {})
    elif Path(what).suffix in (".yaml", ".yml"):
        given = read_yaml(Path(what))
    elif Path(what).is_dir() or "/" in what:
        given = {stream: what for stream in store.load_model(what).spec["codecs"]}
    else:
        given = {"": {"_target_": what, **arguments(args.set)}}
    if not given:
        raise ValueError(f"wanted a codec, got {' '.join(args.what)}; name one: codec=image_f4, or a class: my_lab.MyCodec")
    for stream, spec in given.items():
        if isinstance(spec, str):
            yield stream, trained.load_codecs(store.load_model(spec), args.trust)[stream].codec, None
        else:
            yield stream, built(spec, args), spec


def built(spec: Mapping[str, Any], args: argparse.Namespace) -> Codec:
    """The codec of a yaml node, checked before it is built; raises ValueError with how to give what is missing."""
    from mmldm import config
    from mmldm.interfaces import Codec

    try:
        config.check({"codec": dict(spec)})
    except config.ConfigError as error:
        name = spec.get("_target_")
        lacking = [f for f in error.faults if "needs a value" in f or "is required" in f]
        hint = [f"give it by --set KEY=VALUE or in a yaml: mmldm codec test codec=NAME --config-dir DIR ({name})"]
        raise config.ConfigError(*error.faults, *(hint if lacking and not args.config_dir else [])) from None
    codec = config.build(spec)
    if not isinstance(codec, Codec):
        raise ValueError(f"wanted a mmldm.interfaces.Codec, got a {type(codec).__name__}")
    return codec


def read_yaml(path: Path) -> dict[str, Any]:
    """The codecs of a file by stream: `stream: {_target_: …}`, or one node."""
    import yaml

    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid yaml: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise ValueError(f"{path}: wanted a codec (stream: {{_target_: …}}), got {type(node).__name__}")
    return {"": node} if "_target_" in node else node


def arguments(words: Sequence[str]) -> dict[str, Any]:
    """`a.b=1` -> {"a": {"b": 1}}, values in yaml."""
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"wanted --set KEY=VALUE, got {word}; for example --set latent_channels=8")
        node = found
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = yaml.safe_load(value)
    return found


# ---------------------------------------------------------------- a folder, and time


def stored(stream: str, codec: Codec, spec: dict[str, Any]) -> Check:
    """Whether a codec that yaml describes comes back from a trained-model folder that names its class as trusted."""
    import tempfile

    import torch

    from mmldm import store, targets, trained
    from mmldm.model import Whitening
    from mmldm.testing import Check
    from mmldm.testing.lab import small_shape

    name, breaks = "a trained-model folder brings it back", "generation with a trained codec"
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, "model")
            trained.save_codec(model, {"codecs": {stream: spec}}, codec, Whitening(codec.latent_channels), {}, "")
            names = [node["_target_"] for _, node in targets.specs(spec) if isinstance(node, Mapping) and "_target_" in node]
            again = trained.load_codecs(store.load_model(model), names)[stream].codec
        x = torch.zeros(1, *small_shape(codec)).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            same = torch.equal(codec.eval().encode(x).mean, again.encode(x).mean)
        return Check(name, same, "holds" if same else "the codec that was loaded encodes otherwise", breaks)
    except Exception as error:  # a codec from outside may raise anything: that is a finding
        return Check(name, False, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", breaks)


def speed(codec: Codec, shape: Sequence[int]) -> str:
    """How long encoding and decoding take here, per second of media or per still."""
    import time

    import torch

    codec = codec.eval()
    x = torch.zeros(1, *shape)
    took = []
    with torch.no_grad():
        z = codec.encode(x).mean
        for run in (lambda: codec.encode(x), lambda: codec.decode(z)):
            run()
            begin = time.perf_counter()
            run()
            took.append(time.perf_counter() - begin)
    media = codec.media
    seconds = 1.0 if media.time_axis is None else shape[1 + media.time_axis] / media.rate
    per = "per item" if media.time_axis is None else "per second of media"
    encode, decode = (1000 * t / seconds for t in took)
    return f"encode {encode:.3g} ms, decode {decode:.3g} ms {per} (processor, {torch.get_num_threads()} threads)"


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:], "codec test"))
