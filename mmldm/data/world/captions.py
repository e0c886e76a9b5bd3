"""Captions: several phrasings of the same attributes; the word of every attribute is always there."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmldm.data.world.draw import Draw

__all__ = ["TEMPLATES", "caption"]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "image": (
        "a {size} {colour} {shape} {place}",
        "{place} there is a {size} {colour} {shape}",
        "a {colour} {shape}, {size}, {place}",
        "a picture of a {size} {colour} {shape} {place}",
        "one {size} {shape} in {colour} {place}",
        "there is a {size} {colour} {shape} {place}",
        "a {shape} of {size} size, {colour}, {place}",
        "{size} {colour} {shape} {place}",
    ),
    "video": (
        "a {size} {colour} {shape} {motion}",
        "there is a {size} {colour} {shape} {motion}",
        "a {colour} {shape}, {size}, {motion}",
        "a video of a {size} {colour} {shape} {motion}",
        "a {size} {shape} in {colour}, {motion}",
        "{size} {colour} {shape}, {motion}",
        "a {shape} that is {size} and {colour}, {motion}",
    ),
    "audio": (
        "a {contour} {timbre} at {pitch}",
        "{timbre}, {pitch}, {contour}",
        "the sound of a {timbre} at {pitch}, {contour}",
        "a {timbre} on the note {pitch}, {contour}",
        "one {contour} note {pitch} from a {timbre}",
        "a {contour} {pitch} played by a {timbre}",
        "there is a {timbre} around {pitch} and it is {contour}",
    ),
    "av": (
        "a {colour} ball bouncing at a {tempo} tempo with a {timbre} at each bounce",
        "a {colour} ball bounces, {tempo}, and each bounce sounds like a {timbre}",
        "{tempo} bounces of a {colour} ball, each with the sound of a {timbre}",
        "a {timbre} sounds whenever the {colour} ball hits the floor at a {tempo} pace",
        "a ball in {colour}, bouncing at a {tempo} pace, sound: {timbre}",
        "there is a {colour} ball bouncing with a {timbre}, {tempo} tempo",
    ),
}

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "place": {
        "left": ("on the left", "on the left side", "at the left"),
        "right": ("on the right", "on the right side", "at the right"),
        "top": ("at the top", "near the top"),
        "bottom": ("at the bottom", "near the bottom"),
        "centre": ("in the centre", "at the centre"),
    },
    "motion": {
        "left": ("moving left", "moving to the left", "drifting to the left", "sliding left"),
        "right": ("moving right", "moving to the right", "drifting to the right", "sliding right"),
        "up": ("moving up", "drifting up", "floating up"),
        "down": ("moving down", "drifting down", "sinking down"),
        "still": ("standing still", "staying still", "holding still"),
        "growing": ("growing", "growing steadily"),
        "circling": ("circling", "circling around", "circling the middle"),
    },
    "timbre": {
        "sine": ("sine tone", "sine wave", "pure sine"),
        "square": ("square wave", "square tone"),
        "saw": ("saw wave", "saw tone"),
        "string": ("plucked string", "string being plucked"),
        "bell": ("bell", "ringing bell"),
        "noise": ("band of noise", "burst of noise"),
    },
}


def caption(kind: str, attributes: Mapping[str, str], draw: Draw) -> str:
    """One of the phrasings of the attributes of a kind."""
    template = draw.pick(TEMPLATES[kind])
    words = {name: draw.pick(PHRASES.get(name, {}).get(value, (value,))) for name, value in attributes.items()}
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format(**words))
