"""How fast files become clips: python tools/bench/loading.py [--files 12] [--rounds 3]

Our media (PyAV) beside torchcodec and decord, where they are installed, at the same work: a clip from a random moment of a
file as a float tensor in [-1, 1]: 17 pictures of 256 x 256 at 8 a second of H.264 and VP9 of 456 x 256, and 10 seconds of 16
kHz mono sound of MP3, Opus and FLAC. One thread; the readers take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mmldm.media import AudioMedia, VideoMedia, save_audio, save_video

VIDEO, AUDIO = VideoMedia(17, 8.0, 256, 256), AudioMedia(16000, 1, 10.0)
SECONDS = {"video": 12.0, "audio": 30.0}  # of a file
Reader = Callable[[Path, float], Tensor]


# ---------------------------------------------------------------- files


def pictures(seed: int, frames: int) -> Tensor:
    """Coloured noise that drifts, (3, frames, 256, 456): neither flat nor white."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(3, 1, 24, 40, generator=random)
    plane = F.interpolate(coarse.transpose(0, 1), (300, 520), mode="bicubic")[0] + 0.05 * torch.randn(
        3, 300, 520, generator=random
    )
    return torch.stack([plane[:, i % 40 : i % 40 + 256, i % 60 : i % 60 + 456] for i in range(frames)], 1).clamp(-1, 1)


def sound(seed: int, rate: int) -> Tensor:
    """Chords and noise, (2, samples)."""
    random, time_ = torch.Generator().manual_seed(seed), torch.arange(int(SECONDS["audio"] * rate)) / rate
    chord = sum(torch.sin(2 * torch.pi * f * time_) for f in 100 + 2000 * torch.rand(5, generator=random))
    return (0.1 * chord + 0.02 * torch.randn(2, len(time_), generator=random)).clamp(-1, 1)


def write(folder: Path, count: int) -> dict[str, list[Path]]:
    """`count` files of each format."""
    files: dict[str, list[Path]] = {}
    for i in range(count):
        for suffix, codec in ((".mp4", "h264"), (".webm", "vp9")):
            path = folder / f"{i}{suffix}"
            save_video(pictures(i, int(SECONDS["video"] * 24)), path, 24.0)
            files.setdefault(f"video, {codec}", []).append(path)
        for suffix, rate in ((".mp3", 44100), (".opus", 48000), (".flac", 44100)):
            path = folder / f"{i}{suffix}"
            save_audio(sound(i, rate), path, rate)
            files.setdefault(f"audio, {suffix[1:]}", []).append(path)
    return files


# ---------------------------------------------------------------- readers


def fitted(pictures: Tensor) -> Tensor:
    """uint8 (T, 3, H, W) -> (3, T, 256, 256) in [-1, 1]: scaled to cover, cropped at the centre."""
    height, width = pictures.shape[-2:]
    scale = max(256 / height, 256 / width)
    if scale != 1:
        size = round(height * scale), round(width * scale)
        pictures = F.interpolate(pictures.float(), size, mode="bilinear", antialias=True).round().to(torch.uint8)
    top, left = (pictures.shape[-2] - 256) // 2, (pictures.shape[-1] - 256) // 2
    return pictures[..., top : top + 256, left : left + 256].transpose(0, 1).float() / 127.5 - 1


def torchcodec(path: Path, start: float) -> Tensor:
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    if path.suffix in (".mp4", ".webm"):
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
        times = [start + k / VIDEO.fps for k in range(VIDEO.frames)]
        return fitted(decoder.get_frames_played_at(seconds=times).data)
    decoder = AudioDecoder(str(path), sample_rate=AUDIO.rate, num_channels=1)
    return decoder.get_samples_played_in_range(start, start + AUDIO.seconds).data


def decord(path: Path, start: float) -> Tensor:
    import decord as library

    if path.suffix in (".mp4", ".webm"):
        reader = library.VideoReader(str(path), num_threads=1)
        frames = [int((start + k / VIDEO.fps) * reader.get_avg_fps() + 1e-6) for k in range(VIDEO.frames)]
        return fitted(torch.from_numpy(reader.get_batch(frames).asnumpy()).permute(0, 3, 1, 2))
    reader = library.AudioReader(str(path), sample_rate=AUDIO.rate, mono=True)  # which decodes the whole file
    first = round(start * AUDIO.rate)
    return torch.from_numpy(reader[first : first + round(AUDIO.seconds * AUDIO.rate)].asnumpy())


def ours(path: Path, start: float) -> Tensor:
    return (VIDEO if path.suffix in (".mp4", ".webm") else AUDIO).load(path, start).x


def readers() -> dict[str, Reader]:
    """Ours, and those of the others that are installed."""
    others = {
        name: reader for name, reader in (("torchcodec", torchcodec), ("decord", decord)) if importlib.util.find_spec(name)
    }
    return {"mmldm (PyAV)": ours, **others}


# ---------------------------------------------------------------- measuring


def moments(kind: str, count: int, rounds: int) -> list[list[float]]:
    """A start in seconds for every file in every round."""
    random = torch.Generator().manual_seed(3)
    slack = SECONDS[kind] - {"video": VIDEO, "audio": AUDIO}[kind].seconds - 0.5
    return (slack * torch.rand(rounds, count, generator=random)).tolist()


def table(files: dict[str, list[Path]], rounds: int) -> Iterator[str]:
    """Clips per second and core of every reader on every format."""
    found = readers()
    names = list(found)
    yield "| | " + " | ".join(names) + " | ours beside the best other |"
    yield "| --- " * (len(names) + 2) + "|"
    for what, paths in files.items():
        kind = what.split(",")[0]
        spent: dict[str, list[float]] = {name: [] for name in names}
        for starts in moments(kind, len(paths), rounds):
            for name, read in found.items():
                clock = time.process_time()
                try:
                    for path, start in zip(paths, starts, strict=True):
                        read(path, start)
                except Exception as error:  # a peer that cannot read a format stays in the table
                    print(f"{name}, {what}: {str(error).splitlines()[0]}")
                    spent[name].append(float("nan"))
                    continue
                spent[name].append((time.process_time() - clock) / len(paths))
        speed = {name: 1 / statistics.median(times) for name, times in spent.items()}
        others = [v for name, v in speed.items() if name != names[0] and v == v]
        beside = f"{speed[names[0]] / max(others):.2f}" if others else ""
        cells = [f"{speed[name]:.1f}" if speed[name] == speed[name] else "cannot" for name in names]
        yield f"| {what} | {' | '.join(cells)} | {beside} |"


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = [f"Clips per second of processor time, {args.files} files of each format, {args.rounds} rounds.", ""]
        text += table(write(Path(folder), args.files), args.rounds)
    print("\n".join(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
