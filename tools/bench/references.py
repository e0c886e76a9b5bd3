"""A codec beside plain ways to spend the same bits: python tools/bench/references.py RUN data.path=DIR [--fit data.path=TRAIN]

The codec's latents are kept as fp16 and as 8 bits per number (a uniform grid over ±4 standard deviations). At the bytes of
the latter stand the usual file formats at their best setting that fits (JPEG and WebP; MP3 and Opus; H.264), and, at as many
numbers per cell, a principal component analysis of whole cells fitted on --fit (default: the same data). Prints a table.
"""

import argparse
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import torch
from PIL import Image
from torch import Tensor

from mmldm import config, store, trained
from mmldm.codec import ConvCodec, GriffinLim
from mmldm.commands.fidelity import metrics_of, pictures, saved
from mmldm.commands.sources import sized_source
from mmldm.interfaces import Media
from mmldm.media import AudioMedia, VideoMedia
from mmldm.media.image import to_image
from mmldm.model import Whitening
from mmldm.nn.conv import fold, unfold

Coder = Callable[[Tensor, int, Media], tuple[Tensor, int] | None]  # media (C, *S), bytes allowed -> what comes back, bytes


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("data", nargs="*")
    parser.add_argument("--fit", nargs="*")
    parser.add_argument("--vocoder")
    parser.add_argument("--count", type=int, default=32)
    args = parser.parse_args()
    loaded = trained.with_vocoders(trained.load_codecs(store.load_model(args.run)), args.vocoder)
    ((stream, part),) = loaded.items()
    codec, media = part.codec, part.codec.media
    clips = list(items(args.data, stream, media, args.count))
    metrics = metrics_of(media, codec)
    budget = prod(codec.latent_shape(media.shape))
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    ways: dict[str, Coder] = {
        "codec, fp16": lambda x, bytes, media: coded(codec, part.whitening, x, 16),
        "codec, 8 bit": lambda x, bytes, media: coded(codec, part.whitening, x, 8),
    }
    if isinstance(codec, ConvCodec):
        basis = components(codec, items(args.fit or args.data, stream, media, 128))
        ways["PCA of the cells"] = lambda x, bytes, media: projected(codec, basis, x)
    if hasattr(codec, "mel"):
        ways["its front end and Griffin-Lim"] = lambda x, bytes, media: (GriffinLim(codec.mel)(codec.mel(x[None]))[0], 0)
    if pictures(media):
        ways |= {"H.264": h264} if media.time_axis is not None else {"JPEG": still("JPEG"), "WebP": still("WEBP")}
    else:
        ways |= {"MP3": sound("libmp3lame", ".mp3"), "Opus": sound("libopus", ".opus")}
    for x in clips:
        for name, way in ways.items():
            if found := way(x, budget, media):
                y, size = found
                y = saved(y[tuple(slice(0, n) for n in x.shape)].float(), media)
                rows[name]["bytes"].append(size)
                for metric, measure in metrics.items():
                    rows[name][metric].append(float(measure(y[None], x[None]).mean()))
    names = ["bytes", *metrics]
    print(f"{len(clips)} clips of {tuple(media.shape)}, {budget} numbers each")
    print("\n".join([f"| | {' | '.join(names)} | coded |", "|---" * (len(names) + 2) + "|"]))
    for name in ways:
        found = rows[name]
        values = (
            " | ".join(f"{sum(v) / len(v):.4g}" for v in (found[n] for n in names)) if found else " | ".join("–" for _ in names)
        )
        print(f"| {name} | {values} | {len(found['bytes'])} of {len(clips)} |")


def items(overrides: list[str], stream: str, media: Media, count: int) -> Iterator[Tensor]:
    """The first clips of the first `count` items."""
    cfg = config.compose(overrides, "evaluate")
    source = sized_source(cfg, {stream: media})
    for i in range(min(count, len(source))):
        yield source.load(i, stream, media, 0.0).x


def coded(codec, whitening: Whitening, x: Tensor, bits: int) -> tuple[Tensor, int]:
    z = whitening(codec.encode(x[None]).mean)
    z = z.half().float() if bits == 16 else ((z.clamp(-4, 4) * 32).round() / 32)
    return codec.decode(whitening.inverse(z), x.shape)[0], z.numel() * bits // 8


# ---------------------------------------------------------------- principal components of whole cells


def cells(codec: ConvCodec, x: Tensor) -> Tensor:
    """Features of whole cells (1, values per cell, *L)."""
    return fold(codec.body.padded(codec.front(x[None])), codec.body.strides, codec.body.lone_axis)


def components(codec: ConvCodec, xs: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (V,) and the first D principal directions (V, D)."""
    rows = torch.cat([cells(codec, x).movedim(1, -1).flatten(0, -2) for x in xs]).double()
    mean = rows.mean(0)
    _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
    return mean.float(), vectors[:, -codec.latent_channels :].float()


def projected(codec: ConvCodec, basis: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, int]:
    mean, vectors = basis
    z = (cells(codec, x).movedim(1, -1) - mean) @ vectors
    features = unfold((z @ vectors.T + mean).movedim(-1, 1), codec.body.strides, codec.body.lone_axis)
    return codec.unfront(features)[0], z.numel()


# ---------------------------------------------------------------- file formats


def best(attempt: Callable[[int], tuple[Tensor, int]], low: int, high: int, budget: int) -> tuple[Tensor, int] | None:
    """The highest setting in [low, high] whose bytes fit, by bisection; None where none does."""
    found = None
    while low <= high:
        middle = (low + high) // 2
        result = attempt(middle)
        if result[1] <= budget:
            found, low = result, middle + 1
        else:
            high = middle - 1
    return found


def still(name: str) -> Coder:
    def coder(x: Tensor, budget: int, media: Media) -> tuple[Tensor, int] | None:
        def attempt(quality: int) -> tuple[Tensor, int]:
            file = io.BytesIO()
            to_image(x).save(file, name, quality=quality, **({"optimize": True} if name == "JPEG" else {"method": 6}))
            back = torch.frombuffer(bytearray(Image.open(file).convert("RGB").tobytes()), dtype=torch.uint8)
            return back.reshape(*x.shape[1:], 3).permute(2, 0, 1).float() / 127.5 - 1, file.tell() and len(file.getvalue())

        return best(attempt, 1, 95, budget)

    return coder


def sound(encoder: str, suffix: str) -> Coder:
    """The highest bit rate that fits, read back by our own reader."""
    native = {"libopus": 48000}.get(encoder)

    def coder(x: Tensor, budget: int, media: AudioMedia) -> tuple[Tensor, int] | None:
        def attempt(kilobits: int) -> tuple[Tensor, int]:
            with TemporaryDirectory() as folder:
                path = Path(folder) / f"clip{suffix}"
                rate = native or int(media.rate)
                with av.open(str(path), "w") as out:
                    layout = {1: "mono", 2: "stereo"}[len(x)]
                    stream = out.add_stream(encoder, rate=rate, layout=layout)
                    stream.bit_rate = kilobits * 1000
                    frame = av.AudioFrame.from_ndarray(x.clamp(-1, 1).contiguous().numpy(), "fltp", layout)
                    frame.sample_rate = int(media.rate)
                    size = stream.codec_context.frame_size or 1024
                    resampler = av.AudioResampler(stream.format, layout, rate, frame_size=size)
                    for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                        out.mux(stream.encode(part))
                with av.open(str(path)) as read:
                    size = sum(packet.size for packet in read.demux() if packet.size)
                return media.load(path).x, size

        rates = [6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256]
        return best(lambda i: attempt(rates[i]), 0 if native else 1, len(rates) - 1, budget)

    return coder


def h264(x: Tensor, budget: int, media: VideoMedia) -> tuple[Tensor, int] | None:
    def attempt(quality: int) -> tuple[Tensor, int]:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            with av.open(str(path), "w") as out:
                stream = out.add_stream("libx264", rate=int(media.rate))
                stream.height, stream.width, stream.pix_fmt = *x.shape[2:], "yuv420p"
                stream.options = {"crf": str(51 - quality), "preset": "slow"}
                for frame in ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy():
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(frame.copy(), "rgb24")))
                out.mux(stream.encode(None))
            with av.open(str(path)) as read:
                size = sum(packet.size for packet in read.demux() if packet.size)
            return media.load(path).x, size

    return best(attempt, 0, 51, budget)


if __name__ == "__main__":
    main()
