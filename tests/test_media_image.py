"""Stills: every mode and rotation becomes the same upright RGB; what is written comes back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mmldm.interfaces import MediaError
from mmldm.media import ImageMedia, Limits, media_for, read_metadata, sheet


def scene(height: int = 40, width: int = 60) -> torch.Tensor:
    """Red top left, green top right, blue bottom left, white bottom right."""
    x = -torch.ones(3, height, width)
    for channel, rows, columns in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
        x[channel, rows * height // 2 : (rows + 1) * height // 2, columns * width // 2 : (columns + 1) * width // 2] = 1
    x[:, height // 2 :, width // 2 :] = 1
    return x


@pytest.mark.parametrize("suffix, error", [(".png", 0.0), (".jpg", 0.3), (".jpeg", 0.3), (".webp", 0.0)])
def test_what_is_saved_comes_back_with_its_metadata(tmp_path, suffix, error):
    x, media, metadata = scene(), ImageMedia(40, 60), {"prompt": "a “red” square, é", "seed": "7"}
    path = media.save(x, tmp_path / f"a{suffix}", metadata)
    clip = media.load(path)
    assert (clip.x - x).abs().max() <= error and clip.x.dtype == torch.float32 and clip.valid == (40, 60)
    assert read_metadata(path) == metadata
    assert media.probe(path).shape == (40, 60) and media.plan(media.probe(path)) == []


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF"])
def test_further_formats_are_read(tmp_path, form):
    path = tmp_path / f"a.{form.lower()}"
    Image.open(ImageMedia(40, 60).save(scene(), tmp_path / "a.png")).save(path)
    assert torch.equal(ImageMedia(40, 60).load(path).x, scene())
    assert media_for(path) == "image"


def test_exif_rotation_is_applied(tmp_path):
    upright = Image.open(ImageMedia(40, 60).save(scene(), tmp_path / "a.png"))
    turns = {2: 0, 3: 3, 4: 1, 6: 2, 8: 4}
    transposes = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_90,
                  Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)  # fmt: skip
    for tag, index in turns.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        path = tmp_path / f"{tag}.png"
        upright.transpose(transposes[index]).save(path, exif=exif)  # the inverse of what the tag asks for
        assert torch.equal(ImageMedia(40, 60).load(path).x, scene()), tag
        assert ImageMedia(40, 60).probe(path).shape == (40, 60)


def test_every_mode_becomes_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    cases = {
        "sixteen.png": Image.fromarray(ramp.astype(np.uint16)),
        "sixteen.tiff": Image.fromarray(ramp.astype(np.uint16)),
        "float.tiff": Image.fromarray((ramp / 65535).astype(np.float32)),
        "grey.png": Image.fromarray((ramp / 257).astype(np.uint8)),
        "palette.png": Image.fromarray((ramp / 257).astype(np.uint8)).convert("P"),
    }
    for name, picture in cases.items():
        picture.save(tmp_path / name)
        x = ImageMedia(64, 64).load(tmp_path / name).x
        assert (x - torch.from_numpy(ramp / 65535 * 2 - 1).float()).abs().max() < 0.012, name
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert (ImageMedia(64, 64).load(tmp_path / "cmyk.jpg").x.mean((1, 2)) - torch.tensor([1.0, -1, -1])).abs().max() < 0.1
    Image.new("1", (64, 64), 1).save(tmp_path / "bit.png")
    assert (ImageMedia(64, 64).load(tmp_path / "bit.png").x == 1).all()


@pytest.mark.parametrize("mode, colour", [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))])
def test_transparency_lies_on_white(tmp_path, mode, colour):
    Image.new(mode, (16, 16), colour).save(tmp_path / "a.png")
    assert (ImageMedia(16, 16).load(tmp_path / "a.png").x == 1).all()


def test_scaled_to_cover_and_cropped_at_the_centre(tmp_path):
    path = ImageMedia(40, 60).save(scene(), tmp_path / "a.png")
    media = ImageMedia(20, 20)
    x = media.load(path).x
    assert x.shape == (3, 20, 20)
    expected = scene(20, 20)
    assert (x - expected)[:, 1:9, 1:9].abs().max() < 0.02 and (x - expected)[:, 12:, 12:].abs().max() < 0.02
    assert media.plan(media.probe(path)) == ["reduced 60x40 -> 30x20", "cropped to 20x20"]


def test_reducing_is_antialiased(tmp_path):
    board = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float() * 2 - 1
    path = ImageMedia(256, 256).save(board.expand(3, -1, -1), tmp_path / "a.png")
    assert ImageMedia(32, 32).load(path).x.abs().max() < 0.05


def test_limits_come_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (9000, 9000)).save(path)
    assert path.stat().st_size < 20_000
    for read in (ImageMedia(8, 8).load, ImageMedia(8, 8).probe):
        with pytest.raises(MediaError, match="81000000 pixels, the limit is 50000000"):
            read(path)
    with pytest.raises(MediaError, match="bytes"):
        ImageMedia(8, 8, Limits(max_bytes=100)).load(path)
    assert ImageMedia(8, 8, Limits(max_pixels=10**8)).load(path).x.shape == (3, 8, 8)


def test_resized_preview_and_refusals(tmp_path):
    media = ImageMedia(8, 8)
    assert media.resized(size=(4, 6)).shape == (3, 4, 6) and media.seconds is None
    assert pickle.loads(pickle.dumps(media)) == media
    assert [p.kind for p in media.preview(scene(8, 8), tmp_path, "p")] == ["picture"]
    with pytest.raises(ValueError, match="duration"):
        media.resized(seconds=1.0)
    with pytest.raises(ValueError, match="choose from .png"):
        media.save(scene(), tmp_path / "a.xcf")
    with pytest.raises(ValueError, match="wanted a picture"):
        media.save(torch.zeros(5, 4, 4), tmp_path / "a.png")


def test_a_contact_sheet_enlarges_small_pictures(tmp_path):
    media = ImageMedia(32, 32)
    path = sheet([(scene(32, 32), f"a long caption of number {i} <&> é Ж") for i in range(5)], media, tmp_path / "s.png")
    with Image.open(path) as picture:
        assert picture.width >= 3 * 128 and picture.height >= 2 * 128
        assert len(picture.getcolors(100_000)) > 4  # four colours of the scene and the ink of the captions
