"""Small parsers that several commands share."""

from __future__ import annotations

__all__ = ["parse_size", "parse_span", "split_trust"]


def split_trust(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Take every `--trust NAME` and `--trust=NAME` out of the arguments."""
    words, trust = [], []
    rest = iter(argv)
    for word in rest:
        if word == "--trust":
            trust.append(next(rest, ""))
        elif word.startswith("--trust="):
            trust.append(word.removeprefix("--trust="))
        else:
            words.append(word)
    return words, tuple(trust)


def parse_span(text: str | None) -> tuple[float, float]:
    """`0:1.5s` -> (0.0, 1.5); an empty side is the beginning or the end."""
    if text is None:
        return 0.0, float("inf")
    parts = text.replace("s", "").split(":")
    try:
        start, end = float(parts[0] or 0), float(parts[1] or "inf")
    except (ValueError, IndexError):
        raise ValueError(f"wanted START:END in seconds, got {text}; for example 0:1.5s") from None
    if not 0 <= start < end:
        raise ValueError(f"wanted START:END with 0 <= START < END, got {text}")
    return start, end


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`64x48` -> (64, 48)."""
    if text is None:
        return None
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"wanted HEIGHTxWIDTH in pixels, got {text}; for example 64x64") from None
    return height, width
