"""Moving GIF, written picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import GifImagePlugin, Image

from mmldm.media.files import to_tags

__all__ = ["gif_writer"]

FOREVER = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"  # the application block that lets a player repeat


@contextmanager
def gif_writer(path: Path, fps: float, metadata: Mapping[str, str] | None = None) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives `append(pictures)` for uint8 (T, H, W, 3), each with its own 255 colours; times are rounded to GIF's 1/100 s
    without adding up errors."""
    count = 0
    with open(path, "wb") as file:

        def append(pictures: np.ndarray) -> None:
            nonlocal count
            if not count:
                file.write(_head(*pictures.shape[1:3], metadata))
            for picture in pictures:
                begin, end = (int(np.round(k * 100 / fps)) for k in (count, count + 1))
                colours = Image.fromarray(picture).quantize(255, dither=Image.Dither.FLOYDSTEINBERG)
                options = {"duration": max(1, end - begin) * 10, "disposal": 1, "include_color_table": True}
                file.writelines(GifImagePlugin.getdata(colours, **options))
                count += 1

        yield append
        file.write(b";")


def _head(height: int, width: int, metadata: Mapping[str, str] | None) -> bytes:
    """Signature, size without a palette for all, repetition and a comment."""
    comment = to_tags(metadata)["comment"].encode() if metadata else b""
    blocks = b"".join(bytes([len(part)]) + part for part in (comment[i : i + 255] for i in range(0, len(comment), 255)))
    said = b"!\xfe" + blocks + b"\x00" if comment else b""
    return b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + b"\x70\x00\x00" + FOREVER + said
