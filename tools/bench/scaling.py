"""What a training costs from S to XL on 1, 8 and 512 GPUs: sizes and activations are measured here, the rest is derived from
stated assumptions. `python tools/bench/scaling.py` prints the tables of docs/scaling.md."""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import torch
from torch import nn

from mmldm import config
from mmldm.data.order import Order
from mmldm.interfaces import Axis, Cond, CondWidths, Geometry, Noisy, grid_positions
from mmldm.media import VideoMedia

SIZES = ("dit_s", "dit_b", "dit_l", "dit_xl")
WORDS, CHANNELS = 65, 16  # tokens of a text; latent channels
PEAK, SHARE = 989e12, 0.40  # assumed: dense bfloat16 FLOP/s of an H100, and the share of it that a training reaches
NEAR, FAR = 450e9, 50e9  # assumed: bytes/s per GPU to its neighbours (NVLink) and between nodes (400 Gb/s)
STATE = {"weights": 4, "gradients": 4, "AdamW": 8, "two averages": 8}  # bytes per trained parameter, float32


def build(size: str, depth: int | None = None) -> nn.Module:
    """A denoiser of conf/denoiser for one stream on a grid of three axes, told a text."""
    axes = tuple(Axis(name, n, n, unit) for name, n, unit in (("time", 4, 1 / 8), ("height", 8, 1.0), ("width", 8, 1.0)))
    node = config.member("denoiser", size) | ({"depth": depth} if depth else {}) | {"patch": {"height": 2, "width": 2}}
    return config.build(
        node, streams={"clip": Geometry(CHANNELS, axes)}, conditions={"text": CondWidths(tokens=512, vector=512)}
    )


def parameters(size: str) -> tuple[int, int]:
    """Parameters in all, and in the layers."""
    with torch.device("meta"):
        denoiser = build(size)
    count = lambda modules: sum(p.numel() for m in modules for p in m.parameters())  # noqa: E731
    return count([denoiser]), count(denoiser.layers())


def flops(size: str, tokens: int, recompute: bool) -> float:
    """Operations of a training step per token: products with weights, and attention, forward and twice that backward."""
    with torch.device("meta"):
        denoiser = build(size)
    width, layers = denoiser.width, denoiser.layers()
    linear = sum(m.weight.numel() for layer in layers for m in layer.modules() if isinstance(m, nn.Linear))
    words = sum(layer.cross.kv.weight.numel() for layer in layers)
    forward = 2 * (linear - words * (1 - WORDS / tokens)) + 4 * width * (tokens + WORDS) * len(layers)
    return forward * (4 if recompute else 3)


# ---------------------------------------------------------------- measured


def activations(size: str, recompute: bool, cells: tuple[int, int, int] = (2, 16, 16)) -> float:
    """Bytes per token that one layer keeps for the backward pass in bfloat16: half of what a second layer adds in float32.

    There a CPU too has a kernel that keeps no products of queries and keys.
    """
    kept = []
    for depth in (1, 2):
        torch.manual_seed(0)
        denoiser, seen = build(size, depth), {}
        denoiser.checkpoint = recompute
        own = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}

        def note(x: torch.Tensor, seen: dict = seen, own: set = own) -> torch.Tensor:
            if x.untyped_storage().data_ptr() not in own:
                seen[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes(), x)  # held, so that no address comes twice
            return x

        z = torch.zeros(1, CHANNELS, *cells)
        noisy = {"clip": Noisy(z, torch.full((1,), 0.5), grid_positions(denoiser.streams["clip"].axes, cells))}
        text = torch.zeros(1, WORDS, 512)

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            prepared = denoiser.prepare({"text": Cond(tokens=text, vector=text[:, 0])})
            denoiser(noisy, prepared)
        kept.append(sum(count for count, _ in seen.values()))
    return (kept[1] - kept[0]) / 2 / (cells[0] * cells[1] * cells[2] / 4)


def rows(count: int = 100_000) -> float:
    """Bytes of memory per row of a manifest, with a path of 40 and a caption of 60 letters."""
    tracemalloc.start()
    kept = [{"file": f"{i:040d}", "text": f"{i:060d}"} for i in range(count)]
    size = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    return size


def shuffling(items: int = 10**9, batch: int = 1024) -> float:
    """Seconds per batch of places in the endless shuffled order of that many items."""
    order, began = Order(items, 0), time.perf_counter()
    for step in range(10):
        order.index(torch.arange(step * batch, (step + 1) * batch).numpy())
    return (time.perf_counter() - began) / 10


def decoding(seconds: float = 5.0) -> float:
    """Clips of 61 frames (16 of latents) of 256 x 256 per second that one core decodes from H.264."""
    media = VideoMedia(61, 8, 256, 256)
    with tempfile.TemporaryDirectory() as folder:
        path = media.save(
            torch.rand(3, 61, 8, 8).repeat_interleave(32, 2).repeat_interleave(32, 3) * 2 - 1, Path(folder) / "a.mp4"
        )
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            media.load(path)
            count += 1
        return count / (time.perf_counter() - began)


# ---------------------------------------------------------------- tables


def table(title: str, head: list[str], lines: list[list[str]]) -> None:
    """Print one table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def memory(tokens: int) -> None:
    """What a GPU holds."""
    head = [
        "",
        "parameters (measured)",
        "state, whole",
        "in 8 shards",
        "in 512",
        "kept per token and layer (measured)",
        "recomputed",
    ]
    lines = []
    for size in SIZES:
        count, _ = parameters(size)
        state = count * sum(STATE.values()) / 1e9
        kept, again = (activations(size, recompute) for recompute in (False, True))
        depth = config.member("denoiser", size)["depth"]
        clip = [f"{x / 1e3:.1f} kB: {x * depth * tokens / 1e9:.2f} GB a clip" for x in (kept, again)]
        lines.append([size, f"{count / 1e6:.1f} M", f"{state:.1f} GB", f"{state / 8:.2f} GB", f"{state / 512:.3f} GB", *clip])
    table(f"Memory ({sum(STATE.values())} bytes of state per parameter; clips of {tokens} tokens)", head, lines)


def speed(tokens: int) -> None:
    """Tokens and clips per second, and an epoch of 10^9 clips."""
    head = ["", "GFLOP per token", "tokens/s on 1 GPU", "8", "512", "clips/s on 512", "10^9 clips on 512", "recomputed"]
    lines = []
    for size in SIZES:
        need = flops(size, tokens, False)
        one = PEAK * SHARE / need
        days = 1e9 * tokens / (512 * one) / 86400
        slower = flops(size, tokens, True) / need
        each = [f"{one * n:,.0f}" for n in (1, 8, 512)]
        lines.append(
            [size, f"{need / 1e9:.2f}", *each, f"{512 * one / tokens:,.0f}", f"{days:.1f} days", f"{days * slower:.1f} days"]
        )
    table(f"Speed at {SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s, no time lost elsewhere", head, lines)


def traffic(tokens: int, clips: int) -> None:
    """Bytes that a GPU receives in a step, and how long that takes beside the computation."""
    head = ["", "a step computes", "DDP", "on 8 (NVLink)", "on 512 (network)", "FSDP2", "on 8", "on 512"]
    lines = []
    for size in SIZES:
        count, inside = parameters(size)
        with torch.device("meta"):
            cross = sum(p.numel() for layer in build(size).layers() for p in layer.cross.parameters())
        step = flops(size, tokens, False) * tokens * clips / (PEAK * SHARE)
        whole = 2 * 4 * count
        shards = 2 * 2 * inside + 2 * 2 * cross + 4 * (count - inside) + 4 * count
        times = [f"{1e3 * size_ / link:.1f} ms" for size_ in (whole, shards) for link in (NEAR, FAR)]
        lines.append([size, f"{1e3 * step:.0f} ms", f"{whole / 1e9:.2f} GB", *times[:2], f"{shards / 1e9:.2f} GB", *times[2:]])
    table(f"Communication of a step of {clips} clips per GPU, in part behind the computation", head, lines)


def data(tokens: int) -> None:
    """What must be read, and what 10^9 clips take."""
    cells, rate = 4 * tokens, decoding()
    clip = cells * CHANNELS * 2 * 2
    lines = []
    for size in SIZES:
        clips = [n * PEAK * SHARE / flops(size, tokens, False) / tokens for n in (1, 8, 512)]
        read = [f"{c * clip / 1e6:,.0f} MB/s" for c in clips]
        lines.append([size, *read, f"{clips[0] / rate:.1f}"])
    title = f"To read: latents of {clip / 1e6:.2f} MB a clip (mean and std), or files at {rate:.1f} clips/s per core (measured)"
    table(title, ["", "1 GPU", "8", "512", "decoding cores per GPU"], lines)
    one, places = rows(), 1e3 * shuffling()
    print(
        f"\n10^9 clips: latents {1e9 * clip / 1e15:.2f} PB; rows of a manifest {one:.0f} bytes each (measured), {one:.0f} GB;"
    )
    print(f"1024 places of the shuffled order {places:.1f} ms (measured)")


def checkpoints(rate: float = 1e9) -> None:
    """Sizes of what a run writes, and the time at a rate of the disk."""
    head = ["", "checkpoint (weights, AdamW, two averages)", f"at {rate / 1e9:.0f} GB/s", "model", "a snapshot of one average"]
    lines = []
    for size in SIZES:
        count, _ = parameters(size)
        written = count * (4 + 8 + 8)
        lines.append(
            [
                size,
                f"{written / 1e9:.1f} GB",
                f"{written / rate:.0f} s",
                f"{4 * count / 1e9:.2f} GB",
                f"{2 * count / 1e9:.2f} GB",
            ]
        )
    table("What a run writes", head, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="of a clip")
    parser.add_argument("--clips", type=int, default=16, help="per GPU and step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    memory(args.tokens)
    speed(args.tokens)
    traffic(args.tokens, args.clips)
    data(args.tokens)
    checkpoints()
