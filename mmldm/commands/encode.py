"""mmldm encode: cache the latents of a data set, so that training does not encode them again."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = """usage: mmldm encode MODEL [MODEL …] data.path=DIR out=CACHE [key=value …] [--trust CLASS]

Encodes every file whole, in consecutive windows, with the codecs of trained models, one per stream; train from it with
data.cache=CACHE.

  mmldm encode runs/codec data.path=DIR out=runs/latents
  mmldm train experiment=image_diffusion codec.image=runs/codec data.path=DIR data.cache=runs/latents run=runs/image
"""


def main(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    from mmldm import config
    from mmldm.commands.arguments import split_trust

    words, trust = split_trust(argv)
    models = list(itertools.takewhile(lambda word: "=" not in word, words))
    if not models:
        raise ValueError("wanted a trained model first, got none; mmldm encode MODEL data.path=DIR out=CACHE")
    cfg = config.compose(words[len(models) :], "encode")
    config.check(cfg, "encode")
    count = encode(models, cfg, trust)
    print(f"{count} clips in {cfg.out}")
    return 0


def encode(models: Sequence[str | Path], cfg, trust: tuple[str, ...] = (), progress: bool = True) -> int:
    """Write the cache of all streams of the models; returns the number of its clips."""
    import torch

    from mmldm import store, trained
    from mmldm.commands.sources import build_source, checked, fingerprint
    from mmldm.data import write_cache

    device = "cuda" if torch.cuda.is_available() else "cpu"
    codecs = {}
    for model in models:
        for stream, part in trained.load_codecs(store.load_model(model), trust).items():
            if stream in codecs:
                raise ValueError(f"wanted one codec per stream, got a second one of {stream} in {model}")
            codecs[stream] = part.codec.to(device)
    for codec in codecs.values():
        codec.media = trained.sized(codec.media, cfg.data.seconds, cfg.data.size)
    trained.share_seconds(codecs)
    medias = {stream: codec.media for stream, codec in codecs.items()}
    source = checked(build_source(cfg.data, medias), cfg.data.max_bad_fraction, progress)

    def posterior(stream: str, x: torch.Tensor):
        found = codecs[stream].encode(x.to(device))
        return type(found)(found.mean.cpu(), None if found.std is None else found.std.cpu())

    cache = write_cache(
        cfg.out, source, medias, posterior, fingerprint(codecs), cfg.batch_size, cfg.data.workers, progress=progress
    )
    return len(cache)


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
