"""A line chart as inline SVG that follows the page's colours."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

__all__ = ["Line", "chart", "thinned"]

Line = tuple[str, Sequence[float], Sequence[float]]  # name, steps, values

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 220, 52, 12, 10, 26
MOST = 600  # points drawn of a line
DOTS = 40  # points up to which each is marked
DECADES = 1.5  # that positive values span at least where the axis is logarithmic
COLOURS = 6  # of lines, in page.html


def chart(steps: Sequence[float], values: Sequence[float], label: str = "") -> str:
    """SVG of values over steps with ticks; NaN and infinite values are left out of the line and marked at the top."""
    return lines([("", steps, values)], label)


def lines(several: Sequence[Line], label: str = "") -> str:
    """SVG of several lines over the same axes, in the page's colours in this order; the value axis is logarithmic where
    positive values span much."""
    points = [(float(s), float(v)) for _, steps, values in several for s, v in zip(steps, values, strict=True)]
    finite = [v for _, v in points if math.isfinite(v)]
    if not finite:
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><text x="20" y="40">no finite value</text></svg>'
    left, right = min(s for s, _ in points), max(s for s, _ in points)
    low, high = min(finite), max(finite)
    scale = _log if low > 0 and math.log10(high / low) > DECADES else _same
    ticks = _decades(low, high) if scale is _log else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def at(step: float, value: float) -> tuple[float, float]:
        share = 0.5 if high == low else (scale(high) - scale(value)) / (scale(high) - scale(low))
        x = LEFT + (WIDTH - LEFT - RIGHT) * (0.5 if right == left else (step - left) / (right - left))
        return round(x, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * share, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for tick in ticks:
        y = at(left, tick)[1]
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(left, right):
        if left <= tick <= right:
            parts.append(f'<text x="{at(tick, low)[0]}" y="{HEIGHT - 8}" text-anchor="middle">{_short(tick)}</text>')
    for i, (_, steps, values) in enumerate(several):
        parts += _line(steps, values, at, i % COLOURS, high)
    return "".join([*parts, "</svg>"])


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most this many of the points (step, value), in the order of their steps: the last, and the first of each stretch.

    A stretch is a power of two wide: points that come one by one and are thinned again and again stay evenly spread.
    """
    if len(points) <= most or points[-1][0] <= points[0][0]:
        return list(points)
    (first, _), (last, _) = points[0], points[-1]
    width = 2.0 ** math.ceil(math.log2((last - first) / (most - 1)))
    stretches = {int((point[0] - first) // width): point for point in reversed(points)}
    stretches[int((last - first) // width)] = points[-1]
    return [point for _, point in sorted(stretches.items())]


def _line(
    steps: Sequence[float], values: Sequence[float], at: Callable[[float, float], tuple[float, float]], colour: int, top: float
) -> list[str]:
    """A polyline, dots where there are few points, crosses at the top where a value is not finite."""
    points = [(float(s), float(v)) for s, v in zip(steps, values, strict=True)]
    drawn = thinned([p for p in points if math.isfinite(p[1])], MOST)
    places = [at(*point) for point in drawn]
    parts = []
    if len(places) > 1:
        parts.append(f'<polyline class="c{colour}" points="' + " ".join(f"{x},{y}" for x, y in places) + '"/>')
    if len(places) <= DOTS:
        parts += [f'<circle class="c{colour}" cx="{x}" cy="{y}" r="2.4"/>' for x, y in places]
    lost = [s for s, v in points if not math.isfinite(v)]
    return parts + [f'<text class="lost" x="{at(s, top)[0]}" y="{TOP + 8}" text-anchor="middle">×</text>' for s in lost[:MOST]]


def _same(value: float) -> float:
    return value


def _log(value: float) -> float:
    return math.log10(value)


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten between and around low and high; of more than four decades the powers alone."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first > 4:
        return [10.0**k for k in range(first, last + 1, math.ceil((last - first) / 6))]
    steps = (1, 3) if math.log10(high / low) > 2 else (1, 2, 5)
    every = [m * 10.0**k for k in range(first, last + 1) for m in steps]
    below, above = [t for t in every if t <= low], [t for t in every if t >= high]
    return [t for t in every if max(below, default=every[0]) <= t <= min(above, default=every[-1])]


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
