"""What the world is made of: the value of every attribute in numbers, and which combinations training never sees."""

from __future__ import annotations

import hashlib
import math
from itertools import product

__all__ = ["KINDS", "SHAPES", "VOCABULARY", "combinations", "split_combinations"]

KINDS: dict[str, tuple[str, ...]] = {
    "image": ("shape", "colour", "size", "place"),
    "video": ("shape", "colour", "size", "motion"),
    "audio": ("timbre", "pitch", "contour"),
    "av": ("colour", "timbre", "tempo"),
}

# number of tips (0: a circle), outer radius over nominal radius, inner over outer radius
SHAPES: dict[str, tuple[int, float, float]] = {
    "circle": (0, 1.0, 1.0),
    "square": (4, 1.25, math.cos(math.pi / 4)),
    "triangle": (3, 1.40, 0.5),
    "star": (5, 1.40, 0.42),
}

SALT = "544|"  # of the hashes tried the one whose fifth is most even over the values of every attribute
OUTLINE = 180  # angles of an outline


def outline_radius(shape: str, angle: float) -> float:
    """Distance from the centre to the edge of a shape of nominal radius 1 at an angle (radians, clockwise from straight up)."""
    tips, outer, inner = SHAPES[shape]
    if tips == 0:
        return 1.0
    half = math.pi / tips
    turned = angle + (half if shape == "square" else 0.0)  # a square stands on its side
    fold = abs((turned + half) % (2 * half) - half)
    return (
        outer
        * inner
        * math.sin(half)
        / (math.sin(fold) * (1 - inner * math.cos(half)) + inner * math.sin(half) * math.cos(fold))
    )


def _outline(shape: str) -> tuple[float, ...]:
    return tuple(outline_radius(shape, 2 * math.pi * i / OUTLINE) for i in range(OUTLINE))


def _harmonics(amplitude, count: int = 16) -> tuple[tuple[float, float], ...]:
    return tuple((float(n), amplitude(n)) for n in range(1, count + 1) if amplitude(n) > 0)


# Numbers in units that do not depend on the size of a picture: lengths are parts of its shorter side, x grows to the right
# and y downwards from its centre; pitches in hertz, glides in semitones per clip, rates per second.
VOCABULARY: dict[str, dict] = {
    # RGB in [0, 1]
    "colour": {
        "red": (0.90, 0.13, 0.16),
        "orange": (1.00, 0.52, 0.06),
        "yellow": (1.00, 0.87, 0.14),
        "green": (0.18, 0.72, 0.28),
        "cyan": (0.10, 0.82, 0.88),
        "blue": (0.13, 0.34, 0.95),
        "purple": (0.56, 0.22, 0.86),
        "pink": (1.00, 0.45, 0.74),
    },
    # outline of nominal radius 1, clockwise from straight up
    "shape": {name: _outline(name) for name in SHAPES},
    "size": {"small": 0.12, "medium": 0.17, "large": 0.24},
    "place": {"left": (-0.18, 0.0), "right": (0.18, 0.0), "top": (0.0, -0.18), "bottom": (0.0, 0.18), "centre": (0.0, 0.0)},
    # over one clip: `travel` (x, y), `growth` of the logarithm of the radius, radius of the `orbit` of one turn
    "motion": {
        "left": {"travel": (-0.42, 0.0)},
        "right": {"travel": (0.42, 0.0)},
        "up": {"travel": (0.0, -0.42)},
        "down": {"travel": (0.0, 0.42)},
        "still": {},
        "growing": {"growth": 0.95},
        "circling": {"orbit": 0.2},
    },
    "pitch": {
        "C3": 130.81, "F3": 174.61, "B3": 246.94, "E4": 329.63, "A4": 440.0, "D5": 587.33, "G5": 783.99, "C6": 1046.5,
    },
    # `partials` (ratio to the pitch, amplitude); `spread` of a band in octaves (standard deviation) and its broad `floor`;
    # `decay`: struck, not held
    "timbre": {
        "sine": {"partials": ((1.0, 1.0),)},
        "square": {"partials": _harmonics(lambda n: (n % 2) / n)},
        "saw": {"partials": _harmonics(lambda n: 1 / n**0.6)},
        "string": {"partials": _harmonics(lambda n: 0.5 ** (n - 1), 7), "decay": True},
        "bell": {"partials": ((1.0, 1.0), (2.76, 0.7), (5.40, 0.45), (8.93, 0.25)), "decay": True},
        "noise": {"partials": (), "spread": 0.3, "floor": 0.3},
    },
    "contour": {"steady": {}, "rising": {"glide": 7.0}, "falling": {"glide": -7.0}, "pulsing": {"rate": 4.0}},
    # bounces per second
    "tempo": {"slow": 1.0, "medium": 1.7, "fast": 2.8},
}  # fmt: skip


def combinations(kind: str) -> list[dict[str, str]]:
    """Every combination of the attributes of a kind, in a fixed order."""
    if kind not in KINDS:
        raise ValueError(f"wanted a kind of world, got {kind!r}; choose from {', '.join(KINDS)}")
    names = KINDS[kind]
    return [dict(zip(names, values, strict=True)) for values in product(*(VOCABULARY[name] for name in names))]


def _rank(combination: dict[str, str]) -> bytes:
    text = SALT + "|".join(f"{name}={value}" for name, value in sorted(combination.items()))
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def split_combinations(kind: str, split: str) -> list[dict[str, str]]:
    """The combinations of a split: `heldout` is the fifth with the smallest hashes, `train` the others, `all` both."""
    every = combinations(kind)
    held = sorted(range(len(every)), key=lambda i: _rank(every[i]))[: len(every) // 5]
    chosen = {"all": range(len(every)), "heldout": sorted(held), "train": sorted(set(range(len(every))) - set(held))}
    if split not in chosen:
        raise ValueError(f"wanted a split, got {split!r}; choose from {', '.join(chosen)}")
    return [every[i] for i in chosen[split]]
