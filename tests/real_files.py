"""Small folders of real, mixed and partly broken files, written by the real encoders."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch

from mmldm.data.world import World
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, save_audio, save_image, save_video

BROKEN = b"this is not a media file at all"


def images(folder: Path, count: int = 12) -> Path:
    """JPEG, PNG, WebP of several sizes with a metadata.csv, and two broken files that it names."""
    folder.mkdir(parents=True)
    world, rows = World("image", count), []
    for i in range(count):
        size = (40 + 8 * (i % 3), 48)
        name = f"picture {i}{('.jpg', '.png', '.webp')[i % 3]}"
        save_image(world.load(i, "image", ImageMedia(*size)).x, folder / name)
        rows.append((name, world.row(i)["text"]))
    (folder / "broken.png").write_bytes(BROKEN)
    whole = (folder / "picture 1.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 8])
    rows += [("broken.png", "nothing"), ("cut.png", 'half a picture, "cut"')]
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    return folder


def sounds(folder: Path, count: int = 9) -> Path:
    """WAV, FLAC, MP3, Ogg at several rates, mono and stereo, each with a .txt beside it, and one broken file."""
    folder.mkdir(parents=True)
    world = World("audio", count)
    for i in range(count):
        rate = (8000, 22050, 44100)[i % 3]
        rate = 48000 if i % 4 == 3 else rate
        x = world.load(i, "audio", AudioMedia(rate, 1, 0.7 + 0.2 * (i % 4))).x
        x = torch.cat([x, 0.5 * x]) if i % 2 else x
        path = folder / f"sound{i}{('.wav', '.flac', '.mp3', '.opus')[i % 4]}"
        save_audio(x, path, rate)
        path.with_suffix(".txt").write_text(world.row(i)["text"], encoding="utf-8")
    (folder / "broken.mp3").write_bytes(BROKEN)
    return folder


def videos(folder: Path, count: int = 8) -> Path:
    """MP4 and WebM with and without sound, several sizes and frame rates, described by metadata.jsonl, and one broken file."""
    folder.mkdir(parents=True)
    world, lines = World("video", count), []
    tone = torch.from_numpy(np.sin(np.arange(16000 * 2) * 0.2).astype(np.float32))[None] * 0.3
    for i in range(count):
        fps, size = (8, 12, 25)[i % 3], (32 + 8 * (i % 2), 40)
        x = world.load(i, "video", VideoMedia(int(fps * 1.5), fps, *size)).x
        name = f"clip{i}{('.mp4', '.webm')[i % 2]}"
        save_video(x, folder / name, fps, tone[:, : int(16000 * 1.5)] if i % 2 == 0 else None, 16000)
        lines.append(json.dumps({"file_name": name, "text": world.row(i)["text"], "fps": fps}))
    (folder / "broken.mp4").write_bytes(BROKEN)
    lines.append(json.dumps({"file_name": "broken.mp4", "text": "nothing"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def recordings(folder: Path, count: int = 8) -> Path:
    """32-channel signals as .npy in one folder per label."""
    generator = np.random.default_rng(0)
    for i in range(count):
        kind = ("eyes_open", "eyes_closed")[i % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        phase = generator.uniform(0, 6, (32, 1))
        wave = np.sin(np.arange(300) / 128 * 2 * np.pi * (10 if i % 2 else 20) + phase)
        np.save(folder / kind / f"{i}.npy", wave.astype(np.float32))
    return folder
