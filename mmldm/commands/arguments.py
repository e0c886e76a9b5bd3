"""Small parsers that several commands share."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

__all__ = ["Parser", "chosen_device", "parse_size", "parse_span", "split_trust"]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a user's errors like any other: raised, in one line, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        wrong = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        near = difflib.get_close_matches(wrong[0], flags, 1) if "unrecognized" in message and wrong else []
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{message}{hint}; see {self.prog} --help")


def chosen_device(name: str | None) -> str:
    """The device of that name, cuda where there is one without a name; raises ValueError for one that cannot be used."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        told = str(error).partition("\n")[0]
        raise ValueError(f"wanted a device that torch can use, got --device {name}: {told}; choose --device cpu") from error
    return name


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
