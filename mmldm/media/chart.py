"""A line chart as inline SVG that follows the page's colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

__all__ = ["chart"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 220, 52, 12, 10, 26
MOST = 600  # points drawn


def chart(steps: Sequence[float], values: Sequence[float], label: str = "") -> str:
    """SVG of values over steps with ticks; NaN and infinite values are left out of the line and marked at the top."""
    points = [(float(s), float(v)) for s, v in zip(steps, values, strict=True)]
    finite = [(s, v) for s, v in points if math.isfinite(v)]
    lost = [s for s, v in points if not math.isfinite(v)]
    if not finite:
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><text x="20" y="40">no finite value</text></svg>'
    left, right = min(s for s, _ in points), max(s for s, _ in points)
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (0.5 if right == left else (step - left) / (right - left))
        y = TOP + (HEIGHT - TOP - BOTTOM) * (0.5 if high == low else (high - value) / (high - low))
        return round(x, 1), round(y, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for tick in ticks:
        y = at(left, tick)[1]
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(left, right):
        if left <= tick <= right:
            parts.append(f'<text x="{at(tick, low)[0]}" y="{HEIGHT - 8}" text-anchor="middle">{_short(tick)}</text>')
    every = math.ceil(len(finite) / MOST)
    kept = [*finite[:-1:every], finite[-1]]
    if len(kept) > 1:
        parts.append('<polyline points="' + " ".join(f"{x},{y}" for x, y in (at(*p) for p in kept)) + '"/>')
    if len(kept) <= 40:
        parts += [f'<circle cx="{x}" cy="{y}" r="2.4"/>' for x, y in (at(*p) for p in kept)]
    parts += [f'<text class="lost" x="{at(s, high)[0]}" y="{TOP + 8}" text-anchor="middle">×</text>' for s in lost[:MOST]]
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between and around low and high."""
    if low == high:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
