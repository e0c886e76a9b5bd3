"""Memory of `mmldm reconstruct` by the length of the file: python tools/bench/streaming.py --sound 360 3600 --clip 60 600

Makes the files itself (tones, a moving pattern) and small untrained codecs; each reconstruction is a process of its own, whose
peak is its resident memory (VmHWM: Linux). The last length of each kind may take at most 1.1 times the memory of the first.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mmldm import config, trained
from mmldm.media import AudioMedia, VideoMedia
from mmldm.model import Whitening

ALLOWED = 1.1
BODY = {"latent_channels": 8, "width": 16, "blocks": 1, "multipliers": [1]}
MEL = {"_target_": "mmldm.codec.mel.LogMel", "rate": 16000, "n_fft": 1024, "hop": 256, "bins": 80}
CODECS = {
    "sound": {
        "_target_": "mmldm.codec.audio.AudioCodec",
        "media": {"_target_": "mmldm.media.audio.AudioMedia", "rate": 16000, "channels": 1, "seconds": 2.048},
        "mel": MEL,
        "vocoder": {"_target_": "mmldm.codec.vocoder.GriffinLim", "mel": MEL, "iterations": 4, "inversion": 4},
        "strides": [4],
        **BODY,
    },
    "clip": {
        "_target_": "mmldm.codec.video.VideoCodec",
        "media": {"_target_": "mmldm.media.video.VideoMedia", "frames": 17, "fps": 8, "height": 64, "width": 64},
        "strides": [[4, 4, 4]],
        **BODY,
    },
}
SUFFIX = {"sound": ".flac", "clip": ".mp4"}
CHILD = """
import json, sys, time
import torch
torch.set_num_threads(1)
from mmldm.commands import reconstruct
begin = time.perf_counter()
status = reconstruct.main(sys.argv[1:])
seconds = time.perf_counter() - begin
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"status": status, "seconds": seconds, "peak": int(peak) / 1024}))
"""


def model(kind: str, folder: Path) -> Path:
    """An untrained codec as a trained-model folder."""
    codec = config.build(CODECS[kind])
    trained.save_codec(folder, {"codecs": {kind: CODECS[kind]}, "clips": {}}, codec, Whitening(codec.latent_channels), {}, "")
    return folder


def sounding(seconds: float):
    """A tone that wanders, in pieces (1, T)."""
    for begin in range(0, round(seconds * 16000), 160000):
        t = torch.arange(begin, min(begin + 160000, round(seconds * 16000)), dtype=torch.float64) / 16000
        yield (0.4 * torch.sin(2 * math.pi * 440 * t + 200 * torch.sin(t / 3))).float()[None]


def moving(seconds: float):
    """A pattern that drifts, in pieces (3, T, H, W)."""
    y, x = torch.meshgrid(torch.arange(64) / 9, torch.arange(64) / 7, indexing="ij")
    for begin in range(0, round(seconds * 8), 64):
        t = torch.arange(begin, min(begin + 64, round(seconds * 8)))[:, None, None] / 5
        yield torch.stack([torch.sin(x + t), torch.sin(y - 0.7 * t), torch.sin(x + y + 0.3 * t)]) * 0.8


def made(kind: str, seconds: float, path: Path) -> Path:
    """A file of so many seconds."""
    media = AudioMedia(16000, 1, 1.0) if kind == "sound" else VideoMedia(8, 8.0, 64, 64)
    with media.writer(path) as write:
        for piece in (sounding if kind == "sound" else moving)(seconds):
            write(piece)
    return path


def measured(kind: str, seconds: float, folder: Path) -> dict[str, float]:
    """Wall time and peak memory in MB of one reconstruction."""
    path = made(kind, seconds, folder / f"{kind}{seconds:g}{SUFFIX[kind]}")
    words = [str(folder / kind), str(path), "--out", str(folder / "out" / path.name), "--device", "cpu"]
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "whole": time.perf_counter() - begin}


def main() -> int:
    """Measure, print a table, fail where memory grows."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sound", nargs="*", type=float, default=[360.0, 3600.0], help="seconds of sounds")
    p.add_argument("--clip", nargs="*", type=float, default=[60.0, 600.0], help="seconds of moving pictures")
    args, failed = p.parse_args(), False
    torch.set_num_threads(1)
    print("| kind | length | seconds | × real time | peak MB | × first |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for kind, lengths in (("sound", args.sound), ("clip", args.clip)):
            first = None
            model(kind, Path(name) / kind)
            for length in lengths:
                found = measured(kind, length, Path(name))
                first = first or found["peak"]
                ratio, speed = found["peak"] / first, length / found["seconds"]
                failed |= ratio > ALLOWED or found["status"] != 0
                row = [f"{length:g} s", f"{found['seconds']:.1f}", f"{speed:.1f}", f"{found['peak']:.0f}", f"{ratio:.3f}"]
                print("|", " | ".join([kind, *row]), "|", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
