"""Time, memory and quality of codecs beside diffusers': python tools/bench/codecs.py [--quick] [--train FOLDER] [--out PAGE]

Encode and decode of equal shapes: contestants take turns in one process, the best of several rounds counts; the peak of
memory is that of a process of its own that encodes and decodes something long. With --train each trains for the same minutes
on crops of the pictures in FOLDER, from the same seed. Writes its tables to stdout, and below its marker in a page.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from codec_contestants import FAMILIES, Contestant, Family, built, kl
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmldm.codec import ImageCodec
from mmldm.codec.losses import Charbonnier
from mmldm.data.manifest import read_manifest
from mmldm.evaluation import psnr
from mmldm.media import ImageMedia

MARKER = "<!-- below: written by tools/bench/codecs.py -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, no memory")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--peak", nargs=2, metavar=("FAMILY", "NUMBER"), help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.peak:
        print(*peak(FAMILIES[args.peak[0]], int(args.peak[1])))
        return
    lines = [f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}."]
    names = [name for name in args.families.split(",") if name]
    for dtype in (torch.float32, torch.bfloat16):
        top = product_peak(dtype)
        lines += ["", f"**{str(dtype).removeprefix('torch.')}** (matrix products reach {top / 1e9:.0f} GFLOP/s):", ""]
        lines += [
            "| | parameters | GFLOP encode, decode | encode | decode | ratio | share of that peak |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in names:
            lines += times(name, FAMILIES[name], dtype, 1 if args.quick else 5, top)
    if not args.quick:
        lines += ["", *memory(names)]
    if args.train:
        lines += ["", *qualities(args.train, args.minutes)]
    text = "\n".join(lines)
    print(text)
    if args.out:
        page = args.out.read_text(encoding="utf-8").split(MARKER)[0] if args.out.exists() else ""
        args.out.write_text(f"{page}{MARKER}\n\n{text}\n", encoding="utf-8")


# ---------------------------------------------------------------- time


@torch.inference_mode()
def times(name: str, family: Family, dtype: torch.dtype, rounds: int, top: float) -> list[str]:
    """One row per contestant: best of the rounds, contestants taking turns."""
    codecs = [built(c) for c in family.contestants]
    x = torch.rand(1, *family.shape) * 2 - 1
    best, latents = {}, {}
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for turn in range(rounds + 1):
            for c, codec in zip(family.contestants, codecs, strict=True):
                start = time.perf_counter()
                z = c.encode(codec, x)
                middle = time.perf_counter()
                c.decode(codec, z)
                end = time.perf_counter()
                latents[c.name] = z
                if turn:
                    old = best.get(c.name, (1e9, 1e9))
                    best[c.name] = (min(old[0], middle - start), min(old[1], end - middle))
    rows, peer = [], best[family.contestants[0].name]
    for c, codec in zip(family.contestants, codecs, strict=True):
        work = [flops(lambda c=c, m=codec: c.encode(m, x)), flops(lambda c=c, m=codec: c.decode(m, latents[c.name].float()))]
        spent = best[c.name]
        ratio = ", ".join(f"{a / b:.2f}" for a, b in zip(spent, peer, strict=True))
        share = sum(work) / sum(spent) / top
        size = sum(p.numel() for p in codec.parameters()) / 1e6
        told = f"{work[0] / 1e9:.0f}, {work[1] / 1e9:.0f}"
        rows.append(
            f"| {name}: {c.name} | {size:.1f} M | {told} | {spent[0]:.2f} s | {spent[1]:.2f} s | {ratio} | {share:.0%} |"
        )
    return rows


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@torch.inference_mode()
def product_peak(dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product."""
    a, b = (torch.rand(1536, 1536).to(dtype) for _ in range(2))
    spent = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        spent.append(time.perf_counter() - start)
    return 2 * 1536**3 / min(spent)


# ---------------------------------------------------------------- memory


def memory(names: list[str]) -> list[str]:
    """Peak of resident memory above that of the loaded codec, for something long, each in a process of its own."""
    lines = ["| long media, float32 | encode | decode | ratio |", "|---|---|---|---|"]
    for name in names:
        family, peer = FAMILIES[name], None
        for number, c in enumerate(family.contestants):
            out = subprocess.run(
                [sys.executable, __file__, "--peak", name, str(number)], capture_output=True, text=True, check=True
            )
            found = [float(word) for word in out.stdout.split()]
            peer = peer or found
            ratio = ", ".join(f"{a / b:.2f}" for a, b in zip(found, peer, strict=True))
            lines.append(f"| {name} {family.long}: {c.name} | {found[0]:.0f} MB | {found[1]:.0f} MB | {ratio} |")
    return lines


@torch.inference_mode()
def peak(family: Family, number: int) -> tuple[float, float]:
    """MB above a codec that has run already on a quarter of the size, in encoding and in decoding."""
    contestant = family.contestants[number]
    codec = built(contestant)
    x = torch.rand(1, *family.long) * 2 - 1
    small = x[(..., *(slice(0, max(1, n // 4)) for n in x.shape[2:]))]
    contestant.decode(codec, contestant.encode(codec, small))
    reset_peak()
    base = resident()
    z = contestant.encode(codec, x)
    encoding = highest() - base
    reset_peak()
    base = resident()
    contestant.decode(codec, z)
    return encoding, highest() - base


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def highest() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3


# ---------------------------------------------------------------- quality


def qualities(folder: Path, minutes: float, size: int = 64, batch: int = 8) -> list[str]:
    """PSNR on held-out crops after the same minutes of training: the KL design and ours, of equal latents and parameters."""
    files = [folder / row["file"] for row in read_manifest(folder, ImageMedia.suffixes).rows]
    xs = torch.stack([ImageMedia(size * 2, size * 2).load(f).x for f in files])
    held, seen = xs[::8], torch.cat([xs[i::8] for i in range(1, 8)])
    ours = Contestant(
        "ours, as designed",
        lambda: ImageCodec(ImageMedia(size, size), 4, width=80, multipliers=(1, 2), strides=(2, 2), blocks=2, decoder_blocks=3),
    )
    lines = [
        f"| {minutes:g} minutes of training on {len(seen)} pictures | parameters | steps | PSNR of {len(held)} others |",
        "|---|---|---|---|",
    ]
    for contestant in (Contestant("AutoencoderKL", lambda: kl((32, 64, 128))), ours):
        codec, steps = trained(contestant, seen, minutes, size, batch)
        with torch.no_grad():
            x = held[:, :, size // 2 : size // 2 + size, size // 2 : size // 2 + size]
            score = psnr(contestant.reconstruct(codec, x).clamp(-1, 1), x).mean()
        params = sum(p.numel() for p in codec.parameters()) / 1e6
        lines.append(f"| {contestant.name} | {params:.1f} M | {steps} | {score:.2f} dB |")
    return lines


def trained(contestant: Contestant, xs: torch.Tensor, minutes: float, size: int, batch: int) -> tuple[nn.Module, int]:
    """The codec after `minutes`, learning rate falling to zero, and its steps."""
    codec, generator = built(contestant).train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(codec.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    loss, start, steps, share = Charbonnier(), time.monotonic(), 0, 0.0
    while share < 1:
        rate = min(1.0, (steps + 1) / 50) * min(1.0, 2 * (1 - share))
        optimizer.param_groups[0]["lr"] = 1e-3 * rate
        rows = torch.randint(len(xs), (batch,), generator=generator)
        top, left = torch.randint(size, (2,), generator=generator).tolist()
        x = xs[rows, :, top : top + size, left : left + size]
        with torch.autocast("cpu", torch.bfloat16):
            total = loss(contestant.reconstruct(codec, x).float(), x)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        steps, share = steps + 1, (time.monotonic() - start) / (60 * minutes)
    return codec.eval(), steps


if __name__ == "__main__":
    main()
