"""Still pictures through Pillow: files <-> (3, H, W) in [-1, 1]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mmldm.interfaces import Clip, Info, Media, MediaError, Preview
from mmldm.media.files import checked_suffix, reading, replacing
from mmldm.media.limits import Limits

__all__ = ["ImageMedia", "save_image", "to_image"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SAVED = (".png", ".jpg", ".jpeg", ".webp")
ORIENTATION, DESCRIPTION = 0x0112, 0x010E  # EXIF tags


@dataclass(frozen=True)
class ImageMedia(Media):
    """Still pictures (3, H, W) in [-1, 1]: scaled to cover height x width, cropped at the centre; EXIF rotation applied,
    transparency on white; JPEG, PNG, WebP, GIF (its first picture), BMP, TIFF."""

    height: int
    width: int
    limits: Limits = field(default_factory=Limits)

    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"wanted height and width >= 1, got {self.height} x {self.width}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.height, self.width)

    def resized(self, seconds: float | None = None, size: tuple[int, int] | None = None) -> ImageMedia:
        if seconds is not None:
            raise ValueError(f"wanted a size, got seconds={seconds}: a still has no duration")
        return self if size is None else replace(self, height=int(size[0]), width=int(size[1]))

    def probe(self, path: str | Path) -> Info:
        with _opened(path, self.limits) as picture:
            width, height = picture.size
            if picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
            return Info(None, (height, width), None, len(picture.getbands()), f"{picture.format.lower()}/{picture.mode}")

    def plan(self, info: Info) -> list[str]:
        height, width = info.shape
        if (height, width) == (self.height, self.width):
            return []
        done = []
        scale = max(self.height / height, self.width / width)
        if scale != 1:
            done.append(
                f"{'enlarged' if scale > 1 else 'reduced'} {width}x{height} -> {width * scale:.0f}x{height * scale:.0f}"
            )
        if abs(height * scale - self.height) >= 1 or abs(width * scale - self.width) >= 1:
            done.append(f"cropped to {self.width}x{self.height}")
        return done

    def load(self, path: str | Path, start: float = 0.0) -> Clip:
        with _opened(path, self.limits) as picture:
            longest = max(self.height, self.width)
            picture.draft(None, (2 * longest, 2 * longest))  # a large JPEG is decoded at 1/2, 1/4, 1/8
            flat = _flat(ImageOps.exif_transpose(picture))
            fitted = ImageOps.fit(flat, (self.width, self.height), Image.Resampling.LANCZOS)
            x = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1
        return Clip(x.contiguous(), (self.height, self.width))

    def save(self, x: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        return save_image(x, path, metadata)

    def preview(self, x: Tensor, folder: str | Path, name: str) -> list[Preview]:
        return [Preview(save_image(x, Path(folder) / f"{name}.png"), "picture")]

    def picture(self, x: Tensor) -> Image.Image:
        """What a contact sheet shows of `x`: small pictures enlarged with hard pixels."""
        from mmldm.media import draw

        return draw.tile(to_image(x), 128)


@contextmanager
def _opened(path: str | Path, limits: Limits):
    limits.check_file(path)
    with reading(path):
        try:
            picture = Image.open(path, formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            raise MediaError(path, "is not a picture in a known format") from error
        with picture:
            limits.check(path, pixels=picture.size[0] * picture.size[1])
            yield picture


def _flat(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB of 8 bits: 16 bits scaled, transparency laid on white."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("holds NaN or infinite pixels")
        scale = 1 / 257
        if picture.mode == "F" and values.max() <= 255:
            scale = 255.0 if values.max() <= 1 else 1.0
        return Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return picture.convert("RGB")


def to_image(x: Tensor) -> Image.Image:
    """(3, H, W) or (1, H, W) in [-1, 1] -> an RGB picture of 8 bits; NaN becomes grey."""
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise ValueError(f"wanted a picture (3, H, W), got {tuple(x.shape)}")
    levels = (x.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1) * 127.5 + 127.5).round().byte()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def save_image(x: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write (3, H, W) in [-1, 1] as PNG, JPEG or lossless WebP; metadata as PNG text, or JSON in the EXIF description."""
    suffix, path = checked_suffix(path, SAVED), Path(path)
    picture, options = to_image(x), {}
    if suffix == ".png":
        options["pnginfo"] = PngInfo()
        for key, value in (metadata or {}).items():
            options["pnginfo"].add_itxt(str(key), str(value))
    else:
        exif = Image.Exif()
        if metadata:
            exif[DESCRIPTION] = json.dumps({str(k): str(v) for k, v in metadata.items()})
        options = {"exif": exif, "lossless": True} if suffix == ".webp" else {"exif": exif, "quality": 95, "subsampling": 0}
    with replacing(path) as temporary:
        picture.save(temporary, **options)
    return path


def picture_tags(path: str | Path) -> dict[str, str]:
    """The text tags of a still."""
    with _opened(path, Limits()) as picture:
        tags = {str(k): v for k, v in getattr(picture, "text", {}).items()}
        description = picture.getexif().get(DESCRIPTION)
        comment = picture.info.get("comment")
        if isinstance(comment, bytes):
            comment = comment.decode("utf-8", "replace")
        return {**tags, **({"description": description} if description else {}), **({"comment": comment} if comment else {})}
