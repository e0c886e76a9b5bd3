"""Pictures of media: spectrogram, curves, strip of frames, contact sheet. Figures are drawn without pyplot's global state."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmldm.interfaces import Media
from mmldm.media.files import replacing
from mmldm.media.image import to_image

__all__ = ["curves", "enlarged", "mel_decibels", "save", "sheet", "spectrogram", "strip", "tile"]

INK, PAPER, PALE = "#1f2430", "#ffffff", "#e9ecf2"
COLOURS = ("#3b6fd4", "#e0743c", "#2f9e6e", "#b0489c", "#c7a11f", "#5b5f97", "#d64550", "#3aa6b9")


def save(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture as PNG."""
    with replacing(path) as temporary:
        picture.save(temporary)
    return Path(path)


def enlarged(x: Tensor, least: int) -> Tensor:
    """Repeat pixels of (…, H, W) by a whole factor until the shorter side is at least `least` (never shrinks)."""
    factor = max(1, math.ceil(least / min(x.shape[-2:])))
    return x.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


# ---------------------------------------------------------------- sound


def mel_decibels(x: Tensor, rate: float, bins: int = 96) -> Tensor:
    """Loudness in dB below the loudest (bins, frames) of sound (C, T), on the mel scale from 30 Hz to rate / 2."""
    mono = x.detach().float().cpu().nan_to_num(0.0).mean(0)
    size = 2 ** max(6, round(math.log2(rate * 0.046)))
    mono = torch.nn.functional.pad(mono, (0, max(0, size - len(mono))))
    power = (
        torch.stft(
            mono, size, max(1, size // 8), window=torch.hann_window(size), return_complex=True, pad_mode="constant"
        ).abs()
        ** 2
    )
    edges = _hertz(torch.linspace(_mel(30.0), _mel(rate / 2), bins + 2))
    lines = torch.linspace(0, rate / 2, size // 2 + 1)
    rise = (lines - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - lines) / (edges[2:] - edges[1:-1])[:, None]
    weights = torch.minimum(rise, fall).clamp(min=0)
    nearest = (lines - edges[1:-1, None]).abs().argmin(1)  # bands narrower than a line of the transform take the nearest
    weights[torch.arange(bins), nearest] = torch.maximum(weights[torch.arange(bins), nearest], torch.tensor(1e-3))
    weights = weights / weights.sum(1, keepdim=True)
    mel = weights @ power
    return 10 * torch.log10(mel.clamp(min=1e-10) / mel.max().clamp(min=1e-6)).clamp(min=-80, max=0)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


def spectrogram(x: Tensor, rate: float, size: tuple[float, float] = (7.0, 3.4)) -> Image.Image:
    """The waveform above a mel spectrogram in dB with axes in seconds and Hz; `size` in inches (small ones: no waveform)."""
    small = size[0] < 5
    figure = _figure(size)
    if small:
        below = figure.subplots()
    else:
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 2.6]})
        _waveform(above, x, rate)
    seconds, bins = x.shape[1] / rate, 96
    below.imshow(mel_decibels(x, rate, bins).numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-80, vmax=0,
                 extent=(0, seconds, 0, bins), interpolation="bilinear")  # fmt: skip
    low, high = _mel(30.0), _mel(rate / 2)
    marks = [f for f in (100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000) if f <= rate / 2]
    marks = marks[:: 2 if small else 1]
    below.set_yticks(
        [bins * (_mel(f) - low) / (high - low) for f in marks], [f"{f // 1000}k" if f >= 1000 else str(f) for f in marks]
    )
    below.set_ylabel("Hz")
    below.set_xlabel("seconds")
    return _rendered(figure)


def _waveform(axes, x: Tensor, rate: float) -> None:
    """Minimum and maximum per column, one colour per channel."""
    columns = min(900, x.shape[1])
    edges = torch.linspace(0, x.shape[1], columns + 1).long()
    wave = x.detach().float().cpu().nan_to_num(0.0)
    for channel, values in enumerate(wave[:2]):
        pieces = [values[a : max(b, a + 1)] for a, b in zip(edges[:-1], edges[1:], strict=True)]
        low, high = [float(p.min()) for p in pieces], [float(p.max()) for p in pieces]
        times = (edges[:-1] / rate).tolist()
        axes.fill_between(times, low, high, color=COLOURS[channel], alpha=0.75, linewidth=0.4, edgecolor=COLOURS[channel])
    axes.set_ylim(-1.05, 1.05)
    axes.set_yticks([-1, 0, 1])
    axes.tick_params(labelbottom=False)
    axes.grid(color=PALE, linewidth=0.6)


# ---------------------------------------------------------------- arrays


def curves(x: Tensor, rate: float | None = None, size: tuple[float, float] = (7.0, 3.4)) -> Image.Image:
    """Curves of (C, T), one above the other (a heat map from 17 channels on); a picture of (C, H, W …)'s first channel."""
    x = x.detach().float().cpu().nan_to_num(0.0).numpy()
    figure = _figure(size)
    axes = figure.subplots()
    if x.ndim > 2 or x.shape[0] > 16:
        plane = x if x.ndim == 2 else x[0].reshape(-1, x.shape[-1]) if x.ndim > 2 and x.shape[1] > 1 else x[0].reshape(1, -1)
        width = plane.shape[1] / rate if rate and x.ndim == 2 else plane.shape[1]
        image = axes.imshow(plane, aspect="auto", cmap="viridis", extent=(0, width, plane.shape[0], 0), interpolation="nearest")
        figure.colorbar(image, ax=axes, pad=0.015)
        axes.set_ylabel("channel" if x.ndim == 2 else "row")
    else:
        times = np.arange(x.shape[1]) / (rate or 1)
        gap = 0.0 if x.shape[0] == 1 else float(np.ptp(x, 1).max()) or 1.0
        for channel, values in enumerate(x):
            axes.plot(times, values - channel * gap, color=COLOURS[channel % len(COLOURS)], linewidth=1.0)
        if x.shape[0] > 1:
            axes.set_yticks([-channel * gap for channel in range(len(x))], [str(channel) for channel in range(len(x))])
            axes.set_ylabel("channel")
        axes.margins(x=0)
        axes.grid(color=PALE, linewidth=0.6)
    axes.set_xlabel("seconds" if rate and x.ndim == 2 else "index")
    return _rendered(figure)


def _figure(size: tuple[float, float]):
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=110, layout="constrained", facecolor=PAPER)


def _rendered(figure) -> Image.Image:
    for axes in figure.axes:
        axes.tick_params(labelsize=7, colors=INK, length=2)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
        for spine in axes.spines.values():
            spine.set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


# ---------------------------------------------------------------- video, sheets


def strip(x: Tensor, fps: float | None = None, most: int = 10, side: int = 96) -> Image.Image:
    """At most `most` evenly spaced frames of (3, T, H, W) side by side, with their times below where `fps` is given."""
    count = min(most, x.shape[1])
    picks = torch.linspace(0, x.shape[1] - 1, count).round().long().tolist()
    tiles = [tile(to_image(x[:, k]), side) for k in picks]
    width, height = tiles[0].size
    gap, foot = 3, 16 if fps else 0
    out = Image.new("RGB", (count * (width + gap) - gap, height + foot), PAPER)
    pen = ImageDraw.Draw(out)
    for column, (k, picture) in enumerate(zip(picks, tiles, strict=True)):
        left = column * (width + gap)
        out.paste(picture, (left, 0))
        if fps:
            pen.text((left + width / 2, height + 2), f"{k / fps:.2f} s", fill="#667085", font=_font(11), anchor="ma")
    return out


def tile(picture: Image.Image, side: int) -> Image.Image:
    """Small pictures enlarged by a whole factor with hard pixels, large ones reduced: shorter side about `side`."""
    factor = side / min(picture.size)
    if factor >= 1:
        factor = math.ceil(factor)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # brings a font that covers more scripts than Pillow's own

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def sheet(items: Sequence[tuple[Tensor, str]], media: Media, path: str | Path, columns: int | None = None) -> Path:
    """A contact sheet PNG of (x, caption): a grid of pictures, spectrograms or curves; wide strips one per row."""
    if not items:
        raise ValueError("wanted at least one (tensor, caption), got none")
    pictures = [_shown(x, media) for x, _ in items]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    columns = columns or max(1, min(len(items), math.ceil(math.sqrt(len(items) * height / width)), max(1, 1600 // width)))
    wrapped = [_wrapped(caption, max(width, 120)) for _, caption in items]
    gap, line, cell = 14, 15, max(width, 120)
    foot = max(len(lines) for lines in wrapped) * line + (6 if any(wrapped) else 0)
    rows = math.ceil(len(items) / columns)
    out = Image.new("RGB", (columns * (cell + gap) + gap, rows * (height + foot + gap) + gap), PAPER)
    pen = ImageDraw.Draw(out)
    for index, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        left, top = gap + index % columns * (cell + gap), gap + index // columns * (height + foot + gap)
        out.paste(picture, (left + (cell - picture.width) // 2, top))
        for number, text in enumerate(lines):
            pen.text((left + cell / 2, top + height + 5 + number * line), text, fill=INK, font=_font(12), anchor="ma")
    return save(out, path)


def _shown(x: Tensor, media: Media) -> Image.Image:
    """The media's own picture of x; of a foreign media the picture among its previews."""
    if hasattr(media, "picture"):
        return media.picture(x)
    with tempfile.TemporaryDirectory() as folder:
        pictures = [p for p in media.preview(x, folder, "x") if p.kind == "picture"]
        if not pictures:
            raise ValueError(f"wanted a picture among the previews of {type(media).__name__}, got none")
        with Image.open(pictures[0].path) as picture:
            return picture.convert("RGB")


def _wrapped(text: str, width: int, most: int = 3) -> list[str]:
    """Lines of at most `width` pixels, the last one with an ellipsis where the text goes on."""
    lines, font = [], _font(12)
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] = lines[-1][: max(1, len(lines[-1]) - 1)] + "…"
            break
        else:
            lines.append(word)
    return [line if font.getlength(line) <= width * 1.15 else line[: max(1, int(width / 7))] + "…" for line in lines]
